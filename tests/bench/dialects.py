"""How a load generator speaks to each server that is measured: where it connects, what it says first, how it publishes.

A message is the JSON object ``{"text": ..., "username": ...}`` for all of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

TEXTS = [
    b"good morning, has anyone seen the build from last night?",
    b"yes",
    b"it failed on the second runner, I have started it again; the log says that the disk was full",
    "caf\N{LATIN SMALL LETTER E WITH ACUTE} at three? \N{HOT BEVERAGE}".encode(),
    b"the numbers are in the sheet, row 40 and below: please look at the ones in red before the call at noon",
]


class Step(NamedTuple):
    """What is sent (nothing if empty), and what frames are to have in them then, how many times together."""

    said: bytes
    awaited: bytes
    times: int = 1


class Message(NamedTuple):
    """What is published: the fields of the message, and its number among those of its publisher, from 1 on."""

    text: bytes
    username: bytes
    number: int

    def json(self) -> bytes:
        """Return it as JSON; neither field has anything to escape."""
        return b'{"text":"%b","username":"%b"}' % (self.text, self.username)


def trigger(room: bytes, ref: int, data: bytes, *, event: bytes = b"message", key: bytes = b"") -> bytes:
    """Return Dialogue's command that publishes *data*, which is JSON; without a *key* if that is empty."""
    end = b',"key":"%b"}' % key if key else b"}"
    return b'{"type":"trigger","ref":%d,"room":"%b","event":"%b","data":%b%b' % (ref, room, event, data, end)


class Dialect:
    """That of servers which pass on what they get, as it is: subscribers at one path, publishers at another.

    Args:
        rooms: The rooms to join, where there are rooms; messages go into the first one.

    Attributes:
        has_acks: Whether each message is answered by an object with ``"type":"ok"``.
    """

    has_acks = False

    def __init__(self, *rooms: bytes) -> None:
        self.rooms = rooms

    def path(self, *, is_subscriber: bool) -> str:
        """Return where to connect."""
        return "/subscribe" if is_subscriber else "/publish"

    def steps(self, user: bytes, *, is_subscriber: bool) -> Sequence[Step]:
        """Return what has to be gone through after the upgrade."""
        return [Step(b"", b"joined")]

    def frames(self, messages: Sequence[Message]) -> list[bytes]:
        """Return the frames that publish *messages*."""
        return [message.json() for message in messages]

    def answer(self, frame: bytes) -> bytes | None:
        """Return what has to be said at once to *frame*, to stay connected."""
        return None


class DialogueDialect(Dialect):
    """Dialogue's: one path; messages that are due at one time go as one frame, as in its clients."""

    has_acks = True

    def path(self, *, is_subscriber: bool) -> str:
        return "/ws"

    def steps(self, user: bytes, *, is_subscriber: bool) -> Sequence[Step]:
        events = b"" if is_subscriber else b',"events":[]'
        joins = [
            b'{"type":"join","ref":%d,"room":"%b","sync":0%b}' % (ref, room, events)
            for ref, room in enumerate(self.rooms, start=1)
        ]
        return [
            # By itself: what a client says before it is connected may not be large.
            Step(b'{"type":"connect","ref":0,"auth":{"user_id":"%b"}}' % user, b'"type":"connected"'),
            Step(b"[" + b",".join(joins) + b"]", b'"type":"joined"', len(joins)),
        ]

    def frames(self, messages: Sequence[Message]) -> list[bytes]:
        triggers = [trigger(self.rooms[0], message.number, message.json()) for message in messages]
        return [b"[" + b",".join(triggers) + b"]"]

    def answer(self, frame: bytes) -> bytes | None:
        return b'{"type":"pong"}' if b'"type":"ping"' in frame else None


class SocketIODialect(Dialect):
    """Socket.IO 5 over Engine.IO 4, straight over WebSocket."""

    def path(self, *, is_subscriber: bool) -> str:
        return "/socket.io/?EIO=4&transport=websocket"

    def steps(self, user: bytes, *, is_subscriber: bool) -> Sequence[Step]:
        connected = [Step(b"", b'0{"sid"'), Step(b"40", b'40{"sid"')]
        return [*connected, Step(b'420["join"]', b"430[")] if is_subscriber else connected

    def frames(self, messages: Sequence[Message]) -> list[bytes]:
        return [b'42["message",%b]' % message.json() for message in messages]

    def answer(self, frame: bytes) -> bytes | None:
        return b"3" if frame == b"2" else None


class EchoDialect(Dialect):
    """That of a server which sends back what it gets, at one path."""

    def path(self, *, is_subscriber: bool) -> str:
        return "/ws"

    def steps(self, user: bytes, *, is_subscriber: bool) -> Sequence[Step]:
        return [Step(user, user)]


DIALECTS: dict[str, type[Dialect]] = {
    "plain": Dialect,
    "dialogue": DialogueDialect,
    "socketio": SocketIODialect,
    "echo": EchoDialect,
}
