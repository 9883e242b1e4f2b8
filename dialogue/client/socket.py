"""The socket under a client: what the connection loop asks of one, and the WebSocket that it is by default."""

from __future__ import annotations

import contextlib
from collections.abc import Awaitable, Callable
from typing import Any, Protocol

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

from dialogue.protocol import CLOSE_NORMAL


class SocketClosed(Exception):
    """The socket has ended, whoever ended it; `Socket.received_close` says what the other side said."""


class Socket(Protocol):
    """An open connection to a server, for one client and one task each for reading and writing."""

    @property
    def received_close(self) -> tuple[int | None, str]:
        """Code and reason of the server's close frame; ``(None, "")`` while there was none."""

    async def receive(self) -> bytes:
        """Return the next frame, in the order in which the server sent them.

        Raises:
            SocketClosed: There is none, and none comes any more.
        """

    async def send(self, frame: bytes) -> None:
        """Send a text frame of UTF-8; waits while the server takes none.

        Raises:
            SocketClosed: It will not be sent.
        """

    async def aclose(self) -> None:
        """Close with a close handshake, which waits for the server for a bounded time. May be called twice."""

    def abort(self) -> None:
        """End at once, without a close frame. May be called at any time, also after `aclose`."""


OpenSocket = Callable[[], Awaitable[Socket]]
"""Opens a socket. `TypeError` and `ValueError` are mistakes, which end a client that waits for its first connection;
after any other exception it is tried again later."""


class WebSocket:
    """A WebSocket over the network."""

    def __init__(self, connection: ClientConnection) -> None:
        self._connection = connection

    @property
    def received_close(self) -> tuple[int | None, str]:
        """See `Socket`."""
        received = self._connection.protocol.close_rcvd
        return (received.code, received.reason) if received else (None, "")

    async def receive(self) -> bytes:
        """See `Socket`."""
        try:
            return await self._connection.recv(decode=False)
        except ConnectionClosed:
            raise SocketClosed from None

    async def send(self, frame: bytes) -> None:
        """See `Socket`."""
        try:
            await self._connection.send(frame, text=True)
        except ConnectionClosed:
            raise SocketClosed from None

    async def aclose(self) -> None:
        """See `Socket`."""
        with contextlib.suppress(ConnectionClosed):
            await self._connection.close(CLOSE_NORMAL)

    def abort(self) -> None:
        """See `Socket`."""
        self._connection.transport.abort()


def web_socket_opener(url: str, options: dict[str, Any]) -> OpenSocket:
    """Return what opens WebSockets to *url* with *options* of ``websockets.asyncio.client.connect``."""

    async def open_socket() -> Socket:
        return WebSocket(await connect(url, **options))

    return open_socket
