"""Promise 2 against `kill -9`: every acked event is readable after a restart, no seq twice, no hole."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import sys
from pathlib import Path

import pytest
from websockets.exceptions import ConnectionClosed

from .harness import Refused, Wire, _socket, wire

ROOT = Path(__file__).parents[2]


async def start(database: Path, port: int) -> asyncio.subprocess.Process:
    """Start the server and wait until it answers."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tests.server.crash_app", str(database), str(port), cwd=ROOT, env={**os.environ}
    )
    async with asyncio.timeout(30):
        while True:
            assert process.returncode is None, "the server ended by itself"
            try:
                async with wire(f"127.0.0.1:{port}"):
                    return process
            except (OSError, ConnectionClosed, EOFError):
                await asyncio.sleep(0.02)


async def publish(address: str, name: str, acked: dict[str, int], attempted: set[str]) -> None:
    """Publish until the connection breaks, eight in flight, noting what was acked."""
    numbers = iter(range(10_000))
    try:
        async with wire(address, name) as client:
            await client.ask("join", room="general", sync=0)

            async def one_after_the_other(client: Wire) -> None:
                for number in numbers:
                    key = f"{name}-{number}-{os.urandom(3).hex()}"
                    attempted.add(key)
                    answer = await client.trigger("general", "message", key, key=key)
                    acked[key] = answer["seq"]

            await asyncio.gather(*(one_after_the_other(client) for _ in range(8)))
    except (AssertionError, ConnectionClosed, OSError, Refused):
        return


async def crash_rounds(database: Path, rounds: int, seed: int) -> None:
    """Kill the server under sixteen publishers, *rounds* times, and check the log after each restart."""
    print(f"seed {seed}")
    chaos = random.Random(seed)
    socket = _socket()
    port = socket.getsockname()[1]
    socket.close()
    acked: dict[str, int] = {}
    attempted: set[str] = set()
    for _ in range(rounds):
        process = await start(database, port)
        address = f"127.0.0.1:{port}"
        publishers = [asyncio.create_task(publish(address, f"p{n}", acked, attempted)) for n in range(16)]
        target = len(acked) + chaos.randrange(200, 1500)
        async with asyncio.timeout(60):
            while len(acked) < target:
                await asyncio.sleep(0.002)
        process.send_signal(signal.SIGKILL)
        await process.wait()
        await asyncio.gather(*publishers)
    process = await start(database, port)
    try:
        async with wire(f"127.0.0.1:{port}") as reader:
            joined = await reader.ask("join", room="general")
            events = await reader.scroll("general", limit=200)
            assert [e["seq"] for e in joined["events"]] == [e["seq"] for e in events[-50:]]
            ack = await reader.trigger("general", "message", "after")
    finally:
        process.terminate()
        await process.wait()
    assert [e["seq"] for e in events] == list(range(1, len(events) + 1)), "no seq twice, no hole"
    assert ack["seq"] == len(events) + 1
    read = {e["data"]: e["seq"] for e in events}
    assert len(read) == len(events), "nothing recorded twice"
    lost = {key for key, seq in acked.items() if read.get(key) != seq}
    assert not lost, f"acked but not readable: {sorted(lost)[:5]} of {len(acked)}"
    assert set(read) <= attempted
    timestamps = [e["timestamp"] for e in events]
    assert timestamps == sorted(timestamps)
    print(f"{len(acked)} acked, {len(events)} recorded, {rounds} kills")


@pytest.mark.timeout(180)
async def test_kill_9_under_sixteen_publishers(tmp_path: Path) -> None:
    """One kill, in the everyday suite."""
    await crash_rounds(tmp_path / "log.db", rounds=2, seed=random.randrange(10**6))


@pytest.mark.slow
@pytest.mark.timeout(900)
async def test_kill_9_twenty_rounds(tmp_path: Path) -> None:
    """Twenty kills at random moments."""
    await crash_rounds(tmp_path / "log.db", rounds=20, seed=random.randrange(10**6))
