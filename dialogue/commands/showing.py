"""How the commands show events: what others wrote reaches a terminal as text, and never as its controls."""

from __future__ import annotations

import json
import re
from datetime import datetime
from typing import Any

from ..events import CHANGES, DELETE, EDIT, Event

# Controls (escape sequences begin with one), what turns the direction of writing, separators of lines and paragraphs,
# annotations, invisible tags, and halves of surrogate pairs.
_UNSAFE = re.compile(
    "[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff\ufff9-\ufffb\U000e0000-\U000e007f]"
)


def _escaped(match: re.Match[str]) -> str:
    code = ord(match[0])
    return f"\\u{code:04x}" if code <= 0xFFFF else json.dumps(match[0])[1:-1]


def printable(text: str) -> str:
    """Return *text* as one line that is safe to print: controls are written as ``\\u001b``, tabs as spaces."""
    return _UNSAFE.sub(_escaped, text.replace("\t", " ").replace("\n", " / "))


def compact(value: Any) -> str:
    """Return *value* as JSON in one line that is safe to print, and still that JSON."""
    # Only strings can have such characters, and in a string of JSON an escape means the same.
    return _UNSAFE.sub(_escaped, json.dumps(value, ensure_ascii=False, separators=(",", ":")))


def time_of(event: Event[Any]) -> str:
    """Return when it was, in the time of this machine."""
    try:
        return datetime.fromtimestamp(event.timestamp / 1000).strftime("%Y-%m-%d %H:%M:%S")
    except (ValueError, OverflowError, OSError):  # of an application's own table
        return str(event.timestamp)


def text_of(event: Event[Any], *, field: str = "text") -> str:
    """Return what an event says, safe to print: its *field*, or else all its data; or what it has changed."""
    data = event.data
    if event.event in CHANGES and isinstance(data, dict):
        target = data.get("target_seq")
        if event.event == DELETE:
            return f"deleted {target}"
        if event.event == EDIT and "data" in data:
            return f"edited {target}: {_said(data['data'], field)}"
        return f"edited {target}, and changed again later"
    if event.is_deleted:
        return "(deleted)"
    return _said(data, field) + (" (edited)" if event.is_edited else "")


def _said(data: Any, field: str) -> str:
    text = data.get(field) if isinstance(data, dict) else data
    return printable(text) if isinstance(text, str) else compact(data)


def json_of(event: Event[Any]) -> str:
    """Return an event as one line of JSON, with the fields of the wire."""
    record: dict[str, Any] = {
        "room": event.room_id,
        "event": event.event,
        "id": event.id,
        "seq": event.seq,
        "epoch": event.epoch,
        "from": event.sender,
        "timestamp": event.timestamp,
        "data": event.data,
    }
    optional = {"meta": event.meta, "kind": None if event.kind == "event" else event.kind, "key": event.key}
    record |= {name: value for name, value in optional.items() if value is not None}
    record |= {name: True for name in ("edited", "deleted") if getattr(event, f"is_{name}")}
    return compact(record)
