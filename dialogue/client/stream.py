"""A room's events from any past seq, through its history, into what comes live."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import logging
import random
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Any, Generic, Protocol, TypeVar

from dialogue.errors import CommandError, DialogueError, Internal, StreamBroken
from dialogue.events import CHANGES, Event

from .effects import READ_PAUSE_SECONDS, Timing, is_for_the_moment, is_too_fast
from .pages import Gap, Page

logger = logging.getLogger("dialogue.client")

T = TypeVar("T")


class Fetch(Protocol):
    """Reads one page of one event (None: all), above *after* or from *cursor*, or the newest one; oldest first."""

    def __call__(
        self, name: str | None, *, after: int | None = None, cursor: str | None = None, limit: int
    ) -> Awaitable[Page[Any]]: ...


class _Source:
    """The pages of one event above a seq; the next one is read when the earlier ones were yielded."""

    __slots__ = ("after", "cursor", "events", "has_more", "name")

    def __init__(self, name: str | None, after: int) -> None:
        self.name = name
        self.after = after
        self.cursor: str | None = None
        self.events: deque[Event[Any]] = deque()
        self.has_more = True


class Stream(Generic[T]):
    """An iterator over a room's recorded events, each once and in seq order; made by `Room.stream`.

    It holds a cursor, at most one page for each of its events, and at most *max_buffered_events* that came live and
    are not read yet. When more come than that, the buffer is dropped, and the events are read again by pages: a slow
    reader holds up neither this client's handlers nor the server. No task belongs to it, and the room keeps it only
    while its next event is waited for, or for as long as someone else does: a loop that was broken out of leaves
    nothing behind, and a task that nobody holds is not collected while it waits.

    Only where the queue of handlers is full, and the client reads nothing more, are there no live events for it either.

    How it stays exact: live events are collected from a moment on, and only then are pages read, up to the seq of
    that moment; what is above it is in the buffer. If something was lost from the buffer meanwhile, all that begins
    again behind that seq.

    Args:
        room_id: For errors.
        names: What to yield; None for everything that is recorded.
        after: The seq to begin above (exclusive).
        epoch: The life of the log that *after* belongs to.
        follow: Whether to go on with live events; otherwise it ends with the newest one.
        page_size: Events that are asked for at a time, of each of *names*.
        max_buffered_events: See above; at least 1.
        on_gap: Told of what cannot be read any more, once more if that is cancelled or fails; None to raise it.
        fetch: Reads pages of *epoch*.
        position: Returns the seq up to which (included) live events were given to `receive`.
        timing: How long to wait where a read failed for the moment.
        waiting: The streams whose next event is waited for; kept by the room.
    """

    def __init__(
        self,
        *,
        room_id: str,
        names: frozenset[str] | None,
        after: int,
        epoch: str,
        follow: bool,
        page_size: int,
        max_buffered_events: int,
        on_gap: Callable[[Gap], Any] | None,
        fetch: Fetch,
        position: Callable[[], int],
        timing: Timing,
        waiting: set[Stream[Any]],
    ) -> None:
        self.room_id = room_id
        self.names = names
        """The names of the events that it yields; None for all."""
        self.epoch = epoch
        """The life of the log that its seqs belong to."""
        self._cursor = after
        self._follow = follow
        self._page_size = page_size
        self._max_buffered_events = max_buffered_events
        self._on_gap = on_gap
        self._fetch = fetch
        self._position = position
        self._timing = timing
        self._waiting = waiting
        # What came live; None while nothing is collected, or when something that belongs in it was lost.
        self._buffer: deque[Event[Any]] | None = None
        # What is read by pages; None while the buffer continues what was yielded.
        self._sources: list[_Source] | None = None
        # Up to where (included) pages are read; the buffer has what is above.
        self._pages_through = 0
        self._is_ahead = after > position()
        self._failures = 0
        self._has_news = asyncio.Event()
        self._ended = asyncio.Event()
        self._error: Exception | None = None
        # Why it cannot go on; where it ended is known when what was received before is read.
        self._broken: str | None = None
        self._is_reading = False
        if follow and after >= position():
            self._buffer = deque()

    @property
    def cursor(self) -> int:
        """The seq up to which (included) everything was yielded; a new stream goes on after it."""
        return self._cursor

    @property
    def error(self) -> Exception | None:
        """What it has ended with, or will once everything that was received is read; None for nothing."""
        if self._broken is not None:
            resume_after = None if self._broken == "epoch" else self._cursor
            return StreamBroken(self.room_id, self._broken, after=self._cursor, resume_after=resume_after)
        return self._error

    def __aiter__(self) -> Stream[T]:
        return self

    async def __anext__(self) -> Event[T]:
        """Return the next event; waits until there is one.

        Cancelled, it has lost nothing: the next call goes on.

        Raises:
            StopAsyncIteration: It was closed, the room was left, or the client was closed; or it does not follow,
                and this was all.
            StreamBroken: It cannot go on without a hole.
            NotJoined: The server has ended the membership.
            ConnectionLost: The client was refused for good.
            CommandError: A read was refused for good.
            RuntimeError: Another task waits for the next event already.
        """
        if self._is_reading:
            raise RuntimeError(
                "another task waits for this stream's next event already; make one stream for each"
            )
        self._is_reading = True
        try:
            while (event := self._take()) is None:
                if self._ended.is_set():
                    raise self.error or StopAsyncIteration
                # A task that waits is kept by what it waits for, which is this: the two would be collected together.
                self._waiting.add(self)
                await self._advance()
            return event
        finally:
            self._is_reading = False
            self._waiting.discard(self)

    async def aclose(self) -> None:
        """End: the next event is asked for in vain, also by who waits for it already. May be called twice."""
        self.finish(None)

    # ---- the room's side

    def receive(self, event: Event[Any]) -> None:
        """Take in a live or resumed event; never waits."""
        if self._buffer is None or event.seq is None or self._ended.is_set() or not self._yields(event):
            return  # Of what has ended nobody knows what is missing before it.
        if len(self._buffer) < self._max_buffered_events:
            self._buffer.append(event)
        else:
            self._buffer = None
        self._has_news.set()

    def interrupt(self, epoch: str) -> None:
        """Take in that live events were lost; they may be read by pages, if *epoch* is still the same."""
        if self._ended.is_set():
            return
        if epoch != self.epoch:
            self._break("epoch")
        else:
            self._buffer = None
            self._has_news.set()

    def narrow(self, subscriptions: Any) -> None:
        """Take in what the room is subscribed to now: what is not told any more cannot be followed."""
        if subscriptions != "*" and (self.names is None or not self.names <= CHANGES.union(subscriptions)):
            self._break("unsubscribed")

    def finish(self, error: Exception | None) -> None:
        """End with *error*, after what was received before; or, with None, at once. The first call counts."""
        if self._ended.is_set():
            return
        self._error = error
        self._end()
        if error is None:
            self._buffer, self._sources = None, None

    def _break(self, reason: str) -> None:
        if not self._ended.is_set():
            self._broken = reason
            self._end()

    def _end(self) -> None:
        self._ended.set()
        self._has_news.set()

    # ---- reading

    def _yields(self, event: Event[Any]) -> bool:
        return self.names is None or event.event in self.names

    def _take(self) -> Event[Any] | None:
        """Return the next event, if it is here."""
        if self._sources is not None:
            if any(source.has_more and not source.events for source in self._sources):
                return None
            heads = [source.events for source in self._sources if source.events]
            if heads:
                event = min(heads, key=lambda events: events[0].seq or 0).popleft()
                self._cursor = event.seq or self._cursor
                return event
            # Every page was read; the buffer goes on, unless it has lost something meanwhile.
            self._cursor = max(self._cursor, self._pages_through)
            self._sources = None
            if not self._follow:
                self.finish(None)
        while self._buffer:
            event = self._buffer.popleft()
            if event.seq is not None and event.seq > self._cursor:
                self._cursor = event.seq
                return event
        return None

    async def _advance(self) -> None:
        """Do what brings the next event nearer: read a page, or wait for a live one."""
        # 1. It begins above everything that is known.
        if self._is_ahead:
            await self._check_ahead()
        # 2. Pages are being read.
        elif self._sources is not None:
            await self._read(next(one for one in self._sources if one.has_more and not one.events))
        # 3. Nothing was collected, or not everything.
        elif self._buffer is None:
            self._begin_pages()
        # 4. Live.
        else:
            self._has_news.clear()
            await self._has_news.wait()

    def _begin_pages(self) -> None:
        self._buffer = deque() if self._follow else None
        self._pages_through = self._position()
        names = [None] if self.names is None else sorted(self.names)
        self._sources = [_Source(name, self._cursor) for name in names]

    async def _read(self, source: _Source) -> None:
        after = source.after if source.cursor is None else None
        page = await self._page(source.name, after=after, cursor=source.cursor, limit=self._page_size)
        if page is None:
            return
        gap = page.gap
        if gap is not None and not gap.is_for_the_moment and (gap.from_seq or 0) <= self._pages_through:
            through = min(gap.through_seq or 0, self._pages_through)
            if self._on_gap is None:
                error = StreamBroken(self.room_id, gap.reason, after=self._cursor, resume_after=through)
                self.finish(error)
                return
            told = self._on_gap(Gap(gap.from_seq, through, gap.reason))
            if inspect.isawaitable(told):
                await told
        for event in page.events:
            if event.seq is not None and self._cursor < event.seq <= self._pages_through:
                source.events.append(event)
                source.after = event.seq
        if gap is not None and gap.is_for_the_moment:
            source.cursor = page.next or source.cursor
            await self._pause("a part of the history cannot be read for the moment")
            return
        self._failures = 0
        source.cursor = page.next
        newest = page.events[-1].seq if page.events else None
        source.has_more = page.next is not None and (newest is None or newest < self._pages_through)

    async def _check_ahead(self) -> None:
        # Two clients may have told each other; otherwise the seq is of another log, or of one restored from a backup.
        page = await self._page(None, limit=1)
        if page is None:
            return
        newest = max((event.seq or 0 for event in page.events), default=0)
        if max(newest, self._position()) < self._cursor:
            self._break("epoch")
        self._is_ahead = False

    async def _page(
        self, name: str | None, *, limit: int, after: int | None = None, cursor: str | None = None
    ) -> Page[Any] | None:
        """Return a page; None if there is none for the moment, or none any more."""
        try:
            return await self._fetch(name, after=after, cursor=cursor, limit=limit)
        except DialogueError as error:
            if self._ended.is_set():
                return None  # That is why; what has ended it says it better.
            # A fault of the server may be one for good.
            is_over = isinstance(error, Internal) and self._failures >= self._timing.trigger_attempts
            if isinstance(error, CommandError) and is_for_the_moment(error) and not is_over:
                least = READ_PAUSE_SECONDS if is_too_fast(error) else 0.0
                await self._pause(str(error), max(error.retry_after_seconds or 0.0, least))
            else:
                self.finish(error)
            return None

    async def _pause(self, problem: str, at_least_seconds: float = 0.0) -> None:
        if not self._failures:
            logger.info("the stream of room %r waits: %s", self.room_id, problem)
        timing = self._timing
        highest = min(timing.backoff_limit_seconds, timing.backoff_seconds * 2 ** min(self._failures, 30))
        self._failures += 1
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(max(random.random() * highest, at_least_seconds)):
                await self._ended.wait()
