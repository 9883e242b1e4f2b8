"""A checker in the manner of Jepsen's set test, against any server that speaks the wire protocol.

::

    python -m tests.set_checker ws://127.0.0.1:3000/ws --room general --publishers 16 --seconds 10

Publishes unique values under keys over several connections that reconnect and retry what has an unknown outcome, sends
some acked ones once more, reads everything back by paging, and listens with a reader that resumes. Then it compares
what was attempted, acked and read; its exit status is 0 only if nothing is wrong in either reading. It shares no code
with Dialogue, so that no bug of its clients can hide one of the server.

The room must be one into which nobody else publishes meanwhile. What is in it already does not matter.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import random
import re
import signal
import sys
from collections import Counter
from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, NamedTuple

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidHandshake

RETRIED = {"STORE_UNAVAILABLE", "INTERNAL", "BACKPRESSURE", "RATE_LIMITED", "ROOM_FULL"}
"""Codes after which the same thing is sent again."""

LOST = (OSError, EOFError, TimeoutError, ConnectionClosed, InvalidHandshake)
"""What a connection ends with; a new one is made."""


class Refused(Exception):
    """The server answered with an error."""

    def __init__(self, message: dict[str, Any]) -> None:
        self.code: str = message["code"]
        self.retry_after_seconds = float(message.get("retry_after_seconds") or 0.05)
        super().__init__(f"{self.code}: {message.get('message')}")


class Unusable(Exception):
    """The server cannot be checked, or has broken its word in a way that ends the check."""


# -- comparing -------------------------------------------------------------------------------------------------------


class Read(NamedTuple):
    """One event as it was read; ``value`` is None if it is none of ours."""

    seq: int
    value: str | None


@dataclass
class Tally:
    """What was sent, and what was answered.

    Attributes:
        attempted: Every value that was sent at least once, by its lane. A lane sends the next value when the one before
            is acked, so that their order in the room is known.
        acked: The seq that each acked value has by the server's word.
        conflicts: Values that were acked again under another seq.
    """

    attempted: dict[str, list[str]] = field(default_factory=dict)
    acked: dict[str, int] = field(default_factory=dict)
    conflicts: list[str] = field(default_factory=list)

    def attempt(self, lane: str, value: str) -> None:
        """Note that *value* is about to be sent."""
        self.attempted.setdefault(lane, []).append(value)

    def ack(self, value: str, seq: int) -> None:
        """Note that the server says that *value* is recorded."""
        if self.acked.setdefault(value, seq) != seq:
            self.conflicts.append(f"{value}: {self.acked[value]} and {seq}")


@dataclass
class Verdict:
    """What a comparison found; everything but the counts has to be empty."""

    attempted: int
    acked: int
    read: int
    lost: list[str]
    duplicated: list[str]
    unexpected: list[str]
    out_of_order: list[str]
    holes: list[str]

    @property
    def is_good(self) -> bool:
        """Whether nothing is wrong."""
        return not any((self.lost, self.duplicated, self.unexpected, self.out_of_order, self.holes))

    def lines(self) -> Iterator[str]:
        """Yield the report, a line each, with the first few culprits."""
        for name, value in vars(self).items():
            if isinstance(value, int):
                yield f"{name:13}{value}"
            else:
                some = f"  {'; '.join(value[:5])}{' …' if len(value) > 5 else ''}" if value else ""
                yield f"{name.replace('_', ' '):13}{len(value)}{some}"


def compare(tally: Tally, read: Sequence[Read], *, after: int) -> Verdict:
    """Compare what was *read*, in the order of the reading (oldest first), with what was sent.

    Args:
        after: The room's newest seq before anything was sent; what was read has larger ones.
    """
    lane_of = {value: lane for lane, values in tally.attempted.items() for value in values}
    seqs_of: dict[str, list[int]] = {}
    for event in read:
        if event.value is not None:
            seqs_of.setdefault(event.value, []).append(event.seq)
    lost = []
    for value, seq in tally.acked.items():
        if value not in seqs_of:
            lost.append(f"{value} (acked as {seq})")
        elif seq not in seqs_of[value]:
            lost.append(f"{value} (acked as {seq}, read as {seqs_of[value][0]})")
    duplicated = [f"{value}: {seqs}" for value, seqs in seqs_of.items() if len(seqs) > 1]
    times_of = Counter(event.seq for event in read)
    duplicated += [f"seq {seq} {times} times" for seq, times in times_of.items() if times > 1]
    unexpected = [f"seq {event.seq}: {event.value}" for event in read if event.value not in lane_of]
    out_of_order = [
        f"seq {second.seq} behind {first.seq}" for first, second in pairwise(read) if second.seq < first.seq
    ]
    for values in tally.attempted.values():
        found = [(seqs_of[value][0], value) for value in values if value in seqs_of]
        out_of_order += [
            f"{second[1]} ({second[0]}) before {first[1]} ({first[0]})"
            for first, second in pairwise(found)
            if second[0] < first[0]
        ]
    return Verdict(
        attempted=len(lane_of),
        acked=len(tally.acked),
        read=len(read),
        lost=lost,
        duplicated=duplicated + tally.conflicts,
        unexpected=unexpected,
        out_of_order=out_of_order,
        holes=list(_holes(after, sorted(times_of))),
    )


def _holes(after: int, seqs: Iterable[int]) -> Iterator[str]:
    expected = after + 1
    for seq in seqs:
        if seq > expected:
            yield f"{expected} to {seq - 1}"
        expected = max(expected, seq + 1)


# -- the wire --------------------------------------------------------------------------------------------------------


class Connection:
    """One connection: answers by ref, events in a queue."""

    def __init__(self, socket: ClientConnection, reply_seconds: float) -> None:
        self.events: asyncio.Queue[dict[str, Any] | None] = asyncio.Queue()
        self._socket = socket
        self._reply_seconds = reply_seconds
        self._waiting: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self._ref = 0

    async def read(self) -> None:
        """Read until the connection ends; then nobody waits for an answer any more."""
        try:
            async for frame in self._socket:
                for message in json.loads(frame):
                    if message["type"] == "event":
                        self.events.put_nowait(message)
                    elif message["type"] == "ping":
                        await self._socket.send('{"type":"pong"}')
                    elif (waiting := self._waiting.pop(message.get("ref", 0), None)) and not waiting.done():
                        waiting.set_result(message)
        except ConnectionClosed:
            pass
        finally:
            self.events.put_nowait(None)
            for waiting in self._waiting.values():
                if not waiting.done():
                    waiting.set_exception(EOFError("the connection ended"))
                    waiting.exception()  # whoever asked may have gone, too

    async def ask(self, type: str, **fields: Any) -> dict[str, Any]:
        """Send a command and return its answer.

        Raises:
            Refused: It was answered by an error.
            OSError, EOFError, TimeoutError, ConnectionClosed: There was no answer.
        """
        self._ref += 1
        waiting = self._waiting[self._ref] = asyncio.get_running_loop().create_future()
        await self._socket.send(json.dumps({"type": type, "ref": self._ref, **fields}))
        async with asyncio.timeout(self._reply_seconds):
            answer: dict[str, Any] = await waiting
        if answer["type"] == "error":
            raise Refused(answer)
        return answer


class Checker:
    """One run of the check.

    Args:
        url: Of the WebSocket endpoint.
        room: Into which nobody else publishes.
        publishers: How many connections publish.
        lanes: How many values each of them has in flight.
        event: The name of the event, which must be recorded.
        template: Its data as JSON, in which ``VALUE`` is replaced.
        auth: For ``connect``, as JSON, in which ``USER`` is replaced.
        seed: Of the back-off and of what is sent again.
        reply_seconds: Silence after which a connection is given up.
        grace_seconds: How long values without an answer are retried at the end, and how long reading may take.
    """

    def __init__(
        self,
        url: str,
        room: str,
        *,
        publishers: int = 16,
        lanes: int = 8,
        event: str = "message",
        template: str = '"VALUE"',
        auth: str = '{"user_id": "USER"}',
        seed: int = 0,
        reply_seconds: float = 15.0,
        grace_seconds: float = 60.0,
    ) -> None:
        self.tally = Tally()
        self.random = random.Random(seed)
        # Values of an earlier run in the same room are none of ours; not from the seed, which may be given twice.
        self.run_id = os.urandom(4).hex()
        self.after = 0
        self.heard: list[Read] = []
        self._epoch = ""
        self._url, self._room, self._event, self._template, self._auth = url, room, event, template, auth
        self._publishers, self._lanes = publishers, lanes
        self._reply_seconds, self._grace_seconds = reply_seconds, grace_seconds
        self._value = re.compile(rf"{self.run_id}\.p\d+\.\d+\.\d+")
        self._stop = asyncio.Event()
        self._is_joined = asyncio.Event()

    @asynccontextmanager
    async def _connected(self, user: str) -> AsyncIterator[Connection]:
        async with connect(
            self._url, compression=None, max_size=None, ping_interval=None, open_timeout=self._reply_seconds
        ) as socket:
            connection = Connection(socket, self._reply_seconds)
            reading = asyncio.create_task(connection.read())
            try:
                await connection.ask("connect", auth=json.loads(self._auth.replace("USER", user)))
                yield connection
            finally:
                reading.cancel()
                await asyncio.gather(reading, return_exceptions=True)

    async def _join(self, connection: Connection, **fields: Any) -> dict[str, Any]:
        joined = await connection.ask("join", room=self._room, **fields)
        if joined["epoch"] != (self._epoch or joined["epoch"]):
            raise Unusable(
                "the log has another epoch than at the start: everything was lost, or a backup restored"
            )
        return joined

    async def _pause(self, seconds: float = 0.1) -> None:
        await asyncio.sleep(self.random.uniform(0.2, 1) * seconds)

    async def _patiently(self, work: Any, *arguments: Any) -> Any:
        """Return what *work* gives on a connection, on a new one after each that is lost, until the grace is over."""
        last: BaseException | None = None
        try:
            async with asyncio.timeout(self._grace_seconds):
                while True:
                    try:
                        async with self._connected("checker") as connection:
                            return await work(connection, *arguments)
                    except LOST as error:
                        last = error
                        await self._pause()
                    except Refused as error:
                        if error.code not in RETRIED:
                            raise
                        last = error
                        await self._pause(error.retry_after_seconds)
        except TimeoutError:
            raise Unusable(f"the server could not be used for {self._grace_seconds:g} s: {last}") from last

    # -- publishing

    async def begin(self) -> None:
        """Note where the room stands.

        Raises:
            Unusable: The server cannot be reached.
            Refused: The room cannot be joined.
        """
        joined = await self._patiently(self._join)
        self.after, self._epoch = joined["seq"], joined["epoch"]

    def stop(self) -> None:
        """Let publishers begin no further value."""
        self._stop.set()

    async def publish(self) -> None:
        """Publish until `stop`, and then on until every value is answered or the grace is over."""
        publishing = [
            asyncio.create_task(self._publisher(f"p{number}")) for number in range(self._publishers)
        ]
        try:
            stopping = asyncio.create_task(self._stop.wait())
            await asyncio.wait([stopping, *publishing], return_when=asyncio.FIRST_EXCEPTION)
            stopping.cancel()
            _, left = await asyncio.wait(publishing, timeout=self._grace_seconds)
            for task in left:
                task.cancel()
        finally:
            for task in publishing:
                task.cancel()
            results = await asyncio.gather(*publishing, return_exceptions=True)
        for result in results:
            if isinstance(result, Exception):
                raise result

    async def _publisher(self, name: str) -> None:
        unanswered: dict[int, str] = {}
        numbers = dict.fromkeys(range(self._lanes), 0)

        async def lane(connection: Connection, number: int) -> None:
            lane_name = f"{self.run_id}.{name}.{number}"
            while number in unanswered or not self._stop.is_set():
                if number not in unanswered:
                    value = unanswered[number] = f"{lane_name}.{numbers[number]}"
                    numbers[number] += 1
                    self.tally.attempt(lane_name, value)
                value = unanswered[number]
                try:
                    self.tally.ack(value, await self._send(connection, value))
                except Refused as error:
                    if error.code not in RETRIED:
                        raise
                    await self._pause(error.retry_after_seconds)
                else:
                    del unanswered[number]

        while unanswered or not self._stop.is_set():
            try:
                async with self._connected(name) as connection:
                    await self._join(connection, sync=0, events=[])
                    async with asyncio.TaskGroup() as group:
                        for number in range(self._lanes):
                            group.create_task(lane(connection, number))
            except* LOST:
                pass
            except* Refused as refusals:
                for error in refusals.exceptions:
                    if not isinstance(error, Refused) or error.code not in RETRIED:
                        raise
            await self._pause()

    async def _send(self, connection: Connection, value: str) -> int:
        data = json.loads(self._template.replace("VALUE", value))
        answer = await connection.ask("trigger", room=self._room, event=self._event, data=data, key=value)
        return int(answer["seq"])

    async def resend(self, count: int = 100) -> None:
        """Send some acked values once more, as their publishers: a forgotten key then shows as a duplicate."""
        chosen = self.random.sample(sorted(self.tally.acked), min(count, len(self.tally.acked)))
        for value in chosen:
            await self._patiently_as(value.split(".")[1], value)

    async def _patiently_as(self, user: str, value: str) -> None:
        async def once(_: Connection) -> None:
            async with self._connected(user) as connection:
                await self._join(connection, sync=0, events=[])
                self.tally.ack(value, await self._send(connection, value))

        await self._patiently(once)

    # -- reading

    def _read(self, event: dict[str, Any]) -> Read:
        found = self._value.search(json.dumps(event["data"]))
        return Read(event["seq"], found[0] if found else None)

    async def read_back(self) -> list[Read]:
        """Return everything since the beginning, paged from the newest event to the oldest."""
        result: list[Read] = await self._patiently(self._page_back)
        return result

    async def _page_back(self, connection: Connection) -> list[Read]:
        await self._join(connection, sync=0, events=[])
        pages: list[list[Read]] = []
        position: dict[str, Any] = {}
        while True:
            page = await connection.ask("history", room=self._room, limit=200, **position)
            if (page.get("gap") or {}).get("reason") == "tier_unavailable":
                await self._pause()
                continue
            pages.append([self._read(event) for event in page["events"] if event["seq"] > self.after])
            is_past = any(event["seq"] <= self.after for event in page["events"])
            if is_past or page["next"] is None:
                return [event for events in reversed(pages) for event in events]
            position = {"cursor": page["next"]}

    async def listen(self, until: asyncio.Event) -> None:
        """Hear every event as it comes, resuming after lost connections, until *until* is set."""
        listening = asyncio.create_task(self._listen())
        waiting = asyncio.create_task(until.wait())
        await asyncio.wait([listening, waiting], return_when=asyncio.FIRST_COMPLETED)
        for task in (listening, waiting):
            task.cancel()
        results = await asyncio.gather(listening, waiting, return_exceptions=True)
        for result in results:
            if isinstance(result, Exception):
                raise result

    @property
    def heard_through(self) -> int:
        """The seq of the newest event that the listener has heard."""
        return self.heard[-1].seq if self.heard else self.after

    async def _listen(self) -> None:
        while True:
            try:
                async with self._connected("listener") as connection:
                    since = {"seq": self.heard_through, "epoch": self._epoch}
                    joined = await self._join(connection, since=since, events="*")
                    if joined["recovered"]:
                        self.heard += map(self._read, joined["events"])
                    else:
                        await self._catch_up(connection, joined["seq"])
                    self._is_joined.set()
                    while (event := await connection.events.get()) is not None:
                        if event["seq"] is not None:
                            self.heard.append(self._read(event))
            except LOST:
                pass
            except Refused as error:
                if error.code not in RETRIED:
                    raise
            await self._pause()

    async def _catch_up(self, connection: Connection, through: int) -> None:
        """Read what was missed and not replayed; live events wait in the queue meanwhile."""
        while self.heard_through < through:
            fields = {"after": self.heard_through, "epoch": self._epoch, "limit": 200}
            page = await connection.ask("history", room=self._room, **fields)
            events = [event for event in page["events"] if event["seq"] <= through]
            if not events:
                if page.get("gap") is None:
                    return  # the comparison will show the hole
                await self._pause()
            self.heard += map(self._read, events)

    # -- all of it

    async def finish(self) -> tuple[Verdict, Verdict]:
        """Read back, wait for the listener to have heard as much, and compare both with what was sent.

        Call it when `publish` has returned and while `listen` still runs.
        """
        await self.resend()
        read = await self.read_back()
        newest = max((event.seq for event in read), default=self.after)
        with contextlib.suppress(TimeoutError):  # what it has not heard by then is lost
            async with asyncio.timeout(self._grace_seconds):
                while self.heard_through < newest:
                    await self._pause()
        return tuple(compare(self.tally, events, after=self.after) for events in (read, self.heard))  # type: ignore[return-value]

    async def run(self, seconds: float, kill: Sequence[int] = ()) -> tuple[Verdict, Verdict]:
        """Publish for *seconds*, killing the processes *kill* at random moments, and compare; see `finish`.

        Raises:
            Unusable, Refused: The check could not be carried out.
        """
        try:
            return await self._run(seconds, kill)
        except BaseExceptionGroup as group:
            # Whatever came first has cancelled the rest; its own words are what is to be told.
            raise _first(group) from group

    async def _run(self, seconds: float, kill: Sequence[int]) -> tuple[Verdict, Verdict]:
        await self.begin()
        is_over = asyncio.Event()
        async with asyncio.TaskGroup() as group:
            group.create_task(self.listen(is_over))
            await self._is_joined.wait()
            publishing = group.create_task(self.publish())
            killing = group.create_task(self._kill(seconds, kill))
            await asyncio.wait({publishing}, timeout=seconds)
            await killing
            self.stop()
            await publishing
            verdicts = await self.finish()
            is_over.set()
        return verdicts

    async def _kill(self, seconds: float, processes: Sequence[int]) -> None:
        begun = asyncio.get_running_loop().time()
        moments = sorted(self.random.uniform(0.1, 0.9) * seconds for _ in processes)
        for moment, process in zip(moments, processes, strict=True):
            await asyncio.sleep(begun + moment - asyncio.get_running_loop().time())
            print(f"kill -9 {process} after {moment:.2f} s, {len(self.tally.acked)} acked")
            os.kill(process, signal.SIGKILL)


def _first(group: BaseExceptionGroup[BaseException]) -> BaseException:
    error = group.exceptions[0]
    return _first(error) if isinstance(error, BaseExceptionGroup) else error


def report(verdicts: tuple[Verdict, Verdict]) -> bool:
    """Print both verdicts; return whether they are good."""
    for name, verdict in zip(("paged", "listened"), verdicts, strict=True):
        print(f"{name}:")
        for line in verdict.lines():
            print(f"  {line}")
    return all(verdict.is_good for verdict in verdicts)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the check; return the exit status: 0 if nothing is wrong, 1 if something is, 2 if it could not be run."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.set_checker", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument("url", help="the WebSocket endpoint, e.g. ws://127.0.0.1:3000/ws")
    parser.add_argument("--room", default="general", help="a room into which nobody else publishes")
    parser.add_argument(
        "--event", default="message", help="the name of a recorded event that clients may trigger"
    )
    parser.add_argument("--template", default='"VALUE"', help="its data as JSON; VALUE is replaced")
    parser.add_argument(
        "--auth", default='{"user_id": "USER"}', help="for connect, as JSON; USER is replaced"
    )
    parser.add_argument("--publishers", type=int, default=16)
    parser.add_argument("--lanes", type=int, default=8, help="values in flight per publisher")
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--seed", type=int, default=None)
    parser.add_argument(
        "--kill", type=int, nargs="*", default=[], metavar="PID", help="killed at random moments"
    )
    options = parser.parse_args(arguments)
    seed = random.randrange(10**6) if options.seed is None else options.seed
    print(f"seed {seed}")

    async def run() -> tuple[Verdict, Verdict]:
        checker = Checker(
            options.url,
            options.room,
            publishers=options.publishers,
            lanes=options.lanes,
            event=options.event,
            template=options.template,
            auth=options.auth,
            seed=seed,
        )
        return await checker.run(options.seconds, options.kill)

    try:
        verdicts = asyncio.run(run())
    except (Unusable, Refused) as error:
        print(error, file=sys.stderr)
        return 2
    return 0 if report(verdicts) else 1


if __name__ == "__main__":
    sys.exit(main())
