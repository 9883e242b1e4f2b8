"""The developer's own storage, as the hand-over and the reads see it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import msgspec

from ..events import KINDS, EncodedEvent, Event, as_mapping, encode_event


class Archive(ABC):
    """Where evicted events go and come back from.

    Attributes:
        is_keyset: Whether `load_before` works; it is then preferred to `load` wherever a seq is known. Looked at
            after `open`.
        can_erase: Whether `erase` works. Looked at after `open`.
    """

    is_keyset: bool = False
    can_erase: bool = False

    async def open(self, *, epoch: str) -> None:  # noqa: B027 - only some archives have something to open
        """Make the archive ready; called once per lifespan, after the log was opened and before anything else.

        Args:
            epoch: The present life of the log; rows of another one are not reached by seq.

        Raises:
            StartError: It cannot be used; the message names the remedy.
        """

    async def aclose(self) -> None:  # noqa: B027 - only some archives have something to close
        """Release everything, before the log is closed. May be called twice, and without `open`."""

    @abstractmethod
    async def cleanup(self, room_id: str, event_name: str, events: list[Event[Any]]) -> None:
        """Store *events* of one stream, oldest first; when it returns they are the archive's.

        Called in order per stream, at least once per batch (a retry brings the same batch), never while a `load`
        of the same stream runs. Raising means: try again later.
        """

    @abstractmethod
    async def load(self, room_id: str, event_name: str, start: int, end: int) -> Sequence[Any]:
        """Return the events of one stream at offsets [*start*, *end*), newest first.

        Offset 0 is the newest event for which `cleanup` has returned. Fewer than ``end - start`` rows mean that
        there are no older ones.
        """

    async def load_before(self, room_id: str, event_name: str, before: int, limit: int) -> Sequence[Any]:
        """Return the newest *limit* events of one stream with a seq below *before*, newest first."""
        raise NotImplementedError

    async def erase(self, user_id: str) -> None:
        """Blank what is from *user_id*: data, meta and name; called while no `cleanup` that might hold it runs.

        No row may go away: readers count rows.
        """
        raise NotImplementedError


def encode_row(row: Any, *, room_id: str, event_name: str, position: int, epoch: str) -> EncodedEvent:
    """Return an archive's *row* as an event of the room that is read.

    Args:
        row: An `Event`, a mapping or a SQL row with ``event`` (or ``event_name``), ``data`` (or ``event_data``),
            ``sender`` (or ``from``, ``from_user``), ``timestamp`` and, if the table keeps them, ``seq``, ``id``,
            ``epoch``, ``meta``, ``kind`` and ``key``.
        position: What the read has counted it as.
        epoch: The present life of the log; a row of another one, or of none, is given seq and id null.

    Raises:
        TypeError, ValueError: The row has no such fields, or not of their types.
    """
    fields = as_mapping(row)

    def pick(*names: str) -> Any:
        return next((fields[name] for name in names if fields.get(name) is not None), None)

    sender, timestamp = pick("sender", "from", "from_user"), pick("timestamp")
    if not isinstance(sender, str):
        raise TypeError("a row of on_load needs 'sender' (or 'from', 'from_user'), a string")
    if isinstance(timestamp, bool) or not isinstance(timestamp, int):
        raise TypeError("a row of on_load needs 'timestamp', whole milliseconds since the epoch")
    seq, id = pick("seq"), pick("id")
    if seq is None or pick("epoch") != epoch or isinstance(seq, bool) or not isinstance(seq, int):
        seq = id = None
    kind = pick("kind") or "event"
    if kind not in KINDS:
        raise ValueError("a row of on_load has an unknown 'kind'")
    data = fields.get("data", fields.get("event_data"))
    meta = pick("meta")
    key = pick("key")
    return encode_event(
        room_id=room_id,
        event=event_name,
        id=id if isinstance(id, int) else None,
        seq=seq,
        position=position,
        sender=sender,
        key=key if isinstance(key, str) and not key.startswith("$") else None,
        timestamp=timestamp,
        data_json=msgspec.json.encode(data),
        meta_json=msgspec.json.encode(meta) if isinstance(meta, dict) else None,
        kind=kind,
        is_edited=bool(pick("is_edited")),
        is_deleted=bool(pick("is_deleted")),
    )
