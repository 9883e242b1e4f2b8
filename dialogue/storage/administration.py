"""What operators do to a log's database from outside of a server: look at its schema, upgrade it, give a new epoch.

A `Database` neither owns the log nor migrates it by itself, so that looking changes nothing.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from types import TracebackType
from typing import TypeVar

from sqlalchemy import Connection, Dialect, update
from sqlalchemy.dialects import postgresql
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine
from sqlalchemy.schema import CreateSchema

from ..errors import LogLocked, OutcomeUnknown, StartError, StoreUnavailable
from . import migrate, transactions
from .engines import AsyncWriter, ThreadWriter, check_path, create_read_engine
from .lock import LogLock
from .postgres import _WHO, _try_lock, lock_key
from .sql import _TAKE_MIGRATION_LOCK, SQLStore
from .tables import log

T = TypeVar("T")

_FREE_LOCKS = "SELECT pg_advisory_unlock_all()"


def _set_schema(dialect: Dialect, schema: str) -> str:
    return f"SET search_path TO {dialect.identifier_preparer.quote(schema)}"


class _Session:
    """One connection to Postgres, which neither owns the log nor is bounded in time: a migration may take long.

    Args:
        engine: Where the connection comes from.
        schema: Where the tables are; None for the first schema of the connection's own search path.
    """

    def __init__(self, engine: AsyncEngine, *, schema: str | None) -> None:
        self._engine = engine.execution_options(isolation_level="AUTOCOMMIT")
        self._schema = schema
        self._connection: AsyncConnection | None = None

    async def run(self, work: Callable[[Connection], T]) -> T:
        """Return ``work(connection)``; its errors pass through."""
        if self._connection is None:
            connection = await self._engine.connect()
            # What is set on it, and what it may lock, is never to reach the pool.
            await connection.run_sync(self._take)
            self._connection = connection
        return await self._connection.run_sync(work)

    def _take(self, connection: Connection) -> None:
        connection.detach()
        if self._schema is not None:
            connection.exec_driver_sql(_set_schema(connection.dialect, self._schema))

    async def transact(self, work: Callable[[Connection], T]) -> T:
        """Return ``work(connection)`` once it is committed."""

        def transaction(connection: Connection) -> T:
            connection.exec_driver_sql("BEGIN")
            try:
                result = work(connection)
            except BaseException:
                if not connection.invalidated:
                    connection.exec_driver_sql("ROLLBACK")
                raise
            connection.exec_driver_sql("COMMIT")
            return result

        return await self.run(transaction)

    async def aclose(self) -> None:
        """Close the connection."""
        connection, self._connection = self._connection, None
        if connection is not None:
            await connection.close()


class Database:
    """The database of a log, as an async context manager. Nothing is opened before the first use.

    Args:
        store: Says where the log is. It is not opened here; an engine of the application's is disposed at the end,
            because it belongs to the event loop in which it was used.
    """

    def __init__(self, store: SQLStore) -> None:
        self._store = store
        self._path = store._path
        self._engine: AsyncEngine | None = store._given_engine
        self._writer: AsyncWriter | ThreadWriter | _Session | None = None

    @property
    def name(self) -> str:
        """The file or the URL without its password; for people."""
        return self._store.name

    @property
    def dialect_name(self) -> str:
        """``sqlite`` or ``postgresql``."""
        return self._store._url.get_backend_name()

    @property
    def is_auto_migrated(self) -> bool:
        """Whether a server that starts on this log brings its schema up to date by itself."""
        return self._store._auto_migrate

    async def __aenter__(self) -> Database:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        writer, self._writer = self._writer, None
        if writer is not None:
            await writer.aclose()
        if self._engine is not None:
            await self._engine.dispose()

    def _connected(self) -> AsyncWriter | ThreadWriter | _Session:
        if self._writer is None:
            if self._path is not None and self._engine is None:
                self._writer = ThreadWriter(self._store._url)
            elif self._path is not None and self._engine is not None:
                self._writer = AsyncWriter(self._engine.execution_options(isolation_level="AUTOCOMMIT"))
            else:
                self._engine = self._engine or create_read_engine(self._store._url)
                self._writer = _Session(self._engine, schema=self._store._schema)
        return self._writer

    async def run(self, work: Callable[[Connection], T]) -> T:
        """Return ``work(connection)`` on the one connection, each statement for itself.

        Raises:
            StartError: The database cannot be reached, or refuses a statement.
        """
        try:
            return await self._connected().run(work)
        except Exception as error:
            raise self._translated(error) from error

    async def transact(self, work: Callable[[Connection], T]) -> T:
        """Return ``work(connection)`` once it is committed.

        Raises:
            StartError: The database cannot be reached, or refuses a statement.
        """
        try:
            return await self._connected().transact(work)
        except Exception as error:
            raise self._translated(error) from error

    def _translated(self, error: Exception) -> Exception:
        # What asyncpg raises while it connects reaches us as it is: a wrong password, an unknown database.
        is_drivers = type(error).__module__.partition(".")[0] == "asyncpg"
        if is_drivers or isinstance(error, SQLAlchemyError | OSError | StoreUnavailable | OutcomeUnknown):
            return self._store._start_error(error)
        return error

    async def revision(self) -> str | None:
        """Return the schema's revision; None when there is no log. A missing SQLite file is not made."""
        if self._path is not None and not self._path.exists():
            return None
        return await self.run(migrate.current)

    async def check(self) -> None:
        """Check that this version of Dialogue can use the log.

        Raises:
            SchemaMismatch: It is behind, ahead or missing.
            StartError: It cannot be read.
        """
        mismatch = migrate.mismatch(self.name, await self.revision(), schema=self._store._schema)
        if mismatch is not None:
            raise mismatch

    async def upgrade(self) -> str | None:
        """Bring the schema to `migrate.HEAD` in one transaction; return the revision that it had.

        Raises:
            SchemaMismatch: It is ahead.
            StartError: The database cannot be used.
        """
        if self._path is not None:
            check_path(self._path)

        def work(connection: Connection) -> str | None:
            if self.dialect_name == "postgresql":
                # Before the revision is looked at, which another one may be changing.
                connection.exec_driver_sql(_TAKE_MIGRATION_LOCK)
            found = migrate.current(connection)
            mismatch = migrate.mismatch(self.name, found, schema=self._store._schema)
            if mismatch is not None:
                if migrate.check(found) == "ahead":
                    raise mismatch
                self._store._upgrade(connection)
            return found

        # Looked at again and again: it is shared by loops and threads, which no lock that can be awaited is.
        while not migrate.upgrade_lock.acquire(blocking=False):  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        try:
            return await self.transact(work)
        finally:
            migrate.upgrade_lock.release()

    @asynccontextmanager
    async def owned(self) -> AsyncIterator[None]:
        """Own the log inside the block, as a server would: no server serves it meanwhile.

        Raises:
            LogLocked: A server, or another command, owns it. Not waited for.
            StartError: The lock cannot be made, or the log's folder does not exist.
        """
        if self._path is None:
            if not await self.run(self._try_own):
                raise LogLocked(self.name, 0)
            try:
                yield
            finally:
                await self.run(lambda connection: connection.exec_driver_sql(_FREE_LOCKS).close())
            return
        # The lock's file is made together with its folders.
        check_path(self._path)
        lock = LogLock(self._path)
        await lock.acquire(wait_seconds=0)
        try:
            yield
        finally:
            lock.release()

    def _try_own(self, connection: Connection) -> bool:
        _, _, schema, _ = connection.exec_driver_sql(_WHO).one()
        return _try_lock(connection, lock_key("owner", schema or self._store._schema or ""))

    def upgrade_sql(self, *, after: str | None = None) -> str:
        """Return the SQL of `upgrade`; see `migrate.upgrade_sql`. The database is not asked."""
        sql = migrate.upgrade_sql(self.dialect_name, after=after)
        schema = self._store._schema
        if schema is None:
            return sql
        dialect: Dialect = postgresql.dialect()  # type: ignore[no-untyped-call]
        create = str(CreateSchema(schema, if_not_exists=True).compile(dialect=dialect)).strip()
        return f"{create};\n\n{_set_schema(dialect, schema)};\n\n{sql}"

    async def new_epoch(self) -> tuple[str, str]:
        """Begin another life of the log: return its old epoch and its new one.

        Raises:
            LogLocked: A server owns the log.
            SchemaMismatch: The schema is behind, ahead or missing.
            StartError: There is no log in it yet, or the database cannot be used.
        """
        await self.check()

        def work(connection: Connection) -> tuple[str, str]:
            found = transactions.epoch_and_last_id(connection)
            if found is None:
                raise StartError(
                    f"the log {self.name} has no epoch yet. Nothing is to be done: its first start gives it one"
                )
            epoch = secrets.token_hex(8)
            connection.execute(update(log).values(epoch=epoch))
            return found[0], epoch

        async with self.owned():
            return await self.transact(work)
