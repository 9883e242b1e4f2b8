"""The file of an export: JSON lines in batches, each batch ended by a line that holds its checksum.

``docs/reference/export-format.md`` describes it. Nothing here knows a database: rows come and go as values, in the
order of the columns that the tables have.
"""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, Union

import msgspec
from sqlalchemy import Boolean, Column, Integer, Table

from ..errors import TransferError
from .tables import EncodedJSON, created_rooms, events, log, markers, rooms, streams

FORMAT = "dialogue-export"
VERSION = 1

SECTIONS: dict[str, Table] = {
    "room": rooms,
    "stream": streams,
    "created_room": created_rooms,
    "marker": markers,
    "event": events,
}
"""What a line of a row is called, and its table; in the order of the file, which an import can stream."""

BATCH_LINES = 5_000
"""Most rows of a batch, which an import commits as one transaction."""

BATCH_BYTES = 4 * 1024 * 1024
"""About how large a batch may grow."""

LINE_BYTES = 256 * 1024 * 1024
"""No line is longer. What has no line ends at all is no export, and is not to fill the memory."""

_CHUNK_BYTES = 256 * 1024

Row = tuple[Any, ...]


class Header(msgspec.Struct, tag="header", tag_field="line", forbid_unknown_fields=True):
    """The first line.

    Attributes:
        format, version: Of the file.
        revision: The schema that the rows had.
        epoch: Of the log.
        last_id: The log's newest id when the export started, and the export's end.
        log: The other columns of ``dialogue_log``.
        counts: The rows when the export started, by the name of the line.
    """

    format: str
    version: int
    revision: str
    epoch: str
    last_id: int
    log: dict[str, Any]
    counts: dict[str, int]


class Check(msgspec.Struct, tag="check", tag_field="line", forbid_unknown_fields=True):
    """The last line of a batch: how many lines stand before it, and the CRC-32 of them with their line ends."""

    lines: int
    crc32: int


class Floor(msgspec.Struct, tag="floor", tag_field="line", forbid_unknown_fields=True):
    """What had left a stream when an interrupted export was ended; see `End`. Fields as in ``dialogue_streams``."""

    room_id: str
    event_name: str
    handed_through: int
    removed_through: int
    removed_through_seq: int


class End(msgspec.Struct, tag="end", tag_field="line", forbid_unknown_fields=True):
    """The last line but one; the batch's check follows.

    Attributes:
        counts: The rows in the file, by the name of the line.
        is_resumed: Whether the export was interrupted and went on; then floors stand before this line.
        removed_through_id: Of ``dialogue_log``, when the export was ended.
    """

    counts: dict[str, int]
    is_resumed: bool
    removed_through_id: int


def _type_of(column: Column[Any]) -> Any:
    # A Raw is copied as it stands: no number of an event's data is ever parsed.
    if isinstance(column.type, EncodedJSON):
        return msgspec.Raw
    if isinstance(column.type, Boolean):
        return bool
    return int if isinstance(column.type, Integer) else str


def _row_struct(line: str, table: Table) -> Any:
    fields: list[Any] = []
    for column in table.columns:
        name = str(column.name)
        type_ = _type_of(column)
        if column.nullable:
            # NULL is a field that is not there, since a JSON null is a value.
            fields.append((name, Union[type_, msgspec.UnsetType], msgspec.UNSET))  # noqa: UP007
        else:
            fields.append((name, type_))
    return msgspec.defstruct(
        f"{line.title()}Row", fields, tag=line, tag_field="line", forbid_unknown_fields=True, kw_only=True
    )


_ROWS = {line: _row_struct(line, table) for line, table in SECTIONS.items()}
_NAMES = {struct: line for line, struct in _ROWS.items()}
_LOG_FIELDS = tuple(c.name for c in log.columns if c.name not in ("log_id", "epoch", "last_id"))
_decode = msgspec.json.Decoder(Union[(Header, Check, Floor, End, *_ROWS.values())]).decode
_encode = msgspec.json.Encoder().encode


def encode_row(line: str, names: Sequence[str], row: Sequence[Any]) -> bytes:
    """Return the line of a row, without its end; bytes are JSON."""
    fields: dict[str, Any] = {"line": line}
    for name, value in zip(names, row, strict=True):
        if value.__class__ is bytes:
            # Between the tokens of JSON any white space is the same; inside of its strings there is none of these.
            if b"\n" in value or b"\r" in value:
                value = value.replace(b"\n", b" ").replace(b"\r", b" ")
            fields[name] = msgspec.Raw(value)
        elif value is not None:
            fields[name] = value
    return _encode(fields)


def encode_line(line: Header | Floor | End) -> bytes:
    """Return any other line, without its end."""
    return _encode(line)


def log_fields(row: Any) -> dict[str, Any]:
    """Return `Header.log` of the row of ``dialogue_log``."""
    return {name: getattr(row, name) for name in _LOG_FIELDS if getattr(row, name) is not None}


class Rows(NamedTuple):
    """Rows of one table: the name of their line, and their values in the order of the table's columns; JSON is text."""

    line: str
    rows: list[Row]


Item = Header | Rows | Floor | End


class Batch(NamedTuple):
    """A batch whose checksum is right.

    Attributes:
        first_line: Its number in the file, from 1.
        last_line: That of its check.
        items: In the file's order.
        header_bytes: The header's line, in the batch that has one.
    """

    first_line: int
    last_line: int
    items: list[Item]
    header_bytes: bytes


class BatchWriter:
    """Writes batches to the end of *file*; compressed, each is a gzip member of its own."""

    def __init__(self, file: BinaryIO, *, is_compressed: bool) -> None:
        self._file = file
        self._is_compressed = is_compressed

    def write(self, lines: Sequence[bytes]) -> None:
        """Write *lines*, which have no ends, as one batch."""
        text = b"\n".join(lines) + b"\n"
        text += _encode(Check(len(lines), zlib.crc32(text))) + b"\n"
        self._file.write(gzip.compress(text, 6, mtime=0) if self._is_compressed else text)
        self._file.flush()


def is_compressed(path: Path) -> bool:
    """Return whether an export at *path* is compressed: the name says it."""
    return path.suffix == ".gz"


def read_batches(path: Path, file: BinaryIO, *, is_compressed: bool) -> Iterator[Batch | int]:
    """Yield the batches of an export; the file is read from its start, a bounded part of it at a time.

    Args:
        path: For errors.

    Yields:
        Batches; and, after a batch, the offset behind it where the file can be cut and written on.

    Raises:
        TransferError: The file is damaged, cut off or no export; it names the line. What was yielded before is whole.
    """
    lines = _compressed_lines(file) if is_compressed else _plain_lines(file)
    number = 0
    pending: list[bytes] = []
    crc = 0
    try:
        for line in lines:
            if isinstance(line, int):
                if not pending:
                    yield line
                continue
            number += 1
            if not line.endswith(b"\n"):
                if number == 1 and not line.startswith(b'{"line":"header"'):
                    raise _foreign(path)
                raise _damaged(path, number, "the line is cut off")
            if not line.startswith(b'{"line":"check"'):
                if not pending and number == 1:
                    _check_format(path, line)
                pending.append(line)
                crc = zlib.crc32(line, crc)
                continue
            check = _decoded(path, number, line)
            first = number - len(pending)
            if not isinstance(check, Check) or (check.lines, check.crc32) != (len(pending), crc):
                raise _damaged(path, first, f"lines {first} to {number} are not as they were written")
            yield _batch(path, first, pending)
            pending, crc = [], 0
    except (EOFError, zlib.error) as error:
        problem = (
            "the file is cut off here"
            if isinstance(error, EOFError)
            else f"the compression is damaged ({error})"
        )
        raise _damaged(path, number + 1, problem) from error
    if pending:
        raise _damaged(path, number, "the file is cut off here")


def _damaged(path: Path, number: int, problem: str) -> TransferError:
    return TransferError(f"{path}, line {number}: {problem}. Export again, or take another copy of the file")


def _foreign(path: Path) -> TransferError:
    return TransferError(
        f"{path}, line 1: this is not an export. Name a file that 'dialogue export' has written"
    )


def _check_format(path: Path, line: bytes) -> None:
    """Tell what another program or version wrote from what is damaged."""
    try:
        header: Any = msgspec.json.decode(line)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise _foreign(path) from error
    if not isinstance(header, dict) or header.get("format") != FORMAT:
        raise _foreign(path)
    if header.get("version") != VERSION:
        raise TransferError(
            f"{path}, line 1: its format is version {header.get('version')}, this program reads {VERSION}. "
            "Use the version of Dialogue that wrote it, or a later one"
        )


def _decoded(path: Path, number: int, line: bytes) -> Any:
    try:
        return _decode(line)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise _damaged(path, number, f"this is no line of an export ({error})") from error


def _batch(path: Path, first: int, lines: list[bytes]) -> Batch:
    items: list[Item] = []
    header_bytes = b""
    rows: list[Row] = []
    name = ""
    for index, line in enumerate(lines):
        item = _decoded(path, first + index, line)
        found = _NAMES.get(item.__class__)
        if found is None:
            items.append(item)
            name = ""
            if isinstance(item, Header):
                header_bytes = line
            continue
        if found != name:
            name, rows = found, []
            items.append(Rows(name, rows))
        rows.append(tuple(map(_value, msgspec.structs.astuple(item))))
    return Batch(first, first + len(lines), items, header_bytes)


def _value(value: Any) -> Any:
    if value.__class__ is msgspec.Raw:
        return bytes(value).decode()
    return None if value is msgspec.UNSET else value


def _plain_lines(file: BinaryIO) -> Iterator[bytes | int]:
    offset = 0
    while line := file.readline(LINE_BYTES):
        offset += len(line)
        yield line
        yield offset


def _compressed_lines(file: BinaryIO) -> Iterator[bytes | int]:
    """Yield lines, and the offset behind each gzip member that ends with a whole line."""
    rest = b""
    compressed = b""
    member: Any = None
    while True:
        if not compressed:
            compressed = file.read(_CHUNK_BYTES)
            if not compressed:
                break
        if member is None:
            member = zlib.decompressobj(31)
        text = member.decompress(compressed, _CHUNK_BYTES)
        compressed = member.unused_data if member.eof else member.unconsumed_tail
        if text:
            *lines, rest = (rest + text).split(b"\n")
            for line in lines:
                yield line + b"\n"
            if len(rest) > LINE_BYTES:
                break
        if member.eof:
            member = None
            if not rest:
                yield file.tell() - len(compressed)
    if rest:
        yield rest
    if member is not None:
        raise EOFError
