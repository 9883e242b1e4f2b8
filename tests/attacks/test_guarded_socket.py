"""What ``dialogue run`` bounds on the socket itself: a frame before it has come, fragments, and pongs nobody reads."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from dialogue import Dialogue, Limits
from dialogue.server.guarded_socket import FRAGMENTS, guarded_socket

from ..server.harness import eventually, rooms, serve, wire
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


async def test_another_uvicorn_is_told_of_once_and_works(caplog: pytest.LogCaptureFixture) -> None:
    """Where what the bounds need has been moved, the server says so once and goes on without them."""
    dialogue = Dialogue(rooms())
    protocol = guarded_socket(bytes_before_connect=4096, logger=dialogue.logger)

    class Moved(protocol):  # type: ignore[misc, valid-type]
        def _lower(self) -> None:
            raise AttributeError("'ServerProtocol' object has no attribute 'max_message_size'")

    async with serve(dialogue, ws=Moved) as address, wire(address) as alice, wire(address, "bob") as bob:
        for client in (alice, bob):
            await client.ask("join", room="general")
        await alice.trigger("general", "message", "x" * 10_000)
        assert await bob.until_events(1)
    assert caplog.text.count("this uvicorn is not known") == 1
