"""The replay of a small made-up log file, over a real server."""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path

import pytest
from pydantic import BaseModel, Field

from dialogue import (
    Dialogue,
    Event,
    History,
    RateLimited,
    RoomConfig,
    RoomNotFound,
    ValidationFailed,
    define_event,
)
from examples.irc_replay import MAX_TEXT, Line, Pool, Reading, parse_line, read_log, replay
from tests.server.harness import serve

ROOT = Path(__file__).parents[2]


class Message(BaseModel):
    text: str = Field(min_length=1, max_length=MAX_TEXT)


message = define_event("message", schema=Message, history=History(limit=1000))


def make_dialogue() -> Dialogue:
    return Dialogue(rooms={"general": RoomConfig(name="General", events=[message])})


def write_log(path: Path, lines: int = 120, nicks: int = 9) -> Path:
    """Write a log in which now one nick speaks several times in a row, now everyone in turn."""
    text = "".join(
        f"2004-12-25 09:{number // 60:02} <nick{(number // 3 if number < 60 else number) % nicks}> line {number}\n"
        for number in range(lines)
    )
    path.write_text(text)
    return path


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return write_log(tmp_path / "channel.txt")


async def recorded(dialogue: Dialogue) -> list[Event[Message]]:
    """Return what is in the room, oldest first."""
    events = await dialogue.room("general").history(message, 0, 1000)
    return events[::-1]


# -- the file --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("raw", "expected", "repaired"),
    [
        (b"2004-12-25 09:14 <ann> hello\n", ("ann", "hello"), 0),
        (b"2004-12-25 09:14 <ann> hello\r\n", ("ann", "hello"), 0),
        (b"2004-12-25 09:14 <ann>   indented <b> text", ("ann", "  indented <b> text"), 0),
        (b"2004-12-25 09:14 <|a|[b]`> x", ("|a|[b]`", "x"), 0),
        (
            "2004-12-25 09:14 <ann> gr\u00fc\u00dfe \U0001f469\u200d\U0001f680\n".encode(),
            ("ann", "gr\u00fc\u00dfe \U0001f469\u200d\U0001f680"),
            0,
        ),
        (b"2004-12-25 09:14 <ann> caf\xe9\n", ("ann", "caf\ufffd"), 1),
        (
            b"2004-12-25 09:14 <ann> \x02bold\x02 and \x00 and \x1b[31m\n",
            ("ann", " bold  and   and  [31m"),
            1,
        ),
        (b"2004-12-25 09:14 <a\x07nn> bell\n", ("a nn", "bell"), 1),
        (b"2004-12-25 09:14 <" + b"n" * 500 + b"> long nick\n", ("n" * 128, "long nick"), 0),
        (b"2004-12-25 09:14 <ann>\n", None, 0),
        (b"2004-12-25 09:14 <ann>    \n", None, 0),
        (b"2004-12-25 09:14 <> who\n", None, 0),
        (b"2004-12-25 09:14 < > who\n", None, 0),
        (b"=== ann has left\n", None, 0),
        (b"\n", None, 0),
        (b"\xff\xfe\x00\x00", None, 0),
    ],
)
def test_a_line_is_a_message_or_it_is_not(
    raw: bytes, expected: tuple[str, str] | None, repaired: int
) -> None:
    """Whatever bytes are in a line, it gives a nick and a text that a server takes, or nothing."""
    reading = Reading()
    assert parse_line(raw, reading) == expected
    assert reading.repaired == repaired


def test_long_texts_are_split_and_counted(tmp_path: Path) -> None:
    """A text above the limit becomes several messages, each with a key of its own; the rest is counted."""
    path = tmp_path / "log.txt"
    long = "x" * MAX_TEXT + "y" * MAX_TEXT + "z"
    path.write_text(f"2004-12-25 09:14 <ann> {long}\n\nnoise\n2004-12-25 09:15 <bob> short\n")
    reading = Reading()
    lines = list(read_log(path, reading))
    assert "".join(line.text for line in lines[:3]) == long
    assert [line.nick for line in lines] == ["ann", "ann", "ann", "bob"]
    assert [len(line.text) for line in lines] == [MAX_TEXT, MAX_TEXT, 1, 5]
    assert len({line.key for line in lines}) == 4
    assert reading == Reading(skipped=2, repaired=0, split=1)
    assert list(read_log(path, Reading(), limit=2)) == lines[:2]


def test_unicode_line_separators_do_not_end_a_line(tmp_path: Path) -> None:
    """Only a line feed does: a form feed or U+2028 is part of the text."""
    path = tmp_path / "log.txt"
    path.write_bytes("2004-12-25 09:14 <ann> a\x0cb\u2028c\rd\n".encode())
    (line,) = read_log(path, Reading())
    assert line.text == "a b\u2028c d"


# -- the replay ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("connections", [2, 3, 64])
async def test_as_its_users_every_line_is_from_its_nick_and_in_order(log: Path, connections: int) -> None:
    """However few connections are open, the order of the file holds over all of them."""
    dialogue = make_dialogue()
    async with serve(dialogue) as address:
        summary, reading = await replay(
            log, url=f"http://{address}", room_id="general", connections=connections
        )
        expected = [(line.nick, line.text) for line in read_log(log, Reading())]
        assert [(event.sender, event.data["text"]) for event in await recorded(dialogue)] == expected
    assert (summary.sent, summary.acked, summary.duplicates, summary.late) == (120, 120, 0, 0)
    assert not summary.refused
    assert summary.acks_per_second > 0
    assert reading == Reading()


async def test_the_pool_keeps_to_its_bound_and_closes_the_least_recently_used(log: Path) -> None:
    """At most *size* connections, whoever asks."""
    dialogue = make_dialogue()
    async with serve(dialogue) as address:
        async with Pool(f"http://{address}", "general", size=2, in_flight=1) as pool:
            ann = await pool.room("ann")
            await pool.room("bob")
            assert await pool.room("ann") is ann
            await pool.room("cat")
            async with asyncio.timeout(10):
                while {client.user_id for client in dialogue.clients()} != {"ann", "cat"}:
                    await asyncio.sleep(0.005)
        async with asyncio.timeout(10):
            while dialogue.clients():
                await asyncio.sleep(0.005)


@pytest.mark.parametrize("in_flight", [1, 7, 500])
async def test_as_one_user_the_nick_is_in_the_meta(log: Path, in_flight: int) -> None:
    """One connection, pipelined: the order of the file holds."""
    dialogue = make_dialogue()
    async with serve(dialogue) as address:
        summary, _ = await replay(
            log, url=f"http://{address}", room_id="general", as_one="archivist", in_flight=in_flight
        )
        events = await recorded(dialogue)
        expected = [(line.nick, line.text) for line in read_log(log, Reading())]
        assert [(event.meta["nick"], event.data["text"]) for event in events if event.meta] == expected
        assert {event.sender for event in events} == {"archivist"}
    assert (summary.sent, summary.acked) == (120, 120)


@pytest.mark.parametrize("as_one", [None, "archivist"])
async def test_started_again_it_records_nothing_twice(log: Path, as_one: str | None) -> None:
    """An interrupted replay goes on: what was recorded is acked as a duplicate."""
    dialogue = make_dialogue()
    async with serve(dialogue) as address:
        url = f"http://{address}"
        first, _ = await replay(log, url=url, room_id="general", as_one=as_one, limit=50)
        second, _ = await replay(log, url=url, room_id="general", as_one=as_one)
        texts = [event.data["text"] for event in await recorded(dialogue)]
    assert (first.acked, first.duplicates) == (50, 0)
    assert (second.acked, second.duplicates) == (120, 50)
    assert texts == [line.text for line in read_log(log, Reading())]


@pytest.mark.parametrize("as_one", [None, "archivist"])
async def test_refused_lines_are_counted_by_code_and_the_rest_goes_on(log: Path, as_one: str | None) -> None:
    """One line that the application does not want costs that line alone."""
    dialogue = make_dialogue()

    @dialogue.before_each
    def refuse_some(event: Event[Message]) -> None:
        if event.data["text"].endswith("7"):
            raise ValidationFailed("no sevens")

    async with serve(dialogue) as address:
        summary, _ = await replay(log, url=f"http://{address}", room_id="general", as_one=as_one)
        assert len(await recorded(dialogue)) == 108
    assert summary.refused == {"VALIDATION_FAILED": 12}
    assert (summary.sent, summary.acked) == (120, 108)


async def test_a_server_that_asks_to_wait_gets_the_line_again(log: Path) -> None:
    """Nothing is lost to a limit; that the order may have suffered is said."""
    dialogue = make_dialogue()
    asked: set[str] = set()

    @dialogue.before_each
    def once_each_tenth(event: Event[Message]) -> None:
        text = event.data["text"]
        if text.endswith("0") and text not in asked:
            asked.add(text)
            raise RateLimited("slowly", retry_after_seconds=0.01)

    async with serve(dialogue) as address:
        summary, _ = await replay(log, url=f"http://{address}", room_id="general", as_one="archivist")
        texts = {event.data["text"] for event in await recorded(dialogue)}
    assert texts == {line.text for line in read_log(log, Reading())}
    assert (summary.acked, summary.late, summary.refused.total()) == (120, 12, 0)


async def test_a_room_that_does_not_exist_ends_it(log: Path) -> None:
    """The error of the join is told as it is, not in a group."""
    async with serve(make_dialogue()) as address:
        for as_one in (None, "archivist"):
            with pytest.raises(RoomNotFound):
                await replay(log, url=f"http://{address}", room_id="nowhere", as_one=as_one)


async def run_command(*arguments: str) -> tuple[int, str]:
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        str(ROOT / "examples" / "irc_replay.py"),
        *arguments,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    output, _ = await process.communicate()
    assert process.returncode is not None
    return process.returncode, output.decode()


async def test_the_command_shows_a_summary(log: Path) -> None:
    """What docs tell to type works, and its exit status says whether every line was acked."""
    async with serve(make_dialogue()) as address:
        status, output = await run_command(str(log), "--url", f"http://{address}", "--in-flight", "20")
    assert status == 0, output
    assert "120/120" in output
    assert "acks per second" in output


async def test_the_command_says_what_is_wrong(tmp_path: Path, log: Path) -> None:
    """A missing file, or a room that is not there: one line and status 1, no traceback."""
    status, output = await run_command(str(tmp_path / "missing.txt"))
    assert status == 1
    assert "No such file" in output
    async with serve(make_dialogue()) as address:
        status, output = await run_command(str(log), "--url", f"http://{address}", "--room", "nowhere")
    assert status == 1
    assert "Traceback" not in output


def test_a_key_is_the_same_in_every_replay(log: Path) -> None:
    """It comes from the file's name and the line's number alone."""
    first = list(read_log(log, Reading()))
    assert first == list(read_log(log, Reading()))
    assert isinstance(first[0], Line)
    assert len({line.key for line in first}) == len(first)
