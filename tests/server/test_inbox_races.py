"""The inbox while the store is at work: what else may happen meanwhile, over a real WebSocket."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Any

import pytest

from dialogue import Dialogue, MemoryStore, StoreUnavailable
from dialogue.server.member_writes import MEMBERS_PER_WRITE
from dialogue.storage.directory import Place
from dialogue.testing import FaultyStore

from .harness import Refused, eventually, serve, wire
from .test_unread import chat, joined, message, unread


class HeldDirectory(FaultyStore):
    """A store whose directory waits, in the calls that are held, before or after what they do."""

    def __init__(self) -> None:
        super().__init__(MemoryStore())
        self.held: dict[str, asyncio.Event] = {}
        self.reached: dict[str, asyncio.Event] = {}
        self.fail_next: Exception | None = None

    def hold_call(self, name: str, *, is_done_first: bool = False) -> None:
        """Hold every call of *name* from now on; with *is_done_first* it has been done by then."""
        original = getattr(type(self.directory), name).__get__(self.directory)
        held, reached = asyncio.Event(), asyncio.Event()
        self.held[name], self.reached[name] = held, reached

        async def waits(*arguments: Any, **options: Any) -> Any:
            result = await original(*arguments, **options) if is_done_first else None
            reached.set()
            await held.wait()
            if self.fail_next is not None:
                error, self.fail_next = self.fail_next, None
                raise error
            return result if is_done_first else await original(*arguments, **options)

        setattr(self.directory, name, waits)

    async def until_reached(self, name: str) -> None:
        """Wait until a call of *name* is held."""
        await self.reached[name].wait()

    def let_go(self, name: str) -> None:
        """Let the calls of *name* go on, and hold no more."""
        self.held[name].set()


async def agree(dialogue: Dialogue, user_id: str = "alice") -> dict[str, int]:
    """Return a user's counts, which memory and the store have alike."""
    inbox = dialogue.hub().inbox
    await eventually(lambda: not inbox.writes.waiting_of(user_id))
    told = await dialogue.unread(user_id)
    markers = await dialogue.store.directory.markers(user_id)
    assert told == {marker.room_id: marker.unread for marker in markers}
    return told


@pytest.mark.parametrize("is_read_late", [False, True])
async def test_who_comes_while_the_removal_is_being_written_is_no_member(is_read_late: bool) -> None:
    """Whether the markers were read before the removal was in the store, or are told after it."""
    store = HeldDirectory()
    dialogue = chat(store)
    async with serve(dialogue) as address:
        await dialogue.add_member("general", "alice")
        await dialogue.add_member("other", "alice")
        store.hold_call("remove_member")
        if is_read_late:
            store.hold_call("markers_of", is_done_first=True)
        removal = asyncio.create_task(dialogue.remove_from_room("alice", "general"))
        await store.until_reached("remove_member")
        async with wire(address) as client:
            if is_read_late:
                await store.until_reached("markers_of")
                store.let_go("remove_member")
                await removal
                store.let_go("markers_of")
                assert await unread(client) == {"other": 0}
            else:
                assert await unread(client) == {"other": 0}
                store.let_go("remove_member")
                await removal
            assert await unread(client) == {"other": 0}
            assert await agree(dialogue) == {"other": 0}


async def test_who_comes_while_the_erasure_is_being_written_is_no_member() -> None:
    """What was read of the markers before they were erased is not kept."""
    store = HeldDirectory()
    dialogue = chat(store)
    async with serve(dialogue) as address:
        await dialogue.add_member("general", "alice")
        store.hold_call("forget_user")
        erasure = asyncio.create_task(dialogue.erase_user("alice"))
        await store.until_reached("forget_user")
        async with wire(address) as client:
            assert await unread(client) == {"general": 0}
            store.let_go("forget_user")
            await erasure
            assert await unread(client) == {}
            assert await agree(dialogue) == {}


async def test_a_mark_is_known_to_who_comes_while_it_is_being_written() -> None:
    """Also if the connection that has marked is gone, and the markers were read before."""
    store = HeldDirectory()
    dialogue = chat(store)
    async with serve(dialogue) as address:
        await dialogue.add_member("general", "alice")
        await dialogue.trigger("general", message, 1)
        async with wire(address) as client:
            assert await unread(client) == {"general": 1}
            store.hold_call("mark_read")
            await client.send("mark_read", room="general", seq=1)
            await store.until_reached("mark_read")
            (connection,) = dialogue.clients_of("alice")
            connection.disconnect()
            await client.until_closed()
        await eventually(lambda: not dialogue.hub().inbox.watched)
        async with wire(address) as client:
            assert await unread(client) == {"general": 1}
            store.let_go("mark_read")
            await eventually(lambda: not is_marking(dialogue))
            assert await unread(client) == {"general": 0}
            assert await agree(dialogue) == {"general": 0}


async def test_a_mark_is_known_to_who_comes_while_the_markers_are_being_read() -> None:
    """What was read before the mark was written does not move the marker back in memory."""
    store = HeldDirectory()
    dialogue = chat(store)
    async with serve(dialogue) as address:
        await dialogue.add_member("general", "alice")
        await dialogue.trigger("general", message, 1)
        store.hold_call("mark_read")
        marking = asyncio.create_task(dialogue.mark_read("alice", "general", 1))
        await store.until_reached("mark_read")
        store.hold_call("markers_of", is_done_first=True)
        async with wire(address) as client:
            await store.until_reached("markers_of")
            store.let_go("mark_read")
            assert await marking == 0
            store.let_go("markers_of")
            assert await unread(client) == {"general": 0}


def is_marking(dialogue: Dialogue) -> bool:
    """Whether a mark is on its way to the store."""
    return any(task.get_name() == "dialogue-mark-read" for task in dialogue.hub().tasks)


async def test_nobody_becomes_a_member_of_a_room_that_is_being_deleted() -> None:
    """Its members are gone from the store, and a mark that is under way brings none back."""
    store = HeldDirectory()
    dialogue = chat(store)
    async with serve(dialogue) as address, wire(address) as client:
        await joined(client, "topic:x")
        await dialogue.trigger("topic:x", message, 1)
        assert await unread(client) == {"topic:x": 1}
        await agree(dialogue)
        store.hold_call("remove_room", is_done_first=True)
        deletion = asyncio.create_task(dialogue.delete_room("topic:x"))
        await store.until_reached("remove_room")
        ref = await client.send("mark_read", room="topic:x", seq=1)
        writes = dialogue.hub().inbox.writes
        await eventually(
            lambda: writes.is_waiting("topic:x", "alice") or client.messages[-1].get("ref") == ref
        )
        store.let_go("remove_room")
        await deletion
        with pytest.raises(Refused):
            await client.answer(ref)
        assert await agree(dialogue) == {}
        assert await store.directory.members("topic:x", limit=10) == []


async def test_a_close_waits_for_a_read_no_longer_than_it_may() -> None:
    """Though the directory's call does not let itself be cancelled."""
    store = FaultyStore(MemoryStore())
    markers_of, held, reading = store.directory.markers_of, asyncio.Event(), asyncio.Event()

    async def hold(user_ids: Any, *, limit: int) -> Any:
        reading.set()
        while not held.is_set():
            with suppress(asyncio.CancelledError):
                await held.wait()
        return await markers_of(user_ids, limit=limit)

    store.directory.markers_of = hold  # type: ignore[method-assign]
    dialogue = chat(store)
    async with serve(dialogue) as address, wire(address):
        try:
            await reading.wait()
            async with asyncio.timeout(10):
                await dialogue.hub().inbox.aclose(until=asyncio.get_running_loop().time() + 0.1)
        finally:
            held.set()


async def test_a_load_that_ends_before_it_began_is_over() -> None:
    """A connection that ends in the moment in which it is connected leaves nothing."""
    dialogue = chat()
    async with serve(dialogue) as address, wire(address, "bob") as bob:
        await unread(bob)
        inbox = dialogue.hub().inbox
        (session,) = dialogue.hub().connections.of("bob")
        inbox.disconnected(session)
        inbox.connected(session)
        inbox.disconnected(session)
        await dialogue.trigger("general", message, 1)
        await eventually(lambda: not inbox._loads)
        assert not inbox._meanwhile
        assert not inbox._online


async def test_markers_are_read_again_after_a_failure_that_nobody_foresaw(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The next connection of the user reads them, and what was joined before is kept."""
    store = HeldDirectory()
    dialogue = chat(store)
    async with serve(dialogue) as address:
        await dialogue.add_member("other", "alice")
        store.hold_call("markers_of")
        store.fail_next = RuntimeError("a fault")
        async with wire(address) as first:
            await joined(first, "general")
            store.let_go("markers_of")
            await eventually(lambda: "a fault" in caplog.text)
            async with wire(address) as second:
                assert await unread(second) == {"general": 0, "other": 0}
                assert await unread(first) == {"general": 0, "other": 0}
                assert await agree(dialogue) == {"general": 0, "other": 0}


async def test_a_room_that_cannot_be_written_takes_no_other_with_it(caplog: pytest.LogCaptureFixture) -> None:
    """Whatever a directory raises against its contract for one: its memberships are dropped, and counted."""
    store = FaultyStore(MemoryStore())
    add_members, calls = store.directory.add_members, list[list[str]]()

    async def refuses(rooms: Any) -> Any:
        calls.append(list(rooms))
        if "topic:1" in rooms:
            raise ZeroDivisionError("not this one")
        return await add_members(rooms)

    store.directory.add_members = refuses  # type: ignore[method-assign]
    dialogue = chat(store)
    async with serve(dialogue) as address, wire(address) as client:
        assert await unread(client) == {}
        names = [f"topic:{n}" for n in range(3)]
        inbox, (session,) = dialogue.hub().inbox, dialogue.hub().connections.of("alice")
        for name in names:
            inbox.joined(session, dialogue.room(name), Place(0, 0))
        await eventually(lambda: not inbox.writes.waiting_of("alice"))
        assert calls == [names, *([name] for name in names)]
        assert [marker.room_id for marker in await store.directory.markers("alice")] == ["topic:0", "topic:2"]
        assert "dialogue_members_dropped_total 1.0" in dialogue.metrics.render().decode()
        assert caplog.text.count("ZeroDivisionError: not this one") == 2


@pytest.mark.parametrize("is_one_room", [True, False])
async def test_a_membership_that_is_never_taken_keeps_no_other_waiting(
    is_one_room: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """Calls become smaller until it is alone; once it is taken they become larger again."""
    store = FaultyStore(MemoryStore())
    add_members, calls = store.directory.add_members, list[int]()
    places = [("general" if is_one_room else f"topic:{n}", f"user{n}") for n in range(40)]
    is_refused = True

    async def refuses(rooms: Any) -> Any:
        calls.append(sum(map(len, rooms.values())))
        if is_refused and any("user1" in members for members in rooms.values()):
            raise StoreUnavailable("this one")
        return await add_members(rooms)

    store.directory.add_members = refuses  # type: ignore[method-assign]
    dialogue = chat(store)
    async with dialogue.lifespan():
        writes = dialogue.hub().inbox.writes
        for room_id, user_id in places:
            writes.put(room_id, user_id, Place(0, 0))
        others = [place for place in places if place[1] != "user1"]
        await eventually(lambda: not any(writes.is_waiting(*place) for place in others))
        assert calls[:3] == [40, 20, 10]
        for room_id, user_id in others:
            assert [marker.room_id for marker in await store.directory.markers(user_id)] == [room_id]
        (room_id,) = {room_id for room_id, user_id in places if user_id == "user1"}
        assert writes.is_waiting(room_id, "user1")
        assert caplog.text.count("memberships cannot be written now") == 1
        is_refused = False
        await writes.write(room_id)
        assert [marker.room_id for marker in await store.directory.markers("user1")] == [room_id]
        for _ in range(10):
            for place in places:
                writes.put(*place, Place(0, 0))
            await eventually(lambda: not writes._waiting and not writes._in_flight)
        assert calls[-1] == 40
        assert writes._most == MEMBERS_PER_WRITE


async def test_memberships_are_written_in_bounded_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of several rooms, of one with more than a part has, and at the stop."""
    monkeypatch.setattr("dialogue.server.member_writes.MEMBERS_PER_WRITE", 5)
    store = FaultyStore(MemoryStore())
    add_members, calls = store.directory.add_members, list[int]()

    async def counted(rooms: Any) -> Any:
        calls.append(sum(map(len, rooms.values())))
        return await add_members(rooms)

    store.directory.add_members = counted  # type: ignore[method-assign]
    dialogue = chat(store)
    async with dialogue.lifespan():
        writes = dialogue.hub().inbox.writes

        def put_all() -> None:
            for n in range(12):
                writes.put("general", f"user{n}", Place(0, 0))
                writes.put(f"topic:{n}", "alice", Place(0, 0))

        put_all()
        await eventually(lambda: not writes._waiting and not writes._in_flight)
        assert calls == [5, 5, 2, 5, 5, 2]
        assert len(await store.directory.markers("alice")) == 12
        await store.directory.forget_user("alice")
        calls.clear()
        put_all()
        await writes.aclose(until=None)
        assert calls == [5, 5, 2, 5, 5, 2]
        assert len(await store.directory.markers("alice")) == 12
        assert len(await store.directory.members("general", limit=20)) == 12


async def test_a_room_whose_members_are_being_removed_keeps_no_other_waiting() -> None:
    """Its turn comes; who has joined the other rooms is written before."""
    store = HeldDirectory()
    dialogue = chat(store)
    async with dialogue.lifespan():
        writes = dialogue.hub().inbox.writes
        store.hold_call("remove_member")
        removal = asyncio.create_task(writes.remove("general", "bob"))
        await store.until_reached("remove_member")
        writes.put("general", "alice", Place(0, 0))
        writes.put("other", "alice", Place(0, 0))
        await eventually(lambda: not writes.is_waiting("other", "alice"))
        assert await store.directory.members("other", limit=2) == ["alice"]
        assert writes.is_waiting("general", "alice")
        store.let_go("remove_member")
        await removal
        await eventually(lambda: not writes.is_waiting("general", "alice"))
        assert await store.directory.members("general", limit=2) == ["alice"]
        assert not len(writes.turns)


async def test_who_is_removed_while_several_rooms_are_written_is_in_none_of_them() -> None:
    """What was made meanwhile is taken back; the others stay."""
    store = HeldDirectory()
    dialogue = chat(store)
    async with dialogue.lifespan():
        writes = dialogue.hub().inbox.writes
        store.hold_call("add_members", is_done_first=True)
        for name in ("general", "other", "topic:x"):
            for user_id in ("alice", "bob"):
                writes.put(name, user_id, Place(0, 0))
        await store.until_reached("add_members")
        writes.forget("other", "alice")
        writes.forget_room("topic:x")
        writes.forget_user("bob")
        store.let_go("add_members")
        await eventually(lambda: not writes._in_flight)
        assert [marker.room_id for marker in await store.directory.markers("alice")] == ["general"]
        assert await store.directory.markers("bob") == []
