"""The tables of a log, as SQLAlchemy Core has them. `alembic/versions` makes the same tables.

Nothing here has a foreign key: an event's room and stream rows are written in the same transaction by the same code,
and a check of each event would cost the rate of the whole server.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from sqlalchemy import (
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    ColumnElement,
    Dialect,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    TypeDecorator,
    UniqueConstraint,
    cast,
    false,
)
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.types import TypeEngine

VERSION_TABLE = "dialogue_version"
"""Where alembic keeps the schema's revision; not ``alembic_version``, which is the application's."""

metadata = MetaData(
    naming_convention={
        "pk": "pk_%(table_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "ck": "ck_%(table_name)s_%(constraint_name)s",
    }
)


class EncodedText(TypeDecorator[bytes]):
    """Text as UTF-8 bytes, in and out."""

    impl = Text
    cache_ok = True

    def bind_processor(self, dialect: Dialect) -> Callable[[bytes | None], str | None]:
        """Return a function from bytes to what the driver takes."""
        return lambda value: None if value is None else value.decode()

    def result_processor(self, dialect: Dialect, coltype: object) -> Callable[[str | None], bytes | None]:
        """Return a function from what the driver gives to bytes."""
        return lambda value: None if value is None else value.encode()


class EncodedJSON(EncodedText):
    """JSON that is encoded already: UTF-8 bytes in and out, never parsed on the way.

    JSONB on Postgres. On SQLite it is TEXT and not the type name JSON, whose column affinity is NUMERIC: a payload
    that is a bare number of 20 digits would come back as a rounded float.
    """

    cache_ok = True

    def load_dialect_impl(self, dialect: Dialect) -> TypeEngine[Any]:
        """Return the dialect's type."""
        return dialect.type_descriptor(postgresql.JSONB() if dialect.name == "postgresql" else Text())

    def column_expression(self, column: ColumnElement[Any]) -> ColumnElement[Any]:
        """Return the column as text: asyncpg, as SQLAlchemy sets it up, would parse JSONB. On SQLite it is that."""
        return cast(column, EncodedText())


# SQLite takes only INTEGER for the row's own number; there it has 64 bits as well.
Counter = BigInteger().with_variant(Integer(), "sqlite")


def _key_text(length: int) -> String:
    """Return the type of text that is part of an index.

    Collated byte by byte on Postgres: inserts take half as long as under a language's rules, and an update of the
    system's library, which changes those rules, cannot break a unique index.
    """
    return String(length).with_variant(String(length, collation="C"), "postgresql")


RoomId = _key_text(255)
EventName = _key_text(100)
UserId = _key_text(255)
Key = _key_text(255)

log = Table(
    "dialogue_log",
    metadata,
    # Two processes that open a new log at once must not give it two epochs: there is one row, by its key.
    Column("log_id", Integer, primary_key=True, autoincrement=False),
    Column("epoch", String(64), nullable=False),
    Column("last_id", BigInteger, nullable=False),
    Column("removed_through_id", BigInteger, nullable=False),
    Column("created_at", BigInteger, nullable=False),
    CheckConstraint("log_id = 1", name="one_row"),
)
"""One row. ``created_at`` is in milliseconds since the epoch, as all times here are."""

rooms = Table(
    "dialogue_rooms",
    metadata,
    Column("room_id", RoomId, primary_key=True),
    Column("last_seq", BigInteger, nullable=False),
    Column("last_timestamp", BigInteger, nullable=False),
    Column("last_unread_position", BigInteger, nullable=False),
)

events = Table(
    "dialogue_events",
    metadata,
    Column("id", Counter, primary_key=True, autoincrement=False),
    Column("room_id", RoomId, nullable=False),
    Column("seq", BigInteger, nullable=False),
    Column("event_name", EventName, nullable=False),
    Column("kind", String(20), nullable=False),
    Column("event_data", EncodedJSON, nullable=False),
    Column("from_user", UserId, nullable=False),
    Column("timestamp", BigInteger, nullable=False),
    Column("meta", EncodedJSON),
    Column("key", Key, nullable=False),
    Column("position", BigInteger, nullable=False),
    Column("unread_position", BigInteger, nullable=False),
    Column("is_edited", Boolean, nullable=False, server_default=false()),
    Column("is_deleted", Boolean, nullable=False, server_default=false()),
    Column("created_at", BigInteger, nullable=False),
    Column("replaced_by", BigInteger),
    UniqueConstraint("room_id", "seq"),
    # The key before the user: keys that grow with time, as the server and the clients make them, are then inserted
    # next to each other, however many users publish.
    UniqueConstraint("room_id", "key", "from_user"),
    UniqueConstraint("room_id", "event_name", "position"),
    Index(None, "room_id", "event_name", "seq"),
)
"""``timestamp`` never runs backwards in a room; ``created_at`` is what the clock said.

``replaced_by`` is the seq of the newest change of the event; for a change that a later one has made void, of that.
"""

streams = Table(
    "dialogue_streams",
    metadata,
    Column("room_id", RoomId, primary_key=True),
    Column("event_name", EventName, primary_key=True),
    Column("last", BigInteger, nullable=False),
    Column("handed_through", BigInteger, nullable=False),
    Column("removed_through", BigInteger, nullable=False),
    Column("removed_through_seq", BigInteger, nullable=False),
)

markers = Table(
    "dialogue_markers",
    metadata,
    Column("room_id", RoomId, primary_key=True),
    Column("user_id", UserId, primary_key=True),
    Column("seq", BigInteger, nullable=False),
    Column("unread_position", BigInteger, nullable=False),
    # With the room, so that a user's rooms come in order from the index alone.
    Index(None, "user_id", "room_id"),
)

created_rooms = Table(
    "dialogue_created_rooms",
    metadata,
    Column("room_id", RoomId, primary_key=True),
    Column("name", Text, nullable=False),
    Column("description", Text, nullable=False),
    Column("max_size", BigInteger),
    Column("created_by_id", UserId),
    Column("created_at", BigInteger, nullable=False),
)
"""Rooms that were made while the server ran. Counters are in ``dialogue_rooms``, for every room alike."""

sessions = Table(
    "dialogue_sessions",
    metadata,
    Column("client_id", Key, primary_key=True),
    Column("user_id", UserId, nullable=False),
    Column("first_seen", BigInteger, nullable=False),
    Column("last_seen", BigInteger, nullable=False),
    Column("is_active", Boolean, nullable=False),
    Column("rooms", EncodedText, nullable=False),
    Index(None, "user_id", "last_seen", "client_id"),
    Index(None, "last_seen", "client_id"),
)
"""``rooms`` is a JSON array of ids, which nothing ever searches."""


def upsert(dialect: Dialect, table: Table, *, update: tuple[str, ...] = ()) -> Any:
    """Return an INSERT into *table* that changes the columns of *update* where the primary key is known.

    Args:
        update: Column names; when empty a known row stays as it is.
    """
    construct = postgresql.insert if dialect.name == "postgresql" else sqlite.insert
    statement = construct(table)
    key = list(table.primary_key.columns)
    if not update:
        return statement.on_conflict_do_nothing(index_elements=key)
    return statement.on_conflict_do_update(
        index_elements=key, set_={name: statement.excluded[name] for name in update}
    )
