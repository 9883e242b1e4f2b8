"""The Dialogue that is measured, in a process of its own: ``python -m tests.bench.serve dialogue STORE``.

It is served as ``dialogue run`` serves; `tests.bench.serve_peer` has what it is compared with. With
DIALOGUE_BENCH_PROFILE=FILE the main thread runs under cProfile and FILE gets what it found.
"""

from __future__ import annotations

import cProfile
import logging
import os
import sys
from pathlib import Path

from dialogue import Dialogue, History, Limits, RoomConfig, SQLStore, define_event
from dialogue.server.run import listen, serve
from tests.rates import UNRATED

from .peers.common import Message

message = define_event("message", schema=Message, history=History(limit=100))


def make_dialogue(store: str) -> Dialogue:
    """Return the Dialogue under test; its store is a URL, or empty for memory."""
    return Dialogue(
        {"bench:{number}": RoomConfig(events=[message])},
        store=SQLStore(store, auto_migrate=True) if store else None,
        limits=Limits(**UNRATED, connections_per_user=10**6),
    )


def main(name: str, store: str) -> None:
    """Serve until SIGTERM."""
    if name != "dialogue":
        raise SystemExit(f"there is no server {name!r}")
    logging.basicConfig(level=logging.ERROR)
    listener = listen("127.0.0.1", 0)
    dialogue = make_dialogue(store)
    port = listener.getsockname()[1]
    serve(dialogue, dialogue.app, listener, on_serving=lambda: print(f"serving at {port}", flush=True))


if __name__ == "__main__":
    profile_path = os.environ.get("DIALOGUE_BENCH_PROFILE")
    if profile_path:
        profile = cProfile.Profile()
        try:
            profile.runcall(main, *sys.argv[1:])
        finally:
            profile.dump_stats(Path(profile_path))
    else:
        main(*sys.argv[1:])
