"""The statements of markers and what they return, for SQLite and Postgres alike.

Each is made for few numbers of ids, compiled once, and given to the driver as text with positional values: Core takes
longer over a statement with hundreds of values than the database does.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from functools import lru_cache
from itertools import chain, groupby
from operator import attrgetter
from typing import Any

from sqlalchemy import (
    BigInteger,
    Connection,
    Dialect,
    Integer,
    Select,
    String,
    bindparam,
    column,
    func,
    literal_column,
    select,
    update,
    values,
)

from .directory import Marker, Place, StoredPlace, read_position
from .statements import chunks, padded, slots
from .tables import events, markers, rooms, upsert

IDS_PER_READ = 256
"""Most ids that one statement looks up, below the 999 variables of the oldest SQLite builds."""

PAIRS_PER_STATEMENT = 64
"""Most markers that one statement looks up by room and user, or makes; to compile one for more takes longer than a
server may stand still."""

Members = Mapping[str, Mapping[str, Place | None]]
"""By room, users with where their markers are to stand; see `Directory.add_members`."""

Make = Callable[[Dialect, int], Any]
"""Returns a statement for so many ids, pairs or rows, whose values come first among its parameters."""


@lru_cache(maxsize=64)
def _compiled(make: Make, dialect: Dialect, size: int, schema: str | None) -> tuple[str, tuple[Any, ...]]:
    """Return the SQL of a statement, and the values of its parameters: those that it was made with."""
    statement = make(dialect, size)
    translated = {None: schema} if schema is not None else None
    compiled = statement.compile(
        dialect=dialect, schema_translate_map=translated, render_schema_translate=translated is not None
    )
    return str(compiled), tuple(compiled.params[name] for name in compiled.positiontup)


def _execute(connection: Connection, make: Make, size: int, parameters: Sequence[Any]) -> Any:
    """Execute a statement with *parameters*, and what it has of its own behind them."""
    schemas = connection.get_execution_options().get("schema_translate_map") or {}
    sql, made_with = _compiled(make, connection.dialect, size, schemas.get(None))
    return connection.exec_driver_sql(sql, (*parameters, *made_with[len(parameters) :]))


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
        func.coalesce(end, literal_column("0")).label("last_unread_position"),
    )


def _slots(name: str, size: int) -> list[Any]:
    return [bindparam(f"{name}_{index}", type_=String()) for index in range(size)]


_of_user = _markers().where(markers.c.user_id == bindparam("user_id")).order_by(markers.c.room_id)


def _of_user_in_rooms(dialect: Dialect, size: int) -> Select[Any]:
    return _of_user.where(markers.c.room_id.in_(_slots("room", size)))


def of_user(connection: Connection, user_id: str, room_ids: Collection[str] | None) -> list[Marker]:
    """Return a user's markers; see `Directory.markers`. One statement, however many rooms there are."""
    if room_ids is not None and len(room_ids) <= IDS_PER_READ:
        size = slots(len(room_ids))
        parameters = [user_id, *padded(sorted(room_ids), size)]
        return list(map(Marker._make, _execute(connection, _of_user_in_rooms, size, parameters)))
    found = map(Marker._make, connection.execute(_of_user, {"user_id": user_id}))
    return [marker for marker in found if room_ids is None or marker.room_id in room_ids]


def _of_users(dialect: Dialect, size: int) -> Select[Any]:
    # In the order of their index, so that the limit ends the search and nothing is sorted.
    return (
        _markers()
        .where(markers.c.user_id.in_(_slots("user", size)))
        .order_by(markers.c.user_id, markers.c.room_id)
        .limit(bindparam("limit", type_=Integer))
    )


def of_users(connection: Connection, user_ids: Collection[str], limit: int) -> dict[str, list[Marker]]:
    """Return several users' markers; see `Directory.markers_of`."""
    found: dict[str, list[Marker]] = {}
    left = limit
    for chunk in chunks(sorted(set(user_ids)), IDS_PER_READ):
        size = slots(len(chunk))
        rows = _execute(connection, _of_users, size, [*padded(chunk, size), left + 1])
        markers_found = list(map(Marker._make, rows))
        of_chunk = {user: list(group) for user, group in groupby(markers_found, key=attrgetter("user_id"))}
        if len(markers_found) > left:
            # The last one's may be cut off, and who has none may be one that was not reached.
            cut = markers_found[-1].user_id
            del of_chunk[cut]
            found |= of_chunk
            return found or {cut: of_user(connection, cut, None)}
        found |= {user_id: of_chunk.get(user_id, []) for user_id in chunk}
        left -= len(markers_found)
    return found


def _of_pairs(dialect: Dialect, size: int) -> Select[Any]:
    # A join with the wanted pairs, not "(a, b) IN (...)": SQLite answers that one by scanning the whole index.
    wanted = (
        values(column("room_id", String), column("user_id", String), name="wanted")
        .data(list(zip(_slots("room", size), _slots("user", size), strict=True)))
        .cte("wanted")
    )
    matches = (markers.c.room_id == wanted.c.room_id) & (markers.c.user_id == wanted.c.user_id)
    return _markers().select_from(wanted.join(markers, matches))


def find(connection: Connection, pairs: Sequence[tuple[str, str]]) -> dict[tuple[str, str], Marker]:
    """Return the markers that are there under *pairs* of a room and a user."""
    found: dict[tuple[str, str], Marker] = {}
    for chunk in chunks(pairs, PAIRS_PER_STATEMENT):
        size = slots(len(chunk))
        parameters = list(chain.from_iterable(padded(chunk, size)))
        for marker in map(Marker._make, _execute(connection, _of_pairs, size, parameters)):
            found[marker.room_id, marker.user_id] = marker
    return found


def _ends(dialect: Dialect, size: int) -> Select[Any]:
    return select(rooms.c.room_id, rooms.c.last_seq, rooms.c.last_unread_position).where(
        rooms.c.room_id.in_(_slots("room", size))
    )


def _ends_of(connection: Connection, room_ids: Iterable[str]) -> dict[str, Place]:
    """Return the ends of those of *room_ids* that have any events."""
    found: dict[str, Place] = {}
    for chunk in chunks(list(room_ids), IDS_PER_READ):
        size = slots(len(chunk))
        rows = _execute(connection, _ends, size, padded(chunk, size))
        found.update((room_id, Place(seq, position)) for room_id, seq, position in rows)
    return found


def _insert(dialect: Dialect, size: int) -> Any:
    return upsert(dialect, markers).values([("", "", 0, 0)] * size)


def add(connection: Connection, members: Members) -> dict[tuple[str, str], Marker]:
    """Make the markers that are missing; return all of them."""
    ends = _ends_of(connection, (room_id for room_id in members if None in members[room_id].values()))
    rows = [
        (room_id, user_id, *(place if place is not None else ends.get(room_id, Place(0, 0))))
        for room_id in members
        for user_id, place in members[room_id].items()
    ]
    for chunk in chunks(rows, PAIRS_PER_STATEMENT):
        # A row that is there twice is one that is known the second time.
        size = slots(len(chunk))
        _execute(connection, _insert, size, list(chain.from_iterable(padded(chunk, size))))
    return find(connection, [row[:2] for row in rows])


_event_at = (
    select(events.c.seq, events.c.event_name, events.c.unread_position)
    .where(events.c.room_id == bindparam("room_id"), events.c.seq >= bindparam("through"))
    .order_by(events.c.seq)
    .limit(1)
)

_move = (
    update(markers)
    .where(markers.c.room_id == bindparam("room"), markers.c.user_id == bindparam("user"))
    .values(
        seq=bindparam("through", type_=BigInteger), unread_position=bindparam("position", type_=BigInteger)
    )
)


def mark(
    connection: Connection, room_id: str, user_id: str, seq: int, uncounted: Collection[str]
) -> Marker | None:
    """Move a marker forward; see `Directory.mark_read`."""
    marker = find(connection, [(room_id, user_id)]).get((room_id, user_id))
    if marker is None:
        return None
    end = _ends_of(connection, [room_id]).get(room_id, Place(0, 0))
    through = min(seq, end.seq)
    if through <= marker.seq:
        return marker
    position = end.unread_position
    if through < end.seq:
        found = connection.execute(_event_at, {"room_id": room_id, "through": through}).one_or_none()
        place = None if found is None else StoredPlace(*found)
        position = read_position(
            through, place, last_unread_position=end.unread_position, uncounted=uncounted
        )
    moved = marker._replace(seq=through, unread_position=max(marker.unread_position, position))
    parameters = {"room": room_id, "user": user_id, "through": moved.seq, "position": moved.unread_position}
    connection.execute(_move, parameters)
    return moved
