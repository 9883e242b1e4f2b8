"""The Dialogues that are measured, in a process of their own: ``python -m tests.bench.serve NAME STORE``.

They are served as ``dialogue run`` serves; `tests.bench.serve_peer` has what they are compared with. With
DIALOGUE_BENCH_PROFILE=FILE the main thread runs under cProfile and FILE gets what it found.
"""

from __future__ import annotations

import asyncio
import cProfile
import gc
import logging
import os
import sys
from collections import Counter
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from pydantic import BaseModel

from dialogue import Dialogue, History, Limits, RoomConfig, SQLStore, define_event
from dialogue.server.run import listen, serve
from tests.rates import UNRATED

from .peers.common import Message
from .serve_peer import serve_peer


class Document(BaseModel):
    """A large payload, for what depends on the size of what is sent."""

    text: str


message = define_event("message", schema=Message, history=History(limit=100))
hot_message = define_event("message", schema=Message, history=History(limit=1000))
document = define_event("document", schema=Document, history=History(limit=100))


def limits(**changes: Any) -> Limits:
    """Return the limits of a server that is measured: no rates, and everything else but *changes* as it is."""
    return Limits(**UNRATED, connections_per_user=10**6, **changes)


def make_dialogue(store: str) -> Dialogue:
    """Return the Dialogue under test; its store is a URL, or empty for memory."""
    return Dialogue(
        {
            "bench:{number}": RoomConfig(events=[message]),
            "hot:{number}": RoomConfig(events=[hot_message]),
            "documents:{number}": RoomConfig(events=[document]),
        },
        store=SQLStore(store, auto_migrate=True) if store else None,
        limits=limits(),
    )


def make_soaked(store: str) -> Dialogue:
    """Return the Dialogue of a soak: its rooms soon sleep, and it says what it holds at ``/bench``."""
    dialogue = Dialogue(
        {
            "soak:{number}": RoomConfig(events=[message]),
            "filled": RoomConfig(events=[define_event("filling", history=History(limit=1))]),
        },
        store=SQLStore(store, auto_migrate=True),
        limits=limits(idle_seconds=0.5, ping_seconds=2.0),
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


PLAIN, INCLUDED = "plain", "included"

SERVERS = {"dialogue": make_dialogue, "soak": make_soaked, PLAIN: make_dialogue, INCLUDED: make_dialogue}
"""`PLAIN` is served by uvicorn itself; `INCLUDED` has the router in a FastAPI application of its own."""


def main(name: str, store: str) -> None:
    """Serve until SIGTERM."""
    logging.basicConfig(level=logging.ERROR)
    if name not in SERVERS:
        raise SystemExit(f"there is no server {name!r}")
    listener = listen("127.0.0.1", 0)
    dialogue = SERVERS[name](store)
    said = f"serving at {listener.getsockname()[1]}"
    if name == PLAIN:
        print(said, flush=True)
        serve_peer(dialogue.app, listener)
        return
    app = dialogue.app
    if name == INCLUDED:
        app = FastAPI()
        app.include_router(dialogue.router)
    serve(dialogue, app, listener, on_serving=lambda: print(said, flush=True))


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
