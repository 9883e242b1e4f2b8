"""A store of the application's own: it keeps what another store keeps, with every payload sealed.

``seal`` and ``unseal`` turn bytes into other bytes and back, e.g. ``Fernet(key).encrypt`` and ``.decrypt`` of the
cryptography package: the database, its backups and whoever reads them see rooms, names and times, and no content.
"""

from __future__ import annotations

from base64 import b64decode, b64encode
from collections.abc import AsyncIterator, Callable, Collection, Sequence

import msgspec

from dialogue import Store, StoreUnavailable
from dialogue.events import CHANGES, Draft, EncodedEvent, payload_of, repack
from dialogue.storage.base import Appended, FeedItem, LogPage, RoomHead, StoredStream, StreamState, UserEvents
from dialogue.storage.directory import Directory


class SealedStore(Store):
    """Seals the data and meta of events on their way into *inner*, and unseals them on their way back.

    Args:
        inner: Where events live. It orders them, numbers them and knows their keys.
        seal, unseal: Called in the event loop, for each event.
    """

    def __init__(
        self, inner: Store, *, seal: Callable[[bytes], bytes], unseal: Callable[[bytes], bytes]
    ) -> None:
        self.inner = inner
        self._seal = seal
        self._unseal = unseal
        self.is_durable = inner.is_durable

    @property
    def directory(self) -> Directory:
        return self.inner.directory  # no payload is in it

    @property
    def epoch(self) -> str:
        return self.inner.epoch

    async def open(self) -> None:
        await self.inner.open()

    async def aclose(self) -> None:
        await self.inner.aclose()

    def _close(self, json: bytes) -> bytes:
        return b'"%b"' % b64encode(self._seal(json))

    def _open(self, sealed: bytes) -> bytes:
        try:
            unsealed = self._unseal(b64decode(msgspec.json.decode(sealed, type=str)))
            return bytes(msgspec.json.decode(unsealed, type=msgspec.Raw))  # which fails where it is no JSON
        except Exception as error:
            # Readers are told of a part that cannot be read now: with the right key it can.
            raise StoreUnavailable("a payload cannot be unsealed") from error

    def _sealed(self, draft: Draft) -> Draft:
        target, meta_json = draft.target, draft.meta_json
        if target is not None:
            # What an edit or deletion is about stays readable for the log, which has to find it.
            if target.data_json is not None:
                target = msgspec.structs.replace(target, data_json=self._close(target.data_json))
            return msgspec.structs.replace(draft, target=target, data_json=target.change_json())
        if meta_json is not None:
            meta_json = b'{"sealed":%b}' % self._close(meta_json)
        return msgspec.structs.replace(draft, data_json=self._close(draft.data_json), meta_json=meta_json)

    def _opened(self, event: EncodedEvent) -> EncodedEvent:
        data_json, meta_json = payload_of(event)
        if event.event in CHANGES:
            # Raw: a payload comes back byte for byte, whatever numbers are in it.
            change = msgspec.json.decode(data_json, type=dict[str, msgspec.Raw])
            if "data" in change:
                change["data"] = msgspec.Raw(self._open(bytes(change["data"])))
            data_json = msgspec.json.encode(change)
        elif data_json != b"null":  # which is what a deletion leaves
            data_json = self._open(data_json)
        if meta_json is not None:
            sealed = msgspec.json.decode(meta_json, type=dict[str, msgspec.Raw])["sealed"]
            meta_json = self._open(bytes(sealed))
        return repack(event, data_json=data_json, meta_json=meta_json)

    def _opened_page(self, page: LogPage) -> LogPage:
        return page._replace(events=[self._opened(event) for event in page.events])

    def _opened_item(self, item: Appended) -> Appended:
        event = None if item.event is None else self._opened(item.event)
        return item._replace(event=event, replaced=tuple(map(self._opened, item.replaced)))

    async def append(self, drafts: Sequence[Draft]) -> list[Appended]:
        # A draft that stands in the batch twice has one key, so sealing it twice records it once.
        return [self._opened_item(item) for item in await self.inner.append(list(map(self._sealed, drafts)))]

    async def settle(self, drafts: Sequence[Draft]) -> list[Appended | None]:
        # Only keys are looked at, and whether there is a target: nothing needs to be sealed.
        found = await self.inner.settle(drafts)
        return [None if item is None else self._opened_item(item) for item in found]

    async def head(self, room_id: str) -> RoomHead:
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
        got = await self.inner.page(room_id, event_names=event_names, before=before, after=after, limit=limit)
        return self._opened_page(got)

    async def stream_page(
        self, room_id: str, event_name: str, *, before_position: int, limit: int
    ) -> LogPage:
        got = await self.inner.stream_page(room_id, event_name, before_position=before_position, limit=limit)
        return self._opened_page(got)

    async def mark_handed(self, room_id: str, event_name: str, through: int) -> None:
        await self.inner.mark_handed(room_id, event_name, through)

    async def remove(self, room_id: str, event_name: str, through: int) -> None:
        await self.inner.remove(room_id, event_name, through)

    async def streams(self) -> AsyncIterator[tuple[str, str, StreamState]]:
        async for stream in self.inner.streams():
            yield stream

    async def feed(self, after: int, *, limit: int) -> list[FeedItem]:
        items = await self.inner.feed(after, limit=limit)
        return [item._replace(event=self._opened(item.event)) for item in items]

    async def last_id(self) -> int:
        return await self.inner.last_id()

    async def stored_streams(self, event_names: Collection[str]) -> AsyncIterator[StoredStream]:
        async for stream in self.inner.stored_streams(event_names):
            yield stream

    async def position_before(self, room_id: str, event_name: str, *, timestamp: int, limit: int) -> int:
        return await self.inner.position_before(room_id, event_name, timestamp=timestamp, limit=limit)

    async def user_events(self, user_id: str, *, after: int, limit: int) -> UserEvents:
        return await self.inner.user_events(user_id, after=after, limit=limit)
