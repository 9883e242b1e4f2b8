"""`Writer`: the one connection that writes, and what its transactions promise, whatever the database."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import TypeVar

from sqlalchemy import Connection
from sqlalchemy.exc import SQLAlchemyError, StatementError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from ..errors import OutcomeUnknown, StoreError, StoreUnavailable

T = TypeVar("T")
E = TypeVar("E", bound=BaseException)


async def connect(engine: AsyncEngine) -> AsyncConnection:
    """Return a connection of *engine*.

    Raises:
        SQLAlchemyError, OSError: There is none to be had, whatever the driver or an application's own creator of
            connections raised: SQLAlchemy 2.0 passes on as they are, for one, what a starting Postgres answers.
    """
    try:
        return await engine.connect()
    except (SQLAlchemyError, OSError):
        raise
    except Exception as error:
        raise ConnectionError(str(error)) from error


def without_data(error: E) -> E:
    """Return *error*, told to leave out what was written: an application's own engine may show it in its errors."""
    if isinstance(error, StatementError):
        error.hide_parameters = True
    return error


class Writer(ABC):
    """The one connection that writes, held open; a broken one is replaced at the next call.

    Not to be called while another call is running. Transactions are begun and ended by text on a connection in
    AUTOCOMMIT, because SQLAlchemy's own begin is deferred on SQLite: such a transaction reads first and then may
    be refused the write.
    """

    def __init__(self) -> None:
        self._is_broken = False

    @abstractmethod
    async def run(self, work: Callable[[Connection], T]) -> T:
        """Return ``work(connection)``, outside a transaction; its errors pass through."""

    @abstractmethod
    async def aclose(self) -> None:
        """Close the connection. May be called twice."""

    @abstractmethod
    def cut(self) -> None:
        """Make a call that is running fail soon, without waiting for the database."""

    @abstractmethod
    def _begin(self, connection: Connection) -> None:
        """Begin a transaction that excludes every other one that writes."""

    @abstractmethod
    def _commit(self, connection: Connection) -> bool:
        """Commit; return False when the database answers that it rolled back instead."""

    @abstractmethod
    def _end(self, connection: Connection) -> None:
        """Roll back, if there is a transaction."""

    def _is_lost(self, connection: Connection) -> bool:
        """Return whether the connection is of no more use."""
        return connection.invalidated

    def _is_surely_open(self, connection: Connection) -> bool:
        """Return whether a transaction whose COMMIT failed is known to be open, and so not committed."""
        return False

    async def transact(self, work: Callable[[Connection], T]) -> T:
        """Return ``work(connection)`` once it is committed.

        Raises:
            StoreUnavailable: Nothing was committed.
            OutcomeUnknown: COMMIT was sent and did not answer that it worked.

        Other errors of *work* that are not the database's pass through after the rollback.
        """
        try:
            return await self.run(lambda connection: self._transact(connection, work))
        except (SQLAlchemyError, OSError) as error:
            # Raised while connecting: nothing was begun.
            raise StoreUnavailable() from without_data(error)

    def _transact(self, connection: Connection, work: Callable[[Connection], T]) -> T:
        try:
            self._begin(connection)
        except Exception as error:
            # Whatever a driver raises, nothing was written.
            self._roll_back(connection, error)
            raise StoreUnavailable() from error
        except BaseException:
            self._is_broken = True
            raise
        try:
            result = work(connection)
        except BaseException as error:
            self._roll_back(connection, error)
            if isinstance(error, Exception) and (
                self._is_broken or isinstance(error, SQLAlchemyError | OSError)
            ):
                if isinstance(error, StoreError):
                    raise
                raise StoreUnavailable() from without_data(error)
            raise
        try:
            is_committed = self._commit(connection)
        except BaseException as error:
            is_open = self._is_surely_open(connection)
            self._roll_back(connection, error)
            if isinstance(error, Exception):
                raise (StoreUnavailable() if is_open else OutcomeUnknown()) from error
            raise
        if not is_committed:
            raise StoreUnavailable("the database rolled the transaction back")
        return result

    def _roll_back(self, connection: Connection, error: BaseException) -> None:
        if not isinstance(error, Exception):
            # Cancelled inside the driver: what it was doing is not known, nor whether it takes another statement.
            self._is_broken = True
            return
        try:
            if not self._is_lost(connection):
                self._end(connection)
        except Exception:
            self._is_broken = True
        if self._is_lost(connection):
            self._is_broken = True
