"""A client's socket and the server's ASGI socket, joined in memory: frames, back-pressure and closes, but no port."""

from __future__ import annotations

import asyncio
import weakref
from collections import deque
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from logging import Logger
from typing import Any, NamedTuple

from ..client import DialogueClient
from ..client.socket import SocketClosed
from ..protocol import CLOSE_NORMAL, CLOSE_TOO_BIG

FRAMES = 16
"""Frames that may be under way in one direction; whoever sends one more waits, as for the buffers of a real socket."""

NO_CLOSE_FRAME = 1006
"""What ASGI servers report where a connection was lost."""

Endpoint = Callable[
    [dict[str, Any], Callable[[], Awaitable[Any]], Callable[[Any], Awaitable[None]]], Awaitable[None]
]
"""What serves one connection: an ASGI application, called with the scope of its upgrade request."""


class HandshakeRefused(ValueError):
    """The server refused a connection before it accepted it: a foreign origin, a server that stops.

    Over the network this is a status such as 403, and a client tries again; a test is told at once.

    Args:
        code: What the server closed with; None if it failed.
    """

    def __init__(self, code: int | None) -> None:
        self.code = code
        reason = "it failed; the log has the error" if code is None else f"code {code}"
        super().__init__(f"the server did not accept the connection: {reason}")


class _Close(NamedTuple):
    """The end of a direction. *code* is None where no close frame was sent."""

    code: int | None
    reason: str


class _Pipe:
    """One direction: text frames in order, then one close. One task reads it and one writes it."""

    def __init__(self) -> None:
        self._frames: deque[str] = deque()
        self._close: _Close | None = None
        self._is_held = False
        self._is_cut = False
        self._may_read = asyncio.Event()
        self._may_write = asyncio.Event()

    async def put(self, text: str) -> bool:
        """Send a frame; waits while `FRAMES` are under way. False if it is not sent, for the direction has ended."""
        while self._close is None and len(self._frames) >= FRAMES:
            self._may_write.clear()
            await self._may_write.wait()
        if self._close is not None:
            return False
        self._frames.append(text)
        self._may_read.set()
        return True

    async def get(self) -> str | _Close:
        """Return the next frame; at the end its close, each time."""
        while not self._is_cut and (self._is_held or not (self._frames or self._close)):
            self._may_read.clear()
            await self._may_read.wait()
        if self._frames:
            self._may_write.set()
            return self._frames.popleft()
        assert self._close is not None
        return self._close

    def end(self, close: _Close) -> None:
        """Send nothing more: what is under way arrives, and then *close*. The first call counts."""
        if self._close is None:
            self._close = close
        self._wake()

    def cut(self) -> None:
        """End now, also while held: what is under way is lost, and who reads or writes is told."""
        self._frames.clear()
        self._close = self._close or _Close(None, "")
        self._is_cut = True
        self._wake()

    def hold(self, is_held: bool) -> None:
        """Let nothing arrive, neither frames nor the end, or let it arrive again."""
        self._is_held = is_held
        self._may_read.set()

    def _wake(self) -> None:
        self._may_read.set()
        self._may_write.set()


class _Connection:
    """One connection: the client's `dialogue.client.socket.Socket`, and the channels of the ASGI endpoint."""

    def __init__(self, *, max_frame_bytes: int) -> None:
        self._max_frame_bytes = max_frame_bytes
        self._up = _Pipe()
        self._down = _Pipe()
        self._received: _Close | None = None
        self._is_requested = False
        self.is_left = False
        """Whether the client is done with it."""
        self.answer: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        """Done when the server accepts; `HandshakeRefused` if it does not."""

    # -- the client's end

    @property
    def received_close(self) -> tuple[int | None, str]:
        """See `dialogue.client.socket.Socket`."""
        return (self._received.code, self._received.reason) if self._received else (None, "")

    async def receive(self) -> bytes:
        """See `dialogue.client.socket.Socket`."""
        frame = await self._down.get()
        if isinstance(frame, _Close):
            self._received = self._received or frame
            self._up.end(_Close(frame.code, ""))  # As a close frame is answered.
            raise SocketClosed
        data = frame.encode()
        if len(data) > self._max_frame_bytes:
            self._leave(_Close(CLOSE_TOO_BIG, "frame too big"))
            raise SocketClosed
        return data

    async def send(self, frame: bytes) -> None:
        """See `dialogue.client.socket.Socket`."""
        if not await self._up.put(frame.decode()):
            raise SocketClosed

    async def aclose(self) -> None:
        """See `dialogue.client.socket.Socket`."""
        self._leave(_Close(CLOSE_NORMAL, ""))

    def abort(self) -> None:
        """See `dialogue.client.socket.Socket`."""
        self._leave(_Close(None, ""))

    def _leave(self, close: _Close) -> None:
        self.is_left = True
        self._up.end(close)
        self._down.cut()

    # -- the server's end, as ASGI has it

    async def asgi_receive(self) -> dict[str, Any]:
        """Return the next ASGI event: the request, frames, the disconnect."""
        if not self._is_requested:
            self._is_requested = True
            return {"type": "websocket.connect"}
        frame = await self._up.get()
        if isinstance(frame, _Close):
            code = NO_CLOSE_FRAME if frame.code is None else frame.code
            return {"type": "websocket.disconnect", "code": code, "reason": frame.reason}
        return {"type": "websocket.receive", "text": frame}

    async def asgi_send(self, message: dict[str, Any]) -> None:
        """Take an ASGI event.

        Raises:
            OSError: The client has gone, as ASGI has it.
        """
        kind = message["type"]
        if kind == "websocket.accept":
            if not self.answer.done():
                self.answer.set_result(None)
        elif kind == "websocket.send":
            if not await self._down.put(message["text"]):
                raise OSError("the client has gone")
        else:
            self.end(_Close(message.get("code", CLOSE_NORMAL), message.get("reason") or ""))

    def end(self, close: _Close) -> None:
        """The server is done with the connection."""
        if not self.answer.done():
            self.answer.set_exception(HandshakeRefused(close.code))
            self.answer.exception()  # Whoever opened it may have been cancelled.
        self._down.end(close)
        self._up.cut()

    # -- the link between them

    def cut(self) -> None:
        """Lose the connection: neither end gets a close frame."""
        self._up.cut()
        self._down.cut()

    def hold(self, is_held: bool) -> None:
        """See `_Pipe.hold`, in both directions."""
        self._up.hold(is_held)
        self._down.hold(is_held)


class Link:
    """The line between a client of `dialogue.testing.connect` and its server, to be broken on purpose.

    `dialogue.testing.link` returns it.
    """

    def __init__(self, *, max_frame_bytes: int, logger: Logger) -> None:
        self._max_frame_bytes = max_frame_bytes
        self._log = logger
        # A connection is there until both ends are done with it: what is held may arrive after the server has ended.
        self._connections: dict[_Connection, asyncio.Task[None]] = {}
        self._is_passable = asyncio.Event()
        self._is_passable.set()

    @property
    def is_held(self) -> bool:
        """Whether nothing arrives."""
        return not self._is_passable.is_set()

    def cut(self) -> None:
        """Lose the connection, without a close frame for either end: what is under way is lost.

        The client connects again by itself and resumes; while the link is held, not before `release`.
        """
        for connection in self._connections:
            connection.cut()

    def hold(self) -> None:
        """Let nothing arrive in either direction until `release`, new connections included: a line that hangs.

        Nothing is lost. After 16 frames a direction takes no more, so that the server's buffer for the client fills.
        """
        self._is_passable.clear()
        for connection in self._connections:
            connection.hold(True)

    def release(self) -> None:
        """Let everything that was held arrive, in order."""
        self._is_passable.set()
        for connection in self._connections:
            connection.hold(False)

    @contextmanager
    def down(self) -> Iterator[None]:
        """Lose the connection, and let the client find no new one before the context is left."""
        self.hold()
        self.cut()
        try:
            yield
        finally:
            self.release()

    async def wait_passable(self) -> None:
        """Wait while the link is held."""
        await self._is_passable.wait()

    async def open(self, endpoint: Endpoint, scope: dict[str, Any]) -> _Connection:
        """Open a connection to *endpoint*.

        Raises:
            HandshakeRefused: The endpoint did not accept it.
        """
        connection = _Connection(max_frame_bytes=self._max_frame_bytes)
        task = asyncio.get_running_loop().create_task(
            self._serve(connection, endpoint, scope), name="dialogue-testing-connection"
        )
        ended = [each for each, serving in self._connections.items() if each.is_left and serving.done()]
        for each in ended:
            del self._connections[each]
        self._connections[connection] = task
        try:
            await connection.answer
        except asyncio.CancelledError:
            connection.abort()
            raise
        return connection

    async def _serve(self, connection: _Connection, endpoint: Endpoint, scope: dict[str, Any]) -> None:
        try:
            await endpoint(scope, connection.asgi_receive, connection.asgi_send)
        except Exception:
            self._log.exception("a connection of a test failed")
        finally:
            connection.end(_Close(None, ""))

    async def wait_closed(self, *, seconds: float) -> None:
        """Release the link, and return when the server has dealt with the end of each connection, hooks included.

        Args:
            seconds: Longest wait, for a hook or store that the test itself has held.
        """
        self.release()
        if self._connections:
            await asyncio.wait(list(self._connections.values()), timeout=seconds)


_links: weakref.WeakKeyDictionary[DialogueClient, Link] = weakref.WeakKeyDictionary()


def register(client: DialogueClient, link: Link) -> None:
    """Remember the link of a client."""
    _links[client] = link


def link(client: DialogueClient) -> Link:
    """Return the line between *client* and its server, to cut or to hold it.

    Raises:
        ValueError: The client is not one of `dialogue.testing.connect`.
    """
    found = _links.get(client)
    if found is None:
        raise ValueError("the client is not of dialogue.testing.connect: its socket is a real one")
    return found
