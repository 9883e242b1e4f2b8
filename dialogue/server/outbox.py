"""What waits to be sent on one connection, bounded in bytes."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable


class Frame:
    """An encoded server frame, shared by all who get it: the text that ASGI wants is made once."""

    __slots__ = ("_text", "data")

    def __init__(self, data: bytes) -> None:
        self.data = data
        self._text: str | None = None

    @property
    def text(self) -> str:
        """The frame as text."""
        if self._text is None:
            self._text = self.data.decode()
        return self._text


class Outbox:
    """Sends frames in order; never makes the caller wait.

    Live frames count towards *limit_bytes*; when they pass it the reader is too slow, and *on_overflow* is called,
    once. Answers that the reader asked for (joins, pages) do not count: instead no further command is read while
    they are above the mark (`wait_below_mark`), so that what waits is bounded by the mark and the answers in flight.

    Args:
        send: Sends one frame; may wait for the peer. An exception ends the outbox.
        limit_bytes: Most live bytes that may wait.
        on_overflow: Told once; must close the connection.
    """

    __slots__ = (
        "_arrived",
        "_below_mark",
        "_empty",
        "_is_closed",
        "_limit",
        "_on_overflow",
        "_queue",
        "_send",
        "live_bytes",
        "total_bytes",
    )

    def __init__(
        self, send: Callable[[Frame], Awaitable[None]], *, limit_bytes: int, on_overflow: Callable[[], None]
    ) -> None:
        self._send = send
        self._limit = limit_bytes
        self._on_overflow = on_overflow
        self._queue: deque[tuple[Frame, bool]] = deque()
        self._arrived = asyncio.Event()
        self._below_mark = asyncio.Event()
        self._below_mark.set()
        self._empty = asyncio.Event()
        self._empty.set()
        self._is_closed = False
        self.live_bytes = 0
        self.total_bytes = 0

    def put_nowait(self, frame: Frame, *, is_live: bool = True) -> None:
        """Queue *frame*; dropped when the outbox is closed, for the connection is going away."""
        if self._is_closed:
            return
        size = len(frame.data)
        self._queue.append((frame, is_live))
        self.total_bytes += size
        self._empty.clear()
        if self.total_bytes > self._limit:
            self._below_mark.clear()
        self._arrived.set()
        if is_live:
            self.live_bytes += size
            # A frame that finds nothing before it is not slow reading, whatever its size.
            if self.live_bytes > self._limit and self.live_bytes > size:
                self.close()
                self._on_overflow()

    def close(self) -> None:
        """Drop what waits and take nothing more. May be called twice."""
        self._is_closed = True
        self._queue.clear()
        self.live_bytes = self.total_bytes = 0
        self._below_mark.set()
        self._empty.set()
        self._arrived.set()

    @property
    def is_closed(self) -> bool:
        """Whether nothing more is sent."""
        return self._is_closed

    @property
    def is_above_mark(self) -> bool:
        """Whether more than the limit waits, answers included (never when closed)."""
        return self.total_bytes > self._limit

    async def wait_below_mark(self) -> None:
        """Return when at most the limit waits, answers included (at once when closed)."""
        await self._below_mark.wait()

    async def wait_empty(self) -> None:
        """Return when everything was given to the transport (at once when closed)."""
        await self._empty.wait()

    async def run(self) -> None:
        """Send until closed.

        Raises:
            Exception: Whatever *send* raised; the outbox is closed then.
        """
        try:
            while not self._is_closed:
                if not self._queue:
                    self._arrived.clear()
                    await self._arrived.wait()
                    continue
                frame, is_live = self._queue.popleft()
                # Counted until it is sent: a frame that the transport does not take is still memory.
                await self._send(frame)
                if self._is_closed:
                    return
                size = len(frame.data)
                self.total_bytes -= size
                if is_live:
                    self.live_bytes -= size
                if self.total_bytes <= self._limit:
                    self._below_mark.set()
                if not self.total_bytes:
                    self._empty.set()
        finally:
            self.close()
