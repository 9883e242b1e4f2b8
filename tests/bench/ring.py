"""What an event in a ring costs beside its payload, by `tracemalloc`."""

from __future__ import annotations

import gc
import tracemalloc
from random import Random

from dialogue.core.ring import Ring
from dialogue.events import Draft

from .dialects import TEXTS
from .report import Figure


def measure(*, count: int) -> list[Figure]:
    """Fill rings with *count* events, and look at what they hold."""
    return [
        _figure(count, room="general", name="message", user="user-%d", has_keys=False),
        _figure(count, room="general", name="message", user="user-%d", has_keys=True),
        _figure(
            count,
            room="support:customer-4711",
            name="message.created",
            user="6f9619ff-8b86-d011-b42d-%012d",
            has_keys=True,
        ),
    ]


def _figure(count: int, *, room: str, name: str, user: str, has_keys: bool) -> Figure:
    # Room, event and users exist once in a server, whatever a ring holds of them.
    users = [user % number for number in range(64)]
    chance = Random(1)
    gc.collect()
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        ring, payload = _filled(count, room, name, users, chance, has_keys=has_keys)
        gc.collect()
        cost = (tracemalloc.get_traced_memory()[0] - before - payload) / count
        assert len(ring) == count
    finally:
        tracemalloc.stop()
    return Figure(
        scenario="ring",
        what=f"{room!r}, user ids of {len(users[0])}, {'keys of 36' if has_keys else 'no keys'}",
        value=cost,
        unit="bytes/event",
        at_most=300,
        note=f"beside a payload of {payload / count:.0f} on average, {count:,} events",
    )


def _filled(
    count: int, room: str, name: str, users: list[str], chance: Random, *, has_keys: bool
) -> tuple[Ring, int]:
    """Return a full ring at its largest, and the bytes of the data that it holds.

    The first half has been pushed out by the second and must be gone; the list behind the ring is about to be cut.
    """
    ring = Ring(count)
    payload = 0
    for number in range(1, 2 * count):
        data_json = b'{"text":"%b","username":"%b"}' % (
            TEXTS[number % len(TEXTS)],
            users[number % 64].encode(),
        )
        draft = Draft(
            room_id=room,
            event=name,
            # A string of its own, as each row of the log has one.
            sender="".join(list(users[number % 64])),
            key=f"{chance.getrandbits(144):036x}" if has_keys else f"${number}",
            data_json=data_json,
        )
        # A room's other types have taken half of its seqs.
        event = draft.record(
            id=5_000_000 + 3 * number,
            seq=1_000_000 + 2 * number,
            position=number,
            timestamp=1_763_733_600_000 + 40 * number,
        )
        ring.push(event)
        if number >= count:
            payload += len(data_json)
    return ring, payload
