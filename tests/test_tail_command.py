"""``dialogue tail``: what it prints, how it goes on, and how it ends."""

from __future__ import annotations

import asyncio
import io
import json
import os
import signal
import sys
import unicodedata
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from typer.testing import CliRunner

from dialogue import (
    Dialogue,
    History,
    Identity,
    Limits,
    RoomConfig,
    StreamBroken,
    Unauthenticated,
    define_event,
)
from dialogue.cli import cli
from dialogue.client import DialogueClient, Room, Timing
from dialogue.commands import output as terminal
from dialogue.commands.remote import follow
from dialogue.commands.showing import compact, json_of, printable, text_of, time_of
from dialogue.events import Event

from .client.fake import FakeConnection, FakeSocketServer, Message, until
from .client.test_against_server import serving
from .processes import ROOT

message = define_event("message", history=History(limit=3))
alert = define_event("alert", history=History(limit=3))


def make_dialogue(store: Any = None, **options: Any) -> Dialogue:
    rooms = {"general": RoomConfig(name="General", events=[message, alert])}
    return Dialogue(rooms=rooms, store=store, **options)


async def run(*arguments: str) -> tuple[int, str, str]:
    """Run the command beside a server of this loop; return its status, its output and its errors."""
    result = await asyncio.to_thread(CliRunner().invoke, cli, list(arguments))
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, result.stdout, result.stderr


@asynccontextmanager
async def process(*arguments: str, **options: Any) -> AsyncIterator[asyncio.subprocess.Process]:
    """Run ``python -m dialogue`` as a process of its own; killed at the end if it still runs."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "100"}
    pipes = dict.fromkeys(("stdin", "stdout", "stderr"), asyncio.subprocess.PIPE)
    command = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "dialogue", *arguments, env=environment, **{**pipes, **options}
    )
    try:
        yield command
    finally:
        if command.returncode is None:
            command.kill()
        await command.communicate()


async def read_lines(stream: asyncio.StreamReader | None, count: int) -> list[str]:
    assert stream is not None
    return [(await stream.readline()).decode().rstrip("\n") for _ in range(count)]


def texts(output: str) -> list[str]:
    """Return what the lines say behind time, sender and event."""
    return [line.split("  ", 3)[3] for line in output.splitlines()]


@given(st.text())
def test_nothing_printed_controls_a_terminal(text: str) -> None:
    """Whatever others write: one line, no control characters, nothing that turns the direction of writing."""
    for shown in (printable(text), compact({text: text})):
        bad = {
            character for character in shown if unicodedata.category(character) in ("Cc", "Cs", "Zl", "Zp")
        }
        assert not bad
        assert not {"\u202e", "\u2066", "\u200f"} & set(shown)
    # Halves of surrogate pairs are no text, so hypothesis makes none.
    assert json.loads(compact({text: text})) == {text: text}


def test_what_an_event_says() -> None:
    """Its text, or its data; a change says of what, a deleted event that it is."""

    def said(data: Any, event: str = "message", **fields: Any) -> str:
        return text_of(Event(room_id="r", event=event, data=data, sender="ann", **fields))

    assert said({"text": "a\n\x1b[31mb\x9b"}) == "a / \\u001b[31mb\\u009b"
    assert said({"n": 1, "s": "\x1b"}) == '{"n":1,"s":"\\u001b"}'
    assert said("plain") == "plain"
    assert said({"text": 1}) == '{"text":1}'
    assert said({"text": "new"}, is_edited=True) == "new (edited)"
    assert said(None, is_deleted=True) == "(deleted)"
    assert said({"target_seq": 4, "event": "message", "data": {"text": "b"}}, "$edit") == "edited 4: b"
    assert said({"target_seq": 4, "event": "message"}, "$edit") == "edited 4, and changed again later"
    assert said({"target_seq": 4, "event": "message"}, "$delete") == "deleted 4"
    odd: Event[Any] = Event(
        room_id="r", event="e", data=None, sender="s", timestamp=10**30, meta={"a": 1}, key="k", kind="system"
    )
    assert time_of(odd) == str(10**30)
    record = json.loads(json_of(odd))
    assert (record["meta"], record["key"], record["kind"], record["seq"]) == ({"a": 1}, "k", "system", None)


def test_a_terminal_gets_colours_and_no_markup(monkeypatch: pytest.MonkeyPatch) -> None:
    """Square brackets are text, and the only escapes are the command's own."""
    screen = io.StringIO()
    monkeypatch.setattr(terminal, "out", Console(file=screen, force_terminal=True, width=20, highlight=False))
    terminal.show(("ann", "bold cyan"), ("  ", ""), (printable("[red]a long line\x1b[5m[/red]"), ""))
    assert screen.getvalue() == "\x1b[1;36mann\x1b[0m  [red]a long line\\u001b[5m[/red]\n"


async def test_the_past_is_printed(tmp_path: Path) -> None:
    """The newest lines, or all above a seq; of some events, as text or as JSON."""
    dialogue = make_dialogue(f"sqlite:///{tmp_path / 'log.db'}")
    async with serving(dialogue) as port:
        for n in range(1, 31):
            event = alert if n % 10 == 0 else message
            await dialogue.trigger("general", event, {"text": f"t{n}"}, sender="ann", key=f"k{n}")
        await dialogue.room("general").edit(29, {"text": "better"})
        tail = ("tail", f"ws://127.0.0.1:{port}/", "general", "--no-follow")
        expected = [f"t{n}" for n in range(12, 29)] + ["better (edited)", "t30", "edited 29: better"]
        status, output, errors = await run(*tail)
        assert (status, errors, texts(output)) == (0, "", expected)
        assert output.splitlines()[-2].split("  ")[1:3] == ["ann", "alert"]
        assert texts((await run(*tail, "-n", "2"))[1]) == expected[-2:]
        assert (await run(*tail, "-n", "0"))[1] == ""
        assert texts((await run(*tail, "--after", "27"))[1]) == expected[-4:]
        assert texts((await run(*tail, "--event", "alert", "--user", "bob"))[1]) == ["t10", "t20", "t30"]
        both = await run(*tail, "--event", "alert", "--event", "message", "--lines", "12", "--json")
        assert [json.loads(line)["seq"] for line in both[1].splitlines()] == list(range(19, 31))
        both = await run(*tail, "--event", "alert", "--event", "message", "--after", "8", "--json")
        assert [json.loads(line)["seq"] for line in both[1].splitlines()] == list(range(9, 31))


async def test_what_memory_has_forgotten_is_told() -> None:
    """The rest is printed all the same."""
    dialogue = make_dialogue()
    async with serving(dialogue) as port:
        for n in range(8):
            await dialogue.trigger("general", message, n)
        tail = ("tail", f"http://127.0.0.1:{port}", "general", "--no-follow", "--after", "1")
        status, output, errors = await run(*tail)
        assert (status, texts(output)) == (0, ["5", "6", "7"])
        assert errors == "Events 2 to 5 are left out: some of them are gone for good.\n"


async def test_what_is_wrong_is_one_line() -> None:
    """Status 1 at once: no server, no such path, refused credentials, no such room or event, a seq of another log."""
    dialogue = make_dialogue()

    @dialogue.authenticate
    async def check(auth: Any) -> Identity:
        if auth.get("token") != "good":
            raise Unauthenticated("the token is \x1b[31mwrong")
        return Identity("ann")

    async with serving(dialogue) as port:
        url = f"http://127.0.0.1:{port}"
        good = ("--token", "good")
        for arguments, said in [
            (("http://u:secret@127.0.0.1:1", "general"), "cannot connect to http://127.0.0.1:1: "),
            (("127.0.0.1", "general"), "is not the URL of a server"),
            (("ftp://u:secret@127.0.0.1", "general"), "is not the URL of a server"),
            (("http://[::1", "general"), "Invalid IPv6 URL"),
            ((f"http://{'a' * 70}.example", "general"), "cannot connect to http://aaa"),
            (("http://127.0.0.1:99999", "general"), "cannot connect to http://127.0.0.1:99999: "),
            ((f"{url}/elsewhere", "general", *good), "the router's base"),
            ((url, "general", "--token", "bad"), "refuses the credentials: the token is \\u001b[31mwrong"),
            ((url, "nowhere", *good), "no such room"),
            ((url, "general", *good, "--event", "nonsense"), "no such event"),
            ((url, "general", *good, "--after", "9"), "another life of the log"),
        ]:
            status, output, errors = await run("tail", *arguments)
            assert (status, output) == (1, ""), arguments
            (line,) = errors.splitlines()
            assert line.startswith("Error: ")
            assert said in line
            assert "secret" not in line
        for arguments in (("\udcff", "general"), (url, "\udcff"), (url, "general", "--event", "\udcff")):
            status, output, errors = await run("tail", *arguments)
            assert (status, output) == (2, "")
            assert "this is not UTF-8" in errors


async def test_it_follows_over_restarts_until_it_is_interrupted(tmp_path: Path) -> None:
    """Each event once and in order, whatever the server does; Ctrl-C is status 0, and nothing but that."""
    store = f"sqlite:///{tmp_path / 'log.db'}"
    dialogue = make_dialogue(store)
    async with AsyncExitStack() as stack:
        async with serving(dialogue) as port:
            for n in range(1, 31):
                await dialogue.trigger("general", message, n)
            command = process("tail", f"http://127.0.0.1:{port}", "general", "--after", "0", "--json")
            tail = await stack.enter_async_context(command)
            lines = await read_lines(tail.stdout, 30)
        dialogue = make_dialogue(store)
        async with serving(dialogue, port):
            for n in range(31, 61):
                await dialogue.trigger("general", message, n)
            lines += await read_lines(tail.stdout, 30)
            assert [json.loads(line)["data"] for line in lines] == list(range(1, 61))
            tail.send_signal(signal.SIGINT)
            output, errors = await tail.communicate()
            assert (tail.returncode, output) == (0, b"")
            assert errors.decode().splitlines() == [
                "The connection is lost; trying again.",
                "Connected again.",
            ]


async def test_another_log_is_shown_from_its_newest_on() -> None:
    """A server without a store that is started again has forgotten everything; the command says so, and goes on."""
    dialogue = make_dialogue()
    async with AsyncExitStack() as stack:
        async with serving(dialogue) as port:
            await dialogue.trigger("general", message, "old")
            command = process("tail", f"http://127.0.0.1:{port}", "general")
            tail = await stack.enter_async_context(command)
            lines = await read_lines(tail.stdout, 1)
        dialogue = make_dialogue()
        async with serving(dialogue, port):
            await dialogue.trigger("general", message, "new")
            lines += await read_lines(tail.stdout, 1)
            await dialogue.trigger("general", message, "newer")
            lines += await read_lines(tail.stdout, 1)
            assert texts("\n".join(lines)) == ["old", "new", "newer"]


def following(
    room: Room, shown: list[Any], notes: list[str], *, after: int | None = None, is_endless: bool = True
) -> asyncio.Task[None]:
    """Follow a room as the command does; return the task."""
    return asyncio.get_running_loop().create_task(
        follow(
            room,
            names=[],
            after=after,
            lines=5,
            is_endless=is_endless,
            show=lambda event: shown.append(event.data),
            note=notes.append,
        )
    )


@pytest.mark.parametrize("is_endless", [False, True])
async def test_a_log_that_is_replaced_while_its_first_lines_are_read(is_endless: bool) -> None:
    """The reads that its cursors belong to are refused: it says what has happened, and begins with the new one."""
    shown: list[Any] = []
    notes: list[str] = []
    dropping: list[asyncio.Task[None]] = []
    async with FakeSocketServer().running() as server:
        for n in range(5):
            server.publish("general", "message", f"old {n}")
        server.page_events = 2

        def intercept(connection: FakeConnection, command: Message) -> bool:
            if command["type"] != "history" or "cursor" not in command:
                return False
            if dropping:
                return server.error(connection, command, "INVALID_REQUEST")
            server.epoch = "e2"
            server.log.clear()
            server.publish("general", "message", "new")
            dropping.append(asyncio.get_running_loop().create_task(server.drop()))
            return True

        server.intercept = intercept
        async with DialogueClient(server.url, timing=Timing(backoff_seconds=0.01)) as client:
            task = following(await client.join("general", sync=0), shown, notes, is_endless=is_endless)
            if is_endless:
                await until(lambda: shown)
                server.publish("general", "message", "newer")
                await until(lambda: len(shown) == 2)
                task.cancel()
                await asyncio.wait([task])
            else:
                with pytest.raises(StreamBroken, match="another life of the log"):
                    await task
        await asyncio.wait(dropping)
    assert shown == (["new", "newer"] if is_endless else [])
    assert notes == (["The server has another log now."] if is_endless else [])


async def test_a_log_that_is_replaced_before_anything_has_come() -> None:
    """Begun above the newest event it has seen none of the log of before, and goes on with the new one all the same."""
    shown: list[Any] = []
    notes: list[str] = []
    async with AsyncExitStack() as stack:
        dialogue = make_dialogue()
        async with serving(dialogue) as port:
            await dialogue.trigger("general", message, "old")
            client = await stack.enter_async_context(
                DialogueClient(f"http://127.0.0.1:{port}", timing=Timing(backoff_seconds=0.01))
            )
            room = await client.join("general", sync=0)
            task = following(room, shown, notes, after=1)
            await until(lambda: len(room._streams))
        dialogue = make_dialogue()
        async with serving(dialogue, port):
            await until(lambda: notes)
            await dialogue.trigger("general", message, "new")
            await until(lambda: shown)
            task.cancel()
            await asyncio.wait([task])
            assert (shown, notes) == (["new"], ["The server has another log now."])
            await client.aclose()


async def test_more_lines_than_reads_are_allowed(tmp_path: Path) -> None:
    """It waits for its turn."""
    limits = Limits(reads_per_second=20, reads_burst=3, page_events=2)
    dialogue = make_dialogue(f"sqlite:///{tmp_path / 'log.db'}", limits=limits)
    async with serving(dialogue) as port:
        for n in range(12):
            await dialogue.trigger("general", message, n)
        tail = ("tail", f"http://127.0.0.1:{port}", "general", "--no-follow", "-n", "12")
        status, output, errors = await run(*tail)
        assert (status, texts(output), errors) == (0, [str(n) for n in range(12)], "")


async def test_an_output_that_takes_nothing_is_told() -> None:
    """A full disk, or none at all: one line, and status 1."""
    dialogue = make_dialogue()
    async with serving(dialogue) as port:
        await dialogue.trigger("general", message, 1)
        arguments = ("tail", f"http://127.0.0.1:{port}", "general", "--no-follow")
        full = os.open("/dev/full", os.O_WRONLY)
        async with process(*arguments, stdout=full) as tail:
            os.close(full)
            _, errors = await tail.communicate()
        assert (tail.returncode, errors) == (1, b"Error: standard output: No space left on device\n")
        async with process(*arguments, preexec_fn=lambda: os.close(1)) as tail:
            _, errors = await tail.communicate()
        assert (tail.returncode, errors) == (1, b"Error: there is no standard output\n")


async def test_sigterm_ends_it_in_order() -> None:
    """With the status that a shell gives it, and the server is told."""
    dialogue = make_dialogue()
    async with serving(dialogue) as port:
        await dialogue.trigger("general", message, 1)
        async with process("tail", f"http://127.0.0.1:{port}", "general") as tail:
            await read_lines(tail.stdout, 1)
            tail.send_signal(signal.SIGTERM)
            assert (await tail.communicate(), tail.returncode) == ((b"", b""), 143)


async def test_it_ends_with_its_reader() -> None:
    """As behind ``| head``, also while there is nothing to print: quietly, with status 0."""
    dialogue = make_dialogue()
    async with serving(dialogue) as port:
        await dialogue.trigger("general", message, 1)
        reading, writing = os.pipe()
        async with process("tail", f"http://127.0.0.1:{port}", "general", stdout=writing) as tail:
            os.close(writing)
            await asyncio.to_thread(os.read, reading, 1)
            os.close(reading)
            assert await tail.wait() == 0
            assert tail.stderr is not None
            assert await tail.stderr.read() == b""
