"""The migrations: found, complete, and the same tables as the code's."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import create_engine, inspect

from dialogue.errors import StartError
from dialogue.storage import migrate
from dialogue.storage.sql import SQLStore
from dialogue.storage.tables import VERSION_TABLE, metadata


async def test_upgrading_from_nothing_gives_the_tables(tmp_path: Path) -> None:
    """No difference between what the migrations make and what the code declares."""
    store = SQLStore(f"sqlite:///{tmp_path / 'chat.db'}")
    await store.open()
    await store.aclose()
    engine = create_engine(f"sqlite:///{tmp_path / 'chat.db'}")
    with engine.connect() as connection:
        context = MigrationContext.configure(
            connection, opts={"version_table": VERSION_TABLE, "compare_type": True}
        )
        assert compare_metadata(context, metadata) == []
        assert migrate.current(connection) == migrate.HEAD
        tables = set(inspect(connection).get_table_names())
    engine.dispose()
    assert tables == {*metadata.tables, VERSION_TABLE}


def test_constraints_have_the_same_names(tmp_path: Path) -> None:
    """A later migration can name what it changes, whichever way the tables were made."""
    made = {}
    for way in ("migrated", "created"):
        engine = create_engine(f"sqlite:///{tmp_path / way}")
        with engine.connect() as connection:
            if way == "created":
                metadata.create_all(connection)
            else:
                connection.begin()
                migrate.upgrade(connection)
            found = inspect(connection)
            made[way] = {
                name: (
                    sorted(str(item["name"]) for item in found.get_unique_constraints(name)),
                    sorted(str(item["name"]) for item in found.get_indexes(name)),
                    sorted(str(item["name"]) for item in found.get_check_constraints(name)),
                    found.get_pk_constraint(name)["name"],
                )
                for name in metadata.tables
            }
        engine.dispose()
    assert made["migrated"] == made["created"]


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
