"""One ordered list of older pages and live events, without holes or duplicates."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Generic, TypeVar

from dialogue.events import ERASED_USER, Event

from .handlers import Handler, Handlers, Unsubscribe
from .pages import Gap, Page

T = TypeVar("T")

Fetch = Callable[[str | None, int | None], Awaitable[Page[Any]]]

_CHANGES_LIMIT = 1000


class Timeline(Generic[T]):
    """A room's history as a list that grows at both ends; made by `Room.timeline`.

    Live events come in from the moment it is made, which is before its first page is read: what happens meanwhile
    is in the page, or live, or both, and shown once. `load_older` reads the newest page first and older ones after.

    Ephemeral events are no part of it. It follows the room's subscription: a type that is not subscribed to shows
    in pages only. After `Room.on_reset` it begins again with the newest page. Edits and deletions are applied to
    the entries that they concern.

    What was missed where a resume could not bring all is not shown as a hole, as in dialogue.js: the list begins again.

    Bounds: it holds what `load_older` has read (without a bound of its own) and the newest *max_live_events* of what
    came live besides; past that the oldest entries leave the list, and `load_older` brings them back.

    Args:
        fetch: Reads the page for a cursor (or the newest one) that ends before a seq (exclusive, or None).
        names: The events to show; None for all.
        max_live_events: See above; at least 1.
        notify: Has the subscribers called soon, once for any number of changes.
        on_close: Called when closed.
    """

    def __init__(
        self,
        *,
        fetch: Fetch,
        names: frozenset[str] | None,
        max_live_events: int,
        notify: Callable[[Timeline[Any]], None],
        on_close: Callable[[Timeline[Any]], None],
    ) -> None:
        self._fetch = fetch
        self._names = names
        self._max_live_events = max_live_events
        self._notify = notify
        self._on_close = on_close
        self._handlers = Handlers()
        self._entries: list[Event[Any]] = []
        self._seqs: set[int] = set()
        self._loaded_count = 0
        self._cursor: str | None = None
        self._before: int | None = None
        self._has_older = True
        self._gaps: list[Gap] = []
        self._generation = 0
        self._loads = 0
        self._lock = asyncio.Lock()
        self._is_closed = False
        # Edits that came while a page was on its way, which may have been read before them. By target seq.
        self._changes: dict[int, Event[Any]] = {}

    @property
    def entries(self) -> list[Event[T]]:
        """The events, oldest first, newest at the end; a new list. Rows without seq keep their pages' order."""
        return list(self._entries)

    @property
    def has_older(self) -> bool:
        """Whether `load_older` may bring more; true until the first page was read."""
        return self._has_older

    @property
    def gaps(self) -> list[Gap]:
        """What could not be read, oldest first; one that is so for the moment ends when it is read after all."""
        return list(self._gaps)

    def subscribe(self, fn: Handler) -> Unsubscribe:
        """Call ``fn()`` after changes, once for those that came together; return a function that ends it."""
        return self._handlers.add("change", fn)

    async def load_older(self) -> None:
        """Read the page before the oldest entry, or the newest page at first.

        Called again while it is reading it waits for that page and reads no other one. At the end it does nothing.

        Raises:
            CommandError: The read was refused; another call tries the same place again.
            ConnectionLost: The client was closed or refused for good.
        """
        loads = self._loads
        async with self._lock:
            if loads != self._loads or not self._has_older or self._is_closed:
                return
            try:
                await self._load()
            finally:
                self._changes.clear()
                self._loads += 1

    def close(self) -> None:
        """Detach from the room: no live events and no pages from now on. May be called twice."""
        self._is_closed = True
        self._on_close(self)

    async def _load(self) -> None:
        # A page may hold nothing that is shown here; then only its `next` tells the end.
        while self._has_older and not self._is_closed:
            generation = self._generation
            page = await self._fetch(self._cursor, self._before)
            if generation != self._generation:
                continue  # Of before a reset: its cursors mean nothing any more.
            added = self._merge(page)
            if added or (page.gap is not None and page.gap.is_for_the_moment):
                return

    def _shows(self, event: Event[Any]) -> bool:
        return self._names is None or event.event in self._names

    # ---- what comes in; called by the room

    def receive(self, event: Event[Any]) -> None:
        """Take in a live or resumed event."""
        if self._is_closed or event.seq is None:
            return
        if _is_change(event):
            self._change(event)
        elif self._shows(event) and event.seq not in self._seqs:
            self._seqs.add(event.seq)
            at = len(self._entries)
            while at > 0 and (self._entries[at - 1].seq or 0) > event.seq:
                at -= 1
            self._entries.insert(at, event)
            self._trim()
            self._notify(self)

    def reset(self) -> bool:
        """Begin again; return whether a page had been read, so that the newest one should be now."""
        had_pages = self._loads > 0
        self._generation += 1
        self._entries.clear()
        self._seqs.clear()
        self._changes.clear()
        self._gaps.clear()
        self._loaded_count = 0
        self._cursor = self._before = None
        self._has_older = True
        self._notify(self)
        return had_pages and not self._is_closed

    def changed(self) -> Sequence[Handler]:
        """Return whom to tell of a change."""
        return self._handlers.get("change")

    def _trim(self) -> None:
        if self._lock.locked():
            return  # The page on its way continues from the oldest entry as it was.
        extra = len(self._entries) - self._loaded_count - self._max_live_events
        if extra <= 0:
            return
        oldest = self._entries[extra].seq
        if oldest is None:
            return  # No seq to come back by; rows like these were asked for, so they are few.
        for event in self._entries[:extra]:
            self._seqs.discard(event.seq or 0)
        del self._entries[:extra]
        self._cursor, self._before, self._has_older = None, oldest, True
        self._gaps.clear()

    def _merge(self, page: Page[Any]) -> int:
        fresh: list[Event[Any]] = []
        for event in page.events:
            if _is_change(event) or not self._shows(event):
                continue
            if event.seq is not None:
                if event.seq in self._seqs:
                    continue
                self._seqs.add(event.seq)
                if event.seq in self._changes:
                    event = _applied(event, self._changes[event.seq])
            fresh.append(event)
        # A row without seq has its place from its neighbours in the page, so it goes in with them.
        merged: list[Event[Any]] = []
        known = 0
        for event in fresh:
            while event.seq is not None and known < len(self._entries):
                seq = self._entries[known].seq
                if seq is None or seq > event.seq:
                    break
                merged.append(self._entries[known])
                known += 1
            merged.append(event)
        self._entries = merged + self._entries[known:]
        self._loaded_count += len(fresh)
        is_unavailable = page.gap is not None and page.gap.is_for_the_moment
        if page.next is not None:
            self._cursor, self._before = page.next, None
        self._has_older = page.next is not None or is_unavailable
        self._gaps = [gap for gap in self._gaps if not gap.is_for_the_moment]
        if page.gap is not None:
            self._gaps.insert(0, page.gap)
        self._notify(self)
        return len(fresh)

    def _change(self, change: Event[Any]) -> None:
        target = change.data.get("target_seq") if isinstance(change.data, dict) else None
        if not isinstance(target, int):
            return
        if change.event == "$edit" and "data" not in change.data:
            return  # Void: a later change says what became of the event.
        if self._lock.locked():
            self._changes[target] = change
            if len(self._changes) > _CHANGES_LIMIT:
                del self._changes[next(iter(self._changes))]
        if target not in self._seqs:
            return  # Not loaded; its page will bring it changed.
        for index, event in enumerate(self._entries):
            if event.seq == target:
                self._entries[index] = _applied(event, change)
                self._notify(self)
                return


def _is_change(event: Event[Any]) -> bool:
    return event.event in ("$edit", "$delete")


def _applied(event: Event[Any], change: Event[Any]) -> Event[Any]:
    if change.event == "$delete":
        changed = event.replace(data=None, meta=None)
        changed.is_deleted = True
        if change.data.get("erased"):
            changed.sender, changed.key = ERASED_USER, None
    else:
        changed = event.replace(data=change.data.get("data"))
        changed.is_edited = True
    return changed
