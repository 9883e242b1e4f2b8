"""Group D: who is there."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from typing import Any

import pytest

from dialogue import Dialogue, History, Limits, RoomConfig, define_event
from tests.server.harness import Refused, Wire, serve, wire

message = define_event("message", history=History(limit=3))
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
