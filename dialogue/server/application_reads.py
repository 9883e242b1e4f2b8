"""What the application reads of a room: whole ranges, over as many pages as it takes."""

from __future__ import annotations

from collections.abc import Coroutine
from typing import TYPE_CHECKING, Any

from ..core.cursor import Bound
from ..core.room import Room, as_replaced
from ..core.timeline import Gap
from ..errors import StoreUnavailable
from ..events import EncodedEvent, Event
from .handles import bounds_below

if TYPE_CHECKING:
    from .hub import Hub


class ApplicationReads:
    """Reads for `RoomHandle`."""

    def __init__(self, hub: Hub) -> None:
        self._hub = hub

    async def by_offset(self, room_id: str, name: str, start: int, end: int) -> list[Event[Any]]:
        """Return events of one type by offset, newest first."""
        if start < 0 or end < start:
            raise ValueError("0 <= start <= end is needed")
        room = await self._hub.open_rooms.open(room_id)
        self._hub.recorded_type(room, name)
        return await self._decoded(
            room, self._older(room, {name: room.bound_at_offset(name, start)}, end - start)
        )

    async def page(
        self,
        room_id: str,
        name: str | None,
        *,
        before: int | None,
        after: int | None,
        around: int | None,
        limit: int,
    ) -> list[Event[Any]]:
        """Return events by seq, oldest first; see `RoomHandle.page`."""
        if sum(bound is not None for bound in (before, after, around)) > 1:
            raise ValueError("give one of before, after and around")
        room = await self._hub.open_rooms.open(room_id)
        names = room.recorded_names() if name is None else [self._hub.recorded_type(room, name).name]
        if after is not None:
            return await self._decoded(room, self._newer(room, names, after, limit))
        if around is not None:
            return await self._decoded(room, self._around(room, names, around, limit))
        bounds = bounds_below(names, room.last_seq + 1 if before is None else before)
        return (await self._decoded(room, self._older(room, bounds, limit)))[::-1]

    async def _around(self, room: Room, names: list[str], seq: int, limit: int) -> list[EncodedEvent]:
        older = await self._older(room, bounds_below(names, seq + 1), (limit + 1) // 2)
        return older[::-1] + await self._newer(room, names, seq, limit - len(older))

    async def _newer(self, room: Room, names: list[str], after: int, limit: int) -> list[EncodedEvent]:
        events: list[EncodedEvent] = []
        goes_on: int | None = after
        while goes_on is not None and len(events) < limit:
            part = await self._hub.reader.newer(room, names, after=goes_on, limit=limit - len(events))
            self._check_readable(part.gap)
            events += part.events
            goes_on = part.next_after
        return events

    @staticmethod
    def _check_readable(gap: Gap | None) -> None:
        if gap is not None and gap.reason == "tier_unavailable":
            raise StoreUnavailable("part of the history cannot be read now", retry_after_seconds=1)

    async def _decoded(
        self, room: Room, reading: Coroutine[Any, Any, list[EncodedEvent]]
    ) -> list[Event[Any]]:
        with room.watch() as replaced:
            events = as_replaced(await reading, replaced)
        return [
            Event.decode(
                event, epoch=self._hub.store.epoch, event_type=room.room_type.event_type(event.event)
            )
            for event in events
        ]

    async def _older(self, room: Room, bounds: dict[str, Bound], limit: int) -> list[EncodedEvent]:
        """Read *limit* events below *bounds*, newest first, over as many pages as it takes."""
        newest_first: list[EncodedEvent] = []
        goes_on: dict[str, Bound] | None = bounds
        while goes_on is not None and len(newest_first) < limit:
            part = await self._hub.reader.older(room, goes_on, limit=limit - len(newest_first))
            self._check_readable(part.gap)
            newest_first += part.events[::-1]
            goes_on = part.bounds
        return newest_first
