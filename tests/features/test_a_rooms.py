"""Group A: rooms and events."""

from __future__ import annotations

import asyncio
import functools
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel, Field

from dialogue import (
    Client,
    ConfigError,
    Dialogue,
    DirectRoom,
    Event,
    EventNotAllowed,
    History,
    JoinDenied,
    Limits,
    PermissionDenied,
    RoomConfig,
    RoomExists,
    RoomHandle,
    RoomNotFound,
    define_event,
)
from tests.server.harness import Refused, Wire, eventually, serve, wire


class Message(BaseModel):
    text: str = Field(min_length=1, max_length=20)
    count: int = 0


message = define_event("message", schema=Message, history=History(limit=5))
note = define_event("note", history=History(limit=5))
typing_event = define_event("typing")


async def refused(client: Wire, type: str, **fields: Any) -> str:
    """Return the code with which a command is refused."""
    with pytest.raises(Refused) as raised:
        await client.ask(type, **fields)
    return str(raised.value.code)


def test_a1_mistakes_are_found_when_declared() -> None:
    """A1: a wrong declaration raises at once, and names the room and the field."""
    with pytest.raises(ConfigError, match=r"room 'general', field 'max_size'.*0.*at least 1"):
        Dialogue(rooms={"general": RoomConfig(events=[message], max_size=0)})
    with pytest.raises(ConfigError, match=r"room 'dm:\{a\}', field|room 'dm:\{a\}'"):
        Dialogue(rooms={"dm:{a}": DirectRoom(events=[message])})


async def test_a2_schemas_validate_and_coerce() -> None:
    """A2: pydantic validates and coerces on the way in; a type without a schema takes any JSON."""
    async with (
        serve(Dialogue(rooms={"general": RoomConfig(events=[message, note])})) as address,
        wire(address) as alice,
    ):
        await alice.ask("join", room="general")
        await alice.trigger("general", "message", {"text": "hi", "count": "7"})
        await alice.trigger("general", "note", [1, None, {"any": "json"}])
        with pytest.raises(Refused) as raised:
            await alice.trigger("general", "message", {"text": "", "count": "many"})
        assert raised.value.code == "VALIDATION_FAILED"
        assert {item["loc"][0] for item in raised.value.message["details"]} == {"text", "count"}
        assert [event["data"] for event in await alice.until_events(2)] == [
            {"text": "hi", "count": 7},
            [1, None, {"any": "json"}],
        ]


async def test_a3_any_name_none_and_who_may_trigger() -> None:
    """A3: ``"*"`` admits any name, bounded; ``[]`` none; ``publish`` says who may trigger an event."""
    alert = define_event("alert", history=History(), publish="server")

    def is_admin(client: Client, room: RoomHandle) -> bool:
        return client.user_id == "admin" and room.room_id == "staff"

    notice = define_event("notice", history=History(), publish=is_admin)
    dialogue = Dialogue(
        rooms={
            "open": RoomConfig(events="*"),
            "closed": RoomConfig(),
            "staff": RoomConfig(events=[alert, notice]),
        },
        limits=Limits(event_names_per_room=3),
    )
    async with serve(dialogue) as address, wire(address) as alice, wire(address, "admin") as admin:
        for client in (alice, admin):
            for room in ("open", "closed", "staff"):
                await client.ask("join", room=room)
        for name in ("one", "two", "three"):
            assert (await alice.trigger("open", name, 1))["seq"]
        assert await refused(alice, "trigger", room="open", event="four", data=1) == "EVENT_NOT_ALLOWED"
        assert await refused(alice, "trigger", room="closed", event="one", data=1) == "EVENT_NOT_ALLOWED"
        for client in (alice, admin):
            assert await refused(client, "trigger", room="staff", event="alert") == "EVENT_NOT_ALLOWED"
        await dialogue.trigger("staff", alert, "from the server")
        assert await refused(alice, "trigger", room="staff", event="notice") == "EVENT_NOT_ALLOWED"
        assert (await admin.trigger("staff", "notice", "from the admin"))["seq"] == 2
        with pytest.raises(EventNotAllowed):
            await dialogue.trigger("closed", "one", 1)


async def test_a4_what_a_room_is() -> None:
    """A4: size, description, default subscriptions, creator and join sync are as declared, and told."""
    dialogue = Dialogue(
        rooms={
            "general": RoomConfig(
                name="General",
                description="For all",
                events=[message, note, typing_event],
                max_size=2,
                default_subscriptions=[note, "typing"],
                sync_history_on_join=True,
            ),
            "short": RoomConfig(events=[message], sync_history_on_join=2),
            "none": RoomConfig(events=[message], sync_history_on_join=False),
        }
    )
    async with (
        serve(dialogue) as address,
        wire(address) as alice,
        wire(address, "bob") as bob,
        wire(address, "carol") as carol,
    ):
        for text in "abcd":
            for room in ("general", "short", "none"):
                await dialogue.trigger(room, message, {"text": text})
        joined = await alice.ask("join", room="general")
        assert (joined["name"], joined["subscriptions"]) == ("General", ["note", "typing"])
        assert joined["events"] == []  # of what it is not subscribed to nothing is synced
        everything = await bob.ask("join", room="general", events="*")
        assert [event["data"]["text"] for event in everything["events"]] == list("abcd")
        assert await refused(carol, "join", room="general") == "ROOM_FULL"
        texts = [event["data"]["text"] for event in (await carol.ask("join", room="short"))["events"]]
        assert texts == ["c", "d"]
        assert (await carol.ask("join", room="none"))["events"] == []
        rooms = {room["id"]: room for room in (await alice.ask("rooms"))["rooms"]}
        assert rooms["general"] == {
            "id": "general",
            "name": "General",
            "description": "For all",
            "size": 2,
            "max_size": 2,
            "created_by_id": None,
        }


@pytest.mark.parametrize("store", ["memory", "sqlite"])
async def test_a5_rooms_made_and_deleted_while_running(store: str, tmp_path: Path) -> None:
    """A5: server and clients make and delete rooms; only the creator deletes; all who may see them are told."""
    url = f"sqlite:///{tmp_path / 'a5.db'}" if store == "sqlite" else None
    told: list[tuple[str, str]] = []
    dialogue = Dialogue(
        rooms={"general": RoomConfig(events=[message]), "team:{id}": RoomConfig(events=[message])},
        client_rooms=RoomConfig(events=[message], max_size=10),
        store=url,
    )

    @dialogue.can_see
    def may_see(client: Client, room: RoomHandle) -> bool:
        return not room.room_id.startswith("secret") or client.user_id != "carol"

    dialogue.on_room_created(lambda room: told.append(("created", room.room_id)))
    dialogue.on_room_deleted(lambda room: told.append(("deleted", room.room_id)))
    async with (
        serve(dialogue) as address,
        wire(address) as alice,
        wire(address, "bob") as bob,
        wire(address, "carol") as carol,
    ):
        ok = await alice.ask("create_room", room="secret", name="Secret", description="psst", max_size=3)
        assert ok["type"] == "ok"
        record = {
            "id": "secret",
            "name": "Secret",
            "description": "psst",
            "size": 0,
            "max_size": 3,
            "created_by_id": "alice",
        }
        for client in (alice, bob):
            created = await client.until(functools.partial(_told, client, "room_created"))
            assert {key: created[0][key] for key in record} == record
        assert record in (await bob.ask("rooms"))["rooms"]
        assert "secret" not in {room["id"] for room in (await carol.ask("rooms"))["rooms"]}
        assert await refused(carol, "join", room="secret") == "ROOM_NOT_FOUND"
        assert await refused(carol, "delete_room", room="secret") == "ROOM_NOT_FOUND"
        assert await refused(bob, "delete_room", room="secret") == "PERMISSION_DENIED"
        assert await refused(bob, "create_room", room="secret", name="Mine") == "ROOM_EXISTS"
        assert await refused(bob, "create_room", room="team:x", name="Team") == "PERMISSION_DENIED"
        assert await refused(bob, "create_room", room="big", name="Big", max_size=11) == "INVALID_REQUEST"
        await bob.ask("join", room="secret")
        assert (await bob.trigger("secret", "message", {"text": "hi"}))["seq"] == 1
        await alice.ask("delete_room", room="secret")
        left = await bob.until(lambda: _told(bob, "left"))
        assert left[0]["room"] == "secret"
        assert (await bob.until(lambda: _told(bob, "room_deleted")))[0]["room"] == "secret"
        assert await refused(bob, "trigger", room="secret", event="message") == "ROOM_NOT_FOUND"
        # Made again it is empty, and its seqs go on.
        await alice.ask("create_room", room="secret", name="Again")
        joined = await bob.ask("join", room="secret")
        assert (joined["seq"], joined["events"], joined["name"]) == (1, [], "Again")
        assert (await bob.trigger("secret", "message", {"text": "2"}))["seq"] == 2
        assert not [m for m in carol.messages if m["type"].startswith("room_")]
        # The application's: of a pattern, or of what clients may make.
        room = await dialogue.create_room("team:red", name="Red", created_by_id="bob")
        assert (room.name, room.created_by_id) == ("Red", "bob")
        await dialogue.update_room("team:red", description="The red ones")
        updated = await bob.until(lambda: _told(bob, "room_updated"))
        assert updated[0]["description"] == "The red ones"
        with pytest.raises(RoomExists):
            await dialogue.create_room("general")
        with pytest.raises(PermissionDenied):
            await dialogue.delete_room("general")
    await eventually(lambda: ("deleted", "secret") in told)
    assert told[:2] == [("created", "secret"), ("deleted", "secret")]
    if url is not None:
        async with serve(dialogue) as address, wire(address) as alice:
            rooms = {room["id"]: room for room in (await alice.ask("rooms"))["rooms"]}
            assert rooms["secret"]["name"] == "Again"
            assert rooms["team:red"]["description"] == "The red ones"


def _told(client: Wire, type: str) -> list[dict[str, Any]]:
    return [m for m in client.messages if m["type"] == type]


async def test_a5_clients_make_no_rooms_unless_declared() -> None:
    """A5: without ``client_rooms`` clients make none."""
    async with serve(Dialogue(rooms={"general": RoomConfig()})) as address, wire(address) as alice:
        assert await refused(alice, "create_room", room="mine", name="Mine") == "PERMISSION_DENIED"


async def test_a6_pattern_rooms_and_direct_rooms(tmp_path: Path) -> None:
    """A6: made on the first allowed join and not by a denied one; parameters; the sorted pair and nobody else."""
    seen: list[dict[str, str]] = []
    dialogue = Dialogue(
        rooms={
            "team:{name}": RoomConfig(events=[message]),
            "dm:{a}:{b}": DirectRoom(events=[message]),
        },
        store=f"sqlite:///{tmp_path / 'a6.db'}",
    )

    @dialogue.before_join("team:{name}")
    async def guard(client: Client, params: dict[str, str]) -> None:
        seen.append(params)
        if params["name"] != "red":
            raise JoinDenied("not your team")

    async with (
        serve(dialogue) as address,
        wire(address) as alice,
        wire(address, "bob") as bob,
        wire(address, "eve") as eve,
    ):
        await alice.ask("join", room="team:red")
        with pytest.raises(Refused, match="not your team"):
            await alice.ask("join", room="team:blue")
        assert seen == [{"name": "red"}, {"name": "blue"}]
        assert [room.room_id for room in dialogue.rooms()] == ["team:red"]
        for room in ("team:", "team:a:b", "team:a/b", "team:" + "x" * 129, "dm:bob:alice", "dm:alice"):
            assert await refused(alice, "join", room=room) == "ROOM_NOT_FOUND", room
        for client in (alice, bob):
            await client.ask("join", room="dm:alice:bob")
        assert await refused(eve, "join", room="dm:alice:bob") == "JOIN_DENIED"
        await alice.trigger("dm:alice:bob", "message", {"text": "psst"})
        assert (await bob.until_events(1))[0]["data"]["text"] == "psst"
        assert dialogue.direct_room("bob", "alice").room_id == "dm:alice:bob"
        with pytest.raises(RoomNotFound):
            dialogue.direct_room("alice", "b:o:b")


async def test_a7_one_order_whatever_the_concurrency() -> None:
    """A7: ten publishers at once, and everyone sees the same order."""
    dialogue = Dialogue(rooms={"general": RoomConfig(events=[note])})
    async with serve(dialogue) as address:
        clients = []
        async with asyncio.TaskGroup() as group:

            async def work(number: int) -> None:
                async with wire(address, f"user-{number}") as client:
                    await client.ask("join", room="general")
                    clients.append(client)
                    await eventually(lambda: len(clients) == 10)
                    for step in range(20):
                        await client.trigger("general", "note", [number, step])
                    await client.until_events(200)

            for number in range(10):
                group.create_task(work(number))
    views = [[(event["seq"], event["data"]) for event in client.events()] for client in clients]
    assert all(view == views[0] for view in views)
    assert [seq for seq, _ in views[0]] == list(range(1, 201))


async def test_a8_meta_and_kind() -> None:
    """A8: ``meta`` comes beside ``data``; ``kind`` is told and can be filtered by."""
    job = define_event("job", history=History(), kind="command")
    async with (
        serve(Dialogue(rooms={"general": RoomConfig(events=[note, job])})) as address,
        wire(address) as alice,
    ):
        await alice.ask("join", room="general")
        await alice.trigger("general", "note", 1, meta={"client": "web"})
        await alice.trigger("general", "job", 2)
        first, second = await alice.until_events(2)
        assert (first["meta"], first.get("kind"), second["kind"]) == ({"client": "web"}, None, "command")
        page = await alice.ask("history", room="general", kind="command")
        assert [event["data"] for event in page["events"]] == [2]


async def test_a9_idle_rooms_leave_memory_and_come_back(tmp_path: Path) -> None:
    """A9: a room that nobody uses is not in memory; its next user finds its history, and seqs go on."""
    dialogue = Dialogue(
        rooms={"team:{id}": RoomConfig(events=[note])},
        store=f"sqlite:///{tmp_path / 'a9.db'}",
        limits=Limits(idle_seconds=0.05, ping_seconds=1),
    )
    async with serve(dialogue) as address, wire(address) as alice:
        await alice.ask("join", room="team:a")
        await alice.trigger("team:a", "note", "kept")
        await alice.ask("leave", room="team:a")
        await eventually(lambda: dialogue.rooms() == [])
        joined = await alice.ask("join", room="team:a")
        assert (joined["seq"], [event["data"] for event in joined["events"]]) == (1, ["kept"])
        assert (await alice.trigger("team:a", "note", "next"))["seq"] == 2


async def test_a10_the_servers_view() -> None:
    """A10: rooms, clients and memberships can be asked for and changed from the application."""
    dialogue = Dialogue(
        rooms={
            "one": RoomConfig(events=[note], max_size=2),
            "two": RoomConfig(events=[note, typing_event]),
        }
    )

    @dialogue.on_connected
    async def connected(client: Client) -> None:
        client.state["greeted"] = True
        client.send("hello", {"you": client.user_id})
        await client.join("one")

    async with serve(dialogue) as address, wire(address) as alice, wire(address, "bob") as bob:
        await bob.until(lambda: _told(bob, "joined"))
        await alice.until(lambda: _told(alice, "joined"))
        assert _told(alice, "message")[0]["data"] == {"you": "alice"}
        one = dialogue.room("one")
        assert (one.size, one.is_full) == (2, True)
        assert {client.user_id for client in one.participants()} == {"alice", "bob"}
        assert {client.user_id for client in dialogue.clients()} == {"alice", "bob"}
        (client,) = dialogue.clients_of("alice")
        assert client.state == {"greeted": True}
        assert (client.claims, client.meta) == ({}, {})
        await client.join("two")
        client.unsubscribe("two", ["note"])
        assert client.subscriptions("two") == ["typing"]
        client.subscribe("two", "note")
        assert client.subscriptions("two") == "*"
        assert dialogue.is_in_room("alice", "two")
        assert not dialogue.is_in_room("bob", "two")
        heard: list[Event[Any]] = []
        stop_hearing = dialogue.room("two").on(note, lambda event: heard.append(event))
        await dialogue.room("two").trigger(note, "from the server")
        assert (await alice.until_events(1, "two"))[0]["from"] == "system"
        await eventually(lambda: [event.data for event in heard] == ["from the server"])
        stop_hearing()
        rooms = dialogue.rooms_of("alice")
        assert [room.room_id for room in rooms] == ["one", "two"]
        visited: list[str] = []
        await rooms.for_all(lambda room: visited.append(room.room_id))
        await rooms.leave_all(lambda room: visited.append(f"left {room.room_id}"))
        assert visited == ["one", "two", "left one", "left two"]
        assert client.rooms == []
        client.disconnect(code=1000, reason="bye")
        assert await alice.until_closed() == 1000
    await dialogue.start(port=0)
    assert dialogue.port
    async with wire(f"127.0.0.1:{dialogue.port}") as carol:
        await carol.until(lambda: _told(carol, "joined"))
    await dialogue.stop()
    assert dialogue.port is None
