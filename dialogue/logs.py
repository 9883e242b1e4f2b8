"""Log records as JSON, one line each, and the fields that Dialogue's own records carry.

Everything is logged through the standard library: with ``JSONFormatter`` on a handler, or any other formatter that
looks at what ``extra=`` was given.
"""

from __future__ import annotations

import json
import logging
from datetime import UTC, datetime
from typing import Any

FIELDS: dict[str, str] = {
    "room_id": "The room.",
    "event_name": "The event's name.",
    "user_id": "The user: of a publish its sender, of a connection whom it belongs to.",
    "client_id": "The connection, by the server's name for it.",
    "hook": "The hook that failed.",
    "event_count": "How many events it is about, where it is about several.",
}
"""What Dialogue's records may carry beside their message."""

_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {
    "asctime",
    "message",
    "taskName",
    # uvicorn's messages once more, with colours.
    "color_message",
}

_OWN = frozenset({"exception", "level", "logger", "message", "stack", "time"})


class JSONFormatter(logging.Formatter):
    """Formats a record as one line of JSON, in ASCII, so that nothing that is logged can begin another line.

    ``time`` (UTC, ISO 8601 with milliseconds), ``level``, ``logger`` and ``message``; then whatever ``extra=`` has
    given, under its own name; then ``exception`` and ``stack``, as text, where there are any. An extra that is called
    as one of these gets an underscore behind its name; one that is not JSON becomes its ``repr``.
    """

    def format(self, record: logging.LogRecord) -> str:
        """Return the line, without a line break at its end."""
        time = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        fields: dict[str, Any] = {
            "time": time.replace("+00:00", "Z"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        for name, value in vars(record).items():
            if name not in _STANDARD:
                fields[f"{name}_" if name in _OWN else name] = value
        if record.exc_info and not record.exc_text:
            # Kept in the record, as the standard formatter does: the next handler need not make it again.
            record.exc_text = self.formatException(record.exc_info)
        if record.exc_text:
            fields["exception"] = record.exc_text
        if record.stack_info:
            fields["stack"] = self.formatStack(record.stack_info)
        return (
            "{" + ", ".join(f"{json.dumps(name)}: {_encoded(value)}" for name, value in fields.items()) + "}"
        )


def _encoded(value: Any) -> str:
    try:
        # NaN and the infinities are no JSON, and would make the whole line unreadable.
        return json.dumps(value, allow_nan=False)
    except (TypeError, ValueError, RecursionError):
        return json.dumps(repr(value))
