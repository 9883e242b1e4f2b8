"""A TCP proxy that does to connections what networks do: it resets, freezes, splits, delays and refuses them."""

from __future__ import annotations

import asyncio
import re
import socket
import struct
from collections import Counter
from collections.abc import Coroutine, Iterable
from types import TracebackType
from typing import Any

from .plan import Fault, Step, Way, Welcome

_PIECE_BYTES = 65_536
_TRICKLE_BYTES = 7
_TRICKLED_BYTES = 210
"""How much of a piece trickles; the rest comes at once, or a long page would take minutes."""

_BUSY = (
    b"HTTP/1.1 503 Service Unavailable\r\nContent-Type: text/html\r\nContent-Length: 21\r\nConnection: close\r\n\r\n"
    b"<h1>No backend.</h1>\r\n"
)
_FORBIDDEN = b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
_HANDSHAKE = re.compile(rb"^GET .*\r\nUpgrade: websocket\r\n", re.IGNORECASE | re.DOTALL)
_RUBBISH = b"\x15\x03\x01\x00\x02\x02\x50 220 mail.example ESMTP\r\n\r\n"


class _Flow:
    """One direction of a connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer
        self.is_open = asyncio.Event()
        self.is_open.set()
        self.delay_seconds = 0.0
        self.is_trickling = False
        self.is_splitting = False

    async def write(self, data: bytes) -> None:
        """Pass *data* on, as slowly as it is to be.

        Raises:
            OSError: The other side is gone.
        """
        if self.delay_seconds:
            await asyncio.sleep(self.delay_seconds)
        while self.is_trickling and data:
            head, data = data[:_TRICKLED_BYTES], data[_TRICKLED_BYTES:]
            for start in range(0, len(head), _TRICKLE_BYTES):
                self.writer.write(head[start : start + _TRICKLE_BYTES])
                await self.writer.drain()
                await asyncio.sleep(0.002)
            break
        self.writer.write(data)
        await self.writer.drain()


class _Passage:
    """One connection, on both of its sides."""

    def __init__(self, up: _Flow, down: _Flow) -> None:
        self.up = up
        self.down = down
        self.is_sound = True
        """Whether nothing was done to it yet."""

    def flows(self, way: Way) -> list[_Flow]:
        return {Way.UP: [self.up], Way.DOWN: [self.down], Way.BOTH: [self.up, self.down]}[way]

    def freeze(self, way: Way) -> None:
        for flow in self.flows(way):
            flow.is_open.clear()

    def mend(self) -> None:
        for flow in (self.up, self.down):
            flow.is_open.set()
            flow.delay_seconds = 0.0
            flow.is_trickling = flow.is_splitting = False

    def reset(self) -> None:
        for flow in (self.up, self.down):
            _reset(flow.writer)


def _reset(writer: asyncio.StreamWriter) -> None:
    """End it by a reset rather than by a polite FIN; what it has not sent is lost."""
    if (sock := writer.get_extra_info("socket")) is not None and sock.fileno() >= 0:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


class ChaosProxy:
    """Forwards connections on a port of its own to *port* of 127.0.0.1, after a plan. An async context manager.

    Attributes:
        is_down: Whether connections are taken and nothing passes on them; for those that stand see `freeze_all`.
        forbids_sockets: Whether handshakes of WebSockets are answered by 403, as by a proxy that knows HTTP only.
        forbidden_count: How many were.
        done: How often each `Fault` and each `Welcome` was done.
        cuts: Connections that were ended, left half open or not let in; without those that were only slowed down.
    """

    def __init__(self, port: int) -> None:
        self._target = port
        self._passages: dict[_Passage, None] = {}
        self._welcomes: list[Welcome] = []
        self._muted: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._errors: list[BaseException] = []
        self._server: asyncio.Server | None = None
        self.is_down = False
        self.forbids_sockets = False
        self.forbidden_count = 0
        self.done: Counter[str] = Counter()
        self.cuts = 0

    @property
    def port(self) -> int:
        """Where it listens."""
        assert self._server is not None
        return int(self._server.sockets[0].getsockname()[1])

    @property
    def summary(self) -> str:
        """What it did."""
        return (
            f"{self.cuts} cuts ({', '.join(f'{name} {count}' for name, count in sorted(self.done.items()))})"
        )

    async def __aenter__(self) -> ChaosProxy:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        assert self._server is not None
        self._server.close()
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for passage in self._passages:
            passage.reset()
        for writer in self._muted:
            _reset(writer)
        if self._errors and error is None:
            raise BaseExceptionGroup("the proxy failed", self._errors)

    # ---- the plan

    async def play(self, steps: Iterable[Step], *, cuts: int) -> None:
        """Take *steps* until *cuts* more connections are cut, then let everything pass."""
        until = self.cuts + cuts
        for step in steps:
            await asyncio.sleep(step.pause_seconds)
            self._do(await self._picked(step.pick), step)
            if self.cuts >= until:
                break
        self.mend()

    def mend(self) -> None:
        """Do nothing more. What is frozen stays so: that it is dead is for its two ends to find out."""
        self._welcomes.clear()
        self.is_down = False
        for passage in self._passages:
            if all(flow.is_open.is_set() for flow in passage.flows(Way.BOTH)):
                passage.mend()

    def cut_all(self) -> None:
        """Reset every connection."""
        for passage in list(self._passages):
            passage.reset()
            self._count(Fault.RESET)

    def freeze_all(self) -> None:
        """Leave every connection half open: nothing passes, and nobody is told."""
        for passage in self._passages:
            passage.is_sound = False
            passage.freeze(Way.BOTH)
            self._count(Fault.FREEZE)

    async def _picked(self, pick: float) -> _Passage:
        while not (sound := [passage for passage in self._passages if passage.is_sound]):
            await asyncio.sleep(0.005)
        return sound[int(pick * len(sound))]

    def _count(self, what: Fault | Welcome, *, is_cut: bool = True) -> None:
        self.done[what] += 1
        self.cuts += is_cut

    def _do(self, passage: _Passage, step: Step) -> None:
        if step.fault is not Fault.SPLIT:  # which waits for something to split
            self._count(step.fault, is_cut=step.is_cut)
        passage.is_sound = not step.is_cut
        if step.welcome is not None and step.is_cut:
            self._welcomes.append(step.welcome)
        match step.fault:
            case Fault.RESET:
                passage.reset()
            case Fault.SPLIT:
                for flow in passage.flows(step.way):
                    flow.is_splitting = True
            case Fault.FREEZE:
                passage.freeze(step.way)
                self._spawn(self._thaw(passage, step))
            case Fault.LINGER:
                passage.freeze(Way.UP)
                self._spawn(self._linger(passage, step))
            case Fault.DELAY:
                for flow in passage.flows(step.way):
                    flow.delay_seconds = step.seconds / 10
                self._spawn(self._quicken(passage, step))
            case Fault.TRICKLE:
                for flow in passage.flows(step.way):
                    flow.is_trickling = True
                self._spawn(self._quicken(passage, step))

    async def _thaw(self, passage: _Passage, step: Step) -> None:
        await asyncio.sleep(step.seconds)
        if step.is_mended:
            passage.mend()
        else:
            passage.reset()

    async def _linger(self, passage: _Passage, step: Step) -> None:
        # For a moment the client goes on speaking into it; these are the words that come late.
        await asyncio.sleep(min(0.05, step.seconds / 4))
        _reset(passage.down.writer)
        await asyncio.sleep(step.seconds)
        passage.mend()

    async def _quicken(self, passage: _Passage, step: Step) -> None:
        await asyncio.sleep(step.seconds)
        if passage.is_sound:
            passage.mend()

    # ---- connections

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self._errors.append(error)

    def _accept(self, reader: asyncio.StreamReader, client: asyncio.StreamWriter) -> None:
        welcome = Welcome.MUTE if self.is_down else self._welcomes.pop(0) if self._welcomes else None
        if welcome is not None:
            self._count(welcome)
        if welcome is Welcome.REFUSED:
            _reset(client)
        elif welcome is Welcome.MUTE:
            self._muted.add(client)
        elif welcome is not None:
            self._spawn(self._answer(reader, client, _BUSY if welcome is Welcome.BUSY else _RUBBISH))
        else:
            self._spawn(self._connect(reader, client))

    async def _answer(
        self, reader: asyncio.StreamReader, client: asyncio.StreamWriter, answer: bytes
    ) -> None:
        try:
            await reader.read(_PIECE_BYTES)
            client.write(answer)
            await client.drain()
        except OSError:
            pass
        finally:
            client.close()

    async def _connect(self, reader: asyncio.StreamReader, client: asyncio.StreamWriter) -> None:
        try:
            server_reader, server = await asyncio.open_connection("127.0.0.1", self._target)
        except OSError:
            _reset(client)
            return
        passage = _Passage(_Flow(reader, server), _Flow(server_reader, client))
        self._passages[passage] = None
        try:
            # Whichever ends first: the other one has to be able to say its last words, see `Fault.LINGER`.
            await asyncio.gather(self._pump(passage, passage.up), self._pump(passage, passage.down))
        finally:
            del self._passages[passage]
            client.close()
            server.close()

    async def _pump(self, passage: _Passage, flow: _Flow) -> None:
        try:
            while data := await flow.reader.read(_PIECE_BYTES):
                if flow.is_splitting:
                    self._count(Fault.SPLIT)
                    flow.writer.write(data[: (len(data) + 1) // 2])
                    await flow.writer.drain()
                    break
                if self.forbids_sockets and flow is passage.up and _HANDSHAKE.search(data):
                    # A browser opens a connection of its own for it, so its head is what comes first.
                    self.forbidden_count += 1
                    passage.down.writer.write(_FORBIDDEN)
                    passage.down.writer.close()
                    break
                await flow.is_open.wait()
                await flow.write(data)
            await flow.is_open.wait()
        except OSError:
            await flow.is_open.wait()
        # One end is gone; the other is told, after what is on its way to it.
        flow.writer.close()
        if flow.is_splitting:
            for other in passage.flows(Way.BOTH):
                other.writer.close()
