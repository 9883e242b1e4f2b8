"""The inbox: which rooms a user is a member of, how far each is read, and how many events are unread.

A marker row is the membership: made by the first join, by the first stream or poll over HTTP, or by `add_member`, and
kept whether the user is connected or not. Of the users that are online the markers are in memory, read when the first
connection of a user is told ``connected``, by one query for all who come just then; from then on nothing but this
changes them, so counts are a subtraction.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING

from ..config import DirectRoom
from ..core.cursor import MAX_SEQ
from ..core.room import Room
from ..errors import Internal, InvalidRequest, NotJoined, RateLimited, StoreUnavailable
from ..room_types import RoomType
from ..storage.directory import Marker, Place
from .access import Permission
from .handles import Client, RoomHandle
from .marker_reads import MarkerReads
from .member_writes import MemberWrites
from .online_users import Arrival, OnlineUser, WatchedRoom
from .unread_pushes import UnreadPushes

if TYPE_CHECKING:
    from .hub import Hub
    from .session import Session

ROOMS_PER_INBOX = 10_000
"""Most rooms that joins bring into one inbox; a further join brings none, and is counted."""

DEPARTED_USERS = 1_000
"""For how many users who have gone, or never had a connection, it is kept what they have joined until it is known what
they were members of before."""


class Inbox:
    """Keeps markers and counts. An async context manager; `aclose` writes what was joined."""

    def __init__(self, hub: Hub) -> None:
        self._hub = hub
        self._online: dict[str, OnlineUser] = {}
        self.watched: dict[str, WatchedRoom] = {}
        self.writes = MemberWrites(hub, written=self._on_written)
        self._pushes = UnreadPushes(hub, self)
        self._reads = MarkerReads(hub)
        self._loads = 0
        self._departed: dict[OnlineUser, None] = {}
        self._is_failing = False
        # The ends of the rooms that were published into while markers are being read.
        self._meanwhile: dict[str, int] = {}

    async def __aenter__(self) -> Inbox:
        await self.writes.__aenter__()
        await self._pushes.__aenter__()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose(until=None)

    async def aclose(self, *, until: float | None) -> None:
        """Tell nothing more, and write what was joined, until loop time *until*. May be called twice."""
        await self._pushes.__aexit__()
        for user in list(self._online.values()):
            if user.arrival is not None:
                if user.arrival.loading is not None:
                    user.arrival.loading.cancel()
                self._hub.metrics.members_dropped.inc(len(user.arrival.joined))
        await self._reads.aclose(until=until)
        await self.writes.aclose(until=until)

    # -- who is online -------------------------------------------------------------------------------------------

    def connected(self, session: Session) -> None:
        """Note a connection that is told ``connected``, or has new credentials."""
        user = self._online.get(session.user_id)
        if user is None:
            user = self._online[session.user_id] = OnlineUser(session.user_id)
        self._departed.pop(user, None)
        # What the old credentials allowed is asked again.
        user.sessions[session] = {}
        if not is_anonymous(session.client):
            self._begin_load(user)

    def _begin_load(self, user: OnlineUser) -> None:
        """Have a user's markers read unless they are known or being read."""
        arrival = user.arrival
        if arrival is None or arrival.loading is not None:
            return
        if arrival.attempt.done():
            arrival.attempt = asyncio.get_running_loop().create_future()
        self._loads += 1
        arrival.loading = self._hub.spawn(self._load(user, arrival), name="dialogue-inbox-load")
        # Not in the task itself: one that is cancelled before its first step never comes to its end.
        arrival.loading.add_done_callback(lambda _: self._on_load_ended(arrival))

    def disconnected(self, session: Session) -> None:
        """Forget a connection that has ended, and with the last one what is kept of its user."""
        user = self._online.get(session.user_id)
        if user is None or user.sessions.pop(session, None) is None or user.sessions:
            return
        if user.arrival is not None and user.arrival.joined:
            self._keep_departed(user)
            return
        self._forget(user)

    def _keep_departed(self, user: OnlineUser) -> None:
        """Keep a user without connections until it is known in which of the joined rooms it was a member before."""
        self._departed[user] = None
        if len(self._departed) > DEPARTED_USERS:
            oldest = next(iter(self._departed))
            if oldest.arrival is not None:
                self._hub.metrics.members_dropped.inc(len(oldest.arrival.joined))
            self._forget(oldest)

    def _forget(self, user: OnlineUser) -> None:
        self._departed.pop(user, None)
        self._online.pop(user.user_id, None)
        for room_id in list(user.places):
            self._unset(user, room_id)
        if user.arrival is not None and user.arrival.loading is not None:
            user.arrival.loading.cancel()

    async def _load(self, user: OnlineUser, arrival: Arrival) -> None:
        """Read a user's markers, until that succeeds or the user has gone."""
        failures = 0
        while not user.is_loaded:
            try:
                markers = await self._reads.read(user.user_id)
            except StoreUnavailable as error:
                failures += 1
                self._on_load_failed(arrival, error)
                await self.writes.back_off(failures)
            else:
                self._is_failing = False
                self._on_loaded(user, arrival, markers)

    def _on_load_ended(self, arrival: Arrival) -> None:
        arrival.loading = None
        arrival.attempt.cancel()
        self._loads -= 1
        if not self._loads:
            self._meanwhile.clear()

    def _on_load_failed(self, arrival: Arrival, error: StoreUnavailable) -> None:
        if not self._is_failing:
            self._is_failing = True
            self._hub.log.warning("unread markers cannot be read now; it is tried again: %s", error)
        attempt, arrival.attempt = arrival.attempt, asyncio.get_running_loop().create_future()
        attempt.set_exception(StoreUnavailable("unread counts cannot be read now", retry_after_seconds=1))
        attempt.exception()  # those who wait are told; nobody waiting is no reason for a warning

    def _on_loaded(self, user: OnlineUser, arrival: Arrival, markers: Sequence[Marker]) -> None:
        changed = []
        for marker in markers:
            room_id = marker.room_id
            if room_id not in arrival.removed and not self.writes.is_removing(room_id, user.user_id):
                self._set(user, marker)
                if room_id in arrival.marked:
                    self._set(user, arrival.marked[room_id])
                if room_id in self._meanwhile:
                    watched = self.watched[room_id]
                    watched.end = max(watched.end, self._meanwhile[room_id])
                    changed.append(room_id)
        user.arrival = None
        arrival.attempt.set_result(None)
        for room_id, place in self.writes.waiting_of(user.user_id).items():
            self._set(user, Marker(room_id, user.user_id, *place, place.unread_position))
        for room_id, place in arrival.joined.items():
            self._become_member(user, room_id, place)
        self._pushes.tell(user, changed)
        if not user.sessions:
            self._forget(user)

    async def _loaded(self, user: OnlineUser) -> None:
        """Return when a user's markers are known, or nobody reads them any more.

        Raises:
            StoreUnavailable: They cannot be read now.
        """
        while user.arrival is not None and user.arrival.loading is not None:
            attempt = user.arrival.attempt
            await asyncio.wait({attempt})
            if attempt.cancelled():
                break
            attempt.result()

    async def _inbox_of(self, session: Session) -> OnlineUser:
        """Return the inbox of a connection's user, once it is known.

        Raises:
            StoreUnavailable: It cannot be read now.
            NotJoined: The connection has ended.
        """
        user = self._online.get(session.user_id)
        if user is not None:
            await self._loaded(user)
        if user is None or session not in user.sessions:
            raise NotJoined("the connection has ended")
        if not user.is_loaded and not is_anonymous(session.client):
            raise Internal  # the log has the reason
        return user

    async def _known(self, user_id: str) -> OnlineUser | None:
        """Return a user's inbox if it is in memory.

        Raises:
            StoreUnavailable: It cannot be read now.
        """
        user = self._online.get(user_id)
        if user is not None:
            await self._loaded(user)
            user = self._online.get(user_id)
        return user if user is not None and user.is_loaded else None

    # -- markers in memory ---------------------------------------------------------------------------------------

    def _set(self, user: OnlineUser, marker: Marker) -> None:
        """Note where a marker stands; never backwards."""
        room_id = sys.intern(marker.room_id)
        watched = self.watched.get(room_id)
        if watched is None:
            watched = self.watched[room_id] = WatchedRoom(0)
        room = self._hub.rooms.get(room_id)
        told = room.last_unread_position if room is not None else 0
        watched.end = max(watched.end, marker.last_unread_position, told)
        watched.users[user] = None
        place = Place(marker.seq, marker.unread_position)
        user.places[room_id] = max(place, user.places.get(room_id, place))

    def _unset(self, user: OnlineUser, room_id: str) -> None:
        if user.places.pop(room_id, None) is not None:
            watched = self.watched[room_id]
            watched.users.pop(user, None)
            if not watched.users:
                del self.watched[room_id]

    def count(self, user: OnlineUser, room_id: str) -> int | None:
        """Return how many events of a room are unread; None if the user is no member."""
        place = user.places.get(room_id)
        return None if place is None else max(0, self.watched[room_id].end - place.unread_position)

    def counted(self, room: Room) -> None:
        """Note that counting events were told in *room*. Never waits, and is called for each group."""
        watched = self.watched.get(room.room_id)
        if watched is not None:
            watched.end = max(watched.end, room.last_unread_position)
            self._pushes.put(room.room_id)
        if self._loads:
            self._meanwhile[room.room_id] = room.last_unread_position

    def _on_written(self, room_id: str, markers: Sequence[Marker]) -> None:
        for marker in markers:
            user = self._online.get(marker.user_id)
            if user is None:
                continue
            if user.arrival is not None:
                # The read that is under way may have begun before.
                user.arrival.joined.setdefault(room_id, Place(marker.seq, marker.unread_position))
            else:
                is_new = room_id not in user.places
                self._set(user, marker)
                if is_new and self.count(user, room_id):
                    self._pushes.tell(user, [room_id])

    # -- becoming a member ---------------------------------------------------------------------------------------

    def joined(self, session: Session, handle: RoomHandle, place: Place) -> None:
        """Note a connection's first join of a room, which ended at *place*. Never waits, never fails."""
        user = self._online.get(session.user_id)
        if user is not None and is_kept(session.client, handle):
            self._join(user, handle.room_id, place)

    def followed(self, client: Client, handle: RoomHandle, place: Place) -> None:
        """Note that a user has begun to read a room from outside, which ended at *place*: as by a first join.

        Never waits, never fails. A user without connections is one who has gone: kept until the markers are read.
        """
        if not is_kept(client, handle) or self._hub.is_stopping:
            return
        user = self._online.get(client.user_id)
        if user is None:
            user = self._online[client.user_id] = OnlineUser(client.user_id)
        self._begin_load(user)
        self._join(user, handle.room_id, place)
        if not user.sessions and not user.is_loaded:
            self._keep_departed(user)

    def _join(self, user: OnlineUser, room_id: str, place: Place) -> None:
        if user.arrival is None:
            self._become_member(user, room_id, place)
        else:
            user.arrival.joined.setdefault(room_id, place)

    def _become_member(self, user: OnlineUser, room_id: str, place: Place) -> None:
        """Make a user, whose markers are known, a member of a joined room."""
        found = self._hub.registry.find(room_id)
        if room_id in user.places or found is None:
            return
        if len(user.places) >= ROOMS_PER_INBOX:
            self._hub.metrics.members_dropped.inc()
            return
        room_type, params = found
        # Both of a pair: who was never there is told of what the other one writes.
        members = params.values() if isinstance(room_type.config, DirectRoom) else [user.user_id]
        for user_id in dict.fromkeys(members):
            online = self._online.get(user_id)
            if online is not None and online.is_loaded:
                if room_id in online.places or len(online.places) >= ROOMS_PER_INBOX:
                    continue
                self._set(online, Marker(room_id, user_id, *place, place.unread_position))
                if self.count(online, room_id):
                    # Published while the markers of who joined were being read, when nobody watched the room.
                    self._pushes.tell(online, [room_id])
            self.writes.put(room_id, user_id, place)

    async def add_member(self, room_id: str, user_id: str) -> None:
        """Make a user a member of a room; see `Dialogue.add_member`."""
        RoomHandle(self._hub, room_id)  # raises RoomNotFound where there is none
        self._hub.registry.check_usable(room_id)
        self._hub.admission.check_connection_user(user_id)
        await self.writes.add(room_id, user_id)

    def _end(self, room_id: str) -> Place:
        room = self._hub.rooms.get(room_id)
        return Place(0, 0) if room is None else Place(room.last_seq, room.last_unread_position)

    async def members(self, room_id: str, *, after: str, limit: int) -> list[str]:
        """Return the ids of a room's members; see `RoomHandle.members`."""
        if limit < 1:
            raise ValueError("limit is at least 1")
        await self.writes.write(room_id)
        return await self._hub.store.directory.members(room_id, after=after, limit=limit)

    # -- ceasing to be one ---------------------------------------------------------------------------------------

    def removed(self, user_id: str, room_id: str) -> None:
        """Show a user nothing more of a room, at once."""
        self.writes.forget(room_id, user_id)
        user = self._online.get(user_id)
        if user is not None:
            if user.arrival is not None:
                user.arrival.joined.pop(room_id, None)
            self._unset(user, room_id)
        self._on_removed(user_id, room_id)
        self.forget_permission(user_id, room_id)

    def _on_removed(self, user_id: str, room_id: str) -> None:
        """Look over a marker that is being read, or was read before it was removed."""
        user = self._online.get(user_id)
        if user is not None and user.arrival is not None:
            user.arrival.marked.pop(room_id, None)
            user.arrival.removed.add(room_id)

    async def remove_member(self, user_id: str, room_id: str) -> None:
        """Remove a user's marker, after `removed`.

        Raises:
            StoreUnavailable: It is not known to be removed.
        """
        await self.writes.remove(room_id, user_id)
        # A user who has come meanwhile may have been read with it.
        self._on_removed(user_id, room_id)

    def forget_permission(self, user_id: str, room_id: str) -> None:
        """Ask the guards of a room again before a user is told of it."""
        user = self._online.get(user_id)
        for remembered in user.sessions.values() if user is not None else ():
            remembered.pop(room_id, None)

    def forget_room(self, room_id: str) -> None:
        """Forget a room that was deleted."""
        self.writes.forget_room(room_id)
        self._meanwhile.pop(room_id, None)
        watched = self.watched.get(room_id)
        for user in list(watched.users) if watched is not None else ():
            self._unset(user, room_id)
            self.forget_permission(user.user_id, room_id)
        for user in self._online.values():
            if user.arrival is not None:
                user.arrival.joined.pop(room_id, None)
                user.arrival.marked.pop(room_id, None)
                user.arrival.removed.add(room_id)

    def forget_user(self, user_id: str) -> None:
        """Forget what a user is a member of; the markers are for the directory to remove."""
        self.writes.forget_user(user_id)
        user = self._online.get(user_id)
        if user is None:
            return
        arrival = user.arrival
        if arrival is not None:
            arrival.joined.clear()
        for room_id in list(user.places):
            self._unset(user, room_id)
        if arrival is not None and arrival.loading is not None:
            arrival.loading.cancel()
            # What is being read is gone with the answer.
            self._on_loaded(user, arrival, ())

    # -- counting ------------------------------------------------------------------------------------------------

    async def answer(self, session: Session, room_ids: Collection[str] | None) -> dict[str, int]:
        """Return the unread counts that a connection may see: see the command ``unread``.

        Raises:
            StoreUnavailable: They cannot be read now.
        """
        user = await self._inbox_of(session)
        wanted = None if room_ids is None else frozenset(room_ids)
        asked = [room_id for room_id in user.places if wanted is None or room_id in wanted]
        return await self._pushes.counts(user, session, asked)

    async def unread(self, user_id: str, room_ids: Collection[str] | None = None) -> dict[str, int]:
        """Return a user's unread counts, with no guard asked; see `Dialogue.unread`."""
        user = await self._known(user_id)
        if user is not None:
            counts = {room_id: self.count(user, room_id) or 0 for room_id in user.places}
        else:
            # Before and after: what is written meanwhile is in neither the one nor the answer.
            waiting = self.writes.waiting_of(user_id)
            markers = await self._hub.store.directory.markers(user_id, room_ids)
            counts = {marker.room_id: marker.unread for marker in markers}
            for room_id, place in {**waiting, **self.writes.waiting_of(user_id)}.items():
                told = self._end(room_id).unread_position
                counts.setdefault(room_id, max(0, told - place.unread_position))
        wanted = counts if room_ids is None else frozenset(room_ids)
        known = [
            room_id for room_id in sorted(counts) if room_id in wanted and self._hub.registry.find(room_id)
        ]
        return {room_id: counts[room_id] for room_id in known}

    async def read_through(self, user_id: str, room_ids: Collection[str]) -> dict[str, int]:
        """Return how far a user has read those of *room_ids* that are in the inbox.

        Raises:
            StoreUnavailable: It cannot be told now.
        """
        user = await self._known(user_id)
        if user is not None:
            return {room_id: user.places[room_id].seq for room_id in room_ids if room_id in user.places}
        waiting = self.writes.waiting_of(user_id)
        markers = await self._hub.store.directory.markers(user_id, room_ids)
        waiting |= self.writes.waiting_of(user_id)
        seqs = {room_id: place.seq for room_id, place in waiting.items() if room_id in room_ids}
        return seqs | {marker.room_id: marker.seq for marker in markers}

    # -- marking -------------------------------------------------------------------------------------------------

    async def mark(self, session: Session, room_id: str, seq: int) -> int:
        """Mark a room as read through *seq* for a connection's user; return what is unread.

        Raises:
            InvalidRequest: *seq* is out of range.
            RoomNotFound, NotJoined: There is no such room, or it is not in the user's inbox.
            CommandError: A guard denies.
            StoreUnavailable: It is not known to be marked.
        """
        hub = self._hub
        if not 0 <= seq <= MAX_SEQ:
            raise InvalidRequest("a seq is out of range")
        handle = RoomHandle(hub, room_id)
        subscriber = session.memberships.by_room.get(room_id)
        with hub.access.watch(session.user_id, room_id) as permission:
            if subscriber is None:
                await hub.access.check(session.client, handle, purpose="read")
            elif not is_kept(session.client, handle):
                return 0
            user = await self._inbox_of(session)
            if room_id not in user.places and subscriber is not None:
                # The join's own write was dropped, or is on its way.
                permission.check()
                self._become_member(user, room_id, self._end(room_id))
                if room_id not in user.places:
                    raise RateLimited("the inbox has as many rooms as it may have")
            if permission.is_revoked or room_id not in user.places:
                raise NotJoined
            count = await self._complete_mark(user.user_id, handle, seq)
            if permission.is_revoked or count is None:
                raise NotJoined
        self._pushes.tell(user, [room_id], but=session)
        return count

    async def mark_from_outside(
        self, client: Client, handle: RoomHandle, seq: int, permission: Permission, *, is_following: bool
    ) -> int:
        """Mark a room as read through *seq* for a user whose guards were asked; return what is unread.

        Args:
            permission: Not taken back yet.
            is_following: Whether the user reads the room as it goes on: as one who has joined it, such a user is a
                member from here on, if not before.

        Raises:
            InvalidRequest: *seq* is out of range.
            NotJoined: The room is not in the user's inbox.
            JoinDenied: *permission* was taken back.
            StoreUnavailable: It is not known to be marked.
        """
        room_id = handle.room_id
        if not 0 <= seq <= MAX_SEQ:
            raise InvalidRequest("a seq is out of range")
        if not is_kept(client, handle):
            return 0
        try:
            return await self.mark_read(client.user_id, room_id, seq)
        except NotJoined:
            if not is_following:
                raise
        # What brings it into the inbox was dropped; or the user came with a cursor of somebody else's.
        await self._hub.open_rooms.open(room_id)
        permission.check()
        self.followed(client, handle, self._end(room_id))
        return await self.mark_read(client.user_id, room_id, seq)

    async def mark_read(self, user_id: str, room_id: str, seq: int) -> int:
        """Mark a room as read for the application; see `Dialogue.mark_read`."""
        if not isinstance(seq, int) or not 0 <= seq <= MAX_SEQ:
            raise InvalidRequest("a seq is out of range")
        handle = RoomHandle(self._hub, room_id)
        await self._known(user_id)
        count = await self._complete_mark(user_id, handle, seq)
        if count is None:
            raise NotJoined("the user is no member of the room")
        user = self._online.get(user_id)
        if user is not None:
            self._pushes.tell(user, [room_id])
        return count

    async def _complete_mark(self, user_id: str, handle: RoomHandle, seq: int) -> int | None:
        # To its end also if the connection goes: the store moves the marker then too, and who has come back by then
        # is to know.
        return await self._hub.complete(self._mark(user_id, handle, seq), name="dialogue-mark-read")

    async def _mark(self, user_id: str, handle: RoomHandle, seq: int) -> int | None:
        """Move a marker, and return what is unread then; None if the user is no member."""
        room_id, directory = handle.room_id, self._hub.store.directory
        uncounted = [name for name, event in handle.room_type.events.items() if not event.counts_unread]
        user = self._online.get(user_id)
        place = user.places.get(room_id) if user is not None else None
        if user is not None and place is not None and seq <= place.seq:
            return self.count(user, room_id)
        if self.writes.is_waiting(room_id, user_id):
            await self.writes.write(room_id)
        marker = await directory.mark_read(room_id, user_id, seq, uncounted=uncounted)
        if marker is None and user is not None and room_id in user.places:
            # More waited to be written than may, when the user became a member.
            await self.writes.add(room_id, user_id, user.places[room_id])
            marker = await directory.mark_read(room_id, user_id, seq, uncounted=uncounted)
        user = self._online.get(user_id)
        if user is not None and user.is_loaded:
            if marker is not None and room_id in user.places:
                self._set(user, marker)
            return self.count(user, room_id)
        if marker is None:
            return None
        if user is not None and user.arrival is not None and room_id not in user.arrival.removed:
            # What is being read may be the marker of before.
            user.arrival.marked[room_id] = marker
        end = max(marker.last_unread_position, self._end(room_id).unread_position)
        return max(0, end - marker.unread_position)


def is_anonymous(client: Client) -> bool:
    """Whether nobody can come back as the client's user, who is named after the connection or request."""
    return client.user_id == client.client_id


def is_kept(client: Client, handle: RoomHandle) -> bool:
    """Whether a room that a client joins gets into the inbox of its user."""
    return not is_anonymous(client) and counts_any(handle.room_type)


def counts_any(room_type: RoomType) -> bool:
    """Whether a room may have events that count as unread."""
    return room_type.admits_any_event or any(event.counts_unread for event in room_type.events.values())
