"""Who one is and what one may see: forged senders, rooms, tokens, cursors and origins."""

from __future__ import annotations

import json
from typing import Any

import pytest
from websockets.exceptions import InvalidStatus

from dialogue import Client, Dialogue, RoomConfig, RoomHandle
from dialogue.config import DirectRoom
from dialogue.protocol import decode_frame

from ..server.harness import Wire, message, note, rooms, wire
from .raw import raw
from .target import attacked, auth_of, authenticate, code_of

FORGED = {"from": "ann", "sender": "ann", "user_id": "ann", "userId": "ann", "client_id": "ann", "id": 7}


def direct_rooms(**options: Any) -> dict[str, RoomConfig]:
    return {
        "general": RoomConfig(events=[message, note], **options),
        "dm:{a}:{b}": DirectRoom(events=[message, note], **options),
    }


async def enter(client: Wire, user_id: str) -> Wire:
    """Connect with the user's own token."""
    await client.ask("connect", auth=auth_of(user_id))
    return client


# -- senders and tokens --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("where", ["command", "meta", "data", "since"])
async def test_a_sender_is_never_what_the_client_says(where: str) -> None:
    """Whatever fields a trigger has, its event is from the user of its connection."""
    extra: dict[str, Any] = FORGED if where == "command" else {where: FORGED}
    async with attacked(Dialogue(rooms())) as address, wire(address, "ann") as ann:
        await ann.ask("join", room="general")
        async with wire(address, "mallory") as mallory:
            await mallory.ask("join", room="general")
            ack = await mallory.ask("trigger", **{"room": "general", "event": "message", "data": "x"} | extra)
            await mallory.ask("edit", **{"room": "general", "seq": ack["seq"], "data": "y", **extra})
            first, changed = await ann.until_events(2)
            assert {first["from"], changed["from"]} == {"mallory"}
            assert (first["seq"], first["id"]) == (ack["seq"], ack["id"])
            (read,) = (await ann.ask("history", room="general", event="message"))["events"]
            assert read["from"] == "mallory"
            assert await code_of(ann.ask("edit", room="general", seq=1, data="z")) == "PERMISSION_DENIED"


@pytest.mark.parametrize(
    "auth",
    [
        None,
        {},
        {"token": "secret-"},
        {"token": "ann"},
        {"token": {"$ne": ""}},
        {"token": ["secret-ann"]},
        FORGED,
    ],
    ids=["none", "empty", "nobody's", "a name", "an operator", "a list", "an id"],
)
async def test_a_forged_token_is_answered_with_nothing_but_4001(auth: Any) -> None:
    """What was sent along with the refused `connect` is not answered, and has no effect."""
    dialogue = Dialogue(rooms())
    dialogue.authenticate(authenticate)
    async with attacked(dialogue) as address, wire(address, None) as mallory:
        commands: list[dict[str, Any]] = [{"type": "connect", "ref": 1, "auth": auth}]
        commands += [{"type": "join", "room": "general", "ref": 2}, {"type": "rooms", "ref": 3}]
        await mallory.send_raw(json.dumps(commands))
        await mallory.send_raw(json.dumps(commands[1:]))
        assert await mallory.until_closed() == 4001
        (refusal,) = mallory.messages
        assert (refusal["ref"], refusal["code"]) == (1, "UNAUTHENTICATED")
        assert not dialogue.hub().rooms


async def test_commands_before_connect_have_no_effect() -> None:
    """Each is refused, the ones of the same frame too, and none opens a room."""
    dialogue = Dialogue(rooms())
    async with attacked(dialogue) as address, wire(address, None) as mallory:
        frame = [
            {"type": "join", "room": "general", "ref": 1},
            {"type": "trigger", "room": "general", "event": "message", "data": 1, "ref": 2},
            {"type": "create_room", "room": "mine", "name": "Mine", "ref": 3},
            {"type": "pong", "ref": 4},
        ]
        await mallory.send_raw(json.dumps(frame))
        await mallory.until(lambda: len(mallory.messages) == 4)
        assert {m["code"] for m in mallory.messages} == {"UNAUTHENTICATED"}
        assert not dialogue.hub().rooms


async def test_a_second_connect_cannot_become_someone_else() -> None:
    """Not with another's valid token either; the connection stays what it was."""
    dialogue = Dialogue(direct_rooms())
    dialogue.authenticate(authenticate)
    async with attacked(dialogue) as address, wire(address, None) as mallory:
        await enter(mallory, "mallory")
        assert await code_of(mallory.ask("connect", auth=auth_of("ann"))) == "PERMISSION_DENIED"
        assert await code_of(mallory.ask("join", room="dm:ann:bob")) == "JOIN_DENIED"
        await mallory.ask("join", room="dm:ann:mallory")
        await mallory.trigger("dm:ann:mallory", "message", "me")
        assert (await mallory.until_events(1))[0]["from"] == "mallory"


@pytest.mark.parametrize("name", ["system", "", "a\u0000b", "x" * 129, 1.5, [], {}])
async def test_nobody_is_called_like_the_server(name: Any) -> None:
    """A user id that is the server's own, or none at all, is refused also where anyone may be anyone."""
    async with attacked(Dialogue(rooms())) as address, wire(address, None) as mallory:
        assert await code_of(mallory.ask("connect", auth={"user_id": name})) == "VALIDATION_FAILED"
        assert await code_of(mallory.ask("rooms")) == "UNAUTHENTICATED"


# -- rooms ---------------------------------------------------------------------------------------------------------

OUTSIDE: dict[str, dict[str, Any]] = {
    "leave": {},
    "subscribe": {"events": "*"},
    "unsubscribe": {"events": "*"},
    "trigger": {"event": "message", "data": "x"},
    "edit": {"seq": 1, "data": "x"},
    "delete": {"seq": 1},
    "history": {},
    "presence": {},
}


@pytest.mark.parametrize("command", OUTSIDE)
async def test_nothing_works_in_a_room_that_is_not_joined(command: str) -> None:
    """In a declared room, and in other users' direct room, nothing is read or changed from outside."""
    async with attacked(Dialogue(direct_rooms())) as address, wire(address, "ann") as ann:
        for room in ("general", "dm:ann:bob"):
            await ann.ask("join", room=room)
            await ann.trigger(room, "message", "private")
        async with wire(address, "mallory") as mallory:
            for room in ("general", "dm:ann:bob"):
                assert await code_of(mallory.ask(command, room=room, **OUTSIDE[command])) == "NOT_JOINED"
            assert "private" not in json.dumps(mallory.messages)
        for room in ("general", "dm:ann:bob"):
            (event,) = (await ann.ask("history", room=room))["events"]
            assert (event["data"], event.get("edited"), event.get("deleted")) == ("private", None, None)


@pytest.mark.parametrize(
    "room",
    [
        *("dm:bob:ann", "dm:ann", "dm:ann:", "dm::ann", "dm:ann:bob:mallory", "DM:ann:bob", " dm:ann:bob"),
        *("dm:ann:bob ", "dm:ann:bob\n", "dm:ann\x00:bob", "dm:ann:b/b", "dm:ann:{b}", "", "x" * 256),
        "dm:ann:" + "b" * 129,
    ],
)
async def test_what_is_almost_a_direct_room_is_none(room: str) -> None:
    """Its users' ids in the wrong order, one too many, one too few, or anything around them: no way in."""
    async with attacked(Dialogue(direct_rooms())) as address, wire(address, "ann") as ann:
        if room in ("dm:ann:{b}", "dm:ann:bob "):
            # The room of a user who is called so; not the one of bob.
            assert (await ann.ask("join", room=room))["room"] == room
        else:
            assert await code_of(ann.ask("join", room=room)) == "ROOM_NOT_FOUND"
        async with wire(address, "mallory") as mallory:
            code = await code_of(mallory.ask("join", room=room))
            assert code in ("ROOM_NOT_FOUND", "JOIN_DENIED")


async def test_a_join_is_not_bypassed_by_resuming_or_by_a_cursor() -> None:
    """`since` and a cursor of another's are no membership; a cursor made in one room reads only the room it is for."""
    dialogue = Dialogue(direct_rooms())

    @dialogue.before_join
    async def guard(client: Client, room: RoomHandle) -> bool:
        return room.room_id != "general" or client.user_id != "mallory"

    async with (
        attacked(dialogue) as address,
        wire(address, "ann") as ann,
        wire(address, "mallory") as mallory,
    ):
        for room in ("general", "dm:ann:bob"):
            joined = await ann.ask("join", room=room)
            for number in range(3):
                await ann.trigger(room, "message", f"private {number}")
        page = await ann.ask("history", room="general", limit=1)
        for since in ({"seq": 0, "epoch": joined["epoch"]}, {"seq": 2, "epoch": joined["epoch"]}):
            for room in ("general", "dm:ann:bob"):
                assert await code_of(mallory.ask("join", room=room, since=since)) == "JOIN_DENIED"
        assert await code_of(mallory.ask("history", room="general", cursor=page["next"])) == "NOT_JOINED"
        await mallory.ask("join", room="dm:ann:mallory")
        for cursor in (page["next"], page["previous"]):
            own = await mallory.ask("history", room="dm:ann:mallory", cursor=cursor)
            assert own["events"] == []
        assert "private" not in json.dumps(mallory.messages)


async def test_a_history_of_offsets_stays_in_its_room() -> None:
    """Offsets and seqs are those of the room that is named."""
    async with attacked(Dialogue(direct_rooms())) as address, wire(address, "ann") as ann:
        await ann.ask("join", room="general")
        await ann.trigger("general", "message", "private")
        async with wire(address, "mallory") as mallory:
            await mallory.ask("join", room="dm:ann:mallory")
            fields: list[dict[str, Any]] = [
                {"event": "message", "start": 0, "end": 2**53 - 1},
                {"before": 2**53 - 1},
                {"after": 0},
                {"around": 1},
            ]
            for bounds in fields:
                assert (await mallory.ask("history", room="dm:ann:mallory", **bounds))["events"] == []
            assert (
                await code_of(mallory.ask("edit", room="dm:ann:mallory", seq=1, data=1)) == "INVALID_REQUEST"
            )


def client_rooms(**options: Any) -> Dialogue:
    return Dialogue(
        {"general": RoomConfig(events=[message]), "vault": RoomConfig(events=[message])},
        client_rooms=RoomConfig(events=[message]),
        **options,
    )


async def test_others_rooms_are_neither_deleted_nor_made_again() -> None:
    """Nobody deletes what someone else has made or what is declared, nor makes it a second time."""
    async with (
        attacked(client_rooms()) as address,
        wire(address, "ann") as ann,
        wire(address, "mallory") as mallory,
    ):
        await ann.ask("create_room", room="mine", name="Mine")
        await mallory.ask("join", room="mine")
        for room, code in (("mine", "ROOM_EXISTS"), ("general", "ROOM_EXISTS")):
            assert await code_of(mallory.ask("delete_room", room=room)) == "PERMISSION_DENIED"
            assert await code_of(mallory.ask("create_room", room=room, name="x")) == code
        forged = {"created_by_id": "ann", "user_id": "ann", "from": "ann"}
        await mallory.ask("create_room", room="other", name="x", **forged)
        records = {r["id"]: r["created_by_id"] for r in (await ann.ask("rooms"))["rooms"]}
        assert records == {"general": None, "vault": None, "mine": "ann", "other": "mallory"}
        assert await code_of(ann.ask("delete_room", room="other")) == "PERMISSION_DENIED"


async def test_who_makes_a_deleted_room_again_reads_nothing_of_it() -> None:
    """Not by a join, not by resuming from before, not by an old cursor."""
    async with (
        attacked(client_rooms()) as address,
        wire(address, "ann") as ann,
        wire(address, "mallory") as mallory,
    ):
        await ann.ask("create_room", room="mine", name="Mine")
        joined = await ann.ask("join", room="mine")
        for number in range(3):
            await ann.trigger("mine", "message", f"private {number}")
        page = await ann.ask("history", room="mine", limit=1)
        await ann.ask("delete_room", room="mine")
        await mallory.ask("create_room", room="mine", name="Mine")
        since = {"seq": 0, "epoch": joined["epoch"]}
        assert (await mallory.ask("join", room="mine", since=since))["events"] == []
        assert (await mallory.ask("history", room="mine", cursor=page["next"]))["events"] == []
        assert "private" not in json.dumps(mallory.messages)


GUESSES: dict[str, dict[str, Any]] = OUTSIDE | {
    "join": {},
    "delete_room": {},
}


@pytest.mark.parametrize("command", GUESSES)
@pytest.mark.parametrize("hook", ["def", "async", "failing"])
async def test_a_hidden_room_answers_like_none(command: str, hook: str) -> None:
    """What `can_see` hides is byte for byte what is not there, for a declared and for a made room, by any command."""
    dialogue = client_rooms()
    hidden = {"vault": "ann", "cellar": "ann"}

    def is_visible(room: RoomHandle, client: Client) -> bool:
        if hook == "failing" and room.room_id in hidden and client.user_id != "ann":
            raise PermissionError("not for you")
        return hidden.get(room.room_id, client.user_id) == client.user_id

    async def is_visible_later(room: RoomHandle, client: Client) -> bool:
        return is_visible(room, client)

    dialogue.can_see(is_visible_later if hook == "async" else is_visible)
    expected = "hook can_see failed" if hook == "failing" else None
    async with attacked(dialogue, expected=expected) as address, wire(address, "ann") as ann:
        await ann.ask("create_room", room="cellar", name="Cellar")
        await ann.ask("join", room="vault")
        await ann.ask("join", room="cellar")
        async with raw(address, "mallory") as mallory:
            answers = set()
            for room in ("vault", "cellar", "nowhere"):
                fields = {"type": command, "room": room, "ref": 1, **GUESSES[command]}
                await mallory.text(json.dumps(fields))
                found = await mallory.read_frame()
                assert found is not None
                answers.add(found[1])
            (answer,) = answers
            assert b'"ROOM_NOT_FOUND"' in answer
            await mallory.text('{"type":"rooms"}')
            assert [room["id"] for room in (await mallory.read_message("rooms"))["rooms"]] == ["general"]


async def test_a_visible_room_says_that_it_is_not_joined() -> None:
    """Where `can_see` allows, an outsider is told to join and not that there is nothing."""
    dialogue = Dialogue(rooms())
    dialogue.can_see(lambda room: room.room_id == "general")
    async with attacked(dialogue) as address, wire(address, "ann") as ann:
        assert await code_of(ann.trigger("general", "message", "x")) == "NOT_JOINED"
        assert await code_of(ann.trigger("other", "message", "x")) == "ROOM_NOT_FOUND"


async def test_announcements_of_hidden_rooms_do_not_come() -> None:
    """Making and deleting a hidden room is told to who may see it alone."""
    dialogue = client_rooms()
    dialogue.can_see(lambda room, client: room.room_id != "cellar" or client.user_id == "ann")
    async with (
        attacked(dialogue) as address,
        wire(address, "ann") as ann,
        wire(address, "mallory") as mallory,
    ):
        await ann.ask("create_room", room="cellar", name="Cellar")
        await ann.ask("delete_room", room="cellar")
        await ann.ask("create_room", room="seen", name="Seen")
        await mallory.until(lambda: [m for m in mallory.messages if m["type"] == "room_created"])
        assert "cellar" not in json.dumps(mallory.messages)
        await ann.until(lambda: len([m for m in ann.messages if m["type"].startswith("room_")]) == 3)


def test_the_feed_is_not_a_command() -> None:
    """The wire has no command that reads over rooms; what is not a command is one error."""
    for name in (
        "feed",
        "read_feed",
        "events",
        "sessions",
        "erase_user",
        "metrics",
        "message",
        "event",
        "connected",
    ):
        (command,) = decode_frame(json.dumps({"type": name, "after": 0, "ref": 1}).encode(), max_commands=1)
        assert command.error.code == "INVALID_REQUEST"  # type: ignore[union-attr]


# -- keys ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("store", [None, "sqlite"])
async def test_two_users_with_the_same_key_do_not_meet(store: str | None, tmp_path: Any) -> None:
    """Each records an event of their own, and the key is told to its publisher only: live, joined and read."""
    url = None if store is None else f"sqlite:///{tmp_path / 'log.db'}"
    async with (
        attacked(Dialogue(rooms(), store=url)) as address,
        wire(address, "ann") as ann,
        wire(address, "mallory") as mallory,
    ):
        for client in (ann, mallory):
            await client.ask("join", room="general")
        first = await ann.trigger("general", "message", "ann's", key="the-key")
        second = await mallory.trigger("general", "message", "mallory's", key="the-key")
        assert (first["seq"], second["seq"]) == (1, 2)
        assert "duplicate" not in second
        again = await mallory.trigger("general", "message", "changed", key="the-key")
        assert (again["seq"], again["duplicate"]) == (2, True)
        for reader, own in ((ann, 1), (mallory, 2)):
            live = await reader.until_events(2)
            read = (await reader.ask("history", room="general"))["events"]
            joined = (await reader.ask("join", room="general"))["events"]
            for events in (live, read, joined):
                assert {e["seq"]: e.get("key") for e in events} == {own: "the-key", 3 - own: None}


# -- origins -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "origin",
    [
        "https://evil.example",
        "null",
        "",
        "http://127.0.0.1.evil.example",
        "http://localhost.evil.example",
        "http://evil.example#127.0.0.1",
        "http://127.0.0.1@evil.example",
        "http://[",
        "file://",
        "http://127.0.0.1:99999",
        "javascript:alert(1)",
    ],
)
@pytest.mark.parametrize("is_development", [True, False], ids=["development", "authenticated"])
async def test_a_page_of_another_site_gets_no_socket(origin: str, is_development: bool) -> None:
    """It is refused before the upgrade, whatever its cookies, and counted."""
    dialogue = Dialogue(rooms())
    if not is_development:
        dialogue.authenticate(authenticate)
    async with attacked(dialogue) as address:
        headers = {"Origin": origin, "Cookie": "session=ann"}
        with pytest.raises(InvalidStatus) as refused:
            async with wire(address, None, additional_headers=headers):
                raise AssertionError("let in")
        assert refused.value.response.status_code == 403
        counted = dialogue.metrics.registry.get_sample_value(
            "dialogue_connections_refused_total", {"reason": "origin"}
        )
        assert counted == 1


async def test_a_name_bound_to_this_machine_does_not_let_a_page_in() -> None:
    """DNS rebinding: in development mode a page whose own name points here is still a foreign one."""
    async with attacked(Dialogue(rooms())) as address:
        port = address.partition(":")[2]
        with pytest.raises(AssertionError):
            async with raw(address, None, Host=f"evil.example:{port}", Origin=f"http://evil.example:{port}"):
                pass
