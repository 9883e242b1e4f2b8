"""A store of the application's own: it keeps what another store keeps, with every payload sealed.

``seal`` and ``unseal`` turn bytes into other bytes and back, e.g. ``Fernet(key).encrypt`` and ``.decrypt`` of the
cryptography package: the database, its backups and whoever reads them see rooms, names and times, and no content.
"""

from __future__ import annotations

from base64 import b64decode, b64encode
from collections.abc import AsyncIterator, Callable, Collection, Sequence

import msgspec

from dialogue import Store, StoreUnavailable
from dialogue.events import Draft, EncodedEvent
from dialogue.storage.base import Appended, LogPage, RoomHead, StreamState


class SealedStore(Store):
    """Seals the data and meta of events on their way into *inner*, and unseals them on their way back.

    Args:
        inner: Where events live. It orders them, numbers them and knows their keys.
        seal, unseal: Called in the event loop, for each event.
    """

    def __init__(
        self, inner: Store, *, seal: Callable[[bytes], bytes], unseal: Callable[[bytes], bytes]
    ) -> None:
        self._inner = inner
        self._seal = seal
        self._unseal = unseal
        self.is_durable = inner.is_durable

    @property
    def epoch(self) -> str:
        return self._inner.epoch

    async def open(self) -> None:
        await self._inner.open()

    async def aclose(self) -> None:
        await self._inner.aclose()

    def _sealed(self, draft: Draft) -> Draft:
        payload = {"data": msgspec.Raw(draft.data_json), "meta": msgspec.Raw(draft.meta_json or b"null")}
        sealed = b64encode(self._seal(msgspec.json.encode(payload)))
        return msgspec.structs.replace(draft, data_json=b'"%b"' % sealed, meta_json=None)

    def _opened(self, event: EncodedEvent) -> EncodedEvent:
        # Raw: a payload comes back byte for byte, whatever numbers are in it.
        fields = msgspec.json.decode(event.json, type=dict[str, msgspec.Raw])
        try:
            sealed = b64decode(msgspec.json.decode(fields["data"], type=str))
            payload = msgspec.json.decode(self._unseal(sealed), type=dict[str, msgspec.Raw])
        except Exception as error:
            # Readers are told of a part that cannot be read now: with the right key it can.
            raise StoreUnavailable("a payload cannot be unsealed") from error
        fields["data"] = payload["data"]
        if bytes(payload["meta"]) != b"null":
            fields["meta"] = payload["meta"]
        return msgspec.structs.replace(event, json=msgspec.json.encode(fields))

    def _opened_page(self, page: LogPage) -> LogPage:
        return page._replace(events=[self._opened(event) for event in page.events])

    async def append(self, drafts: Sequence[Draft]) -> list[Appended]:
        recorded = []
        # A draft that stands in the batch twice has one key, so sealing it twice records it once.
        for draft, item in zip(
            drafts, await self._inner.append(list(map(self._sealed, drafts))), strict=True
        ):
            if item.event is not None:
                event = draft.record(
                    id=item.id, seq=item.seq, position=item.event.position, timestamp=item.timestamp
                )
                item = item._replace(event=event)
            recorded.append(item)
        return recorded

    async def settle(self, drafts: Sequence[Draft]) -> list[Appended | None]:
        # Only keys are looked at: nothing needs to be sealed.
        return [
            item if item is None or item.event is None else item._replace(event=self._opened(item.event))
            for item in await self._inner.settle(drafts)
        ]

    async def head(self, room_id: str) -> RoomHead:
        return await self._inner.head(room_id)

    async def page(
        self,
        room_id: str,
        *,
        event_names: Collection[str] | None = None,
        before: int | None = None,
        after: int | None = None,
        limit: int,
    ) -> LogPage:
        page = await self._inner.page(
            room_id, event_names=event_names, before=before, after=after, limit=limit
        )
        return self._opened_page(page)

    async def stream_page(
        self, room_id: str, event_name: str, *, before_position: int, limit: int
    ) -> LogPage:
        page = await self._inner.stream_page(
            room_id, event_name, before_position=before_position, limit=limit
        )
        return self._opened_page(page)

    async def mark_handed(self, room_id: str, event_name: str, through: int) -> None:
        await self._inner.mark_handed(room_id, event_name, through)

    async def remove(self, room_id: str, event_name: str, through: int) -> None:
        await self._inner.remove(room_id, event_name, through)

    async def streams(self) -> AsyncIterator[tuple[str, str, StreamState]]:
        async for stream in self._inner.streams():
            yield stream
