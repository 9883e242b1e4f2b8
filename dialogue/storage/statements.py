"""The statements of a log and what they return, for SQLite and Postgres alike.

Everything is SQLAlchemy Core. A statement that runs with each append is compiled once per log and given to the
driver as text with positional rows: at group-commit rates Core's handling of each row costs more than the database.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Any, TypeVar

from sqlalchemy import (
    Connection,
    Dialect,
    Integer,
    Row,
    Select,
    String,
    and_,
    bindparam,
    column,
    insert,
    literal_column,
    select,
    tuple_,
    union_all,
    update,
    values,
)

from ..events import SERVER_KEY_PREFIX, EncodedEvent, encode_event
from .tables import events, log, rooms, streams, upsert

T = TypeVar("T")

EVENT_COLUMNS = (
    events.c.id,
    events.c.seq,
    events.c.event_name,
    events.c.kind,
    events.c.event_data,
    events.c.from_user,
    events.c.timestamp,
    events.c.meta,
    events.c.key,
    events.c.position,
    events.c.is_edited,
    events.c.is_deleted,
)
"""What `decode_row` needs, in this order."""

EVENT_ROW = tuple(c.name for c in events.columns if c.name not in ("is_edited", "is_deleted"))
ROOM_ROW = ("room_id", "last_seq", "last_timestamp", "last_unread_position")
STREAM_ROW = ("room_id", "event_name", "last", "handed_through", "removed_through", "removed_through_seq")

KEY_NAMES = ("room_id", "from_user", "key")

KEY_CHUNK = 256
"""Most keys looked up by one statement; three variables each, below the 999 of the oldest SQLite builds."""

ROOM_CHUNK = 256
"""Most rooms looked up by one statement."""

NAMES_PER_UNION = 100
"""Most streams that a page reads by an index search of their own."""


def chunks(items: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    """Yield *items* in runs of at most *size*."""
    for start in range(0, len(items), size):
        yield items[start : start + size]


def compile_rows(dialect: Dialect, statement: Any, names: tuple[str, ...]) -> str:
    """Return the SQL of an INSERT that takes rows with the columns *names*, in this order."""
    compiled = statement.compile(dialect=dialect, column_keys=list(names))
    assert tuple(compiled.positiontup) == names, (
        "the driver takes no positional rows in the order of the table"
    )
    return str(compiled)


class AppendStatements:
    """The statements of an append, as text for one dialect."""

    def __init__(self, dialect: Dialect) -> None:
        self._dialect = dialect
        self._allocate_ids = str(allocate_ids.compile(dialect=dialect))
        self.insert_events = compile_rows(dialect, insert(events), EVENT_ROW)
        self.upsert_rooms = compile_rows(dialect, upsert(dialect, rooms, update=ROOM_ROW[1:]), ROOM_ROW)
        # Only `last`: what was handed over or removed moves in transactions of its own.
        self.upsert_streams = compile_rows(dialect, upsert(dialect, streams, update=("last",)), STREAM_ROW)
        self._known: dict[int, str] = {}
        self._heads: dict[int, str] = {}

    def allocate(self, connection: Connection, count: int) -> int:
        """Take *count* ids and return the last one."""
        return int(connection.exec_driver_sql(self._allocate_ids, (count,)).scalar_one())

    def known_rows(self, connection: Connection, keys: Sequence[tuple[str, str, str]]) -> Iterator[Any]:
        """Yield (room_id, from_user, key, seq, id, timestamp) of those (room, user, key) that are in the log."""
        for chunk in chunks(keys, KEY_CHUNK):
            size = slots(len(chunk))
            sql = self._known.get(size)
            if sql is None:
                sql = self._known[size] = str(known_statement(size).compile(dialect=self._dialect))
            yield from connection.exec_driver_sql(
                sql, tuple(text for key in padded(chunk, size) for text in key)
            )

    def head_rows(self, connection: Connection, room_ids: Sequence[str]) -> Iterator[Any]:
        """Yield the rows of `heads_statement` for *room_ids*."""
        for chunk in chunks(room_ids, ROOM_CHUNK):
            size = slots(len(chunk))
            sql = self._heads.get(size)
            if sql is None:
                sql = self._heads[size] = str(heads_statement(size).compile(dialect=self._dialect))
            yield from connection.exec_driver_sql(sql, tuple(padded(chunk, size)))


def slots(count: int) -> int:
    """Return for how many items the statement that looks up *count* of them has room.

    Few sizes, so that each statement is compiled once; the last item fills what is left.
    """
    size = 1
    while size < count:
        size *= 4
    return size


def padded(items: Sequence[T], size: int) -> list[T]:
    """Return *items* with the last one repeated up to *size*."""
    return [*items, *([items[-1]] * (size - len(items)))]


def _wanted(size: int, columns: Sequence[Any]) -> Select[Any]:
    # A join with the wanted keys, not "(a, b, c) IN (...)": SQLite answers that one by scanning the whole index.
    wanted = (
        values(column("room_id", String), column("from_user", String), column("key", String), name="wanted")
        .data(
            [
                tuple(bindparam(f"{name}_{index}", type_=String()) for name in KEY_NAMES)
                for index in range(size)
            ]
        )
        .cte("wanted")
    )
    matches = and_(
        events.c.room_id == wanted.c.room_id,
        events.c.from_user == wanted.c.from_user,
        events.c.key == wanted.c.key,
    )
    return select(*columns).select_from(wanted.join(events, matches))


@lru_cache(maxsize=16)
def known_statement(size: int) -> Select[Any]:
    """Return the SELECT of what the log gave the events under *size* keys."""
    return _wanted(
        size,
        (
            events.c.room_id,
            events.c.from_user,
            events.c.key,
            events.c.seq,
            events.c.id,
            events.c.timestamp,
        ),
    )


@lru_cache(maxsize=16)
def settle_statement(size: int) -> Select[Any]:
    """Return the SELECT of the events under *size* keys, with their room."""
    return _wanted(size, (*EVENT_COLUMNS, events.c.room_id))


def key_parameters(keys: Sequence[tuple[str, str, str]], size: int) -> dict[str, str]:
    """Return the parameters of `settle_statement`."""
    return {
        f"{name}_{index}": text
        for index, key in enumerate(padded(keys, size))
        for name, text in zip(KEY_NAMES, key, strict=True)
    }


allocate_ids = (
    update(log)
    .where(log.c.log_id == literal_column("1"))
    .values(last_id=log.c.last_id + bindparam("count", type_=Integer))
    .returning(log.c.last_id)
)
"""In the append's transaction, so that ids are never used twice and grow in commit order."""


@lru_cache(maxsize=16)
def heads_statement(size: int) -> Select[Any]:
    """Return the SELECT of *size* rooms with their streams.

    One row per stream, and one with nothing of a stream for a room that has none.
    """
    return (
        select(
            rooms.c.room_id,
            rooms.c.last_seq,
            rooms.c.last_timestamp,
            rooms.c.last_unread_position,
            streams.c.event_name,
            streams.c.last,
            streams.c.handed_through,
            streams.c.removed_through,
            streams.c.removed_through_seq,
        )
        .select_from(rooms.outerjoin(streams, rooms.c.room_id == streams.c.room_id))
        .where(rooms.c.room_id.in_([bindparam(f"room_id_{index}", type_=String()) for index in range(size)]))
    )


floors = select(streams.c.event_name, streams.c.removed_through, streams.c.removed_through_seq).where(
    streams.c.room_id == bindparam("room_id")
)

stream_page = (
    select(*EVENT_COLUMNS)
    .where(
        events.c.room_id == bindparam("room_id"),
        events.c.event_name == bindparam("event_name"),
        events.c.position < bindparam("before_position"),
    )
    .order_by(events.c.position.desc())
    .limit(bindparam("limit", type_=Integer))
)

STREAMS_PER_READ = 500

unhanded_streams = (
    select(streams)
    .where(
        streams.c.handed_through < streams.c.last,
        tuple_(streams.c.room_id, streams.c.event_name)
        > tuple_(bindparam("room_id", type_=String()), bindparam("event_name", type_=String())),
    )
    .order_by(streams.c.room_id, streams.c.event_name)
    .limit(STREAMS_PER_READ)
)


@lru_cache(maxsize=256)
def page_statement(names: int | None, *, has_before: bool, has_after: bool) -> Select[Any]:
    """Return the SELECT of a page by seq; its parameters come from `page_parameters`.

    Args:
        names: How many streams are asked for; None for all.
        has_before, has_after: Which bounds there are. With ``after`` the oldest come first, else the newest.
    """

    def within(statement: Select[Any]) -> Select[Any]:
        statement = statement.where(events.c.room_id == bindparam("room_id"))
        if has_before:
            statement = statement.where(events.c.seq < bindparam("before"))
        if has_after:
            statement = statement.where(events.c.seq > bindparam("after"))
        order = events.c.seq.asc() if has_after else events.c.seq.desc()
        return statement.order_by(order).limit(bindparam("limit", type_=Integer))

    def of(index: int) -> Any:
        return events.c.event_name == bindparam(f"name_{index}")

    page = select(*EVENT_COLUMNS)
    if names is None:
        return within(page)
    if names == 1:
        return within(page.where(of(0)))
    if names > NAMES_PER_UNION:
        return within(
            page.where(
                events.c.event_name.in_([bindparam(f"name_{i}", type_=String()) for i in range(names)])
            )
        )
    # One search of the index per stream. "event_name IN (...)" would read every stream to its end and sort, or
    # walk the room past all the events of other names: either way a page would cost more the longer the room is.
    parts = [within(select(events.c.seq).where(of(index))).subquery() for index in range(names)]
    found = union_all(*(select(part.c.seq) for part in parts)).subquery()
    order = found.c.seq.asc() if has_after else found.c.seq.desc()
    wanted = select(found.c.seq).order_by(order).limit(bindparam("limit", type_=Integer)).subquery()
    return within(page.where(events.c.seq.in_(select(wanted.c.seq))))


def page_parameters(
    room_id: str, names: Sequence[str] | None, before: int | None, after: int | None, limit: int
) -> dict[str, Any]:
    """Return the parameters of `page_statement`."""
    parameters: dict[str, Any] = {"room_id": room_id, "limit": limit}
    if before is not None:
        parameters["before"] = before
    if after is not None:
        parameters["after"] = after
    parameters.update((f"name_{index}", name) for index, name in enumerate(names or ()))
    return parameters


def decode_row(room_id: str, row: Row[Any] | Sequence[Any]) -> EncodedEvent:
    """Return the event of a row of `EVENT_COLUMNS`."""
    id_, seq, name, kind, data, sender, timestamp, meta, key, position, is_edited, is_deleted = row[:12]
    return encode_event(
        room_id=room_id,
        event=name,
        id=id_,
        seq=seq,
        position=position,
        sender=sender,
        key=None if key.startswith(SERVER_KEY_PREFIX) else key,
        timestamp=timestamp,
        data_json=data,
        meta_json=meta,
        kind=kind,
        is_edited=is_edited,
        is_deleted=is_deleted,
    )
