"""Which failures are told, and for how long one is taken to last."""

from __future__ import annotations

from dialogue import StoreUnavailable
from dialogue.storage.condition import LINE_SECONDS, RECENT_SECONDS, Condition, describe


class Clock:
    """Seconds that a test turns."""

    now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_the_first_failure_is_told_with_its_traceback_and_then_a_count_now_and_then() -> None:
    """A tier that is down for an hour of busy reading costs sixty lines and one traceback."""
    clock = Clock()
    condition = Condition(clock)
    lines = []
    for _ in range(36_000):
        lines.append(condition.failed(RuntimeError("x")))
        clock.now += 0.1
    told = [line for line in lines if line is not None]
    assert told[0] == (1, True)
    assert 55 <= len(told) <= 60
    assert not any(line.has_traceback for line in told[1:])
    untold = 36_000 - 1 - max(n for n, line in enumerate(lines) if line is not None)
    assert sum(line.failures for line in told) + untold == 36_000, "none is forgotten"


def test_a_failure_lasts_until_a_success_or_for_a_while() -> None:
    """`failing_seconds` counts from the first of a row; one that nothing follows is not recent for ever."""
    clock = Clock()
    condition = Condition(clock)
    assert condition.failing_seconds is None
    condition.failed()
    clock.now += RECENT_SECONDS - 1
    condition.failed()
    clock.now += RECENT_SECONDS - 1
    assert condition.failing_seconds == 2 * RECENT_SECONDS - 2
    assert condition.is_recent
    clock.now += 1
    assert not condition.is_recent
    condition.succeeded()
    assert condition.failing_seconds is None
    clock.now += LINE_SECONDS
    line = condition.failed(RuntimeError("again"))
    assert line is not None
    assert line.has_traceback, "of another row"


def test_an_error_is_described_without_anybodys_data() -> None:
    """What a driver quotes may be a message of somebody's; our own texts and the system's never are."""
    assert describe(ValueError("invalid input: 'my secret'")) == "ValueError"
    assert describe(StoreUnavailable("the table is away\nmore")) == "StoreUnavailable: the table is away"
    assert describe(OSError(28, "No space left on device")) == "OSError: [Errno 28] No space left on device"
    assert describe(TimeoutError()) == "TimeoutError"
