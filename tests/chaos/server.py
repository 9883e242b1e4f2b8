"""``dialogue run`` over a SQLite log, killed and started again on one port."""

from __future__ import annotations

import asyncio
import signal
from contextlib import closing
from pathlib import Path
from types import TracebackType

from ..processes import Command
from ..server.harness import _socket


class Server:
    """``dialogue run`` in *folder*. An async context manager, at whose end it is killed.

    Args:
        module: The text of a module with a ``dialogue`` in it, whose log is ``log.db`` in *folder*.

    Attributes:
        port: Where it listens, each time it is started.
        database: The log.
    """

    def __init__(self, folder: Path, module: str) -> None:
        (folder / "served.py").write_text(module)
        self._folder = folder
        self._command: Command | None = None
        with closing(_socket()) as bound:
            self.port = int(bound.getsockname()[1])
        self.database = folder / "log.db"

    @property
    def url(self) -> str:
        """Its address."""
        return f"http://127.0.0.1:{self.port}"

    async def start(self) -> None:
        """Start it, and return when it serves."""
        options = ("--port", str(self.port), "--log-level", "error")
        self._command = Command("run", "served:dialogue", *options, folder=self._folder)
        await asyncio.to_thread(self._command.address)

    async def kill(self) -> None:
        """End it by SIGKILL, if it runs."""
        command, self._command = self._command, None
        if command is not None:
            await asyncio.to_thread(command.end, signal.SIGKILL)
            command.__exit__(None, None, None)
            assert "Traceback" not in command.output, command.output

    async def __aenter__(self) -> Server:
        try:
            await self.start()
        except BaseException:
            await self.kill()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.kill()
