"""What a connection may cost before it has said who it is, and while it says nothing: bounds on the socket itself.

A small subclass of uvicorn's sans-I/O WebSocket protocol, given to it by its public ``ws=`` setting. Under any other
server a frame is judged when it is whole; this one refuses it by its declared size, before a byte of it is kept.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol

EXTENSION = "dialogue.socket"
"""Under which name the ASGI scope's ``extensions`` have what lifts the bound: called once the peer is known."""

FRAGMENTS = 10_000
"""Most fragments of one message. An empty one costs its sender six bytes, and the server a place in a list."""

UNREAD_PONG_BYTES = 65_536
"""Most bytes that wait for a peer that asks for pongs; one that does not read them is dropped."""


def guarded_socket(*, bytes_before_connect: int, logger: logging.Logger) -> type[WebSocketsSansIOProtocol]:
    """Return uvicorn's protocol with these bounds.

    Where a uvicorn release has moved what they need, that is logged once, and its protocol works without them.

    Args:
        bytes_before_connect: Largest message until the extension `EXTENSION` is called.
    """

    class GuardedSocket(WebSocketsSansIOProtocol):
        is_off = False

        def __init__(self, *args: Any, **options: Any) -> None:
            super().__init__(*args, **options)
            self._message_bytes: int | None = None
            self._safely(self._lower)

        def _lower(self) -> None:
            self._message_bytes = self.conn.max_message_size
            self.conn.max_message_size = min(
                bytes_before_connect, self._message_bytes or bytes_before_connect
            )

        def _raise(self) -> None:
            self.conn.max_message_size = self._message_bytes

        def _offer(self) -> None:
            extensions: dict[str, Any] = self.scope["extensions"]
            extensions[EXTENSION] = self._raise

        def handle_connect(self, event: Any) -> None:
            super().handle_connect(event)
            # The application's task has been made and has not begun.
            if self.handshake_initiated and not self.close_sent:
                self._safely(self._offer)

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
            if GuardedSocket.is_off:
                return
            try:
                step()
            except AttributeError as error:
                GuardedSocket.is_off = True
                logger.warning(
                    "this uvicorn is not known: frames are bounded only when they are whole (%s)", error
                )

    return GuardedSocket
