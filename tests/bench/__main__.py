"""The command: ``python -m tests.bench [SCENARIO...]``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from .report import Figure, show
from .scenarios import FULL, MOMENT, SCENARIOS

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
    moment: Annotated[
        bool, typer.Option(help="Everything once and small; its figures mean nothing.")
    ] = False,
    only_met: Annotated[bool, typer.Option(help="End with status 1 when a bound is missed.")] = False,
) -> None:
    """Run the benchmarks; a full run takes about ten minutes."""
    console = Console(stderr=True)
    unknown = [name for name in scenarios or () if name not in SCENARIOS]
    if unknown:
        raise typer.BadParameter(f"there is no scenario {unknown[0]!r}; choose among {', '.join(SCENARIOS)}")
    if postgres is None:
        console.print(f"Postgres is left out: give --postgres URL or set {POSTGRES}")
    figures: list[Figure] = []
    for name in scenarios or SCENARIOS:
        with console.status(f"running {name}"):
            figures += SCENARIOS[name](MOMENT if moment else FULL, postgres)
    show(figures, json_path=json)
    if only_met and any(figure.is_met is False for figure in figures):
        raise typer.Exit(1)


if __name__ == "__main__":
    cli()
