"""Turns to read: bounded, in order, and refused so that those refused together do not come back together."""

from __future__ import annotations

import asyncio
import math
from pathlib import Path

import pytest
from sqlalchemy import Connection, NullPool
from sqlalchemy.ext.asyncio import create_async_engine

from dialogue import Backpressure, SQLStore, StoreUnavailable
from dialogue.errors import StoreBusy
from dialogue.storage import read_turns
from dialogue.storage.engines import READERS, pool_size
from dialogue.storage.read_turns import ReadTurns

from ..server.harness import eventually


async def test_so_many_at_a_time_and_the_others_in_order() -> None:
    """Who is cancelled while waiting, or while reading, leaves its turn to the next."""
    turns = ReadTurns(2)
    running: list[int] = []
    done: list[int] = []
    gates = [asyncio.Event() for _ in range(6)]

    async def read(number: int) -> None:
        async with turns.take():
            running.append(number)
            await gates[number].wait()
        done.append(number)

    tasks = [asyncio.create_task(read(number)) for number in range(6)]
    await eventually(lambda: turns.waiting == 4)
    assert running == [0, 1]
    tasks[2].cancel()
    tasks[0].cancel()
    await eventually(lambda: running == [0, 1, 3])
    for gate in gates:
        gate.set()
    await asyncio.gather(*tasks, return_exceptions=True)
    assert sorted(done) == [1, 3, 4, 5]
    assert running == [0, 1, 3, 4, 5]
    assert turns.waiting == 0


async def test_more_than_may_wait_are_refused_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    """At once, and with times to come again that differ."""
    monkeypatch.setattr(read_turns, "MOST_WAITING", 3)
    turns = ReadTurns(1)
    async with turns.take():
        waiting = [asyncio.create_task(_read(turns)) for _ in range(3)]
        await eventually(lambda: turns.waiting == 3)
        seconds = set()
        for _ in range(30):
            with pytest.raises(StoreBusy) as refused:
                await _read(turns)
            assert refused.value.retry_after_seconds is not None
            seconds.add(refused.value.retry_after_seconds)
        assert len(seconds) > 5
        assert min(seconds) >= 1
        assert max(seconds) <= 3
    await asyncio.gather(*waiting)


async def test_who_waits_too_long_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """The turn that it did not get goes to another."""
    monkeypatch.setattr(read_turns, "WAIT_SECONDS", 0.02)
    turns = ReadTurns(1)
    async with turns.take():
        with pytest.raises(StoreBusy):
            await _read(turns)
    await _read(turns)


async def _read(turns: ReadTurns) -> None:
    async with turns.take():
        pass


def test_a_refusal_is_backpressure_and_a_store_that_cannot_be_read() -> None:
    """Clients are told the one; whoever reads the store need not know of it to handle the other."""
    error = read_turns.busy()
    assert isinstance(error, Backpressure)
    assert isinstance(error, StoreUnavailable)
    assert error.code == "BACKPRESSURE"
    assert not error.is_outcome_unknown
    assert error.message


async def test_the_time_of_a_read_begins_with_its_turn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A crowd of reads that take longer together than one may take are all answered."""
    store = SQLStore(f"sqlite:///{tmp_path / 'log.db'}")
    await store.open()
    try:
        loop = asyncio.get_running_loop()
        began = loop.time()
        await store._read(_work)
        monkeypatch.setattr("dialogue.storage.sql.READ_SECONDS", 0.5)
        # Each is at work for some time; the readers need longer for all of them than one may take.
        count = min(500, READERS * math.ceil(1.0 / (loop.time() - began)))
        assert set(await asyncio.gather(*(store._read(_work) for _ in range(count)))) == {300_000}
        assert loop.time() - began > 0.5
    finally:
        await store.aclose()


def _work(connection: Connection) -> int:
    sql = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 300000) SELECT count(*) FROM n"
    return int(connection.exec_driver_sql(sql).scalar_one())


def test_as_many_read_at_a_time_as_the_pool_has_connections(tmp_path: Path) -> None:
    """Of an engine of the application's too; a pool without a size has the usual number."""
    url = f"sqlite+aiosqlite:///{tmp_path / 'log.db'}"
    assert pool_size(create_async_engine(url, pool_size=7)) == 7
    assert pool_size(create_async_engine(url, poolclass=NullPool)) == READERS
    assert pool_size(create_async_engine(url, pool_size=0)) == READERS
