"""``dialogue tail``: a room's events on standard output."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from ..events import Event
from .output import ending_with_its_reader, note, run_to_its_end, show, write
from .remote import RoomId, Token, Url, connected, follow, is_text
from .showing import json_of, printable, text_of, time_of

cli = typer.Typer()


@cli.command()
def tail(
    url: Url,
    room: RoomId,
    user: Annotated[
        str | None,
        typer.Option(
            help="Who to be, where the server lets clients say so.", callback=is_text, show_default=False
        ),
    ] = None,
    token: Token = None,
    after: Annotated[
        int | None,
        typer.Option(
            min=0, help="Begin above this seq; 0 for the beginning of the room.", show_default=False
        ),
    ] = None,
    lines: Annotated[
        int, typer.Option("--lines", "-n", min=0, help="Begin with so many of the newest events.")
    ] = 20,
    event: Annotated[
        list[str] | None,
        typer.Option(
            help="Only events of this name; may be given several times.", callback=is_text, show_default=False
        ),
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print each event as one line of JSON.")] = False,
    no_follow: Annotated[
        bool, typer.Option("--no-follow", help="End with the newest event instead of waiting for more.")
    ] = False,
) -> None:
    """Print a room's events, and those to come, until Ctrl-C."""
    names = list(dict.fromkeys(event or []))

    async def run() -> None:
        async with ending_with_its_reader(), connected(url, user=user, token=token, note=note) as client:
            joined = await client.join(room, sync=0, events=names or "*")
            await follow(
                joined,
                names=names,
                after=after,
                lines=lines,
                is_endless=not no_follow,
                show=_json if json else _line,
                note=note,
            )

    run_to_its_end(run)


def _json(event: Event[Any]) -> None:
    write(json_of(event))


def _line(event: Event[Any]) -> None:
    show(
        (time_of(event), "dim"),
        ("  ", ""),
        (printable(event.sender), "bold cyan"),
        ("  ", ""),
        (printable(event.event), "dim"),
        ("  ", ""),
        (text_of(event), ""),
    )
