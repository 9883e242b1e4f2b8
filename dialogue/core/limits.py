"""Token buckets. Time comes in as an argument."""

from __future__ import annotations


class TokenBucket:
    """Allows *capacity* at once and *per_second* after that.

    Args:
        capacity: Most tokens that gather, at least 1.
        per_second: How many come back each second, above 0.
        now: The present, in seconds of any monotonic clock.
    """

    __slots__ = ("_capacity", "_per_second", "_time", "_tokens")

    def __init__(self, capacity: float, per_second: float, *, now: float) -> None:
        self._capacity = capacity
        self._per_second = per_second
        self._tokens = capacity
        self._time = now

    def take(self, *, now: float) -> bool:
        """Take one token; False (and nothing is taken) when there is none."""
        # Those who share a bucket may have read the clock in another order than they come.
        if now > self._time:
            self._tokens = min(self._capacity, self._tokens + (now - self._time) * self._per_second)
            self._time = now
        if self._tokens < 1:
            return False
        self._tokens -= 1
        return True

    @property
    def wait_seconds(self) -> float:
        """How long after the latest `take` there is a token again; 0 when there is one."""
        return max(0.0, (1 - self._tokens) / self._per_second)
