"""Group D: who is there."""

from __future__ import annotations

import asyncio
import signal
import sqlite3
from contextlib import AsyncExitStack, closing
from pathlib import Path
from typing import Any

import pytest

from dialogue import (
    Client,
    Dialogue,
    DirectRoom,
    History,
    JoinDenied,
    Limits,
    RoomConfig,
    define_event,
)
from tests.server.harness import Refused, Wire, eventually, serve, wire
from tests.server.test_crash import Server

message = define_event("message", history=History(limit=3))
reaction = define_event("reaction", history=History(limit=3), counts_unread=False)
typing_event = define_event("typing")

ROOMS = {
    "general": RoomConfig(events=[message, typing_event]),
    "silent": RoomConfig(events=[message], presence=False),
}


def changes(client: Wire, room: str = "general") -> list[dict[str, Any]]:
    """Return the changes of presence that came, of others than the client's own coming."""
    return [m for m in client.messages if m["type"] == "presence" and m["room"] == room and "users" not in m]


def known(client: Wire, users: list[str]) -> set[str]:
    """Return who is there, from a snapshot and what has come since."""
    present = set(users)
    for change in changes(client):
        present |= set(change.get("joined", ()))
        present -= set(change.get("left", ()))
    return present


async def test_d6_presence_is_a_snapshot_and_changes_counted_per_user() -> None:
    """D6: who is there, and who comes and goes: the first connection of a user, and the last."""
    dialogue = Dialogue(rooms=ROOMS, limits=Limits(presence_seconds=0.02))
    async with serve(dialogue) as address, wire(address) as alice:
        await alice.ask("join", room="general")
        await alice.until(lambda: changes(alice))
        async with AsyncExitStack() as stack:
            bob = await stack.enter_async_context(wire(address, "bob"))
            await bob.ask("join", room="general")
            await alice.until(lambda: any("bob" in change.get("joined", ()) for change in changes(alice)))
            snapshot = await bob.ask("presence", room="general")
            assert (set(snapshot["users"]), snapshot["count"]) == ({"alice", "bob"}, 2)
            told = len(changes(alice))
            async with wire(address, "bob") as phone:
                await phone.ask("join", room="general")
                await bob.ask("leave", room="general")
                # The second connection keeps bob there: what is told next is carol.
                async with wire(address, "carol") as carol:
                    await carol.ask("join", room="general")
                    await alice.until(lambda: len(changes(alice)) > told)
                    assert changes(alice)[-1] == {
                        "type": "presence",
                        "room": "general",
                        "joined": ["carol"],
                        "count": 3,
                    }
        await alice.until(lambda: known(alice, []) == {"alice"})
        assert (await alice.ask("presence", room="general"))["users"] == ["alice"]


async def test_d6_who_comes_back_at_once_was_never_away() -> None:
    """D6: changes are gathered: leaving and joining again within that time tells nobody anything."""
    dialogue = Dialogue(rooms=ROOMS, limits=Limits(presence_seconds=0.3))
    async with serve(dialogue) as address, wire(address) as alice, wire(address, "bob") as bob:
        for client in (alice, bob):
            await client.ask("join", room="general")
        await alice.until(lambda: changes(alice))
        told = len(changes(alice))
        await bob.send_raw(
            '[{"type":"leave","room":"general"},{"type":"join","room":"general","ref":9},'
            '{"type":"trigger","room":"general","event":"message","data":1,"ref":10}]'
        )
        await bob.answer(10)
        async with wire(address, "carol") as carol:
            await carol.ask("join", room="general")
            await alice.until(lambda: len(changes(alice)) > told)
        assert changes(alice)[told]["joined"] == ["carol"]
        assert "left" not in changes(alice)[told]


async def test_d6_presence_is_for_those_in_the_room_that_tells_it() -> None:
    """D6: outside of a room, or in one that is declared so, presence is not told."""
    async with serve(Dialogue(rooms=ROOMS)) as address, wire(address) as alice:
        with pytest.raises(Refused, match="NOT_JOINED"):
            await alice.ask("presence", room="general")
        await alice.ask("join", room="silent")
        with pytest.raises(Refused, match="PERMISSION_DENIED"):
            await alice.ask("presence", room="silent")


async def test_d6_many_who_come_at_once_are_few_messages() -> None:
    """D6: fifty who join together are a few messages to each, not fifty, and everyone is in them."""
    dialogue = Dialogue(rooms=ROOMS, limits=Limits(presence_seconds=0.3))
    names = {f"user-{number}" for number in range(50)}
    async with serve(dialogue) as address, wire(address) as alice, AsyncExitStack() as stack:
        await alice.ask("join", room="general")
        clients = await asyncio.gather(
            *(stack.enter_async_context(wire(address, name)) for name in sorted(names))
        )
        await asyncio.gather(*(client.ask("join", room="general") for client in clients))
        await alice.until(lambda: names <= known(alice, []))
        assert len(changes(alice)) < 25


async def test_d6_typing_is_neither_stored_nor_echoed() -> None:
    """D6: an ephemeral event reaches the others, has no seq, and is in no history."""
    async with (
        serve(Dialogue(rooms=ROOMS)) as address,
        wire(address) as alice,
        wire(address, "bob") as bob,
    ):
        for client in (alice, bob):
            await client.ask("join", room="general")
        ok = await alice.trigger("general", "typing", {"is_typing": True})
        assert (ok["seq"], ok["id"]) == (None, None)
        (event,) = await bob.until_events(1)
        assert (event["from"], event["seq"], event["data"]) == ("alice", None, {"is_typing": True})
        await alice.trigger("general", "message", "done")
        assert [event["event"] for event in await alice.until_events(1)] == ["message"]
        page = await bob.ask("history", room="general")
        assert [event["event"] for event in page["events"]] == ["message"]


def inbox_chat(store: str | None = None) -> Dialogue:
    """A chat with rooms of several kinds, whose unread counts are told at once."""
    rooms = {
        "general": RoomConfig(events=[message, reaction, typing_event]),
        "team:{name}": RoomConfig(events=[message]),
        "dm:{a}:{b}": DirectRoom(events=[message]),
    }
    return Dialogue(rooms, store=store, limits=Limits(unread_seconds=0.02))


async def unread(client: Wire, **fields: Any) -> dict[str, int]:
    """Ask for the unread counts."""
    counts: dict[str, int] = (await client.ask("unread", **fields))["unread"]
    return counts


def pushed(client: Wire) -> dict[str, int]:
    """Return the counts that the pushes so far add up to."""
    counts: dict[str, int] = {}
    for m in client.messages:
        if m["type"] == "unread" and "ref" not in m:
            counts |= m["unread"]
    return counts


async def until_pushed(client: Wire, counts: dict[str, int]) -> None:
    """Wait until the pushes so far add up to *counts*."""
    await client.until(lambda: pushed(client) == counts)


async def test_d7_unread_counts_and_markers_of_all_rooms(tmp_path: Path) -> None:
    """D7: counts of all rooms at once, also while away and over a restart; markers go forward only."""
    url = f"sqlite:///{tmp_path / 'log.db'}"
    dialogue = inbox_chat(url)
    async with serve(dialogue) as address, wire(address, "bob") as bob:
        async with wire(address) as alice:
            for room in ("general", "team:red"):
                await alice.ask("join", room=room)
        for room in ("general", "team:red", "dm:alice:bob"):
            await bob.ask("join", room=room)
            await bob.trigger(room, "message", "while alice is away")
        await bob.trigger("general", "message", "another")
        await bob.trigger("general", "reaction", "does not count")
        await bob.trigger("general", "typing", "neither does this")
    dialogue = inbox_chat(url)
    async with serve(dialogue) as address, wire(address) as alice:
        assert await unread(alice) == {"dm:alice:bob": 1, "general": 2, "team:red": 1}
        assert await unread(alice, rooms=["team:red", "team:blue"]) == {"team:red": 1}
        marked = await alice.ask("mark_read", room="general", seq=1)
        assert (marked["room"], marked["unread"]) == ("general", 1)
        assert (await alice.ask("mark_read", room="general", seq=1_000))["unread"] == 0
        assert (await alice.ask("mark_read", room="general", seq=1))["unread"] == 0
        with pytest.raises(Refused, match="NOT_JOINED"):
            await alice.ask("mark_read", room="team:blue", seq=1)
        assert await dialogue.unread("alice") == {"dm:alice:bob": 1, "general": 0, "team:red": 1}


async def test_d7_the_inbox_is_pushed_for_rooms_that_are_not_joined() -> None:
    """D7: every connection of a user hears of its rooms, and the marks of the others; a stranger hears nothing."""
    dialogue = inbox_chat()
    async with (
        serve(dialogue) as address,
        wire(address) as phone,
        wire(address) as tablet,
        wire(address, "eve") as eve,
    ):
        for room in ("team:red", "team:blue"):
            await dialogue.add_member(room, "alice")
        for client in (phone, tablet, eve):
            await unread(client)
        for room in ("team:red", "team:red", "team:blue"):
            await dialogue.trigger(room, message, 1)
        for client in (phone, tablet):
            await until_pushed(client, {"team:red": 2, "team:blue": 1})
        await phone.ask("mark_read", room="team:red", seq=2)
        await tablet.until(lambda: pushed(tablet)["team:red"] == 0)
        assert not phone.events()
        assert await unread(eve) == pushed(eve) == {}


async def test_d7_a_guard_and_a_removal_end_it() -> None:
    """D7: what ``before_join`` denies to read is not counted for its user; a removal takes the room out at once."""
    dialogue = inbox_chat()
    denied: set[str] = set()

    @dialogue.before_join("team:{name}")
    def guard(client: Client, params: dict[str, str]) -> None:
        if params["name"] in denied:
            raise JoinDenied("not any more")

    async with serve(dialogue) as address, wire(address) as alice:
        for room in ("team:red", "team:blue", "general"):
            await dialogue.add_member(room, "alice")
        denied.add("blue")
        assert await unread(alice) == {"general": 0, "team:red": 0}
        await dialogue.remove_from_room("alice", "team:red")
        for room in ("team:red", "team:blue", "general"):
            await dialogue.trigger(room, message, 1)
        await alice.until(lambda: pushed(alice).get("general") == 1)
        assert set(pushed(alice)) == {"general"}
        assert await unread(alice) == {"general": 1}


async def test_d10_sessions_are_listed_with_their_rooms_and_times() -> None:
    """D10: each connection is one, open or ended, with its rooms and how far its user has read them."""
    dialogue = inbox_chat()
    async with serve(dialogue) as address, wire(address) as phone:
        async with wire(address) as tablet, wire(address, "bob") as bob:
            for client in (phone, tablet, bob):
                await client.ask("join", room="general")
            await bob.trigger("general", "message", "hello")
            await phone.ask("mark_read", room="general", seq=1)
            mine = await dialogue.sessions("alice")
            assert {session.client_id for session in mine} == {
                client.client_id for client in dialogue.clients_of("alice")
            }
            assert all(session.is_active and session.rooms == {"general": 1} for session in mine)
            assert all(0 < session.first_seen <= session.last_seen for session in mine)
        await eventually(lambda: len(dialogue.clients()) == 1)
        assert sorted(session.is_active for session in await dialogue.sessions("alice")) == [False, True]
        [theirs] = await dialogue.sessions("bob")
        assert (theirs.is_active, theirs.rooms) == (False, {"general": 0})
        assert {session.user_id for session in await dialogue.sessions()} == {"alice", "bob"}


def kept(file: Path) -> list[tuple[str, str]]:
    """Return client id and rooms of the sessions in a log's file."""
    with closing(sqlite3.connect(file, timeout=30)) as connection:
        return connection.execute("SELECT client_id, CAST(rooms AS TEXT) FROM dialogue_sessions").fetchall()


async def test_d10_sessions_are_kept_over_a_restart_and_ended_after_a_crash(tmp_path: Path) -> None:
    """D10: after ``kill -9`` they are listed as before, and none of them is active."""
    url = f"sqlite:///{tmp_path / 'log.db'}"
    server = Server(url)
    try:
        await server.start(0)
        async with wire(server.address, "carol") as carol:
            connected = next(m for m in carol.messages if m["type"] == "connected")
            await carol.ask("join", room="general")
            await eventually(lambda: (connected["client_id"], '["general"]') in kept(tmp_path / "log.db"))
            await server.end(signal.SIGKILL)
    finally:
        await server.end(signal.SIGKILL)
    dialogue = inbox_chat(url)
    async with serve(dialogue) as address, wire(address, "carol"):
        old, new = sorted(await dialogue.sessions("carol"), key=lambda session: session.first_seen)
        assert (old.client_id, old.is_active, old.rooms) == (connected["client_id"], False, {"general": 0})
        assert new.is_active
