"""A TCP proxy that makes the way to a server slow, cuts it, or loses what is said on it."""

from __future__ import annotations

import asyncio
from types import TracebackType

COMMIT = b"COMMIT\x00"
"""How the statement stands in Postgres' protocol, as the text of a message."""


class _Pair:
    """One connection on both of its sides."""

    def __init__(self, client: asyncio.StreamWriter, server: asyncio.StreamWriter) -> None:
        self.client = client
        self.server = server
        self.is_answer_lost = False
        self.is_half_open = False

    def cut(self) -> None:
        for side in (self.client, self.server):
            side.transport.abort()


class Proxy:
    """Forwards connections on a port of its own to *port* of 127.0.0.1. An async context manager.

    Attributes:
        delay_seconds: How long each piece of data is held, in either direction.
        lose_commit: What becomes of the next COMMIT: ``"answer"`` lets the server have it and cuts the connection
            in place of its answer, ``"question"`` cuts it before the server has it; None for nothing.
        close_after_loss: Whether a lost COMMIT cuts all connections, and nobody is let through afterwards.
        lost: How many COMMITs were lost.
    """

    def __init__(self, port: int) -> None:
        self._target = port
        self._pairs: set[_Pair] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None
        self.delay_seconds = 0.0
        self.lose_commit: str | None = None
        self.close_after_loss = False
        self.lost = 0

    @property
    def port(self) -> int:
        """Where it listens."""
        assert self._server is not None
        return int(self._server.sockets[0].getsockname()[1])

    async def __aenter__(self) -> Proxy:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        assert self._server is not None
        self._server.close()
        self.cut()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def cut(self) -> None:
        """Cut every connection on both sides."""
        for pair in list(self._pairs):
            pair.cut()

    def leave_half_open(self) -> None:
        """Cut every connection on the client's side only: the server goes on believing in it."""
        for pair in list(self._pairs):
            pair.is_half_open = True
            pair.client.transport.abort()

    async def _accept(self, reader: asyncio.StreamReader, client: asyncio.StreamWriter) -> None:
        if self.lost and self.close_after_loss:
            client.transport.abort()
            return
        try:
            server_reader, server = await asyncio.open_connection("127.0.0.1", self._target)
        except OSError:
            client.transport.abort()
            return
        pair = _Pair(client, server)
        self._pairs.add(pair)
        for pump in (self._ask(pair, reader), self._answer(pair, server_reader)):
            task = asyncio.create_task(pump)
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _ask(self, pair: _Pair, reader: asyncio.StreamReader) -> None:
        try:
            while data := await reader.read(65536):
                await asyncio.sleep(self.delay_seconds)
                if self.lose_commit is not None and COMMIT in data:
                    how, self.lose_commit = self.lose_commit, None
                    self.lost += 1
                    if how == "question":
                        pair.cut()
                        return
                    pair.is_answer_lost = True
                pair.server.write(data)
                await pair.server.drain()
            if not pair.is_half_open:
                pair.server.close()
        except OSError:
            # A side that was cut; what the other one does about it is the test's subject.
            return

    async def _answer(self, pair: _Pair, reader: asyncio.StreamReader) -> None:
        try:
            while data := await reader.read(65536):
                await asyncio.sleep(self.delay_seconds)
                if pair.is_answer_lost:
                    pair.cut()
                    if self.close_after_loss:
                        self.cut()
                    break
                pair.client.write(data)
                await pair.client.drain()
            pair.client.close()
            await pair.client.wait_closed()
        except OSError:
            return
        finally:
            pair.cut()
            self._pairs.discard(pair)
