"""Ways to hurt others, or to lose something, that once worked."""

from __future__ import annotations

import asyncio
import json
import time
from pathlib import Path
from typing import Any

import pytest

from dialogue import Dialogue, Event, History, Limits, MemoryStore, RoomConfig, StoreUnavailable, define_event
from dialogue.storage import cleanup
from dialogue.storage.sql import SQLStore
from dialogue.testing import FaultyStore

from .harness import Refused, eventually, message, rooms, serve, wire


async def test_a_large_group_disconnects_nobody(tmp_path: Path) -> None:
    """One member's many large events are no reason to call anyone slow who reads."""
    dialogue = Dialogue(rooms(), store=f"sqlite:///{tmp_path / 'log.db'}")
    async with serve(dialogue) as address, wire(address, "a") as a, wire(address, "b") as b:
        for client in (a, b):
            await client.ask("join", room="general")
        trigger = {"type": "trigger", "room": "general", "event": "message", "data": "x" * 65_000}
        for _ in range(3):
            await a.send_raw(json.dumps([trigger] * 14))
        assert [e["seq"] for e in await b.until_events(42)] == list(range(1, 43))
        await a.until_events(42)


async def test_one_event_larger_than_the_outbox_still_arrives() -> None:
    """A frame that finds nothing before it is not slow reading."""
    dialogue = Dialogue(rooms(), limits=Limits(outbox_bytes=4096))
    async with serve(dialogue) as address, wire(address, "a") as a, wire(address, "b") as b:
        for client in (a, b):
            await client.ask("join", room="general")
        await a.trigger("general", "message", "x" * 20_000)
        assert len((await b.until_events(1))[0]["data"]) == 20_000


async def test_the_append_queue_is_bounded_in_bytes() -> None:
    """Few large events may not take the memory that many small ones may not."""
    store = FaultyStore(MemoryStore())
    dialogue = Dialogue(rooms(), store=store, limits=Limits(append_queue_bytes=100_000))
    async with serve(dialogue) as address, wire(address) as client:
        await client.ask("join", room="general")
        store.hold()
        refs = [
            await client.send("trigger", room="general", event="message", data="x" * 30_000) for _ in range(8)
        ]
        await client.ask("rooms")
        store.release()
        codes = []
        for ref in refs:
            try:
                await client.answer(ref)
            except Refused as refused:
                codes.append(refused.code)
        assert 2 <= len(codes) <= 5
        assert set(codes) == {"BACKPRESSURE"}


async def test_an_array_of_rubbish_is_cut_before_it_is_explained() -> None:
    """A frame of half a million zeros is one error for the rest, not half a million."""
    async with (
        serve(Dialogue(rooms(), limits=Limits(errors_per_minute=10_000))) as address,
        wire(address) as client,
    ):
        started = time.perf_counter()
        await client.send_raw("[" + ",".join("0" * 400_000) + "]")
        await client.ask("rooms")
        assert sum(m["type"] == "error" for m in client.messages) == 1001
        print(f"{time.perf_counter() - started:.3f} s")


async def test_a_server_side_join_that_outlives_its_socket_leaves_no_ghost() -> None:
    """Joining a connection that has gone fails; the room stays empty."""
    dialogue = Dialogue(rooms(max_size=1))
    gate, asked = asyncio.Event(), asyncio.Event()

    @dialogue.before_join("general")
    async def wait() -> None:
        asked.set()
        await gate.wait()

    async with serve(dialogue) as address:
        async with wire(address, "a"):
            (client,) = dialogue.clients()
            joining = asyncio.create_task(client.join("general"))
            await asked.wait()
        await eventually(lambda: not dialogue.hub().connections.sessions)
        gate.set()
        with pytest.raises(Exception, match="ended"):
            await joining
        assert dialogue.room("general").size == 0
        async with wire(address, "b") as b:
            await b.ask("join", room="general")


async def test_the_connect_timeout_ends_with_the_connect() -> None:
    """What follows `connected` has all the time that hooks have."""
    dialogue = Dialogue(rooms(), limits=Limits(connect_seconds=0.15))

    @dialogue.before_join
    async def slow() -> None:
        await asyncio.sleep(0.2)

    @dialogue.on_connected
    async def greet(client: Any) -> None:
        await asyncio.sleep(0.2)
        client.send("hello", None)

    async with serve(dialogue) as address, wire(address, None) as client:
        frame = [
            {"type": "connect"},
            {"type": "join", "room": "general", "ref": 1},
            {"type": "rooms", "ref": 2},
        ]
        await client.send_raw(json.dumps(frame))
        await client.answer(2)
        assert [m["type"] for m in client.messages] == ["connected", "message", "joined", "rooms"]


async def test_evictions_do_not_hurry_a_failing_hook(monkeypatch: pytest.MonkeyPatch) -> None:
    """A backoff lasts whatever else is evicted meanwhile."""
    monkeypatch.setattr(cleanup, "FIRST_RETRY_SECONDS", 1000.0)
    monkeypatch.setattr(cleanup, "LONGEST_RETRY_SECONDS", 1000.0)
    calls = 0
    dialogue = Dialogue(rooms(), limits=Limits(stop_timeout_seconds=0.1))

    @dialogue.on_cleanup
    async def broken(events: list[Event[Any]]) -> None:
        nonlocal calls
        calls += 1
        raise RuntimeError("away")

    async with dialogue.lifespan():
        for n in range(300):
            await dialogue.trigger("general", message, n)
        assert calls == 1


async def test_a_stop_that_runs_out_of_time_answers_everyone() -> None:
    """Nobody waits for an append that a stop has given up on."""
    store = FaultyStore(MemoryStore())
    dialogue = Dialogue(rooms(), store=store, limits=Limits(stop_timeout_seconds=0.1))
    async with dialogue.lifespan():
        store.hold()
        waiting = [asyncio.create_task(dialogue.trigger("general", message, n)) for n in range(3)]
        await eventually(lambda: store.waiting_appends)
    outcomes = await asyncio.wait_for(asyncio.gather(*waiting, return_exceptions=True), 20)
    assert all(isinstance(outcome, StoreUnavailable) for outcome in outcomes), outcomes


async def test_around_names_all_that_is_missing() -> None:
    """The gap of a page around a seq covers what is gone on both sides of it."""
    dialogue = Dialogue(rooms())
    async with serve(dialogue) as address, wire(address) as client:
        await client.ask("join", room="general")
        for n in range(12):
            await client.trigger("general", "message", n)
        for around in (2, 5):
            page = await client.ask("history", room="general", event="message", around=around)
            assert [e["seq"] for e in page["events"]] == list(range(8, 13))
            assert page["gap"] == {"from_seq": 1, "through_seq": 7, "reason": "retention"}


async def test_a_forged_token_reads_no_whole_archive() -> None:
    """However a bound was made up, one command asks the archive a bounded number of times."""
    from dialogue.core import cursor
    from dialogue.core.cursor import Bound

    asked = 0
    table: list[dict[str, Any]] = []
    dialogue = Dialogue(rooms())

    @dialogue.on_cleanup
    async def keep(events: list[Event[Any]]) -> None:
        table.extend(
            {"data": e.data, "from": e.sender, "timestamp": 1, "seq": e.seq, "epoch": e.epoch} for e in events
        )

    @dialogue.on_load
    async def load(start: int, end: int) -> list[dict[str, Any]]:
        nonlocal asked
        asked += 1
        return table[::-1][start:end]

    async with serve(dialogue) as address, wire(address) as client:
        joined = await client.ask("join", room="general")
        for n in range(3000):
            await dialogue.trigger("general", message, n)
        await eventually(lambda: len(table) == 2995)
        token = cursor.encode_older(joined["epoch"], {"message": Bound(1, 2990)})
        await client.ask("history", room="general", event="message", cursor=token, limit=1)
        assert asked <= 600


async def test_a_subscription_does_not_grow_without_bound() -> None:
    """Names that nobody declared are bounded per subscription too."""
    dialogue = Dialogue({"r": RoomConfig(events="*")}, limits=Limits(event_names_per_room=10))
    async with serve(dialogue) as address, wire(address) as client:
        await client.ask("join", room="r", events=[])
        await client.ask("subscribe", room="r", events=[f"a{n}" for n in range(10)])
        with pytest.raises(Refused, match="INVALID_REQUEST"):
            await client.ask("subscribe", room="r", events=["one more"])
        await client.ask("unsubscribe", room="r", events=["a1"])
        await client.ask("subscribe", room="r", events=["one more"])


async def test_blocked_events_use_up_no_names() -> None:
    """Only what is accepted counts as one of the room's names."""
    dialogue = Dialogue({"r": RoomConfig(events="*")}, limits=Limits(event_names_per_room=3))

    @dialogue.before_each
    def no_spam(event: Event[Any]) -> None:
        from dialogue import Blocked

        if event.event.startswith("spam"):
            raise Blocked

    async with serve(dialogue) as address, wire(address) as client:
        await client.ask("join", room="r")
        for n in range(10):
            with pytest.raises(Refused, match="BLOCKED"):
                await client.trigger("r", f"spam{n}", 1)
        for name in ("a", "b", "c"):
            await client.trigger("r", name, 1)


async def test_the_servers_own_name_is_taken() -> None:
    """A client called `system` could use up the keys of what the application publishes."""
    async with serve(Dialogue(rooms())) as address, wire(address, None) as client:
        with pytest.raises(Refused, match="VALIDATION_FAILED"):
            await client.ask("connect", auth={"user_id": "system"})


async def test_a_lookup_that_hangs_keeps_nobody_waiting() -> None:
    """Deadlines hold behind a key lookup too."""
    store = FaultyStore(MemoryStore())
    dialogue = Dialogue(rooms(), store=store, limits=Limits(append_timeout_seconds=0.2))
    gate = asyncio.Event()
    settling = asyncio.Event()
    original = store.inner.settle

    async def settle(drafts: Any) -> Any:
        settling.set()
        await gate.wait()
        return await original(drafts)

    store.inner.settle = settle  # type: ignore[method-assign]

    @dialogue.before_each
    def block(event: Event[Any]) -> None:
        from dialogue import Blocked

        if event.data == "blocked":
            raise Blocked

    async with serve(dialogue) as address, wire(address, "a") as a, wire(address, "b") as b:
        for client in (a, b):
            await client.ask("join", room="general")
        blocked = await a.send("trigger", room="general", event="message", data="blocked", key="k")
        await settling.wait()
        behind = await b.send("trigger", room="general", event="message", data="behind")
        for client, ref in ((a, blocked), (b, behind)):
            with pytest.raises(Refused, match="STORE_UNAVAILABLE"):
                await client.answer(ref)
        gate.set()
        assert (await b.trigger("general", "message", "after"))["seq"] == 1


async def test_unlimited_limits_start_with_an_archive() -> None:
    """`Limits.unlimited()` unlimits what waits, not how many work."""
    dialogue = Dialogue(rooms(), limits=Limits.unlimited())
    kept: list[Any] = []

    @dialogue.on_cleanup
    async def keep(events: list[Event[Any]]) -> None:
        kept.extend(event.data for event in events)

    async with dialogue.lifespan():
        for n in range(7):
            await dialogue.trigger("general", message, n)
    assert kept == list(range(7))


async def test_a_refused_replay_is_not_read_to_its_end(tmp_path: Path) -> None:
    """What is more than may be replayed is not read first."""
    read = 0

    class Counting(FaultyStore):
        async def page(self, *args: Any, **kwargs: Any) -> Any:
            nonlocal read
            page = await super().page(*args, **kwargs)
            read += len(page.events)
            return page

    store = Counting(SQLStore(f"sqlite:///{tmp_path / 'log.db'}"))
    dialogue = Dialogue(rooms(), store=store, limits=Limits(replay_bytes=50_000))
    async with serve(dialogue) as address, wire(address) as client:
        joined = await client.ask("join", room="general")
        for _ in range(600):
            await dialogue.trigger("general", message, "x" * 1000)
        read = 0
        answer = await client.ask("join", room="general", since={"seq": 0, "epoch": joined["epoch"]})
        assert answer["recovered"] is False
        assert read <= 250


async def test_a_kick_during_a_join_is_told() -> None:
    """The join is answered although its membership has ended meanwhile; `on_left` follows no unheard `on_joined`."""

    class SlowReads(FaultyStore):
        gate = asyncio.Event()
        reading = 0

        async def stream_page(self, *args: Any, **kwargs: Any) -> Any:
            self.reading += 1
            await self.gate.wait()
            return await super().stream_page(*args, **kwargs)

    store = SlowReads(MemoryStore())
    seen: list[str] = []
    big = define_event("big", history=History(limit=1))
    dialogue = Dialogue({"general": RoomConfig(events=[big], sync_history_on_join=3)}, store=store)
    dialogue.on_joined(lambda client: seen.append("joined"))
    dialogue.on_left(lambda client: seen.append("left"))
    async with serve(dialogue) as address, wire(address) as client:
        for n in range(3):
            await dialogue.trigger("general", big, n)
        ref = await client.send("join", room="general")
        await eventually(lambda: store.reading)
        (member,) = dialogue.room("general").participants()
        await member.leave("general")
        store.gate.set()
        with pytest.raises(Refused, match="NOT_JOINED"):
            await client.answer(ref)
        assert seen == []


async def test_acks_do_not_wait_for_a_join() -> None:
    """An ack comes although its publisher's rejoin fails meanwhile."""
    store = FaultyStore(MemoryStore())
    big = define_event("big", history=History(limit=1))
    dialogue = Dialogue({"general": RoomConfig(events=[big], sync_history_on_join=3)}, store=store)
    async with serve(dialogue) as address, wire(address) as client:
        for n in range(3):
            await dialogue.trigger("general", big, n)
        await client.ask("join", room="general", sync=0)
        store.hold()
        trigger = await client.send("trigger", room="general", event="big", data="x")
        await eventually(lambda: store.waiting_appends)
        await client.ask("leave", room="general")
        store.fail_read = StoreUnavailable("down")
        join = await client.send("join", room="general")
        store.release()
        with pytest.raises(Refused, match="STORE_UNAVAILABLE"):
            await client.answer(join)
        assert (await client.answer(trigger))["seq"] == 4


async def test_open_rooms_are_bounded() -> None:
    """Without a durable store rooms do not sleep: so many and no more."""
    dialogue = Dialogue(rooms(), limits=Limits(open_rooms=5))
    async with serve(dialogue) as address, wire(address) as client:
        for n in range(5):
            await client.ask("join", room=f"dm:a:{n}")
        with pytest.raises(Refused, match="BACKPRESSURE"):
            await client.ask("join", room="dm:a:x")
        await client.ask("join", room="dm:a:1")


async def test_a_hung_load_does_not_pile_up() -> None:
    """While one `on_load` of a stream hangs, further reads do not start more of them; a stop ends it."""
    started = 0
    dialogue = Dialogue(rooms(), limits=Limits(hook_seconds=0.05))

    @dialogue.on_cleanup
    async def keep(events: list[Event[Any]]) -> None:
        return None

    @dialogue.on_load
    async def hang() -> list[Any]:
        nonlocal started
        started += 1
        await asyncio.Event().wait()
        return []

    async with serve(dialogue) as address, wire(address) as client:
        await client.ask("join", room="general")
        for n in range(8):
            await client.trigger("general", "message", n)
        await eventually(lambda: dialogue.hub().handover.pending_events == 0)  # type: ignore[union-attr]
        for _ in range(5):
            page = await client.ask("history", room="general", event="message")
            assert page["gap"]["reason"] == "tier_unavailable"
        assert started == 1
    assert dialogue.unflushed_events == 0, "a load that hangs does not keep a stop from handing over"


async def test_the_input_is_not_echoed() -> None:
    """Neither a wrong command nor a wrong payload comes back in words."""
    from typing import Annotated, Literal

    from pydantic import BaseModel, Field

    class A(BaseModel):
        kind: Literal["a"]

    class B(BaseModel):
        kind: Literal["b"]

    either = define_event("either", schema=Annotated[A | B, Field(discriminator="kind")])
    async with serve(Dialogue({"r": RoomConfig(events=[either])})) as address, wire(address) as client:
        await client.ask("join", room="r")
        refs = [
            await client.send("subscribe", room="r", events="SECRET"),
            await client.send("SECRET"),
            await client.send("trigger", room="r", event="either", data={"kind": "SECRET"}),
            await client.send("trigger", room="r", event="SECRET", data=1),
        ]
        for ref in refs:
            with pytest.raises(Refused):
                await client.answer(ref)
        assert "SECRET" not in json.dumps([m for m in client.messages if m["type"] == "error"])


async def test_an_empty_room_promises_no_older_page() -> None:
    """`has_more` is false where nothing is below."""
    async with serve(Dialogue(rooms())) as address, wire(address) as client:
        joined = await client.ask("join", room="general", sync=0)
        assert joined["has_more"] is False
        assert joined["next"] is None
