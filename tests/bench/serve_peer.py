"""The peers in Python, each a process of its own: ``python -m tests.bench.serve_peer NAME STORE``.

They have the settings of ``dialogue run``, those of the garbage collector too. Dialogue is not imported: that takes
longer than a peer needs to start.
"""

from __future__ import annotations

import asyncio
import gc
import importlib
import logging
import socket
import sys
from typing import Any

import uvicorn


def serve_peer(app: Any, listener: socket.socket) -> None:
    """Serve *app* until SIGTERM."""
    config = uvicorn.Config(
        app,
        ws="websockets-sansio",
        ws_per_message_deflate=False,
        ws_ping_interval=None,
        log_config=None,
        access_log=False,
        server_header=False,
    )
    # As `dialogue.server.collector` does.
    gc.collect()
    gc.freeze()
    gc.set_threshold(10_000, 10, 2)
    with asyncio.Runner(loop_factory=config.get_loop_factory()) as runner:
        runner.run(uvicorn.Server(config).serve([listener]))


def main(name: str, store: str) -> None:
    """Serve until SIGTERM."""
    logging.basicConfig(level=logging.ERROR)
    app = importlib.import_module(f".peers.{name}", __package__).make_app(store)
    listener = socket.create_server(("127.0.0.1", 0))
    print(f"serving at {listener.getsockname()[1]}", flush=True)
    serve_peer(app, listener)


if __name__ == "__main__":
    main(*sys.argv[1:])
