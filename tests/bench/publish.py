"""Durable publish: acks a second of publishers that do not receive each other's events."""

from __future__ import annotations

import asyncio
from typing import Any

from dialogue import SQLStore

from .load import Plan, Result
from .processes import load, serving
from .report import Figure

VARIANTS: tuple[tuple[str, str, dict[str, Any]], ...] = (
    ("acks", "dialogue", {}),
    ("acks, with keys", "dialogue", {"has_keys": True}),
    ("acks, each publisher receives all events", "dialogue", {"is_subscribed": True}),
    ("acks, a frame per trigger", "dialogue", {"is_single": True}),
    ("acks, 64 rooms", "dialogue", {"rooms": 64}),
    ("SQLAlchemy async", "sqlalchemy", {}),
    ("bare sqlite3", "sqlite3", {}),
)
"""What is measured: its name, the server, and what differs from the plan."""

HEADLINE = "acks"


class Best:
    """The best of several runs, and what all of them acked."""

    def __init__(self) -> None:
        self.result: Result | None = None
        self.cpu_us = 0.0
        self.runs: list[float] = []

    def add(self, run: tuple[Result, float]) -> None:
        """Take a run into account."""
        result, cpu_us = run
        self.runs.append(result.acks_per_second)
        if self.result is None or result.acks_per_second > self.result.acks_per_second:
            self.result, self.cpu_us = result, cpu_us


def measure(server: str, url: str, plan: Plan) -> tuple[Result, float]:
    """Run *plan* against a new server; return the result and the server's processor time per ack, in microseconds.

    Raises:
        AssertionError: Something was not acked, or is not in the log.
    """
    store = url.partition(":///")[2] if server == "sqlite3" else url
    with serving(server, store) as served:
        before = served.cpu_seconds()
        result = load(Plan(**{**plan_fields(plan), "port": served.port}), Result)
        after = served.cpu_seconds()
    assert result.acked == result.sent, result
    assert not result.wrong, result
    if server == "dialogue":
        stored = asyncio.run(_stored(url, plan.rooms))
        assert stored == result.acked, (stored, result)
    cpu_us = 0.0 if before is None or after is None else (after - before) / max(1, result.acked) * 1e6
    return result, cpu_us


async def _stored(url: str, rooms: int) -> int:
    """Return how many events are in the log's rooms; seqs have no holes, so the newest one tells."""
    store = SQLStore(url)
    await store.open()
    try:
        return sum([(await store.head(f"bench:{room}")).last_seq for room in range(rooms)])
    finally:
        await store.aclose()


def plan_fields(plan: Plan) -> dict[str, Any]:
    """Return the fields of *plan*."""
    return {name: getattr(plan, name) for name in plan.__struct_fields__}


def figures(database: str, runs: dict[str, Best], *, at_least: float) -> list[Figure]:
    """Return the headline against each peer, and the other variants against the headline."""
    found = {name: best for name, best in runs.items() if best.result is not None}
    ours = _speed(found[HEADLINE])
    made = []
    for peer, ratio in (("SQLAlchemy async", 20.0), ("bare sqlite3", 7.0)):
        if peer in found:
            made.append(
                Figure(
                    scenario="publish",
                    what=f"{database}: {HEADLINE}",
                    value=ours,
                    unit="/s",
                    against=peer,
                    against_value=_speed(found[peer]),
                    at_least=at_least,
                    ratio_at_least=ratio,
                    note=_note(found[HEADLINE]),
                )
            )
    for name, best in found.items():
        if name != HEADLINE and name.startswith("acks"):
            made.append(
                Figure(
                    scenario="publish",
                    what=f"{database}: {name}",
                    value=_speed(best),
                    unit="/s",
                    against="headline",
                    against_value=ours,
                    note=_note(best),
                )
            )
    return made


def _speed(best: Best) -> float:
    assert best.result is not None
    return best.result.acks_per_second


def _note(best: Best) -> str:
    result = best.result
    assert result is not None
    runs = ", ".join(f"{run / 1000:.1f}" for run in best.runs)
    return (
        f"p50 {result.p50_ms:.1f} ms, p99 {result.p99_ms:.1f} ms; {best.cpu_us:.0f} us of the server's CPU per ack; "
        f"load generator {result.busy:.0%} of a core; runs in thousands: {runs}"
    )
