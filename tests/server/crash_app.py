"""The application that `test_crash` kills: ``python -m tests.server.crash_app STORE_URL PORT SEED [ARCHIVE_FILE]``."""

from __future__ import annotations

import json
import random
import sqlite3
import sys
from contextlib import closing
from typing import Any

import uvicorn

from dialogue import Dialogue, Event, History, Limits, RoomConfig, SQLStore, define_event
from tests.rates import UNRATED

RING = 20
message = define_event("message", history=History(limit=RING))

ARCHIVE_SCHEMA = """
CREATE TABLE IF NOT EXISTS kept (
    room_id TEXT NOT NULL, epoch TEXT NOT NULL, seq INTEGER NOT NULL, sender TEXT NOT NULL,
    timestamp INTEGER NOT NULL, data TEXT NOT NULL, UNIQUE (room_id, epoch, seq)
)
"""


def keep_in(dialogue: Dialogue, file: str, chaos: random.Random) -> None:
    """Register an ``on_cleanup`` with a table of its own; now and then it fails, before or after it has written."""

    @dialogue.on_cleanup
    def keep(room_id: str, event_name: str, events: list[Event[Any]]) -> None:
        if chaos.random() < 0.1:
            raise RuntimeError("failed before it wrote")
        rows = [(room_id, e.epoch, e.seq, e.sender, e.timestamp, json.dumps(e.data)) for e in events]
        with closing(sqlite3.connect(file, timeout=30)) as connection, connection:
            connection.execute(ARCHIVE_SCHEMA)
            connection.executemany("INSERT OR IGNORE INTO kept VALUES (?, ?, ?, ?, ?, ?)", rows)
        if chaos.random() < 0.1:
            raise RuntimeError("failed after it wrote")


def main() -> None:
    """Serve one room over a log until killed."""
    url, port, seed, *archive = sys.argv[1:]
    dialogue = Dialogue(
        {"general": RoomConfig(events=[message])},
        store=SQLStore(url, auto_migrate=True, lock_wait_seconds=30),
        limits=Limits(**UNRATED),
    )
    for file in archive:
        keep_in(dialogue, file, random.Random(int(seed)))
    uvicorn.run(dialogue.app, host="127.0.0.1", port=int(port), ws="websockets-sansio", log_level="critical")


if __name__ == "__main__":
    main()
