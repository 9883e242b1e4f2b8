"""The feed: every recorded event of all rooms, in order of id, from the log and then live.

A reader that keeps up is handed what is delivered; one that falls behind its queue reads the log from the last id it
has given out, so nothing is skipped whatever its speed.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from random import Random
from typing import Any, TypeVar

from ..errors import CursorExpired, StoreUnavailable
from ..events import Event
from ..limits import Limits
from ..room_types import RoomType
from ..storage.backoff import backoff_seconds
from ..storage.base import FeedItem, Store

T = TypeVar("T")

Find = Callable[[str], tuple[RoomType, dict[str, str]] | None]
"""Finds the type of a room, and its parameters."""

PAGE_EVENTS = 500
"""Events that a reader takes from the log at a time."""

_FIRST_RETRY_SECONDS = 0.1
_LONGEST_RETRY_SECONDS = 10.0


class _Reader:
    """One reader's queue.

    Attributes:
        is_behind: Whether something was left out of the queue, or may have been: the log has it.
    """

    __slots__ = ("arrived", "is_behind", "items", "limit")

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.items: deque[FeedItem] = deque()
        self.is_behind = True
        self.arrived = asyncio.Event()

    def put(self, items: Sequence[FeedItem]) -> None:
        if not self.is_behind:
            if len(self.items) + len(items) > self.limit:
                self.items.clear()
                self.is_behind = True
            else:
                self.items.extend(items)
        self.arrived.set()


class Feeds:
    """The readers of the feed. Closing it ends their iterations."""

    def __init__(
        self, store: Store, *, find: Find, limits: Limits, logger: logging.Logger, random: Random
    ) -> None:
        self._store = store
        self._find = find
        self._limits = limits
        self._log = logger
        self._random = random
        self._readers: set[_Reader] = set()
        self._is_closed = False

    @property
    def has_readers(self) -> bool:
        """Whether anyone reads."""
        return bool(self._readers)

    def put(self, items: Sequence[FeedItem]) -> None:
        """Tell the readers of a committed group, in order of id. Never waits."""
        for reader in self._readers:
            reader.put(items)

    def close(self) -> None:
        """End all iterations, once they have given out what they hold. May be called twice."""
        self._is_closed = True
        for reader in self._readers:
            reader.arrived.set()

    async def read(self, after: int | None, epoch: str | None) -> AsyncGenerator[Event[Any], None]:
        """Iterate over the feed; see `Dialogue.feed`."""
        if after is not None and (isinstance(after, bool) or not isinstance(after, int) or after < 0):
            raise ValueError(f"after is the id of an event, or 0, and not {after!r}")
        # Kept: a closed store has none, and what is here is given out after that.
        current_epoch = self._store.epoch
        if epoch is not None and epoch != current_epoch:
            raise CursorExpired(None)
        reader = _Reader(self._limits.feed_queue_events)
        self._readers.add(reader)
        try:
            newest = await self._read(self._store.last_id, if_closed=after or 0)
            if after is not None and after > newest:
                # A log that was restored from a backup, or another one: to wait until it gets there skips events.
                raise CursorExpired(None)
            last = newest if after is None else after
            while True:
                reader.arrived.clear()
                if reader.is_behind:
                    # From here on everything is queued, so that nothing falls between this page and the queue.
                    reader.items.clear()
                    reader.is_behind = False
                    items = await self._page(last)
                    reader.is_behind = reader.is_behind or len(items) == PAGE_EVENTS
                    for item in items:
                        last = item.id
                        yield self._event(item, current_epoch)
                    continue
                while reader.items and not reader.is_behind:
                    item = reader.items.popleft()
                    if item.id <= last:
                        continue
                    if item.id != last + 1:
                        # Not the next one: the log has what is between, or has removed it.
                        reader.is_behind = True
                        break
                    last = item.id
                    yield self._event(item, current_epoch)
                if reader.is_behind:
                    continue
                if self._is_closed:
                    return
                if not reader.items:
                    await reader.arrived.wait()
        finally:
            self._readers.discard(reader)

    async def _read(self, call: Callable[[], Awaitable[T]], *, if_closed: T) -> T:
        """Return what the store answers, however long it is away; *if_closed* when the server stops meanwhile."""
        failures = 0
        while True:
            try:
                return await call()
            except StoreUnavailable as error:
                if self._is_closed:
                    return if_closed
                self._log.warning("the feed cannot read the log, and tries again: %s", error)
            await asyncio.sleep(
                backoff_seconds(
                    failures, first=_FIRST_RETRY_SECONDS, longest=_LONGEST_RETRY_SECONDS, random=self._random
                )
            )
            failures += 1

    async def _page(self, after: int) -> list[FeedItem]:
        return await self._read(lambda: self._store.feed(after, limit=PAGE_EVENTS), if_closed=[])

    def _event(self, item: FeedItem, epoch: str) -> Event[Any]:
        found = self._find(item.room_id)
        event_type = found[0].event_type(item.event.event) if found is not None else None
        return Event.decode(item.event, epoch=epoch, event_type=event_type)
