"""The loop that opens connections one after the other, reads and writes them, for as long as the session wants one."""

from __future__ import annotations

import asyncio
import inspect
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import msgspec

from dialogue.errors import ConnectionLost
from dialogue.protocol import decode_messages

from .handlers import Dispatcher, logger
from .session import Session
from .socket import OpenSocket, Socket, SocketClosed

Auth = Mapping[str, Any] | Callable[[], Any] | None

_COMMANDS_PER_FRAME = 100
_FRAME_BYTES = 65_536


class Connections:
    """The connections of one client, at most one at a time.

    Args:
        url: What the log calls the server.
        open_socket: Opens a connection.
        auth: As `DialogueClient` has it.
        session: Told of what happens; *apply* is called after each time.
        dispatcher: While its queue is full nothing is read, unless something waits for an answer for
            *stall_seconds* meanwhile: then the session sheds.
        on_trouble: Told of errors that belong to no request.
        on_mistake: Told of what cannot be tried again with better luck; True if the first connection was waited for,
            and whoever waits has been told.
    """

    def __init__(
        self,
        url: str,
        open_socket: OpenSocket,
        *,
        auth: Auth,
        session: Session,
        dispatcher: Dispatcher,
        stall_seconds: float,
        apply: Callable[[], None],
        on_trouble: Callable[[Exception], None],
        on_mistake: Callable[[Exception], bool],
    ) -> None:
        self._url = url
        self._open_socket = open_socket
        self._auth = auth
        self._session = session
        self._dispatcher = dispatcher
        self._stall_seconds = stall_seconds
        self._apply = apply
        self._on_trouble = on_trouble
        self._on_mistake = on_mistake
        self._outgoing: deque[dict[str, Any]] = deque()
        self._has_outgoing = asyncio.Event()
        self._wants_connection = asyncio.Event()
        self.current: Socket | None = None
        """The connection that stands."""
        self.is_shedding = False
        """Whether the session lets recorded events pass, and has to catch up once the queue has space."""

    # ---- what the session wants

    def open(self) -> None:
        """Open a connection now; or, once the session has ended, end `run`."""
        self._wants_connection.set()

    def send(self, commands: Iterable[dict[str, Any]]) -> None:
        """Send *commands*, in order, on the connection that stands."""
        self._outgoing.extend(commands)
        self._has_outgoing.set()

    def drop(self) -> None:
        """Drop the connection without a close handshake: the other side is thought dead, and would be waited for."""
        if self.current is not None:
            self.current.abort()

    # ---- the loop

    async def run(self) -> None:
        """Serve the session until it ends, or until cancelled; no socket outlives it."""
        try:
            self._session.start(_now())
            self._apply()
            while self._session.ended is None:
                await self._wants_connection.wait()
                self._wants_connection.clear()
                if self._session.ended is None:
                    await self._connect_once()
        except asyncio.CancelledError:
            raise
        except Exception:
            # A fault of the client itself; those who wait must hear of it rather than wait for ever.
            logger.exception("the client failed")
            self._session.stop()
            self._apply()

    async def _connect_once(self) -> None:
        try:
            auth = await self._current_auth()
        except Exception as error:
            self._cannot_open(error)
            return
        try:
            socket = await self._open_socket()
        except (TypeError, ValueError) as error:
            self._cannot_open(error)
            return
        except Exception as error:
            # Refused, no such host, 403, 503, no handshake in time: all may pass, none ends the retrying.
            lost = ConnectionLost(reason=f"{type(error).__name__}: {error}")
            lost.__cause__ = error
            self._on_trouble(lost)
            self._session.open_failed(_now())
            self._apply()
            return
        self.current = socket
        self._outgoing.clear()
        writer = asyncio.get_running_loop().create_task(self._write(socket))
        try:
            self._session.opened(auth, _now())
            self._apply()
            await self._read(socket)
        finally:
            self.current = None
            writer.cancel()
            try:
                await asyncio.wait([writer])
                if self._session.ended is None:
                    socket.abort()
                await socket.aclose()
            finally:
                # Cancelled in one of the awaits above: the socket must not outlive the client.
                socket.abort()
        self._session.closed(*socket.received_close, _now())
        self._apply()

    async def _current_auth(self) -> dict[str, Any] | None:
        auth = self._auth
        if callable(auth):
            auth = auth()
            if inspect.isawaitable(auth):
                auth = await auth
        if auth is not None:
            auth = dict(auth)
            msgspec.json.encode(auth)  # What is not JSON is a mistake to be told now: it would never be sent.
        return auth

    def _cannot_open(self, error: Exception) -> None:
        # Most likely a mistake in the auth function or the options; nobody is served by trying it for ever.
        if self._on_mistake(error):
            return
        self._on_trouble(error)
        self._session.open_failed(_now())
        self._apply()

    async def _read(self, socket: Socket) -> None:
        while self._session.ended is None:
            try:
                messages = decode_messages(await socket.receive())
                self._session.received(messages, _now(), is_shedding=self.is_shedding)
                self._apply()
            except SocketClosed:
                return
            except ValueError as error:
                lost = ConnectionLost(reason=f"the server does not speak the protocol: {error}")
                self._apply()
                self._on_trouble(lost)
                return
            if self._dispatcher.is_full and not self.is_shedding:
                await self._wait_for_space()

    async def _wait_for_space(self) -> None:
        self._session.paused(_now())
        self._apply()
        try:
            while self._dispatcher.is_full:
                done_count = self._dispatcher.done_count
                try:
                    async with asyncio.timeout(self._stall_seconds):
                        await self._dispatcher.wait_for_space()
                except TimeoutError:
                    # A handler that waits, however indirectly, for an answer that is not read would wait for ever.
                    if self._session.has_pending and self._dispatcher.done_count == done_count:
                        self.is_shedding = True
                        return
        finally:
            self._session.unpaused(_now())
            self._apply()

    async def _write(self, socket: Socket) -> None:
        try:
            while True:
                while not self._outgoing:
                    self._has_outgoing.clear()
                    await self._has_outgoing.wait()
                await socket.send(self._next_frame())
        except SocketClosed:
            pass  # The reader sees it, too, and is the one who tells.
        except Exception:
            logger.exception("sending to %s failed", self._url)
            socket.abort()

    def _next_frame(self) -> bytes:
        limits = self._session.limits
        most_commands = min(_COMMANDS_PER_FRAME, limits.get("commands_per_frame", _COMMANDS_PER_FRAME))
        most_bytes = min(_FRAME_BYTES, limits.get("frame_bytes", _FRAME_BYTES))
        parts: list[bytes] = []
        size = 2
        while self._outgoing and len(parts) < most_commands:
            part = msgspec.json.encode(self._outgoing[0])
            if parts and size + len(part) + 1 > most_bytes:
                break
            self._outgoing.popleft()
            parts.append(part)
            size += len(part) + 1
        return b"[" + b",".join(parts) + b"]"


def _now() -> float:
    return asyncio.get_running_loop().time()
