"""One case for each limit: it is set small, and what the table of `docs/reference/limits.md` says happens.

A case is a function named after its limit. It returns the `Dialogue` that it has served, whose metrics are looked at.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing, asynccontextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx2
import pytest
from websockets.exceptions import InvalidStatus

from dialogue import Dialogue, History, Limits, Retention, RoomConfig, RoomLimits, SQLStore, define_event
from dialogue.storage.base import Store
from dialogue.testing import FaultyStore

from .attacks.held import HeldReads
from .attacks.raw import raw
from .rates import no_refill
from .server.harness import Refused, Wire, eventually, message, serve, wire

Case = Callable[[Path], Awaitable[Dialogue]]

CASES: dict[str, Case] = {}
"""By the name of the limit."""

ROOM_CASES: dict[str, Case] = {}
"""The same for the limits of a room."""


def case(function: Case) -> Case:
    """Register a case under its own name."""
    CASES[function.__name__] = function
    return function


def room_case(function: Case) -> Case:
    """Register a case of a room's limit: the function is named after it, with ``room_`` before it."""
    ROOM_CASES[function.__name__.removeprefix("room_")] = function
    return function


def dialogue_of(
    *, room: RoomLimits | None = None, events: Any = "*", store: Store | None = None, **limits: Any
) -> Dialogue:
    """Return a Dialogue with two rooms, a pattern, and rooms that clients make."""
    config = RoomConfig(events=events, limits=room)
    return Dialogue(
        {"general": config, "other": config, "topic:{name}": config},
        client_rooms=config,
        store=store,
        limits=Limits(**limits),
    )


@asynccontextmanager
async def client_of(dialogue: Dialogue, *, joins: str | None = "general") -> AsyncIterator[Wire]:
    """Serve and yield a client, in a room."""
    async with serve(dialogue) as address, wire(address) as client:
        if joins is not None:
            await client.ask("join", room=joins)
        yield client


async def refused(client: Wire, code: str, type: str, **fields: Any) -> dict[str, Any]:
    """Check that a command is refused with *code*, and return the error."""
    with pytest.raises(Refused) as error:
        await client.ask(type, **fields)
    assert error.value.code == code
    return error.value.message


async def closed(client: Wire, code: int, frame: str) -> None:
    """Check that a frame closes the connection with *code*."""
    await client.send_raw(frame)
    assert await client.until_closed() == code


def trigger(data: Any = 1, **fields: Any) -> dict[str, Any]:
    return {"type": "trigger", "room": "general", "event": "message", "data": data, **fields}


JOIN = {"type": "join", "room": "general"}
ROOMS = {"type": "rooms"}


async def at_once(client: Wire, command: dict[str, Any], count: int) -> list[dict[str, Any]]:
    """Send a command several times in one frame; return the errors once all are answered."""
    refs = [f"at-once-{number}" for number in range(count)]
    await client.send_raw(json.dumps([{**command, "ref": ref} for ref in refs]))
    answers = {}
    await client.until(
        lambda: (
            answers.update({m["ref"]: m for m in client.messages if m.get("ref") in refs})
            or len(answers) == count
        )
    )
    return [answers[ref] for ref in refs if answers[ref]["type"] == "error"]


async def check_burst(command: dict[str, Any], burst: str, rate: str) -> Dialogue:
    """Check that of five at once those above a burst of two are refused."""
    limits: dict[str, Any] = {burst: 2, rate: 1}
    dialogue = dialogue_of(**limits)
    with no_refill():
        async with client_of(dialogue, joins=None if command == JOIN else "general") as client:
            errors = await at_once(client, command, 5)
            assert [error["code"] for error in errors] == ["RATE_LIMITED"] * 3
    return dialogue


async def check_rate(command: dict[str, Any], burst: str, rate: str) -> Dialogue:
    """Check that who has used up the burst is told to wait as long as the rate says."""
    limits: dict[str, Any] = {burst: 1, rate: 2}
    dialogue = dialogue_of(**limits)
    with no_refill():
        async with client_of(dialogue, joins=None if command == JOIN else "general") as client:
            (error,) = await at_once(client, command, 2)
            assert (error["code"], error["retry_after_seconds"]) == ("RATE_LIMITED", 0.5)
    return dialogue


# -- what a client may send ----------------------------------------------------------------------------------------


@case
async def message_bytes(_: Path) -> Dialogue:
    dialogue = dialogue_of(message_bytes=256)
    async with client_of(dialogue) as client:
        await refused(client, "MESSAGE_TOO_LARGE", **trigger("x" * 300))
    return dialogue


@case
async def frame_bytes(_: Path) -> Dialogue:
    dialogue = dialogue_of(frame_bytes=1024)
    async with client_of(dialogue) as client:
        await closed(client, 1009, "x" * 1025)
    return dialogue


@case
async def frame_before_connect_bytes(_: Path) -> Dialogue:
    dialogue = dialogue_of(frame_before_connect_bytes=256)
    async with serve(dialogue) as address, wire(address, None) as client:
        await closed(client, 1009, json.dumps({"type": "connect", "auth": {"token": "x" * 256}}))
    return dialogue


@case
async def commands_per_frame(_: Path) -> Dialogue:
    dialogue = dialogue_of(commands_per_frame=2)
    async with client_of(dialogue) as client:
        await client.send_raw(json.dumps([{"type": "rooms", "ref": ref} for ref in "abc"]))
        error = await client.until(lambda: next((m for m in client.messages if m["type"] == "error"), None))
        assert error["code"] == "INVALID_REQUEST"
        await client.ask("rooms")
        assert {"a", "b"} == {m.get("ref") for m in client.messages} & {"a", "b", "c"}
    return dialogue


@case
async def handshake_seconds(_: Path) -> Dialogue:
    dialogue = dialogue_of(handshake_seconds=0.1)
    await dialogue.start(port=0)
    try:
        reader, writer = await asyncio.open_connection("127.0.0.1", dialogue.port)
        writer.write(b"GET /ws HT")
        await reader.read()
        writer.close()
    finally:
        await dialogue.stop()
    return dialogue


@case
async def connect_seconds(_: Path) -> Dialogue:
    dialogue = dialogue_of(connect_seconds=0.1)
    async with serve(dialogue) as address, wire(address, None) as client:
        assert await client.until_closed() == 4001
    return dialogue


@case
async def ping_seconds(_: Path) -> Dialogue:
    dialogue = dialogue_of(ping_seconds=0.2)
    async with client_of(dialogue) as client:
        await client.until(lambda: [m for m in client.messages if m["type"] == "ping"])
        assert await client.until_closed() == 1001
    return dialogue


@case
async def ref_length(_: Path) -> Dialogue:
    dialogue = dialogue_of(ref_length=3)
    async with client_of(dialogue) as client:
        await client.send_raw('{"type":"rooms","ref":"long"}')
        error = await client.until(lambda: next((m for m in client.messages if m["type"] == "error"), None))
        assert (error["code"], error.get("ref")) == ("INVALID_REQUEST", None)
    return dialogue


@case
async def key_length(_: Path) -> Dialogue:
    dialogue = dialogue_of(key_length=3)
    async with client_of(dialogue) as client:
        await refused(client, "INVALID_REQUEST", **trigger(key="long"))
        await client.ask(**trigger(key="key"))
    return dialogue


@case
async def user_id_length(_: Path) -> Dialogue:
    dialogue = dialogue_of(user_id_length=3)
    async with serve(dialogue) as address, wire(address, None) as client:
        await refused(client, "VALIDATION_FAILED", "connect", auth={"user_id": "long"})
        await client.ask("connect", auth={"user_id": "ann"})
    return dialogue


@case
async def meta_bytes(_: Path) -> Dialogue:
    dialogue = dialogue_of(meta_bytes=10)
    async with client_of(dialogue) as client:
        await refused(client, "MESSAGE_TOO_LARGE", **trigger(meta={"a": "long"}))
        await client.ask(**trigger(meta={"a": 1}))
    return dialogue


@case
async def data_depth(_: Path) -> Dialogue:
    dialogue = dialogue_of(data_depth=2)
    async with client_of(dialogue) as client:
        await refused(client, "VALIDATION_FAILED", **trigger([[[1]]]))
        await client.ask(**trigger([[1]]))
    return dialogue


@case
async def event_names_per_room(_: Path) -> Dialogue:
    dialogue = dialogue_of(event_names_per_room=1)
    async with client_of(dialogue) as client:
        await client.ask(**trigger())
        await refused(client, "EVENT_NOT_ALLOWED", **trigger(event="another"))
    return dialogue


# -- how fast ------------------------------------------------------------------------------------------------------


def _rate_case(name: str, command: dict[str, Any]) -> None:
    burst, rate = f"{name}_burst", f"{name}_per_second"

    async def of_burst(_: Path) -> Dialogue:
        return await check_burst(command, burst, rate)

    async def of_rate(_: Path) -> Dialogue:
        return await check_rate(command, burst, rate)

    CASES[burst], CASES[rate] = of_burst, of_rate


_rate_case("triggers", trigger())
_rate_case("user_triggers", trigger())
_rate_case("joins", JOIN)
_rate_case("user_joins", JOIN)
_rate_case("reads", ROOMS)
_rate_case("user_reads", ROOMS)


@case
async def commands_burst(_: Path) -> Dialogue:
    dialogue = dialogue_of(commands_burst=5, commands_per_second=1)
    async with client_of(dialogue, joins=None) as client:
        errors = await at_once(client, ROOMS, 8)
        # One of the five was spent to connect; it may have come back.
        assert len(errors) in (3, 4)
        assert {error["code"] for error in errors} == {"RATE_LIMITED"}
    return dialogue


@case
async def commands_per_second(_: Path) -> Dialogue:
    dialogue = dialogue_of(commands_burst=1, commands_per_second=2)
    async with client_of(dialogue, joins=None) as client:
        first, *_rest = await at_once(client, ROOMS, 3)
        assert 0 < first["retry_after_seconds"] <= 0.5
    return dialogue


@case
async def user_room_changes_per_minute(_: Path) -> Dialogue:
    dialogue = dialogue_of(user_room_changes_per_minute=1)
    async with client_of(dialogue) as client:
        await client.ask("create_room", room="mine", name="Mine")
        error = await refused(client, "RATE_LIMITED", "delete_room", room="mine")
        assert 1 < error["retry_after_seconds"] <= 60
    return dialogue


@case
async def errors_per_minute(_: Path) -> Dialogue:
    dialogue = dialogue_of(errors_per_minute=2)
    async with client_of(dialogue) as client:
        await closed(client, 4009, json.dumps([0, 0, 0]))
    return dialogue


# -- how many ------------------------------------------------------------------------------------------------------


@case
async def connections(_: Path) -> Dialogue:
    dialogue = dialogue_of(connections=1)
    async with serve(dialogue) as address, wire(address):
        with pytest.raises(InvalidStatus) as refusal:
            async with wire(address):
                pass
        assert refusal.value.response.status_code == 503
    return dialogue


@case
async def connections_per_user(_: Path) -> Dialogue:
    dialogue = dialogue_of(connections_per_user=1)
    async with serve(dialogue) as address, wire(address, "ann"), wire(address, None) as second:
        await refused(second, "RATE_LIMITED", "connect", auth={"user_id": "ann"})
        assert await second.until_closed() == 4009
    return dialogue


@case
async def connecting(_: Path) -> Dialogue:
    dialogue = dialogue_of(connecting=1)
    async with serve(dialogue) as address, wire(address, None) as first, wire(address, None) as second:
        assert await first.until_closed() == 4001
        await second.ask("connect")
    return dialogue


@case
async def created_rooms(_: Path) -> Dialogue:
    dialogue = dialogue_of(created_rooms=1)
    async with client_of(dialogue) as client:
        await dialogue.create_room("made", name="Made")
        await refused(client, "RATE_LIMITED", "create_room", room="mine", name="Mine")
    return dialogue


@case
async def created_rooms_per_user(_: Path) -> Dialogue:
    dialogue = dialogue_of(created_rooms_per_user=1)
    async with client_of(dialogue) as client:
        await dialogue.create_room("made", name="Made")
        await client.ask("create_room", room="mine", name="Mine")
        await refused(client, "RATE_LIMITED", "create_room", room="another", name="Another")
    return dialogue


@case
async def listed_rooms(_: Path) -> Dialogue:
    dialogue = dialogue_of(listed_rooms=1)
    async with client_of(dialogue) as client:
        assert len((await client.ask("rooms"))["rooms"]) == 1
    return dialogue


@case
async def room_name_length(_: Path) -> Dialogue:
    dialogue = dialogue_of(room_name_length=3)
    async with client_of(dialogue) as client:
        await refused(client, "INVALID_REQUEST", "create_room", room="mine", name="long")
        await client.ask("create_room", room="mine", name="abc")
    return dialogue


@case
async def room_description_length(_: Path) -> Dialogue:
    dialogue = dialogue_of(room_description_length=3)
    async with client_of(dialogue) as client:
        fields = {"room": "mine", "name": "Mine"}
        await refused(client, "INVALID_REQUEST", "create_room", **fields, description="long")
        await client.ask("create_room", **fields, description="abc")
    return dialogue


async def _told(client: Wire, is_meant: Callable[[dict[str, Any]], bool]) -> None:
    await client.until(lambda: any(is_meant(m) for m in client.messages))


@case
async def presence_seconds(_: Path) -> Dialogue:
    for seconds, is_told in ((3600, False), (0.01, True)):
        dialogue = dialogue_of(presence_seconds=seconds)
        async with serve(dialogue) as address, wire(address, "ann") as ann:
            await ann.ask("join", room="general")
            async with wire(address, "bob") as bob:
                await bob.ask("join", room="general")
                if is_told:
                    await _told(ann, lambda m: "bob" in m.get("joined", ()))
                else:
                    assert set(dialogue.hub().presence._timers) == {"general"}
    return dialogue


@case
async def presence_users(_: Path) -> Dialogue:
    dialogue = dialogue_of(presence_users=1)
    async with serve(dialogue) as address, wire(address, "ann") as ann, wire(address, "bob") as bob:
        for client in (ann, bob):
            await client.ask("join", room="general")
        answer = await bob.ask("presence", room="general")
        assert (answer["users"], answer["count"]) == (["ann"], 2)
    return dialogue


@case
async def rooms_per_client(_: Path) -> Dialogue:
    dialogue = dialogue_of(rooms_per_client=1)
    async with client_of(dialogue) as client:
        await refused(client, "RATE_LIMITED", "join", room="other")
    return dialogue


@case
async def reads_in_flight(path: Path) -> Dialogue:
    store = HeldReads(path)
    dialogue = dialogue_of(store=store, reads_in_flight=1, events=[message])
    async with client_of(dialogue) as client:
        for number in range(20):
            await client.ask(**trigger(number))
        store.may_read.clear()
        history = {"type": "history", "room": "general", "before": 3, "limit": 1}
        await client.send_raw(
            json.dumps([{**history, "ref": "a"}, {**history, "ref": "b"}, {**ROOMS, "ref": "c"}])
        )
        await eventually(lambda: store.reading == 1)
        store.may_read.set()
        await client.answer("c")
        # The third command was read when the first one's answer had made place.
        refs = [m["ref"] for m in client.messages if m.get("ref") in ("a", "b", "c")]
        assert refs.index("a") < refs.index("c")
    return dialogue


@case
async def unread_seconds(_: Path) -> Dialogue:
    for seconds, is_told in ((3600, False), (0.01, True)):
        dialogue = dialogue_of(unread_seconds=seconds, events=[message])
        async with client_of(dialogue) as client:
            await client.ask("leave", room="general")
            await dialogue.trigger("general", message, 1)
            await client.ask("rooms")
            if is_told:
                await _told(client, lambda m: m["type"] == "unread")
            else:
                assert not [m for m in client.messages if m["type"] == "unread"]
    return dialogue


@case
async def unread_rooms(_: Path) -> Dialogue:
    dialogue = dialogue_of(unread_rooms=1)
    async with client_of(dialogue) as client:
        await client.ask("join", room="other")
        assert len((await client.ask("unread"))["unread"]) == 1
    return dialogue


@case
async def sessions_seconds(_: Path) -> Dialogue:
    for seconds, is_kept in ((3600, False), (0.01, True)):
        dialogue = dialogue_of(sessions_seconds=seconds)
        async with client_of(dialogue):
            directory = dialogue.hub().store.directory
            while is_kept and not await directory.sessions(limit=10):
                await asyncio.sleep(0.005)
            assert bool(await directory.sessions(limit=10)) is is_kept
    return dialogue


@case
async def session_retention_seconds(_: Path) -> Dialogue:
    dialogue = dialogue_of(sessions_seconds=0.01, session_retention_seconds=0.2)
    async with serve(dialogue) as address, wire(address, "ann"):
        async with wire(address, "bob"):
            pass
        while {session.user_id for session in await dialogue.sessions()} != {"ann"}:
            await asyncio.sleep(0.01)
    return dialogue


# -- what is read --------------------------------------------------------------------------------------------------


@case
async def outbox_bytes(_: Path) -> Dialogue:
    dialogue = dialogue_of(outbox_bytes=4096)
    async with serve(dialogue) as address, raw(address) as slow:
        await slow.text(json.dumps(JOIN))
        await slow.read_message("joined")
        slow.stop_reading()
        while dialogue.hub().connections.sessions:
            await dialogue.trigger("general", "message", "x" * 60_000)
        slow.go_on_reading()
        assert await slow.until_closed() == 4008
    return dialogue


@case
async def page_events(_: Path) -> Dialogue:
    dialogue = dialogue_of(page_events=2)
    async with client_of(dialogue) as client:
        for number in range(3):
            await client.ask(**trigger(number))
        page = await client.ask("history", room="general", limit=3)
        assert ([e["data"] for e in page["events"]], page["has_more"]) == ([1, 2], True)
    return dialogue


@case
async def page_bytes(_: Path) -> Dialogue:
    dialogue = dialogue_of(page_bytes=4096)
    async with client_of(dialogue) as client:
        for _number in range(3):
            await client.ask(**trigger("x" * 3000))
        page = await client.ask("history", room="general")
        assert (len(page["events"]), page["has_more"]) == (1, True)
    return dialogue


async def _resumed(dialogue: Dialogue) -> bool:
    async with client_of(dialogue) as client:
        joined = await client.ask("join", room="general")
        for _number in range(3):
            await client.ask(**trigger("x" * 100))
        since = {"seq": 0, "epoch": joined["epoch"]}
        return bool((await client.ask("join", room="general", since=since))["recovered"])


@case
async def poll_seconds(_: Path) -> Dialogue:
    dialogue = dialogue_of(poll_seconds=0.1)
    async with serve(dialogue) as address, httpx2.AsyncClient(base_url=f"http://{address}") as http:
        query: dict[str, Any] = {"after": 0, "epoch": dialogue.hub().store.epoch, "wait_seconds": 10**9}
        answer = await http.get("/rooms/general/events", params=query, timeout=30)
        assert (answer.status_code, answer.json()["events"]) == (200, [])
    return dialogue


@case
async def replay_events(_: Path) -> Dialogue:
    assert await _resumed(dialogue_of(replay_events=3))
    dialogue = dialogue_of(replay_events=2)
    assert not await _resumed(dialogue)
    return dialogue


@case
async def replay_bytes(_: Path) -> Dialogue:
    dialogue = dialogue_of(replay_bytes=200)
    assert not await _resumed(dialogue)
    return dialogue


@case
async def feed_queue_events(path: Path) -> Dialogue:
    feeds = []

    class Counting(FaultyStore):
        async def feed(self, after: int, *, limit: int) -> Any:
            feeds.append(after)
            return await super().feed(after, limit=limit)

    dialogue = dialogue_of(store=Counting(SQLStore(f"sqlite:///{path / 'log.db'}")), feed_queue_events=1)
    async with dialogue.lifespan(), aclosing(dialogue.feed(after=0)) as feed:
        await dialogue.trigger("general", "message", 0)
        assert (await anext(feed)).data == 0
        before = len(feeds)
        for number in range(1, 5):
            await dialogue.trigger("general", "message", number)
        assert [(await anext(feed)).data for _ in range(4)] == [1, 2, 3, 4]
        assert len(feeds) > before
    return dialogue


# -- the store -----------------------------------------------------------------------------------------------------


def faulty(path: Path) -> FaultyStore:
    return FaultyStore(SQLStore(f"sqlite:///{path / 'log.db'}"))


async def _full(store: FaultyStore, dialogue: Dialogue, data: Any) -> Dialogue:
    async with client_of(dialogue) as client:
        store.hold()
        refs = [await client.send(**trigger(data)) for _ in range(5)]
        error = await client.until(lambda: next((m for m in client.messages if m["type"] == "error"), None))
        assert error["code"] == "BACKPRESSURE"
        store.release()
        await client.until(lambda: {m.get("ref") for m in client.messages} >= set(refs))
    return dialogue


@case
async def append_queue_events(path: Path) -> Dialogue:
    store = faulty(path)
    return await _full(store, dialogue_of(store=store, append_queue_events=2), 1)


@case
async def append_queue_bytes(path: Path) -> Dialogue:
    store = faulty(path)
    return await _full(store, dialogue_of(store=store, append_queue_bytes=8192), "x" * 4000)


async def _groups(store: FaultyStore, dialogue: Dialogue) -> Dialogue:
    async with client_of(dialogue) as client:
        assert not await at_once(client, trigger(), 5)
        assert [len(group) for group in store.appended] == [1] * 5
    return dialogue


@case
async def append_batch_events(path: Path) -> Dialogue:
    store = faulty(path)
    return await _groups(store, dialogue_of(store=store, append_batch_events=1))


@case
async def append_batch_bytes(path: Path) -> Dialogue:
    store = faulty(path)
    return await _groups(store, dialogue_of(store=store, append_batch_bytes=1))


@case
async def append_timeout_seconds(path: Path) -> Dialogue:
    store = faulty(path)
    dialogue = dialogue_of(store=store, append_timeout_seconds=0.1)
    async with client_of(dialogue) as client:
        store.hold()
        await refused(client, "STORE_UNAVAILABLE", **trigger())
        store.release()
    return dialogue


@case
async def open_rooms(_: Path) -> Dialogue:
    dialogue = dialogue_of(open_rooms=1)
    async with client_of(dialogue) as client:
        await refused(client, "BACKPRESSURE", "join", room="other")
    return dialogue


@case
async def idle_seconds(path: Path) -> Dialogue:
    dialogue = dialogue_of(store=faulty(path), idle_seconds=0.05, ping_seconds=0.4)
    async with serve(dialogue):
        await dialogue.trigger("general", "message", 1)
        await eventually(lambda: not dialogue.hub().rooms)
    return dialogue


class _Removals(FaultyStore):
    def __init__(self, path: Path) -> None:
        super().__init__(SQLStore(f"sqlite:///{path / 'log.db'}"))
        self.removed: list[int] = []
        self._has_removed = asyncio.Event()

    async def until_removed(self) -> None:
        await self._has_removed.wait()

    async def remove(self, room_id: str, event_name: str, through: int) -> None:
        self.removed.append(through)
        self._has_removed.set()
        await super().remove(room_id, event_name, through)


def _expiring(store: Store, **limits: Any) -> Dialogue:
    short = define_event(
        "message", history=History(limit=1, retention=Retention(max_age=timedelta(milliseconds=1)))
    )
    return dialogue_of(store=store, events=[short], **limits)


async def _until_expired(dialogue: Dialogue) -> None:
    """Wait until what the store has removed is counted: a stop may come between."""
    value = dialogue.metrics.registry.get_sample_value
    await eventually(lambda: (value("dialogue_events_expired_total") or 0) > 0)


@case
async def retention_seconds(path: Path) -> Dialogue:
    for seconds, is_removed in ((3600, False), (0.02, True)):
        store = _Removals(path)
        dialogue = _expiring(store, retention_seconds=seconds)
        async with dialogue.lifespan():
            await dialogue.trigger("general", "message", 1)
            if is_removed:
                await store.until_removed()
                await _until_expired(dialogue)
            else:
                assert not store.removed
    return dialogue


@case
async def retention_batch_events(path: Path) -> Dialogue:
    store = _Removals(path)
    dialogue = _expiring(store, retention_seconds=0.02, retention_batch_events=1)
    async with dialogue.lifespan():
        for number in range(4):
            await dialogue.trigger("general", "message", number)
        await eventually(lambda: store.removed[-1:] == [4])
        await _until_expired(dialogue)
    assert store.removed == [1, 2, 3, 4]
    return dialogue


# -- hooks ---------------------------------------------------------------------------------------------------------


def _ring(**limits: Any) -> Dialogue:
    one = History(limit=1)
    events = [define_event("message", history=one), define_event("note", history=one)]
    return dialogue_of(events=events, stop_timeout_seconds=1, **limits)


@case
async def handover_queue_events(_: Path) -> Dialogue:
    dialogue = _ring(handover_queue_events=2)
    gate = asyncio.Event()

    @dialogue.on_cleanup
    async def clean(events: list[Any]) -> None:
        await gate.wait()

    async with client_of(dialogue) as client:
        for number in range(3):
            await client.ask(**trigger(number))
        assert dialogue.metrics.registry.get_sample_value("dialogue_handover_pending_events") == 2
        await refused(client, "BACKPRESSURE", **trigger())
        gate.set()
    return dialogue


@case
async def handover_batch_events(_: Path) -> Dialogue:
    dialogue = _ring(handover_batch_events=1)
    batches: list[int] = []

    @dialogue.on_cleanup
    async def clean(events: list[Any]) -> None:
        batches.append(len(events))

    async with client_of(dialogue) as client:
        await at_once(client, trigger(), 6)
        await eventually(lambda: len(batches) == 5)
    assert set(batches) == {1}
    return dialogue


@case
async def handover_streams_in_flight(_: Path) -> Dialogue:
    dialogue = _ring(handover_streams_in_flight=1)
    gate = asyncio.Event()
    running = [0]
    most = [0]
    cleaned: set[str] = set()

    @dialogue.on_cleanup
    async def clean(event_name: str, events: list[Any]) -> None:
        running[0] += 1
        most[0] = max(most[0], running[0])
        await gate.wait()
        running[0] -= 1
        cleaned.add(event_name)

    async with client_of(dialogue) as client:
        for name in ("message", "note"):
            await at_once(client, trigger(event=name), 3)
        await eventually(lambda: running[0])
        gate.set()
        await eventually(lambda: cleaned == {"message", "note"})
    assert most == [1]
    return dialogue


@case
async def hook_seconds(_: Path) -> Dialogue:
    dialogue = dialogue_of(hook_seconds=0.05)

    @dialogue.before_each
    async def hang() -> None:
        await asyncio.Event().wait()

    async with client_of(dialogue) as client:
        await refused(client, "INTERNAL", **trigger())
    return dialogue


@case
async def hook_queue_events(_: Path) -> Dialogue:
    dialogue = dialogue_of(hook_queue_events=1)
    gate = asyncio.Event()

    @dialogue.after_each
    async def wait() -> None:
        await gate.wait()

    async with client_of(dialogue) as client:
        for number in range(4):
            await client.ask(**trigger(number))
        gate.set()
    return dialogue


@case
async def stop_timeout_seconds(_: Path) -> Dialogue:
    dialogue = dialogue_of(
        events=[define_event("message", history=History(limit=1))], stop_timeout_seconds=0.2
    )

    @dialogue.on_cleanup
    async def hang(events: list[Any]) -> None:
        await asyncio.Event().wait()

    async with dialogue.lifespan():
        await dialogue.trigger("general", "message", 1)
        await dialogue.trigger("general", "message", 2)
    assert dialogue.unflushed_events == 2
    return dialogue


# -- rooms ---------------------------------------------------------------------------------------------------------


@room_case
async def room_message_bytes(_: Path) -> Dialogue:
    dialogue = dialogue_of(room=RoomLimits(message_bytes=10))
    async with client_of(dialogue) as client:
        await refused(client, "MESSAGE_TOO_LARGE", **trigger("x" * 20))
        ack = await client.ask(**trigger("x"))
        await refused(client, "MESSAGE_TOO_LARGE", "edit", room="general", seq=ack["seq"], data="x" * 20)
    return dialogue


async def _check_room_rate(limits: RoomLimits, expected: list[float]) -> Dialogue:
    dialogue = dialogue_of(room=limits)
    async with client_of(dialogue) as client:
        errors = await at_once(client, trigger(), 3)
        assert [error["retry_after_seconds"] for error in errors] == expected
        await refused(client, "RATE_LIMITED", "edit", room="general", seq=1, data=2)
        await refused(client, "RATE_LIMITED", "delete", room="general", seq=1)
        await client.ask("join", room="other")
        await client.ask(**trigger(room="other"))
    return dialogue


@room_case
async def room_triggers_per_second(_: Path) -> Dialogue:
    return await _check_room_rate(RoomLimits(triggers_per_second=0.1), [10, 10])


@room_case
async def room_triggers_burst(_: Path) -> Dialogue:
    return await _check_room_rate(RoomLimits(triggers_per_second=0.1, triggers_burst=2), [10])


@room_case
async def room_user_triggers_per_second(_: Path) -> Dialogue:
    return await _check_room_rate(RoomLimits(user_triggers_per_second=0.1), [10, 10])


@room_case
async def room_user_triggers_burst(_: Path) -> Dialogue:
    return await _check_room_rate(RoomLimits(user_triggers_per_second=0.1, user_triggers_burst=2), [10])
