"""The command line: what it refuses, and what ``check`` shows."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from dialogue import __version__
from dialogue.cli import cli

from .processes import finished

GOOD = """
from pydantic import BaseModel

from dialogue import Dialogue, History, Limits, RoomConfig, define_event


class Message(BaseModel):
    text: str


message = define_event("message", schema=Message, history=History(limit=7))
alert = define_event("alert", publish="server", kind="notification")
dialogue = Dialogue(
    rooms={
        "general": RoomConfig(name="General [chat]", events=[message, alert], max_size=12),
        "dm:{a}:{b}": RoomConfig(events="*", sync_history_on_join=True),
    },
    store="sqlite:///chat.db",
    limits=Limits(page_events=99),
)
"""


def test_check_shows_what_is_declared(tmp_path: Path) -> None:
    """Rooms, events, limits and store of a good module; nothing is opened."""
    (tmp_path / "chat").mkdir()
    (tmp_path / "chat" / "config.py").write_text(GOOD)
    status, output = finished("check", "chat.config:dialogue", folder=tmp_path)
    assert status == 0, output
    lines = [" ".join(line.replace("│", " ").split()) for line in output.splitlines()]
    assert "general General [chat] message, alert 12 50" in lines
    assert "dm:{a}:{b} any no limit all in memory" in lines
    assert "message general Message newest 7 for ever clients, server event" in lines
    assert "alert general any JSON not recorded server only notification" in lines
    assert "page_events 99 (changed) most events in a page" in lines
    assert "session_retention_seconds 2,592,000 how long a session that has ended is kept" in lines
    assert f"store SQLStore {tmp_path / 'chat.db'}" in lines
    assert "users say themselves who they are (development mode)" in lines
    assert not (tmp_path / "chat.db").exists()


@pytest.mark.parametrize(
    ("target", "said"),
    [
        ("config", "not MODULE:ATTRIBUTE. Write for example chat.config:dialogue"),
        ("config:", "not MODULE:ATTRIBUTE"),
        ("config.py:dialogue:x", "not MODULE:ATTRIBUTE"),
        ("missing:dialogue", "no module 'missing'"),
        ("missing.config:dialogue", "no module 'missing'"),
        ("config:missing", "config has no 'missing'. It has: dialogue"),
        ("config:dialogue.missing", "config has no 'dialogue.missing'"),
        ("config:Message", "not a Dialogue"),
        ("declares:dialogue", r"History, field 'limit' ({folder}/declares.py, line 2): 0 is not"),
        ("imports:dialogue", r"({folder}/imports.py, line 2): ModuleNotFoundError: No module named 'nothing_here'"),
        ("raises:dialogue", r"({folder}/raises.py, line 2): ZeroDivisionError"),
        ("ends:dialogue", r"({folder}/ends.py, line 1): SystemExit: 0"),
        ("syntax:dialogue", r"({folder}/syntax.py, line 2): SyntaxError"),
        ("hooks:dialogue", "hook 'on_load': there is no on_cleanup hook"),
        ("url:dialogue", "store"),
    ],
)  # fmt: skip
def test_a_bad_module_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, target: str, said: str
) -> None:
    """What is wrong with a target or its module is told in one line that names file and line; status 1."""
    for name, text in {
        "config": GOOD,
        "declares": "from dialogue import History\nHistory(limit=0)\n",
        "imports": "\nimport nothing_here\n",
        "raises": "def f():\n    return 1 / 0\nf()\n",
        "ends": "raise SystemExit(0)\n",
        "syntax": "\ndef (\n",
        "hooks": GOOD + "\n@dialogue.on_load\ndef load(room_id, event_name, start, end): return []\n",
        "url": "from dialogue import Dialogue\ndialogue = Dialogue(rooms={}, store='oracle://x')\n",
    }.items():
        (tmp_path / f"{name}.py").write_text(text)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    before = set(sys.modules)
    try:
        result = CliRunner().invoke(cli, ["check", target])
    finally:
        for module in set(sys.modules) - before:
            del sys.modules[module]
    assert result.exit_code == 1
    assert result.stdout == ""
    (line,) = result.stderr.splitlines()
    assert line.startswith("Error: ")
    assert said.format(folder=tmp_path) in line


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ("\nimport nothing_here\n", "ModuleNotFoundError: No module named 'nothing_here'"),
        ("\n@dialogue.on_load\ndef load(start): return []\n", "hook 'on_load': there is no on_cleanup hook"),
    ],
)
def test_a_bad_module_is_not_run(tmp_path: Path, more: str, said: str) -> None:
    """A run says the same as a check, and does not say that it serves."""
    (tmp_path / "config.py").write_text(GOOD + more)
    status, output = finished("run", "config:dialogue", "--port", "0", folder=tmp_path)
    assert status == 1, output
    assert said in output
    assert "Serving" not in output
    assert "Traceback" not in output


def test_a_wrong_command_line_is_status_2(tmp_path: Path) -> None:
    """The shell's convention: 2 says that the command line itself is wrong."""
    assert finished("run", folder=tmp_path)[0] == 2
    assert finished("demo", "--port", "70000", folder=tmp_path)[0] == 2
    assert finished("nothing", folder=tmp_path)[0] == 2


def test_version(tmp_path: Path) -> None:
    """``--version`` tells it and ends."""
    assert finished("--version", folder=tmp_path) == (0, f"dialogue {__version__}\n")
