"""`SQLStore` on Postgres: the contract, and what is Postgres' own."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from sqlalchemy.ext.asyncio import create_async_engine

from dialogue.storage.base import Store
from dialogue.storage.memory import milliseconds
from dialogue.storage.sql import SQLStore
from dialogue.testing.store_contract import StoreContract

from ..postgres import server
from .test_sql import OwnEngineStore


class PostgresContract(StoreContract):
    """The contract with a database per folder."""

    @pytest.fixture(autouse=True)
    def _databases(self) -> Iterator[None]:
        self.urls: dict[Path, str] = {}
        yield
        for url in self.urls.values():
            server().give_back(url)

    def url(self, folder: Path) -> str:
        """Return the database of *folder*."""
        for gone in [used for used in self.urls if not used.is_dir()]:
            server().give_back(self.urls.pop(gone))
        if folder not in self.urls:
            self.urls[folder] = server().database()
        return self.urls[folder]


class TestPostgresStore(PostgresContract):
    """The contract over a database given by URL."""

    def make(self, folder: Path, clock: Callable[[], int] | None = None) -> Store:
        return SQLStore(self.url(folder), clock=clock or milliseconds)


class TestSharedPostgresEngine(PostgresContract):
    """The contract over an application's own engine."""

    def make(self, folder: Path, clock: Callable[[], int] | None = None) -> Store:
        engine = create_async_engine(self.url(folder).replace("postgresql", "postgresql+asyncpg"))
        return OwnEngineStore(engine, clock=clock or milliseconds)


class TestPostgresSchema(PostgresContract):
    """The contract in a schema of its own."""

    def make(self, folder: Path, clock: Callable[[], int] | None = None) -> Store:
        # One schema per folder: a database comes back with its own tables emptied, and no others.
        schema = f"Chat's {folder.parent.name} {folder.name}"
        return SQLStore(self.url(folder), schema=schema, auto_migrate=True, clock=clock or milliseconds)
