"""Whether something that is called again and again works, and which of its failures are worth a line in the log."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import NamedTuple

from ..errors import DialogueError

LINE_SECONDS = 60.0
"""At most one line of the log in so long tells of failures; it counts those since the line before."""

RECENT_SECONDS = 30.0
"""How long a failure that nothing has followed is taken to last.

Without an end a server whose health fails would get no more traffic, and without traffic it would never find out that
its store is back.
"""


class Line(NamedTuple):
    """A line that the log should have.

    Attributes:
        failures: How many failures it is to tell of; at least 1.
        has_traceback: Whether this is the first of a row of failures to be told of.
    """

    failures: int
    has_traceback: bool


def describe(error: BaseException) -> str:
    """Return what went wrong without anybody's data: the text of our own errors and the system's, else the type."""
    name = type(error).__name__
    if isinstance(error, DialogueError | OSError) and str(error):
        return f"{name}: {str(error).splitlines()[0][:200]}"
    return name


class Condition:
    """Notes failures and successes.

    Attributes:
        last_error: What the newest failure was, without data (see `describe`); None when there was none.

    Args:
        clock: Seconds, never running backwards.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.last_error: str | None = None
        self._clock = clock
        self._since: float | None = None
        self._latest = 0.0
        self._untold = 0
        self._told_at: float | None = None
        self._has_told_traceback = False

    @property
    def failing_seconds(self) -> float | None:
        """How long ago the first of a row of failures was; None when the newest call worked, or there was none."""
        return None if self._since is None else self._clock() - self._since

    @property
    def is_recent(self) -> bool:
        """Whether it fails and the newest failure is younger than `RECENT_SECONDS`."""
        return self._since is not None and self._clock() - self._latest < RECENT_SECONDS

    def failed(self, error: BaseException | None = None) -> Line | None:
        """Note a failure; return the line that the log should have now, if any."""
        now = self._latest = self._clock()
        if self._since is None:
            self._since = now
            self._has_told_traceback = False
        if error is not None:
            self.last_error = describe(error)
        self._untold += 1
        if self._told_at is not None and now - self._told_at < LINE_SECONDS:
            return None
        line = Line(self._untold, not self._has_told_traceback)
        self._told_at, self._untold, self._has_told_traceback = now, 0, True
        return line

    def succeeded(self) -> None:
        """Note that it works."""
        self._since = None
