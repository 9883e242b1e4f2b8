"""Many users' markers by one call: who is read with whom, and what each is told."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Sequence
from contextlib import suppress
from typing import Any

import pytest

from dialogue import Dialogue, MemoryStore, StoreUnavailable
from dialogue.errors import StoreBusy
from dialogue.server import marker_reads
from dialogue.server.marker_reads import READS_AT_ONCE, USERS_PER_READ, MarkerReads
from dialogue.storage.directory import Marker
from dialogue.testing import FaultyStore

from .harness import eventually
from .test_unread import chat

Read = Callable[[Collection[str]], Awaitable[None]]


class Reads:
    """Reads over a real directory that has a member of each name, and does as told before it answers.

    Attributes:
        calls: The users of each call.
        before: Awaited before the directory is asked; it may raise.
    """

    def __init__(self, dialogue: Dialogue, store: FaultyStore) -> None:
        self.reads = MarkerReads(dialogue.hub())
        self.calls: list[list[str]] = []
        self.before: Read | None = None
        self.held: asyncio.Event | None = None
        markers_of = store.directory.markers_of

        async def noted(user_ids: Collection[str], *, limit: int) -> dict[str, list[Marker]]:
            self.calls.append(list(user_ids))
            if self.held is not None:
                await self.held.wait()
            if self.before is not None:
                await self.before(user_ids)
            return await markers_of(user_ids, limit=limit)

        store.directory.markers_of = noted  # type: ignore[method-assign]

    def begin(self, *user_ids: str) -> list[asyncio.Task[Sequence[Marker]]]:
        """Ask for users, each in a task."""
        return [asyncio.create_task(self.reads.read(user_id)) for user_id in user_ids]

    def hold(self) -> asyncio.Event:
        """Hold all calls until the event is set."""
        self.held = asyncio.Event()
        return self.held


def users(count: int) -> list[str]:
    """Return names."""
    return [f"user{n:03}" for n in range(count)]


def rooms_of(markers: Sequence[Marker]) -> list[str]:
    """Return the rooms of markers, which are one user's."""
    return [marker.room_id for marker in markers]


@pytest.fixture
async def of() -> AsyncIterator[Reads]:
    store = FaultyStore(MemoryStore())
    dialogue = chat(store)
    async with dialogue.lifespan():
        await store.directory.add_member("general", users(600))
        for n, user_id in enumerate(users(600)):
            await store.directory.add_member(f"topic:{n}", [user_id])
        reads = Reads(dialogue, store)
        yield reads
        await reads.reads.aclose(until=None)
        await reads.reads.aclose(until=None)
        assert not reads.reads._waiting
        assert not reads.reads._readers


async def test_all_who_come_at_once_are_one_call(of: Reads) -> None:
    """Each is told of exactly its own."""
    found = await asyncio.gather(*of.begin(*users(200)))
    assert of.calls == [users(200)]
    assert [rooms_of(markers) for markers in found] == [["general", f"topic:{n}"] for n in range(200)]


async def test_who_comes_meanwhile_waits_for_a_call_that_begins_later(of: Reads) -> None:
    """Few calls at a time, each of a bounded number of users; the same user twice is one of them."""
    held = of.hold()
    tasks = []
    for number, user_id in enumerate(users(READS_AT_ONCE), start=1):
        tasks += of.begin(user_id)
        await eventually(lambda number=number: len(of.calls) == number)  # type: ignore[misc]
    names = [*users(1), *users(600)]
    later = of.begin(*names)
    await eventually(lambda: len(of.reads._waiting) == len(names))
    assert len(of.calls) == READS_AT_ONCE
    held.set()
    await asyncio.gather(*tasks)
    assert [rooms_of(markers)[0] for markers in await asyncio.gather(*later)] == ["general"] * len(names)
    asked = of.calls[READS_AT_ONCE:]
    assert [len(call) for call in asked] == [USERS_PER_READ, USERS_PER_READ, 600 - 2 * USERS_PER_READ]
    assert sorted(user_id for call in asked for user_id in call) == users(600)


async def test_who_has_many_markers_keeps_the_others_waiting_for_a_call(
    of: Reads, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All are told in the end, by calls that answer so much and no more."""
    monkeypatch.setattr(marker_reads, "MARKERS_PER_READ", 20)
    found = await asyncio.gather(*of.begin(*users(50)))
    assert [len(markers) for markers in found] == [2] * 50
    assert [len(call) for call in of.calls] == [50, 34, 18, 2]


async def test_one_who_is_cancelled_does_not_harm_the_others(of: Reads) -> None:
    """Neither while it waits for its call nor while that is under way; nobody is read for who is not there."""
    held = of.hold()
    first, second = of.begin("user001", "user002")
    await eventually(lambda: of.calls == [["user001", "user002"]])
    others = of.begin("user003", "user004", "user005", "user006")
    await eventually(lambda: len(of.calls) == READS_AT_ONCE)
    waiting = of.begin("user007", "user008")
    await eventually(lambda: len(of.reads._waiting) == 2)
    for task in (first, others[0], waiting[0]):
        task.cancel()
    await asyncio.wait([first, others[0], waiting[0]])
    assert len(of.reads._waiting) == 1
    held.set()
    for task, name in ((second, 2), (others[3], 6), (waiting[1], 8)):
        assert rooms_of(await task) == ["general", f"topic:{name}"]
    assert of.calls[READS_AT_ONCE:] == [["user008"]]


async def test_all_of_a_call_that_fails_are_told(of: Reads) -> None:
    """Calls become smaller until they succeed, and larger again."""

    async def fail(user_ids: Collection[str]) -> None:
        raise StoreUnavailable("down")

    of.before = fail
    for _ in range(3):
        told = await asyncio.gather(*of.begin(*users(600)), return_exceptions=True)
        assert all(isinstance(error, StoreUnavailable) for error in told)
    assert [len(call) for call in of.calls][:4] == [256, 128, 64, 32]
    assert len(of.calls[-1]) == 1
    of.before = None
    of.calls.clear()
    found = await asyncio.gather(*of.begin(*users(600)))
    assert all(len(markers) == 2 for markers in found)
    sizes = [len(call) for call in of.calls]
    assert sizes[0] == 1
    assert max(sizes) == USERS_PER_READ


async def test_a_store_that_is_busy_is_not_asked_in_smaller_calls(of: Reads) -> None:
    """There are too many calls already."""

    async def fail(user_ids: Collection[str]) -> None:
        raise StoreBusy

    of.before = fail
    told = await asyncio.gather(*of.begin(*users(600)), return_exceptions=True)
    assert all(isinstance(error, StoreBusy) for error in told)
    assert [len(call) for call in of.calls] == [USERS_PER_READ, USERS_PER_READ, 600 - 2 * USERS_PER_READ]


async def test_one_who_cannot_be_read_is_soon_alone_with_it(of: Reads) -> None:
    """Those who are read with it may be told to try again, and are read then."""

    async def fail(user_ids: Collection[str]) -> None:
        if "user007" in user_ids:
            raise StoreUnavailable("this one never")

    async def until_read(user_id: str) -> int:
        for number in range(1, 20):
            try:
                await of.reads.read(user_id)
                return number
            except StoreUnavailable:
                pass
        return 20

    of.before = fail
    tries = await asyncio.gather(*map(until_read, users(100)))
    assert [user_id for user_id, number in zip(users(100), tries, strict=True) if number == 20] == ["user007"]


async def test_a_fault_is_only_told_to_whose_it_is(of: Reads) -> None:
    """Whatever a directory raises against its contract for one user: the others have their markers."""

    async def fail(user_ids: Collection[str]) -> None:
        if "user007" in user_ids:
            raise ZeroDivisionError

    of.before = fail
    told = await asyncio.gather(*of.begin(*users(20)), return_exceptions=True)
    assert isinstance(told[7], ZeroDivisionError)
    assert all(isinstance(markers, list) and len(markers) == 2 for markers in told[:7] + told[8:])


async def test_a_directory_that_answers_nothing_is_not_asked_for_ever(of: Reads) -> None:
    """Who waits is told that something is wrong."""
    directory = of.reads._hub.store.directory

    async def nothing(user_ids: Any, *, limit: int) -> dict[str, list[Marker]]:
        of.calls.append(user_ids)
        return {}

    directory.markers_of = nothing  # type: ignore[method-assign]
    told = await asyncio.gather(*of.begin("user001", "user002"), return_exceptions=True)
    assert [type(error).__name__ for error in told] == ["Internal", "Internal"]
    assert len(of.calls) == 3


async def test_a_close_waits_no_longer_than_it_may(of: Reads) -> None:
    """Though a directory's call does not let itself be cancelled."""
    held, is_held = asyncio.Event(), False

    async def hold(user_ids: Collection[str]) -> None:
        nonlocal is_held
        is_held = True
        while not held.is_set():
            with suppress(asyncio.CancelledError):
                await held.wait()

    of.before = hold
    [task] = of.begin("user001")
    await eventually(lambda: is_held)
    loop = asyncio.get_running_loop()
    began = loop.time()
    async with asyncio.timeout(10):
        await of.reads.aclose(until=began + 0.1)
    assert 0.05 <= loop.time() - began < 5
    assert not task.done()
    held.set()
    assert rooms_of(await task) == ["general", "topic:1"]


async def test_a_close_leaves_nobody_waiting(of: Reads) -> None:
    """Whose call is cut is cancelled; readers that have not begun end too."""
    of.hold()
    tasks = of.begin("user001")
    await eventually(lambda: bool(of.calls))
    await of.reads.aclose(until=None)
    await asyncio.wait(tasks)
    assert tasks[0].cancelled()
    [task] = of.begin("user002")
    await asyncio.sleep(0)
    (reader,) = of.reads._readers
    reader.cancel()
    await asyncio.wait([reader])
    assert not of.reads._readers
    task.cancel()
    await asyncio.wait([task])
