"""Export and import: a whole log to a file and back, with its ids, seqs, keys, places and times as they were.

Rows are read and written by the columns that the tables have; nothing here knows what most of them mean. Memory is
bounded by a batch, whatever the size of the log. Either way may be killed at any moment and run again.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from itertools import chain, pairwise
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import msgspec
from filelock import FileLock, Timeout
from sqlalchemy import (
    Connection,
    Integer,
    Select,
    Table,
    bindparam,
    delete,
    func,
    insert,
    literal_column,
    select,
    tuple_,
    update,
)

from ..errors import StartError, TransferError
from . import migrate, transactions
from .administration import Database
from .export_format import (
    BATCH_BYTES,
    BATCH_LINES,
    FORMAT,
    SECTIONS,
    VERSION,
    Batch,
    BatchWriter,
    End,
    Floor,
    Header,
    Row,
    Rows,
    encode_line,
    encode_row,
    is_compressed,
    log_fields,
    read_batches,
)
from .sql import _use_wal
from .statements import compile_rows
from .tables import events, log, rooms, streams, upsert

Progress = Callable[[int, int], None]
"""Is told how many rows are done, and of how many."""

_FIRST_READ_ROWS = 200
"""Rows of a first read; how many later ones take follows from how long these are."""


class Transferred(NamedTuple):
    """What an export or an import did.

    Attributes:
        counts: Rows in the file, by the name of their line.
        epoch: Of the log.
        is_resumed: Whether it went on with an interrupted one.
    """

    counts: dict[str, int]
    epoch: str
    is_resumed: bool


def _ignore(done: int, total: int) -> None:
    """Tell nobody."""


# Export


class _Part(NamedTuple):
    """What an interrupted export has left.

    Attributes:
        header: Its own.
        end: Its last line, if only its name is missing.
        counts: Its rows, by the name of their line.
        last_id: Its newest event.
        offset: The end of its last whole batch.
    """

    header: Header
    end: End | None
    counts: dict[str, int]
    last_id: int
    offset: int


def part_path(path: Path) -> Path:
    """Return the name under which the export to *path* is written until it is complete."""
    return path.with_name(path.name + ".part")


async def export_log(database: Database, path: Path, *, on_progress: Progress = _ignore) -> Transferred:
    """Write the log to *path*, as it is now; a server may go on with it.

    The rows are read in one snapshot: neither an append, nor an edit, nor a removal meanwhile is in them. What an
    interrupted export left in ``PATH.part`` is gone on with, up to the same newest event; the rest of it is read in
    a snapshot of its own, and what had left the log until then is told by lines of its own.

    Args:
        path: Must not exist. A name that ends in ``.gz`` is compressed.
        on_progress: Called with each batch.

    Raises:
        TransferError: The file exists or cannot be written, or another export writes it.
        SchemaMismatch: The schema is behind, ahead or missing.
        StartError: There is no log in the database, or it cannot be read.
    """
    with _writing(path):
        await database.check()
        # Read only, and so no statement of it is ever in a server's way: on SQLite a reader of the WAL, on Postgres
        # a snapshot.
        begin = (
            "BEGIN"
            if database.dialect_name == "sqlite"
            else "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY"
        )
        await database.run(lambda connection: connection.exec_driver_sql(begin).close())
        try:
            return await _export(database, path, on_progress)
        finally:
            await database.run(lambda connection: connection.exec_driver_sql("ROLLBACK").close())


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    """Keep other exports to the same file out, and a finished file as it is."""
    if path.exists():
        raise TransferError(f"{path} is there already. Name another file, or remove this one")
    if not path.parent.is_dir():
        # The lock's library would make it.
        raise TransferError(
            f"{path} cannot be written: there is no such folder. Make it, or name another file"
        )
    lock = FileLock(path.with_name(path.name + ".lock"))
    try:
        lock.acquire(blocking=False)
    except Timeout:
        raise TransferError(f"another export is writing {path}. Wait for it, or name another file") from None
    except OSError as error:
        raise _cannot_write(path, error) from error
    try:
        yield
    except OSError as error:
        raise _cannot_write(path, error) from error
    finally:
        # While it is held, so that whoever makes it again finds the export ended. Windows keeps it.
        with suppress(OSError):
            Path(lock.lock_file).unlink()
        lock.release()


def _cannot_write(path: Path, error: OSError) -> TransferError:
    return TransferError(
        f"{path} cannot be written ({error.strerror}). Correct this, and export again: it goes on"
    )


async def _export(database: Database, path: Path, on_progress: Progress) -> Transferred:
    def read_log(connection: Connection) -> Any:
        if transactions.epoch_and_last_id(connection) is None:
            raise StartError(f"the log {database.name} was never used: there is nothing to export")
        return connection.execute(select(log)).one()

    row = await database.run(read_log)
    part_file = part_path(path)
    part = _find_part(part_file, row)
    with part_file.open("r+b" if part else "wb") as file:
        writer = _Writer(file, is_compressed=is_compressed(path))
        if part is None:
            header = Header(
                FORMAT,
                VERSION,
                migrate.HEAD,
                row.epoch,
                row.last_id,
                log_fields(row),
                await database.run(_counts),
            )
            writer.add(encode_line(header))
            writer.flush()
        else:
            header = part.header
            file.truncate(part.offset)
            file.seek(part.offset)
            writer.counts = part.counts
        total = sum(header.counts.values())
        end = part.end if part else None
        if end is None:
            for line, table in SECTIONS.items():
                if part is None or table is events:
                    after = (part.last_id,) if part else None
                    await _export_rows(
                        database,
                        writer,
                        line,
                        table,
                        after,
                        header.last_id,
                        lambda done: on_progress(done, total),
                    )
            if part:
                await _export_floors(database, writer)
            end = End(dict(writer.counts), part is not None, row.removed_through_id)
            writer.add(encode_line(end))
            writer.flush()
        os.fsync(file.fileno())
    part_file.rename(path)
    return Transferred(end.counts, header.epoch, part is not None)


class _Writer:
    """Collects lines into batches, and counts rows."""

    def __init__(self, file: BinaryIO, *, is_compressed: bool) -> None:
        self._batches = BatchWriter(file, is_compressed=is_compressed)
        self._lines: list[bytes] = []
        self._bytes = 0
        self.counts = dict.fromkeys(SECTIONS, 0)

    def add(self, line: bytes) -> None:
        """Add a line; the batch is written when it is large enough."""
        self._lines.append(line)
        self._bytes += len(line)
        if len(self._lines) >= BATCH_LINES or self._bytes >= BATCH_BYTES:
            self.flush()

    def flush(self) -> None:
        """Write what has been collected."""
        if self._lines:
            self._batches.write(self._lines)
            self._lines, self._bytes = [], 0


def _counts(connection: Connection) -> dict[str, int]:
    return {
        line: int(connection.execute(select(func.count()).select_from(table)).scalar_one())
        for line, table in SECTIONS.items()
    }


def _find_part(path: Path, row: Any) -> _Part | None:
    """Return what an interrupted export of the same log left at *path*; None when there is nothing to go on with."""
    found: _Part | None = None
    if not path.exists():
        return None
    header: Header | None = None
    end: End | None = None
    counts = dict.fromkeys(SECTIONS, 0)
    last_id = 0
    column = [c.name for c in events.columns].index("id")
    with path.open("rb") as file:
        try:
            # The path's own suffix is .part.
            for batch in read_batches(path, file, is_compressed=is_compressed(path.with_suffix(""))):
                if isinstance(batch, int):
                    assert header is not None
                    found = _Part(header, end, dict(counts), last_id, batch)
                    continue
                for item in batch.items:
                    if isinstance(item, Header):
                        header = item
                    elif isinstance(item, End):
                        end = item
                    elif isinstance(item, Rows):
                        counts[item.line] += len(item.rows)
                        if item.line == "event":
                            last_id = item.rows[-1][column]
        except TransferError:
            pass  # cut off where it was killed; what stands before it is whole
    if found is None:
        return None
    is_same = (found.header.revision, found.header.epoch) == (migrate.HEAD, row.epoch)
    # All rows but the events change as the log goes on: all of them are of one snapshot, or none is used.
    counts = _all_counts(found.header.counts)
    has_places = all(found.counts[line] == counts[line] for line in SECTIONS if line != "event")
    return found if is_same and found.header.last_id <= row.last_id and has_places else None


def _keyset(table: Table, *, is_first: bool) -> Select[Any]:
    """Return the SELECT of the next rows of *table* by its primary key."""
    key = list(table.primary_key.columns)
    statement = select(table).order_by(*key).limit(bindparam("limit", type_=Integer))
    if not is_first:
        after = [bindparam(f"after_{index}", type_=column.type) for index, column in enumerate(key)]
        # Not a row of one value, which SQLite does not take.
        statement = statement.where(key[0] > after[0] if len(key) == 1 else tuple_(*key) > tuple_(*after))
    if table is events:
        statement = statement.where(events.c.id <= bindparam("through_id"))
    return statement


async def _export_rows(
    database: Database,
    writer: _Writer,
    line: str,
    table: Table,
    after: Sequence[Any] | None,
    through_id: int,
    on_progress: Callable[[int], None],
) -> None:
    """Write the rows of *table* whose primary key is above *after*, in its order."""
    names = [column.name for column in table.columns]
    key = [names.index(column.name) for column in table.primary_key.columns]
    limit = _FIRST_READ_ROWS
    while True:
        parameters: dict[str, Any] = {"limit": limit}
        if after is not None:
            parameters.update((f"after_{index}", value) for index, value in enumerate(after))
        if table is events:
            parameters["through_id"] = through_id
        statement = _keyset(table, is_first=after is None)

        def read(
            connection: Connection,
            statement: Select[Any] = statement,
            parameters: dict[str, Any] = parameters,
        ) -> Sequence[Any]:
            return connection.execute(statement, parameters).all()

        found = await database.run(read)
        size = 0
        for row in found:
            encoded = encode_row(line, names, row)
            size += len(encoded)
            writer.add(encoded)
        writer.counts[line] += len(found)
        writer.flush()
        on_progress(sum(writer.counts.values()))
        if len(found) < limit:
            return
        after = [found[-1][index] for index in key]
        limit = max(1, min(BATCH_LINES, BATCH_BYTES * limit // max(size, 1)))


async def _export_floors(database: Database, writer: _Writer) -> None:
    """Write what has left each stream by now."""
    after = ("", "")
    while True:
        statement = (
            select(*(streams.c[name] for name in Floor.__struct_fields__))
            .where(
                streams.c.removed_through > 0,
                tuple_(streams.c.room_id, streams.c.event_name) > tuple_(*after),
            )
            .order_by(streams.c.room_id, streams.c.event_name)
            .limit(BATCH_LINES)
        )

        def read(connection: Connection, statement: Select[Any] = statement) -> Sequence[Any]:
            return connection.execute(statement).all()

        found = await database.run(read)
        for row in found:
            writer.add(encode_line(Floor(*row)))
        writer.flush()
        if len(found) < BATCH_LINES:
            return
        after = (found[-1].room_id, found[-1].event_name)


# Import


class _Checked(NamedTuple):
    """What a file holds, every line of which has been read.

    Attributes:
        mark: What the log's epoch is while this file is imported.
    """

    header: Header
    end: End
    mark: str


async def import_log(
    path: Path, database: Database, *, on_check: Progress = _ignore, on_progress: Progress = _ignore
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
                header = msgspec.structs.replace(item, counts=_all_counts(item.counts))
                mark = transactions.IMPORTING + hashlib.sha256(batch.header_bytes).hexdigest()[:32]
                if migrate.check(header.revision) not in ("current", "behind"):
                    raise TransferError(
                        f"{path} was written by a later version of Dialogue, with schema {header.revision}. "
                        "Import it with that version"
                    )
            elif isinstance(item, End):
                end = msgspec.structs.replace(item, counts=_all_counts(item.counts))
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


def _all_counts(counts: dict[str, int]) -> dict[str, int]:
    """Return the counts of a file for every kind of row: an earlier version did not know them all."""
    return dict.fromkeys(SECTIONS, 0) | counts


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
    if _counts(connection) != checked.end.counts:
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
