"""The set checker: it is content with a server that keeps its word, and finds every way of breaking it."""

from __future__ import annotations

import asyncio
import socket
import sys
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest

from dialogue import Dialogue, History, MemoryStore, RoomConfig, Store, define_event
from dialogue.errors import StoreUnavailable
from dialogue.events import SERVER_KEY_PREFIX, Draft, EncodedEvent, payload_of, repack
from dialogue.storage.base import Appended, LogPage

from .server.harness import serve
from .set_checker import Checker, Read, Refused, Tally, Unusable, Verdict, compare, report

ROOT = Path(__file__).parents[1]
FAULTS = ("lost", "duplicated", "unexpected", "out_of_order", "holes")


def found(verdict: Verdict) -> set[str]:
    """Return what is wrong."""
    return {name for name in FAULTS if getattr(verdict, name)}


# Comparing


def tally() -> Tally:
    """Return what was sent: five values of two lanes, of which the server has acked all but the last."""
    sent = Tally()
    for seq, value in enumerate(("a0", "b0", "a1", "b1", "a2"), start=11):
        sent.attempt(value[0], value)
        if value != "a2":
            sent.ack(value, seq)
    return sent


GOOD = [Read(11, "a0"), Read(12, "b0"), Read(13, "a1"), Read(14, "b1")]


@pytest.mark.parametrize(
    ("read", "faults"),
    [
        (GOOD, set()),
        ([*GOOD, Read(15, "a2")], set()),
        (GOOD[:3], {"lost"}),
        ([*GOOD[:2], Read(13, "b1"), Read(14, "a1")], {"lost"}),
        ([*GOOD, Read(15, "a1")], {"duplicated"}),
        ([*GOOD, GOOD[3]], {"duplicated"}),
        ([*GOOD, Read(15, "c0")], {"unexpected"}),
        ([*GOOD, Read(15, None)], {"unexpected"}),
        ([GOOD[1], GOOD[0], *GOOD[2:]], {"out_of_order"}),
        ([*GOOD, Read(16, "a2")], {"holes"}),
        ([GOOD[0], *GOOD[2:]], {"lost", "holes"}),
        (GOOD[1:], {"lost", "holes"}),
    ],
)
def test_each_fault_is_named(read: list[Read], faults: set[str]) -> None:
    """Lost, moved, doubled, invented, swapped and skipped events are told apart."""
    verdict = compare(tally(), read, after=10)
    assert found(verdict) == faults
    assert verdict.is_good == (not faults)
    assert (verdict.attempted, verdict.acked, verdict.read) == (5, 4, len(read))


def test_a_lanes_own_order_counts() -> None:
    """A value that was sent after another was acked stands behind it, whatever the seqs of the acks said."""
    sent = Tally()
    for value, seq in (("a0", 2), ("a1", 1)):
        sent.attempt("a", value)
        sent.ack(value, seq)
    assert found(compare(sent, [Read(1, "a1"), Read(2, "a0")], after=0)) == {"out_of_order"}


def test_two_acks_of_one_value_are_one() -> None:
    """A retry that is answered with another seq was recorded twice, or said so."""
    sent = tally()
    sent.ack("a0", 11)
    assert compare(sent, GOOD, after=10).is_good
    sent.ack("a0", 15)
    assert found(compare(sent, GOOD, after=10)) == {"duplicated"}


# Whole runs


class Forgetting(MemoryStore):
    """Forgets keys: a retry is recorded again."""

    async def append(self, drafts: Sequence[Draft]) -> list[Appended]:
        return await super().append(
            [
                msgspec.structs.replace(draft, key=f"{SERVER_KEY_PREFIX}{id(drafts)}{n}{self._last_id}")
                for n, draft in enumerate(drafts)
            ]
        )


class Changing(MemoryStore):
    """Changes what it reads back."""

    def changed(self, page: LogPage) -> LogPage:
        """Return what is read instead of *page*."""
        raise NotImplementedError

    async def page(
        self,
        room_id: str,
        *,
        event_names: Collection[str] | None = None,
        before: int | None = None,
        after: int | None = None,
        limit: int,
    ) -> LogPage:
        found = await super().page(room_id, event_names=event_names, before=before, after=after, limit=limit)
        return self.changed(found)

    async def stream_page(
        self, room_id: str, event_name: str, *, before_position: int, limit: int
    ) -> LogPage:
        found = await super().stream_page(room_id, event_name, before_position=before_position, limit=limit)
        return self.changed(found)


class Losing(Changing):
    """Loses every seventh event."""

    def changed(self, page: LogPage) -> LogPage:
        return page._replace(events=[event for event in page.events if (event.seq or 0) % 7])


class Reordering(Changing):
    """Swaps the texts of neighbours, and leaves their seqs."""

    def changed(self, page: LogPage) -> LogPage:
        events = [*page.events]
        for n in range(0, len(events) - 1, 2):
            first, second = events[n], events[n + 1]
            (a, meta_of_first), (b, meta_of_second) = payload_of(first), payload_of(second)
            events[n] = repack(first, data_json=b, meta_json=meta_of_first)
            events[n + 1] = repack(second, data_json=a, meta_json=meta_of_second)
        return page._replace(events=events)


class Inventing(Changing):
    """Reads something that nobody wrote."""

    def changed(self, page: LogPage) -> LogPage:
        def wrong(event: EncodedEvent) -> EncodedEvent:
            data, meta = payload_of(event)
            return repack(event, data_json=data.replace(b".p0.0.0", b".p9.9.9"), meta_json=meta)

        return page._replace(events=[wrong(event) for event in page.events])


class Failing(MemoryStore):
    """Refuses a few appends; breaks no promise."""

    appends = 0

    async def append(self, drafts: Sequence[Draft]) -> list[Appended]:
        self.appends += 1
        if self.appends in (3, 6, 9):
            raise StoreUnavailable("now and then")
        return await super().append(drafts)


def application(store: Store) -> Dialogue:
    """Return a Dialogue with a tiny ring, so that reading reads the store, and a hand-over that keeps it there."""
    dialogue = Dialogue(
        {"general": RoomConfig(events=[define_event("message", history=History(limit=2))])}, store=store
    )
    # Otherwise a store that is not durable would be told to remove what leaves the ring.
    store.is_durable = True
    return dialogue


async def run(store: Store, values: int = 60, *, publishers: int = 3) -> tuple[Verdict, Verdict]:
    """Check a server over *store* until so many values are acked."""
    async with serve(application(store)) as address:
        checker = Checker(
            f"ws://{address}/ws", "general", publishers=publishers, lanes=min(publishers, 2), grace_seconds=3
        )
        await checker.begin()
        is_over = asyncio.Event()
        async with asyncio.TaskGroup() as group:
            group.create_task(checker.listen(is_over))
            publishing = group.create_task(checker.publish())
            while len(checker.tally.acked) < values:
                await asyncio.sleep(0.001)
            checker.stop()
            await publishing
            verdicts = await checker.finish()
            is_over.set()
    return verdicts


@pytest.mark.parametrize("store", [MemoryStore, Failing])
async def test_a_server_that_keeps_its_word_passes(
    store: type[Store], capsys: pytest.CaptureFixture[str]
) -> None:
    """Also one that refuses now and then: everything is read and heard, once, in order."""
    verdicts = await run(store())
    assert report(verdicts)
    for verdict in verdicts:
        assert found(verdict) == set()
        assert verdict.attempted == verdict.acked == verdict.read >= 60
    assert "duplicated   0" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("store", "fault"),
    [(Losing, "lost"), (Forgetting, "duplicated"), (Reordering, "out_of_order"), (Inventing, "unexpected")],
)
async def test_a_store_that_breaks_its_word_is_found_out(
    store: type[Store], fault: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """The checker can fail: each kind of fault in a running server is seen by paging, and named."""
    # Neighbours of one lane have an order; those of two may have any, and swapping them only moves what was acked.
    paged, listened = await run(store(), publishers=1 if fault == "out_of_order" else 3)
    assert fault in found(paged)
    assert not report((paged, listened))
    shown = capsys.readouterr().out
    assert f"{fault.replace('_', ' '):13}0" not in shown.partition("listened")[0]


class Leaping(MemoryStore):
    """Leaves out a seq after the thirtieth event, as if an event had been recorded and never told."""

    async def append(self, drafts: Sequence[Draft]) -> list[Appended]:
        room = self._rooms.get("general")
        if room is not None and room.last_seq == 30:
            room.last_seq += 1
        return await super().append(drafts[:1]) + (await self.append(drafts[1:]) if drafts[1:] else [])


async def test_a_hole_is_found_by_both_readers() -> None:
    """A seq that nobody ever sees is a hole, for the listener too."""
    paged, listened = await run(Leaping())
    assert found(paged) == found(listened) == {"holes"}
    assert paged.holes == ["31 to 31"]


async def test_what_cannot_be_checked_is_told() -> None:
    """No server, no such room, an event that may not be sent: an error, and no verdict."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{bound.getsockname()[1]}"
        checker = Checker(f"ws://{address}/ws", "general", grace_seconds=0.3)
        with pytest.raises(Unusable, match="could not be used"):
            await checker.run(0.1)
    async with serve(application(MemoryStore())) as address:
        with pytest.raises(Refused, match="ROOM_NOT_FOUND"):
            await Checker(f"ws://{address}/ws", "nowhere").run(20)
        with pytest.raises(Refused, match="EVENT_NOT_ALLOWED"):
            await Checker(f"ws://{address}/ws", "general", event="other").run(20)


async def program(address: str, *arguments: str) -> tuple[int | None, str]:
    """Run the checker as a program; return its status and output."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tests.set_checker", f"ws://{address}/ws", "--seconds", "0.5", *arguments,
        cwd=ROOT, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
    )  # fmt: skip
    output, _ = await process.communicate()
    return process.returncode, output.decode()


async def test_the_program_has_a_status() -> None:
    """0 when nothing is wrong, 1 when something is, 2 when it could not be checked; the seed is printed."""
    async with serve(application(MemoryStore())) as address:
        status, output = await program(
            address, "--seed", "5", "--publishers", "2", "--template", '{"t": "VALUE"}'
        )
        assert status == 0, output
        assert output.startswith("seed 5\npaged:\n  attempted")
        status, output = await program(address, "--room", "nowhere")
        assert status == 2, output
        assert "ROOM_NOT_FOUND: there is no such room" in output.splitlines()
    async with serve(application(Losing())) as address:
        status, output = await program(address)
        assert status == 1, output


async def test_processes_are_killed_at_random_moments(monkeypatch: pytest.MonkeyPatch) -> None:
    """`--kill` kills each process once, and the check goes on."""
    killed: list[Any] = []
    monkeypatch.setattr("os.kill", lambda *arguments: killed.append(arguments))
    async with serve(application(MemoryStore())) as address:
        checker = Checker(f"ws://{address}/ws", "general", publishers=2, lanes=1)
        verdicts = await checker.run(0.3, kill=[4000001, 4000002])
    assert [(process, int(number)) for process, number in killed] == [(4000001, 9), (4000002, 9)]
    assert all(verdict.is_good for verdict in verdicts)
