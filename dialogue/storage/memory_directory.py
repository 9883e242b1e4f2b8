"""`MemoryDirectory`: rooms, members and sessions that live as long as the process."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from heapq import nlargest, nsmallest
from typing import TYPE_CHECKING

import msgspec

from ..events import CHANGES
from .directory import Directory, Marker, Place, RoomRecord, SessionRecord, StoredPlace, read_position

if TYPE_CHECKING:
    from .base import RoomHead, Store

PAGE_EVENTS = 500
"""Events of one read while unread events are counted."""

COUNTED_EVENTS = 10_000
"""Most events that one `MemoryDirectory.mark_read` counts."""


def _always_open() -> None:
    """Refuse nothing."""


class MemoryDirectory(Directory):
    """Keeps everything in dictionaries, beside a store that has the events.

    Over a store that cannot say where an event stands among those that count, `mark_read` counts the events that the
    store still has behind it, at most 10,000; what is further behind is not counted until the marker has moved on.
    The room's own count is `RoomHead.last_unread_position`: a store that leaves it 0 has no unread counts.

    Args:
        store: Asked for the heads of rooms, and for pages.
        locate: Returns the oldest event of a room in the log at or above a seq, without waiting; None if the store
            cannot tell.
        check_open: Raises `StoreUnavailable` while the store is closed.
    """

    def __init__(
        self,
        store: Store,
        *,
        locate: Callable[[str, int], StoredPlace | None] | None = None,
        check_open: Callable[[], None] = _always_open,
    ) -> None:
        self._store = store
        self._locate = locate
        self._check_open = check_open
        self.clear()

    def clear(self) -> None:
        """Forget everything."""
        self._rooms: dict[str, RoomRecord] = {}
        # By room and user: the seq read through, and the number of counting events there.
        self._members: dict[str, dict[str, tuple[int, int]]] = {}
        self._rooms_of: dict[str, set[str]] = {}
        self._sessions: dict[str, SessionRecord] = {}

    async def rooms(self) -> list[RoomRecord]:
        """Return the rooms that were made while running; see `Directory.rooms`."""
        self._check_open()
        return [self._rooms[room_id] for room_id in sorted(self._rooms)]

    async def save_room(self, record: RoomRecord) -> None:
        """Keep a room's record; see `Directory.save_room`."""
        self._check_open()
        self._rooms[record.room_id] = record

    async def remove_room(self, room_id: str) -> None:
        """Forget a room's record and members; see `Directory.remove_room`."""
        self._check_open()
        self._rooms.pop(room_id, None)
        for user_id in list(self._members.get(room_id, ())):
            self._remove(room_id, user_id)

    async def add_member(
        self, room_id: str, user_ids: Sequence[str], *, places: Mapping[str, Place] | None = None
    ) -> list[Marker]:
        """Make users members of a room; see `Directory.add_member`."""
        self._check_open()
        head = await self._store.head(room_id)
        if not user_ids:
            return []
        members = self._members.setdefault(room_id, {})
        end, places = Place(head.last_seq, head.last_unread_position), places or {}
        for user_id in user_ids:
            members.setdefault(user_id, places.get(user_id, end))
            self._rooms_of.setdefault(user_id, set()).add(room_id)
        return [_marker(room_id, user_id, members[user_id], head) for user_id in user_ids]

    async def remove_member(self, room_id: str, user_id: str) -> bool:
        """Forget a marker; see `Directory.remove_member`."""
        self._check_open()
        return self._remove(room_id, user_id)

    def _remove(self, room_id: str, user_id: str) -> bool:
        members = self._members.get(room_id)
        if members is None or members.pop(user_id, None) is None:
            return False
        if not members:
            del self._members[room_id]
        rooms = self._rooms_of[user_id]
        rooms.discard(room_id)
        if not rooms:
            del self._rooms_of[user_id]
        return True

    async def members(self, room_id: str, *, after: str = "", limit: int) -> list[str]:
        """Return members by id; see `Directory.members`. Costs a look at each member of the room."""
        self._check_open()
        # The order of code points is that of their UTF-8 bytes.
        return nsmallest(limit, (user_id for user_id in self._members.get(room_id, ()) if user_id > after))

    async def markers(self, user_id: str, room_ids: Collection[str] | None = None) -> list[Marker]:
        """Return a user's markers; see `Directory.markers`. Asks the store for the head of each room."""
        self._check_open()
        wanted = self._rooms_of.get(user_id, set())
        if room_ids is not None:
            wanted = wanted.intersection(room_ids)
        found = []
        for room_id in sorted(wanted):
            head = await self._store.head(room_id)
            # Looked up after the wait: it may have been removed, or moved.
            place = self._members.get(room_id, {}).get(user_id)
            if place is not None:
                found.append(_marker(room_id, user_id, place, head))
        return found

    async def mark_read(
        self, room_id: str, user_id: str, seq: int, *, uncounted: Collection[str]
    ) -> Marker | None:
        """Move a marker forward; see `Directory.mark_read`."""
        self._check_open()
        before = self._members.get(room_id, {}).get(user_id)
        if before is None:
            return None
        head = await self._store.head(room_id)
        through = min(seq, head.last_seq)
        position = before[1]
        if through > before[0]:
            position = await self._position(room_id, through, head, uncounted)
        # The marker of now, and not of before the waits.
        members = self._members.get(room_id, {})
        now = members.get(user_id)
        if now is None:
            return None
        if through > now[0]:
            now = members[user_id] = through, max(now[1], position)
        return _marker(room_id, user_id, now, head)

    async def _position(self, room_id: str, seq: int, head: RoomHead, uncounted: Collection[str]) -> int:
        """Return the number of counting events through *seq*."""
        last = head.last_unread_position
        if seq >= head.last_seq:
            return last
        if self._locate is not None:
            found = self._locate(room_id, seq)
            return read_position(seq, found, last_unread_position=last, uncounted=uncounted)
        unread, after = 0, seq
        for _ in range(COUNTED_EVENTS // PAGE_EVENTS):
            # Not beyond the head: what came later is not in its number either.
            page = await self._store.page(room_id, after=after, before=head.last_seq + 1, limit=PAGE_EVENTS)
            if not page.events:
                break
            unread += sum(
                event.event not in CHANGES and event.event not in uncounted for event in page.events
            )
            after = page.events[-1].seq or head.last_seq
        return max(0, last - unread)

    async def save_sessions(self, records: Sequence[SessionRecord]) -> None:
        """Keep sessions; see `Directory.save_sessions`."""
        self._check_open()
        self._sessions.update((record.client_id, record) for record in records)

    async def sessions(self, user_id: str | None = None, *, limit: int) -> list[SessionRecord]:
        """Return the newest sessions; see `Directory.sessions`. Costs a look at each session."""
        self._check_open()
        wanted = (
            record for record in self._sessions.values() if user_id is None or record.user_id == user_id
        )
        return nlargest(limit, wanted, key=lambda record: (record.last_seen, record.client_id))

    async def end_sessions(self) -> int:
        """Mark every session inactive; see `Directory.end_sessions`."""
        self._check_open()
        active = [record for record in self._sessions.values() if record.is_active]
        for record in active:
            self._sessions[record.client_id] = msgspec.structs.replace(record, is_active=False)
        return len(active)

    async def remove_sessions(self, *, before: int) -> int:
        """Forget old sessions; see `Directory.remove_sessions`."""
        self._check_open()
        old = [
            record.client_id
            for record in self._sessions.values()
            if not record.is_active and record.last_seen < before
        ]
        for client_id in old:
            del self._sessions[client_id]
        return len(old)

    async def forget_user(self, user_id: str) -> None:
        """Forget a user's markers and sessions; see `Directory.forget_user`."""
        self._check_open()
        for room_id in list(self._rooms_of.get(user_id, ())):
            self._remove(room_id, user_id)
        for record in [record for record in self._sessions.values() if record.user_id == user_id]:
            del self._sessions[record.client_id]


def _marker(room_id: str, user_id: str, place: tuple[int, int], head: RoomHead) -> Marker:
    return Marker(room_id, user_id, *place, head.last_unread_position)
