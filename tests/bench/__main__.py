"""The command: ``python -m tests.bench [SCENARIO...]``."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from . import runs, speed_page
from .report import Figure, show
from .scale import FULL, MOMENT, Scale
from .scenarios import SCENARIOS

POSTGRES = "DIALOGUE_TEST_POSTGRES_URL"

cli = typer.Typer(add_completion=False)


@cli.command()
def main(
    scenarios: Annotated[
        list[str] | None, typer.Argument(help=f"Any of {', '.join(SCENARIOS)}; all by default.")
    ] = None,
    json: Annotated[Path | None, typer.Option(help="Where to write the figures as JSON.")] = None,
    postgres: Annotated[
        str | None, typer.Option(envvar=POSTGRES, help="A server's URL; without one Postgres is left out.")
    ] = None,
    taken: Annotated[
        Path | None, typer.Option("--from", help="Run nothing; take the figures of a file of --json.")
    ] = None,
    docs: Annotated[
        bool, typer.Option(help="Write figures, tables and charts to docs/explanation, for these scenarios.")
    ] = False,
    moment: Annotated[
        bool, typer.Option(help="Everything once and small; its figures mean nothing.")
    ] = False,
    only_met: Annotated[bool, typer.Option(help="End with status 1 when a bound is missed.")] = False,
) -> None:
    """Run the benchmarks; a full run takes about forty minutes."""
    unknown = [name for name in scenarios or () if name not in SCENARIOS]
    if unknown:
        raise typer.BadParameter(f"there is no scenario {unknown[0]!r}; choose among {', '.join(SCENARIOS)}")
    if docs and moment:
        raise typer.BadParameter("the figures of --moment mean nothing, so they do not go into --docs")
    earlier = runs.read(taken) if taken else None
    names = scenarios or list(earlier.scenarios if earlier else SCENARIOS)
    if docs:
        # Now, and not when everything has run.
        try:
            speed_page.check((speed_page.FOLDER / speed_page.PAGE).read_text(encoding="utf-8"), names)
        except ValueError as error:
            raise typer.BadParameter(str(error)) from error
    found: dict[str, tuple[datetime, list[Figure]]] = {}
    try:
        if earlier is None:
            measure(found, names, MOMENT if moment else FULL, postgres)
    finally:
        # A scenario that fails must not take along what others have found in many minutes.
        run = earlier.only(names) if earlier else runs.made(found)
        if run.scenarios:
            show(run.figures, title=f"{run.machine}, Python {run.python}")
            if json:
                json.write_bytes(runs.encoded(run))
            if docs:
                speed_page.write(run, speed_page.FOLDER)
    if only_met and any(figure.is_met is False for figure in run.figures):
        raise typer.Exit(1)


def measure(
    found: dict[str, tuple[datetime, list[Figure]]], names: list[str], scale: Scale, postgres: str | None
) -> None:
    """Run the scenarios called *names*; put what each has found, and when, into *found* as soon as it has ended."""
    console = Console(stderr=True)
    if postgres is None:
        console.print(f"Postgres is left out: give --postgres URL or set {POSTGRES}")
    for name in names:
        with console.status(f"running {name}"):
            figures = SCENARIOS[name](scale, postgres)
        if figures:
            found[name] = (datetime.now(UTC), figures)


if __name__ == "__main__":
    cli()
