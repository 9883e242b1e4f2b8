"""How long to wait before something that has failed is tried again."""

from __future__ import annotations

from random import Random


def backoff_seconds(failures: int, *, first: float, longest: float, random: Random) -> float:
    """Return a random time below a bound that doubles with each failure in a row.

    Random from 0 on, so that those who have failed at one moment do not all come back at another one.

    Args:
        failures: How many there were in a row; 0 gives *first*.
        first: The bound after none, in seconds.
        longest: What the bound grows to, in seconds.
    """
    # The exponent is bounded, too: no float holds what a day of failures would make of it.
    return random.uniform(0, min(longest, first * 2 ** min(failures, 30)))
