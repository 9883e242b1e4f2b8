"""Limits for those who go faster than any client should, and rates that do not depend on how fast a test goes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from unittest.mock import patch

from dialogue import Limits
from dialogue.core.limits import TokenBucket

UNRATED: dict[str, int] = {
    name: 10**9 for name in Limits.model_fields if name.endswith(("_per_second", "_burst", "_per_minute"))
}
"""All rates out of reach; everything else as it is."""


@contextmanager
def no_refill() -> Iterator[None]:
    """Let no bucket fill up again: on a busy machine a second passes between any two commands."""
    take = TokenBucket.take

    def take_at_once(bucket: TokenBucket, *, now: float) -> bool:
        return take(bucket, now=bucket._time)

    with patch.object(TokenBucket, "take", take_at_once):
        yield
