"""The page on sharing the application's database, with the application's own alembic, on both databases."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from pathlib import Path

import pytest
from sqlalchemy import Connection, inspect, make_url

from dialogue.storage.administration import Database
from dialogue.storage.sql import SQLStore
from dialogue.storage.tables import VERSION_TABLE, metadata

from ..storage.databases import empty
from .pages import DOCS, ROOT, read

DRIVERS = {"sqlite": "sqlite+aiosqlite", "postgres": "postgresql+asyncpg"}

INI = """
[alembic]
script_location = %(here)s/migrations
path_separator = os
sqlalchemy.url = {url}
"""

MAKO = '''"""${message}"""
from alembic import op
import sqlalchemy as sa
revision = ${repr(up_revision)}
down_revision = ${repr(down_revision)}
def upgrade():
    ${upgrades if upgrades else "pass"}
def downgrade():
    ${downgrades if downgrades else "pass"}
'''


def run(folder: Path, *command: str) -> str:
    """Run a command of Python's in *folder* as a reader would; return what it prints."""
    done = subprocess.run(
        [sys.executable, "-m", *command],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(folder)])},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


async def tables(url: str) -> set[str]:
    """Return the names of the tables."""

    def names(connection: Connection) -> set[str]:
        return set(inspect(connection).get_table_names())

    async with Database(SQLStore(url)) as database:
        return await database.run(names)


@pytest.mark.parametrize("kind", ["sqlite", "postgres"])
def test_two_sets_of_migrations_in_one_database(tmp_path: Path, kind: str) -> None:
    """The page's files make an application whose autogenerate sees its own tables and leaves the log's alone."""
    with empty(kind, tmp_path, "shop") as given:
        url = make_url(given).set(drivername=DRIVERS[kind]).render_as_string(hide_password=False)
        for block in read(DOCS / "howto" / "share-your-database.md").blocks:
            if block.language != "python":
                continue
            name, _, code = block.code.partition("\n")
            path = tmp_path / name.removeprefix("# ")
            path.parent.mkdir(exist_ok=True)
            path.write_text(code.replace("sqlite+aiosqlite:///shop.db", url))
        (tmp_path / "alembic.ini").write_text(INI.format(url=url))
        (tmp_path / "migrations" / "script.py.mako").write_text(MAKO)
        (tmp_path / "migrations" / "versions").mkdir()
        versions = tmp_path / "migrations" / "versions"
        # The log first, so that the application's autogenerate finds tables that it does not know.
        run(tmp_path, "dialogue", "db", "upgrade", "shop.chat:dialogue")
        run(tmp_path, "alembic", "revision", "--autogenerate", "--rev-id", "one", "-m", "tables")
        (first,) = versions.glob("one_*.py")
        assert "create_table('customers'" in first.read_text()
        assert "dialogue" not in first.read_text()
        run(tmp_path, "alembic", "upgrade", "head")
        own = {"customers", "orders", "alembic_version"}
        assert asyncio.run(tables(given)) == {*metadata.tables, VERSION_TABLE, *own}
        # An application that changes its own tables still has its changes found, and ours left alone.
        database = tmp_path / "shop" / "database.py"
        database.write_text(
            database.read_text()
            .replace("class Order(Base):", "class Removed(Base):")
            .replace("orders", "purchases")
        )
        run(tmp_path, "alembic", "revision", "--autogenerate", "--rev-id", "two", "-m", "more")
        (second,) = versions.glob("two_*.py")
        assert "drop_table('orders')" in second.read_text()
        assert "dialogue" not in second.read_text()
        run(tmp_path, "alembic", "upgrade", "head")
        assert asyncio.run(tables(given)) >= {*metadata.tables, VERSION_TABLE, "purchases"}
        assert "is current" in run(tmp_path, "dialogue", "db", "check", "shop.chat:dialogue")
        # Without the page's line the log would go: what this test would miss is not nothing.
        env = tmp_path / "migrations" / "env.py"
        env.write_text(env.read_text().replace("        include_object=include_object,\n", ""))
        run(tmp_path, "alembic", "revision", "--autogenerate", "--rev-id", "three", "-m", "lost")
        (third,) = versions.glob("three_*.py")
        assert "drop_table('dialogue_events')" in third.read_text()
