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

from .load import Plan, Result

ROOT = Path(__file__).parents[2]
STOP_SECONDS = 60.0

R = TypeVar("R")


def cpu_seconds(pid: int) -> float | None:
    """Return the processor time of a process, all its threads together; None where the system does not tell."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def use_last_core() -> None:
    """Keep this process, a load generator, off the core that the server is likely to be on."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})


class Served:
    """A running server.

    Attributes:
        port: Where it listens on the loopback address.
        pid: Its process.
    """

    def __init__(self, process: subprocess.Popen[str], port: int) -> None:
        self.pid = process.pid
        self.port = port

    def cpu_seconds(self) -> float | None:
        """Processor time that it has used so far, all its threads together; None where the system does not tell."""
        return cpu_seconds(self.pid)


@contextmanager
def serving(name: str, store: str, *, tree: Path = ROOT) -> Iterator[Served]:
    """Serve *name* (see `tests.bench.serve`) over *store* until the end of the block.

    Args:
        tree: Where the code is, so that two versions of it can be compared in one run.

    Raises:
        RuntimeError: It did not start, or not stop in order; its output is on standard error.
    """
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.bench.serve", name, store],
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
        yield Served(process, int(said.split()[-1]))
        process.terminate()
        # uvicorn raises the signal that ended it again.
        if process.wait(STOP_SECONDS) not in (0, -15):
            raise RuntimeError(f"the server {name!r} ended with status {process.returncode}")
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def load(plan: Plan) -> Result:
    """Run the publishers of `tests.bench.load` in a process of their own."""
    return run_load("load", plan, Result)


def run_load(module: str, plan: msgspec.Struct, result: type[R]) -> R:
    """Run a load generator, the module ``tests.bench.MODULE``, in a process of its own; return what it found."""
    with loading(module, plan) as process:
        said, _ = process.communicate()
    if process.returncode:
        raise RuntimeError(f"the load generator {module!r} ended with status {process.returncode}")
    return msgspec.json.decode(said, type=result)


@contextmanager
def loading(module: str, plan: msgspec.Struct) -> Iterator[subprocess.Popen[bytes]]:
    """Run a load generator beside the block; one that goes on until it is told to stop reads that from its input."""
    process = subprocess.Popen(
        [sys.executable, "-m", f"tests.bench.{module}", msgspec.json.encode(plan).decode()],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    with process:
        try:
            yield process
        finally:
            process.kill()
