"""What ``dialogue run`` does on the socket itself: bounds before a frame has come, and frames past ASGI."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from websockets.asyncio.client import connect

from dialogue import Dialogue, Limits
from dialogue.server.uvicorn_socket import FRAGMENTS

from ..server.harness import eventually, own_socket, rooms, serve, wire
from .raw import CLOSE, CONT, PING, TEXT, RawSocket, frame, raw


@asynccontextmanager
async def served(dialogue: Dialogue) -> AsyncIterator[str]:
    """Serve as ``dialogue run`` does, and yield the address."""
    await dialogue.start(port=0)
    try:
        yield f"127.0.0.1:{dialogue.port}"
    finally:
        await dialogue.stop()


async def code_of(socket: RawSocket) -> int:
    """Return the close code, past whatever else comes."""
    while (found := await socket.read_frame()) is not None:
        if found[0] == CLOSE:
            return int.from_bytes(found[1][:2])
    raise AssertionError("the connection ended without a close frame")


async def test_a_large_frame_is_refused_by_its_length_before_connect() -> None:
    """E5: nothing of it has come when it is refused, so that many silent connections hold no memory; it is counted."""
    dialogue = Dialogue(rooms())
    async with served(dialogue) as address, raw(address, None) as mallory:
        await mallory.write(frame(TEXT, b"{", declared_length=4097))
        assert await code_of(mallory) == 1009
        await eventually(lambda: b'dialogue_closes_total{code="1009"} 1.0' in dialogue.metrics.render())


async def test_frames_have_their_full_size_once_connected() -> None:
    """E5: who has said who they are may send up to ``limits.frame_bytes``, and no more."""
    dialogue = Dialogue(rooms(), limits=Limits(frame_bytes=200_000))
    async with served(dialogue) as address, wire(address) as alice, raw(address) as mallory:
        await alice.ask("join", room="general")
        many = [
            {"type": "trigger", "ref": f"r{n}", "room": "general", "event": "message", "data": "x" * 30_000}
            for n in range(6)
        ]
        await alice.send_raw(json.dumps(many))
        assert (await alice.answer("r5"))["seq"] == 6
        await mallory.write(frame(TEXT, b"{", declared_length=200_001))
        assert await code_of(mallory) == 1009


async def test_fragments_without_end_are_refused() -> None:
    """E5: empty fragments cost their sender next to nothing: there are so many, and no more."""
    async with served(Dialogue(rooms())) as address, raw(address) as mallory:
        await mallory.write(frame(TEXT, b"{", is_final=False) + frame(CONT, is_final=False) * (FRAGMENTS + 1))
        assert await code_of(mallory) == 1009


async def test_who_asks_for_pongs_and_does_not_read_them_is_dropped() -> None:
    """E5: what waits for a peer is bounded also where it is the protocol's own."""
    dialogue = Dialogue(rooms())
    async with served(dialogue) as address, raw(address) as mallory:
        mallory.stop_reading()
        pings = frame(PING, b"p" * 125) * 1000
        while dialogue.hub().connections.sessions:
            await mallory.write(pings)
            await asyncio.sleep(0)  # a write to what is gone waits for nothing


class Counted:
    """An ASGI application that counts what another one sends by ASGI, by type."""

    def __init__(self, app: Any) -> None:
        self.app = app
        self.sent: Counter[str] = Counter()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        async def counted(message: Any) -> None:
            self.sent[message["type"]] += 1
            await send(message)

        await self.app(scope, receive, counted)


@pytest.mark.parametrize("is_compressed", [False, True])
async def test_frames_go_straight_to_the_transport(is_compressed: bool) -> None:
    """The seam with this uvicorn holds: frames pass ASGI by, uncompressed also where compression was agreed on."""
    dialogue = Dialogue(rooms(), limits=Limits(message_bytes=100_000))
    counted = Counted(dialogue.app)
    async with (
        serve(counted, ws=own_socket(dialogue), ws_per_message_deflate=is_compressed) as address,
        connect(f"ws://{address}/ws", compression="deflate" if is_compressed else None) as socket,
    ):
        assert bool(socket.protocol.extensions) is is_compressed
        messages: list[dict[str, Any]] = []
        commands: list[dict[str, Any]] = [
            {"type": "connect", "auth": {"user_id": "alice"}},
            {"type": "join", "room": "general"},
            {"type": "trigger", "room": "general", "event": "message", "data": "x" * 70_000},
        ]
        for ref, command in enumerate(commands):
            await socket.send(json.dumps({**command, "ref": ref}))
            while not any(message.get("ref") == ref for message in messages):
                messages += json.loads(await socket.recv())
        assert [event["data"] for event in messages if event["type"] == "event"] == ["x" * 70_000]
    assert counted.sent["websocket.accept"] == 1
    assert not counted.sent["websocket.send"]


async def test_nothing_is_written_behind_a_close_frame() -> None:
    """A peer that has begun to close gets a close frame, and no events after it."""
    dialogue = Dialogue(rooms())
    async with served(dialogue) as address, wire(address) as alice, raw(address) as mallory:
        await alice.ask("join", room="general")
        await mallory.write(frame(TEXT, json.dumps({"type": "join", "ref": 1, "room": "general"}).encode()))
        while (found := await mallory.read_frame()) is not None and b'"joined"' not in found[1]:
            pass
        await mallory.write(frame(CLOSE, (1000).to_bytes(2, "big")))
        for _ in range(20):
            await alice.trigger("general", "message", "x")
        frames = []
        while (found := await mallory.read_frame()) is not None:
            frames.append(found[0])
        assert frames.index(CLOSE) == len(frames) - 1


async def test_who_does_not_read_keeps_no_socket() -> None:
    """E5: one that was closed as too slow is dropped, buffered bytes and all, although it reads nothing of it."""
    dialogue = Dialogue(rooms(), limits=Limits(outbox_bytes=100_000, message_bytes=60_000))
    sockets: list[Any] = []

    class Noted(own_socket(dialogue)):  # type: ignore[misc]
        def __init__(self, *args: Any, **options: Any) -> None:
            super().__init__(*args, **options)
            self.close_timeout = 0.2
            sockets.append(self)

    async with serve(dialogue, ws=Noted) as address, wire(address) as alice, raw(address) as mallory:
        await alice.ask("join", room="general")
        await mallory.text('{"type":"join","room":"general"}')
        await mallory.read_message("joined")
        mallory.stop_reading()
        while b'code="4008"' not in dialogue.metrics.render():
            await alice.trigger("general", "message", "x" * 50_000)
        await eventually(lambda: sockets[1].disconnected)
        assert not sockets[0].disconnected


async def test_another_uvicorn_is_told_of_once_and_works(caplog: pytest.LogCaptureFixture) -> None:
    """Where what the bounds need has been moved, the server says so once and goes on without them."""
    dialogue = Dialogue(rooms())

    class Moved(own_socket(dialogue)):  # type: ignore[misc]
        def _lower(self) -> None:
            raise AttributeError("'ServerProtocol' object has no attribute 'max_message_size'")

    async with serve(dialogue, ws=Moved) as address, wire(address) as alice, wire(address, "bob") as bob:
        for client in (alice, bob):
            await client.ask("join", room="general")
        await alice.trigger("general", "message", "x" * 10_000)
        assert await bob.until_events(1)
    assert caplog.text.count("this uvicorn is not known") == 1
