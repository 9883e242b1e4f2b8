"""Postgres: the engine for reads, and the connection that writes, whose session makes this process the log's owner.

The owner holds an advisory lock of its *session*, so that losing the connection is losing the log: a server that
is cut off cannot write behind the back of the one that took over. Each transaction besides takes an advisory lock
of its own first, so that ids are given in commit order whatever else is connected, and so that whoever reads under
that lock has seen the end of every earlier transaction, also of one whose connection was lost inside COMMIT.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from hashlib import blake2b
from typing import Any, NamedTuple, TypeVar

from sqlalchemy import URL, Connection, event
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

from ..errors import LogLocked, StoreError, StoreUnavailable
from .writer import Writer, connect

T = TypeVar("T")

CONNECT_SECONDS = 5.0
"""How long connecting may take; a frozen server accepts connections and then says nothing."""

READ_SECONDS = 10.0
"""How long a read may take, its wait for a connection included; a late one's connection is cut."""

WRITE_SECONDS = 30.0
"""How long a write may take before its connection is cut; publishers are answered long before.

Longer than a server's hiccups, because what is cut inside COMMIT must be settled before anything else is written.
"""

LOCK_SECONDS = 10.0
"""How long a transaction waits for another one's lock; and how long the server lets ours lie idle."""

RETAKE_SECONDS = 2.0
"""How long a writer that lost its connection waits for its own earlier session to end, which it has ended."""

POLL_SECONDS = 0.1
"""How often a waiting process looks whether the log is free."""

POLITE_SECONDS = 2.0
"""How long a close waits for the server's goodbye."""

READERS = 8
"""Connections that read over our own engine."""

_SETTINGS = {
    "application_name": "dialogue",
    "lock_timeout": f"{LOCK_SECONDS * 1000:.0f}",
    "statement_timeout": f"{WRITE_SECONDS * 1000:.0f}",
    "idle_in_transaction_session_timeout": f"{LOCK_SECONDS * 1000:.0f}",
    # The connection rests for as long as nobody publishes, and must keep its lock.
    "idle_session_timeout": "0",
    # A host that vanished must not own the log for the two hours that TCP takes by itself.
    "tcp_keepalives_idle": "10",
    "tcp_keepalives_interval": "5",
    "tcp_keepalives_count": "3",
    "tcp_user_timeout": "25000",
}
"""Set on the connection that writes, and on no other; milliseconds where they are times."""

_PLANS = {
    # A statement is planned when the log is small, and the plan is kept while it grows, for a minute or more: only
    # plans that search the index which has the wanted order stay good. Switched off means avoided, not forbidden.
    "enable_seqscan": "off",
    "enable_bitmapscan": "off",
    "enable_sort": "off",
    "enable_incremental_sort": "off",
    "enable_hashjoin": "off",
    "enable_mergejoin": "off",
    "jit": "off",
}
"""Set on all our own connections."""

_APPLY = """
SELECT set_config(wanted.name, wanted.setting, false)
FROM unnest($1::text[], $2::text[]) AS wanted(name, setting) JOIN pg_settings USING (name)
"""
"""Older servers do not know all settings; those are left out."""

_STORED_BEFORE_TOLD = """
SELECT set_config('synchronous_commit', 'on', false)
WHERE current_setting('synchronous_commit') <> 'remote_apply'
"""
"""A server, a database or a role may have it off by default, and then lose what is acked."""

_WHO = """
SELECT pid, backend_start, coalesce(
    (SELECT nspname FROM pg_class JOIN pg_namespace ON pg_namespace.oid = relnamespace
     WHERE pg_class.oid = to_regclass('dialogue_log')),
    current_schema()
), current_setting('fsync')
FROM pg_stat_activity WHERE pid = pg_backend_pid()
"""
"""Our session, and the schema that the log is in or will be made in."""

_END_EARLIER = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid = $1 AND backend_start = $2"
"""The start besides the number: another process may have the number by now."""

_HOLDER = """
SELECT pid FROM pg_locks
WHERE locktype = 'advisory' AND granted AND objsubid = 1
AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
AND classid::bigint = $1 AND objid::bigint = $2
"""


class Session(NamedTuple):
    """One connection to the server, as the server names it."""

    pid: int
    started: Any
    schema: str
    fsync: str


def lock_key(purpose: str, schema: str) -> int:
    """Return the advisory lock (a signed 64-bit number, per database) of the log in *schema*.

    Args:
        purpose: ``"owner"`` or ``"append"``.
    """
    digest = blake2b(f"dialogue {purpose} {schema}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big", signed=True)


def create_postgres_engine(url: URL) -> AsyncEngine:
    """Return our own engine for *url*: each statement commits itself, connecting and waiting are bounded."""
    engine = create_async_engine(
        url,
        isolation_level="AUTOCOMMIT",
        skip_autocommit_rollback=True,
        pool_reset_on_return=None,
        pool_size=READERS,
        max_overflow=0,
        pool_timeout=READ_SECONDS,
        # What is logged of a failed statement must not be what people wrote.
        hide_parameters=True,
        connect_args={"timeout": CONNECT_SECONDS},
    )

    @event.listens_for(engine.sync_engine, "connect")
    def set_plans(connection: Any, record: object) -> None:
        cursor = connection.cursor()
        cursor.execute(_APPLY, (list(_PLANS), list(_PLANS.values())))
        cursor.close()

    @event.listens_for(engine.sync_engine, "close")
    def close_without_a_word(connection: Any, record: object) -> None:
        # The polite way waits for the server's answer, and a frozen one would hold up the stop.
        connection.driver_connection.terminate()

    return engine


def driver_of(connection: Connection) -> Any:
    """Return asyncpg's own connection; None where SQLAlchemy has given it up."""
    if connection.closed or connection.invalidated:
        return None
    dbapi_connection = connection.connection.dbapi_connection
    # Not through the pool's record, which a connection that was taken out of its pool has left.
    return None if dbapi_connection is None else connection.dialect.get_driver_connection(dbapi_connection)


@contextmanager
def cut_after(connection: AsyncConnection, seconds: float | None) -> Iterator[None]:
    """Terminate *connection* when the block takes longer than *seconds*; what runs on it then fails.

    Not by cancelling: asyncpg then asks the server to stop the statement, over another connection, and waits.
    On SQLite nothing is cut: a file always answers.

    Raises:
        TimeoutError: It was cut, and the block failed with an error that is not a store's.
    """
    sync_connection = connection.sync_connection
    driver = driver_of(sync_connection) if sync_connection is not None else None
    if driver is None or seconds is None or connection.dialect.name != "postgresql":
        yield
        return
    is_cut = False

    def cut() -> None:
        nonlocal is_cut
        is_cut = True
        driver.terminate()

    timer = asyncio.get_running_loop().call_later(seconds, cut)
    try:
        yield
    except StoreError:
        raise
    except Exception as error:
        if is_cut:
            raise TimeoutError(f"Postgres did not answer within {seconds:g} s") from error
        raise
    finally:
        timer.cancel()


class PostgresWriter(Writer):
    """The connection that owns the log, out of an engine's pool and with settings of its own.

    A lost connection is replaced at the next call, which also takes the lock again: at once if only our own
    earlier session has it, which is ended first. If another server has it by then, calls are refused until that one
    has ended.

    Args:
        engine: Where connections come from; stays the caller's.
        name: The log, for people.
        schema: Where the tables are; None for the first schema of the connection's own search path.
        lock_wait_seconds: How long `open` waits for another owner.
        logger: Told of what happens to the log's ownership.
    """

    def __init__(
        self,
        engine: AsyncEngine,
        *,
        name: str,
        schema: str | None,
        lock_wait_seconds: float,
        logger: logging.Logger | None = None,
    ) -> None:
        super().__init__()
        self._log = logger or logging.getLogger("dialogue")
        self._engine = engine
        self._name = name
        self._schema = schema
        self._lock_wait_seconds = lock_wait_seconds
        self._connection: AsyncConnection | None = None
        self._session: Session | None = None
        self._begin_sql = ""
        self._is_taken = False
        self._bound_seconds: float | None = WRITE_SECONDS

    async def open(self) -> None:
        """Connect and take the log, waiting for another owner to end.

        Raises:
            LogLocked: Another process owns the log.
            SQLAlchemyError, OSError: The server cannot be used.
        """
        await self._connect(self._lock_wait_seconds)
        assert self._session is not None
        if self._session.fsync == "off":
            self._log.warning("%s runs with fsync=off: a crash of its machine loses acked events", self._name)

    async def run(self, work: Callable[[Connection], T]) -> T:
        """Return ``work(connection)``, called in a greenlet of this task.

        Raises:
            StoreUnavailable: The connection was lost, and the log cannot be taken again now.
        """
        if self._is_broken or self._has_ended():
            self.cut()
            await self.aclose()
        if self._connection is None:
            await self._connect(RETAKE_SECONDS)
        connection = self._connection
        assert connection is not None
        with cut_after(connection, self._bound_seconds):
            return await connection.run_sync(work)

    @contextmanager
    def unbounded(self) -> Iterator[None]:
        """Let calls in the block take as long as they need."""
        before, self._bound_seconds = self._bound_seconds, None
        try:
            yield
        finally:
            self._bound_seconds = before

    def _has_ended(self) -> bool:
        """Return whether the connection broke while it lay idle: then nothing was begun on it, and nobody is told."""
        connection = self._connection.sync_connection if self._connection is not None else None
        return connection is not None and self._is_lost(connection)

    async def _connect(self, wait_seconds: float) -> None:
        earlier = self._session
        connection = await self._connected()
        try:
            with cut_after(connection, wait_seconds + CONNECT_SECONDS):
                session = await connection.run_sync(self._prepare, earlier)
                # From here on it is this one that may have the lock without our knowing.
                self._session = session
                key = lock_key("owner", session.schema)
                await self._own(connection, key, wait_seconds, is_retaken=earlier is not None)
        except BaseException:
            await _drop(connection)
            raise
        if self._is_taken:
            self._log.warning("this server has the log %s again", self._name)
        self._is_taken = False
        self._connection = connection
        # One message and one answer, and still a statement by itself: taken together with the first read, the lock
        # would be waited for with a snapshot from before it.
        self._begin_sql = (
            "BEGIN ISOLATION LEVEL READ COMMITTED READ WRITE;"
            f"SELECT pg_advisory_xact_lock({lock_key('append', session.schema)})"
        )

    async def _connected(self) -> AsyncConnection:
        """Return a connection that works, taken out of its pool for good: what is set on it stays with it."""
        for is_last in (False, True):
            async with asyncio.timeout(CONNECT_SECONDS):
                connection = await connect(self._engine)
            try:
                with cut_after(connection, CONNECT_SECONDS):
                    await connection.run_sync(_take)
            except (SQLAlchemyError, OSError):
                # A pool keeps connections that a server has long closed; the first error empties it of them.
                await _drop(connection)
                if is_last:
                    raise
            except BaseException:
                await _drop(connection)
                raise
            else:
                return connection
        raise AssertionError("unreachable")

    def _prepare(self, connection: Connection, earlier: Session | None) -> Session:
        settings = _SETTINGS | _PLANS
        if self._schema is not None:
            settings["search_path"] = connection.dialect.identifier_preparer.quote(self._schema)
        connection.exec_driver_sql(_APPLY, (list(settings), list(settings.values())))
        connection.exec_driver_sql(_STORED_BEFORE_TOLD)
        pid, started, schema, fsync = connection.exec_driver_sql(_WHO).one()
        if earlier is not None:
            # Half-open, it may hold our lock, and an open transaction, until its server notices.
            connection.exec_driver_sql(_END_EARLIER, (earlier.pid, earlier.started))
        return Session(pid, started, schema or self._schema or "", fsync)

    async def _own(
        self, connection: AsyncConnection, key: int, wait_seconds: float, *, is_retaken: bool
    ) -> None:
        deadline = time.monotonic() + wait_seconds
        is_told = is_retaken
        while not await connection.run_sync(_try_lock, key):
            if time.monotonic() >= deadline:
                if not is_retaken:
                    raise LogLocked(self._name, wait_seconds)
                holder = await connection.run_sync(_lock_holder, key)
                if not self._is_taken:
                    self._is_taken = True
                    self._log.critical(
                        "another server took the log %s (its session has the pid %s) while this one had lost its "
                        "connection: publishing is refused here. Stop one of the two",
                        self._name,
                        holder,
                    )
                raise StoreUnavailable("another server has taken the log")
            if not is_told:
                is_told = True
                tell_waiting(self._name, wait_seconds, self._log)
            await asyncio.sleep(POLL_SECONDS)

    def _begin(self, connection: Connection) -> None:
        self._send(connection, self._begin_sql)

    def _commit(self, connection: Connection) -> bool:
        # The server answers the COMMIT of a failed transaction with ROLLBACK, and calls that a success.
        return bool(self._send(connection, "COMMIT") == "COMMIT")

    def _end(self, connection: Connection) -> None:
        self._send(connection, "ROLLBACK")

    def _is_lost(self, connection: Connection) -> bool:
        driver = driver_of(connection)
        return driver is None or bool(driver.is_closed())

    def _send(self, connection: Connection, sql: str) -> Any:
        """Send statements without parameters as one message; return the status of the last."""
        driver_connection: Any = connection.connection.dbapi_connection
        return driver_connection.run_async(lambda driver: driver.execute(sql))

    def cut(self) -> None:
        """Give up the connection at once, without a word to the server; what runs on it fails."""
        connection = self._connection.sync_connection if self._connection is not None else None
        driver = driver_of(connection) if connection is not None else None
        if driver is not None:
            driver.terminate()

    async def aclose(self) -> None:
        """Close the connection, which frees the log; a server that does not answer is left alone."""
        connection, self._connection, self._is_broken = self._connection, None, False
        if connection is not None:
            await _drop(connection, polite_seconds=POLITE_SECONDS)


def tell_waiting(name: str, wait_seconds: float, logger: logging.Logger) -> None:
    """Say once that a start waits for another owner of the log."""
    logger.warning("another process is serving the log %s; waiting %g s for it to end", name, wait_seconds)


def _take(connection: Connection) -> None:
    connection.exec_driver_sql("SELECT 1")
    connection.detach()


def _try_lock(connection: Connection, key: int) -> bool:
    return bool(connection.exec_driver_sql("SELECT pg_try_advisory_lock($1)", (key,)).scalar_one())


def _lock_holder(connection: Connection, key: int) -> int | None:
    number = key % 2**64
    found = connection.exec_driver_sql(_HOLDER, (number >> 32, number & 0xFFFFFFFF)).scalar()
    return None if found is None else int(found)


async def _drop(connection: AsyncConnection, *, polite_seconds: float = 0) -> None:
    """Close *connection* for good; never hangs and never raises because of its server."""
    sync_connection = connection.sync_connection
    driver = driver_of(sync_connection) if sync_connection is not None else None
    if driver is not None:
        if polite_seconds and not driver.is_closed():
            try:
                await driver.close(timeout=polite_seconds)
            except Exception as error:
                # Nothing is lost by it: the server ends the session when it notices.
                logging.getLogger("dialogue").debug(
                    "closing a connection to Postgres: %s", type(error).__name__
                )
        driver.terminate()
        await connection.invalidate()
    await connection.close()
