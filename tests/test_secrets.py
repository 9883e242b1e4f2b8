"""What must not be told: passwords of databases to anybody, and what clients send to any log or to each other."""

from __future__ import annotations

import asyncio
import logging
import sqlite3
import traceback
from collections.abc import Callable
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel
from sqlalchemy import make_url
from sqlalchemy.ext.asyncio import create_async_engine
from typer.testing import CliRunner

from dialogue import (
    ConfigError,
    Dialogue,
    Event,
    History,
    JoinDenied,
    RoomConfig,
    SQLArchive,
    SQLStore,
    StartError,
    define_event,
)
from dialogue.cli import cli
from dialogue.logs import JSONFormatter

from .postgres import Cluster, Server, driver_url, free_port, own_cluster, postgres, postgres_url  # noqa: F401
from .postgres import cluster as cluster
from .processes import finished, get
from .server.harness import Refused, Wire, serve, wire

PASSWORD = "hunter2"
DATA = "what-a-client-has-written"


class Text(BaseModel):
    """A payload with a schema."""

    number: int


strict = define_event("strict", schema=Text, history=History(limit=1))
free = define_event("free", history=History(limit=1))
server_only = define_event("server_only", publish="server")


def told(error: BaseException) -> str:
    """Return an error as a log with its traceback would have it, each cause included."""
    return str(error) + "".join(traceback.format_exception(error))


def lines_above_debug(caplog: pytest.LogCaptureFixture) -> str:
    """Return what was logged above debug level, as text and as JSON."""
    records = [record for record in caplog.records if record.levelno > logging.DEBUG]
    formatters = (logging.Formatter("%(name)s %(message)s"), JSONFormatter())
    return "\n".join(formatter.format(record) for record in records for formatter in formatters)


# -- passwords -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "url",
    [
        f"mysql://ann:{PASSWORD}@localhost/x",
        f"mysql://localhost/x?user=ann&password={PASSWORD}",
        f"postgresql+psycopg://localhost/x?password={PASSWORD}",
        f"postgresql://ann:{PASSWORD}@localhost/x?sslkeypassword={PASSWORD}",
        f"postgresql://ann:{PASSWORD}",
        f"postgresql://ann:{PASSWORD}/x",
        f"postgresql://ann:p@{PASSWORD}@localhost/x",
        f"postgresql://a/nn:{PASSWORD}@localhost/x",
        f"postgresql:ann:{PASSWORD}@localhost",
        f"sqlite:///x.db?mode=memory&password={PASSWORD}",
        f"sqlite:///x.db?uri=true&key={PASSWORD}",
        f"sqlite://?password={PASSWORD}",
    ],
)
def test_a_url_that_cannot_be_used_is_not_quoted_with_its_password(url: str) -> None:
    """Wherever in the URL it is, and also where it cannot be told from the rest; nor in what caused the error."""
    for make in (SQLStore, SQLArchive, lambda url: Dialogue(rooms={}, store=url)):
        with pytest.raises(ConfigError) as error:
            make(url)
        assert PASSWORD not in str(error.value)
        chained = error.value.__cause__
        assert chained is None or PASSWORD not in str(chained)


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        (f"postgresql://ann:{PASSWORD}@db/x", "postgresql+asyncpg://ann:***@db/x"),
        (f"postgresql://db/x?user=ann&password={PASSWORD}", "postgresql+asyncpg://db/x?user=ann"),
        (f"postgresql:///x?host=db&password={PASSWORD}", "postgresql+asyncpg:///x?host=db"),
        (f"sqlite:////tmp/x.db?password={PASSWORD}", "/tmp/x.db"),
    ],
)
def test_a_name_is_shown_without_its_password(url: str, shown: str) -> None:
    """Store, archive, and an engine of the application's."""
    assert SQLStore(url).name == shown
    assert SQLArchive(url).name == f"'messages' in {shown}"
    if "?" not in url:
        assert SQLStore(create_async_engine(url.replace("postgresql", "postgresql+asyncpg"))).name == shown
    for part in (SQLStore(url), SQLArchive(url), Dialogue(rooms={}, store=url)):
        assert PASSWORD not in repr(part)


@pytest.mark.parametrize(
    "url", ["postgresql://ann:{}@127.0.0.1:{}/x", "postgresql://127.0.0.1:{1}/x?password={0}"]
)
def test_commands_do_not_show_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    """`check` shows the store without it; `run`, `db` and `export` fail without it."""
    found = url.format(PASSWORD, free_port())
    (tmp_path / "config.py").write_text(
        f"from dialogue import Dialogue, SQLArchive\ndialogue = Dialogue({{}}, store={found!r},"
        f" archive=SQLArchive({found!r}))\n"
    )
    for command, said in [
        (("check", "--deploy", "config:dialogue"), "SQLStore postgresql+asyncpg://"),
        (("run", "config:dialogue", "--port", "0", "--log-level", "debug"), "cannot be used"),
        (("run", "config:dialogue", "--port", "0", "--log-format", "json"), "cannot be used"),
    ]:
        status, output = finished(*command, folder=tmp_path)
        assert status == 1
        assert said in output, command
        assert PASSWORD not in output, command
    monkeypatch.chdir(tmp_path)
    for command, said in [
        (("db", "upgrade", "--store", found), "cannot be used"),
        (("export", found, "x.jsonl"), "cannot be used"),
    ]:
        result = CliRunner().invoke(cli, command)
        assert result.exit_code == 1
        assert said in " ".join(result.output.split()), command
        assert PASSWORD not in result.output, command


@pytest.mark.parametrize(
    "url", [f"postgresql://ann:{PASSWORD}@db/x", f"postgresql://db/x?password={PASSWORD}"]
)
def test_a_url_where_a_module_belongs_is_not_quoted(url: str) -> None:
    """It is an easy mistake, and the line may end in the log of a build."""
    result = CliRunner().invoke(cli, ["check", url])
    assert result.exit_code == 1
    assert "this is not MODULE:ATTRIBUTE" in result.output
    assert PASSWORD not in result.output


async def test_a_wrong_password_is_not_shown(
    own_cluster: Server,  # noqa: F811
    cluster: Cluster,
    caplog: pytest.LogCaptureFixture,
    tmp_path: Path,
) -> None:
    """A server that asks for one and refuses it: the error, its causes and the log name the user alone."""
    caplog.set_level(logging.INFO)
    own_cluster.sql("CREATE ROLE suspicious LOGIN PASSWORD 'another one'")
    rules = cluster._data / "pg_hba.conf"
    before = rules.read_text()
    try:
        rules.write_text(f"host all suspicious 127.0.0.1/32 scram-sha-256\n{before}")
        # Started again, so that no connection is answered by the old rules.
        cluster.stop()
        cluster.start()
        place = make_url(driver_url(own_cluster.url)).set(username="suspicious")
        asked = place.set(query={"password": PASSWORD}).render_as_string(hide_password=False)
        given = place.set(password=PASSWORD).render_as_string(hide_password=False)
        for url in (asked, given):
            for part in (SQLStore(url), Dialogue({}, store=url).store):
                with pytest.raises(StartError, match="password authentication failed") as error:
                    await part.open()
                assert PASSWORD not in told(error.value)
            with pytest.raises(StartError) as error:
                await SQLArchive(url).open(epoch="x")
            assert PASSWORD not in told(error.value)
    finally:
        rules.write_text(before)
        cluster.stop()
        cluster.start()
        own_cluster.sql("DROP ROLE suspicious")
    assert PASSWORD not in lines_above_debug(caplog)


async def test_health_and_metrics_name_no_database(tmp_path: Path) -> None:
    """What operators see does not tell where the log is."""
    async with serve(chat(f"sqlite:///{tmp_path}/log.db")) as address:
        for path in ("health", "metrics"):
            _, body = await asyncio.to_thread(get, f"http://{address}/{path}")
            assert str(tmp_path) not in body
            assert "sqlite" not in body


# -- what clients send ---------------------------------------------------------------------------------------------


def chat(store: Any = None) -> Dialogue:
    """Return a server whose hooks refuse, fail and break off."""
    dialogue = Dialogue(
        rooms={
            "general": RoomConfig(events=[strict, free, server_only]),
            "any": RoomConfig(events="*"),
            "closed:{who}": RoomConfig(events=[free]),
        },
        store=store,
    )

    @dialogue.before_join("closed:{who}")
    def refuse() -> None:
        raise JoinDenied("no")

    @dialogue.before_each(free)
    def fail(event: Event[Any]) -> None:
        if event.data == {"fail": DATA}:
            raise RuntimeError("the hook's own words")

    return dialogue


def _has_more(client: Wire, count: int) -> bool:
    return len(client.messages) > count


async def test_nothing_of_a_refused_command_is_echoed(caplog: pytest.LogCaptureFixture) -> None:
    """Neither to the client nor above debug level: data, keys, cursors, refs and names that are not valid."""
    caplog.set_level(logging.DEBUG)
    bad = "\x00" + DATA
    raw = [
        f'{{"type":"trigger","{DATA}',
        f'"{DATA}"',
        f'{{"type":"{DATA}"}}',
        f'{{"type":"join","ref":1,"room":["{DATA}"]}}',
        f'{{"type":"connect","ref":2,"auth":"{DATA}"}}',
    ]
    commands: list[dict[str, Any]] = [
        {"type": "trigger", "room": "general", "event": "strict", "data": {"number": DATA}},
        {"type": "trigger", "room": "general", "event": "strict", "data": {DATA: 1}},
        {"type": "trigger", "room": "general", "event": "strict", "data": DATA},
        {"type": "trigger", "room": "general", "event": "free", "data": {"fail": DATA}},
        {"type": "trigger", "room": "general", "event": "free", "data": DATA * 10_000},
        {"type": "trigger", "room": "general", "event": "free", "data": DATA, "meta": DATA},
        {"type": "trigger", "room": "general", "event": "free", "data": 1, "key": bad},
        {"type": "trigger", "room": "general", "event": "free", "data": 1, "key": DATA * 50},
        {"type": "trigger", "room": "general", "event": "server_only", "data": DATA},
        {"type": "trigger", "room": "general", "event": bad, "data": DATA},
        {"type": "trigger", "room": "any", "event": "$" + DATA, "data": DATA},
        {"type": "trigger", "room": bad, "event": "free", "data": DATA},
        {"type": "trigger", "room": "closed:me", "event": "free", "data": DATA},
        {"type": "join", "room": bad},
        {"type": "join", "room": "closed:me"},
        {"type": "join", "room": "general", "since": {"epoch": DATA, "seq": DATA}},
        {"type": "history", "room": "general", "event": "free", "cursor": DATA},
        {"type": "history", "room": "general", "event": bad},
        {"type": "edit", "room": "general", "seq": 77, "data": DATA},
    ]
    async with serve(chat()) as address, wire(address) as client:
        for room in ("general", "any"):
            await client.ask("join", room=room)
        for frame in raw:
            count = len(client.messages)
            await client.send_raw(frame)
            await client.until(partial(_has_more, client, count))
        for command in commands:
            with pytest.raises(Refused):
                await client.ask(**command)
        assert DATA not in str(client.messages)
    assert "the hook's own words" in lines_above_debug(caplog)
    assert DATA not in lines_above_debug(caplog)


Break = Callable[[str], None]


@pytest.mark.parametrize("is_engine", [False, True], ids=["url", "engine"])
@pytest.mark.parametrize("kind", ["sqlite", "postgres"])
async def test_a_database_that_fails_quotes_no_data(
    kind: str,
    is_engine: bool,
    tmp_path: Path,
    request: pytest.FixtureRequest,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Appends that are refused, fail, and cannot be read back: the log has why, and nothing that was written."""
    caplog.set_level(logging.DEBUG, "dialogue")
    execute: Break
    if kind == "sqlite":
        url = f"sqlite:///{tmp_path / 'log.db'}"

        def execute(statement: str) -> None:
            with closing(sqlite3.connect(tmp_path / "log.db", timeout=30)) as connection:
                connection.execute(statement)

        refuse = "CREATE TRIGGER t BEFORE INSERT ON dialogue_events BEGIN SELECT RAISE(ABORT, 'refused'); END"
        allow = "DROP TRIGGER t"
        engine_url = url.replace("sqlite", "sqlite+aiosqlite", 1)
    else:
        server: Server = request.getfixturevalue("postgres")
        url = server.database()
        request.addfinalizer(lambda: server.drop(url))

        def execute(statement: str) -> None:
            server.sql(statement, database=make_url(url).database)

        # Postgres quotes the whole row.
        refuse = "ALTER TABLE dialogue_events ADD CONSTRAINT t CHECK (false) NOT VALID"
        allow = "ALTER TABLE dialogue_events DROP CONSTRAINT t"
        engine_url = url.replace("postgresql", "postgresql+asyncpg", 1)
    engine = create_async_engine(engine_url)
    async with serve(chat(SQLStore(engine if is_engine else url))) as address, wire(address) as client:
        await client.ask("join", room="general")
        await client.trigger("general", "free", DATA)
        # In a thread: a write that is under way here needs the loop to come to its end.
        await asyncio.to_thread(execute, refuse)
        with pytest.raises(Refused, match="INTERNAL"):
            await client.trigger("general", "free", DATA)
        await asyncio.to_thread(execute, allow)
        assert "the database refuses an event of room 'general'" in lines_above_debug(caplog)
        execute("ALTER TABLE dialogue_events RENAME TO elsewhere")
        with pytest.raises(Refused, match="STORE_UNAVAILABLE"):
            await client.trigger("general", "free", DATA, key=DATA)
        execute("ALTER TABLE elsewhere RENAME TO dialogue_events")
        await client.trigger("general", "free", 1)
        refusals = [message for message in client.messages if message["type"] == "error"]
        assert DATA not in str(refusals)
    await engine.dispose()
    logged = lines_above_debug(caplog)
    assert "the store did not take 1 events" in logged
    assert "dialogue_events" in logged, "operators are told what the database says"
    assert DATA not in logged
