"""A hundred thousand rooms in the log are a table, not a heap."""

from __future__ import annotations

import gc
import time
import tracemalloc
from pathlib import Path

import pytest

from dialogue import Dialogue, History, Limits, RoomConfig, SQLStore, define_event
from dialogue.events import Draft
from tests.rates import UNRATED
from tests.server.harness import eventually, serve, wire

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

ROOMS = 100_000
WOKEN = 10_000
CACHED = 4_500

note = define_event("note", history=History(limit=20))


async def _fill(store: SQLStore) -> None:
    await store.open()
    for start in range(0, ROOMS, 1000):
        await store.append(
            [
                Draft(
                    room_id=f"team:{number}",
                    event="note",
                    sender="filler",
                    key=f"$fill-{number}-{step}",
                    data_json=b'{"text":"something to remember"}',
                )
                for number in range(start, start + 1000)
                for step in range(3)
            ]
        )
    await store.aclose()


async def test_rooms_that_were_woken_leave_memory_again(tmp_path: Path) -> None:
    """Ten thousand of a hundred thousand rooms woken one after another: memory returns to where it was."""
    url = f"sqlite:///{tmp_path / 'rooms.db'}"
    await _fill(SQLStore(url))
    dialogue = Dialogue(
        rooms={"team:{id}": RoomConfig(events=[note], sync_history_on_join=3)},
        store=url,
        limits=Limits(idle_seconds=0.2, **UNRATED),
    )
    started = time.perf_counter()
    async with serve(dialogue) as address:
        print(f"\nstart with {ROOMS:,} rooms in the log: {time.perf_counter() - started:.2f} s")

        async def visit(first: int, count: int) -> None:
            async with wire(address) as alice:
                for number in range(first, first + count):
                    joined = await alice.ask("join", room=f"team:{number}")
                    assert (joined["seq"], len(joined["events"])) == (3, 3)
                    await alice.ask("leave", room=f"team:{number}")
                    alice.messages.clear()
                    alice.frames.clear()

        async def asleep() -> int:
            # Who is gone has no inbox in memory, either.
            await eventually(lambda: not dialogue.clients() and not dialogue.rooms(), timeout=60)
            gc.collect()
            return tracemalloc.get_traced_memory()[0]

        tracemalloc.start()
        # The first also fill what is cached: compiled statements, and the newest 4,096 names in their encoded form.
        await visit(0, CACHED)
        before = await asleep()
        started = time.perf_counter()
        await visit(CACHED, WOKEN)
        seconds = time.perf_counter() - started
        awake = tracemalloc.get_traced_memory()[0]
        after = await asleep()
        tracemalloc.stop()
    per_room = (after - before) / WOKEN
    print(
        f"{WOKEN:,} rooms woken in {seconds:.1f} s; memory before {before / 1e6:.2f} MB, "
        f"while awake {awake / 1e6:.2f} MB, after {after / 1e6:.2f} MB: {per_room:.1f} bytes a room"
    )
    assert after - before < 500_000
