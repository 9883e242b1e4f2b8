"""The log's schema: what revision a database has, what this code needs, and the way from one to the other.

The migrations are alembic's, under ``alembic/`` in the source tree and ``dialogue/migrations`` in the wheel. Alembic
itself is imported only to upgrade: a start on a current schema costs one SELECT.
"""

from __future__ import annotations

import threading
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from sqlalchemy import Connection, column, inspect, select, table

from ..errors import StartError
from .tables import VERSION_TABLE

if TYPE_CHECKING:
    from alembic.config import Config

REVISIONS = ("0001", "0002")
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


def upgrade(connection: Connection) -> None:
    """Bring the schema to `HEAD` inside the transaction that *connection* is in, without committing it.

    The caller holds `upgrade_lock`.
    """
    from alembic import command

    config = alembic_config()
    config.attributes["connection"] = connection
    command.upgrade(config, HEAD)
