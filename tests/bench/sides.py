"""The servers that fan-out and latency compare: how to start each, how to speak to it, and what it needs."""

from __future__ import annotations

import importlib.util
import json
import shutil
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import NamedTuple

from .databases import database
from .processes import NODE, Served, serving_all


class Side(NamedTuple):
    """A server.

    Attributes:
        server: As `serving` takes it.
        dialect: As `DIALECTS` has it.
        package: What it needs beside the development environment: a module of the extra ``bench``, or for a server
            in `NODE` a package of Node's.
        is_stored: Whether it has a SQLite file.
    """

    server: str
    dialect: str = "plain"
    package: str = ""
    is_stored: bool = False

    def missing(self) -> str:
        """Return how to get what it needs and is not there; empty if nothing is missing."""
        if not self.package:
            return ""
        if (NODE / f"{self.server}.mjs").exists():
            if shutil.which("node") and (NODE / "node_modules" / self.package).exists():
                return ""
            return f"node, and npm install --prefix {NODE.relative_to(NODE.parents[3])}"
        return "" if importlib.util.find_spec(self.package) else 'pip install -e ".[bench]"'

    def versions(self) -> dict[str, str]:
        """Return the versions of Node and of its package, where the server is one of Node's."""
        if not (NODE / f"{self.server}.mjs").exists():
            return {}
        node = subprocess.run(
            ["node", "--version"], capture_output=True, text=True, check=True
        ).stdout.strip()
        about = json.loads((NODE / "node_modules" / self.package / "package.json").read_text())
        return {"node": node.removeprefix("v"), self.package: about["version"]}


DIALOGUE, DURABLE, ASGI, LOOP, NODE_WS, NODE_SOCKETIO, SOCKETIO, LITESTAR, COMMITTING = (
    "Dialogue",
    "Dialogue on SQLite",
    "Dialogue under plain uvicorn",
    "FastAPI loop",
    "Node ws",
    "Socket.IO on Node",
    "python-socketio",
    "Litestar channels",
    "insert, commit, broadcast",
)

SIDES = {
    DIALOGUE: Side("dialogue", "dialogue"),
    DURABLE: Side("dialogue", "dialogue", is_stored=True),
    ASGI: Side("plain", "dialogue"),
    LOOP: Side("fastapi_loop"),
    NODE_WS: Side("ws", package="ws"),
    NODE_SOCKETIO: Side("socketio", "socketio", package="socket.io"),
    SOCKETIO: Side("socketio_python", "socketio", package="socketio"),
    LITESTAR: Side("litestar_channels", package="litestar"),
    COMMITTING: Side("insert_commit_broadcast", is_stored=True),
}


def present(names: Iterable[str]) -> list[str]:
    """Return those of `SIDES` that can run; for each other one standard error has a line that says how to get it."""
    found = []
    for name in names:
        if missing := SIDES[name].missing():
            print(f"{name} is left out; it needs {missing}", file=sys.stderr)
        else:
            found.append(name)
    return found


@contextmanager
def files(names: Iterable[str]) -> Iterator[dict[str, str]]:
    """Yield the URL of a new SQLite file for each of `SIDES` that has one; they are removed at the end."""
    with ExitStack() as stack:
        yield {name: stack.enter_context(database("SQLite")) for name in names if SIDES[name].is_stored}


@contextmanager
def serving_sides(names: Iterable[str], urls: Mapping[str, str]) -> Iterator[dict[str, Served]]:
    """Serve those of `SIDES`, each at the first core and some with a store among *urls*; yield them by name."""
    servers = {name: (SIDES[name].server, urls.get(name, "")) for name in names}
    with serving_all(servers, is_pinned=True) as served:
        yield served
