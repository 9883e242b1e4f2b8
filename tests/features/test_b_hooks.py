"""Group B: hooks."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dialogue import (
    Blocked,
    Client,
    Context,
    Dialogue,
    Event,
    History,
    Hooks,
    Identity,
    JoinDenied,
    Limits,
    MemoryStore,
    RoomConfig,
    RoomHandle,
    RoomLimits,
    StoreUnavailable,
    Unauthenticated,
    define_event,
)
from dialogue.testing import FaultyStore
from tests.server.harness import Refused, eventually, serve, wire

message = define_event("message", history=History(limit=3))
note = define_event("note", history=History(limit=3))
typing_event = define_event("typing")

GENERAL = {"general": RoomConfig(events=[message, note, typing_event])}


async def test_b1_authenticate_and_the_sockets_life() -> None:
    """B1: a token in, an identity out; sockets are told of before and after, whoever they are."""
    log: list[str] = []
    dialogue = Dialogue(rooms=GENERAL)

    @dialogue.authenticate
    async def authenticate(request: Any, auth: dict[str, Any]) -> Identity:
        assert request.headers["host"]
        if auth.get("token") != "secret-of-alice":
            raise Unauthenticated
        return Identity("alice", claims={"role": "admin"}, meta={"name": "Alice"})

    dialogue.on_socket_connect(lambda context, client: log.append("socket open"))
    dialogue.on_socket_disconnect(lambda context, client: log.append("socket closed"))
    dialogue.on_connected(lambda client: log.append(f"{client.user_id} {client.claims} {client.meta}"))
    async with serve(dialogue) as address:
        async with wire(address, None) as client:
            ok = await client.ask("connect", auth={"token": "secret-of-alice"})
            assert ok["user_id"] == "alice"
        async with wire(address, None) as client:
            with pytest.raises(Refused) as raised:
                await client.ask("connect", auth={"token": "guess", "user_id": "alice"})
            assert raised.value.code == "UNAUTHENTICATED"
            assert await client.until_closed() == 4001
        await eventually(lambda: log.count("socket closed") == 2)
    assert log[:2] == ["socket open", "alice {'role': 'admin'} {'name': 'Alice'}"]
    assert log.count("socket open") == 2


async def test_b2_before_join_denies_and_the_life_of_a_client() -> None:
    """B2: ``before_join`` denies with a reason; connecting, joining, leaving and going are told, in order."""
    log: list[str] = []
    dialogue = Dialogue(rooms=GENERAL | {"staff": RoomConfig(events=[message])})

    @dialogue.before_join("staff")
    def staff_only(client: Client, purpose: str) -> None:
        assert purpose == "join"
        if client.user_id != "admin":
            raise JoinDenied("staff only")

    dialogue.on_connected(lambda client: log.append("connected"))
    dialogue.on_disconnected(lambda client: log.append("disconnected"))
    dialogue.on_joined(lambda client, room: log.append(f"joined {room.room_id}"))
    dialogue.on_left(lambda client, room: log.append(f"left {room.room_id}"))
    async with serve(dialogue) as address:
        async with wire(address) as alice:
            await alice.ask("join", room="general")
            with pytest.raises(Refused, match="JOIN_DENIED: staff only"):
                await alice.ask("join", room="staff")
            await alice.ask("leave", room="general")
            await eventually(lambda: "left general" in log)
            await alice.ask("join", room="general")
        await eventually(lambda: "disconnected" in log)
    assert log == [
        "connected",
        "joined general",
        "left general",
        "joined general",
        "left general",
        "disconnected",
    ]


async def test_b3_before_each_after_each_and_handlers() -> None:
    """B3: events are blocked and transformed before, and told of after, with how many got them."""
    after: list[tuple[Any, int]] = []
    triggered: list[Any] = []
    heard: list[Any] = []
    dialogue = Dialogue(rooms=GENERAL)

    @dialogue.before_each(message)
    async def moderate(event: Event[Any]) -> Event[Any] | None:
        if "spam" in event.data:
            raise Blocked("no spam")
        await asyncio.sleep(0)
        return event.replace(data=event.data.strip()) if event.data != event.data.strip() else None

    @dialogue.after_each
    async def count(event: Event[Any], recipient_count: int) -> None:
        after.append((event.data, recipient_count))

    dialogue.on_triggered(lambda event, room: triggered.append((room.room_id, event.data)))
    stop: Callable[[], None] = dialogue.on("general", message, lambda event: heard.append(event.data))
    async with serve(dialogue) as address, wire(address) as alice, wire(address, "bob") as bob:
        await alice.ask("join", room="general")
        await bob.ask("join", room="general")
        # Each connection's order holds although the hook waits.
        refs = [
            await alice.send("trigger", room="general", event="message", data=f" {number} ")
            for number in range(5)
        ]
        for ref in refs:
            await alice.answer(ref)
        with pytest.raises(Refused, match="no spam"):
            await alice.trigger("general", "message", "spam!")
        # Handlers are told after the ack.
        await eventually(lambda: len(heard) == 5)
        stop()
        await alice.trigger("general", "typing", "typed")
        events = await bob.until_events(6)
        assert [event["data"] for event in events] == ["0", "1", "2", "3", "4", "typed"]
        await eventually(lambda: len(after) == 6 and len(triggered) == 6)
    assert after == [(str(number), 2) for number in range(5)] + [("typed", 1)]
    assert triggered == [("general", data) for data, _ in after]
    assert heard == ["0", "1", "2", "3", "4"]


async def test_b4_rooms_made_changed_and_deleted() -> None:
    """B4: hooks are told of rooms that are made, changed and deleted."""
    log: list[str] = []
    dialogue = Dialogue(rooms=GENERAL, client_rooms=RoomConfig(events=[message]))
    dialogue.on_room_created(lambda room: log.append(f"created {room.room_id} {room.name}"))
    dialogue.on_room_updated(lambda room: log.append(f"updated {room.room_id} {room.name}"))
    dialogue.on_room_deleted(lambda room: log.append(f"deleted {room.room_id}"))
    async with serve(dialogue) as address, wire(address) as alice:
        await alice.ask("create_room", room="mine", name="Mine")
        await dialogue.update_room("mine", name="Ours")
        await alice.ask("delete_room", room="mine")
        await eventually(lambda: len(log) == 3)
    assert log == ["created mine Mine", "updated mine Ours", "deleted mine"]


@pytest.mark.parametrize("store", ["memory", "sqlite"])
async def test_b5_cleanup_in_order_on_eviction_stop_and_deletion(store: str, tmp_path: Path) -> None:
    """B5: oldest first, in order, awaited and retried; a deletion hands over what is left before it removes it."""
    kept: dict[str, list[Any]] = {}
    fails = 2
    dialogue = Dialogue(
        rooms=GENERAL,
        client_rooms=RoomConfig(events=[message]),
        store=f"sqlite:///{tmp_path / 'b5.db'}" if store == "sqlite" else None,
    )

    @dialogue.on_cleanup
    async def keep(room_id: str, event_name: str, events: list[Event[Any]]) -> None:
        nonlocal fails
        if fails:
            fails -= 1
            raise OSError("not now")
        kept.setdefault(room_id, []).extend(event.data for event in events)

    async with serve(dialogue) as address, wire(address) as alice:
        await alice.ask("create_room", room="mine", name="Mine")
        for room in ("general", "mine"):
            await alice.ask("join", room=room)
            for number in range(8):
                await alice.trigger(room, "message", number)
        await eventually(lambda: len(kept.get("general", ())) == 5)
        await alice.ask("delete_room", room="mine")
        assert kept["mine"] == list(range(8))
    assert kept["general"] == list(range(8 if store == "memory" else 5))


async def test_b5_what_cannot_be_handed_over_is_not_deleted() -> None:
    """B5: a deletion that ``on_cleanup`` keeps from its end loses nothing; the room goes on."""
    may_keep = asyncio.Event()
    dialogue = Dialogue(
        rooms=GENERAL, client_rooms=RoomConfig(events=[message]), limits=Limits(append_timeout_seconds=0.2)
    )

    @dialogue.on_cleanup
    async def keep(events: list[Event[Any]]) -> None:
        if not may_keep.is_set():
            raise OSError("not now")

    async with serve(dialogue) as address, wire(address) as alice:
        await alice.ask("create_room", room="mine", name="Mine")
        await alice.ask("join", room="mine")
        await alice.trigger("mine", "message", "precious")
        with pytest.raises(Refused) as raised:
            await alice.ask("delete_room", room="mine")
        assert raised.value.code == "STORE_UNAVAILABLE"
        assert (await alice.trigger("mine", "message", "still here"))["seq"] == 2
        page = await alice.ask("history", room="mine", event="message")
        assert [event["data"] for event in page["events"]] == ["precious", "still here"]
        may_keep.set()
        await alice.ask("delete_room", room="mine")
        assert "mine" not in {room["id"] for room in (await alice.ask("rooms"))["rooms"]}


async def test_b6_load_by_offset_and_by_seq() -> None:
    """B6: ``on_load`` reads by offset, newest first, 0 the newest handed over; ``on_load_before`` by seq, preferred."""
    table: list[Event[Any]] = []
    asked: list[tuple[int, int]] = []

    async def keep(events: list[Event[Any]]) -> None:
        table.extend(events)

    async def load(start: int, end: int) -> list[Event[Any]]:
        asked.append((start, end))
        return table[::-1][start:end]

    dialogue = Dialogue(rooms=GENERAL, hooks=Hooks(on_cleanup=keep, on_load=load))
    async with serve(dialogue) as address, wire(address) as alice:
        await alice.ask("join", room="general")
        for number in range(10):
            await alice.trigger("general", "message", number)
        await eventually(lambda: len(table) == 7)
        page = await alice.ask("history", room="general", event="message", start=5, end=9)
        assert [event["data"] for event in page["events"]] == [1, 2, 3, 4]
        assert asked[0][0] == 2
        assert [event["data"] for event in await alice.scroll("general", event="message", limit=4)] == list(
            range(10)
        )


async def test_b7_hooks_and_limits_of_one_room() -> None:
    """B7: a hook for some rooms only; a room's own size and rate, for the room and for each user in it."""
    dialogue = Dialogue(
        rooms={
            "general": RoomConfig(events=[message]),
            "slow": RoomConfig(
                events=[message],
                limits=RoomLimits(
                    message_bytes=20,
                    user_triggers_per_second=0.01,
                    triggers_per_second=0.01,
                    triggers_burst=2,
                ),
            ),
            "loud:{id}": RoomConfig(events=[message]),
        }
    )

    @dialogue.before_each(message, rooms=["loud:{id}"])
    def shout(event: Event[Any]) -> Event[Any]:
        return event.replace(data=event.data.upper())

    async with (
        serve(dialogue) as address,
        wire(address) as alice,
        wire(address, "bob") as bob,
        wire(address, "carol") as carol,
    ):
        for client in (alice, bob, carol):
            for room in ("general", "slow", "loud:1"):
                await client.ask("join", room=room)
        await alice.trigger("general", "message", "quiet " * 10)
        await alice.trigger("loud:1", "message", "hey")
        assert [event["data"] for event in await bob.until_events(2)] == ["quiet " * 10, "HEY"]
        await alice.trigger("slow", "message", "first")
        with pytest.raises(Refused) as raised:
            await alice.trigger("slow", "message", "too soon")
        assert raised.value.code == "RATE_LIMITED"
        assert 50 < raised.value.message["retry_after_seconds"] <= 100
        with pytest.raises(Refused, match="MESSAGE_TOO_LARGE"):
            await bob.trigger("slow", "message", "x" * 30)
        await dialogue.trigger("slow", message, "the application is not slowed down")
        with pytest.raises(Refused, match="RATE_LIMITED"):
            await carol.trigger("slow", "message", "the room has had its two")


@pytest.mark.parametrize("choice", ["refuse", "wait"])
async def test_b8_a_failing_store_refuses_or_waits(choice: Any) -> None:
    """B8: what a failing store does to a publish is declared."""
    store = FaultyStore(MemoryStore())
    dialogue = Dialogue(rooms=GENERAL, store=store, on_store_failure=choice)
    async with serve(dialogue) as address, wire(address) as alice:
        await alice.ask("join", room="general")
        store.fail_append = StoreUnavailable()
        ref = await alice.send("trigger", room="general", event="message", data="hi")
        if choice == "refuse":
            with pytest.raises(Refused, match="STORE_UNAVAILABLE"):
                await alice.answer(ref)
            return
        await eventually(lambda: dialogue.hub().commit.condition.failing_seconds is not None)
        store.fail_append = None
        assert (await alice.answer(ref))["seq"] == 1


async def test_b9_hooks_get_a_context() -> None:
    """B9: the context has the dialogue, its clients and rooms, and the application's state."""
    seen: list[tuple[Any, ...]] = []
    dialogue = Dialogue(rooms=GENERAL)
    dialogue.app.state.name = "my application"

    def look(context: Context, room: RoomHandle) -> None:
        seen.append(
            (
                context.dialogue is dialogue,
                context.app.state.name,
                [client.user_id for client in context.clients],
                [open_room.room_id for open_room in context.rooms],
                room.room_id,
            )
        )

    for register in (dialogue.before_join, dialogue.on_joined, dialogue.before_each, dialogue.after_each):
        register(look)
    async with serve(dialogue) as address, wire(address) as alice:
        await alice.ask("join", room="general")
        await alice.trigger("general", "message", "hi")
        await eventually(lambda: len(seen) == 4)
    assert seen[0] == (True, "my application", ["alice"], [], "general")
    assert seen[1:] == [(True, "my application", ["alice"], ["general"], "general")] * 3


async def test_b_plain_functions_run_beside_the_loop_and_failures_harm_nothing(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """B: ``def`` hooks run in a thread; one that fails is logged with room and event and changes nothing else."""
    threads: list[int] = []
    dialogue = Dialogue(rooms=GENERAL)

    @dialogue.after_each
    def broken(event: Event[Any]) -> None:
        threads.append(threading.get_ident())
        raise ValueError("a bug of the application's")

    with caplog.at_level(logging.ERROR):
        async with serve(dialogue) as address, wire(address) as alice:
            await alice.ask("join", room="general")
            await alice.trigger("general", "message", "a secret payload")
            await alice.trigger("general", "message", "another")
            await eventually(lambda: len(threads) == 2)
    assert threading.get_ident() not in threads
    failures = [record for record in caplog.records if "after_each" in record.getMessage()]
    assert len(failures) == 2
    assert failures[0].room_id == "general"  # type: ignore[attr-defined]
    assert failures[0].event_name == "message"  # type: ignore[attr-defined]
    assert all("secret payload" not in record.getMessage() for record in caplog.records)


async def test_b_every_hook_has_a_time_limit() -> None:
    """B: a hook that hangs fails after ``limits.hook_seconds``; a guard that hangs lets nobody in."""
    dialogue = Dialogue(rooms=GENERAL, limits=Limits(hook_seconds=0.05))

    @dialogue.before_join
    async def hang() -> None:
        await asyncio.Event().wait()

    async with serve(dialogue) as address, wire(address) as alice:
        with pytest.raises(Refused, match="INTERNAL"):
            await alice.ask("join", room="general")
