"""``dialogue run``: it serves, stops gracefully, and says in one line why it does not start."""

from __future__ import annotations

import itertools
import os
import re
import signal
import socket
import sqlite3
import sys
import time
import urllib.error
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from filelock import FileLock
from websockets.exceptions import ConnectionClosed

from dialogue.errors import StartError
from dialogue.server.listening import address_of, listen
from dialogue.storage.tables import VERSION_TABLE

from .processes import SECONDS, Command, connected, finished, get

MODULE = """
from dialogue import Dialogue, History, Limits, RoomConfig, SQLStore, define_event

message = define_event("message", history=History(limit=2))
dialogue = Dialogue(
    rooms={{"general": RoomConfig(events=[message])}},
    store={store},
    limits=Limits(stop_timeout_seconds=1, frame_bytes=8192),
)
"""

SQLITE = 'SQLStore("sqlite:///chat.db", lock_wait_seconds={wait})'


def write_module(folder: Path, *, store: str = "None", more: str = "") -> None:
    (folder / "chat.py").write_text(MODULE.format(store=store) + more)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_run_serves_until_a_signal(tmp_path: Path, number: signal.Signals) -> None:
    """Page, socket and health answer; the signal closes the socket with 1001 and ends with status 0."""
    write_module(tmp_path, store=SQLITE.format(wait=1))
    with Command("run", "chat:dialogue", "--port", "0", folder=tmp_path) as command:
        address = command.address()
        assert address.startswith("http://127.0.0.1:")
        assert get(f"{address}/dialogue.js")[0].startswith("text/javascript")
        assert '"ok"' in get(f"{address}/health")[1]
        with connected(address, user_id="Ada") as client:
            assert client.ask(type="join", room="general")["seq"] == 0
            assert client.ask(type="trigger", room="general", event="message", data=1)["seq"] == 1
            status = command.end(number)
            # Ends quietly at a close by 1000 or 1001.
            for _ in client.socket:
                pass
            assert client.socket.close_code == 1001
        assert status == 0, command.output
        assert "Traceback" not in command.output
    with Command("run", "chat:dialogue", "--port", "0", folder=tmp_path) as again:
        with connected(again.address(), user_id="Ada") as client:
            assert client.ask(type="join", room="general")["seq"] == 1
        assert again.end(number) == 0


def test_frames_are_bounded_by_the_limit(tmp_path: Path) -> None:
    """The socket is closed with 1009 by a frame above ``limits.frame_bytes``; no compression is agreed."""
    write_module(tmp_path)
    with Command("run", "chat:dialogue", "--port", "0", folder=tmp_path) as command:
        with connected(command.address(), user_id="Ada") as client:
            assert client.socket.response is not None
            assert "sec-websocket-extensions" not in client.socket.response.headers
            client.socket.send("x" * 10_000)
            with pytest.raises(ConnectionClosed) as closed:
                client.socket.recv(timeout=SECONDS)
            assert closed.value.rcvd is not None
            assert closed.value.rcvd.code == 1009
        assert command.end(signal.SIGINT) == 0


def test_development_mode_is_loud_where_others_can_connect(tmp_path: Path) -> None:
    """Without an authenticate hook an address that others reach is told of; with one it is not."""
    write_module(tmp_path)
    arguments = ("run", "chat:dialogue", "--port", "0", "--host", "0.0.0.0")
    with Command(*arguments, folder=tmp_path) as command:
        command.address()
        assert "WHOEVER REACHES THIS ADDRESS CAN BE ANY USER" in command.output
        assert command.end(signal.SIGINT) == 0
    write_module(tmp_path, more="\n@dialogue.authenticate\ndef who(auth): return None\n")
    with Command(*arguments, folder=tmp_path) as command:
        command.address()
        assert "development mode" not in command.output
        assert command.end(signal.SIGINT) == 0


def test_lost_events_are_status_1(tmp_path: Path) -> None:
    """What on_cleanup did not take before the stop is counted, and the status says so."""
    write_module(
        tmp_path, more="\n@dialogue.on_cleanup\ndef keep(events): raise OSError('the disk is gone')\n"
    )
    with Command("run", "chat:dialogue", "--port", "0", folder=tmp_path) as command:
        with connected(command.address(), user_id="Ada") as client:
            client.ask(type="join", room="general")
            client.ask(type="trigger", room="general", event="message", data=1)
        assert command.end(signal.SIGTERM) == 1
        assert "Error: stopped, but 1 events could not be handed over" in command.output


def test_reload_starts_again_when_a_file_changes(tmp_path: Path) -> None:
    """A change is served, a broken module is one line and not the end, and the port stays the same."""
    write_module(tmp_path)
    with Command("run", "chat:dialogue", "--port", "0", "--reload", folder=tmp_path) as command:
        address = command.address()
        times = itertools.count(time.time() + 10)

        def change(more: str, *, until: str) -> None:
            # The reloader knows the age of a file only once it has looked at it: a change before that is none.
            for _ in range(20):
                write_module(tmp_path, more=more)
                # It compares ages, and two writes may fall into one tick of the file system's clock.
                changed_at = next(times)
                os.utime(tmp_path / "chat.py", (changed_at, changed_at))
                if command.has_said(until, within_seconds=10):
                    return
            raise AssertionError(command.output)

        change("\ndialogue = \n", until=r"Error: importing 'chat' \(.*chat.py, line 11\): SyntaxError")
        change("\nprint('changed')\n", until=r"changed\n(.*\n)*.* at http")
        assert set(re.findall(r" at (http://[^\s,]+)", command.output)) == {address}
        with connected(address, user_id="Ada") as client:
            assert client.ask(type="join", room="general")["seq"] == 0
        assert command.end(signal.SIGINT) == 0
        assert "Traceback" not in command.output


HANGING = """
import time, pathlib

@dialogue.on_cleanup
{kind} keep(events):
    pathlib.Path("called").touch()
    {hang}
"""


def status_of(url: str) -> tuple[int, str]:
    try:
        return 200, get(url)[1]
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


@pytest.mark.parametrize("reload", [False, True], ids=["run", "reload"])
def test_a_second_signal_ends_a_stop_at_once(tmp_path: Path, reload: bool) -> None:
    """It says in one line what it gives up, and the status is 130; the first one goes on being graceful."""
    hang = "import asyncio; await asyncio.sleep(600)"
    (tmp_path / "chat.py").write_text(
        MODULE.format(store="None").replace("stop_timeout_seconds=1", "stop_timeout_seconds=600")
        + HANGING.format(kind="async def", hang=hang)
    )
    arguments = ("--reload",) if reload else ()
    with Command("run", "chat:dialogue", "--port", "0", *arguments, folder=tmp_path) as command:
        address = command.address()
        with connected(address, user_id="Ada") as client:
            client.ask(type="join", room="general")
            client.ask(type="trigger", room="general", event="message", data=1)
            command.process.send_signal(signal.SIGTERM)
            for _ in client.socket:
                pass
            assert client.socket.close_code == 1001
        command.wait_for("stopping, in at most 600 s: connections to close 1")
        if not reload:
            status, health = status_of(f"{address}/health")
            assert (status, '"stopping"' in health) == (503, True)
        assert command.end(signal.SIGINT) == 130
        assert "given up: connections 0" in command.output
        assert "events not handed over 1" in command.output
        assert "Traceback" not in command.output


def test_a_hook_that_hangs_in_its_thread_does_not_keep_the_process(tmp_path: Path) -> None:
    """A thread cannot be cancelled: the process ends without it, with the status of what was lost."""
    write_module(tmp_path, more=HANGING.format(kind="def", hang="time.sleep(600)"))
    with Command("run", "chat:dialogue", "--port", "0", folder=tmp_path) as command:
        with connected(command.address(), user_id="Ada") as client:
            client.ask(type="join", room="general")
            client.ask(type="trigger", room="general", event="message", data=1)
        assert command.end(signal.SIGTERM) == 1
        assert (tmp_path / "called").exists()
        assert "Error: stopped, but 1 events could not be handed over" in command.output
        assert "a hook does not return; the process ends without it" in command.output


def locked_by_a_server(folder: Path) -> FileLock:
    return FileLock(folder / "chat.db.lock")


@contextmanager
def locked_by_a_program(folder: Path) -> Iterator[None]:
    connection = sqlite3.connect(folder / "chat.db", isolation_level=None)
    try:
        connection.execute("BEGIN EXCLUSIVE")
        yield
    finally:
        connection.close()


@contextmanager
def garbage(folder: Path) -> Iterator[None]:
    (folder / "chat.db").write_bytes(b"not a database " * 1000)
    yield


@contextmanager
def newer_schema(folder: Path) -> Iterator[None]:
    connection = sqlite3.connect(folder / "chat.db")
    with connection:
        connection.execute(f"CREATE TABLE {VERSION_TABLE} (version_num VARCHAR(32) NOT NULL)")
        connection.execute(f"INSERT INTO {VERSION_TABLE} VALUES ('9999')")
    connection.close()
    yield


@contextmanager
def a_folder(folder: Path) -> Iterator[None]:
    (folder / "chat.db").mkdir()
    yield


@pytest.mark.parametrize(
    ("state", "said"),
    [
        (locked_by_a_server, r"another process is serving the log .*chat\.db.* stop the other one"),
        (locked_by_a_program, r"chat\.db is locked by another program .*End that program's transaction"),
        (garbage, r"chat\.db is not a SQLite database\. Name another file"),
        (newer_schema, r"chat\.db has schema 9999, this version needs .*install that version"),
        (a_folder, r"chat\.db is a folder\. Name a file in it"),
    ],
)
def test_an_unusable_database_is_one_line(tmp_path: Path, state: object, said: str) -> None:
    """It ends at once with status 1 and a line that names the file and the remedy."""
    assert callable(state)
    write_module(tmp_path, store=SQLITE.format(wait=0.2))
    with ExitStack() as stack:
        stack.enter_context(state(tmp_path))
        with Command("run", "chat:dialogue", "--port", "0", folder=tmp_path) as command:
            assert command.end() == 1
            command.wait_for(f"Error: .*{said}")
            assert "Traceback" not in command.output
            assert "Serving" not in command.output


@pytest.mark.skipif(sys.platform != "linux", reason="needs a folder that not even root can write to")
def test_an_unwritable_folder_is_one_line(tmp_path: Path) -> None:
    """The message names the folder's problem."""
    write_module(tmp_path, store="'sqlite:////sys/chat.db'")
    status, output = finished("run", "chat:dialogue", "--port", "0", folder=tmp_path)
    assert status == 1
    assert "Error: the lock /sys/chat.db.lock beside the log cannot be made" in output
    assert "Traceback" not in output


def test_a_signal_ends_a_start_that_waits(tmp_path: Path) -> None:
    """Whoever stops a server that waits for the log's other owner does not wait with it."""
    write_module(
        tmp_path,
        store=SQLITE.format(wait=600),
        more="\n@dialogue.on_cleanup\ndef keep(events): pass\nprint('loaded', flush=True)\n",
    )
    with (
        locked_by_a_server(tmp_path),
        Command("run", "chat:dialogue", "--port", "0", "--host", "0.0.0.0", folder=tmp_path) as command,
    ):
        # Logged when the server begins to start.
        command.wait_for("WHOEVER")
        deadline = time.monotonic() + SECONDS
        # Its handlers are there once the kernel says that it catches the signal.
        while not catches_signal(command.process.pid, signal.SIGTERM) and time.monotonic() < deadline:
            time.sleep(0.01)
        assert command.end(signal.SIGTERM) == 0
        assert "Traceback" not in command.output


def catches_signal(pid: int, number: signal.Signals) -> bool:
    status = Path(f"/proc/{pid}/status")
    if not status.exists():
        pytest.skip("needs /proc to see that the start has begun")
    (caught,) = [line for line in status.read_text().splitlines() if line.startswith("SigCgt:")]
    return bool(int(caught.split()[1], 16) >> (number - 1) & 1)


def test_a_taken_port_is_one_line(tmp_path: Path) -> None:
    """The line names the port; the database is not touched."""
    write_module(tmp_path, store=SQLITE.format(wait=1))
    with listen("127.0.0.1", 0) as taken:
        port = taken.getsockname()[1]
        status, output = finished("run", "chat:dialogue", "--port", str(port), folder=tmp_path)
    assert status == 1
    assert output == (
        f"Error: port {port} is taken by another program on 127.0.0.1. "
        "End that program, or choose another port: --port\n"
    )
    assert not (tmp_path / "chat.db").exists()


def test_listening_takes_the_port_at_once() -> None:
    """Two that ask for the same port never both get it; further ports are tried if that is asked for."""
    with listen("127.0.0.1", 0) as first:
        port = first.getsockname()[1]
        with pytest.raises(StartError, match="is taken"):
            listen("127.0.0.1", port)
        with listen("127.0.0.1", port, tries=101) as second:
            assert port < second.getsockname()[1] <= port + 100
    with pytest.raises(StartError, match="not known"):
        listen("no such host", 0)
    # Kept free for documentation: no machine's own.
    with pytest.raises(StartError, match="cannot be listened on"):
        listen("192.0.2.1", 0)


def test_an_address_is_one_that_a_browser_takes() -> None:
    """An address that stands for all is shown as this machine; IPv6 is put into brackets."""
    with listen("0.0.0.0", 0) as everywhere:
        assert address_of(everywhere) == f"http://127.0.0.1:{everywhere.getsockname()[1]}"
    if socket.has_ipv6:
        try:
            listener = listen("::1", 0)
        except StartError:
            pytest.skip("this machine has no IPv6")
        with listener:
            assert address_of(listener) == f"http://[::1]:{listener.getsockname()[1]}"
