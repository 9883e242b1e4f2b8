"""Too many, too fast, too slow: refused with a word on when to come again, counted, and not felt by others."""

from __future__ import annotations

import asyncio
import itertools
import json
import re
import tracemalloc
from contextlib import AsyncExitStack
from typing import Any

import pytest
from websockets.exceptions import InvalidStatus

from dialogue import Dialogue, History, Identity, Limits, RoomConfig, define_event
from dialogue.protocol import _json_string

from ..server.harness import Wire, eventually, message, rooms, wire
from .raw import PING, RawSocket, frame, raw
from .target import attacked, code_of, still_serves


def counted(dialogue: Dialogue, name: str, **labels: str) -> float:
    return dialogue.metrics.registry.get_sample_value(name, labels) or 0.0


async def flooded(client: Wire, frames: Any) -> int:
    """Send until the server closes; return its close code."""
    try:
        for text in frames:
            await client.send_raw(text)
            if client.close_code is not None:
                break
    except Exception:
        pass  # closed while writing
    return await client.until_closed()


# -- connections -----------------------------------------------------------------------------------------------------


async def test_a_thousand_connections_that_never_speak() -> None:
    """Others connect and chat meanwhile; beyond `connecting` the oldest silent ones are closed."""
    dialogue = Dialogue(rooms(), limits=Limits(connecting=200, connect_seconds=60))
    async with attacked(dialogue, backlog=2048) as address, AsyncExitStack() as stack:
        host, _, port = address.partition(":")
        silent: list[RawSocket] = []
        for number in range(1000):
            socket = RawSocket(*await asyncio.open_connection(host, int(port)))
            stack.push_async_callback(socket.aclose)
            assert await socket.upgrade(address) == 101
            silent.append(socket)
            if not number % 250:
                async with wire(address, "ann") as ann:
                    await still_serves(ann)
        async with wire(address, "ann") as ann:
            await still_serves(ann)
            for socket in silent[:790]:
                assert await socket.until_closed() == 4001
            assert len(dialogue.hub().connections._silent) <= 200
        assert counted(dialogue, "dialogue_connections_refused_total", reason="connecting") >= 800


async def test_a_crowd_that_comes_at_once_is_let_in() -> None:
    """Ten times as many as may be undecided at a time upgrade and say `connect` at one moment: none is closed."""
    dialogue = Dialogue(rooms(), limits=Limits(connecting=40, connections_per_user=1000))
    async with attacked(dialogue, backlog=1024) as address, AsyncExitStack() as stack:
        host, _, port = address.partition(":")
        crowd = [RawSocket(*await asyncio.open_connection(host, int(port))) for _ in range(400)]
        for socket in crowd:
            stack.push_async_callback(socket.aclose)

        async def come(socket: RawSocket) -> None:
            assert await socket.upgrade(address) == 101
            await socket.text('{"type":"connect","auth":{"user_id":"ann"}}')
            await socket.read_message("connected")

        await asyncio.gather(*map(come, crowd))
        assert not counted(dialogue, "dialogue_connections_refused_total", reason="connecting")


async def test_those_who_connect_are_not_the_oldest_silent_ones() -> None:
    """A client that has been told `connected` does not lose its place to those who never speak."""
    dialogue = Dialogue(rooms(), limits=Limits(connecting=2))
    async with attacked(dialogue) as address, wire(address, "ann") as ann, AsyncExitStack() as stack:
        for _ in range(10):
            await stack.enter_async_context(wire(address, None))
        await still_serves(ann)


async def test_connections_beyond_the_limit_are_refused_and_come_in_later() -> None:
    """503 with `Retry-After` before the upgrade, counted; those at once as well as those one after the other."""
    dialogue = Dialogue(rooms(), limits=Limits(connections=5))
    async with attacked(dialogue) as address:
        host, _, port = address.partition(":")

        async def attempt() -> tuple[int, RawSocket]:
            socket = RawSocket(*await asyncio.open_connection(host, int(port)))
            return await socket.upgrade(address), socket

        attempts = await asyncio.gather(*(attempt() for _ in range(50)))
        statuses = [status for status, _ in attempts]
        assert (statuses.count(101), statuses.count(503)) == (5, 45)
        assert len(dialogue.hub().connections.sessions) == 5
        assert counted(dialogue, "dialogue_connections_refused_total", reason="connections") == 45
        with pytest.raises(InvalidStatus) as refused:
            async with wire(address):
                raise AssertionError("let in")
        assert refused.value.response.headers["Retry-After"] == "1"
        for _, socket in attempts:
            await socket.aclose()
        await eventually(lambda: not dialogue.hub().connections.is_full)
        async with wire(address) as ann:
            await still_serves(ann)


async def test_a_socket_that_does_not_close_still_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever is closed and does not read cannot hold more sockets than there may be connections."""
    monkeypatch.setattr("dialogue.server.session.CLOSE_SECONDS", 1.0)
    big = define_event("big", history=History(limit=1000))
    dialogue = Dialogue(
        {"general": RoomConfig(events=[message, big])}, limits=Limits(connections=2, outbox_bytes=4096)
    )
    async with attacked(dialogue) as address, raw(address) as mallory:
        await mallory.text('{"type":"join","room":"general"}')
        await mallory.read_message("joined")
        mallory.stop_reading()
        hub = dialogue.hub()
        while hub.connections.sessions:
            await dialogue.trigger("general", "big", "x" * 60_000)
        assert hub.connections._ending
        async with wire(address, "ann"):
            with pytest.raises(InvalidStatus):
                async with wire(address, "bob"):
                    raise AssertionError("let in")
            await eventually(lambda: not hub.connections._ending)
            async with wire(address, "bob"):
                pass


async def test_a_user_with_too_many_connections_keeps_those_there_are() -> None:
    """One more is told why and closed with 4009; other users come in."""
    dialogue = Dialogue(rooms(), limits=Limits(connections_per_user=3))
    async with attacked(dialogue) as address, AsyncExitStack() as stack:
        mine = [await stack.enter_async_context(wire(address, "mallory")) for _ in range(3)]
        for _ in range(5):
            async with wire(address, None) as further:
                asking = further.ask("connect", auth={"user_id": "mallory"})
                assert await code_of(asking) == "RATE_LIMITED"
                assert await further.until_closed() == 4009
        async with wire(address, "ann") as ann:
            await still_serves(ann)
        for client in mine:
            await client.ask("rooms")
        assert len(dialogue.hub().connections.of("mallory")) == 3


# -- commands --------------------------------------------------------------------------------------------------------


async def test_a_flood_of_commands_is_told_when_to_go_on_and_then_closed() -> None:
    """`RATE_LIMITED` with `retry_after_seconds`; who goes on all the same is closed with 4009."""
    dialogue = Dialogue(
        rooms(), limits=Limits(commands_burst=100, commands_per_second=1, errors_per_minute=20)
    )
    async with attacked(dialogue) as address, wire(address, "ann") as ann, wire(address) as mallory:
        await ann.ask("join", room="general")
        assert await flooded(mallory, itertools.repeat('{"type":"pong","ref":1}', 100_000)) == 4009
        errors = [m for m in mallory.messages if m["type"] == "error"]
        assert {m["code"] for m in errors} == {"RATE_LIMITED"}
        assert all(0 < m["retry_after_seconds"] <= 1 for m in errors)
        await ann.trigger("general", "message", "undisturbed")


@pytest.mark.parametrize(
    "text",
    [
        "[]",
        "[" + " " * 10_000 + "]",
        "rubbish",
        "[0,0,0]",
        '{"type":"explode"}',
        '{"type":"leave","room":"x"}',
    ],
    ids=[
        "empty arrays",
        "long empty arrays",
        "not JSON",
        "no commands",
        "unknown commands",
        "refused commands",
    ],
)
async def test_no_flood_goes_around_the_bucket(text: str) -> None:
    """Frames without a command count as one; what is wrong counts as an error. Either ends with 4009."""
    dialogue = Dialogue(
        rooms(), limits=Limits(commands_burst=100, commands_per_second=1, errors_per_minute=20)
    )
    async with attacked(dialogue) as address, wire(address) as mallory:
        assert await flooded(mallory, itertools.repeat(text, 100_000)) == 4009
        assert len(mallory.messages) < 300


async def test_a_frame_of_too_many_commands_is_cut() -> None:
    """Sixty thousand commands in one frame are as many as there may be, and one error."""
    async with attacked(Dialogue(rooms())) as address, wire(address) as mallory:
        await mallory.send_raw("[" + ",".join(['{"type":"pong"}'] * 60_000) + "]")
        await mallory.until(lambda: [m for m in mallory.messages if m["type"] == "error"])
        await mallory.ask("rooms")
        assert [m["code"] for m in mallory.messages if m["type"] == "error"] == ["INVALID_REQUEST"]


async def test_authenticate_is_not_asked_without_end() -> None:
    """Connecting again and again is bounded like joining: each asks the application."""
    dialogue = Dialogue(rooms(), limits=Limits(joins_burst=5, joins_per_second=1))
    asked = []

    @dialogue.authenticate
    def authenticate(auth: dict[str, Any]) -> Identity:
        asked.append(auth)
        return Identity(auth["user_id"])

    async with attacked(dialogue) as address, wire(address, "mallory") as mallory:
        await mallory.send_raw(json.dumps([{"type": "connect", "auth": {"user_id": "mallory"}}] * 100))
        await mallory.ask("rooms")
        errors = [m for m in mallory.messages if m["type"] == "error"]
        assert {m["code"] for m in errors} == {"RATE_LIMITED"}
        assert len(asked) < 20


async def test_a_failing_authenticate_is_not_asked_without_end() -> None:
    """Also before anyone is connected: what makes the hook fail may be tried as often as one may join."""
    dialogue = Dialogue(rooms(), limits=Limits(joins_burst=5, joins_per_second=1, errors_per_minute=50))
    asked = []

    @dialogue.authenticate
    def authenticate(auth: dict[str, Any]) -> Identity:
        asked.append(auth)
        return Identity(auth["user_id"])

    async with (
        attacked(dialogue, expected="hook authenticate failed") as address,
        wire(address, None) as mallory,
    ):
        assert await flooded(mallory, itertools.repeat('{"type":"connect"}', 100_000)) == 4009
        assert len(asked) < 20


async def test_ten_thousand_joins() -> None:
    """Of one room or of many: beyond the burst they are refused, and what they opened sleeps again."""
    dialogue = Dialogue(
        rooms() | {"quiet:{a}:{b}": RoomConfig(events=[define_event("wave")])},
        limits=Limits(
            joins_burst=200, joins_per_second=1, rooms_per_client=50, idle_seconds=0.2, ping_seconds=2
        ),
    )
    async with attacked(dialogue) as address, wire(address, "ann") as ann, wire(address) as mallory:
        await ann.ask("join", room="general")
        frames = (
            json.dumps({"type": "join", "room": f"dm:{number}:x" if number % 2 else "general", "ref": number})
            for number in range(10_000)
        )
        assert await flooded(mallory, frames) == 4009
        joined = [m for m in mallory.messages if m["type"] == "joined"]
        codes = {m["code"] for m in mallory.messages if m["type"] == "error"}
        assert len(joined) < 250
        assert codes == {"RATE_LIMITED"}
        await ann.trigger("general", "message", "undisturbed")
        await eventually(lambda: set(dialogue.hub().rooms) == {"general"})


def _answers(client: Wire) -> list[dict[str, Any]]:
    return [m for m in client.messages if m["type"] in ("ok", "error")]


async def test_a_user_goes_no_faster_over_many_connections() -> None:
    """The user's own bucket holds over all of them; another user's is full."""
    dialogue = Dialogue(rooms(), limits=Limits(user_triggers_burst=50, user_triggers_per_second=1))
    async with attacked(dialogue) as address, AsyncExitStack() as stack:
        mine = [await stack.enter_async_context(wire(address, "mallory")) for _ in range(5)]
        for client in mine:
            await client.ask("join", room="general", events=[])
        for _ in range(20):
            for client in mine:
                await client.send("trigger", room="general", event="message", data=1)
        for client in mine:
            await client.ask("rooms")
        await eventually(lambda: sum(len(_answers(client)) for client in mine) == 100)
        accepted = sum(m["type"] == "ok" for client in mine for m in _answers(client))
        assert 50 <= accepted < 80
        async with wire(address, "ann") as ann:
            await still_serves(ann)


async def test_names_without_end_leave_nothing_behind() -> None:
    """Thousands of room and event names of one client: neither rooms, caches, buckets nor metrics grow with them."""
    anything = RoomConfig(events="*")
    dialogue = Dialogue(
        # Of what counts as unread a first join makes a member, who is kept; how many is bounded elsewhere.
        rooms() | {"any": anything, "quiet:{a}:{b}": RoomConfig(events=[define_event("wave")])},
        limits=Limits(
            **dict.fromkeys(("commands_burst", "joins_burst", "user_joins_burst"), 100_000),
            **dict.fromkeys(("errors_per_minute", "triggers_burst", "user_triggers_burst"), 100_000),
            idle_seconds=0.1,
            ping_seconds=2,
        ),
    )
    async with attacked(dialogue) as address, wire(address) as mallory:
        hub = dialogue.hub()
        await mallory.ask("join", room="any", events=[])

        async def round_of(first: int) -> None:
            commands: list[dict[str, Any]] = []
            for number in range(first, first + 500):
                guess = f"guess-{number}"
                commands += [
                    {"type": "trigger", "room": "any", "event": f"event-{number}", "data": 1},
                    {"type": "trigger", "room": guess, "event": "message", "data": 1},
                    {"type": "join", "room": guess},
                    {"type": "history", "room": guess, "event": guess},
                    {"type": "join", "room": f"quiet:{number}:x"},
                    {"type": "leave", "room": f"quiet:{number}:x"},
                ]
            for start in range(0, len(commands), 500):
                await mallory.send_raw(json.dumps(commands[start : start + 500]))
            await mallory.ask("rooms")
            mallory.messages.clear()
            mallory.frames.clear()
            await eventually(lambda: set(hub.rooms) <= {"any", "general"})

        await round_of(0)
        labels = len(dialogue.metrics.render().splitlines())
        tracemalloc.start()
        try:
            await round_of(500)
            before, _ = tracemalloc.get_traced_memory()
            for first in range(1000, 2500, 500):
                await round_of(first)
            after, _ = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert after - before < 1_000_000, "1500 rounds of names"
        assert len(hub.rooms["any"].undeclared) == 100
        assert len(dialogue.metrics.render().splitlines()) <= labels + 5
        assert _json_string.cache_info().currsize <= 4096
        await eventually(lambda: not hub.presence._changed and not hub.presence._timers)
        assert not hub.open_rooms._waking
        assert len(hub.user_rates._rates) <= 2


async def test_many_users_leave_no_buckets_without_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """Buckets are kept for a bounded number of users."""
    monkeypatch.setattr("dialogue.server.rates.USERS_REMEMBERED", 10)
    dialogue = Dialogue(rooms(), limits=Limits(connections=10))
    async with attacked(dialogue) as address:
        for number in range(30):
            async with wire(address, f"user-{number}") as client:
                await client.ask("join", room="general")
            await eventually(lambda: not dialogue.hub().connections.is_full)
        assert len(dialogue.hub().user_rates._rates) <= 10


# -- rooms that are made ---------------------------------------------------------------------------------------------


def room_makers(**limits: Any) -> Dialogue:
    return Dialogue(
        {"general": RoomConfig(events=[message])},
        client_rooms=RoomConfig(events=[message]),
        limits=Limits(**limits),
    )


async def test_a_user_makes_no_more_rooms_over_many_connections_at_once() -> None:
    """Those that are being made count, whichever connection makes them; a deleted one makes place."""
    dialogue = room_makers(created_rooms_per_user=3)
    async with attacked(dialogue) as address, AsyncExitStack() as stack:
        mine = [await stack.enter_async_context(wire(address, "mallory")) for _ in range(8)]
        refs = [
            (client, await client.send("create_room", room=f"room-{number}", name="x"))
            for number, client in enumerate(mine)
        ]
        await eventually(lambda: all(any(m.get("ref") == ref for m in c.messages) for c, ref in refs))
        made = list(dialogue.hub().registry.records)
        assert len(made) == 3
        assert await code_of(mine[0].ask("create_room", room="one-more", name="x")) == "RATE_LIMITED"
        await mine[0].ask("delete_room", room=made[0])
        await mine[0].ask("create_room", room="one-more", name="x")
        assert await code_of(mine[0].ask("create_room", room="one-more", name="x")) == "RATE_LIMITED"
        for room in list(dialogue.hub().registry.records):
            await mine[0].ask("delete_room", room=room)
        assert not dialogue.hub().registry._made_by


async def test_making_and_deleting_in_a_loop_is_bounded_and_told_together() -> None:
    """It is refused beyond the burst, and others get what happened in few frames, in order."""
    dialogue = room_makers(user_room_changes_per_minute=200)
    async with attacked(dialogue) as address, wire(address, "ann") as ann, wire(address) as mallory:
        frames = (
            json.dumps(
                [{"type": "create_room", "room": "r", "name": "x"}, {"type": "delete_room", "room": "r"}] * 20
            )
            for _ in range(1000)
        )
        assert await flooded(mallory, frames) == 4009
        await still_serves(ann)
        told = [m["type"] for m in ann.messages if m["type"].startswith("room_")]
        assert 100 < len(told) <= 260
        assert told[::2] == ["room_created"] * len(told[::2])
        assert told[1::2] == ["room_deleted"] * len(told[1::2])


async def test_listing_many_rooms_lets_others_have_their_turn() -> None:
    """A `can_see` that awaits nothing is asked for ten thousand rooms, and nobody waits for all of them."""
    dialogue = room_makers(reads_burst=10_000)
    dialogue.can_see(lambda room, client: room.room_id == "general" or client.user_id == "system")
    async with attacked(dialogue) as address, wire(address, "ann") as ann, wire(address) as mallory:
        for number in range(5000):
            await dialogue.create_room(f"room-{number}", name="x")
        await ann.ask("join", room="general")
        turns = 0
        done = False

        async def count() -> None:
            nonlocal turns
            while not done:
                turns += 1
                await asyncio.sleep(0)

        counting = asyncio.create_task(count())
        await mallory.ask("rooms")
        done = True
        await counting
        assert turns > 20
        await ann.trigger("general", "message", "undisturbed")


# -- readers ---------------------------------------------------------------------------------------------------------


async def test_a_slow_reader_is_closed_and_others_get_everything() -> None:
    """Who does not read is closed with 4008 when the outbox is full."""
    big = define_event("big", history=History(limit=10))
    dialogue = Dialogue({"general": RoomConfig(events=[message, big])}, limits=Limits(outbox_bytes=200_000))
    async with attacked(dialogue) as address, wire(address, "ann") as ann, raw(address) as mallory:
        await ann.ask("join", room="general")
        await mallory.text('{"type":"join","room":"general"}')
        await mallory.read_message("joined")
        sent = 0
        hub = dialogue.hub()
        while len(hub.connections.sessions) > 1:
            await dialogue.trigger("general", "big", "x" * 50_000)
            sent += 1
            assert sent < 1000
        assert len(await ann.until_events(sent)) == sent
        assert counted(dialogue, "dialogue_closes_total", code="4008") <= 1
        assert await mallory.until_closed() in (4008, None)


async def test_one_who_asks_and_never_reads_is_not_read() -> None:
    """Answers wait up to the mark; then no further command is taken, and at last the connection is silent."""
    dialogue = Dialogue(
        rooms(),
        limits=Limits(outbox_bytes=50_000, ping_seconds=1.0, reads_burst=100_000, user_reads_burst=100_000),
    )
    async with attacked(dialogue) as address, raw(address) as mallory:
        (session,) = dialogue.hub().connections.sessions
        await mallory.text('{"type":"join","room":"general"}')
        commands = json.dumps([{"type": "rooms", "ref": number} for number in range(500)])
        writing = asyncio.create_task(_write_for_ever(mallory, frame(1, commands.encode())))
        most = 0
        while dialogue.hub().connections.sessions:
            most = max(most, session._outbox.total_bytes)
            await asyncio.sleep(0.01)
        assert most < 200_000
        writing.cancel()
        await asyncio.gather(writing, return_exceptions=True)


async def _write_for_ever(socket: RawSocket, data: bytes) -> None:
    while not socket._writer.is_closing():
        await socket.write(data)
        await asyncio.sleep(0)


async def test_error_messages_hold_no_input() -> None:
    """A flood of refused commands is answered by the server's words alone, and logged by none of the client's."""
    secret = "hunter2hunter2"
    dialogue = Dialogue(rooms(), limits=Limits(errors_per_minute=1000))
    async with attacked(dialogue) as address, wire(address) as mallory:
        await mallory.ask("join", room="general")
        bad = [
            {"type": secret},
            {"type": "join", "room": secret},
            {"type": "join", "room": {"a": secret}},
            {"type": "join", "room": "general", "events": [secret]},
            {"type": "join", "room": "general", "events": secret},
            {"type": "trigger", "room": "general", "event": secret},
            {"type": "trigger", "room": "general", "event": "message", "key": "$" + secret},
            {"type": "trigger", "room": "general", "event": "message", "meta": secret},
            {"type": "history", "room": "general", "cursor": secret},
            {"type": "history", "room": "general", "kind": secret},
            {"type": "history", "room": "general", "epoch": secret, "before": 1},
            {"type": "create_room", "room": secret, "name": secret},
            {"type": "connect", "auth": {"user_id": secret + "\n"}},
            {"type": "connect", "auth": secret},
            {secret: secret},
        ]
        await mallory.send_raw(json.dumps(bad))
        await mallory.send_raw(secret)
        await mallory.until(
            lambda: len([m for m in mallory.messages if m["type"] == "error"]) == len(bad) + 1
        )
        assert secret not in json.dumps(mallory.messages)
        assert not re.search("hunter", dialogue.metrics.render().decode())


async def test_pings_do_not_keep_a_silent_connection() -> None:
    """The transport's pings are no sign of life of a client."""
    dialogue = Dialogue(rooms(), limits=Limits(ping_seconds=0.2))
    async with attacked(dialogue) as address, raw(address) as mallory:

        async def ping() -> None:
            while True:
                await mallory.write(frame(PING, b"x"))
                await asyncio.sleep(0.02)

        pinging = asyncio.create_task(ping())
        assert await mallory.until_closed() == 1001
        pinging.cancel()
        await asyncio.gather(pinging, return_exceptions=True)
