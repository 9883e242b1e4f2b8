"""The ``dialogue`` command as a process of its own, for the tests that start one."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any

from websockets.sync.client import ClientConnection, connect

ROOT = Path(__file__).parent.parent
SECONDS = 30.0
"""How long anything may take; what takes longer has failed."""


class Command:
    """``python -m dialogue`` with its output; killed at the end of the block if it still runs.

    Args:
        arguments: Of the command.
        folder: Its current folder.
    """

    def __init__(self, *arguments: str | Path, folder: Path) -> None:
        environment = {
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "PYTHONUNBUFFERED": "1",
            # A module that a test writes twice within a second would be taken from its cache.
            "PYTHONDONTWRITEBYTECODE": "1",
            "COLUMNS": "200",
        }
        environment.pop("FORCE_COLOR", None)
        self.process = subprocess.Popen(
            [sys.executable, "-m", "dialogue", *map(str, arguments)],
            cwd=folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            # A reloading server has a child, which must not outlive the test.
            start_new_session=True,
        )
        self.output = ""
        self._changed = threading.Condition()
        self._is_ended = False
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            with self._changed:
                self.output += line
                self._changed.notify_all()
        with self._changed:
            self._is_ended = True
            self._changed.notify_all()

    def __enter__(self) -> Command:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait(SECONDS)
        self._reader.join(SECONDS)
        assert self.process.stdout is not None
        self.process.stdout.close()

    def has_said(self, pattern: str, *, count: int = 1, within_seconds: float = SECONDS) -> bool:
        """Wait until *pattern* is in the output *count* times, or no longer can be; return whether it is."""
        with self._changed:
            self._changed.wait_for(
                lambda: self._is_ended or len(re.findall(pattern, self.output)) >= count, within_seconds
            )
            return len(re.findall(pattern, self.output)) >= count

    def wait_for(self, pattern: str, *, count: int = 1) -> re.Match[str]:
        """Return the match of *pattern* that is the *count*-th in the output, once it is there."""
        assert self.has_said(pattern, count=count), f"no {pattern!r} in the output:\n{self.output}"
        return list(re.finditer(pattern, self.output))[count - 1]

    def address(self, *, count: int = 1) -> str:
        """Return the address that the command says it serves at."""
        return self.wait_for(r" at (http://[^\s,]+)", count=count)[1]

    def end(self, number: signal.Signals | None = None) -> int:
        """Send a signal, if one is given, and return the status at the end."""
        if number is not None:
            self.process.send_signal(number)
        status = self.process.wait(SECONDS)
        self._reader.join(SECONDS)
        return status


def finished(*arguments: str | Path, folder: Path) -> tuple[int, str]:
    """Run the command to its end; return its status and its output."""
    with Command(*arguments, folder=folder) as command:
        return command.end(), command.output


def get(url: str) -> tuple[str, str]:
    """Return the content type and the text behind *url*."""
    with urllib.request.urlopen(url, timeout=SECONDS) as response:
        return response.headers["content-type"], response.read().decode()


class Client:
    """A WebSocket that asks one command at a time."""

    def __init__(self, socket: ClientConnection) -> None:
        self.socket = socket
        self._ref = 0

    def ask(self, **command: Any) -> dict[str, Any]:
        """Send a command; return the message that answers it."""
        self._ref += 1
        self.socket.send(json.dumps({**command, "ref": self._ref}))
        deadline = time.monotonic() + SECONDS
        while time.monotonic() < deadline:
            frame = json.loads(self.socket.recv(timeout=SECONDS))
            for message in frame if isinstance(frame, list) else [frame]:
                if message.get("ref") == self._ref:
                    assert message["type"] != "error", message
                    return dict(message)
        raise TimeoutError(command)


@contextmanager
def connected(address: str, *, user_id: str) -> Iterator[Client]:
    """Connect to the server at *address* as *user_id*."""
    url = address.replace("http", "ws", 1) + "/ws"
    with connect(url, open_timeout=SECONDS, close_timeout=SECONDS) as socket:
        client = Client(socket)
        client.ask(type="connect", auth={"user_id": user_id})
        yield client
