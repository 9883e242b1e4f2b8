"""What load generators have in common: their process, and connections that have joined rooms."""

from __future__ import annotations

import asyncio
import os
import sys
import urllib.request
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from typing import TypeVar

import msgspec
import uvloop

from .processes import cpu_seconds
from .wire import Connection, open_connection

SETTLE_SECONDS = 30.0
"""How long the server may take for an answer, or for what is in flight."""

_OPENING = 100
"""Connections that are opened at a time."""

_QUIET_SECONDS = 0.3
"""For so long a quiet server has used a tenth of a core at most."""

PlanType = TypeVar("PlanType", bound=msgspec.Struct)


class Member(Connection):
    """A connection that says ``connect``, joins rooms, and answers pings.

    Args:
        rooms: The rooms to join.
        is_subscribed: Whether it receives their events.

    Attributes:
        ready: Done when all rooms are joined.
    """

    def __init__(self, user: bytes, rooms: Sequence[bytes], *, is_subscribed: bool = True) -> None:
        super().__init__()
        self.ready: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._user = user
        self._rooms = rooms
        self._left = len(rooms)
        self._is_subscribed = is_subscribed

    def on_open(self) -> None:
        self.send(b'{"type":"connect","ref":0,"auth":{"user_id":"%b"}}' % self._user)

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        if not self.ready.done():
            self.ready.set_exception(ConnectionError("the server closed the connection"))

    def on_frame(self, frame: bytes) -> None:
        if self.ready.done():
            if frame == b'[{"type":"ping"}]':
                self.send(b'{"type":"pong"}')
            else:
                self.on_messages(frame)
        elif b'"type":"error"' in frame:
            self.ready.set_exception(RuntimeError(frame.decode()))
        elif b'"type":"connected"' in frame:
            subscription = b"" if self._is_subscribed else b',"events":[]'
            joins = [
                b'{"type":"join","ref":%d,"room":"%b","sync":0%b}' % (ref, room, subscription)
                for ref, room in enumerate(self._rooms, start=1)
            ]
            self.send(b"[" + b",".join(joins) + b"]")
        else:
            self._left -= frame.count(b'"type":"joined"')
            if not self._left:
                self.ready.set_result(None)

    def on_messages(self, frame: bytes) -> None:
        """Take a frame that came after the joins."""


async def open_all(members: Sequence[Member], port: int) -> None:
    """Connect *members* and let them join, `_OPENING` at a time.

    Raises:
        TimeoutError: The server took longer than `SETTLE_SECONDS` for one lot of them.
    """
    for first in range(0, len(members), _OPENING):
        lot = members[first : first + _OPENING]
        async with asyncio.timeout(SETTLE_SECONDS):
            await asyncio.gather(*(open_connection(member, port) for member in lot))
            await asyncio.gather(*(member.ready for member in lot))


async def until(is_done: Callable[[], bool]) -> None:
    """Return when *is_done*.

    Raises:
        TimeoutError: It was not within `SETTLE_SECONDS`.
    """
    async with asyncio.timeout(SETTLE_SECONDS):
        while not is_done():
            await asyncio.sleep(0.005)


async def until_quiet(pid: int) -> None:
    """Return when a server that nobody asks for anything has done what was left: the telling of who has come.

    Raises:
        TimeoutError: It had not after ten times `SETTLE_SECONDS`.
    """
    async with asyncio.timeout(10 * SETTLE_SECONDS):
        last = cpu_seconds(pid)
        while True:
            await asyncio.sleep(_QUIET_SECONDS)
            now = cpu_seconds(pid)
            if last is None or now is None or now - last <= _QUIET_SECONDS / 10:
                return
            last = now


async def metric(port: int, name: str) -> float:
    """Return a value from the server's ``/metrics``; *name* includes the labels. 0 where there is none yet."""

    def read() -> str:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics") as answer:
            return str(answer.read().decode())

    for line in (await asyncio.to_thread(read)).splitlines():
        if line.startswith(f"{name} "):
            return float(line.rpartition(" ")[2])
    return 0.0


def main(plan_type: type[PlanType], run: Callable[[PlanType], Awaitable[msgspec.Struct]]) -> None:
    """Run the plan of the command line on the machine's last core; print the result."""
    plan = msgspec.json.decode(sys.argv[1], type=plan_type)
    # Where it may: the server then has the others.
    with suppress(AttributeError, OSError):
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    print(msgspec.json.encode(uvloop.run(_awaited(run(plan)))).decode())


async def _awaited(result: Awaitable[msgspec.Struct]) -> msgspec.Struct:
    return await result
