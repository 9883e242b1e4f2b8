"""Promises 5 and 6 over a durable log with an archive, and what operators are told of both."""

from __future__ import annotations

import asyncio
import json
import random
import signal
import sqlite3
import sys
import tracemalloc
import urllib.error
import urllib.request
from collections import defaultdict
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from websockets.exceptions import ConnectionClosed

from dialogue import (
    Archive,
    ConfigError,
    Dialogue,
    Event,
    Hooks,
    Limits,
    MemoryStore,
    SQLArchive,
    StartError,
    StoreUnavailable,
)
from dialogue.storage import cleanup, condition
from dialogue.storage.base import LogPage
from dialogue.storage.sql import SQLStore
from dialogue.testing import FaultyStore

from .archive_app import make
from .harness import Refused, _socket, eventually, message, rooms, serve, wire
from .test_handover import Table

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def _quick_retries(monkeypatch: pytest.MonkeyPatch) -> None:
    """Retries are tried for their order here, not for their patience."""
    monkeypatch.setattr(cleanup, "FIRST_RETRY_SECONDS", 0.001)
    monkeypatch.setattr(cleanup, "LONGEST_RETRY_SECONDS", 0.01)


def url(folder: Path, name: str = "chat.db") -> str:
    return f"sqlite:///{folder / name}"


def rows(folder: Path, sql: str, name: str = "chat.db") -> list[tuple[Any, ...]]:
    with closing(sqlite3.connect(folder / name)) as connection:
        return connection.execute(sql).fetchall()


def progress(dialogue: Dialogue) -> cleanup.HandOverStatistics:
    handover = dialogue.hub().handover
    assert handover is not None
    return handover.statistics()


async def all_handed_over(dialogue: Dialogue) -> None:
    await eventually(lambda: progress(dialogue).waiting_events == 0)


def gauge(dialogue: Dialogue, name: str) -> float:
    value = dialogue.metrics.registry.get_sample_value(f"dialogue_{name}")
    assert value is not None
    return value


async def get_health(address: str) -> tuple[int, dict[str, Any]]:
    """Return the status code and body of ``/health``."""

    def get() -> tuple[int, dict[str, Any]]:
        try:
            with urllib.request.urlopen(f"http://{address}/health") as answer:
                return answer.status, json.load(answer)
        except urllib.error.HTTPError as error:
            with error:
                return error.code, json.load(error)

    return await asyncio.to_thread(get)


# -- SQLArchive behind a server ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["chat.db", "archive.db"], ids=["one file", "two files"])
async def test_one_page_spans_memory_log_and_the_table(tmp_path: Path, name: str) -> None:
    """Readers never see the tiers; by seq below the log's floor, also after a restart, and in one file too."""
    for life in range(2):
        store = SQLStore(url(tmp_path))
        dialogue = Dialogue(rooms(), store=store, archive=SQLArchive(url(tmp_path, name), create=True))
        async with serve(dialogue) as address, wire(address) as client:
            await client.ask("join", room="general")
            for n in range(30):
                await client.trigger("general", "message", {"n": life * 30 + n})
            total = 30 * (life + 1)
            await all_handed_over(dialogue)
            await store.remove("general", "message", total - 12)
            assert dialogue.hub().reader._ability == (True,), "the archive is read by seq"
            page = await client.ask("history", room="general", event="message", limit=100)
            assert [e["seq"] for e in page["events"]] == list(range(1, total + 1))
            assert [e["data"]["n"] for e in page["events"]] == list(range(total))
            shown = await client.scroll("general", event="message", limit=7)
            assert [e["seq"] for e in shown] == list(range(1, total + 1))
            page = await client.ask("history", room="general", before=9, limit=3)
            assert [e["seq"] for e in page["events"]] == [6, 7, 8]
    assert rows(tmp_path, "SELECT count(*), count(DISTINCT seq) FROM messages", name) == [(55, 55)]


async def test_a_table_outlives_the_memory_of_many_lives(tmp_path: Path) -> None:
    """With a `MemoryStore` each start is another epoch: earlier lives are read by offset, none missing, none twice."""
    for life in range(3):
        dialogue = Dialogue(rooms(), archive=SQLArchive(url(tmp_path), create=True))
        async with serve(dialogue) as address, wire(address) as client:
            await client.ask("join", room="general")
            for n in range(12):
                await client.trigger("general", "message", life * 12 + n)
            await all_handed_over(dialogue)
            assert dialogue.hub().reader._ability == (life == 0,)
            shown = await client.scroll("general", event="message", limit=5)
            assert [e["data"] for e in shown] == list(range((life + 1) * 12))
    assert rows(tmp_path, "SELECT count(*), count(DISTINCT epoch) FROM messages") == [(36, 3)]


async def test_log_and_archive_in_one_file_under_load(tmp_path: Path) -> None:
    """Two writers on one SQLite file wait for each other: every publish is acked, every eviction kept."""
    dialogue = Dialogue(
        rooms(), store=url(tmp_path), archive=SQLArchive(url(tmp_path), create=True), limits=Limits()
    )
    async with dialogue.lifespan():

        async def publish(room_id: str) -> None:
            for n in range(100):
                await dialogue.trigger(room_id, message, n)

        await asyncio.gather(*(publish(f"dm:a:{n}") for n in range(16)))
        await eventually(lambda: progress(dialogue).waiting_events == 0, timeout=60)
        assert dialogue.health()["status"] == "ok"
    found = rows(tmp_path, "SELECT room_id, count(*), min(seq), max(seq) FROM messages GROUP BY room_id")
    assert sorted(found) == sorted((f"dm:a:{n}", 95, 1, 95) for n in range(16))


class WritesAndRaises(SQLArchive):
    """Fails now and then, before it has written or after."""

    def __init__(self, *args: Any, seed: int, **options: Any) -> None:
        super().__init__(*args, **options)
        self.random = random.Random(seed)
        self.failures = 0.5
        self.batches: dict[tuple[str, str], list[tuple[int, int]]] = defaultdict(list)

    async def cleanup(self, room_id: str, event_name: str, events: list[Event[Any]]) -> None:
        assert events[0].seq is not None
        assert events[-1].seq is not None
        self.batches[room_id, event_name].append((events[0].seq, events[-1].seq))
        fails = self.random.random() < self.failures
        is_late = self.random.random() < 0.5
        if fails and not is_late:
            raise RuntimeError("before it was written")
        await super().cleanup(room_id, event_name, events)
        if fails:
            raise RuntimeError("after it was written")


async def test_a_batch_that_was_written_before_it_failed_stands_in_the_table_once(tmp_path: Path) -> None:
    """With epoch and seq the table is exactly what has left the rings; a retry has the same bounds."""
    seed = random.randrange(10**6)
    print(f"seed {seed}")
    archive = WritesAndRaises(url(tmp_path, "archive.db"), create=True, seed=seed)
    dialogue = Dialogue(rooms(), store=url(tmp_path), archive=archive, limits=Limits(handover_batch_events=7))
    async with dialogue.lifespan():
        for n in range(150):
            await dialogue.trigger(("general", "other")[n % 2], message, n)
        await eventually(lambda: progress(dialogue).waiting_events == 0)
    for room_id, first in (("general", 0), ("other", 1)):
        found = rows(
            tmp_path,
            f"SELECT event_data FROM messages WHERE room_id = '{room_id}' ORDER BY id",
            "archive.db",
        )
        assert [json.loads(row[0]) for row in found] == list(range(first, 140, 2))
        tried = archive.batches[room_id, "message"]
        distinct = list(dict.fromkeys(tried))
        assert tried == [bounds for bounds in distinct for _ in range(tried.count(bounds))], (
            "retried in place"
        )
        assert [a for a, _ in distinct] == [1, *(b + 1 for _, b in distinct[:-1])], "nothing between or twice"
    assert len(archive.batches["general", "message"]) > len(set(archive.batches["general", "message"]))


async def start(database: Path, port: int) -> asyncio.subprocess.Process:
    """Start the server and wait until it answers."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tests.server.archive_app", str(database), str(port), cwd=ROOT
    )
    async with asyncio.timeout(30):
        while True:
            assert process.returncode is None, "the server ended by itself"
            try:
                async with wire(f"127.0.0.1:{port}"):
                    return process
            except (OSError, ConnectionClosed, EOFError):
                await asyncio.sleep(0.02)


async def publish_until_killed(address: str, room: str, name: str, acked: dict[str, int]) -> None:
    """Publish until the connection breaks, noting what was acked."""
    try:
        async with wire(address, name) as client:
            await client.ask("join", room=room, sync=0)
            while True:
                key = f"{room}-{name}-{random.getrandbits(60)}"
                acked[key] = (await client.trigger(room, "message", key, key=key))["seq"]
    except (AssertionError, ConnectionClosed, OSError, Refused):
        return


@pytest.mark.timeout(180)
async def test_kill_9_with_log_and_archive_in_one_file(tmp_path: Path) -> None:
    """What waited goes on at the next start without a room waking; the table is what has left memory, each once."""
    seed = random.randrange(10**6)
    print(f"seed {seed}")
    chaos = random.Random(seed)
    socket = _socket()
    port = socket.getsockname()[1]
    socket.close()
    database = tmp_path / "chat.db"
    acked: dict[str, int] = {}
    for _ in range(3):
        process = await start(database, port)
        address = f"127.0.0.1:{port}"
        publishers = [
            asyncio.create_task(publish_until_killed(address, ("general", "other")[n % 2], f"p{n}", acked))
            for n in range(8)
        ]
        target = len(acked) + chaos.randrange(100, 600)
        async with asyncio.timeout(60):
            while len(acked) < target:
                await asyncio.sleep(0.002)
        process.send_signal(signal.SIGKILL)
        await process.wait()
        await asyncio.gather(*publishers)
    dialogue = make(str(database))
    async with dialogue.lifespan():
        log = {
            room: rows(
                tmp_path, f"SELECT seq, event_data FROM dialogue_events WHERE room_id='{room}' ORDER BY seq"
            )
            for room in ("general", "other")
        }
        wanted = {room: max(0, len(log[room]) - 20) for room in log}
        await eventually(
            lambda: rows(tmp_path, "SELECT count(*) FROM messages")[0][0] >= sum(wanted.values())
        )
        assert dialogue.hub().rooms == {}, "no room had to wake"
    for room, events in log.items():
        kept = rows(tmp_path, f"SELECT seq, event_data FROM messages WHERE room_id='{room}' ORDER BY id")
        assert kept == events[: wanted[room]], "in order, each once"
        assert [seq for seq, _ in events] == list(range(1, len(events) + 1))
    recorded = {json.loads(data): seq for events in log.values() for seq, data in events}
    assert acked.items() <= recorded.items()
    print(f"{len(acked)} acked, {len(recorded)} recorded, {sum(wanted.values())} archived")


async def test_a_table_that_is_down_is_named_and_the_same_cursor_goes_on(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """`tier_unavailable`, told to operators, one traceback however many read, and nothing skipped afterwards."""
    store = SQLStore(url(tmp_path))
    dialogue = Dialogue(rooms(), store=store, archive=SQLArchive(url(tmp_path, "archive.db"), create=True))
    async with serve(dialogue) as address, wire(address) as client:
        await client.ask("join", room="general")
        for n in range(1, 41):
            await client.trigger("general", "message", n)
        await eventually(lambda: progress(dialogue).waiting_events == 0)
        await store.remove("general", "message", 20)
        page = await client.ask("history", room="general", event="message", limit=25)
        shown = [e["data"] for e in page["events"]]
        rows(tmp_path, "ALTER TABLE messages RENAME TO away", "archive.db")
        for _ in range(20):
            down = await client.ask("history", room="general", event="message", cursor=page["next"])
            assert down["events"] == []
            assert down["gap"] == {"from_seq": 1, "through_seq": 15, "reason": "tier_unavailable"}
        code, health = await get_health(address)
        assert (code, health["status"], health["archive"]["state"]) == (200, "degraded", "failing")
        assert gauge(dialogue, "load_failing_seconds") > 0
        assert caplog.text.count("Traceback") <= 3, "one failure, with its causes"
        assert caplog.text.count("on_load failed") == 1
        rows(tmp_path, "ALTER TABLE away RENAME TO messages", "archive.db")
        rest = await client.ask("history", room="general", event="message", cursor=down["next"])
        assert [e["data"] for e in rest["events"]] + shown == list(range(1, 41))
        assert rest["next"] is None
        assert (await get_health(address))[1]["status"] == "ok"
        assert gauge(dialogue, "load_failing_seconds") == 0


async def test_an_archive_that_cannot_be_opened_ends_the_start(tmp_path: Path) -> None:
    """The remedy passes, nothing is served, and the log is free for the next start."""
    store = SQLStore(url(tmp_path))
    dialogue = Dialogue(rooms(), store=store, archive=SQLArchive(url(tmp_path)))
    with pytest.raises(StartError, match="CREATE TABLE messages"):
        async with dialogue.lifespan():
            pytest.fail("it was served")
    assert not dialogue.is_running
    async with Dialogue(rooms(), store=SQLStore(url(tmp_path), lock_wait_seconds=0)).lifespan():
        pass


# -- the archive's life and abilities ----------------------------------------------------------------------------


class Noting(Archive):
    """Notes what it is told, and how the log stood then."""

    def __init__(self) -> None:
        self.store: MemoryStore | None = None
        self.notes: list[str] = []

    async def open(self, *, epoch: str) -> None:
        assert self.store is not None
        assert epoch == self.store.epoch
        self.notes.append("open")

    async def aclose(self) -> None:
        assert self.store is not None
        assert self.store.epoch
        self.notes.append("aclose")

    async def cleanup(self, room_id: str, event_name: str, events: list[Event[Any]]) -> None:
        self.notes.append("cleanup")

    async def load(self, room_id: str, event_name: str, start: int, end: int) -> Sequence[Any]:
        return []


async def test_an_archive_is_open_while_it_is_used() -> None:
    """Opened with the log's epoch once the log is open, closed before it, after the last hand-over; each life again."""
    archive = Noting()
    archive.store = MemoryStore()
    dialogue = Dialogue(rooms(), store=archive.store, archive=archive)
    for _ in range(2):
        async with dialogue.lifespan():
            await dialogue.trigger("general", message, 1)
        assert archive.notes == ["open", "cleanup", "aclose"]
        archive.notes.clear()


async def test_on_erase_makes_the_hooks_able_to_erase() -> None:
    """One at most, by name, and only beside an `on_cleanup` that gives it something to erase."""
    asked: list[str] = []
    for hooks, can_erase in (
        (Hooks(on_cleanup=lambda events: None), False),
        (Hooks(on_cleanup=lambda events: None, on_erase=lambda user_id: asked.append(user_id)), True),
    ):
        archive, _ = Dialogue(rooms(), hooks=hooks)._choose_archive()
        assert archive is not None
        assert archive.can_erase is can_erase
        if can_erase:
            await archive.erase("ann")
    assert asked == ["ann"]
    dialogue = Dialogue(rooms())

    @dialogue.on_erase
    def erase(user_id: str) -> None:
        raise AssertionError

    with pytest.raises(ConfigError, match="nothing would ever be there to erase"):
        async with dialogue.lifespan():
            pass
    with pytest.raises(ConfigError, match="one or the other"):
        async with Dialogue(rooms(), archive=Noting(), hooks=Hooks(on_erase=erase)).lifespan():
            pass
    with pytest.raises(NotImplementedError):
        await Noting().erase("ann")


# -- the hand-over's progress ------------------------------------------------------------------------------------


class Hanging(Archive):
    """Hangs for one room; what it says it can do makes it superfluous to ask it for what the log has."""

    is_keyset = True

    def __init__(self) -> None:
        self.may_return = asyncio.Event()
        self.done: list[tuple[str, Any]] = []

    async def cleanup(self, room_id: str, event_name: str, events: list[Event[Any]]) -> None:
        if room_id == "general":
            await self.may_return.wait()
        self.done.extend((room_id, event.data) for event in events)

    async def load(self, room_id: str, event_name: str, start: int, end: int) -> Sequence[Any]:
        raise AssertionError("the log has everything")


async def test_a_hook_that_hangs_holds_up_its_stream_alone(tmp_path: Path) -> None:
    """Others go on, reads stay complete, and health and metrics say which tier it is and for how long."""
    hanging = Hanging()
    dialogue = Dialogue(rooms(), store=url(tmp_path), archive=hanging, limits=Limits(hook_seconds=0.05))
    async with serve(dialogue) as address, wire(address) as client:
        await client.ask("join", room="general")
        for n in range(20):
            await dialogue.trigger("general", message, n)
            await dialogue.trigger("other", message, n)
        await eventually(lambda: hanging.done == [("other", n) for n in range(15)])
        # Not only returned: the log has been told of it.
        await eventually(
            lambda: (progress(dialogue).waiting_streams, progress(dialogue).calls_in_flight) == (1, 1)
        )
        await eventually(lambda: progress(dialogue).longest_call_seconds > 0.05)
        code, health = await get_health(address)
        assert (code, health["status"]) == (200, "degraded")
        assert health["log"]["state"] == "ok"
        archive = health["archive"]
        assert (archive["state"], archive["waiting_events"], archive["waiting_streams"]) == ("failing", 15, 1)
        assert (archive["failing_streams"], archive["calls_in_flight"]) == (0, 1)
        assert archive["failing_seconds"] > 0.05
        assert gauge(dialogue, "handover_longest_call_seconds") > 0.05
        assert gauge(dialogue, "handover_waiting_events") == 15
        assert gauge(dialogue, "handover_waiting_streams") == 1
        assert gauge(dialogue, "handover_calls_in_flight") == 1
        assert gauge(dialogue, "handover_pending_events") == 0, "they wait in the log"
        shown = await client.scroll("general", event="message", limit=3)
        assert [e["data"] for e in shown] == list(range(20))
        hanging.may_return.set()
        await eventually(lambda: progress(dialogue) == (0, 0, 0, 0.0, 0, 0.0, None))
        assert (await get_health(address))[1]["status"] == "ok"


async def test_what_waits_for_a_hook_that_hangs_is_not_held_in_memory(tmp_path: Path) -> None:
    """Over a log the ceiling is the batches in flight, and a few hundred bytes for each stream that waits."""
    limits = Limits(handover_batch_events=50, handover_streams_in_flight=2)
    dialogue = Dialogue(rooms(), store=url(tmp_path), limits=limits)
    may_return = asyncio.Event()

    @dialogue.on_cleanup
    async def keep(events: list[Event[Any]]) -> None:
        await may_return.wait()

    async with dialogue.lifespan():
        payload = "x" * 4000
        # What the first events bring is not what waiting costs: caches, compiled statements, rings.
        await asyncio.gather(*(dialogue.trigger("general", message, payload) for _ in range(200)))
        await asyncio.gather(*(dialogue.trigger("other", message, payload) for _ in range(200)))
        await eventually(lambda: progress(dialogue).calls_in_flight == 2)
        tracemalloc.start()
        try:
            for _ in range(10):
                await asyncio.gather(*(dialogue.trigger("general", message, payload) for _ in range(200)))
                await asyncio.gather(*(dialogue.trigger("other", message, payload) for _ in range(200)))
            grown, _ = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        print(f"{grown / 1e6:.2f} MB more for 4,000 events of 4 KB that wait")
        assert grown < 2_000_000, "16 MB wait"
        assert progress(dialogue).waiting_events == 4400 - 10
        may_return.set()
        await eventually(lambda: progress(dialogue).waiting_events == 0)


async def test_a_failing_hook_is_told_with_its_numbers(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """How many streams fail, for how long, and why, without data; one traceback however often it is tried."""
    dialogue = Dialogue(rooms(), store=url(tmp_path))
    table = Table(dialogue)
    table.failures = 1.0
    async with serve(dialogue) as address:
        for n in range(12):
            await dialogue.trigger("general", message, n)
            await dialogue.trigger("other", message, n)
        await eventually(lambda: len(table.calls) > 20)
        await eventually(lambda: progress(dialogue).failing_streams == 2)
        now = progress(dialogue)
        assert now.failing_seconds > 0
        assert now.last_error == "RuntimeError", "its text may have data in it"
        assert gauge(dialogue, "handover_failing_streams") == 2
        assert gauge(dialogue, "handover_failing_seconds") > 0
        code, health = await get_health(address)
        assert (code, health["status"]) == (200, "degraded")
        assert (health["archive"]["failing_streams"], health["archive"]["waiting_events"]) == (2, 14)
        assert "the table is away" not in json.dumps(health)
        assert caplog.text.count("Traceback") == 1
        table.failures = 0
        await eventually(lambda: progress(dialogue).waiting_events == 0)
        assert (await get_health(address))[1]["archive"]["state"] == "ok"
        assert table.data() == table.data("other") == list(range(7))


@pytest.mark.parametrize("error", [SystemExit(3), asyncio.CancelledError(), GeneratorExit()], ids=repr)
@pytest.mark.parametrize("is_async", [True, False])
async def test_a_hook_that_wants_to_end_everything_has_failed(error: BaseException, is_async: bool) -> None:
    """It is tried again like any other failure; no worker ends, and the server does not either."""
    dialogue = Dialogue(rooms(), limits=Limits(handover_streams_in_flight=1))
    kept: list[Any] = []
    failures = [error] * 3

    def keep(events: list[Event[Any]]) -> None:
        if failures:
            raise failures.pop()
        kept.extend(event.data for event in events)

    async def keep_async(events: list[Event[Any]]) -> None:
        keep(events)

    dialogue.on_cleanup(keep_async if is_async else keep)
    async with dialogue.lifespan():
        for n in range(8):
            await dialogue.trigger("general", message, n)
        await eventually(lambda: kept == [0, 1, 2])
    assert kept == list(range(8))


@pytest.mark.parametrize("is_async", [True, False])
async def test_a_load_that_wants_to_end_everything_has_failed(is_async: bool) -> None:
    """Readers are told of a gap; the server goes on."""
    dialogue = Dialogue(rooms())
    dialogue.on_cleanup(lambda events: None)

    async def load() -> list[Any]:
        raise SystemExit(3)

    def load_in_thread() -> list[Any]:
        raise SystemExit(3)

    dialogue.on_load(load if is_async else load_in_thread)
    async with serve(dialogue) as address, wire(address) as client:
        await client.ask("join", room="general")
        for n in range(8):
            await client.trigger("general", "message", n)
        await eventually(lambda: progress(dialogue).waiting_events == 0)
        page = await client.ask("history", room="general", event="message")
        assert page["gap"]["reason"] == "tier_unavailable"
        assert [e["data"] for e in page["events"]] == [3, 4, 5, 6, 7]
        await client.trigger("general", "message", "still there")


async def test_waiting_for_what_is_in_flight_waits_for_nothing_else() -> None:
    """It returns when the calls that were running have ended, failed ones too; a later one is not waited for."""
    dialogue = Dialogue(rooms())
    calls: list[tuple[str, asyncio.Future[None]]] = []

    @dialogue.on_cleanup
    async def keep(room_id: str) -> None:
        call = asyncio.get_running_loop().create_future()
        calls.append((room_id, call))
        await call

    async with dialogue.lifespan():
        handover = dialogue.hub().handover
        assert handover is not None
        await handover.wait_in_flight()
        for room_id in ("general", "other"):
            for n in range(6):
                await dialogue.trigger(room_id, message, n)
        await eventually(lambda: len(calls) == 2)
        waiting = asyncio.create_task(handover.wait_in_flight())
        calls[0][1].set_exception(RuntimeError("no"))
        await eventually(lambda: len(calls) == 3)
        assert not waiting.done(), "the other one is running"
        calls[1][1].set_result(None)
        await waiting
        assert not calls[2][1].done(), "the retry is not waited for"
        calls[2][1].set_result(None)
        await eventually(lambda: progress(dialogue).waiting_events == 0)
        # A stop hands over the rings.
        done = len(calls)

        async def answer() -> None:
            await eventually(lambda: len(calls) == done + 2)
            for _, call in calls[done:]:
                call.set_result(None)

        answering = asyncio.create_task(answer())
    await answering


async def test_a_batch_that_is_being_read_is_in_flight() -> None:
    """Its events were read before whoever waits has erased them, and are written after."""

    class SlowToRead(FaultyStore):
        is_reading = False

        async def stream_page(
            self, room_id: str, event_name: str, *, before_position: int, limit: int
        ) -> LogPage:
            page = await super().stream_page(
                room_id, event_name, before_position=before_position, limit=limit
            )
            self.is_reading = True
            await may_go_on.wait()
            return page

    may_go_on = asyncio.Event()
    store = SlowToRead(MemoryStore())
    kept: list[Any] = []
    hooks = Hooks(on_cleanup=lambda events: kept.extend(event.data for event in events))
    dialogue = Dialogue(rooms(), store=store, hooks=hooks)
    async with dialogue.lifespan():
        handover = dialogue.hub().handover
        assert handover is not None
        for n in range(6):
            await dialogue.trigger("general", message, n)
        await eventually(lambda: store.is_reading)
        waiting = asyncio.create_task(handover.wait_in_flight())
        await asyncio.sleep(0)
        assert not waiting.done()
        may_go_on.set()
        await waiting
        assert kept == [0]


async def test_retries_wait_a_random_time_below_a_bound_that_doubles(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """From 0.1 s to 30 s; what failed together is not tried again together."""
    monkeypatch.undo()
    dialogue = Dialogue(rooms(), hooks=Hooks(on_cleanup=lambda events: None))
    async with dialogue.lifespan():
        handover = dialogue.hub().handover
        assert handover is not None
        for failures, bound in ((1, 0.2), (2, 0.4), (5, 3.2), (9, 30.0), (1000, 30.0)):
            waits = [handover._retry_seconds(failures) for _ in range(2000)]
            assert 0 <= min(waits) < 0.05 * bound
            assert 0.95 * bound < max(waits) <= bound
            assert len(set(waits)) > 1900


async def test_a_log_that_fails_is_not_taken_for_the_archive(tmp_path: Path) -> None:
    """While the log cannot be read for the hand-over, the archive is not said to fail; then it goes on."""
    store = FaultyStore(SQLStore(url(tmp_path)))
    dialogue = Dialogue(rooms(), store=store)
    table = Table(dialogue)
    async with dialogue.lifespan():
        await dialogue.trigger("general", message, 0)
        store.fail_read = StoreUnavailable("not now")
        for n in range(1, 8):
            await dialogue.trigger("general", message, n)
        await eventually(lambda: progress(dialogue).last_error == "StoreUnavailable: not now")
        assert dialogue.health()["archive"]["state"] == "ok"
        assert progress(dialogue).waiting_events == 3
        assert table.calls == []
        store.fail_read = None
        await eventually(lambda: table.data() == [0, 1, 2])


# -- the log's state ---------------------------------------------------------------------------------------------


async def test_a_log_that_takes_nothing_is_failing_until_it_does(monkeypatch: pytest.MonkeyPatch) -> None:
    """503 with how long; the next append that works ends it, and so does a while without any."""
    store = FaultyStore(MemoryStore())
    dialogue = Dialogue(rooms(), store=store)
    async with serve(dialogue) as address:
        assert (await get_health(address))[1]["log"] == {"state": "ok", "waiting_events": 0}
        store.fail_append = StoreUnavailable("the disk is full")
        with pytest.raises(StoreUnavailable):
            await dialogue.trigger("general", message, 1)
        code, health = await get_health(address)
        assert (code, health["status"], health["log"]["state"]) == (503, "failing", "failing")
        assert health["log"]["failing_seconds"] >= 0
        assert health["archive"] == {"state": "none"}
        assert gauge(dialogue, "log_failing_seconds") > 0
        store.fail_append = None
        await dialogue.trigger("general", message, 2)
        assert (await get_health(address))[0] == 200
        assert gauge(dialogue, "log_failing_seconds") == 0
        store.fail_append = StoreUnavailable("again")
        with pytest.raises(StoreUnavailable):
            await dialogue.trigger("general", message, 3)
        assert (await get_health(address))[0] == 503
        monkeypatch.setattr(condition, "RECENT_SECONDS", 0)
        assert (await get_health(address))[0] == 200, "traffic comes again and finds out"


async def test_an_append_that_hangs_is_failing_for_as_long_as_it_does(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Once publishers have been told that it takes too long."""
    monkeypatch.setattr(condition, "RECENT_SECONDS", 0)
    store = FaultyStore(MemoryStore())
    dialogue = Dialogue(rooms(), store=store, limits=Limits(append_timeout_seconds=0.05))
    async with serve(dialogue) as address:
        store.hold()
        with pytest.raises(StoreUnavailable):
            await dialogue.trigger("general", message, 1)
        code, health = await get_health(address)
        assert (code, health["status"], health["log"]["waiting_events"]) == (503, "failing", 1)
        store.release()
        await eventually(lambda: dialogue.hub().commit.waiting_events == 0)
        assert (await get_health(address))[0] == 200
    assert dialogue.health() == {"status": "stopping"}
