"""Idle connections: what each of them costs in memory, over a server that has nobody.

The load generator: ``python -m tests.bench.idle PLAN``.
"""

from __future__ import annotations

import asyncio
from statistics import median

import msgspec

from .generator import Member, main, metric, open_all, until
from .processes import load, resident_bytes, serving
from .report import Figure
from .wire import Connection, open_connection

_SECONDS = 0.25
"""Time between two looks at the server's memory; it has settled when two are the same but for a hundredth."""

_LOOKS = 40
"""Looks after which it is taken as it is."""

_OPENING = 100

SIDES = {
    "connected and in one room": ("dialogue", 1),
    "connected and each in a room of its own": ("dialogue", 0),
    "bare FastAPI echo": ("echo", 0),
}
"""What is measured, the server, and over how many rooms the connections are spread: 0 is one for each."""


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """What to do.

    Attributes:
        pid: The server's process.
        connections: How many are opened and left alone.
        warm_up: How many come and go before the empty server is looked at.
        rooms: Over how many rooms the connections are spread, 0 for one each.
        is_echo: Whether the server is the bare one, which sends back what it receives.
    """

    port: int = 0
    pid: int = 0
    connections: int = 5000
    warm_up: int = 50
    rooms: int = 1
    is_echo: bool = False


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
    """One silent connection."""

    answers = 0

    def on_messages(self, frame: bytes) -> None:
        self.answers += frame.count(b'"type":"event"')


class EchoIdler(Connection):
    """The same to the bare server."""

    answers = 0

    def on_frame(self, frame: bytes) -> None:
        self.answers += frame == b"here"

    def on_open(self) -> None:
        self.send(b"here")


async def _settled_bytes(pid: int) -> int | None:
    last = resident_bytes(pid)
    for _ in range(_LOOKS):
        await asyncio.sleep(_SECONDS)
        now = resident_bytes(pid)
        if last is None or now is None or abs(now - last) < last / 100:
            return now
        last = now
    return last


async def _run_dialogue(plan: Plan) -> Result:
    def members(count: int) -> list[Idler]:
        rooms = plan.rooms or count
        return [Idler(b"user-%d" % index, [b"bench:%d" % (index % rooms)]) for index in range(count)]

    before = members(plan.warm_up)
    await open_all(before, plan.port)
    for member in before:
        member.close()
    async with asyncio.timeout(10):
        while await metric(plan.port, "dialogue_connections"):
            await asyncio.sleep(0.05)
    empty = await _settled_bytes(plan.pid)
    idlers = members(plan.connections)
    await open_all(idlers, plan.port)
    full = await _settled_bytes(plan.pid)
    # All of them are still there, and still in the room.
    trigger = b'{"type":"trigger","room":"bench:%d","event":"message","data":{"text":"hello","username":"x"}}'
    for index, idler in enumerate(idlers[: plan.rooms or None]):
        idler.send(trigger % index)
    await until(lambda: all(idler.answers for idler in idlers))
    for idler in idlers:
        idler.close()
    return Result(empty_bytes=empty, full_bytes=full, answered=sum(idler.answers == 1 for idler in idlers))


async def _run_echo(plan: Plan) -> Result:
    async def opened(count: int) -> list[EchoIdler]:
        idlers: list[EchoIdler] = []
        while len(idlers) < count:
            lot = [EchoIdler() for _ in range(min(_OPENING, count - len(idlers)))]
            await asyncio.gather(*(open_connection(idler, plan.port) for idler in lot))
            await until(lambda lot=lot: all(idler.answers for idler in lot))  # type: ignore[misc]
            idlers += lot
        return idlers

    for idler in await opened(plan.warm_up):
        idler.close()
    empty = await _settled_bytes(plan.pid)
    idlers = await opened(plan.connections)
    full = await _settled_bytes(plan.pid)
    for idler in idlers:
        idler.send(b"here")
    await until(lambda: all(idler.answers == 2 for idler in idlers))
    for idler in idlers:
        idler.close()
    return Result(empty_bytes=empty, full_bytes=full, answered=sum(idler.answers == 2 for idler in idlers))


async def run(plan: Plan) -> Result:
    """Look at the empty server, open the connections, look again, and see that all of them are alive."""
    return await (_run_echo if plan.is_echo else _run_dialogue)(plan)


def measure(name: str, plan: Plan) -> Result:
    """Run *plan* against a new server for the side *name*.

    Raises:
        AssertionError: A connection was lost.
    """
    server, rooms = SIDES[name]
    with serving(server, "") as served:
        plan = msgspec.structs.replace(
            plan, port=served.port, pid=served.pid, rooms=rooms, is_echo=server == "echo"
        )
        result = load(plan, Result)
    assert result.answered == plan.connections, result
    return result


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
    *ours, bare = SIDES
    return [
        Figure(
            scenario="idle",
            what=f"{plan.connections:,} {name}, memory of each",
            value=median(costs),
            unit="KB",
            against="" if name == bare else bare,
            against_value=None if name == bare else median(each[bare]),
            at_most=25 if name == ours[0] else None,
            note=(
                f"resident, over {(runs[name][0].empty_bytes or 0) / 1e6:.0f} MB of the empty server; "
                f"runs: {', '.join(f'{cost:.1f}' for cost in costs)}"
            ),
        )
        for name, costs in each.items()
    ]


if __name__ == "__main__":
    main(Plan, run)
