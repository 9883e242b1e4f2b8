"""The peers in Python, each a process of its own: ``python -m tests.bench.serve_peer NAME STORE``.

They have the settings of ``dialogue run``. Dialogue is not imported: that takes longer than a peer needs to start.
"""

from __future__ import annotations

import asyncio
import importlib
import logging
import socket
import sys

import uvicorn


def main(name: str, store: str) -> None:
    """Serve until SIGTERM."""
    logging.basicConfig(level=logging.ERROR)
    config = uvicorn.Config(
        importlib.import_module(f".peers.{name}", __package__).make_app(store),
        ws="websockets-sansio",
        ws_per_message_deflate=False,
        ws_ping_interval=None,
        log_config=None,
        access_log=False,
        server_header=False,
    )
    listener = socket.create_server(("127.0.0.1", 0))
    print(f"serving at {listener.getsockname()[1]}", flush=True)
    with asyncio.Runner(loop_factory=config.get_loop_factory()) as runner:
        runner.run(uvicorn.Server(config).serve([listener]))


if __name__ == "__main__":
    main(*sys.argv[1:])
