"""The client over real sockets, against a small server that speaks the protocol."""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import AsyncIterator
from typing import Any

import pytest
from pydantic import BaseModel, ConfigDict, Field

from dialogue.client import DialogueClient, Room, Timing
from dialogue.client.client import socket_url
from dialogue.config import History, define_event
from dialogue.errors import (
    Backpressure,
    Blocked,
    ConnectionLost,
    JoinDenied,
    MessageTooLarge,
    StoreUnavailable,
    Unauthenticated,
)
from dialogue.events import Event

from .fake import EPHEMERAL, FakeConnection, FakeSocketServer, Message, until

QUICK = Timing(backoff_seconds=0.01, backoff_limit_seconds=0.05)
ROOM = "general"


class Text(BaseModel):
    model_config = ConfigDict(populate_by_name=True)

    text: str = Field(alias="body")


message = define_event("message", schema=Text, history=History())


@pytest.fixture(autouse=True)
async def no_task_is_left() -> AsyncIterator[None]:
    """Whoever starts a task ends it."""
    before = asyncio.all_tasks()
    yield
    await until(lambda: not (asyncio.all_tasks() - before - {asyncio.current_task()}))


@pytest.fixture
async def server() -> AsyncIterator[FakeSocketServer]:
    async with FakeSocketServer().running() as server:
        yield server


def make(server: FakeSocketServer, **options: Any) -> DialogueClient:
    return DialogueClient(server.url, **{"auth": {"user_id": "ann"}, "timing": QUICK, **options})


@pytest.fixture
async def client(server: FakeSocketServer) -> AsyncIterator[DialogueClient]:
    async with make(server) as client:
        yield client


def collect(room: Room) -> list[Any]:
    data: list[Any] = []
    room.on_any(lambda event: data.append(event.data))
    return data


@pytest.mark.parametrize(
    ("url", "socket"),
    [
        ("http://host:3000", "ws://host:3000/ws"),
        ("https://host/dialogue/", "wss://host/dialogue/ws"),
        ("wss://host/a?tenant=1", "wss://host/a/ws?tenant=1"),
    ],
)
def test_the_socket_is_under_the_routers_base(url: str, socket: str) -> None:
    """http(s) and ws(s) alike; the query stays."""
    assert socket_url(url) == socket


@pytest.mark.parametrize("url", ["host:3000", "ftp://host", "/dialogue", "http://"])
def test_what_is_no_url_is_refused_when_made(url: str) -> None:
    """A mistake in the URL is told at once, not retried for ever."""
    with pytest.raises(ValueError, match="is not the URL of a server"):
        DialogueClient(url)


async def test_trigger_and_receive(server: FakeSocketServer, client: DialogueClient) -> None:
    """The publisher gets the numbers, and its own event by the path of everyone else."""
    assert (client.state, client.user_id, client.client_id) == ("connected", "ann", "c1")
    room = await client.join(ROOM)
    received: list[Event[Any]] = []
    room.on("message", received.append)
    ack = await room.trigger("message", {"text": "hello"}, meta={"a": 1})
    assert (ack.seq, ack.id, ack.is_duplicate) == (1, 1, False)
    await until(lambda: received)
    assert (received[0].seq, received[0].data, received[0].sender) == (1, {"text": "hello"}, "ann")
    assert received[0].key
    again = await room.trigger("message", {"text": "hello"}, key=received[0].key)
    assert (again.seq, again.is_duplicate) == (1, True)


async def test_declared_types_stand_for_their_names(server: FakeSocketServer, client: DialogueClient) -> None:
    """An instance of the schema goes out by alias, and comes in as `event.model`."""
    room = await client.join(ROOM, events=[message])
    models: list[Text] = []
    room.on(message, lambda event: models.append(event.model))
    await room.trigger(message, Text(text="hello"))
    await room.trigger("message", Text(text="by name"))
    await room.trigger(message, {"body": "plain"})
    await until(lambda: len(models) == 3)
    assert [model.text for model in models] == ["hello", "by name", "plain"]
    page = await room.page(message)
    assert [event.model.text for event in page.events] == ["hello", "by name", "plain"]


@pytest.mark.parametrize("data", [math.nan, object(), {"a": {1, 2}}, "\ud800"])
async def test_what_is_not_json_is_refused_before_it_is_sent(
    server: FakeSocketServer, client: DialogueClient, data: Any
) -> None:
    """NaN would otherwise arrive as null."""
    room = await client.join(ROOM)
    with pytest.raises((TypeError, ValueError)):
        await room.trigger("message", data)
    assert server.log[ROOM] == []


async def test_an_event_larger_than_a_frame_is_refused_here(client: DialogueClient) -> None:
    """The server would close the connection instead of answering."""
    room = await client.join(ROOM)
    with pytest.raises(MessageTooLarge):
        await room.trigger("message", "x" * 1_048_576)


async def test_refusals_are_raised_as_their_errors(server: FakeSocketServer, client: DialogueClient) -> None:
    """Each wire code has its class."""
    with pytest.raises(JoinDenied):
        await client.join("secret")
    room = await client.join(ROOM)
    server.intercept = lambda connection, command: (
        command["type"] == "trigger" and server.error(connection, command, "BLOCKED")
    )
    with pytest.raises(Blocked):
        await room.trigger("message", 1)


async def test_an_unknown_outcome_is_retried_with_the_same_key(
    server: FakeSocketServer, client: DialogueClient
) -> None:
    """The caller sees one ack."""
    room = await client.join(ROOM)
    refusals = iter([True, True])
    server.intercept = lambda connection, command: (
        command["type"] == "trigger"
        and next(refusals, False)
        and server.error(connection, command, "STORE_UNAVAILABLE")
    )
    assert (await room.trigger("message", 1)).seq == 1
    keys = {command["key"] for command in server.connections[0].commands if command["type"] == "trigger"}
    assert len(keys) == 1


async def test_an_outcome_that_stays_unknown_is_raised(
    server: FakeSocketServer, client: DialogueClient
) -> None:
    """The tries are bounded."""
    room = await client.join(ROOM)
    server.intercept = lambda connection, command: (
        command["type"] == "trigger" and server.error(connection, command, "STORE_UNAVAILABLE")
    )
    with pytest.raises(StoreUnavailable):
        await room.trigger("message", 1)


async def test_history_is_what_the_join_brought_newest_first(
    server: FakeSocketServer, client: DialogueClient
) -> None:
    """Join sync is not handed to handlers."""
    for number in range(5):
        server.publish(ROOM, "message", number)
    received = collect(client.room(ROOM))
    room = await client.join(ROOM, sync=3)
    assert [event.data for event in room.history] == [4, 3, 2]
    assert room.name == "General"
    server.publish(ROOM, "message", 5)
    await until(lambda: received)
    assert received == [5]


async def test_handlers_added_after_the_join_miss_nothing(
    server: FakeSocketServer, client: DialogueClient
) -> None:
    """An event in the very frame of `joined` waits until the caller of join has gone on."""

    def publish_with_joined(connection: FakeConnection, command: Message) -> bool:
        if command["type"] == "join":
            server._join(connection, command)
            server.publish(ROOM, "message", "at once")
            return True
        return False

    server.intercept = publish_with_joined
    received = collect(await asyncio.wait_for(client.join(ROOM), 5))
    await until(lambda: received)
    assert received == ["at once"]


async def test_resume_delivers_what_was_missed(server: FakeSocketServer, client: DialogueClient) -> None:
    """Once, in order, and the states are told."""
    states: list[str] = []
    notices: list[str] = []
    client.on_state(states.append)
    client.on_disconnect(lambda: notices.append("disconnect"))
    client.on_connect(lambda: notices.append("connect"))
    room = await client.join(ROOM)
    received = collect(room)
    server.publish(ROOM, "message", 0)
    await until(lambda: received)
    await server.drop()
    for number in range(1, 4):
        server.publish(ROOM, "message", number)
    await until(lambda: len(received) == 4)
    server.publish(ROOM, "message", 4)
    await until(lambda: len(received) == 5)
    assert received == [0, 1, 2, 3, 4]
    assert states == ["resuming", "connected"]
    assert notices == ["disconnect", "connect"]


async def test_a_reset_is_told_with_the_new_history(server: FakeSocketServer, client: DialogueClient) -> None:
    """recovered: false is never passed over in silence."""
    server.replay_events = 1
    room = await client.join(ROOM)
    received = collect(room)
    histories: list[list[Any]] = []
    room.on_reset(lambda: histories.append([event.data for event in room.history]))
    await server.drop()
    for number in range(3):
        server.publish(ROOM, "message", number)
    await until(lambda: histories)
    assert histories == [[2, 1, 0]]
    assert received == []


async def test_triggers_survive_lost_connections(server: FakeSocketServer, client: DialogueClient) -> None:
    """Answers are lost with every 70th event; nothing is lost, doubled or out of order."""
    room = await client.join(ROOM)
    received = collect(room)
    count = 0

    def lose_some(connection: FakeConnection, command: Message) -> bool:
        nonlocal count
        if command["type"] != "trigger" or (ROOM, "ann", command["key"]) in server.keys:
            return False
        count += 1
        if count % 70 == 0:
            server._trigger(connection, command)
            connection.outbox.clear()
            connection.is_open = False
            server._sockets[connection].transport.abort()
            return True
        return False

    server.intercept = lose_some
    acks = await asyncio.gather(*(room.trigger("message", number) for number in range(500)))
    await until(lambda: len(received) == 500)
    assert received == list(range(500))
    assert [ack.seq for ack in acks] == list(range(1, 501))
    assert server.accepted_count > 3


async def test_reads_survive_lost_connections_and_do_not_mix(
    server: FakeSocketServer, client: DialogueClient
) -> None:
    """Each answer reaches the call that asked, whatever the order of the answers."""
    for number in range(10):
        server.publish(ROOM, "message", number)
        server.publish("other", "message", -number)
    general, other = await client.join(ROOM), await client.join("other")
    held: list[tuple[FakeConnection, Message]] = []

    def hold(connection: FakeConnection, command: Message) -> bool:
        if command["type"] != "history":
            return False
        held.append((connection, command))
        return True

    server.intercept = hold
    pages = [asyncio.create_task(room.page(limit=2)) for room in (general, other, general)]
    await until(lambda: len(held) == 3)
    await server.drop()
    await until(lambda: len(held) == 6)
    for connection, command in reversed(held[3:]):
        server._history(connection, command)
    answers = [await page for page in pages]
    assert [[event.data for event in page.events] for page in answers] == [[8, 9], [-8, -9], [8, 9]]


async def test_get_history_is_newest_first_and_page_oldest_first(
    server: FakeSocketServer, client: DialogueClient
) -> None:
    """The two orders of the two readers; offsets past the server's page limit are read on."""
    server.page_events = 4
    for number in range(20):
        server.publish(ROOM, "message", number)
    room = await client.join(ROOM)
    assert [event.data for event in await room.get_history("message", 2, 12)] == list(range(17, 7, -1))
    assert await room.get_history("message", 5, 5) == []
    assert [event.data for event in await room.get_history("message", 18, 30)] == [1, 0]
    page = await room.page("message", before=11, limit=3)
    assert [event.data for event in page.events] == [7, 8, 9]
    assert page.has_more
    older = await room.page("message", cursor=page.next, limit=3)
    assert [event.data for event in older.events] == [4, 5, 6]
    with pytest.raises(ValueError, match="only one"):
        await room.page(before=1, after=2)
    with pytest.raises(ValueError, match="start"):
        await room.get_history("message", 3, 2)


async def test_scroll_yields_everything_once_while_others_publish(
    server: FakeSocketServer, client: DialogueClient
) -> None:
    """From the newest back to the first."""
    for number in range(25):
        server.publish(ROOM, "message", number)
    room = await client.join(ROOM)
    seen: list[Any] = []
    async for event in room.scroll("message", page_size=10):
        seen.append(event.data)
        server.publish(ROOM, "message", "later")
    assert seen == list(range(24, -1, -1))


async def test_timeline_merges_pages_and_live_events(
    server: FakeSocketServer, client: DialogueClient
) -> None:
    """Oldest first, newest at the end, nothing twice and nothing missing, whatever comes meanwhile."""
    for number in range(30):
        server.publish(ROOM, "message", number)
        server.publish(ROOM, "noise", None)
    room = await client.join(ROOM)
    timeline = room.timeline(message, page_size=10)
    changes: list[int] = []
    timeline.subscribe(lambda: changes.append(len(timeline.entries)))
    expected = list(range(30))
    while timeline.has_older:
        first, second = timeline.load_older(), timeline.load_older()
        expected.append(len(expected))
        server.publish(ROOM, "message", expected[-1])
        server.publish(ROOM, EPHEMERAL, None)
        await asyncio.gather(first, second)
    await until(lambda: len(timeline.entries) == len(expected))
    assert [event.data for event in timeline.entries] == expected
    await until(lambda: changes and changes[-1] == len(expected))
    server.publish(ROOM, "$edit", {"target_seq": 1, "data": "edited"})
    server.publish(ROOM, "$delete", {"target_seq": 3})
    await until(lambda: timeline.entries[1].is_deleted)
    assert timeline.entries[0].data == "edited"
    timeline.close()


async def test_a_timeline_shows_a_deletion_as_a_page_would(
    server: FakeSocketServer, client: DialogueClient
) -> None:
    """A tombstone has neither data nor meta, and that of an erased user neither name nor key."""
    for number in range(2):
        server.publish(ROOM, "message", number).update(meta={"ip": "a"}, key=f"k{number}")
    timeline = (await client.join(ROOM)).timeline(message)
    await timeline.load_older()
    assert [event.meta for event in timeline.entries] == [{"ip": "a"}] * 2
    sender = timeline.entries[0].sender
    server.publish(ROOM, "$delete", {"target_seq": 1, "event": "message"})
    server.publish(ROOM, "$delete", {"target_seq": 2, "event": "message", "erased": True})
    await until(lambda: timeline.entries[1].is_deleted)
    assert [(e.data, e.meta, e.sender, e.key) for e in timeline.entries] == [
        (None, None, sender, "k0"),
        (None, None, "$erased", None),
    ]
    timeline.close()


async def test_a_timeline_begins_again_after_a_reset(
    server: FakeSocketServer, client: DialogueClient
) -> None:
    """Its old entries are gone, the newest page is there, and older ones load on from it."""
    server.replay_events = 0
    for number in range(5):
        server.publish(ROOM, "message", number)
    room = await client.join(ROOM)
    timeline = room.timeline("message", page_size=3)
    await timeline.load_older()
    await server.drop()
    server.epoch = "e2"
    for number in range(5, 8):
        server.publish(ROOM, "message", number)
    await until(lambda: [event.data for event in timeline.entries] == [5, 6, 7])
    assert timeline.entries[0].epoch == "e2"
    await timeline.load_older()
    await timeline.load_older()
    assert [event.data for event in timeline.entries] == list(range(8))
    assert not timeline.has_older


async def test_a_timeline_of_a_long_session_stays_bounded(
    server: FakeSocketServer, client: DialogueClient
) -> None:
    """Old entries leave the list, and come back when asked for."""
    room = await client.join(ROOM)
    timeline = room.timeline("message", page_size=50, max_live_events=10)
    await timeline.load_older()
    assert not timeline.has_older
    received = collect(room)
    for number in range(40):
        server.publish(ROOM, "message", number)
    await until(lambda: len(received) == 40)
    assert [event.data for event in timeline.entries] == list(range(30, 40))
    assert timeline.has_older
    await timeline.load_older()
    assert [event.data for event in timeline.entries] == list(range(40))


async def test_subscriptions_and_leave(server: FakeSocketServer, client: DialogueClient) -> None:
    """A handler is no subscription; after leave nothing comes."""
    room = await client.join(ROOM, events=["message"])
    received = collect(room)
    server.publish(ROOM, "alert", 1)
    await room.subscribe("alert")
    server.publish(ROOM, "alert", 2)
    await room.unsubscribe("message")
    server.publish(ROOM, "message", 3)
    server.publish(ROOM, "alert", 4)
    await until(lambda: len(received) == 2)
    assert received == [2, 4]
    await room.leave()
    assert not room.is_joined
    server.publish(ROOM, "alert", 5)
    again = await client.join(ROOM)
    assert again is not room
    assert received == [2, 4]


async def test_unsubscribing_a_handler(server: FakeSocketServer, client: DialogueClient) -> None:
    """The function that `on` returns takes away that handler, once."""
    room = await client.join(ROOM)
    received: list[Any] = []
    one = room.on("message", received.append)
    room.on("message", received.append)
    one()
    one()
    await room.trigger("message", 1)
    await until(lambda: received)
    await room.trigger("message", 2)
    await until(lambda: len(received) == 2)


async def test_left_is_told(server: FakeSocketServer, client: DialogueClient) -> None:
    """A kicked client hears why, and does not come back by itself."""
    room = await client.join(ROOM)
    reasons: list[str] = []
    room.on_left(reasons.append)
    server.connections[0].send({"type": "left", "room": ROOM, "reason": "kicked"})
    await until(lambda: reasons)
    assert reasons == ["kicked"]
    assert not room.is_joined
    await server.drop()
    await until(lambda: client.state == "connected" and server.connections)
    assert server.connections[0].subscriptions == {}


async def test_messages_to_this_client_alone(server: FakeSocketServer, client: DialogueClient) -> None:
    """`client.on` receives what the server sends with `client.send`."""
    received: list[Any] = []

    @client.on("welcome")
    async def welcome(data: Any) -> None:
        received.append(data)

    off = client.on("welcome", received.append)
    server.connections[0].send({"type": "message", "event": "welcome", "data": 1})
    await until(lambda: len(received) == 2)
    off()
    server.connections[0].send({"type": "message", "event": "welcome", "data": 2})
    await until(lambda: len(received) == 3)
    assert received == [1, 1, 2]


async def test_rooms_joined_by_the_server(server: FakeSocketServer) -> None:
    """Handlers of a room can be there before the server joins the client."""
    server.auto_join = ROOM
    client = make(server)
    received = collect(client.room(ROOM))
    async with client:
        await until(lambda: client.room(ROOM).is_joined)
        server.publish(ROOM, "message", 1)
        await until(lambda: received)
        assert [room.id for room in await client.rooms()] == [ROOM]


async def test_a_failing_handler_harms_nothing(
    server: FakeSocketServer, client: DialogueClient, caplog: pytest.LogCaptureFixture
) -> None:
    """It is logged, and the handlers after it run."""
    room = await client.join(ROOM)

    def fail(event: Event[Any]) -> None:
        raise RuntimeError("mine")

    async def cancel(event: Event[Any]) -> None:
        raise asyncio.CancelledError

    room.on("message", fail)
    room.on("message", cancel)
    received = collect(room)
    with caplog.at_level(logging.WARNING, "dialogue.client"):
        await room.trigger("message", 1)
        await room.trigger("message", 2)
        await until(lambda: received == [1, 2])
    assert sum("failed" in record.message for record in caplog.records) == 2


async def test_handlers_run_one_at_a_time_in_order(server: FakeSocketServer, client: DialogueClient) -> None:
    """A handler that waits holds up the next one."""
    room = await client.join(ROOM)
    steps: list[str] = []

    async def slow(event: Event[Any]) -> None:
        steps.append(f"begin {event.data}")
        await asyncio.sleep(0)
        steps.append(f"end {event.data}")

    room.on("message", slow)
    for number in range(3):
        server.publish(ROOM, "message", number)
    await until(lambda: len(steps) == 6)
    assert steps == [f"{what} {number}" for number in range(3) for what in ("begin", "end")]


async def test_slow_handlers_stop_the_reading(server: FakeSocketServer) -> None:
    """Back-pressure: the queue stays bounded, and everything comes in the end."""
    async with make(server, queue_events=10, stall_seconds=0.05) as client:
        room = await client.join(ROOM)
        gate = asyncio.Event()
        received: list[Any] = []

        async def wait(event: Event[Any]) -> None:
            await gate.wait()
            received.append(event.data)

        room.on("message", wait)
        for number in range(300):
            server.publish(ROOM, "message", number)
            await asyncio.sleep(0)
        await until(lambda: client._dispatcher.is_full)
        size = len(client._dispatcher)
        gate.set()
        await until(lambda: len(received) == 300)
        assert received == list(range(300))
        assert size < 300
        assert client.dropped_count == 0


async def test_a_handler_may_wait_for_answers_while_the_queue_is_full(server: FakeSocketServer) -> None:
    """No deadlock: the answer is read past the events, which are asked for again."""
    async with make(server, queue_events=5, stall_seconds=0.02) as client:
        room = await client.join(ROOM)
        received: list[int] = []

        async def reply(event: Event[Any]) -> None:
            received.append(event.data)
            if event.data % 10 == 0:
                await room.trigger("reply", event.data)

        room.on("message", reply)
        for number in range(60):
            server.publish(ROOM, "message", number)
            server.publish(ROOM, EPHEMERAL, number)
            await asyncio.sleep(0)
        await until(lambda: len(received) == 60)
        assert received == list(range(60))
        assert [event["data"] for event in server.log[ROOM] if event["event"] == "reply"] == list(
            range(0, 60, 10)
        )


async def test_pending_triggers_are_bounded(server: FakeSocketServer) -> None:
    """Who triggers past the bound is told so."""
    async with make(server, max_pending_triggers=3) as client:
        room = await client.join(ROOM)
        server.intercept = lambda connection, command: True
        tasks = [asyncio.create_task(room.trigger("message", number)) for number in range(3)]
        await until(lambda: len(server.connections[0].commands) == 5)
        with pytest.raises(Backpressure):
            await room.trigger("message", 4)
        tasks[0].cancel()
        await asyncio.wait(tasks[:1])
        tasks.append(asyncio.create_task(room.trigger("message", 5)))
        await until(lambda: len(server.connections[0].commands) == 6)
    for task in tasks[1:]:
        with pytest.raises(ConnectionLost):
            await task


async def test_a_server_that_is_not_up_yet_is_waited_for(server: FakeSocketServer) -> None:
    """Refused handshakes never end the retrying."""
    server.refuse_status = 503
    errors: list[Exception] = []
    client = make(server)
    client.on_error(errors.append)
    connecting = asyncio.create_task(client.connect())
    await until(lambda: server.handshake_count >= 3)
    assert client.state == "connecting"
    server.refuse_status = None
    await connecting
    await until(lambda: len(errors) >= 3)
    await client.aclose()


async def test_a_restarted_server_is_found_again(server: FakeSocketServer) -> None:
    """Connections refused by nobody listening end nothing either."""
    other = FakeSocketServer()
    async with other.running():
        port = other.port
        client = make(other)
        await client.connect()
        room = await client.join(ROOM)
        received = collect(room)
    await until(lambda: client.state == "resuming")
    pending = asyncio.create_task(room.trigger("message", "over the restart"))
    async with other.running(port):
        await pending
        await until(lambda: received == ["over the restart"])
        await client.aclose()


async def test_connecting_has_a_timeout_if_asked_for(server: FakeSocketServer) -> None:
    """The error tells what went wrong last."""
    server.refuse_status = 503
    with pytest.raises(TimeoutError, match="503"):
        async with make(server, connect_timeout_seconds=0.2):
            pass


async def test_refused_credentials_are_raised(server: FakeSocketServer) -> None:
    """Entering fails with the server's own refusal."""
    server.refuse_connect = "UNAUTHENTICATED"
    with pytest.raises(Unauthenticated):
        async with make(server):
            pass


async def test_the_end_of_the_retrying_is_told_to_everyone(
    server: FakeSocketServer, client: DialogueClient
) -> None:
    """Refused later on: what is pending fails, on_error is called, and calls fail at once."""
    room = await client.join(ROOM)
    errors: list[Exception] = []
    client.on_error(errors.append)
    server.intercept = lambda connection, command: command["type"] == "trigger"
    pending = asyncio.create_task(room.trigger("message", 1))
    await until(lambda: len(server.connections[0].commands) == 3)
    # Its credentials have expired, and those that it brings next are no better.
    server.refuse_connect = "UNAUTHENTICATED"
    await server.drop(4001)
    with pytest.raises(ConnectionLost) as caught:
        await pending
    assert caught.value.code == 4001
    assert client.state == "offline"
    await until(lambda: errors)
    with pytest.raises(ConnectionLost):
        await room.trigger("message", 2)


async def test_credentials_that_expire_are_asked_for_again(server: FakeSocketServer) -> None:
    """4001 on a connection that stood: the client comes back with new ones, and its rooms resume."""
    tokens = iter(("old", "new"))
    async with make(server, auth=lambda: {"user_id": "ann", "token": next(tokens)}) as client:
        await client.join(ROOM)
        await server.drop(4001)
        await until(lambda: server.handshake_count == 2 and client.state == "connected")
        commands = server.connections[-1].commands
        assert commands[0]["auth"]["token"] == "new"
        await until(lambda: any(command["type"] == "join" for command in commands))


async def test_auth_is_asked_for_at_every_connection(server: FakeSocketServer) -> None:
    """A function may renew a token; one that fails later is tried again."""
    calls = 0

    async def auth() -> dict[str, Any]:
        nonlocal calls
        calls += 1
        if calls == 2:
            raise OSError("no token now")
        return {"user_id": f"ann{calls}"}

    async with make(server, auth=auth) as client:
        assert client.user_id == "ann1"
        await server.drop()
        await until(lambda: client.user_id == "ann3")


async def test_credentials_that_are_not_json_are_a_mistake(server: FakeSocketServer) -> None:
    """Told at once, and not tried for ever without being sent."""
    for token in ("\udcff", object()):
        with pytest.raises((TypeError, ValueError)):
            async with make(server, auth={"token": token}):
                pass
    assert server.accepted_count == 0


async def test_names_that_are_not_text_are_told_to_the_caller(server: FakeSocketServer) -> None:
    """The connection and whatever else goes over it are not touched."""
    async with make(server) as client:
        room = await client.join(ROOM)
        for call in (client.join("\udcff"), room.trigger("\udcff", 1), room.page("\udcff")):
            with pytest.raises(ValueError, match="not text"):
                await call
        await room.trigger("message", 1)
    assert server.accepted_count == 1


async def test_an_auth_function_that_fails_at_first_is_raised(server: FakeSocketServer) -> None:
    """A mistake in it is not retried for ever."""

    def auth() -> dict[str, Any]:
        raise KeyError("token")

    with pytest.raises(KeyError):
        async with make(server, auth=auth):
            pass


async def test_a_silent_server_is_left(server: FakeSocketServer) -> None:
    """A half-open connection is found by its silence."""
    server.ping_seconds = 0.05
    async with make(server) as client:
        room = await client.join(ROOM)
        received = collect(room)
        server.mute()
        server.publish(ROOM, "message", 1)
        await until(lambda: received == [1])
        assert server.accepted_count > 1


async def test_rubbish_from_the_server_ends_the_connection_only(
    server: FakeSocketServer, client: DialogueClient
) -> None:
    """It is told to on_error, and the next connection is tried."""
    room = await client.join(ROOM)
    errors: list[Exception] = []
    client.on_error(errors.append)
    await next(iter(server._sockets.values())).send("{not json")
    await until(lambda: server.accepted_count == 2 and client.state == "connected")
    assert "protocol" in str(errors[0])
    assert (await room.trigger("message", 1)).seq == 1


async def test_closing_twice_and_from_a_handler(server: FakeSocketServer) -> None:
    """aclose ends every task; what waits fails with ConnectionLost."""
    client = make(server)
    async with client:
        room = await client.join(ROOM)
        room.on_any(lambda event: client.aclose())
        server.intercept = lambda connection, command: command["type"] == "rooms"
        pending = asyncio.create_task(client.rooms())
        server.publish(ROOM, "message", 1)
        with pytest.raises(ConnectionLost):
            await pending
        await client.aclose()
    assert client.state == "offline"
    with pytest.raises(ConnectionLost):
        await room.trigger("message", 1)
    with pytest.raises(RuntimeError):
        await client.connect()


async def test_a_cancelled_connect_leaves_nothing_behind(server: FakeSocketServer) -> None:
    """The fixture looks for tasks that are left."""
    server.intercept = lambda connection, command: True
    task = asyncio.create_task(make(server).connect())
    await until(lambda: server.connections and server.connections[0].commands)
    task.cancel()
    await asyncio.wait([task])
    assert task.cancelled()


async def test_calls_before_connecting_are_told_what_to_do(server: FakeSocketServer) -> None:
    """A forgotten `async with` is a mistake with a remedy."""
    with pytest.raises(RuntimeError, match="async with"):
        await make(server).join(ROOM)
