"""Publishers at a steady rate, whatever the server does: ``python -m tests.bench.steady PLAN``.

They go on until their standard input ends. Each sends at its times without waiting for answers, so that a server that
stands still shows in the latency of all that is sent meanwhile.
"""

from __future__ import annotations

import asyncio
import sys
import time

import msgspec

from . import dialects
from .dialects import TEXTS, DialogueDialect, trigger
from .generator import main, until
from .members import Member, open_all


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """What to do.

    Attributes:
        publishers: How many connections.
        per_second: Triggers of each in a second, one at a time.
        room: Where they publish; they do not receive its events.
    """

    port: int
    publishers: int
    per_second: float
    room: str


class Result(msgspec.Struct, frozen=True, kw_only=True):
    """What came of it.

    Attributes:
        latencies: Of each trigger, when it was sent by `time.perf_counter`, which processes share, and the seconds
            until its ``ok``.
        sent: All triggers.
        wrong: Answers that were not ``ok``.
    """

    latencies: list[tuple[float, float]]
    sent: int
    wrong: int


class _Message(msgspec.Struct):
    type: str
    ref: int | None = None


_decode = msgspec.json.Decoder(list[_Message]).decode


class Publisher(Member):
    """One connection; refs count from 1."""

    def __init__(self, plan: Plan, index: int) -> None:
        self.room = plan.room.encode()
        self.user = b"steady-%d" % index
        super().__init__(DialogueDialect(self.room), self.user, is_subscriber=False)
        self.due: dict[int, float] = {}
        self.latencies: list[tuple[float, float]] = []
        self.sent = 0
        self.wrong = 0

    def on_data(self, frame: bytes) -> None:
        now = time.perf_counter()
        for message in _decode(frame):
            if message.type == "ok" and message.ref in self.due:
                sent_at = self.due.pop(message.ref)
                self.latencies.append((sent_at, now - sent_at))
            elif message.type in ("ok", "error"):
                self.wrong += 1

    def publish(self) -> None:
        """Send one trigger."""
        self.sent += 1
        data = dialects.Message(TEXTS[self.sent % len(TEXTS)], self.user, self.sent).json()
        self.due[self.sent] = time.perf_counter()
        self.send(trigger(self.room, self.sent, data))


async def run(plan: Plan) -> Result:
    """Publish until standard input ends; then wait for what is in flight.

    Raises:
        TimeoutError: Something was not answered within `generator.SETTLE_SECONDS`.
    """
    publishers = [Publisher(plan, index) for index in range(plan.publishers)]
    await open_all(publishers, plan.port)
    print("ready", flush=True)
    loop = asyncio.get_running_loop()
    told = loop.run_in_executor(None, sys.stdin.buffer.read)
    between = 1 / plan.per_second / plan.publishers
    due, turn = loop.time(), 0
    while not told.done():
        publishers[turn % len(publishers)].publish()
        turn += 1
        due += between
        await asyncio.sleep(max(0.0, due - loop.time()))
    await until(lambda: not any(publisher.due for publisher in publishers))
    for publisher in publishers:
        publisher.close()
    return Result(
        latencies=sorted(item for publisher in publishers for item in publisher.latencies),
        sent=sum(publisher.sent for publisher in publishers),
        wrong=sum(publisher.wrong for publisher in publishers),
    )


if __name__ == "__main__":
    # Not kept to the core of the storm's clients: to wait for them would look like a latency of the server.
    main(Plan, run, is_pinned=False)
