"""What a client publishes: data as JSON, the key that it is told apart by, and what it is answered with."""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Mapping
from typing import Any

from dialogue.config import EventType
from dialogue.errors import MessageTooLarge
from dialogue.events import Ack

_FRAME_HEADROOM_BYTES = 2048


def encode_data(data: Any, event_type: EventType[Any] | None) -> bytes:
    """Return *data* as JSON.

    Plain data goes as it is, for the server validates it; anything else through its own schema, by alias.

    Raises:
        TypeError: It is not JSON, and no schema makes it so.
        ValueError: It holds NaN, infinity or a lone surrogate, which JSON has not.
    """
    try:
        return _dumps(data)
    except TypeError:
        if event_type is not None and event_type.adapter is not None:
            return _dumps(event_type.adapter.dump_python(data, mode="json", by_alias=True))
        dump = getattr(data, "model_dump", None)
        if dump is None:
            raise
        return _dumps(dump(mode="json", by_alias=True))


def _dumps(data: Any) -> bytes:
    # Not msgspec: it writes NaN as null, and the server would record what nobody sent.
    return json.dumps(data, allow_nan=False, ensure_ascii=False, separators=(",", ":")).encode()


def new_key() -> str:
    """Return a key that nobody else has."""
    # The time first: keys that grow are next to each other in the log's index, which random ones are all over.
    return f"{time.time_ns() // 1_000_000:012x}{secrets.token_hex(10)}"


def check_size(size: int, limits: Mapping[str, Any]) -> None:
    """Check that a server with these *limits* takes an event of *size* bytes.

    Raises:
        MessageTooLarge: It does not.
    """
    # A frame over the server's limit is not answered but closes the connection.
    most = limits.get("frame_bytes")
    if isinstance(most, int) and size + _FRAME_HEADROOM_BYTES > most:
        raise MessageTooLarge(f"the event has {size} bytes; the server takes frames of at most {most}")


def ack_of(answer: Mapping[str, Any]) -> Ack:
    """Return what the answer to a publish says."""
    return Ack(
        seq=answer.get("seq"),
        id=answer.get("id"),
        timestamp=answer.get("timestamp") or 0,
        is_duplicate=bool(answer.get("duplicate")),
    )
