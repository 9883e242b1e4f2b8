"""`SQLStore` on Postgres: the contract, and what is Postgres' own."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from functools import partial
from pathlib import Path
from random import Random, randrange
from typing import Any

import asyncpg  # type: ignore[import-untyped]
import msgspec
import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import Connection, make_url, text
from sqlalchemy.ext.asyncio import create_async_engine

from dialogue.errors import (
    ConfigError,
    DraftRefused,
    LogLocked,
    OutcomeUnknown,
    SchemaMismatch,
    StartError,
    StoreBusy,
    StoreUnavailable,
)
from dialogue.events import Draft
from dialogue.storage import migrate, statements, transactions
from dialogue.storage import postgres as postgres_module
from dialogue.storage.administration import Database
from dialogue.storage.base import Store
from dialogue.storage.memory import milliseconds
from dialogue.storage.postgres import PostgresWriter, lock_key
from dialogue.storage.sql import SQLStore
from dialogue.storage.tables import VERSION_TABLE, metadata
from dialogue.testing.store_contract import StoreContract, decoded, draft, recorded, seqs

from ..postgres import Cluster, Server, free_port, server
from ..proxy import Proxy
from .databases import PostgresDatabases
from .test_sql import OwnEngineStore, writer_sql


class PostgresContract(PostgresDatabases, StoreContract):
    """The contract with a database per folder."""


class TestPostgresStore(PostgresContract):
    """The contract over a database given by URL."""

    def make(self, folder: Path, clock: Callable[[], int] | None = None) -> Store:
        return SQLStore(self.url(folder), clock=clock or milliseconds)


class TestSharedPostgresEngine(PostgresContract):
    """The contract over an application's own engine."""

    def make(self, folder: Path, clock: Callable[[], int] | None = None) -> Store:
        engine = create_async_engine(self.url(folder).replace("postgresql", "postgresql+asyncpg"))
        return OwnEngineStore(engine, clock=clock or milliseconds)


class TestPostgresSchema(PostgresContract):
    """The contract in a schema of its own."""

    def make(self, folder: Path, clock: Callable[[], int] | None = None) -> Store:
        # One schema per folder: a database comes back with its own tables emptied, and no others.
        schema = f"Chat's {folder.parent.name} {folder.name}"
        return SQLStore(self.url(folder), schema=schema, auto_migrate=True, clock=clock or milliseconds)


@pytest.fixture
async def store(postgres_url: str) -> AsyncIterator[SQLStore]:
    store = SQLStore(postgres_url, lock_wait_seconds=0)
    await store.open()
    yield store
    await store.aclose()


def rows(url: str, sql: str) -> list[tuple[Any, ...]]:
    """Return what *sql* gives in a test's database."""
    return server().sql(sql, database=make_url(url).database)


async def through(proxy: Proxy, url: str, **options: Any) -> SQLStore:
    """Return an open store that reaches its database over *proxy*."""
    given = make_url(url).set(host="127.0.0.1", port=proxy.port)
    store = SQLStore(given, **{"lock_wait_seconds": 0, **options})
    await store.open()
    return store


@pytest.fixture
async def proxy(postgres: Server) -> AsyncIterator[Proxy]:
    async with Proxy(postgres.url.port or 5432) as proxy:
        yield proxy


async def until(condition: Callable[[], Any]) -> None:
    """Wait for a condition that nothing announces."""
    async with asyncio.timeout(30):
        while not condition():
            await asyncio.sleep(0.01)


# Settings


async def test_commits_are_durable_and_locks_end(postgres: Server) -> None:
    """Promise 2 on Postgres, also where the database's default is otherwise, and timeouts on the writer alone."""
    url = postgres.database()
    name = make_url(url).database
    postgres.sql(f"ALTER DATABASE {name} SET synchronous_commit = off")
    store = SQLStore(url)
    await store.open()
    names = "synchronous_commit", "lock_timeout", "statement_timeout", "idle_in_transaction_session_timeout"
    ours = [await writer_sql(store, f"SHOW {name}") for name in names]
    assert ours == ["on", "10s", "30s", "10s"]
    async with store._reader.connect() as connection:  # type: ignore[union-attr]
        theirs = [(await connection.exec_driver_sql(f"SHOW {name}")).scalar() for name in names]
    assert theirs == ["off", "0", "0", "0"]
    await store.append([draft()])
    await store.aclose()
    postgres.drop(url)


async def test_an_applications_engine_is_left_as_it_was(postgres_url: str) -> None:
    """Nothing is set on its connections, its pool is not used up, and it is not disposed."""
    engine = create_async_engine(
        postgres_url.replace("postgresql", "postgresql+asyncpg"), pool_size=1, max_overflow=0, pool_timeout=30
    )
    store = SQLStore(engine)
    await store.open()
    await store.append([draft()])
    assert seqs(await store.page("general", limit=5)) == [1]
    async with engine.connect() as connection:
        for name, setting in {"lock_timeout": "0", "enable_sort": "on", "application_name": ""}.items():
            assert (await connection.exec_driver_sql(f"SHOW {name}")).scalar() == setting
        await connection.exec_driver_sql("CREATE TEMPORARY TABLE mine (id int)")
        await connection.rollback()
    await store.aclose()
    async with engine.connect() as connection:
        assert (await connection.execute(text("SELECT count(*) FROM dialogue_events"))).scalar() == 1
    await engine.dispose()


# What is kept


VALUES: list[Any] = [
    12345678901234567890123,
    -0.1,
    1e22,
    5e-324,
    1.5,
    100000000000000000000,
    {"b": 1, "a": {"z": [], "y": {}}, "": None},
    ["", "grüße 🎉", "\u2028", '"\\/', "\x7f\x01"],
    [[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[1]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]],
    True,
    None,
    "",
]


async def test_the_tiers_agree_as_json_values(store: SQLStore) -> None:
    """JSONB reorders keys and writes numbers its own way; what they mean is what was published."""
    given = [json.dumps(value).encode() for value in VALUES]
    appended = await store.append([draft(data_json=data, meta_json=data) for data in given])
    read = (await store.page("general", limit=100)).events
    for value, item, event in zip(VALUES, appended, read, strict=True):
        for decode in (json.loads, msgspec.json.decode):
            hot, cold = (decode(one.json) for one in (recorded(item), event))
            assert hot == cold
            assert cold["data"] == cold["meta"] == value
    # As a double it is the same; only a reader with longer integers sees that it is written out.
    [huge] = await store.append([draft("huge", data_json=b"1e300")])
    [event] = (await store.page("huge", limit=1)).events
    assert float(decoded(event)["data"]) == decoded(recorded(huge))["data"]


@pytest.mark.parametrize(
    "poison",
    [
        draft(data_json=rb'"\u0000"'),
        draft(data_json=b"1e200000"),
        draft(data_json=b"{"),
        draft(data_json=b"\xff"),
        draft(sender="a\x00b"),
        draft(sender="\ud800"),
        draft(key="a\x00b"),
        draft(key="\ud800"),
        draft(key="k" * 256),
        draft("r" * 256),
    ],
    ids=[
        "null",
        "number",
        "no-json",
        "bytes",
        "sender-null",
        "sender",
        "key-null",
        "key",
        "long-key",
        "long-room",
    ],
)
async def test_a_draft_that_postgres_refuses_is_named_as_such(store: SQLStore, poison: Draft) -> None:
    """All or nothing, the writer keeps its connection, and the rest is taken without the culprit."""
    await store.append([draft()])
    pid = await writer_sql(store, "SELECT pg_backend_pid()")
    with pytest.raises(DraftRefused):
        await store.append([draft(), poison, draft("other")])
    assert (await store.head("general")).last_seq == 1
    assert (await store.head("other")).last_seq == 0
    [item, other] = await store.append([draft(), draft("other")])
    assert (item.seq, other.seq) == (2, 1)
    assert await writer_sql(store, "SELECT pg_backend_pid()") == pid


async def test_a_key_too_long_for_an_index_is_refused(store: SQLStore) -> None:
    """255 characters each may be more bytes than an entry of Postgres' indexes can have."""
    random = Random(1)
    wide = ["".join(chr(random.randrange(0x10000, 0x30000)) for _ in range(255)) for _ in range(3)]
    with pytest.raises(DraftRefused):
        await store.append([draft(wide[0], sender=wide[1], key=wide[2])])
    assert (await store.append([draft(wide[0], sender="ann", key="k")]))[0].seq == 1


# Order


async def test_ids_grow_in_commit_order_whatever_is_connected(postgres_url: str) -> None:
    """Three writers forced onto one log: no snapshot shows an id without all smaller ones; no seq is left out."""
    seed = randrange(10**6)
    print(f"seed {seed}")
    random = Random(seed)
    engine = create_async_engine(postgres_url.replace("postgresql", "postgresql+asyncpg"))
    reader = SQLStore(postgres_url)
    await reader.open()

    class Intruder(PostgresWriter):
        async def _own(self, *_: object, **__: object) -> None:
            return

    async def publish(number: int) -> None:
        writer = Intruder(
            engine.execution_options(isolation_level="AUTOCOMMIT"), name="", schema=None, lock_wait_seconds=0
        )
        appender = transactions.Appender(engine.dialect, clock=milliseconds)
        for batch in range(40):
            drafts = [
                draft(f"room{random.randrange(3)}", key=f"{number}-{batch}-{n}")
                for n in range(random.randint(1, 9))
            ]
            await writer.transact(partial(appender.append, drafts=drafts))
        await writer.aclose()

    publishing = asyncio.gather(*(publish(number) for number in range(3)))
    snapshots = 0
    async with engine.connect() as connection:
        while not publishing.done():
            found = await connection.exec_driver_sql(
                "SELECT count(*), coalesce(max(id), 0) FROM dialogue_events"
            )
            count, last = tuple(found.one())
            await connection.rollback()
            assert count == last, f"seed {seed}"
            snapshots += 1
    await publishing
    for number in range(3):
        found_seqs = seqs(await reader.page(f"room{number}", limit=2000))
        assert found_seqs == list(range(1, len(found_seqs) + 1))
    assert snapshots > 5
    await reader.aclose()
    await engine.dispose()


async def test_keys_are_found_by_their_index_in_a_log_that_was_never_analyzed(
    store: SQLStore, postgres_url: str
) -> None:
    """A server that knows nothing of a young log must not search its rooms for each key."""
    for size in (1, 300):
        await store.append([draft(key=f"{size}-{n}") for n in range(size)])
    arrays = "ARRAY['general'], ARRAY['ann'], ARRAY['k']", "ARRAY['general']"
    sql = statements.POSTGRES_READ.replace("$1::text[], $2::text[], $3::text[]", arrays[0])
    sql = sql.replace("$4::text[]", arrays[1])

    def explain(connection: Connection) -> str:
        return "\n".join(row[0] for row in connection.exec_driver_sql(f"EXPLAIN {sql}"))

    assert store._writer is not None
    plan = await store._writer.run(explain)
    assert "Index Scan using uq_dialogue_events_room_id_key_from_user" in plan, plan
    assert "Seq Scan" not in plan, plan


# Schemas


async def test_retention_looks_at_each_stream_and_not_at_all_events(
    store: SQLStore, postgres_url: str
) -> None:
    """A page of streams costs the same however long the log is, whatever the server thinks of its statistics."""
    await store.append([draft(f"room{n % 300}", "message", data_json=b"1") for n in range(3000)])
    rows(postgres_url, "ANALYZE dialogue_events")
    rows(postgres_url, "ANALYZE dialogue_streams")
    parameters = {"name_0": "message", "room_id": "", "event_name": ""}

    def explain(connection: Connection) -> str:
        compiled = statements.stored_streams(1).compile(
            dialect=connection.dialect, compile_kwargs={"render_postcompile": True}
        )
        values = [(compiled.params | parameters)[name] for name in compiled.positiontup or ()]
        return "\n".join(row[0] for row in connection.exec_driver_sql(f"EXPLAIN {compiled}", tuple(values)))

    assert store._writer is not None
    plan = await store._writer.run(explain)
    assert "Join" not in plan
    assert "Nested Loop" not in plan
    assert "Index Scan using uq_dialogue_events_room_id_event_name_position" in plan
    assert len([item async for item in store.stored_streams(["message"])]) == 300


async def test_a_missing_schema_is_refused_and_the_command_is_named(postgres: Server) -> None:
    """A server of another team's is not to be changed by a start, unless it was told to."""
    url = postgres.database(has_schema=False)
    with pytest.raises(
        SchemaMismatch, match=r"has schema none.*dialogue db upgrade --store.*auto_migrate=True"
    ):
        await SQLStore(url).open()
    assert rows(url, "SELECT * FROM pg_tables WHERE tablename LIKE 'dialogue%'") == []
    for auto_migrate in (True, None):
        store = SQLStore(url, auto_migrate=auto_migrate)
        await store.open()
        await store.aclose()
    rows(url, "UPDATE dialogue_version SET version_num = '9999'")
    with pytest.raises(SchemaMismatch, match="install that version"):
        await SQLStore(url, auto_migrate=True).open()
    postgres.drop(url)


async def test_a_start_that_upgrades_waits_for_an_upgrade_and_finds_it_done(postgres: Server) -> None:
    """`dialogue db upgrade` and a server that migrates by itself may start at once: neither fails over the other."""
    url = postgres.database(has_schema=False)
    store = SQLStore(url, auto_migrate=True)
    waiting = "SELECT 1 FROM pg_locks WHERE locktype = 'advisory' AND NOT granted"
    try:
        async with Database(SQLStore(url)) as database:
            await database.transact(
                lambda connection: connection.exec_driver_sql(
                    "SELECT pg_advisory_lock(hashtext('dialogue migration'))"
                ).close()
            )
            opening = asyncio.create_task(store.open())
            await until(lambda: rows(url, waiting))
            # Not its `upgrade`, which in one process waits for the one that has begun.
            await database.transact(database._store._upgrade)
        # Its session has ended, and its lock with it.
        await opening
        assert store.epoch
        await store.aclose()
    finally:
        postgres.drop(url)


async def test_logs_of_two_schemas_are_two_logs(postgres: Server) -> None:
    """Tables, version and owner are of the schema; nothing is made or read elsewhere."""
    url = postgres.database(has_schema=False)
    engine = create_async_engine(url.replace("postgresql", "postgresql+asyncpg"))
    stores = [
        SQLStore(url, schema="one", auto_migrate=True),
        SQLStore(engine, schema='Chat "two"', auto_migrate=True),
        SQLStore(url, auto_migrate=True),
    ]
    for number, store in enumerate(stores):
        await store.open()
        await store.append([draft() for _ in range(number + 1)])
    assert len({store.epoch for store in stores}) == 3
    for number, store in enumerate(stores):
        assert seqs(await store.page("general", limit=9)) == list(range(1, number + 2))
        assert [name async for name, _, _ in store.streams()] == ["general"]
    found = rows(
        url,
        "SELECT schemaname, count(*) FROM pg_tables WHERE tablename LIKE 'dialogue%' GROUP BY 1 ORDER BY 1",
    )
    assert [schema for schema, _ in found] == ['Chat "two"', "one", "public"]
    assert len({count for _, count in found}) == 1
    with pytest.raises(LogLocked, match="schema public"):
        await SQLStore(url, schema="public", lock_wait_seconds=0).open()
    for store in stores:
        await store.aclose()
    await engine.dispose()
    postgres.drop(url)


@pytest.mark.parametrize(("given", "schema"), [("sqlite:///chat.db", "chat"), ("postgresql://h/x", "")])
def test_a_schema_is_for_postgres(given: str, schema: str) -> None:
    """A SQLite file has none, and an empty name is none."""
    with pytest.raises(ConfigError, match="schema="):
        SQLStore(given, schema=schema)


async def test_providers_urls_are_taken(postgres_url: str) -> None:
    """libpq's `sslmode`, which is in the URLs that providers hand out, is asyncpg's `ssl`."""
    store = SQLStore(f"{postgres_url}?sslmode=prefer", auto_migrate=True)
    await store.open()
    await store.aclose()


def test_an_option_that_the_driver_does_not_take_is_named() -> None:
    """It is refused where it is written, and not with the driver's TypeError when the server starts."""
    with pytest.raises(ConfigError, match=r"'channel_binding'.*Leave it out"):
        SQLStore("postgresql://chat:secret@localhost/chat?sslmode=require&channel_binding=require")


def test_a_log_in_a_schema_is_upgraded_by_its_dialogue() -> None:
    """A URL cannot name the schema, so that the remedy must not be a URL."""
    assert "dialogue db upgrade MODULE:ATTRIBUTE" in migrate.upgrade_remedy("realtime")
    assert "dialogue db upgrade --store URL" in migrate.upgrade_remedy(None)


async def test_a_server_that_is_not_there_is_named(tmp_path: Path) -> None:
    """The start ends with what to look at, and without the password."""
    with pytest.raises(StartError, match="Check that the server runs") as caught:
        await SQLStore(f"postgresql://ann:secret@127.0.0.1:{free_port()}/x").open()
    assert "secret" not in str(caught.value)


# The owner


OWNER = """
import asyncio, sys
from dialogue.storage.sql import SQLStore
from dialogue.storage.tables import VERSION_TABLE, metadata

async def main():
    store = SQLStore(sys.argv[1], lock_wait_seconds=float(sys.argv[2]))
    await store.open()
    print("open", flush=True)
    await asyncio.to_thread(sys.stdin.read)

asyncio.run(main())
"""


def test_another_process_is_refused_until_the_owner_dies(postgres_url: str) -> None:
    """The lock is the server's and ends with the connection: an owner that is killed leaves nothing behind."""
    command = [sys.executable, "-c", OWNER, postgres_url]
    with subprocess.Popen([*command, "0"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as owner:
        assert owner.stdout is not None
        assert owner.stdout.readline() == "open\n"
        refused = subprocess.run([*command, "0"], input="", capture_output=True, text=True, check=False)
        assert "LogLocked" in refused.stderr
        assert "stop the other one" in refused.stderr
        owner.kill()
    accepted = subprocess.run([*command, "30"], input="", capture_output=True, text=True, check=False)
    assert accepted.stdout == "open\n"


async def test_a_waiting_owner_takes_over_and_says_once_that_it_waits(
    store: SQLStore, postgres_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    """A restart overlaps with the server that stops: the new one waits for its log."""
    await store.append([draft()])
    second = SQLStore(postgres_url, lock_wait_seconds=30)
    opening = asyncio.create_task(second.open())
    await until(lambda: "waiting 30 s" in caplog.text)
    await asyncio.sleep(0)
    await store.aclose()
    await opening
    assert caplog.text.count("waiting 30 s") == 1
    assert (await second.head("general")).last_seq == 1
    await second.aclose()


@pytest.mark.parametrize("is_shared", [False, True])
async def test_a_cut_connection_costs_nothing_between_two_appends(
    postgres: Server, postgres_url: str, is_shared: bool
) -> None:
    """What broke while it lay idle is replaced before anything is begun, for reads and writes, whoever has the pool."""
    if is_shared:
        engine = create_async_engine(postgres_url.replace("postgresql", "postgresql+asyncpg"))
        store: SQLStore = OwnEngineStore(engine)
    else:
        store = SQLStore(postgres_url)
    await store.open()
    writer = store._writer
    assert isinstance(writer, PostgresWriter)
    for number in range(1, 6):
        [item] = await store.append([draft()])
        assert item.seq == number
        pages = await asyncio.gather(*(store.page("general", limit=1) for _ in range(5)))
        assert [seqs(page) for page in pages] == [[number]] * 5
        assert postgres.cut(postgres_url) >= 2
        await until(writer._has_ended)
    await store.aclose()


async def test_our_own_half_open_session_does_not_keep_us_out(
    proxy: Proxy, postgres_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    """The server believes in a connection that is gone: it is ended there, by its number and its start."""
    store = await through(proxy, postgres_url)
    await store.append([draft()])
    [(pid,)] = rows(postgres_url, "SELECT pid FROM pg_locks WHERE locktype = 'advisory'")
    proxy.leave_half_open()
    await until(lambda: store._writer._has_ended())  # type: ignore[union-attr]
    assert rows(postgres_url, "SELECT pid FROM pg_locks WHERE locktype = 'advisory'") == [(pid,)]
    [item] = await store.append([draft()])
    assert item.seq == 2
    [(other,)] = rows(postgres_url, "SELECT pid FROM pg_locks WHERE locktype = 'advisory'")
    assert other != pid
    assert "another server" not in caplog.text
    await store.aclose()


async def test_an_owner_that_lost_the_log_refuses_until_the_other_has_ended(
    proxy: Proxy, postgres_url: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Losing the connection is losing the log: it does not write behind the back of who took over."""
    monkeypatch.setattr(postgres_module, "RETAKE_SECONDS", 0.05)
    first = await through(proxy, postgres_url)
    await first.append([draft()])
    second = SQLStore(postgres_url, lock_wait_seconds=30)
    opening = asyncio.create_task(second.open())
    await until(lambda: "waiting 30 s" in caplog.text)
    proxy.cut()
    await opening
    for _ in range(2):
        with pytest.raises(StoreUnavailable, match="another server has taken the log"):
            await first.append([draft()])
    assert caplog.text.count("another server took the log") == 1
    assert seqs(await first.page("general", limit=9)) == [1]
    await second.aclose()
    # It wrote nothing, so nothing was missed here.
    assert (await first.append([draft()]))[0].seq == 2
    assert "has the log" in caplog.text
    await first.aclose()


async def test_an_owner_that_missed_events_does_not_go_on(
    proxy: Proxy, postgres_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Its rings and its subscribers know nothing of what the other one recorded; only a restart does."""
    first = await through(proxy, postgres_url)
    await first.append([draft()])
    second = SQLStore(postgres_url, lock_wait_seconds=30)
    opening = asyncio.create_task(second.open())
    await until(lambda: "waiting 30 s" in caplog.text)
    proxy.cut()
    await opening
    await second.append([draft()])
    await second.aclose()
    for _ in range(2):
        with pytest.raises(StoreUnavailable, match="another server has written"):
            await first.append([draft()])
    assert "restart this one" in caplog.text
    assert seqs(await first.page("general", limit=9)) == [1, 2]
    await first.aclose()
    await first.open()
    assert (await first.append([draft()]))[0].seq == 3
    await first.aclose()


# Outcomes


async def test_what_a_driver_raises_while_connecting_is_unavailable(
    store: SQLStore, postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A starting server's answer, or whatever an application's own creator raises, tells that nothing was done."""
    appended = await store.append([draft(key="k")])

    async def refuse(*_: Any, **__: Any) -> Any:
        raise RuntimeError("no token to connect with")

    rows(
        postgres_url,
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
        "WHERE datname = current_database() AND pid <> pg_backend_pid()",
    )
    with monkeypatch.context() as patched:
        patched.setattr("asyncpg.connect", refuse)
        for call in (
            lambda: store.head("general"),
            lambda: store.append([draft()]),
            lambda: store.settle([draft(key="k")]),
            lambda: store.mark_handed("general", "message", 1),
        ):
            with pytest.raises(StoreUnavailable):
                await call()
    assert (await store.settle([draft(key="k")]))[0] is not None
    assert (await store.head("general")).last_seq == appended[0].seq


@pytest.mark.parametrize("lost", ["answer", "question"])
async def test_a_lost_commit_is_settled_by_keys(proxy: Proxy, postgres_url: str, lost: str) -> None:
    """Promise 3: the server had the COMMIT or not, and `settle` tells which."""
    store = await through(proxy, postgres_url)
    await store.append([draft(key="before")])
    proxy.lose_commit = lost
    drafts = [draft(), draft(key="before"), draft(key="mine")]
    with pytest.raises(OutcomeUnknown):
        await store.append(drafts)
    settled = await store.settle([*drafts, draft()])
    found = [item and (item.seq, item.is_duplicate) for item in settled]
    if lost == "answer":
        assert found == [(2, False), (1, True), (3, False), None]
    else:
        assert found == [None, (1, True), None, None]
    again = await store.append([draft(key="mine")])
    assert (again[0].seq, again[0].is_duplicate) == ((3, True) if lost == "answer" else (2, False))
    await store.aclose()


async def test_settling_waits_for_the_end_of_the_lost_transaction(store: SQLStore, postgres_url: str) -> None:
    """Whoever holds the append's lock may still commit: nothing is told before that is over."""
    key = lock_key("append", "public")
    other = await asyncpg.connect(postgres_url)
    await other.execute(f"BEGIN; SELECT pg_advisory_xact_lock({key})")
    settling = asyncio.create_task(store.settle([draft(key="late")]))
    waiting = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted"
    await until(lambda: rows(postgres_url, waiting) == [(1,)])
    assert not settling.done()
    insert = """
        INSERT INTO dialogue_events (id, room_id, seq, event_name, kind, event_data, from_user, timestamp, key,
        position, unread_position, created_at)
        VALUES (1, 'general', 1, 'message', 'event', '1', 'ann', 1, 'late', 1, 1, 1); COMMIT
    """
    await other.execute(insert)
    await other.close()
    [item] = await settling
    assert item is not None
    assert item.seq == 1


async def test_a_cut_before_commit_recorded_nothing(proxy: Proxy, postgres_url: str) -> None:
    """The connection is lost inside the transaction: that is known, and not unknown."""
    store = await through(proxy, postgres_url)
    key = lock_key("append", "public")
    other = await asyncpg.connect(postgres_url)
    await other.execute(f"BEGIN; SELECT pg_advisory_xact_lock({key})")
    appending = asyncio.create_task(store.append([draft(key="k")]))
    waiting = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted"
    await until(lambda: rows(postgres_url, waiting) == [(1,)])
    proxy.cut()
    with pytest.raises(StoreUnavailable):
        await appending
    await other.execute("ROLLBACK")
    await other.close()
    [item] = await store.append([draft(key="k")])
    assert (item.seq, item.is_duplicate) == (1, False)
    await store.aclose()


async def test_a_frozen_server_holds_up_nothing_for_ever(
    cluster: Cluster, cluster_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Writes and reads end at their bounds, connecting too, closing too; afterwards all is as before."""
    monkeypatch.setattr(postgres_module, "WRITE_SECONDS", 0.3)
    monkeypatch.setattr(postgres_module, "CONNECT_SECONDS", 0.3)
    monkeypatch.setattr("dialogue.storage.sql.READ_SECONDS", 0.3)
    monkeypatch.setattr("dialogue.storage.read_turns.WAIT_SECONDS", 0.2)
    monkeypatch.setattr("dialogue.storage.sql.CLOSE_SECONDS", 0.3)
    store = SQLStore(cluster_url)
    await store.open()
    await store.append([draft(key="first")])
    cluster.freeze()
    for _ in range(2):
        with pytest.raises(StoreUnavailable):
            await store.append([draft(key="second")])
    reads = [store.page("general", limit=1) for _ in range(30)]
    outcomes = await asyncio.gather(*reads, return_exceptions=True)
    # Those that never had their turn are told that it was that.
    assert {type(outcome) for outcome in outcomes} == {StoreUnavailable, StoreBusy}
    cluster.thaw()
    [item] = await store.append([draft(key="second")])
    assert (item.seq, item.is_duplicate) == (2, False)
    assert seqs(await store.page("general", limit=5)) == [1, 2]
    cluster.freeze()
    appending = asyncio.create_task(store.append([draft()]))
    await asyncio.sleep(0)
    await store.aclose()
    with pytest.raises((StoreUnavailable, OutcomeUnknown)):
        await appending
    cluster.thaw()
    await store.open()
    await store.aclose()


async def test_indexed_text_is_collated_by_bytes(store: SQLStore, postgres_url: str) -> None:
    """An update of the system's library, which may change a language's order, cannot break a unique index."""
    found = rows(
        postgres_url,
        """
        SELECT DISTINCT i.indexrelid::regclass::text, c.collname
        FROM pg_index AS i
        JOIN pg_attribute AS a ON a.attrelid = i.indexrelid AND a.attcollation <> 0
        JOIN pg_collation AS c ON c.oid = a.attcollation
        WHERE i.indrelid::regclass::text LIKE 'dialogue%' AND i.indrelid::regclass::text <> 'dialogue_version'
        """,
    )
    assert len(found) >= 6
    assert {collation for _, collation in found} == {"C"}
    await store.append([draft(room) for room in ("b", "a", "B", "ä", "A")])
    assert [room async for room, _, _ in store.streams()] == ["A", "B", "a", "b", "ä"]


async def test_upgrading_from_nothing_gives_the_tables(postgres: Server) -> None:
    """No difference between what the migrations make on Postgres and what the code declares."""
    url = postgres.database(has_schema=False)
    store = SQLStore(url, auto_migrate=True)
    await store.open()

    def compare(connection: Connection) -> list[Any]:
        options = {"version_table": VERSION_TABLE, "compare_type": True}
        return list(compare_metadata(MigrationContext.configure(connection, opts=options), metadata))

    assert store._writer is not None
    assert await store._writer.run(compare) == []
    await store.aclose()
    postgres.drop(url)
