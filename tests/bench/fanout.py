"""Fan-out: deliveries a second to 500 subscribers of one room, beside what people would use instead."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from .databases import stored
from .fanout_load import Plan, Result
from .processes import load
from .report import Figure
from .sides import (
    ASGI,
    COMMITTING,
    DIALOGUE,
    DURABLE,
    LITESTAR,
    LOOP,
    NODE_SOCKETIO,
    NODE_WS,
    SIDES,
    SOCKETIO,
    files,
    present,
    serving_sides,
)

MANY = "32 publishers"
ALONE = "1 publisher that waits for each"

BOUNDS: dict[tuple[str, str], dict[str, float | None]] = {
    (DIALOGUE, MANY): {
        LOOP: 12.0,
        NODE_WS: 8.0,
        NODE_SOCKETIO: 10.0,
        SOCKETIO: None,
        LITESTAR: None,
        ASGI: None,
    },
    (DURABLE, MANY): {LOOP: 8.0, COMMITTING: None},
    (DIALOGUE, ALONE): {
        LOOP: 1.8,
        NODE_WS: 1.5,
        NODE_SOCKETIO: None,
        SOCKETIO: None,
        LITESTAR: None,
        ASGI: None,
    },
}
"""Who is measured with how many publishers, against whom, and by how many times it is to be ahead."""


def measure(plan: Plan, *, names: Iterable[str], rounds: int) -> list[Figure]:
    """Run *plan*, and the same with one publisher, *rounds* times in turns against those of *names* that can run.

    Raises:
        AssertionError: Somebody has not received everything once and in order, or the log has not all of it.
    """
    plans = {MANY: plan, ALONE: msgspec.structs.replace(plan, publishers=1, in_flight=1)}
    names = present(names)
    # Each once: the loop without storage is what two of ours are compared with.
    pairs = dict.fromkeys((name, case) for (ours, case), peers in BOUNDS.items() for name in (ours, *peers))
    runs: dict[tuple[str, str], list[Result]] = {pair: [] for pair in pairs if pair[0] in names}
    with files(names) as urls:
        with serving_sides(names, urls) as served:
            for _ in range(rounds):
                for (name, case), done in runs.items():
                    result = load(
                        msgspec.structs.replace(
                            plans[case],
                            port=served[name].port,
                            pid=served[name].pid,
                            dialect=SIDES[name].dialect,
                            room=2 * len(done) + (case == ALONE),
                        ),
                        Result,
                    )
                    result.check()
                    done.append(result)
        sent = [result.sent for result in runs[DURABLE, MANY]]
        found = stored(urls[DURABLE], range(0, 2 * rounds, 2))
        assert found == sent, (found, sent)
    return figures(runs, subscribers=plan.subscribers)


def figures(runs: dict[tuple[str, str], list[Result]], *, subscribers: int) -> list[Figure]:
    """Return each of ours against each of its peers that has run."""
    made = []
    for (ours, case), peers in BOUNDS.items():
        for peer, at_least in peers.items():
            if (ours, case) not in runs or (peer, case) not in runs:
                continue
            mine, theirs = runs[ours, case], runs[peer, case]
            made.append(
                Figure(
                    scenario="fanout",
                    what=f"{ours}: {subscribers} subscribers, {case}",
                    value=_best(mine),
                    unit="deliveries/s",
                    against=peer,
                    against_value=_best(theirs),
                    ratio_at_least=at_least,
                    versions=SIDES[peer].versions(),
                    note=f"{_note(mine)}; {peer}: {_note(theirs)}",
                )
            )
    return made


def _best(runs: list[Result]) -> float:
    return max(run.deliveries_per_second for run in runs)


def _note(runs: list[Result]) -> str:
    best = max(runs, key=lambda run: run.deliveries_per_second)
    values = ", ".join(f"{run.deliveries_per_second / 1000:.0f}" for run in runs)
    cpu = "" if best.server_us is None else f"{best.server_us:.2f} us of its CPU each, "
    return f"{cpu}load generator {best.busy:.0%} of a core, runs in thousands {values}"
