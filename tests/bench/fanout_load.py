"""The load generator of a fan-out: many subscribers, some publishers: ``python -m tests.bench.fanout_load PLAN``.

It must not be the limit of what it measures. So the subscribers are plain sockets that are read in turn, many frames at
a time, and every message has three bytes that nothing else has: a subscriber's copies are counted at the speed of C,
without framing. All servers are read alike.

The last one to subscribe is the observer, who takes each frame as it comes and checks the order. A publisher keeps a
number of messages in flight; a message has landed when the observer has it, so no server needs acks for that, and none
can build a backlog unnoticed. Where a server is quicker than the sweep, the publishers wait for the sweep.
"""

from __future__ import annotations

import asyncio
import gc
import socket
import time
from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from .dialects import DIALECTS, Dialect
from .generator import SETTLE_SECONDS, main
from .members import MARK, NAME_BYTES, Member, Publisher, open_all, subscribe
from .processes import cpu_seconds, difference

SWEEP_SECONDS = 0.02
SLICES = 20
"""A sweep over all subscribers takes so long, in so many parts: reading all at once would delay the observer."""

BUFFER_BYTES = 262_144
_TAIL_BYTES = len(MARK) - 1

MOST_UNREAD = 2_000
"""How many messages the slowest subscriber may be behind the observer before publishers wait: less than servers, and
the kernel, keep for one who does not read."""


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """What to do.

    Attributes:
        pid: The server's process, to see what it uses.
        dialect: A name in `DIALECTS`.
        room: Number of the room (``bench:NUMBER``); one that nobody has used.
        in_flight: Messages that each publisher keeps in flight.
        warm_up_seconds: Time before the measurement.
        seconds: Time of the measurement.
    """

    port: int = 0
    pid: int = 0
    dialect: str = "plain"
    room: int = 0
    subscribers: int = 500
    publishers: int = 32
    in_flight: int = 8
    warm_up_seconds: float = 1.0
    seconds: float = 4.0


class Result(msgspec.Struct, frozen=True, kw_only=True):
    """What came of it.

    Attributes:
        deliveries_per_second: During the measurement, the observer's not counted.
        sent: All messages, those before and after the measurement included.
        landed: How many of them the observer has, in the order of each publisher.
        fewest, most: What the subscriber with the fewest messages has, and the one with the most.
        acked: How many were acked; None where there are no acks.
        wrong: Messages that were refused, lost, doubled or out of order.
        busy: The share of one core that the load generator used during the measurement.
        server_us: The server's processor time per delivery meanwhile, in microseconds; None where it is unknown.
    """

    deliveries_per_second: float
    sent: int
    landed: int
    fewest: int
    most: int
    acked: int | None
    wrong: int
    busy: float
    server_us: float | None

    def check(self) -> None:
        """Raise AssertionError unless everyone has everything once, in order."""
        assert not self.wrong, self
        assert self.landed == self.fewest == self.most == self.sent > 0, self
        assert self.acked in (None, self.sent), self


class Subscribers:
    """The sockets of the subscribers, and how many messages each has received.

    Attributes:
        counts: By subscriber.
        fewest: What the one with the fewest had after the latest sweep.
    """

    def __init__(self, sockets: Sequence[socket.socket]) -> None:
        self.counts = [0] * len(sockets)
        self.fewest = 0
        self._sockets = sockets
        # Before what is read there are the last bytes of what was read before: a mark may be in both.
        self._tails = [bytes(_TAIL_BYTES)] * len(sockets)
        self._buffer = bytearray(_TAIL_BYTES + BUFFER_BYTES)
        self._view = memoryview(self._buffer)[_TAIL_BYTES:]
        self._slice = max(1, -(-len(sockets) // SLICES))

    async def sweep(self, on_swept: Callable[[], None]) -> None:
        """Read them in turn until cancelled; *on_swept* is called after each sweep."""
        first = 0
        while True:
            self._read(first, first + self._slice)
            first += self._slice
            if first >= len(self._sockets):
                first = 0
                self.fewest = min(self.counts)
                on_swept()
            await asyncio.sleep(SWEEP_SECONDS / SLICES)

    def _read(self, first: int, past: int) -> None:
        buffer, view, tails, counts = self._buffer, self._view, self._tails, self.counts
        for index in range(first, min(past, len(counts))):
            try:
                size = self._sockets[index].recv_into(view)
            except BlockingIOError:
                continue
            if not size:
                raise ConnectionError("the server closed a subscriber's connection")
            buffer[:_TAIL_BYTES] = tails[index]
            counts[index] += buffer.count(MARK, 0, _TAIL_BYTES + size)
            tails[index] = bytes(buffer[size : _TAIL_BYTES + size])


class Observer(Member):
    """The last subscriber: sees every frame at once, checks the order, and lets the publishers go on."""

    def __init__(self, dialect: Dialect, publishers: Sequence[Publisher], subscribers: Subscribers) -> None:
        super().__init__(dialect, b"observer", is_subscriber=True)
        self.is_ended = False
        self.wrong = 0
        self._publishers = publishers
        self._subscribers = subscribers
        self._landed = 0
        self._due: dict[Publisher, int] = {}

    def on_data(self, frame: bytes) -> None:
        due = self._due
        for part in frame.split(MARK)[1:]:
            publisher = self._publishers[int(part[:2])]
            publisher.landed += 1
            self._landed += 1
            if int(part[3:NAME_BYTES]) != publisher.landed:
                self.wrong += 1
            due[publisher] = due.get(publisher, 0) + 1
        self.go_on()

    def go_on(self) -> None:
        """Let the publishers send what they may, unless the sweep is behind."""
        if self.is_ended or self._landed - self._subscribers.fewest > MOST_UNREAD:
            return
        due, self._due = self._due, {}
        for publisher, count in due.items():
            publisher.publish(count)


async def run(plan: Plan) -> Result:
    """Connect, publish for the planned time, wait for what is in flight, and return the result.

    Raises:
        TimeoutError: Something has not arrived within `SETTLE_SECONDS`.
        ConnectionError: The server has closed a connection.
    """
    dialect = DIALECTS[plan.dialect](b"bench:%d" % plan.room)
    publishers = [Publisher(dialect, index) for index in range(plan.publishers)]
    await open_all(publishers, plan.port)
    sockets = [subscribe(dialect, plan.port, b"subscriber-%d" % number) for number in range(plan.subscribers)]
    subscribers = Subscribers(sockets)
    observer = Observer(dialect, publishers, subscribers)
    await open_all([observer], plan.port)
    counts = subscribers.counts
    # Nothing here is garbage in circles, and a pause of the collector would look like one of the server.
    gc.disable()
    sweep = asyncio.create_task(subscribers.sweep(observer.go_on))

    async def wait(seconds: float) -> None:
        ends: list[asyncio.Future[Any]] = [sweep, observer.closed]
        done, _ = await asyncio.wait(ends, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        if sweep in done:
            sweep.result()
        if done:
            raise ConnectionError("the server closed the observer's connection")

    try:
        for publisher in publishers:
            publisher.publish(plan.in_flight)
        await wait(plan.warm_up_seconds)
        before, started, cpu = sum(counts), time.perf_counter(), time.process_time()
        spent_before = cpu_seconds(plan.pid)
        await wait(plan.seconds)
        delivered = sum(counts) - before
        elapsed, busy = time.perf_counter() - started, time.process_time() - cpu
        spent = difference(cpu_seconds(plan.pid), spent_before)
        observer.is_ended = True
        sent = sum(publisher.sent for publisher in publishers)
        async with asyncio.timeout(SETTLE_SECONDS):
            while (
                sum(publisher.landed for publisher in publishers) < sent
                or min(counts) < sent
                or (dialect.has_acks and sum(p.acked + p.wrong for p in publishers) < sent)
            ):
                await wait(SWEEP_SECONDS)
        # Two more sweeps, for what would come twice.
        await wait(2 * SWEEP_SECONDS)
    finally:
        sweep.cancel()
        for sock in sockets:
            sock.close()
        for member in (observer, *publishers):
            member.close()
    return Result(
        deliveries_per_second=delivered / elapsed,
        sent=sent,
        landed=sum(publisher.landed for publisher in publishers),
        fewest=min(counts),
        most=max(counts),
        acked=sum(publisher.acked for publisher in publishers) if dialect.has_acks else None,
        wrong=observer.wrong + sum(publisher.wrong for publisher in publishers),
        busy=busy / elapsed,
        server_us=None if spent is None else spent / max(1, delivered) * 1e6,
    )


if __name__ == "__main__":
    main(Plan, run)
