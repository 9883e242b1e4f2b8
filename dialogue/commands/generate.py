"""``dialogue types``, ``dialogue asyncapi`` and ``dialogue client``: what is written for others to use."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from .. import __version__
from ..errors import DialogueError
from .common import Target, fail, load, out
from .output import telling_what_fails

cli = typer.Typer()

Output = Annotated[
    Path | None,
    typer.Option("--output", "-o", help="The file to write; standard output without it.", show_default=False),
]
Check = Annotated[
    bool,
    typer.Option(
        "--check", help="Write nothing; end with status 1 if the output is not as it would be written."
    ),
]
Force = Annotated[
    bool, typer.Option("--force", help="Write over a file that this command did not write, too.")
]

_MARK = re.compile(rb"// (?P<name>\S+) of Dialogue (?P<version>\S+), sha256 (?P<digest>[0-9a-f]{64})\n")


@cli.command()
def types(target: Target, output: Output = None, check: Check = False, force: Force = False) -> None:
    """Write TypeScript types of all declared events."""
    from ..generating.typescript import FIRST_WORDS, typescript

    try:
        text = typescript(load(target).room_types, target=target)
    except DialogueError as error:
        fail(error)
    _give(
        text,
        output,
        is_check=check,
        is_own=lambda old: force or old.startswith(FIRST_WORDS),
        again=f"dialogue types {target} -o {output}",
    )


@cli.command()
def asyncapi(
    target: Target,
    output: Output = None,
    server: Annotated[
        str | None,
        typer.Option(
            help="Where it is served: the router's base, e.g. https://example.com/dialogue.",
            show_default=False,
        ),
    ] = None,
    check: Check = False,
    force: Force = False,
) -> None:
    """Write an AsyncAPI document: rooms, commands, messages and events of the socket."""
    from ..generating.asyncapi import asyncapi as document

    try:
        dialogue = load(target)
        found = document(dialogue.room_types, is_authenticated=not dialogue.is_development, server=server)
    except DialogueError as error:
        fail(error)
    except ValueError as error:
        fail(f"--server {server!r}: {error}")

    def is_document(old: str) -> bool:
        try:
            return isinstance(read := json.loads(old), dict) and "x-dialogue-version" in read
        except ValueError:
            return False

    _give(
        json.dumps(found, indent=2, ensure_ascii=False) + "\n",
        output,
        is_check=check,
        is_own=lambda old: force or is_document(old),
        again=f"dialogue asyncapi {target} -o {output}",
    )


@cli.command()
def client(
    folder: Annotated[
        Path,
        typer.Argument(
            metavar="PATH", help="The folder to write to; made if it is missing.", show_default=False
        ),
    ],
    check: Check = False,
    force: Force = False,
) -> None:
    """Write the browser client, dialogue.js, and its types, dialogue.d.ts, for a bundler to find."""
    from ..server.static import STATIC

    texts = {name: _marked(name, (STATIC / name).read_bytes()) for name in ("dialogue.js", "dialogue.d.ts")}
    try:
        old = {name: _read(folder / name) for name in texts}
        if check:
            changed = [name for name in texts if old[name] != texts[name]]
            if changed:
                fail(f"not up to date in {folder}: {', '.join(changed)}. Run: dialogue client {folder}")
            out.print(f"{folder} is up to date", markup=False, soft_wrap=True)
            return
        foreign = [name for name, text in old.items() if text is not None and not _is_own(text) and not force]
        if foreign:
            fail(
                f"{' and '.join(str(folder / name) for name in foreign)}: not as this command has written it. "
                "Move it away, or write over it with --force"
            )
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in texts.items():
            (folder / name).write_bytes(text)
    except OSError as error:
        fail(f"{error.filename or folder}: {error.strerror or error}")
    for name in texts:
        out.print(f"Wrote {folder / name}, of Dialogue {__version__}", markup=False, soft_wrap=True)


def _marked(name: str, content: bytes) -> bytes:
    """Return *content* with a first line that says of which version it is, and what it was when it was written."""
    digest = hashlib.sha256(content).hexdigest()
    return f"// {name} of Dialogue {__version__}, sha256 {digest}\n".encode() + content


def _is_own(text: bytes) -> bool:
    """Whether a file is as some version of this command has written it, unchanged since."""
    # A checkout may have given it other line ends.
    rest = text.replace(b"\r\n", b"\n")
    mark = _MARK.match(rest)
    return mark is not None and hashlib.sha256(rest[mark.end() :]).hexdigest().encode() == mark["digest"]


def _read(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None


def _give(
    text: str, output: Path | None, *, is_check: bool, is_own: Callable[[str], bool], again: str
) -> None:
    """Print *text*, or write it to a file, or compare it with one."""
    if output is None:
        if is_check:
            raise typer.BadParameter("--check needs --output: what is to be compared?")
        try:
            with telling_what_fails():
                typer.echo(text, nl=False)
        except DialogueError as error:
            fail(error)
        return
    try:
        old = _read(output)
        is_same = old is not None and old.replace(b"\r\n", b"\n") == text.encode()
        if is_check:
            if not is_same:
                fail(f"{output} is not up to date. Run: {again}")
            out.print(f"{output} is up to date", markup=False, soft_wrap=True)
            return
        if old is not None and not is_same and not is_own(old.decode(errors="replace")):
            fail(f"{output}: not written by this command. Move it away, or write over it with --force")
        output.parent.mkdir(parents=True, exist_ok=True)
        output.write_text(text, encoding="utf-8", newline="\n")
    except OSError as error:
        fail(f"{error.filename or output}: {error.strerror or error}")
    out.print(f"Wrote {output}", markup=False, soft_wrap=True)


__all__ = ["asyncapi", "cli", "client", "types"]
