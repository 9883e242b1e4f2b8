"""Logging: one line of JSON for each record, and a logger of one's own that every part uses."""

from __future__ import annotations

import ast
import json
import logging
import signal
import sqlite3
import sys
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from dialogue import Dialogue, History, LogLocked, RoomConfig, SQLStore, define_event
from dialogue.logs import FIELDS, JSONFormatter
from dialogue.testing import FaultyStore

from .docs.pages import DOCS, read
from .processes import ROOT, Command
from .server.harness import eventually

message = define_event("message", history=History(limit=1))


class Kept(logging.Handler):
    """Keeps the records of a logger that hands nothing on."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.records: list[logging.LogRecord] = []
        self.logger = logging.Logger(name)
        self.logger.addHandler(self)

    def emit(self, record: logging.LogRecord) -> None:
        """Keep it."""
        self.records.append(record)

    def said(self, text: str) -> logging.LogRecord | None:
        """Return the record whose message has *text*, if there is one."""
        return next((record for record in self.records if text in record.getMessage()), None)


def formatted(*, message: str = "hello", exc_info: Any = None, **extra: Any) -> dict[str, Any]:
    """Return what the formatter makes of a record, read again."""
    record = logging.getLogger("some.logger").makeRecord(
        "some.logger", logging.WARNING, __file__, 1, message, (), exc_info, extra=extra
    )
    record.created = datetime(2026, 1, 2, 3, 4, 5, 678_000, UTC).timestamp()
    line = JSONFormatter().format(record)
    assert line.isascii()
    assert len(line.splitlines()) == 1
    found: dict[str, Any] = json.loads(line, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    return found


def test_a_record_is_one_line_of_json() -> None:
    """Time, level, logger and message, and what the record was given beside it."""
    assert formatted(room_id="general", event_count=3) == {
        "time": "2026-01-02T03:04:05.678Z",
        "level": "warning",
        "logger": "some.logger",
        "message": "hello",
        "room_id": "general",
        "event_count": 3,
    }


def test_nothing_that_is_logged_begins_another_line() -> None:
    """Line breaks of every kind, control characters and what is no Unicode text stay inside of their string."""
    text = 'a\nb\r\n\x1b[31m\x85\u2028"}\ud800'
    found = formatted(message=text, user_id=text)
    assert found["message"] == found["user_id"] == text


def test_what_is_not_json_becomes_its_repr() -> None:
    """A formatter that raises loses the record."""
    loop: list[Any] = []
    loop.append(loop)
    found = formatted(
        path=Path("x"), number=float("nan"), keys={(1, 2): 3}, loop=loop, plain={"a": [1, None]}
    )
    assert found["path"] == repr(Path("x"))
    assert found["number"] == "nan"
    assert found["keys"] == "{(1, 2): 3}"
    assert found["loop"] == "[[...]]"
    assert found["plain"] == {"a": [1, None]}


def test_an_extra_does_not_take_the_place_of_a_field() -> None:
    """It gets an underscore; uvicorn's coloured messages are left out."""
    found = formatted(time=1, level=2, logger=3, exception=4, stack=5, color_message="red")
    assert (found["level"], found["logger"]) == ("warning", "some.logger")
    assert [found[f"{name}_"] for name in ("time", "level", "logger", "exception", "stack")] == [
        1,
        2,
        3,
        4,
        5,
    ]
    assert "color_message" not in found
    assert "exception" not in found


def test_an_exception_is_text() -> None:
    """With its traceback."""
    try:
        raise ZeroDivisionError("by zero")
    except ZeroDivisionError:
        found = formatted(exc_info=sys.exc_info())
    assert found["exception"].startswith("Traceback")
    assert found["exception"].endswith("ZeroDivisionError: by zero")


def test_records_carry_only_fields_that_are_documented() -> None:
    """What the package gives as `extra=` is in `FIELDS`, and `FIELDS` is what the reference says."""
    used = set()
    for path in (ROOT / "dialogue").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.keyword) and node.arg == "extra" and isinstance(node.value, ast.Dict):
                used |= {ast.literal_eval(key) for key in node.value.keys if key is not None}
    assert used
    assert used <= set(FIELDS)
    rows = read(DOCS / "reference" / "logging.md").rows("Field")
    assert {row[0].strip("`"): row[1] for row in rows} == FIELDS


def test_run_logs_json(tmp_path: Path) -> None:
    """`--log-format json`: every line on standard error is an object; what is printed stays as it is."""
    (tmp_path / "config.py").write_text(
        "from dialogue import Dialogue, RoomConfig\ndialogue = Dialogue(rooms={'general': RoomConfig()})\n"
    )
    with Command("run", "config:dialogue", "--port", "0", "--log-format", "json", folder=tmp_path) as command:
        command.address()
        assert command.end(signal.SIGTERM) == 0
    lines = [json.loads(line) for line in command.output.splitlines() if line.startswith("{")]
    (told,) = [line for line in lines if "development mode" in line["message"]]
    assert (told["level"], told["logger"]) == ("warning", "dialogue")
    others = [line for line in command.output.splitlines() if not line.startswith("{")]
    assert all("WARNING" not in line for line in others)


async def test_a_logger_of_ones_own_gets_what_every_part_says(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Server, publish path, hand-over, and the store itself; the logger of the package gets nothing."""
    kept = Kept("mine")
    path = tmp_path / "log.db"
    faulty = FaultyStore(SQLStore(f"sqlite:///{path}", lock_wait_seconds=0.2))
    dialogue = Dialogue(rooms={"general": RoomConfig(events=[message])}, store=faulty, logger=kept.logger)

    @dialogue.on_cleanup
    def refuse() -> None:
        raise RuntimeError("no room")

    @dialogue.after_each
    def fail() -> None:
        raise RuntimeError("no time")

    async with dialogue.lifespan():
        other = Dialogue(
            rooms={}, store=SQLStore(f"sqlite:///{path}", lock_wait_seconds=0.2), logger=kept.logger
        )
        with pytest.raises(LogLocked):
            async with other.lifespan():
                raise AssertionError("two owners")
        assert kept.said("another process is serving the log")
        for number in range(3):
            await dialogue.trigger("general", message, number)
        record = await eventually(lambda: kept.said("on_cleanup failed"))
        assert (record.room_id, record.event_name) == ("general", "message")
        assert await eventually(lambda: kept.said("hook after_each failed"))
        # Another program writes into the log: the store itself says so.
        with closing(sqlite3.connect(path)) as connection, connection:
            connection.execute("UPDATE dialogue_log SET last_id = last_id + 5")
        with pytest.raises(Exception, match="unavailable"):
            await dialogue.trigger("general", message, 4)
        assert kept.said("another server has written to the log")
        record = kept.said("the store did not take 1 events")
        assert record is not None
        assert vars(record)["event_count"] == 1
    assert kept.said("development mode")
    assert not [record for record in caplog.records if record.name.startswith("dialogue")]
