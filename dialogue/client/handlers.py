"""Handlers of the application, and the one bounded queue from which they run.

Handlers run in the order in which their causes arrived, one at a time per client; a handler that awaits holds up
the ones after it. What a handler raises is logged under ``dialogue.client`` and harms nothing else.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any

logger = logging.getLogger("dialogue.client")

Handler = Callable[..., Any]
Unsubscribe = Callable[[], None]
Calls = Iterable[tuple[Handler, tuple[Any, ...]]]

# So many calls may run without giving the rest of the program a turn; most handlers never await.
_CALLS_PER_TURN = 64


class Handlers:
    """Functions by name, called in the order in which they were added."""

    __slots__ = ("_by_name",)

    def __init__(self) -> None:
        self._by_name: dict[str, list[Handler]] = {}

    def add(self, name: str, fn: Handler) -> Unsubscribe:
        """Add *fn*; return a function that takes it away, and may be called twice."""
        entry = [fn]
        self._by_name.setdefault(name, []).append(fn)

        def unsubscribe() -> None:
            # The same function may have been added twice: only this one goes, and only once.
            if entry and fn in self._by_name.get(name, ()):
                self._by_name[name].remove(fn)
            entry.clear()

        return unsubscribe

    def get(self, name: str) -> tuple[Handler, ...]:
        """Return the functions under *name* as they are now; empty when there are none."""
        return tuple(self._by_name.get(name, ()))


class Dispatcher:
    """The queue and the loop that runs it.

    Args:
        limit: When so many entries wait, `is_full` becomes true, until half of them have run. The queue itself
            refuses nothing up to there; who puts entries has to stop.
        on_space: Called when `is_full` becomes false again.
    """

    def __init__(self, limit: int, on_space: Callable[[], None]) -> None:
        self._limit = limit
        self._on_space = on_space
        self._queue: deque[Callable[[], Calls]] = deque()
        self._has_entries = asyncio.Event()
        self._space = asyncio.Event()
        self._space.set()
        self.done_count = 0
        """How many entries have run."""

    def __len__(self) -> int:
        return len(self._queue)

    @property
    def is_full(self) -> bool:
        """Whether no more should be put for now."""
        return not self._space.is_set()

    def put(self, entry: Callable[[], Calls]) -> None:
        """Add an entry: a function that returns the calls to make, asked when its turn has come."""
        self._queue.append(entry)
        self._has_entries.set()
        if len(self._queue) >= self._limit:
            self._space.clear()

    def put_if_room(self, entry: Callable[[], Calls], *, times: int) -> bool:
        """Add an entry unless *times* the limit is waiting already; return whether it was added."""
        if len(self._queue) >= self._limit * times:
            return False
        self.put(entry)
        return True

    async def wait_for_space(self) -> None:
        """Wait until `is_full` is false."""
        await self._space.wait()

    async def run(self) -> None:
        """Run entries until cancelled. A handler that is cancelled by its own doing does not end it."""
        calls_in_turn = 0
        while True:
            while not self._queue:
                self._has_entries.clear()
                await self._has_entries.wait()
            entry = self._queue.popleft()
            if self.is_full and len(self._queue) <= self._limit // 2:
                self._space.set()
                self._on_space()
            for fn, arguments in entry():
                await _call(fn, arguments)
                calls_in_turn += 1
            self.done_count += 1
            if calls_in_turn >= _CALLS_PER_TURN:
                calls_in_turn = 0
                await asyncio.sleep(0)


async def _call(fn: Handler, arguments: tuple[Any, ...]) -> None:
    try:
        result = fn(*arguments)
        if inspect.isawaitable(result):
            await result
    except asyncio.CancelledError:
        task = asyncio.current_task()
        if task is not None and task.cancelling():
            raise
        logger.warning("the handler %r was cancelled", fn)
    except Exception:
        logger.exception("the handler %r failed", fn)
