"""The processes of a benchmark: a server, and the load generators against it."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Hashable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

import msgspec

ROOT = Path(__file__).parents[2]
STOP_SECONDS = 60.0
ANSWER_SECONDS = 10.0

PEERS = Path(__file__).parent / "peers"
"""Servers in Python: ``fastapi_loop`` is its ``fastapi_loop.py``."""

NODE = PEERS / "node"
"""Servers for Node: ``ws`` is its ``ws.mjs``."""

_Key = TypeVar("_Key", bound=Hashable)
_Result = TypeVar("_Result", bound=msgspec.Struct)


class Served:
    """A running server.

    Attributes:
        pid: Its process.
        port: Where it listens on the loopback address.
    """

    def __init__(self, pid: int, port: int) -> None:
        self.pid = pid
        self.port = port


@contextmanager
def serving(name: str, store: str = "", *, is_pinned: bool = False) -> Iterator[Served]:
    """Serve *name* (one of `serve.SERVERS`, `PEERS` or `NODE`) over *store* until the end of the block.

    Args:
        is_pinned: Whether it keeps to the first core, once it serves.

    Raises:
        RuntimeError: It did not start, or not stop in order; its output is on standard error.
    """
    module = "tests.bench.serve_peer" if (PEERS / f"{name}.py").exists() else "tests.bench.serve"
    script = NODE / f"{name}.mjs"
    command = ["node", str(script)] if script.exists() else [sys.executable, "-m", module, name, store]
    _raise_file_limit()
    process = subprocess.Popen(
        command,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
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


@contextmanager
def serving_all(
    servers: Mapping[_Key, tuple[str, str]], *, is_pinned: bool = False
) -> Iterator[dict[_Key, Served]]:
    """Serve *servers*, pairs of name and store as `serving` takes them; yield them by the same keys.

    All start at one time, and stop at one time: that takes longer than a moment's measurement.

    Raises:
        RuntimeError: One of them did not start, or not stop in order.
    """
    started: dict[_Key, Future[Served]] = {key: Future() for key in servers}
    is_over = threading.Event()

    def serve(key: _Key) -> None:
        with serving(*servers[key], is_pinned=is_pinned) as server:
            started[key].set_result(server)
            is_over.wait()

    with ThreadPoolExecutor(len(servers)) as pool:
        try:
            done = {key: pool.submit(serve, key) for key in servers}
            for key, server in started.items():
                either: list[Future[Any]] = [server, done[key]]
                wait(either, return_when=FIRST_COMPLETED)
                if not server.done():
                    done[key].result()
            yield {key: server.result() for key, server in started.items()}
        finally:
            is_over.set()
        for stopped in done.values():
            stopped.result()


def load(plan: msgspec.Struct, result: type[_Result]) -> _Result:
    """Run the load generator that *plan* is for, the module that defines it, in a process of its own.

    Raises:
        RuntimeError: It failed; why is on standard error.
    """
    with loading(plan) as process:
        return ended(process, result)


@contextmanager
def loading(plan: msgspec.Struct) -> Iterator[subprocess.Popen[bytes]]:
    """Run a load generator beside the block, see `load`; one that is to be told when to stop reads its input.

    What it prints before its result is the block's to read. `ended` waits for the rest.
    """
    _raise_file_limit()
    process = subprocess.Popen(
        [sys.executable, "-m", type(plan).__module__, msgspec.json.encode(plan).decode()],
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


def ended(process: subprocess.Popen[bytes], result: type[_Result]) -> _Result:
    """End the input of a load generator, wait for it, and return what it has found.

    Raises:
        RuntimeError: It failed; why is on standard error.
    """
    said, _ = process.communicate()
    if process.returncode:
        raise RuntimeError(f"a load generator ended with status {process.returncode}: {process.args!r}")
    return msgspec.json.decode(said, type=result)


def pin(pid: int = 0, *, last: bool = False) -> None:
    """Keep a process (0: this one) to the first core that it may use, or to the *last*; a no-op where that is unknown.

    Its threads too, those that it has and those that they start.
    """
    if not hasattr(os, "sched_setaffinity"):
        return
    cores = sorted(os.sched_getaffinity(pid))
    for task in Path(f"/proc/{pid or os.getpid()}/task").iterdir():
        # A thread may have ended meanwhile.
        with suppress(ProcessLookupError):
            os.sched_setaffinity(int(task.name), {cores[-1 if last else 0]})


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


def difference(after: float | None, before: float | None) -> float | None:
    """Return how much more *after* is; None where one of them is unknown."""
    return None if after is None or before is None else after - before


def fetch(port: int, path: str) -> bytes:
    """Return what the loopback server at *port* answers to a GET; the connection is gone then.

    Raises:
        OSError: It refuses, or has not answered within `ANSWER_SECONDS`.
    """
    with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=ANSWER_SECONDS) as answer:
        return bytes(answer.read())


def _raise_file_limit() -> None:
    """Let this process and those that it starts have as many open files, and so sockets, as it may allow itself."""
    # Not everywhere there, and not everywhere is what the system calls no limit one that it takes.
    with suppress(ImportError, ValueError, OSError):
        import resource

        _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
