"""`on_store_failure`: what a publish gets while the store refuses appends, over real sockets."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from pathlib import Path
from random import Random
from typing import Any

import pytest

from dialogue import CommandError, ConfigError, Dialogue, Limits, MemoryStore, StoreUnavailable
from dialogue.errors import DraftRefused, OutcomeUnknown
from dialogue.events import Draft
from dialogue.server.group_commit import GroupCommit
from dialogue.server.metrics import Metrics
from dialogue.server.submissions import Outcome, Submission
from dialogue.storage.base import Appended
from dialogue.storage.sql import SQLStore
from dialogue.testing import FaultyStore
from dialogue.testing.store_contract import draft

from ..storage.test_sql import writer_sql
from .harness import Refused, Wire, eventually, rooms, serve, wire


@pytest.fixture(params=["memory", "sqlite"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> FaultyStore:
    """Both kinds of store, broken at will."""
    return FaultyStore(
        MemoryStore() if request.param == "memory" else SQLStore(f"sqlite:///{tmp_path / 'log.db'}")
    )


def waiting(store: Any, **options: Any) -> Dialogue:
    """Return a `Dialogue` that waits for its store."""
    return Dialogue(rooms(), store=store, on_store_failure="wait", **options)


def failed_appends(source: Dialogue | Metrics, kind: str = "unavailable") -> float:
    """Return how many appends have failed in the manner *kind*."""
    metrics = source if isinstance(source, Metrics) else source.metrics
    count = metrics.registry.get_sample_value("dialogue_append_failures_total", {"kind": kind})
    return count or 0.0


async def send(client: Wire, *texts: str, event: str = "message") -> list[int]:
    """Send a trigger for each of *texts*, its own key, and make sure that the server has read them all."""
    refs = [
        await client.send("trigger", room="general", event=event, data=text, key=text[:20]) for text in texts
    ]
    await client.ask("rooms")
    return refs


@pytest.mark.parametrize("wrong", ["retry", None, True, ["wait"]])
def test_the_choice_is_checked_when_declared(wrong: Any) -> None:
    """A third way is a `ConfigError` that names the field."""
    with pytest.raises(ConfigError, match="on_store_failure"):
        Dialogue(rooms(), on_store_failure=wrong)


@pytest.mark.parametrize("options", [{}, {"on_store_failure": "refuse"}])
async def test_refuse_answers_at_once(store: FaultyStore, options: dict[str, Any]) -> None:
    """By default the store is tried once, and each publisher of the group is told."""
    dialogue = Dialogue(rooms(), store=store, limits=Limits(append_timeout_seconds=600), **options)
    async with serve(dialogue) as address, wire(address) as client:
        await client.ask("join", room="general")
        store.fail_append = StoreUnavailable("down")
        with pytest.raises(Refused, match="STORE_UNAVAILABLE"):
            await client.trigger("general", "message", "lost")
        assert failed_appends(dialogue) == 1


async def test_an_outage_is_not_held_against_a_connection(store: FaultyStore) -> None:
    """A busy publisher is told of each failure, and stays connected."""
    dialogue = Dialogue(rooms(), store=store, limits=Limits(errors_per_minute=3))
    async with serve(dialogue) as address, wire(address) as client:
        await client.ask("join", room="general")
        store.fail_append = StoreUnavailable()
        refs = [await client.send("trigger", room="general", event="message", data=n) for n in range(9)]
        for ref in refs:
            with pytest.raises(Refused, match="STORE_UNAVAILABLE"):
                await client.answer(ref)
        store.fail_append = None
        assert (await client.trigger("general", "message", "back"))["seq"] == 1


async def test_a_full_queue_is_not_held_against_a_connection(store: FaultyStore) -> None:
    """Nor is a store that is slow: however much of it is refused, the publisher stays, and its answers come."""
    limits = Limits(errors_per_minute=3, append_queue_events=2, append_timeout_seconds=600)
    async with serve(Dialogue(rooms(), store=store, limits=limits)) as address, wire(address) as client:
        await client.ask("join", room="general")
        store.hold()
        refs = await send(client, "0")
        await eventually(lambda: store.waiting_appends)
        refs += await send(client, *"123456789")
        for ref in refs[3:]:
            with pytest.raises(Refused, match="BACKPRESSURE"):
                await client.answer(ref)
        store.release()
        assert [(await client.answer(ref))["seq"] for ref in refs[:3]] == [1, 2, 3]


async def test_wait_keeps_the_order_and_answers_when_the_store_is_back(store: FaultyStore) -> None:
    """Several tries later everything is recorded once, in the order sent, told in that order and acked."""
    dialogue = waiting(store)
    async with serve(dialogue) as address, wire(address, "a") as a, wire(address, "b") as b:
        for client in (a, b):
            await client.ask("join", room="general")
        store.fail_append = StoreUnavailable("down")
        refs = await send(a, *"01")
        await eventually(lambda: failed_appends(dialogue) >= 3)
        refs += await send(a, *"234")
        typing = await a.send("trigger", room="general", event="typing", data="...")
        await a.ask("rooms")
        assert a.events() == b.events() == []
        assert not any(message.get("ref") in (*refs, typing) for message in a.messages)
        store.fail_append = None
        assert [(await a.answer(ref))["seq"] for ref in refs] == list(range(1, 6))
        assert "seq" not in await a.answer(typing) or (await a.answer(typing))["seq"] is None
        assert [event["data"] for event in await b.until_events(6)] == [*"01234", "..."]
        assert [event["seq"] for event in a.events(event="message")] == list(range(1, 6))
        assert [event["data"] for event in await a.scroll("general", limit=3)] == [*"01234"]


async def test_a_publisher_waits_no_longer_than_its_timeout(store: FaultyStore) -> None:
    """STORE_UNAVAILABLE when it is over, and the event is out of the way: it was never recorded."""
    dialogue = waiting(store, limits=Limits(append_timeout_seconds=0.3))
    async with serve(dialogue) as address, wire(address) as client:
        await client.ask("join", room="general")
        store.fail_append = StoreUnavailable("down")
        for ref in await send(client, "a", "b", "c"):
            with pytest.raises(Refused, match="STORE_UNAVAILABLE"):
                await client.answer(ref)
        assert failed_appends(dialogue) >= 1
        await eventually(lambda: dialogue.hub().commit.waiting_events == 0)
        store.fail_append = None
        assert (await client.trigger("general", "message", "d", key="d"))["seq"] == 1
        retried = await client.trigger("general", "message", "a", key="a")
        assert (retried["seq"], retried.get("duplicate", False)) == (2, False)
        assert [event["data"] for event in await client.scroll("general")] == ["d", "a"]


async def test_a_full_queue_is_refused_meanwhile(store: FaultyStore) -> None:
    """What waits is bounded: BACKPRESSURE, and nothing that was accepted is lost."""
    dialogue = waiting(store, limits=Limits(append_queue_events=3))
    async with serve(dialogue) as address, wire(address) as client:
        await client.ask("join", room="general")
        store.fail_append = StoreUnavailable("down")
        refs = await send(client, "kept")
        await eventually(lambda: failed_appends(dialogue))
        refs += await send(client, *"012345")
        for ref in refs[4:]:
            with pytest.raises(Refused, match="BACKPRESSURE"):
                await client.answer(ref)
        store.fail_append = None
        assert [(await client.answer(ref))["seq"] for ref in refs[:4]] == [1, 2, 3, 4]
        assert [event["data"] for event in await client.until_events(4)] == ["kept", *"012"]


async def test_a_stop_ends_the_wait(store: FaultyStore) -> None:
    """The server stops although the store never comes back; whoever waits is told."""
    dialogue = waiting(store, limits=Limits(append_timeout_seconds=600, stop_timeout_seconds=0.2))
    async with dialogue.lifespan():
        store.fail_append = StoreUnavailable("down")
        publishing = asyncio.create_task(dialogue.trigger("general", "message", "x"))
        await eventually(lambda: failed_appends(dialogue) >= 2)
    with pytest.raises(StoreUnavailable, match="stopping"):
        await publishing


async def test_a_stop_takes_along_what_the_store_still_takes(store: FaultyStore) -> None:
    """A store that comes back while the server stops gets what was accepted."""
    dialogue = waiting(store)
    async with dialogue.lifespan():
        store.fail_append = StoreUnavailable("down")
        publishing = asyncio.create_task(dialogue.trigger("general", "message", "x"))
        await eventually(lambda: failed_appends(dialogue) >= 2)
        asyncio.get_running_loop().call_soon(setattr, store, "fail_append", None)
    assert (await publishing).seq == 1


async def test_a_question_for_a_key_waits_too(store: FaultyStore) -> None:
    """A retry that a hook blocks is told what its first try got, once the store can tell."""
    dialogue = waiting(store)
    asked: list[Sequence[Draft]] = []

    class Asked(FaultyStore):
        async def settle(self, drafts: Sequence[Draft]) -> list[Appended | None]:
            asked.append(drafts)
            return await super().settle(drafts)

    dialogue.store = store = Asked(store.inner)
    seen: set[str] = set()

    @dialogue.before_each
    def once(event: Any) -> None:
        from dialogue import Blocked

        if event.data in seen:
            raise Blocked("said that already")
        seen.add(event.data)

    async with serve(dialogue) as address, wire(address) as client:
        await client.ask("join", room="general")
        assert (await client.trigger("general", "message", "x", key="k"))["seq"] == 1
        store.fail_settle = StoreUnavailable("down")
        retry = await client.send("trigger", room="general", event="message", data="x", key="k")
        await eventually(lambda: len(asked) >= 3)
        store.fail_settle = None
        answer = await client.answer(retry)
        assert (answer["seq"], answer["duplicate"]) == (1, True)


async def test_a_settled_append_that_was_not_recorded_is_tried_again(tmp_path: Path) -> None:
    """A connection that broke before the commit is a failing store like any other."""

    class Breaking(FaultyStore):
        broken = 0

        async def append(self, drafts: Sequence[Draft]) -> list[Appended]:
            if self.broken < 2:
                self.broken += 1
                raise OutcomeUnknown("the connection broke")
            return await super().append(drafts)

    store = Breaking(SQLStore(f"sqlite:///{tmp_path / 'log.db'}"))
    dialogue = waiting(store)
    async with serve(dialogue) as address, wire(address) as client:
        await client.ask("join", room="general")
        assert (await client.trigger("general", "message", "a"))["seq"] == 1
        assert failed_appends(dialogue, "unknown") == 2
        assert [event["data"] for event in client.events()] == ["a"]


async def test_a_failure_amid_halving_tells_what_is_recorded_and_keeps_the_rest(tmp_path: Path) -> None:
    """Poison splits a group; if the store then fails, the first half is told at once and the rest follows it."""

    class Splitting(FaultyStore):
        is_down = True

        async def append(self, drafts: Sequence[Draft]) -> list[Appended]:
            if len(drafts) > 1:
                raise DraftRefused("not two at once")
            if self.is_down and drafts[0].data_json == b'"3"':
                raise StoreUnavailable("down")
            if drafts[0].data_json == b'"poison"':
                raise DraftRefused("never")
            return await super().append(drafts)

    store = Splitting(SQLStore(f"sqlite:///{tmp_path / 'log.db'}"))
    dialogue = waiting(store)
    async with serve(dialogue) as address, wire(address) as client:
        await client.ask("join", room="general")
        store.hold()
        refs = await send(client, "0")
        await eventually(lambda: store.waiting_appends)
        refs += await send(client, "1", "poison", "2", "3", "4", "5")
        store.release()
        assert [(await client.answer(refs[n]))["seq"] for n in (0, 1, 3)] == [1, 2, 3]
        with pytest.raises(Refused, match="INTERNAL"):
            await client.answer(refs[2])
        await eventually(lambda: failed_appends(dialogue) >= 2)
        assert [event["data"] for event in client.events()] == [*"012"]
        assert dialogue.hub().commit.waiting_events == 3, "what is told does not wait any more"
        store.is_down = False
        assert [(await client.answer(ref))["seq"] for ref in refs[4:]] == [4, 5, 6]
        assert [event["data"] for event in client.events()] == [*"012345"]


async def test_an_expired_event_is_taken_out_of_its_group(store: FaultyStore) -> None:
    """Of two events of one group the one whose publisher has given up is not recorded, the other one is."""
    told: dict[str, Any] = {}

    class Publisher:
        def __init__(self, name: str) -> None:
            self.name = name

        def on_recorded(self, submission: Submission, outcome: Outcome) -> None:
            raise AssertionError("the delivery of this test tells nobody")

        def on_failed(self, submission: Submission, error: CommandError) -> None:
            told[self.name] = error.code

    def deliver(outcomes: Sequence[Outcome]) -> None:
        for outcome in outcomes:
            assert outcome.appended is not None
            publisher = outcome.submission.publisher
            assert isinstance(publisher, Publisher)
            told[publisher.name] = outcome.appended.seq

    async def nothing() -> None:
        pass

    metrics = Metrics()
    commit = GroupCommit(
        store,
        deliver=deliver,
        after_deliver=nothing,
        limits=Limits(append_timeout_seconds=600),
        waits_for_store=True,
        metrics=metrics,
        logger=logging.getLogger("test"),
        clock_ms=lambda: 0,
        random=Random(3),
    )
    await store.open()
    async with commit:
        store.hold()
        commit.submit(draft(), Publisher("opens the queue"), None)
        await eventually(lambda: store.waiting_appends)
        commit.submit(draft(), Publisher("impatient"), None)
        commit.submit(draft(), Publisher("patient"), None)
        store.release()
        store.fail_append = StoreUnavailable("down")
        await eventually(lambda: failed_appends(metrics))
        opener = commit._groups[0][0]
        opener.deadline = 0
        await eventually(lambda: told == {"opens the queue": "STORE_UNAVAILABLE"})
        await eventually(lambda: len(commit._groups) == 1 and len(commit._groups[0]) == 2)
        commit._groups[0][0].deadline = 0
        await eventually(lambda: "impatient" in told)
        assert told["impatient"] == "STORE_UNAVAILABLE"
        store.fail_append = None
        await eventually(lambda: told.get("patient") == 1)
    assert (await store.head("general")).last_seq == 1
    await store.aclose()


async def test_publishers_wait_out_a_full_disk(tmp_path: Path) -> None:
    """The database itself says that it is full: with space again everything is recorded, in order, once."""
    store = SQLStore(f"sqlite:///{tmp_path / 'log.db'}")
    dialogue = waiting(store, limits=Limits(append_timeout_seconds=60))
    async with serve(dialogue) as address, wire(address) as client:
        await client.ask("join", room="general")
        await client.trigger("general", "message", "first")
        pages = await writer_sql(store, "PRAGMA page_count")
        await writer_sql(store, f"PRAGMA max_page_count = {pages + 3}")
        texts = [f"{number}-" + "x" * 4000 for number in range(100)]
        refs = await send(client, *texts[:50], "y")
        await eventually(lambda: failed_appends(dialogue) >= 2)
        refs += await send(client, *texts[50:])
        assert not any(message["type"] == "error" for message in client.messages)
        await writer_sql(store, "PRAGMA max_page_count = 1000000")
        assert [(await client.answer(ref))["seq"] for ref in refs] == list(range(2, 103))
        shown = [event["data"] for event in await client.scroll("general", limit=100)]
        assert shown == ["first", *texts[:50], "y", *texts[50:]]
