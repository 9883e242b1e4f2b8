"""The application that `test_crash` kills; run as a program: ``python -m tests.server.crash_app DATABASE PORT``."""

from __future__ import annotations

import sys

import uvicorn

from dialogue import Dialogue, History, RoomConfig, define_event

message = define_event("message", history=History(limit=20))


def main() -> None:
    """Serve one room over a SQLite log until killed."""
    database, port = sys.argv[1:]
    dialogue = Dialogue({"general": RoomConfig(events=[message])}, store=f"sqlite:///{database}")
    uvicorn.run(dialogue.app, host="127.0.0.1", port=int(port), ws="websockets-sansio", log_level="warning")


if __name__ == "__main__":
    main()
