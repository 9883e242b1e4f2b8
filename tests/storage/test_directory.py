"""Directories: the contract over every kind of store, and what is each one's own."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Connection, event, insert, text
from sqlalchemy.ext.asyncio import create_async_engine

from dialogue.errors import OutcomeUnknown, StoreUnavailable
from dialogue.events import Draft
from dialogue.storage import memory_directory
from dialogue.storage.base import (
    Appended,
    FeedItem,
    LogPage,
    RoomHead,
    Store,
    StoredStream,
    StreamState,
    UserEvents,
)
from dialogue.storage.directory import Place
from dialogue.storage.memory import MemoryStore, milliseconds
from dialogue.storage.memory_directory import MemoryDirectory
from dialogue.storage.sql import SQLStore
from dialogue.storage.tables import markers, rooms
from dialogue.testing import FaultyStore
from dialogue.testing.directory_contract import DirectoryContract, mark, publish, room, session
from dialogue.testing.store_contract import draft

from .databases import PostgresDatabases, migrated
from .test_sql import OwnEngineStore


class TestMemory(DirectoryContract):
    """The contract over memory."""

    is_durable = False

    def make(self, folder: Path, clock: Callable[[], int] | None = None) -> Store:
        return MemoryStore(clock=clock or milliseconds)


class PlainStore(Store):
    """A store of an application's own from before there were directories."""

    def __init__(self, inner: Store) -> None:
        self._inner = inner

    @property
    def epoch(self) -> str:
        return self._inner.epoch

    async def open(self) -> None:
        await self._inner.open()

    async def aclose(self) -> None:
        await self._inner.aclose()

    async def append(self, drafts: Sequence[Draft]) -> list[Appended]:
        return await self._inner.append(drafts)

    async def settle(self, drafts: Sequence[Draft]) -> list[Appended | None]:
        return await self._inner.settle(drafts)

    async def head(self, room_id: str) -> RoomHead:
        await asyncio.sleep(0)
        return await self._inner.head(room_id)

    async def page(
        self,
        room_id: str,
        *,
        event_names: Collection[str] | None = None,
        before: int | None = None,
        after: int | None = None,
        limit: int,
    ) -> LogPage:
        await asyncio.sleep(0)
        return await self._inner.page(
            room_id, event_names=event_names, before=before, after=after, limit=limit
        )

    async def stream_page(
        self, room_id: str, event_name: str, *, before_position: int, limit: int
    ) -> LogPage:
        return await self._inner.stream_page(
            room_id, event_name, before_position=before_position, limit=limit
        )

    async def mark_handed(self, room_id: str, event_name: str, through: int) -> None:
        await self._inner.mark_handed(room_id, event_name, through)

    async def remove(self, room_id: str, event_name: str, through: int) -> None:
        await self._inner.remove(room_id, event_name, through)

    async def streams(self) -> AsyncIterator[tuple[str, str, StreamState]]:
        async for stream in self._inner.streams():
            yield stream

    async def feed(self, after: int, *, limit: int) -> list[FeedItem]:
        return await self._inner.feed(after, limit=limit)

    async def last_id(self) -> int:
        return await self._inner.last_id()

    async def stored_streams(self, event_names: Collection[str]) -> AsyncIterator[StoredStream]:
        async for stream in self._inner.stored_streams(event_names):
            yield stream

    async def position_before(self, room_id: str, event_name: str, *, timestamp: int, limit: int) -> int:
        return await self._inner.position_before(room_id, event_name, timestamp=timestamp, limit=limit)

    async def user_events(self, user_id: str, *, after: int, limit: int) -> UserEvents:
        return await self._inner.user_events(user_id, after=after, limit=limit)


class TestDefault(DirectoryContract):
    """The contract over a store that knows nothing of directories."""

    is_durable = False
    keeps_positions = False

    def make(self, folder: Path, clock: Callable[[], int] | None = None) -> Store:
        return PlainStore(SQLStore(f"sqlite:///{migrated(folder)}", clock=clock or milliseconds))


class TestSQLite(DirectoryContract):
    """The contract over a SQLite file."""

    def make(self, folder: Path, clock: Callable[[], int] | None = None) -> Store:
        return SQLStore(f"sqlite:///{migrated(folder)}", clock=clock or milliseconds)


class TestSharedEngine(DirectoryContract):
    """The contract over an application's own engine."""

    def make(self, folder: Path, clock: Callable[[], int] | None = None) -> Store:
        engine = create_async_engine(f"sqlite+aiosqlite:///{migrated(folder)}")
        return OwnEngineStore(engine, clock=clock or milliseconds)


class TestPostgres(PostgresDatabases, DirectoryContract):
    """The contract over Postgres."""

    def make(self, folder: Path, clock: Callable[[], int] | None = None) -> Store:
        return SQLStore(self.url(folder), clock=clock or milliseconds)


class TestPostgresSchema(PostgresDatabases, DirectoryContract):
    """The contract over Postgres in a schema of its own."""

    def make(self, folder: Path, clock: Callable[[], int] | None = None) -> Store:
        schema = f"Chat's {folder.parent.name} {folder.name}"
        return SQLStore(self.url(folder), schema=schema, auto_migrate=True, clock=clock or milliseconds)


class TestFaulty(DirectoryContract):
    """The contract through the double that fails on purpose, while it does not."""

    is_durable = False

    def make(self, folder: Path, clock: Callable[[], int] | None = None) -> Store:
        return FaultyStore(MemoryStore(clock=clock or milliseconds))


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[SQLStore]:
    store = SQLStore(f"sqlite:///{tmp_path / 'chat.db'}")
    await store.open()
    yield store
    await store.aclose()


@contextmanager
def reads(store: SQLStore) -> Iterator[list[str]]:
    """Collect the statements that are read with inside the block."""
    assert store._reader is not None
    engine = store._reader.sync_engine
    found: list[str] = []

    def note(connection: Any, cursor: Any, statement: str, *rest: Any) -> None:
        found.append(statement)

    event.listen(engine, "before_cursor_execute", note)
    try:
        yield found
    finally:
        event.remove(engine, "before_cursor_execute", note)


async def test_a_thousand_rooms_are_one_statement(store: SQLStore) -> None:
    """All of a user's rooms and their counts, and a few of them, whoever else is in them."""
    users = ["ann", "bob", "eve"]

    def fill(connection: Connection) -> None:
        numbers = range(1_000)
        connection.execute(
            insert(rooms),
            [
                {"room_id": f"r{n:03}", "last_seq": n, "last_timestamp": 1, "last_unread_position": n}
                for n in numbers
            ],
        )
        connection.execute(
            insert(markers),
            [
                {"room_id": f"r{n:03}", "user_id": user, "seq": 0, "unread_position": n // 2}
                for n in numbers
                for user in users
            ],
        )

    await store._change(fill)
    with reads(store) as statements:
        found = await store.directory.markers("ann")
    assert len(statements) == 1
    assert [(marker.room_id, marker.unread) for marker in found] == [
        (f"r{n:03}", n - n // 2) for n in range(1_000)
    ]
    for wanted in (["r001", "r500"], [f"r{n:03}" for n in range(0, 1_000, 2)]):
        with reads(store) as statements:
            found = await store.directory.markers("ann", wanted)
        assert len(statements) == 1
        assert [marker.room_id for marker in found] == wanted


async def test_many_users_are_one_statement(store: SQLStore) -> None:
    """And no more is read of them than is wanted."""
    users = [f"user{n:03}" for n in range(256)]
    for name in ("a", "b"):
        await store.directory.add_member(name, users)
    with reads(store) as statements:
        found = await store.directory.markers_of(users, limit=512)
    assert len(statements) == 1
    assert len(found) == 256
    with reads(store) as statements:
        found = await store.directory.markers_of(users, limit=511)
    assert len(statements) == 1
    assert len(found) == 255
    with reads(store) as statements:
        found = await store.directory.markers_of(users, limit=1)
    assert len(statements) == 2
    assert {user_id: len(of_user) for user_id, of_user in found.items()} == {"user000": 2}


async def test_rooms_are_joined_in_one_transaction(store: SQLStore) -> None:
    """Those that many enter at once, and nothing is written of those who are members."""
    assert store._writer is not None
    changes: list[int] = []
    transact = store._writer.transact

    async def counted(work: Callable[[Connection], Any]) -> Any:
        result = await transact(work)
        changes.append(len(result))
        return result

    store._writer.transact = counted  # type: ignore[method-assign]
    await store.directory.add_member("room0", ["ann"])
    await store.directory.add_members({f"room{n}": {"ann": None, "bob": Place(0, 0)} for n in range(300)})
    await store.directory.add_members({f"room{n}": {"bob": None} for n in range(300)})
    assert changes == [1, 599]


async def test_a_default_call_for_several_users_leaves_nothing_running() -> None:
    """One that fails waits for the others of its own, and tells the first error."""
    store = FaultyStore(MemoryStore())
    await store.open()
    directory, ended = store.inner.directory, list[str]()
    markers = directory.markers

    async def some_fail(user_id: str, room_ids: Any = None) -> Any:
        for _ in range(int(user_id)):
            await asyncio.sleep(0)
        ended.append(user_id)
        if user_id in ("3", "5"):
            raise StoreUnavailable(user_id)
        return await markers(user_id, room_ids)

    directory.markers = some_fail  # type: ignore[method-assign]
    with pytest.raises(StoreUnavailable, match="3"):
        await store.directory.markers_of([str(n) for n in range(1, 12)], limit=1_000)
    assert ended == [str(n) for n in range(1, 9)]
    calling = asyncio.create_task(store.directory.markers_of(["100000000"], limit=1))
    await asyncio.sleep(0.01)
    calling.cancel()
    with pytest.raises(asyncio.CancelledError):
        await calling
    assert [task for task in asyncio.all_tasks() if task is not asyncio.current_task()] == []
    await store.aclose()


async def test_a_users_markers_are_searched_by_index(store: SQLStore) -> None:
    """Neither all markers nor all rooms are read, and nothing is sorted."""
    with reads(store) as statements:
        await store.directory.markers("ann")
        await store.directory.markers("ann", ["general", "other"])
        await store.directory.markers_of(["ann", "bob", "eve"], limit=5)
        await store.directory.sessions("ann", limit=5)
        await store.directory.sessions(limit=5)
    for statement in statements:

        def plan(connection: Connection, statement: str = statement) -> list[str]:
            parameters = ("ann",) * statement.count("?")
            rows = connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {statement}", parameters)
            return [row.detail for row in rows]

        steps = await store._read(plan)
        assert steps
        assert all("INDEX" in step or step.startswith("CORRELATED") for step in steps), steps
        assert not any("TEMP B-TREE" in step for step in steps), steps


async def test_members_who_are_there_are_only_read(store: SQLStore) -> None:
    """Joining again takes no turn among the appends."""
    await store.directory.add_member("general", ["ann", "bob"])
    assert store._writer is not None
    changes = 0
    transact = store._writer.transact

    async def counted(work: Callable[[Connection], Any]) -> Any:
        nonlocal changes
        changes += 1
        return await transact(work)

    store._writer.transact = counted  # type: ignore[method-assign]
    await store.directory.add_member("general", ["bob", "ann"])
    assert changes == 0
    await store.directory.add_member("general", ["bob", "eve"])
    assert changes == 1


async def test_an_unknown_outcome_can_be_tried_again(store: SQLStore) -> None:
    """A COMMIT that did not answer is told as unavailable; the same call once more makes it so."""
    assert store._writer is not None
    transact = store._writer.transact
    is_lost = True

    async def losing(work: Callable[[Connection], Any]) -> Any:
        nonlocal is_lost
        result = await transact(work)
        if is_lost:
            is_lost = False
            raise OutcomeUnknown
        return result

    store._writer.transact = losing  # type: ignore[method-assign]
    with pytest.raises(StoreUnavailable):
        await store.directory.add_member("general", ["ann"])
    await publish(store, "message")
    [marker] = await store.directory.add_member("general", ["ann"])
    assert (marker.seq, marker.unread) == (0, 1)


async def test_what_a_removed_room_loses_is_lost_together(store: SQLStore) -> None:
    """A transaction that fails half way leaves the record and the members."""
    await store.directory.save_room(room())
    await store.directory.add_member("club", ["ann"])
    await store._change(
        lambda connection: connection.execute(
            text(
                "CREATE TRIGGER no BEFORE DELETE ON dialogue_markers "
                "BEGIN SELECT RAISE(ABORT, 'not now'); END"
            )
        ).close()
    )
    with pytest.raises(StoreUnavailable):
        await store.directory.remove_room("club")
    assert await store.directory.rooms() == [room()]
    assert await store.directory.members("club", limit=1) == ["ann"]


@pytest.mark.parametrize("kind", ["memory", "sqlite"])
async def test_a_closed_store_has_no_directory(tmp_path: Path, kind: str) -> None:
    """Reads and changes are refused before it is opened and after it is closed."""
    store = MemoryStore() if kind == "memory" else SQLStore(f"sqlite:///{tmp_path / 'chat.db'}")
    directory = store.directory
    for _ in range(2):
        for call in (
            directory.rooms(),
            directory.save_room(room()),
            directory.add_member("general", ["ann"]),
            directory.mark_read("general", "ann", 1, uncounted=()),
            directory.add_members({"general": {"ann": None}}),
            directory.markers("ann"),
            directory.markers_of(["ann"], limit=1),
            directory.save_sessions([session("c1")]),
        ):
            with pytest.raises(StoreUnavailable):
                await call
        await store.open()
        assert await directory.rooms() == []
        await store.aclose()


async def test_a_faulty_directory_fails_as_it_is_told() -> None:
    """Changes before they change anything, reads with all other reads."""
    store = FaultyStore(MemoryStore())
    await store.open()
    store.fail_directory = StoreUnavailable("no")
    for change in (
        store.directory.save_room(room()),
        store.directory.remove_room("club"),
        store.directory.add_member("general", ["ann"]),
        store.directory.add_members({"general": {"ann": None}}),
        store.directory.remove_member("general", "ann"),
        store.directory.mark_read("general", "ann", 1, uncounted=()),
        store.directory.save_sessions([session("c1")]),
        store.directory.end_sessions(),
        store.directory.remove_sessions(before=1),
        store.directory.forget_user("ann"),
    ):
        with pytest.raises(StoreUnavailable):
            await change
    assert await store.directory.rooms() == []
    assert await store.directory.members("general", limit=1) == []
    store.fail_directory = None
    await store.directory.save_room(room())
    store.fail_read = StoreUnavailable("no")
    for read in (
        store.directory.rooms(),
        store.directory.members("general", limit=1),
        store.directory.markers("ann"),
        store.directory.markers_of(["ann"], limit=1),
        store.directory.sessions(limit=1),
    ):
        with pytest.raises(StoreUnavailable):
            await read
    await store.aclose()


async def test_the_default_directory_counts_a_bounded_part(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is too far behind a marker is left out until the marker has moved on."""
    monkeypatch.setattr(memory_directory, "PAGE_EVENTS", 5)
    monkeypatch.setattr(memory_directory, "COUNTED_EVENTS", 20)
    store = PlainStore(MemoryStore())
    assert isinstance(store.directory, MemoryDirectory)
    await store.open()
    await store.directory.add_member("general", ["ann"])
    await publish(store, *["message"] * 50)
    assert [(await mark(store, "ann", seq)).unread for seq in (0, 10, 25, 35, 47)] == [50, 20, 20, 15, 3]
    await store.aclose()


async def test_a_member_removed_while_a_marker_moves_stays_removed() -> None:
    """What the default directory finds after it has waited for its store holds."""
    store = PlainStore(MemoryStore())
    await store.open()
    await store.append([draft(), draft()])
    await store.directory.add_member("general", ["ann"])
    await store.append([draft(), draft()])
    moving = asyncio.create_task(store.directory.mark_read("general", "ann", 3, uncounted=()))
    reading = asyncio.create_task(store.directory.markers("ann"))
    await asyncio.sleep(0)
    assert await store.directory.remove_member("general", "ann")
    assert await moving is None
    assert await reading == []
    assert await store.directory.members("general", limit=1) == []
    await store.aclose()
