"""Latency: how long a message is on its way at a rate that every server bears, ours with a commit before it."""

from __future__ import annotations

import statistics
from collections.abc import Container

import msgspec

from .databases import stored
from .latency_load import Plan, Result
from .processes import load
from .report import Figure
from .sides import DURABLE, LOOP, NODE_WS, SIDES, files, present, serving_sides

PEERS: dict[str, float | None] = {LOOP: 1.0, NODE_WS: None}
"""Whom Dialogue on SQLite is compared with, and how many times their p99 its own may be."""


def measure(plan: Plan, *, names: Container[str], rounds: int) -> list[Figure]:
    """Run *plan* *rounds* times in turns against those of *names* that are compared and can run.

    Raises:
        AssertionError: Somebody has not received everything once and in order, or the log has not all of it.
    """
    names = present(name for name in (DURABLE, *PEERS) if name in names)
    runs: dict[str, list[Result]] = {name: [] for name in names}
    with files(names) as urls:
        with serving_sides(names, urls) as served:
            for room in range(rounds):
                for name, done in runs.items():
                    result = load(
                        msgspec.structs.replace(
                            plan, port=served[name].port, dialect=SIDES[name].dialect, room=room
                        ),
                        Result,
                    )
                    result.check()
                    done.append(result)
        sent = [result.sent for result in runs[DURABLE]]
        found = stored(urls[DURABLE], range(rounds))
        assert found == sent, (found, sent)
    return [
        Figure(
            scenario="latency",
            what=f"{DURABLE}: p99, {plan.subscribers} subscribers, {plan.per_second} messages/s",
            value=_p99(runs[DURABLE]),
            unit="ms",
            against=peer,
            against_value=_p99(runs[peer]),
            ratio_at_most=at_most,
            versions=SIDES[peer].versions(),
            note=f"{_note(runs[DURABLE])}; {peer}: {_note(runs[peer])}",
        )
        for peer, at_most in PEERS.items()
        if peer in runs
    ]


def _p99(runs: list[Result]) -> float:
    return statistics.median(run.p99_ms for run in runs)


def _note(runs: list[Result]) -> str:
    p50, late, busy = (
        statistics.median(getattr(run, field) for run in runs) for field in ("p50_ms", "late_ms", "busy")
    )
    values = ", ".join(f"{run.p99_ms:.1f}" for run in runs)
    return f"p50 {p50:.1f} ms, load generator {busy:.0%} of a core and {late:.1f} ms late, p99 of all runs {values}"
