"""What waits to be sent on one connection, bounded in bytes."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable

WriteNowait = Callable[[bytes], bool]
"""Writes a frame in its wire form to the transport; returns False, having written nothing, if that cannot be now."""

_FINAL_TEXT = 0x81
"""The first byte of an unfragmented, uncompressed text frame (RFC 6455, section 5.2)."""


class Frame:
    """An encoded server frame, shared by all who get it: each form that it is sent in is made once."""

    __slots__ = ("_text", "_wire", "data")

    def __init__(self, data: bytes) -> None:
        self.data = data
        self._text: str | None = None
        self._wire: bytes | None = None

    @property
    def text(self) -> str:
        """The frame as text."""
        if self._text is None:
            self._text = self.data.decode()
        return self._text

    @property
    def wire(self) -> bytes:
        """The frame as a server's WebSocket text frame: the shortest header (RFC 6455, section 5.2), no mask."""
        if self._wire is None:
            size = len(self.data)
            if size < 126:
                head = bytes((_FINAL_TEXT, size))
            elif size < 65_536:
                head = bytes((_FINAL_TEXT, 126)) + size.to_bytes(2, "big")
            else:
                head = bytes((_FINAL_TEXT, 127)) + size.to_bytes(8, "big")
            self._wire = head + self.data
        return self._wire


class Outbox:
    """Sends frames in order; never makes the caller wait.

    Live frames count towards *limit_bytes*; when they pass it the reader is too slow, and *on_overflow* is called,
    once. Answers that the reader asked for (joins, pages) do not count: instead no further command is read while
    they are above the mark (`wait_below_mark`), so that what waits is bounded by the mark and the answers in flight.

    A frame that nothing waits before goes straight to the transport where there is *write_nowait*; once it says no,
    frames wait here and are sent by *send*, until nothing waits again. So the order is the order of `put_nowait`, and
    what the transport buffers is bounded by its high-water mark and the frame that passes it, whichever way is taken.

    Only while something waits is there a task that sends it: an idle connection costs none.

    Args:
        send: Sends one frame; may wait for the peer. An exception closes the outbox.
        limit_bytes: Most live bytes that may wait.
        on_overflow: Told once; must close the connection.
        on_failed: Told of the exception that *send* raised; must end the connection.
        write_nowait: See `WriteNowait`; None to send everything by *send*.
    """

    __slots__ = (
        "_below_mark",
        "_is_closed",
        "_limit",
        "_on_failed",
        "_on_overflow",
        "_queue",
        "_send",
        "_write_nowait",
        "_writer",
        "live_bytes",
        "total_bytes",
    )

    def __init__(
        self,
        send: Callable[[Frame], Awaitable[None]],
        *,
        limit_bytes: int,
        on_overflow: Callable[[], None],
        on_failed: Callable[[Exception], None],
        write_nowait: WriteNowait | None = None,
    ) -> None:
        self._send = send
        self._limit = limit_bytes
        self._on_overflow = on_overflow
        self._on_failed = on_failed
        self._write_nowait = write_nowait
        # None where nothing waits: a deque alone is three quarters of a kilobyte.
        self._queue: deque[tuple[Frame, bool]] | None = None
        self._writer: asyncio.Task[None] | None = None
        self._below_mark: asyncio.Event | None = None
        self._is_closed = False
        self.live_bytes = 0
        self.total_bytes = 0

    def put_nowait(self, frame: Frame, *, is_live: bool = True) -> None:
        """Send *frame*, or queue it; dropped when the outbox is closed, for the connection is going away."""
        if self._is_closed:
            return
        # What is being sent counts as waiting, so nothing passes it.
        if self._write_nowait is not None and not self.total_bytes and self._write_nowait(frame.wire):
            return
        if self._queue is None:
            self._queue = deque()
        size = len(frame.data)
        self._queue.append((frame, is_live))
        self.total_bytes += size
        if self._writer is None or self._writer.done():
            self._writer = asyncio.create_task(self._write(self._queue), name="dialogue-session-write")
        if is_live:
            self.live_bytes += size
            # A frame that finds nothing before it is not slow reading, whatever its size.
            if self.live_bytes > self._limit and self.live_bytes > size:
                self.close()
                self._on_overflow()

    def close(self) -> None:
        """Drop what waits and take nothing more; what is being sent is not waited for. May be called twice."""
        self._is_closed = True
        if self._queue is not None:
            self._queue.clear()
        self.live_bytes = self.total_bytes = 0
        self._tell_below_mark()

    def cancel(self) -> None:
        """Close, and give up what is being sent. May be called twice."""
        self.close()
        if self._writer is not None:
            self._writer.cancel()

    async def aclose(self) -> None:
        """Close, and return when nothing is being sent any more. May be called twice."""
        self.cancel()
        if self._writer is not None:
            await asyncio.wait({self._writer})

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
        while self.is_above_mark:
            if self._below_mark is None:
                self._below_mark = asyncio.Event()
            await self._below_mark.wait()

    def _tell_below_mark(self) -> None:
        if self._below_mark is not None:
            self._below_mark.set()
            self._below_mark = None

    async def wait_empty(self) -> None:
        """Return when everything was given to the transport (at once when closed)."""
        while self._writer is not None and not self._is_closed:
            if self._writer.done():
                # Ended by somebody else before it began: nothing is sent any more.
                self.close()
                return
            await asyncio.wait({self._writer})

    async def _write(self, queue: deque[tuple[Frame, bool]]) -> None:
        """Send what is queued, until nothing is."""
        try:
            while queue:
                frame, is_live = queue.popleft()
                # Counted until it is sent: a frame that the transport does not take is still memory.
                await self._send(frame)
                if self._is_closed:
                    return
                size = len(frame.data)
                self.total_bytes -= size
                if is_live:
                    self.live_bytes -= size
                if self.total_bytes <= self._limit:
                    self._tell_below_mark()
        except Exception as error:
            self.close()
            self._on_failed(error)
        except asyncio.CancelledError:
            self.close()
            raise
        finally:
            # Nothing is awaited after the queue was found empty, so nothing is left behind.
            self._writer = self._queue = None
