"""The client against the real server, over real sockets."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import uvicorn

from dialogue import Dialogue, History, RoomConfig, define_event
from dialogue.client import DialogueClient, Timing
from dialogue.errors import JoinDenied, RoomNotFound, ValidationFailed

from .fake import until

QUICK = Timing(backoff_seconds=0.01, backoff_limit_seconds=0.05)
message = define_event("message", schema=dict[str, int], history=History(limit=1000))
typing = define_event("typing")


def make_dialogue(**options: Any) -> Dialogue:
    return Dialogue(
        rooms={
            "general": RoomConfig(name="General", events=[message, typing], sync_history_on_join=10),
            "side": RoomConfig(name="Side", events=[message]),
        },
        **options,
    )


@asynccontextmanager
async def serving(dialogue: Dialogue, port: int = 0) -> AsyncIterator[int]:
    """Serve on a port of its own, or on *port*; yields the port."""
    config = uvicorn.Config(
        dialogue.app, host="127.0.0.1", port=port, log_config=None, ws="websockets-sansio", lifespan="on"
    )
    server = uvicorn.Server(config)
    task = asyncio.create_task(server.serve())
    try:
        await until(lambda: server.started or task.done())
        yield server.servers[0].sockets[0].getsockname()[1]
    finally:
        server.should_exit = True
        await task


async def drop(client: DialogueClient) -> None:
    """Lose the connection without a close frame."""
    await until(lambda: client.state == "connected" and client._connection is not None)
    connection = client._connection
    assert connection is not None
    connection.abort()
    await until(lambda: client._connection is not connection)


@pytest.fixture
async def url() -> AsyncIterator[str]:
    async with serving(make_dialogue()) as port:
        yield f"http://127.0.0.1:{port}"


def connected(url: str, user: str = "ann") -> DialogueClient:
    return DialogueClient(url, auth={"user_id": user}, timing=QUICK)


async def test_publish_listen_and_scroll(url: str) -> None:
    """A listener has every message once and in order; a key is recorded once; pages agree."""
    async with connected(url) as ann, connected(url, "bob") as bob:
        room = await ann.join("general")
        heard: list[int] = []
        typed: list[str] = []
        other = await bob.join("general")
        other.on(message, lambda event: heard.append(event.model["n"]))
        other.on(typing, lambda event: typed.append(event.sender))
        acks = await asyncio.gather(*(room.trigger(message, {"n": n}) for n in range(15)))
        assert [ack.seq for ack in acks] == list(range(1, 16))
        assert (await room.trigger(typing)).seq is None
        await until(lambda: len(heard) == 15 and typed)
        assert (heard, typed) == (list(range(15)), ["ann"])
        assert [event.data["n"] async for event in room.scroll(message, page_size=4)] == list(
            range(14, -1, -1)
        )
        assert [event.data["n"] for event in await room.get_history(message, 2, 5)] == [12, 11, 10]
        assert {info.id for info in await ann.rooms()} == {"general", "side"}
        again = await room.trigger(message, {"n": 99}, key="mine")
        assert await room.trigger(message, {"n": 99}, key="mine") == again._replace(is_duplicate=True)
        with pytest.raises(ValidationFailed):
            await room.trigger("message", {"n": "many"})
        with pytest.raises((RoomNotFound, JoinDenied)):
            await ann.join("nowhere")


async def test_resume_after_lost_connections(url: str) -> None:
    """Exact over many losses, in both directions."""
    async with connected(url) as ann, connected(url, "bob") as bob:
        room, other = await ann.join("general"), await bob.join("general", events=[message])
        heard: list[int] = []
        other.on(message, lambda event: heard.append(event.data["n"]))
        other.on_reset(lambda: heard.append(-1))
        pending: list[asyncio.Task[Any]] = []
        for n in range(200):
            pending.append(asyncio.create_task(room.trigger(message, {"n": n})))
            if n % 20 == 7:
                await drop(bob)
            if n % 50 == 9:
                await drop(ann)
        acks = [await task for task in pending]
        assert [ack.seq for ack in acks] == list(range(1, 201))
        await until(lambda: len(heard) >= 200)
        assert heard == list(range(200))


async def test_a_subscription_and_a_timeline_over_a_loss(url: str) -> None:
    """The timeline has no hole where the connection was."""
    async with connected(url) as ann, connected(url, "bob") as bob:
        room, other = await ann.join("side"), await bob.join("side")
        for n in range(30):
            await room.trigger(message, {"n": n})
        timeline = other.timeline(message, page_size=7)
        await timeline.load_older()
        await drop(bob)
        for n in range(30, 40):
            await room.trigger(message, {"n": n})
        while timeline.has_older:
            await timeline.load_older()
        await until(lambda: len(timeline.entries) == 40)
        assert [event.data["n"] for event in timeline.entries] == list(range(40))
        await other.unsubscribe(message)
        await other.subscribe(message)
        await other.leave()


async def test_another_log_is_a_reset() -> None:
    """A server that comes back with an empty memory has another epoch: told, and gone on from there."""
    dialogue = make_dialogue()
    async with contextlib.AsyncExitStack() as stack:
        async with serving(dialogue) as port:
            client = await stack.enter_async_context(connected(f"http://127.0.0.1:{port}"))
            room = await client.join("general")
            resets: list[str | None] = []
            room.on_reset(lambda: resets.append(room.epoch))
            epoch = room.epoch
            await room.trigger(message, {"n": 1})
        async with serving(make_dialogue(), port):
            await until(lambda: resets)
            assert resets[0] != epoch
            assert (await room.trigger(message, {"n": 2})).seq == 1
            await client.aclose()


async def test_a_join_by_the_server(url: str) -> None:
    """A hook that joins the client, and messages that it sends."""
    dialogue = make_dialogue()

    @dialogue.on_connected
    async def welcome(client: Any) -> None:
        await client.join("general")

    async with serving(dialogue) as port:
        client = connected(f"http://127.0.0.1:{port}")
        room = client.room("general")
        heard: list[int] = []
        room.on(message, lambda event: heard.append(event.data["n"]))
        async with client:
            await until(lambda: room.is_joined)
            await dialogue.trigger("general", message, {"n": 1})
            await until(lambda: heard == [1])
            await drop(client)
            await dialogue.trigger("general", message, {"n": 2})
            await until(lambda: len(heard) == 2)
            await dialogue.trigger("general", message, {"n": 3})
            await until(lambda: len(heard) == 3)
            assert heard == [1, 2, 3]
