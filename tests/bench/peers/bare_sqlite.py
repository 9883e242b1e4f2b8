"""The quickest one: the standard library's ``sqlite3`` in the event loop, a commit per message."""

from __future__ import annotations

import sqlite3
import time

from fastapi import FastAPI

from .common import Message, add_socket


def make_app(url: str) -> FastAPI:
    """Return the application over the SQLite file of *url*."""
    connection = sqlite3.connect(url.partition(":///")[2], isolation_level=None)
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = FULL")
    connection.execute(
        "CREATE TABLE messages (id INTEGER PRIMARY KEY, room_id TEXT NOT NULL, from_user TEXT NOT NULL,"
        " data TEXT NOT NULL, timestamp INTEGER NOT NULL)"
    )
    app = FastAPI()

    async def insert(room_id: str, user_id: str, message: Message) -> int:
        cursor = connection.execute("BEGIN IMMEDIATE")
        cursor.execute(
            "INSERT INTO messages (room_id, from_user, data, timestamp) VALUES (?, ?, ?, ?)",
            (room_id, user_id, message.model_dump_json(), time.time_ns() // 1_000_000),
        )
        cursor.execute("COMMIT")
        return cursor.lastrowid or 0

    add_socket(app, insert)
    return app
