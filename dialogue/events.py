"""Events, and the encoded form in which rings, pages and frames carry them.

An event is encoded once, when it is recorded (or read from the log), to the JSON message of the wire protocol.
Everything after that - fan-out, join sync, pages, replay - joins those bytes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Generic, Literal, NamedTuple, TypeVar, cast

import msgspec

if TYPE_CHECKING:
    from .config import EventType

T = TypeVar("T")

Kind = Literal["event", "command", "system", "notification", "presence"]
"""What an event is for; declared with its type, ``event`` by default."""

KINDS: tuple[Kind, ...] = ("event", "command", "system", "notification", "presence")

SERVER_KEY_PREFIX = "$"
"""Keys that the server makes start so; a client's key may not, so that the two never meet."""


class _Stream(msgspec.Struct, frozen=True, gc=False):
    """What all events of one type in one room share.

    Attributes:
        event: The event's name.
        head: How their wire messages begin.
    """

    event: str
    head: bytes


@lru_cache(maxsize=4096)
def _stream(room_id: str, event: str) -> _Stream:
    head = b'{"type":"event","room":%b,"event":%b,' % (_json_string(room_id), _json_string(event))
    return _Stream(event, head)


@lru_cache(maxsize=4096)
def _json_string(text: str) -> bytes:
    return msgspec.json.encode(text)


@lru_cache(maxsize=4096)
def _shared(text: str) -> str:
    """Return the same string for equal ones: each row of the log brings its own."""
    return text


class EncodedEvent(msgspec.Struct, frozen=True, gc=False):
    """One event as it is kept in memory and sent; made by `encode_event`.

    A ring holds many: what the events of a stream or of a sender have in common is not in each of them, and the key
    is inside the text, where it takes half as much as a string of its own.

    ``gc=False``: nothing in it can form a cycle, and a collector that need not walk the rings costs less.

    Attributes:
        seq: The room's counter; None for an ephemeral event and for an archive's row without seq.
        position: The stream's counter, growing by one per event; 0 for an ephemeral event. An archive's rows
            from before this life of the log have positions of 0 and below.
        sender: The user it is from.
    """

    seq: int | None
    position: int
    sender: str
    _of: _Stream
    _body: bytes  # the rest of the wire message, with the key at its end
    _key_size: int

    @property
    def event(self) -> str:
        """The event's name."""
        return self._of.event

    @property
    def has_key(self) -> bool:
        """Whether its publisher chose a key."""
        return self._key_size > 0

    @property
    def key(self) -> str | None:
        """The key that its publisher chose; None where the server made it. Sent only to the publisher."""
        if not self._key_size:
            return None
        key: str = msgspec.json.decode(self._body[len(_KEY) - self._key_size - 1 : -1])
        return key

    @property
    def json(self) -> bytes:
        """The wire message, without the key; put together at each call."""
        body = self._body if not self._key_size else self._body[: -self._key_size - 1] + b"}"
        return b'%b"from":%b,%b' % (self._of.head, _json_string(self.sender), body)

    def json_for(self, user_id: str) -> bytes:
        """Return the wire message for *user_id*: with the key if the event is theirs."""
        if not self._key_size or self.sender != user_id:
            return self.json
        return b'%b"from":%b,%b' % (self._of.head, _json_string(self.sender), self._body)


_KEY = b',"key":'


def encoded_for(events: Iterable[EncodedEvent], user_id: str | None) -> list[bytes]:
    """Return the wire messages of *events* as *user_id* gets them: what `EncodedEvent.json_for` returns, and quicker.

    Args:
        user_id: None for somebody whose events they are not.
    """
    texts: list[bytes] = []
    # Neighbours often have the same sender, and nearly always the same type: how they begin is the same then.
    stream: _Stream | None = None
    sender: str | None = None
    start = b""
    for event in events:
        if event.sender is not sender or event._of is not stream:
            stream, sender = event._of, event.sender
            start = b'%b"from":%b,' % (stream.head, _json_string(sender))
        body = event._body
        if event._key_size and sender != user_id:
            body = body[: -event._key_size - 1] + b"}"
        texts.append(start + body)
    return texts


def encode_event(
    *,
    room_id: str,
    event: str,
    id: int | None,
    seq: int | None,
    position: int,
    sender: str,
    key: str | None,
    timestamp: int,
    data_json: bytes,
    meta_json: bytes | None = None,
    kind: str = "event",
    is_edited: bool = False,
    is_deleted: bool = False,
) -> EncodedEvent:
    """Return an event in its encoded form (PROTOCOL, Messages).

    ``data_json`` and ``meta_json`` must be valid JSON already: they are copied as they are.
    """
    tail = b"" if meta_json is None else b',"meta":' + meta_json
    if kind != "event":
        tail += b',"kind":"' + kind.encode() + b'"'
    if is_edited:
        tail += b',"edited":true'
    if is_deleted:
        tail += b',"deleted":true'
    # Not `_json_string`: each key comes once.
    key_json = b"" if key is None else _KEY + msgspec.json.encode(key)
    body = b'"id":%b,"seq":%b,"timestamp":%d,"data":%b%b%b}' % (
        b"null" if id is None else b"%d" % id,
        b"null" if seq is None else b"%d" % seq,
        timestamp,
        data_json,
        tail,
        key_json,
    )
    return EncodedEvent(seq, position, _shared(sender), _stream(room_id, event), body, len(key_json))


EDIT = "$edit"
DELETE = "$delete"
"""The events that tell of a change; their data is ``{"target_seq": …, "event": …}`` and, for an edit, ``"data"``."""

CHANGES = frozenset((EDIT, DELETE))

ERASED_USER = "$erased"
"""Whose events those of an erased user are."""


class Target(msgspec.Struct, frozen=True):
    """The earlier event of the same room that a draft changes, in the transaction that records the draft.

    Attributes:
        seq: Its seq.
        event: The name of its type.
        data_json: What its data becomes; None to delete it: its row stays as a tombstone with data null.
        is_erased: Whether its sender, meta and key go too.
    """

    seq: int
    event: str
    data_json: bytes | None = None
    is_erased: bool = False

    def change_json(self) -> bytes:
        """Return the data of the `EDIT` or `DELETE` event that tells of the change."""
        text = b'{"target_seq":%d,"event":%b' % (self.seq, msgspec.json.encode(self.event))
        if self.data_json is not None:
            text += b',"data":' + self.data_json
        if self.is_erased:
            text += b',"erased":true'
        return text + b"}"


class Draft(msgspec.Struct, gc=False):
    """An admitted event on its way to the log: everything but what the append assigns.

    Attributes:
        key: Always present; made by the server (with `SERVER_KEY_PREFIX`) if the publisher gave none.
        is_recorded: False for an ephemeral event, which passes through in order without being stored.
        counts_unread: Whether it raises its room's unread count.
        target: What it changes, for an `EDIT` or `DELETE`.
    """

    room_id: str
    event: str
    sender: str
    key: str
    data_json: bytes
    meta_json: bytes | None = None
    kind: str = "event"
    is_recorded: bool = True
    counts_unread: bool = True
    target: Target | None = None

    @property
    def public_key(self) -> str | None:
        """The key if the publisher chose it, None if the server made it."""
        return None if self.key.startswith(SERVER_KEY_PREFIX) else self.key

    def record(self, *, id: int | None, seq: int | None, position: int, timestamp: int) -> EncodedEvent:
        """Return the event that this draft becomes with what the append assigned."""
        return encode_event(
            room_id=self.room_id,
            event=self.event,
            id=id,
            seq=seq,
            position=position,
            sender=self.sender,
            key=self.public_key,
            timestamp=timestamp,
            data_json=self.data_json,
            meta_json=self.meta_json,
            kind=self.kind,
        )


def repack(
    encoded: EncodedEvent,
    *,
    data_json: bytes,
    meta_json: bytes | None,
    is_edited: bool | None = None,
    is_deleted: bool | None = None,
    is_erased: bool = False,
) -> EncodedEvent:
    """Return an event with another payload; flags that are None stay.

    Args:
        data_json, meta_json: Valid JSON already.
        is_erased: Whether its sender becomes `ERASED_USER`, and its key goes.
    """
    wire = _decode(encoded.json)
    return encode_event(
        room_id=wire.room,
        event=encoded.event,
        id=wire.id,
        seq=encoded.seq,
        position=encoded.position,
        sender=ERASED_USER if is_erased else encoded.sender,
        key=None if is_erased else encoded.key,
        timestamp=wire.timestamp,
        data_json=data_json,
        meta_json=meta_json,
        kind=wire.kind,
        is_edited=wire.edited if is_edited is None else is_edited,
        is_deleted=wire.deleted if is_deleted is None else is_deleted,
    )


class _Payload(msgspec.Struct):
    data: msgspec.Raw
    meta: msgspec.Raw = msgspec.Raw(b"null")


_decode_payload = msgspec.json.Decoder(_Payload).decode


def payload_of(encoded: EncodedEvent) -> tuple[bytes, bytes | None]:
    """Return the data and the meta of an event as they are in its message; None for no meta."""
    payload = _decode_payload(encoded.json)
    meta = bytes(payload.meta)
    return bytes(payload.data), None if meta == b"null" else meta


def change(encoded: EncodedEvent, target: Target) -> EncodedEvent:
    """Return an event as it is after the change to *target*."""
    data_json, meta_json = payload_of(encoded)
    if target.data_json is not None:
        return repack(encoded, data_json=target.data_json, meta_json=meta_json, is_edited=True)
    if encoded.event not in CHANGES:
        return repack(encoded, data_json=b"null", meta_json=None, is_deleted=True, is_erased=target.is_erased)
    if not target.is_erased:
        # What a void edit was about must stay known, or a client that resumes would miss it; nothing more of it.
        fields = msgspec.json.decode(data_json, type=dict[str, msgspec.Raw])
        fields.pop("data", None)
        data_json = msgspec.json.encode(fields)
    # One whose editor is erased still says what another's event has become.
    return repack(encoded, data_json=data_json, meta_json=meta_json, is_erased=target.is_erased)


def void(edit: EncodedEvent) -> EncodedEvent:
    """Return an `EDIT` as it is once a later change has taken its place: nothing of what it said stays."""
    assert edit.event == EDIT
    assert edit.seq is not None
    return change(edit, Target(edit.seq, EDIT))


def is_deleted(encoded: EncodedEvent) -> bool:
    """Whether an event is a tombstone."""
    return encoded.json.endswith(b',"deleted":true}')


class _Id(msgspec.Struct):
    id: int | None


_decode_id = msgspec.json.Decoder(_Id).decode


def id_of(encoded: EncodedEvent) -> int:
    """Return the log's position of a recorded event; 0 where it has none."""
    return _decode_id(encoded.json).id or 0


class Ack(NamedTuple):
    """What a publisher is told of an accepted event.

    Attributes:
        seq, id: None for an ephemeral event.
        timestamp: Milliseconds since the epoch.
        is_duplicate: Whether the key was known: the values are those of the first publish.
    """

    seq: int | None
    id: int | None
    timestamp: int
    is_duplicate: bool = False


class WireEvent(msgspec.Struct, rename={"sender": "from"}, tag_field="type", tag="event"):
    """An ``event`` message, decoded."""

    room: str
    event: str
    sender: str
    timestamp: int
    data: Any = None
    id: int | None = None
    seq: int | None = None
    meta: dict[str, Any] | None = None
    kind: Kind = "event"
    key: str | None = None
    edited: bool = False
    deleted: bool = False


_decode = msgspec.json.Decoder(WireEvent).decode
_MISSING: Any = object()


class Event(Generic[T]):
    """An event as hooks, handlers and the Python client see it.

    Attributes:
        room_id: The room.
        event: The event's name.
        data: Plain JSON (what a payload's schema dumped to).
        sender: The user it is from (``from`` on the wire); ``system`` by default for the server's own.
        timestamp: Milliseconds since the epoch, set at append; 0 before it.
        seq: The room's counter, from 1 without holes; None before the append, for an ephemeral event, and for
            an archive's row that keeps none.
        id: The log's global position; None wherever ``seq`` is.
        epoch: The life of the log that ``seq`` and ``id`` belong to.
        meta: What the publisher sent beside the data.
        kind: See `Kind`.
        key: The publisher's idempotency key, where it is known.
        is_edited, is_deleted: Whether the event was replaced, or is the tombstone of a deleted one.
    """

    __slots__ = (
        "_type",
        "data",
        "epoch",
        "event",
        "id",
        "is_deleted",
        "is_edited",
        "key",
        "kind",
        "meta",
        "room_id",
        "sender",
        "seq",
        "timestamp",
    )

    def __init__(
        self,
        *,
        room_id: str,
        event: str,
        data: Any,
        sender: str,
        timestamp: int = 0,
        seq: int | None = None,
        id: int | None = None,
        epoch: str | None = None,
        meta: dict[str, Any] | None = None,
        kind: Kind = "event",
        key: str | None = None,
        is_edited: bool = False,
        is_deleted: bool = False,
        event_type: EventType[T] | None = None,
    ) -> None:
        self.room_id = room_id
        self.event = event
        self.data = data
        self.sender = sender
        self.timestamp = timestamp
        self.seq = seq
        self.id = id
        self.epoch = epoch
        self.meta = meta
        self.kind = kind
        self.key = key
        self.is_edited = is_edited
        self.is_deleted = is_deleted
        self._type = event_type

    @property
    def model(self) -> T:
        """The data as an instance of the type's schema.

        Raises:
            pydantic.ValidationError: The data is older than the schema and does not fit it.
            TypeError: The type has no schema, or is not known here.
        """
        if self._type is None:
            raise TypeError(f"event {self.event!r} has no declared type here; use .data")
        return self._type.validate(self.data)

    def replace(self, *, data: Any = _MISSING, meta: Any = _MISSING) -> Event[T]:
        """Return a copy with other *data* or *meta*; what `before_each` returns to transform."""
        return Event(
            room_id=self.room_id,
            event=self.event,
            data=self.data if data is _MISSING else data,
            sender=self.sender,
            timestamp=self.timestamp,
            seq=self.seq,
            id=self.id,
            epoch=self.epoch,
            meta=self.meta if meta is _MISSING else meta,
            kind=self.kind,
            key=self.key,
            is_edited=self.is_edited,
            is_deleted=self.is_deleted,
            event_type=self._type,
        )

    @classmethod
    def from_wire(
        cls, wire: WireEvent, *, epoch: str | None, event_type: EventType[T] | None = None
    ) -> Event[T]:
        """Return the event of a decoded message."""
        return cls(
            room_id=wire.room,
            event=wire.event,
            data=wire.data,
            sender=wire.sender,
            timestamp=wire.timestamp,
            seq=wire.seq,
            id=wire.id,
            epoch=epoch,
            meta=wire.meta,
            kind=wire.kind,
            key=wire.key,
            is_edited=wire.edited,
            is_deleted=wire.deleted,
            event_type=event_type,
        )

    @classmethod
    def decode(
        cls, encoded: EncodedEvent, *, epoch: str | None, event_type: EventType[T] | None = None
    ) -> Event[T]:
        """Return the event of its encoded form."""
        event = cls.from_wire(_decode(encoded.json), epoch=epoch, event_type=event_type)
        event.key = encoded.key
        return event

    def __repr__(self) -> str:
        return f"<Event {self.room_id}/{self.event} seq={self.seq} from={self.sender!r}>"

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Event):
            return NotImplemented
        return all(getattr(self, name) == getattr(other, name) for name in self.__slots__ if name != "_type")

    __hash__ = None  # type: ignore[assignment]  # its data is mutable JSON


def as_mapping(row: Any) -> Mapping[str, Any]:
    """Return an archive's row as a mapping: an `Event`, a mapping, or anything that has ``_mapping`` (a SQL row).

    Raises:
        TypeError: It is none of these.
    """
    if isinstance(row, Event):
        return {name: getattr(row, name) for name in Event.__slots__ if name != "_type"}
    if isinstance(row, Mapping):
        return row
    mapping = getattr(row, "_mapping", None)
    if isinstance(mapping, Mapping):
        return cast(Mapping[str, Any], mapping)
    raise TypeError(f"on_load returned a {type(row).__name__}; return Events or mappings")
