"""The promises of the design, one by one, attacked over a real socket."""

from __future__ import annotations

import asyncio
import json
import random
from pathlib import Path
from typing import Any

import pytest

from dialogue import Dialogue, History, Limits, MemoryStore, RoomConfig, StoreUnavailable, define_event
from dialogue.errors import DraftRefused, OutcomeUnknown
from dialogue.storage.sql import SQLStore
from dialogue.testing import FaultyStore

from ..storage.test_sql import writer_sql
from .harness import Refused, Wire, eventually, rooms, serve, wire


@pytest.fixture(params=["memory", "sqlite", "postgres"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> FaultyStore:
    """Every kind of store, held and broken at will."""
    if request.param == "memory":
        return FaultyStore(MemoryStore())
    if request.param == "postgres":
        return FaultyStore(SQLStore(request.getfixturevalue("postgres_url")))
    return FaultyStore(SQLStore(f"sqlite:///{tmp_path / 'log.db'}"))


async def flood(client: Wire, count: int, name: str, room: str = "general") -> list[dict[str, Any]]:
    """Publish *count* messages, several in flight, and return the acks."""
    refs = []
    for n in range(count):
        refs.append(
            await client.send("trigger", room=room, event="message", data=f"{name}-{n}", key=f"{name}-{n}")
        )
        if n % 10 == 9:
            await asyncio.sleep(0)
    return [await client.answer(ref) for ref in refs]


async def test_promise_1_all_see_the_same_order(store: FaultyStore) -> None:
    """Eight publishers at once: every subscriber sees seq 1, 2, 3 ... and the same events under them."""
    dialogue = Dialogue(rooms(sync_history_on_join=0), store=store)
    async with serve(dialogue) as address:
        clients = []
        async with asyncio.timeout(60):
            contexts = [wire(address, f"u{n}") for n in range(8)]
            clients = [await context.__aenter__() for context in contexts]
            for client in clients:
                await client.ask("join", room="general")
            await asyncio.gather(*(flood(client, 50, f"u{n}") for n, client in enumerate(clients)))
            views = [await client.until_events(400) for client in clients]
            for view in views:
                assert [e["seq"] for e in view] == list(range(1, 401))
                assert [e["data"] for e in view] == [e["data"] for e in views[0]]
                for n in range(8):
                    own = [e["data"] for e in view if e["from"] == f"u{n}"]
                    assert own == [f"u{n}-{m}" for m in range(50)], "each publisher's own order is kept"
            for context in contexts:
                await context.__aexit__(None, None, None)


async def test_promise_2_stored_before_told(store: FaultyStore) -> None:
    """While the append is held nobody sees the event, not even its publisher as an ack."""
    async with (
        serve(Dialogue(rooms(), store=store)) as address,
        wire(address, "a") as a,
        wire(address, "b") as b,
    ):
        for client in (a, b):
            await client.ask("join", room="general")
        store.hold()
        ref = await a.send("trigger", room="general", event="message", data=1)
        await eventually(lambda: store.waiting_appends)
        await a.ask("rooms")
        await b.ask("rooms")
        assert a.events() == b.events() == []
        assert not any(m.get("ref") == ref for m in a.messages)
        store.release()
        assert (await a.answer(ref))["seq"] == 1
        await b.until_events(1)


async def test_what_arrives_during_an_append_is_the_next_group(store: FaultyStore) -> None:
    """One append in flight; everything that came meanwhile is one group, and one frame per subscriber."""
    async with (
        serve(Dialogue(rooms(), store=store)) as address,
        wire(address, "a") as a,
        wire(address, "b") as b,
    ):
        for client in (a, b):
            await client.ask("join", room="general")
        store.hold()
        await a.send("trigger", room="general", event="message", data=0)
        await eventually(lambda: store.waiting_appends)
        for n in range(1, 21):
            await a.send("trigger", room="general", event="message", data=n)
        await a.ask("rooms")
        store.release()
        events = await b.until_events(21)
        assert [e["data"] for e in events] == list(range(21))
        assert [len(group) for group in store.appended] == [1, 20]
        assert [
            sum(m["type"] == "event" for m in frame) for frame in b.frames if frame[0]["type"] == "event"
        ] == [1, 20]


async def test_a_refused_append_is_told_and_service_returns(store: FaultyStore) -> None:
    """STORE_UNAVAILABLE while the store is down; nothing of it shows later; then it goes on."""
    async with serve(Dialogue(rooms(), store=store)) as address, wire(address) as client:
        await client.ask("join", room="general")
        store.fail_append = StoreUnavailable("down")
        with pytest.raises(Refused) as refused:
            await client.trigger("general", "message", "lost")
        assert refused.value.code == "STORE_UNAVAILABLE"
        assert refused.value.message["retry_after_seconds"] > 0
        store.fail_append = None
        assert (await client.trigger("general", "message", "kept"))["seq"] == 1
        assert [e["data"] for e in await client.until_events(1)] == ["kept"]


async def test_who_comes_during_a_hanging_append_is_answered_too(store: FaultyStore) -> None:
    """Everyone of the group has been answered already; a later publisher waits no longer than they did."""
    limits = Limits(append_timeout_seconds=0.2, stop_timeout_seconds=0.1)
    async with serve(Dialogue(rooms(), store=store, limits=limits)) as address, wire(address) as client:
        await client.ask("join", room="general")
        store.hold()
        for data in ("hanging", "queued", "queued later"):
            with pytest.raises(Refused, match="STORE_UNAVAILABLE"):
                await client.trigger("general", "message", data)
        store.release()
        assert (await client.trigger("general", "message", "next"))["seq"] == 2


async def test_an_unknown_outcome_is_settled_by_keys(store: FaultyStore) -> None:
    """The COMMIT's answer never came: the event is found, told once and acked, and the next one follows it."""
    async with serve(Dialogue(rooms(), store=store)) as address, wire(address) as client:
        await client.ask("join", room="general")
        store.fail_after_append = OutcomeUnknown("the connection broke")
        assert (await client.trigger("general", "message", "a"))["seq"] == 1
        assert (await client.trigger("general", "message", "b"))["seq"] == 2
        assert [e["data"] for e in await client.until_events(2)] == ["a", "b"]


async def test_nothing_is_appended_before_a_settle_that_fails_in_any_way_is_done(
    store: FaultyStore, caplog: pytest.LogCaptureFixture
) -> None:
    """A store that raises what it should not is asked again: else what it has recorded would never be told."""
    dialogue = Dialogue(rooms=rooms(), store=store)
    async with serve(dialogue) as address, wire(address) as client:
        await client.ask("join", room="general")
        store.fail_settle = RuntimeError("a bug")  # type: ignore[assignment]
        store.fail_after_append = OutcomeUnknown("the connection broke")
        publishing = asyncio.create_task(client.trigger("general", "message", 1))
        await eventually(lambda: "settling it failed" in caplog.text)
        second = asyncio.create_task(client.trigger("general", "message", 2))
        store.fail_settle = None
        assert [(await publishing)["seq"], (await second)["seq"]] == [1, 2]
        assert [m["seq"] for m in await client.until_events(2)] == [1, 2]


async def test_a_late_append_answers_its_publisher_and_is_told_in_order(store: FaultyStore) -> None:
    """A timeout answers the publisher and never cancels the append: the event still comes, before later ones."""
    dialogue = Dialogue(rooms(), store=store, limits=Limits(append_timeout_seconds=0.2))
    async with serve(dialogue) as address, wire(address) as client:
        await client.ask("join", room="general")
        store.hold()
        first = await client.send("trigger", room="general", event="message", data="late", key="k")
        await eventually(lambda: store.waiting_appends)
        queued = await client.send("trigger", room="general", event="message", data="never sent", key="q")
        for ref in (first, queued):
            with pytest.raises(Refused, match="STORE_UNAVAILABLE"):
                await client.answer(ref)
        store.release()
        assert [e["data"] for e in await client.until_events(1)] == ["late"]
        again = await client.trigger("general", "message", "late", key="k")
        assert again["duplicate"] is True
        assert again["seq"] == 1
        assert (await client.trigger("general", "message", "next"))["seq"] == 2
        assert [e["data"] for e in client.events()] == ["late", "next"]


async def test_poison_fails_alone(store: FaultyStore) -> None:
    """An event that the database refuses does not take its group with it."""
    store.refuse_text, store.refuse_error = b"poison", DraftRefused("no")
    async with serve(Dialogue(rooms(), store=store)) as address, wire(address) as client:
        await client.ask("join", room="general")
        store.hold()
        await client.send("trigger", room="general", event="message", data="opens the queue")
        await eventually(lambda: store.waiting_appends)
        refs = [
            await client.send("trigger", room="general", event="message", data="poison" if n == 5 else n)
            for n in range(12)
        ]
        await client.ask("rooms")
        store.release()
        for n, ref in enumerate(refs):
            if n == 5:
                with pytest.raises(Refused, match="INTERNAL"):
                    await client.answer(ref)
            else:
                await client.answer(ref)
        assert [e["seq"] for e in await client.until_events(12)] == list(range(1, 13))


async def test_a_full_append_queue_is_told(store: FaultyStore) -> None:
    """The queue before the store is bounded: BACKPRESSURE, counted, and nothing accepted is lost."""
    dialogue = Dialogue(rooms(), store=store, limits=Limits(append_queue_events=5))
    async with serve(dialogue) as address, wire(address) as client:
        await client.ask("join", room="general")
        store.hold()
        refs = [await client.send("trigger", room="general", event="message", data=0)]
        await eventually(lambda: store.waiting_appends)
        refs += [await client.send("trigger", room="general", event="message", data=n) for n in range(1, 9)]
        await client.ask("rooms")
        store.release()
        outcomes = []
        for ref in refs:
            try:
                outcomes.append((await client.answer(ref))["seq"])
            except Refused as refused:
                outcomes.append(refused.code)
        assert outcomes == [1, 2, 3, 4, 5, 6, "BACKPRESSURE", "BACKPRESSURE", "BACKPRESSURE"]
        count = dialogue.metrics.registry.get_sample_value("dialogue_errors_total", {"code": "BACKPRESSURE"})
        assert count == 3


async def test_a_blocked_retry_of_a_recorded_event_gets_its_seq() -> None:
    """A key is looked up before a hook's refusal of a retry is sent, also when the first try is still queued."""
    store = FaultyStore(MemoryStore())
    dialogue = Dialogue(rooms(), store=store)
    seen: set[str] = set()

    @dialogue.before_each
    def once(event: Any) -> None:
        from dialogue import Blocked

        if event.data in seen:
            raise Blocked("said that already")
        seen.add(event.data)

    async with serve(dialogue) as address, wire(address) as client:
        await client.ask("join", room="general")
        store.hold()
        first = await client.send("trigger", room="general", event="message", data="x", key="k")
        await eventually(lambda: store.waiting_appends)
        retry = await client.send("trigger", room="general", event="message", data="x", key="k")
        store.release()
        assert (await client.answer(first))["seq"] == 1
        answer = await client.answer(retry)
        assert answer["seq"] == 1
        assert answer["duplicate"] is True
        with pytest.raises(Refused, match="BLOCKED"):
            await client.trigger("general", "message", "x", key="other")


async def test_promise_4_exact_resume(store: FaultyStore) -> None:
    """Coming back with `since` gives every missed event once and in order, while others go on publishing."""
    chaos = random.Random(4)
    # A ring of everything for memory, which has nothing else; a tiny one over a log, so that replay needs the log.
    limit = 400 if isinstance(store.inner, MemoryStore) else 5
    config = RoomConfig(events=[define_event("message", history=History(limit=limit))])
    async with (
        serve(Dialogue({"general": config}, store=store)) as address,
        wire(address, "pub") as publisher,
    ):
        await publisher.ask("join", room="general")
        flooding = asyncio.create_task(flood(publisher, 400, "p"))
        seen: list[int] = []
        since: dict[str, Any] | None = None
        while len(seen) < 400:
            async with wire(address, "reader") as reader:
                fields = {"since": since} if since else {"sync": 200}
                joined = await reader.ask("join", room="general", **fields)
                assert joined["recovered"] is (None if since is None else True)
                seen += [e["seq"] for e in joined["events"]]
                wanted = min(400 - len(seen), chaos.randrange(40))
                seen += [e["seq"] for e in (await reader.until_events(wanted) if wanted else reader.events())]
                since = {"seq": seen[-1] if seen else joined["seq"], "epoch": joined["epoch"]}
        await flooding
        assert seen == list(range(1, 401))


async def test_resume_tells_when_it_cannot() -> None:
    """A foreign epoch, a cursor from the future, too much missed, or removed events: `recovered: false`."""
    dialogue = Dialogue(rooms(), limits=Limits(replay_events=4))
    async with serve(dialogue) as address, wire(address) as client:
        joined = await client.ask("join", room="general")
        epoch = joined["epoch"]
        await flood(client, 12, "m")
        for since in (
            {"seq": 3, "epoch": "other"},
            {"seq": 13, "epoch": epoch},
            {"seq": -1, "epoch": epoch},
            {"seq": 7, "epoch": epoch},
            {"seq": 2, "epoch": epoch},
        ):
            answer = await client.ask("join", room="general", since=since)
            assert answer["recovered"] is False, since
            assert [e["seq"] for e in answer["events"]] == [10, 11, 12]
        answer = await client.ask("join", room="general", since={"seq": 8, "epoch": epoch})
        assert answer["recovered"] is True
        assert [e["seq"] for e in answer["events"]] == [9, 10, 11, 12]
        answer = await client.ask("join", room="general", since={"seq": 12, "epoch": epoch})
        assert answer["recovered"] is True
        assert answer["events"] == []


async def test_events_that_come_while_a_join_reads_follow_it_once(tmp_path: Path) -> None:
    """Between registering and answering nothing is lost or doubled, however long the log takes."""

    class SlowReads(FaultyStore):
        gate = asyncio.Event()
        reading = 0

        async def page(self, *args: Any, **kwargs: Any) -> Any:
            self.reading += 1
            await self.gate.wait()
            return await super().page(*args, **kwargs)

    store = SlowReads(SQLStore(f"sqlite:///{tmp_path / 'log.db'}"))
    async with (
        serve(Dialogue(rooms(), store=store)) as address,
        wire(address, "a") as a,
        wire(address, "b") as b,
    ):
        joined = await a.ask("join", room="general")
        await flood(a, 20, "m")
        ref = await b.send("join", room="general", since={"seq": 0, "epoch": joined["epoch"]})
        await eventually(lambda: store.reading)
        await flood(a, 20, "n")
        store.gate.set()
        answer = await b.answer(ref)
        assert answer["seq"] == 20
        assert [e["seq"] for e in answer["events"]] == list(range(1, 21))
        assert [e["seq"] for e in await b.until_events(20)] == list(range(21, 41))
        assert b.messages.index(answer) < b.messages.index(b.events()[0])


async def test_leaving_while_a_join_reads_drops_the_answer(tmp_path: Path) -> None:
    """An answer in flight when membership ends is dropped."""

    class SlowReads(FaultyStore):
        gate = asyncio.Event()
        reading = 0

        async def page(self, *args: Any, **kwargs: Any) -> Any:
            self.reading += 1
            await self.gate.wait()
            return await super().page(*args, **kwargs)

    store = SlowReads(SQLStore(f"sqlite:///{tmp_path / 'log.db'}"))
    dialogue = Dialogue(rooms(), store=store)
    async with serve(dialogue) as address, wire(address, "a") as a:
        joined = await a.ask("join", room="general")
        await flood(a, 20, "m")
        ref = await a.send("history", room="general", after=0)
        await eventually(lambda: store.reading)
        (member,) = dialogue.room("general").participants()
        await member.leave("general")
        store.gate.set()
        await a.ask("rooms")
        assert not any(m.get("ref") == ref for m in a.messages)
        assert joined["seq"] == 0


async def test_promise_5_pages_while_everything_moves(tmp_path: Path) -> None:
    """Scrolling by `next` while others publish and the ring evicts shows each event once, in order.

    Over a log; over an archive see `test_handover`.
    """
    dialogue = Dialogue(rooms(), store=f"sqlite:///{tmp_path / 'log.db'}")
    async with serve(dialogue) as address, wire(address, "a") as a, wire(address, "b") as b:
        for client in (a, b):
            await client.ask("join", room="general")
        await flood(a, 100, "m")
        flooding = asyncio.create_task(flood(a, 300, "n"))
        first = await b.ask("history", room="general", limit=7)
        top = first["events"][-1]["seq"]
        shown = first["events"]
        cursor = first["next"]
        while cursor:
            page = await b.ask("history", room="general", cursor=cursor, limit=7)
            shown = page["events"] + shown
            cursor = page["next"]
        await flooding
        assert [e["seq"] for e in shown] == list(range(1, top + 1))
        newer: list[int] = []
        cursor = first["previous"]
        while cursor:
            page = await b.ask("history", room="general", cursor=cursor, limit=33)
            newer += [e["seq"] for e in page["events"]]
            cursor = page["next"]
        assert newer == list(range(top + 1, 401))


async def test_a_log_that_is_down_is_named_by_a_gap(tmp_path: Path) -> None:
    """A part that cannot be read is named, never skipped; the same cursor goes on when it can."""
    store = FaultyStore(SQLStore(f"sqlite:///{tmp_path / 'log.db'}"))
    async with serve(Dialogue(rooms(), store=store)) as address, wire(address) as client:
        await client.ask("join", room="general")
        await flood(client, 12, "m")
        store.fail_read = StoreUnavailable("down")
        page = await client.ask("history", room="general", limit=8)
        assert [e["seq"] for e in page["events"]] == list(range(8, 13))
        assert page["gap"]["reason"] == "tier_unavailable"
        assert page["gap"]["through_seq"] == 7
        assert page["has_more"]
        store.fail_read = None
        rest = await client.ask("history", room="general", cursor=page["next"])
        assert [e["seq"] for e in rest["events"]] == list(range(1, 8))
        assert "gap" not in rest


async def test_promise_7_a_slow_reader_is_disconnected_and_resumes(tmp_path: Path) -> None:
    """A reader that stops reading gets 4008, memory stays bounded, others are not slowed, and it resumes exactly."""
    limits = Limits(outbox_bytes=100_000)
    dialogue = Dialogue(rooms(), store=f"sqlite:///{tmp_path / 'log.db'}", limits=limits)
    async with serve(dialogue) as address, wire(address, "a") as a, wire(address, "fast") as fast:
        for client in (a, fast):
            await client.ask("join", room="general")
        async with wire(address, "slow", max_queue=1) as slow:
            joined = await slow.ask("join", room="general")
            slow.ws.transport.pause_reading()
            text = "x" * 20_000
            sent = 0
            while dialogue.metrics.registry.get_sample_value("dialogue_connections") == 3 and sent < 2000:
                await a.trigger("general", "message", text)
                sent += 1
                session = next(
                    (s for s in dialogue.hub().connections.sessions if s.client.user_id == "slow"), None
                )
                if session is not None:
                    assert session._outbox.total_bytes <= limits.outbox_bytes + 25_000
            assert sent < 2000
            await fast.until_events(sent)
            slow.ws.transport.resume_reading()
            assert await slow.until_closed() == 4008
            seqs = [e["seq"] for e in slow.events()]
        assert seqs == list(range(1, len(seqs) + 1))
        assert len(seqs) < sent
        closes = dialogue.metrics.registry.get_sample_value("dialogue_closes_total", {"code": "4008"})
        assert closes == 1
        async with wire(address, "slow") as slow:
            since = {"seq": seqs[-1] if seqs else 0, "epoch": joined["epoch"]}
            cursor: str | None = None
            answer = await slow.ask("join", room="general", since=since)
            if answer["recovered"]:
                seqs += [e["seq"] for e in answer["events"]]
            else:  # more than replay_bytes: told so, and paged
                page = await slow.ask("history", room="general", after=since["seq"])
                seqs += [e["seq"] for e in page["events"]]
                cursor = page["next"]
                while cursor:
                    page = await slow.ask("history", room="general", cursor=cursor)
                    seqs += [e["seq"] for e in page["events"]]
                    cursor = page["next"]
        assert seqs == list(range(1, sent + 1))


async def test_promise_8_a_restart_is_invisible(tmp_path: Path) -> None:
    """After a restart join sync, seq, keys, epoch and cursors go on where they were."""
    url = f"sqlite:///{tmp_path / 'log.db'}"
    async with serve(Dialogue(rooms(), store=url)) as address, wire(address) as client:
        await client.ask("join", room="general")
        await flood(client, 12, "m")
        before = await client.ask("join", room="general")
        page = await client.ask("history", room="general", limit=4)
    async with serve(Dialogue(rooms(), store=url)) as address, wire(address) as client:
        after = await client.ask("join", room="general")
        assert {k: v for k, v in after.items() if k != "ref"} == {
            k: v for k, v in before.items() if k != "ref"
        }
        resumed = await client.ask("join", room="general", since={"seq": 9, "epoch": before["epoch"]})
        assert resumed["recovered"] is True
        assert [e["seq"] for e in resumed["events"]] == [10, 11, 12]
        rest = await client.ask("history", room="general", cursor=page["next"])
        assert [e["seq"] for e in rest["events"]] == list(range(1, 9))
        again = await client.trigger("general", "message", "m-3", key="m-3")
        assert again["duplicate"] is True
        assert again["seq"] == 4
        assert (await client.trigger("general", "message", "new"))["seq"] == 13


async def test_a_lifespan_may_be_entered_again(tmp_path: Path) -> None:
    """One Dialogue, started twice one after the other: the second life goes on."""
    dialogue = Dialogue(rooms(), store=f"sqlite:///{tmp_path / 'log.db'}")
    for expected in (1, 2):
        async with dialogue.lifespan():
            assert (await dialogue.trigger("general", "message", 1)).seq == expected


async def test_idle_rooms_sleep_and_wake_with_their_history(tmp_path: Path) -> None:
    """A durable room that nobody uses leaves memory and comes back as it was."""
    limits = Limits(idle_seconds=0.05, ping_seconds=0.2)
    dialogue = Dialogue(rooms(), store=f"sqlite:///{tmp_path / 'log.db'}", limits=limits)
    async with dialogue.lifespan():
        for n in range(8):
            await dialogue.trigger("dm:a:b", "message", n)
        await eventually(lambda: "dm:a:b" not in dialogue.hub().rooms)
        assert [e.data for e in await dialogue.room("dm:a:b").history("message")] == [7, 6, 5, 4, 3, 2, 1, 0]
        assert (await dialogue.trigger("dm:a:b", "message", 8)).seq == 9


async def test_waking_is_single_flight(tmp_path: Path) -> None:
    """Many who open a room at once read it once."""
    url = f"sqlite:///{tmp_path / 'log.db'}"
    async with Dialogue(rooms(), store=url).lifespan():
        pass
    store = FaultyStore(SQLStore(url))
    reads = 0
    original = store.inner.head

    async def head(room_id: str) -> Any:
        nonlocal reads
        reads += 1
        return await original(room_id)

    store.inner.head = head  # type: ignore[method-assign]
    dialogue = Dialogue(rooms(), store=store)
    async with dialogue.lifespan():
        opened = await asyncio.gather(*(dialogue.hub().open_rooms.open("general") for _ in range(50)))
        assert len({id(room) for room in opened}) == 1
        assert reads == 1


async def test_a_stop_closes_with_1001_after_what_was_accepted(store: FaultyStore) -> None:
    """A graceful stop appends and acks what was accepted, then says goodbye."""
    dialogue = Dialogue(rooms(), store=store)
    clients: list[Wire] = []
    async with serve(dialogue) as address:
        context = wire(address)
        client = await context.__aenter__()
        clients.append(client)
        await client.ask("join", room="general")
        store.hold()
        ref = await client.send("trigger", room="general", event="message", data=1)
        await eventually(lambda: store.waiting_appends)
        hub = dialogue.hub()
        stopping = asyncio.create_task(hub.__aexit__())
        await eventually(lambda: hub.is_stopping)
        store.release()
        assert (await client.answer(ref))["seq"] == 1
        assert await client.until_closed() == 1001
        await stopping
        await context.__aexit__(None, None, None)


async def test_frames_are_arrays_even_for_one_message() -> None:
    """A server frame is always an array of messages."""
    async with serve(Dialogue(rooms())) as address, wire(address) as client:
        await client.ws.send(json.dumps({"type": "rooms", "ref": 1}))
        await client.answer(1)
        assert all(isinstance(frame, list) for frame in client.frames)


async def test_a_full_disk_refuses_publishers_and_nothing_acked_is_lost(tmp_path: Path) -> None:
    """The database itself says that it is full: STORE_UNAVAILABLE; what was acked stays; service resumes with space."""
    store = SQLStore(f"sqlite:///{tmp_path / 'log.db'}")
    async with serve(Dialogue(rooms(), store=store)) as address, wire(address) as client:
        await client.ask("join", room="general")
        await flood(client, 10, "m")
        pages = await writer_sql(store, "PRAGMA page_count")
        await writer_sql(store, f"PRAGMA max_page_count = {pages + 3}")
        acked = 10
        with pytest.raises(Refused, match="STORE_UNAVAILABLE"):  # noqa: PT012 - which one fails is the disk's choice
            for n in range(200):
                await client.trigger("general", "message", f"{n}-" + "x" * 4000)
                acked += 1
        with pytest.raises(Refused, match="STORE_UNAVAILABLE"):
            await client.trigger("general", "message", "x" * 4000)
        assert [e["seq"] for e in await client.scroll("general", limit=100)] == list(range(1, acked + 1))
        await writer_sql(store, "PRAGMA max_page_count = 1000000")
        assert (await client.trigger("general", "message", "space again"))["seq"] == acked + 1
        assert [e["seq"] for e in client.events()] == list(range(1, acked + 2))


async def test_the_application_reads_around_a_seq(tmp_path: Path) -> None:
    """C2, C3: `page` before, after and around, one type or all, across ring and log."""
    dialogue = Dialogue(rooms(), store=f"sqlite:///{tmp_path / 'chat.db'}")
    async with dialogue.lifespan():
        for n in range(30):
            await dialogue.trigger("general", "note" if n % 3 == 0 else "message", n)
        room = dialogue.room("general")

        async def seqs(event: str | None = None, **bounds: int) -> list[int | None]:
            return [event.seq for event in await room.page(event, **bounds)]

        assert await seqs() == list(range(1, 31))
        assert await seqs(before=10, limit=4) == [6, 7, 8, 9]
        assert await seqs(after=10, limit=4) == [11, 12, 13, 14]
        assert await seqs(after=28) == [29, 30]
        assert await seqs(around=10, limit=5) == [8, 9, 10, 11, 12]
        assert await seqs(around=30, limit=4) == [29, 30]
        assert await seqs("note", after=3, limit=3) == [4, 7, 10]
        assert await seqs("note", around=13, limit=3) == [10, 13, 16]
        with pytest.raises(ValueError, match="one of"):
            await room.page(before=1, after=2)
