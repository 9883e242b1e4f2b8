"""Visitors of a soak: they come, talk, read, drop, come back and go: ``python -m tests.bench.soak_load PLAN``.

Each checks what it gets: events follow each other without a hole, also over a resume. What was acked goes into a file,
for the log to be held against.
"""

from __future__ import annotations

import asyncio
import time
from itertools import count
from pathlib import Path
from random import Random
from typing import Any

import msgspec

from .dialects import TEXTS
from .generator import main
from .processes import cpu_seconds, difference
from .wire import Connection, fail, open_connection

SECONDS = 60.0
"""How long any answer may take."""

USERS = 1000
ROOMS_PER_SECOND = 4
"""How many rooms begin each second; so many others are visited no more."""
ROOMS_AT_ONCE = 20
OLD_SHARE = 0.1
"""Of the visits, how many are to a room that was left before, and is asleep."""
PRESENCE_SHARE, PAGE_SHARE, RESUME_SHARE = 0.2, 0.4, 0.3
ABORT_SHARE, LEAVE_SHARE = 0.3, 0.4
"""How visits end; the others close the socket from within the room."""
PAGE = 20
MOST_VISITORS = 2000
LOOK_SECONDS = 1.0
FILLING_BYTES = 50_000


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """What to do.

    Attributes:
        pid: The server's process.
        filled: Events of `FILLING_BYTES` that are published into a room of their own before all else.
        burst: Visits that begin at once, at the start.
        per_second: Visits that begin in a second.
        cpu_share: The share of a core that the server is to use: in the first `settle_seconds` the rate is moved until
            it does, and then kept. 0 keeps the given rate.
        pause: Longest time between two triggers of a visitor, in seconds.
        ledger: The file that gets what was acked.
        seed: Of what chance decides.
    """

    port: int
    pid: int
    seconds: float
    filled: int = 0
    burst: int = 0
    per_second: float
    cpu_share: float = 0.0
    settle_seconds: float = 0.0
    pause: float = 0.6
    ledger: str
    seed: int


class Entry(msgspec.Struct, frozen=True, array_like=True):
    """An acked event: where it must be in the log."""

    room: str
    seq: int
    text: str


class Result(msgspec.Struct, frozen=True, kw_only=True):
    """What came of it.

    Attributes:
        started: By `time.perf_counter`, which processes share.
        per_second: The rate that was kept.
        visits, resumes, pages, events, acked: How many there were; *events* are those that visitors got.
        wrong: What was not as it should be; empty if all was.
        busy, server_share: The shares of one core that this process and the server used, once the rate was kept.
    """

    started: float
    per_second: float
    visits: int
    resumes: int
    pages: int
    events: int
    acked: int
    wrong: list[str]
    busy: float
    server_share: float | None


class _Event(msgspec.Struct):
    seq: int


class _Message(msgspec.Struct):
    type: str
    ref: int | None = None
    seq: int | None = None
    epoch: str = ""
    code: str = ""
    recovered: bool | None = None
    events: list[_Event] = []


_decode = msgspec.json.Decoder(list[_Message]).decode


class _Refused(Exception):
    """The server has refused a command."""


class Visitor(Connection):
    """One connection of a visit.

    Attributes:
        cursor: The seq up to which it has all of its room.
        events: How many it got.
        wrong: What came out of order.
    """

    def __init__(self) -> None:
        super().__init__()
        self.cursor = 0
        self.events = 0
        self.wrong: list[str] = []
        self._refs = count(1)
        self._asked: dict[int, asyncio.Future[_Message]] = {}

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        fail(*self._asked.values())

    def on_frame(self, frame: bytes) -> None:
        for message in _decode(frame):
            if message.type == "event":
                self._follow([message.seq or 0])
            elif message.type == "joined":
                if message.recovered:
                    self._follow([event.seq for event in message.events])
                if message.recovered is False or (message.recovered and self.cursor != message.seq):
                    self.wrong.append(f"not recovered: {self.cursor}, {message.seq}")
                self.cursor = message.seq or 0
            elif message.type == "ping":
                self.send(b'{"type":"pong"}')
            if message.ref is not None:
                future = self._asked.pop(message.ref)
                if message.type == "error":
                    future.set_exception(_Refused(message.code))
                else:
                    future.set_result(message)

    def _follow(self, seqs: list[int]) -> None:
        for seq in seqs:
            if seq != self.cursor + 1:
                self.wrong.append(f"{seq} after {self.cursor}")
            self.cursor = seq
        self.events += len(seqs)

    def tell(self, **command: Any) -> asyncio.Future[_Message]:
        """Send a command; return what becomes its answer."""
        ref = next(self._refs)
        self._asked[ref] = future = asyncio.get_running_loop().create_future()
        self.send(msgspec.json.encode({**command, "ref": ref}))
        return future

    async def ask(self, **command: Any) -> _Message:
        """Send a command; return its answer.

        Raises:
            _Refused: It was refused.
            ConnectionError: The connection ended.
            TimeoutError: It took longer than `SECONDS`.
        """
        async with asyncio.timeout(SECONDS):
            return await self.tell(**command)


class Load:
    """The visitors."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.chance = Random(plan.seed)
        self.per_second = plan.per_second
        self.started = time.perf_counter()
        self.visits = self.resumes = self.pages = self.events = 0
        self.acked: list[Entry] = []
        self.wrong: list[str] = []
        self._tasks: set[asyncio.Task[None]] = set()

    def _room(self) -> str:
        base = int((time.perf_counter() - self.started) * ROOMS_PER_SECOND)
        if self.chance.random() < OLD_SHARE:
            base -= self.chance.randrange(base + 1)
        return f"soak:{self.plan.seed}-{base + self.chance.randrange(ROOMS_AT_ONCE)}"

    async def run(self) -> Result:
        """Let visitors come for the planned time, and wait until the last has gone."""
        plan, loop = self.plan, asyncio.get_running_loop()
        if plan.filled:
            await self._fill(plan.filled)
        due = began = kept = loop.time()
        server, ours = cpu_seconds(plan.pid), time.process_time()
        for _ in range(plan.burst):
            self._begin()
        while (now := loop.time()) < began + plan.seconds:
            if plan.cpu_share and now < began + plan.settle_seconds and now > kept + LOOK_SECONDS:
                used, server = difference(cpu_seconds(plan.pid), server), cpu_seconds(plan.pid)
                if used is not None:
                    # By steps: a visit lasts longer than the time between two looks, and shows only in part.
                    wanted = (plan.cpu_share / max(0.01, used / (now - kept))) ** 0.5
                    self.per_second *= min(1.3, max(0.7, wanted))
                kept, ours, due = now, time.process_time(), now
            if len(self._tasks) < MOST_VISITORS:
                self._begin()
            due += 1 / self.per_second
            await asyncio.sleep(max(0.0, due - loop.time()))
        elapsed = loop.time() - kept
        busy, used = (time.process_time() - ours) / elapsed, difference(cpu_seconds(plan.pid), server)
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=SECONDS)
        return Result(
            started=self.started,
            per_second=self.per_second,
            visits=self.visits,
            resumes=self.resumes,
            pages=self.pages,
            events=self.events,
            acked=len(self.acked),
            wrong=self.wrong[:5] + [f"{len(self._tasks)} visits hang"] * bool(self._tasks),
            busy=busy,
            server_share=None if used is None else used / elapsed,
        )

    async def _fill(self, number: int) -> None:
        visitor = await self._come("filling")
        await visitor.ask(type="join", room="filled", events=[])
        data = {"text": "x" * FILLING_BYTES}
        for _ in range(number):
            await visitor.ask(type="trigger", room="filled", event="filling", data=data)
        visitor.close()

    def _begin(self) -> None:
        task = asyncio.create_task(self._visit())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _visit(self) -> None:
        self.visits += 1
        number, room = self.visits, self._room()
        try:
            await self._talk(number, room, f"user-{self.chance.randrange(USERS)}")
        except (_Refused, TimeoutError, OSError) as error:
            self.wrong.append(f"visit {number} of {room}: {error!r}")

    async def _come(self, user: str) -> Visitor:
        visitor = Visitor()
        await open_connection(visitor, self.plan.port)
        async with asyncio.timeout(SECONDS):
            await visitor.opened
        await visitor.ask(type="connect", auth={"user_id": user})
        return visitor

    def _leave_off(self, visitor: Visitor) -> None:
        self.events += visitor.events
        self.wrong += visitor.wrong

    async def _talk(self, number: int, room: str, user: str) -> None:
        chance = self.chance
        visitor = await self._come(user)
        joined = await visitor.ask(type="join", room=room, sync=10)
        if chance.random() < PRESENCE_SHARE:
            await visitor.ask(type="presence", room=room)
        has_resumed = chance.random() >= RESUME_SHARE
        for turn in range(chance.randrange(3, 8)):
            await asyncio.sleep(chance.random() * self.plan.pause)
            trigger = self._trigger(room, f"{self.plan.seed} {number} {turn}", user)
            if not has_resumed and chance.random() < 0.4:
                # Gone before the answer: only the key tells what became of it.
                has_resumed = True
                visitor.tell(**trigger)
                visitor.transport.abort()
                self._leave_off(visitor)
                await asyncio.sleep(chance.random() * self.plan.pause)
                again = await self._come(user)
                again.cursor = visitor.cursor
                await again.ask(type="join", room=room, since={"seq": visitor.cursor, "epoch": joined.epoch})
                visitor = again
                self.resumes += 1
            ack = await visitor.ask(**trigger)
            self.acked.append(Entry(room, ack.seq or 0, trigger["data"]["text"]))
        if chance.random() < PAGE_SHARE:
            before = chance.randrange(visitor.cursor) + 2
            page = await visitor.ask(type="history", room=room, before=before, limit=PAGE)
            seqs = [event.seq for event in page.events]
            self.pages += 1
            if seqs != list(range(before - len(seqs), before)) or len(seqs) != min(PAGE, before - 1):
                self.wrong.append(f"a page before {before}: {seqs}")
        end = chance.random()
        if end < ABORT_SHARE:
            visitor.transport.abort()
        else:
            if end < ABORT_SHARE + LEAVE_SHARE:
                await visitor.ask(type="leave", room=room)
            visitor.transport.write(b"\x88\x82\0\0\0\0\x03\xe8")
            async with asyncio.timeout(SECONDS):
                await visitor.closed
        self._leave_off(visitor)

    def _trigger(self, room: str, token: str, user: str) -> dict[str, Any]:
        text = f"{token} {self.chance.choice(TEXTS).decode()}"
        data = {"text": text, "username": user}
        return {"type": "trigger", "room": room, "event": "message", "data": data, "key": token}


async def run(plan: Plan) -> Result:
    """Run *plan*, and write its ledger."""
    load = Load(plan)
    result = await load.run()
    await asyncio.to_thread(Path(plan.ledger).write_bytes, msgspec.json.encode(load.acked))
    return result


if __name__ == "__main__":
    main(Plan, run)
