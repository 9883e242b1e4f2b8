"""``dialogue export`` and ``dialogue import``: what they say. What they do is in `tests/storage/test_transfer.py`."""

from __future__ import annotations

import asyncio
import io
import re
from pathlib import Path

import pytest
from rich.console import Console
from typer.testing import CliRunner

from dialogue.cli import cli
from dialogue.commands import transfer
from dialogue.storage.sql import SQLStore

from .storage.test_transfer import dump, fill


def dialogue(*arguments: str | Path) -> tuple[int, str, str]:
    """Run the command; return its status, its output and its errors."""
    result = CliRunner().invoke(cli, list(map(str, arguments)))
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, result.stdout, result.stderr


@pytest.fixture
def url(tmp_path: Path) -> str:
    """A log with events."""
    url = f"sqlite:///{tmp_path / 'log.db'}"
    asyncio.run(fill(url, 100))
    return url


def test_there_and_back(url: str, tmp_path: Path) -> None:
    """Each says in one line what it did; while a server has the log, it can still be exported."""

    async def serve() -> tuple[int, str, str]:
        store = SQLStore(url)
        await store.open()
        try:
            return await asyncio.to_thread(dialogue, "export", url, tmp_path / "log.jsonl.gz")
        finally:
            await store.aclose()

    status, output, errors = asyncio.run(serve())
    assert (status, errors) == (0, "")
    assert re.fullmatch(
        rf"Exported {tmp_path}/log.db to {tmp_path}/log.jsonl.gz: \d+ events in [\d.]+ s\n", output
    )
    target = f"sqlite:///{tmp_path / 'new.db'}"
    status, output, errors = dialogue("import", tmp_path / "log.jsonl.gz", target)
    assert (status, errors) == (0, "")
    assert re.fullmatch(
        rf"Imported {tmp_path}/log.jsonl.gz into {tmp_path}/new.db: \d+ events in [\d.]+ s\n", output
    )
    assert asyncio.run(dump(target)) == asyncio.run(dump(url))


def test_a_terminal_sees_a_bar(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is drawn on standard error, so that output can be kept."""
    screen = io.StringIO()
    monkeypatch.setattr(transfer, "err", Console(file=screen, force_terminal=True, width=100))
    assert dialogue("export", url, tmp_path / "log.jsonl")[0] == 0
    assert dialogue("import", tmp_path / "log.jsonl", f"sqlite:///{tmp_path / 'new.db'}")[0] == 0
    for name in ("Exporting", "Checking", "Importing"):
        assert re.search(rf"{name} .*100%", screen.getvalue()), name


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("export", "{url}", "{folder}/log.db"), "is there already"),
        (("export", "{url}", "{folder}/nowhere/log.jsonl"), "there is no such folder"),
        (("export", "sqlite:///{folder}/none.db", "{folder}/log.jsonl"), "dialogue db upgrade"),
        (("export", "postgresql://ann:secret@127.0.0.1:1/log", "{folder}/log.jsonl"), "cannot be used"),
        (("export", "nonsense", "{folder}/log.jsonl"), "Write for example sqlite:///chat.db"),
        (("import", "{folder}/none.jsonl", "{url}"), "cannot be read"),
        (("import", "{folder}/log.db", "sqlite:///{folder}/new.db"), "line 1: this is not an export"),
    ],
)  # fmt: skip
def test_what_cannot_be_done_is_one_line(
    url: str, tmp_path: Path, arguments: tuple[str, ...], said: str
) -> None:
    """Status 1, a line that names the remedy, never a password, and nothing that was not there before."""
    before = set(tmp_path.iterdir())
    status, output, errors = dialogue(*(part.format(url=url, folder=tmp_path) for part in arguments))
    assert (status, output) == (1, "")
    (line,) = errors.splitlines()
    assert line.startswith("Error: ")
    assert said in line
    assert "secret" not in line
    assert set(tmp_path.iterdir()) == before


def test_an_import_makes_no_folder(url: str, tmp_path: Path) -> None:
    """A mistyped path is refused, as it is by a start, and nothing is left of it."""
    dialogue("export", url, tmp_path / "log.jsonl")
    status, _, errors = dialogue("import", tmp_path / "log.jsonl", f"sqlite:///{tmp_path}/typo/new.db")
    assert status == 1
    assert "there is no folder" in errors
    assert not (tmp_path / "typo").exists()
