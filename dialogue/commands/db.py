"""``dialogue db``: the log's schema, and its epoch."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from ..errors import DialogueError
from .common import fail, out, sql_store

if TYPE_CHECKING:
    from ..storage.administration import Database

T = TypeVar("T")

cli = typer.Typer(
    name="db",
    help="Look at a log's database, upgrade it, give it a new epoch.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)

STORE_VARIABLE = "DIALOGUE_STORE"

Target = Annotated[
    str | None,
    typer.Argument(
        metavar="MODULE:ATTRIBUTE",
        help="A Dialogue whose store it is, e.g. chat.config:dialogue.",
        show_default=False,
    ),
]
Store = Annotated[
    str | None,
    typer.Option(
        metavar="URL",
        help=f"The database, e.g. sqlite:///chat.db. By default the environment's {STORE_VARIABLE}.",
        show_default=False,
    ),
]


def _chosen(target: str | None, store: str | None) -> str:
    """Return where the database is; what is written on the command line goes before the environment."""
    if target is not None and store is not None:
        raise typer.BadParameter("give MODULE:ATTRIBUTE or --store, not both")
    chosen = target or store or os.environ.get(STORE_VARIABLE)
    if not chosen:
        raise typer.BadParameter(
            f"which database? Give --store URL or MODULE:ATTRIBUTE, or set {STORE_VARIABLE}"
        )
    return chosen


def _with_database(
    target: str | None, store: str | None, work: Callable[[Database], Coroutine[Any, Any, T]]
) -> T:
    from ..storage.administration import Database

    async def run() -> T:
        async with Database(found) as database:
            return await work(database)

    try:
        found = sql_store(_chosen(target, store))
        return asyncio.run(run())
    except DialogueError as error:
        fail(error)


@cli.command()
def upgrade(
    target: Target = None,
    store: Store = None,
    sql: Annotated[
        bool, typer.Option("--sql", help="Print the SQL and change nothing; the database is not asked.")
    ] = False,
    from_revision: Annotated[
        str | None,
        typer.Option(
            "--from",
            metavar="REVISION",
            help="With --sql: the revision that the database is at. By default there is no log in it.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Bring the schema up to date, in one transaction."""
    from ..storage import migrate

    if from_revision is not None and not sql:
        raise typer.BadParameter("--from goes with --sql; without it the database itself is asked")
    if from_revision is not None and from_revision not in migrate.REVISIONS:
        raise typer.BadParameter(f"--from takes one of: {', '.join(migrate.REVISIONS)}")
    if sql:
        from ..storage.administration import Database

        try:
            found = sql_store(_chosen(target, store))
            typer.echo(Database(found).upgrade_sql(after=from_revision), nl=False)
        except DialogueError as error:
            fail(error)
        return

    async def work(database: Database) -> None:
        before = await database.upgrade()
        if before == migrate.HEAD:
            out.print(f"{database.name} is at {before}, which is current", markup=False, soft_wrap=True)
        else:
            out.print(
                f"{database.name} is at {migrate.HEAD} now; it was at {before or 'none'}",
                markup=False,
                soft_wrap=True,
            )

    _with_database(target, store, work)


@cli.command()
def current(target: Target = None, store: Store = None) -> None:
    """Show the schema's revision; none where there is no log."""

    async def work(database: Database) -> None:
        out.print(await database.revision() or "none", markup=False)

    _with_database(target, store, work)


@cli.command()
def check(target: Target = None, store: Store = None) -> None:
    """End with status 1, and say what to run, unless this version of Dialogue can use the schema as it is."""

    async def work(database: Database) -> None:
        await database.check()
        out.print(f"{database.name} is current", markup=False, soft_wrap=True)

    _with_database(target, store, work)


@cli.command()
def new_epoch(
    target: Target = None,
    store: Store = None,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
) -> None:
    """Begin another life of the log, after a backup was restored: clients then drop what they know and read anew."""

    async def work(database: Database) -> None:
        await database.check()
        if not yes:
            question = f"Give {database.name} a new epoch? Clients will drop their cursors and read anew"
            typer.confirm(question, abort=True)
        before, after = await database.new_epoch()
        out.print(f"{database.name} has the epoch {after} now; it was {before}", markup=False, soft_wrap=True)

    _with_database(target, store, work)


__all__ = ["check", "cli", "current", "new_epoch", "upgrade"]
