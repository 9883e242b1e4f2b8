"""The processes of a benchmark: a server, and the load generator against it."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import msgspec

ROOT = Path(__file__).parents[2]
STOP_SECONDS = 60.0

PEERS = Path(__file__).parent / "peers"
"""Servers in Python: ``fastapi_loop`` is its ``fastapi_loop.py``."""

NODE = PEERS / "node"
"""Servers for Node: ``ws`` is its ``ws.mjs``."""

_Result = TypeVar("_Result", bound=msgspec.Struct)


class Served:
    """A running server.

    Attributes:
        process: Its id.
        port: Where it listens on the loopback address.
    """

    def __init__(self, process: int, port: int) -> None:
        self.process = process
        self.port = port

    def cpu_seconds(self) -> float | None:
        """Processor time that it has used so far, see `cpu_seconds`."""
        return cpu_seconds(self.process)


def cpu_seconds(process: int) -> float | None:
    """Processor time of *process*, all its threads together; None where the system does not tell."""
    try:
        fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@contextmanager
def serving(name: str, store: str = "", *, tree: Path = ROOT, is_pinned: bool = False) -> Iterator[Served]:
    """Serve *name* (``dialogue``, or one of `PEERS` or `NODE`) over *store* until the end of the block.

    Args:
        is_pinned: Whether it keeps to the first core, once it serves.
        tree: Where the code is, so that two versions of it can be compared in one run.

    Raises:
        RuntimeError: It did not start, or not stop in order; its output is on standard error.
    """
    module = "tests.bench.serve_peer" if (PEERS / f"{name}.py").exists() else "tests.bench.serve"
    script = NODE / f"{name}.mjs"
    command = ["node", str(script)] if script.exists() else [sys.executable, "-m", module, name, store]
    process = subprocess.Popen(
        command,
        cwd=tree,
        env={**os.environ, "PYTHONPATH": str(tree)},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    try:
        said = process.stdout.readline()
        if not said.startswith("serving at "):
            raise RuntimeError(f"the server {name!r} did not start")
        if is_pinned:
            pin(process.pid)
        yield Served(process.pid, int(said.split()[-1]))
        process.terminate()
        # uvicorn raises the signal that ended it again.
        if process.wait(STOP_SECONDS) not in (0, -15):
            raise RuntimeError(f"the server {name!r} ended with status {process.returncode}")
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def load(plan: msgspec.Struct, result: type[_Result]) -> _Result:
    """Run the load generator that *plan* is for, the module that defines it, in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-m", type(plan).__module__, msgspec.json.encode(plan).decode()],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        check=True,
    )
    return msgspec.json.decode(done.stdout, type=result)


def pin(process: int = 0, *, last: bool = False) -> None:
    """Keep *process* (0: this one) to the first core that it may use, or to the *last*; a no-op where that is unknown.

    Its threads too, those that it has and those that they start.
    """
    if not hasattr(os, "sched_setaffinity"):
        return
    cores = sorted(os.sched_getaffinity(process))
    for task in Path(f"/proc/{process or os.getpid()}/task").iterdir():
        os.sched_setaffinity(int(task.name), {cores[-1 if last else 0]})
