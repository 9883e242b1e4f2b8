"""Reading: a page of 50 deep in the past must cost what one near the end costs."""

from __future__ import annotations

import json
import random
import statistics
import time
from collections.abc import Awaitable, Callable

import uvloop
from websockets.asyncio.client import ClientConnection, connect

from dialogue import SQLStore

from .filling import fill
from .processes import serving
from .report import Figure

PAGE = 50
ROOM = "bench:0"
STREAM_SHARE = 3 / 4
"""Of the room's events, how many are messages: see `filling.drafts`."""

Read = Callable[[int], Awaitable[int]]
"""Reads the page at a depth, in events below the newest; returns how many events it got."""


def measure(database: str, url: str, *, shallow: int, deep: int, reads: int) -> list[Figure]:
    """Fill a room beyond *deep* and read pages of it at both depths."""
    count = int((deep + reads + PAGE) / STREAM_SHARE) + 4

    async def run() -> list[Figure]:
        store = SQLStore(url, auto_migrate=True)
        await store.open()
        try:
            await fill(store, count, rooms=1)
            return [
                await _compare(database, name, read, shallow=shallow, deep=deep, reads=reads)
                for name, read in (await _store_reads(store)).items()
            ]
        finally:
            await store.aclose()

    figures = uvloop.run(run())
    with serving("dialogue", url) as served:
        figures += uvloop.run(_over_the_wire(database, served.port, shallow=shallow, deep=deep, reads=reads))
    return figures


async def _store_reads(store: SQLStore) -> dict[str, Read]:
    head = await store.head(ROOM)
    last_seq, last_position = head.last_seq, head.streams["message"].last

    async def all_types(depth: int) -> int:
        return len((await store.page(ROOM, before=last_seq + 1 - depth, limit=PAGE)).events)

    async def one_type(depth: int) -> int:
        before = last_seq + 1 - int(depth / STREAM_SHARE)
        return len((await store.page(ROOM, event_names=["message"], before=before, limit=PAGE)).events)

    async def by_position(depth: int) -> int:
        before = last_position + 1 - depth
        return len((await store.stream_page(ROOM, "message", before_position=before, limit=PAGE)).events)

    return {
        "Store.page, all types": all_types,
        "Store.page, one type": one_type,
        "Store.stream_page": by_position,
    }


async def _over_the_wire(database: str, port: int, *, shallow: int, deep: int, reads: int) -> list[Figure]:
    async with connect(f"ws://127.0.0.1:{port}/ws", max_size=None, compression=None) as socket:
        await _ask(socket, type="connect", auth={"user_id": "reader"})
        joined = await _ask(socket, type="join", room=ROOM, events=[])
        last_seq: int = joined["seq"]  # type: ignore[assignment]

        async def all_types(depth: int) -> int:
            return await _page(socket, before=last_seq + 1 - depth)

        async def one_type(depth: int) -> int:
            return await _page(socket, event="message", before=last_seq + 1 - int(depth / STREAM_SHARE))

        async def by_offset(depth: int) -> int:
            return await _page(socket, event="message", start=depth, end=depth + PAGE)

        return [
            await _compare(database, name, read, shallow=shallow, deep=deep, reads=reads)
            for name, read in {
                "wire, before, all types": all_types,
                "wire, before, one type": one_type,
                "wire, offsets": by_offset,
            }.items()
        ]


async def _ask(socket: ClientConnection, **command: object) -> dict[str, object]:
    await socket.send(json.dumps({**command, "ref": 1}))
    while True:
        for message in json.loads(await socket.recv()):
            if message.get("ref") == 1 or message["type"] == "connected":
                assert message["type"] != "error", message
                return dict(message)


async def _page(socket: ClientConnection, **bounds: object) -> int:
    extra = {} if "end" in bounds else {"limit": PAGE}
    answer = await _ask(socket, type="history", room=ROOM, **bounds, **extra)
    events = answer["events"]
    assert isinstance(events, list)
    return len(events)


async def _compare(database: str, name: str, read: Read, *, shallow: int, deep: int, reads: int) -> Figure:
    """Read at both depths in turns, each time at another place, and compare the medians."""
    chance = random.Random(1)
    times: dict[int, list[float]] = {shallow: [], deep: []}
    for _ in range(reads):
        for depth, spent in times.items():
            place = depth + chance.randrange(reads)
            started = time.perf_counter()
            found = await read(place)
            spent.append(time.perf_counter() - started)
            assert found == PAGE, (name, place, found)
    near, far = (statistics.median(spent) * 1000 for spent in times.values())
    return Figure(
        scenario="pages",
        what=f"{database}: {name}, at depth {deep:,}",
        value=far,
        unit="ms",
        against=f"at depth {shallow:,}",
        against_value=near,
        ratio_at_most=1.3,
        note=f"medians of {reads}",
    )
