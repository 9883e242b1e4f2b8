"""`SQLDirectory`: rooms, members and sessions in the database of the log, on the log's own connections."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from typing import Any, Protocol, TypeVar

import msgspec
from sqlalchemy import Connection, Row, Select, delete, func, select, update

from .directory import Directory, Marker, Place, RoomRecord, SessionRecord, StoredPlace, read_position
from .statements import chunks
from .tables import created_rooms, events, markers, rooms, sessions, upsert

T = TypeVar("T")

ROWS_PER_READ = 500
"""Rows of created rooms that one statement reads."""

ROWS_PER_REMOVAL = 1_000
"""Sessions that one transaction removes; appends take their turns between two of them."""

IDS_PER_READ = 256
"""Most ids that one statement looks up, below the 999 variables of the oldest SQLite builds."""

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
        wanted = tuple(user_ids)
        if not wanted:
            return []
        # Most who join are members already, and a read keeps no append waiting.
        found = await self._read(lambda connection: _markers_in(connection, room_id, wanted))
        if found.keys() != set(wanted):
            at = dict(places or {})
            found = await self._change(lambda connection: _add(connection, room_id, wanted, at))
        return [found[user_id] for user_id in wanted]

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
        statement = _markers().where(markers.c.user_id == user_id).order_by(markers.c.room_id)
        wanted = None if room_ids is None else frozenset(room_ids)
        if wanted is not None and not wanted:
            return []
        if wanted is not None and len(wanted) <= IDS_PER_READ:
            statement = statement.where(markers.c.room_id.in_(sorted(wanted)))
        rows = await self._read(lambda connection: connection.execute(statement).all())
        return [Marker(*row) for row in rows if wanted is None or row.room_id in wanted]

    async def mark_read(
        self, room_id: str, user_id: str, seq: int, *, uncounted: Collection[str]
    ) -> Marker | None:
        """Move a marker forward; see `Directory.mark_read`."""
        names = frozenset(uncounted)
        return await self._change(lambda connection: _mark(connection, room_id, user_id, seq, names))

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


def _markers() -> Select[Any]:
    """Return the SELECT of markers with the present ends of their rooms.

    A subquery for each marker, and no join: a planner that joins may begin with the rooms, all of which it then reads.
    A room without events has no row.
    """
    end = (
        select(rooms.c.last_unread_position)
        .where(rooms.c.room_id == markers.c.room_id)
        .correlate(markers)
        .scalar_subquery()
    )
    return select(
        markers.c.room_id,
        markers.c.user_id,
        markers.c.seq,
        markers.c.unread_position,
        func.coalesce(end, 0).label("last_unread_position"),
    )


def _rooms_above(connection: Connection, after: str | None) -> Sequence[Row[Any]]:
    statement = select(created_rooms).order_by(created_rooms.c.room_id).limit(ROWS_PER_READ)
    if after is not None:
        statement = statement.where(created_rooms.c.room_id > after)
    return connection.execute(statement).all()


def _save(connection: Connection, table: Any, rows: list[dict[str, Any]]) -> None:
    changed = tuple(column.name for column in table.columns if not column.primary_key)
    connection.execute(upsert(connection.dialect, table, update=changed), rows)


def _end(connection: Connection, room_id: str) -> tuple[int, int]:
    """Return a room's newest seq, and its number of counting events."""
    row = connection.execute(
        select(rooms.c.last_seq, rooms.c.last_unread_position).where(rooms.c.room_id == room_id)
    ).one_or_none()
    return (0, 0) if row is None else (row.last_seq, row.last_unread_position)


def _markers_in(connection: Connection, room_id: str, user_ids: Sequence[str]) -> dict[str, Marker]:
    """Return the markers of some users in a room, by user."""
    found: dict[str, Marker] = {}
    for chunk in chunks(user_ids, IDS_PER_READ):
        statement = _markers().where(markers.c.room_id == room_id, markers.c.user_id.in_(chunk))
        found.update((row.user_id, Marker(*row)) for row in connection.execute(statement))
    return found


def _add(
    connection: Connection, room_id: str, user_ids: Sequence[str], places: Mapping[str, Place]
) -> dict[str, Marker]:
    """Make the markers that are missing; return all of them."""
    end = Place(*_end(connection, room_id))
    connection.execute(
        upsert(connection.dialect, markers),
        [
            {"room_id": room_id, "user_id": user_id, **places.get(user_id, end)._asdict()}
            for user_id in user_ids
        ],
    )
    return _markers_in(connection, room_id, user_ids)


def _mark(
    connection: Connection, room_id: str, user_id: str, seq: int, uncounted: Collection[str]
) -> Marker | None:
    row = connection.execute(_markers().where(_is_marker(room_id, user_id))).one_or_none()
    if row is None:
        return None
    marker = Marker(*row)
    last_seq, last = _end(connection, room_id)
    through = min(seq, last_seq)
    if through <= marker.seq:
        return marker
    position = last
    if through < last_seq:
        found = connection.execute(
            select(events.c.seq, events.c.event_name, events.c.unread_position)
            .where(events.c.room_id == room_id, events.c.seq >= through)
            .order_by(events.c.seq)
            .limit(1)
        ).one_or_none()
        place = None if found is None else StoredPlace(*found)
        position = read_position(through, place, last_unread_position=last, uncounted=uncounted)
    moved = marker._replace(seq=through, unread_position=max(marker.unread_position, position))
    connection.execute(
        update(markers)
        .where(_is_marker(room_id, user_id))
        .values(seq=moved.seq, unread_position=moved.unread_position)
    )
    return moved
