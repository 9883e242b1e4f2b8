"""Empty databases of both kinds, for the tests that make a log's schema themselves."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from functools import cache
from pathlib import Path
from sqlite3 import connect
from typing import Any

import pytest

from dialogue import SQLStore

from ..postgres import server

KINDS = ("sqlite", "postgres")


def in_a_thread(work: Coroutine[Any, Any, None]) -> None:
    """Run *work* to its end in a loop of its own, also where a loop is running."""
    with ThreadPoolExecutor(1) as thread:
        thread.submit(asyncio.run, work).result()


@contextmanager
def empty(kind: str, folder: Path, name: str = "log") -> Iterator[str]:
    """Yield the URL of a database without tables; one on SQLite is a file of *folder* that is not there yet."""
    if kind == "sqlite":
        yield f"sqlite:///{folder / name}.db"
        return
    postgres = server()
    url = postgres.database(has_schema=False)
    try:
        yield url
    finally:
        postgres.drop(url)


@pytest.fixture(params=KINDS)
def empty_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """An empty database of each kind."""
    with empty(request.param, tmp_path) as url:
        yield url


@cache
def _migrated() -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "log.db")

        async def migrate() -> None:
            store = SQLStore(f"sqlite:///{path}")
            await store.open()
            await store.aclose()

        in_a_thread(migrate())
        # Each copy is to be a new log, with an epoch of its own.
        with closing(connect(path)) as connection, connection:
            connection.execute("DELETE FROM dialogue_log")
        return path.read_bytes()


def migrated(folder: Path) -> Path:
    """Return a file of *folder* with Dialogue's tables: copying one is quicker than migrating each."""
    path = folder / "chat.db"
    if not path.exists():
        path.write_bytes(_migrated())
    return path


class PostgresDatabases:
    """What a contract over Postgres is mixed with: a database per folder, given back after each test."""

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
