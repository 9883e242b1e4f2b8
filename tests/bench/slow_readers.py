"""Slow readers: who stops reading is closed, and neither costs the others their latency nor the server its memory.

The load generator: ``python -m tests.bench.slow_readers PLAN``.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from statistics import median

import msgspec

from .dialects import DialogueDialect, trigger
from .generator import main, percentile, until, until_quiet
from .members import Member, open_all
from .processes import fetch, load, resident_bytes, serving_all
from .report import Figure

ROOM = b"documents:0"
DOCUMENT_BYTES = 32_000
_IN_RING = 100
"""Documents that the room's ring holds; it is full before anything is measured."""

CLOSED = 'dialogue_closes_total{code="4008"}'
WRITE_BUFFER_BYTES = 65_536
"""What a transport takes beyond what the kernel has, before it asks its writer to wait: asyncio's and uvloop's mark."""

_TEXT = b'"text":"'


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """What to do.

    Attributes:
        pid: The server's process.
        subscribers: Connections that receive the events.
        slow: How many of them are the slow ones. Their latency does not count, whether they stop or not.
        is_stopping: Whether the slow ones stop reading when the measurement begins.
        per_second: Documents published a second.
        warm_up_seconds: Time before the measurement.
        seconds: Time of the measurement.
    """

    port: int = 0
    pid: int = 0
    subscribers: int = 500
    slow: int = 50
    is_stopping: bool = False
    per_second: float = 20.0
    warm_up_seconds: float = 1.0
    seconds: float = 10.0


class Result(msgspec.Struct, frozen=True, kw_only=True):
    """What came of it.

    Attributes:
        p50_ms, p99_ms: From when a document was due to be sent until a subscriber had it, of the others.
        sent: Documents sent.
        wrong: Documents that came to one of the others twice, out of order, or not at all.
        grown_bytes: By how much the server's memory grew at most after the slow ones stopped; None where the system
            does not tell.
        counted: How many connections the server says to have closed with 4008.
        codes: The close codes that the slow ones saw when they read again.
        closed_after_seconds: From when they stopped until the server had closed all of them.
        busy: The share of one core that the load generator used during the measurement.
    """

    p50_ms: float
    p99_ms: float
    sent: int
    wrong: int
    grown_bytes: int | None
    counted: int
    codes: list[int | None]
    closed_after_seconds: float
    busy: float


class Publisher(Member):
    """Sends documents that say which one they are, and when they were due."""

    def __init__(self) -> None:
        super().__init__(DialogueDialect(ROOM), b"publisher", is_subscriber=False)
        self.sent = 0
        self.acked = 0
        self.is_ended = False

    def on_data(self, frame: bytes) -> None:
        self.acked += frame.count(b'"type":"ok"')

    def publish(self, due: float) -> None:
        """Send one document."""
        self.sent += 1
        text = (b"%d %.6f " % (self.sent, due)).ljust(DOCUMENT_BYTES, b"x")
        self.send(trigger(ROOM, self.sent, b'{"text":"%b"}' % text, event=b"document"))

    async def run(self, per_second: float) -> None:
        """Publish at a steady rate until ended; what is late is sent at once, and counts from when it was due."""
        due = time.perf_counter()
        while not self.is_ended:
            await asyncio.sleep(max(0.0, due - time.perf_counter()))
            self.publish(due)
            due += 1 / per_second


class Subscriber(Member):
    """Receives the documents."""

    def __init__(self, index: int) -> None:
        super().__init__(DialogueDialect(ROOM), b"subscriber-%d" % index, is_subscriber=True)
        # It joins when the ring is full, and asks for nothing of it.
        self.latest = _IN_RING
        self.wrong = 0
        self.is_measured = False
        self.latencies: list[tuple[float, int]] = []

    def on_data(self, frame: bytes) -> None:
        start = frame.find(_TEXT)
        while start >= 0:
            number, due, _ = frame[start + len(_TEXT) : start + 64].split(b" ", 2)
            self.wrong += int(number) != self.latest + 1
            self.latest = int(number)
            if self.is_measured:
                self.latencies.append((time.perf_counter() - float(due), 1))
            start = frame.find(_TEXT, start + DOCUMENT_BYTES)


async def _watch(pid: int, found: list[int]) -> None:
    while (now := resident_bytes(pid)) is not None:
        found.append(now)
        await asyncio.sleep(0.1)


async def _closed(port: int) -> int:
    """Return how many connections the server says to have closed with 4008."""
    text = (await asyncio.to_thread(fetch, port, "/metrics")).decode()
    lines = [line for line in text.splitlines() if line.startswith(f"{CLOSED} ")]
    return int(float(lines[0].rpartition(" ")[2])) if lines else 0


async def run(plan: Plan) -> Result:
    """Publish for the planned time, and see what became of the slow ones and of the others."""
    publisher = Publisher()
    await open_all([publisher], plan.port)
    for _ in range(_IN_RING):
        publisher.publish(0.0)
    await until(lambda: publisher.acked == _IN_RING)
    subscribers = [Subscriber(index) for index in range(plan.subscribers)]
    slow, others = subscribers[: plan.slow], subscribers[plan.slow :]
    await open_all(subscribers, plan.port)
    await until_quiet(plan.pid)
    publishing = asyncio.create_task(publisher.run(plan.per_second))
    await asyncio.sleep(plan.warm_up_seconds)
    memory: list[int] = []
    watching = asyncio.create_task(_watch(plan.pid, memory))
    await asyncio.sleep(0)
    started, cpu = time.perf_counter(), time.process_time()
    for subscriber in subscribers:
        subscriber.is_measured = True
    if plan.is_stopping:
        for subscriber in slow:
            subscriber.transport.pause_reading()
    await asyncio.sleep(plan.seconds)
    busy = (time.process_time() - cpu) / (time.perf_counter() - started)
    for subscriber in subscribers:
        subscriber.is_measured = False
    closed_after = 0.0
    if plan.is_stopping:
        async with asyncio.timeout(60):
            while await _closed(plan.port) < plan.slow:
                await asyncio.sleep(0.1)
        closed_after = time.perf_counter() - started
        for subscriber in slow:
            subscriber.transport.resume_reading()
        async with asyncio.timeout(60):
            await asyncio.gather(*(subscriber.closed for subscriber in slow))
    counted = await _closed(plan.port)
    publisher.is_ended = True
    await publishing
    watching.cancel()
    reading = others if plan.is_stopping else subscribers
    await until(lambda: all(subscriber.latest == publisher.sent for subscriber in reading))
    for member in (publisher, *subscribers):
        member.close()
    latencies = sorted(item for subscriber in others for item in subscriber.latencies)
    return Result(
        p50_ms=percentile(latencies, 0.5) * 1000,
        p99_ms=percentile(latencies, 0.99) * 1000,
        sent=publisher.sent,
        # What the slow ones got before they were closed is in order too.
        wrong=sum(subscriber.wrong for subscriber in subscribers),
        grown_bytes=max(memory) - memory[0] if memory else None,
        counted=counted,
        codes=[subscriber.closed.result() for subscriber in slow] if plan.is_stopping else [],
        closed_after_seconds=closed_after,
        busy=busy,
    )


def measure(plan: Plan, *, rounds: int) -> list[Figure]:
    """Run *plan* *rounds* times, each time where all read and then where some stop, against new servers.

    Raises:
        AssertionError: One of those who read lost something, or one who did not read was not closed with 4008.
    """
    runs: dict[bool, list[Result]] = {False: [], True: []}
    for _ in range(rounds):
        with serving_all(dict.fromkeys(runs, ("dialogue", ""))) as served:
            for is_stopping, done in runs.items():
                at = served[is_stopping]
                result = load(
                    msgspec.structs.replace(plan, port=at.port, pid=at.pid, is_stopping=is_stopping), Result
                )
                assert not result.wrong, result
                slow = plan.slow if is_stopping else 0
                assert result.counted == slow, result
                assert result.codes == [4008] * slow, result
                done.append(result)
    return figures(runs[False], runs[True], plan)


def bound_bytes(slow: int) -> int:
    """Return what *slow* connections may hold: a full outbox each, a full transport, and a frame that filled it."""
    # Here because of what a server takes to import, which the load generator is not.
    from .serve import limits

    return slow * (limits().outbox_bytes + WRITE_BUFFER_BYTES + 2 * DOCUMENT_BYTES)


def figures(all_read: Sequence[Result], some_stop: Sequence[Result], plan: Plan) -> list[Figure]:
    """Return the others' latency with and without slow readers, and what these cost in memory."""
    others = plan.subscribers - plan.slow
    made = [
        Figure(
            scenario="slow_readers",
            what=f"p99 of {others} while {plan.slow} do not read",
            value=median(result.p99_ms for result in some_stop),
            unit="ms",
            against="all read",
            against_value=median(result.p99_ms for result in all_read),
            ratio_at_most=1.5,
            note=(
                f"{plan.per_second:.0f} documents of {DOCUMENT_BYTES:,} bytes a second; p50 "
                f"{median(result.p50_ms for result in some_stop):.1f} ms against "
                f"{median(result.p50_ms for result in all_read):.1f}; all {plan.slow} closed with 4008 within "
                f"{max(result.closed_after_seconds for result in some_stop):.1f} s; load generator "
                f"{max(result.busy for result in (*all_read, *some_stop)):.0%} of a core; runs: "
                f"{_listed(some_stop)} against {_listed(all_read)}"
            ),
        )
    ]
    grown = [result.grown_bytes for result in some_stop if result.grown_bytes is not None]
    if grown:
        usual = [result.grown_bytes for result in all_read if result.grown_bytes is not None]
        made.append(
            Figure(
                scenario="slow_readers",
                what=f"memory that the server grows by while {plan.slow} do not read",
                value=max(grown) / 1e6,
                unit="MB",
                against="all read",
                against_value=max(usual) / 1e6,
                at_most=bound_bytes(plan.slow) / 1e6,
                note="the bound: outbox_bytes, the transport's write buffer and two documents for each of them",
            )
        )
    return made


def _listed(results: Sequence[Result]) -> str:
    return ", ".join(f"{result.p99_ms:.0f}" for result in results)


if __name__ == "__main__":
    main(Plan, run)
