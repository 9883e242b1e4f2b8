"""A resume storm: all clients of a room drop at once and come back behind, while others go on publishing."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

import msgspec

from . import steady, storm_load
from .databases import database, durable
from .generator import percentile
from .processes import Served, ended, load, loading, serving_all
from .report import Figure
from .storm_load import Return, Step

MISSED = 100
PUBLISHERS = 8
PER_SECOND = 20.0
"""Of each publisher, into a room of their own."""
PER_SECOND_SHARED = 2.0
"""Of each publisher into the clients' own room, where each event is delivered to all of them."""

ROOM, OTHER_ROOM = "bench:0", "bench:1"

PEER, PEER_SERVER = "each asks the database", "resume_query"


class Round(msgspec.Struct, frozen=True):
    """One storm.

    Attributes:
        returns: By how far the clients went.
        before_ms: The publishers' p99 while all clients were connected and idle.
        storm_ms: The same from the drop on, until all had caught up, and without the rest between.
        drop_ms, return_ms: The same of its two parts.
    """

    returns: dict[Step, Return]
    before_ms: float
    storm_ms: float
    drop_ms: float
    return_ms: float

    def rate(self, clients: int, step: Step) -> float:
        """Return how many clients a second came back."""
        return clients / (self.returns[step].ended - self.returns[step].started)


def _measured(
    served: Served,
    *,
    clients: int,
    in_flight: int,
    seconds: float,
    steps: tuple[Step, ...] = ("resume",),
    is_shared: bool = False,
) -> Round:
    """Run one storm against a new server.

    Args:
        seconds: Time before it.
        is_shared: Whether the publishers are in the clients' room.

    Raises:
        AssertionError: A client has not exactly what it missed, or a publisher was refused.
    """
    publishers = steady.Plan(
        port=served.port,
        publishers=PUBLISHERS,
        per_second=PER_SECOND_SHARED if is_shared else PER_SECOND,
        room=ROOM if is_shared else OTHER_ROOM,
    )
    with loading(publishers) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        plan = storm_load.Plan(
            port=served.port,
            pid=served.pid,
            clients=clients,
            missed=MISSED,
            in_flight=in_flight,
            room=ROOM,
            steps=steps,
            seconds=seconds,
        )
        found = load(plan, storm_load.Result)
        acks = ended(process, steady.Result)
    assert not found.wrong, found.wrong
    assert not acks.wrong, acks
    assert len(acks.latencies) == acks.sent, acks
    returns = {item.step: item for item in found.returns}
    resume = returns["resume"]
    drop, back = (found.dropped, found.published), (resume.started, resume.ended)
    return Round(
        returns,
        before_ms=_p99_ms(acks, (found.ready, found.dropped)),
        storm_ms=_p99_ms(acks, drop, back),
        drop_ms=_p99_ms(acks, drop),
        return_ms=_p99_ms(acks, back),
    )


def _p99_ms(acks: steady.Result, *times: tuple[float, float]) -> float:
    """Return the p99 of what was sent within *times*."""
    chosen = sorted(
        (seconds, 1) for sent, seconds in acks.latencies if any(start <= sent < end for start, end in times)
    )
    return percentile(chosen, 0.99) * 1000


def measure(
    *, rounds: int, clients: int, clients_shared: int, in_flight: int, seconds: float, postgres: str | None
) -> list[Figure]:
    """Run *rounds* storms in turns against new servers, over each database that there is.

    Args:
        clients_shared: Clients of a storm whose publishers are in the same room; 0 for none of that, and for no look
            at how far the others' time is that of connecting.
        in_flight: See `storm_load.Plan`.
        seconds: Time before each.

    Raises:
        AssertionError: A client has not exactly what it missed, or a publisher was refused.
    """
    made: list[Figure] = []
    steps: tuple[Step, ...] = ("resume", "connect", "upgrade") if clients_shared else ("resume",)
    for kind in durable(postgres):
        ours: list[Round] = []
        peers: list[Round] = []
        shared: list[Round] = []
        turns: list[tuple[list[Round], str, dict[str, Any]]] = [
            (ours, "dialogue", {"clients": clients, "steps": steps}),
            (peers, PEER_SERVER, {"clients": clients, "steps": steps}),
        ]
        if clients_shared:
            turns.append((shared, "dialogue", {"clients": clients_shared, "is_shared": True}))
        for _ in range(rounds):
            with ExitStack() as stack:
                servers = {
                    turn: (server, stack.enter_context(database(kind, postgres)))
                    for turn, (_, server, _) in enumerate(turns)
                }
                served = stack.enter_context(serving_all(servers))
                for turn, (done, _, changes) in enumerate(turns):
                    done.append(_measured(served[turn], in_flight=in_flight, seconds=seconds, **changes))
        made += figures(kind, clients, clients_shared, ours, peers, shared, is_bound=kind == "SQLite")
    return made


def figures(
    kind: str,
    clients: int,
    clients_shared: int,
    ours: Sequence[Round],
    peers: Sequence[Round],
    shared: Sequence[Round],
    *,
    is_bound: bool,
) -> list[Figure]:
    """Return what *ours*, *peers* and *shared* (the publishers in the clients' room; may be none) come to.

    Args:
        is_bound: Whether the bounds hold for this database.
    """
    best, best_peer = (_best(rounds, clients) for rounds in (ours, peers))
    what = f"{kind}: {clients:,} clients, {MISSED} events behind"
    made = [
        Figure(
            scenario="resume_storm",
            what=f"{what}: caught up",
            value=best.rate(clients, "resume"),
            unit="clients/s",
            against=PEER,
            against_value=best_peer.rate(clients, "resume"),
            ratio_at_least=5.0 if is_bound else None,
            note=f"{_told(best, ours, clients)}; {_split(best, clients)}; "
            f"{PEER}: {_told(best_peer, peers, clients)}; {_split(best_peer, clients)}",
        ),
        _latency(f"{what}: publishers' p99", ours, peers, is_bound=is_bound),
    ]
    if shared:
        best_shared = _best(shared, clients_shared)
        what = f"{kind}: {clients_shared:,} clients, publishers in the same room"
        made += [
            Figure(
                scenario="resume_storm",
                what=f"{what}: caught up",
                value=best_shared.rate(clients_shared, "resume"),
                unit="clients/s",
                note=_told(best_shared, shared, clients_shared),
            ),
            _latency(f"{what}: publishers' p99", shared, (), is_bound=False),
        ]
    return made


def _best(rounds: Sequence[Round], clients: int) -> Round:
    return max(rounds, key=lambda item: item.rate(clients, "resume"))


def _latency(what: str, rounds: Sequence[Round], peers: Sequence[Round], *, is_bound: bool) -> Figure:
    parts = "; ".join(
        f"{item.before_ms:.1f} before, {item.drop_ms:.1f} at the drop, {item.return_ms:.1f} at the return"
        for item in rounds
    )
    theirs = ", ".join(f"{item.before_ms:.1f} to {item.storm_ms:.1f}" for item in peers)
    return Figure(
        scenario="resume_storm",
        what=what,
        value=statistics.median(item.storm_ms for item in rounds),
        unit="ms",
        against="before",
        against_value=statistics.median(item.before_ms for item in rounds),
        ratio_at_most=3.0 if is_bound else None,
        note=f"medians of the rounds; {parts}" + (f"; {PEER}: {theirs}" if theirs else ""),
    )


def _told(best: Round, rounds: Sequence[Round], clients: int) -> str:
    found = best.returns["resume"]
    rates = ", ".join(f"{item.rate(clients, 'resume'):,.0f}" for item in rounds)
    return (
        f"{found.ended - found.started:.2f} s, a client p50 {found.p50_ms:.0f} ms, p99 {found.p99_ms:.0f} ms, "
        f"load generator {found.busy:.0%} of a core"
        + (f", {found.refused:,} joins asked for again" if found.refused else "")
        + f"; rounds: {rates}"
    )


def _split(best: Round, clients: int) -> str:
    """Return where the time of a client goes."""
    parts = []
    for step, item in best.returns.items():
        cpu = ""
        if item.server_cpu is not None and item.late_cpu is not None:
            cpu = f", {item.server_cpu / clients * 1e6:.0f} us of the server's CPU (and {item.late_cpu:.1f} s behind)"
        parts.append(f"{step} {(item.ended - item.started) / clients * 1e6:.0f} us{cpu}")
    return f"per client, up to: {'; '.join(parts)}"
