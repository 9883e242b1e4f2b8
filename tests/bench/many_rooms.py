"""Many rooms: what a message costs must not grow with the number of rooms and connections.

One message at a time, so that nothing is done for several together: the next one is sent when every member has got
the one before. The load generator: ``python -m tests.bench.many_rooms PLAN``.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from itertools import cycle, islice
from statistics import median
from typing import NamedTuple

import msgspec

from .databases import database
from .dialects import TEXTS, DialogueDialect, Message, trigger
from .generator import SETTLE_SECONDS, main, until_quiet
from .members import Member, open_all
from .processes import Served, cpu_seconds, difference, load, serving_all
from .report import Figure

ROOMS_EACH = 100
"""In how many of the many rooms a connection is: two for each room would be more sockets than a machine gives."""

LARGE_MESSAGES = 100
"""Messages into the large room, of which each is as many deliveries as the room has members."""

LARGE_SECONDS = 15
"""How long they may take: a log that commits each message by itself sets a low rate."""


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """What to do.

    Attributes:
        pid: The server's process.
        first: Number of the first room.
        rooms: Rooms in all.
        rooms_each: In how many of them a connection is.
        members: Connections in each room.
        messages: Measured messages; room after room, and in a room member after member.
        per_second: Messages a second at most; 0 for as fast as they are delivered.
        warm_up: Messages before them.
    """

    port: int = 0
    pid: int = 0
    first: int = 0
    rooms: int = 1
    rooms_each: int = 1
    members: int = 2
    messages: int = 10_000
    per_second: float = 0
    warm_up: int = 500


class Result(msgspec.Struct, frozen=True, kw_only=True):
    """What came of it.

    Attributes:
        seconds: Time that the measured messages took.
        cpu_seconds: The server's processor time meanwhile; None where the system does not tell.
        deliveries: Their events, received by all members.
        wrong: Events that were not the one that was due.
        busy: The share of one core that the load generator used meanwhile.
    """

    seconds: float
    cpu_seconds: float | None
    deliveries: int
    wrong: int
    busy: float


class Turn:
    """The message that is on its way."""

    def __init__(self) -> None:
        self.number = 0
        self.room = b""
        self.seq = b""
        self.missing = 0
        self.deliveries = 0
        self.wrong = 0
        self.done = asyncio.Event()

    def begin(self, room: bytes, seq: int, members: int) -> None:
        """Wait for the event at *members* connections, and for the ack."""
        self.number += 1
        self.room, self.seq = b'"room":"%b",' % room, b'"seq":%d,' % seq
        self.missing = members + 1
        self.done.clear()


class Guest(Member):
    """A member of one or more rooms."""

    def __init__(self, user: bytes, rooms: list[bytes], turn: Turn) -> None:
        super().__init__(DialogueDialect(*rooms), user, is_subscriber=True)
        self.turn = turn
        self._latest = 0

    def on_data(self, frame: bytes) -> None:
        turn = self.turn
        events = frame.count(b'"type":"event"')
        if events:
            is_due = events == 1 and self._latest < turn.number and turn.room in frame and turn.seq in frame
            self._latest = turn.number
            turn.wrong += not is_due
            turn.deliveries += events
            turn.missing -= 1
        if b'"type":"ok"' in frame:
            turn.missing -= 1
        turn.wrong += frame.count(b'"type":"error"')
        if turn.missing <= 0:
            turn.done.set()


async def run(plan: Plan) -> Result:
    """Fill the rooms, send the messages, and return the result."""
    turn = Turn()
    # Connections come in teams of one room's size; a team has rooms of its own, and all of it is in each of them.
    teams: list[tuple[list[bytes], list[Guest]]] = []
    rooms = [b"bench:%d" % number for number in range(plan.first, plan.first + plan.rooms)]
    for first in range(0, plan.rooms, plan.rooms_each):
        names = rooms[first : first + plan.rooms_each]
        users = range(len(teams) * plan.members, (len(teams) + 1) * plan.members)
        teams.append((names, [Guest(b"user-%d" % user, names, turn) for user in users]))
    await open_all([guest for _, guests in teams for guest in guests], plan.port)
    await until_quiet(plan.pid)
    # Neighbours in time are of different connections.
    places = [(names[n], guests) for n in range(plan.rooms_each) for names, guests in teams if n < len(names)]
    seqs = dict.fromkeys((room for room, _ in places), 0)
    count = 0

    async def send(messages: int) -> None:
        nonlocal count
        started, first = time.perf_counter(), count
        for room, guests in islice(cycle(places), first, first + messages):
            if plan.per_second:
                due = started + (count - first) / plan.per_second
                await asyncio.sleep(max(0.0, due - time.perf_counter()))
            seqs[room] += 1
            turn.begin(room, seqs[room], len(guests))
            data = Message(TEXTS[count % len(TEXTS)], b"x", count).json()
            guests[seqs[room] % len(guests)].send(trigger(room, count, data))
            count += 1
            await turn.done.wait()

    async with asyncio.timeout(SETTLE_SECONDS):
        await send(plan.warm_up)
    delivered = turn.deliveries
    server, cpu, started = cpu_seconds(plan.pid), time.process_time(), time.perf_counter()
    async with asyncio.timeout(10 * SETTLE_SECONDS):
        await send(plan.messages)
    elapsed, busy = time.perf_counter() - started, time.process_time() - cpu
    used = difference(cpu_seconds(plan.pid), server)
    for _, guests in teams:
        for guest in guests:
            guest.close()
    return Result(
        seconds=elapsed,
        cpu_seconds=used,
        deliveries=turn.deliveries - delivered,
        wrong=turn.wrong,
        busy=busy / elapsed,
    )


class Round(NamedTuple):
    """The sides of one round."""

    many: Result
    one: Result
    large: Result


def measure(*, stores: Sequence[str], rounds: int, rooms: int, members: int, messages: int) -> list[Figure]:
    """Measure many rooms, one of them, and a large one at the deliveries a second of the many, in turns.

    Args:
        stores: Kinds of `database`. *rounds* are of the first; the others are for comparison, and have one and a fifth
            of the messages: a log commits each by itself, which takes its time.
        rooms: How many are many.
        members: How many connections the large room has.
        messages: How many go into the small rooms.

    Raises:
        AssertionError: An event was lost, doubled, or of another turn.
    """
    made = []
    for store in stores:
        is_first = store == stores[0]
        count = messages if is_first else messages // 5
        turns = range(rounds if is_first else 1)
        found = [_round(store, rooms=rooms, members=members, messages=count) for _ in turns]
        # The bound is of the server alone.
        made += figures(store, found, rooms=rooms, members=members, is_bound=store == "memory")
    return made


def _round(store: str, *, rooms: int, members: int, messages: int) -> Round:
    with (
        database(store) as many_url,
        database(store) as few_url,
        serving_all({"many": ("dialogue", many_url), "few": ("dialogue", few_url)}) as served,
    ):
        many = _measured(
            served["many"], Plan(rooms=rooms, rooms_each=min(rooms, ROOMS_EACH), messages=messages)
        )
        one = _measured(served["few"], Plan(messages=messages))
        per_second = many.deliveries / many.seconds / members
        large = Plan(
            first=1,
            members=members,
            messages=min(messages, LARGE_MESSAGES, 1 + int(per_second * LARGE_SECONDS)),
            per_second=per_second,
            warm_up=1,
        )
        return Round(many, one, _measured(served["few"], large))


def _measured(served: Served, plan: Plan) -> Result:
    result = load(msgspec.structs.replace(plan, port=served.port, pid=served.pid), Result)
    assert not result.wrong, result
    assert result.deliveries == plan.messages * plan.members, result
    return result


def figures(store: str, rounds: Sequence[Round], *, rooms: int, members: int, is_bound: bool) -> list[Figure]:
    """Return what a message and what a delivery costs; nothing where the system does not tell.

    Args:
        is_bound: Whether the bound holds for this store.
    """
    made = []
    for unit, against, sides in (
        ("us/message", "one room of two", [(r.many, r.one, 2) for r in rounds]),
        ("us/delivery", f"one room of {members:,}", [(r.many, r.large, 1) for r in rounds]),
    ):
        ours = [_microseconds(many) * factor for many, _, factor in sides]
        theirs = [_microseconds(other) * factor for _, other, factor in sides]
        if not all(ours) or not all(theirs):
            continue
        result, other = sides[0][:2]
        made.append(
            Figure(
                scenario="many_rooms",
                what=f"{store}: {rooms:,} rooms of two, the server's CPU",
                value=median(ours),
                unit=unit,
                against=against,
                against_value=median(theirs),
                ratio_at_most=1.5 if is_bound else None,
                note=(
                    f"{result.deliveries / result.seconds:,.0f} deliveries/s against "
                    f"{other.deliveries / other.seconds:,.0f}, one message in flight; load generator "
                    f"{result.busy:.0%} of a core; runs: {_listed(ours)} against {_listed(theirs)}"
                ),
            )
        )
    return made


def _microseconds(result: Result) -> float:
    """Return the processor time of a delivery; 0 where nothing tells."""
    return (result.cpu_seconds or 0.0) / result.deliveries * 1e6


def _listed(values: Sequence[float]) -> str:
    return ", ".join(f"{value:.0f}" for value in values)


if __name__ == "__main__":
    main(Plan, run)
