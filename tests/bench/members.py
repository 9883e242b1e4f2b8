"""Those whom load generators connect: publishers, and subscribers that know each message by its mark."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Sequence

from .dialects import TEXTS, Dialect, Message, Step
from .generator import SETTLE_SECONDS
from .wire import Connection, fail, open_connection, text_frame, upgrade_request

MARK = b"@:@"
"""Begins each text, as in ``@:@03.0000017``: publisher and number. Nothing else that a server sends has these bytes.

One byte would not do: the length of a frame is written in up to eight bytes that may be any. Of three, the last would
be the first of a payload, or the first the one that says how long the length is; neither is ever an ``@``.
"""

NAME_BYTES = 10
"""Length of what follows the mark."""

_OPENING = 100
"""Connections that are opened at a time."""


def marked(publisher: int, number: int) -> bytes:
    """Return the text of a message: its name, and one of the texts that all benchmarks send."""
    return b"%b%02d.%07d %b" % (MARK, publisher, number, TEXTS[number % len(TEXTS)])


def message(publisher: int, number: int) -> Message:
    """Return what *publisher* sends as its message *number*, the first of which is 1."""
    return Message(marked(publisher, number), b"user-%d" % publisher, number)


def subscribe(dialect: Dialect, port: int, user: bytes) -> socket.socket:
    """Return a subscribed socket that does not block.

    Raises:
        ConnectionError: The server has refused it.
        TimeoutError: It does not answer.
    """
    sock = socket.create_connection(("127.0.0.1", port), SETTLE_SECONDS)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.sendall(upgrade_request(dialect.path(is_subscriber=True)))
    received = b""
    for said, awaited, times in [Step(b"", b"\r\n\r\n"), *dialect.steps(user, is_subscriber=True)]:
        if said:
            sock.sendall(text_frame(said))
        for _ in range(times):
            while awaited not in received:
                data = sock.recv(65_536)
                if not data:
                    raise ConnectionError("the server closed the connection")
                received += data
            received = received.partition(awaited)[2]
    sock.setblocking(False)
    return sock


class Member(Connection):
    """A connection that goes through the steps of its dialect, and says what keeps it connected.

    Attributes:
        ready: Done with the steps.
    """

    def __init__(self, dialect: Dialect, user: bytes, *, is_subscriber: bool) -> None:
        super().__init__(dialect.path(is_subscriber=is_subscriber))
        self.dialect = dialect
        self.ready: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._steps = list(dialect.steps(user, is_subscriber=is_subscriber))
        self._left = 0

    def on_open(self) -> None:
        self._say()

    def _say(self) -> None:
        if not self._steps:
            self.ready.set_result(None)
            return
        self._left = self._steps[0].times
        if self._steps[0].said:
            self.send(self._steps[0].said)

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        fail(self.ready)

    def on_frame(self, frame: bytes) -> None:
        if not self.ready.done():
            self._left -= frame.count(self._steps[0].awaited)
            if b'"type":"error"' in frame:
                self.ready.set_exception(ConnectionError(frame.decode()))
            elif self._left <= 0:
                del self._steps[0]
                self._say()
            return
        answer = self.dialect.answer(frame)
        if answer is not None:
            self.send(answer)
        self.on_data(frame)

    def on_data(self, frame: bytes) -> None:
        """Take a frame that came after the steps."""


async def open_all(members: Sequence[Member], port: int) -> None:
    """Connect *members*, `_OPENING` at a time, and wait until they have gone through their steps.

    Raises:
        ConnectionError: The server has refused or closed one of them.
        TimeoutError: It took longer than `SETTLE_SECONDS` for one lot of them.
    """
    for first in range(0, len(members), _OPENING):
        lot = members[first : first + _OPENING]
        async with asyncio.timeout(SETTLE_SECONDS):
            await asyncio.gather(*(open_connection(member, port) for member in lot))
            await asyncio.gather(*(member.ready for member in lot))


class Publisher(Member):
    """A publisher with its messages in flight.

    Attributes:
        landed: How many messages the observer has.
    """

    def __init__(self, dialect: Dialect, index: int) -> None:
        super().__init__(dialect, b"user-%d" % index, is_subscriber=False)
        self.index = index
        self.sent = 0
        self.landed = 0
        self.acked = 0
        self.wrong = 0

    def on_data(self, frame: bytes) -> None:
        self.acked += frame.count(b'"type":"ok"')
        if b'"type":"error"' in frame:
            self.wrong += frame.count(b'"type":"error"')

    def publish(self, count: int) -> None:
        """Send *count* messages."""
        messages = [message(self.index, self.sent + ahead) for ahead in range(1, count + 1)]
        self.sent += count
        self.transport.write(b"".join(map(text_frame, self.dialect.frames(messages))))
