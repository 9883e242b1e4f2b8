"""Idle connections: what each of them costs in memory, over a server that has nobody.

The load generator: ``python -m tests.bench.idle PLAN``.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from statistics import median

import msgspec

from .dialects import DIALECTS, Dialect, Message
from .generator import main, until, until_quiet
from .members import Member, open_all
from .processes import load, resident_bytes, serving_all
from .report import Figure
from .serve import INCLUDED

_SECONDS = 0.25
"""Time between two looks at the server's memory; it has settled when two are the same but for a hundredth."""

_LOOKS = 40
"""Looks after which it is taken as it is."""

ONE_ROOM, ROOMS, IN_FASTAPI, ECHO = (
    "connected and in one room",
    "connected and each in a room of its own",
    "the same in one room, in a FastAPI application",
    "bare FastAPI echo",
)

SIDES = {
    ONE_ROOM: ("dialogue", "dialogue", 1),
    ROOMS: ("dialogue", "dialogue", 0),
    IN_FASTAPI: (INCLUDED, "dialogue", 1),
    ECHO: ("echo", "echo", 0),
}
"""What is measured: the server, its dialect, and over how many rooms the connections are spread: 0 is one for each."""

_HERE = Message(b"still here", b"x", 1)


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """What to do.

    Attributes:
        pid: The server's process.
        connections: How many are opened and left alone.
        warm_up: How many come and go before the empty server is looked at.
        rooms: Over how many rooms the connections are spread, 0 for one each.
        dialect: A name in `DIALECTS`.
    """

    port: int = 0
    pid: int = 0
    connections: int = 5000
    warm_up: int = 50
    rooms: int = 1
    dialect: str = "dialogue"


class Result(msgspec.Struct, frozen=True, kw_only=True):
    """What came of it.

    Attributes:
        empty_bytes, full_bytes: Resident memory of the server, without and with the connections; None where the
            system does not tell.
        answered: Connections that were alive afterwards: all have received what was sent to them.
    """

    empty_bytes: int | None
    full_bytes: int | None
    answered: int


class Idler(Member):
    """One silent connection.

    Attributes:
        heard: How many messages it has received.
    """

    def __init__(self, dialect: Dialect, index: int) -> None:
        super().__init__(dialect, b"user-%d" % index, is_subscriber=True)
        self.heard = 0

    def on_data(self, frame: bytes) -> None:
        self.heard += frame.count(_HERE.text)


async def _settled_bytes(pid: int) -> int | None:
    last = resident_bytes(pid)
    for _ in range(_LOOKS):
        await asyncio.sleep(_SECONDS)
        now = resident_bytes(pid)
        if last is None or now is None or abs(now - last) < last / 100:
            return now
        last = now
    return last


async def run(plan: Plan) -> Result:
    """Look at the empty server, open the connections, look again, and see that all of them are alive."""

    async def opened(count: int) -> list[Idler]:
        dialects = [DIALECTS[plan.dialect](b"bench:%d" % number) for number in range(plan.rooms or count)]
        idlers = [Idler(dialects[index % len(dialects)], index) for index in range(count)]
        await open_all(idlers, plan.port)
        return idlers

    for idler in await opened(plan.warm_up):
        idler.close()
    await until_quiet(plan.pid)
    empty = await _settled_bytes(plan.pid)
    idlers = await opened(plan.connections)
    full = await _settled_bytes(plan.pid)
    # All of them are still there, and still in the room.
    for idler in idlers[: plan.rooms or None]:
        for frame in idler.dialect.frames([_HERE]):
            idler.send(frame)
    await until(lambda: all(idler.heard for idler in idlers))
    for idler in idlers:
        idler.close()
    return Result(empty_bytes=empty, full_bytes=full, answered=sum(idler.heard == 1 for idler in idlers))


def measure(plan: Plan, *, names: Iterable[str], rounds: int) -> list[Figure]:
    """Run *plan* *rounds* times in turns against a new server for each of *names* in `SIDES`.

    Raises:
        AssertionError: A connection was lost.
    """
    runs: dict[str, list[Result]] = {name: [] for name in names}
    for _ in range(rounds):
        with serving_all({name: (SIDES[name][0], "") for name in runs}) as served:
            for name, done in runs.items():
                _, dialect, rooms = SIDES[name]
                at = served[name]
                result = load(
                    msgspec.structs.replace(plan, port=at.port, pid=at.pid, rooms=rooms, dialect=dialect),
                    Result,
                )
                assert result.answered == plan.connections, result
                done.append(result)
    return figures(runs, plan)


def figures(runs: dict[str, list[Result]], plan: Plan) -> list[Figure]:
    """Return the medians, ours against the bare server's; none where the system does not tell of memory."""
    each: dict[str, list[float]] = {}
    for name, results in runs.items():
        costs = [
            (result.full_bytes - result.empty_bytes) / plan.connections / 1000
            for result in results
            if result.full_bytes is not None and result.empty_bytes is not None
        ]
        if costs:
            each[name] = costs
    return [
        Figure(
            scenario="idle",
            what=f"{plan.connections:,} {name}, memory of each",
            value=median(costs),
            unit="KB",
            against="" if name == ECHO else ECHO,
            against_value=None if name == ECHO else median(each[ECHO]),
            at_most=25 if name == ONE_ROOM else None,
            note=(
                f"resident, over {(runs[name][0].empty_bytes or 0) / 1e6:.0f} MB of the empty server; "
                f"runs: {', '.join(f'{cost:.1f}' for cost in costs)}"
            ),
        )
        for name, costs in each.items()
    ]


if __name__ == "__main__":
    main(Plan, run)
