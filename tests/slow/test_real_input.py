"""A real chat log, all of it, through a server process: told, recorded and readable, each message once.

``DIALOGUE_IRC_LOG`` names the file; its lines are ``DATE HH:MM <nick> text``. Run it with::

    DIALOGUE_IRC_LOG=channel.txt pytest -n 0 -m slow -s tests/slow/test_real_input.py

It prints wall time, acks per second and the server's memory. Run as a module (``python -m
tests.slow.test_real_input DATABASE FD``) it is that server, on a listening socket that it inherits.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import uvicorn
from pydantic import BaseModel, Field

from dialogue import Dialogue, DialogueClient, Event, History, RoomConfig, define_event
from dialogue.client import Room
from examples.irc_replay import MAX_TEXT, Reading, Summary, read_log, replay

VARIABLE = "DIALOGUE_IRC_LOG"
RING_EVENTS = 100

GROWTH_MIB = 20
"""How much the server may grow during the second half of 72,000 messages: about 10 MiB for caches that are still
filling. 36,000 events, if they were kept, would come on top with at least 18."""

ROOT = Path(__file__).parents[2]


class Message(BaseModel):
    text: str = Field(min_length=1, max_length=MAX_TEXT)
    username: str


message = define_event("message", schema=Message, history=History(limit=RING_EVENTS))


def serve(database: Path, listening: socket.socket) -> None:
    """Serve one room over a SQLite log until SIGTERM."""
    dialogue = Dialogue(
        rooms={"general": RoomConfig(name="General", events=[message])},
        store=f"sqlite+aiosqlite:///{database}",
    )
    config = uvicorn.Config(dialogue.app, ws="websockets-sansio", ws_ping_interval=None, log_level="warning")
    uvicorn.Server(config).run(sockets=[listening])


class Server(NamedTuple):
    """The server process."""

    url: str
    pid: int

    def memory(self, name: str = "VmRSS") -> float:
        """Return its resident memory in MiB now, or at its highest (``VmHWM``)."""
        status = Path(f"/proc/{self.pid}/status").read_text()
        line = next(line for line in status.splitlines() if line.startswith(name + ":"))
        return int(line.split()[1]) / 1024


@contextmanager
def server_process(database: Path) -> Iterator[Server]:
    """Run `serve` in a process of its own, and stop it gracefully."""
    # Listening before the process is there: whoever connects early waits in the backlog.
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
        process = subprocess.Popen(
            [sys.executable, "-m", __name__, str(database), str(listening.fileno())],
            pass_fds=[listening.fileno()],
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )
    try:
        yield Server(f"http://127.0.0.1:{port}", process.pid)
    finally:
        process.send_signal(signal.SIGTERM)
        status = process.wait(timeout=30)
    # After its graceful stop uvicorn lets the signal end the process.
    assert status == -signal.SIGTERM


@pytest.fixture
def log() -> Path:
    """The file to replay."""
    name = os.environ.get(VARIABLE)
    if not name:
        pytest.skip(f"{VARIABLE} does not name a chat log file (lines 'DATE HH:MM <nick> text')")
    return Path(name)


class Listener:
    """Keeps what it hears: (seq, nick, text)."""

    def __init__(self) -> None:
        self.heard: list[tuple[int, str, str]] = []
        self._changed = asyncio.Event()

    def hear(self, event: Event[Any]) -> None:
        assert event.seq is not None
        self.heard.append((event.seq, event.data["username"], event.data["text"]))
        self._changed.set()

    async def until(self, count: int) -> None:
        """Return when *count* messages were heard."""
        while len(self.heard) < count:
            self._changed.clear()
            await self._changed.wait()


async def scroll(room: Room) -> list[tuple[int, str, str]]:
    """Scroll from the newest message back to the first; return what was seen, oldest first."""
    seen = [
        (event.seq or 0, event.data["username"], event.data["text"])
        async for event in room.scroll("message", page_size=200)
    ]
    return seen[::-1]


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("as_one", ["archivist", None], ids=["as_one_user", "as_its_users"])
async def test_a_whole_chat_log_is_heard_and_scrolled_once_and_in_order(
    log: Path, tmp_path: Path, as_one: str | None
) -> None:
    """Promises 1, 5 and 7 on real input: the listener and the scroller have the file, memory has the ring."""
    lines = list(read_log(log, Reading()))
    expected = [(seq, line.nick, line.text) for seq, line in enumerate(lines, start=1)]
    listener = Listener()
    halfway: list[float] = []

    with server_process(tmp_path / "log.db") as server:
        async with (
            DialogueClient(server.url, auth={"user_id": "listener"}) as hearing,
            DialogueClient(server.url, auth={"user_id": "scroller"}) as reading,
        ):
            heard_room = await hearing.join("general", sync=0)
            heard_room.on("message", listener.hear)
            room = await reading.join("general", sync=0, events=[])
            before = server.memory()

            def look(summary: Summary) -> None:
                if summary.sent == len(lines) // 2:
                    halfway.append(server.memory())

            replaying = asyncio.create_task(
                replay(log, url=server.url, room_id="general", as_one=as_one, on_answer=look)
            )
            # Scrolled while it grows: each time exactly what was there when the scroll began.
            scrolls = 0
            while not replaying.done() and len(listener.heard) < len(lines):
                seen = await scroll(room)
                assert seen == expected[: len(seen)]
                scrolls += 1
                growing = asyncio.create_task(listener.until(min(len(lines), len(seen) + len(lines) // 20)))
                await asyncio.wait({replaying, growing}, return_when=asyncio.FIRST_COMPLETED)
                growing.cancel()
            summary, _ = await replaying
            await listener.until(len(lines))
            start = time.perf_counter()
            assert await scroll(room) == expected
            scroll_seconds = time.perf_counter() - start
            after, highest = server.memory(), server.memory("VmHWM")

    assert listener.heard == expected
    assert after - halfway[0] < GROWTH_MIB
    assert (summary.sent, summary.acked, summary.duplicates, summary.late) == (len(lines), len(lines), 0, 0)
    print(
        f"\n{len(lines):,} messages of {len({line.nick for line in lines}):,} people, "
        f"{'over one connection' if as_one else 'as its users'}, {scrolls} scrolls meanwhile: "
        f"{summary.seconds:.1f} s, {summary.acks_per_second:,.0f} acks/s; "
        f"the last scroll, of everything: {scroll_seconds:.1f} s; "
        f"server memory {before:.0f} MiB before, {halfway[0]:.0f} halfway, {after:.0f} after, "
        f"{highest:.0f} at its highest"
    )


if __name__ == "__main__":
    serve(Path(sys.argv[1]), socket.socket(fileno=int(sys.argv[2])))
