"""Import: the log in a file into an empty database; see `transfer` for what holds both ways."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from functools import partial
from itertools import chain, pairwise
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import msgspec
from sqlalchemy import Connection, Table, delete, func, insert, literal_column, select, update

from ..errors import TransferError
from . import migrate, transactions
from .administration import Database
from .export_format import SECTIONS, Batch, End, Floor, Header, Row, Rows, is_compressed, read_batches
from .sql import _use_wal
from .statements import compile_rows
from .tables import events, log, rooms, streams, upsert
from .transfer import Progress, Transferred, all_counts, count_rows, ignore_progress


class _Checked(NamedTuple):
    """What a file holds, every line of which has been read.

    Attributes:
        mark: What the log's epoch is while this file is imported.
    """

    header: Header
    end: End
    mark: str


async def import_log(
    path: Path,
    database: Database,
    *,
    on_check: Progress = ignore_progress,
    on_progress: Progress = ignore_progress,
) -> Transferred:
    """Write the log in *path* into a database that has none, or that holds an interrupted import of the same file.

    The whole file is checked before anything is written. Until the import is complete the log cannot be served or
    exported. The log is owned meanwhile, as a server would own it.

    Args:
        on_check: Called with the bytes that have been checked.
        on_progress: Called with the rows that are committed.

    Raises:
        TransferError: The file cannot be read, is damaged, cut off or no export, or the log holds something else.
            Nothing was changed.
        LogLocked: A server owns the log.
        SchemaMismatch: The schema is not this version's. (Where a start would make it, this does too.)
        StartError: The database cannot be used.
    """
    try:
        file = path.open("rb")
    except OSError as error:
        raise TransferError(f"{path} cannot be read ({error.strerror}). Name another file") from error
    with file:
        checked = _check_file(path, file, on_check)
        async with database.owned():
            if await database.revision() is None and database.is_auto_migrated:
                await database.upgrade()
            await database.check()
            if database.dialect_name == "sqlite":
                # As its first server would; each commit then writes its pages once.
                await database.run(_use_wal)
            is_resumed, newest_id = await database.transact(
                lambda connection: _begin(connection, database, checked)
            )
            file.seek(0)
            batches = _batches(path, file)
            await _import_rows(database, batches, checked, newest_id, on_progress)
    return Transferred(checked.end.counts, checked.header.epoch, is_resumed)


def _batches(path: Path, file: BinaryIO) -> Iterator[Batch]:
    for batch in read_batches(path, file, is_compressed=is_compressed(path)):
        if isinstance(batch, Batch):
            yield batch


def _check_file(path: Path, file: BinaryIO, on_check: Progress) -> _Checked:
    """Read all of the file and return what it says about itself.

    Raises:
        TransferError: It cannot be imported.
    """

    def wrong(batch: Batch, problem: str) -> TransferError:
        return TransferError(
            f"{path}, lines {batch.first_line} to {batch.last_line}: {problem}. Export again, or take another copy"
        )

    size = os.fstat(file.fileno()).st_size
    header: Header | None = None
    end: End | None = None
    mark = ""
    counts = dict.fromkeys(SECTIONS, 0)
    order = list(SECTIONS)
    section = 0
    last_id = 0
    column = [c.name for c in events.columns].index("id")
    for batch in _batches(path, file):
        for item in batch.items:
            if end is not None:
                raise wrong(batch, "there is more behind the end of the export")
            if (header is None) != isinstance(item, Header):
                raise wrong(batch, "the header is missing, or there are two")
            if isinstance(item, Header):
                header = msgspec.structs.replace(item, counts=all_counts(item.counts))
                mark = transactions.IMPORTING + hashlib.sha256(batch.header_bytes).hexdigest()[:32]
                if migrate.check(header.revision) not in ("current", "behind"):
                    raise TransferError(
                        f"{path} was written by a later version of Dialogue, with schema {header.revision}. "
                        "Import it with that version"
                    )
            elif isinstance(item, End):
                end = msgspec.structs.replace(item, counts=all_counts(item.counts))
                if end.counts != counts or not (end.is_resumed or header is None or header.counts == counts):
                    raise wrong(batch, "some of the rows before these lines are missing")
            elif isinstance(item, Rows):
                if order.index(item.line) < section:
                    raise wrong(batch, "rows are not in the order of an export")
                section = order.index(item.line)
                counts[item.line] += len(item.rows)
                if item.line == "event":
                    ids = [last_id, *(row[column] for row in item.rows)]
                    if any(before >= after for before, after in pairwise(ids)):
                        raise wrong(batch, "events are not in the order of their ids")
                    last_id = ids[-1]
        on_check(file.tell(), size)
    if header is None or end is None:
        raise TransferError(
            f"{path} is cut off behind its last whole batch. Export again: it goes on where it was"
        )
    return _Checked(header, end, mark)


def _begin(connection: Connection, database: Database, checked: _Checked) -> tuple[bool, int]:
    """Mark the log as one that is being imported; return whether it was, and its newest event's id."""
    row = connection.execute(select(log.c.epoch, log.c.last_id)).one_or_none()
    if row is not None and row.epoch == checked.mark:
        return True, connection.execute(select(func.max(events.c.id))).scalar() or 0
    if row is not None and row.epoch.startswith(transactions.IMPORTING):
        raise TransferError(
            f"the log {database.name} holds a part of another import. Import that file again, or name a new log"
        )
    tables = [table for table in SECTIONS.values() if connection.execute(select(table).limit(1)).first()]
    if tables or (row is not None and row.last_id > 0):
        raise TransferError(
            f"the log {database.name} has been used: its newest event has the id {row.last_id if row else '?'}. "
            "An import needs a new log; name another one"
        )
    connection.execute(delete(log))
    header = checked.header
    row_of_log = {**header.log, "log_id": 1, "epoch": checked.mark, "last_id": header.last_id}
    connection.execute(insert(log).values(row_of_log))
    return False, 0


async def _import_rows(
    database: Database, batches: Iterator[Batch], checked: _Checked, newest_id: int, on_progress: Progress
) -> None:
    total = sum(checked.end.counts.values())
    done = 0
    statements: dict[str, str] = {}
    for batch in batches:
        if any(isinstance(item, Floor | End) for item in batch.items):
            # To the end of the file in one transaction: with only some of the floors the rows could not be counted.
            rest = chain((batch,), batches)
            await database.transact(partial(_finish, checked=checked, batches=rest))
            return
        sections = [item for item in batch.items if isinstance(item, Rows)]

        def write(connection: Connection, sections: list[Rows] = sections) -> None:
            for section in sections:
                rows = _new_rows(section, newest_id)
                if rows and section.line == "event" and connection.dialect.name == "postgresql":
                    _copy(connection, events, rows)
                elif rows:
                    if section.line not in statements:
                        statements[section.line] = _insert_text(connection, section.line)
                    connection.exec_driver_sql(statements[section.line], rows)

        if sections:
            await database.transact(write)
            done += sum(len(section.rows) for section in sections)
            on_progress(done, total)


def _new_rows(section: Rows, newest_id: int) -> list[Row]:
    if section.line != "event" or newest_id == 0:
        return section.rows
    column = [c.name for c in events.columns].index("id")
    return [row for row in section.rows if row[column] > newest_id]


def _copy(connection: Connection, table: Table, rows: list[Row]) -> None:
    """Insert *rows* with Postgres' COPY, which measured 1.35 times the rate of an INSERT per row in one message."""
    driver_connection: Any = connection.connection.dbapi_connection
    columns = [column.name for column in table.columns]
    driver_connection.run_async(
        lambda driver: driver.copy_records_to_table(table.name, records=rows, columns=columns)
    )


def _insert_text(connection: Connection, line: str) -> str:
    table = SECTIONS[line]
    names = tuple(column.name for column in table.columns)
    # An interrupted import may have written these already; of events it is known which.
    statement = insert(table) if table is events else upsert(connection.dialect, table)
    return compile_rows(connection.dialect, statement, names)


def _finish(connection: Connection, checked: _Checked, batches: Iterator[Batch]) -> None:
    """Check that all rows are there, remove what had left the log, and give the log its epoch."""
    if count_rows(connection) != checked.end.counts:
        raise TransferError(
            "the log does not hold the rows of the file: another program has changed it during the import. "
            "Import into a new log"
        )
    for batch in batches:
        for item in batch.items:
            if isinstance(item, Floor):
                _apply_floor(connection, item)
    removed_through_id = checked.header.log["removed_through_id"]
    if checked.end.is_resumed:
        removed_through_id = min(
            max(removed_through_id, checked.end.removed_through_id), checked.header.last_id
        )
        if "replaced_by" in events.c:
            _forget_later_edits(connection)
    connection.execute(update(log).values(epoch=checked.header.epoch, removed_through_id=removed_through_id))


def _apply_floor(connection: Connection, floor: Floor) -> None:
    is_stream = (streams.c.room_id == floor.room_id) & (streams.c.event_name == floor.event_name)
    found = connection.execute(
        select(streams, rooms.c.last_seq)
        .join_from(streams, rooms, streams.c.room_id == rooms.c.room_id)
        .where(is_stream)
    ).one_or_none()
    # A stream that began after the export started is not in it, nor are the later events of one that is.
    if found is None or min(floor.removed_through, found.last) <= found.removed_through:
        return
    through = min(floor.removed_through, found.last)
    connection.execute(
        delete(events).where(
            events.c.room_id == floor.room_id,
            events.c.event_name == floor.event_name,
            events.c.position <= through,
        )
    )
    connection.execute(
        update(streams)
        .where(is_stream)
        .values(
            handed_through=max(found.handed_through, min(floor.handed_through, found.last)),
            removed_through=through,
            removed_through_seq=min(floor.removed_through_seq, found.last_seq),
        )
    )


def _forget_later_edits(connection: Connection) -> None:
    """Forget the seqs of edits that came after the export's end: other events will get these seqs."""
    last_seq = select(rooms.c.last_seq).where(rooms.c.room_id == events.c.room_id).scalar_subquery()
    replaced_by = events.c["replaced_by"]
    connection.execute(
        update(events).where(replaced_by > last_seq).values({replaced_by: literal_column("NULL")})
    )
