"""The `Directory` contract: what a server keeps beside its log.

Rooms that were made while it ran, their members with what each has read, and sessions. A directory belongs to one
store, is open while that is, and has the same one owner; `Store.directory` returns it. Unlike events nothing here
has an order or a seq: a row says what holds now.

A change is made whole or not at all unless its method says otherwise, is kept as durably as the directory keeps
anything once its call has returned, and may be repeated after a failure. All methods may be called concurrently with
each other and with those of the store. Ids are valid text of at most 255 characters, names and descriptions valid text
of any length, none of them with U+0000: whoever calls has seen to it.
"""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple

import msgspec

from ..events import CHANGES

CALLS_AT_ONCE = 8
"""How many users `Directory.markers_of` asks for at a time, where a directory has nothing better."""


class RoomRecord(msgspec.Struct, frozen=True):
    """A room that was made while the server ran.

    Attributes:
        max_size: Most participants; None for no limit.
        created_by_id: The user who made it; None for the application.
        created_at: In milliseconds since the epoch.
    """

    room_id: str
    name: str
    description: str
    max_size: int | None
    created_by_id: str | None
    created_at: int


class Marker(NamedTuple):
    """A membership, and how far the member has read.

    Attributes:
        seq: Read through this event, inclusive; 0 for nothing.
        unread_position: The room's number of counting events at that place.
        last_unread_position: The same number at the room's end.
    """

    room_id: str
    user_id: str
    seq: int
    unread_position: int
    last_unread_position: int

    @property
    def unread(self) -> int:
        """How many counting events are behind the marker."""
        return max(0, self.last_unread_position - self.unread_position)


class Place(NamedTuple):
    """How far someone has read a room.

    Attributes:
        seq: Through this event, inclusive; 0 for nothing.
        unread_position: The room's number of counting events at that place.
    """

    seq: int
    unread_position: int


class SessionRecord(msgspec.Struct, frozen=True):
    """A connection of a user.

    Attributes:
        client_id: The server's name for it, never used twice.
        first_seen, last_seen: In milliseconds since the epoch.
        is_active: Whether it is open.
        rooms: The rooms that it is in, or was in at its end.
    """

    client_id: str
    user_id: str
    first_seen: int
    last_seen: int
    is_active: bool
    rooms: tuple[str, ...] = ()


class StoredPlace(NamedTuple):
    """An event that is in the log, and the room's number of counting events through it."""

    seq: int
    event_name: str
    unread_position: int


def read_position(
    seq: int, found: StoredPlace | None, *, last_unread_position: int, uncounted: Collection[str]
) -> int:
    """Return the number of counting events through *seq*, as far as the log can tell.

    What was removed between *seq* and the next event that is there counts as read: nobody can read it any more.

    Args:
        found: The oldest event in the log at or above *seq*; None when there is none.
        last_unread_position: The number at the room's end.
        uncounted: The event types that do not count; changes never do.
    """
    if found is None:
        return last_unread_position
    if found.seq == seq or found.event_name in CHANGES or found.event_name in uncounted:
        return found.unread_position
    return found.unread_position - 1


class Directory(ABC):
    """Rooms made while running, members with their markers, and sessions."""

    @abstractmethod
    async def rooms(self) -> list[RoomRecord]:
        """Return all rooms that were made while running, in ascending order of their ids.

        Rooms that change meanwhile may be missed.

        Raises:
            StoreUnavailable: They cannot be read.
        """

    @abstractmethod
    async def save_room(self, record: RoomRecord) -> None:
        """Keep *record*, in place of an earlier one of the same room.

        Raises:
            StoreUnavailable: It is not known to be kept.
        """

    @abstractmethod
    async def remove_room(self, room_id: str) -> None:
        """Forget a room's record and all its members, in one transaction.

        Its events and counters stay in the store: a room of the same id that is made later goes on with the next
        seq. Does nothing for a room that is not known.

        Raises:
            StoreUnavailable: It is not known to be forgotten.
        """

    @abstractmethod
    async def add_member(
        self, room_id: str, user_ids: Sequence[str], *, places: Mapping[str, Place] | None = None
    ) -> list[Marker]:
        """Make users members of a room, at its present end: nothing before is unread.

        A marker that is there stays as it is. The room may have no record, and no events yet.

        Args:
            places: By user, where the marker is to stand instead: an earlier end of the room, as it was when the user
                became a member. They are taken as they are.

        Returns:
            The present marker of each of *user_ids*, in their order; empty for none.

        Raises:
            StoreUnavailable: They are not known to be members.
        """

    async def add_members(self, rooms: Mapping[str, Mapping[str, Place | None]]) -> dict[str, list[Marker]]:
        """Make users members of several rooms, as `add_member` does of one.

        Each room is changed whole or not at all; a directory that can changes all of them together. Here one follows
        the other.

        Args:
            rooms: By room, its users with where the marker is to stand; None for the room's present end.

        Returns:
            The present markers of the users of each room, in their order.

        Raises:
            StoreUnavailable: Some of them are not known to be members.
        """
        added = {}
        for room_id, members in rooms.items():
            places = {user_id: place for user_id, place in members.items() if place is not None}
            added[room_id] = await self.add_member(room_id, list(members), places=places)
        return added

    @abstractmethod
    async def remove_member(self, room_id: str, user_id: str) -> bool:
        """Forget a user's marker in a room; return whether there was one.

        Repeated after a failure it returns False also if the failed call removed it.

        Raises:
            StoreUnavailable: It is not known to be forgotten.
        """

    @abstractmethod
    async def members(self, room_id: str, *, after: str = "", limit: int) -> list[str]:
        """Return the ids of the first *limit* members of a room above *after* (exclusive), in ascending order.

        The order is that of the ids' UTF-8 bytes, on every database.

        Args:
            limit: At least 1.

        Raises:
            StoreUnavailable: They cannot be read.
        """

    @abstractmethod
    async def markers(self, user_id: str, room_ids: Collection[str] | None = None) -> list[Marker]:
        """Return a user's markers with the present ends of their rooms, in ascending order of the rooms' ids.

        Args:
            room_ids: Only in these rooms; None for all. Rooms that the user is no member of are left out.

        Raises:
            StoreUnavailable: They cannot be read.
        """

    async def markers_of(self, user_ids: Collection[str], *, limit: int) -> dict[str, list[Marker]]:
        """Return all markers of each of several users, as `markers` does of one.

        The markers of a user always come whole. There is at least one user in the answer; those who are not would have
        made it longer than *limit* and have to be asked for again. Here a few users at a time are asked for, so that it
        becomes longer than that by no more than what these have.

        Args:
            user_ids: At least one.
            limit: Markers that are enough; at least 1.

        Raises:
            StoreUnavailable: They cannot be read.
        """
        found: dict[str, list[Marker]] = {}
        wanted = list(dict.fromkeys(user_ids))
        for start in range(0, len(wanted), CALLS_AT_ONCE):
            part = wanted[start : start + CALLS_AT_ONCE]
            # All of them are waited for, so that no call goes on after this one has failed.
            answers = await asyncio.gather(*map(self.markers, part), return_exceptions=True)
            for user_id, answer in zip(part, answers, strict=True):
                if isinstance(answer, BaseException):
                    raise answer
                found[user_id] = answer
            if sum(map(len, found.values())) >= limit:
                break
        return found

    @abstractmethod
    async def mark_read(
        self, room_id: str, user_id: str, seq: int, *, uncounted: Collection[str]
    ) -> Marker | None:
        """Move a user's marker forward through *seq*, and never backwards.

        The count is exact as long as the event at *seq* is in the log; `read_position` says what holds otherwise.

        Args:
            seq: Inclusive; beyond the room's newest event it means that one.
            uncounted: The event types whose events do not count as unread.

        Returns:
            The marker as it is now; None if the user is no member.

        Raises:
            StoreUnavailable: It is not known to have moved.
        """

    @abstractmethod
    async def save_sessions(self, records: Sequence[SessionRecord]) -> None:
        """Keep *records*, each in place of an earlier one of the same client id, in one transaction.

        Of two with the same client id the later one is kept.

        Raises:
            StoreUnavailable: They are not known to be kept.
        """

    @abstractmethod
    async def sessions(self, user_id: str | None = None, *, limit: int) -> list[SessionRecord]:
        """Return the newest *limit* sessions by `SessionRecord.last_seen`, newest first.

        Those last seen at the same time come in descending order of their client ids.

        Args:
            user_id: Only of this user; None for all.
            limit: At least 1.

        Raises:
            StoreUnavailable: They cannot be read.
        """

    @abstractmethod
    async def end_sessions(self) -> int:
        """Mark every session inactive, as a server does that starts; return how many were active.

        Raises:
            StoreUnavailable: They are not known to be marked.
        """

    @abstractmethod
    async def remove_sessions(self, *, before: int) -> int:
        """Forget the inactive sessions that were last seen before a time; return how many there were.

        In batches, so that appends go on meanwhile.

        Args:
            before: In milliseconds since the epoch, exclusive.

        Raises:
            StoreUnavailable: Some of them may be left.
        """

    @abstractmethod
    async def forget_user(self, user_id: str) -> None:
        """Forget a user's markers and sessions, in one transaction.

        Raises:
            StoreUnavailable: They are not known to be forgotten.
        """
