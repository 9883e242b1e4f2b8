"""Replays a chat log file through a running server: every line becomes a message, in the order of the file.

::

    python examples/irc_replay.py channel.txt --url http://127.0.0.1:3000 --room general

A line is ``DATE HH:MM <nick> text``. Who a message is from belongs to the connection and not to the message, so
there are two ways to replay, and the order of the file holds in both:

As its users (the default)
    One connection per nick; the server has to be in development mode, where a client says who it is. Two connections
    have no order between them, so when the nick changes, the next line waits for the ack of the one before; lines in
    a row by one nick go out together. What this gives is events that are really *from* all those people; its rate
    is one commit per change of nick. At most ``--connections`` are open, the least recently used one is closed for a
    new one, and those that the next lines need are opened ahead.

As one user (``--as-one USER``)
    Everything over one connection with up to ``--in-flight`` lines waiting for their acks, the nick in
    ``meta["nick"]`` (and in the data's ``username``). Lines are committed in groups: tens of times faster, but every
    event is from USER.

Each line carries an idempotency key made of the file's name and the line's number: a replay that was interrupted can
be started again, as long as the same way and with the same file, and records nothing twice (with a store; without
one the server remembers the newest 10,000 keys of a room).

A line is refused, counted and left out if the server does not take it; when the server asks to wait, it is sent again,
and should it by then come behind later lines, the summary says so.
"""

from __future__ import annotations

import argparse
import asyncio
import re
import sys
import time
import zlib
from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from dialogue import Backpressure, CommandError, ConnectionLost, DialogueClient, RateLimited
from dialogue.client import Room

MAX_TEXT = 2000
"""Most characters of one message; a longer text becomes several messages."""

MAX_NICK = 128
"""Most characters of a user id (the server's default limit)."""

AHEAD_LINES = 32
"""For how many of the next lines connections are opened ahead."""


_LINE = re.compile(r"\S+ \d\d:\d\d <(?P<nick>[^>]+)> ?(?P<text>.*)")
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")


class Line(NamedTuple):
    """One message of the file.

    Attributes:
        key: What makes sending it again harmless; the same in every replay of the file.
    """

    key: str
    nick: str
    text: str


@dataclass(slots=True)
class Reading:
    """What was found in the file.

    Attributes:
        skipped: Lines that are empty or no message.
        repaired: Lines with bytes that are not UTF-8 or with control characters, which were replaced.
        split: Lines that became several messages.
    """

    skipped: int = 0
    repaired: int = 0
    split: int = 0


@dataclass(slots=True)
class Summary:
    """How a replay went. ``sent`` is ``acked + refused``, and ``acked`` includes ``duplicates``.

    Attributes:
        duplicates: Acked with the word that they had been recorded before.
        refused: By error code.
        late: Sent again after the server asked to wait, so that they may stand behind later lines.
    """

    sent: int = 0
    acked: int = 0
    duplicates: int = 0
    late: int = 0
    seconds: float = 0.0
    refused: Counter[str] = field(default_factory=Counter)

    @property
    def acks_per_second(self) -> float:
        """The rate over the whole replay."""
        return self.acked / self.seconds if self.seconds else 0.0


# -- the file --------------------------------------------------------------------------------------------------------


def read_log(path: Path, reading: Reading, *, limit: int | None = None) -> Iterator[Line]:
    """Yield the messages of a log file in order, counting in *reading* what was not as it should be.

    Args:
        limit: Most messages; None for all.
    """
    prefix = f"{zlib.crc32(path.name.encode(errors='replace')):08x}"
    return islice(_messages(path, prefix, reading), limit)


def _messages(path: Path, prefix: str, reading: Reading) -> Iterator[Line]:
    # As bytes: in text mode a lone carriage return would end a line.
    with path.open("rb") as file:
        for number, raw in enumerate(file, start=1):
            parsed = parse_line(raw, reading)
            if parsed is None:
                reading.skipped += 1
                continue
            nick, text = parsed
            parts = [text[start : start + MAX_TEXT] for start in range(0, len(text), MAX_TEXT)]
            reading.split += len(parts) > 1
            for part, content in enumerate(parts):
                yield Line(f"{prefix}:{number}" + (f".{part}" if part else ""), nick, content)


def parse_line(raw: bytes, reading: Reading) -> tuple[str, str] | None:
    """Return nick and text of one line, or None when it is no message."""
    line = raw.rstrip(b"\r\n").decode(errors="replace")
    # Colours, bells and NULs: no user id may hold them, and not every database takes them in a text.
    clean = _CONTROL.sub(" ", line)
    match = _LINE.fullmatch(clean)
    if match is None:
        return None
    nick, text = match["nick"].strip()[:MAX_NICK], match["text"]
    if not nick or not text.strip():
        return None
    reading.repaired += clean != line or "\N{REPLACEMENT CHARACTER}" in clean
    return nick, text


# -- sending ---------------------------------------------------------------------------------------------------------


class Sender:
    """Sends lines and counts what becomes of them.

    Args:
        on_answer: Called after each line that was acked or refused.
    """

    def __init__(self, event: str, on_answer: Callable[[], None]) -> None:
        self.summary = Summary()
        self._event = event
        self._on_answer = on_answer

    async def send(self, room: Room, line: Line, *, with_nick: bool) -> None:
        """Send one line and wait for its answer; wait and send it again while the server asks to."""
        summary = self.summary
        data = {"text": line.text, "username": line.nick}
        meta = {"nick": line.nick} if with_nick else None
        is_late = False
        while True:
            try:
                ack = await room.trigger(self._event, data, meta=meta, key=line.key)
            except (Backpressure, RateLimited) as error:
                is_late = True
                await asyncio.sleep(error.retry_after_seconds or 1.0)
            except CommandError as error:
                summary.refused[error.code] += 1
                break
            else:
                summary.acked += 1
                summary.duplicates += ack.is_duplicate
                summary.late += is_late
                break
        summary.sent += 1
        self._on_answer()


class Pool:
    """Connections by nick, at most *size*; an async context manager.

    For a new one the least recently used one is closed. Its connections receive no events: they only publish.

    Args:
        size: At least 2: the connection used last is never the one that is closed.
    """

    def __init__(self, url: str, room_id: str, *, size: int, in_flight: int) -> None:
        self._url = url
        self._room_id = room_id
        self._size = size
        self._in_flight = in_flight
        self._open: OrderedDict[str, asyncio.Task[tuple[DialogueClient, Room]]] = OrderedDict()
        self._closing: set[asyncio.Task[None]] = set()

    def prepare(self, nick: str) -> None:
        """Begin to connect as *nick*, unless that is done; either way it was used last."""
        if nick not in self._open:
            if len(self._open) >= self._size:
                _, oldest = self._open.popitem(last=False)
                closing = asyncio.create_task(_close(oldest))
                self._closing.add(closing)
                closing.add_done_callback(self._closing.discard)
            self._open[nick] = asyncio.create_task(
                join_as(nick, self._url, self._room_id, in_flight=self._in_flight)
            )
        self._open.move_to_end(nick)

    async def room(self, nick: str) -> Room:
        """Return the room as *nick* is in it; valid until two other nicks have been used."""
        self.prepare(nick)
        _, room = await self._open[nick]
        return room

    async def __aenter__(self) -> Pool:
        return self

    async def __aexit__(self, *_: object) -> None:
        closing = [_close(task) for task in self._open.values()]
        self._open.clear()
        await asyncio.gather(*closing, *self._closing)


async def join_as(user: str, url: str, room_id: str, *, in_flight: int) -> tuple[DialogueClient, Room]:
    """Connect as *user* and join, without receiving anything."""
    client = DialogueClient(
        url, auth={"user_id": user}, connect_timeout_seconds=30, max_pending_triggers=in_flight
    )
    await client.connect()
    try:
        return client, await client.join(room_id, sync=0, events=[])
    except BaseException:
        await client.aclose()
        raise


async def _close(opening: asyncio.Task[tuple[DialogueClient, Room]]) -> None:
    # One that could not be opened has told so where it was waited for, if it was.
    await asyncio.wait([opening])
    if not opening.cancelled() and opening.exception() is None:
        client, _ = opening.result()
        await client.aclose()


async def send_as_users(
    lines: Iterable[Line], sender: Sender, *, url: str, room_id: str, connections: int, in_flight: int
) -> None:
    """Send *lines* in order, each over the connection of its nick."""
    ahead = min(AHEAD_LINES, connections - 1)
    upcoming: deque[Line] = deque()
    running: set[asyncio.Task[None]] = set()
    nick: str | None = None
    source = iter(lines)
    async with (
        Pool(url, room_id, size=connections, in_flight=in_flight) as pool,
        asyncio.TaskGroup() as tasks,
    ):
        while True:
            for line in islice(source, ahead + 1 - len(upcoming)):
                pool.prepare(line.nick)
                upcoming.append(line)
            if not upcoming:
                return
            line = upcoming.popleft()
            if running and (line.nick != nick or len(running) >= in_flight):
                await asyncio.wait(running)
            nick = line.nick
            task = tasks.create_task(sender.send(await pool.room(nick), line, with_nick=False))
            running.add(task)
            task.add_done_callback(running.discard)


async def send_as_one(
    lines: Iterable[Line], sender: Sender, *, url: str, room_id: str, user: str, in_flight: int
) -> None:
    """Send *lines* in order over one connection, pipelined."""
    client, room = await join_as(user, url, room_id, in_flight=in_flight)
    window = asyncio.Semaphore(in_flight)
    try:
        async with asyncio.TaskGroup() as tasks:
            for line in lines:
                await window.acquire()
                # Tasks begin in the order in which they are made, and a room's triggers go out as they begin.
                task = tasks.create_task(sender.send(room, line, with_nick=True))
                task.add_done_callback(lambda _: window.release())
    finally:
        await client.aclose()


async def replay(
    path: Path,
    *,
    url: str,
    room_id: str,
    event: str = "message",
    as_one: str | None = None,
    connections: int = 64,
    in_flight: int = 500,
    limit: int | None = None,
    on_answer: Callable[[Summary], None] | None = None,
) -> tuple[Summary, Reading]:
    """Replay the file at *path* into a room.

    Args:
        as_one: The user to send everything as; None to send each line as its nick.
        connections: Most open connections, at least 2; without *as_one*.
        in_flight: Most lines without an ack, at least 1.
        limit: Most messages; None for the whole file.
        on_answer: Called with the summary so far after each line.

    Raises:
        OSError: The file cannot be read, or the server cannot be reached within 30 s.
        CommandError: The server does not let one of the users in.
        ConnectionLost: The server ended a connection for good.
    """
    reading = Reading()
    lines = read_log(path, reading, limit=limit)
    sender = Sender(event, lambda: on_answer(sender.summary) if on_answer else None)
    start = time.perf_counter()
    try:
        if as_one is not None:
            await send_as_one(lines, sender, url=url, room_id=room_id, user=as_one, in_flight=in_flight)
        else:
            await send_as_users(
                lines, sender, url=url, room_id=room_id, connections=connections, in_flight=in_flight
            )
    except BaseExceptionGroup as group:
        # The first of them tells enough: the others came with it.
        raise first_error(group) from None
    finally:
        sender.summary.seconds = time.perf_counter() - start
    return sender.summary, reading


def first_error(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """Return the first exception in *group* that is no group itself."""
    error = group.exceptions[0]
    return first_error(error) if isinstance(error, BaseExceptionGroup) else error


# -- the command -----------------------------------------------------------------------------------------------------


def at_least(least: int) -> Callable[[str], int]:
    """Return an argument type: a whole number of at least *least*."""

    def number(text: str) -> int:
        value = int(text)
        if value < least:
            raise argparse.ArgumentTypeError(f"it is at least {least}")
        return value

    return number


def arguments() -> argparse.ArgumentParser:
    """Return the command line."""
    description, _, epilog = (__doc__ or "").partition("\n\n")
    parser = argparse.ArgumentParser(
        description=description, epilog=epilog, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("file", type=Path, help="the log file")
    parser.add_argument("--url", default="http://127.0.0.1:3000", help="the server (default: %(default)s)")
    parser.add_argument("--room", default="general", help="the room (default: %(default)s)")
    parser.add_argument("--event", default="message", help="the event's name (default: %(default)s)")
    parser.add_argument("--as-one", metavar="USER", help="send everything as this user, over one connection")
    parser.add_argument(
        "--connections", type=at_least(2), default=64, help="most open connections (default: %(default)s)"
    )
    parser.add_argument(
        "--in-flight", type=at_least(1), default=500, help="most lines without an ack (default: %(default)s)"
    )
    parser.add_argument("--limit", type=at_least(1), help="only so many messages")
    return parser


def report(console: Console, summary: Summary, reading: Reading) -> None:
    """Print what became of the lines."""
    table = Table.grid(padding=(0, 2))
    table.add_column(justify="right")
    table.add_column()
    refused = ", ".join(f"{code} {count:,}" for code, count in summary.refused.most_common())
    for value, name in [
        (f"{summary.sent:,}", "sent"),
        (f"{summary.acked:,}", "acked"),
        (f"{summary.duplicates:,}", "of these duplicates, recorded before"),
        (f"{summary.refused.total():,}", "refused" + (f" ({refused})" if refused else "")),
        (f"{summary.seconds:,.1f}", "seconds"),
        (f"{summary.acks_per_second:,.0f}", "acks per second"),
    ]:
        table.add_row(value, name)
    for count, name in [
        (summary.late, "sent again later, perhaps out of order"),
        (reading.skipped, "lines that are no message"),
        (reading.repaired, "lines with control characters or undecodable bytes, replaced"),
        (reading.split, "lines split into several messages"),
    ]:
        if count:
            table.add_row(f"{count:,}", name)
    console.print(table)


def main() -> int:
    """Run the command; return 0 if every line was acked, else 1."""
    options = arguments().parse_args()
    console = Console(stderr=True)
    try:
        total = sum(1 for _ in read_log(options.file, Reading(), limit=options.limit))
        columns = (
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]:,.0f} acks/s"),
            TimeRemainingColumn(),
        )
        with Progress(*columns, console=console) as progress:
            bar = progress.add_task(options.file.name, total=total, rate=0.0)
            start = time.perf_counter()
            shown = start

            def show(summary: Summary) -> None:
                nonlocal shown
                now = time.perf_counter()
                if now - shown >= 0.1 or summary.sent == total:
                    shown = now
                    progress.update(bar, completed=summary.sent, rate=summary.acked / (now - start))

            summary, reading = asyncio.run(
                replay(
                    options.file,
                    url=options.url,
                    room_id=options.room,
                    event=options.event,
                    as_one=options.as_one,
                    connections=options.connections,
                    in_flight=options.in_flight,
                    limit=options.limit,
                    on_answer=show,
                )
            )
    except (OSError, ValueError, CommandError, ConnectionLost) as error:
        console.print(f"{options.file}: {error}", style="red", markup=False)
        return 1
    except KeyboardInterrupt:
        console.print("Interrupted; start it again to go on, nothing is recorded twice.")
        return 130
    report(console, summary, reading)
    return 1 if summary.refused else 0


if __name__ == "__main__":
    sys.exit(main())
