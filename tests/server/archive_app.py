"""The application that `test_archive` kills; run as a program: ``python -m tests.server.archive_app DATABASE PORT``."""

from __future__ import annotations

import sys

import uvicorn

from dialogue import Dialogue, History, Limits, RoomConfig, SQLArchive, define_event
from tests.rates import UNRATED

message = define_event("message", history=History(limit=20))


def make(database: str) -> Dialogue:
    """Return a server whose log and archive share one SQLite file."""
    return Dialogue(
        {"general": RoomConfig(events=[message]), "other": RoomConfig(events=[message])},
        store=f"sqlite:///{database}",
        archive=SQLArchive(f"sqlite:///{database}", create=True),
        limits=Limits(handover_batch_events=30, **UNRATED),
    )


def main() -> None:
    """Serve until killed."""
    database, port = sys.argv[1:]
    uvicorn.run(
        make(database).app, host="127.0.0.1", port=int(port), ws="websockets-sansio", log_level="warning"
    )


if __name__ == "__main__":
    main()
