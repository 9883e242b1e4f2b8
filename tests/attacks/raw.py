"""A WebSocket written by hand: a handshake, and then whatever bytes an attacker likes."""

from __future__ import annotations

import asyncio
import base64
import os
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any

import msgspec

CONT, TEXT, BINARY, CLOSE, PING, PONG = 0x0, 0x1, 0x2, 0x8, 0x9, 0xA


def frame(
    opcode: int,
    payload: bytes = b"",
    *,
    is_final: bool = True,
    reserved: int = 0,
    is_masked: bool = True,
    declared_length: int | None = None,
) -> bytes:
    """Return the bytes of one frame.

    Args:
        reserved: The three reserved bits, 0 to 7.
        declared_length: What the frame says of its length, where that is a lie.
    """
    length = len(payload) if declared_length is None else declared_length
    head = bytes([(0x80 if is_final else 0) | reserved << 4 | opcode])
    mask = 0x80 if is_masked else 0
    if length < 126:
        head += bytes([mask | length])
    elif length < 2**16:
        head += bytes([mask | 126]) + struct.pack("!H", length)
    else:
        head += bytes([mask | 127]) + struct.pack("!Q", length)
    # A mask of zeros is a mask: the payload is its own masked form.
    return head + (bytes(4) if is_masked else b"") + payload


class RawSocket:
    """One connection, upgraded or not."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self.messages: list[dict[str, Any]] = []

    async def upgrade(self, address: str, *, headers: dict[str, str] | None = None) -> int:
        """Ask for the upgrade and return the status."""
        lines = {
            "Host": address,
            "Upgrade": "websocket",
            "Connection": "Upgrade",
            "Sec-WebSocket-Key": base64.b64encode(os.urandom(16)).decode(),
            "Sec-WebSocket-Version": "13",
            **(headers or {}),
        }
        request = "GET /ws HTTP/1.1\r\n" + "".join(f"{name}: {value}\r\n" for name, value in lines.items())
        await self.write((request + "\r\n").encode())
        answer = await self._reader.readuntil(b"\r\n\r\n")
        return int(answer.split()[1])

    async def write(self, data: bytes) -> None:
        """Write bytes; nothing happens when the server has gone."""
        try:
            self._writer.write(data)
            await self._writer.drain()
        except ConnectionError:
            pass

    async def text(self, text: str) -> None:
        """Write a text frame."""
        await self.write(frame(TEXT, text.encode()))

    async def read_frame(self) -> tuple[int, bytes] | None:
        """Return the next frame's opcode and payload; None at the end."""
        try:
            first, second = await self._reader.readexactly(2)
            length = second & 0x7F
            if length == 126:
                (length,) = struct.unpack("!H", await self._reader.readexactly(2))
            elif length == 127:
                (length,) = struct.unpack("!Q", await self._reader.readexactly(8))
            return first & 0x0F, await self._reader.readexactly(length)
        except (asyncio.IncompleteReadError, ConnectionError):
            return None

    async def read_message(self, type: str) -> dict[str, Any]:
        """Return the next message of a type; others that come are kept in `messages`."""
        while True:
            for index, message in enumerate(self.messages):
                if message["type"] == type:
                    return self.messages.pop(index)
            found = await self.read_frame()
            assert found is not None, f"closed before a message of type {type!r} came"
            assert found[0] == TEXT, found
            self.messages += msgspec.json.decode(found[1], type=list[dict[str, Any]])

    async def until_closed(self) -> int | None:
        """Read to the end; return the close code, None where there was no close frame."""
        while (found := await self.read_frame()) is not None:
            opcode, payload = found
            if opcode == CLOSE:
                return int(struct.unpack("!H", payload[:2])[0]) if payload else None
        return None

    def stop_reading(self) -> None:
        """Take nothing more from the network, so that what the server sends piles up there."""
        self._writer.transport.pause_reading()  # type: ignore[attr-defined]

    def go_on_reading(self) -> None:
        """Read again."""
        self._writer.transport.resume_reading()  # type: ignore[attr-defined]

    async def aclose(self) -> None:
        """Drop the connection without a word."""
        self._writer.transport.abort()
        with suppress(ConnectionError):
            await self._writer.wait_closed()


@asynccontextmanager
async def raw(address: str, user: str | None = "mallory", **headers: str) -> AsyncIterator[RawSocket]:
    """Open a connection, upgrade it, and ``connect`` as *user* unless that is None."""
    host, _, port = address.partition(":")
    socket = RawSocket(*await asyncio.open_connection(host, int(port)))
    try:
        assert await socket.upgrade(address, headers=headers) == 101
        if user is not None:
            await socket.text('{"type":"connect","auth":{"user_id":"%s"}}' % user)  # noqa: UP031 - braces
            await socket.read_message("connected")
        yield socket
    finally:
        await socket.aclose()
