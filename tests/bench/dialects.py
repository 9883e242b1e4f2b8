"""How a load generator speaks to each server that is measured: where it connects, what it says first, how it publishes.

A message is the JSON object ``{"text": ..., "username": ...}`` for all of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

Step = tuple[bytes, bytes]
"""What is sent (nothing if empty), and a part of the frame that is waited for then."""


class Message(NamedTuple):
    """What is published: the fields of the message, and its number among those of its publisher, from 1 on."""

    text: bytes
    username: bytes
    number: int

    def json(self) -> bytes:
        """Return it as JSON; neither field has anything to escape."""
        return b'{"text":"%b","username":"%b"}' % (self.text, self.username)


class Dialect:
    """That of servers which pass on what they get, as it is: subscribers at one path, publishers at another.

    Args:
        room: Number of the room.

    Attributes:
        has_acks: Whether each message is answered by an object with ``"type":"ok"``.
    """

    has_acks = False

    def __init__(self, room: int) -> None:
        self.room = room

    def path(self, *, is_subscriber: bool) -> str:
        """Return where to connect."""
        return "/subscribe" if is_subscriber else "/publish"

    def steps(self, user: bytes, *, is_subscriber: bool) -> Sequence[Step]:
        """Return what has to be gone through after the upgrade."""
        return [(b"", b"joined")]

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
        hello = b'[{"type":"connect","ref":1,"auth":{"user_id":"%b"}},{"type":"join","ref":2,"room":"bench:%d"%b}]'
        return [(hello % (user, self.room, events), b'"type":"joined"')]

    def frames(self, messages: Sequence[Message]) -> list[bytes]:
        trigger = b'{"type":"trigger","ref":%d,"room":"bench:%d","event":"message","data":%b}'
        triggers = [trigger % (message.number, self.room, message.json()) for message in messages]
        return [b"[" + b",".join(triggers) + b"]"]

    def answer(self, frame: bytes) -> bytes | None:
        return b'{"type":"pong"}' if b'"type":"ping"' in frame else None


class SocketIODialect(Dialect):
    """Socket.IO 5 over Engine.IO 4, straight over WebSocket."""

    def path(self, *, is_subscriber: bool) -> str:
        return "/socket.io/?EIO=4&transport=websocket"

    def steps(self, user: bytes, *, is_subscriber: bool) -> Sequence[Step]:
        connected = [(b"", b'0{"sid"'), (b"40", b'40{"sid"')]
        return [*connected, (b'420["join"]', b"430[")] if is_subscriber else connected

    def frames(self, messages: Sequence[Message]) -> list[bytes]:
        return [b'42["message",%b]' % message.json() for message in messages]

    def answer(self, frame: bytes) -> bytes | None:
        return b"3" if frame == b"2" else None


DIALECTS: dict[str, type[Dialect]] = {
    "plain": Dialect,
    "dialogue": DialogueDialect,
    "socketio": SocketIODialect,
}
