"""What waits to be sent: its order and its bounds, by ASGI and straight to the transport."""

from __future__ import annotations

import asyncio
from collections.abc import Generator

import pytest
from hypothesis import given
from hypothesis import strategies as st
from websockets.frames import Frame as WebSocketFrame
from websockets.frames import Opcode
from websockets.streams import StreamReader

from dialogue.server.outbox import Frame, Outbox


def parsed(wire: bytes) -> WebSocketFrame:
    """Return the one frame that *wire* is, as another implementation reads it."""
    reader = StreamReader()
    reader.feed_data(wire)
    reader.feed_eof()
    parsing: Generator[None, None, WebSocketFrame] = WebSocketFrame.parse(reader.read_exact, mask=False)
    with pytest.raises(StopIteration) as done:
        next(parsing)
    assert not reader.buffer
    return done.value.value  # type: ignore[no-any-return]


@pytest.mark.parametrize("size", [0, 1, 125, 126, 127, 65_535, 65_536, 65_537])
def test_the_wire_form_is_one_text_frame(size: int) -> None:
    """At each length of the header; another implementation reads what was meant."""
    frame = Frame(b"x" * size)
    read = parsed(frame.wire)
    assert (read.opcode, read.fin, read.rsv1, read.data) == (Opcode.TEXT, True, False, frame.data)
    assert frame.wire is frame.wire  # made once
    assert len(frame.wire) - size == (2 if size < 126 else 4 if size < 65_536 else 10)


class Socket:
    """Takes frames both ways, and can be told to take none."""

    def __init__(self) -> None:
        self.taken: list[bytes] = []
        self.is_writable = True
        self.sends = 0
        self.may_send = asyncio.Event()
        self.overflows = 0
        self.failures: list[Exception] = []

    def write_nowait(self, wire: bytes) -> bool:
        if self.is_writable:
            self.taken.append(bytes(parsed(wire).data))
        return self.is_writable

    async def send(self, frame: Frame) -> None:
        self.sends += 1
        await self.may_send.wait()
        self.taken.append(frame.text.encode())

    def overflowed(self) -> None:
        self.overflows += 1

    def outbox(self, *, limit_bytes: int = 100, is_straight: bool = True) -> Outbox:
        write_nowait = self.write_nowait if is_straight else None
        return Outbox(
            self.send,
            limit_bytes=limit_bytes,
            on_overflow=self.overflowed,
            on_failed=self.failures.append,
            write_nowait=write_nowait,
        )


async def test_a_frame_that_nothing_waits_before_is_written_at_once() -> None:
    """No task has to run for it, and it does not count as waiting."""
    socket = Socket()
    outbox = socket.outbox()
    outbox.put_nowait(Frame(b"one"))
    assert (socket.taken, socket.sends) == ([b"one"], 0)
    assert (outbox.total_bytes, outbox.live_bytes) == (0, 0)
    await outbox.wait_empty()


async def test_nothing_passes_what_waits_or_is_being_sent() -> None:
    """Once the transport has said no, frames queue up until the last of them has gone, although it would take more."""
    socket = Socket()
    outbox = socket.outbox()
    socket.is_writable = False
    outbox.put_nowait(Frame(b"one"))
    socket.is_writable = True
    outbox.put_nowait(Frame(b"two"))
    while not socket.sends:
        await asyncio.sleep(0)
    outbox.put_nowait(Frame(b"three"))  # while "one" is being sent
    assert not socket.taken
    socket.may_send.set()
    await outbox.wait_empty()
    outbox.put_nowait(Frame(b"four"))
    assert socket.taken == [b"one", b"two", b"three", b"four"]
    assert socket.sends == 3


async def test_a_send_that_fails_ends_the_outbox() -> None:
    """Whoever owns the connection is told; what waited behind is dropped, and nothing more is taken."""

    async def fail(frame: Frame) -> None:
        raise ConnectionError("gone")

    socket = Socket()
    outbox = Outbox(fail, limit_bytes=100, on_overflow=socket.overflowed, on_failed=socket.failures.append)
    outbox.put_nowait(Frame(b"one"))
    outbox.put_nowait(Frame(b"two"))
    await outbox.wait_empty()
    await asyncio.sleep(0)
    outbox.put_nowait(Frame(b"three"))
    assert [str(error) for error in socket.failures] == ["gone"]
    assert outbox.is_closed
    assert not outbox.total_bytes


async def test_closing_ends_what_is_being_sent() -> None:
    """A peer that does not read keeps no task alive, and whoever waits for the mark goes on."""
    socket = Socket()
    socket.is_writable = False
    outbox = socket.outbox(limit_bytes=2)
    outbox.put_nowait(Frame(b"one"), is_live=False)
    waiting = asyncio.create_task(outbox.wait_below_mark())
    while not socket.sends:
        await asyncio.sleep(0)
    assert outbox.is_above_mark
    assert not waiting.done()
    await outbox.aclose()
    await waiting
    await outbox.wait_empty()
    assert (socket.taken, socket.failures, outbox.total_bytes) == ([], [], 0)
    assert [task for task in asyncio.all_tasks() if task.get_name() == "dialogue-session-write"] == []


@pytest.mark.parametrize("is_straight", [False, True])
async def test_a_slow_reader_is_told_of_once(is_straight: bool) -> None:
    """What the transport does not take is bounded; a first frame of any size is not slow reading."""
    socket = Socket()
    socket.is_writable = False
    outbox = socket.outbox(limit_bytes=10, is_straight=is_straight)
    outbox.put_nowait(Frame(b"x" * 50))
    before = socket.overflows
    outbox.put_nowait(Frame(b"y"))
    assert (before, socket.overflows) == (0, 1)
    assert outbox.is_closed
    socket.is_writable = True
    outbox.put_nowait(Frame(b"z"))
    assert (socket.taken, socket.overflows) == ([], 1)


@given(steps=st.lists(st.sampled_from(["put", "stop", "go", "run"]), max_size=60))
def test_the_order_is_that_of_the_puts(steps: list[str]) -> None:
    """Whatever the transport takes when: each frame once, in order."""

    async def scenario() -> None:
        socket = Socket()
        socket.may_send.set()
        outbox = socket.outbox(limit_bytes=10_000)
        put: list[bytes] = []
        for step in steps:
            if step == "put":
                put.append(b"%d" % len(put))
                outbox.put_nowait(Frame(put[-1]))
            elif step == "run":
                await asyncio.sleep(0)
            else:
                socket.is_writable = step == "go"
        await outbox.wait_empty()
        assert socket.taken == put

    asyncio.run(scenario())
