"""The clients of a chaos run, each of which publishes, edits, listens and keeps a timeline."""

from __future__ import annotations

import asyncio
import json
import random
import sys
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

from dialogue import DialogueClient, Event
from dialogue.client import Room, Timeline, Timing

from ..server.harness import eventually
from .verdict import Acks, Row, View

SCRIPT = Path(__file__).with_name("clients.mjs")
PAGE_SIZE = 100
MOST_IN_FLIGHT = 20


@dataclass(frozen=True)
class Part:
    """One client: its name, its rooms, and the seed of what it does in them."""

    name: str
    rooms: list[str]
    seed: int


def parts(seed: int, *, clients: int, rooms: int, rooms_each: int) -> list[Part]:
    """Return who is where."""
    chance = random.Random(seed)
    names = [f"room-{number}" for number in range(rooms)]
    return [
        Part(f"c{number}", chance.sample(names, rooms_each), chance.randrange(2**31))
        for number in range(clients)
    ]


class Fleet(Protocol):
    """All clients of a run. An async context manager: entered, they begin to connect, to join and to publish."""

    async def __aenter__(self) -> Fleet: ...

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None: ...

    async def stop(self) -> Acks:
        """Publish nothing more; return what was acked, once everything sent is."""

    async def views(self, heads: dict[str, int]) -> list[View]:
        """Return what each client saw, once each has seen its rooms through *heads*, their newest seqs."""


class PythonFleet:
    """Python clients; see `Fleet`.

    Args:
        url: The server's, or the proxy's.
        pause_seconds: The mean time between two events of one client.
    """

    def __init__(self, url: str, members: Sequence[Part], *, pause_seconds: float) -> None:
        self._members = [_Member(url, part, pause_seconds) for part in members]
        self._stack = AsyncExitStack()
        self._running: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> PythonFleet:
        loop = asyncio.get_running_loop()
        self._running = [loop.create_task(member.run()) for member in self._members]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for task in self._running:
            task.cancel()
        await asyncio.gather(*self._running, return_exceptions=True)

    async def stop(self) -> Acks:
        """See `Fleet`."""
        for member in self._members:
            member.is_stopping.set()
        acks = Acks()
        for member, task in zip(self._members, self._running, strict=True):
            waiting = asyncio.ensure_future(member.is_quiet.wait())
            await asyncio.wait([waiting, task], return_when=asyncio.FIRST_COMPLETED)
            waiting.cancel()
            if task.done():
                task.result()
            acks.recorded |= member.acks.recorded
            acks.edited += member.acks.edited
        return acks

    async def views(self, heads: dict[str, int]) -> list[View]:
        """See `Fleet`."""
        return [view for member in self._members for view in await member.finish(heads)]


class _Member:
    def __init__(self, url: str, part: Part, pause_seconds: float) -> None:
        self._client = DialogueClient(
            url,
            auth={"user_id": part.name},
            timing=Timing(backoff_seconds=0.05, backoff_limit_seconds=0.5, greeting_seconds=2),
            connect_options={"open_timeout": 2},
        )
        self._part = part
        self._pause_seconds = pause_seconds
        self._chance = random.Random(part.seed)
        self._rooms: list[Room] = []
        self._views: dict[str, View] = {}
        self._timelines: dict[str, Timeline[Any]] = {}
        self._fills: list[asyncio.Task[None]] = []
        self._streaming: list[asyncio.Task[None]] = []
        self.acks = Acks()
        self.is_stopping = asyncio.Event()
        self.is_quiet = asyncio.Event()

    async def run(self) -> None:
        """Join and publish, until told to stop; then stay until cancelled."""
        async with self._client, asyncio.TaskGroup() as group:
            for room_id in self._part.rooms:
                await self._join(room_id, group)
            numbers = dict.fromkeys(self._part.rooms, 0)
            places = asyncio.Semaphore(MOST_IN_FLIGHT)
            sending: set[asyncio.Task[None]] = set()
            # Once in each room at least: what a client has heard of its own ends the search for where its view begins.
            chosen = [*self._rooms]
            while chosen or not self.is_stopping.is_set():
                room = chosen.pop() if chosen else self._chance.choice(self._rooms)
                await places.acquire()
                mark = f"{self._part.name}.{room.room_id}.{numbers[room.room_id]}"
                numbers[room.room_id] += 1
                task = group.create_task(self._send(room, mark, self._chance.random() < 0.1))
                sending.add(task)
                task.add_done_callback(sending.discard)
                task.add_done_callback(lambda _: places.release())
                # The pace of the load; nothing is waited for.
                await asyncio.sleep(self._chance.expovariate(1 / self._pause_seconds))
            if sending:
                await asyncio.wait(sending)
            self.is_quiet.set()
            await asyncio.Event().wait()

    async def _join(self, room_id: str, group: asyncio.TaskGroup) -> None:
        room = await self._client.join(room_id, sync=1)
        base = max((event.seq or 0 for event in room.history), default=0)
        view = View(self._part.name, room_id, base)
        self._views[room_id] = view
        self._rooms.append(room)
        room.on_any(lambda event: view.heard.append((event.seq or 0, _mark(event))))

        def on_reset() -> None:
            after = _last_heard(view)
            view.heard.append(None)
            self._fills.append(group.create_task(self._fill(room, view, after)))

        room.on_reset(on_reset)
        if len(self._timelines) < 2:
            self._timelines[room_id] = room.timeline("message", page_size=PAGE_SIZE)
        else:
            view.streamed = []
            self._streaming.append(group.create_task(self._stream(room, view.streamed)))

    async def _fill(self, room: Room, view: View, after: int) -> None:
        """Read what a reset has left out: everything after what was heard before it, up to now."""
        while page := (await room.page(after=after, limit=PAGE_SIZE)).events:
            view.filled |= {event.seq or 0: _mark(event) for event in page}
            after = page[-1].seq or 0

    async def _stream(self, room: Room, streamed: list[tuple[int, str]]) -> None:
        async for event in room.stream(after=0, page_size=PAGE_SIZE, max_buffered_events=20):
            streamed.append((event.seq or 0, _mark(event)))  # noqa: PERF401  # seen as it comes

    async def _send(self, room: Room, mark: str, is_edited: bool) -> None:
        ack = await room.trigger("message", {"mark": mark, "text": "first"}, key=mark)
        assert ack.seq is not None
        self.acks.recorded[mark] = ack.seq
        if is_edited:
            edit = await room.edit(ack.seq, {"mark": mark, "text": "second"})
            assert edit.seq is not None
            self.acks.edited.append((room.room_id, edit.seq))

    async def finish(self, heads: dict[str, int]) -> list[View]:
        """Wait until everything was seen, read the timelines to their beginning, and return what was seen."""
        for view in self._views.values():
            await eventually(partial(_has_reached, view, heads[view.room]), timeout=120)
            await eventually(partial(_has_streamed, view, heads[view.room]), timeout=120)
        await asyncio.gather(*self._fills)
        for room_id, timeline in self._timelines.items():
            while timeline.has_older:
                await timeline.load_older()
            self._views[room_id].timeline = [
                Row(event.seq or 0, event.data["mark"], event.data["text"]) for event in timeline.entries
            ]
        return list(self._views.values())


def _last_heard(view: View) -> int:
    return next((item[0] for item in reversed(view.heard) if item is not None), view.base)


def _has_reached(view: View, seq: int) -> bool:
    return max([_last_heard(view), *view.filled]) >= seq


def _has_streamed(view: View, seq: int) -> bool:
    return view.streamed is None or (bool(view.streamed) and view.streamed[-1][0] >= seq)


def _mark(event: Event[Any]) -> str:
    return f"edit {event.data['target_seq']}" if event.event == "$edit" else str(event.data["mark"])


class NodeFleet:
    """The browser's clients in one Node process; see `Fleet` and ``clients.mjs``."""

    def __init__(self, url: str, members: Sequence[Part], *, pause_seconds: float) -> None:
        self._options = {
            "url": url,
            "parts": [asdict(part) for part in members],
            "pauseSeconds": pause_seconds,
            "pageSize": PAGE_SIZE,
            "mostInFlight": MOST_IN_FLIGHT,
        }
        self._process: asyncio.subprocess.Process | None = None

    async def __aenter__(self) -> NodeFleet:
        self._process = await asyncio.create_subprocess_exec(
            "node",
            str(SCRIPT),
            json.dumps(self._options),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=sys.stderr,
            limit=2**28,
        )
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        assert self._process is not None
        if self._process.returncode is None:
            self._process.kill()
        await self._process.wait()

    async def _ask(self, **question: Any) -> Any:
        assert self._process is not None
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(question).encode() + b"\n")
        line = await self._process.stdout.readline()
        assert line, f"node has ended with status {await self._process.wait()}; its words are above"
        return json.loads(line)

    async def stop(self) -> Acks:
        """See `Fleet`."""
        answer = await self._ask(do="stop")
        return Acks(answer["recorded"], [(room, seq) for room, seq in answer["edited"]])

    async def views(self, heads: dict[str, int]) -> list[View]:
        """See `Fleet`."""
        return [View.from_json(view) for view in await self._ask(do="finish", heads=heads)]
