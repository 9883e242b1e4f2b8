"""The application's own table: messages that have left Dialogue's memory."""

from __future__ import annotations

import json
import os
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from typing import Any

from dialogue import Event

DATABASE = os.environ.get("CHAT_DATABASE", "chat.db")

SCHEMA = """
CREATE TABLE IF NOT EXISTS messages (
    id INTEGER PRIMARY KEY,
    room_id VARCHAR(255) NOT NULL,
    event_name VARCHAR(100) NOT NULL,
    event_data JSON NOT NULL,
    from_user VARCHAR(255) NOT NULL,
    timestamp BIGINT NOT NULL,
    created_at TIMESTAMP DEFAULT CURRENT_TIMESTAMP
);
CREATE INDEX IF NOT EXISTS idx_messages_scroll ON messages (room_id, event_name, timestamp, id);
"""


@contextmanager
def connect() -> Iterator[sqlite3.Connection]:
    """Open the database, make the table if it is not there, and commit at the end unless something was raised.

    A connection per call, because hooks written with ``def`` run in worker threads, several at a time.
    """
    with closing(sqlite3.connect(DATABASE)) as connection:
        connection.row_factory = sqlite3.Row
        connection.executescript(SCHEMA)
        with connection:
            yield connection


def insert_messages(room_id: str, event_name: str, events: Sequence[Event[Any]]) -> None:
    """Write *events*, oldest first, all of them or none."""
    rows = [(room_id, event_name, json.dumps(event.data), event.sender, event.timestamp) for event in events]
    with connect() as connection:
        connection.executemany(
            "INSERT INTO messages (room_id, event_name, event_data, from_user, timestamp)"
            " VALUES (?, ?, ?, ?, ?)",
            rows,
        )


def load_messages(room_id: str, event_name: str, start: int, end: int) -> list[dict[str, Any]]:
    """Return rows *start* (inclusive) to *end* (exclusive), counted back from the newest; newest first.

    Events of the same millisecond are told apart by ``id``, the order in which they were written: without a total
    order a row could stand on two pages, or on none.
    """
    with connect() as connection:
        rows = connection.execute(
            "SELECT event_data, from_user, timestamp FROM messages"
            " WHERE room_id = ? AND event_name = ?"
            " ORDER BY timestamp DESC, id DESC LIMIT ? OFFSET ?",
            (room_id, event_name, end - start, start),
        ).fetchall()
    return [
        {
            "event": event_name,
            "data": json.loads(row["event_data"]),
            "from": row["from_user"],
            "timestamp": row["timestamp"],
        }
        for row in rows
    ]
