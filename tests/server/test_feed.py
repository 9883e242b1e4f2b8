"""The feed (C7): every recorded event of all rooms, once, in order of id, from the past into the present."""

from __future__ import annotations

import asyncio
import random
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest

from dialogue import (
    CursorExpired,
    Dialogue,
    Event,
    History,
    LifespanNotRunning,
    Limits,
    MemoryStore,
    StoreUnavailable,
    define_event,
)
from dialogue.errors import OutcomeUnknown
from dialogue.storage.base import Store
from dialogue.storage.sql import SQLStore
from dialogue.testing import FaultyStore

from .harness import eventually, message, rooms, typing_event


@pytest.fixture(params=["memory", "sqlite", "postgres"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    if request.param == "memory":
        return MemoryStore()
    if request.param == "postgres":
        return SQLStore(request.getfixturevalue("postgres_url"))
    return SQLStore(f"sqlite:///{tmp_path / 'chat.db'}")


class Consumer:
    """Reads a feed beside the test."""

    def __init__(self, dialogue: Dialogue, after: int | None, *, pause: float | None = None) -> None:
        self.events: list[Event[Any]] = []
        self._dialogue = dialogue
        self._after = after
        self._pause = pause
        self.task = asyncio.create_task(self._run())

    async def _run(self) -> None:
        async with aclosing(self._dialogue.feed(after=self._after)) as feed:
            async for event in feed:
                self.events.append(event)
                if self._pause is not None:
                    await asyncio.sleep(self._pause)

    async def stop(self) -> None:
        self.task.cancel()
        await asyncio.gather(self.task, return_exceptions=True)


async def test_c7_the_feed_goes_from_the_past_into_the_present(store: Store) -> None:
    """Once and in order over all rooms, and again from any id; ephemeral events are not in it."""
    dialogue = Dialogue(rooms(), store=store)
    async with dialogue.lifespan():
        for n in range(4):
            await dialogue.trigger("general" if n % 2 else "other", message, n)
        first = Consumer(dialogue, 0)
        live = Consumer(dialogue, None)
        await eventually(lambda: len(first.events) == 4)
        # Also the one that begins now has found out where that is.
        readers = dialogue.hub().feeds._readers
        await eventually(lambda: len(readers) == 2 and not any(reader.is_behind for reader in readers))
        await dialogue.trigger("general", typing_event, "…")
        for n in range(4, 8):
            await dialogue.trigger("dm:a:b", message, n)
        await eventually(lambda: len(first.events) == 8 and len(live.events) == 4)
        assert [event.data for event in first.events] == list(range(8))
        assert [event.data for event in live.events] == [4, 5, 6, 7]
        ids = [event.id for event in first.events]
        assert ids == sorted(set(ids))  # type: ignore[type-var]
        assert [event.room_id for event in first.events[-2:]] == ["dm:a:b", "dm:a:b"]
        again = Consumer(dialogue, ids[2])
        await eventually(lambda: len(again.events) == 5)
        assert again.events == first.events[3:]
        assert first.events[0].epoch == store.epoch
        with pytest.raises(CursorExpired):
            async for _ in dialogue.feed(after=1, epoch="another"):
                pass
        with pytest.raises(CursorExpired, match="backup") as beyond:
            async for _ in dialogue.feed(after=9):
                pass
        assert beyond.value.removed_through_id is None
        for wrong in (-1, "5", 1.5, True):
            with pytest.raises(ValueError, match="id of an event"):
                async for _ in dialogue.feed(after=wrong):  # type: ignore[arg-type]
                    pass
        for consumer in (first, live, again):
            await consumer.stop()
        assert not dialogue.hub().feeds.has_readers


@pytest.mark.parametrize("seed", range(3))
async def test_c7_exactly_once_while_others_publish(store: Store, seed: int) -> None:
    """Consumers that start anywhere, quick and slow, behind their queue or not, all get the same."""
    print(f"seed {seed}")
    chaos = random.Random(seed)
    limits = Limits(feed_queue_events=5)
    # What a memory store has let go of is told, so here it lets go of nothing.
    kept = define_event("message", history=History(limit=1000))
    dialogue = Dialogue(rooms(events=[kept]), store=store, limits=limits)
    async with dialogue.lifespan():
        consumers = [Consumer(dialogue, 0)]

        async def publish(name: str) -> None:
            for n in range(60):
                await dialogue.trigger(chaos.choice(("general", "other")), kept, f"{name}{n}")
                if chaos.random() < 0.1:
                    await asyncio.sleep(0.001)

        publishing = asyncio.gather(*(publish(name) for name in "abcd"))
        for pause in (None, 0, 0.001):
            await eventually(lambda: len(consumers[-1].events) >= 10)
            consumers.append(Consumer(dialogue, 0, pause=pause))
        await publishing
        await eventually(lambda: all(len(consumer.events) >= 240 for consumer in consumers))
        for consumer in consumers:
            assert [event.id for event in consumer.events] == list(range(1, 241))
            await consumer.stop()


async def test_c7_with_memory_only_what_was_let_go_is_told() -> None:
    """Never a silent hole: a reader that comes too late, or is too slow, gets `CursorExpired`."""
    dialogue = Dialogue(rooms(), limits=Limits(feed_queue_events=2))
    async with dialogue.lifespan():
        slow: list[int] = []
        may_go_on = asyncio.Event()

        async def read() -> None:
            async for event in dialogue.feed(after=0):
                slow.append(event.id or 0)
                await may_go_on.wait()

        reading = asyncio.create_task(read())
        await dialogue.trigger("general", message, 0)
        await eventually(lambda: slow)
        for n in range(20):
            await dialogue.trigger("general", message, n)
        may_go_on.set()
        with pytest.raises(CursorExpired) as info:
            await reading
        assert slow == [1]
        assert info.value.removed_through_id == 16
        with pytest.raises(CursorExpired):
            async for _ in dialogue.feed(after=0):
                pass


async def test_c7_a_store_that_is_away_is_waited_for(tmp_path: Path) -> None:
    """The iteration goes on where it was when the store is back; a late outcome comes in its place."""
    store = FaultyStore(SQLStore(f"sqlite:///{tmp_path / 'chat.db'}"))
    dialogue = Dialogue(rooms(), store=store)
    async with dialogue.lifespan():
        await dialogue.trigger("general", message, 0)
        consumer = Consumer(dialogue, 0)
        await eventually(lambda: len(consumer.events) == 1)
        store.fail_after_append = OutcomeUnknown()
        await dialogue.trigger("general", message, 1)
        await eventually(lambda: len(consumer.events) == 2)
        store.fail_read = StoreUnavailable()
        late = Consumer(dialogue, 0)
        await dialogue.trigger("general", message, 2)
        await eventually(lambda: len(consumer.events) == 3)
        assert not late.events
        store.fail_read = None
        await eventually(lambda: len(late.events) == 3)
        assert late.events == consumer.events
        await consumer.stop()
        await late.stop()


async def test_c7_the_feed_ends_with_the_server(tmp_path: Path) -> None:
    """A stop ends the iteration after what was accepted; the next start goes on from the last id."""
    url = f"sqlite:///{tmp_path / 'chat.db'}"
    dialogue = Dialogue(rooms(), store=url)
    async with dialogue.lifespan():
        consumer = Consumer(dialogue, 0)
        await dialogue.trigger("general", message, 1)
        last = asyncio.create_task(dialogue.trigger("general", message, 2))
        await asyncio.sleep(0)
    await last
    await consumer.task
    assert [event.data for event in consumer.events] == [1, 2]
    with pytest.raises(LifespanNotRunning):
        async for _ in dialogue.feed(after=0):
            pass
    dialogue = Dialogue(rooms(), store=url)
    async with dialogue.lifespan():
        await dialogue.trigger("general", message, 3)
        async with aclosing(dialogue.feed(after=consumer.events[-1].id)) as feed:
            async for event in feed:
                assert event.data == 3
                break


async def test_c7_a_reader_gets_what_it_was_given_also_after_the_stop(store: Store) -> None:
    """One that is slow when the server stops ends like the others, after what had been read for it."""
    dialogue = Dialogue(rooms(), store=store)
    async with dialogue.lifespan():
        for n in range(3):
            await dialogue.trigger("general", message, n)
        feed = dialogue.feed(after=0)
        events = [await anext(feed)]
    events += [event async for event in feed]
    assert [event.data for event in events] == [0, 1, 2]
    assert len({event.epoch for event in events}) == 1
