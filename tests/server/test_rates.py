"""Buckets of connections and users: made late, they allow what they would have allowed from the start."""

from __future__ import annotations

import pytest

from dialogue import Limits
from dialogue.core.limits import TokenBucket
from dialogue.errors import RateLimited
from dialogue.server.rates import Rates, RatesOfUser, UserRates, connection_rates, spend

LIMITS = Limits(
    triggers_burst=2,
    triggers_per_second=1,
    joins_burst=3,
    joins_per_second=2,
    reads_burst=4,
    reads_per_second=3,
    user_triggers_burst=5,
    user_triggers_per_second=4,
    user_joins_burst=6,
    user_joins_per_second=5,
    user_reads_burst=7,
    user_reads_per_second=6,
    user_room_changes_per_minute=8,
)


@pytest.mark.parametrize(
    ("rates", "name", "burst", "per_second"),
    [
        (connection_rates(LIMITS, now=10.0), "triggers", 2, 1),
        (connection_rates(LIMITS, now=10.0), "joins", 3, 2),
        (connection_rates(LIMITS, now=10.0), "reads", 4, 3),
        (RatesOfUser(LIMITS, now=10.0), "triggers", 5, 4),
        (RatesOfUser(LIMITS, now=10.0), "joins", 6, 5),
        (RatesOfUser(LIMITS, now=10.0), "reads", 7, 6),
        (RatesOfUser(LIMITS, now=10.0), "room_changes", 8, 8 / 60),
    ],
)
def test_each_bucket_is_that_of_its_limit(rates: Rates, name: str, burst: int, per_second: float) -> None:
    """Full however late it is made, one object from then on, and no other's."""
    others = [other for other in ("triggers", "joins", "reads") if other != name]
    model = TokenBucket(burst, per_second, now=10.0)
    for now in (12.0, *[12.1] * 8, 12.6, 13.0, 13.0):
        bucket = getattr(rates, name)
        assert bucket.take(now=now) == model.take(now=now)
        assert bucket.wait_seconds == model.wait_seconds
        assert bucket is getattr(rates, name)
        assert all(bucket is not getattr(rates, other) for other in others)


def test_a_trigger_takes_from_its_bucket() -> None:
    """Whether there was one before, and who is refused is told when to come again."""
    rates = connection_rates(LIMITS, now=0.0)
    rates.spend_trigger(1.0)
    spend(1.0, rates.triggers)
    with pytest.raises(RateLimited) as refused:
        rates.spend_trigger(1.5)
    assert refused.value.retry_after_seconds == 0.5


def test_a_user_has_the_same_buckets_everywhere() -> None:
    """An idle one costs next to nothing."""
    rates = UserRates(LIMITS, clock=lambda: 1.0)
    assert rates.of("ann") is rates.of("ann")
    assert rates.of("ann") is not rates.of("bob")
    assert rates.of("ann")._triggers is None
