"""Promises 2, 3, 6 and 8 against `kill -9` at random moments, under load, over each store and with an archive."""

from __future__ import annotations

import asyncio
import json
import random
import signal
import sqlite3
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select
from sqlalchemy.ext.asyncio import create_async_engine
from websockets.exceptions import ConnectionClosed

from dialogue.storage.engines import parse_url
from dialogue.storage.tables import events, rooms

from ..set_checker import Checker, report
from .crash_app import RING
from .harness import _socket, eventually, wire

ROOT = Path(__file__).parents[2]


@pytest.fixture(params=["sqlite", "postgres"])
def log_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of an empty log."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'log.db'}"
    url: str = request.getfixturevalue("postgres_url")
    return url


class Server:
    """The application as a process that is killed and started again, on one port over one log."""

    def __init__(self, *arguments: str) -> None:
        self._arguments = arguments
        self._process: asyncio.subprocess.Process | None = None
        with closing(_socket()) as bound:
            self.port = bound.getsockname()[1]
        self.address = f"127.0.0.1:{self.port}"

    async def start(self, seed: int) -> None:
        """Start it and wait until it answers."""
        url, *archive = self._arguments
        self._process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "tests.server.crash_app", url, str(self.port), str(seed), *archive, cwd=ROOT
        )
        async with asyncio.timeout(60):
            while True:
                self.check_runs()
                try:
                    async with wire(self.address):
                        return
                except (OSError, ConnectionClosed, EOFError):
                    await asyncio.sleep(0.02)

    def check_runs(self) -> None:
        """Fail when it has ended by itself."""
        assert self._process is not None
        assert self._process.returncode is None, "the server ended by itself"

    async def end(self, number: signal.Signals) -> None:
        """Send a signal, if it runs, and wait for the end."""
        process, self._process = self._process, None
        if process is not None:
            process.send_signal(number)
            await process.wait()


def archived(file: Path) -> dict[tuple[str, int], tuple[str, int, Any]]:
    """Return the archive's rows by epoch and seq."""
    with closing(sqlite3.connect(file, timeout=30)) as connection:
        rows = connection.execute("SELECT epoch, seq, sender, timestamp, data FROM kept").fetchall()
    return {(epoch, seq): (sender, at, json.loads(data)) for epoch, seq, sender, at, data in rows}


async def crash_rounds(url: str, rounds: int, seed: int, archive: Path | None = None) -> None:
    """Kill the server under sixteen publishers and a listener, *rounds* times, and compare everything at the end."""
    print(f"seed {seed}")
    chaos = random.Random(seed)
    server = Server(url, *([str(archive)] if archive else []))
    checker = Checker(f"ws://{server.address}/ws", "general", seed=seed, grace_seconds=120)
    acked = checker.tally.acked
    try:
        await server.start(seed)
        await checker.begin()
        is_over = asyncio.Event()
        async with asyncio.TaskGroup() as group:
            group.create_task(checker.listen(is_over))
            publishing = group.create_task(checker.publish())
            for kills in range(rounds + 1):
                target = len(acked) + chaos.randrange(200, 1500)
                while len(acked) < target:
                    server.check_runs()
                    await asyncio.sleep(chaos.uniform(0, 0.004))
                if kills < rounds:
                    await server.end(signal.SIGKILL)
                    await server.start(seed + kills + 1)
            checker.stop()
            await publishing
            verdicts = await checker.finish()
            is_over.set()
        assert report(verdicts)
        await check_restarted(server.address, archive, set(checker.tally.acked))
    finally:
        await server.end(signal.SIGKILL)
    await check_counters(url)
    print(f"{len(acked)} acked, {verdicts[0].read} recorded, {rounds} kills")


async def check_restarted(address: str, archive: Path | None, acked: set[str]) -> None:
    """Join sync, timestamps and seqs go on where they were, and the archive has what has left the ring."""
    async with wire(address) as reader:
        joined = await reader.ask("join", room="general")
        events = await reader.scroll("general", limit=200)
        assert [e["seq"] for e in joined["events"]] == [e["seq"] for e in events[-50:]]
        ack = await reader.trigger("general", "message", "after")
    assert [e["seq"] for e in events] == list(range(1, len(events) + 1)), "no seq twice, no hole"
    assert ack["seq"] == len(events) + 1
    timestamps = [e["timestamp"] for e in events]
    assert timestamps == sorted(timestamps)
    if archive is None:
        return
    # The hand-over goes on after each crash where it was: everything but the ring arrives, and nothing else.
    expected = {
        (joined["epoch"], e["seq"]): (e["from"], e["timestamp"], e["data"])
        for e in events[: len(events) + 1 - RING]
    }
    await eventually(lambda: len(archived(archive)) >= len(expected), timeout=60)
    rows = archived(archive)
    assert rows == expected
    recorded = {e["data"] for e in events}
    assert recorded == {data for _, _, data in rows.values()} | {e["data"] for e in events[-RING:]}
    assert acked <= recorded


async def check_counters(url: str) -> None:
    """What unread counts and positions are made of goes on without a hole, whatever was killed."""
    engine = create_async_engine(parse_url(url))
    columns = (events.c.seq, events.c.position, events.c.unread_position)
    async with engine.connect() as connection:
        rows = (await connection.execute(select(*columns).order_by(events.c.seq))).all()
        room = (await connection.execute(select(rooms.c.last_seq, rooms.c.last_unread_position))).one()
    await engine.dispose()
    assert [tuple(row) for row in rows] == [(n, n, n) for n in range(1, len(rows) + 1)]
    assert tuple(room) == (len(rows), len(rows))


@pytest.mark.parametrize("has_archive", [False, True], ids=["log", "log+archive"])
@pytest.mark.timeout(300)
async def test_kill_9_under_sixteen_publishers(log_url: str, tmp_path: Path, has_archive: bool) -> None:
    """Two kills, in the everyday suite."""
    archive = tmp_path / "archive.db" if has_archive else None
    await crash_rounds(log_url, rounds=2, seed=random.randrange(10**6), archive=archive)


@pytest.mark.slow
@pytest.mark.parametrize("has_archive", [False, True], ids=["log", "log+archive"])
@pytest.mark.timeout(1800)
async def test_kill_9_twenty_rounds(log_url: str, tmp_path: Path, has_archive: bool) -> None:
    """Twenty kills at random moments."""
    archive = tmp_path / "archive.db" if has_archive else None
    await crash_rounds(log_url, rounds=20, seed=random.randrange(10**6), archive=archive)
