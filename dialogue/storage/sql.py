"""`SQLStore`: the log in a SQL database."""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import AsyncIterator, Callable, Collection, Coroutine, Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from sqlalchemy import URL, Connection, update
from sqlalchemy.exc import DBAPIError, SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncEngine
from sqlalchemy.schema import CreateSchema

from ..errors import ConfigError, OutcomeUnknown, SchemaMismatch, StartError, StoreUnavailable
from ..events import Draft
from . import migrate, transactions
from .base import Appended, FeedItem, LogPage, RoomHead, Store, StoredStream, StreamState, UserEvents
from .directory import Directory
from .engines import (
    BUSY_SECONDS,
    AsyncWriter,
    SQLiteWriter,
    ThreadWriter,
    check_engine,
    check_path,
    create_read_engine,
    parse_url,
    pool_size,
    shown_url,
)
from .lock import LogLock
from .memory import milliseconds
from .postgres import READ_SECONDS, PostgresWriter, cut_after
from .read_turns import ReadTurns
from .sql_directory import SQLDirectory
from .statements import NAMES_PER_UNION, chunks
from .tables import log, upsert
from .writer import Writer, connect, without_data

T = TypeVar("T")

_TAKE_MIGRATION_LOCK = "SELECT pg_advisory_xact_lock(hashtext('dialogue migration'))"

CLOSE_SECONDS = 10.0
"""How long a close waits for a transaction that is still running."""

CUT_SECONDS = 5.0
"""How long it then waits for the end of one whose connection it has cut."""


class _Closed(StoreUnavailable):
    """A close did not wait for the end of a call."""


class SQLStore(Store):
    """A log in SQLite or Postgres.

    On SQLite commits are ``synchronous=FULL`` in WAL mode, and a lock file beside the log keeps a second owner out.
    On Postgres they are ``synchronous_commit=on``, and an advisory lock of the connection that writes does the same.

    Args:
        url_or_engine: ``sqlite:///chat.db``, ``postgresql://...`` (with or without the async driver's name), or an
            application's own ``AsyncEngine``. The engine stays the application's: nothing is set on its
            connections and it is not disposed. Over an aiosqlite engine appends are slower than over a URL, whose
            writer has a thread of its own.
        schema: The Postgres schema that the tables are in; None for the first one of the connection's search path.
        lock_wait_seconds: How long `open` waits for another owner of the log, or for another program's
            transaction on the SQLite file, to end.
        auto_migrate: Whether `open` brings an older schema up to date; None: on SQLite yes, on Postgres no.
        clock: Returns the time in milliseconds since the epoch.

    Raises:
        ConfigError: The URL or the engine cannot be used. Nothing is opened yet.
    """

    is_durable = True

    def __init__(
        self,
        url_or_engine: str | URL | AsyncEngine,
        *,
        schema: str | None = None,
        lock_wait_seconds: float = 10.0,
        auto_migrate: bool | None = None,
        clock: Callable[[], int] = milliseconds,
    ) -> None:
        self._given_engine: AsyncEngine | None = None
        if isinstance(url_or_engine, AsyncEngine):
            check_engine(url_or_engine)
            self._given_engine = url_or_engine
            self._url = url_or_engine.url
        else:
            self._url = parse_url(url_or_engine)
        self._path = Path(self._url.database or "") if self._url.get_backend_name() == "sqlite" else None
        if schema is not None and (self._path is not None or not schema):
            raise ConfigError(
                "store", f"schema={schema!r}", "Name a schema of a Postgres database, or leave it out"
            )
        self._schema = schema
        self._lock_wait_seconds = lock_wait_seconds
        self._auto_migrate = self._path is not None if auto_migrate is None else auto_migrate
        self._clock = clock
        self._log = logging.getLogger("dialogue")
        self._lock: LogLock | None = None
        self._reader: AsyncEngine | None = None
        self._read_turns: ReadTurns | None = None
        self._writer: Writer | None = None
        self._appender: transactions.Appender | None = None
        self._write_turn = asyncio.Lock()
        self._calls: set[asyncio.Task[Any]] = set()
        self._epoch: str | None = None
        self._settle_above_id = 0
        self._last_ids: tuple[int, ...] = ()
        self._directory = SQLDirectory(read=self._read, change=self._change)

    @property
    def directory(self) -> Directory:
        """Rooms made while running, members and sessions, in the same database; see `Store.directory`."""
        return self._directory

    def use_logger(self, logger: logging.Logger) -> None:
        """Log to *logger* from now on; see `Store.use_logger`."""
        self._log = logger

    @property
    def name(self) -> str:
        """The file or the URL without its password; for people."""
        if self._path is not None:
            return str(self._path)
        shown = shown_url(self._url)
        return shown if self._schema is None else f"{shown} (schema {self._schema})"

    @property
    def epoch(self) -> str:
        """The name of this life of the log.

        Raises:
            RuntimeError: The store is not open.
        """
        if self._epoch is None:
            raise RuntimeError("the store is not open")
        return self._epoch

    async def open(self) -> None:
        """Take the log: lock, connect, bring the schema up to date, read the epoch. See `Store.open`.

        After `aclose` it may be opened again, in another event loop too.

        Raises:
            LogLocked: Another process serves this log.
            SchemaMismatch: The schema is a later version's, or older and not to be migrated here.
            StartError: The file or server cannot be used.
            RuntimeError: The store is open.
        """
        if self._epoch is not None:
            raise RuntimeError("the store is open already")
        try:
            await self._open()
        except BaseException:
            await self.aclose()
            raise

    async def _open(self) -> None:
        if self._path is not None:
            check_path(self._path)
            self._lock = LogLock(self._path)
            await self._lock.acquire(wait_seconds=self._lock_wait_seconds, logger=self._log)
        # An asyncio lock belongs to the loop that first waited for it.
        self._write_turn = asyncio.Lock()
        engine = create_read_engine(self._url) if self._given_engine is None else self._given_engine
        self._reader = engine.execution_options(isolation_level="AUTOCOMMIT")
        self._read_turns = ReadTurns(pool_size(engine))
        if self._schema is not None:
            self._reader = self._reader.execution_options(schema_translate_map={None: self._schema})
        self._appender = transactions.Appender(engine.dialect, clock=self._clock)
        try:
            if self._path is None:
                self._writer = writer = PostgresWriter(
                    engine.execution_options(isolation_level="AUTOCOMMIT"),
                    name=self.name,
                    schema=self._schema,
                    lock_wait_seconds=self._lock_wait_seconds,
                    logger=self._log,
                )
                await writer.open()
                await self._check_schema(writer)
                self._epoch, last_id = await writer.transact(self._read_log)
            else:
                last_id = await self._open_file(engine)
        except (SQLAlchemyError, OSError, StoreUnavailable, OutcomeUnknown) as error:
            self._epoch = None
            raise self._start_error(error) from error
        # What an earlier process left is known: nothing of it is the outcome of one of our appends.
        self._settle_above_id = last_id
        self._last_ids = (last_id,)

    async def _open_file(self, engine: AsyncEngine) -> int:
        writer: SQLiteWriter
        if self._given_engine is None:
            writer = ThreadWriter(self._url)
        else:
            writer = AsyncWriter(engine.execution_options(isolation_level="AUTOCOMMIT"))
        self._writer = writer
        writer.busy_seconds = self._lock_wait_seconds
        await writer.run(_use_wal)
        await self._check_schema(writer)
        self._epoch, last_id = await writer.transact(self._read_log)
        writer.busy_seconds = BUSY_SECONDS
        await writer.run(lambda connection: _set_busy(connection, BUSY_SECONDS))
        return last_id

    async def _check_schema(self, writer: Writer) -> None:
        found = await writer.run(migrate.current)
        state = migrate.check(found)
        if state == "current":
            return
        if state == "ahead":
            raise SchemaMismatch(
                self.name,
                str(found),
                migrate.HEAD,
                "It was used by a later version of Dialogue: install that version, or give this one another log",
            )
        if not self._auto_migrate:
            raise SchemaMismatch(
                self.name,
                found or "none",
                migrate.HEAD,
                migrate.upgrade_remedy(self._schema),
            )
        # Looked at again and again: it is shared by loops and threads, which no lock that can be awaited is.
        while not migrate.upgrade_lock.acquire(blocking=False):  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        try:
            with writer.unbounded() if isinstance(writer, PostgresWriter) else nullcontext():
                await writer.transact(self._upgrade)
        finally:
            migrate.upgrade_lock.release()

    def _upgrade(self, connection: Connection) -> None:
        if self._path is None:
            # A migration of a long log takes as long as it takes.
            connection.exec_driver_sql("SET LOCAL statement_timeout = 0")
            # Servers and commands that start together upgrade together; the others then find nothing to do.
            connection.exec_driver_sql(_TAKE_MIGRATION_LOCK)
        if self._schema is not None:
            connection.execute(CreateSchema(self._schema, if_not_exists=True))
        migrate.upgrade(connection)

    def _read_log(self, connection: Connection) -> tuple[str, int]:
        found = transactions.epoch_and_last_id(connection)
        if found is None:
            row = {
                "log_id": 1,
                "epoch": secrets.token_hex(8),
                "last_id": 0,
                "removed_through_id": 0,
                "created_at": self._clock(),
            }
            connection.execute(upsert(connection.dialect, log), row)
            found = transactions.epoch_and_last_id(connection)
            assert found is not None
        # A file that cannot be written lets a transaction begin; it is to fail now and not with the first event.
        connection.execute(update(log).values(last_id=log.c.last_id))
        return found

    def _start_error(self, error: BaseException) -> StartError:
        cause: BaseException | None = error
        while cause is not None and not isinstance(cause, DBAPIError):
            cause = cause.__cause__
        driver_error = cause.orig if cause is not None else error.__cause__ or error
        code = getattr(driver_error, "sqlite_errorname", "")
        if code.startswith("SQLITE_NOTADB"):
            problem, remedy = "is not a SQLite database", "Name another file, or move this one away"
        elif code.startswith(("SQLITE_BUSY", "SQLITE_LOCKED")):
            problem = f"is locked by another program (waited {self._lock_wait_seconds:g} s for it)"
            remedy = "End that program's transaction, or give Dialogue a file of its own"
        elif code.startswith(("SQLITE_READONLY", "SQLITE_CANTOPEN", "SQLITE_PERM", "SQLITE_AUTH")):
            problem = "cannot be written"
            remedy = "Let this user write to the file and to its folder, or name another file"
        elif code.startswith("SQLITE_FULL"):
            problem, remedy = "cannot grow: the disk is full", "Free some space"
        elif code.startswith("SQLITE_CORRUPT"):
            problem, remedy = "is damaged", "Restore a backup"
        else:
            problem = f"cannot be used ({driver_error})"
            remedy = (
                "Check that the server runs and that its URL is right"
                if self._path is None
                else "Check the file"
            )
        return StartError(f"the log {self.name} {problem}. {remedy}")

    async def aclose(self) -> None:
        """Wait for what is running, close the connections, free the lock."""
        await self.aclose_within(CLOSE_SECONDS + CUT_SECONDS)

    async def aclose_within(self, seconds: float) -> None:
        """Close, waiting at most *seconds* for a database that does not answer; see `Store.aclose_within`."""
        cut_seconds = min(CUT_SECONDS, seconds / 2)
        late = await self._finish(min(CLOSE_SECONDS, seconds - cut_seconds))
        self._epoch = None
        # What waits for its turn finds no writer.
        writer, self._writer = self._writer, None
        if late and writer is not None:
            # A server that has not answered by now is not waited for.
            writer.cut()
            late = await self._finish(cut_seconds)
        for task in late:
            task.cancel()
        reader, self._reader = self._reader, None
        lock, self._lock = self._lock, None
        try:
            if writer is not None:
                await writer.aclose()
            if reader is not None and self._given_engine is None:
                await reader.dispose()
        finally:
            # Last: the next owner must find no connection of ours.
            if lock is not None:
                lock.release()

    async def _finish(self, seconds: float) -> set[asyncio.Task[Any]]:
        """Wait for the calls that are running; return those that are not done after *seconds*."""
        return (await asyncio.wait(self._calls, timeout=seconds))[1] if self._calls else set()

    async def _write(self, work: Callable[[Connection], T]) -> T:
        """Return what *work* returned, committed.

        It runs in a task of its own, so that whoever cancels the call does not cancel the transaction: a driver
        that is cut off inside COMMIT leaves an outcome that only the database knows, and a connection in an unknown
        state. The next call waits its turn, and so finds the outcome settled.
        """

        async def run() -> T:
            async with self._write_turn:
                if self._writer is None:
                    raise StoreUnavailable("the store is not open")
                return await self._writer.transact(work)

        try:
            return await self._in_task(run())
        except _Closed as error:
            # A file that hangs may still take what COMMIT has given it.
            raise OutcomeUnknown from error

    async def _in_task(self, call: Coroutine[Any, Any, T]) -> T:
        task = asyncio.create_task(call)
        self._calls.add(task)
        task.add_done_callback(self._called)
        await asyncio.wait((task,))
        if task.cancelled():
            raise _Closed("the store was closed")
        return task.result()

    def _called(self, task: asyncio.Task[Any]) -> None:
        self._calls.discard(task)
        if not task.cancelled():
            task.exception()  # looked at here, because the caller may be gone

    async def _read(self, work: Callable[[Connection], T]) -> T:
        """Return what *work* returned; it may be called twice.

        In a task of its own, as a write is: a driver that is cancelled half way leaves a connection that the pool
        has lost.
        """
        return await self._in_task(self._read_bounded(work))

    async def _read_bounded(self, work: Callable[[Connection], T]) -> T:
        turns = self._read_turns
        if turns is None:
            raise StoreUnavailable("the store is not open")
        async with turns.take():
            # Its time begins now: how long it had to wait says nothing of the database.
            return await self._read_until(asyncio.get_running_loop().time() + READ_SECONDS, work)

    async def _read_until(self, deadline: float, work: Callable[[Connection], T]) -> T:
        try:
            try:
                return await self._read_before(deadline, work)
            except DBAPIError as error:
                # The pool's connections broke while they lay idle: it has replaced them all now.
                if not error.connection_invalidated or asyncio.get_running_loop().time() >= deadline:
                    raise
                return await self._read_before(deadline, work)
        except (SQLAlchemyError, OSError) as error:
            raise StoreUnavailable() from without_data(error)

    async def _read_before(self, deadline: float, work: Callable[[Connection], T]) -> T:
        reader = self._reader
        if reader is None:
            raise StoreUnavailable("the store is not open")
        async with asyncio.timeout_at(deadline):
            connection = await connect(reader)
        try:
            with cut_after(connection, deadline - asyncio.get_running_loop().time()):
                return await connection.run_sync(work)
        finally:
            await connection.close()

    async def append(self, drafts: Sequence[Draft]) -> list[Appended]:
        """Record *drafts* in one transaction; see `Store.append`."""
        appender = self._appender
        if appender is None:
            raise StoreUnavailable("the store is not open")
        drafts = list(drafts)

        def work(connection: Connection) -> list[Appended]:
            outcome = appender.append(connection, drafts)
            # Before COMMIT is sent: whatever becomes of that, `settle` tells this append's events from older ones.
            before = outcome.last_id_before
            if before is None:
                self._settle_above_id = NOTHING_ABOVE
                return outcome.appended
            if before not in self._last_ids:
                self._log.critical(
                    "another server has written to the log %s (its last id is %d): publishing is refused here, "
                    "because this server has not seen those events. Stop one of the two, then restart this one",
                    self.name,
                    before,
                )
                raise StoreUnavailable("another server has written to the log")
            self._settle_above_id = before
            self._last_ids = (before, max(item.id for item in outcome.appended))
            return outcome.appended

        return await self._write(work)

    async def settle(self, drafts: Sequence[Draft]) -> list[Appended | None]:
        """Return what the latest append recorded of *drafts*; see `Store.settle`.

        A draft whose key the log knew before that append is a duplicate here as it would have been there.
        """
        drafts = list(drafts)

        # In a write transaction: a transaction of a lost connection that is still alive somewhere holds the same
        # lock, so that what is read here is the last word.
        try:
            return await self._write(
                lambda connection: transactions.settle(connection, drafts, above_id=self._settle_above_id)
            )
        except OutcomeUnknown as error:
            raise StoreUnavailable() from error

    async def head(self, room_id: str) -> RoomHead:
        """Return where *room_id* stands; see `Store.head`."""
        return await self._read(lambda connection: transactions.head(connection, room_id))

    async def page(
        self,
        room_id: str,
        *,
        event_names: Collection[str] | None = None,
        before: int | None = None,
        after: int | None = None,
        limit: int,
    ) -> LogPage:
        """Return events of a room by seq; see `Store.page`."""
        names = None if event_names is None else tuple(sorted(set(event_names)))
        if names == ():
            return LogPage([], 0, 0)
        return await self._read(
            lambda connection: transactions.page(connection, room_id, names, before, after, limit)
        )

    async def stream_page(
        self, room_id: str, event_name: str, *, before_position: int, limit: int
    ) -> LogPage:
        """Return events of one stream by position; see `Store.stream_page`."""
        return await self._read(
            lambda connection: transactions.page_of_stream(
                connection, room_id, event_name, before_position, limit
            )
        )

    async def mark_handed(self, room_id: str, event_name: str, through: int) -> None:
        """Move a stream's hand-over forward; see `Store.mark_handed`."""
        await self._change(
            lambda connection: transactions.mark_handed(connection, room_id, event_name, through)
        )

    async def remove(self, room_id: str, event_name: str, through: int) -> None:
        """Remove a stream's events through a position; see `Store.remove`."""
        await self._change(lambda connection: transactions.remove(connection, room_id, event_name, through))

    async def _change(self, work: Callable[[Connection], T]) -> T:
        """Return what *work* returned, committed; it is a change that may be made again."""
        try:
            return await self._write(work)
        except OutcomeUnknown as error:
            # Doing it again does no harm, so its caller needs to know only that it is not sure.
            raise StoreUnavailable() from error

    async def streams(self) -> AsyncIterator[tuple[str, str, StreamState]]:
        """Iterate over the streams that wait for the hand-over; see `Store.streams`."""
        last = ("", "")
        while True:
            rows = await self._read(partial(transactions.streams_above, last=last))
            for row in rows:
                yield row.room_id, row.event_name, transactions.state_of(row)
            if not rows:
                return
            last = (rows[-1].room_id, rows[-1].event_name)

    async def feed(self, after: int, *, limit: int) -> list[FeedItem]:
        """Return events of all rooms by id; see `Store.feed`."""
        return await self._read(lambda connection: transactions.feed_page(connection, after, limit))

    async def last_id(self) -> int:
        """Return the newest id; see `Store.last_id`."""
        found = await self._read(transactions.epoch_and_last_id)
        return 0 if found is None else found[1]

    async def stored_streams(self, event_names: Collection[str]) -> AsyncIterator[StoredStream]:
        """Iterate over the streams that have events; see `Store.stored_streams`."""
        for names in chunks(sorted(set(event_names)), NAMES_PER_UNION):
            last = ("", "")
            while rows := await self._read(partial(transactions.stored_above, names=names, last=last)):
                for row in rows:
                    yield row
                last = (rows[-1].room_id, rows[-1].event_name)

    async def position_before(self, room_id: str, event_name: str, *, timestamp: int, limit: int) -> int:
        """Return how far a stream is older than *timestamp*; see `Store.position_before`."""
        return await self._read(
            lambda connection: transactions.position_before(connection, room_id, event_name, timestamp, limit)
        )

    async def user_events(self, user_id: str, *, after: int, limit: int) -> UserEvents:
        """Look through the log for a user's events; see `Store.user_events`."""
        return await self._read(
            lambda connection: transactions.events_of_user(connection, user_id, after, limit)
        )


NOTHING_ABOVE = 2**63 - 1


def _use_wal(connection: Connection) -> None:
    # Kept in the file, so it is asked for once. Elsewhere than in WAL mode a reader would stop the writer.
    mode = connection.exec_driver_sql("PRAGMA journal_mode = WAL").scalar()
    if mode != "wal":
        raise OSError(f"its file system has no write-ahead log for SQLite; the journal stays {mode}")


def _set_busy(connection: Connection, seconds: float) -> None:
    connection.exec_driver_sql(f"PRAGMA busy_timeout = {int(seconds * 1000)}")
