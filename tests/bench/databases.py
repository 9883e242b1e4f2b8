"""Databases for a run: a SQLite file in a temporary folder, a Postgres database of its own."""

from __future__ import annotations

import asyncio
import secrets
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import asyncpg  # type: ignore[import-untyped]
from sqlalchemy import make_url

from dialogue import SQLStore


@contextmanager
def sqlite_file() -> Iterator[str]:
    """Yield the path of a SQLite file that is not there yet; its folder is removed at the end."""
    with tempfile.TemporaryDirectory(prefix="dialogue-bench-") as folder:
        yield str(Path(folder) / "bench.db")


@contextmanager
def postgres_database(server: str) -> Iterator[str]:
    """Make a database on *server* (a URL); yield its URL, and drop it at the end."""
    url = make_url(server)
    name = f"dialogue_bench_{secrets.token_hex(4)}"
    asyncio.run(_execute(server, f"CREATE DATABASE {name}"))
    try:
        made = url.set(drivername="postgresql+asyncpg", database=name)
        yield made.render_as_string(hide_password=False)
    finally:
        asyncio.run(_execute(server, f"DROP DATABASE {name} WITH (FORCE)"))


def stored(url: str, rooms: Iterable[int]) -> list[int]:
    """Return how many events each of *rooms* (``bench:N``) has in the log: no seq is left out, so the newest tells."""

    async def read() -> list[int]:
        store = SQLStore(url)
        await store.open()
        try:
            return [(await store.head(f"bench:{room}")).last_seq for room in rooms]
        finally:
            await store.aclose()

    return asyncio.run(read())


async def _execute(server: str, sql: str) -> None:
    url = make_url(server).set(drivername="postgresql")
    connection = await asyncpg.connect(url.render_as_string(hide_password=False))
    try:
        await connection.execute(sql)
    finally:
        await connection.close()
