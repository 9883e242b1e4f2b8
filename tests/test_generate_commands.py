"""``dialogue types``, ``dialogue asyncapi`` and ``dialogue client``: what they write, and what they leave alone."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from dialogue import __version__
from dialogue.cli import cli
from dialogue.generating.asyncapi import asyncapi
from dialogue.generating.typescript import typescript
from dialogue.server.static import STATIC
from examples.chat.config import dialogue as chat

from .processes import ROOT

CHAT = "examples.chat.config:dialogue"


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder, which is the current one."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    return tmp_path


def run(*arguments: str) -> Result:
    """Run the command."""
    return CliRunner().invoke(cli, list(arguments))


def test_types_are_printed() -> None:
    """Without a file; nothing else is in the output, so that it can be piped."""
    result = run("types", CHAT)
    assert (result.exit_code, result.stderr) == (0, "")
    assert result.stdout == typescript(chat.room_types, target=CHAT)


def test_asyncapi_is_printed() -> None:
    """The document, and with a server, where it is."""
    result = run("asyncapi", CHAT)
    assert json.loads(result.stdout) == asyncapi(chat.room_types, is_authenticated=False)
    document = json.loads(run("asyncapi", CHAT, "--server", "https://chat.example/d").stdout)
    assert document["servers"]["dialogue"] == {"host": "chat.example", "protocol": "wss", "pathname": "/d/ws"}
    result = run("asyncapi", CHAT, "--server", "chat.example")
    assert result.exit_code == 1
    assert "Error: --server 'chat.example': a server is http(s)://" in result.stderr


@pytest.mark.parametrize("command", ["types", "asyncapi"])
def test_a_full_disk_is_one_line(command: str) -> None:
    """Where the shell has sent the output to a file that takes no more."""
    with Path("/dev/full").open("wb") as full:
        done = subprocess.run(
            [sys.executable, "-m", "dialogue", command, CHAT],
            cwd=ROOT,
            stdout=full,
            stderr=subprocess.PIPE,
            check=False,
        )
    assert (done.returncode, done.stderr) == (1, b"Error: standard output: No space left on device\n")


@pytest.mark.parametrize("command", ["types", "asyncapi"])
def test_a_file_is_written_checked_and_written_again(folder: Path, command: str) -> None:
    """Folders are made; --check says when it is out of date; one's own file is written over."""
    file = folder / "src" / "made"
    arguments = (command, CHAT, "-o", str(file))
    result = run(*arguments, "--check")
    assert result.exit_code == 1
    assert f"{file} is not up to date. Run: dialogue {command} {CHAT} -o {file}" in result.stderr
    assert not file.parent.exists()
    result = run(*arguments)
    assert (result.exit_code, result.stdout) == (0, f"Wrote {file}\n")
    assert file.read_text(encoding="utf-8") == run(command, CHAT).stdout
    assert run(*arguments, "--check").exit_code == 0
    file.write_bytes(file.read_bytes().replace(b"\n", b"\r\n"))
    assert run(*arguments, "--check").exit_code == 0, "a checkout has other line ends"
    old = file.read_text(encoding="utf-8").replace("username", "user")
    file.write_text(old, encoding="utf-8")
    assert run(*arguments, "--check").exit_code == 1
    assert file.read_text(encoding="utf-8") == old
    assert run(*arguments).exit_code == 0
    assert file.read_text(encoding="utf-8") == run(command, CHAT).stdout


@pytest.mark.parametrize("command", ["types", "asyncapi"])
@pytest.mark.parametrize("text", ["export const mine = 1;\n", "{}", "\udcff", ""])
def test_a_foreign_file_is_left_alone(folder: Path, command: str, text: str) -> None:
    """Unless it is said that it may be written over."""
    file = folder / "mine"
    file.write_bytes(text.encode(errors="surrogateescape"))
    before = file.read_bytes()
    result = run(command, CHAT, "-o", str(file))
    assert result.exit_code == 1
    assert "not written by this command" in result.stderr
    assert file.read_bytes() == before
    assert run(command, CHAT, "-o", str(file), "--force").exit_code == 0
    assert file.read_bytes() != before


def test_check_needs_a_file() -> None:
    """There is nothing to compare."""
    result = run("types", CHAT, "--check")
    assert result.exit_code == 2
    assert "--output" in re.sub(r"\x1b\[[0-9;]*m", "", result.stderr)


def test_what_cannot_be_written_is_one_line(folder: Path) -> None:
    """A folder where a file should be, and a file where a folder should be."""
    (folder / "file").touch()
    for arguments in (("types", CHAT, "-o", "."), ("types", CHAT, "-o", "file/x"), ("client", "file")):
        result = run(*arguments)
        assert result.exit_code == 1, result.output
        assert result.stderr.startswith("Error: ")
        assert len(result.stderr.splitlines()) == 1


def test_a_target_that_is_none_is_one_line() -> None:
    """As every command says it."""
    for command in ("types", "asyncapi"):
        result = run(command, "nowhere:dialogue")
        assert result.exit_code == 1
        assert "there is no module 'nowhere'" in result.stderr


def test_the_client_is_written_with_its_types(folder: Path) -> None:
    """With a line that says of which version they are; that line aside they are what the router serves."""
    result = run("client", "src/lib")
    assert result.exit_code == 0, result.output
    for name in ("dialogue.js", "dialogue.d.ts"):
        first, _, rest = (folder / "src" / "lib" / name).read_bytes().partition(b"\n")
        assert first.decode().startswith(f"// {name} of Dialogue {__version__}, sha256 ")
        assert rest == (STATIC / name).read_bytes()
        assert f"Wrote src/lib/{name}, of Dialogue {__version__}\n" in result.stdout
    assert run("client", "src/lib", "--check").exit_code == 0
    assert run("client", "src/lib").exit_code == 0


def test_an_older_client_is_written_over(folder: Path) -> None:
    """It is as some version has written it: nobody loses anything."""
    assert run("client", ".").exit_code == 0
    # Of an empty file.
    digest = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
    (folder / "dialogue.js").write_text(f"// dialogue.js of Dialogue 0.0.1, sha256 {digest}\n")
    result = run("client", ".", "--check")
    assert result.exit_code == 1
    assert "not up to date in .: dialogue.js. Run: dialogue client ." in result.stderr
    assert run("client", ".").exit_code == 0
    assert run("client", ".", "--check").exit_code == 0


@pytest.mark.parametrize("name", ["dialogue.js", "dialogue.d.ts"])
def test_a_client_that_someone_has_changed_is_left_alone(folder: Path, name: str) -> None:
    """Neither file is written then, unless it is said that they may be."""
    assert run("client", ".").exit_code == 0
    file = folder / name
    changed = file.read_bytes() + b"// mine\n"
    for text in (changed, b"mine\n"):
        file.write_bytes(text)
        for other in {"dialogue.js", "dialogue.d.ts"} - {name}:
            (folder / other).unlink(missing_ok=True)
        result = run("client", ".")
        assert result.exit_code == 1
        assert f"{name}: not as this command has written it" in result.stderr
        assert file.read_bytes() == text
        assert [path.name for path in folder.iterdir()] == [name]
    assert run("client", ".", "--force").exit_code == 0
    assert run("client", ".", "--check").exit_code == 0
