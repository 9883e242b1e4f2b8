"""The clients of a storm: all drop at once, and come back at once: ``python -m tests.bench.storm_load PLAN``.

Every answer is parsed: who comes back must have exactly what it has missed, once and in order.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from random import random
from typing import Literal

import msgspec

from . import dialects
from .dialects import DialogueDialect, trigger
from .generator import main, percentile, until_quiet
from .members import Member, open_all
from .processes import cpu_seconds, difference
from .wire import Connection, fail, open_connection

SECONDS = 120.0
"""How long anything may take."""

REST_SHARE = 0.5
"""A server that uses no more of a core is at rest: the publishers go on."""

RETRY_SECONDS = 2.0
"""After which a client asks again for what the server could not read and names no time; up to twice that, by chance."""

Step = Literal["resume", "connect", "upgrade"]
"""How far clients go that come back: to the end, or only to ``connected``, or only to the open WebSocket."""


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """What to do.

    Attributes:
        pid: The server's process.
        clients: How many drop and come back; all are in *room*, each is a user.
        missed: Events that are published into *room* while they are away.
        in_flight: Most connections that are between the first SYN and the open WebSocket.
        steps: What they do each time that they drop and come back.
        seconds: Time for which they are connected, and the server at rest, before they first drop.
    """

    port: int
    pid: int
    clients: int
    missed: int
    in_flight: int
    room: str
    steps: tuple[Step, ...]
    seconds: float


class Return(msgspec.Struct, frozen=True, kw_only=True):
    """One time that all came back.

    Attributes:
        started, ended: By `time.perf_counter`, which processes share: the first SYN, and when all had what they came
            for.
        p50_ms, p99_ms: The same for a client, from its own first SYN.
        busy: The share of one core that this process used meanwhile.
        server_cpu: Processor time that the server used meanwhile, in seconds; None where the system does not tell.
        late_cpu: The same from then on until it was at rest: what it does for them behind.
        refused: Joins that were refused because the log could not be read then, and asked for again.
    """

    step: Step
    started: float
    ended: float
    p50_ms: float
    p99_ms: float
    busy: float
    server_cpu: float | None
    late_cpu: float | None
    refused: int


class Result(msgspec.Struct, frozen=True, kw_only=True):
    """What came of it.

    Attributes:
        ready: When all were connected for the first time, and the server was at rest.
        dropped: When they first dropped.
        published: When all that they were to miss was acked.
        wrong: What was not as it should be; empty if all was.
    """

    ready: float
    dropped: float
    published: float
    returns: list[Return]
    wrong: list[str]


class _Data(msgspec.Struct):
    text: str


class _Event(msgspec.Struct):
    seq: int
    data: _Data


class _Message(msgspec.Struct):
    type: str
    ref: int | None = None
    seq: int | None = None
    epoch: str = ""
    code: str = ""
    retry_after_seconds: float | None = None
    recovered: bool | None = None
    events: list[_Event] = []
    data: _Data | None = None


_decode = msgspec.json.Decoder(list[_Message]).decode


class Client(Connection):
    """One connection of a client.

    Args:
        since: The cursor that it comes back with, as JSON; empty for one that is new.

    Attributes:
        done: Done with the time at which it had what it came for.
        refused: How often it had to ask again.
    """

    def __init__(self, room: str, user: str, step: Step, since: bytes = b"") -> None:
        super().__init__()
        self.done: asyncio.Future[float] = asyncio.get_running_loop().create_future()
        self.joined: _Message | None = None
        self.live: list[tuple[int, str]] = []
        self.refused = 0
        self._room = room.encode()
        self._user = user.encode()
        self._step = step
        self._since = since

    def on_open(self) -> None:
        connect = b'{"type":"connect","auth":{"user_id":"%b"}}' % self._user
        if self._step == "upgrade":
            self.done.set_result(time.perf_counter())
        elif self._step == "connect":
            self.send(connect)
        else:
            self.send(b"[%b,%b]" % (connect, self._join()))

    def _join(self) -> bytes:
        how = b'"since":' + self._since if self._since else b'"sync":0'
        return b'{"type":"join","ref":1,"room":"%b",%b}' % (self._room, how)

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        fail(self.done)

    def on_frame(self, frame: bytes) -> None:
        for message in _decode(frame):
            if message.type == "event":
                assert message.seq is not None
                assert message.data is not None
                self.live.append((message.seq, message.data.text))
            elif message.type == "error" and message.code in ("STORE_UNAVAILABLE", "BACKPRESSURE"):
                self.refused += 1
                seconds = message.retry_after_seconds or RETRY_SECONDS * (1 + random())
                asyncio.get_running_loop().call_later(seconds, self.send, self._join())
            elif message.type == "error":
                self.transport.abort()
            elif message.type == ("connected" if self._step == "connect" else "joined"):
                self.joined = message
                self.done.set_result(time.perf_counter())

    def events(self) -> list[tuple[int, str]]:
        """Return what it has got in all, in the order in which it came."""
        replayed = self.joined.events if self.joined is not None else []
        return [(event.seq, event.data.text) for event in replayed] + self.live


class Publisher(Member):
    """Publishes what the others miss."""

    def __init__(self, room: bytes) -> None:
        super().__init__(DialogueDialect(room), b"missed", is_subscriber=False)
        self.room = room
        self.acked = 0
        self.wrong = 0
        self.answered = asyncio.Event()

    def on_data(self, frame: bytes) -> None:
        for message in _decode(frame):
            self.acked += message.type == "ok"
            self.wrong += message.type == "error"
            if message.type in ("ok", "error"):
                self.answered.set()

    async def publish(self, texts: list[str]) -> None:
        """Send *texts* one after the other, each after the ack of the one before."""
        for number, text in enumerate(texts, start=1):
            self.answered.clear()
            data = dialects.Message(text.encode(), b"missed", number).json()
            self.send(trigger(self.room, number, data))
            await self.answered.wait()


async def come(plan: Plan, clients: list[Client]) -> list[float]:
    """Connect all *clients*, each as soon as one before it is open; return the seconds that each took."""
    waiting: Iterator[Client] = iter(clients)
    began: dict[Client, float] = {}

    async def connect_some() -> None:
        for client in waiting:
            began[client] = time.perf_counter()
            await open_connection(client, plan.port)
            await client.opened

    async with asyncio.timeout(SECONDS), asyncio.TaskGroup() as group:
        for _ in range(plan.in_flight):
            group.create_task(connect_some())
    async with asyncio.timeout(SECONDS):
        return sorted([await client.done - began[client] for client in clients])


def what_is_wrong(client: Client, missed: list[str], *, after: int) -> str | None:
    """Return what a client that came back has lost, doubled or got out of order, if anything."""
    joined, events = client.joined, client.events()
    if joined is None:
        return "not joined"
    if joined.recovered is not True:
        return f"not recovered: {after} to {joined.seq}, asked for {client.refused + 1} times"
    seqs = [seq for seq, _ in events]
    if seqs != sorted(set(seqs)) or (seqs and seqs[0] <= after):
        return f"out of order: {seqs}"
    # Dialogue's seqs have no holes; those of a peer are the numbers of its rows, of all rooms.
    if joined.epoch and seqs != list(range(after + 1, after + 1 + len(seqs))):
        return f"a hole: {seqs}"
    texts = [text for _, text in events if text.startswith("missed ")]
    return None if texts == missed else f"missed {len(missed)}, got {len(texts)}"


async def run(plan: Plan) -> Result:
    """Connect, drop, come back.

    Raises:
        TimeoutError: Something took longer than `SECONDS`.
        ConnectionError: The server refused or closed a connection.
    """
    publisher = Publisher(plan.room.encode())
    await open_all([publisher], plan.port)
    users = [f"client-{index}" for index in range(plan.clients)]
    clients = [Client(plan.room, user, "resume") for user in users]
    await come(plan, clients)
    await until_quiet(plan.pid, share=REST_SHARE)
    ready = time.perf_counter()
    await asyncio.sleep(plan.seconds)
    dropped = time.perf_counter()
    cursors = []
    for client in clients:
        assert client.joined is not None
        assert client.joined.seq is not None
        cursors.append((max([client.joined.seq, *(seq for seq, _ in client.live)]), client.joined.epoch))
        client.transport.abort()
    missed = [f"missed {number}" for number in range(plan.missed)]
    async with asyncio.timeout(SECONDS):
        await publisher.publish(missed)
    published = time.perf_counter()
    returns, wrong = [], ["the server refused what was to be missed"] * bool(publisher.wrong)
    for step in plan.steps:
        await until_quiet(plan.pid, share=REST_SHARE)
        clients = [
            Client(plan.room, user, step, msgspec.json.encode({"seq": seq, "epoch": epoch}))
            for user, (seq, epoch) in zip(users, cursors, strict=True)
        ]
        cpu, server_before = time.process_time(), cpu_seconds(plan.pid)
        started = time.perf_counter()
        spent = await come(plan, clients)
        ended = time.perf_counter()
        busy, server_after = (time.process_time() - cpu) / (ended - started), cpu_seconds(plan.pid)
        await until_quiet(plan.pid, share=REST_SHARE)
        server_late = cpu_seconds(plan.pid)
        for client, (seq, _) in zip(clients, cursors, strict=True):
            problem = what_is_wrong(client, missed, after=seq) if step == "resume" else None
            wrong += [problem] if problem else []
            client.transport.abort()
        pairs = [(seconds, 1) for seconds in spent]
        returns.append(
            Return(
                step=step,
                started=started,
                ended=ended,
                p50_ms=percentile(pairs, 0.5) * 1000,
                p99_ms=percentile(pairs, 0.99) * 1000,
                busy=busy,
                server_cpu=difference(server_after, server_before),
                late_cpu=difference(server_late, server_after),
                refused=sum(client.refused for client in clients),
            )
        )
    publisher.close()
    return Result(ready=ready, dropped=dropped, published=published, returns=returns, wrong=wrong[:5])


if __name__ == "__main__":
    main(Plan, run)
