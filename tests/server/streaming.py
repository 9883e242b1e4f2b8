"""A raw reader of a stream over HTTP: every byte of the answer is looked at, and every message kept, in order."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import quote, urlencode


class Stream:
    """One answer that is being read.

    Attributes:
        messages: What came, in order.
        ids: Their ids; None for a message without one.
        pings: How many comments came.
        has_ended: Whether the server has ended the answer as HTTP has it.
        is_closed: Whether nothing more comes.
    """

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer
        self.status = 0
        self.headers: dict[str, str] = {}
        self.messages: list[dict[str, Any]] = []
        self.ids: list[str | None] = []
        self.pings = 0
        self.has_ended = self.is_closed = False
        self._rest = b""
        self._changed = asyncio.Condition()
        self.task: asyncio.Task[None] | None = None

    async def read_head(self) -> None:
        head = (await self.reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
        self.status = int(head[0].split()[1])
        self.headers = {
            name.lower(): value for name, _, value in (line.partition(": ") for line in head[1:-2])
        }

    def read_on(self) -> None:
        self.task = asyncio.create_task(self._read(), name="test-stream")

    async def _read(self) -> None:
        try:
            while not self.has_ended:
                size = int((await self.reader.readline()).strip() or b"-1", 16)
                if size < 0:
                    break
                chunk = await self.reader.readexactly(size + 2)
                async with self._changed:
                    self.has_ended = not size
                    self._take(chunk[:-2])
                    self._changed.notify_all()
        except (OSError, asyncio.IncompleteReadError):
            pass
        async with self._changed:
            self.is_closed = True
            self._changed.notify_all()

    def _take(self, data: bytes) -> None:
        *blocks, self._rest = (self._rest + data).split(b"\n\n")
        for block in blocks:
            if block == b": ping":
                self.pings += 1
                continue
            *before, last = block.decode().split("\n")
            assert last.startswith("data: "), block
            message = json.loads(last[6:])
            assert len(before) <= 1, block
            assert all(line.startswith("id: ") for line in before), block
            self.ids.append(before[0][4:] if before else None)
            self.messages.append(message)
            assert (message.get("seq") is None) == (not before), message

    async def until(self, condition: Callable[[], Any], timeout: float = 20) -> Any:
        """Wait until *condition* gives something true; fail when nothing more comes before."""
        async with asyncio.timeout(timeout), self._changed:
            await self._changed.wait_for(lambda: condition() or self.is_closed)
            result = condition()
            assert result, f"ended before it happened; got {self.messages[-3:]}"
            return result

    async def until_closed(self, timeout: float = 20) -> None:
        async with asyncio.timeout(timeout), self._changed:
            await self._changed.wait_for(lambda: self.is_closed)

    @property
    def joined(self) -> dict[str, Any]:
        assert self.messages[0]["type"] == "joined"
        return self.messages[0]

    def events(self) -> list[dict[str, Any]]:
        """Return what came after the first message."""
        return [message for message in self.messages if message["type"] == "event"]

    async def until_events(self, count: int) -> list[dict[str, Any]]:
        await self.until(lambda: len(self.events()) >= count)
        return self.events()

    def seqs(self) -> list[int]:
        """Return the seqs of everything recorded that came, what the first message brought included."""
        if not self.messages:
            return []
        return [event["seq"] for event in self.joined["events"] + self.events() if event["seq"] is not None]

    @property
    def last_id(self) -> str:
        """What a browser would come back with."""
        return next(id for id in reversed(self.ids) if id is not None)

    async def aclose(self) -> None:
        self.writer.transport.abort()
        if self.task is not None:
            await self.task


@asynccontextmanager
async def open_stream(
    address: str,
    room: str = "general",
    *,
    headers: dict[str, str] | None = None,
    is_read: bool = True,
    **query: Any,
) -> AsyncIterator[Stream]:
    """Ask for a stream and read it; where *is_read* is false, read its head alone."""
    host, _, port = address.partition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    stream = Stream(reader, writer)
    path = f"/rooms/{quote(room, safe='')}/events?{urlencode(query, doseq=True)}"
    lines = [f"GET {path} HTTP/1.1", f"Host: {address}"]
    lines += [f"{name}: {value}" for name, value in (headers or {}).items()]
    writer.write(("\r\n".join(lines) + "\r\n\r\n").encode())
    try:
        await stream.read_head()
        if is_read and stream.status == 200:
            stream.read_on()
            await stream.until(lambda: stream.messages)
        yield stream
    finally:
        await stream.aclose()
