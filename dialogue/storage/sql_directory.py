"""`SQLDirectory`: rooms, members and sessions in the database of the log, on the log's own connections."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from typing import Any, Protocol, TypeVar

import msgspec
from sqlalchemy import Connection, Row, delete, select, update

from . import marker_statements
from .directory import Directory, Marker, Place, RoomRecord, SessionRecord
from .tables import created_rooms, markers, sessions, upsert

T = TypeVar("T")

ROWS_PER_READ = 500
"""Rows of created rooms that one statement reads."""

ROWS_PER_REMOVAL = 1_000
"""Sessions that one transaction removes; appends take their turns between two of them."""

_decode_ids = msgspec.json.Decoder(tuple[str, ...]).decode


class Run(Protocol):
    """Runs work on a connection to the log; a store's own way to read, or to change something."""

    async def __call__(self, work: Callable[[Connection], T]) -> T:
        """Return what *work* returned.

        Raises:
            StoreUnavailable: It failed, or is not known to have been committed.
        """


class SQLDirectory(Directory):
    """Writes in transactions of its own, which take their turn among the log's appends.

    Args:
        read: Runs statements that only read, outside a transaction; *work* may be called twice.
        change: Runs a transaction that excludes every other one that writes. Everything here may be done again, so
            one whose outcome is not known is `StoreUnavailable`.
    """

    def __init__(self, *, read: Run, change: Run) -> None:
        self._read = read
        self._change = change

    async def rooms(self) -> list[RoomRecord]:
        """Return the rooms that were made while running; see `Directory.rooms`."""
        found: list[RoomRecord] = []
        after: str | None = None
        while True:
            rows = await self._read(partial(_rooms_above, after=after))
            found += [RoomRecord(**row._mapping) for row in rows]
            if len(rows) < ROWS_PER_READ:
                return found
            after = found[-1].room_id

    async def save_room(self, record: RoomRecord) -> None:
        """Keep a room's record; see `Directory.save_room`."""
        await self._change(
            lambda connection: _save(connection, created_rooms, [msgspec.structs.asdict(record)])
        )

    async def remove_room(self, room_id: str) -> None:
        """Forget a room's record and members; see `Directory.remove_room`."""

        def work(connection: Connection) -> None:
            connection.execute(delete(created_rooms).where(created_rooms.c.room_id == room_id))
            connection.execute(delete(markers).where(markers.c.room_id == room_id))

        await self._change(work)

    async def add_member(
        self, room_id: str, user_ids: Sequence[str], *, places: Mapping[str, Place] | None = None
    ) -> list[Marker]:
        """Make users members of a room; see `Directory.add_member`."""
        if not user_ids:
            return []
        places = places or {}
        members = {user_id: places.get(user_id) for user_id in user_ids}
        added = await self.add_members({room_id: members})
        found = dict(zip(members, added[room_id], strict=True))
        return [found[user_id] for user_id in user_ids]

    async def add_members(self, rooms: Mapping[str, Mapping[str, Place | None]]) -> dict[str, list[Marker]]:
        """Make users members of several rooms, in one transaction; see `Directory.add_members`."""
        wanted = {
            (room_id, user_id): place
            for room_id, members in rooms.items()
            for user_id, place in members.items()
        }
        # Most who join are members already, and a read keeps no append waiting.
        found = await self._read(lambda connection: marker_statements.find(connection, list(wanted)))
        missing: dict[str, dict[str, Place | None]] = {}
        for (room_id, user_id), place in wanted.items():
            if (room_id, user_id) not in found:
                missing.setdefault(room_id, {})[user_id] = place
        if missing:
            found |= await self._change(lambda connection: marker_statements.add(connection, missing))
        added: dict[str, list[Marker]] = {room_id: [] for room_id in rooms}
        for room_id, user_id in wanted:
            added[room_id].append(found[room_id, user_id])
        return added

    async def remove_member(self, room_id: str, user_id: str) -> bool:
        """Forget a marker; see `Directory.remove_member`."""
        statement = delete(markers).where(_is_marker(room_id, user_id))
        return await self._change(lambda connection: connection.execute(statement).rowcount) > 0

    async def members(self, room_id: str, *, after: str = "", limit: int) -> list[str]:
        """Return members by id; see `Directory.members`."""
        statement = (
            select(markers.c.user_id)
            .where(markers.c.room_id == room_id, markers.c.user_id > after)
            .order_by(markers.c.user_id)
            .limit(limit)
        )
        return await self._read(lambda connection: list(connection.execute(statement).scalars()))

    async def markers(self, user_id: str, room_ids: Collection[str] | None = None) -> list[Marker]:
        """Return a user's markers; see `Directory.markers`. One statement, however many rooms there are."""
        wanted = None if room_ids is None else frozenset(room_ids)
        if wanted is not None and not wanted:
            return []
        return await self._read(lambda connection: marker_statements.of_user(connection, user_id, wanted))

    async def markers_of(self, user_ids: Collection[str], *, limit: int) -> dict[str, list[Marker]]:
        """Return several users' markers; see `Directory.markers_of`. One statement for each 256 of them."""
        wanted = frozenset(user_ids)
        return await self._read(lambda connection: marker_statements.of_users(connection, wanted, limit))

    async def mark_read(
        self, room_id: str, user_id: str, seq: int, *, uncounted: Collection[str]
    ) -> Marker | None:
        """Move a marker forward; see `Directory.mark_read`."""
        names = frozenset(uncounted)
        return await self._change(
            lambda connection: marker_statements.mark(connection, room_id, user_id, seq, names)
        )

    async def save_sessions(self, records: Sequence[SessionRecord]) -> None:
        """Keep sessions; see `Directory.save_sessions`."""
        # One row per client: of the rows of one statement the database would not say which it keeps.
        rows = {
            record.client_id: msgspec.structs.asdict(record) | {"rooms": msgspec.json.encode(record.rooms)}
            for record in records
        }
        if rows:
            await self._change(lambda connection: _save(connection, sessions, list(rows.values())))

    async def sessions(self, user_id: str | None = None, *, limit: int) -> list[SessionRecord]:
        """Return the newest sessions; see `Directory.sessions`."""
        statement = (
            select(sessions).order_by(sessions.c.last_seen.desc(), sessions.c.client_id.desc()).limit(limit)
        )
        if user_id is not None:
            statement = statement.where(sessions.c.user_id == user_id)
        rows = await self._read(lambda connection: connection.execute(statement).all())
        return [SessionRecord(**{**row._mapping, "rooms": _decode_ids(row.rooms)}) for row in rows]

    async def end_sessions(self) -> int:
        """Mark every session inactive; see `Directory.end_sessions`."""
        statement = update(sessions).where(sessions.c.is_active).values(is_active=False)
        return await self._change(lambda connection: connection.execute(statement).rowcount)

    async def remove_sessions(self, *, before: int) -> int:
        """Forget old sessions; see `Directory.remove_sessions`."""
        old = (
            select(sessions.c.client_id)
            .where(~sessions.c.is_active, sessions.c.last_seen < before)
            .order_by(sessions.c.last_seen)
            .limit(ROWS_PER_REMOVAL)
        )
        statement = delete(sessions).where(sessions.c.client_id.in_(old))
        count = 0
        while True:
            removed = await self._change(lambda connection: connection.execute(statement).rowcount)
            count += removed
            if removed < ROWS_PER_REMOVAL:
                return count

    async def forget_user(self, user_id: str) -> None:
        """Forget a user's markers and sessions; see `Directory.forget_user`."""

        def work(connection: Connection) -> None:
            connection.execute(delete(markers).where(markers.c.user_id == user_id))
            connection.execute(delete(sessions).where(sessions.c.user_id == user_id))

        await self._change(work)


def _is_marker(room_id: str, user_id: str) -> Any:
    return (markers.c.room_id == room_id) & (markers.c.user_id == user_id)


def _rooms_above(connection: Connection, after: str | None) -> Sequence[Row[Any]]:
    statement = select(created_rooms).order_by(created_rooms.c.room_id).limit(ROWS_PER_READ)
    if after is not None:
        statement = statement.where(created_rooms.c.room_id > after)
    return connection.execute(statement).all()


def _save(connection: Connection, table: Any, rows: list[dict[str, Any]]) -> None:
    changed = tuple(column.name for column in table.columns if not column.primary_key)
    connection.execute(upsert(connection.dialect, table, update=changed), rows)
