"""Sessions: who is and was connected, kept over restarts and crashes; over a real WebSocket."""

from __future__ import annotations

import asyncio
import signal
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from dialogue import (
    Dialogue,
    History,
    Limits,
    MemoryStore,
    RoomConfig,
    SessionInfo,
    SQLStore,
    Store,
    StoreUnavailable,
    define_event,
)
from dialogue.testing import FaultyStore

from .harness import eventually, serve, wire
from .test_crash import Server

message = define_event("message", history=History(limit=5))
reaction = define_event("reaction", history=History(limit=5), counts_unread=False)

QUICK = Limits(sessions_seconds=0.01)


@pytest.fixture(params=["memory", "sqlite", "postgres"])
def make_store(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[], Store]:
    """Makes a store of each kind; of those that last, always the same log."""
    if request.param == "memory":
        return MemoryStore
    if request.param == "postgres":
        url: str = request.getfixturevalue("postgres_url")
        return lambda: SQLStore(url)
    return lambda: SQLStore(f"sqlite:///{tmp_path / 'log.db'}")


def chat(store: Store | None = None, *, limits: Limits = QUICK) -> Dialogue:
    """A chat with a room, and one that is in no inbox."""
    rooms = {"general": RoomConfig(events=[message]), "quiet": RoomConfig(events=[reaction])}
    return Dialogue(rooms, store=store, limits=limits)


async def kept(dialogue: Dialogue, user_id: str | None = None) -> list[Any]:
    """Return what the store has of sessions."""
    return list(await dialogue.store.directory.sessions(user_id, limit=1000))


async def until_kept(dialogue: Dialogue, condition: Callable[[list[Any]], bool]) -> list[Any]:
    """Wait until what the store has of sessions is so."""
    async with asyncio.timeout(20):
        while not condition(found := await kept(dialogue)):
            await asyncio.sleep(0.005)
        return found


async def test_sessions_are_listed_with_rooms_and_what_is_read(make_store: Callable[[], Store]) -> None:
    """Open and ended ones, the last seen first; a room that is in no inbox has no seq."""
    dialogue = chat(make_store())
    async with serve(dialogue) as address, wire(address) as first:
        await first.ask("join", room="general")
        await first.ask("join", room="quiet")
        await first.trigger("general", "message", 1)
        await first.trigger("general", "message", 2)
        await first.ask("mark_read", room="general", seq=1)
        async with wire(address, "bob") as second:
            await second.ask("join", room="general")
            both = await dialogue.sessions()
            assert {session.user_id for session in both if session.is_active} == {"alice", "bob"}
            with pytest.raises(ValueError, match="limit"):
                await dialogue.sessions(limit=0)
        await eventually(lambda: len(dialogue.clients()) == 1)
        [bob] = await dialogue.sessions("bob")
        [alice] = await dialogue.sessions("alice")
        assert (bob.is_active, bob.rooms) == (False, {"general": 2})
        assert (alice.is_active, alice.rooms) == (True, {"general": 1, "quiet": None})
        assert alice.client_id == dialogue.clients()[0].client_id
        assert 0 < alice.first_seen <= alice.last_seen
        assert len(await dialogue.sessions(limit=1)) == 1
        assert isinstance(alice, SessionInfo)


async def test_who_never_connects_is_no_session() -> None:
    """A socket that says nothing leaves nothing behind."""
    dialogue = chat()
    async with serve(dialogue) as address:
        async with wire(address, None):
            await eventually(lambda: dialogue.hub().connections.sessions)
        await eventually(lambda: not dialogue.hub().connections.sessions)
        assert await dialogue.sessions() == []


async def test_sessions_outlive_a_restart(tmp_path: Path) -> None:
    """A graceful stop writes them as ended, whatever was not written yet."""
    url = f"sqlite:///{tmp_path / 'log.db'}"
    dialogue = chat(SQLStore(url), limits=Limits(sessions_seconds=3600))
    async with serve(dialogue) as address, wire(address) as client:
        await client.ask("join", room="general")
        async with wire(address, "bob"):
            pass
    again = chat(SQLStore(url))
    async with again.lifespan():
        alice, bob = sorted(await again.sessions(), key=lambda session: session.user_id)
        assert (alice.user_id, alice.is_active, alice.rooms) == ("alice", False, {"general": 0})
        assert (bob.user_id, bob.is_active) == ("bob", False)


async def test_what_changes_is_kept_while_the_connection_lasts(make_store: Callable[[], Store]) -> None:
    """Rooms entered and left; a crash loses ``limits.sessions_seconds`` of it."""
    dialogue = chat(make_store())
    async with serve(dialogue) as address, wire(address) as client:
        await client.ask("join", room="general")
        [record] = await until_kept(dialogue, lambda found: any(record.rooms for record in found))
        assert (record.is_active, record.rooms) == (True, ("general",))
        await client.ask("leave", room="general")
        await until_kept(dialogue, lambda found: not found[0].rooms)


async def test_the_last_time_of_an_open_session_is_kept_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without anything else having changed."""
    monkeypatch.setattr("dialogue.server.session_records.LAST_SEEN_SECONDS", 0.02)
    dialogue = chat()
    async with serve(dialogue) as address, wire(address) as client:
        [first] = await until_kept(dialogue, lambda found: bool(found))
        while (await kept(dialogue))[0].last_seen == first.last_seen:
            await client.ask("rooms")


async def test_sessions_left_open_by_a_crash_are_ended_at_the_next_start(tmp_path: Path) -> None:
    """After ``kill -9`` nobody is connected, and what was known is still listed."""
    file = tmp_path / "log.db"
    server = Server(f"sqlite:///{file}")
    try:
        await server.start(0)
        async with wire(server.address, "ann") as client:
            await client.ask("join", room="general")
            await eventually(lambda: ("ann", 1, '["general"]') in rows(file))
            await server.end(signal.SIGKILL)
    finally:
        await server.end(signal.SIGKILL)
    dialogue = chat(SQLStore(f"sqlite:///{file}"))
    async with dialogue.lifespan():
        [session] = await dialogue.sessions("ann")
        assert (session.is_active, session.rooms) == (False, {"general": 0})
        assert not any(record.is_active for record in await kept(dialogue))


def rows(file: Path) -> list[tuple[str, int, str]]:
    """Return the sessions in a log's file."""
    with closing(sqlite3.connect(file, timeout=30)) as connection:
        return connection.execute(
            "SELECT user_id, is_active, CAST(rooms AS TEXT) FROM dialogue_sessions"
        ).fetchall()


async def test_a_store_that_is_down_is_written_later(caplog: pytest.LogCaptureFixture) -> None:
    """Nothing else is held up; the outage is logged once; a session that ends meanwhile is kept."""
    store = FaultyStore(MemoryStore())
    store.fail_directory = StoreUnavailable("down")
    dialogue = chat(store)
    async with serve(dialogue) as address, wire(address) as client:
        async with wire(address, "bob"):
            pass
        records = dialogue.hub().session_records
        await eventually(lambda: records._is_failing and records._ended)
        await client.ask("rooms")
        assert {session.user_id for session in await dialogue.sessions()} == {"alice", "bob"}
        store.fail_directory = None
        found = await until_kept(dialogue, lambda found: len(found) == 2)
        assert {record.user_id: record.is_active for record in found} == {"alice": True, "bob": False}
    assert caplog.text.count("sessions cannot be kept now") == 1


async def test_a_user_who_reconnects_on_and_on_does_not_grow_memory() -> None:
    """Of the ends that wait for the store the newest are kept, and the others counted."""
    store = FaultyStore(MemoryStore())
    store.fail_directory = StoreUnavailable("down")
    dialogue = chat(store, limits=Limits(sessions_seconds=0.01, connections_per_user=3))
    async with serve(dialogue) as address:
        for _ in range(8):
            async with wire(address):
                pass
            await eventually(lambda: not dialogue.hub().connections.sessions)
        async with wire(address, "bob"):
            pass
        await eventually(lambda: not dialogue.hub().connections.sessions)
        assert len(await dialogue.sessions("alice")) == 3
        assert len(await dialogue.sessions("bob")) == 1
        assert "dialogue_sessions_dropped_total 5.0" in dialogue.metrics.render().decode()
        store.fail_directory = None


async def test_the_ends_of_many_users_are_bounded_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """By the number of connections."""
    monkeypatch.setattr("dialogue.server.session_records.ENDED_WAITING", 1)
    store = FaultyStore(MemoryStore())
    store.fail_directory = StoreUnavailable("down")
    dialogue = chat(store, limits=Limits(sessions_seconds=0.01, connections=2))
    async with serve(dialogue) as address:
        for n in range(6):
            async with wire(address, f"user{n}"):
                pass
            await eventually(lambda: not dialogue.hub().connections.sessions)
        assert sorted(session.user_id for session in await dialogue.sessions()) == ["user3", "user4", "user5"]
        store.fail_directory = None


async def test_old_sessions_are_removed(make_store: Callable[[], Store]) -> None:
    """``limits.session_retention_seconds`` after they were last seen; open ones stay."""
    dialogue = chat(make_store(), limits=Limits(sessions_seconds=0.01, session_retention_seconds=0.3))
    async with serve(dialogue) as address, wire(address):
        async with wire(address, "bob"):
            pass
        await until_kept(dialogue, lambda found: any(record.user_id == "bob" for record in found))
        await until_kept(dialogue, lambda found: [record.user_id for record in found] == ["alice"])


async def test_an_erased_users_sessions_are_forgotten(make_store: Callable[[], Store]) -> None:
    """In the store and here; the one that is open is kept no longer."""
    dialogue = chat(make_store())
    async with serve(dialogue) as address, wire(address, "bob"):
        async with wire(address):
            pass
        async with wire(address):
            await until_kept(dialogue, lambda found: len(found) == 3)
            await dialogue.erase_user("alice")
            assert await dialogue.sessions("alice") == []
        await eventually(lambda: len(dialogue.clients()) == 1)
        assert [session.user_id for session in await dialogue.sessions()] == ["bob"]
        await until_kept(dialogue, lambda found: {record.user_id for record in found} == {"bob"})


async def test_more_sessions_than_one_write_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    """All are written, a part at a time."""
    monkeypatch.setattr("dialogue.server.session_records.RECORDS_PER_WRITE", 2)
    dialogue = chat(limits=Limits(sessions_seconds=0.01))
    async with serve(dialogue) as address:
        opened = [wire(address, f"user{n}") for n in range(7)]
        for one in opened:
            await one.__aenter__()
        await until_kept(dialogue, lambda found: len(found) == 7)
        for one in opened:
            await one.__aexit__(None, None, None)
        await until_kept(dialogue, lambda found: not any(record.is_active for record in found))
