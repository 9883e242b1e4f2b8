"""Edits, deletions and erasures (C12), over the wire and by the application."""

from __future__ import annotations

import asyncio
import json
import sqlite3
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel, Field

from dialogue import (
    Backpressure,
    Blocked,
    ConfigError,
    Dialogue,
    DialogueClient,
    Event,
    History,
    InvalidRequest,
    Limits,
    PermissionDenied,
    RoomConfig,
    ValidationFailed,
    define_event,
)
from dialogue.errors import OutcomeUnknown, RateLimited
from dialogue.storage.base import Store
from dialogue.storage.sql import SQLStore
from dialogue.testing import FaultyStore

from .harness import Refused, Wire, eventually, rooms, serve, wire


class Text(BaseModel):
    text: str = Field(max_length=20)


post = define_event("post", schema=Text, history=History(limit=3))
note = define_event("note", history=History(limit=3))
score = define_event("score", history=History(limit=3), publish="server")


@pytest.fixture(params=["memory", "sqlite"])
def dialogue(request: pytest.FixtureRequest, tmp_path: Path) -> Dialogue:
    """Rings of three events, so that a change of the fourth last one is one of the log."""
    store = None if request.param == "memory" else f"sqlite:///{tmp_path / 'chat.db'}"
    return Dialogue(
        rooms={"general": RoomConfig(events=[post, note, score]), "other": RoomConfig(events=[post])},
        store=store,
    )


async def refused(coroutine: Any) -> str:
    """Return the code that a command is refused with."""
    with pytest.raises(Refused) as info:
        await coroutine
    code: str = info.value.code
    return code


async def posts(client: Wire, *texts: str, room: str = "general") -> list[int]:
    """Publish and return the seqs."""
    return [(await client.trigger(room, "post", {"text": text}))["seq"] for text in texts]


async def test_c12_edit_and_delete_are_seen_live_in_history_and_by_a_join(dialogue: Dialogue) -> None:
    """C12: the replacement and the tombstone reach whoever looks, whichever way."""
    async with serve(dialogue) as address, wire(address, "ann") as ann, wire(address, "bob") as bob:
        for client in (ann, bob):
            await client.ask("join", room="general", events=["post"])
        await posts(ann, "one", "two", "three")
        edited = await ann.ask("edit", room="general", seq=2, data={"text": "TWO"})
        assert (edited["seq"], edited["room"]) == (4, "general")
        deleted = await ann.ask("delete", room="general", seq=3)
        assert deleted["seq"] == 5
        live = await bob.until_events(5)
        assert [(m["event"], m["seq"], m["from"]) for m in live[3:]] == [
            ("$edit", 4, "ann"), ("$delete", 5, "ann"),
        ]  # fmt: skip
        assert live[3]["data"] == {"target_seq": 2, "event": "post", "data": {"text": "TWO"}}
        assert live[4]["data"] == {"target_seq": 3, "event": "post"}
        async with wire(address, "eve") as eve:
            joined = await eve.ask("join", room="general")
            whole = (await eve.ask("history", room="general"))["events"]
            by_name = (await eve.ask("history", room="general", event="post"))["events"]
            newer = (await eve.ask("history", room="general", after=1))["events"]
        assert [m["seq"] for m in joined["events"]] == [1, 2, 3]
        assert joined["seq"] == 5
        assert joined["events"] == by_name == whole[:3]
        assert [m["seq"] for m in whole] == [1, 2, 3, 4, 5]
        assert newer == whole[1:]
        one, two, three = by_name
        assert "edited" not in one
        assert (two["data"], two["edited"], two["from"]) == ({"text": "TWO"}, True, "ann")
        assert (three["data"], three["deleted"]) == (None, True)


async def test_c12_resume_replays_changes(dialogue: Dialogue) -> None:
    """C12: a client that was away gets the `$edit` of what it had seen, and what it had not in its new form."""
    async with serve(dialogue) as address, wire(address, "ann") as ann:
        joined = await ann.ask("join", room="general")
        await posts(ann, "one", "two")
        since = {"seq": 1, "epoch": joined["epoch"]}
        await ann.ask("edit", room="general", seq=1, data={"text": "ONE"})
        await ann.ask("edit", room="general", seq=2, data={"text": "TWO"})
        async with wire(address, "bob") as bob:
            resumed = await bob.ask("join", room="general", since=since, events=["post"])
        assert resumed["recovered"] is True
        assert [(m["seq"], m["event"]) for m in resumed["events"]] == [
            (2, "post"),
            (3, "$edit"),
            (4, "$edit"),
        ]
        assert resumed["events"][0]["data"] == {"text": "TWO"}
        assert resumed["events"][1]["data"]["data"] == {"text": "ONE"}


async def test_c12_only_the_sender_or_whom_a_hook_allows(dialogue: Dialogue) -> None:
    """C12: by the event's sender, or whoever `can_edit` allows; a hook that fails allows nothing."""
    asked: list[tuple[str, Any]] = []

    @dialogue.can_edit(post)
    def moderators(client: Any, event: Event[Any]) -> bool:
        asked.append((client.user_id, event.model.text))
        if client.user_id == "broken":
            raise RuntimeError("the hook is broken")
        return bool(client.user_id == "mod")

    async with serve(dialogue) as address, wire(address, "ann") as ann:
        await ann.ask("join", room="general")
        await posts(ann, "mine")
        await ann.trigger("general", "note", "n")
        for user, code in (("eve", "PERMISSION_DENIED"), ("broken", "INTERNAL")):
            async with wire(address, user) as client:
                await client.ask("join", room="general")
                assert await refused(client.ask("delete", room="general", seq=1)) == code
        async with wire(address, "mod") as mod:
            assert await refused(mod.ask("edit", room="general", seq=1, data={})) == "NOT_JOINED"
            await mod.ask("join", room="general")
            # The hook is for posts only.
            assert await refused(mod.ask("delete", room="general", seq=2)) == "PERMISSION_DENIED"
            await mod.ask("edit", room="general", seq=1, data={"text": "moderated"})
        page = (await ann.ask("history", room="general", event="post"))["events"]
        assert (page[0]["data"], page[0]["from"]) == ({"text": "moderated"}, "ann")
        assert [m["from"] for m in await ann.until_events(1, event="$edit")] == ["mod"]
    assert asked == [("eve", "mine"), ("broken", "mine"), ("mod", "mine")]


async def test_c12_bad_changes_are_refused_and_change_nothing(dialogue: Dialogue) -> None:
    """Each has its code; the room goes on as before."""

    @dialogue.before_each(post)
    def clean(event: Event[Any]) -> Event[Any] | None:
        if event.data["text"] == "spam":
            assert event.is_edited
            raise Blocked("no spam")
        return event.replace(data={"text": event.data["text"].strip()})

    async with serve(dialogue) as address, wire(address, "ann") as ann:
        await ann.ask("join", room="general")
        await posts(ann, "one", "two")
        await ann.ask("delete", room="general", seq=2, key="gone")

        def edit(seq: int, data: Any) -> Any:
            return ann.ask("edit", room="general", seq=seq, data=data)

        assert await refused(edit(1, {"text": "x" * 21})) == "VALIDATION_FAILED"
        assert await refused(edit(1, None)) == "VALIDATION_FAILED"
        assert await refused(edit(1, {"text": "spam"})) == "BLOCKED"
        for seq in (0, -1, 99, 2**53, 2, 3):
            assert await refused(edit(seq, {"text": "x"})) == "INVALID_REQUEST"
            assert await refused(ann.ask("delete", room="general", seq=seq)) == "INVALID_REQUEST"
        assert await refused(ann.ask("edit", room="general", seq="one")) == "INVALID_REQUEST"
        assert await refused(ann.ask("edit", room="nowhere", seq=1, data={})) == "ROOM_NOT_FOUND"
        assert await refused(ann.trigger("general", "$edit", {"target_seq": 1})) == "EVENT_NOT_ALLOWED"
        with pytest.raises(Exception, match="declares no event"):
            await dialogue.trigger("general", "$delete", {"target_seq": 1})
        again = await ann.ask("delete", room="general", seq=2, key="gone")
        assert (again["seq"], again["duplicate"]) == (3, True)
        ok = await edit(1, {"text": " spaced "})
        assert ok["seq"] == 4
        page = (await ann.ask("history", room="general"))["events"]
        assert page[0]["data"] == {"text": "spaced"}
        assert len(page) == 4


async def test_c12_changes_survive_a_restart_and_say_nothing_of_what_was(tmp_path: Path) -> None:
    """After edits and a deletion the database file's rows hold nothing of the earlier texts."""
    path = tmp_path / "chat.db"

    def make() -> Dialogue:
        return Dialogue(rooms={"general": RoomConfig(events=[post])}, store=f"sqlite:///{path}")

    async with serve(make()) as address, wire(address, "ann") as ann:
        await ann.ask("join", room="general")
        await posts(ann, "secret1", "b", "c", "d", "secret2")
        await ann.ask("edit", room="general", seq=1, data={"text": "secret3"})
        await ann.ask("edit", room="general", seq=1, data={"text": "fine"})
        await ann.ask("edit", room="general", seq=5, data={"text": "secret4"})
        await ann.ask("delete", room="general", seq=5)
        before = await ann.scroll("general")
    assert b"secret" not in b"".join(str(message).encode() for message in before)
    async with serve(make()) as address, wire(address, "ann") as ann:
        joined = await ann.ask("join", room="general", sync=9)
        assert [(m["seq"], m["data"]) for m in joined["events"] if m["seq"] in (1, 5)] == [
            (1, {"text": "fine"}), (5, None),
        ]  # fmt: skip
        assert await ann.scroll("general") == before
    with sqlite3.connect(path) as database:
        rows = database.execute("SELECT event_data, meta, key FROM dialogue_events").fetchall()
    database.close()
    assert "secret" not in str(rows)


async def test_c12_edits_of_one_group_leave_nothing_of_what_was_in_memory(dialogue: Dialogue) -> None:
    """Changes of one event that are recorded together: the ring holds what the log holds."""
    async with serve(dialogue) as address, wire(address, "ann") as ann:
        await ann.ask("join", room="general")
        await posts(ann, "secret1")
        texts = ["secret2", "secret3", "fine"]
        commands: list[dict[str, Any]] = [
            {"type": "edit", "ref": f"e{n}", "room": "general", "seq": 1, "data": {"text": text}}
            for n, text in enumerate(texts)
        ]
        await ann.send_raw(json.dumps(commands))
        for command in commands:
            await ann.answer(command["ref"])
        page = (await ann.ask("history", room="general"))["events"]
        assert [m["seq"] for m in page] == [1, 2, 3, 4]
        assert page[0]["data"] == page[3]["data"]["data"] == {"text": "fine"}
        assert "secret" not in str(page)


async def test_c12_a_retry_gets_the_first_ack_whatever_has_happened_since(dialogue: Dialogue) -> None:
    """Promise 3: a known key is looked up before a hook's refusal, or that of a deleted event, is sent."""
    is_closed = False

    @dialogue.before_each
    def check(event: Event[Any]) -> None:
        if is_closed:
            raise RateLimited("no more today")

    @dialogue.can_edit
    def moderators() -> bool:
        return not is_closed

    async with serve(dialogue) as address, wire(address, "ann") as ann, wire(address, "mod") as mod:
        for client in (ann, mod):
            await client.ask("join", room="general")
        post_fields = {"room": "general", "event": "post", "data": {"text": "a"}, "key": "k0"}
        edit = {"room": "general", "seq": 1, "data": {"text": "b"}}
        asked: list[tuple[Wire, str, dict[str, Any]]] = [
            (ann, "trigger", post_fields),
            (ann, "edit", edit | {"key": "k1"}),
            (mod, "edit", edit | {"key": "k2"}),
        ]
        first = [await client.ask(type, **fields) for client, type, fields in asked]
        is_closed = True
        again = [await client.ask(type, **fields) for client, type, fields in asked]
        assert [m["seq"] for m in again] == [m["seq"] for m in first] == [1, 2, 3]
        assert all(m["duplicate"] for m in again)
        assert await refused(ann.ask("edit", **edit, key="new")) == "RATE_LIMITED"
        assert await refused(mod.ask("edit", **edit, key="new")) == "PERMISSION_DENIED"
        assert await refused(mod.ask("edit", **edit)) == "PERMISSION_DENIED"
        await ann.ask("delete", room="general", seq=1)
        again = [await client.ask(type, **fields) for client, type, fields in asked[1:]]
        assert [m["seq"] for m in again] == [2, 3]


async def test_what_only_the_server_publishes_is_not_for_its_sender_to_edit(dialogue: Dialogue) -> None:
    """An event of a `publish="server"` type that is in a client's name is changed by whom `can_edit` allows."""

    @dialogue.can_edit(score)
    def referees(client: Any) -> bool:
        return bool(client.user_id == "referee")

    async with serve(dialogue) as address, wire(address, "ann") as ann, wire(address, "referee") as referee:
        for client in (ann, referee):
            await client.ask("join", room="general")
        await dialogue.trigger("general", score, 1, sender="ann")
        assert await refused(ann.ask("edit", room="general", seq=1, data=1000)) == "PERMISSION_DENIED"
        assert await refused(ann.ask("delete", room="general", seq=1)) == "PERMISSION_DENIED"
        await referee.ask("edit", room="general", seq=1, data=2)
        assert (await ann.ask("history", room="general", event="score"))["events"][0]["data"] == 2


async def test_changes_come_with_every_subscription_but_an_empty_one(dialogue: Dialogue) -> None:
    """Who gets an event is told what became of it, whichever way the subscription was made."""
    subscriptions: list[list[tuple[str, Any]]] = [
        [("join", "*"), ("unsubscribe", ["$edit"])],
        [("join", ["post"]), ("unsubscribe", ["$edit"])],
        [("join", ["note"])],
        [("join", ["$delete"])],
    ]
    async with serve(dialogue) as address, wire(address, "ann") as ann, AsyncExitStack() as stack:
        await ann.ask("join", room="general")
        clients = []
        for steps in subscriptions:
            clients.append(await stack.enter_async_context(wire(address, "bob")))
            for command, events in steps:
                await clients[-1].ask(command, room="general", events=events)
        empty = await stack.enter_async_context(wire(address, "eve"))
        await empty.ask("join", room="general", events=[])
        await posts(ann, "one")
        await ann.ask("edit", room="general", seq=1, data={"text": "ONE"})
        for client in clients:
            await client.until_events(1, event="$edit")
        await empty.ask("rooms")
        assert not empty.events()


async def test_an_edit_from_inside_of_before_each_is_refused(dialogue: Dialogue) -> None:
    """It would ask the hook again, which would edit again; the error says what to do instead."""
    errors: list[str] = []

    @dialogue.before_each
    async def censor(event: Event[Any]) -> None:
        if event.data["text"] == "two":
            with pytest.raises(RuntimeError) as info:
                await dialogue.edit("general", 1, {"text": "censored"})
            errors.append(str(info.value))

    async with dialogue.lifespan():
        await dialogue.trigger("general", post, {"text": "one"})
        await dialogue.trigger("general", post, {"text": "two"})
        assert "trigger from after_each" in errors[0]
        assert [event.data["text"] for event in await dialogue.room("general").page(post)] == ["one", "two"]


async def test_can_edit_may_say_why_not(dialogue: Dialogue) -> None:
    """A refusal that the hook raises is the answer; INTERNAL would ask the client to try again."""

    @dialogue.can_edit
    def nobody() -> None:
        raise PermissionDenied("not after an hour")

    async with serve(dialogue) as address, wire(address, "ann") as ann, wire(address, "bob") as bob:
        for client in (ann, bob):
            await client.ask("join", room="general")
        await posts(ann, "a")
        with pytest.raises(Refused, match="PERMISSION_DENIED: not after an hour"):
            await bob.ask("delete", room="general", seq=1)


@pytest.mark.parametrize("user_id", ["system", "$erased"])
async def test_c12_the_servers_own_names_are_not_erased(dialogue: Dialogue, user_id: str) -> None:
    """An erasure is itself from the one and leaves events of the other: it would never end. No client has them."""
    async with serve(dialogue) as address:
        await dialogue.trigger("general", post, {"text": "a"}, sender="ann")
        assert await dialogue.erase_user("ann") == 1
        with pytest.raises(ValidationFailed):
            await dialogue.erase_user(user_id)
        async with wire(address, None) as client:
            assert await refused(client.ask("connect", auth={"user_id": user_id})) == "VALIDATION_FAILED"


async def test_c12_a_change_whose_outcome_is_unknown_is_settled(tmp_path: Path) -> None:
    """The ring shows the new form also when the append's answer never came."""
    store = FaultyStore(SQLStore(f"sqlite:///{tmp_path / 'chat.db'}"))
    dialogue = Dialogue(rooms={"general": RoomConfig(events=[post])}, store=store)
    async with serve(dialogue) as address, wire(address, "ann") as ann:
        await ann.ask("join", room="general")
        await posts(ann, "one")
        store.fail_after_append = OutcomeUnknown()
        answer = await ann.ask("edit", room="general", seq=1, data={"text": "ONE"})
        assert answer["seq"] == 2
        page = (await ann.ask("history", room="general"))["events"]
        assert page[0]["data"] == {"text": "ONE"}


class SlowStore(FaultyStore):
    """Answers reads of a stream with what it has found before `gate` was opened."""

    def __init__(self, inner: Store) -> None:
        super().__init__(inner)
        self.gate = asyncio.Event()
        self.reading = asyncio.Event()

    async def stream_page(self, room_id: str, event_name: str, **bounds: Any) -> Any:
        found = await super().stream_page(room_id, event_name, **bounds)
        if bounds["before_position"] > 1:
            self.reading.set()
            await self.gate.wait()
        return found


async def test_c12_a_page_read_before_a_change_does_not_bring_the_old_form_back(tmp_path: Path) -> None:
    """A read that waits for the log while the change is told is answered with the new form."""
    store = SlowStore(SQLStore(f"sqlite:///{tmp_path / 'chat.db'}"))
    dialogue = Dialogue(rooms={"general": RoomConfig(events=[post], sync_history_on_join=False)}, store=store)
    async with serve(dialogue) as address, wire(address, "ann") as ann:
        await ann.ask("join", room="general")
        await posts(ann, "one", "two", "three", "four", "five")
        ref = await ann.send("history", room="general", before=3)
        await store.reading.wait()
        await ann.ask("edit", room="general", seq=1, data={"text": "ONE"})
        await ann.until_events(1, event="$edit")
        store.gate.set()
        page = await ann.answer(ref)
        assert [m["data"]["text"] for m in page["events"]] == ["ONE", "two"]


async def test_c12_nor_does_a_read_of_the_application(tmp_path: Path) -> None:
    """`history` and `page` of a `RoomHandle` too are answered with the form of their end."""
    store = SlowStore(SQLStore(f"sqlite:///{tmp_path / 'chat.db'}"))
    dialogue = Dialogue(rooms={"general": RoomConfig(events=[post])}, store=store)
    async with dialogue.lifespan():
        for text in ("one", "two", "three", "four", "five"):
            await dialogue.trigger("general", post, {"text": text})
        room = dialogue.room("general")
        reads = [
            asyncio.create_task(read)
            for read in (
                room.history(post, 3, 5),
                room.page(post, before=3),
                room.page(post, around=2, limit=4),
            )
        ]
        await store.reading.wait()
        await room.edit(1, {"text": "ONE"})
        store.gate.set()
        shown = [[event.data["text"] for event in await read] for read in reads]
        assert shown == [["two", "ONE"], ["ONE", "two"], ["ONE", "two", "three", "four"]]


async def test_c12_the_application_changes_and_its_own_copies_follow(tmp_path: Path) -> None:
    """`dialogue.edit` and `delete`; what was handed over is told to `on_cleanup` by `$edit` and `$delete`, at once."""
    dialogue = Dialogue(
        rooms={"general": RoomConfig(events=[post])}, store=f"sqlite:///{tmp_path / 'chat.db'}"
    )
    copies: dict[int, Any] = {}

    @dialogue.on_cleanup
    async def keep(event_name: str, events: list[Event[Any]]) -> None:
        for event in events:
            if event_name == "$edit":
                copies[event.data["target_seq"]] = event.data.get("data", "void")
            elif event_name == "$delete":
                copies[event.data["target_seq"]] = None
            else:
                assert event.seq is not None
                copies[event.seq] = event.data

    async with dialogue.lifespan():
        room = dialogue.room("general")
        for text in "abcdef":
            await room.trigger(post, {"text": text})
        await eventually(lambda: len(copies) == 3)
        ack = await room.edit(1, Text(text="A"), sender="mod")
        assert ack.seq == 7
        await dialogue.delete("general", 2)
        await room.edit(6, {"text": "F"})
        told = {1: {"text": "A"}, 2: None, 3: {"text": "c"}, 6: {"text": "F"}}
        await eventually(lambda: copies == told)
        assert [event.data for event in await room.page(post)] == [
            {"text": "A"}, None, {"text": "c"}, {"text": "d"}, {"text": "e"}, {"text": "F"},
        ]  # fmt: skip
        with pytest.raises(InvalidRequest):
            await room.delete(2)


async def test_c12_changes_of_one_group_leave_nothing_of_the_first(dialogue: Dialogue) -> None:
    """An edit that is void by the end of its own group is so in memory as well: what it said is gone."""
    async with serve(dialogue):
        room = dialogue.room("general")
        await room.trigger(post, {"text": "one"})
        changes = [room.edit(1, {"text": "secret"}), room.edit(1, {"text": "other"}), room.delete(1)]
        assert [ack.seq for ack in await asyncio.gather(*changes)] == [2, 3, 4]
        newest = await room.page(limit=9)
        newer = await room.page(after=0, limit=9)
        for events in (newest, newer):
            assert [event.data for event in events] == [
                None,
                {"target_seq": 1, "event": "post"},
                {"target_seq": 1, "event": "post"},
                {"target_seq": 1, "event": "post"},
            ]


async def test_c12_erase_user(dialogue: Dialogue) -> None:
    """C12: everything a user has sent is blanked, in all rooms, awake or not, and those there are told."""
    async with serve(dialogue) as address, wire(address, "ann") as ann, wire(address, "bob") as bob:
        for client in (ann, bob):
            await client.ask("join", room="general")
        await ann.ask("join", room="other")
        await posts(ann, "a1", "a2", "a3")
        await posts(bob, "b1", "b2")
        await posts(ann, "a4", room="other")
        await ann.trigger("general", "post", {"text": "a5"}, key="mine", meta={"ip": "a"})
        await ann.ask("delete", room="general", seq=6)
        in_log = 6 if dialogue.store.is_durable else 3
        assert await dialogue.erase_user("ann") == in_log
        assert await dialogue.erase_user("ann") == 0
        whole = (await bob.ask("history", room="general"))["events"]
        assert {m["from"] for m in whole} == {"bob", "$erased", "system"}
        assert not [
            m for m in whole if m["event"] == "post" and m["from"] == "$erased" and m["data"] is not None
        ]
        assert [m["data"]["text"] for m in whole if m["from"] == "bob" and m["data"]] == ["b1", "b2"]
        told = [m["data"]["target_seq"] for m in await bob.until_events(1, event="$delete")]
        assert 6 in told
        # What she sends later is hers again.
        assert (await ann.trigger("general", "post", {"text": "new"}, key="mine")).get("duplicate") is None


async def test_c12_erasures_at_once_tell_of_each_event_once(dialogue: Dialogue) -> None:
    """The second finds nothing left to erase."""
    async with dialogue.lifespan():
        for text in "abc":
            await dialogue.trigger("general", post, {"text": text}, sender="ann")
        erased = await asyncio.gather(*(dialogue.erase_user("ann") for _ in range(3)))
        assert sorted(erased) == [0, 0, 3]
        assert (await dialogue.room("general").page())[-1].seq == 6


async def test_c12_an_erasure_takes_what_the_queue_takes(tmp_path: Path) -> None:
    """More events than may wait for the store, in several rooms, are erased by one call."""
    dialogue = Dialogue(
        rooms={name: RoomConfig(events=[post]) for name in ("a", "b")},
        store=f"sqlite:///{tmp_path / 'chat.db'}",
        limits=Limits(append_queue_events=4),
    )
    async with dialogue.lifespan():
        for n in range(20):
            await dialogue.trigger("ab"[n % 2], post, {"text": str(n)}, sender="ann")
        assert await dialogue.erase_user("ann") == 20
        for name in "ab":
            assert {event.sender for event in await dialogue.room(name).page(post)} == {"$erased"}


async def test_c12_an_erasure_stays_within_the_bound_of_what_waits_for_on_cleanup() -> None:
    """Promise 6: with memory and an archive that does not take anything, an erasure is refused like a publish."""
    dialogue = Dialogue(rooms={"general": RoomConfig(events=[post])}, limits=Limits(handover_queue_events=20))
    may_return = asyncio.Event()

    @dialogue.on_cleanup
    async def keep(events: list[Event[Any]]) -> None:
        await may_return.wait()

    @dialogue.on_erase
    async def erase(user_id: str) -> None: ...

    async with dialogue.lifespan():
        for n in range(18):
            await dialogue.trigger("general", post, {"text": str(n)}, sender="ann")
        with pytest.raises(Backpressure):
            await dialogue.erase_user("ann")
        assert dialogue.health()["archive"]["waiting_events"] <= 20
        may_return.set()
        while True:
            try:
                await dialogue.erase_user("ann")
            except Backpressure:
                await asyncio.sleep(0.005)
            else:
                break
        assert {event.sender for event in await dialogue.room("general").page(post)} == {"$erased"}


async def test_c12_erase_user_reaches_the_archive(tmp_path: Path) -> None:
    """`on_erase` is called after hand-overs in flight; without it nothing is erased."""

    def make() -> Dialogue:
        return Dialogue(
            rooms={"general": RoomConfig(events=[post])}, store=f"sqlite:///{tmp_path / 'chat.db'}"
        )

    first = make()
    first.on_cleanup(lambda events: None)
    async with first.lifespan():
        await first.trigger("general", post, {"text": "mine"}, sender="ann")
        with pytest.raises(ConfigError, match="on_erase"):
            await first.erase_user("ann")
        assert [event.sender for event in await first.room("general").page()] == ["ann"]

    dialogue = make()
    may_return = asyncio.Event()
    calls: list[str] = []

    @dialogue.on_cleanup
    async def keep(event_name: str, events: list[Event[Any]]) -> None:
        calls.append(f"begin {event_name} {[event.sender for event in events]}")
        await may_return.wait()
        calls.append("end")

    @dialogue.on_erase
    async def erase(user_id: str) -> None:
        calls.append(f"erase {user_id}")

    async with dialogue.lifespan():
        for text in "bcd":
            await dialogue.trigger("general", post, {"text": text}, sender="bob")
        await eventually(lambda: calls)
        erasing = asyncio.create_task(dialogue.erase_user("ann"))
        room = dialogue.room("general")
        while (await room.page(post))[0].sender != "$erased":
            await asyncio.sleep(0.005)
        assert calls == ["begin post ['ann']"]
        assert not erasing.done()
        may_return.set()
        assert await erasing == 1
        assert calls.index("erase ann") > calls.index("end")


async def test_c12_the_python_client_edits_and_its_timeline_follows(tmp_path: Path) -> None:
    """`room.edit` and `room.delete`; another client's list shows what became of the events, with a void edit too."""
    dialogue = Dialogue(
        rooms={"general": RoomConfig(events=[post])}, store=f"sqlite:///{tmp_path / 'chat.db'}"
    )
    async with (
        serve(dialogue) as address,
        DialogueClient(f"http://{address}", auth={"user_id": "ann"}) as ann,
        DialogueClient(f"http://{address}", auth={"user_id": "bob"}) as bob,
    ):
        room = await ann.join("general")
        shown = (await bob.join("general")).timeline("post")
        for text in "abcde":
            await room.trigger(post, Text(text=text))
        assert (await room.edit(1, {"text": "A"})).seq == 6
        ack = await room.edit(1, Text(text="AA"), event=post, key="once")
        again = await room.edit(1, Text(text="AA"), event=post, key="once")
        assert (again.seq, again.is_duplicate) == (ack.seq, True)
        await room.delete(5)
        with pytest.raises(PermissionDenied):
            await (await bob.join("general")).delete(2)
        await eventually(lambda: len(shown.entries) == 5 and shown.entries[-1].is_deleted)
        assert [event.data and event.data["text"] for event in shown.entries] == ["AA", "b", "c", "d", None]
        assert shown.entries[0].is_edited
        page = await room.page(after=0, limit=20)
        assert [event.seq for event in page.events] == list(range(1, 9))


def test_can_edit_is_checked_when_registered() -> None:
    """A hook that asks for what there is not is refused at once."""
    with pytest.raises(ConfigError, match="can_edit"):
        Dialogue(rooms(), limits=Limits()).can_edit(lambda room: True)
