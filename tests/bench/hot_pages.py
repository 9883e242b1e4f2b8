"""Hot pages: history whose events are in memory, by readers that ask for one page after the other.

The load generator: ``python -m tests.bench.hot_pages PLAN``.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from random import Random

import msgspec

from .databases import database
from .dialects import TEXTS, DialogueDialect, Message
from .generator import main, percentile, until
from .members import Member, open_all
from .processes import cpu_seconds, difference, load, serving
from .report import Figure

ROOM = b"hot:0"
PAGE = 50
_BATCH = 100
"""Triggers in a frame of the publisher that fills the ring."""

_PARSED = 499
"""Of so many answers one is parsed and looked at in full; of the others bytes are searched."""


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """What to do.

    Attributes:
        pid: The server's process.
        readers: Connections that read, one page in flight each.
        events: Events in the room, all of them in its ring.
        is_checked: Whether every answer is parsed.
        warm_up_seconds: Time before the measurement.
        seconds: Time of the measurement.
    """

    port: int = 0
    pid: int = 0
    readers: int = 32
    events: int = 1000
    is_checked: bool = False
    warm_up_seconds: float = 1.0
    seconds: float = 5.0


class Result(msgspec.Struct, frozen=True, kw_only=True):
    """What came of it.

    Attributes:
        pages_per_second: During the measurement.
        wrong: Answers that were not the page that was asked for.
        parsed: Answers that were parsed.
        page_bytes: Size of an answer.
        p50_ms, p99_ms: From command to answer.
        busy: The share of one core that the load generator used meanwhile.
        cpu_us: The server's processor time per page, in microseconds; None where the system does not tell.
    """

    pages_per_second: float
    wrong: int
    parsed: int
    page_bytes: int
    p50_ms: float
    p99_ms: float
    busy: float
    cpu_us: float | None


class Filler(Member):
    """Fills the room."""

    def __init__(self) -> None:
        super().__init__(DialogueDialect(ROOM), b"filler", is_subscriber=False)
        self.acked = 0

    def on_data(self, frame: bytes) -> None:
        self.acked += frame.count(b'"type":"ok"')


class Reader(Member):
    """One reader with one page in flight."""

    def __init__(self, plan: Plan, index: int) -> None:
        super().__init__(DialogueDialect(ROOM), b"reader-%d" % index, is_subscriber=False)
        self.every = 1 if plan.is_checked else _PARSED
        self.events = plan.events
        self.chance = Random(index)
        self.pages = self.wrong = self.parsed = self.page_bytes = 0
        self.latencies: list[tuple[float, int]] = []
        self.is_measured = self.is_ended = self.is_waiting = False
        self._first = 0
        self._asked_at = 0.0

    def ask(self) -> None:
        """Ask for a page anywhere in the ring, by seq and by offset in turns."""
        last = self.chance.randint(PAGE, self.events)
        self._first = last - PAGE + 1
        if self.pages % 2:
            offset = self.events - last
            bounds = b'"event":"message","start":%d,"end":%d' % (offset, offset + PAGE)
        else:
            bounds = b'"before":%d,"limit":%d' % (last + 1, PAGE)
        self.is_waiting = True
        self._asked_at = time.perf_counter()
        self.send(b'{"type":"history","ref":%d,"room":"%b",%b}' % (self.pages, ROOM, bounds))

    def on_data(self, frame: bytes) -> None:
        if b'"type":"history"' not in frame:
            # Others come and go; an error is an answer.
            if b'"type":"error"' in frame:
                self.wrong += 1
                self.is_waiting = False
            return
        if self.is_measured:
            self.latencies.append((time.perf_counter() - self._asked_at, 1))
        if not self._is_right(frame):
            self.wrong += 1
        self.page_bytes = len(frame)
        self.pages += 1
        self.is_waiting = False
        if not self.is_ended:
            self.ask()

    def _is_right(self, frame: bytes) -> bool:
        first, last = self._first, self._first + PAGE - 1
        if self.pages % self.every == 0:
            self.parsed += 1
            (message,) = msgspec.json.decode(frame)
            seqs = [event["seq"] for event in message["events"]]
            texts = [event["data"]["text"].encode() for event in message["events"]]
            return (
                message["ref"] == self.pages
                and seqs == list(range(first, last + 1))
                and texts == [TEXTS[seq % len(TEXTS)] for seq in seqs]
                and message["has_more"] is (first > 1)
            )
        return (
            frame.count(b'"type":"event"') == PAGE
            and b'"ref":%d,' % self.pages in frame
            and b'"seq":%d,' % first in frame
            and b'"seq":%d,' % last in frame
        )


async def run(plan: Plan) -> Result:
    """Fill the room, read for the planned time, and return the result."""
    filler = Filler()
    await open_all([filler], plan.port)
    for first in range(1, plan.events + 1, _BATCH):
        numbers = range(first, min(first + _BATCH, plan.events + 1))
        messages = [Message(TEXTS[number % len(TEXTS)], b"filler", number) for number in numbers]
        for frame in filler.dialect.frames(messages):
            filler.send(frame)
        await until(lambda last=numbers[-1]: filler.acked == last)  # type: ignore[misc]
    readers = [Reader(plan, index) for index in range(plan.readers)]
    await open_all(readers, plan.port)
    for reader in readers:
        reader.ask()
    await asyncio.sleep(plan.warm_up_seconds)
    for reader in readers:
        reader.is_measured = True
    before, started, cpu = sum(r.pages for r in readers), time.perf_counter(), time.process_time()
    server_cpu = cpu_seconds(plan.pid)
    await asyncio.sleep(plan.seconds)
    used = difference(cpu_seconds(plan.pid), server_cpu)
    pages = sum(r.pages for r in readers) - before
    elapsed, busy = time.perf_counter() - started, time.process_time() - cpu
    for reader in readers:
        reader.is_measured = False
        reader.is_ended = True
    await until(lambda: not any(reader.is_waiting for reader in readers))
    for member in (filler, *readers):
        member.close()
    latencies = sorted(item for reader in readers for item in reader.latencies)
    return Result(
        pages_per_second=pages / elapsed,
        wrong=sum(r.wrong for r in readers),
        parsed=sum(r.parsed for r in readers),
        page_bytes=readers[0].page_bytes,
        p50_ms=percentile(latencies, 0.5) * 1000,
        p99_ms=percentile(latencies, 0.99) * 1000,
        busy=busy / elapsed,
        cpu_us=None if used is None else used / max(1, pages) * 1e6,
    )


def measure(plan: Plan, *, stores: Sequence[str], rounds: int) -> list[Figure]:
    """Run *plan* *rounds* times in turns against new servers over *stores*, kinds of `database`.

    Raises:
        AssertionError: An answer was not the page that was asked for.
    """
    runs: dict[str, list[Result]] = {store: [] for store in stores}
    for _ in range(rounds):
        for store, done in runs.items():
            with database(store) as url, serving("dialogue", url) as served:
                result = load(msgspec.structs.replace(plan, port=served.port, pid=served.pid), Result)
            assert not result.wrong, result
            assert result.parsed, result
            done.append(result)
    # The bound is of the server without a log: one beside it changes nothing of the path.
    return [
        figure(store, done, plan, at_least=10_000 if store == "memory" else None)
        for store, done in runs.items()
    ]


def figure(store: str, runs: list[Result], plan: Plan, *, at_least: float | None) -> Figure:
    """Return the best of *runs*."""
    best = max(runs, key=lambda result: result.pages_per_second)
    thousands = ", ".join(f"{result.pages_per_second / 1000:.1f}" for result in runs)
    cpu = "" if best.cpu_us is None else f"{best.cpu_us:.0f} us of the server's CPU per page; "
    return Figure(
        scenario="hot_pages",
        what=f"{store}: pages of {PAGE} from a ring of {plan.events:,}, {plan.readers} readers",
        value=best.pages_per_second,
        unit="pages/s",
        at_least=at_least,
        note=(
            f"{best.page_bytes:,} bytes a page; p50 {best.p50_ms:.1f} ms, p99 {best.p99_ms:.1f} ms; {cpu}"
            f"load generator {best.busy:.0%} of a core; runs in thousands: {thousands}"
        ),
    )


if __name__ == "__main__":
    main(Plan, run)
