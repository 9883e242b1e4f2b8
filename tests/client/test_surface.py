"""Rooms, presence, typing and announcements of the client against the real server."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from dialogue import Dialogue, History, Limits, RoomConfig, define_event
from dialogue.client import DialogueClient, PresenceChange, RoomInfo, Timing
from dialogue.errors import (
    EventNotAllowed,
    NotJoined,
    PermissionDenied,
    RateLimited,
    RoomExists,
    RoomFull,
    RoomNotFound,
)
from dialogue.testing import connect, link

from .fake import FakeConnection, FakeSocketServer, Message, until

message = define_event("message", history=History(limit=100))
typing = define_event("typing")
ROOM = RoomConfig(name="Room", events=[message, typing])


def make_dialogue(**options: Any) -> Dialogue:
    return Dialogue(
        rooms={"general": ROOM, "quiet": RoomConfig(name="Quiet", events=[message], presence=False)},
        client_rooms=RoomConfig(events=[message, typing], max_size=5),
        **{"limits": Limits(presence_seconds=0.01), **options},
    )


async def test_a_room_is_made_listed_announced_and_deleted() -> None:
    """Everyone who may see it is told, its size limit is kept, and its handles end with the room."""
    dialogue = make_dialogue()
    async with connect(dialogue, user_id="ann") as ann, connect(dialogue, user_id="bob") as bob:
        told: list[Any] = []
        stops = [
            register(told.append)
            for register in (bob.on_room_created, bob.on_room_updated, bob.on_room_deleted)
        ]
        await ann.create_room("club", "The club", description="ours", max_size=1)
        made = RoomInfo("club", "The club", "ours", 0, 1, "ann")
        await until(lambda: told == [made])
        assert made in await bob.rooms()
        with pytest.raises(RoomExists):
            await bob.create_room("club", "Mine")
        with pytest.raises(PermissionDenied):
            await bob.delete_room("club")
        room = await ann.join("club")
        with pytest.raises(RoomFull):
            await bob.join("club")
        left: list[str] = []
        room.on_left(left.append)
        await dialogue.update_room("club", name="Club")
        await until(lambda: len(told) == 2)
        assert (told[1].name, told[1].size) == ("Club", 1)
        await ann.delete_room("club")
        await until(lambda: told[2:] == ["club"])
        await until(lambda: left)
        assert left == ["the room was deleted"]
        for call in (room.trigger(message, 1), room.page(), room.presence(), room.mark_read(1), room.leave()):
            with pytest.raises(NotJoined, match="the room was deleted"):
                await call
        with pytest.raises(RoomNotFound):
            await ann.delete_room("club")
        for stop in stops:
            stop()
        await ann.create_room("other", "Other")
        await bob.rooms()
        assert len(told) == 3


async def test_presence_is_asked_for_and_its_changes_are_told() -> None:
    """Users count once; who comes and goes is told to those in the room."""
    dialogue = make_dialogue()
    async with connect(dialogue, user_id="ann") as ann:
        room = await ann.join("general")
        presence = await room.presence()
        assert (presence.users, presence.count) == (["ann"], 1)
        changes: list[PresenceChange] = []
        room.on_presence(changes.append)
        async with connect(dialogue, user_id="bob") as bob, connect(dialogue, user_id="bob") as again:
            await bob.join("general")
            await again.join("general")
            await until(lambda: any("bob" in change.joined for change in changes))
            presence = await room.presence()
            assert (sorted(presence.users), presence.count) == (["ann", "bob"], 2)
        await until(lambda: any("bob" in change.left for change in changes))
        assert changes[-1] == PresenceChange((), ("bob",), 1)
        with pytest.raises(NotJoined):
            await ann.room("quiet").presence()
        with pytest.raises(PermissionDenied):
            await (await ann.join("quiet")).presence()


async def test_typing_is_seen_until_it_is_sent_over_or_its_user_left() -> None:
    """Also on another device of one's own, whose user is never among them."""
    dialogue = make_dialogue()
    async with connect(dialogue, user_id="ann") as ann, connect(dialogue, user_id="ann") as device:
        room, other = await ann.join("general"), await device.join("general")
        seen: list[tuple[str, ...]] = []
        tracker = room.typing_users(typing)
        tracker.on_change(lambda: seen.append(tracker.users))
        heard: list[str] = []
        room.on(typing, lambda event: heard.append(event.sender))
        arrived: list[str] = []
        room.on_presence(lambda change: arrived.extend(change.joined))
        async with connect(dialogue, user_id="bob") as bob:
            theirs = await bob.join("general")
            await until(
                lambda: "bob" in arrived
            )  # of whom nobody knows that he came nobody is told that he left
            for _ in range(5):
                await theirs.set_typing(event=typing)
            await until(lambda: seen == [("bob",)])
            assert heard == ["bob"]
            await theirs.trigger(message, "hello")
            await until(lambda: seen == [("bob",), ()])
            await theirs.set_typing(False)
            await theirs.set_typing()
            await until(lambda: len(seen) == 3)
            await theirs.set_typing(False)
            await until(lambda: len(seen) == 4)
            await other.set_typing()
            await theirs.set_typing()
            await until(lambda: len(seen) == 5)
        await until(lambda: len(seen) == 6)
        assert seen == [("bob",), ()] * 3
        assert heard.count("ann") == 1
        tracker.close()
        tracker.close()


async def test_typing_expires_and_ends_with_the_room() -> None:
    """Nothing more is heard: the entry goes by itself; whoever leaves sees nobody."""
    dialogue = make_dialogue()
    async with connect(dialogue, user_id="ann") as ann, connect(dialogue, user_id="bob") as bob:
        room, theirs = await ann.join("general"), await bob.join("general")
        short, long = room.typing_users(seconds=0.01), room.typing_users(seconds=1000)
        changes: list[str] = []
        short.on_change(lambda: changes.append("short"))
        await theirs.trigger(typing)
        await until(lambda: changes and not short.users)
        assert list(long.users) == ["bob"]
        await room.leave()
        assert list(long.users) == []
        with pytest.raises(ValueError, match="above 0"):
            theirs.typing_users(seconds=0)


async def test_typing_that_is_refused_or_has_no_connection() -> None:
    """The error is raised, and the next stroke tries again; without a connection nothing is said."""
    dialogue = make_dialogue()
    async with connect(dialogue, user_id="ann") as ann:
        quiet, general = await ann.join("quiet"), await ann.join("general")
        for _ in range(2):
            with pytest.raises(EventNotAllowed):
                await quiet.set_typing()
        with link(ann).down():
            await until(lambda: ann.state == "resuming")
            await general.set_typing()
        await until(lambda: ann.state == "connected")
        async with connect(dialogue, user_id="bob") as bob:
            tracker = (await bob.join("general")).typing_users()
            await general.set_typing()
            await until(lambda: tracker.users == ("ann",))


async def test_many_rooms_are_back_after_a_loss_although_joins_are_limited() -> None:
    """What is too fast is tried again: no room is lost, none reset, and no event of any is missed."""
    config = RoomConfig(events=[message])
    dialogue = Dialogue(
        rooms={"room:{name}": config},
        limits=Limits(
            user_joins_burst=200,
            user_joins_per_second=400,
            joins_burst=200,
            joins_per_second=400,
            errors_per_minute=80,
        ),
    )
    quick = Timing(backoff_seconds=0.05, backoff_limit_seconds=0.2, too_fast_seconds=0.05)
    async with connect(dialogue, user_id="ann", timing=quick) as ann:
        heard: list[tuple[str, Any]] = []
        left: list[str] = []
        rooms = []
        for number in range(200):
            room = await join(ann, f"room:{number}")
            room.on(message, lambda event: heard.append((event.room_id, event.data)))
            room.on_left(left.append)
            room.on_reset(lambda: left.append("reset"))
            rooms.append(room)
        for turn in range(3):
            with link(ann).down():
                for room in rooms:
                    await dialogue.trigger(room.room_id, message, turn)
        await until(lambda: len(heard) == 600 or left)
        assert left == []
        assert heard.count(("room:199", 2)) == 1
        assert len(set(heard)) == 600


async def join(client: DialogueClient, room_id: str) -> Any:
    """Join, as an application does that honours what it is told."""
    while True:
        try:
            return await client.join(room_id)
        except RateLimited as error:
            await asyncio.sleep(error.retry_after_seconds or 1)


async def test_unread_counts_are_asked_for_marked_and_pushed() -> None:
    """The newest seq that was handed out is what is read, unless another one is said."""

    def answer(connection: FakeConnection, command: Message) -> bool:
        match command["type"]:
            case "unread":
                rooms = command.get("rooms", ["general", "side"])
                message = {"type": "unread", "unread": dict.fromkeys(rooms, 3)}
            case "mark_read":
                message = {"type": "ok", "unread": 10 - command["seq"]}
            case _:
                return False
        connection.send({**message, "ref": command["ref"]})
        return True

    async with (
        FakeSocketServer().running() as server,
        DialogueClient(server.url, auth={"user_id": "ann"}) as client,
    ):
        server.intercept = answer
        pushed: list[dict[str, int]] = []
        stop = client.on_unread(pushed.append)
        assert await client.unread() == {"general": 3, "side": 3}
        assert await client.unread(["side"]) == await client.unread("side") == {"side": 3}
        with pytest.raises(ValueError, match="was not joined"):
            await client.room("general").mark_read()
        assert await client.room("general").mark_read(4) == 6
        server.publish("general", "message", 1)
        room = await client.join("general")
        assert await room.mark_read() == 9
        heard: list[int | None] = []
        room.on("message", lambda event: heard.append(event.seq))
        server.publish("general", "message", 2)
        await until(lambda: heard == [2])
        assert await room.mark_read() == 8
        server.connections[0].send({"type": "unread", "unread": {"side": 4}})
        await until(lambda: pushed == [{"side": 4}])
        stop()
