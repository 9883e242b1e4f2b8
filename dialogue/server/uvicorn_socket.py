"""uvicorn's WebSocket protocol as ``dialogue run`` has it: bounds before it is known who connects, a way past ASGI.

A small subclass of its sans-I/O protocol, given to it by its public ``ws=`` setting. It does two things that ASGI has
no words for: it refuses a frame by its declared size, before a byte of it is kept, and it lets the outbox give a
ready-made frame to the transport. Under any other server a frame is judged when it is whole, and sent by ASGI.
Besides, an idle connection keeps less: no queue that is empty, no headers that were read.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any, NamedTuple

from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol

from .outbox import WriteNowait

EXTENSION = "dialogue.socket"
"""Under which name the ASGI scope's ``extensions`` have a `SocketExtension`."""

FRAGMENTS = 10_000
"""Most fragments of one message. An empty one costs its sender six bytes, and the server a place in a list."""

UNREAD_PONG_BYTES = 65_536
"""Most bytes that wait for a peer that asks for pongs; one that does not read them is dropped."""


class _Received:
    """What uvicorn has received and the application has not taken: `asyncio.Queue` with one getter at a time.

    A queue of asyncio's has three deques, which are two kilobytes when they are empty.
    """

    __slots__ = ("_arrived", "_loop", "_messages")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        # Kept: finding the running loop asks the system for the process's number each time.
        self._loop = loop
        self._messages: list[Any] = []
        self._arrived: asyncio.Future[None] | None = None

    def put_nowait(self, message: Any) -> None:
        self._messages.append(message)
        if self._arrived is not None and not self._arrived.done():
            self._arrived.set_result(None)

    async def get(self) -> Any:
        while not self._messages:
            self._arrived = self._loop.create_future()
            try:
                await self._arrived
            finally:
                self._arrived = None
        return self._messages.pop(0)

    def empty(self) -> bool:
        return not self._messages


class _Writable:
    """Whether the transport takes more: `asyncio.Event`, which has a deque of waiters even while it is set.

    Attributes:
        resumed: What those wait for who want to send; None while the transport takes more.
    """

    __slots__ = ("resumed",)

    def __init__(self) -> None:
        self.resumed: asyncio.Event | None = None

    def is_set(self) -> bool:
        return self.resumed is None

    def set(self) -> None:
        if self.resumed is not None:
            self.resumed.set()
            self.resumed = None

    def clear(self) -> None:
        if self.resumed is None:
            self.resumed = asyncio.Event()

    async def wait(self) -> None:
        while self.resumed is not None:
            await self.resumed.wait()


class SocketExtension(NamedTuple):
    """What the socket can do beside ASGI.

    Attributes:
        allow_large_frames: Lifts the bound on what is received; called once the peer is known.
        write_nowait: Writes a frame to the transport, if the connection is open and the transport takes more.
    """

    allow_large_frames: Callable[[], None]
    write_nowait: WriteNowait


def uvicorn_socket(*, bytes_before_connect: int, logger: logging.Logger) -> type[WebSocketsSansIOProtocol]:
    """Return uvicorn's protocol with the bounds, and with a `SocketExtension` in its scopes.

    Where a uvicorn release has moved what they need, that is logged once, and its protocol works without them.

    Args:
        bytes_before_connect: Largest message until `SocketExtension.allow_large_frames` is called.
    """

    class UvicornSocket(WebSocketsSansIOProtocol):
        is_off = False

        def __init__(self, *args: Any, **options: Any) -> None:
            super().__init__(*args, **options)
            self._message_bytes: int | None = None
            self._is_lowered = False
            self._abortion: asyncio.TimerHandle | None = None
            self._writable = _Writable()
            self._safely(self._lower)
            self._safely(self._slim)

        def _lower(self) -> None:
            self._message_bytes = self.conn.max_message_size
            self.conn.max_message_size = min(
                bytes_before_connect, self._message_bytes or bytes_before_connect
            )
            self._is_lowered = True

        def _raise(self) -> None:
            if self._is_lowered:
                self._is_lowered = False
                self.conn.max_message_size = self._message_bytes

        def _slim(self) -> None:
            if not self.queue.empty() or not self.writable.is_set():
                raise AttributeError("a connection begins with something in its queue")
            self.queue = _Received(self.loop)  # type: ignore[assignment]
            self.writable = self._writable  # type: ignore[assignment]

        def _offer(self) -> None:
            # What the application is told of it is in the scope; the parser holds the request as long as it lives.
            self.request.headers.clear()
            extensions: dict[str, Any] = self.scope["extensions"]
            extensions[EXTENSION] = SocketExtension(self._raise, self._straight())

        def _straight(self) -> WriteNowait:
            """Return what writes to the transport; all that it needs is looked up now, so that a lack shows here."""
            conn, writable = self.conn, self._writable
            is_closing, write = self.transport.is_closing, self.transport.write
            is_open = type(conn.state).OPEN

            def write_nowait(wire: bytes) -> bool:
                # Before its upgrade, behind a close frame, and while the peer does not read, nothing may be written.
                if conn.state is not is_open or writable.resumed is not None or is_closing():
                    return False
                write(wire)
                return True

            return write_nowait

        def handle_connect(self, event: Any) -> None:
            super().handle_connect(event)
            # The application's task has been made and has not begun.
            if self.handshake_initiated and not self.close_sent:
                self._safely(self._offer)

        def on_task_complete(self, task: asyncio.Task[None]) -> None:
            super().on_task_complete(task)
            if not self.disconnected:
                # uvicorn closes the transport, which waits until the peer has read what is buffered: one that does
                # not read would keep its socket, beside the limits, for ever.
                self._abortion = self.loop.call_later(self.close_timeout, self.transport.abort)

        def connection_lost(self, exc: Exception | None) -> None:
            super().connection_lost(exc)
            if self._abortion is not None:
                self._abortion.cancel()
                self._abortion = None

        def handle_cont(self, event: Any) -> None:
            super().handle_cont(event)
            if len(self.frames) > FRAGMENTS:
                self.conn.fail(1009, "too many fragments")
                self.handle_parser_exception()

        def handle_ping(self) -> None:
            if self.transport.get_write_buffer_size() > UNREAD_PONG_BYTES:
                self.transport.abort()
                return
            super().handle_ping()

        def _safely(self, step: Callable[[], None]) -> None:
            if UvicornSocket.is_off:
                return
            try:
                step()
            except (AttributeError, KeyError) as error:
                UvicornSocket.is_off = True
                self._raise()
                logger.warning(
                    "this uvicorn is not known: frames go out by ASGI, and are bounded only when they are whole (%s)",
                    error,
                )

    return UvicornSocket
