"""Durable publish: acks a second of publishers that do not receive each other's events."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from .databases import database, durable, stored
from .processes import cpu_seconds, difference, load, serving
from .publish_load import Plan, Result
from .report import Figure

VARIANTS: tuple[tuple[str, str, dict[str, Any]], ...] = (
    ("acks", "dialogue", {}),
    ("acks, with keys", "dialogue", {"has_keys": True}),
    ("acks, each publisher receives all events", "dialogue", {"is_subscribed": True}),
    ("acks, a frame per trigger", "dialogue", {"is_single": True}),
    ("acks, 64 rooms", "dialogue", {"rooms": 64}),
    ("SQLAlchemy async", "sqlalchemy_async", {}),
    ("bare sqlite3", "bare_sqlite", {}),
)
"""What is measured: its name, the server, and what differs from the plan."""

HEADLINE = "acks"

AT_LEAST = {"SQLite": 40_000.0, "Postgres": 30_000.0}
"""What the headline is to reach, in acks a second."""


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
    with serving(server, url) as served:
        before = cpu_seconds(served.pid)
        result = load(msgspec.structs.replace(plan, port=served.port), Result)
        used = difference(cpu_seconds(served.pid), before)
    assert result.acked == result.sent, result
    assert not result.wrong, result
    if server == "dialogue":
        found = sum(stored(url, range(plan.rooms)))
        assert found == result.acked, (found, result)
    return result, (used or 0.0) / max(1, result.acked) * 1e6


def compare(plan: Plan, *, variants: Sequence[int], rounds: int, postgres: str | None) -> list[Figure]:
    """Run *plan* *rounds* times with each of *variants*, numbers of `VARIANTS`, over each database that there is."""
    made: list[Figure] = []
    for kind in durable(postgres):
        runs: dict[str, Best] = {}
        # Taken in turns: what else the machine does meanwhile then hits all of them alike.
        for _ in range(rounds):
            for name, server, changes in (VARIANTS[number] for number in variants):
                if kind == "Postgres" and server == "bare_sqlite":
                    continue
                with database(kind, postgres) as url:
                    best = runs.setdefault(name, Best())
                    best.add(measure(server, url, msgspec.structs.replace(plan, **changes)))
        made += figures(kind, runs, at_least=AT_LEAST[kind])
    return made


def figures(kind: str, runs: dict[str, Best], *, at_least: float) -> list[Figure]:
    """Return the headline against each peer, and the other variants against the headline."""
    found = {name: best for name, best in runs.items() if best.result is not None}
    ours = _speed(found[HEADLINE])
    made = []
    for peer, ratio in (("SQLAlchemy async", 20.0), ("bare sqlite3", 7.0)):
        if peer in found:
            made.append(
                Figure(
                    scenario="publish",
                    what=f"{kind}: {HEADLINE}",
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
                    what=f"{kind}: {name}",
                    value=_speed(best),
                    unit="/s",
                    against=f"{kind}: {HEADLINE}",
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
