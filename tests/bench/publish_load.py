"""The load generator of durable publishes: ``python -m tests.bench.publish_load PLAN``.

It must not be the limit of what it measures: it searches bytes instead of parsing JSON (see also `tests.bench.wire`).

A publisher keeps a number of triggers in flight: it answers a frame that holds k acks by one that holds k triggers.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from random import getrandbits

import msgspec

from .dialects import TEXTS, DialogueDialect, Message, trigger
from .generator import main, percentile, until
from .members import Member, open_all


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """What to do.

    Attributes:
        publishers: How many connections.
        in_flight: Triggers that each keeps in flight.
        rooms: Over how many rooms (``bench:0``, ``bench:1``, ...) the publishers are spread.
        has_keys: Whether each trigger has an idempotency key of 36 random characters.
        is_subscribed: Whether publishers receive the room's events.
        is_single: Whether each trigger has a frame of its own; else a frame holds as many as are due.
        is_checked: Whether every answer is parsed and compared; for tests, as it costs time.
        warm_up_seconds: Time before the measurement.
        seconds: Time of the measurement.
    """

    port: int
    publishers: int = 64
    in_flight: int = 8
    rooms: int = 1
    has_keys: bool = False
    is_subscribed: bool = False
    is_single: bool = False
    is_checked: bool = False
    warm_up_seconds: float = 1.0
    seconds: float = 5.0


class Result(msgspec.Struct, frozen=True, kw_only=True):
    """What came of it.

    Attributes:
        acks_per_second: During the measurement.
        sent: All triggers, those before and after the measurement included.
        acked: How many of them were answered by ``ok``.
        wrong: Answers that were anything else, or, when they are checked, not what they should be.
        p50_ms, p99_ms: Latency of the triggers answered during the measurement.
        busy: The share of one core that the load generator used meanwhile.
    """

    acks_per_second: float
    sent: int
    acked: int
    wrong: int
    p50_ms: float
    p99_ms: float
    busy: float


class Publisher(Member):
    """One connection with its triggers in flight."""

    def __init__(self, plan: Plan, index: int) -> None:
        self.plan = plan
        self.room = b"bench:%d" % (index % plan.rooms)
        self.user = b"user-%d" % index
        super().__init__(DialogueDialect(self.room), self.user, is_subscriber=plan.is_subscribed)
        self.sent = 0
        self.acked = 0
        self.wrong = 0
        self.is_measured = False
        self.latencies: list[tuple[float, int]] = []
        self._is_ended = False
        self._due: deque[tuple[float, int]] = deque()

    def on_data(self, frame: bytes) -> None:
        acks = frame.count(b'"type":"ok"')
        if b'"type":"error"' in frame:
            self.wrong += frame.count(b'"type":"error"')
        if self.plan.is_checked:
            acks = self._check(frame)
        if not acks:
            return
        self.acked += acks
        now = time.perf_counter()
        left = acks
        while left:
            sent_at, count = self._due[0]
            taken = min(left, count)
            if self.is_measured:
                self.latencies.append((now - sent_at, taken))
            if taken == count:
                self._due.popleft()
            else:
                self._due[0] = (sent_at, count - taken)
            left -= taken
        if not self._is_ended:
            self.publish(acks)

    def _check(self, frame: bytes) -> int:
        """Return the acks of *frame*, which must come in the order of the triggers and with growing seqs."""
        acks = [message for message in msgspec.json.decode(frame) if message["type"] == "ok"]
        for ref, ack in enumerate(acks, start=self.acked + 1):
            if ack["ref"] != ref or ack["room"] != self.room.decode() or "duplicate" in ack:
                self.wrong += 1
        return len(acks)

    def publish(self, count: int) -> None:
        """Send *count* triggers."""
        triggers = []
        for _ in range(count):
            self.sent += 1
            key = b""
            if self.plan.has_keys:
                # The worst that an index may have to bear; keys of Dialogue's own clients grow with time.
                key = b"%036x" % getrandbits(144)
            data = Message(TEXTS[self.sent % len(TEXTS)], self.user, self.sent).json()
            triggers.append(trigger(self.room, self.sent, data, key=key))
        now = time.perf_counter()
        if self.plan.is_single:
            self._due.extend((now, 1) for _ in triggers)
            for command in triggers:
                self.send(command)
        else:
            self._due.append((now, count))
            self.send(b"[" + b",".join(triggers) + b"]")

    def end(self) -> None:
        """Publish nothing more."""
        self._is_ended = True


async def run(plan: Plan) -> Result:
    """Connect, publish for the planned time, wait for what is in flight, and return the result.

    Raises:
        TimeoutError: Something was not answered within `generator.SETTLE_SECONDS`.
    """
    publishers = [Publisher(plan, index) for index in range(plan.publishers)]
    await open_all(publishers, plan.port)
    for publisher in publishers:
        publisher.publish(plan.in_flight)
    await asyncio.sleep(plan.warm_up_seconds)
    for publisher in publishers:
        publisher.is_measured = True
    before, started, cpu = sum(p.acked for p in publishers), time.perf_counter(), time.process_time()
    await asyncio.sleep(plan.seconds)
    acks = sum(p.acked for p in publishers) - before
    elapsed, busy = time.perf_counter() - started, time.process_time() - cpu
    for publisher in publishers:
        publisher.is_measured = False
        publisher.end()
    await until(lambda: all(p.acked + p.wrong >= p.sent for p in publishers))
    for publisher in publishers:
        publisher.close()
    latencies = sorted(item for publisher in publishers for item in publisher.latencies)
    return Result(
        acks_per_second=acks / elapsed,
        sent=sum(p.sent for p in publishers),
        acked=sum(p.acked for p in publishers),
        wrong=sum(p.wrong for p in publishers),
        p50_ms=percentile(latencies, 0.5) * 1000,
        p99_ms=percentile(latencies, 0.99) * 1000,
        busy=busy / elapsed,
    )


if __name__ == "__main__":
    main(Plan, run)
