"""Rooms that are deleted, and made again, while others are at work in them; and who is counted in a room."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from dialogue import (
    Client,
    ConfigError,
    Dialogue,
    History,
    JoinDenied,
    Limits,
    MemoryStore,
    RoomConfig,
    SQLStore,
    StoreUnavailable,
    Unauthenticated,
    ValidationFailed,
    define_event,
)
from dialogue.testing import FaultyStore

from .harness import Refused, Wire, eventually, message, note, rooms, serve, wire


def _told(client: Wire, how: str, user_id: str) -> bool:
    """Whether a change of presence has told that a user has ``joined`` or ``left``."""
    return any(user_id in told.get(how, ()) for told in client.messages if told["type"] == "presence")


def _running(dialogue: Dialogue, name: str) -> int:
    return sum(task.get_name() == name for task in dialogue.hub().tasks)


async def test_who_was_told_of_a_change_before_it_was_sent_is_told_that_it_was_undone() -> None:
    """A snapshot between coming and going has what the others are never told; who got it is told of the end."""
    dialogue = Dialogue(rooms(), limits=Limits(presence_seconds=1))
    async with serve(dialogue) as address, wire(address, "bob") as bob, wire(address, "ann") as ann:
        await bob.ask("join", room="general")
        await ann.ask("join", room="general")
        assert (await bob.ask("presence", room="general"))["users"] == ["bob", "ann"]
        await ann.ask("leave", room="general")
        await bob.until(lambda: _told(bob, "left", "ann"))
        assert (await bob.ask("presence", room="general"))["users"] == ["bob"]

        await ann.ask("join", room="general")
        await bob.until(lambda: _told(bob, "joined", "ann"))
        bob.messages.clear()
        await ann.ask("leave", room="general")
        assert (await bob.ask("presence", room="general"))["users"] == ["bob"]
        await ann.ask("join", room="general")
        await bob.until(lambda: _told(bob, "joined", "ann"))


async def test_who_was_in_a_deleted_room_comes_into_the_next_one_as_anyone() -> None:
    """What was to be told of a deleted room does not keep back who comes into another one of its id."""
    dialogue = Dialogue(rooms(), limits=Limits(presence_seconds=1))
    async with serve(dialogue) as address, wire(address, "bob") as bob, wire(address, "ann") as ann:
        await ann.ask("join", room="dm:x:y")
        await ann.until(lambda: _told(ann, "joined", "ann"))
        await dialogue.delete_room("dm:x:y")
        await bob.ask("join", room="dm:x:y")
        await ann.ask("join", room="dm:x:y")
        await bob.until(lambda: _told(bob, "joined", "ann"))


async def test_a_connection_of_a_room_that_was_read_again_is_not_counted_out_of_it() -> None:
    """When a room is dropped from memory with its connections, their ends leave the room of now as it is."""
    dialogue = Dialogue(rooms())
    async with serve(dialogue) as address, wire(address, "ann") as before, wire(address, "ann") as now:
        await before.ask("join", room="general")
        hub = dialogue.hub()
        hub.open_rooms.reset("general")  # as after a fault in the store
        await now.ask("join", room="general")
        await before.aclose()
        await eventually(lambda: len(hub.connections.sessions) == 1)
        assert hub.rooms["general"].users == {"ann": 1}


async def test_nobody_is_put_into_a_room_before_it_is_known_who_it_is() -> None:
    """A hook of a new connection cannot put it into a room: guards would be asked of, and it counted as, nobody."""
    dialogue = Dialogue(rooms())
    raised: list[Exception] = []

    @dialogue.on_socket_connect
    async def enter(client: Client) -> None:
        try:
            await client.join("general")
        except Exception as error:
            raised.append(error)

    async with serve(dialogue) as address, wire(address, "ann") as ann:
        assert isinstance(raised[0], Unauthenticated)
        await ann.ask("join", room="general")
        assert (await ann.ask("presence", room="general"))["users"] == ["ann"]


async def test_a_deletion_that_waited_does_not_delete_the_next_room_of_somebody_else() -> None:
    """Whose room it is is looked at in the deletion's turn, not when it was asked for."""
    store = FaultyStore(MemoryStore())
    dialogue = Dialogue({}, client_rooms=RoomConfig(events=[message]), store=store)
    async with (
        serve(dialogue) as address,
        wire(address, "ann") as ann,
        wire(address, "ann") as again,
        wire(address, "bob") as bob,
    ):
        await ann.ask("create_room", room="r", name="Ann's")
        await ann.ask("join", room="r")
        store.hold()
        await ann.send("trigger", room="r", event="message", data=1)
        await eventually(lambda: store.waiting_appends)
        first = await ann.send("delete_room", room="r")
        await eventually(lambda: _running(dialogue, "dialogue-delete-room") == 1)
        made = await bob.send("create_room", room="r", name="Bob's")
        await eventually(lambda: _running(dialogue, "dialogue-create-room") == 1)
        second = await again.send("delete_room", room="r")
        await eventually(lambda: _running(dialogue, "dialogue-delete-room") == 2)
        store.release()
        await ann.answer(first)
        await bob.answer(made)
        with pytest.raises(Refused) as refused:
            await again.answer(second)
        assert refused.value.code == "PERMISSION_DENIED"
        assert dialogue.room("r").created_by_id == "bob"


async def test_a_join_that_was_let_into_a_deleted_room_does_not_end_in_the_next_one() -> None:
    """A guard's answer is for the room that it was asked of, not for one that is made under its id meanwhile."""
    dialogue = Dialogue({}, client_rooms=RoomConfig(events=[message]))
    asked, may_answer = asyncio.Event(), asyncio.Event()

    @dialogue.before_join
    async def only_the_maker(client: Client, room: Any) -> None:
        is_made_by = room.created_by_id == client.user_id
        asked.set()
        await may_answer.wait()
        if not is_made_by:
            raise JoinDenied

    async with serve(dialogue) as address, wire(address, "ann") as ann:
        await dialogue.create_room("r", created_by_id="ann")
        ref = await ann.send("join", room="r")
        await asked.wait()
        await dialogue.delete_room("r")
        await dialogue.create_room("r", created_by_id="bob")
        may_answer.set()
        with pytest.raises(Refused) as refused:
            await ann.answer(ref)
        assert refused.value.code == "JOIN_DENIED"
        assert dialogue.room("r").size == 0


async def test_a_room_that_is_being_deleted_is_not_joined() -> None:
    """Also where it is in memory: who came in would be shown a history that is being removed."""
    store = FaultyStore(MemoryStore())
    dialogue = Dialogue(rooms(), store=store)
    async with serve(dialogue) as address, wire(address, "ann") as ann:
        await dialogue.trigger("dm:x:y", "message", 1)
        store.hold()
        publishing = asyncio.create_task(dialogue.trigger("dm:x:y", "message", 2))
        await eventually(lambda: store.waiting_appends)
        deleting = asyncio.create_task(dialogue.delete_room("dm:x:y"))
        await eventually(lambda: dialogue.hub().registry.deleting)
        with pytest.raises(Refused) as refused:
            await ann.ask("join", room="dm:x:y")
        assert refused.value.code == "BACKPRESSURE"
        store.release()
        await asyncio.gather(publishing, deleting)
        assert (await ann.ask("join", room="dm:x:y"))["events"] == []


async def test_what_a_failed_deletion_has_removed_is_gone_from_memory_too() -> None:
    """A deletion that the store breaks off leaves a room in which memory and log tell the same."""
    store = FaultyStore(MemoryStore())
    dialogue = Dialogue(rooms(), store=store)
    async with serve(dialogue) as address, wire(address, "ann") as ann:
        await ann.ask("join", room="dm:x:y")
        for number in range(3):
            await ann.trigger("dm:x:y", "message", number)
        store.fail_directory = StoreUnavailable()
        with pytest.raises(StoreUnavailable):
            await dialogue.delete_room("dm:x:y")
        store.fail_directory = None
        assert not (await store.page("dm:x:y", limit=10)).events
        assert (await ann.ask("history", room="dm:x:y"))["events"] == []
        assert (await ann.trigger("dm:x:y", "message", "goes on"))["seq"] == 4


async def test_what_is_no_longer_declared_is_handed_over_before_its_room_is_deleted(tmp_path: Path) -> None:
    """A deletion takes everything out of the log, so the archive gets all of it before."""
    url = f"sqlite:///{tmp_path / 'log.db'}"
    earlier = Dialogue(rooms(), store=SQLStore(url))
    async with earlier.lifespan():
        await earlier.trigger("dm:x:y", message, "kept")
        await earlier.trigger("dm:x:y", note, "of a type that is given up")
    dialogue = Dialogue({"dm:{a}:{b}": RoomConfig(events=[message])}, store=SQLStore(url))
    handed: dict[str, list[Any]] = {}

    @dialogue.on_cleanup
    async def keep(event_name: str, events: list[Any]) -> None:
        handed.setdefault(event_name, []).extend(event.data for event in events)

    async with dialogue.lifespan():
        await dialogue.delete_room("dm:x:y")
    assert handed == {"message": ["kept"], "note": ["of a type that is given up"]}


async def test_a_hook_that_waited_for_something_cancelled_is_a_hook_that_failed(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """It ends neither the connection nor what tells of later events, and a guard that ends so lets nobody in."""
    recorded = define_event("message", history=History(limit=5))
    dialogue = Dialogue({"general": RoomConfig(events=[recorded]), "guarded": RoomConfig(events=[recorded])})
    heard: list[Any] = []

    async def cancelled() -> None:
        future = asyncio.get_running_loop().create_future()
        future.cancel()
        await future

    dialogue.on_joined(cancelled)
    dialogue.before_join("guarded")(cancelled)

    @dialogue.after_each
    async def hear(event: Any) -> None:
        heard.append(event.data)
        if event.data == 1:
            await cancelled()

    async with serve(dialogue) as address, wire(address, "ann") as ann:
        await ann.ask("join", room="general")
        await ann.trigger("general", "message", 1)
        await ann.trigger("general", "message", 2)
        await eventually(lambda: heard == [1, 2])
        with pytest.raises(Refused) as refused:
            await ann.ask("join", room="guarded")
        assert refused.value.code == "INTERNAL"
    assert "hook on_joined failed" in caplog.text


async def test_who_waits_for_a_deletion_that_a_stop_ends_is_told_so() -> None:
    """It raises `StoreUnavailable`; a cancellation would pass for the waiting task's own."""
    dialogue = Dialogue(rooms(), limits=Limits(stop_timeout_seconds=0.2))

    @dialogue.on_cleanup
    async def hang() -> None:
        await asyncio.Event().wait()

    async with dialogue.lifespan():
        await dialogue.trigger("dm:x:y", "message", 1)
        deleting = asyncio.create_task(dialogue.delete_room("dm:x:y"))
        await eventually(lambda: dialogue.hub().registry.deleting)
    with pytest.raises(StoreUnavailable, match="stopping"):
        await deleting


async def test_a_publish_function_that_turns_out_to_be_async_allows_nothing() -> None:
    """What it returns is no answer: a coroutine counts as true, and would let everyone publish."""

    class Asked:
        async def __call__(self, client: Client) -> bool:
            return False

    async def never(client: Client) -> bool:
        return False

    events = [
        define_event("lambda", publish=lambda client: never(client)),  # type: ignore[arg-type, return-value]
    ]
    with pytest.raises(ConfigError, match="async"):
        define_event("object", publish=Asked())  # type: ignore[arg-type]
    async with (
        serve(Dialogue({"general": RoomConfig(events=events)})) as address,
        wire(address, "ann") as ann,
    ):
        await ann.ask("join", room="general")
        with pytest.raises(Refused) as refused:
            await ann.trigger("general", "lambda", 1)
        assert refused.value.code == "INTERNAL"


async def test_a_start_that_is_cancelled_leaves_nothing_running(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the store was asked for then: the program goes on, and may start again."""
    store = MemoryStore()
    dialogue = Dialogue(rooms(), store=store)
    is_asked = asyncio.Event()

    async def hang() -> int:
        is_asked.set()
        await asyncio.Event().wait()
        return 0

    async def start() -> None:
        async with dialogue.lifespan():
            pass

    before = asyncio.all_tasks()
    with monkeypatch.context() as patch:
        patch.setattr(store.directory, "end_sessions", hang)
        starting = asyncio.create_task(start())
        await is_asked.wait()
        starting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await starting
    assert asyncio.all_tasks() == before
    async with dialogue.lifespan():
        await dialogue.trigger("general", "message", 1)


@pytest.mark.parametrize("user_id", ["", "x" * 300, "nul\x00"], ids=["empty", "long", "nul"])
async def test_a_room_is_made_by_who_can_be_a_user(user_id: str) -> None:
    """What no store keeps as a user's id is refused before one is asked, on every store alike."""
    async with (dialogue := Dialogue({}, client_rooms=RoomConfig(events=[message]))).lifespan():
        with pytest.raises(ValidationFailed):
            await dialogue.create_room("r", created_by_id=user_id)
        assert dialogue.rooms() == []


async def test_what_a_guard_said_of_a_deleted_room_does_not_hold_for_the_next_one() -> None:
    """The guards are asked anew before a member is told of what is unread in another room of the id."""
    dialogue = Dialogue({}, client_rooms=RoomConfig(events=[message]), limits=Limits(unread_seconds=0.02))
    allowed, asked = {"ann"}, []

    @dialogue.before_join
    async def guard(client: Client, room: Any) -> bool:
        asked.append(room.room_id)
        return client.user_id in allowed

    async with serve(dialogue) as address, wire(address, "ann") as ann:
        for may_read in (True, False):
            if not may_read:
                allowed.clear()
            await dialogue.create_room("r")
            await dialogue.add_member("r", "ann")
            await dialogue.trigger("r", "message", 1)
            if may_read:
                await ann.until(lambda: any(m["type"] == "unread" for m in ann.messages))
                assert asked == ["r"]
                await dialogue.delete_room("r")
        await eventually(lambda: asked == ["r", "r"])
        assert (await ann.ask("unread"))["unread"] == {}
