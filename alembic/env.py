"""How alembic reaches a log.

Dialogue hands its open connection over in ``config.attributes["connection"]`` and owns the transaction; for SQL
that is only to be shown it gives ``config.attributes["dialect_name"]``. Developers
call alembic themselves with ``-x url=<a synchronous SQLAlchemy URL>``. Logging stays as the application set it.
"""

from alembic import context
from sqlalchemy import Connection, create_engine

from dialogue.storage.tables import VERSION_TABLE, metadata


def include_name(name: str | None, type_: str, parent_names: object) -> bool:
    """Keep the application's own tables in the same database out of autogenerate."""
    return type_ != "table" or name in metadata.tables


def run(connection: Connection) -> None:
    """Run the migrations on *connection*."""
    context.configure(
        connection=connection,
        target_metadata=metadata,
        version_table=VERSION_TABLE,
        include_name=include_name,
        render_as_batch=connection.dialect.name == "sqlite",
    )
    with context.begin_transaction():
        context.run_migrations()


def url() -> str:
    """Return what the developer gave as ``-x url=...``."""
    given = context.get_x_argument(as_dictionary=True).get("url")
    if not given:
        raise SystemExit("give the database: alembic -x url=sqlite:///chat.db ...")
    return given


if context.is_offline_mode():
    handed_name = context.config.attributes.get("dialect_name")
    context.configure(
        url=None if handed_name else url(),
        dialect_name=handed_name,
        target_metadata=metadata,
        version_table=VERSION_TABLE,
        literal_binds=True,
        # SQLite's too are one transaction, as they are online: half a schema helps nobody.
        transactional_ddl=True,
    )
    with context.begin_transaction():
        context.run_migrations()
elif (handed := context.config.attributes.get("connection")) is not None:
    run(handed)
else:
    engine = create_engine(url())
    with engine.begin() as own:
        run(own)
    engine.dispose()
