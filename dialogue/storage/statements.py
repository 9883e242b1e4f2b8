"""The statements of a log and what they return, for SQLite and Postgres alike.

Everything is SQLAlchemy Core. A statement that runs with each append is compiled once per log and given to the
driver as text with positional rows: at group-commit rates Core's handling of each row costs more than the database.
"""

from __future__ import annotations

import itertools
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Any, NamedTuple, TypeVar

from sqlalchemy import (
    Connection,
    Dialect,
    Integer,
    Row,
    Select,
    String,
    Table,
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
from sqlalchemy.exc import NoResultFound

from ..events import SERVER_KEY_PREFIX, EncodedEvent, encode_event
from .tables import EncodedJSON, events, log, rooms, streams, upsert

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

EVENT_ROW = tuple(c.name for c in events.columns if c.name not in ("is_edited", "is_deleted", "replaced_by"))
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


class Before(NamedTuple):
    """What an append reads of the log before it writes.

    Attributes:
        last_id: The newest id of the whole log.
        known: (room_id, from_user, key, seq, id, timestamp) of the keys that are in the log.
        rooms: (room_id, last_seq, last_timestamp, last_unread_position) of the rooms that are.
        streams: (room_id, event_name, last) of all their streams.
    """

    last_id: int
    known: list[tuple[str, str, str, int, int, int]]
    rooms: list[tuple[str, int, int, int]]
    streams: list[tuple[str, str, int]]


class AppendStatements(ABC):
    """What an append reads and writes: few statements with many rows, as text for one dialect."""

    @abstractmethod
    def read(
        self, connection: Connection, keys: Sequence[tuple[str, str, str]], room_ids: Sequence[str]
    ) -> Before:
        """Return what the log has of *keys* (room, user, key) and of *room_ids*."""

    @abstractmethod
    def write(
        self,
        connection: Connection,
        last_id: int,
        event_rows: Sequence[tuple[Any, ...]],
        room_rows: Sequence[tuple[Any, ...]],
        stream_rows: Sequence[tuple[Any, ...]],
    ) -> None:
        """Insert events, and set the counters that they move; rows are as `EVENT_ROW` and the like say."""


def append_statements(dialect: Dialect) -> AppendStatements:
    """Return the statements of *dialect*."""
    return PostgresAppend(dialect) if dialect.name == "postgresql" else SQLiteAppend(dialect)


ROWS_AT_ONCE = (256, 64, 16, 4, 1)
"""How many rows one INSERT into a log in SQLite has; a number of rows is made of few of these."""

SQLITE_VARIABLES = 32_766
"""The default limit of SQLite since 3.32 (2020); a build with a smaller one is asked for its own."""


class SQLiteAppend(AppendStatements):
    """One statement per table: each is a call into a library, and costs little by itself.

    Events are inserted many rows to a statement. The standard driver gives up the interpreter's lock for each step
    of a statement, and with one row to a statement waits for it again after each: as long as the event loop is busy
    that was a row per switch interval, and the loop and the writer took turns instead of working side by side.
    """

    def __init__(self, dialect: Dialect) -> None:
        self._dialect = dialect
        self._last_id = str(select(log.c.last_id).compile(dialect=dialect))
        self._set_last_id = str(set_last_id.compile(dialect=dialect))
        one_row = compile_rows(dialect, insert(events), EVENT_ROW)
        head, values_, row = one_row.rpartition("(")
        self._insert_events = {
            size: head + ", ".join([values_ + row] * size)
            for size in ROWS_AT_ONCE
            if size * len(EVENT_ROW) <= SQLITE_VARIABLES
        }
        self._upsert_rooms = compile_rows(dialect, upsert(dialect, rooms, update=ROOM_ROW[1:]), ROOM_ROW)
        # Only `last`: what was handed over or removed moves in transactions of its own.
        self._upsert_streams = compile_rows(dialect, upsert(dialect, streams, update=("last",)), STREAM_ROW)
        self._known: dict[int, str] = {}
        self._heads: dict[int, str] = {}

    def read(
        self, connection: Connection, keys: Sequence[tuple[str, str, str]], room_ids: Sequence[str]
    ) -> Before:
        """See `AppendStatements.read`."""
        last_id = int(connection.exec_driver_sql(self._last_id).scalar_one())
        before = Before(last_id, [], [], [])
        for keys_chunk in chunks(keys, KEY_CHUNK):
            size = slots(len(keys_chunk))
            sql = self._known.get(size)
            if sql is None:
                sql = self._known[size] = str(known_statement(size).compile(dialect=self._dialect))
            parameters = tuple(text for key in padded(keys_chunk, size) for text in key)
            before.known.extend(tuple(row) for row in connection.exec_driver_sql(sql, parameters))
        for rooms_chunk in chunks(room_ids, ROOM_CHUNK):
            size = slots(len(rooms_chunk))
            sql = self._heads.get(size)
            if sql is None:
                sql = self._heads[size] = str(heads_statement(size).compile(dialect=self._dialect))
            for row in connection.exec_driver_sql(sql, tuple(padded(rooms_chunk, size))):
                before.rooms.append((row[0], row[1], row[2], row[3]))
                if row[4] is not None:
                    before.streams.append((row[0], row[4], row[5]))
        return before

    def write(
        self,
        connection: Connection,
        last_id: int,
        event_rows: Sequence[tuple[Any, ...]],
        room_rows: Sequence[tuple[Any, ...]],
        stream_rows: Sequence[tuple[Any, ...]],
    ) -> None:
        """See `AppendStatements.write`."""
        start = 0
        for size, sql in self._insert_events.items():
            while len(event_rows) - start >= size:
                rows = event_rows[start : start + size]
                connection.exec_driver_sql(sql, tuple(itertools.chain.from_iterable(rows)))
                start += size
        connection.exec_driver_sql(self._upsert_rooms, list(room_rows))
        connection.exec_driver_sql(self._upsert_streams, list(stream_rows))
        connection.exec_driver_sql(self._set_last_id, (last_id,))


class PostgresAppend(AppendStatements):
    """One statement that reads and one that writes: each is a round trip, which costs more than a hundred rows.

    Rows travel as one array per column. That measured up to 1.3 times the rate of an INSERT per row in one message
    (``executemany``), most of which is the server's indexes.
    """

    def __init__(self, dialect: Dialect) -> None:
        parameters = itertools.count(1)
        upserts = (
            (rooms, ROOM_ROW, ROOM_ROW[1:]),
            (streams, STREAM_ROW, ("last",)),
        )
        parts = [f"new_events AS ({_insert_from_arrays(events, EVENT_ROW, parameters)})"]
        for changed, names, updated in upserts:
            key = ", ".join(column.name for column in changed.primary_key.columns)
            changes = ", ".join(f"{name} = excluded.{name}" for name in updated)
            source = _insert_from_arrays(changed, names, parameters)
            parts.append(f"new_{changed.name} AS ({source} ON CONFLICT ({key}) DO UPDATE SET {changes})")
        last_id = f"${next(parameters)}::bigint"
        self._write = f"WITH {', '.join(parts)} UPDATE {log.name} SET last_id = {last_id} WHERE log_id = 1"

    def read(
        self, connection: Connection, keys: Sequence[tuple[str, str, str]], room_ids: Sequence[str]
    ) -> Before:
        """See `AppendStatements.read`."""
        columns = tuple(list(column) for column in zip(*keys, strict=True)) or ([], [], [])
        before = Before(NO_LOG, [], [], [])
        for row in connection.exec_driver_sql(POSTGRES_READ, (*columns, list(room_ids))):
            kind = row[0]
            if kind == "known":
                before.known.append(row[1:7])
            elif kind == "room":
                before.rooms.append((row[1], *row[4:7]))
            elif kind == "stream":
                before.streams.append((row[1], row[2], row[4]))
            else:
                before = before._replace(last_id=row[4])
        if before.last_id == NO_LOG:
            raise NoResultFound("dialogue_log has no row")
        return before

    def write(
        self,
        connection: Connection,
        last_id: int,
        event_rows: Sequence[tuple[Any, ...]],
        room_rows: Sequence[tuple[Any, ...]],
        stream_rows: Sequence[tuple[Any, ...]],
    ) -> None:
        """See `AppendStatements.write`."""
        arrays = [
            list(column)
            for rows in (event_rows, room_rows, stream_rows)
            for column in zip(*rows, strict=True)
        ]
        connection.exec_driver_sql(self._write, (*arrays, last_id))


NO_LOG = -1

POSTGRES_READ = """
SELECT 'log', NULL::text, NULL::text, NULL::text, last_id, NULL::bigint, NULL::bigint
FROM dialogue_log WHERE log_id = 1
UNION ALL
SELECT 'known', e.room_id, e.from_user, e.key, e.seq, e.id, e.timestamp
FROM unnest($1::text[], $2::text[], $3::text[]) AS wanted(room_id, from_user, key), LATERAL (
    SELECT * FROM dialogue_events AS candidate
    WHERE candidate.room_id = wanted.room_id AND candidate.from_user = wanted.from_user
    AND candidate.key >= wanted.key AND candidate.key <= wanted.key
    ORDER BY candidate.key LIMIT 1
) AS e
UNION ALL
SELECT 'room', room_id, NULL, NULL, last_seq, last_timestamp, last_unread_position
FROM dialogue_rooms WHERE room_id = ANY ($4::text[])
UNION ALL
SELECT 'stream', room_id, event_name, NULL, last, NULL, NULL
FROM dialogue_streams WHERE room_id = ANY ($4::text[])
"""
"""A key is looked up as a range in order: only one index gives that order without a sort. Looked up by equality, a log
that the server has not analyzed yet was searched by the room alone, which took 50 ms for 500 keys at 6,000 events.
"""


def _insert_from_arrays(into: Table, names: Sequence[str], parameters: Iterator[int]) -> str:
    """Return an INSERT of the columns *names* from one array each, numbered by *parameters*."""
    values_of = []
    arrays = []
    for name in names:
        type_ = into.c[name].type
        is_json = isinstance(type_, EncodedJSON)
        is_text = is_json or isinstance(type_, String)
        arrays.append(f"${next(parameters)}::{'text' if is_text else 'bigint'}[]")
        values_of.append(f'"{name}"::jsonb' if is_json else f'"{name}"')
    quoted = ", ".join(f'"{name}"' for name in names)
    return (
        f"INSERT INTO {into.name} ({quoted}) SELECT {', '.join(values_of)} "
        f"FROM unnest({', '.join(arrays)}) AS row_of({quoted})"
    )


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


set_last_id = (
    update(log).where(log.c.log_id == literal_column("1")).values(last_id=bindparam("last_id", type_=Integer))
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

feed = (
    select(*EVENT_COLUMNS, events.c.room_id)
    .where(events.c.id > bindparam("after"))
    .order_by(events.c.id)
    .limit(bindparam("limit", type_=Integer))
)

first_times = (
    select(events.c.position, events.c.timestamp)
    .where(
        events.c.room_id == bindparam("room_id"),
        events.c.event_name == bindparam("event_name"),
        events.c.position > bindparam("removed_through"),
    )
    .order_by(events.c.position)
    .limit(bindparam("limit", type_=Integer))
)
"""The oldest positions of a stream with their times, which grow with them."""

nth_id = (
    select(events.c.id)
    .where(events.c.id > bindparam("after"))
    .order_by(events.c.id)
    .limit(1)
    .offset(bindparam("skipped", type_=Integer))
)

user_events = (
    select(events.c.room_id, events.c.seq, events.c.event_name)
    .where(
        events.c.id > bindparam("after"),
        events.c.id <= bindparam("through"),
        events.c.from_user == bindparam("user_id"),
    )
    .order_by(events.c.id)
)
"""By id: an index by user would cost every append something, for a search that is made once for a user."""

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


@lru_cache(maxsize=16)
def stored_streams(names: int) -> Select[Any]:
    """Return the SELECT of the streams of *names* event names that have events, with the time of the oldest."""
    # A subquery for each stream of a page, and no join: a planner that joins may begin with the events, all of which
    # it then reads for each page.
    oldest = (
        select(events.c.timestamp)
        .where(
            events.c.room_id == streams.c.room_id,
            events.c.event_name == streams.c.event_name,
            events.c.position == streams.c.removed_through + 1,
        )
        .scalar_subquery()
    )
    return (
        select(streams, oldest.label("timestamp"))
        .where(
            streams.c.removed_through < streams.c.last,
            streams.c.event_name.in_([bindparam(f"name_{index}", type_=String()) for index in range(names)]),
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
