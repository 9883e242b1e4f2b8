"""Answers over HTTP: bodies that are read within bounds, and errors with their status."""

from __future__ import annotations

import asyncio
import math
import re
from typing import Any, TypeVar

import msgspec
from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.responses import Response

from .. import protocol
from ..errors import CommandError, InvalidRequest, MessageTooLarge

STATUSES: dict[str, int] = {
    "INVALID_REQUEST": 400,
    "UNAUTHENTICATED": 401,
    "ROOM_NOT_FOUND": 404,
    "ROOM_EXISTS": 409,
    "ROOM_FULL": 409,
    "JOIN_DENIED": 403,
    "NOT_JOINED": 403,
    "PERMISSION_DENIED": 403,
    "EVENT_NOT_ALLOWED": 403,
    "VALIDATION_FAILED": 422,
    "BLOCKED": 403,
    "MESSAGE_TOO_LARGE": 413,
    "RATE_LIMITED": 429,
    "BACKPRESSURE": 503,
    "STORE_UNAVAILABLE": 503,
    "INTERNAL": 500,
}
"""The status that goes with each code (docs: reference/errors.md)."""

_NUMBER = re.compile(r"-?[0-9]{1,19}", re.ASCII)


class WrongMediaType(InvalidRequest):
    """The body is not sent as JSON: a form of another site could have sent it."""

    default_message = "send the body as application/json"


class BodyTooLate(InvalidRequest):
    """The body did not come in time."""

    default_message = "the body did not come in time"


class _BodyTooLarge(MessageTooLarge):
    """The body is larger than any may be."""


class EventBody(msgspec.Struct):
    """The body of a publish: the fields of a ``trigger``."""

    event: str
    data: msgspec.Raw = msgspec.Raw(b"null")
    meta: msgspec.Raw = msgspec.Raw(b"null")
    key: str | None = None


class EditBody(msgspec.Struct):
    """The body of an edit."""

    data: msgspec.Raw
    key: str | None = None


class RoomBody(msgspec.Struct):
    """The body that makes a room: the fields of a ``create_room``."""

    room: str
    name: str
    description: str | None = None
    max_size: int | None = None


class ReadBody(msgspec.Struct):
    """The body that marks a room as read."""

    seq: int


B = TypeVar("B", EventBody, EditBody, RoomBody, ReadBody)


def answer(body: bytes, *, status_code: int = 200) -> Response:
    """Return a JSON answer."""
    return Response(body, status_code=status_code, media_type="application/json")


def without_type(message: bytes) -> bytes:
    """Return an encoded message of the socket's without its ``type``, which comes first: the route says it."""
    assert message.startswith(b'{"type":"')
    return b"{" + message[message.index(b",") + 1 :]


def refusal(request: Request, error: CommandError) -> Response:
    """Return the answer to a refused request."""
    body: dict[str, Any] = {"code": error.code, "message": error.message}
    if error.details is not None:
        body["details"] = error.details
    if error.retry_after_seconds is not None:
        body["retry_after_seconds"] = error.retry_after_seconds
    response = answer(protocol.encode_message(body), status_code=_status(error))
    if response.status_code in (429, 503) or error.retry_after_seconds is not None:
        response.headers["Retry-After"] = str(math.ceil(error.retry_after_seconds or 1))
    if response.status_code == 401:
        response.headers["WWW-Authenticate"] = "Bearer"
    is_unread = isinstance(error, WrongMediaType | BodyTooLate | _BodyTooLarge)
    if is_unread and request.scope.get("http_version", "1.1").startswith("1"):
        # What is left of the body need not be taken. Later versions end a stream alone, and know no such header.
        response.headers["Connection"] = "close"
    return response


def _status(error: CommandError) -> int:
    if isinstance(error, WrongMediaType):
        return 415
    if isinstance(error, BodyTooLate):
        return 408
    return STATUSES.get(error.code, 400)


# -- what is asked -----------------------------------------------------------------------------------------------


def parameter(request: Request, name: str) -> str | None:
    """Return a parameter of the query; None where it is not there.

    Raises:
        InvalidRequest: It is there twice.
    """
    values = request.query_params.getlist(name)
    if len(values) > 1:
        raise InvalidRequest(f"{name!r} is given more than once")
    return values[0] if values else None


def number(request: Request, name: str) -> int | None:
    """Return a parameter of the query that is a whole number; None where it is not there.

    Raises:
        InvalidRequest: It is none, or there twice.
    """
    text = parameter(request, name)
    return None if text is None else whole_number(name, text)


def whole_number(name: str, text: str) -> int:
    """Return the number that is given as *name*.

    Raises:
        InvalidRequest: It is none.
    """
    if not _NUMBER.fullmatch(text):
        raise InvalidRequest(f"{name!r} is a whole number")
    return int(text)


def check_is_json(headers: Headers) -> None:
    """Check the media type of a body.

    Raises:
        WrongMediaType: It is not ``application/json``.
    """
    if headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        raise WrongMediaType


async def read_body(request: Request, *, most_bytes: int, seconds: float) -> bytes:
    """Return the body of a request.

    Raises:
        MessageTooLarge: It has more than *most_bytes*; what is left of it is not read.
        BodyTooLate: It did not come within *seconds*.
        ClientDisconnect: The client has gone.
    """
    too_large = _BodyTooLarge(f"a body has at most {most_bytes} bytes")
    length = request.headers.get("content-length", "")
    if _NUMBER.fullmatch(length) and int(length) > most_bytes:
        raise too_large
    parts: list[bytes] = []
    size = 0
    try:
        async with asyncio.timeout(seconds):
            async for part in request.stream():
                size += len(part)
                if size > most_bytes:
                    raise too_large
                parts.append(part)
    except TimeoutError:
        raise BodyTooLate from None
    return b"".join(parts)


def decode_body(body: bytes, kind: type[B]) -> B:
    """Return what a body says.

    Raises:
        InvalidRequest: It is no such object.
    """
    try:
        # Data and meta are taken as they are and checked later, as text.
        body.decode()
        return msgspec.json.decode(body, type=kind)
    except UnicodeDecodeError:
        raise InvalidRequest("the body is not UTF-8") from None
    except RecursionError:
        raise InvalidRequest("the body is nested too deeply") from None
    except msgspec.ValidationError as error:
        # Names what was expected and where, and nothing of what was sent.
        raise InvalidRequest(str(error)) from None
    except msgspec.DecodeError:
        raise InvalidRequest("the body is not JSON") from None
