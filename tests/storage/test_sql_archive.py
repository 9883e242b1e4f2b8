"""`SQLArchive`: the developer's own table, on SQLite and on Postgres."""

from __future__ import annotations

import asyncio
import json
import sqlite3
from collections.abc import AsyncIterator, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import event as sqlalchemy_event
from sqlalchemy import make_url, text
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from dialogue import (
    ConfigError,
    Dialogue,
    Event,
    History,
    RoomConfig,
    SQLArchive,
    StartError,
    StoreUnavailable,
    define_event,
)
from dialogue.storage.archive import encode_row
from dialogue.storage.sql import SQLStore

from ..postgres import Server

REFERENCE = """
CREATE TABLE messages (
    id SERIAL PRIMARY KEY,
    room_id VARCHAR(255) NOT NULL,
    event_name VARCHAR(100) NOT NULL,
    event_data JSONB NOT NULL,
    from_user VARCHAR(255) NOT NULL,
    timestamp BIGINT NOT NULL,
    created_at TIMESTAMP DEFAULT CURRENT_TIMESTAMP
);
CREATE INDEX idx_messages_room_event ON messages(room_id, event_name);
CREATE INDEX idx_messages_timestamp ON messages(timestamp DESC);
"""
"""The table that such applications have, as Postgres takes it."""


class Database:
    """A database that a test may do with as it likes.

    Attributes:
        url: What `SQLArchive` is given.
        backend: ``sqlite`` or ``postgresql``.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        self.backend = make_url(url).get_backend_name()
        driver = {"sqlite": "sqlite+aiosqlite", "postgresql": "postgresql+asyncpg"}[self.backend]
        self.engine: AsyncEngine = create_async_engine(make_url(url).set(drivername=driver))

    async def run(self, script: str, **values: Any) -> list[tuple[Any, ...]]:
        """Run statements, ended by semicolons; return the last one's rows."""
        rows: list[tuple[Any, ...]] = []
        async with self.engine.begin() as connection:
            for statement in filter(None, map(str.strip, script.split(";"))):
                if self.backend == "sqlite":
                    statement = statement.replace("SERIAL PRIMARY KEY", "INTEGER PRIMARY KEY")
                result = await connection.execute(text(statement), values)
                rows = [tuple(row) for row in result] if result.returns_rows else []
        return rows


@pytest.fixture
def sqlite_url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path / 'archive.db'}"


@pytest.fixture
def postgres_url(postgres: Server) -> Iterator[str]:
    """An empty database of its own on a Postgres server."""
    url = postgres.database(has_schema=False)
    yield url
    postgres.drop(url)


@pytest.fixture(params=["sqlite", "postgres"])
def database_url(request: pytest.FixtureRequest) -> Any:
    return request.getfixturevalue(f"{request.param}_url")


@pytest.fixture
async def database(database_url: str) -> AsyncIterator[Database]:
    database = Database(database_url)
    yield database
    await database.engine.dispose()


def event(
    seq: int, data: Any = None, *, epoch: str = "e1", name: str = "message", **fields: Any
) -> Event[Any]:
    """Return an event as the hand-over gives it."""
    values: dict[str, Any] = {
        "room_id": "general",
        "event": name,
        "data": {"n": seq} if data is None else data,
        "sender": "ann",
        "timestamp": 1_700_000_000_000 + seq // 3,
        "seq": seq,
        "id": 1000 + seq,
        "epoch": epoch,
    }
    return Event(**(values | fields))


def change(seq: int, target_seq: int, data: Any = None, **fields: Any) -> Event[Any]:
    """Return an edit, or (without data) a deletion."""
    body = {"target_seq": target_seq, "event": "message"} | fields
    if data is None:
        return event(seq, body, name="$delete")
    return event(seq, body | {"data": data}, name="$edit")


async def opened(database: Database, *, epoch: str = "e1", **options: Any) -> SQLArchive:
    archive = SQLArchive(database.url, **options)
    await archive.open(epoch=epoch)
    return archive


async def keep(archive: SQLArchive, events: Sequence[Event[Any]]) -> None:
    await archive.cleanup("general", events[0].event, list(events))


def shown(rows: Sequence[Any], *, epoch: str = "e1") -> list[dict[str, Any]]:
    """Return rows as readers get them."""
    return [
        json.loads(encode_row(row, room_id="general", event_name="message", position=1, epoch=epoch).json)
        for row in rows
    ]


# -- the table ---------------------------------------------------------------------------------------------------


async def test_the_reference_schema_works_as_it_stands(database: Database) -> None:
    """Rows go into the application's own table and come back newest first, by offset."""
    await database.run(REFERENCE)
    archive = await opened(database)
    assert archive.is_keyset is False
    await keep(archive, [event(n, {"text": f"m{n}"}) for n in range(1, 8)])
    await keep(archive, [event(n, {"text": f"m{n}"}) for n in range(8, 11)])
    rows = await archive.load("general", "message", 2, 6)
    assert [row["data"] for row in shown(rows)] == [{"text": f"m{n}"} for n in (8, 7, 6, 5)]
    assert [row["seq"] for row in shown(rows)] == [None] * 4
    assert len(await archive.load("general", "message", 8, 12)) == 2, "fewer rows: there are no older ones"
    assert await archive.load("general", "note", 0, 5) == []
    assert await archive.load("other", "message", 0, 5) == []
    found = await database.run("SELECT room_id, event_name, from_user, timestamp FROM messages ORDER BY id")
    assert found[0] == ("general", "message", "ann", 1_700_000_000_000)
    await archive.aclose()
    await archive.aclose()


async def test_a_missing_table_is_named_with_the_statement_that_makes_it(database: Database) -> None:
    """The message's own CREATE TABLE makes a table that is then taken."""
    await database.run("CREATE TABLE something (id INTEGER)")
    with pytest.raises(StartError, match="there is no table 'messages'") as caught:
        await opened(database)
    ddl = str(caught.value).split("where there is none:\n")[1]
    await database.run(ddl)
    archive = await opened(database)
    assert archive.is_keyset
    await keep(archive, [event(1)])
    await archive.aclose()


@pytest.mark.parametrize(
    ("columns", "problem"),
    [
        (
            "id SERIAL PRIMARY KEY, room_id TEXT, event_name TEXT, timestamp BIGINT",
            "'event_data' and 'from_user'",
        ),
        (
            "room_id TEXT, event_name TEXT, event_data TEXT, from_user TEXT, timestamp BIGINT",
            "no primary key",
        ),
        (
            "id SERIAL PRIMARY KEY, room_id TEXT, event_name TEXT, event_data TEXT, from_user TEXT, timestamp TEXT",
            "'timestamp' is TEXT, and not BIGINT",
        ),
        (
            "id SERIAL PRIMARY KEY, room_id TEXT, event_name TEXT, event_data REAL, from_user TEXT, timestamp BIGINT",
            "'event_data' is REAL, and not JSON, JSONB or TEXT",
        ),
        (
            "id SERIAL PRIMARY KEY, room_id INTEGER, event_name TEXT, event_data TEXT, from_user TEXT,"
            " timestamp BIGINT",
            "'room_id' is INTEGER, and not text",
        ),
        (
            "id SERIAL PRIMARY KEY, room_id TEXT, event_name TEXT, event_data TEXT, from_user TEXT,"
            " timestamp BIGINT, tenant TEXT NOT NULL",
            "nothing gives a value to the column 'tenant'",
        ),
        (
            "id BIGINT PRIMARY KEY, room_id TEXT, event_name TEXT, event_data TEXT, from_user TEXT, timestamp BIGINT",
            "nothing gives a value to the column 'id'",
        ),
        (
            "id SERIAL PRIMARY KEY, room_id TEXT, event_name TEXT, event_data TEXT, from_user TEXT,"
            " timestamp BIGINT, is_deleted TEXT, key TEXT NOT NULL",
            "'is_deleted' is TEXT, and not BOOLEAN; the column 'key' may not be NULL",
        ),
    ],
)
async def test_a_table_that_does_not_fit_is_refused_with_the_reason(
    database: Database, columns: str, problem: str
) -> None:
    """Every event would fail later: the start says which columns are wrong, and what would be right."""
    await database.run(f"CREATE TABLE messages ({columns})")
    with pytest.raises(StartError) as caught:
        await opened(database, create=True)
    assert problem in str(caught.value)
    assert "CREATE TABLE messages" in str(caught.value)


async def test_a_seq_that_the_table_counts_itself_is_not_taken_for_ours(database: Database) -> None:
    """It is the table's own number: left to it, and read by offset in its order."""
    await database.run(
        "CREATE TABLE messages (seq SERIAL PRIMARY KEY, room_id TEXT, event_name TEXT, event_data TEXT,"
        " from_user TEXT, timestamp BIGINT, epoch TEXT)"
    )
    archive = await opened(database)
    assert archive.is_keyset is False
    await keep(archive, [event(70, "a"), event(71, "b")])
    assert await database.run("SELECT seq, epoch FROM messages ORDER BY seq") == [(1, "e1"), (2, "e1")]
    rows = shown(await archive.load("general", "message", 0, 5))
    assert [(row["seq"], row["data"]) for row in rows] == [(None, "b"), (None, "a")]
    await archive.aclose()


async def test_create_makes_the_table_once(database: Database, tmp_path: Path) -> None:
    """With every column and its indexes; what is there is left alone, a name and a schema are taken."""
    archive = await opened(database, create=True, table="past events")
    await keep(archive, [event(1)])
    await archive.aclose()
    again = await opened(database, create=True, table="past events")
    assert [row["seq"] for row in shown(await again.load_before("general", "message", 9, 9))] == [1]
    await again.aclose()
    if database.backend == "postgresql":
        await database.run("CREATE SCHEMA app")
        other = await opened(database, create=True, schema="app")
        await keep(other, [event(1)])
        assert await database.run("SELECT count(*) FROM app.messages") == [(1,)]
        await other.aclose()


async def test_a_missing_file_or_folder_is_not_made_by_mistake(tmp_path: Path) -> None:
    """A misspelt path is said to be one."""
    with pytest.raises(StartError, match="there is no folder"):
        await SQLArchive(f"sqlite:///{tmp_path / 'a' / 'b.db'}").open(epoch="e1")
    with pytest.raises(StartError, match="there is no file"):
        await SQLArchive(f"sqlite:///{tmp_path / 'b.db'}").open(epoch="e1")
    assert not (tmp_path / "b.db").exists()
    (tmp_path / "c.db").write_text("not a database, but long enough to be looked at" * 50)
    with pytest.raises(StartError, match="cannot be looked at \\(file is not a database\\)"):
        await SQLArchive(f"sqlite:///{tmp_path / 'c.db'}").open(epoch="e1")


@pytest.mark.parametrize("url", ["sqlite://", "mysql://root@localhost/chat", "nonsense"])
def test_an_impossible_url_is_a_mistake_in_the_declaration(url: str) -> None:
    """It is refused when the archive is made."""
    with pytest.raises(ConfigError, match="SQLArchive"):
        SQLArchive(url)


async def test_a_server_that_cannot_be_reached_is_said_to_be() -> None:
    """No password in the message, and no wait without end."""
    archive = SQLArchive("postgresql://ann:secret@127.0.0.1:1/chat")
    with pytest.raises(StartError, match="Check that the server runs") as caught:
        await archive.open(epoch="e1")
    assert "secret" not in str(caught.value)


# -- order and reading -------------------------------------------------------------------------------------------


async def test_a_server_reads_on_in_the_table_below_its_log(database: Database, tmp_path: Path) -> None:
    """Every event once, in order, over memory, log and table, in both modes of reading; another life too."""
    note = define_event("message", history=History(limit=5))
    store = SQLStore(f"sqlite:///{tmp_path / 'log.db'}")
    await database.run(REFERENCE)
    for table, create in (("messages", False), ("past", True)):
        archive = SQLArchive(database.url, table=table, create=create)
        dialogue = Dialogue({"general": RoomConfig(events=[note])}, store=store, archive=archive)
        async with dialogue.lifespan():
            assert archive.is_keyset is create
            handover = dialogue.hub().handover
            assert handover is not None
            room = dialogue.room("general")
            first = room_seq = (await room.trigger("message", {"n": 0})).seq or 0
            for n in range(1, 40):
                room_seq = (await room.trigger("message", {"n": n})).seq or 0
            async with asyncio.timeout(20):
                while handover.statistics().waiting_events:
                    await asyncio.sleep(0.005)
            await store.remove("general", "message", room_seq - 10)
            events = await room.history("message", 0, 35 if create else 100)
            assert [event.data["n"] for event in events] == list(range(39, 39 - len(events), -1))
            assert len(events) == (35 if create else 40)
            assert events[0].seq == room_seq
            assert (events[30].seq is None) is not create
            assert first == (41 if create else 1)


async def test_rows_are_in_the_order_of_the_primary_key(database: Database) -> None:
    """Many events have the same millisecond, and a clock may have been set back between two lives of a log."""
    await database.run(REFERENCE)
    archive = await opened(database)
    await keep(archive, [event(n, n, timestamp=5000) for n in range(1, 6)])
    await keep(archive, [event(n, n, timestamp=10) for n in range(6, 9)])
    assert [row["data"] for row in shown(await archive.load("general", "message", 0, 9))] == list(
        range(8, 0, -1)
    )
    await archive.aclose()


async def test_a_key_that_is_no_number_is_ordered_by_time_first(database: Database) -> None:
    """With a random key the timestamp gives the order, and the seq where several have the same one."""
    default = "gen_random_uuid()" if database.backend == "postgresql" else "(hex(randomblob(16)))"
    kind = "UUID" if database.backend == "postgresql" else "TEXT"
    await database.run(
        f"CREATE TABLE messages (uid {kind} PRIMARY KEY DEFAULT {default}, room_id TEXT, event_name TEXT,"
        " event_data TEXT, from_user TEXT, timestamp BIGINT, epoch TEXT, seq BIGINT)"
    )
    archive = await opened(database, epoch="other")
    await keep(archive, [event(n, n) for n in range(1, 40)])
    assert [row["data"] for row in shown(await archive.load("general", "message", 0, 50))] == list(
        range(39, 0, -1)
    )
    await archive.aclose()


async def test_it_is_read_by_seq_only_where_every_row_has_one_of_this_life(database: Database) -> None:
    """Columns that were added later, or another epoch, leave rows that no seq reaches: offsets do."""
    await database.run(REFERENCE)
    archive = await opened(database)
    await keep(archive, [event(1, 1), event(2, 2)])
    await archive.aclose()
    await database.run(
        "ALTER TABLE messages ADD COLUMN epoch TEXT; ALTER TABLE messages ADD COLUMN seq BIGINT"
    )
    archive = await opened(database)
    assert archive.is_keyset is False
    await keep(archive, [event(3, 3)])
    rows = shown(await archive.load("general", "message", 0, 9))
    assert [(row["seq"], row["data"]) for row in rows] == [(3, 3), (None, 2), (None, 1)]
    await archive.aclose()
    await database.run("DELETE FROM messages")
    archive = await opened(database)
    assert archive.is_keyset is True, "an empty table"
    await keep(archive, [event(3, 3), event(4, 4)])
    await archive.aclose()
    archive = await opened(database)
    assert archive.is_keyset is True, "only rows of this epoch"
    assert [row["seq"] for row in shown(await archive.load_before("general", "message", 4, 5))] == [3]
    await archive.aclose()
    archive = await opened(database, epoch="e2")
    assert archive.is_keyset is False, "rows of an earlier life"
    await archive.aclose()


async def test_a_deep_page_is_found_by_an_index(database: Database) -> None:
    """By seq a page at any depth reads its own rows: the plan is a search and sorts nothing."""
    archive = await opened(database, create=True)
    await keep(archive, [event(n, n) for n in range(1, 2001)])
    assert archive._found is not None
    statement = archive._found.by_seq("general", "message", "e1", 1000, 20)
    compiled = statement.compile(dialect=database.engine.dialect, compile_kwargs={"literal_binds": True})
    if database.backend == "sqlite":
        plan = await database.run(f"EXPLAIN QUERY PLAN {compiled}")
        assert len(plan) == 1, "no sorting step"
        assert "USING INDEX messages_by_seq" in plan[0][-1]
        assert "seq<?" in plan[0][-1]
    else:
        await database.run("ANALYZE messages")
        plan = await database.run(f"SET enable_seqscan = off; EXPLAIN {compiled}")
        lines = "\n".join(str(row[0]) for row in plan)
        assert "messages_by_seq" in lines
        assert "Sort" not in lines
    await archive.aclose()


# -- writing -----------------------------------------------------------------------------------------------------


async def test_a_batch_that_was_written_adds_nothing_when_it_is_tried_again(database: Database) -> None:
    """With epoch and seq, and without any unique constraint; a batch that overlaps adds what is new."""
    await database.run(REFERENCE)
    await database.run(
        "ALTER TABLE messages ADD COLUMN epoch TEXT; ALTER TABLE messages ADD COLUMN seq BIGINT"
    )
    archive = await opened(database)
    batch = [event(n, n) for n in range(1, 6)]
    await keep(archive, batch)
    await keep(archive, batch)
    await keep(archive, [event(n, n) for n in range(4, 8)])
    assert [row["seq"] for row in shown(await archive.load("general", "message", 0, 20))] == [
        7, 6, 5, 4, 3, 2, 1,
    ]  # fmt: skip
    await keep(archive, [event(1, "another life", epoch="e2")])
    assert await database.run("SELECT count(*) FROM messages") == [(8,)]
    await archive.aclose()


async def test_a_batch_is_all_or_nothing(database: Database) -> None:
    """A row that the database refuses takes its batch with it; the error has no data in it."""
    await database.run(
        REFERENCE.replace(
            "VARCHAR(255) NOT NULL,\n    timestamp",
            "TEXT NOT NULL CHECK (from_user <> 'eve'),\n    timestamp",
        )
    )
    archive = await opened(database)
    with pytest.raises(StoreUnavailable, match="cannot be written") as caught:
        await keep(archive, [event(1, "secret"), event(2, "secret", sender="eve"), event(3, "secret")])
    assert "secret" not in str(caught.value)
    assert "secret" not in str(caught.value.__cause__).split("DETAIL")[0]
    assert await database.run("SELECT count(*) FROM messages") == [(0,)]
    await keep(archive, [event(1)])
    assert await database.run("SELECT count(*) FROM messages") == [(1,)]
    await archive.aclose()


VALUES = [
    None, True, 0, -1, 1.5, 0.1, 1e300, 5e-324, -2.5e-8, 2**53 + 1, 2**63 - 1, -(2**63), 2**63, 12345678901234567890,
    -12345678901234567891, 10**30, "", "text", "12345678901234567890", "1.0", "null", "ünïcödé \U0001f600", '"quoted"',
    [], {}, [1, 12345678901234567890, {"a": None}], {"n": 0.30000000000000004, "deep": [[[]]]}, {"": " "},
]  # fmt: skip


def floats(value: Any) -> Any:
    """Return a JSON value with numbers above 64 bits as floats, as JavaScript has them."""
    return json.loads(json.dumps(value), parse_int=lambda text: int(text) if len(text) < 40 else float(text))


@pytest.mark.parametrize("column", ["JSON", "JSONB", "TEXT", "VARCHAR(4000)"])
async def test_json_values_come_back_as_they_were(database: Database, column: str) -> None:
    """Whatever the column's type: SQLite makes numbers of what looks like one in a column that is called JSON."""
    await database.run(REFERENCE.replace("JSONB NOT NULL", f"{column} NOT NULL"))
    await database.run(f"ALTER TABLE messages ADD COLUMN meta {column}")
    archive = await opened(database)
    values = [*VALUES, *(json.loads(json.dumps(value)) for value in ({"k": value} for value in VALUES))]
    await keep(archive, [event(n, value, meta={"m": value}) for n, value in enumerate(values, 1)])
    rows = (await archive.load("general", "message", 0, 999))[::-1]
    for n, (value, row) in enumerate(zip(values, rows, strict=True), 1):
        wanted = {"n": n} if value is None else value
        if column == "JSONB":
            # By value, written out: 1e300 comes back as a whole number.
            assert floats(row["event_data"]) == floats(wanted)
            assert floats(row["meta"]) == floats({"m": value})
        else:
            assert row["event_data"] == wanted
            assert row["meta"] == {"m": value}
            assert type(row["event_data"]) is type(wanted)
    await archive.aclose()


async def test_every_field_comes_back_where_there_is_a_column(database: Database) -> None:
    """Kind, key, meta and the flags; the log's id never meets the table's own."""
    archive = await opened(database, create=True)
    await keep(
        archive,
        [
            event(5, "a", kind="system", key="k1", meta={"m": 1}),
            event(6, "b", is_edited=True),
            event(7, is_deleted=True),
        ],
    )
    rows = await archive.load_before("general", "message", 100, 9)
    assert shown(rows)[2] == {
        "type": "event", "room": "general", "event": "message", "id": None, "seq": 5, "from": "ann",
        "timestamp": 1_700_000_000_001, "data": "a", "meta": {"m": 1}, "kind": "system",
    }  # fmt: skip
    assert shown(rows)[1]["edited"] is True
    assert shown(rows)[0]["deleted"] is True
    assert rows[2]["key"] == "k1"
    assert "id" not in rows[2]
    await archive.aclose()


async def test_a_row_that_is_no_json_is_an_error_and_not_a_frame(sqlite_url: str) -> None:
    """What stands in a text column by hand must not break the frame that carries others."""
    database = Database(sqlite_url)
    archive = await opened(database, create=True)
    await keep(archive, [event(1)])
    await database.run("UPDATE messages SET event_data = 'hello'")
    with pytest.raises(ValueError, match="JSON"):
        await archive.load("general", "message", 0, 5)
    await archive.aclose()
    await database.engine.dispose()


# -- edits, deletions, erasure -----------------------------------------------------------------------------------


async def test_edits_and_deletions_change_their_row_and_are_rows_themselves(database: Database) -> None:
    """Offsets over the `$edit` and `$delete` streams stay exact, and a retry changes nothing more."""
    archive = await opened(database, create=True)
    await keep(archive, [event(n, f"v{n}", meta={"m": n}) for n in range(1, 5)])
    for _ in range(2):
        await keep(archive, [change(5, 2, "new"), change(6, 2, "newer")])
        await keep(archive, [change(7, 3), change(8, 4, erased=True)])
    rows = await archive.load_before("general", "message", 100, 9)
    wire = {row["seq"]: row for row in shown(rows)}
    assert (wire[1]["data"], wire[1].get("edited")) == ("v1", None)
    assert (wire[2]["data"], wire[2]["edited"], wire[2]["from"]) == ("newer", True, "ann")
    assert (wire[3]["data"], wire[3]["deleted"], wire[3]["from"]) == (None, True, "ann")
    assert (wire[4]["data"], wire[4]["deleted"], wire[4]["from"]) == (None, True, "$erased")
    assert wire[3]["meta"] == {"m": 3}
    assert "meta" not in wire[4]
    assert len(await archive.load("general", "$edit", 0, 9)) == 2
    assert len(await archive.load("general", "$delete", 0, 9)) == 2
    await archive.aclose()


async def test_an_edit_that_comes_after_its_deletion_changes_nothing(database: Database) -> None:
    """`$edit` and `$delete` are two streams: one may be late, and what is deleted stays deleted."""
    archive = await opened(database, create=True)
    await keep(archive, [event(1, "old"), event(2, "old")])
    await keep(archive, [change(6, 1)])
    await keep(archive, [change(4, 1, "late"), change(5, 2, "new")])
    wire = {row["seq"]: row for row in shown(await archive.load_before("general", "message", 100, 9))}
    assert (wire[1]["data"], wire[1]["deleted"]) == (None, True)
    assert wire[2]["data"] == "new"
    await archive.aclose()


async def test_nothing_of_what_was_replaced_stays_in_the_table(database: Database) -> None:
    """An edit's row says which event was changed and not to what: that is in the event's own row, until it changes."""
    archive = await opened(database, create=True)
    await keep(archive, [event(1, "v1"), event(2, "v2")])
    await keep(archive, [change(3, 1, "secret"), change(4, 2, "newest")])
    await keep(archive, [change(5, 1)])
    kept = str(await database.run("SELECT event_data FROM messages ORDER BY seq"))
    assert "secret" not in kept
    assert kept.count("newest") == 1
    rows = await archive.load("general", "$edit", 0, 9)
    assert [row["event_data"] for row in rows] == [
        {"target_seq": 2, "event": "message"},
        {"target_seq": 1, "event": "message"},
    ]
    await archive.aclose()


async def test_an_edit_that_is_void_changes_nothing(database: Database) -> None:
    """It was replaced before it was handed over: what replaced it comes after it, in a batch that may have to wait."""
    archive = await opened(database, create=True)
    await keep(archive, [event(1, "v1")])
    await keep(archive, [event(2, {"target_seq": 1, "event": "message"}, name="$edit")])
    [row] = shown(await archive.load_before("general", "message", 100, 9))
    assert (row["data"], row.get("edited")) == ("v1", None)
    assert len(await archive.load("general", "$edit", 0, 9)) == 1
    await archive.aclose()


async def test_a_change_reaches_events_that_still_wait_to_be_written(database: Database) -> None:
    """Batches are written in the order of their calls; an edit that is older than a deletion does not undo it."""
    archive = await opened(database, create=True)
    async with archive._write_turn:
        late = asyncio.create_task(
            keep(archive, [event(1, "old"), event(2, "old"), event(3, is_deleted=True)])
        )
        await asyncio.sleep(0)
        changes = asyncio.create_task(keep(archive, [change(4, 1, "new"), change(5, 3, "no")]))
        deletion = asyncio.create_task(keep(archive, [change(6, 2)]))
        await asyncio.sleep(0)
    await asyncio.gather(late, changes, deletion)
    wire = {row["seq"]: row for row in shown(await archive.load_before("general", "message", 100, 9))}
    assert (wire[1]["data"], wire[1]["edited"]) == ("new", True)
    assert (wire[2]["data"], wire[2]["deleted"]) == (None, True)
    assert wire[3]["data"] == {"n": 3}
    await archive.aclose()


async def test_a_row_from_before_the_flags_is_edited_too(database: Database) -> None:
    """A column that was added later is NULL in the rows that were there."""
    await database.run(REFERENCE)
    for column in ("epoch TEXT", "seq BIGINT"):
        await database.run(f"ALTER TABLE messages ADD COLUMN {column}")
    archive = await opened(database)
    await keep(archive, [event(1, "old")])
    await archive.aclose()
    for column in ("is_edited BOOLEAN", "is_deleted INTEGER"):
        await database.run(f"ALTER TABLE messages ADD COLUMN {column}")
    archive = await opened(database)
    await keep(archive, [change(2, 1, "new")])
    (row,) = shown(await archive.load_before("general", "message", 9, 9))
    assert (row["data"], row["edited"]) == ("new", True)
    await keep(archive, [change(3, 1)])
    (row,) = shown(await archive.load_before("general", "message", 9, 9))
    assert (row["data"], row["deleted"]) == (None, True)
    await archive.aclose()


async def test_without_columns_for_them_changes_are_rows_only_as_far_as_they_go(database: Database) -> None:
    """Without seq nothing can be found to change; with seq and without flags only the data is."""
    await database.run(REFERENCE)
    archive = await opened(database)
    await keep(archive, [event(1, "old")])
    await keep(archive, [change(2, 1, "new")])
    assert [row["data"] for row in shown(await archive.load("general", "message", 0, 9))] == ["old"]
    assert len(await archive.load("general", "$edit", 0, 9)) == 1
    await archive.aclose()
    await database.run(
        "DELETE FROM messages; ALTER TABLE messages ADD COLUMN epoch TEXT; ALTER TABLE messages ADD COLUMN seq BIGINT"
    )
    archive = await opened(database)
    await keep(archive, [event(1, "old"), event(2, "old")])
    await keep(archive, [change(3, 1, "new")])
    await keep(archive, [change(4, 2, erased=True)])
    rows = shown(await archive.load("general", "message", 0, 9))
    assert [(row["data"], row["from"]) for row in rows] == [(None, "$erased"), ("new", "ann")]
    await archive.aclose()


async def test_erasing_a_user_blanks_rows_and_keeps_their_number(database: Database) -> None:
    """Offsets of everyone else's rows stay, and nothing of the user does."""
    archive = await opened(database, create=True)
    assert archive.can_erase
    await keep(
        archive,
        [
            event(n, f"v{n}", sender="bob" if n % 2 else "ann", meta={"m": n}, key=f"k{n}")
            for n in range(1, 6)
        ],
    )
    await archive.erase("bob")
    await archive.erase("bob")
    rows = await archive.load("general", "message", 0, 9)
    assert [row["event_data"] for row in rows] == [None, "v4", None, "v2", None]
    assert [row["from_user"] for row in rows] == ["$erased", "ann", "$erased", "ann", "$erased"]
    assert [row["key"] for row in rows] == [None, "k4", None, "k2", None]
    assert [row["meta"] for row in rows] == [None, {"m": 4}, None, {"m": 2}, None]
    assert await database.run("SELECT count(*) FROM messages WHERE from_user = 'bob'") == [(0,)]
    await archive.aclose()


# -- connections and faults --------------------------------------------------------------------------------------


async def test_an_applications_engine_is_used_and_left_as_it_was(database: Database) -> None:
    """Nothing is set on its connections, they all go back, and it is not disposed."""
    statements: list[str] = []
    sqlalchemy_event.listen(
        database.engine.sync_engine,
        "before_cursor_execute",
        lambda connection, cursor, statement, *_: statements.append(statement),
    )
    archive = SQLArchive(database.engine, create=True)
    await archive.open(epoch="e1")
    await keep(archive, [event(1), event(2)])
    with pytest.raises(StoreUnavailable) as caught:
        await keep(archive, [event(3, "secret", sender=None)])
    assert "secret" not in str(caught.value.__cause__).split("DETAIL")[0]
    await asyncio.gather(*(archive.load("general", "message", 0, 5) for _ in range(20)))
    await archive.aclose()
    pool: Any = database.engine.pool
    assert pool.checkedout() == 0
    settings = [s for s in statements if s.upper().startswith("SET ") and "SET LOCAL" not in s]
    assert not settings
    assert not [s for s in statements if s.upper().startswith("PRAGMA") and "=" in s]
    # A transaction of the application's still begins and rolls back.
    async with database.engine.connect() as connection:
        await connection.execute(text("DELETE FROM messages"))
        await connection.rollback()
    assert await database.run("SELECT count(*) FROM messages") == [(2,)]


async def test_connections_are_bounded(database: Database) -> None:
    """However many streams are read and written at once."""
    archive = await opened(database, create=True)
    assert archive._engine is not None
    pool: Any = archive._engine.pool
    most = 0

    async def work(n: int) -> None:
        nonlocal most
        await archive.cleanup(f"room{n}", "message", [event(1, room_id=f"room{n}")])
        most = max(most, pool.checkedout())
        await archive.load(f"room{n}", "message", 0, 1)
        most = max(most, pool.checkedout())

    await asyncio.gather(*(work(n) for n in range(100)))
    assert most <= 5
    assert pool.size() + pool.overflow() <= 5
    assert await database.run("SELECT count(*) FROM messages") == [(100,)]
    await archive.aclose()


async def test_a_caller_that_goes_away_does_not_cut_a_batch_off(database: Database) -> None:
    """What was begun is written or not, whole, before the archive is closed."""
    archive = await opened(database, create=True)
    tasks = [asyncio.create_task(keep(archive, [event(n)])) for n in range(1, 20)]
    await asyncio.sleep(0)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    await archive.aclose()
    assert await database.run("SELECT count(*) FROM messages") == [(19,)]
    with pytest.raises(StoreUnavailable):
        await archive.load("general", "message", 0, 1)


async def test_a_table_that_goes_away_is_unavailable_until_it_is_back(database: Database) -> None:
    """Reading and writing fail with what the database says, and go on by themselves."""
    archive = await opened(database, create=True)
    await keep(archive, [event(1)])
    await database.run("ALTER TABLE messages RENAME TO away")
    for call in (
        keep(archive, [event(2)]),
        archive.load("general", "message", 0, 5),
        archive.load_before("general", "message", 9, 5),
        archive.erase("ann"),
    ):
        with pytest.raises(StoreUnavailable, match=r"no such table|UndefinedTable"):
            await call
    await database.run("ALTER TABLE away RENAME TO messages")
    await keep(archive, [event(2)])
    assert len(await archive.load("general", "message", 0, 5)) == 2
    await archive.aclose()


async def test_lost_connections_are_replaced(postgres_url: str) -> None:
    """After a server's restart the next read and the next batch work."""
    database = Database(postgres_url)
    archive = await opened(database, create=True)
    await keep(archive, [event(1)])
    await database.run(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
        " WHERE datname = current_database() AND pid <> pg_backend_pid()"
    )
    await keep(archive, [event(2)])
    assert len(await archive.load("general", "message", 0, 5)) == 2
    await archive.aclose()
    await database.engine.dispose()


async def test_a_reader_does_not_stop_the_writer(sqlite_url: str) -> None:
    """A file that is made here has a write-ahead log; one that was there keeps its mode."""
    path = sqlite_url.removeprefix("sqlite:///")
    database = Database(sqlite_url)
    archive = await opened(database, create=True)
    await keep(archive, [event(1)])
    reader = sqlite3.connect(path, isolation_level=None)
    reader.execute("BEGIN")
    reader.execute("SELECT * FROM messages").fetchall()
    await keep(archive, [event(2)])
    reader.close()
    await archive.aclose()
    other = sqlite3.connect(path + "2")
    other.execute("CREATE TABLE anything (id INTEGER)")
    archive = SQLArchive(sqlite_url + "2", create=True)
    await archive.open(epoch="e1")
    await archive.aclose()
    assert other.execute("PRAGMA journal_mode").fetchone() == ("delete",)
    other.close()
    await database.engine.dispose()


async def test_two_writers_on_one_file_wait_for_each_other(sqlite_url: str) -> None:
    """Another program's transaction delays a batch; it does not fail it."""
    database = Database(sqlite_url)
    archive = await opened(database, create=True)
    other = sqlite3.connect(sqlite_url.removeprefix("sqlite:///"), isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    writing = asyncio.create_task(keep(archive, [event(1)]))
    assert not (await asyncio.wait({writing}, timeout=0.2))[0]
    other.execute("COMMIT")
    other.close()
    await writing
    assert len(await archive.load("general", "message", 0, 5)) == 1
    await archive.aclose()
    await database.engine.dispose()
