"""``dialogue export`` and ``dialogue import``: a whole log to a file and back."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from ..errors import DialogueError
from .common import err, fail, out, sql_store

cli = typer.Typer()

Store = Annotated[
    str,
    typer.Argument(
        metavar="STORE",
        help="The log: its URL, e.g. sqlite:///chat.db, or a Dialogue's MODULE:ATTRIBUTE.",
        show_default=False,
    ),
]


@contextmanager
def _bars() -> Iterator[Callable[[str], Callable[[int, int], None]]]:
    """Yield what makes a progress bar by its name; on a terminal only, and gone at the end."""
    with Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        TimeRemainingColumn(),
        console=err,
        transient=True,
        disable=not err.is_terminal,
    ) as progress:

        def bar(name: str) -> Callable[[int, int], None]:
            task = progress.add_task(name, total=None)
            return lambda done, total: progress.update(task, completed=done, total=total)

        yield bar


@cli.command("export")
def export_command(
    store: Store,
    file: Annotated[
        Path,
        typer.Argument(
            metavar="FILE",
            help="The file to write, e.g. chat.jsonl; compressed if its name ends in .gz.",
            show_default=False,
        ),
    ],
) -> None:
    """Write a whole log to a file, as it is now, while its server runs. Run it again if it was interrupted."""
    from ..storage.administration import Database
    from ..storage.log_export import export_log

    async def run() -> None:
        async with Database(sql_store(store)) as database:
            started = time.monotonic()
            with _bars() as bar:
                done = await export_log(database, file, on_progress=bar("Exporting"))
            _tell(f"Exported {database.name} to {file}", done.counts["event"], done.is_resumed, started)

    try:
        asyncio.run(run())
    except DialogueError as error:
        fail(error)


@cli.command("import")
def import_command(
    file: Annotated[
        Path,
        typer.Argument(metavar="FILE", help="What 'dialogue export' has written.", show_default=False),
    ],
    store: Store,
) -> None:
    """Read a whole log from a file into a new database. Run it again if it was interrupted."""
    from ..storage.administration import Database
    from ..storage.log_import import import_log

    async def run() -> None:
        async with Database(sql_store(store)) as database:
            started = time.monotonic()
            with _bars() as bar:
                done = await import_log(
                    file, database, on_check=bar("Checking"), on_progress=bar("Importing")
                )
            _tell(f"Imported {file} into {database.name}", done.counts["event"], done.is_resumed, started)

    try:
        asyncio.run(run())
    except DialogueError as error:
        fail(error)


def _tell(what: str, events: int, is_resumed: bool, started: float) -> None:
    seconds = time.monotonic() - started
    resumed = ", going on with an interrupted one" if is_resumed else ""
    out.print(f"{what}: {events:,} events in {seconds:.1f} s{resumed}", markup=False, soft_wrap=True)


__all__ = ["cli", "export_command", "import_command"]
