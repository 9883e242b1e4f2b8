"""The developer's table behind `SQLArchive`: which columns it has, and the statements over them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import msgspec
from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    ColumnElement,
    Connection,
    Dialect,
    Enum,
    Index,
    Integer,
    MetaData,
    Select,
    String,
    Table,
    Text,
    TypeDecorator,
    Update,
    cast,
    false,
    insert,
    inspect,
    or_,
    select,
    text,
    update,
)
from sqlalchemy.dialects import postgresql
from sqlalchemy.schema import CreateIndex, CreateTable
from sqlalchemy.types import JSON, TypeEngine

from ..errors import StartError
from ..events import KINDS, Event
from .tables import Counter

NEEDED = ("room_id", "event_name", "event_data", "from_user", "timestamp")
OPTIONAL = ("epoch", "seq", "meta", "kind", "key", "is_edited", "is_deleted")

ERASED = "$erased"
"""Who an erased event is from."""

_TEXTS = ("room_id", "event_name", "from_user", "epoch", "kind", "key")
_JSONS = ("event_data", "meta")
_FLAGS = ("is_edited", "is_deleted")


class Change(NamedTuple):
    """What a ``$edit`` or ``$delete`` event does to its target.

    Attributes:
        seq: The change's own.
        target_seq: The event that is changed, in the same room and epoch.
        event_name: The target's.
        data_json: The new data; None for a deletion.
        is_erasure: Whether name and meta go as well.
    """

    seq: int
    target_seq: int
    event_name: str
    data_json: bytes | None
    is_erasure: bool


def change_of(event: Event[Any]) -> Change | None:
    """Return what *event* changes; None when it is no change, or an edit that a later change has made void."""
    data = event.data
    if event.event not in ("$edit", "$delete") or event.seq is None or not isinstance(data, dict):
        return None
    target_seq, name = data.get("target_seq"), data.get("event")
    if not isinstance(target_seq, int) or not isinstance(name, str):
        return None
    if event.event == "$edit":
        if "data" not in data:
            return None
        return Change(event.seq, target_seq, name, msgspec.json.encode(data["data"]), False)
    return Change(event.seq, target_seq, name, None, data.get("erased") is True)


class StoredJSON(TypeDecorator[bytes]):
    """JSON in a column of the developer's choice: UTF-8 bytes in and out.

    A column that SQLite has declared as JSON or JSONB has the affinity NUMERIC, which makes a number of a text that
    is one. Numbers are therefore given to it as numbers, and a whole number of more than 64 bits, which it would
    round, as a BLOB of its text.

    Args:
        kind: ``JSONB`` or ``JSON`` (of Postgres), ``NUMERIC`` (SQLite's affinity) or ``TEXT``.
    """

    impl = Text
    cache_ok = True

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind

    def load_dialect_impl(self, dialect: Dialect) -> TypeEngine[Any]:
        """Return the dialect's type."""
        types: dict[str, TypeEngine[Any]] = {"JSONB": postgresql.JSONB(), "JSON": postgresql.JSON()}
        return dialect.type_descriptor(types.get(self.kind, Text()))

    def bind_processor(self, dialect: Dialect) -> Callable[[bytes | None], Any]:
        """Return a function from bytes to what the driver takes."""
        return _bind_number if self.kind == "NUMERIC" else _bind_text

    def result_processor(self, dialect: Dialect, coltype: object) -> Callable[[Any], bytes | None]:
        """Return a function from what the driver gives to bytes."""
        return _as_json

    def column_expression(self, column: ColumnElement[Any]) -> ColumnElement[Any]:
        """Return the column as text on Postgres, where SQLAlchemy's driver would parse it."""
        return column if self.kind in ("NUMERIC", "TEXT") else cast(column, StoredJSON("TEXT"))


def _bind_text(value: bytes | None) -> str | None:
    return None if value is None else value.decode()


def _bind_number(value: bytes | None) -> Any:
    if value is None or value[:1] not in b"-0123456789":
        return _bind_text(value)
    number = msgspec.json.decode(value)
    if isinstance(number, int) and not -(2**63) <= number < 2**63:
        return value
    return number


def _as_json(value: Any) -> bytes | None:
    if value is None or isinstance(value, bytes):
        return value
    return value.encode() if isinstance(value, str) else msgspec.json.encode(value)


def _affinity(declared: str) -> str:
    """Return the affinity that SQLite gives a declared type (sqlite.org/datatype3.html, 3.1)."""
    declared = declared.upper()
    for affinity, parts in (
        ("INTEGER", ("INT",)),
        ("TEXT", ("CHAR", "CLOB", "TEXT")),
        ("TEXT", ("BLOB",)),  # it keeps what it is given
        ("REAL", ("REAL", "FLOA", "DOUB")),
    ):
        if any(part in declared for part in parts):
            return affinity
    return "NUMERIC" if declared else "TEXT"


def definition(name: str, schema: str | None, dialect: Dialect) -> Table:
    """Return the table that is made where there is none, with its indexes."""
    is_postgres = dialect.name == "postgresql"
    json = postgresql.JSONB() if is_postgres else Text()
    return Table(
        name,
        MetaData(),
        Column("id", Counter, primary_key=True),
        Column("room_id", String(255), nullable=False),
        Column("event_name", String(100), nullable=False),
        Column("event_data", json, nullable=False),
        Column("from_user", String(255), nullable=False),
        Column("timestamp", BigInteger, nullable=False),
        Column("epoch", String(64), nullable=False),
        Column("seq", BigInteger, nullable=False),
        Column("meta", json),
        Column("kind", String(20), nullable=False),
        Column("key", String(255)),
        Column("is_edited", Boolean, nullable=False, server_default=false()),
        Column("is_deleted", Boolean, nullable=False, server_default=false()),
        Index(f"{name}_by_seq", "room_id", "event_name", "epoch", "seq", unique=True),
        # For offsets, by which a table with rows of an earlier life of the log is read.
        Index(f"{name}_by_id", "room_id", "event_name", "id"),
        schema=schema,
    )


def ddl(table: Table, dialect: Dialect) -> str:
    """Return the statements that make *table*."""
    parts: list[CreateTable | CreateIndex] = [CreateTable(table)]
    parts += [CreateIndex(index) for index in sorted(table.indexes, key=_name)]
    return "\n".join(str(part.compile(dialect=dialect)).strip() + ";" for part in parts)


def _name(index: Index) -> str:
    return str(index.name)


class _Found(NamedTuple):
    """A column of the developer's table."""

    name: str
    type: TypeEngine[Any]
    declared: str
    must_be_given: bool
    is_nullable: bool
    is_counted: bool


class ArchiveTable:
    """A table that fits, and the statements over it.

    Attributes:
        columns: Which of `NEEDED` and `OPTIONAL` it has.
        has_seq: Whether rows can be told apart: it has ``epoch`` and ``seq``.
    """

    def __init__(self, found: Sequence[_Found], key: Sequence[str], name: str, schema: str | None) -> None:
        by_name = {column.name: column for column in found}
        # A `seq` that the database counts by itself is something else than ours.
        self.columns = tuple(
            column for column in (*NEEDED, *OPTIONAL) if column in by_name and not by_name[column].is_counted
        )
        self.has_seq = "epoch" in self.columns and "seq" in self.columns
        own = [Column(column, _type_of(by_name[column])) for column in self.columns]
        others = [Column(column, by_name[column].type) for column in key if column not in self.columns]
        self.table = Table(name, MetaData(), *own, *others, schema=schema)
        self._flags_are_numbers = {
            column for column in _FLAGS if column in by_name and not isinstance(by_name[column].type, Boolean)
        }
        order = [self.table.c[column] for column in key]
        if len(key) != 1 or not isinstance(by_name[key[0]].type, Integer):
            ties = [self.table.c.seq] if self.has_seq and "seq" not in key else []
            order = [self.table.c.timestamp, *ties, *order]
        self._order = order

    # -- what is written -----------------------------------------------------------------------------------------

    def rows(self, events: Sequence[Event[Any]]) -> list[dict[str, Any]]:
        """Return the rows of *events*."""
        return [self._row(event) for event in events]

    def _row(self, event: Event[Any]) -> dict[str, Any]:
        values = {
            "room_id": event.room_id,
            "event_name": event.event,
            "event_data": msgspec.json.encode(self._data(event)),
            "from_user": event.sender,
            "timestamp": event.timestamp,
            "epoch": event.epoch,
            "seq": event.seq,
            "meta": None if event.meta is None else msgspec.json.encode(event.meta),
            "kind": event.kind,
            "key": event.key,
            "is_edited": self._flag("is_edited", event.is_edited),
            "is_deleted": self._flag("is_deleted", event.is_deleted),
        }
        return {column: values[column] for column in self.columns}

    def _data(self, event: Event[Any]) -> Any:
        """Return the data of a row.

        Without what an edit says, if its target's row is given that: a later change replaces it there and nowhere
        else, so that nothing of what was replaced stays.
        """
        if not self.has_seq or change_of(event) is None:
            return event.data
        return {name: value for name, value in event.data.items() if name != "data"}

    def _flag(self, column: str, value: bool) -> Any:
        return int(value) if column in self._flags_are_numbers else value

    def add(self, connection: Connection, events: Sequence[Event[Any]], changes: Sequence[Change]) -> None:
        """Insert one stream's *events*, those that are there already left out, and make *changes* in their room.

        Args:
            events: Oldest first, of one room and epoch; at least one.
            changes: In the order of their seqs; of events that may or may not be in the table.
        """
        room_id, epoch = events[0].room_id, events[0].epoch
        known: set[int] = set()
        if self.has_seq:
            known = set(connection.execute(self._known(events)).scalars())
        new = [event for event in events if event.seq not in known]
        if new:
            connection.execute(insert(self.table), self.rows(new))
        if not changes or not self.has_seq:
            return
        # Two streams are handed over side by side: an edit may come after the deletion that followed it.
        deleted = self._deleted(connection, room_id, epoch, above=changes[0].seq)
        for change in changes:
            if change.data_json is None or deleted.get(change.target_seq, 0) < change.seq:
                connection.execute(self._change(room_id, epoch, change))

    def _known(self, events: Sequence[Event[Any]]) -> Select[Any]:
        c = self.table.c
        return select(c.seq).where(
            c.room_id == events[0].room_id,
            c.event_name == events[0].event,
            c.epoch == events[0].epoch,
            c.seq.between(events[0].seq, events[-1].seq),
        )

    def _deleted(
        self, connection: Connection, room_id: str, epoch: str | None, *, above: int
    ) -> dict[int, int]:
        """Return the seq of the deletion by its target's, of the deletions above a seq that are in the table."""
        c = self.table.c
        rows = connection.execute(
            select(c.seq, c.event_data).where(
                c.room_id == room_id, c.event_name == "$delete", c.epoch == epoch, c.seq > above
            )
        )
        found = {}
        for seq, data_json in rows:
            data = msgspec.json.decode(data_json or b"null")
            if isinstance(data, dict) and isinstance(data.get("target_seq"), int):
                found[data["target_seq"]] = seq
        return found

    def _change(self, room_id: str, epoch: str | None, change: Change) -> Update:
        c = self.table.c
        values: dict[str, Any] = {"event_data": change.data_json or b"null"}
        flag = "is_edited" if change.data_json is not None else "is_deleted"
        if flag in self.columns:
            values[flag] = self._flag(flag, True)
        if change.is_erasure:
            values |= self._blank()
        statement = update(self.table).where(
            c.room_id == room_id,
            c.event_name == change.event_name,
            c.epoch == epoch,
            c.seq == change.target_seq,
        )
        if change.data_json is not None and "is_deleted" in self.columns:
            # It may have been handed over as deleted, before this older edit was handed over.
            # Rows from before the column was added have NULL in it.
            is_there = c.is_deleted == self._flag("is_deleted", False)
            statement = statement.where(or_(c.is_deleted.is_(None), is_there))
        return statement.values(values)

    def _blank(self) -> dict[str, Any]:
        values: dict[str, Any] = {"event_data": b"null", "from_user": ERASED, "meta": None, "key": None}
        return {column: value for column, value in values.items() if column in self.columns}

    def erase(self, user_id: str) -> Update:
        """Return the statement that blanks a user's rows."""
        values = self._blank()
        if "is_deleted" in self.columns:
            values["is_deleted"] = self._flag("is_deleted", True)
        return update(self.table).where(self.table.c.from_user == user_id).values(values)

    # -- what is read --------------------------------------------------------------------------------------------

    def oldest(self) -> Select[Any]:
        """Return the statement for epoch and seq of the oldest row; to be used with `has_seq` only."""
        return select(self.table.c.epoch, self.table.c.seq).order_by(*self._order).limit(1)

    def by_offset(self, room_id: str, event_name: str, start: int, end: int) -> Select[Any]:
        """Return the statement for a stream's rows at offsets [*start*, *end*), newest first."""
        newest = [column.desc() for column in self._order]
        return self._select(room_id, event_name).order_by(*newest).limit(end - start).offset(start)

    def by_seq(self, room_id: str, event_name: str, epoch: str, before: int, limit: int) -> Select[Any]:
        """Return the statement for a stream's newest rows below a seq, newest first."""
        c = self.table.c
        statement = self._select(room_id, event_name).where(c.epoch == epoch, c.seq < before)
        return statement.order_by(c.seq.desc()).limit(limit)

    def _select(self, room_id: str, event_name: str) -> Select[Any]:
        c = self.table.c
        columns = [c[name] for name in self.columns if name not in ("room_id", "event_name")]
        return select(*columns).where(c.room_id == room_id, c.event_name == event_name)


def event_fields(row: Mapping[Any, Any]) -> dict[str, Any]:
    """Return a row that was read as `encode_row` takes it.

    Raises:
        ValueError: Its data or meta is no JSON.
    """
    fields = dict(row)
    for name in _JSONS:
        value = fields.get(name)
        fields[name] = None if value is None else msgspec.json.decode(value)
    if fields.get("kind") not in KINDS:
        fields["kind"] = None  # a column of that name may have been there for something else
    return fields


def _type_of(column: _Found) -> TypeEngine[Any]:
    if column.name in _JSONS:
        return StoredJSON(column.declared)
    if column.name in _TEXTS:
        return Text()
    if column.name in _FLAGS:
        return Boolean() if isinstance(column.type, Boolean) else Integer()
    return BigInteger()


def find(connection: Connection, name: str, schema: str | None) -> ArchiveTable | None:
    """Return the table of that name, if there is one.

    Raises:
        StartError: It does not fit; the message says why.
    """
    inspector = inspect(connection)
    if not inspector.has_table(name, schema=schema):
        return None
    is_sqlite = connection.dialect.name == "sqlite"
    key = inspector.get_pk_constraint(name, schema=schema)["constrained_columns"]
    declared = _declared(connection, name, schema) if is_sqlite else {}
    found = []
    for column in inspector.get_columns(name, schema=schema):
        kind = column["type"]
        is_numbered = (
            is_sqlite and list(key) == [column["name"]] and declared[column["name"]].upper() == "INTEGER"
        )
        default = column.get("default")
        is_counted = (
            is_numbered
            or column.get("identity") is not None
            or column.get("computed") is not None
            or str(default).startswith("nextval(")
        )
        # SQLite lets a primary key that it does not number be NULL; such rows would have no order.
        is_nullable = bool(column["nullable"]) and column["name"] not in key
        found.append(
            _Found(
                column["name"],
                kind,
                _affinity(declared[column["name"]]) if is_sqlite else _postgres_kind(kind),
                default is None and not is_counted and not is_nullable,
                is_nullable,
                is_counted,
            )
        )
    problems = _problems(found, key, is_sqlite=is_sqlite)
    if problems:
        raise StartError("; ".join(problems))
    return ArchiveTable(found, key, name, schema)


def _declared(connection: Connection, name: str, schema: str | None) -> dict[str, str]:
    rows = connection.execute(
        text("SELECT name, type FROM pragma_table_xinfo(:table, :schema)"),
        {"table": name, "schema": schema or "main"},
    )
    return {row.name: row.type for row in rows}


def _postgres_kind(kind: TypeEngine[Any]) -> str:
    if isinstance(kind, JSON):
        return "JSONB" if isinstance(kind, postgresql.JSONB) else "JSON"
    return "TEXT" if isinstance(kind, String) else "OTHER"


def _problems(found: Sequence[_Found], key: Sequence[str], *, is_sqlite: bool) -> list[str]:
    by_name = {column.name: column for column in found}
    problems = []
    missing = [name for name in NEEDED if name not in by_name]
    if missing:
        problems.append(f"it has no column {_and(missing)}")
    if not key:
        problems.append("it has no primary key, and so its rows have no order")
    own = {*NEEDED, *OPTIONAL}
    ungiven = [column.name for column in found if column.must_be_given and column.name not in own]
    if ungiven:
        problems.append(
            f"nothing gives a value to the column {_and(ungiven)}: it needs a default, or to be nullable"
        )
    problems += [
        f"the column {column.name!r} is {column.type}, and not {wanted}"
        for column in found
        if (wanted := _wanted(column, is_sqlite=is_sqlite)) is not None
    ]
    problems += [
        f"the column {name!r} may not be NULL, and most events have none"
        for name in ("key", "meta")
        if name in by_name and not by_name[name].is_nullable
    ]
    return problems


def _wanted(column: _Found, *, is_sqlite: bool) -> str | None:
    """Return what type a column of ours should have had; None when it has one that will do."""
    name, kind = column.name, column.type
    if name in _JSONS:
        return None if column.declared in ("JSONB", "JSON", "TEXT", "NUMERIC") else "JSON, JSONB or TEXT"
    if name in _TEXTS:
        return None if isinstance(kind, String) and not isinstance(kind, Enum) else "text"
    if name in _FLAGS:
        return None if isinstance(kind, Boolean | Integer) else "BOOLEAN"
    if name in ("timestamp", "seq"):
        # Milliseconds do not fit into the 32 bits that an INTEGER of Postgres has.
        is_large = is_sqlite or isinstance(kind, BigInteger)
        fits = isinstance(kind, Integer) and (is_large or name == "seq")
        return None if fits else "BIGINT (timestamps are milliseconds since the epoch)"
    return None


def _and(names: Sequence[str]) -> str:
    return " and ".join(repr(name) for name in names)
