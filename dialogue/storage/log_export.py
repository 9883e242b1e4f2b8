"""Export: a whole log to a file, while its server goes on; see `transfer` for what holds both ways."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from filelock import FileLock, Timeout
from sqlalchemy import Connection, Integer, Select, Table, bindparam, select, tuple_

from ..errors import StartError, TransferError
from . import migrate, transactions
from .administration import Database
from .export_format import (
    BATCH_BYTES,
    BATCH_LINES,
    FORMAT,
    SECTIONS,
    VERSION,
    BatchWriter,
    End,
    Floor,
    Header,
    Rows,
    encode_line,
    encode_row,
    is_compressed,
    log_fields,
    read_batches,
)
from .tables import events, log, streams
from .transfer import Progress, Transferred, all_counts, count_rows, ignore_progress

_FIRST_READ_ROWS = 200
"""Rows of a first read; how many later ones take follows from how long these are."""


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


async def export_log(
    database: Database, path: Path, *, on_progress: Progress = ignore_progress
) -> Transferred:
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
                await database.run(count_rows),
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
    counts = all_counts(found.header.counts)
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
