"""The requests that are being answered: how many at a time, in all and of one user."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

from ..errors import RateLimited
from ..limits import Limits


class InFlight:
    """Counts requests from their beginning until their answer is sent: a reader may take long over it.

    A request is bounded as a connection is: ``limits.connections`` in all, ``limits.connections_per_user`` of a user.
    """

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self.count = 0
        self._by_user: Counter[str] = Counter()

    def begin(self) -> Callable[[], None]:
        """Count a request; return what ends it.

        Raises:
            RateLimited: There are too many.
        """
        if self.count >= self._limits.connections:
            raise RateLimited("too many requests at a time", retry_after_seconds=1)
        self.count += 1
        return self._end

    def begin_of(self, user_id: str) -> Callable[[], None]:
        """Count a request as one of a user's; return what ends it.

        Raises:
            RateLimited: The user has too many.
        """
        if self._by_user[user_id] >= self._limits.connections_per_user:
            raise RateLimited(
                f"a user has at most {self._limits.connections_per_user} requests at a time",
                retry_after_seconds=1,
            )
        self._by_user[user_id] += 1
        return lambda: self._end_of(user_id)

    def _end(self) -> None:
        self.count -= 1

    def _end_of(self, user_id: str) -> None:
        self._by_user[user_id] -= 1
        if not self._by_user[user_id]:
            del self._by_user[user_id]
