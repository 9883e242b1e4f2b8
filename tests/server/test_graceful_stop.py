"""A stop within its time: who waits for what, and who for nothing."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import sqlite3
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx2
import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus

from dialogue import Dialogue, Event, Limits, MemoryStore, StartError
from dialogue.testing import FaultyStore

from ..processes import ROOT, SECONDS, connected
from .harness import Refused, eventually, message, rooms, wire


def address_of(dialogue: Dialogue) -> str:
    return f"127.0.0.1:{dialogue.port}"


def counted(dialogue: Dialogue, name: str, **labels: str) -> float | None:
    return dialogue.metrics.registry.get_sample_value(name, labels)


async def test_start_serves_and_stop_ends_it() -> None:
    """The port is told, a second start is refused, stop may be called twice, and all of it again."""
    dialogue = Dialogue(rooms())
    assert dialogue.port is None
    for _ in range(2):
        await dialogue.start(port=0)
        assert dialogue.port
        with pytest.raises(RuntimeError, match="running already"):
            await dialogue.start(port=0)
        async with wire(address_of(dialogue)) as client:
            await client.ask("join", room="general")
            assert (await client.trigger("general", "message", 1))["seq"] == 1
            await asyncio.gather(dialogue.stop(), dialogue.stop())
            assert await client.until_closed() == 1001
        await dialogue.stop()
        assert dialogue.port is None
        assert not dialogue.is_running


async def test_a_taken_port_is_told_and_starts_nothing() -> None:
    """`StartError`, the store is not opened, and another port can be tried."""
    first, second = Dialogue(rooms()), Dialogue(rooms())
    await first.start(port=0)
    assert first.port is not None
    with pytest.raises(StartError, match="is taken"):
        await second.start(port=first.port)
    assert not second.is_running
    await second.start(port=0)
    await second.stop()
    await first.stop()


async def test_a_start_that_fails_raises_what_it_failed_with() -> None:
    """A store that cannot be opened; the port is free again."""

    class Broken(MemoryStore):
        async def open(self) -> None:
            raise StartError("no such disk")

    dialogue = Dialogue(rooms(), store=Broken())
    with pytest.raises(StartError, match="no such disk"):
        await dialogue.start(port=0)
    assert dialogue.port is None
    await dialogue.stop()


async def test_a_server_that_fails_is_not_lost(caplog: pytest.LogCaptureFixture) -> None:
    """What ended it is logged then, and raised by `stop`."""

    class Broken(MemoryStore):
        async def aclose(self) -> None:
            raise OSError("the disk is gone")

    dialogue = Dialogue(rooms(), store=Broken())
    await dialogue.start(port=0)
    with pytest.raises(OSError, match="the disk is gone"):
        await dialogue.stop()
    assert "the server has failed" in caplog.text
    await dialogue.stop()


async def test_a_hanging_hand_over_keeps_no_connection_from_its_close() -> None:
    """The ack and 1001 come while on_cleanup hangs; /health says so meanwhile; nobody new gets in."""
    dialogue = Dialogue(rooms())
    may_end = asyncio.Event()
    kept: list[Any] = []

    @dialogue.on_cleanup
    async def keep(events: list[Event[Any]]) -> None:
        await may_end.wait()
        kept.extend(event.data for event in events)

    await dialogue.start(port=0)
    address = address_of(dialogue)
    async with wire(address) as client, httpx2.AsyncClient() as http:
        await client.ask("join", room="general")
        assert (await client.trigger("general", "message", 1))["seq"] == 1
        stopping = asyncio.create_task(dialogue.stop())
        assert await client.until_closed() == 1001
        health = await http.get(f"http://{address}/health")
        assert (health.status_code, health.json()["status"]) == (503, "stopping")
        with pytest.raises(InvalidStatus):
            async with wire(address):
                pass
        assert not stopping.done()
        assert counted(dialogue, "dialogue_connections_refused_total", reason="stopping") == 1
    may_end.set()
    await stopping
    assert kept == [1]
    assert dialogue.unflushed_events == 0


async def test_a_peer_that_does_not_read_takes_nobodys_time(caplog: pytest.LogCaptureFixture) -> None:
    """The hand-over ends although it does not; then it is dropped, and counted as what it is."""
    limits = Limits(stop_timeout_seconds=2, outbox_bytes=2**30, append_batch_bytes=2**20)
    dialogue = Dialogue(rooms(sync_history_on_join=0), limits=limits)
    ended: list[str] = []
    kept: list[int] = []

    @dialogue.on_cleanup
    async def keep(events: list[Event[Any]]) -> None:
        kept.extend(event.seq or 0 for event in events)

    @dialogue.on_disconnected
    async def gone(client: Any) -> None:
        ended.append(client.user_id)

    await dialogue.start(port=0)
    async with wire(address_of(dialogue), "slow") as slow, wire(address_of(dialogue), "quick") as quick:
        await slow.ask("join", room="general")
        await quick.ask("join", room="general")
        slow.ws.transport.pause_reading()
        for _ in range(200):
            await dialogue.trigger("general", message, "x" * 60_000)
        await quick.until_events(200)
        stopping = asyncio.create_task(dialogue.stop())
        assert await quick.until_closed() == 1001
        await eventually(lambda: len(kept) == 200)
        assert not stopping.done()
        await stopping
        slow.ws.transport.abort()
    assert sorted(ended) == ["quick", "slow"]
    assert "did not take their close in time, and were dropped: 1" in caplog.text


async def test_a_store_that_hangs_leaves_time_to_tell(caplog: pytest.LogCaptureFixture) -> None:
    """A new command is refused at once, the publisher of the hanging one is answered, and both get their close."""
    store = FaultyStore(MemoryStore())
    dialogue = Dialogue(rooms(), store=store, limits=Limits(stop_timeout_seconds=1))
    await dialogue.start(port=0)
    async with wire(address_of(dialogue)) as client:
        await client.ask("join", room="general")
        store.hold()
        hanging = await client.send("trigger", room="general", event="message", data=1)
        await eventually(lambda: store.waiting_appends)
        stopping = asyncio.create_task(dialogue.stop())
        await eventually(lambda: dialogue.hub().is_stopping)
        for ref in (await client.send("trigger", room="general", event="message", data=2), hanging):
            with pytest.raises(Refused, match="STORE_UNAVAILABLE") as refused:
                await client.answer(ref)
            assert refused.value.message["retry_after_seconds"] > 0
        assert await client.until_closed() == 1001
        await stopping
    assert "stopping with 1 events that the store did not take in time" in caplog.text


async def test_a_hook_that_cannot_be_cancelled_does_not_keep_the_stop(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Its events are counted as lost, and the stop goes on without it."""
    dialogue = Dialogue(rooms(), limits=Limits(stop_timeout_seconds=0.4))
    may_end = asyncio.Event()

    @dialogue.on_cleanup
    async def stubborn(events: list[Event[Any]]) -> None:
        while not may_end.is_set():
            try:
                await may_end.wait()
            except asyncio.CancelledError:
                continue

    async with dialogue.lifespan():
        await dialogue.trigger("general", message, 1)
    assert dialogue.unflushed_events == 1
    assert "does not let itself be cancelled" in caplog.text
    stubborn_tasks = [task for task in asyncio.all_tasks() if task.get_name() == "dialogue-handover"]
    may_end.set()
    for task in stubborn_tasks:
        task.cancel()
    await asyncio.gather(*stubborn_tasks, return_exceptions=True)


MODULE = """
import sqlite3
from dialogue import Dialogue, History, RoomConfig, define_event

message = define_event("message", history=History(limit=3))
dialogue = Dialogue(rooms={"general": RoomConfig(events=[message])})
app = dialogue.app

@dialogue.on_cleanup
def keep(events):
    connection = sqlite3.connect("archive.db")
    with connection:
        connection.execute("CREATE TABLE IF NOT EXISTS kept (data)")
        connection.executemany("INSERT INTO kept VALUES (?)", [(event.data,) for event in events])
    connection.close()
"""


@pytest.mark.parametrize("server", ["uvicorn", "hypercorn"])
def test_inside_of_another_server_the_flush_runs_in_the_lifespan(tmp_path: Path, server: str) -> None:
    """Started by its own command and stopped by SIGTERM: the rings are handed over, whatever closed the sockets."""
    (tmp_path / "chat.py").write_text(MODULE)
    options = {
        "uvicorn": ["--port", "0", "--ws", "websockets-sansio"],
        "hypercorn": ["--bind", "127.0.0.1:0"],
    }[server]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(tmp_path)])}
    with subprocess.Popen(
        [sys.executable, "-m", server, *options, "chat:app"],
        cwd=tmp_path,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    ) as process:
        try:
            assert process.stdout is not None
            running = (re.search(r"unning on (http://[\d.:]+\d)", line) for line in process.stdout)
            address = next(match[1] for match in running if match)
            with connected(address, user_id="Ada") as client:
                client.ask(type="join", room="general")
                for number in range(8):
                    client.ask(type="trigger", room="general", event="message", data=number)
                process.send_signal(signal.SIGTERM)
                # Each closes sockets with a code of its own, before it ends the lifespan.
                with suppress(ConnectionClosed):
                    while True:
                        client.socket.recv(timeout=SECONDS)
            process.wait(SECONDS)
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
    connection = sqlite3.connect(tmp_path / "archive.db")
    assert [data for (data,) in connection.execute("SELECT data FROM kept ORDER BY rowid")] == list(range(8))
    connection.close()


async def test_the_store_has_what_is_left_of_the_stop_to_close() -> None:
    """A database that does not answer does not make a stop longer than it may be."""
    given: list[float] = []

    class Watched(FaultyStore):
        async def aclose_within(self, seconds: float) -> None:
            given.append(seconds)
            await super().aclose_within(seconds)

    dialogue = Dialogue(rooms(), store=Watched(MemoryStore()), limits=Limits(stop_timeout_seconds=3))
    async with dialogue.lifespan():
        await dialogue.trigger("general", "message", 1)
    assert len(given) == 1
    assert 0 < given[0] <= 3
