"""The ``dialogue`` command.

Exit status: 0 after a stop that was asked for, 1 when something is wrong (told in one line on standard error), 2 when
the command line itself is, 130 when a second signal has ended a stop at once.
"""

from __future__ import annotations

import functools
import sys
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from . import __version__
from .app import Dialogue
from .commands import chat, db, generate, tail, transfer
from .commands.common import Target, err, fail, load, out
from .config import EventType
from .deployment import Problem, problems
from .errors import DialogueError, StartError
from .limits import Limits
from .room_types import RoomType

if TYPE_CHECKING:
    import socket

cli = typer.Typer(
    name="dialogue",
    help="Realtime rooms whose history, once you give it a store, never gets lost.",
    add_completion=False,
    no_args_is_help=True,
    # Its boxes hide the line that says what is wrong.
    pretty_exceptions_enable=False,
)
cli.add_typer(db.cli)
cli.add_typer(transfer.cli)
cli.add_typer(generate.cli)
cli.add_typer(tail.cli)
cli.add_typer(chat.cli)


class LogLevel(StrEnum):
    """What ``--log-level`` takes."""

    debug = "debug"
    info = "info"
    warning = "warning"
    error = "error"


class LogFormat(StrEnum):
    """What ``--log-format`` takes."""

    text = "text"
    json = "json"


Port = Annotated[int, typer.Option(min=0, max=65_535, help="The port; 0 for any free one.")]
Host = Annotated[
    str,
    typer.Option(
        help="The address to listen on. By default only this machine can connect; 0.0.0.0 lets others."
    ),
]
Level = Annotated[LogLevel, typer.Option(help="The least important messages that are logged.")]


def _end(unflushed_events: int) -> None:
    from .server.run import leave_hanging_threads

    if not unflushed_events:
        leave_hanging_threads(0)
        return
    try:
        fail(
            f"stopped, but {unflushed_events} events could not be handed over to on_cleanup and are lost. "
            "The log above tells what on_cleanup raised; with a store= they would wait for the next start"
        )
    finally:
        leave_hanging_threads(1)


@cli.callback(invoke_without_command=True)
def root(
    version: Annotated[
        bool, typer.Option("--version", help="Show the version and end.", is_eager=True)
    ] = False,
) -> None:
    if version:
        out.print(f"dialogue {__version__}")
        raise typer.Exit


@cli.command()
def run(
    target: Target,
    host: Host = "127.0.0.1",
    port: Port = 3000,
    reload: Annotated[bool, typer.Option("--reload", help="Start again when a Python file changes.")] = False,
    log_level: Level = LogLevel.info,
    log_format: Annotated[
        LogFormat, typer.Option(help="How messages are logged: as text, or as one JSON object in each line.")
    ] = LogFormat.text,
) -> None:
    """Serve a Dialogue: its socket, browser client, /health and /metrics."""
    from .server import run as server

    try:
        dialogue = None if reload else load(target)
        server.configure_logging(log_level, log_format)
        listener = server.listen(host, port)
        if dialogue is None:
            child = functools.partial(serve_child, target, log_level.value, log_format.value)
            if status := server.serve_reloading(child, listener):
                raise typer.Exit(status)
        else:
            _end(_serve(dialogue, target, listener))
    except DialogueError as error:
        fail(error)


def _serve(dialogue: Dialogue, target: str, listener: socket.socket, *, is_child: bool = False) -> int:
    from .server import run as server

    address = server.address_of(listener)

    def tell() -> None:
        socket_address = address.replace("http", "ws", 1) + "/ws"
        out.print(
            f"Serving [bold]{escape(target)}[/] at [bold cyan]{address}[/], socket {socket_address}",
            soft_wrap=True,
        )

    return server.serve(dialogue, dialogue.app, listener, on_serving=tell, is_child=is_child)


def serve_child(target: str, log_level: str, log_format: str, sockets: list[socket.socket]) -> None:
    """What a reloading server's child process does; ends the process with status 1 when it cannot start."""
    from .server import run as server

    server.ignore_terminal()
    try:
        server.configure_logging(log_level, log_format)
        _end(_serve(load(target), target, sockets[0], is_child=True))
    except DialogueError as error:
        err.print(Text.assemble(("Error: ", "bold red"), str(error)), soft_wrap=True)
        err.print("Waiting for a change.")
        sys.exit(1)
    except typer.Exit as end:
        sys.exit(end.exit_code)


@cli.command()
def demo(
    port: Annotated[
        int,
        typer.Option(
            min=0, max=65_535, help="The port; if it is taken, the next free one. 0 for any free one."
        ),
    ] = 3000,
    data: Annotated[Path, typer.Option(help="The folder for the database; made if it is missing.")] = Path(
        "dialogue-demo"
    ),
    host: Host = "127.0.0.1",
    messages: Annotated[
        int,
        typer.Option(
            min=0, max=200_000, help="How many messages a new room's past has; other rooms have fewer."
        ),
    ] = 5000,
    log_level: Level = LogLevel.warning,
) -> None:
    """Serve a chat with a generated past, to try in two browser windows."""
    from .demo.application import run_demo

    try:
        _end(
            run_demo(
                folder=data, host=host, port=port, messages=messages, log_level=log_level.value, console=out
            )
        )
    except DialogueError as error:
        fail(error)


@cli.command()
def check(
    target: Target,
    deploy: Annotated[
        bool,
        typer.Option("--deploy", help="Also list what is not safe to expose; status 1 if there is anything."),
    ] = False,
) -> None:
    """Check every declaration of a Dialogue, and show its rooms, events, limits and store. Opens nothing."""
    try:
        dialogue = load(target)
        archive = _archive_name(dialogue)
        found = problems(dialogue) if deploy else []
    except DialogueError as error:
        fail(error)
    for table in (_rooms_table(dialogue), _events_table(dialogue), _limits_table(dialogue.limits)):
        out.print(table)
    out.print(_store_table(dialogue, archive))
    if found:
        out.print(_problems_table(found))
        fail(
            f"{target} is not safe to expose: {len(found)} problem{'s' if len(found) > 1 else ''}, listed above"
        )
    said = "can be served; nothing was found that is not safe to expose" if deploy else "can be served"
    out.print(f"[bold green]OK[/]: {escape(target)} {said}")


def _archive_name(dialogue: Dialogue) -> str:
    """Return what the archive is, checking what only a start would check: whether the hooks fit together."""
    archive, is_readable = dialogue._choose_archive()
    if archive is None:
        return "none"
    name = "on_cleanup hook" if type(archive).__name__.startswith("_") else type(archive).__name__
    return name if is_readable else f"{name}, never read back: there is no on_load hook"


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold", header_style="dim")
    for column in columns:
        table.add_column(column, overflow="fold")
    return table


def _problems_table(found: list[Problem]) -> Table:
    table = _table("Not safe to expose", "Problem", "Where", "What is unsafe", "Remedy")
    for problem in found:
        table.add_row(*map(escape, problem))
    return table


def _room_types(dialogue: Dialogue) -> list[RoomType]:
    return [*dialogue.room_types.exact.values(), *dialogue.room_types.patterns]


def _rooms_table(dialogue: Dialogue) -> Table:
    table = _table("Rooms", "Room", "Name", "Events", "Most connections", "Events on join")
    for room_type in _room_types(dialogue):
        config = room_type.config
        events = "any" if room_type.admits_any_event else ", ".join(room_type.events) or "none"
        sync = (
            {True: "all in memory", False: "none"}.get(config.sync_history_on_join)
            if isinstance(config.sync_history_on_join, bool)
            else str(config.sync_history_on_join)
        )
        table.add_row(
            escape(room_type.template),
            escape(config.name),
            escape(events),
            "no limit" if config.max_size is None else str(config.max_size),
            sync,
        )
    return table


def _events_table(dialogue: Dialogue) -> Table:
    table = _table("Events", "Event", "Rooms", "Schema", "In memory", "In the log", "Triggered by", "Kind")
    # By identity: two rooms may have different types under one name.
    types: dict[int, tuple[EventType[Any], list[str]]] = {}
    for room_type in _room_types(dialogue):
        for event_type in room_type.events.values():
            types.setdefault(id(event_type), (event_type, []))[1].append(room_type.template)
    for event_type, rooms in types.values():
        schema = event_type.schema
        table.add_row(
            escape(event_type.name),
            escape(", ".join(rooms)),
            "any JSON" if schema is None else escape(getattr(schema, "__name__", str(schema))),
            f"newest {event_type.history.limit}" if event_type.history else "not recorded",
            _retention(event_type),
            "clients, server" if event_type.publish == "client" else "server only",
            event_type.kind,
        )
    return table


def _retention(event_type: EventType[Any]) -> str:
    if event_type.history is None:
        return ""
    retention = event_type.history.retention
    if retention is None:
        return "for ever"
    bounds = [] if retention.max_age is None else [str(retention.max_age)]
    if retention.max_events is not None:
        bounds.append(f"newest {retention.max_events:,}")
    return ", ".join(bounds)


def _limits_table(limits: Limits) -> Table:
    table = _table("Limits", "Limit", "Value", "What it bounds")
    for name, field in Limits.model_fields.items():
        value = getattr(limits, name)
        shown = f"{int(value) if value == int(value) else value:,}"
        changed = value != field.default
        table.add_row(
            name, f"[bold]{shown}[/] (changed)" if changed else shown, escape(field.description or "")
        )
    return table


def _store_table(dialogue: Dialogue, archive: str) -> Table:
    table = _table("Store", "What", "Value")
    store = dialogue.store
    name = getattr(store, "name", "")
    table.add_row("store", escape(f"{type(store).__name__} {name}".strip()))
    table.add_row("survives a restart", "yes" if store.is_durable else "no")
    table.add_row(
        "when it refuses an append",
        "publishers wait" if dialogue.on_store_failure == "wait" else "publishers are refused",
    )
    table.add_row("archive", escape(archive))
    table.add_row(
        "users",
        "say themselves who they are (development mode)" if dialogue.is_development else "authenticate hook",
    )
    table.add_row("further origins", escape(", ".join(dialogue.allowed_origins)) or "none")
    return table


def main() -> None:
    """The console script."""
    cli()


__all__ = ["StartError", "check", "cli", "demo", "fail", "load", "main", "run", "serve_child"]
