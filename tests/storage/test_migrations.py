"""The migrations: found, complete, and the same tables as the code's."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import JSON, Boolean, Column, Connection, Integer, MetaData, inspect, select

from dialogue.errors import StartError
from dialogue.storage import migrate
from dialogue.storage.administration import Database
from dialogue.storage.sql import SQLStore
from dialogue.storage.tables import VERSION_TABLE, metadata

from .databases import empty_url as empty_url

Schema = dict[str, Any]


def schema_of(connection: Connection) -> Schema:
    """Return everything of the tables that a later migration or a query could depend on, by table."""
    found = inspect(connection)
    return {
        name: {
            "columns": [
                (column["name"], str(column["type"]), column["nullable"], column.get("default"))
                for column in found.get_columns(name)
            ],
            "unique": sorted(
                (str(item["name"]), item["column_names"]) for item in found.get_unique_constraints(name)
            ),
            "indexes": sorted((str(item["name"]), item["column_names"]) for item in found.get_indexes(name)),
            "checks": sorted(str(item["name"]) for item in found.get_check_constraints(name)),
            "key": found.get_pk_constraint(name),
        }
        for name in sorted(found.get_table_names())
    }


def differences(connection: Connection) -> list[Any]:
    """Return what alembic would change to make the database's tables those of the code."""
    context = MigrationContext.configure(
        connection,
        opts={"version_table": VERSION_TABLE, "compare_type": True, "compare_server_default": True},
    )
    return list(compare_metadata(context, metadata))


def upgrade_to(connection: Connection, revision: str) -> None:
    """Upgrade to any revision, as `migrate.upgrade` does to the newest."""
    config = migrate.alembic_config()
    config.attributes["connection"] = connection
    with migrate.upgrade_lock:
        command.upgrade(config, revision)


async def execute_script(database: Database, script: str) -> None:
    """Run the printed SQL as the database's own shell would: as one text."""

    def work(connection: Connection) -> None:
        proxied: Any = connection.connection
        if database.dialect_name == "sqlite":
            proxied.cursor().executescript(script)
        else:
            proxied.run_async(lambda driver: driver.execute(script))

    await database.run(work)


async def test_upgrading_from_nothing_gives_the_tables(empty_url: str) -> None:
    """No difference between what the migrations make and what the code declares."""
    async with Database(SQLStore(empty_url)) as database:
        assert await database.upgrade() is None
        assert await database.run(differences) == []
        assert await database.revision() == migrate.HEAD
        tables = set(await database.run(schema_of))
    assert tables == {*metadata.tables, VERSION_TABLE}


async def test_the_tables_are_the_same_whichever_way_they_were_made(empty_url: str) -> None:
    """A later migration can name what it changes: constraints have the names that the code gives them."""
    async with Database(SQLStore(empty_url)) as database:
        await database.transact(metadata.create_all)
        created = await database.run(schema_of)
        await database.transact(metadata.drop_all)
        await database.upgrade()
        migrated = await database.run(schema_of)
        del migrated[VERSION_TABLE]
        # SQLAlchemy writes the same default in two ways.
        assert re.sub(r"'false'|'0'", "false", str(migrated)) == re.sub(r"'false'|'0'", "false", str(created))


@pytest.mark.parametrize("revision", migrate.REVISIONS)
async def test_upgrading_keeps_what_is_there(empty_url: str, revision: str) -> None:
    """From each revision to the newest: the tables are the code's, and every row has the values that it had."""

    def fill(connection: Connection) -> dict[str, list[Any]]:
        upgrade_to(connection, revision)
        then = MetaData()
        then.reflect(connection)
        then.remove(then.tables[VERSION_TABLE])
        for table in then.tables.values():
            for number in (1,) if table.name == "dialogue_log" else (1, 2, 3):
                row = {column.name: sample(column, number) for column in table.columns}
                connection.execute(table.insert(), row)
        return read(connection, then)

    def read(connection: Connection, tables: MetaData) -> dict[str, list[Any]]:
        return {
            table.name: sorted(map(str, connection.execute(select(*table.columns))))
            for table in tables.tables.values()
        }

    def read_again(connection: Connection) -> dict[str, list[Any]]:
        now = MetaData()
        now.reflect(connection)
        return {
            name: sorted(
                map(
                    str, connection.execute(select(*(now.tables[name].c[column] for column in columns[name])))
                )
            )
            for name in before
        }

    async with Database(SQLStore(empty_url)) as database:
        before = await database.transact(fill)
        assert sum(map(len, before.values())) > 4
        schema = await database.run(schema_of)
        columns = {name: [column[0] for column in schema[name]["columns"]] for name in before}
        assert await database.upgrade() == revision
        assert await database.run(differences) == []
        assert await database.run(read_again) == before
    store = SQLStore(empty_url)
    await store.open()
    await store.aclose()


def sample(column: Column[Any], number: int) -> Any:
    """Return a value for *column*, another one for each *number*."""
    if isinstance(column.type, JSON):
        return {"number": number}
    if isinstance(column.type, Boolean):
        return number == 2
    if isinstance(column.type, Integer):
        return number
    # Text that is JSON as well, for what SQLite keeps as text.
    return f"{number}"


@pytest.mark.parametrize("revision", [None, *migrate.REVISIONS])
async def test_the_printed_sql_gives_the_same_schema(empty_url: str, revision: str | None) -> None:
    """What ``upgrade --sql`` prints, run by someone else, is the upgrade: from nothing and from each revision."""

    def start(connection: Connection) -> None:
        if revision is not None:
            upgrade_to(connection, revision)

    async with Database(SQLStore(empty_url)) as database:
        await database.transact(start)
        await execute_script(database, migrate.upgrade_sql(database.dialect_name, after=revision))
        assert await database.revision() == migrate.HEAD
        assert await database.run(differences) == []
        printed = await database.run(schema_of)
        await database.transact(drop_all)
        await database.upgrade()
        assert await database.run(schema_of) == printed


def drop_all(connection: Connection) -> None:
    """Drop every table."""
    found = MetaData()
    found.reflect(connection)
    found.drop_all(connection)


def test_the_known_revisions_are_the_migrations() -> None:
    """`migrate.REVISIONS` is kept by hand so that a start need not import alembic."""
    script = ScriptDirectory.from_config(migrate.alembic_config())
    assert script.get_heads() == [migrate.HEAD]
    assert tuple(step.revision for step in script.walk_revisions())[::-1] == migrate.REVISIONS


@pytest.mark.parametrize(
    ("found", "state"), [(None, "missing"), (migrate.HEAD, "current"), ("9999", "ahead")]
)
def test_where_a_revision_stands(found: str | None, state: str) -> None:
    """An unknown revision can only be a later version's."""
    assert migrate.check(found) == state


def test_an_older_revision_is_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of several known revisions only the last is current."""
    monkeypatch.setattr(migrate, "REVISIONS", ("0000", migrate.HEAD))
    assert migrate.check("0000") == "behind"


def test_the_migrations_of_the_wheel_come_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beside an installed package the folder "alembic" is the library, not ours."""
    package = tmp_path / "site-packages" / "dialogue"
    (package / "storage").mkdir(parents=True)
    (tmp_path / "site-packages" / "alembic").mkdir()
    (tmp_path / "site-packages" / "alembic" / "__init__.py").touch()
    monkeypatch.setattr(migrate, "__file__", str(package / "storage" / "migrate.py"))
    with pytest.raises(StartError, match="Install Dialogue again"):
        migrate.migrations_path()
    (package / "migrations" / "versions").mkdir(parents=True)
    (package / "migrations" / "env.py").touch()
    assert migrate.migrations_path() == package / "migrations"


def test_a_start_on_a_current_schema_does_not_import_alembic(tmp_path: Path) -> None:
    """Nor does it need the current directory; and the first start, which does, leaves logging alone."""
    code = """
import asyncio, logging, sys
from dialogue.storage.sql import SQLStore

async def main():
    store = SQLStore(sys.argv[1])
    await store.open()
    await store.aclose()

asyncio.run(main())
print("alembic" in sys.modules, len(logging.getLogger().handlers))
"""
    repository = Path(__file__).parents[2]
    outputs = [
        subprocess.run(
            [sys.executable, "-c", code, f"sqlite:///{tmp_path / 'chat.db'}"],
            cwd=tmp_path,
            env={"PYTHONPATH": str(repository)},
            capture_output=True,
            text=True,
            check=True,
        )
        for _ in range(2)
    ]
    assert [output.stdout for output in outputs] == ["True 0\n", "False 0\n"]
    assert [output.stderr for output in outputs] == ["", ""]
