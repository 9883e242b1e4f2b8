"""Group commit by itself: over a store that can be held, with publishers that note what they are told."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from random import Random
from typing import Any

from dialogue import Limits, MemoryStore
from dialogue.errors import CommandError
from dialogue.events import Draft
from dialogue.server.group_commit import GroupCommit
from dialogue.server.metrics import Metrics
from dialogue.server.submissions import Outcome, Submission
from dialogue.storage.base import Appended
from dialogue.testing import FaultyStore


def draft(number: int, *, is_recorded: bool = True) -> Draft:
    return Draft(
        room_id="general",
        event="message",
        sender="ann",
        key=f"$key{number}",
        data_json=b"%d" % number,
        is_recorded=is_recorded,
    )


class Teller:
    """What was told, in order; and a publisher that notes failures."""

    def __init__(self, store: FaultyStore) -> None:
        self.store = store
        self.told: list[bytes] = []
        self.appended_before: list[int] = []
        self.failed: list[tuple[bytes, str]] = []
        self.is_broken = False
        self.may_end = asyncio.Event()
        self.may_end.set()

    def deliver(self, outcomes: Sequence[Outcome]) -> None:
        if self.is_broken:
            self.is_broken = False
            raise RuntimeError("a bug")
        for outcome in outcomes:
            self.told.append(outcome.submission.draft.data_json)
        self.appended_before.append(sum(map(len, self.store.appended)))

    async def after_deliver(self) -> None:
        await self.may_end.wait()

    def on_recorded(self, submission: Submission, outcome: Outcome) -> bytes | None:
        return None

    def on_failed(self, submission: Submission, error: CommandError) -> None:
        self.failed.append((submission.draft.data_json, error.code))


@asynccontextmanager
async def committing(**limits: Any) -> AsyncIterator[tuple[GroupCommit, FaultyStore, Teller]]:
    store = FaultyStore(MemoryStore())
    teller = Teller(store)
    await store.open()
    commit = GroupCommit(
        store,
        deliver=teller.deliver,
        after_deliver=teller.after_deliver,
        limits=Limits(**limits),
        waits_for_store=False,
        metrics=Metrics(),
        logger=logging.getLogger("dialogue.test"),
        clock_ms=lambda: 1,
        random=Random(1),
    )
    async with commit:
        yield commit, store, teller
    await store.aclose()


async def until(condition: Any) -> None:
    while not condition():
        await asyncio.sleep(0)


async def test_a_group_is_told_while_the_next_one_is_appended() -> None:
    """The store is at work on the second group before anyone hears of the first; both are told in order."""
    async with committing(append_batch_events=2) as (commit, store, teller):
        for number in range(4):
            commit.submit(draft(number), teller, number)
        await until(lambda: len(teller.told) == 4)
        assert teller.told == [b"0", b"1", b"2", b"3"]
        # MemoryStore appends at once, so the second group is in it when the first is told.
        assert teller.appended_before == [4, 4]
        assert [len(group) for group in store.appended] == [2, 2]


async def test_what_is_on_its_way_counts_as_waiting_until_it_is_told() -> None:
    """Rooms do not sleep, and the bounds hold, while a group waits for its turn to be told."""
    async with committing(append_batch_events=1) as (commit, store, teller):
        store.hold()
        commit.submit(draft(0), teller, 0)
        commit.submit(draft(1), teller, 1)
        await until(lambda: store.waiting_appends == 1)
        assert (commit.waiting_events, commit.room_ids()) == (2, {"general"})
        store.release()
        await until(lambda: not commit.waiting_events)
        assert teller.told == [b"0", b"1"]
        assert commit.room_ids() == set()


async def test_a_publisher_that_comes_while_an_append_hangs_is_answered_in_time() -> None:
    """Also when everyone before it has been answered already; what was never sent to the store is taken out."""
    async with committing(append_timeout_seconds=0.05) as (commit, store, teller):
        store.hold()
        commit.submit(draft(0), teller, 0)
        await until(lambda: teller.failed)
        commit.submit(draft(1), teller, 1)
        await until(lambda: len(teller.failed) == 2)
        assert teller.failed == [(b"0", "STORE_UNAVAILABLE"), (b"1", "STORE_UNAVAILABLE")]
        store.release()
        await until(lambda: not commit.waiting_events)
        assert teller.told == [b"0"], "the append was not cancelled; the one that was never sent is gone"


async def test_what_comes_while_a_group_is_told_keeps_its_place_and_a_stop_waits_for_it() -> None:
    """A delivery may leave the store something to do; meanwhile the writer is not idle."""
    async with committing() as (commit, store, teller):
        teller.may_end.clear()
        commit.submit(draft(0), teller, 0)
        await until(lambda: teller.told)
        commit.submit(draft(1), teller, 1)
        store.hold()
        teller.may_end.set()
        await until(lambda: store.waiting_appends)
        commit.submit(draft(2, is_recorded=False), teller, 2)
        assert teller.told == [b"0"], "an ephemeral event does not overtake what is appended"
        stopping = asyncio.create_task(commit.__aexit__())
        for _ in range(10):
            await asyncio.sleep(0)
        assert not stopping.done()
        store.release()
        await stopping
    assert (teller.told, teller.failed) == ([b"0", b"1", b"2"], [])


async def test_a_store_that_raises_cancelled_by_itself_ends_nothing() -> None:
    """Only the stop cancels an append: anything else is an unknown outcome, which is settled."""
    async with committing() as (commit, store, teller):
        append = store.append

        async def cancelled_after(drafts: Sequence[Draft]) -> list[Appended]:
            setattr(store, "append", append)  # noqa: B010 - a method
            await append(drafts)
            raise asyncio.CancelledError

        setattr(store, "append", cancelled_after)  # noqa: B010 - a method
        commit.submit(draft(0), teller, 0)
        await until(lambda: teller.told)
        commit.submit(draft(1), teller, 1)
        await until(lambda: len(teller.told) == 2)
    assert (teller.told, teller.failed) == ([b"0", b"1"], [])


async def test_a_failing_delivery_ends_nothing() -> None:
    """Its publishers are told, and the next group goes on."""
    async with committing(append_batch_events=1) as (commit, _, teller):
        teller.is_broken = True
        commit.submit(draft(0), teller, 0)
        commit.submit(draft(1), teller, 1)
        await until(lambda: not commit.waiting_events)
        assert teller.failed == [(b"0", "INTERNAL")]
        assert teller.told == [b"1"]


async def test_a_stop_that_runs_out_of_time_answers_everyone() -> None:
    """Those in the append, those in the queue, and whoever asked for a key."""
    async with committing(append_batch_events=1, stop_timeout_seconds=0.05) as (commit, store, teller):
        store.hold()
        commit.submit(draft(0), teller, 0)
        commit.submit(draft(1), teller, 1)
        asked = asyncio.ensure_future(commit.look_up(draft(2)))
        await until(lambda: store.waiting_appends == 1)
    assert [code for _, code in teller.failed] == ["STORE_UNAVAILABLE"] * 2
    await asyncio.wait({asked})
    assert isinstance(asked.exception(), CommandError)
    assert store.waiting_appends == 0


async def test_ephemeral_events_keep_their_place() -> None:
    """Behind recorded ones they wait for them; alone they are told at once."""
    async with committing() as (commit, _, teller):
        commit.submit(draft(0, is_recorded=False), teller, 0)
        assert teller.told == [b"0"]
        commit.submit(draft(1), teller, 1)
        commit.submit(draft(2, is_recorded=False), teller, 2)
        commit.submit(draft(3), teller, 3)
        await until(lambda: len(teller.told) == 4)
        assert teller.told == [b"0", b"1", b"2", b"3"]
