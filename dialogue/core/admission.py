"""What may enter a room: payloads to JSON that every tier and every reader can take."""

from __future__ import annotations

import json
import re
from typing import Any

import msgspec
from pydantic import BaseModel, TypeAdapter, ValidationError

from ..config import EventType
from ..errors import MessageTooLarge, ValidationFailed

# ensure_ascii=False, so that a lone surrogate fails when the text is encoded; allow_nan=False for NaN and infinity.
_dump = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode
# pydantic's messages of these types quote the input.
_ECHOING = {
    "union_tag_invalid": "Input tag does not match any of the expected tags",
    "uuid_parsing": "Input should be a valid UUID",
}
_N, _I, _BACKSLASH = b"NI\\"
_NUL = re.compile(rb"(?<!\\)(?:\\\\)*\\u0000")


def encode_json(value: Any, *, max_depth: int, what: str = "data") -> bytes:
    """Return plain *value* as JSON that is safe in a frame shared with others and in every store.

    Raises:
        ValidationFailed: It holds NaN or infinity, U+0000, a lone surrogate, something that is not JSON, or is
            nested more than *max_depth* levels deep.
    """
    try:
        encoded = _dump(value).encode()
    except UnicodeEncodeError:
        raise ValidationFailed(f"the {what} contains a lone surrogate, which is not Unicode text") from None
    except ValueError:
        raise ValidationFailed(f"the {what} contains NaN or infinity, which JSON has no word for") from None
    except TypeError:
        raise ValidationFailed(f"the {what} contains something that is not JSON") from None
    except RecursionError:
        raise ValidationFailed(f"the {what} is nested too deeply") from None
    if b"\\u0000" in encoded and _NUL.search(encoded):
        raise ValidationFailed(f"the {what} contains U+0000, which databases refuse")
    if encoded.count(b"[") + encoded.count(b"{") > max_depth and _depth(value, max_depth) > max_depth:
        raise ValidationFailed(f"the {what} is nested more than {max_depth} levels deep")
    return encoded


def _is_surely_safe(encoded: bytes, max_depth: int) -> bool:
    """Whether JSON that pydantic or msgspec wrote is safe without another look at its value.

    Both write NaN and infinity as null (pydantic by its name, if a model says so) and refuse lone surrogates.
    """
    # A single byte is found in a sixth of the time of a text, and few payloads have these; a level takes two bytes.
    return not (
        encoded.find(b"null") >= 0
        or (_N in encoded and encoded.find(b"NaN") >= 0)
        or (_I in encoded and encoded.find(b"Infinity") >= 0)
        or (_BACKSLASH in encoded and encoded.find(b"\\u0000") >= 0)
        or (len(encoded) > 2 * max_depth and encoded.count(b"[") + encoded.count(b"{") > max_depth)
    )


def _depth(value: Any, limit: int) -> int:
    """Return how deeply *value* is nested, giving up above *limit*."""
    depth, level = 0, [value]
    while level and depth <= limit:
        level = [
            child
            for item in level
            for child in (
                item.values() if isinstance(item, dict) else item if isinstance(item, list | tuple) else ()
            )
        ]
        depth += bool(level)
    return depth


def decode_json(raw: bytes, *, what: str = "data") -> Any:
    """Return the value of a command's raw JSON.

    Raises:
        ValidationFailed: A number is out of range, a string is not Unicode, or it is nested too deeply.
    """
    try:
        return msgspec.json.decode(raw)
    except RecursionError:
        raise ValidationFailed(f"the {what} is nested too deeply") from None
    except (msgspec.DecodeError, UnicodeDecodeError):
        raise ValidationFailed(
            f"the {what} contains a number out of range or text that is not Unicode"
        ) from None


def encode_payload(event_type: EventType[Any], raw: bytes, *, max_bytes: int, max_depth: int) -> bytes:
    """Validate a command's raw data by the event's schema and return what is stored and sent.

    Raises:
        MessageTooLarge: The data is larger than *max_bytes*, before or after validation.
        ValidationFailed: It does not fit the schema, or is not safe JSON (see `encode_json`).
    """
    if len(raw) > max_bytes:
        raise MessageTooLarge(f"the data is larger than {max_bytes} bytes")
    if event_type.adapter is None:
        value = decode_json(raw)
        encoded = msgspec.json.encode(value)
        if not _is_surely_safe(encoded, max_depth):
            encoded = encode_json(value, max_depth=max_depth)
        return _bounded(encoded, max_bytes)
    try:
        value = event_type.adapter.validator.validate_json(raw)
    except ValidationError as error:
        raise validation_failed(error) from None
    return _bounded(_dump_model(event_type.adapter, value, max_depth), max_bytes)


def encode_value(event_type: EventType[Any], value: Any, *, max_bytes: int, max_depth: int) -> bytes:
    """Validate *value* (an instance of the schema, or plain data) like `encode_payload`; for the server's own."""
    if event_type.adapter is not None:
        try:
            value = event_type.adapter.validate_python(value)
        except ValidationError as error:
            raise validation_failed(error) from None
        return _bounded(_dump_model(event_type.adapter, value, max_depth), max_bytes)
    if isinstance(value, BaseModel):
        value = value.model_dump(mode="json")
    return _bounded(encode_json(value, max_depth=max_depth), max_bytes)


def _dump_model(adapter: TypeAdapter[Any], value: Any, max_depth: int) -> bytes:
    """Return the JSON of what a schema made of the data: written by pydantic at once where that is surely safe."""
    try:
        encoded = adapter.serializer.to_json(value)
    except (ValueError, RecursionError):  # pydantic's serialization errors are ValueErrors
        encoded = b""  # what is wrong with it shows below
    if encoded and _is_surely_safe(encoded, max_depth):
        return encoded
    try:
        value = adapter.dump_python(value, mode="json")
    except (ValueError, RecursionError):
        raise ValidationFailed("the data cannot be written as JSON") from None
    return encode_json(value, max_depth=max_depth)


def _bounded(encoded: bytes, max_bytes: int) -> bytes:
    if len(encoded) > max_bytes:
        raise MessageTooLarge(f"the data is larger than {max_bytes} bytes")
    return encoded


def validation_failed(error: ValidationError) -> ValidationFailed:
    """Return the wire error for pydantic's, without echoing the input."""
    details = [
        {"loc": list(item["loc"]), "msg": _ECHOING.get(item["type"], item["msg"]), "type": item["type"]}
        for item in error.errors(include_url=False, include_context=False, include_input=False)
    ]
    return ValidationFailed(details=details[:20])


def encode_meta(raw: bytes, *, max_bytes: int, max_depth: int) -> bytes:
    """Check a command's ``meta``, an object, and return it encoded.

    Raises:
        MessageTooLarge, ValidationFailed: See `encode_payload`.
    """
    if len(raw) > max_bytes:
        raise MessageTooLarge(f"the meta is larger than {max_bytes} bytes")
    value = decode_json(raw, what="meta")
    if not isinstance(value, dict):
        raise ValidationFailed("the meta is not an object")
    return encode_json(value, max_depth=max_depth, what="meta")
