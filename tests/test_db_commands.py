"""``dialogue db``: what it says and changes, on both databases."""

from __future__ import annotations

import asyncio
import re
import sqlite3
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from sqlalchemy import make_url
from typer.testing import CliRunner

from dialogue.cli import cli
from dialogue.storage import migrate
from dialogue.storage.administration import Database
from dialogue.storage.sql import SQLStore
from dialogue.testing.store_contract import draft

from .storage.databases import empty
from .storage.databases import empty_url as empty_url

NO_COLUMNS = {"COLUMNS": "400", "TERM": "dumb"}


@pytest.fixture(autouse=True)
def _no_store_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tests say themselves which database they mean."""
    monkeypatch.delenv("DIALOGUE_STORE", raising=False)


def dialogue(*arguments: str, answer: str | None = None) -> tuple[int, str, str]:
    """Run the command; return its status, its output and its errors."""
    result = CliRunner().invoke(cli, list(arguments), input=answer, env=NO_COLUMNS)
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, result.stdout, result.stderr


def db(command: str, url: str, *more: str) -> tuple[int, str, str]:
    """Run a command of ``dialogue db`` on *url*."""
    return dialogue("db", command, "--store", url, *more)


def one_error(result: tuple[int, str, str]) -> str:
    """Return the line of a result that must be an error of one line."""
    status, output, errors = result
    assert (status, output) == (1, "")
    (line,) = errors.splitlines()
    assert line.startswith("Error: ")
    return line


async def _served(url: str, events: int) -> str:
    store = SQLStore(url)
    await store.open()
    try:
        if events:
            await store.append([draft() for _ in range(events)])
        return store.epoch
    finally:
        await store.aclose()


def served(url: str, *, events: int = 0) -> str:
    """Open the log as a server does, and append; return its epoch."""
    return asyncio.run(_served(url, events))


def set_revision(url: str, revision: str) -> None:
    """Write another revision into the database."""

    async def work() -> None:
        async with Database(SQLStore(url)) as database:
            await database.transact(
                lambda connection: connection.exec_driver_sql(
                    f"UPDATE dialogue_version SET version_num = '{revision}'"
                )
            )

    asyncio.run(work())


def test_a_new_database_is_upgraded_once(empty_url: str) -> None:
    """Missing, then current; a second upgrade finds nothing to do; looking makes no SQLite file."""
    assert db("current", empty_url) == (0, "none\n", "")
    assert migrate.UPGRADE_REMEDY in one_error(db("check", empty_url))
    if empty_url.startswith("sqlite"):
        assert not Path(make_url(empty_url).database or "").exists()
    status, output, errors = db("upgrade", empty_url)
    assert (status, errors) == (0, "")
    assert f"is at {migrate.HEAD} now; it was at none" in output
    assert db("current", empty_url) == (0, f"{migrate.HEAD}\n", "")
    assert db("check", empty_url)[0] == 0
    status, output, errors = db("upgrade", empty_url)
    assert (status, errors) == (0, "")
    assert f"is at {migrate.HEAD}, which is current" in output
    assert served(empty_url, events=3)


def test_a_later_versions_database_is_left_alone(empty_url: str) -> None:
    """Every command that would use it, and a start, say what to do; `current` still tells the revision."""
    assert db("upgrade", empty_url)[0] == 0
    set_revision(empty_url, "9999")
    assert db("current", empty_url) == (0, "9999\n", "")
    for command in ("check", "upgrade", "new-epoch"):
        assert "has schema 9999" in one_error(db(command, empty_url))
        assert "later version of Dialogue: install that version" in one_error(db(command, empty_url))
    with pytest.raises(Exception, match="install that version"):
        served(empty_url)


def test_a_start_on_an_older_database_names_the_command(tmp_path: Path) -> None:
    """Where a start does not migrate by itself, its error has the command that does."""

    async def start() -> None:
        await SQLStore(f"sqlite:///{tmp_path / 'log.db'}", auto_migrate=False).open()

    with pytest.raises(Exception, match=re.escape(migrate.UPGRADE_REMEDY)):
        asyncio.run(start())
    # The command that it names, with the URL put in.
    command = re.search(r"dialogue (db upgrade --store) URL", migrate.UPGRADE_REMEDY)
    assert command is not None
    assert dialogue(*command[1].split(), f"sqlite:///{tmp_path / 'log.db'}")[0] == 0
    with closing(sqlite3.connect(tmp_path / "log.db")) as connection:
        assert connection.execute("SELECT version_num FROM dialogue_version").fetchone() == (migrate.HEAD,)


@pytest.mark.parametrize("url", ["sqlite:///nowhere/log.db", "postgresql://ann:secret@127.0.0.1:1/log"])
def test_upgrade_sql_asks_no_database(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The SQL of every revision is printed as one transaction; from the newest one nothing is left to do."""
    monkeypatch.chdir(tmp_path)
    status, output, errors = db("upgrade", url, "--sql")
    assert (status, errors) == (0, "")
    assert output.startswith("BEGIN;")
    assert output.rstrip().endswith("COMMIT;")
    assert "CREATE TABLE dialogue_events" in output
    assert ("JSONB" in output) == url.startswith("postgresql")
    assert "secret" not in output
    status, output, errors = db("upgrade", url, "--sql", "--from", migrate.HEAD)
    assert (status, output.split(), errors) == (0, ["BEGIN;", "COMMIT;"], "")
    assert list(tmp_path.iterdir()) == []


def test_new_epoch(empty_url: str) -> None:
    """The log goes on under another epoch with everything that it holds."""
    assert db("upgrade", empty_url)[0] == 0
    assert "first start gives it one" in one_error(db("new-epoch", empty_url, "--yes"))
    before = served(empty_url, events=2)
    status, output, errors = db("new-epoch", empty_url, "--yes")
    assert (status, errors) == (0, "")
    after = served(empty_url)
    assert after != before
    assert f"has the epoch {after} now; it was {before}" in output

    async def last_id() -> int:
        store = SQLStore(empty_url)
        await store.open()
        try:
            return (await store.append([draft()]))[0].id
        finally:
            await store.aclose()

    assert asyncio.run(last_id()) == 3


def test_new_epoch_asks_first(tmp_path: Path) -> None:
    """Without a yes, or with nobody to say it, nothing changes."""
    url = f"sqlite:///{tmp_path / 'log.db'}"
    before = served(url)
    for answer in ("n\n", ""):
        status, output, errors = dialogue("db", "new-epoch", "--store", url, answer=answer)
        assert status == 1
        assert "Aborted" in output + errors
        assert served(url) == before
    assert dialogue("db", "new-epoch", "--store", url, answer="y\n")[0] == 0
    assert served(url) != before


def test_new_epoch_is_refused_while_a_server_owns_the_log(empty_url: str) -> None:
    """Its clients and its memory have the old epoch; the other commands only look, and take no lock."""
    assert db("upgrade", empty_url)[0] == 0
    before = served(empty_url)

    async def serve() -> None:
        store = SQLStore(empty_url)
        await store.open()
        try:
            result = await asyncio.to_thread(db, "new-epoch", empty_url, "--yes")
            assert "another process is serving the log" in one_error(result)
            for command in ("check", "upgrade", "current"):
                assert (await asyncio.to_thread(db, command, empty_url))[0] == 0
        finally:
            await store.aclose()

    asyncio.run(serve())
    assert served(empty_url) == before
    assert db("new-epoch", empty_url, "--yes")[0] == 0
    assert served(empty_url) != before


def test_a_log_in_a_schema_of_its_own(module: Path) -> None:
    """Every command of a Dialogue finds the log where its store keeps it, and the printed SQL makes it there."""
    with empty("postgres", module.parent) as url:
        module.write_text(f"""
from dialogue import Dialogue, SQLStore
dialogue = Dialogue(rooms={{}}, store=SQLStore({url!r}, schema="Chat room"))
""")
        status, sql, _ = dialogue("db", "upgrade", "config:dialogue", "--sql")
        assert status == 0
        assert sql.startswith('CREATE SCHEMA IF NOT EXISTS "Chat room";\n\nSET search_path TO "Chat room";')
        assert dialogue("db", "upgrade", "config:dialogue")[0] == 0
        assert dialogue("db", "check", "config:dialogue")[0] == 0
        assert db("current", url) == (0, "none\n", "")
        before = asyncio.run(_append_in_schema(url))
        assert dialogue("db", "new-epoch", "config:dialogue", "--yes")[0] == 0
        assert dialogue("export", "config:dialogue", str(module.parent / "log.jsonl"))[0] == 0
        assert before not in (module.parent / "log.jsonl").read_text()
    with empty("postgres", module.parent) as url:
        module.write_text(module.read_text().replace(module.read_text().split("'")[1], url))
        sys.modules.pop("config", None)
        assert dialogue("db", "upgrade", "config:dialogue")[0] == 0
        assert dialogue("import", str(module.parent / "log.jsonl"), "config:dialogue")[0] == 0
        assert db("current", url) == (0, "none\n", "")


async def _append_in_schema(url: str) -> str:
    store = SQLStore(url, schema="Chat room")
    await store.open()
    try:
        await store.append([draft() for _ in range(5)])
        return store.epoch
    finally:
        await store.aclose()


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder from which ``config`` can be named as a module; it is forgotten afterwards."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    yield tmp_path / "config.py"
    sys.modules.pop("config", None)


def test_the_database_of_a_dialogue(module: Path, tmp_path: Path) -> None:
    """A `Dialogue`'s own store, by URL or over an engine; one without a database is told so."""
    module.write_text("""
from sqlalchemy.ext.asyncio import create_async_engine
from dialogue import Dialogue, SQLStore
by_url = Dialogue(rooms={}, store="sqlite:///one.db")
by_engine = Dialogue(rooms={}, store=SQLStore(create_async_engine("sqlite+aiosqlite:///two.db")))
in_memory = Dialogue(rooms={})
""")
    for name, file in (("by_url", "one.db"), ("by_engine", "two.db")):
        assert dialogue("db", "upgrade", f"config:{name}")[0] == 0
        assert dialogue("db", "current", f"config:{name}") == (0, f"{migrate.HEAD}\n", "")
        assert (tmp_path / file).exists()
    line = one_error(dialogue("db", "check", "config:in_memory"))
    assert "its store is a MemoryStore, which has no database" in line


def test_where_the_database_is_taken_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The command line goes before the environment; none and two at once are a wrong command line."""
    urls = [f"sqlite:///{tmp_path / name}.db" for name in ("one", "two")]
    assert dialogue("db", "check")[0] == 2
    assert dialogue("db", "check", "config:dialogue", "--store", urls[0])[0] == 2
    assert dialogue("db", "upgrade", "--store", urls[0], "--from", migrate.HEAD)[0] == 2
    assert dialogue("db", "upgrade", "--store", urls[0], "--sql", "--from", "9999")[0] == 2
    monkeypatch.setenv("DIALOGUE_STORE", urls[0])
    assert dialogue("db", "upgrade")[0] == 0
    assert dialogue("db", "current", "--store", urls[1]) == (0, "none\n", "")
    assert dialogue("db", "current") == (0, f"{migrate.HEAD}\n", "")


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("postgresql://ann:secret@127.0.0.1:1/log", "Check that the server runs"),
        ("mysql://ann:secret@localhost/log", "not a database and driver that Dialogue knows"),
        ("://ann:secret@", "the URL cannot be read"),
        ("sqlite:///{folder}/nowhere/log.db", "there is no folder"),
        ("sqlite:///{folder}/text.db", "is not a SQLite database"),
    ],
)
def test_a_database_that_cannot_be_used_is_one_line(tmp_path: Path, url: str, said: str) -> None:
    """The line names the remedy and never the password."""
    (tmp_path / "text.db").write_text("nothing that SQLite knows\n" * 100)
    line = one_error(db("upgrade", url.format(folder=tmp_path)))
    assert said in line
    assert "secret" not in line


def test_a_failed_upgrade_leaves_nothing(empty_url: str) -> None:
    """The schema is made whole or not at all: a table in the way leaves the database as it was."""

    async def execute(statement: str) -> None:
        async with Database(SQLStore(empty_url)) as database:
            await database.transact(lambda connection: connection.exec_driver_sql(statement))

    asyncio.run(execute("CREATE TABLE dialogue_markers (x INTEGER)"))
    assert "already exists" in one_error(db("upgrade", empty_url))
    assert db("current", empty_url) == (0, "none\n", "")
    asyncio.run(execute("DROP TABLE dialogue_markers"))
    assert db("upgrade", empty_url)[0] == 0
    assert db("check", empty_url)[0] == 0
