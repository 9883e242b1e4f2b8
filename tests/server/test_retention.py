"""Retention (C8): what is beyond it leaves log and memory, never before the hand-over, and readers are told."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from dialogue import (
    ConfigError,
    CursorExpired,
    Dialogue,
    Event,
    History,
    Limits,
    MemoryStore,
    Retention,
    RoomConfig,
    define_event,
)
from dialogue.storage import cleanup
from dialogue.storage.base import Store
from dialogue.storage.sql import SQLStore
from tests.rates import UNRATED

from .harness import eventually, serve, wire

HOUR = 3_600_000
QUICK = Limits(retention_seconds=0.02, retention_batch_events=4)


class Clock:
    """The log's and the sweep's time."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.ms = 1_700_000_000_000
        monkeypatch.setattr("dialogue.app._clock_ms", self)

    def __call__(self) -> int:
        return self.ms


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


Make = Callable[..., Dialogue]


@pytest.fixture(params=["memory", "sqlite", "postgres"])
def store(request: pytest.FixtureRequest, tmp_path: Path, clock: Clock) -> Store:
    if request.param == "memory":
        return MemoryStore(clock=clock)
    url = f"sqlite:///{tmp_path / 'chat.db'}"
    if request.param == "postgres":
        url = request.getfixturevalue("postgres_url")
    return SQLStore(url, clock=clock)


def make(
    store: Store, retention: Retention, *, limit: int = 3, limits: Limits = QUICK, **options: Any
) -> Dialogue:
    message = define_event("message", history=History(limit=limit, retention=retention))
    note = define_event("note", history=History(limit=limit))
    return Dialogue(
        rooms={"general": RoomConfig(events=[message, note])}, store=store, limits=limits, **options
    )


async def publish(dialogue: Dialogue, *texts: str, event: str = "message") -> None:
    for text in texts:
        await dialogue.trigger("general", event, text)


async def expired(dialogue: Dialogue, count: int) -> None:
    """Wait until retention has removed *count* events."""
    await eventually(
        lambda: dialogue.metrics.registry.get_sample_value("dialogue_events_expired_total") == count
    )


async def test_c8_by_count_the_newest_of_each_room_stay(store: Store) -> None:
    """What is beyond `max_events` goes, in batches; a page that reaches it says `retention`, resume too."""
    dialogue = make(store, Retention(max_events=5))
    async with serve(dialogue) as address, wire(address) as client:
        joined = await client.ask("join", room="general")
        await publish(dialogue, "n1", event="note")
        await publish(dialogue, *map(str, range(17)))
        if store.is_durable:
            await expired(dialogue, 12)
        page = await client.ask("history", room="general", event="message")
        kept = 5 if store.is_durable else 3
        assert [m["data"] for m in page["events"]] == list(map(str, range(17)))[-kept:]
        assert page["next"] is None
        assert page["gap"] == {"from_seq": 1, "through_seq": 18 - kept, "reason": "retention"}
        assert [m["data"] for m in (await client.ask("history", room="general", event="note"))["events"]] == [
            "n1"
        ]
        newer = await client.ask("history", room="general", event="message", after=2)
        assert newer["gap"]["reason"] == "retention"
        assert [m["data"] for m in newer["events"]] == list(map(str, range(17)))[-kept:]
        async with wire(address, "bob") as bob:
            for seq, recovered in ((2, False), (18 - kept, True), (18, True)):
                resumed = await bob.ask("join", room="general", since={"seq": seq, "epoch": joined["epoch"]})
                assert resumed["recovered"] is recovered
                await bob.ask("leave", room="general")


async def test_c8_by_age_memory_is_emptied_as_well(store: Store, clock: Clock) -> None:
    """An old event is gone for readers, new joins and the ring; the room's seq goes on."""
    dialogue = make(store, Retention(max_age="2h"))
    async with serve(dialogue) as address, wire(address) as client:
        await client.ask("join", room="general")
        await publish(dialogue, "a", "b")
        clock.ms += HOUR
        await publish(dialogue, "c")
        clock.ms += HOUR + 1
        await expired(dialogue, 2)
        await eventually(lambda: len(dialogue.hub().rooms["general"].rings["message"]) == 1)
        page = await client.ask("history", room="general", event="message")
        assert [m["data"] for m in page["events"]] == ["c"]
        assert page["gap"] == {"from_seq": 1, "through_seq": 2, "reason": "retention"}
        clock.ms += HOUR
        await expired(dialogue, 3)
        await eventually(lambda: len(dialogue.hub().rooms["general"].rings["message"]) == 0)
        await publish(dialogue, "d")
        async with wire(address, "bob") as bob:
            joined = await bob.ask("join", room="general")
        assert [(m["data"], m["seq"]) for m in joined["events"]] == [("d", 4)]
        assert (
            await dialogue.room("general").history("message", 0, 9) == await dialogue.room("general").page()
        )


async def test_c8_never_before_the_hand_over(
    store: Store, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Promise 6: while `on_cleanup` fails nothing is removed; then all of it is archived, and only then removed."""
    dialogue = make(store, Retention(max_age="1h"))
    archived: list[Any] = []
    is_down = True
    refused = 0
    monkeypatch.setattr(cleanup, "FIRST_RETRY_SECONDS", 0.001)
    monkeypatch.setattr(cleanup, "LONGEST_RETRY_SECONDS", 0.01)

    @dialogue.on_cleanup
    async def keep(events: list[Event[Any]]) -> None:
        nonlocal refused
        if is_down:
            refused += 1
            raise RuntimeError("the table is away")
        archived.extend(event.data for event in events)

    @dialogue.on_load
    async def load(start: int, end: int) -> list[dict[str, Any]]:
        rows = [{"data": data, "sender": "system", "timestamp": 1} for data in archived[::-1]]
        return rows[start:end]

    async with dialogue.lifespan():
        texts = list(map(str, range(10)))
        await publish(dialogue, *texts)
        clock.ms += 2 * HOUR
        room = dialogue.room("general")
        await eventually(lambda: refused > 2)
        assert [event.data for event in await room.history("message", 0, 20)] == texts[::-1]
        assert archived == []
        is_down = False
        await eventually(lambda: archived == texts)
        await eventually(lambda: len(dialogue.hub().rooms["general"].rings["message"]) == 0)
        if store.is_durable:
            await expired(dialogue, 10)
        assert [event.data for event in await room.history("message", 0, 20)] == texts[::-1]
        await publish(dialogue, "new")
        assert [event.data for event in await room.history("message", 0, 20)] == ["new", *texts[::-1]]


async def test_c8_the_feed_is_told(tmp_path: Path, clock: Clock) -> None:
    """A cursor below what was removed is `CursorExpired`, and says where to go on."""
    dialogue = make(SQLStore(f"sqlite:///{tmp_path / 'chat.db'}", clock=clock), Retention(max_events=3))
    async with dialogue.lifespan():
        await publish(dialogue, *"abcdef")
        await expired(dialogue, 3)
        with pytest.raises(CursorExpired) as info:
            async for _ in dialogue.feed(after=1):
                pass
        found = []
        async for event in dialogue.feed(after=info.value.removed_through_id):
            found.append(event.data)
            if len(found) == 3:
                break
        assert found == ["d", "e", "f"]


async def test_c8_a_room_that_sleeps_expires_too(tmp_path: Path, clock: Clock) -> None:
    """No room needs to wake for it; what another process left is found."""
    url = f"sqlite:///{tmp_path / 'chat.db'}"
    dialogue = make(SQLStore(url, clock=clock), Retention(max_age=timedelta(hours=1)))
    async with dialogue.lifespan():
        await publish(dialogue, *"abcdefghij")
    clock.ms += 2 * HOUR
    dialogue = make(SQLStore(url, clock=clock), Retention(max_age=3600))
    async with dialogue.lifespan():
        await expired(dialogue, 10)
        assert not dialogue.hub().rooms
        assert await dialogue.room("general").page() == []


async def test_c8_changes_stay_no_longer_than_what_they_are_about(tmp_path: Path, clock: Clock) -> None:
    """A `$edit` says what a message was, so it goes with the shortest age of its room."""
    dialogue = make(SQLStore(f"sqlite:///{tmp_path / 'chat.db'}", clock=clock), Retention(max_age="1h"))
    async with dialogue.lifespan():
        await publish(dialogue, "secret")
        await dialogue.edit("general", 1, "secret 2")
        await dialogue.delete("general", 1)
        clock.ms += 2 * HOUR
        await expired(dialogue, 3)
        assert await dialogue.room("general").page() == []


@pytest.mark.parametrize("seed", range(3))
async def test_c8_readers_beside_it_get_a_run_without_holes(store: Store, clock: Clock, seed: int) -> None:
    """Promise 5: pages scrolled while retention removes and others publish are complete above their gap."""
    chaos = random.Random(seed)
    dialogue = make(
        store,
        Retention(max_events=20),
        limits=Limits(retention_seconds=0.001, retention_batch_events=3, page_events=7, **UNRATED),
    )
    async with serve(dialogue) as address, wire(address) as client:
        await client.ask("join", room="general")
        is_over = False

        async def write() -> None:
            nonlocal is_over
            for number in range(120):
                await publish(dialogue, str(number), event=chaos.choice(("message", "message", "note")))
                if chaos.random() < 0.2:
                    await asyncio.sleep(0.002)
            is_over = True

        writing = asyncio.create_task(write())
        while not is_over:
            seqs: list[int] = []
            cursor: str | None = None
            while True:
                fields = {"cursor": cursor} if cursor else {}
                page = await client.ask("history", room="general", event="message", limit=5, **fields)
                part = [int(m["data"]) for m in page["events"]]
                assert part == sorted(part)
                assert not seqs or not part or part[-1] < seqs[0]
                seqs = part + seqs
                cursor = page["next"]
                if cursor is None:
                    assert page.get("gap", {"reason": "retention"})["reason"] == "retention"
                    break
        await writing


def test_retention_is_checked_when_declared() -> None:
    """Each mistake names its field."""
    for arguments, where in (
        ({}, "Retention"),
        ({"max_events": 0}, "max_events"),
        ({"max_events": True}, "max_events"),
        ({"max_events": 1.5}, "max_events"),
        ({"max_age": "a month"}, "max_age"),
        ({"max_age": "30"}, "max_age"),
        ({"max_age": -1}, "max_age"),
        ({"max_age": timedelta(0)}, "max_age"),
        ({"max_age": [1]}, "max_age"),
    ):
        with pytest.raises(ConfigError, match=where):
            Retention(**arguments)
    with pytest.raises(ConfigError, match="limit"):
        History(limit=100, retention=Retention(max_events=99))
    with pytest.raises(ConfigError, match="retention"):
        History(retention="30d")  # type: ignore[arg-type]
    assert [Retention(max_age=age).max_age_seconds for age in ("90s", "1.5h", "2 w", 5, timedelta(1))] == [
        90, 5400, 1_209_600, 5, 86_400,
    ]  # fmt: skip
