"""`SQLStore` on SQLite: the contract, what starts refuse, and what faults leave behind."""

from __future__ import annotations

import asyncio
import os
import sqlite3
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from sqlalchemy import Connection, create_engine, event, text
from sqlalchemy.exc import OperationalError
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine
from sqlalchemy.pool import StaticPool

from dialogue.errors import (
    ConfigError,
    DraftRefused,
    LogLocked,
    OutcomeUnknown,
    SchemaMismatch,
    StartError,
    StoreUnavailable,
)
from dialogue.storage import statements
from dialogue.storage.base import Store
from dialogue.storage.engines import AsyncWriter, ThreadWriter
from dialogue.storage.sql import SQLStore
from dialogue.testing.store_contract import StoreContract, draft, recorded, seqs

from .databases import migrated


def url(folder: Path) -> str:
    return f"sqlite:///{folder / 'chat.db'}"


class TestSQLStore(StoreContract):
    """The contract over a SQLite file given by URL."""

    def make(self, folder: Path, clock: Callable[[], int] | None = None) -> Store:
        url = f"sqlite:///{migrated(folder)}"
        return SQLStore(url) if clock is None else SQLStore(url, clock=clock)


class OwnEngineStore(SQLStore):
    """Closes the application's engine after the store, since the suite has no application to do it."""

    async def aclose(self) -> None:
        await super().aclose()
        assert self._given_engine is not None
        await self._given_engine.dispose()


class TestSharedEngine(StoreContract):
    """The contract over an application's own engine."""

    def make(self, folder: Path, clock: Callable[[], int] | None = None) -> Store:
        engine = create_async_engine(f"sqlite+aiosqlite:///{migrated(folder)}")
        return OwnEngineStore(engine) if clock is None else OwnEngineStore(engine, clock=clock)


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[SQLStore]:
    store = SQLStore(url(tmp_path))
    await store.open()
    yield store
    await store.aclose()


async def writer_sql(store: SQLStore, sql: str) -> Any:
    """Run *sql* on the connection that writes."""
    assert store._writer is not None

    def run(connection: Connection) -> Any:
        result = connection.exec_driver_sql(sql)
        return result.scalar() if result.returns_rows else None

    return await store._writer.run(run)


# Declarations


@pytest.mark.parametrize(
    "given",
    [
        "sqlite://",
        "sqlite:///:memory:",
        "sqlite+aiosqlite://",
        "sqlite:///file:x?mode=memory&uri=true",
        "sqlite:///file:x?uri=true",
        "mysql://localhost/x",
        "postgresql+psycopg2://localhost/x",
        "nonsense",
        "",
    ],
)
def test_an_unusable_url_fails_when_declared(given: str) -> None:
    """The error comes before any I/O and says what to write."""
    with pytest.raises(ConfigError, match=r"sqlite:///chat\.db"):
        SQLStore(given)


def test_a_password_is_never_shown() -> None:
    """Not in the error of a wrong URL, nor in the store's name."""
    with pytest.raises(ConfigError) as caught:
        SQLStore("mysql://ann:secret@localhost/x")
    assert "secret" not in str(caught.value)
    assert "secret" not in SQLStore("postgresql://ann:secret@localhost/x").name


@pytest.mark.parametrize("given", ["postgres://h/x", "postgresql://h/x", "postgresql+asyncpg://h/x"])
def test_postgres_urls_get_their_async_driver(given: str) -> None:
    """The driver need not be named."""
    assert SQLStore(given).name == "postgresql+asyncpg://h/x"


async def test_an_engine_that_cannot_hold_a_log_fails_when_declared(tmp_path: Path) -> None:
    """In memory, or one connection for everything."""
    in_memory = create_async_engine("sqlite+aiosqlite://")
    with pytest.raises(ConfigError, match="in memory"):
        SQLStore(in_memory)
    one = create_async_engine(f"sqlite+aiosqlite:///{tmp_path / 'x.db'}", poolclass=StaticPool)
    with pytest.raises(ConfigError, match="StaticPool"):
        SQLStore(one)
    for engine in (in_memory, one):
        await engine.dispose()


def test_a_relative_path_is_fixed_when_declared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that changes its directory keeps its log."""
    monkeypatch.chdir(tmp_path)
    assert SQLStore("sqlite:///chat.db").name == str(tmp_path / "chat.db")


# Starts


async def test_commits_are_durable_by_settings(store: SQLStore) -> None:
    """Promise 2 on SQLite: WAL and synchronous=FULL (2) on the connection that writes."""
    assert await writer_sql(store, "PRAGMA journal_mode") == "wal"
    assert await writer_sql(store, "PRAGMA synchronous") == 2
    assert await writer_sql(store, "PRAGMA busy_timeout") == 5000


async def test_a_second_owner_in_this_process_is_refused(store: SQLStore, tmp_path: Path) -> None:
    """Two owners would split the rooms; the message names the log and the remedy."""
    second = SQLStore(url(tmp_path), lock_wait_seconds=0)
    with pytest.raises(LogLocked, match=r"chat\.db.*stop the other one"):
        await second.open()
    await store.append([draft()])


async def test_a_link_to_the_log_leads_to_the_same_lock(store: SQLStore, tmp_path: Path) -> None:
    """Another name for the file does not make a second owner."""
    link = tmp_path / "link.db"
    link.symlink_to(tmp_path / "chat.db")
    with pytest.raises(LogLocked):
        await SQLStore(f"sqlite:///{link}", lock_wait_seconds=0).open()


async def test_a_waiting_owner_takes_over(store: SQLStore, tmp_path: Path) -> None:
    """A restart overlaps with the server that stops: the new one waits for its log."""
    await store.append([draft()])
    second = SQLStore(url(tmp_path), lock_wait_seconds=30)
    opening = asyncio.create_task(second.open())
    await asyncio.sleep(0)
    await store.aclose()
    await opening
    assert (await second.head("general")).last_seq == 1
    await second.aclose()


OWNER = """
import asyncio, sys
from dialogue.storage.sql import SQLStore

async def main():
    store = SQLStore(sys.argv[1], lock_wait_seconds=0)
    await store.open()
    print("open", flush=True)
    sys.stdin.read()

asyncio.run(main())
"""


def test_another_process_is_refused_until_the_owner_dies(tmp_path: Path) -> None:
    """The lock is freed by the kernel: an owner that is killed leaves no stale lock behind."""
    command = [sys.executable, "-c", OWNER, url(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as owner:
        assert owner.stdout is not None
        assert owner.stdout.readline() == "open\n"
        refused = subprocess.run(command, input="", capture_output=True, text=True, check=False)
        assert "LogLocked" in refused.stderr
        assert "stop the other one" in refused.stderr
        owner.kill()
    accepted = subprocess.run(command, input="", capture_output=True, text=True, check=False)
    assert accepted.stdout == "open\n"


async def test_two_servers_on_one_log_are_found_out(
    store: SQLStore, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Whoever deletes the lock's file lets a second server in: the first to miss an event publishes no more."""
    await store.append([draft()])
    (tmp_path / "chat.db.lock").unlink()
    second = SQLStore(url(tmp_path), lock_wait_seconds=0)
    await second.open()
    assert (await second.append([draft()]))[0].seq == 2
    for _ in range(2):
        with pytest.raises(StoreUnavailable, match="another server has written"):
            await store.append([draft()])
    assert (await second.append([draft()]))[0].seq == 3
    assert "Stop one of the two, then restart this one" in caplog.text
    assert seqs(await store.page("general", limit=9)) == [1, 2, 3]
    await second.aclose()


async def test_waiting_for_the_log_is_said_once(
    store: SQLStore, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Whoever looks at a start that seems to hang finds the reason in the log."""
    second = SQLStore(url(tmp_path), lock_wait_seconds=0.2)
    with pytest.raises(LogLocked):
        await second.open()
    assert caplog.text.count("waiting 0.2 s for it to end") == 1


async def test_a_folder_is_not_a_log(tmp_path: Path) -> None:
    """It is named as what it is, and nothing is left beside it."""
    (tmp_path / "chat.db").mkdir()
    with pytest.raises(StartError, match=r"chat\.db is a folder\. Name a file in it"):
        await SQLStore(url(tmp_path)).open()
    assert not (tmp_path / "chat.db.lock").exists()


async def test_a_lock_that_leads_nowhere_is_not_another_process(tmp_path: Path) -> None:
    """A link whose folder is gone is named, and nobody waits for it."""
    (tmp_path / "chat.db.lock").symlink_to(tmp_path / "absent" / "lock")
    with pytest.raises(StartError, match=r"chat\.db\.lock beside the log cannot be made") as caught:
        await SQLStore(url(tmp_path), lock_wait_seconds=0).open()
    assert not isinstance(caught.value, LogLocked)


@pytest.mark.skipif(sys.platform != "linux", reason="needs a folder in which no file can be made")
async def test_a_lock_that_cannot_be_made_is_not_another_process() -> None:
    """Such a folder answers as a lock that just went away does, however often one looks."""
    with pytest.raises(StartError, match=r"chat\.db\.lock beside the log cannot be made") as caught:
        await SQLStore("sqlite:////proc/self/chat.db", lock_wait_seconds=0).open()
    assert not isinstance(caught.value, LogLocked)


async def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    """Folders are not made: a typing mistake must not start an empty log somewhere else."""
    with pytest.raises(StartError, match=r"there is no folder .*absent"):
        await SQLStore(f"sqlite:///{tmp_path / 'absent' / 'chat.db'}").open()
    assert not (tmp_path / "absent").exists()


async def test_a_file_that_is_no_database_is_refused_and_kept(tmp_path: Path) -> None:
    """Whatever it is, it is somebody's."""
    path = tmp_path / "chat.db"
    path.write_bytes(b"a letter to my aunt, kept for years " * 100)
    with pytest.raises(StartError, match=r"chat\.db is not a SQLite database"):
        await SQLStore(url(tmp_path)).open()
    assert path.read_bytes().startswith(b"a letter")
    path.unlink()
    await open_and_close(url(tmp_path))


async def open_and_close(given: str) -> None:
    store = SQLStore(given, lock_wait_seconds=0)
    await store.open()
    await store.aclose()


@pytest.fixture
def ordinary_user(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], None]]:
    """Yield a function that gives up the rights of root, for whom no file is read-only.

    They are taken back by `TemporaryDirectory.cleanup`, which needs them.
    """
    if not hasattr(os, "seteuid"):
        pytest.skip("this system has no users to change to")
    before = os.geteuid()
    cleanup = TemporaryDirectory.cleanup

    def take_back(self: TemporaryDirectory[str]) -> None:
        os.seteuid(before)
        Path(self.name).chmod(0o755)
        cleanup(self)

    monkeypatch.setattr(TemporaryDirectory, "cleanup", take_back)

    def become() -> None:
        if before == 0:
            os.seteuid(65534)

    yield become
    os.seteuid(before)


def test_a_file_that_cannot_be_written_is_refused(ordinary_user: Callable[[], None]) -> None:
    """At the start, and not with the first event."""
    with TemporaryDirectory() as name:
        folder = Path(name)
        asyncio.run(open_and_close(url(folder)))
        folder.chmod(0o777)
        (folder / "chat.db.lock").touch()
        (folder / "chat.db.lock").chmod(0o666)
        (folder / "chat.db").chmod(0o444)
        ordinary_user()
        with pytest.raises(StartError, match=r"chat\.db cannot be written.*Let this user write"):
            asyncio.run(open_and_close(url(folder)))


def test_a_folder_that_cannot_be_written_is_refused(ordinary_user: Callable[[], None]) -> None:
    """The lock beside the log cannot be made there."""
    with TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o555)
        ordinary_user()
        with pytest.raises(StartError, match=r"chat\.db\.lock.*Let this user write"):
            asyncio.run(open_and_close(url(folder)))


async def test_a_file_locked_by_another_program_is_refused(tmp_path: Path) -> None:
    """It waits as long as it was told, then says who is in the way."""
    await open_and_close(url(tmp_path))
    other = sqlite3.connect(tmp_path / "chat.db", isolation_level=None)
    other.execute("BEGIN EXCLUSIVE")
    with pytest.raises(StartError, match=r"chat\.db is locked by another program"):
        await open_and_close(url(tmp_path))
    other.execute("ROLLBACK")
    other.close()
    await open_and_close(url(tmp_path))


async def test_a_later_versions_schema_is_refused(store: SQLStore, tmp_path: Path) -> None:
    """Nothing is touched; the message names both revisions and the remedy."""
    await writer_sql(store, "UPDATE dialogue_version SET version_num = '9999'")
    await store.aclose()
    with pytest.raises(SchemaMismatch, match=r"chat\.db has schema 9999.*install that version"):
        await open_and_close(url(tmp_path))


async def test_a_missing_schema_is_refused_where_it_is_not_to_be_made(tmp_path: Path) -> None:
    """With auto_migrate=False the command to run is named."""
    with pytest.raises(SchemaMismatch, match="dialogue db upgrade --store URL"):
        await SQLStore(url(tmp_path), auto_migrate=False).open()
    await open_and_close(url(tmp_path))
    store = SQLStore(url(tmp_path), auto_migrate=False)
    await store.open()
    await store.aclose()


async def test_two_logs_open_at_once(tmp_path: Path) -> None:
    """Migrations of two stores in one process do not get into each other's way."""
    stores = []
    for n in range(6):
        folder = tmp_path / str(n)
        folder.mkdir()
        stores.append(TestSharedEngine().make(folder) if n % 2 else SQLStore(url(folder)))
    await asyncio.gather(*(store.open() for store in stores))
    assert len({store.epoch for store in stores}) == 6
    await asyncio.gather(*(store.aclose() for store in stores))


def test_a_store_goes_on_in_another_event_loop(tmp_path: Path) -> None:
    """The lifespan of an application may be entered again."""
    store = SQLStore(url(tmp_path))

    async def live() -> int:
        await store.open()
        await asyncio.gather(store.append([draft()]), store.head("general"))
        last_seq = (await store.head("general")).last_seq
        await store.aclose()
        return last_seq

    assert [asyncio.run(live()), asyncio.run(live())] == [1, 2]


async def test_an_applications_engine_is_left_as_it_was(tmp_path: Path) -> None:
    """Nothing is set on its connections, its pool is not used up, and it is not disposed."""
    engine: AsyncEngine = create_async_engine(
        f"sqlite+aiosqlite:///{tmp_path / 'chat.db'}", pool_size=1, max_overflow=0, pool_timeout=30
    )
    store = SQLStore(engine)
    await store.open()
    await store.append([draft()])
    assert seqs(await store.page("general", limit=5)) == [1]
    async with engine.connect() as connection:
        assert (await connection.execute(text("PRAGMA foreign_keys"))).scalar() == 0
        assert (await connection.get_raw_connection()).driver_connection is not None
        await connection.execute(text("CREATE TABLE mine (id INTEGER)"))
        await connection.rollback()
    await store.aclose()
    async with engine.connect() as connection:
        assert (await connection.execute(text("SELECT count(*) FROM dialogue_events"))).scalar() == 1
    await engine.dispose()


# Faults


async def test_a_full_disk_loses_nothing_and_service_returns(store: SQLStore) -> None:
    """Acked events stay, refused ones leave no trace, and the next append after space is there works."""
    await store.append([draft() for _ in range(10)])
    pages = await writer_sql(store, "PRAGMA page_count")
    await writer_sql(store, f"PRAGMA max_page_count = {pages + 3}")
    large = b'"' + b"x" * 2000 + b'"'
    acked = 10

    async def fill() -> None:
        nonlocal acked
        for _ in range(100):
            acked += len(await store.append([draft(data_json=large) for _ in range(5)]))

    with pytest.raises(StoreUnavailable):
        await fill()
    with pytest.raises(StoreUnavailable):
        await store.append([draft(data_json=large) for _ in range(50)])
    assert seqs(await store.page("general", limit=1000)) == list(range(1, acked + 1))
    await writer_sql(store, "PRAGMA max_page_count = 1000000")
    [item] = await store.append([draft(data_json=large)])
    assert item.seq == acked + 1
    assert (await store.head("general")).last_seq == acked + 1


async def test_a_refused_draft_is_named_as_such_and_takes_its_batch_with_it(store: SQLStore) -> None:
    """All or nothing; the caller finds the culprit by halving."""
    await store.append([draft(key="$taken")])
    for poison in (draft(key="$taken"), draft(data_json=b"\xff")):
        with pytest.raises(DraftRefused):
            await store.append([draft(), poison, draft("other")])
    assert (await store.head("general")).last_seq == 1
    assert (await store.head("other")).last_seq == 0
    [item] = await store.append([draft()])
    assert (item.seq, recorded(item).position) == (2, 2)


async def test_a_commit_that_the_database_refuses_recorded_nothing(store: SQLStore) -> None:
    """SQLite keeps the transaction open, so it is known that nothing was committed."""
    await writer_sql(store, "CREATE TABLE parent (id INTEGER PRIMARY KEY)")
    await writer_sql(store, "CREATE TABLE child (id INTEGER REFERENCES parent DEFERRABLE INITIALLY DEFERRED)")
    await writer_sql(
        store,
        "CREATE TRIGGER poison AFTER INSERT ON dialogue_events BEGIN INSERT INTO child VALUES (1); END",
    )
    with pytest.raises(StoreUnavailable):
        await store.append([draft()])
    await writer_sql(store, "DROP TRIGGER poison")
    [item] = await store.append([draft()])
    assert item.seq == 1


async def test_a_lost_answer_to_a_commit_is_settled_by_keys(store: SQLStore) -> None:
    """Promise 3: the append may have been recorded; `settle` finds it and delivers it once."""
    assert isinstance(store._writer, ThreadWriter)
    await store.append([draft(key="before")])
    engine = store._writer._engine

    @event.listens_for(engine, "after_cursor_execute")
    def lose(connection: Any, cursor: Any, statement: str, *rest: Any) -> None:
        if statement == "COMMIT":
            event.remove(engine, "after_cursor_execute", lose)
            raise OperationalError("COMMIT", None, OSError("the answer was lost"))

    drafts = [draft(), draft(key="before"), draft(key="mine")]
    with pytest.raises(OutcomeUnknown):
        await store.append(drafts)
    settled = await store.settle([*drafts, draft()])
    assert [item and (item.seq, item.is_duplicate) for item in settled] == [
        (2, False),
        (1, True),
        (3, False),
        None,
    ]
    [item] = await store.append([draft()])
    assert item.seq == 4


@pytest.mark.parametrize("delay", range(12))
async def test_a_cancelled_append_leaves_the_writer_usable(store: SQLStore, delay: int) -> None:
    """Wherever the cancellation falls: settling tells all or nothing, and the next append works."""
    drafts = [draft() for _ in range(200)]
    appending = asyncio.create_task(store.append(drafts))
    for _ in range(delay):
        await asyncio.sleep(0)
    was_cancelled = appending.cancel()
    await asyncio.wait((appending,))
    assert was_cancelled == appending.cancelled()
    settled = await store.settle(drafts)
    assert len({item is None for item in settled}) == 1
    count = 0 if settled[0] is None else 200
    [item] = await store.append([draft()])
    assert item.seq == count + 1
    assert len((await store.page("general", limit=999)).events) == count + 1


async def test_an_append_that_a_close_did_not_wait_for_may_have_been_recorded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file system that hangs may let go later: nobody is told that nothing was recorded."""
    monkeypatch.setattr("dialogue.storage.sql.CLOSE_SECONDS", 0.01)
    monkeypatch.setattr("dialogue.storage.sql.CUT_SECONDS", 0.01)
    hangs, goes_on = threading.Event(), threading.Event()

    def clock() -> int:
        if is_hanging:
            hangs.set()
            goes_on.wait()
        return 1

    is_hanging = False
    store = SQLStore(url(tmp_path), clock=clock)
    await store.open()
    is_hanging = True
    appending = asyncio.create_task(store.append([draft()]))
    await asyncio.to_thread(hangs.wait)
    closing = asyncio.create_task(store.aclose())
    with pytest.raises(OutcomeUnknown):
        await appending
    goes_on.set()
    await closing
    is_hanging = False
    await store.open()
    assert (await store.head("general")).last_seq == 1
    await store.aclose()


async def test_closing_waits_for_a_cancelled_append(tmp_path: Path) -> None:
    """What the database was doing when the server stopped is finished, not torn."""
    store = SQLStore(url(tmp_path))
    await store.open()
    appending = {asyncio.create_task(store.append([draft() for _ in range(500)]))}
    await asyncio.sleep(0)
    assert all(task.cancel() for task in appending)
    await store.aclose()
    await asyncio.wait(appending)
    await store.open()
    assert len((await store.page("general", limit=999)).events) in (0, 500)
    await store.aclose()


@pytest.mark.parametrize("suite", [TestSQLStore, TestSharedEngine])
async def test_a_broken_connection_is_replaced(suite: type[StoreContract], tmp_path: Path) -> None:
    """The call that meets it is refused, the next one works."""
    store = suite().make(tmp_path)
    assert isinstance(store, SQLStore)
    await store.open()
    await store.append([draft()])
    writer = store._writer
    if isinstance(writer, ThreadWriter):
        await writer.run(lambda connection: connection.connection.driver_connection.close())  # type: ignore[union-attr]
    else:
        assert isinstance(writer, AsyncWriter)
        assert writer._connection is not None
        raw = await writer._connection.get_raw_connection()
        assert raw.dbapi_connection is not None
        driver_connection: Any = writer._engine.dialect.get_driver_connection(raw.dbapi_connection)
        await driver_connection.close()
    with pytest.raises(StoreUnavailable):
        await store.append([draft()])
    [item] = await store.append([draft()])
    assert item.seq == 2
    await store.aclose()


async def test_another_programs_transaction_makes_the_store_wait_then_unavailable(
    store: SQLStore, tmp_path: Path
) -> None:
    """An application that writes the same file holds up appends no longer than the busy timeout."""
    await writer_sql(store, "PRAGMA busy_timeout = 1")
    other = sqlite3.connect(tmp_path / "chat.db", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(StoreUnavailable):
        await store.append([draft()])
    assert seqs(await store.page("general", limit=1)) == []
    other.execute("ROLLBACK")
    other.close()
    assert (await store.append([draft()]))[0].seq == 1


async def test_a_removal_during_a_read_never_leaves_a_hole(
    store: SQLStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Promise 5: a page is complete above its floor, also when the floor rises between rows and floors."""
    await store.append([draft() for _ in range(40)])
    execute = Connection.execute
    state = {"is_removed": False}

    def remove_first(self: Connection, statement: Any, *args: Any, **kwargs: Any) -> Any:
        if statement is statements.floors and not state["is_removed"]:
            state["is_removed"] = True
            with create_engine(url(Path(store.name).parent)).begin() as other:
                execute(other, text("DELETE FROM dialogue_events WHERE position <= 20"))
                execute(
                    other, text("UPDATE dialogue_streams SET removed_through = 20, removed_through_seq = 20")
                )
        return execute(self, statement, *args, **kwargs)

    monkeypatch.setattr(Connection, "execute", remove_first)
    page = await store.page("general", after=0, limit=10)
    assert (seqs(page), page.floor_seq) == (list(range(21, 31)), 20)


# Cost


def plan(store: SQLStore, statement: Any, parameters: dict[str, Any]) -> str:
    """Return SQLite's plan for *statement*."""
    engine = create_engine(url(Path(store.name).parent))
    sql = str(
        statement.params(parameters).compile(dialect=engine.dialect, compile_kwargs={"literal_binds": True})
    )
    with engine.connect() as connection:
        rows = connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {sql}").all()
    engine.dispose()
    return "\n".join(row[3] for row in rows)


@pytest.mark.parametrize("names", [None, ("a",), ("a", "b"), ("a", "b", "c", "d", "e", "f", "g", "h")])
@pytest.mark.parametrize("before", [None, 50])
@pytest.mark.parametrize("after", [None, 5])
async def test_pages_search_the_index(
    store: SQLStore, names: tuple[str, ...] | None, before: int | None, after: int | None
) -> None:
    """A page costs the same at any depth: no scan of the events, and no sort of more than the page."""
    await store.append([draft(event=name) for name in "abcdefgh" * 10])
    count = None if names is None else len(names)
    statement = statements.page_statement(count, has_before=before is not None, has_after=after is not None)
    found = plan(store, statement, statements.page_parameters("general", names, before, after, 5))
    assert "SCAN dialogue_events" not in found, found
    assert "SEARCH dialogue_events USING" in found, found
    if count is None or count == 1:
        assert "TEMP B-TREE" not in found, found


async def test_other_statements_search_the_index(store: SQLStore) -> None:
    """So do pages by position, key look-ups and heads."""
    await store.append([draft(key=f"k{n}") for n in range(50)])
    of_stream = {"room_id": "general", "event_name": "message", "before_position": 5, "limit": 2}
    found = plan(store, statements.stream_page, of_stream)
    assert "SCAN" not in found, found
    assert "TEMP B-TREE" not in found, found
    keys = [("general", "ann", f"k{n}") for n in range(4)]
    for build in (statements.settle_statement, statements.known_statement):
        found = plan(store, build(4), statements.key_parameters(keys, 4))
        assert "SCAN dialogue_events" not in found, found
        assert "room_id=? AND key=? AND from_user=?" in found, found
    found = plan(store, statements.heads_statement(1), {"room_id_0": "general"})
    assert "SCAN" not in found, found
