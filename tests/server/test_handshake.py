"""Connections that never become a request."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import pytest
from fastapi import Request
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from dialogue import Dialogue, Limits
from dialogue.server import serving
from dialogue.server.handshake import HEAD_BYTES, guarded_http

from .harness import eventually, rooms, wire

GET = b"GET /health HTTP/1.1\r\nHost: localhost\r\n"


@pytest.fixture(params=[HttpToolsProtocol, H11Protocol], ids=["httptools", "h11"])
def base(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Serve over each of uvicorn's HTTP protocols."""

    def guarded(**options: Any) -> Any:
        return guarded_http(**options, base=request.param)

    monkeypatch.setattr(serving, "guarded_http", guarded)
    return request.param


def refused(dialogue: Dialogue) -> float:
    value = dialogue.metrics.registry.get_sample_value(
        "dialogue_connections_refused_total", {"reason": "handshake"}
    )
    return value or 0.0


async def opened(dialogue: Dialogue) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    return await asyncio.open_connection("127.0.0.1", dialogue.port)


async def ended(reader: asyncio.StreamReader) -> bytes:
    """Return what came until the server closed the connection."""
    came = b""
    try:
        while data := await reader.read(65_536):
            came += data
    except ConnectionResetError:
        pass
    return came


async def answer(reader: asyncio.StreamReader) -> bytes:
    head = await reader.readuntil(b"\r\n\r\n")
    (length,) = [line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")]
    return head + await reader.readexactly(int(length.split(b":")[1]))


@pytest.mark.usefixtures("base")
async def test_a_head_that_does_not_come_closes_the_connection() -> None:
    """Silence, half a line, a byte at a time, and all that after a whole request; others connect meanwhile."""
    dialogue = Dialogue(rooms(), limits=Limits(handshake_seconds=0.3))
    await dialogue.start(port=0)
    try:
        silent = await opened(dialogue)
        half = await opened(dialogue)
        half[1].write(b"GET /ws HT")
        dripping = await opened(dialogue)

        async def drip() -> None:
            for byte in GET * 1000:
                dripping[1].write(bytes([byte]))
                await asyncio.sleep(0.02)

        dripper = asyncio.create_task(drip())
        again = await opened(dialogue)
        again[1].write(GET + b"\r\n")
        assert b" 200 " in await answer(again[0])
        again[1].write(GET)
        async with wire(f"127.0.0.1:{dialogue.port}") as client:
            await client.ask("join", room="general")
            for reader, _ in (silent, half, dripping, again):
                assert await ended(reader) == b""
            assert refused(dialogue) == 4
            assert (await client.trigger("general", "message", 1))["seq"] == 1, "an upgraded one stays"
        dripper.cancel()
        await asyncio.gather(dripper, return_exceptions=True)
        for _, writer in (silent, half, dripping, again):
            writer.close()
    finally:
        await dialogue.stop()


@pytest.mark.usefixtures("base")
async def test_a_body_that_does_not_come_closes_the_connection() -> None:
    """Silence within it; one that comes slowly is read to its end."""
    dialogue = Dialogue(rooms(), limits=Limits(handshake_seconds=0.4))

    @dialogue.app.post("/upload")
    async def upload(request: Request) -> int:
        return len(await request.body())

    await dialogue.start(port=0)
    try:
        head = b"POST /upload HTTP/1.1\r\nHost: localhost\r\nContent-Length: 8\r\n\r\n"
        silent = await opened(dialogue)
        silent[1].write(head + b"abc")
        slow = await opened(dialogue)
        slow[1].write(head)
        for _ in range(8):
            await asyncio.sleep(0.1)
            slow[1].write(b"x")
        assert (await answer(slow[0])).endswith(b"8")
        assert await ended(silent[0]) == b""
        assert refused(dialogue) == 1
        silent[1].close()
        slow[1].close()
    finally:
        await dialogue.stop()


@pytest.mark.usefixtures("base")
async def test_an_answer_may_take_its_time() -> None:
    """Who waits for the application is not closed, nor is a connection that is idle between two requests."""
    dialogue = Dialogue(rooms(), limits=Limits(handshake_seconds=0.05))
    may_answer = asyncio.Event()

    @dialogue.app.get("/slow")
    async def slow() -> int:
        await may_answer.wait()
        return 1

    await dialogue.start(port=0)
    try:
        reader, writer = await opened(dialogue)
        writer.write(b"GET /slow HTTP/1.1\r\nHost: localhost\r\n\r\n")
        silent = await opened(dialogue)
        # As long as the time of several heads.
        for _ in range(4):
            assert await ended(silent[0]) == b""
            silent[1].close()
            silent = await opened(dialogue)
        may_answer.set()
        assert (await answer(reader)).endswith(b"1")
        assert await ended(silent[0]) == b""
        writer.write(GET + b"\r\n")
        assert b" 200 " in await answer(reader)
        writer.close()
        silent[1].close()
    finally:
        await dialogue.stop()


@pytest.mark.usefixtures("base")
async def test_a_head_is_bounded_in_size() -> None:
    """However fast it comes."""
    dialogue = Dialogue(rooms())
    await dialogue.start(port=0)
    try:
        reader, writer = await opened(dialogue)
        try:
            writer.write(GET)
            for number in range(4 * HEAD_BYTES // 1000):
                writer.write(b"X-%d: " % number + b"x" * 1000 + b"\r\n")
                await writer.drain()
        except ConnectionError:
            pass
        assert b" 200 " not in await ended(reader)
        writer.close()
    finally:
        await dialogue.stop()


async def test_another_uvicorn_is_told_of_once_and_served_without_the_guard(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A method that has another name, and a parser that calls none: no connection is harmed."""

    logger = logging.getLogger("dialogue")
    options: dict[str, Any] = {"seconds": 0.05, "on_refused": lambda: None, "logger": logger}
    assert guarded_http(**options, base=asyncio.Protocol) == "auto"
    assert caplog.text.count("is not known here") == 1
    caplog.clear()

    made: Any = guarded_http(**options)
    # As if the parser did not call it: the base's own is called and the guard's is not.
    made.on_headers_complete = HttpToolsProtocol.on_headers_complete
    monkeypatch.setattr(serving, "guarded_http", lambda **_: made)
    dialogue = Dialogue(rooms(), limits=Limits(handshake_seconds=0.05))
    await dialogue.start(port=0)
    try:
        async with wire(f"127.0.0.1:{dialogue.port}") as client:
            await client.ask("join", room="general")
            for _ in range(2):
                reader, writer = await opened(dialogue)
                writer.write(GET + b"\r\n")
                assert b" 200 " in await answer(reader)
                writer.close()
            assert await eventually(lambda: made.is_off)
            assert (await client.trigger("general", "message", 1))["seq"] == 1
    finally:
        await dialogue.stop()
    assert caplog.text.count("is not known here") == 1
