"""Unread counts, read markers and the inbox, over a real WebSocket."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import pytest

from dialogue import (
    Client,
    Dialogue,
    History,
    InvalidRequest,
    JoinDenied,
    Limits,
    MemoryStore,
    NotJoined,
    RoomConfig,
    RoomHandle,
    RoomNotFound,
    SQLStore,
    Store,
    StoreUnavailable,
    define_event,
)
from dialogue.config import DirectRoom
from dialogue.testing import FaultyStore

from .harness import Refused, Wire, eventually, serve, wire

message = define_event("message", history=History(limit=5))
reaction = define_event("reaction", history=History(limit=5), counts_unread=False)
typing_event = define_event("typing")

QUICK = Limits(unread_seconds=0.01)


@pytest.fixture(params=["memory", "sqlite", "postgres"])
def make_store(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[], Store]:
    """Makes a store of each kind; of those that last, always the same log."""
    if request.param == "memory":
        return MemoryStore
    if request.param == "postgres":
        url: str = request.getfixturevalue("postgres_url")
        return lambda: SQLStore(url)
    return lambda: SQLStore(f"sqlite:///{tmp_path / 'log.db'}")


def chat(store: Store | None = None, *, limits: Limits = QUICK, **options: Any) -> Dialogue:
    """A chat with two rooms, a pattern, direct rooms, and one room in which nothing counts."""
    events = [message, reaction, typing_event]
    return Dialogue(
        {
            "general": RoomConfig(events=events),
            "other": RoomConfig(events=events),
            "quiet": RoomConfig(events=[reaction, typing_event]),
            "topic:{name}": RoomConfig(events=events),
            "dm:{a}:{b}": DirectRoom(events=events),
        },
        store=store,
        limits=limits,
        **options,
    )


async def joined(client: Wire, *room_ids: str) -> None:
    """Join rooms."""
    for room_id in room_ids:
        await client.ask("join", room=room_id)


async def unread(client: Wire, **fields: Any) -> dict[str, int]:
    """Ask for the unread counts."""
    counts: dict[str, int] = (await client.ask("unread", **fields))["unread"]
    return counts


def pushes(client: Wire) -> list[dict[str, int]]:
    """Return what the server has pushed of unread counts."""
    return [m["unread"] for m in client.messages if m["type"] == "unread" and "ref" not in m]


async def until_pushed(client: Wire, room_id: str, count: int) -> None:
    """Wait until the newest push of a room says *count*."""

    def is_told() -> bool:
        told = [push[room_id] for push in pushes(client) if room_id in push]
        return bool(told) and told[-1] == count

    await client.until(is_told)


async def settled(client: Wire, dialogue: Dialogue) -> None:
    """Return when whatever was to be pushed before has been: a room of nobody else's is pushed after it."""
    await dialogue.add_member("topic:marker", "alice")
    ack = await dialogue.trigger("topic:marker", message, 0)
    assert ack.seq is not None
    await client.until(lambda: any("topic:marker" in push for push in pushes(client)))


# -- counting ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(3))
async def test_counts_are_those_of_a_naive_model(make_store: Callable[[], Store], seed: int) -> None:
    """Whatever is published, joined and marked, also over a restart of a store that keeps it."""
    random = Random(seed)
    store = make_store()
    dialogue = chat(store, limits=Limits(unread_seconds=0.01, idle_seconds=0.01, reads_burst=5000))
    log: dict[str, list[bool]] = {room_id: [] for room_id in ("general", "other", "topic:x")}
    read: dict[tuple[str, str], int] = {}

    def model(user_id: str) -> dict[str, int]:
        return {room: sum(log[room][seq:]) for (user, room), seq in sorted(read.items()) if user == user_id}

    lives = 2 if store.is_durable else 1
    for _ in range(lives):
        async with serve(dialogue) as address, wire(address) as alice, wire(address, "bob") as bob:
            clients = {"alice": alice, "bob": bob}
            for _ in range(60):
                user_id, room_id = random.choice(list(clients)), random.choice(list(log))
                client = clients[user_id]
                action = random.random()
                if action < 0.2:
                    await client.ask("join", room=room_id)
                    read.setdefault((user_id, room_id), len(log[room_id]))
                elif action < 0.7:
                    counts = random.random() < 0.7
                    ack = await dialogue.trigger(room_id, message if counts else reaction, 1)
                    log[room_id].append(counts)
                    assert ack.seq == len(log[room_id])
                elif (user_id, room_id) in read:
                    seq = random.randint(0, len(log[room_id]) + 2)
                    # Of what has left the log it is not known which events counted.
                    seq = max(seq, len(log[room_id]) - 5) if not store.is_durable else seq
                    before = read[user_id, room_id]
                    read[user_id, room_id] = max(before, min(seq, len(log[room_id])))
                    answer = await client.ask("mark_read", room=room_id, seq=seq)
                    assert answer["unread"] == model(user_id)[room_id]
                for name, other in clients.items():
                    assert await unread(other) == model(name)
                    assert await dialogue.unread(name) == model(name)
        dialogue = chat(make_store(), limits=QUICK)
    if lives == 2:
        async with dialogue.lifespan():
            assert await dialogue.unread("alice") == model("alice")


async def test_marking_goes_forward_only_and_beyond_the_newest_is_the_newest() -> None:
    """A late or forged seq neither raises a count again nor reaches into the future."""
    dialogue = chat()
    async with serve(dialogue) as address, wire(address) as client:
        await joined(client, "general")
        for n in range(4):
            await dialogue.trigger("general", message, n)
        assert (await client.ask("mark_read", room="general", seq=3))["unread"] == 1
        assert (await client.ask("mark_read", room="general", seq=1))["unread"] == 1
        assert (await client.ask("mark_read", room="general", seq=2**53 - 1))["unread"] == 0
        await dialogue.trigger("general", message, 4)
        assert await unread(client) == {"general": 1}
        for seq in (-1, 2**53, 2**70):
            with pytest.raises(Refused, match="INVALID_REQUEST"):
                await client.ask("mark_read", room="general", seq=seq)


async def test_what_does_not_count() -> None:
    """Ephemeral events, types that say so, and changes; a room without others is in no inbox."""
    dialogue = chat()
    async with serve(dialogue) as address, wire(address) as client:
        await joined(client, "general", "quiet")
        ack = await dialogue.trigger("general", message, 1)
        assert ack.seq is not None
        await dialogue.edit("general", ack.seq, 2)
        await dialogue.trigger("general", reaction, 1)
        await dialogue.trigger("general", typing_event, 1)
        await dialogue.trigger("quiet", reaction, 1)
        assert await unread(client) == {"general": 1}
        assert (await client.ask("mark_read", room="quiet", seq=1))["unread"] == 0


async def test_a_user_of_one_connection_has_no_inbox() -> None:
    """Who is named after the connection cannot come back, and leaves no marker behind."""
    dialogue = chat()
    async with serve(dialogue) as address, wire(address, None) as client:
        user_id = (await client.ask("connect"))["user_id"]
        await joined(client, "general")
        await dialogue.trigger("general", message, 1)
        assert await unread(client) == {}
        assert (await client.ask("mark_read", room="general", seq=1))["unread"] == 0
        assert await dialogue.unread(user_id) == {}
        assert await dialogue.room("general").members() == []


async def test_only_rooms_of_the_own_inbox_are_told() -> None:
    """Asking for a room is no way to learn of it; marking one is refused as any other command."""
    dialogue = chat()
    async with serve(dialogue) as address, wire(address) as client:
        await joined(client, "general")
        assert await unread(client, rooms=["general", "other", "nowhere", "topic:x"]) == {"general": 0}
        assert await unread(client, rooms=[]) == {}
        for room_id, code in (("other", "NOT_JOINED"), ("nowhere", "ROOM_NOT_FOUND")):
            with pytest.raises(Refused, match=code):
                await client.ask("mark_read", room=room_id, seq=1)


async def test_an_answer_has_at_most_unread_rooms() -> None:
    """Of more, those with something unread."""
    dialogue = chat(limits=Limits(unread_rooms=3))
    async with serve(dialogue) as address, wire(address) as client:
        await joined(client, *(f"topic:{n}" for n in range(6)))
        await dialogue.trigger("topic:5", message, 1)
        assert await unread(client) == {"topic:0": 0, "topic:1": 0, "topic:5": 1}


@pytest.mark.usefixtures("no_refill")
async def test_unread_counts_as_a_read() -> None:
    """Both commands spend from the bucket of reads."""
    dialogue = chat(limits=Limits(reads_burst=1, reads_per_second=1))
    async with serve(dialogue) as address, wire(address) as client:
        await joined(client, "general")
        await client.ask("unread")
        for command in ({"type": "unread"}, {"type": "mark_read", "room": "general", "seq": 0}):
            with pytest.raises(Refused, match="RATE_LIMITED"):
                await client.ask(**command)


async def test_the_application_marks_adds_and_counts() -> None:
    """For HTTP handlers and jobs; no guard is asked, and the user's connections are told."""
    dialogue = chat()

    @dialogue.before_join
    def nobody() -> None:
        raise JoinDenied

    async with dialogue.lifespan():
        await dialogue.trigger("general", message, 0)
        await dialogue.add_member("general", "bob")
        await dialogue.add_member("general", "bob")
        await dialogue.trigger("general", message, 1)
        await dialogue.trigger("general", message, 2)
        assert await dialogue.unread("bob") == {"general": 2}
        assert await dialogue.unread("bob", ["other"]) == {}
        assert await dialogue.mark_read("bob", "general", 2) == 1
        assert await dialogue.room("general").members() == ["bob"]
        with pytest.raises(NotJoined):
            await dialogue.mark_read("ann", "general", 1)
        with pytest.raises(RoomNotFound):
            await dialogue.mark_read("bob", "nowhere", 1)
        with pytest.raises(RoomNotFound):
            await dialogue.add_member("nowhere", "bob")
        with pytest.raises(InvalidRequest):
            await dialogue.mark_read("bob", "general", -1)
        with pytest.raises(ValueError, match="limit"):
            await dialogue.room("general").members(limit=0)


async def test_members_are_paged() -> None:
    """In the order of their ids, whoever is connected."""
    dialogue = chat()
    async with serve(dialogue) as address, wire(address) as client:
        await joined(client, "general")
        for name in ("zoe", "bob", "éva"):
            await dialogue.add_member("general", name)
        room = dialogue.room("general")
        first = await room.members(limit=2)
        assert (first, await room.members(after=first[-1])) == (["alice", "bob"], ["zoe", "éva"])


# -- pushes --------------------------------------------------------------------------------------------------------


async def test_pushes_reach_connections_that_have_not_joined(make_store: Callable[[], Store]) -> None:
    """All of a user's connections, those that are in the room as well; what changes at once is one message."""
    dialogue = chat(make_store())
    async with serve(dialogue) as address, wire(address) as inside:
        await joined(inside, "general", "other")
        async with wire(address) as outside:
            await unread(outside)
            for room_id in ("general", "general", "other"):
                await dialogue.trigger(room_id, message, 1)
            for client in (inside, outside):
                await until_pushed(client, "general", 2)
                await until_pushed(client, "other", 1)
            assert not outside.events()


async def test_a_direct_message_reaches_who_never_joined(make_store: Callable[[], Store]) -> None:
    """The first join of either makes both members, at once: what is written behind the join is unread."""
    dialogue = chat(make_store())
    async with serve(dialogue) as address, wire(address, "bob") as bob, wire(address, "ann") as ann:
        await unread(bob)
        frame = [
            {"type": "join", "room": "dm:ann:bob", "ref": 100},
            {"type": "trigger", "room": "dm:ann:bob", "event": "message", "data": "hi", "ref": 101},
        ]
        await ann.send_raw(json.dumps(frame))
        await until_pushed(bob, "dm:ann:bob", 1)
        assert await unread(bob) == {"dm:ann:bob": 1}
        await ann.ask("join", room="dm:ann:cleo")
        await ann.trigger("dm:ann:cleo", "message", "are you there?")
        assert await dialogue.unread("cleo") == {"dm:ann:cleo": 1}
        async with wire(address, "cleo") as cleo:
            assert await unread(cleo) == {"dm:ann:cleo": 1}
            assert (await cleo.ask("mark_read", room="dm:ann:cleo", seq=1))["unread"] == 0


async def test_the_users_other_connections_are_told_of_a_mark() -> None:
    """With the new count; who has marked has it in the answer."""
    dialogue = chat(limits=Limits(unread_seconds=3600))
    async with serve(dialogue) as address, wire(address) as first, wire(address) as second:
        await joined(first, "general")
        await dialogue.trigger("general", message, 1)
        await dialogue.trigger("general", message, 1)
        assert (await first.ask("mark_read", room="general", seq=1))["unread"] == 1
        await until_pushed(second, "general", 1)
        await dialogue.mark_read("alice", "general", 2)
        for client in (first, second):
            await until_pushed(client, "general", 0)
        assert pushes(first) == [{"general": 0}]


async def test_a_busy_room_is_one_push_in_a_while() -> None:
    """However many events there are within ``limits.unread_seconds``."""
    dialogue = chat(limits=Limits(unread_seconds=0.2))
    async with serve(dialogue) as address, wire(address) as client:
        await joined(client, "general")
        await unread(client)
        await asyncio.gather(*(dialogue.trigger("general", message, n) for n in range(200)))
        await until_pushed(client, "general", 200)
        assert len(pushes(client)) <= 3


# -- guards --------------------------------------------------------------------------------------------------------


async def test_a_guard_that_denies_reading_hides_counts() -> None:
    """In answers and pushes of rooms that are not joined; marking is refused as reading is; asked once a minute."""
    dialogue = chat()
    asked: list[tuple[str, str]] = []
    denied = {"general", "topic:hidden"}

    @dialogue.before_join
    async def guard(client: Client, room: RoomHandle, purpose: str) -> None:
        asked.append((room.room_id, purpose))
        if purpose == "read" and room.room_id in denied:
            raise JoinDenied

    @dialogue.can_see
    def visible(room: RoomHandle) -> bool:
        return room.room_id != "topic:invisible"

    async with serve(dialogue) as address, wire(address) as client:
        for room_id in ("general", "other", "topic:invisible", "topic:marker"):
            await dialogue.add_member(room_id, "alice")
        for room_id in ("general", "other", "topic:invisible"):
            await dialogue.trigger(room_id, message, 1)
        assert await unread(client) == {"other": 1, "topic:marker": 0}
        for _ in range(3):
            await dialogue.trigger("other", message, 1)
            await dialogue.trigger("general", message, 1)
        await until_pushed(client, "other", 4)
        await settled(client, dialogue)
        assert not [push for push in pushes(client) if {"general", "topic:invisible"} & set(push)]
        assert sorted(asked) == [("general", "read"), ("other", "read"), ("topic:marker", "read")]
        for room_id, code in (("general", "JOIN_DENIED"), ("topic:invisible", "ROOM_NOT_FOUND")):
            with pytest.raises(Refused, match=code):
                await client.ask("mark_read", room=room_id, seq=1)
        denied.clear()
        await client.ask("connect", auth={"user_id": "alice"})
        assert "general" in await unread(client), "new credentials are asked for anew"


async def test_guards_are_asked_again_after_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    """What they have said is remembered for so long and no longer."""
    monkeypatch.setattr("dialogue.server.unread_pushes.REMEMBERED_SECONDS", 0.2)
    dialogue = chat()
    is_denied = False

    @dialogue.before_join
    def guard() -> bool:
        return not is_denied

    async with serve(dialogue) as address, wire(address) as client:
        await dialogue.add_member("general", "alice")
        assert await unread(client) == {"general": 0}
        is_denied = True
        async with asyncio.timeout(20):
            while await unread(client):
                await asyncio.sleep(0.01)


async def test_a_connection_that_leaves_while_its_counts_are_asked_for() -> None:
    """Nothing is left behind of it: neither an answer nor an entry."""
    dialogue = chat()
    asked = asyncio.Event()

    @dialogue.before_join("general")
    async def slow() -> None:
        asked.set()
        await asyncio.Event().wait()

    async with serve(dialogue) as address:
        await dialogue.add_member("general", "alice")
        async with wire(address) as client:
            await unread(client, rooms=[])
            for _ in range(20):
                await client.send("unread")
            await dialogue.trigger("general", message, 1)
            await asked.wait()
        await eventually(lambda: not dialogue.hub().inbox._online)


async def test_a_guard_that_fails_leaves_the_room_out(caplog: pytest.LogCaptureFixture) -> None:
    """Silently for the client; the log has the reason."""
    dialogue = chat()

    @dialogue.before_join
    def broken(room: RoomHandle) -> None:
        if room.room_id == "general":
            raise RuntimeError("guard is broken")

    async with serve(dialogue) as address, wire(address) as client:
        await dialogue.add_member("general", "alice")
        await dialogue.add_member("other", "alice")
        assert await unread(client) == {"other": 0}
    assert "guard is broken" in caplog.text


async def test_a_slow_guard_holds_up_nobody_else() -> None:
    """Another user's pushes come meanwhile, and those of the same connection that need no asking."""
    dialogue = chat()
    go_on = asyncio.Event()

    @dialogue.before_join("general")
    async def slow(client: Client, purpose: str) -> None:
        if client.user_id == "alice" and purpose == "read":
            await go_on.wait()

    async with serve(dialogue) as address, wire(address) as alice, wire(address, "bob") as bob:
        for user_id in ("alice", "bob"):
            await dialogue.add_member("general", user_id)
            await dialogue.add_member("other", user_id)
        assert await unread(bob) == {"general": 0, "other": 0}
        await dialogue.trigger("general", message, 1)
        await dialogue.trigger("other", message, 1)
        await until_pushed(bob, "general", 1)
        await until_pushed(alice, "other", 1)
        assert not [push for push in pushes(alice) if "general" in push]
        await dialogue.trigger("general", message, 1)
        go_on.set()
        await until_pushed(alice, "general", 2)


async def test_removal_ends_pushes_at_once_those_in_flight_too(make_store: Callable[[], Store]) -> None:
    """What a guard has allowed and is not sent yet is not sent; a later join is a new membership."""
    dialogue = chat(make_store())
    asked, go_on = asyncio.Event(), asyncio.Event()

    @dialogue.before_join("general")
    async def slow(purpose: str) -> None:
        if purpose == "read":
            asked.set()
            await go_on.wait()

    async with serve(dialogue) as address, wire(address) as client:
        await dialogue.add_member("general", "alice")
        ref = await client.send("unread")
        await asked.wait()
        asked.clear()
        await dialogue.trigger("general", message, 1)
        await asked.wait()
        await dialogue.remove_from_room("alice", "general")
        go_on.set()
        assert (await client.answer(ref))["unread"] == {}
        await dialogue.trigger("general", message, 1)
        await settled(client, dialogue)
        assert not [push for push in pushes(client) if "general" in push]
        assert await dialogue.unread("alice") == {"topic:marker": 1}
        assert await dialogue.room("general").members() == []
        await joined(client, "general")
        await dialogue.trigger("general", message, 1)
        assert (await unread(client))["general"] == 1


async def test_removed_while_the_join_is_being_written() -> None:
    """The write that was begun before does not bring the membership back; a join after the removal does."""
    store = SlowMembers(MemoryStore())
    dialogue = chat(store)
    async with serve(dialogue) as address, wire(address) as client:
        await unread(client)
        store.may_add.clear()
        await joined(client, "general")
        await store.adding.wait()
        removal = asyncio.create_task(dialogue.remove_from_room("alice", "general"))
        await client.until(lambda: any(m["type"] == "left" for m in client.messages))
        assert await unread(client) == {}
        store.may_add.set()
        await removal
        assert await dialogue.room("general").members() == []
        store.may_add.clear()
        await joined(client, "general")
        store.may_add.set()
        assert await dialogue.room("general").members() == ["alice"]
        assert await unread(client) == {"general": 0}


async def test_joined_again_while_the_removal_is_being_written() -> None:
    """The join comes after the removal, whichever the store would be quicker with."""
    store = SlowMembers(MemoryStore())
    dialogue = chat(store)
    async with serve(dialogue) as address, wire(address) as client:
        await joined(client, "general")
        assert await dialogue.room("general").members() == ["alice"]
        store.may_remove.clear()
        removal = asyncio.create_task(dialogue.remove_from_room("alice", "general"))
        await store.removing.wait()
        await joined(client, "general")
        assert await unread(client) == {"general": 0}
        store.may_remove.set()
        await removal
        assert await dialogue.room("general").members() == ["alice"]


async def test_a_removal_that_the_store_does_not_take_is_told() -> None:
    """Everything else is done: the connection is out of the room, and its user is told of no more counts."""
    store = FaultyStore(MemoryStore())
    dialogue = chat(store)
    left = asyncio.Event()
    dialogue.on_left(lambda: left.set())
    async with serve(dialogue) as address, wire(address) as client:
        await joined(client, "general")
        assert await unread(client) == {"general": 0}
        store.fail_directory = StoreUnavailable("down")
        with pytest.raises(StoreUnavailable):
            await dialogue.remove_from_room("alice", "general")
        assert not dialogue.is_in_room("alice", "general")
        assert await unread(client) == {}
        await left.wait()
        store.fail_directory = None
        await dialogue.remove_from_room("alice", "general")
        assert await dialogue.room("general").members() == []


class SlowMembers(FaultyStore):
    """A store whose `add_members` and `remove_member` wait."""

    def __init__(self, inner: Store) -> None:
        super().__init__(inner)
        self.may_add, self.adding = asyncio.Event(), asyncio.Event()
        self.may_remove, self.removing = asyncio.Event(), asyncio.Event()
        self.may_add.set()
        self.may_remove.set()
        self.marker_reads: list[str] = []
        directory = self.directory
        add_members, remove_member, markers_of = (
            directory.add_members,
            directory.remove_member,
            directory.markers_of,
        )

        async def slow(*arguments: Any, **options: Any) -> Any:
            self.adding.set()
            await self.may_add.wait()
            return await add_members(*arguments, **options)

        async def slow_removal(room_id: str, user_id: str) -> bool:
            self.removing.set()
            await self.may_remove.wait()
            return await remove_member(room_id, user_id)

        async def noted(user_ids: Any, *, limit: int) -> Any:
            self.marker_reads += user_ids
            return await markers_of(user_ids, limit=limit)

        directory.add_members = slow  # type: ignore[method-assign]
        directory.remove_member = slow_removal  # type: ignore[method-assign]
        directory.markers_of = noted  # type: ignore[method-assign]


async def test_who_is_made_a_member_late_is_told_of_what_came_before() -> None:
    """While the markers of who joins are being read nobody watches the room: both of the pair are told then."""
    store = FaultyStore(MemoryStore())
    markers_of, may_read = store.directory.markers_of, asyncio.Event()

    async def slow(user_ids: Any, *, limit: int) -> Any:
        if "ann" in user_ids:
            await may_read.wait()
        return await markers_of(user_ids, limit=limit)

    store.directory.markers_of = slow  # type: ignore[method-assign]
    dialogue = chat(store)
    async with serve(dialogue) as address, wire(address, "bob") as bob, wire(address, "ann") as ann:
        assert await unread(bob) == {}
        await ann.ask("join", room="dm:ann:bob")
        await ann.trigger("dm:ann:bob", "message", "hi")
        may_read.set()
        for client in (bob, ann):
            await until_pushed(client, "dm:ann:bob", 1)


async def test_a_deleted_room_leaves_the_inbox() -> None:
    """Also of who joins while the marker is being written."""
    store = SlowMembers(MemoryStore())
    dialogue = chat(store)
    async with serve(dialogue) as address, wire(address) as client:
        await joined(client, "topic:x", "general")
        assert await unread(client) == {"general": 0, "topic:x": 0}
        await dialogue.delete_room("topic:x")
        assert await unread(client) == {"general": 0}
        store.adding.clear()
        store.may_add.clear()
        await joined(client, "topic:y")
        await store.adding.wait()
        deletion = asyncio.create_task(dialogue.delete_room("topic:y"))
        await client.ask("rooms")
        store.may_add.set()
        await deletion
        await eventually(lambda: not dialogue.hub().inbox.writes.is_waiting("topic:y", "alice"))
        assert await dialogue.room("topic:y").members() == []


async def test_an_erased_user_has_no_inbox() -> None:
    """Markers go with what the user has sent."""
    dialogue = chat()
    async with serve(dialogue) as address:
        async with wire(address) as client:
            await joined(client, "general")
            assert await unread(client) == {"general": 0}
            await dialogue.erase_user("alice")
            assert await unread(client) == {}
        assert await dialogue.unread("alice") == {}
        assert await dialogue.room("general").members() == []


# -- the store -----------------------------------------------------------------------------------------------------


async def test_a_join_does_not_wait_for_a_store_that_is_down(caplog: pytest.LogCaptureFixture) -> None:
    """Nor fail with it; what was joined is in the inbox once it is up, as of the join."""
    store = FaultyStore(MemoryStore())
    dialogue = chat(store)
    async with serve(dialogue) as address, wire(address) as client:
        await unread(client)
        store.fail_directory = StoreUnavailable("down")
        await joined(client, "general", "other")
        await dialogue.trigger("general", message, 1)
        assert await unread(client) == {"general": 1, "other": 0}
        with pytest.raises(Refused, match="STORE_UNAVAILABLE"):
            await client.ask("mark_read", room="general", seq=1)
        with pytest.raises(StoreUnavailable):
            await dialogue.add_member("general", "bob")
        store.fail_directory = None
        assert await dialogue.room("general").members() == ["alice"]
        assert (await store.directory.markers("alice", ["general"]))[0].unread == 1
        assert (await client.ask("mark_read", room="general", seq=1))["unread"] == 0
        await eventually(lambda: not dialogue.hub().inbox.writes.waiting_of("alice"))
    assert caplog.text.count("memberships cannot be written now") == 1


async def test_markers_that_cannot_be_read_are_read_later() -> None:
    """Connecting and joining go on; ``unread`` says that it cannot be told; pushes come when it can."""
    store = FaultyStore(MemoryStore())
    dialogue = chat(store)
    async with serve(dialogue) as address:
        async with wire(address, "bob") as bob:
            await joined(bob, "general", "other")
            await unread(bob)
        await dialogue.add_member("other", "alice")
        await dialogue.trigger("other", message, 1)
        store.fail_read = StoreUnavailable("down")
        async with wire(address) as client:
            await joined(client, "general")
            with pytest.raises(Refused, match="STORE_UNAVAILABLE"):
                await unread(client)
            await dialogue.trigger("other", message, 2)
            await dialogue.trigger("general", message, 1)
            store.fail_read = None
            await until_pushed(client, "other", 2)
            assert await unread(client) == {"general": 1, "other": 2}


async def test_one_query_for_a_user_in_a_thousand_rooms(make_store: Callable[[], Store]) -> None:
    """Connecting reads the markers once, for all connections; answers, pushes and joining again read none."""
    store = SlowMembers(make_store())
    dialogue = chat(store)
    async with serve(dialogue) as address:
        inner = store.inner.directory
        for n in range(1000):
            await inner.add_member(f"topic:{n}", ["alice"])
        async with wire(address) as first, wire(address) as second:
            assert len(await unread(first)) == len(await unread(second)) == 1000
            await joined(first, *(f"topic:{n}" for n in range(20)))
            await dialogue.trigger("topic:1", message, 1)
            await until_pushed(second, "topic:1", 1)
            assert (await unread(second, rooms=["topic:1"])) == {"topic:1": 1}
            assert store.marker_reads == ["alice"]
            assert not store.adding.is_set(), "who is a member already is not written"


async def test_all_who_join_at_once_are_one_write() -> None:
    """One call for all that wait, in all rooms."""
    store = SlowMembers(MemoryStore())
    calls: list[dict[str, int]] = []
    add_members = store.directory.add_members

    async def counted(rooms: Any) -> Any:
        calls.append({room_id: len(members) for room_id, members in rooms.items()})
        return await add_members(rooms)

    store.directory.add_members = counted  # type: ignore[method-assign]
    dialogue = chat(store)
    async with serve(dialogue) as address:
        store.may_add.clear()
        async with wire(address, "user0") as one:
            await joined(one, "general")
            await store.adding.wait()
            others = [wire(address, f"user{n}") for n in range(1, 20)]
            clients = [await other.__aenter__() for other in others]
            try:
                await asyncio.gather(*(joined(client, "general", "topic:x") for client in clients))
                await asyncio.gather(*(unread(client) for client in clients))
                store.may_add.set()
                await eventually(lambda: len(calls) == 2)
                assert len(await dialogue.room("general").members()) == 20
                assert len(await dialogue.room("topic:x").members()) == 19
            finally:
                for other in others:
                    await other.__aexit__(None, None, None)
    assert calls == [{"general": 1}, {"general": 19, "topic:x": 19}]


async def test_what_waits_for_the_store_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """A further join goes on without a marker, and is counted; marking the room makes up for it."""
    monkeypatch.setattr("dialogue.server.member_writes.MEMBERS_WAITING", 1)
    store = FaultyStore(MemoryStore())
    dialogue = chat(store)
    async with serve(dialogue) as address, wire(address) as client:
        await unread(client)
        store.fail_directory = StoreUnavailable("down")
        await joined(client, "general", "other")
        assert "dialogue_members_dropped_total 1.0" in dialogue.metrics.render().decode()
        store.fail_directory = None
        await dialogue.trigger("other", message, 1)
        assert (await client.ask("mark_read", room="other", seq=1))["unread"] == 0
        assert await dialogue.room("other").members() == ["alice"]


async def test_joins_bring_so_many_rooms_into_an_inbox(monkeypatch: pytest.MonkeyPatch) -> None:
    """A client that joins room after room does not grow the store without end."""
    monkeypatch.setattr("dialogue.server.inbox.ROOMS_PER_INBOX", 3)
    dialogue = chat()
    async with serve(dialogue) as address, wire(address) as client:
        await unread(client)
        await joined(client, *(f"topic:{n}" for n in range(5)))
        assert len(await unread(client)) == 3
        with pytest.raises(Refused, match="RATE_LIMITED"):
            await client.ask("mark_read", room="topic:4", seq=0)
        assert "dialogue_members_dropped_total 3.0" in dialogue.metrics.render().decode()


async def test_what_was_joined_is_written_at_the_stop(tmp_path: Path) -> None:
    """Also if the store took it only then."""
    url = f"sqlite:///{tmp_path / 'log.db'}"
    store = FaultyStore(SQLStore(url))
    dialogue = chat(store)
    async with serve(dialogue) as address, wire(address) as client:
        await unread(client)
        store.fail_directory = StoreUnavailable("down")
        await joined(client, "general")
        await dialogue.trigger("general", message, 1)
        store.fail_directory = None
    again = chat(SQLStore(url))
    async with again.lifespan():
        assert await again.unread("alice") == {"general": 1}


async def test_nothing_is_kept_of_users_who_have_gone() -> None:
    """Markers in memory are those of users who are online."""
    dialogue = chat()
    async with serve(dialogue) as address:
        for n in range(5):
            async with wire(address, f"user{n}") as client:
                await joined(client, "general", f"topic:{n}")
                await unread(client)
        inbox = dialogue.hub().inbox
        await eventually(lambda: not inbox.watched)
        assert not inbox._online
        assert not inbox._departed
        assert not inbox._loads
