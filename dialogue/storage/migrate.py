"""The log's schema: what revision a database has, what this code needs, and the way from one to the other.

The migrations are alembic's, under ``alembic/`` in the source tree and ``dialogue/migrations`` in the wheel. Alembic
itself is imported only to upgrade: a start on a current schema costs one SELECT.
"""

from __future__ import annotations

import io
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from sqlalchemy import Connection, column, inspect, select, table

from ..errors import SchemaMismatch, StartError
from .tables import VERSION_TABLE, metadata

if TYPE_CHECKING:
    from alembic.config import Config

REVISIONS = ("0001", "0002", "0003")
"""Every revision, oldest first; the last is what this code needs. A test holds it against the migrations."""

HEAD = REVISIONS[-1]

UPGRADE_REMEDY = "Run: dialogue db upgrade --store URL, or open it once with SQLStore(..., auto_migrate=True)"

upgrade_lock = threading.Lock()
"""Held around `upgrade`: alembic keeps the running migration in module globals, one for the whole process."""

State = Literal["missing", "behind", "current", "ahead"]


def migrations_path() -> Path:
    """Return the folder with the migrations, in the wheel or in the source tree.

    Raises:
        StartError: There is none.
    """
    package = Path(__file__).resolve().parent.parent
    # The wheel's own folder first: beside an installed package, "alembic" is the library.
    for folder in (package / "migrations", package.parent / "alembic"):
        if (folder / "env.py").is_file() and (folder / "versions").is_dir():
            return folder
    raise StartError(f"the migrations are missing beside {package}. Install Dialogue again")


def alembic_config() -> Config:
    """Return a configuration for alembic's commands that needs no ini file and no current directory."""
    from alembic.config import Config

    config = Config()
    # A % starts an interpolation in ini values, and paths may have one.
    config.set_main_option("script_location", str(migrations_path()).replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    return config


def current(connection: Connection) -> str | None:
    """Return the revision of the log that *connection* leads to; None when there is no log yet."""
    if not inspect(connection).has_table(VERSION_TABLE):
        return None
    version = table(VERSION_TABLE, column("version_num"))
    found = connection.execute(select(version.c.version_num)).scalar()
    return None if found is None else str(found)


def check(found: str | None) -> State:
    """Return how revision *found* stands to what this code needs; an unknown one is a later version's."""
    if found is None:
        return "missing"
    if found == HEAD:
        return "current"
    return "behind" if found in REVISIONS else "ahead"


def upgrade_remedy(schema: str | None) -> str:
    """Return what to do about a log that is behind, in Postgres' *schema* if it has one of its own."""
    # A URL cannot name the schema: the command would make a second log in the default one.
    return UPGRADE_REMEDY if schema is None else UPGRADE_REMEDY.replace("--store URL", "MODULE:ATTRIBUTE")


def mismatch(name: str, found: str | None, *, schema: str | None) -> SchemaMismatch | None:
    """Return the error for revision *found* of the log *name*, with the remedy; None when this code can use it."""
    state = check(found)
    if state == "current":
        return None
    if state == "ahead":
        remedy = (
            "It was used by a later version of Dialogue: install that version, or give this one another log"
        )
    else:
        remedy = upgrade_remedy(schema)
    return SchemaMismatch(name, found or "none", HEAD, remedy)


def include_object(object_: Any, name: str | None, type_: str, is_reflected: bool, compare_to: Any) -> bool:
    """Keep Dialogue's tables out of an application's autogenerate; give it to ``context.configure`` in ``env.py``.

    Without it ``alembic revision --autogenerate`` finds tables in the database that the application's metadata does
    not have, and writes a migration that drops them, with everything that was ever said.

    Args:
        object_, name, type_, is_reflected, compare_to: As alembic gives them.

    Returns:
        False for a table of Dialogue's that is in the database and not in the application's metadata. Alembic does
        not ask about the columns and indexes of a table that is left out.
    """
    is_ours = type_ == "table" and is_reflected and compare_to is None
    return not (is_ours and (name in metadata.tables or name == VERSION_TABLE))


def upgrade_sql(dialect_name: str, *, after: str | None = None) -> str:
    """Return the SQL that `upgrade` would run, to be looked at or run by someone else. No database is asked.

    Args:
        dialect_name: ``sqlite`` or ``postgresql``.
        after: The revision that the database is at, one of `REVISIONS`; None for one without a log.
    """
    from alembic import command

    config = alembic_config()
    config.output_buffer = text = io.StringIO()
    config.attributes["dialect_name"] = dialect_name
    with upgrade_lock:
        command.upgrade(config, HEAD if after is None else f"{after}:{HEAD}", sql=True)
    return text.getvalue()


def upgrade(connection: Connection) -> None:
    """Bring the schema to `HEAD` inside the transaction that *connection* is in, without committing it.

    The caller holds `upgrade_lock`.
    """
    from alembic import command

    config = alembic_config()
    config.attributes["connection"] = connection
    command.upgrade(config, HEAD)
