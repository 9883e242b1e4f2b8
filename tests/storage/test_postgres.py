"""`SQLStore` on Postgres: the contract, and what is Postgres' own."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy.ext.asyncio import create_async_engine

from dialogue.storage.base import Store
from dialogue.storage.sql import SQLStore

from ..postgres import Server, driver_url, in_background, server
from .contract import StoreContract, decoded, draft, recorded, seqs
from .test_sql import OwnEngineStore


class PostgresContract(StoreContract):
    """The contract with a database per folder."""

    @pytest.fixture(autouse=True)
    def _databases(self) -> Iterator[None]:
        self.urls: dict[Path, str] = {}
        yield
        for url in self.urls.values():
            server().drop(url)

    def url(self, folder: Path) -> str:
        """Return the database of *folder*."""
        if folder not in self.urls:
            self.urls[folder] = server().database()
        return self.urls[folder]


class TestPostgresStore(PostgresContract):
    """The contract over a database given by URL."""

    def make(self, folder: Path, clock: Callable[[], int] | None = None) -> Store:
        return SQLStore(self.url(folder), **({} if clock is None else {"clock": clock}))


class TestSharedPostgresEngine(PostgresContract):
    """The contract over an application's own engine."""

    def make(self, folder: Path, clock: Callable[[], int] | None = None) -> Store:
        engine = create_async_engine(self.url(folder).replace("postgresql", "postgresql+asyncpg"))
        return OwnEngineStore(engine, **({} if clock is None else {"clock": clock}))


class TestPostgresSchema(PostgresContract):
    """The contract in a schema of its own."""

    def make(self, folder: Path, clock: Callable[[], int] | None = None) -> Store:
        options: dict[str, Any] = {} if clock is None else {"clock": clock}
        return SQLStore(self.url(folder), schema="Chat's own", auto_migrate=True, **options)
