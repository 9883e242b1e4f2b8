"""WebSockets for load generators: as little work per frame as Python allows, so that they are not what is measured.

It does its own framing and masks with zeros, which leaves the payload as it is. It trusts the server: no fragments,
no compression.
"""

from __future__ import annotations

import asyncio
import base64
from typing import Any, cast

_KEY = base64.b64encode(b"0123456789abcdef")


def upgrade_request(path: str) -> bytes:
    """Return the request that opens a WebSocket at *path*."""
    return (
        b"GET %b HTTP/1.1\r\nHost: 127.0.0.1\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: %b\r\n\r\n" % (path.encode(), _KEY)
    )


def text_frame(payload: bytes) -> bytes:
    """Return *payload* as one text frame of a client."""
    size = len(payload)
    if size < 126:
        head = bytes((0x81, 0x80 | size))
    elif size < 65_536:
        head = b"\x81\xfe" + size.to_bytes(2, "big")
    else:
        head = b"\x81\xff" + size.to_bytes(8, "big")
    return head + b"\0\0\0\0" + payload


class Connection(asyncio.Protocol):
    """One WebSocket connection; a subclass says what becomes of its frames.

    Args:
        path: Where the server has its WebSocket.

    Attributes:
        opened: Done with the upgrade.
        closed: Set to the close code when the connection has ended, None where the server gave none.
    """

    def __init__(self, path: str = "/ws") -> None:
        loop = asyncio.get_running_loop()
        self.opened: asyncio.Future[None] = loop.create_future()
        self.closed: asyncio.Future[int | None] = loop.create_future()
        self.transport = cast(asyncio.Transport, None)
        self._path = path
        self._buffer = b""
        self._code: int | None = None

    def on_open(self) -> None:
        """Take the end of the upgrade."""

    def on_frame(self, frame: bytes) -> None:
        """Take the payload of a data frame."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self.transport.write(upgrade_request(self._path))

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.closed.done():
            self.closed.set_result(self._code)
        fail(self.opened)

    def data_received(self, data: bytes) -> None:
        data = self._buffer + data if self._buffer else data
        if not self.opened.done():
            end = data.find(b"\r\n\r\n")
            if end < 0:
                self._buffer = data
                return
            if not data.startswith(b"HTTP/1.1 101"):
                self.transport.close()
                return
            self.opened.set_result(None)
            data = data[end + 4 :]
            self.on_open()
        start = 0
        while len(data) - start >= 2:
            size, head = data[start + 1], 2
            if size == 126:
                size, head = int.from_bytes(data[start + 2 : start + 4], "big"), 4
            elif size == 127:
                size, head = int.from_bytes(data[start + 2 : start + 10], "big"), 10
            end = start + head + size
            if len(data) < end:
                break
            payload = data[start + head : end]
            opcode = data[start] & 0x0F
            if opcode in (1, 2):
                self.on_frame(payload)
            elif opcode == 8:
                self._code = int.from_bytes(payload[:2], "big") if payload else None
                self.transport.write(b"\x88\x80\0\0\0\0")
                self.transport.close()
            elif opcode == 9:
                self.transport.write(bytes((0x8A, 0x80 | size)) + b"\0\0\0\0" + payload)
            start = end
        self._buffer = data[start:]

    def send(self, payload: bytes) -> None:
        """Send one text frame."""
        self.transport.write(text_frame(payload))

    def close(self) -> None:
        """Close the socket."""
        if self.transport is not None:
            self.transport.close()


def fail(*futures: asyncio.Future[Any]) -> None:
    """End those of *futures* that are not done: the connection that they wait for is lost."""
    for future in futures:
        if not future.done():
            future.set_exception(ConnectionError("the server closed the connection"))
            future.exception()  # nobody may be waiting any more


async def open_connection(connection: Connection, port: int) -> None:
    """Connect *connection* to the loopback server at *port*; returns before the upgrade is answered."""

    def same() -> Any:
        return connection

    await asyncio.get_running_loop().create_connection(same, "127.0.0.1", port)
