"""`SQLArchive`: evicted events in a table of the developer's own."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from pathlib import Path
from typing import Any, TypeVar

from sqlalchemy import URL, Connection, Select, event, text
from sqlalchemy.exc import DBAPIError, SQLAlchemyError, StatementError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

from ..errors import ConfigError, StartError, StoreUnavailable
from ..events import Event
from .archive import Archive
from .archive_table import ArchiveTable, change_of, ddl, definition, event_fields, find
from .engines import BUSY_SECONDS, check_engine, parse_url, shown_url

T = TypeVar("T")

CONNECTIONS = 5
"""Most connections at a time, to an engine of our own or of the application's: one writes, the others read."""

CLOSE_SECONDS = 10.0
"""How long a close waits for statements that are still running."""


class SQLArchive(Archive):
    """Writes evicted events into a table of yours, in SQLite or Postgres, and reads them back.

    The table needs a primary key and the columns ``room_id``, ``event_name``, ``event_data`` (JSON, JSONB or text),
    ``from_user`` and ``timestamp`` (BIGINT); ``epoch``, ``seq``, ``meta``, ``kind``, ``key``, ``is_edited`` and
    ``is_deleted`` are filled where they are, and further columns need a default or be nullable. Rows are read in the
    order of the primary key if that is one whole number, else by timestamp and primary key.

    With ``epoch`` and ``seq`` a batch that is tried again adds nothing that is there, edits and deletions change
    their row, and a table whose rows are all of the present life of the log is read by seq: index
    ``(room_id, event_name, seq)``.

    Args:
        url_or_engine: ``sqlite:///chat.db`` (the log's own file will do), ``postgresql://...``, or an application's
            own ``AsyncEngine``, which stays the application's: nothing is set on its connections and it is not
            disposed.
        table: The table's name.
        schema: The schema that it is in; None for the connection's own.
        create: Whether `open` makes the table where there is none, with every column and its indexes. A table that
            is there is never changed.

    Raises:
        ConfigError: The URL or the engine cannot be used. Nothing is opened yet.
    """

    can_erase = True

    def __init__(
        self,
        url_or_engine: str | URL | AsyncEngine,
        *,
        table: str = "messages",
        schema: str | None = None,
        create: bool = False,
    ) -> None:
        self._given_engine: AsyncEngine | None = None
        try:
            if isinstance(url_or_engine, AsyncEngine):
                check_engine(url_or_engine)
                self._given_engine = url_or_engine
                self._url = url_or_engine.url
            else:
                self._url = parse_url(url_or_engine)
        except ConfigError as error:
            # They speak of a log; what is wrong and what to write is the same here.
            raise ConfigError(
                error.where.replace("store", "SQLArchive", 1), error.problem, error.remedy
            ) from error
        self._is_sqlite = self._url.get_backend_name() == "sqlite"
        self._name = table
        self._schema = schema
        self._create = create
        self._epoch = ""
        self._engine: AsyncEngine | None = None
        self._found: ArchiveTable | None = None
        self._tasks: set[asyncio.Task[Any]] = set()
        self._write_turn = asyncio.Lock()
        self._read_turns = asyncio.Semaphore(CONNECTIONS - 1)

    @property
    def name(self) -> str:
        """The table, and where it is; for people."""
        table = f"{self._schema}.{self._name}" if self._schema else self._name
        place = self._url.database if self._is_sqlite else shown_url(self._url)
        return f"{table!r} in {place}"

    async def open(self, *, epoch: str) -> None:
        """Connect, look at the table, and find out how it can be read. See `Archive.open`.

        Raises:
            StartError: The database cannot be used, or the table is missing or does not fit; the message has the
                statements that would make it.
            RuntimeError: It is open.
        """
        if self._engine is not None:
            raise RuntimeError("the archive is open already")
        is_new_file = self._check_file()
        # These belong to the loop that first waited for them.
        self._write_turn, self._read_turns = asyncio.Lock(), asyncio.Semaphore(CONNECTIONS - 1)
        self._epoch = epoch
        self._engine = self._given_engine or _create_engine(self._url)
        try:
            if is_new_file and self._given_engine is None:
                # Else a reader would stop the writer. A file that was there keeps its mode.
                await self._read(_use_wal)
            self._found = await self._transact(self._find)
            self.is_keyset = await self._read(self._can_read_by_seq)
        except (SQLAlchemyError, OSError) as error:
            await self.aclose()
            raise StartError(
                f"the archive's table {self.name} cannot be looked at ({_reason(error)}). "
                + (
                    "Check the file"
                    if self._is_sqlite
                    else "Check that the server runs and that the URL is right"
                )
            ) from error
        except BaseException:
            await self.aclose()
            raise

    def _check_file(self) -> bool:
        """Return whether the file is going to be made."""
        if not self._is_sqlite:
            return False
        path = Path(self._url.database or "")
        if not path.parent.is_dir():
            raise StartError(f"the archive {path} cannot be made: there is no folder {path.parent}. Make it")
        if not path.exists() and not self._create:
            raise StartError(
                f"there is no file {path} for the archive. Name the file that has the table {self._name!r}, "
                "or write SQLArchive(..., create=True) to have both made"
            )
        return not path.exists()

    def _find(self, connection: Connection) -> ArchiveTable:
        wanted = definition(self._name, self._schema, connection.dialect)
        remedy = (
            "Make it so, or name another table. This makes one with every column, as create=True does "
            f"where there is none:\n{ddl(wanted, connection.dialect)}"
        )
        try:
            found = find(connection, self._name, self._schema)
            if found is None and self._create:
                wanted.metadata.create_all(connection)
                found = find(connection, self._name, self._schema)
        except StartError as error:
            raise StartError(f"the archive's table {self.name} does not fit: {error}. {remedy}") from None
        if found is None:
            raise StartError(f"there is no table {self.name} for the archive. {remedy}")
        return found

    def _can_read_by_seq(self, connection: Connection) -> bool:
        """Whether every row is of the present life of the log: they are written in order, so the oldest one tells."""
        assert self._found is not None
        if not self._found.has_seq:
            return False
        oldest = connection.execute(self._found.oldest()).first()
        return oldest is None or (oldest.epoch == self._epoch and oldest.seq is not None)

    async def aclose(self) -> None:
        """Wait for what is running, and close the connections. See `Archive.aclose`."""
        if self._tasks:
            _, late = await asyncio.wait(self._tasks, timeout=CLOSE_SECONDS)
            for task in late:
                task.cancel()
            await asyncio.gather(*late, return_exceptions=True)
        engine, self._engine, self._found = self._engine, None, None
        if engine is not None and self._given_engine is None:
            try:
                async with asyncio.timeout(CLOSE_SECONDS):
                    await engine.dispose()
            except TimeoutError:
                pass  # a server that does not answer; the sockets go with the process

    # -- Archive -------------------------------------------------------------------------------------------------

    async def cleanup(self, room_id: str, event_name: str, events: list[Event[Any]]) -> None:
        """Write one batch in one transaction. See `Archive.cleanup`.

        Raises:
            StoreUnavailable: It was not written, or it is not known.
        """
        found = self._table()
        changes = [change for change in map(change_of, events) if change is not None]
        await self._write(lambda connection: found.add(connection, events, changes))

    async def load(self, room_id: str, event_name: str, start: int, end: int) -> Sequence[Any]:
        """Read by offset. See `Archive.load`.

        Raises:
            StoreUnavailable: The table cannot be read now.
            ValueError: A row's data or meta is no JSON.
        """
        return await self._select(self._table().by_offset(room_id, event_name, start, end))

    async def load_before(self, room_id: str, event_name: str, before: int, limit: int) -> Sequence[Any]:
        """Read by seq, within the present life of the log. See `Archive.load_before`.

        Raises:
            StoreUnavailable: The table cannot be read now.
            ValueError: A row's data or meta is no JSON.
        """
        return await self._select(self._table().by_seq(room_id, event_name, self._epoch, before, limit))

    async def erase(self, user_id: str) -> None:
        """Blank a user's rows: data null, no meta or key, from ``$erased``. It reads the whole table.

        Raises:
            StoreUnavailable: It was not done, or it is not known; doing it again does no harm.
        """
        statement = self._table().erase(user_id)
        await self._write(lambda connection: connection.execute(statement))

    # -- connections ---------------------------------------------------------------------------------------------

    def _table(self) -> ArchiveTable:
        if self._found is None:
            raise StoreUnavailable("the archive is not open")
        return self._found

    async def _select(self, statement: Select[Any]) -> list[dict[str, Any]]:
        def work(connection: Connection) -> list[dict[str, Any]]:
            return [event_fields(row) for row in connection.execute(statement).mappings()]

        try:
            return await self._read(work)
        except (SQLAlchemyError, OSError) as error:
            raise StoreUnavailable(
                f"the archive's table {self.name} cannot be read ({_reason(error)})"
            ) from error

    async def _write(self, work: Callable[[Connection], Any]) -> None:
        try:
            await self._transact(work)
        except (SQLAlchemyError, OSError) as error:
            raise StoreUnavailable(
                f"the archive's table {self.name} cannot be written ({_reason(error)})"
            ) from error

    async def _transact(self, work: Callable[[Connection], T]) -> T:
        return await self._apart(self._transaction(work))

    async def _read(self, work: Callable[[Connection], T]) -> T:
        return await self._apart(self._reading(work))

    async def _apart(self, work: Coroutine[Any, Any, T]) -> T:
        """Await *work* in a task of its own: a caller that is cancelled does not cut a driver off in a statement."""
        task = asyncio.create_task(work, name="dialogue-archive")
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        await asyncio.wait((task,))
        return task.result()

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled():
            task.exception()  # looked at here, because the caller may be gone

    async def _reading(self, work: Callable[[Connection], T]) -> T:
        assert self._engine is not None
        engine = self._engine.execution_options(isolation_level="AUTOCOMMIT")
        async with self._read_turns, engine.connect() as connection:
            return await connection.run_sync(work)

    async def _transaction(self, work: Callable[[Connection], T]) -> T:
        # One at a time, first come, first served: rows get their numbers in the order of the batches, and events
        # that were read from the log before they were edited are in the table when the edit comes.
        async with self._write_turn:
            assert self._engine is not None
            if self._is_sqlite:
                engine = self._engine.execution_options(isolation_level="AUTOCOMMIT")
                async with engine.connect() as connection:
                    return await _transact_on_sqlite(connection, work)
            engine = self._engine.execution_options(isolation_level="READ COMMITTED")
            async with engine.begin() as connection:
                # The log may let go of what is here.
                await connection.execute(text("SET LOCAL synchronous_commit = on"))
                return await connection.run_sync(work)


async def _transact_on_sqlite(connection: AsyncConnection, work: Callable[[Connection], T]) -> T:
    """Return ``work(connection)``, committed.

    SQLAlchemy's own begin is deferred on SQLite: such a transaction reads first and may then be refused the write.
    """
    await connection.exec_driver_sql("BEGIN IMMEDIATE")
    try:
        result = await connection.run_sync(work)
        await connection.exec_driver_sql("COMMIT")
    except BaseException:
        try:
            await connection.exec_driver_sql("ROLLBACK")
        except Exception:
            # A full disk makes SQLite roll back by itself; what else it may be in is not known.
            await connection.invalidate()
        raise
    return result


def _use_wal(connection: Connection) -> None:
    connection.exec_driver_sql("PRAGMA journal_mode = WAL")


def _create_engine(url: URL) -> AsyncEngine:
    # What was bound is somebody's message: it stays out of errors and of the engine's own log.
    if url.get_backend_name() != "sqlite":
        return create_async_engine(
            url, pool_size=CONNECTIONS, max_overflow=0, pool_pre_ping=True, hide_parameters=True
        )
    engine = create_async_engine(url, pool_size=CONNECTIONS, max_overflow=0, hide_parameters=True)

    @event.listens_for(engine.sync_engine, "connect")
    def set_pragmas(connection: Any, record: object) -> None:
        cursor = connection.cursor()
        cursor.execute(f"PRAGMA busy_timeout = {int(BUSY_SECONDS * 1000)}")
        # The log may let go of what is here.
        cursor.execute("PRAGMA synchronous = FULL")
        cursor.close()

    return engine


def _reason(error: BaseException) -> str:
    """Return what the database says, without what was written: SQLite quotes nothing, of Postgres only names.

    What an application's engine was given goes into no log of ours either: the error is told to leave it out.
    """
    if isinstance(error, StatementError):
        error.hide_parameters = True
    if not isinstance(error, DBAPIError) or error.orig is None:
        return str(error) if isinstance(error, OSError) else type(error).__name__
    if isinstance(error.orig.__cause__, Exception):
        cause = error.orig.__cause__
        names = [getattr(cause, name, None) for name in ("table_name", "column_name", "constraint_name")]
        return " ".join([type(cause).__name__, *(repr(name) for name in names if name)])
    return str(error.orig)
