"""How a log's database is reached: its URL, the engine for reads, and the connections that write SQLite."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

from sqlalchemy import URL, Connection, NullPool, QueuePool, StaticPool, create_engine, event, make_url
from sqlalchemy.exc import ArgumentError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

from ..errors import ConfigError, StartError
from .postgres import create_postgres_engine
from .writer import Writer, connect

T = TypeVar("T")

DRIVERS = {
    "sqlite": "sqlite+aiosqlite",
    "sqlite+aiosqlite": "sqlite+aiosqlite",
    "postgres": "postgresql+asyncpg",
    "postgresql": "postgresql+asyncpg",
    "postgresql+asyncpg": "postgresql+asyncpg",
}
"""What is accepted as the start of a URL, and the driver that it is given."""

BUSY_SECONDS = 5.0
"""How long a statement on SQLite waits for another program's transaction on the same file."""

READERS = 4
"""Connections that read our own SQLite engine; each is a thread."""

URL_OPTIONS = frozenset(
    [
        "command_timeout",
        "database",
        "gsslib",
        "host",
        "krbsrvname",
        "passfile",
        "password",
        "port",
        "prepared_statement_cache_size",
        "ssl",
        "target_session_attrs",
        "user",
    ]
)
"""What a Postgres URL may say behind its question mark: what asyncpg takes as text."""

_EXAMPLES = "Write sqlite:///chat.db or postgresql://user@host/database"


SHOWN_OPTIONS = URL_OPTIONS - {"password"}
"""What of a URL's options people are shown; what another database's may mean is not known."""


def shown_url(url: URL) -> str:
    """Return *url* for people: without passwords, wherever in it they are."""
    query = {name: value for name, value in url.query.items() if name in SHOWN_OPTIONS}
    return url.set(query=query).render_as_string(hide_password=True)


def parse_url(given: str | URL) -> URL:
    """Return a store's URL with its async driver; a SQLite file's path becomes absolute. No I/O.

    Raises:
        ConfigError: It is no URL, of an unknown database or driver, or of a SQLite database in memory.
    """
    try:
        url = make_url(given)
    except (ArgumentError, ValueError):
        # Neither quoted nor chained: what does not parse may still have a password in it.
        raise ConfigError("store", "the URL cannot be read", _EXAMPLES) from None
    if "@" in (url.host or "") or (url.host and "@" in (url.database or "")):
        # Parts of the password would be taken for the host, and shown.
        raise ConfigError(
            "store",
            "the URL has an '@' behind the one that ends the password",
            "Write what is special in a name or password in percent: '@' is %40, '/' is %2F, ':' is %3A",
        )
    shown = shown_url(url)
    if url.drivername not in DRIVERS:
        raise ConfigError(
            f"store {shown!r}",
            f"{url.drivername!r} is not a database and driver that Dialogue knows",
            _EXAMPLES,
        )
    url = url.set(drivername=DRIVERS[url.drivername])
    if url.get_backend_name() != "sqlite":
        return _with_options(url)
    database = url.database or ""
    if database in ("", ":memory:") or "mode" in url.query or database.startswith("file::memory:"):
        raise ConfigError(
            f"store {shown!r}",
            "a SQLite database in memory has one connection and keeps nothing",
            "Write store=None to keep events in memory, or name a file: sqlite:///chat.db",
        )
    if "uri" in url.query or database.startswith("file:"):
        raise ConfigError(
            f"store {shown!r}", "SQLite's own 'file:' URIs are not taken", "Name the file: sqlite:///chat.db"
        )
    # Every connection must open the same file, also after the process has changed its directory.
    return url.set(database=str(Path(database).absolute()))


def _with_options(url: URL) -> URL:
    """Return a Postgres URL whose options are asyncpg's; others it would refuse with a TypeError at the start."""
    if "sslmode" in url.query:
        # libpq's name for it, which is what providers hand out; the values are the same.
        options = {name: value for name, value in url.query.items() if name != "sslmode"}
        url = url.set(query={"ssl": url.query["sslmode"], **options})
    unknown = sorted(set(url.query) - URL_OPTIONS)
    if unknown:
        raise ConfigError(
            "store",
            f"asyncpg does not take {', '.join(map(repr, unknown))} in a URL",
            "Leave it out, or make the engine yourself and give that: create_async_engine(..., connect_args={...})",
        )
    return url


def check_path(path: Path) -> None:
    """Check that a SQLite log can be at *path*.

    Raises:
        StartError: Its folder does not exist, or it is a folder itself.
    """
    if not path.parent.is_dir():
        raise StartError(
            f"the log {path} cannot be made: there is no folder {path.parent}. Make it, or name another file"
        )
    if path.is_dir():
        raise StartError(f"the log {path} is a folder. Name a file in it: sqlite:///{path / 'chat.db'}")


def check_engine(engine: AsyncEngine) -> None:
    """Check that a log can live in an application's *engine*.

    Raises:
        ConfigError: It is of an unknown database or driver, in memory, or has one connection for everything.
    """
    url = engine.url
    if url.drivername not in ("sqlite+aiosqlite", "postgresql+asyncpg"):
        raise ConfigError(
            "store",
            f"an engine with the driver {url.drivername!r}",
            "Use sqlite+aiosqlite or postgresql+asyncpg",
        )
    database = url.database or ""
    if url.get_backend_name() == "sqlite" and (
        database in ("", ":memory:") or "memory" in url.query.values() or database.startswith("file:")
    ):
        raise ConfigError(
            "store",
            "an engine over a SQLite database in memory, or over a 'file:' URI",
            "Write store=None to keep events in memory, or make the engine for a file: sqlite+aiosqlite:///chat.db",
        )
    if isinstance(engine.pool, StaticPool):
        raise ConfigError(
            "store",
            "an engine whose pool is one connection: reads would see transactions that are not committed",
            "Make the engine without poolclass=StaticPool",
        )


def _sqlite_pragmas(busy_seconds: float) -> tuple[str, ...]:
    return (
        f"PRAGMA busy_timeout = {int(busy_seconds * 1000)}",
        # The default of some builds is NORMAL, under which an acked event may be lost with the power.
        "PRAGMA synchronous = FULL",
        "PRAGMA foreign_keys = ON",
    )


_WRITER_PRAGMAS = (
    # A batch over many rooms touches four index pages per room. With SQLite's 2 MB they are written out and read
    # again within the transaction; with its checkpoint after 4 MB each page is copied into the file many times.
    # Together they gave 1.5 times the appends. KiB and pages of 4 KiB: at most 16 MB of memory and of log.
    "PRAGMA cache_size = -16384",
    "PRAGMA wal_autocheckpoint = 4000",
)


def create_read_engine(url: URL) -> AsyncEngine:
    """Return our own engine for *url*: each statement commits itself, and SQLite's settings are made."""
    if url.get_backend_name() != "sqlite":
        return create_postgres_engine(url)
    engine = create_async_engine(
        url,
        isolation_level="AUTOCOMMIT",
        skip_autocommit_rollback=True,
        pool_size=READERS,
        max_overflow=0,
        pool_reset_on_return=None,
        # What is logged of a failed statement must not be what people wrote.
        hide_parameters=True,
    )

    @event.listens_for(engine.sync_engine, "connect")
    def set_pragmas(connection: Any, record: object) -> None:
        cursor = connection.cursor()
        for pragma in _sqlite_pragmas(BUSY_SECONDS):
            cursor.execute(pragma)
        cursor.close()

    return engine


def pool_size(engine: AsyncEngine) -> int:
    """Return how many connections of *engine* may read at a time: as many as its pool keeps."""
    # A pool of no size has no bound.
    return (engine.pool.size() if isinstance(engine.pool, QueuePool) else 0) or READERS


class SQLiteWriter(Writer):
    """What both kinds of connection to a SQLite file have in common."""

    def __init__(self) -> None:
        super().__init__()
        self.busy_seconds = BUSY_SECONDS

    def _begin(self, connection: Connection) -> None:
        connection.exec_driver_sql("BEGIN IMMEDIATE")

    def _commit(self, connection: Connection) -> bool:
        connection.exec_driver_sql("COMMIT")
        return True

    def _end(self, connection: Connection) -> None:
        # A full disk makes SQLite roll back by itself; then there is nothing to end.
        if _is_in_transaction(connection):
            connection.exec_driver_sql("ROLLBACK")

    def _is_surely_open(self, connection: Connection) -> bool:
        # SQLite keeps a transaction open whose COMMIT it refused; one that is no longer open may have been
        # committed.
        return _is_in_transaction(connection)

    def cut(self) -> None:
        """Do nothing: a file answers, or the operating system has hung the thread."""

    def _prepare(self, connection: Connection) -> None:
        for pragma in (*_sqlite_pragmas(self.busy_seconds), *_WRITER_PRAGMAS):
            connection.exec_driver_sql(pragma)


def _is_in_transaction(connection: Connection) -> bool:
    dbapi_connection = connection.connection.dbapi_connection
    if dbapi_connection is None:
        return False
    # Not through the pool's record, which a connection that was taken out of its pool has left.
    driver_connection: Any = connection.dialect.get_driver_connection(dbapi_connection)
    return bool(driver_connection.in_transaction)


class ThreadWriter(SQLiteWriter):
    """Writes to a SQLite file from a thread of its own, with the standard library's driver.

    The whole transaction is one call into the thread. Through the async driver each statement is three or four,
    which measured five times as long as the statements themselves and halved the rate of appends.
    """

    def __init__(self, url: URL) -> None:
        super().__init__()
        self._engine = create_engine(
            url.set(drivername="sqlite"),
            isolation_level="AUTOCOMMIT",
            skip_autocommit_rollback=True,
            poolclass=NullPool,
            hide_parameters=True,
        )
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="dialogue-log")
        self._connection: Connection | None = None

    async def run(self, work: Callable[[Connection], T]) -> T:
        """Return ``work(connection)``, called in the thread."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, self._call, work)

    def _call(self, work: Callable[[Connection], T]) -> T:
        if self._is_broken:
            self._close()
        if self._connection is None:
            connection = self._engine.connect()
            try:
                self._prepare(connection)
            except BaseException:
                connection.close()
                raise
            self._connection = connection
        return work(self._connection)

    def _close(self) -> None:
        connection, self._connection, self._is_broken = self._connection, None, False
        if connection is not None:
            connection.close()

    async def aclose(self) -> None:
        """Close the connection and end the thread."""
        try:
            await asyncio.get_running_loop().run_in_executor(self._thread, self._close)
        except RuntimeError:
            return  # the thread has ended: closed before
        finally:
            self._thread.shutdown(wait=False)


class AsyncWriter(SQLiteWriter):
    """Writes to a SQLite file through an application's engine, on a connection taken out of its pool.

    Taken out for good, because what is set on it must not reach the application, and an application's small pool
    must not run dry.
    """

    def __init__(self, engine: AsyncEngine) -> None:
        super().__init__()
        self._engine = engine
        self._connection: AsyncConnection | None = None

    async def run(self, work: Callable[[Connection], T]) -> T:
        """Return ``work(connection)``, called in a greenlet of this task."""
        if self._is_broken:
            await self.aclose()
        if self._connection is None:
            connection = await connect(self._engine)
            try:
                await connection.run_sync(self._take)
            except BaseException:
                await connection.invalidate()
                await connection.close()
                raise
            self._connection = connection
        return await self._connection.run_sync(work)

    def _take(self, connection: Connection) -> None:
        connection.detach()
        self._prepare(connection)

    async def aclose(self) -> None:
        """Close the connection."""
        connection, self._connection, self._is_broken = self._connection, None, False
        if connection is not None:
            await connection.close()
