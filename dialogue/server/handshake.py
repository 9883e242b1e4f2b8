"""The time that a TCP connection has to become a request: uvicorn itself would wait for its head for ever.

A small subclass of the HTTP protocol that uvicorn would choose, given to it by its public ``http=`` setting. What it
adds ends with each request: an upgraded connection is the WebSocket protocol's, and an idle keep-alive connection is
closed by uvicorn's own ``timeout_keep_alive``.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any, ClassVar, Literal

HEAD_BYTES = 65_536
"""Largest request head. httptools has no bound of its own: a fast sender could fill memory before its time is over."""

_HEAD, _BODY = "head", "body"


class _Guard:
    """What is mixed into uvicorn's class: it ends a connection that keeps it waiting for the rest of a request.

    A head has its time in all, from the connection or from its own first byte. A body may be large and its line
    slow: only silence counts, and only while the application waits for it.
    """

    needs: ClassVar[tuple[str, ...]]
    """Methods of uvicorn's class that this one is called by."""
    is_off: ClassVar = False
    """Whether this uvicorn turned out to be another one than was expected."""
    seconds: ClassVar[float]
    on_refused: Any  # a static method
    guard_logger: ClassVar[logging.Logger]

    # uvicorn's own, in both of its protocols.
    transport: Any
    loop: asyncio.AbstractEventLoop
    cycle: Any
    flow: Any

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._reading: str | None = _HEAD
        self._clock: tuple[str, Any] | None = None
        self._until: float | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._head_bytes = 0
        self._has_had_head = False
        self._is_over = False

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)  # type: ignore[misc]
        self._safely(self._look)

    def connection_lost(self, error: Exception | None) -> None:
        self._end()
        super().connection_lost(error)  # type: ignore[misc]

    def handle_websocket_upgrade(self, *args: Any) -> None:
        # The transport gets another protocol: this one is told of nothing any more, not even of the end.
        self._end()
        super().handle_websocket_upgrade(*args)  # type: ignore[misc]

    def _safely(self, step: Callable[[], None]) -> None:
        if self._is_over or self.is_off:
            return
        try:
            step()
        except AttributeError as error:
            self._end()
            type(self).is_off = True
            _tell_that_it_is_off(self.guard_logger, str(error))

    def _look(self) -> None:
        """Set the clock by what is being read."""
        if self._reading is None:
            self._until = self._clock = None
            return
        # The request that a head belongs to is not there yet. But the one before it is, and tells two heads apart.
        clock = (self._reading, self.cycle)
        if clock != self._clock or self._reading == _BODY:
            self._clock = clock
            self._until = self.loop.time() + self.seconds
        if self._timer is None and self._until is not None:
            self._timer = self.loop.call_at(self._until, self._safely, self._on_time)

    def _on_time(self) -> None:
        self._timer = None
        if self._until is None or self.transport.is_closing():
            return
        if self.transport.get_protocol() is not self:
            raise AttributeError("an upgrade goes another way")
        if self.loop.time() >= self._until:
            if not self._is_waited_for():
                self._refuse()
                return
            self._until = self.loop.time() + self.seconds
        self._timer = self.loop.call_at(self._until, self._safely, self._on_time)

    def _is_waited_for(self) -> bool:
        """Whether the peer waits for the application, and not the other way round."""
        if self.cycle is None or self.cycle.response_complete:
            return False
        return self._reading == _HEAD or self.flow.read_paused or self.cycle.waiting_for_100_continue

    def _refuse(self) -> None:
        self._end()
        self.on_refused()
        self.guard_logger.debug("a connection was closed: its request did not come in time, or is too large")
        # `close` would wait until the peer has read what was written before.
        self.transport.abort()

    def _end(self) -> None:
        self._is_over = True
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


class _HttpToolsGuard(_Guard):
    """Over uvicorn's httptools protocol, whose parser calls these."""

    needs = (
        "connection_made",
        "connection_lost",
        "handle_websocket_upgrade",
        "data_received",
        "on_message_begin",
        "on_headers_complete",
        "on_message_complete",
    )

    def on_message_begin(self) -> None:
        self._reading = _HEAD
        self._head_bytes = 0
        super().on_message_begin()  # type: ignore[misc]

    def on_headers_complete(self) -> None:
        super().on_headers_complete()  # type: ignore[misc]
        self._reading = _BODY
        self._has_had_head = True

    def on_message_complete(self) -> None:
        super().on_message_complete()  # type: ignore[misc]
        self._reading = None

    def data_received(self, data: bytes) -> None:
        super().data_received(data)  # type: ignore[misc]
        self._head_bytes += len(data)
        self._safely(self._look)

    def _look(self) -> None:
        if self.cycle is not None and not self._has_had_head:
            raise AttributeError("the parser tells of a head in another way")
        if self._reading == _HEAD and self._head_bytes > HEAD_BYTES:
            self._refuse()
        else:
            super()._look()


class _H11Guard(_Guard):
    """Over uvicorn's h11 protocol; h11 knows how far a connection is, and bounds the size of a head."""

    needs = ("connection_made", "connection_lost", "handle_websocket_upgrade", "handle_events")

    conn: Any

    def handle_events(self) -> None:
        super().handle_events()  # type: ignore[misc]
        self._safely(self._look)

    def _look(self) -> None:
        state = str(self.conn.their_state)
        if state == "IDLE":
            # Nothing of the next request has come: the connection is idle, unless it was only just made.
            is_idle = self.cycle is not None and not self.conn.trailing_data[0]
            self._reading = None if is_idle else _HEAD
        else:
            self._reading = _BODY if state == "SEND_BODY" else None
        super()._look()


def _tell_that_it_is_off(logger: logging.Logger, why: str) -> None:
    logger.warning(
        "this version of uvicorn is not known here (%s): limits.handshake_seconds does not hold, and a connection may "
        "take as long as it likes to send its request. Let a proxy in front bound that",
        why,
    )


def guarded_http(
    *,
    seconds: float,
    on_refused: Callable[[], None],
    logger: logging.Logger,
    base: type[Any] | None = None,
) -> type[asyncio.Protocol] | Literal["auto"]:
    """Return uvicorn's own choice of an HTTP protocol with a guard, for its ``http=`` setting.

    Args:
        seconds: How long a request's head may take, and the silence within its body.
        on_refused: Called for each connection that is closed for it.
        logger: Told once if this uvicorn has not what the guard needs; the server then goes on without.
        base: uvicorn's class; by default the one that its ``http="auto"`` means.

    Returns:
        The class; ``"auto"`` if there can be none.
    """
    if base is None:
        try:
            from uvicorn.protocols.http.auto import AutoHTTPProtocol
        except ImportError as error:
            _tell_that_it_is_off(logger, str(error))
            return "auto"
        base = AutoHTTPProtocol
    guard = _HttpToolsGuard if hasattr(base, "on_headers_complete") else _H11Guard
    missing = [name for name in guard.needs if not hasattr(base, name)]
    if missing:
        _tell_that_it_is_off(logger, f"{base.__name__} has no {missing[0]}")
        return "auto"
    names = {"seconds": seconds, "on_refused": staticmethod(on_refused), "guard_logger": logger}
    made: type[asyncio.Protocol] = type(f"Guarded{base.__name__}", (guard, base), names)
    return made
