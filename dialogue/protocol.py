"""The wire protocol, version 1: commands and messages to bytes and back; close codes.

Pure: bytes in, commands out; messages in, bytes out. It knows neither sockets nor the store.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import Any, Literal

import msgspec

from .errors import CommandError, InvalidRequest

PROTOCOL_VERSION = 1

CLOSE_NORMAL = 1000
CLOSE_GOING_AWAY = 1001
CLOSE_INTERNAL_ERROR = 1011
CLOSE_RESTARTING = 1012
CLOSE_TOO_BIG = 1009
CLOSE_NOT_TEXT = 1007
CLOSES_BY_SERVER = frozenset((CLOSE_NOT_TEXT, CLOSE_TOO_BIG))
"""With which the WebSocket server itself closes, before we hear of what has come."""

CLOSE_UNAUTHENTICATED = 4001
CLOSE_NOT_THIS_PROTOCOL = 4002
CLOSE_SLOW_CONSUMER = 4008
CLOSE_TOO_MANY_ERRORS = 4009

Ref = int | str | None
EventNames = list[str] | Literal["*"]


class Since(msgspec.Struct):
    """A client's cursor in a room: everything up to and including `seq` was seen, under `epoch`."""

    seq: int
    epoch: str


class Command(msgspec.Struct, tag_field="type", kw_only=True, gc=False):
    """Base of all commands; unknown fields are ignored."""

    ref: Ref = None


class Connect(Command, tag="connect"):
    auth: dict[str, Any] | None = None


class Join(Command, tag="join"):
    room: str
    since: Since | None = None
    sync: int | None = None
    events: EventNames | None = None


class Leave(Command, tag="leave"):
    room: str


class Subscribe(Command, tag="subscribe"):
    room: str
    events: EventNames


class Unsubscribe(Command, tag="unsubscribe"):
    room: str
    events: EventNames


class Trigger(Command, tag="trigger"):
    room: str
    event: str
    # Raw: validated once, by the event's schema, from these very bytes.
    data: msgspec.Raw = msgspec.Raw(b"null")
    meta: msgspec.Raw = msgspec.Raw(b"null")
    key: str | None = None


class Edit(Command, tag="edit"):
    room: str
    seq: int
    data: msgspec.Raw = msgspec.Raw(b"null")
    key: str | None = None


class Delete(Command, tag="delete"):
    room: str
    seq: int
    key: str | None = None


class HistoryRead(Command, tag="history"):
    room: str
    event: str | None = None
    kind: str | None = None
    before: int | None = None
    after: int | None = None
    around: int | None = None
    epoch: str | None = None
    cursor: str | None = None
    start: int | None = None
    end: int | None = None
    limit: int | None = None


class Rooms(Command, tag="rooms"):
    pass


class CreateRoom(Command, tag="create_room"):
    room: str
    name: str
    description: str | None = None
    max_size: int | None = None


class DeleteRoom(Command, tag="delete_room"):
    room: str


class Presence(Command, tag="presence"):
    room: str


class MarkRead(Command, tag="mark_read"):
    room: str
    seq: int


class Unread(Command, tag="unread"):
    rooms: list[str] | None = None


class Pong(Command, tag="pong"):
    pass


AnyCommand = (
    Connect
    | Join
    | Leave
    | Subscribe
    | Unsubscribe
    | Trigger
    | Edit
    | Delete
    | HistoryRead
    | Rooms
    | CreateRoom
    | DeleteRoom
    | Presence
    | MarkRead
    | Unread
    | Pong
)

_frame_decoder = msgspec.json.Decoder(AnyCommand | list[AnyCommand])
_raw_decoder = msgspec.json.Decoder(list[msgspec.Raw])
_command_decoder = msgspec.json.Decoder(AnyCommand)
_encoder = msgspec.json.Encoder()


class _RefOnly(msgspec.Struct):
    ref: Ref = None


class _TypeOnly(msgspec.Struct):
    type: str


class BadCommand(msgspec.Struct):
    """A command that could not be read: the error to answer, and its ref where that could be read."""

    ref: Ref
    error: CommandError


def decode_frame(frame: bytes, *, max_commands: int) -> list[AnyCommand | BadCommand]:
    """Return the commands of a client's *frame*, in order.

    Never raises: what cannot be read is a `BadCommand` in its place, so that one bad command harms no other one.

    Args:
        frame: UTF-8 JSON: one command object or an array of them.
        max_commands: Of an array, the commands past this many are answered by one `BadCommand`.
    """
    try:
        commands = _frame_decoder.decode(frame)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        commands = _decode_one_by_one(frame, max_commands)
    if not isinstance(commands, list):
        return [commands]
    if len(commands) > max_commands:
        too_many = InvalidRequest(f"a frame holds at most {max_commands} commands; those after were not read")
        return [*commands[:max_commands], BadCommand(None, too_many)]
    return list(commands)


def _decode_one_by_one(frame: bytes, max_commands: int) -> list[Any]:
    try:
        frame.decode()
        is_array = frame.lstrip(b" \t\r\n").startswith(b"[")
        # Cut before they are decoded one by one: an array of a million zeros must not cost a million errors.
        items = (
            [bytes(item) for item in _raw_decoder.decode(frame)[: max_commands + 1]] if is_array else [frame]
        )
        if not is_array:
            msgspec.json.decode(frame, type=msgspec.Raw)  # checks the syntax
    except UnicodeDecodeError:
        return [BadCommand(None, InvalidRequest("the frame is not UTF-8"))]
    except msgspec.DecodeError:
        return [BadCommand(None, InvalidRequest("the frame is not JSON"))]
    except RecursionError:
        return [BadCommand(None, InvalidRequest("the frame is nested too deeply"))]
    return [_decode_command(item) for item in items[:max_commands]] + items[max_commands:]


def _decode_command(raw: bytes) -> Any:
    try:
        return _command_decoder.decode(raw)
    except RecursionError:
        return BadCommand(_ref_of(raw), InvalidRequest("the command is nested too deeply"))
    except msgspec.DecodeError as error:
        return BadCommand(_ref_of(raw), InvalidRequest(_explain(raw, error)))


def _ref_of(raw: bytes) -> Ref:
    try:
        return msgspec.json.decode(raw, type=_RefOnly).ref
    except (msgspec.DecodeError, RecursionError):
        return None


def _explain(raw: bytes, error: msgspec.DecodeError) -> str:
    try:
        msgspec.json.decode(raw, type=_TypeOnly)
    except (msgspec.DecodeError, RecursionError):
        return "a command is an object with a 'type'"
    text = str(error)
    # msgspec quotes an unknown tag; nothing of the input is echoed.
    if text.startswith("Invalid value"):
        return "unknown command type"
    if text.startswith("Invalid enum value"):
        return "'events' is a list of names, or '*'"
    return text if isinstance(error, msgspec.ValidationError) else "the command is not valid JSON"


def encode_message(message: dict[str, Any]) -> bytes:
    """Return one message as bytes."""
    return _encoder.encode(message)


def encode_frame(messages: Iterable[bytes]) -> bytes:
    """Return a server frame of encoded *messages*: always an array."""
    return b"[" + b",".join(messages) + b"]"


def encode_error(error: CommandError, ref: Ref = None) -> bytes:
    """Return the ``error`` message for a refused command."""
    message: dict[str, Any] = {"type": "error"}
    if ref is not None:
        message["ref"] = ref
    message["code"] = error.code
    message["message"] = error.message
    if error.details is not None:
        message["details"] = error.details
    if error.retry_after_seconds is not None:
        message["retry_after_seconds"] = error.retry_after_seconds
    return _encoder.encode(message)


def encode_ok(ref: Ref, **fields: Any) -> bytes:
    """Return the ``ok`` message for *ref*."""
    return _encoder.encode({"type": "ok", "ref": ref, **fields})


def encode_accepted(
    ref: Ref, room: str, seq: int | None, id: int | None, timestamp: int, is_duplicate: bool
) -> bytes:
    """Return the ``ok`` message for a trigger: what `encode_ok` would return for these fields, and quicker.

    Args:
        ref: Not None.
        seq, id: None for an ephemeral event.
    """
    return b'{"type":"ok","ref":%b,"room":%b,"seq":%b,"id":%b,"timestamp":%d%b}' % (
        b"%d" % ref if isinstance(ref, int) else _encoder.encode(ref),
        _json_string(room),
        b"null" if seq is None else b"%d" % seq,
        b"null" if id is None else b"%d" % id,
        timestamp,
        b',"duplicate":true' if is_duplicate else b"",
    )


@lru_cache(maxsize=4096)
def _json_string(text: str) -> bytes:
    return _encoder.encode(text)


def encode_with_events(message: dict[str, Any], events: Sequence[bytes]) -> bytes:
    """Return *message* with a field ``events`` that joins already encoded events."""
    return _encoder.encode(message)[:-1] + b',"events":[' + b",".join(events) + b"]}"


def decode_messages(frame: str | bytes) -> list[dict[str, Any]]:
    """Return the messages of a server *frame* (for clients).

    Raises:
        ValueError: The frame is not an array of message objects.
    """
    try:
        return msgspec.json.decode(frame, type=list[dict[str, Any]])
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ValueError("not a server frame: an array of messages was expected") from error
