"""The opaque tokens that clients page with.

A token holds numbers and the epoch only; room and event come from the command. So a forged token can do nothing
that a command could not, and every number in it is checked like a command's.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterable, Mapping
from functools import lru_cache
from hashlib import blake2b
from typing import NamedTuple

import msgspec

from ..errors import InvalidRequest

MAX_SEQ = 2**53 - 1
"""The largest seq that JavaScript counts exactly; no cursor goes past it."""

_VERSION = 1


class Bound(NamedTuple):
    """How far one stream has been sent, reading towards older events.

    Attributes:
        seq: Events with a smaller seq are still to be sent.
        position: If known, events with a smaller position are still to be sent. It goes on where a seq cannot:
            in an archive's rows without seq, with positions of 0 and below for rows of earlier lives.
    """

    seq: int
    position: int | None = None


class Cursor(NamedTuple):
    """A decoded token.

    Attributes:
        is_older: The direction that the token goes on in.
        seq: The bound of every stream that is not named in *streams*: exclusive, upwards or downwards.
        streams: Bounds by hash of the event's name; only for older.
    """

    is_older: bool
    seq: int
    streams: dict[int, Bound]

    def bound(self, event_name: str) -> Bound:
        """Return the bound of one stream."""
        return self.streams.get(name_hash(event_name)) or Bound(self.seq)


class _Token(msgspec.Struct, array_like=True):
    version: int
    epoch: str
    is_older: bool
    seq: int
    streams: list[tuple[int, int, int | None]]


_decoder = msgspec.msgpack.Decoder(_Token)


@lru_cache(maxsize=4096)
def name_hash(event_name: str) -> int:
    """Return the number that stands for an event's name in a token (48 bits; a room has few hundred names)."""
    return int.from_bytes(blake2b(event_name.encode(), digest_size=6).digest(), "big")


def encode_older(epoch: str, bounds: Mapping[str, Bound]) -> str:
    """Return the token that reads on below *bounds* (by event name)."""
    general = max((bound.seq for bound in bounds.values()), default=0)
    streams = [
        (name_hash(name), bound.seq, bound.position)
        for name, bound in bounds.items()
        if bound.seq != general or bound.position is not None
    ]
    return _encode(_Token(_VERSION, epoch, True, general, streams))


def encode_newer(epoch: str, after: int) -> str:
    """Return the token that reads on above *after* (exclusive)."""
    return _encode(_Token(_VERSION, epoch, False, after, []))


def _encode(token: _Token) -> str:
    return base64.urlsafe_b64encode(msgspec.msgpack.encode(token)).rstrip(b"=").decode()


def decode(text: str, *, epoch: str, event_names: Iterable[str]) -> Cursor:
    """Return the cursor in a token.

    Args:
        event_names: The streams that the command reads; bounds of others are ignored.

    Raises:
        InvalidRequest: It is not a token, or one of another epoch, or a number in it is out of bounds.
    """
    try:
        token = _decoder.decode(
            base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
        )
    except (binascii.Error, ValueError, msgspec.DecodeError, RecursionError):
        raise InvalidRequest("not a cursor of this server") from None
    if token.version != _VERSION:
        raise InvalidRequest("not a cursor of this server")
    if token.epoch != epoch:
        raise InvalidRequest("the cursor is of another epoch: start again from the newest page")
    wanted = {name_hash(name) for name in event_names}
    streams: dict[int, Bound] = {}
    for key, seq, position in token.streams:
        if not 0 <= seq <= MAX_SEQ + 1 or not -MAX_SEQ <= (position or 0) <= MAX_SEQ:
            raise InvalidRequest("not a cursor of this server")
        if key in wanted:
            streams[key] = Bound(seq, position)
    if not 0 <= token.seq <= MAX_SEQ + 1 or (streams and not token.is_older):
        raise InvalidRequest("not a cursor of this server")
    return Cursor(token.is_older, token.seq, streams)
