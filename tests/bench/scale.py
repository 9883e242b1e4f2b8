"""How much the scenarios do: all of it, or a moment for the tests."""

from __future__ import annotations

import msgspec

from . import idle
from .idle import ECHO, IN_FASTAPI, ONE_ROOM
from .publish import VARIANTS
from .sides import ASGI, DURABLE, LOOP, SIDES


class Scale(msgspec.Struct, frozen=True, kw_only=True):
    """How much is done.

    Attributes:
        variants: Which of `publish.VARIANTS`, by number.
        is_checked: Whether every answer is compared with what it should be.
        rounds: Runs of each server; the best one counts, because whatever else the machine does makes it slower.
        seconds: Time of each run.
        shallow, deep: Depths at which pages are read, in events.
        reads: Pages read at each depth.
        filled: Events per filling.
        ring: Events in the ring.
        sides: Those of `sides.SIDES` that ``fanout`` and ``latency`` start.
        subscribers: Who is told of each message.
        fanout_seconds: Time of each run of ``fanout``.
        latency_seconds: Time of each run of ``latency``.
        stores: Of what is measured over memory and over SQLite for comparison, which.
        hot: Events in the room whose pages are read from memory.
        idlers: Silent connections.
        idle_sides: Those of `idle.SIDES` that have them.
        slow: Subscribers of ``slow_readers``, and how many of them stop reading.
        documents: How many are sent a second there, and for how many seconds.
        rooms: How many rooms are many.
        members: Connections in the room that is compared with them.
        room_messages: Messages over all of these rooms; on SQLite a fifth.
        storm_clients: Clients that drop and come back.
        storm_shared: The same of a storm whose publishers are in their room; 0 for none, see `storm.measure`.
        storm_in_flight: Most of their connections that are being opened.
        storm_seconds: Time before each storm.
        soak_seconds: Time of the soak.
        soak_pause: Longest time between two triggers of a visitor.
        soak_filled: Events of 50 kB that are published before.
    """

    variants: tuple[int, ...] = tuple(range(len(VARIANTS)))
    is_checked: bool = False
    rounds: int = 3
    warm_up_seconds: float = 1.0
    seconds: float = 5.0
    shallow: int = 1000
    deep: int = 1_000_000
    reads: int = 400
    filled: int = 200_000
    ring: int = 100_000
    sides: tuple[str, ...] = tuple(SIDES)
    subscribers: int = 500
    fanout_seconds: float = 3.0
    latency_seconds: float = 6.0
    stores: tuple[str, ...] = ("memory", "SQLite")
    hot: int = 1000
    idlers: int = 5000
    idle_sides: tuple[str, ...] = tuple(idle.SIDES)
    slow: tuple[int, int] = (500, 50)
    documents: tuple[float, float] = (20.0, 10.0)
    rooms: int = 10_000
    members: int = 500
    room_messages: int = 10_000
    storm_clients: int = 2000
    storm_shared: int = 500
    storm_in_flight: int = 256
    storm_seconds: float = 5.0
    soak_seconds: float = 600.0
    soak_pause: float = 0.6
    soak_filled: int = 400


FULL = Scale()
MOMENT = Scale(
    variants=(0, 5),
    is_checked=True,
    rounds=1,
    warm_up_seconds=0.1,
    seconds=0.2,
    shallow=20,
    deep=2000,
    reads=5,
    filled=2000,
    ring=500,
    sides=(DURABLE, ASGI, LOOP),
    subscribers=10,
    fanout_seconds=0.1,
    latency_seconds=0.3,
    stores=("memory",),
    hot=120,
    idlers=100,
    idle_sides=(ONE_ROOM, IN_FASTAPI, ECHO),
    slow=(4, 2),
    documents=(200.0, 0.3),
    rooms=20,
    members=5,
    room_messages=100,
    storm_clients=40,
    storm_shared=0,
    storm_in_flight=8,
    storm_seconds=0.2,
    soak_seconds=0.5,
    soak_pause=0.05,
    soak_filled=2,
)
"""Everything once, for the tests: its figures mean nothing."""
