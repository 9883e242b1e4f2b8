"""The load generator of latencies, from publisher to subscriber: ``python -m tests.bench.latency_load PLAN``.

Messages go out at even intervals, whatever has become of those before, and times count from when a message was due: a
server that is late with one does not delay the next, and what waits counts.
"""

from __future__ import annotations

import asyncio
import gc
import selectors
import socket
import time
from collections.abc import Sequence

import msgspec

from .dialects import DIALECTS
from .generator import SETTLE_SECONDS, main, percentile
from .members import MARK, NAME_BYTES, Publisher, open_all, subscribe

SPIN_SECONDS = 0.0015
"""So long before a message is due its sender stops sleeping: timers are a millisecond late."""

SETTLED_SECONDS = 0.05


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """What to do.

    Attributes:
        dialect: A name in `DIALECTS`.
        room: Number of the room (``bench:NUMBER``); one that nobody has used.
        per_second: Messages a second of all publishers together, who take turns.
        warm_up_seconds: Time before the measurement.
        seconds: Time of the measurement.
    """

    port: int = 0
    dialect: str = "plain"
    room: int = 0
    subscribers: int = 500
    publishers: int = 10
    per_second: int = 50
    warm_up_seconds: float = 1.0
    seconds: float = 5.0


class Result(msgspec.Struct, frozen=True, kw_only=True):
    """What came of it.

    Attributes:
        p50_ms, p99_ms: Latency of the deliveries whose messages were due during the measurement.
        late_ms: By how much the load generator was late with a message; 99 % were not later.
        sent: All messages, those of the warm-up included.
        fewest, most: What the subscriber with the fewest messages has, and the one with the most.
        acked: How many were acked; None where there are no acks.
        wrong: Messages that were refused, lost, doubled or out of order.
        busy: The share of one core that the load generator used.
    """

    p50_ms: float
    p99_ms: float
    late_ms: float
    sent: int
    fewest: int
    most: int
    acked: int | None
    wrong: int
    busy: float

    def check(self) -> None:
        """Raise AssertionError unless everyone has everything once, in order."""
        assert not self.wrong, self
        assert self.fewest == self.most == self.sent > 0, self
        assert self.acked in (None, self.sent), self


class Subscriber:
    """A socket, and what it has received.

    Attributes:
        numbers: The newest message of each publisher.
        tail: The end of what was read, where a mark or a name may have begun.
    """

    __slots__ = ("count", "numbers", "socket", "tail")

    def __init__(self, sock: socket.socket, publishers: int) -> None:
        self.socket = sock
        self.count = 0
        self.numbers = [0] * publishers
        self.tail = b""


class Subscribers:
    """All of them, behind one selector: one wake-up of the loop for all that have something to read.

    Attributes:
        arrivals: Pairs of publisher and number, with the time at which each was there.
        wrong: Messages that were not the next of their publisher.
        closed: Connections that the server has closed.
    """

    def __init__(self, sockets: Sequence[socket.socket], publishers: int) -> None:
        self.all = [Subscriber(sock, publishers) for sock in sockets]
        self.arrivals: list[tuple[int, int, float]] = []
        self.wrong = 0
        self.closed = 0
        self.selector = selectors.DefaultSelector()
        for subscriber in self.all:
            self.selector.register(subscriber.socket, selectors.EVENT_READ, subscriber)

    def read(self) -> None:
        """Read what is there."""
        found = self.selector.select(0)
        # Of all at once: what the last one waits for those before it is not the server's.
        now = time.perf_counter()
        for key, _ in found:
            subscriber: Subscriber = key.data
            data = subscriber.socket.recv(65_536)
            if not data:
                self.closed += 1
                self.selector.unregister(subscriber.socket)
            parts = (subscriber.tail + data).split(MARK)
            last = parts[-1]
            if len(parts) > 1 and len(last) < NAME_BYTES:
                subscriber.tail = MARK + parts.pop()
            else:
                subscriber.tail = last[1 - len(MARK) :]
            for part in parts[1:]:
                publisher, number = int(part[:2]), int(part[3:NAME_BYTES])
                if number != subscriber.numbers[publisher] + 1:
                    self.wrong += 1
                subscriber.numbers[publisher] = number
                subscriber.count += 1
                self.arrivals.append((publisher, number, now))


async def run(plan: Plan) -> Result:
    """Connect, publish for the planned time, wait for what is on its way, and return the result.

    Raises:
        TimeoutError: Something has not arrived within `SETTLE_SECONDS`.
        ConnectionError: The server has closed a connection.
    """
    loop = asyncio.get_running_loop()
    dialect = DIALECTS[plan.dialect](b"bench:%d" % plan.room)
    publishers = [Publisher(dialect, index) for index in range(plan.publishers)]
    await open_all(publishers, plan.port)
    sockets = [subscribe(dialect, plan.port, b"subscriber-%d" % number) for number in range(plan.subscribers)]
    subscribers = Subscribers(sockets, plan.publishers)
    # Nothing here is garbage in circles, and a pause of the collector would look like one of the server.
    gc.disable()
    loop.add_reader(subscribers.selector.fileno(), subscribers.read)
    sent = int((plan.warm_up_seconds + plan.seconds) * plan.per_second)
    late: list[tuple[float, int]] = []
    try:
        started, cpu = time.perf_counter() + SETTLED_SECONDS, time.process_time()
        for index in range(sent):
            due = started + index / plan.per_second
            while (left := due - SPIN_SECONDS - time.perf_counter()) > 0:
                await asyncio.sleep(left)
            while (now := time.perf_counter()) < due:
                subscribers.read()
            publishers[index % plan.publishers].publish(1)
            late.append((now - due, 1))
        busy = (time.process_time() - cpu) / (time.perf_counter() - started)
        async with asyncio.timeout(SETTLE_SECONDS):
            while min(subscriber.count for subscriber in subscribers.all) < sent or (
                dialect.has_acks and sum(p.acked + p.wrong for p in publishers) < sent
            ):
                if subscribers.closed:
                    raise ConnectionError("the server closed a subscriber's connection")
                await asyncio.sleep(SETTLED_SECONDS)
        # A moment more, for what would come twice.
        await asyncio.sleep(SETTLED_SECONDS)
    finally:
        loop.remove_reader(subscribers.selector.fileno())
        subscribers.selector.close()
        for sock in sockets:
            sock.close()
        for publisher in publishers:
            publisher.close()
    first = plan.warm_up_seconds * plan.per_second
    latencies = []
    for publisher_index, number, arrived in subscribers.arrivals:
        index = (number - 1) * plan.publishers + publisher_index
        if index >= first:
            latencies.append((arrived - started - index / plan.per_second, 1))
    latencies.sort()
    return Result(
        p50_ms=percentile(latencies, 0.5) * 1000,
        p99_ms=percentile(latencies, 0.99) * 1000,
        late_ms=percentile(sorted(late), 0.99) * 1000,
        sent=sent,
        fewest=min(subscriber.count for subscriber in subscribers.all),
        most=max(subscriber.count for subscriber in subscribers.all),
        acked=sum(publisher.acked for publisher in publishers) if dialect.has_acks else None,
        wrong=subscribers.wrong + sum(publisher.wrong for publisher in publishers),
        busy=busy,
    )


if __name__ == "__main__":
    main(Plan, run)
