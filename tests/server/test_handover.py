"""Promise 6: nothing is dropped in the hand-over, and it stays readable until the archive has it."""

from __future__ import annotations

import asyncio
import random
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest

from dialogue import ConfigError, Dialogue, DialogueClient, Event, Limits, MemoryStore, StoreUnavailable
from dialogue.storage import cleanup
from dialogue.storage.directory import Directory
from dialogue.storage.sql import SQLStore
from dialogue.testing import FaultyStore

from .harness import Refused, eventually, message, rooms, serve, wire


@pytest.fixture(autouse=True)
def _quick_retries(monkeypatch: pytest.MonkeyPatch) -> None:
    """Retries are tried for their order here, not for their patience."""
    monkeypatch.setattr(cleanup, "FIRST_RETRY_SECONDS", 0.001)
    monkeypatch.setattr(cleanup, "LONGEST_RETRY_SECONDS", 0.01)


class Table:
    """The developer's own table, without seq unless asked, with a hook that can fail, hang or be down."""

    def __init__(self, dialogue: Dialogue, *, with_seq: bool = False, seed: int = 1) -> None:
        self.rows: dict[tuple[str, str], list[dict[str, Any]]] = defaultdict(list)
        self.calls: list[tuple[str, str, list[Any]]] = []
        self.failures = 0.0
        self.fail_after_write = False
        self.is_down = False
        self.may_return = asyncio.Event()
        self.may_return.set()
        self.cleaning: set[tuple[str, str]] = set()
        self.loading: dict[tuple[str, str], int] = defaultdict(int)
        self.with_seq = with_seq
        self.random = random.Random(seed)
        dialogue.on_cleanup(self.on_cleanup)
        dialogue.on_load(self.on_load)

    async def on_cleanup(self, room_id: str, event_name: str, events: list[Event[Any]]) -> None:
        key = (room_id, event_name)
        assert key not in self.cleaning, "one cleanup of a stream at a time"
        assert not self.loading[key], "never while a load of the stream runs"
        self.cleaning.add(key)
        try:
            self.calls.append((room_id, event_name, [event.data for event in events]))
            await self.may_return.wait()
            await asyncio.sleep(0)
            if self.random.random() < self.failures:
                raise RuntimeError("the table is away")
            for event in events:
                row: dict[str, Any] = {
                    "event_name": event.event,
                    "event_data": event.data,
                    "from_user": event.sender,
                    "timestamp": event.timestamp,
                }
                if self.with_seq:
                    row |= {"seq": event.seq, "id": event.id, "epoch": event.epoch}
                self.rows[key].append(row)
            if self.fail_after_write:
                self.fail_after_write = False
                raise RuntimeError("written, but the answer was lost")
        finally:
            self.cleaning.discard(key)

    async def on_load(self, room_id: str, event_name: str, start: int, end: int) -> list[dict[str, Any]]:
        key = (room_id, event_name)
        assert key not in self.cleaning, "never while a cleanup of the stream runs"
        self.loading[key] += 1
        try:
            await asyncio.sleep(0)
            if self.is_down:
                raise RuntimeError("the table is down")
            return self.rows[key][::-1][start:end]
        finally:
            self.loading[key] -= 1

    def data(self, room_id: str = "general", event_name: str = "message") -> list[Any]:
        return [row["event_data"] for row in self.rows[room_id, event_name]]


async def test_evicted_events_arrive_in_order_and_read_back_as_one_page() -> None:
    """Ring, queue and table are one page: readers never see the tiers."""
    dialogue = Dialogue(rooms())
    table = Table(dialogue)
    async with serve(dialogue) as address, wire(address) as client:
        await client.ask("join", room="general")
        for n in range(30):
            await client.trigger("general", "message", n)
        await eventually(lambda: len(table.data()) == 25)
        assert table.data() == list(range(25))
        page = await client.ask("history", room="general", event="message", start=2, end=28)
        assert [e["data"] for e in page["events"]] == list(range(2, 28))
        assert [e["seq"] for e in page["events"]] == [None] * 23 + [26, 27, 28]
        assert [e["data"] for e in await client.scroll("general", event="message", limit=4)] == list(
            range(30)
        )


@pytest.mark.parametrize("with_seq", [False, True])
async def test_scroll_is_complete_while_the_hook_fails_now_and_then(with_seq: bool) -> None:
    """Promise 5 over a table, with messages arriving and a cleanup that fails: none missing, none doubled."""
    dialogue = Dialogue(rooms())
    table = Table(dialogue, with_seq=with_seq)
    table.failures = 0.4
    async with serve(dialogue) as address, wire(address, "a") as a, wire(address, "b") as b:
        for client in (a, b):
            await client.ask("join", room="general")
        published = 0

        async def publish(count: int) -> None:
            nonlocal published
            for _ in range(count):
                await a.trigger("general", "message", published)
                published += 1

        await publish(60)
        shown: list[Any] = []
        cursor: str | None = None
        while True:
            extra = {} if cursor is None else {"cursor": cursor}
            page = await b.ask("history", room="general", event="message", limit=5, **extra)
            assert "gap" not in page
            shown = [e["data"] for e in page["events"]] + shown
            cursor = page["next"]
            if cursor is None:
                break
            await publish(table.random.randrange(6))
        assert shown == list(range(60))
        table.failures = 0
        await eventually(lambda: len(table.data()) == published - 5)
        assert table.data() == list(range(published - 5))


async def test_a_batch_written_twice_shows_once_where_rows_have_a_seq() -> None:
    """A hook that raises after it has written is called again; with a seq the copy is recognised by readers."""
    dialogue = Dialogue(rooms())
    table = Table(dialogue, with_seq=True)
    async with serve(dialogue) as address, wire(address) as client:
        await client.ask("join", room="general")
        table.may_return.clear()
        table.fail_after_write = True
        for n in range(20):
            await client.trigger("general", "message", n)
        table.may_return.set()
        await eventually(lambda: len(table.data()) >= 15 and not table.cleaning)
        await eventually(lambda: dialogue.hub().handover.pending_events == 0)  # type: ignore[union-attr]
        assert len(table.data()) > 15, "the batch stands twice"
        assert [e["data"] for e in await client.scroll("general", event="message", limit=3)] == list(
            range(20)
        )


async def test_a_retry_has_the_same_bounds() -> None:
    """What is evicted between two tries belongs to the next batch."""
    dialogue = Dialogue(rooms())
    table = Table(dialogue)
    table.failures = 1.0
    async with dialogue.lifespan():
        for n in range(8):
            await dialogue.trigger("general", message, n)
        await eventually(lambda: len(table.calls) >= 2)
        first = table.calls[0][2]
        for n in range(8, 16):
            await dialogue.trigger("general", message, n)
        await eventually(lambda: len(table.calls) >= 4)
        table.failures = 0
        await eventually(lambda: table.data() == list(range(11)))
        failed = [data for _, _, data in table.calls if data[0] == 0]
        assert all(data == first for data in failed)


async def test_a_full_hand_over_queue_refuses_publishes_and_recovers() -> None:
    """Without a log what waits is bounded: BACKPRESSURE, counted, nothing accepted is lost."""
    dialogue = Dialogue(rooms(), limits=Limits(handover_queue_events=10))
    table = Table(dialogue)
    async with serve(dialogue) as address, wire(address) as client:
        await client.ask("join", room="general")
        table.may_return.clear()
        accepted: list[int] = []
        refused: list[Refused] = []
        for n in range(40):
            try:
                await client.trigger("general", "message", n)
                accepted.append(n)
            except Refused as error:
                refused.append(error)
        assert {error.code for error in refused} == {"BACKPRESSURE"}
        assert all(error.message["retry_after_seconds"] > 0 for error in refused)
        assert len(accepted) == 15, "5 in the ring and 10 in the queue"
        assert dialogue.hub().handover.pending_events == 10  # type: ignore[union-attr]
        gauge = dialogue.metrics.registry.get_sample_value("dialogue_handover_pending_events")
        assert gauge == 10
        # Reading what waits needs no hook: it is still in memory.
        page = await client.ask("history", room="general", event="message", limit=14)
        assert [e["data"] for e in page["events"]] == accepted[1:]
        table.may_return.set()
        await eventually(lambda: dialogue.hub().handover.pending_events == 0)  # type: ignore[union-attr]
        await client.trigger("general", "message", "again")
        assert [e["data"] for e in await client.scroll("general", event="message")] == [*accepted, "again"]


async def test_a_load_that_is_down_is_named_and_goes_on() -> None:
    """`tier_unavailable`, with a cursor that goes on exactly there."""
    dialogue = Dialogue(rooms())
    table = Table(dialogue)
    async with serve(dialogue) as address, wire(address) as client:
        await client.ask("join", room="general")
        for n in range(20):
            await client.trigger("general", "message", n)
        await eventually(lambda: len(table.data()) == 15)
        table.is_down = True
        page = await client.ask("history", room="general", event="message")
        assert [e["data"] for e in page["events"]] == list(range(15, 20))
        assert page["gap"] == {"from_seq": 1, "through_seq": 15, "reason": "tier_unavailable"}
        again = await client.ask("history", room="general", event="message", cursor=page["next"])
        assert again["events"] == []
        assert again["gap"]["reason"] == "tier_unavailable"
        table.is_down = False
        rest = await client.ask("history", room="general", event="message", cursor=again["next"])
        assert [e["data"] for e in rest["events"]] == list(range(15))
        assert rest["next"] is None


async def test_a_graceful_stop_hands_over_rings_and_queue() -> None:
    """Memory with an archive: a clean restart can scroll everything, and its join sync is empty."""
    dialogue = Dialogue(rooms())
    table = Table(dialogue)
    async with dialogue.lifespan():
        for n in range(12):
            await dialogue.trigger("general", message, n)
    assert dialogue.unflushed_events == 0
    assert table.data() == list(range(12))
    async with serve(dialogue) as address, wire(address) as client:
        joined = await client.ask("join", room="general")
        assert joined["events"] == []
        assert joined["seq"] == 0
        for n in range(12, 20):
            await client.trigger("general", "message", n)
        assert [e["data"] for e in await client.scroll("general", event="message", limit=3)] == list(
            range(20)
        )


async def test_what_cannot_be_flushed_is_counted_and_logged(caplog: pytest.LogCaptureFixture) -> None:
    """A stop does not wait for ever: what is lost is said in numbers."""
    dialogue = Dialogue(rooms(), limits=Limits(stop_timeout_seconds=0.2))
    table = Table(dialogue)
    table.failures = 1.0
    async with dialogue.lifespan():
        for n in range(12):
            await dialogue.trigger("general", message, n)
    assert dialogue.unflushed_events == 12
    assert "12 events could not be handed over" in caplog.text
    assert (
        dialogue.metrics.registry.get_sample_value("dialogue_handover_events_total", {"outcome": "lost"})
        == 12
    )


async def test_over_a_log_the_place_survives_and_goes_on_without_a_room_waking(tmp_path: Path) -> None:
    """What waited when the process ended is handed over by the next one, from where it was; ring stays in the log."""
    url = f"sqlite:///{tmp_path / 'log.db'}"
    first = Dialogue(rooms(), store=url, limits=Limits(stop_timeout_seconds=0.2))
    table = Table(first)
    async with first.lifespan():
        for n in range(10):
            await first.trigger("general", message, n)
        await eventually(lambda: table.data() == list(range(5)))
        table.failures = 1.0
        for n in range(10, 30):
            await first.trigger("general", message, n)
        for n in range(8):
            await first.trigger("dm:a:b", message, n)
    assert table.data() == list(range(5))
    second = Dialogue(rooms(), store=url)
    table_2 = Table(second)
    table_2.rows = table.rows
    async with second.lifespan():
        await eventually(lambda: table_2.data() == list(range(25)))
        await eventually(lambda: table_2.data("dm:a:b") == [0, 1, 2])
        assert second.hub().rooms == {}
        assert table_2.calls[0][2][0] in (0, 5), "nothing is handed over twice"
        assert [e.data for e in await second.room("general").history(message, 0, 40)] == list(range(30))[::-1]


async def test_a_scan_that_fails_in_any_way_is_done_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """At start the log is looked through for what waits, again and again if need be: no room wakes for it."""
    url = f"sqlite:///{tmp_path / 'log.db'}"
    first = Dialogue(rooms(), store=url)
    async with first.lifespan():
        for n in range(8):
            await first.trigger("general", message, n)

    class FaultyLog(FaultyStore):
        """Only reads of the log fail: without the rooms that were made there is no start."""

        @property
        def directory(self) -> Directory:
            return self.inner.directory

    store = FaultyLog(SQLStore(url))
    store.fail_read = RuntimeError("a bug")  # type: ignore[assignment]
    second = Dialogue(rooms(), store=store)
    table = Table(second)
    async with second.lifespan():
        await eventually(lambda: "cannot be read for waiting hand-overs" in caplog.text)
        assert table.data() == []
        store.fail_read = None
        await eventually(lambda: table.data() == [0, 1, 2])


async def test_an_archive_that_comes_later_gets_what_is_left_of_the_log(tmp_path: Path) -> None:
    """What retention has removed before there was an archive is no batch, not even an empty one."""
    url = f"sqlite:///{tmp_path / 'log.db'}"
    store = SQLStore(url)
    first = Dialogue(rooms(), store=store)
    async with first.lifespan():
        for room_id, removed in (("general", 12), ("dm:a:b", 30)):
            for n in range(30):
                await first.trigger(room_id, message, n)
            await store.remove(room_id, "message", removed)
    second = Dialogue(rooms(), store=url, limits=Limits(handover_batch_events=5))
    table = Table(second)
    async with second.lifespan():
        await eventually(lambda: table.data() == list(range(12, 25)))
        await second.trigger("dm:a:b", message, 30)
        for n in range(31, 36):
            await second.trigger("dm:a:b", message, n)
        await eventually(lambda: table.data("dm:a:b") == [30])
        await eventually(lambda: second.hub().handover.statistics().waiting_streams == 0)  # type: ignore[union-attr]
        assert [e.data for e in await second.room("general").history(message, 0, 40)] == list(range(12, 30))[
            ::-1
        ]
    assert all(seqs for _, _, seqs in table.calls)


async def test_below_the_log_reads_come_from_the_archive(tmp_path: Path) -> None:
    """When rows have left the log one page spans ring, log and table; without seq only `next` goes past the floor."""
    store = SQLStore(f"sqlite:///{tmp_path / 'log.db'}")
    dialogue = Dialogue(rooms(), store=store)
    table = Table(dialogue, with_seq=True)
    async with serve(dialogue) as address, wire(address) as client:
        await client.ask("join", room="general")
        for n in range(1, 31):
            await client.trigger("general", "message", n)
        await eventually(lambda: len(table.data()) == 25)
        await store.remove("general", "message", 12)
        page = await client.ask("history", room="general", event="message", limit=100)
        assert [e["seq"] for e in page["events"]] == list(range(1, 31))
        for fields, expected in (
            ({"before": 8, "limit": 3}, [5, 6, 7]),
            ({"after": 3, "limit": 12}, list(range(4, 16))),
            ({"around": 5, "limit": 3}, [4, 5, 6]),
        ):
            answer = await client.ask("history", room="general", event="message", **fields)
            assert [e["seq"] for e in answer["events"]] == expected, fields
            answer = await client.ask("history", room="general", **fields)
            assert [e["seq"] for e in answer["events"]] == expected, fields
        resumed = await client.ask("join", room="general", since={"seq": 5, "epoch": page["epoch"]})
        assert resumed["recovered"] is False, "something after the cursor has left the log"
        for rows in table.rows.values():
            for row in rows:
                row.pop("seq")
        answer = await client.ask("history", room="general", event="message", before=8)
        assert answer["gap"]["reason"] == "no_seq"
        assert answer["next"] is None
        shown = await client.scroll("general", event="message", limit=7)
        assert [e["data"] for e in shown] == list(range(1, 31))


@pytest.mark.parametrize("has_offsets", [True, False])
async def test_offsets_below_the_log_with_the_keyset_form(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, has_offsets: bool
) -> None:
    """An offset has no seq to go by: it is asked of `on_load`, or counted out with `on_load_before`."""
    monkeypatch.setattr("dialogue.server.hook_archive.COUNTED_ROWS", 4)
    store = SQLStore(f"sqlite:///{tmp_path / 'log.db'}")
    dialogue = Dialogue(rooms(), store=store)
    rows: list[Event[Any]] = []

    @dialogue.on_cleanup
    async def keep(events: list[Event[Any]]) -> None:
        rows.extend(events)

    @dialogue.on_load_before
    async def load_before(before: int, limit: int) -> list[Event[Any]]:
        return [event for event in rows[::-1] if (event.seq or 0) < before][:limit]

    async def load(start: int, end: int) -> list[Event[Any]]:
        return rows[::-1][start:end]

    if has_offsets:
        dialogue.on_load(load)
    async with dialogue.lifespan():
        for n in range(1, 31):
            await dialogue.trigger("general", "message", n)
        await eventually(lambda: len(rows) == 25)
        await store.remove("general", "message", 20)
        room = dialogue.room("general")
        newest_first = list(range(30, 0, -1))
        for start in (0, 4, 8, 9, 10, 17, 27, 30):
            shown = await room.history("message", start, start + 4)
            assert [event.data for event in shown] == newest_first[start : start + 4]


async def test_the_keyset_form_is_preferred(tmp_path: Path) -> None:
    """`on_load_before` is used instead of offsets wherever a seq is known."""
    store = SQLStore(f"sqlite:///{tmp_path / 'log.db'}")
    dialogue = Dialogue(rooms(), store=store)
    table = Table(dialogue, with_seq=True)
    asked: list[int] = []

    @dialogue.on_load_before
    async def before(room_id: str, event_name: str, before: int, limit: int) -> list[dict[str, Any]]:
        asked.append(before)
        rows = [row for row in table.rows[room_id, event_name] if row["seq"] < before]
        return rows[::-1][:limit]

    async with serve(dialogue) as address, wire(address) as client:
        await client.ask("join", room="general")
        for n in range(1, 31):
            await client.trigger("general", "message", n)
        await eventually(lambda: len(table.data()) == 25)
        await store.remove("general", "message", 12)
        assert [e["seq"] for e in await client.scroll("general", event="message", limit=4)] == list(
            range(1, 31)
        )
        answer = await client.ask("history", room="general", event="message", after=3, limit=5)
        seqs = [e["seq"] for e in answer["events"]]
        while answer["next"] and len(seqs) < 9:
            answer = await client.ask(
                "history", room="general", event="message", cursor=answer["next"], limit=5
            )
            seqs += [e["seq"] for e in answer["events"]]
        assert seqs[:9] == list(range(4, 13))
    assert asked


async def test_a_read_only_hook_without_cleanup_is_a_mistake() -> None:
    """`on_load` alone would never be asked for anything it could know."""
    dialogue = Dialogue(rooms())

    @dialogue.on_load
    def load(room_id: str) -> list[Any]:
        return []

    with pytest.raises(ConfigError, match="on_cleanup"):
        async with dialogue.lifespan():
            pass


async def test_a_store_that_fails_while_marking_does_not_call_the_hook_again() -> None:
    """Once `on_cleanup` has returned only the store is retried."""

    class Forgetful(FaultyStore):
        failures = 3

        async def mark_handed(self, room_id: str, event_name: str, through: int) -> None:
            if self.failures:
                self.failures -= 1
                raise StoreUnavailable("not now")
            await super().mark_handed(room_id, event_name, through)

    dialogue = Dialogue(rooms(), store=Forgetful(MemoryStore()))
    table = Table(dialogue)
    async with dialogue.lifespan():
        for n in range(6):
            await dialogue.trigger("general", message, n)
        await eventually(lambda: dialogue.hub().handover.pending_events == 0)  # type: ignore[union-attr]
        assert table.calls == [("general", "message", [0])]


async def test_the_python_client_is_told_when_the_archive_is_down() -> None:
    """`get_history` and `scroll` raise; they do not ask again and again."""
    dialogue = Dialogue(rooms())
    table = Table(dialogue)
    async with serve(dialogue) as address:
        for n in range(20):
            await dialogue.trigger("general", message, n)
        await eventually(lambda: len(table.data()) == 15)
        table.is_down = True
        async with DialogueClient(f"http://{address}", auth={"user_id": "ann"}) as client:
            room = await client.join("general")
            with pytest.raises(StoreUnavailable):
                await room.get_history("message", 0, 20)
            with pytest.raises(StoreUnavailable):
                [event async for event in room.scroll("message")]
            table.is_down = False
            assert [event.data for event in await room.get_history("message", 0, 20)] == list(range(20))[::-1]
