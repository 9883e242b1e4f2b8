"""Filling a log: `Store.append` in batches of 500, without a server around it."""

from __future__ import annotations

import asyncio
import time

from dialogue import SQLStore
from dialogue.events import Draft

from .dialects import TEXTS
from .report import Figure

BATCH = 500


def drafts(first: int, count: int, *, rooms: int) -> list[Draft]:
    """Return *count* drafts from number *first* on, three messages to one note, of 64 users."""
    return [
        Draft(
            room_id=f"bench:{number % rooms}",
            event="note" if number % 4 == 3 else "message",
            sender=f"user-{number % 64}",
            key=f"${number:020x}",
            data_json=b'{"text":"%b","username":"user-%d"}' % (TEXTS[number % len(TEXTS)], number % 64),
        )
        for number in range(first, first + count)
    ]


async def fill(store: SQLStore, count: int, *, rooms: int) -> float:
    """Append *count* events to an open *store*; return the seconds spent in `append`."""
    spent = 0.0
    for first in range(0, count, BATCH):
        batch = drafts(first, min(BATCH, count - first), rooms=rooms)
        started = time.perf_counter()
        appended = await store.append(batch)
        spent += time.perf_counter() - started
        assert all(item.event is not None for item in appended)
    return spent


def measure(database: str, url: str, *, rooms: int, count: int) -> Figure:
    """Fill a new log with *count* events over *rooms* rooms."""

    async def run() -> float:
        store = SQLStore(url, auto_migrate=True)
        await store.open()
        try:
            seconds = await fill(store, count, rooms=rooms)
            stored = sum([(await store.head(f"bench:{room}")).last_seq for room in range(rooms)])
            assert stored == count, (stored, count)
            return seconds
        finally:
            await store.aclose()

    return Figure(
        scenario="filling",
        what=f"{database}: {rooms} room{'s' if rooms > 1 else ''}, batches of {BATCH}",
        value=count / asyncio.run(run()),
        unit="events/s",
        at_least=50_000,
        note=f"{count:,} events",
    )
