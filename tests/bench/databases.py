"""Databases for a run, each new: a SQLite file in a temporary folder, a database on a Postgres server.

What talks to databases is imported where it is used: load generators have this module too, and are to start at once.
"""

from __future__ import annotations

import asyncio
import secrets
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path


def durable(postgres: str | None) -> tuple[str, ...]:
    """Return the kinds of database that there are, given the URL of a Postgres server or None."""
    return ("SQLite", "Postgres") if postgres else ("SQLite",)


@contextmanager
def database(kind: str, postgres: str | None = None) -> Iterator[str]:
    """Yield the URL of a new database, as `dialogue.SQLStore` takes it; it is removed at the end.

    Args:
        kind: ``SQLite``, ``Postgres``, or ``memory``, which is none: its URL is empty.
        postgres: The URL of the server that is to have a new database.
    """
    if kind == "memory":
        yield ""
    elif kind == "SQLite":
        with tempfile.TemporaryDirectory(prefix="dialogue-bench-") as folder:
            yield f"sqlite+aiosqlite:///{Path(folder) / 'bench.db'}"
    else:
        assert kind == "Postgres", kind
        assert postgres is not None
        with _postgres_database(postgres) as url:
            yield url


@contextmanager
def _postgres_database(server: str) -> Iterator[str]:
    from sqlalchemy import make_url

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

    from dialogue import SQLStore

    async def read() -> list[int]:
        store = SQLStore(url)
        await store.open()
        try:
            return [(await store.head(f"bench:{room}")).last_seq for room in rooms]
        finally:
            await store.aclose()

    return asyncio.run(read())


async def _execute(server: str, sql: str) -> None:
    import asyncpg  # type: ignore[import-untyped]
    from sqlalchemy import make_url

    url = make_url(server).set(drivername="postgresql")
    connection = await asyncpg.connect(url.render_as_string(hide_password=False))
    try:
        await connection.execute(sql)
    finally:
        await connection.close()
