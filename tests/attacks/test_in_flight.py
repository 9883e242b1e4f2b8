"""Reading after leaving: what was asked for as a member is not answered to one who is none any more."""

from __future__ import annotations

import asyncio
import itertools
import json
from pathlib import Path
from typing import Any

import pytest

from dialogue import Client, Dialogue, RoomConfig, RoomHandle

from ..server.harness import eventually, message, rooms, wire
from .held import HeldReads
from .raw import raw
from .target import attacked, code_of


async def _fill(address: str, room: str = "general") -> str:
    async with wire(address, "ann") as ann:
        joined = await ann.ask("join", room=room)
        for number in range(20):
            await ann.trigger(room, "message", f"private {number}")
    return str(joined["epoch"])


@pytest.mark.parametrize(
    ("read", "how"),
    [
        ("history", "leave"),  # a join is answered before the connection's next command is taken
        *itertools.product(("history", "resume"), ("client.leave", "remove_from_room", "delete_room")),
    ],
)
async def test_an_answer_in_flight_dies_with_the_membership(read: str, how: str, tmp_path: Path) -> None:
    """However the membership ends, a page or a join that the log is being read for tells nothing."""
    store = HeldReads(tmp_path)
    dialogue = Dialogue(rooms(), client_rooms=RoomConfig(events=[message]), store=store)
    clients: dict[str, Client] = {}

    @dialogue.on_connected
    async def remember(client: Client) -> None:
        clients[client.user_id] = client

    async with attacked(dialogue) as address:
        await dialogue.create_room("made", name="Made")
        epoch = await _fill(address, "made")
        async with wire(address, "mallory") as mallory:
            await mallory.ask("join", room="made", sync=0)
            if read == "resume":
                await mallory.ask("leave", room="made")
            store.may_read.clear()
            if read == "history":
                ref = await mallory.send("history", room="made", before=10, limit=5)
            else:
                ref = await mallory.send("join", room="made", since={"seq": 0, "epoch": epoch})
            await eventually(lambda: store.reading)
            if how == "leave":
                await mallory.ask("leave", room="made")
            elif how == "client.leave":
                await clients["mallory"].leave("made")
            elif how == "remove_from_room":
                await dialogue.remove_from_room("mallory", "made")
            else:
                await dialogue.delete_room("made")
            store.may_read.set()
            await eventually(lambda: not store.reading)
            await mallory.ask("rooms")
            if read == "resume":
                assert await code_of(mallory.answer(ref)) in ("NOT_JOINED", "ROOM_NOT_FOUND")
            assert "private" not in json.dumps(mallory.messages)
            assert "made" not in clients["mallory"].rooms


@pytest.mark.parametrize("how", ["client.leave", "remove_from_room"])
async def test_who_is_removed_while_joining_does_not_enter(how: str) -> None:
    """A join that still asks its guard when the user is removed ends in a refusal, also on the first event."""
    dialogue = Dialogue(rooms())
    gate = asyncio.Event()
    asked: list[Client] = []

    @dialogue.before_join
    async def guard(client: Client) -> bool:
        if client.user_id == "mallory" and not gate.is_set():
            asked.append(client)
            await gate.wait()
        return True

    async with attacked(dialogue) as address, wire(address, "ann") as ann:
        await ann.ask("join", room="general")
        async with wire(address, "mallory") as mallory:
            ref = await mallory.send("join", room="general")
            await eventually(lambda: asked)
            if how == "client.leave":
                with pytest.raises(Exception, match="join the room first"):
                    await asked[0].leave("general")
            else:
                await dialogue.remove_from_room("mallory", "general")
            gate.set()
            assert await code_of(mallory.answer(ref)) == "JOIN_DENIED"
            await ann.trigger("general", "message", "private")
            assert not mallory.events()
            assert dialogue.hub().rooms["general"].users == {"ann": 1}


async def test_a_connection_that_is_lost_while_joining_leaves_nothing() -> None:
    """Its join may still be permitted; it is out of the room as soon as that is."""
    dialogue = Dialogue(rooms())
    gate, asked = asyncio.Event(), asyncio.Event()
    seen: list[str] = []

    @dialogue.before_join
    async def guard(client: Client) -> None:
        if client.user_id == "mallory":
            asked.set()
            await gate.wait()

    @dialogue.on_joined
    async def joined(client: Client) -> None:
        seen.append(f"{client.user_id} in")

    @dialogue.on_left
    async def left(client: Client) -> None:
        seen.append(f"{client.user_id} out")

    async with attacked(dialogue) as address:
        async with raw(address) as mallory:
            await mallory.text('{"type":"join","room":"general"}')
            await asked.wait()
        gate.set()
        await eventually(lambda: not dialogue.hub().connections.sessions)
        await eventually(lambda: seen.count("mallory in") == seen.count("mallory out"))


async def test_a_trigger_that_a_hook_holds_is_not_published_after_the_removal() -> None:
    """The membership is looked at again when the hooks have been asked; an edit likewise."""
    dialogue = Dialogue(rooms())
    gate = asyncio.Event()
    asked: list[str] = []

    @dialogue.before_each
    async def hold(event: Any) -> None:
        if event.data == "held":
            asked.append(event.sender)
            await gate.wait()

    async with (
        attacked(dialogue) as address,
        wire(address, "mallory") as mallory,
        wire(address, "mallory") as second,
    ):
        for client in (mallory, second):
            await client.ask("join", room="general")
        await mallory.trigger("general", "message", "before")
        refs = [
            (mallory, await mallory.send("trigger", room="general", event="message", data="held")),
            (second, await second.send("edit", room="general", seq=1, data="held")),
        ]
        await eventually(lambda: len(asked) == 2)
        await dialogue.remove_from_room("mallory", "general")
        gate.set()
        for client, ref in refs:
            assert await code_of(client.answer(ref)) == "NOT_JOINED"
        (event,) = await dialogue.room("general").page()
        assert (event.data, event.is_edited) == ("before", False)


async def test_live_events_end_with_the_removal() -> None:
    """What is published after it does not reach the user, on any connection."""
    dialogue = Dialogue(rooms())
    async with (
        attacked(dialogue) as address,
        wire(address, "mallory") as first,
        wire(address, "mallory") as second,
        wire(address, "ann") as ann,
    ):
        for client in (first, second, ann):
            await client.ask("join", room="general")
        await dialogue.remove_from_room("mallory", "general")
        await ann.trigger("general", "message", "private")
        for client in (first, second):
            await client.ask("rooms")
            assert not client.events()
            assert await code_of(client.ask("presence", room="general")) == "NOT_JOINED"


async def test_a_hook_that_removes_the_one_who_joins() -> None:
    """Removing in `on_joined` takes effect at once, and the client can go on with the rest."""
    dialogue = Dialogue(rooms())

    @dialogue.on_joined
    async def throw_out(client: Client, room: RoomHandle) -> None:
        if client.user_id == "mallory":
            await client.leave(room.room_id, reason="not you")

    async with attacked(dialogue) as address, wire(address, "mallory") as mallory:
        for _ in range(20):
            await mallory.ask("join", room="general")
            assert await code_of(mallory.ask("history", room="general")) == "NOT_JOINED"
        await mallory.until(lambda: [m for m in mallory.messages if m["type"] == "left"])
        assert not dialogue.hub().rooms["general"].users
