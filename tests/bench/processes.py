"""The processes of a benchmark: a server, and the load generator against it."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TypeVar

import msgspec

ROOT = Path(__file__).parents[2]
STOP_SECONDS = 60.0

ResultType = TypeVar("ResultType", bound=msgspec.Struct)


class Served:
    """A running server.

    Attributes:
        port: Where it listens on the loopback address.
        pid: Its process.
    """

    def __init__(self, process: subprocess.Popen[str], port: int) -> None:
        self._process = process
        self.port = port
        self.pid = process.pid

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
    raise_file_limit()
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


def load(plan: msgspec.Struct, result: type[ResultType]) -> ResultType:
    """Run the load generator that *plan* is of, its module, in a process of its own; return what it printed."""
    raise_file_limit()
    done = subprocess.run(
        [sys.executable, "-m", type(plan).__module__, msgspec.json.encode(plan).decode()],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        check=True,
    )
    return msgspec.json.decode(done.stdout, type=result)


def cpu_seconds(pid: int) -> float | None:
    """Return the processor time that a process has used, all its threads together; None where nothing tells."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def resident_bytes(pid: int) -> int | None:
    """Return the memory that a process has in use, shared pages included; None where the system does not tell."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return None
    return next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmRSS:"))


def raise_file_limit() -> None:
    """Let this process and those that it starts have as many open files, and so sockets, as it may allow itself."""
    with suppress(ImportError):
        import resource

        _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
