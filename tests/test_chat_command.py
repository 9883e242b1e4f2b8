"""``dialogue chat``: in a pipe, and in a terminal."""

from __future__ import annotations

import asyncio
import fcntl
import os
import re
import struct
import termios
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel, Field

from dialogue import Dialogue, History, Limits, RoomConfig, define_event
from dialogue.testing import connect

from .client.fake import until
from .client.test_against_server import serving
from .processes import SECONDS
from .test_tail_command import process, read_lines

soon = partial(until, within_seconds=SECONDS)


class Message(BaseModel):
    text: str = Field(max_length=20)
    username: str = ""


class Named(BaseModel):
    body: str
    username: str


message = define_event("message", schema=Message, history=History(limit=5))
note = define_event("note", schema=Named, history=History(limit=5))
typing = define_event("typing")


def make_dialogue(store: Any = None, **options: Any) -> Dialogue:
    return Dialogue(
        rooms={"general": RoomConfig(name="General", events=[message, note, typing])},
        store=store,
        **{"limits": Limits(presence_seconds=0.01), **options},
    )


def said(output: bytes | str) -> list[tuple[str, str]]:
    """Return sender and text of each line."""
    text = output if isinstance(output, str) else output.decode()
    return [(line.split("  ", 2)[1], line.split("  ", 2)[2]) for line in text.splitlines()]


async def test_lines_of_a_pipe_are_sent_and_it_ends(tmp_path: Path) -> None:
    """Each line is a message, in order, and printed when it is recorded; what is refused is told, with status 1."""
    dialogue = make_dialogue(f"sqlite:///{tmp_path / 'log.db'}")
    async with serving(dialogue) as port:
        for n in range(3):
            await dialogue.trigger("general", message, {"text": f"old {n}"}, sender="eve")
        url = f"http://127.0.0.1:{port}"
        async with process("chat", url, "general", "--name", "ann", "-n", "2") as chat:
            output, errors = await chat.communicate(b"one\n\n//two\r\n/users\n\x1b[31mthree\nfour")
        assert said(output) == [
            ("eve", "old 1"),
            ("eve", "old 2"),
            ("ann", "one"),
            ("ann", "/two"),
            ("ann", "\\u001b[31mthree"),
            ("ann", "four"),
        ]
        assert (chat.returncode, errors) == (0, b"1 here: ann.\n")
        long = "x" * 21
        async with process("chat", url, "general", "--name", "bob", "-n", "0") as chat:
            output, errors = await chat.communicate(f"{long}\n/nonsense\nshort\n/quit\nnot sent".encode())
        assert (chat.returncode, said(output)) == (1, [("bob", "short")])
        assert f"Not sent: {long} (the data does not fit the event's schema: text: String" in errors.decode()
        assert "There is no /nonsense" in errors.decode()
        options = ("--event", "note", "--field", "body", "--field-user", "username", "--name", "eve")
        async with process("chat", url, "general", *options) as chat:
            output, errors = await chat.communicate(b"named")
        assert (chat.returncode, said(output), errors) == (0, [("eve", "named")], b"")
        (event,) = await dialogue.room("general").history("note", 0, 5)
        assert event.data == {"body": "named", "username": "eve"}


async def test_what_is_too_fast_is_sent_again(tmp_path: Path) -> None:
    """And told meanwhile; nothing is lost or doubled, and the order stays."""
    dialogue = make_dialogue(limits=Limits(triggers_per_second=10, triggers_burst=3))
    async with serving(dialogue) as port:
        url = f"http://127.0.0.1:{port}"
        async with process("chat", url, "general", "--name", "ann") as chat:
            output, errors = await chat.communicate("\n".join(map(str, range(8))).encode())
        assert (chat.returncode, said(output)) == (0, [("ann", str(n)) for n in range(8)])
        assert "Not sent yet, trying again: 3 (" in errors.decode()


async def test_lines_wait_for_a_server_that_is_started_again(tmp_path: Path) -> None:
    """What was entered while it was away is sent when it is back, once."""
    store = f"sqlite:///{tmp_path / 'log.db'}"
    async with AsyncExitStack() as stack:
        async with serving(make_dialogue(store)) as port:
            url = f"http://127.0.0.1:{port}"
            chat = await stack.enter_async_context(process("chat", url, "general", "--name", "ann"))
            assert chat.stdin is not None
            chat.stdin.write(b"before\n")
            assert said("\n".join(await read_lines(chat.stdout, 1))) == [("ann", "before")]
        assert await read_lines(chat.stderr, 1) == ["The connection is lost; trying again."]
        chat.stdin.write(b"meanwhile\n")
        await chat.stdin.drain()
        async with serving(make_dialogue(store), port):
            output, errors = await chat.communicate(b"after\n")
            assert (chat.returncode, errors) == (0, b"Connected again.\n")
            assert said(output) == [("ann", "meanwhile"), ("ann", "after")]


async def test_a_room_that_is_deleted_ends_it() -> None:
    """Status 1, and why."""
    dialogue = make_dialogue(client_rooms=RoomConfig(events=[message]))
    async with serving(dialogue) as port:
        await dialogue.create_room("club", name="Club")
        url = f"http://127.0.0.1:{port}"
        async with process("chat", url, "club", "--name", "ann") as chat:
            assert chat.stdin is not None
            chat.stdin.write(b"hello\n")
            await read_lines(chat.stdout, 1)
            await dialogue.delete_room("club")
            assert await chat.wait() == 1
            assert chat.stderr is not None
            assert b"the room was deleted" in await chat.stderr.read()


class Screen:
    """A pseudo-terminal: what was written to it, and keys for it."""

    def __init__(self, master: int) -> None:
        self.master = master
        self._raw = b""
        os.set_blocking(master, False)
        asyncio.get_running_loop().add_reader(master, self._read)

    def _read(self) -> None:
        try:
            self._raw += os.read(self.master, 65_536)
        except OSError:  # the other side has gone
            asyncio.get_running_loop().remove_reader(self.master)
            return
        # A terminal tells where its cursor is when it is asked.
        while b"\x1b[6n" in self._raw:
            self._raw = self._raw.replace(b"\x1b[6n", b"", 1)
            self.press("\x1b[1;1R")

    @property
    def text(self) -> str:
        """All that was written, without the terminal's controls."""
        return re.sub(r"\x1b(\[[0-9;?]*[A-Za-z]|[=>78])", "", self._raw.decode(errors="replace"))

    def press(self, keys: str) -> None:
        os.write(self.master, keys.encode())

    def close(self) -> None:
        asyncio.get_running_loop().remove_reader(self.master)
        os.close(self.master)


@asynccontextmanager
async def terminal(*arguments: str) -> AsyncIterator[tuple[Screen, asyncio.subprocess.Process]]:
    """Run the command in a pseudo-terminal of 80 columns."""
    master, slave = os.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    screen = Screen(master)
    try:
        # Its controlling terminal, so that Ctrl-C is a signal while it is no key.
        own = {"start_new_session": True, "preexec_fn": lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0)}
        async with process(*arguments, stdin=slave, stdout=slave, stderr=slave, **own) as command:
            os.close(slave)
            yield screen, command
    finally:
        screen.close()


@pytest.mark.parametrize("ending", ["/quit\r", "\x03", "\x04"])
async def test_in_a_terminal(ending: str) -> None:
    """The prompt stays usable while messages come in; typing, presence and the connection show."""
    dialogue = make_dialogue()
    async with serving(dialogue) as port, connect(dialogue, user_id="bob") as bob:
        room = await bob.join("general")
        heard: list[str] = []
        room.on(message, lambda event: heard.append(event.model.text))
        typing_users = room.typing_users()
        await room.trigger(message, Message(text="from before"))
        async with terminal("chat", f"http://127.0.0.1:{port}", "general", "--name", "ann") as (screen, chat):
            await soon(lambda: "from before" in screen.text and "connected" in screen.text)
            screen.press("hel")
            await soon(lambda: typing_users.users == ("ann",))
            await room.set_typing()
            await soon(lambda: "bob typing" in screen.text)
            await room.trigger(message, Message(text="in between"))
            await soon(lambda: "in between" in screen.text)
            screen.press("lo\r")
            await soon(lambda: heard[-1] == "hello")
            await soon(lambda: re.search(r"ann\s+hello", screen.text))
            screen.press("/users\r")
            await soon(lambda: re.search("2 here: (ann, bob|bob, ann)", screen.text))
            async with connect(dialogue, user_id="eve") as eve:
                await eve.join("general")
                await soon(lambda: "eve came" in screen.text)
            await soon(lambda: "eve left" in screen.text)
            (handle,) = dialogue.clients_of("ann")
            handle.disconnect()
            await soon(lambda: "The connection is lost" in screen.text and "Connected again" in screen.text)
            ended = asyncio.create_task(chat.wait())
            while not ended.done():
                # While a line is printed keys are the terminal's own, which may take one.
                screen.press(ending)
                await asyncio.wait([ended], timeout=2)
            assert await ended == 0
            assert "Traceback" not in screen.text


async def test_a_terminal_is_left_as_it_was() -> None:
    """After SIGTERM, too; and bytes that are no UTF-8 are no end of it."""
    dialogue = make_dialogue()
    async with serving(dialogue) as port, connect(dialogue, user_id="bob") as bob:
        room = await bob.join("general")
        heard: list[str] = []
        room.on(message, lambda event: heard.append(event.model.text))
        async with terminal("chat", f"http://127.0.0.1:{port}", "general", "--name", "ann") as (screen, chat):
            before = termios.tcgetattr(screen.master)
            await soon(lambda: "connected" in screen.text)
            await soon(lambda: termios.tcgetattr(screen.master) != before)
            os.write(screen.master, b"a\xffb\r")
            await soon(lambda: heard == ["a\ufffdb"])
            chat.terminate()
            assert await chat.wait() == 143
            assert termios.tcgetattr(screen.master) == before
            assert "Traceback" not in screen.text


async def test_what_is_too_long_is_told_in_short() -> None:
    """A line that nobody could read is not printed once more."""
    dialogue = make_dialogue()
    async with serving(dialogue) as port:
        async with process("chat", f"http://127.0.0.1:{port}", "general", "--name", "ann") as chat:
            output, errors = await chat.communicate(b"x" * 2_000_000)
        assert (chat.returncode, output) == (1, b"")
        assert b"and 1999800 characters more" in errors
        assert len(errors) < 1000
