"""A store that fails on purpose. It wraps a real one; nothing here pretends to be one."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Collection, Mapping, Sequence

from ..errors import StoreError
from ..events import Draft
from ..storage.base import (
    Appended,
    FeedItem,
    LogPage,
    RoomHead,
    Store,
    StoredStream,
    StreamState,
    UserEvents,
)
from ..storage.directory import Directory, Marker, Place, RoomRecord, SessionRecord


class FaultyStore(Store):
    """A store that can be made slow, be held, or fail, around a real one.

    Attributes:
        fail_append: Raised by appends, before anything is recorded, while it is set.
        fail_after_append: Raised by the next append, after it has been recorded: the answer that never came.
        fail_settle: Raised by `settle` while it is set.
        fail_read: Raised by everything that only reads, the directory's reads included, while it is set.
        fail_directory: Raised by everything that changes the directory, before it does, while it is set.
        refuse_text: An append with a draft whose data holds these bytes raises `refuse_error`: poison.
        refuse_error: See `refuse_text`; set both.
        appended: Every group of drafts that reached the inner store, in order, refused ones left out.
        waiting_appends: How many appends are held at present.
    """

    def __init__(self, inner: Store) -> None:
        self.inner = inner
        self.is_durable = inner.is_durable
        self.fail_append: StoreError | None = None
        self.fail_after_append: StoreError | None = None
        self.fail_settle: StoreError | None = None
        self.fail_read: StoreError | None = None
        self.fail_directory: StoreError | None = None
        self.refuse_text: bytes | None = None
        self.refuse_error: StoreError | None = None
        self.appended: list[list[Draft]] = []
        self._may_append = asyncio.Event()
        self._may_append.set()
        self.waiting_appends = 0
        self._directory = FaultyDirectory(self)

    def use_logger(self, logger: logging.Logger) -> None:
        """Pass it on to the inner store."""
        self.inner.use_logger(logger)

    def hold(self) -> None:
        """Let appends wait, before they reach the inner store, until `release`."""
        self._may_append.clear()

    def release(self) -> None:
        """Let appends go on."""
        self._may_append.set()

    @property
    def epoch(self) -> str:
        return self.inner.epoch

    @property
    def directory(self) -> Directory:
        return self._directory

    async def open(self) -> None:
        await self.inner.open()

    async def aclose(self) -> None:
        await self.inner.aclose()

    async def aclose_within(self, seconds: float) -> None:
        await self.inner.aclose_within(seconds)

    async def append(self, drafts: Sequence[Draft]) -> list[Appended]:
        self.waiting_appends += 1
        try:
            await self._may_append.wait()
        finally:
            self.waiting_appends -= 1
        if self.fail_append is not None:
            raise self.fail_append
        if self.refuse_text is not None and any(self.refuse_text in draft.data_json for draft in drafts):
            assert self.refuse_error is not None
            raise self.refuse_error
        self.appended.append(list(drafts))
        result = await self.inner.append(drafts)
        if self.fail_after_append is not None:
            error, self.fail_after_append = self.fail_after_append, None
            raise error
        return result

    async def settle(self, drafts: Sequence[Draft]) -> list[Appended | None]:
        if self.fail_settle is not None:
            raise self.fail_settle
        return await self.inner.settle(drafts)

    def check_read(self) -> None:
        """Raise what reads are to fail with."""
        if self.fail_read is not None:
            raise self.fail_read

    async def head(self, room_id: str) -> RoomHead:
        self.check_read()
        return await self.inner.head(room_id)

    async def page(
        self,
        room_id: str,
        *,
        event_names: Collection[str] | None = None,
        before: int | None = None,
        after: int | None = None,
        limit: int,
    ) -> LogPage:
        self.check_read()
        return await self.inner.page(
            room_id, event_names=event_names, before=before, after=after, limit=limit
        )

    async def stream_page(
        self, room_id: str, event_name: str, *, before_position: int, limit: int
    ) -> LogPage:
        self.check_read()
        return await self.inner.stream_page(room_id, event_name, before_position=before_position, limit=limit)

    async def mark_handed(self, room_id: str, event_name: str, through: int) -> None:
        await self.inner.mark_handed(room_id, event_name, through)

    async def remove(self, room_id: str, event_name: str, through: int) -> None:
        await self.inner.remove(room_id, event_name, through)

    async def streams(self) -> AsyncIterator[tuple[str, str, StreamState]]:
        self.check_read()
        async for stream in self.inner.streams():
            yield stream

    async def feed(self, after: int, *, limit: int) -> list[FeedItem]:
        self.check_read()
        return await self.inner.feed(after, limit=limit)

    async def last_id(self) -> int:
        self.check_read()
        return await self.inner.last_id()

    async def stored_streams(self, event_names: Collection[str]) -> AsyncIterator[StoredStream]:
        self.check_read()
        async for stream in self.inner.stored_streams(event_names):
            yield stream

    async def position_before(self, room_id: str, event_name: str, *, timestamp: int, limit: int) -> int:
        self.check_read()
        return await self.inner.position_before(room_id, event_name, timestamp=timestamp, limit=limit)

    async def user_events(self, user_id: str, *, after: int, limit: int) -> UserEvents:
        self.check_read()
        return await self.inner.user_events(user_id, after=after, limit=limit)


class FaultyDirectory(Directory):
    """The inner store's directory, which fails when its `FaultyStore` says so."""

    def __init__(self, store: FaultyStore) -> None:
        self._store = store

    def _read(self) -> Directory:
        self._store.check_read()
        return self._store.inner.directory

    def _change(self) -> Directory:
        if self._store.fail_directory is not None:
            raise self._store.fail_directory
        return self._store.inner.directory

    async def rooms(self) -> list[RoomRecord]:
        return await self._read().rooms()

    async def save_room(self, record: RoomRecord) -> None:
        await self._change().save_room(record)

    async def remove_room(self, room_id: str) -> None:
        await self._change().remove_room(room_id)

    async def add_member(
        self, room_id: str, user_ids: Sequence[str], *, places: Mapping[str, Place] | None = None
    ) -> list[Marker]:
        return await self._change().add_member(room_id, user_ids, places=places)

    async def add_members(self, rooms: Mapping[str, Mapping[str, Place | None]]) -> dict[str, list[Marker]]:
        return await self._change().add_members(rooms)

    async def remove_member(self, room_id: str, user_id: str) -> bool:
        return await self._change().remove_member(room_id, user_id)

    async def members(self, room_id: str, *, after: str = "", limit: int) -> list[str]:
        return await self._read().members(room_id, after=after, limit=limit)

    async def markers(self, user_id: str, room_ids: Collection[str] | None = None) -> list[Marker]:
        return await self._read().markers(user_id, room_ids)

    async def markers_of(self, user_ids: Collection[str], *, limit: int) -> dict[str, list[Marker]]:
        return await self._read().markers_of(user_ids, limit=limit)

    async def mark_read(
        self, room_id: str, user_id: str, seq: int, *, uncounted: Collection[str]
    ) -> Marker | None:
        return await self._change().mark_read(room_id, user_id, seq, uncounted=uncounted)

    async def save_sessions(self, records: Sequence[SessionRecord]) -> None:
        await self._change().save_sessions(records)

    async def sessions(self, user_id: str | None = None, *, limit: int) -> list[SessionRecord]:
        return await self._read().sessions(user_id, limit=limit)

    async def end_sessions(self) -> int:
        return await self._change().end_sessions()

    async def remove_sessions(self, *, before: int) -> int:
        return await self._change().remove_sessions(before=before)

    async def forget_user(self, user_id: str) -> None:
        await self._change().forget_user(user_id)
