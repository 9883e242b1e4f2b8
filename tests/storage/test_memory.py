"""`MemoryStore`: the contract, and what it forgets."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from dialogue.storage.base import Store
from dialogue.storage.memory import KEYS_PER_ROOM, MemoryStore
from dialogue.testing.store_contract import StoreContract, draft, recorded


class TestMemoryStore(StoreContract):
    """The contract over memory."""

    is_durable = False

    def make(self, folder: Path, clock: Callable[[], int] | None = None) -> Store:
        return MemoryStore() if clock is None else MemoryStore(clock=clock)


async def test_the_newest_keys_of_a_room_are_remembered() -> None:
    """Promise 3 with memory: the last 10,000 client-made keys of a room, whatever other rooms do."""
    store = MemoryStore()
    await store.open()
    await store.append([draft(key=f"key{n}") for n in range(KEYS_PER_ROOM)])
    await store.append([draft("other", key=f"key{n}") for n in range(5)])
    await store.append([draft() for _ in range(5)])
    oldest, *others = await store.append([draft(key=f"key{n}") for n in (0, 1, KEYS_PER_ROOM - 1)])
    assert oldest.is_duplicate
    assert all(item.is_duplicate for item in others)
    await store.append([draft(key="one more")])
    [forgotten] = await store.append([draft(key="key0")])
    assert not forgotten.is_duplicate
    await store.aclose()


async def test_events_are_kept_once() -> None:
    """The rings and the store hold the same objects, so that an event in memory costs a reference here."""
    store = MemoryStore()
    await store.open()
    [item] = await store.append([draft()])
    page = await store.page("general", limit=1)
    assert page.events[0] is recorded(item)
    await store.aclose()


async def test_removed_events_are_freed() -> None:
    """Promise 7: a stream whose events are removed as they come does not grow."""
    store = MemoryStore()
    await store.open()
    for n in range(1, 2001):
        await store.append([draft()])
        await store.remove("general", "message", n - 10)
    stream = store._rooms["general"].streams["message"]
    assert len(stream.events) <= 20
    assert (await store.head("general")).last_seq == 2000
    await store.aclose()
