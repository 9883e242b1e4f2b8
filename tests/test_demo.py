"""``dialogue demo``: the page, a past to scroll through, and starts that go wrong."""

from __future__ import annotations

import json
import signal
import sqlite3
import sys
import time
from contextlib import ExitStack, closing
from pathlib import Path

import pytest
from typer.testing import CliRunner

from dialogue.cli import cli
from dialogue.demo.application import Message, database_url
from dialogue.demo.past import DAYS, ROOMS, SHARES, make_past
from dialogue.demo.phrases import PEOPLE
from dialogue.demo.recording import PLAN, record_past
from dialogue.server.run import listen

from . import test_run
from .processes import SECONDS, Command, connected, finished, get

NOW_MS = 1_767_225_600_000
DAY_MS = 86_400_000


def recorded(database: Path) -> list[tuple[str, int, str, str, int]]:
    """Return room, seq, sender, text and timestamp of all messages, in the log's order."""
    with closing(sqlite3.connect(f"file:{database}?mode=ro", uri=True, timeout=SECONDS)) as connection:
        rows = connection.execute(
            "SELECT room_id, seq, from_user, event_data, timestamp FROM dialogue_events ORDER BY id"
        ).fetchall()
    return [(room, seq, sender, json.loads(data)["text"], at) for room, seq, sender, data, at in rows]


def test_the_demo_serves_its_page_and_its_past(tmp_path: Path) -> None:
    """Page and socket answer; a client scrolls to the beginning; what it says is there after a restart."""
    arguments = ("demo", "--port", "0", "--messages", "400")
    with Command(*arguments, folder=tmp_path) as command:
        address = command.address()
        assert str(Path("dialogue-demo") / "demo.db") in command.output
        content_type, page = get(f"{address}/")
        assert content_type.startswith("text/html")
        assert "demo/demo.css" in page
        for path, kind in (
            ("demo/demo.js", "text/javascript"),
            ("demo/message-list.js", "text/javascript"),
            ("demo/demo.css", "text/css"),
            ("dialogue.js", "text/javascript"),
            ("health", "application/json"),
        ):
            assert get(f"{address}/{path}")[0].startswith(kind)
        with connected(address, user_id="Nora") as client:
            rooms = client.ask(type="rooms")["rooms"]
            assert [(room["id"], room["name"]) for room in rooms] == [
                ("general", "General"),
                ("random", "Random"),
                ("help", "Help"),
            ]
            joined = client.ask(type="join", room="general")
            assert joined["seq"] == 400
            seqs = [event["seq"] for event in joined["events"]]
            cursor = joined["next"]
            while cursor:
                page_of_past = client.ask(type="history", room="general", cursor=cursor)
                seqs += [event["seq"] for event in page_of_past["events"]]
                cursor = page_of_past["next"]
            assert sorted(seqs) == list(range(1, 401))
            said = client.ask(type="trigger", room="general", event="message", data={"text": "Hello"})
            assert said["seq"] == 401
            typing = client.ask(type="trigger", room="general", event="typing", data={"is_typing": True})
            assert typing["seq"] is None
        assert command.end(signal.SIGINT) == 0
        assert "Traceback" not in command.output
    with Command(*arguments, folder=tmp_path) as again:
        with connected(again.address(), user_id="Nora") as client:
            joined = client.ask(type="join", room="general")
            assert joined["seq"] == 401
            assert joined["events"][-1]["data"] == {"text": "Hello"}
        assert again.end(signal.SIGTERM) == 0


def test_a_taken_port_gives_the_next_free_one(tmp_path: Path) -> None:
    """The address that is printed is the one that answers."""
    with listen("127.0.0.1", 0) as taken:
        port = taken.getsockname()[1]
        with Command("demo", "--port", str(port), "--messages", "0", folder=tmp_path) as command:
            address = command.address()
            assert port < int(address.rpartition(":")[2]) <= port + 100
            assert "<title>Dialogue</title>" in get(address)[1]
            with connected(address, user_id="Nora") as client:
                assert client.ask(type="join", room="help")["seq"] == 0
            assert command.end(signal.SIGINT) == 0


def test_a_second_demo_on_the_same_folder_names_the_remedy(tmp_path: Path) -> None:
    """It ends with status 1, and the first one goes on."""
    data = tmp_path / "my data"
    arguments = ("demo", "--port", "0", "--messages", "10", "--data", data)
    with Command(*arguments, folder=tmp_path) as first:
        address = first.address()
        status, output = finished(*arguments, folder=tmp_path)
        assert status == 1
        assert f"Error: another demo is running on the data folder {data}." in output
        assert "--data another-folder" in output
        assert "Traceback" not in output
        with connected(address, user_id="Nora") as client:
            assert client.ask(type="join", room="general")["seq"] == 10
        assert first.end(signal.SIGINT) == 0


@pytest.mark.parametrize("state", [test_run.garbage, test_run.newer_schema, test_run.locked_by_a_program])
def test_an_unusable_database_is_one_line(tmp_path: Path, state: object) -> None:
    """Nothing is served; the line names the file."""
    assert callable(state)
    with ExitStack() as stack:
        stack.enter_context(state(tmp_path))
        (tmp_path / "chat.db").rename(tmp_path / "demo.db")
        with Command("demo", "--port", "0", "--data", tmp_path, folder=tmp_path) as command:
            assert command.end() == 1
            command.wait_for(r"Error: the log .*demo\.db (is|has) ")
            assert "Traceback" not in command.output
            assert " at http" not in command.output


def test_a_folder_that_cannot_be_made_is_one_line(tmp_path: Path) -> None:
    """A file in its place, or a place that takes none."""
    file = tmp_path / "file"
    file.touch()
    places = [file, file / "folder"]
    if sys.platform == "linux":
        places.append(Path("/proc/dialogue-demo"))
    for place in places:
        result = CliRunner().invoke(cli, ["demo", "--port", "0", "--data", str(place)])
        assert result.exit_code == 1
        output = " ".join(result.output.split())
        assert output.startswith(f"Error: the data folder {place} cannot be made (")
        assert output.endswith("). Name another one: --data")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_an_interrupted_past_is_gone_on_with(tmp_path: Path, number: signal.Signals) -> None:
    """Whatever ends the first start, the second has each message once, in the order in which they were made."""
    arguments = ("demo", "--port", "0", "--messages", "2000", "--data", tmp_path)
    with Command(*arguments, folder=tmp_path) as command:
        deadline = time.monotonic() + SECONDS
        while not (tmp_path / PLAN).exists() and time.monotonic() < deadline:
            time.sleep(0.001)
        plan = json.loads((tmp_path / PLAN).read_bytes())
        while not recorded(tmp_path / "demo.db"):
            pass
        assert command.end(number) == (-signal.SIGKILL if number == signal.SIGKILL else 0), command.output
        assert "Traceback" not in command.output
        assert " at http" not in command.output
    assert (tmp_path / PLAN).exists()
    before = recorded(tmp_path / "demo.db")
    assert 0 < len(before) < 2000
    # Another number is not another past: the one that was begun is completed.
    with Command(*arguments[:4], "7", *arguments[5:], folder=tmp_path) as again:
        again.address()
        assert again.end(signal.SIGINT) == 0
    assert not (tmp_path / PLAN).exists()
    rows = recorded(tmp_path / "demo.db")
    assert rows[: len(before)] == before
    moments = make_past(plan["messages"], until_ms=plan["until_ms"])
    expected = [
        (moment.room_id, sender, text, moment.timestamp)
        for moment in moments
        for sender, text in moment.lines
    ]
    assert [(room, sender, text, at) for room, _, sender, text, at in rows] == expected


async def test_a_past_is_recorded_once(tmp_path: Path) -> None:
    """Only an empty log gets one, and its progress is told."""
    url = database_url(tmp_path)
    told: list[tuple[int, int]] = []
    count = await record_past(
        url, tmp_path, messages=100, lock_wait_seconds=1, on_progress=lambda *progress: told.append(progress)
    )
    assert count == 112
    assert told[0] == (0, 112)
    assert told[-1] == (112, 112)
    assert await record_past(url, tmp_path, messages=200, lock_wait_seconds=1) == 0
    assert len(recorded(tmp_path / "demo.db")) == 112


def test_a_past_is_plausible() -> None:
    """It has the length that was asked for, is in order, spread over weeks, and by many people; always the same."""
    past = make_past(5000, until_ms=NOW_MS)
    assert past == make_past(5000, until_ms=NOW_MS)
    times = [moment.timestamp for moment in past]
    assert times == sorted(times)
    assert times[-1] <= NOW_MS
    assert times[0] >= NOW_MS - (DAYS + 1) * DAY_MS
    assert NOW_MS - times[0] > (DAYS - 2) * DAY_MS
    for room_id in ROOMS:
        lines = [line for moment in past if moment.room_id == room_id for line in moment.lines]
        assert len(lines) == round(5000 * SHARES[room_id])
        assert {sender for sender, _ in lines} == {person.name for person in PEOPLE}
        assert len({text for _, text in lines}) > 100
        for _, text in lines:
            Message(text=text)
            assert "{" not in text


@pytest.mark.parametrize("count", [0, 1, 2, 49])
def test_a_short_past_has_its_length(count: int) -> None:
    """No conversation makes it longer than was asked for."""
    past = make_past(count, until_ms=NOW_MS)
    assert sum(len(moment.lines) for moment in past if moment.room_id == "general") == count
    assert all(moment.lines for moment in past)


def test_a_long_past_goes_back_further() -> None:
    """Its days are as full as those of a shorter one."""
    past = make_past(20_000, until_ms=NOW_MS)
    assert past[0].timestamp < NOW_MS - 50 * DAY_MS
