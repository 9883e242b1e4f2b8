"""The behaviours of the project in TypeScript that this one grew from, restated."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from dialogue import (
    Blocked,
    Client,
    Dialogue,
    Event,
    History,
    Identity,
    JoinDenied,
    RoomConfig,
    Unauthenticated,
    define_event,
)
from dialogue.testing import connect
from tests.server.harness import Refused, eventually, serve, wire

message = define_event("message", history=History(limit=5))
score = define_event("score", history=History(limit=5))


async def test_events_are_told_in_the_order_in_which_they_were_triggered() -> None:
    """What one client triggers without waiting arrives in that order, at everyone."""
    dialogue = Dialogue(rooms={"general": RoomConfig(events=[message, score])})
    async with serve(dialogue) as address, wire(address) as alice, wire(address, "bob") as bob:
        for client in (alice, bob):
            await client.ask("join", room="general")
        for number in range(50):
            await alice.send(
                "trigger", room="general", event="message" if number % 3 else "score", data=number
            )
        for client in (alice, bob):
            assert [event["data"] for event in await client.until_events(50)] == list(range(50))


@pytest.mark.parametrize("kept", [False, True], ids=["memory", "with-a-table"])
async def test_offsets_count_from_the_newest(kept: bool) -> None:
    """``get_history(event, start, end)``: newest first, 0 the newest, ``end`` left out, past the end nothing."""
    table: list[Event[Any]] = []
    dialogue = Dialogue(rooms={"general": RoomConfig(events=[message, score])})
    if kept:

        @dialogue.on_cleanup
        def keep(events: list[Event[Any]]) -> None:
            table.extend(events)

        @dialogue.on_load
        def load(event_name: str, start: int, end: int) -> list[Event[Any]]:
            return [event for event in reversed(table) if event.event == event_name][start:end]

    async with connect(dialogue, user_id="alice") as alice:
        room = await alice.join("general")
        for number in range(12):
            await room.trigger("message", number)
            await room.trigger("score", -number)

        async def offsets(start: int, end: int) -> list[int]:
            return [event.data for event in await room.get_history("message", start, end)]

        if kept:
            await eventually(lambda: len([event for event in table if event.event == "message"]) == 7)
        assert await offsets(0, 3) == [11, 10, 9]
        assert await offsets(3, 5) == [8, 7]
        assert await offsets(4, 8) == ([7, 6, 5, 4] if kept else [7])
        assert await offsets(10, 20) == ([1, 0] if kept else [])
        assert await offsets(5, 5) == []


async def test_deleting_a_room_hands_its_history_over_and_clears_it() -> None:
    """A deleted room's events go to ``on_cleanup``, and whoever makes it again finds it empty."""
    kept: list[Any] = []
    dialogue = Dialogue(rooms={}, client_rooms=RoomConfig(events=[message]))

    @dialogue.on_cleanup
    async def keep(room_id: str, event_name: str, events: list[Event[Any]]) -> None:
        kept.append((room_id, event_name, [event.data for event in events]))

    async with serve(dialogue) as address, wire(address) as alice, wire(address, "bob") as bob:
        await alice.ask("create_room", room="game", name="Game")
        for client in (alice, bob):
            await client.ask("join", room="game")
        for number in range(3):
            await bob.trigger("game", "message", number)
        await alice.ask("delete_room", room="game")
        assert kept == [("game", "message", [0, 1, 2])]
        await bob.until(lambda: any(m["type"] == "room_deleted" for m in bob.messages))
        await alice.ask("create_room", room="game", name="Game")
        joined = await bob.ask("join", room="game")
        assert joined["events"] == []
        page = await bob.ask("history", room="game", event="message")
        assert (page["events"], page["next"]) == ([], None)


ROLES = {"ann": "admin", "max": "moderator", "joe": "user"}


def by_role(client: Client, params: dict[str, str]) -> None:
    """Only moderators and above enter the staff's rooms."""
    if client.claims["role"] not in ("admin", "moderator"):
        raise JoinDenied("staff only")


def by_invitation(invited: dict[str, set[str]]) -> Callable[..., bool]:
    """Only those on a room's list enter it."""
    return lambda client, room: client.user_id in invited.get(room.room_id, ())


async def test_roles_and_invitations_are_checked_before_a_join() -> None:
    """``before_join`` looks at claims, and at a list that changes while the server runs."""
    invited: dict[str, set[str]] = {"private:tea": {"ann"}}
    dialogue = Dialogue(
        rooms={"staff:{name}": RoomConfig(events=[message]), "private:{name}": RoomConfig(events=[message])}
    )

    @dialogue.authenticate
    async def authenticate(auth: dict[str, Any]) -> Identity:
        role = ROLES.get(auth.get("name", ""))
        if role is None:
            raise Unauthenticated
        return Identity(auth["name"], claims={"role": role})

    dialogue.before_join("staff:{name}")(by_role)
    dialogue.before_join("private:{name}")(by_invitation(invited))

    async with (
        serve(dialogue) as address,
        wire(address, None) as ann,
        wire(address, None) as max_,
        wire(address, None) as joe,
    ):
        for client, name in ((ann, "ann"), (max_, "max"), (joe, "joe")):
            await client.ask("connect", auth={"name": name})
        for client in (ann, max_):
            assert (await client.ask("join", room="staff:desk"))["type"] == "joined"
        with pytest.raises(Refused, match="staff only"):
            await joe.ask("join", room="staff:desk")
        await ann.ask("join", room="private:tea")
        with pytest.raises(Refused, match="JOIN_DENIED"):
            await joe.ask("join", room="private:tea")
        invited["private:tea"].add("joe")
        await joe.ask("join", room="private:tea")
        invited["private:tea"].discard("joe")
        await dialogue.remove_from_room("joe", "private:tea", reason="not invited any more")
        left = await joe.until(lambda: [m for m in joe.messages if m["type"] == "left"])
        assert left == [{"type": "left", "room": "private:tea", "reason": "not invited any more"}]
        with pytest.raises(Refused, match="JOIN_DENIED"):
            await joe.ask("join", room="private:tea")


async def test_before_each_blocks_and_transforms() -> None:
    """What is blocked reaches nobody and is not recorded; what is transformed is so for all and in history."""
    dialogue = Dialogue(rooms={"general": RoomConfig(events=[message, score])})

    @dialogue.before_each(message)
    async def moderate(event: Event[Any]) -> Event[Any]:
        if event.data["text"].startswith("/"):
            raise Blocked("no commands here")
        return event.replace(data={**event.data, "text": event.data["text"].replace("darn", "d**n")})

    @dialogue.before_each
    def stamp(event: Event[Any]) -> Event[Any]:
        return event.replace(meta={"checked": True})

    async with serve(dialogue) as address, wire(address) as alice, wire(address, "bob") as bob:
        for client in (alice, bob):
            await client.ask("join", room="general")
        with pytest.raises(Refused, match="BLOCKED: no commands here"):
            await alice.trigger("general", "message", {"text": "/kick bob"})
        await alice.trigger("general", "message", {"text": "darn it"})
        await alice.trigger("general", "score", 1)
        told = await bob.until_events(2)
        assert [(event["data"], event["meta"]) for event in told] == [
            ({"text": "d**n it"}, {"checked": True}),
            (1, {"checked": True}),
        ]
        page = await bob.ask("history", room="general")
        assert page["events"] == told
