"""The servers that are measured, each a process of its own: ``python -m tests.bench.serve NAME STORE``.

All are uvicorn with the settings of ``dialogue run``. With DIALOGUE_BENCH_PROFILE=FILE the main thread runs under
cProfile and FILE gets what it found.
"""

from __future__ import annotations

import asyncio
import cProfile
import gc
import logging
import os
import socket
import sys
from collections import Counter
from pathlib import Path

import uvicorn
from fastapi import FastAPI

from dialogue import Dialogue, History, Limits, RoomConfig, SQLStore, define_event
from dialogue.server.run import listen, serve
from tests.rates import UNRATED

from .peers import bare_sqlite, resume_query, sqlalchemy_async
from .peers.common import Message

message = define_event("message", schema=Message, history=History(limit=100))


def make_dialogue(store: str) -> Dialogue:
    """Return the Dialogue under test; its store is a URL, or empty for memory."""
    return Dialogue(
        {"bench:{number}": RoomConfig(events=[message])},
        store=SQLStore(store, auto_migrate=True) if store else None,
        limits=Limits(**UNRATED, connections_per_user=10**6),
    )


def make_soaked(store: str) -> Dialogue:
    """Return the Dialogue of a soak: its rooms soon sleep, and it says what it holds at ``/bench``."""
    dialogue = Dialogue(
        {
            "soak:{number}": RoomConfig(events=[message]),
            "filled": RoomConfig(events=[define_event("filling", history=History(limit=1))]),
        },
        store=SQLStore(store, auto_migrate=True),
        limits=Limits(**UNRATED, connections_per_user=10**6, idle_seconds=1.0, ping_seconds=2.0),
    )

    @dialogue.app.get("/bench")
    async def state() -> dict[str, int]:
        hub = dialogue.hub()
        return {
            "tasks": len(asyncio.all_tasks()),
            "rooms": len(hub.rooms),
            "connections": len(hub.connections.sessions),
        }

    @dialogue.app.get("/bench/objects")
    async def objects() -> dict[str, int]:
        gc.collect()
        return dict(Counter(type(found).__name__ for found in gc.get_objects()))

    return dialogue


def _serve_peer(app: FastAPI, listener: socket.socket) -> None:
    config = uvicorn.Config(
        app,
        ws="websockets-sansio",
        ws_per_message_deflate=False,
        ws_ping_interval=None,
        log_config=None,
        access_log=False,
        server_header=False,
    )
    print(f"serving at {listener.getsockname()[1]}", flush=True)
    with asyncio.Runner(loop_factory=config.get_loop_factory()) as runner:
        runner.run(uvicorn.Server(config).serve([listener]))


def main(name: str, store: str) -> None:
    """Serve until SIGTERM."""
    logging.basicConfig(level=logging.ERROR)
    listener = listen("127.0.0.1", 0)
    if name in ("dialogue", "soak"):
        dialogue = make_soaked(store) if name == "soak" else make_dialogue(store)
        port = listener.getsockname()[1]
        serve(dialogue, dialogue.app, listener, on_serving=lambda: print(f"serving at {port}", flush=True))
    else:
        peers = {
            "sqlalchemy": sqlalchemy_async.make_app,
            "sqlite3": bare_sqlite.make_app,
            "resume_query": resume_query.make_app,
        }
        _serve_peer(peers[name](store), listener)


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
