"""Edits, deletions and erasures (C12), over the wire and by the application."""

from __future__ import annotations

import asyncio
import sqlite3
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel, Field

from dialogue import (
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
    define_event,
)
from dialogue.errors import OutcomeUnknown
from dialogue.storage.sql import SQLStore
from dialogue.testing import FaultyStore

from .harness import Refused, Wire, eventually, rooms, serve, wire


class Text(BaseModel):
    text: str = Field(max_length=20)


post = define_event("post", schema=Text, history=History(limit=3))
note = define_event("note", history=History(limit=3))


@pytest.fixture(params=["memory", "sqlite"])
def dialogue(request: pytest.FixtureRequest, tmp_path: Path) -> Dialogue:
    """Rings of three events, so that a change of the fourth last one is one of the log."""
    store = None if request.param == "memory" else f"sqlite:///{tmp_path / 'chat.db'}"
    return Dialogue(
        rooms={"general": RoomConfig(events=[post, note]), "other": RoomConfig(events=[post])}, store=store
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


async def test_c12_a_page_read_before_a_change_does_not_bring_the_old_form_back(tmp_path: Path) -> None:
    """A read that waits for the log while the change is told is answered with the new form."""

    class SlowStore(FaultyStore):
        gate = asyncio.Event()
        reading = asyncio.Event()

        async def stream_page(self, room_id: str, event_name: str, **bounds: Any) -> Any:
            found = await super().stream_page(room_id, event_name, **bounds)
            if bounds["before_position"] > 1:
                self.reading.set()
                await self.gate.wait()
            return found

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


@pytest.mark.parametrize("user_id", ["system", "$erased"])
async def test_c12_an_erasure_ends_whoever_is_erased(dialogue: Dialogue, user_id: str) -> None:
    """What tells of an erasure is never erased by it: not the server's own sender, nor who is erased already."""
    async with dialogue.lifespan():
        for sender in ("system", "ann"):
            await dialogue.trigger("general", post, {"text": "mine"}, sender=sender)
        assert await dialogue.erase_user("ann") == 1
        # The server's own post, and the line that told of ann.
        assert await dialogue.erase_user(user_id) == (2 if user_id == "system" else 0)
        assert await dialogue.erase_user(user_id) == 0
