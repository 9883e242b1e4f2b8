"""The processes of a benchmark: a server, and the load generator against it."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec

from .load import Plan, Result

ROOT = Path(__file__).parents[2]
STOP_SECONDS = 60.0


class Served:
    """A running server.

    Attributes:
        port: Where it listens on the loopback address.
    """

    def __init__(self, process: subprocess.Popen[str], port: int) -> None:
        self._process = process
        self.port = port

    def cpu_seconds(self) -> float | None:
        """Processor time that it has used so far, all its threads together; None where the system does not tell."""
        try:
            fields = Path(f"/proc/{self._process.pid}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            return None
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


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
    """Run the load generator in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.bench.load", msgspec.json.encode(plan).decode()],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        check=True,
    )
    return msgspec.json.decode(done.stdout, type=Result)
