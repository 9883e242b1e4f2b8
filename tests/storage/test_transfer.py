"""Export and import: exact, restartable after a kill, and refused where they would lose something."""

from __future__ import annotations

import asyncio
import errno
import gzip
import json
import os
import random
import signal
import subprocess
import sys
import tracemalloc
import zlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Connection, insert, select, update

from dialogue.errors import LogLocked, SchemaMismatch, StartError, TransferError
from dialogue.storage import export_format, log_export
from dialogue.storage.administration import Database
from dialogue.storage.export_format import SECTIONS
from dialogue.storage.lock import LogLock
from dialogue.storage.log_export import export_log, part_path
from dialogue.storage.log_import import import_log
from dialogue.storage.sql import SQLStore
from dialogue.storage.tables import created_rooms, events, log, markers, metadata, rooms, sessions
from dialogue.storage.transfer import Transferred
from dialogue.testing.store_contract import draft

from .databases import empty, in_a_thread
from .transfer_child import BATCH_LINES

ROOT = Path(__file__).parents[2]

PAYLOADS = [
    b'{"text":"hello"}',
    '{"text":"\u2028 é 😀 \\u0001 \\" \\\\ \\n"}'.encode(),
    b"null",
    b"12345678901234567890123",
    b"-0.1",
    b"0.1234567890123456",
    b'[1,2,{"a":[],"b":{},"c":false}]',
    b'""',
    b'{"z":1,"a":2,"line":"check"}',
    # What a store of another kind may hold: JSON with white space between its tokens.
    b'{\r\n  "text": "spread"\n}',
]

Rows = dict[str, list[tuple[Any, ...]]]


@pytest.fixture(autouse=True)
def _small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    """Many batches of few rows."""
    monkeypatch.setattr(log_export, "BATCH_LINES", BATCH_LINES)


async def fill(url: str, count: int = 400) -> None:
    """Make a log with events, created rooms, markers, handed and removed places, and flags."""
    store = SQLStore(url, auto_migrate=True)
    await store.open()
    choose = random.Random(count)
    for _ in range(0, count, 100):
        await store.append(
            [
                draft(
                    choose.choice(["general", "Ünïcode room", "dm:ann:bob"]),
                    choose.choice(["message", "note"]),
                    sender=choose.choice(["ann", "bob", "системa"]),
                    data_json=choose.choice(PAYLOADS),
                    meta_json=choose.choice([None, b'{"a": [1]}']),
                    kind=choose.choice(["event", "notification"]),
                    counts_unread=choose.random() < 0.7,
                )
                for _ in range(100)
            ]
        )
    await store.append([draft(key="mine")])
    for room_id, event_name, through in (("general", "message", 30), ("dm:ann:bob", "note", 5)):
        await store.mark_handed(room_id, event_name, through)
    await store.remove("general", "message", 17)
    await store.aclose()

    def more(connection: Connection) -> None:
        connection.execute(
            insert(markers),
            [
                {"room_id": "general", "user_id": f"user {n}", "seq": n, "unread_position": n}
                for n in range(90)
            ],
        )
        connection.execute(
            insert(created_rooms),
            [
                {
                    "room_id": f"room {n}",
                    "name": f"Räume {n}",
                    "description": "",
                    "max_size": n or None,
                    "created_by_id": "ann" if n % 2 else None,
                    "created_at": n,
                }
                for n in range(20)
            ],
        )
        connection.execute(update(events).where(events.c.id % 7 == 0).values(is_edited=True))
        connection.execute(update(events).where(events.c.id % 11 == 0).values(is_deleted=True))

    async with Database(SQLStore(url)) as database:
        await database.transact(more)


def exact(value: Any) -> Any:
    """Return JSON as a value, with the numbers as they are written."""
    return json.loads(value, parse_float=str, parse_int=str) if isinstance(value, bytes) else value


async def dump(url: str) -> Rows:
    """Return every row of a log."""

    def read(connection: Connection) -> Rows:
        return {
            table.name: [
                tuple(map(exact, row))
                for row in sorted(
                    map(tuple, connection.execute(select(table))), key=lambda row: tuple(map(repr, row))
                )
            ]
            for table in metadata.sorted_tables
        }

    async with Database(SQLStore(url)) as database:
        return await database.run(read)


async def export(url: str, path: Path, **options: Any) -> Transferred:
    """Export the log at *url*."""
    async with Database(SQLStore(url)) as database:
        return await export_log(database, path, **options)


async def import_(path: Path, url: str, **options: Any) -> Transferred:
    """Import into *url*, making the tables there."""
    async with Database(SQLStore(url, auto_migrate=True)) as database:
        return await import_log(path, database, **options)


@contextmanager
def new_log(folder: Path, *, kind: str = "sqlite") -> Iterator[str]:
    """Yield an empty database, another one each time."""
    number = len(list(folder.iterdir()))
    with empty(kind, folder, f"new{number}") as url:
        yield url


async def assert_same(path: Path, folder: Path, expected: Rows) -> None:
    """Check that *path* imports to exactly the rows of *expected*."""
    with new_log(folder) as url:
        await import_(path, url)
        assert await dump(url) == expected


def test_every_table_is_exported() -> None:
    """A table that is added must be exported too, or be named here with the reason."""
    # The header has the log's one row; sessions are of the server that had the connections.
    assert {table.name for table in SECTIONS.values()} | {log.name, sessions.name} == set(metadata.tables)


@pytest.mark.parametrize("name", ["log.jsonl", "log.jsonl.gz"])
@pytest.mark.parametrize("kinds", [("sqlite", "sqlite"), ("sqlite", "postgres", "sqlite")])
async def test_a_round_trip_is_exact(tmp_path: Path, name: str, kinds: tuple[str, ...]) -> None:
    """Every row comes back as it was, over the other database too, and the log goes on where it was."""
    with ExitStack() as stack:
        urls = [stack.enter_context(empty(kind, tmp_path, f"log{n}")) for n, kind in enumerate(kinds)]
        await fill(urls[0])
        before = await dump(urls[0])
        assert len(before["dialogue_events"]) == 401 - 17
        assert len(before["dialogue_markers"]) == 90
        assert len(before["dialogue_created_rooms"]) == 20
        for number, (source, target) in enumerate(pairwise(urls)):
            path = tmp_path / f"{number}{name}"
            exported = await export(source, path)
            assert not exported.is_resumed
            imported = await import_(path, target)
            assert imported == exported
            assert await dump(target) == before
        assert (await import_state(urls[-1])) == (402, await import_seq(before) + 1)


async def import_state(url: str) -> tuple[int, int]:
    """Append to the log, with a key that it has and with a new one; return what the new one got."""
    store = SQLStore(url)
    await store.open()
    try:
        again, new = await store.append([draft(key="mine"), draft()])
        assert again.is_duplicate
        return new.id, new.seq
    finally:
        await store.aclose()


async def import_seq(rows: Rows) -> int:
    """Return the last seq of the room "general"."""
    return next(int(row[1]) for row in rows["dialogue_rooms"] if row[0] == "general")


async def test_the_file_is_what_the_reference_says(tmp_path: Path) -> None:
    """JSON lines: the header, rows by table with events by id, the end; each batch with its checksum."""
    url = f"sqlite:///{tmp_path / 'log.db'}"
    await fill(url, 100)
    await export(url, tmp_path / "log.jsonl")
    await export(url, tmp_path / "log.jsonl.gz")
    text = (tmp_path / "log.jsonl").read_bytes()
    # Each batch of the compressed file is a member of its own; together they are the same text.
    assert gzip.decompress((tmp_path / "log.jsonl.gz").read_bytes()) == text
    lines = text.splitlines(keepends=True)
    decoded = [json.loads(line) for line in lines]
    kinds = [line["line"] for line in decoded]
    assert kinds[0] == "header"
    assert kinds[-2:] == ["end", "check"]
    rows = [kind for kind in kinds if kind not in ("header", "check", "end")]
    assert rows == sorted(rows, key=list(SECTIONS).index)
    ids = [line["id"] for line in decoded if line["line"] == "event"]
    assert ids == sorted(ids)
    start = 0
    for index, line in enumerate(decoded):
        if line["line"] == "check":
            assert line["lines"] == index - start
            assert line["crc32"] == zlib.crc32(b"".join(lines[start:index]))
            start = index + 1
    assert start == len(lines)


@pytest.mark.parametrize("kind", ["sqlite", "postgres"])
async def test_an_export_is_of_its_start(tmp_path: Path, kind: str) -> None:
    """What a server appends, changes and removes meanwhile is not in the file, and it is not held up."""
    with empty(kind, tmp_path) as url:
        await fill(url)
        before = await dump(url)
        changes = 0

        async def change() -> None:
            def work(connection: Connection) -> None:
                connection.execute(update(log).values(last_id=log.c.last_id + 1))
                connection.execute(update(rooms).values(last_seq=rooms.c.last_seq + 1))
                connection.execute(update(events).values(is_edited=True))
                newest = select(events.c.id).order_by(events.c.id.desc()).limit(20).subquery()
                connection.execute(events.delete().where(events.c.id.in_(select(newest.c.id))))

            async with Database(SQLStore(url)) as database:
                await database.transact(work)

        def on_progress(done: int, total: int) -> None:
            nonlocal changes
            changes += 1
            in_a_thread(change())

        await export(url, tmp_path / "log.jsonl", on_progress=on_progress)
        assert changes > 5
        assert await dump(url) != before
    await assert_same(tmp_path / "log.jsonl", tmp_path, before)


def child(command: str, url: str, path: Path, place: str, number: int) -> bool:
    """Run `transfer_child`; return whether it was killed (else it has ended well)."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.storage.transfer_child", command, url, path, place, str(number)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.stderr == ""
    if done.returncode == -signal.SIGKILL:
        return True
    assert (done.returncode, done.stdout) == (0, "complete\n")
    return False


@pytest.mark.parametrize("name", ["log.jsonl", "log.jsonl.gz"])
async def test_an_export_that_is_killed_goes_on(tmp_path: Path, name: str) -> None:
    """Killed within the header, the rooms, the events and before the rename, and run again: the file is exact."""
    url = f"sqlite:///{tmp_path / 'log.db'}"
    path = tmp_path / name
    await fill(url)
    before = await dump(url)
    for place, number in (
        ("write", 1),
        ("write", 3),
        ("write", 7),
        ("write", 2),
        ("write", 4),
        ("rename", 1),
    ):
        assert child("export", url, path, place, number), (place, number)
        assert not path.exists()
        assert part_path(path).exists()
    # A server that went on meanwhile changes nothing of what the export began with.
    store = SQLStore(url)
    await store.open()
    await store.append([draft() for _ in range(10)])
    await store.aclose()
    assert (await export(url, path)).is_resumed
    assert not part_path(path).exists()
    assert not (tmp_path / f"{name}.lock").exists()
    await assert_same(path, tmp_path, before)


async def test_a_full_disk_ends_an_export_that_goes_on_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It says so in a line that names the file; what was written is gone on with."""
    url = f"sqlite:///{tmp_path / 'log.db'}"
    path = tmp_path / "log.jsonl"
    await fill(url)
    write = export_format.BatchWriter.write
    left = 8

    def full(self: export_format.BatchWriter, lines: Any) -> None:
        nonlocal left
        left -= 1
        if left == 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        write(self, lines)

    monkeypatch.setattr(export_format.BatchWriter, "write", full)
    with pytest.raises(TransferError, match=r"log\.jsonl cannot be written \(No space left on device\)"):
        await export(url, path)
    assert not path.exists()
    assert (await export(url, path)).is_resumed
    await assert_same(path, tmp_path, await dump(url))


@pytest.mark.parametrize("kind", ["sqlite", "postgres"])
async def test_an_import_that_is_killed_goes_on(tmp_path: Path, kind: str) -> None:
    """Killed before and after commits, and run again: the log is exact. Until then it cannot be used as a log."""
    source = f"sqlite:///{tmp_path / 'log.db'}"
    path = tmp_path / "log.jsonl.gz"
    await fill(source)
    before = await dump(source)
    await export(source, path)
    with empty(kind, tmp_path, "target") as url:
        async with Database(SQLStore(url)) as database:
            await database.upgrade()
        # The first transaction marks the log; what is behind it is rows.
        for place, number in (("before", 1), ("after", 1), ("before", 4), ("after", 7), ("before", 3)):
            assert child("import", url, path, place, number), (place, number)
        with pytest.raises(StartError, match="import' again with the same file"):
            await SQLStore(url).open()
        with pytest.raises(StartError, match="import' again with the same file"):
            await export(url, tmp_path / "other.jsonl")
        await fill(f"sqlite:///{tmp_path / 'other.db'}", 100)
        await export(f"sqlite:///{tmp_path / 'other.db'}", tmp_path / "other.jsonl")
        with pytest.raises(TransferError, match="a part of another import"):
            await import_(tmp_path / "other.jsonl", url)
        assert (await import_(path, url)).is_resumed
        assert await dump(url) == before
        with pytest.raises(TransferError, match="has been used"):
            await import_(path, url)
        assert await dump(url) == before


class StopExport(Exception):
    """What a test ends an export with."""


def stop_after(rows: int) -> Callable[[int, int], None]:
    """Return a progress that ends the export when so many rows are written."""

    def on_progress(done: int, total: int) -> None:
        if done >= rows:
            raise StopExport

    return on_progress


@pytest.mark.parametrize("kind", ["sqlite", "postgres"])
async def test_what_was_removed_between_two_parts_of_an_export(tmp_path: Path, kind: str) -> None:
    """Retention and appends between an interruption and the next run leave a log without holes above its floors."""
    with empty(kind, tmp_path) as url:
        await fill(url)
        before = {row[:2]: row for row in (await dump(url))["dialogue_streams"]}
        path = tmp_path / "log.jsonl"
        with pytest.raises(StopExport):
            await export(url, path, on_progress=stop_after(300))
        store = SQLStore(url)
        await store.open()
        await store.append([draft("general", "note") for _ in range(30)])
        await store.append([draft("new room")])
        # One stream in its middle, one to its end, one past what the export has of it.
        for room_id, event_name, through in (
            ("general", "message", 50),
            ("dm:ann:bob", "note", int(before["dm:ann:bob", "note"][2])),
            ("general", "note", int(before["general", "note"][2]) + 7),
        ):
            await store.mark_handed(room_id, event_name, through)
            await store.remove(room_id, event_name, through)
        await store.aclose()
        after = {row[:2]: row for row in (await dump(url))["dialogue_streams"]}
        with pytest.raises(StopExport):
            await export(url, path, on_progress=stop_after(350))
        assert (await export(url, path)).is_resumed
    with new_log(tmp_path) as url:
        await import_(path, url)
        rows = await dump(url)
        assert {row[0] for row in rows["dialogue_rooms"]} == {"general", "Ünïcode room", "dm:ann:bob"}
        last_seqs = {row[0]: row[1] for row in rows["dialogue_rooms"]}
        names = [column.name for column in events.columns]
        for room_id, event_name, last, handed, removed, removed_seq in rows["dialogue_streams"]:
            key = room_id, event_name
            assert last == before[key][2]
            assert removed == min(after[key][4], last)
            assert removed <= handed <= last
            found = [dict(zip(names, row, strict=True)) for row in rows["dialogue_events"]]
            stream = [row for row in found if (row["room_id"], row["event_name"]) == key]
            assert sorted(row["position"] for row in stream) == list(range(removed + 1, last + 1))
            assert removed_seq <= last_seqs[room_id]
            assert all(row["seq"] > removed_seq for row in stream)
        ((_, _, last_id, removed_through_id, _),) = rows["dialogue_log"]
        assert (last_id, removed_through_id) == (401, 401)
    assert before.keys() < after.keys()


@pytest.mark.skipif(
    "replaced_by" not in events.c, reason="this schema does not keep which edit replaced an event"
)
async def test_an_edit_between_two_parts_of_an_export(tmp_path: Path) -> None:
    """An event that names an edit behind the export's end forgets it: another event will have that seq."""
    url = f"sqlite:///{tmp_path / 'log.db'}"
    await fill(url)
    path = tmp_path / "log.jsonl"
    with pytest.raises(StopExport):
        await export(url, path, on_progress=stop_after(300))

    def edit(connection: Connection) -> None:
        connection.execute(update(events).where(events.c.id > 390).values({"replaced_by": 5000}))
        connection.execute(update(events).where(events.c.id == 389).values({"replaced_by": 1}))

    async with Database(SQLStore(url)) as database:
        await database.transact(edit)
    await export(url, path)
    with new_log(tmp_path) as target:
        await import_(path, target)
        column = [c.name for c in events.columns].index("replaced_by")
        assert {row[column] for row in (await dump(target))["dialogue_events"]} == {None, 1}


async def test_an_interrupted_export_of_another_log_is_not_gone_on_with(tmp_path: Path) -> None:
    """Another epoch, or what is no export at all: the file is begun anew."""
    one, two = (f"sqlite:///{tmp_path / name}.db" for name in ("one", "two"))
    path = tmp_path / "log.jsonl"
    for url, count in ((one, 300), (two, 400)):
        await fill(url, count)
    with pytest.raises(StopExport):
        await export(one, path, on_progress=stop_after(250))
    assert not (await export(two, path)).is_resumed
    await assert_same(path, tmp_path, await dump(two))
    part_path(tmp_path / "text.jsonl").write_text("hello\n")
    assert not (await export(two, tmp_path / "text.jsonl")).is_resumed
    assert (tmp_path / "text.jsonl").read_bytes() == path.read_bytes()


@pytest.fixture
async def small(tmp_path: Path) -> tuple[Path, Path]:
    """A small log's export, plain and compressed."""
    url = f"sqlite:///{tmp_path / 'small.db'}"
    await fill(url, 100)
    paths = tmp_path / "small.jsonl", tmp_path / "small.jsonl.gz"
    for path in paths:
        await export(url, path)
    return paths


async def refused(path: Path, folder: Path) -> str:
    """Import *path*, which must be refused before anything is made; return what was said."""
    target = folder / "refused.db"
    with pytest.raises(TransferError) as caught:
        await import_(path, f"sqlite:///{target}")
    assert not target.exists()
    return str(caught.value)


async def test_a_cut_off_file_is_refused(small: tuple[Path, Path], tmp_path: Path) -> None:
    """Wherever it is cut off, and with the line where it is."""
    for path in small:
        whole = path.read_bytes()
        copy = tmp_path / ("cut" + "".join(path.suffixes))
        for length in sorted({0, 1, len(whole) - 1, *random.Random(3).sample(range(len(whole)), 40)}):
            copy.write_bytes(whole[:length])
            said = await refused(copy, tmp_path)
            assert "cut off" in said or "not an export" in said, (length, said)


async def test_a_damaged_file_is_refused(small: tuple[Path, Path], tmp_path: Path) -> None:
    """One changed byte anywhere, lines or batches that are missing, doubled or in another order."""
    for path in small:
        whole = path.read_bytes()
        copy = tmp_path / ("damaged" + "".join(path.suffixes))
        for place in random.Random(4).sample(range(len(whole)), 60):
            changed = bytearray(whole)
            changed[place] ^= 1 << (place % 7)
            copy.write_bytes(changed)
            if path.suffix == ".gz" and gzip.decompress(whole) == _decompressed(bytes(changed)):
                continue  # a byte of gzip's header that says nothing about the text
            assert "line" in await refused(copy, tmp_path), place
    lines = small[0].read_bytes().splitlines(keepends=True)
    checks = [index for index, line in enumerate(lines) if b'"check"' in line[:20]]
    batches = [lines[a + 1 : b + 1] for a, b in zip([-1, *checks], checks, strict=False)]
    copy = tmp_path / "damaged.jsonl"
    for changed_batches, said in (
        ([lines[:40], lines[41:]], "not as they were written"),
        ([*batches[:4], *batches[5:]], "rows before these lines are missing"),
        ([*batches, batches[-1]], "more behind the end"),
        ([*batches[:-2], *batches[-3:]], "not in the order"),
        ([batches[1], batches[0], *batches[2:]], "not an export"),
        ([batches[0], *batches], "header is missing, or there are two"),
        ([*batches[:-2], batches[-1], batches[-2]], "rows before these lines are missing"),
    ):
        copy.write_bytes(b"".join(line for batch in changed_batches for line in batch))
        message = await refused(copy, tmp_path)
        assert said in message
        assert "line" in message


def _decompressed(data: bytes) -> bytes | None:
    try:
        return gzip.decompress(data)
    except (EOFError, OSError, zlib.error):
        return None


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.jsonl", b"", "cut off"),
        ("a.jsonl", b"hello\nworld\n", "line 1: this is not an export"),
        ("a.jsonl", b"hello", "line 1: this is not an export"),
        ("a.jsonl", b'{"id":1}\n', "line 1: this is not an export"),
        ("a.jsonl", b"\xff\xfe\n", "line 1: this is not an export"),
        ("a.jsonl", gzip.compress(b"hello\n", mtime=0), "line 1: this is not an export"),
        ("a.jsonl.gz", b"hello\nworld\n", "line 1: the compression is damaged"),
        ("a.jsonl.gz", gzip.compress(b"hello\n", mtime=0), "line 1: this is not an export"),
        ("a.jsonl", b'{"line":"header","format":"dialogue-export","version":2}\n', "its format is version 2"),
    ],
)  # fmt: skip
async def test_a_foreign_file_is_refused(tmp_path: Path, name: str, content: bytes, said: str) -> None:
    """What is no export, or one of a later format, is told so."""
    (tmp_path / name).write_bytes(content)
    assert said in await refused(tmp_path / name, tmp_path)


async def test_a_later_versions_export_is_refused(small: tuple[Path, Path], tmp_path: Path) -> None:
    """Rows of a schema that this version does not know."""
    lines = small[0].read_bytes().splitlines(keepends=True)
    header = lines[0].replace(b'"revision":"', b'"revision":"9')
    check = b'{"line":"check","lines":1,"crc32":%d}\n' % zlib.crc32(header)
    small[0].write_bytes(b"".join([header, check, *lines[2:]]))
    assert "later version of Dialogue" in await refused(small[0], tmp_path)
    assert "cannot be read" in await refused(tmp_path / "nothing.jsonl", tmp_path)


async def test_an_earlier_versions_export_is_imported(small: tuple[Path, Path], tmp_path: Path) -> None:
    """A file from before rooms could be made has no such rows and no count of them."""
    batches: list[list[bytes]] = [[]]
    for line in small[0].read_bytes().splitlines(keepends=True):
        if line.startswith(b'{"line":"check"'):
            batches.append([])
            continue
        fields = json.loads(line)
        if fields["line"] == "created_room":
            continue
        if "counts" in fields:
            del fields["counts"]["created_room"]
            if "revision" in fields:
                fields["revision"] = "0002"
            line = json.dumps(fields, separators=(",", ":")).encode() + b"\n"
        batches[-1].append(line)
    with small[0].open("wb") as file:
        for batch in filter(None, batches):
            export_format.BatchWriter(file, is_compressed=False).write([line[:-1] for line in batch])
    expected = await dump(f"sqlite:///{tmp_path / 'small.db'}")
    expected["dialogue_created_rooms"] = []
    await assert_same(small[0], tmp_path, expected)


async def test_a_file_that_was_compressed_again(small: tuple[Path, Path], tmp_path: Path) -> None:
    """By another program, into one member: it imports as well."""
    copy = tmp_path / "again.jsonl.gz"
    copy.write_bytes(gzip.compress(small[0].read_bytes()))
    await assert_same(copy, tmp_path, await dump(f"sqlite:///{tmp_path / 'small.db'}"))


async def test_an_import_needs_a_new_log(small: tuple[Path, Path], tmp_path: Path) -> None:
    """A log that was used stays as it is; one that was only opened is new; one that is served is locked."""
    url = f"sqlite:///{tmp_path / 'used.db'}"
    store = SQLStore(url)
    await store.open()
    await store.append([draft()])
    with pytest.raises(LogLocked):
        await import_(small[0], url)
    await store.aclose()
    before = await dump(url)
    with pytest.raises(TransferError, match="has been used: its newest event has the id 1"):
        await import_(small[0], url)
    assert await dump(url) == before
    opened = SQLStore(f"sqlite:///{tmp_path / 'opened.db'}")
    await opened.open()
    await opened.aclose()
    await import_(small[0], f"sqlite:///{tmp_path / 'opened.db'}")
    assert await dump(f"sqlite:///{tmp_path / 'opened.db'}") == await dump(
        f"sqlite:///{tmp_path / 'small.db'}"
    )


async def test_an_import_makes_the_tables_only_where_a_start_would(
    small: tuple[Path, Path], tmp_path: Path
) -> None:
    """Elsewhere it names the command; what it owns, it owns alone."""
    url = f"sqlite:///{tmp_path / 'new.db'}"
    async with Database(SQLStore(url, auto_migrate=False)) as database:
        with pytest.raises(SchemaMismatch, match="dialogue db upgrade"):
            await import_log(small[0], database)
    lock = LogLock(tmp_path / "new.db")

    def on_progress(done: int, total: int) -> None:
        in_a_thread(is_locked())

    async def is_locked() -> None:
        with pytest.raises(LogLocked):
            await lock.acquire(wait_seconds=0)

    await import_(small[0], url, on_progress=on_progress)


def files(folder: Path) -> set[Path]:
    """Return what is in *folder*."""
    return set(folder.iterdir())


async def test_what_an_export_refuses(small: tuple[Path, Path], tmp_path: Path) -> None:
    """It never writes over a file, and leaves nothing where there is nothing to export."""
    url = f"sqlite:///{tmp_path / 'small.db'}"
    before = files(tmp_path)
    content = small[0].read_bytes()
    with pytest.raises(TransferError, match="is there already"):
        await export(url, small[0])
    assert small[0].read_bytes() == content
    with pytest.raises(TransferError, match="cannot be written"):
        await export(url, tmp_path / "nowhere" / "log.jsonl")
    with pytest.raises(SchemaMismatch, match="dialogue db upgrade"):
        await export(f"sqlite:///{tmp_path / 'missing.db'}", tmp_path / "log.jsonl")
    assert files(tmp_path) == before
    async with Database(SQLStore(f"sqlite:///{tmp_path / 'empty.db'}")) as database:
        await database.upgrade()
        with pytest.raises(StartError, match="never used"):
            await export_log(database, tmp_path / "log.jsonl")
    assert files(tmp_path) - before == {tmp_path / "empty.db"}


async def test_two_exports_do_not_write_one_file(tmp_path: Path) -> None:
    """The second one is refused while the first one writes."""
    url = f"sqlite:///{tmp_path / 'log.db'}"
    await fill(url, 200)
    path = tmp_path / "log.jsonl"
    said: list[str] = []

    async def second() -> None:
        with pytest.raises(TransferError) as caught:
            await export(url, path)
        said.append(str(caught.value))

    await export(url, path, on_progress=lambda done, total: in_a_thread(second()))
    assert said
    assert all("another export is writing" in line for line in said)
    await assert_same(path, tmp_path, await dump(url))


def peak_bytes(work: Callable[[], Any]) -> int:
    """Return the most memory that *work* has at once."""
    tracemalloc.start()
    try:
        work()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_memory_does_not_grow_with_the_log(tmp_path: Path) -> None:
    """Six times the events take the same memory, both ways."""
    peaks: dict[str, list[int]] = {"export": [], "import": []}
    for count in (500, 3000):
        source, target = (f"sqlite:///{tmp_path / f'{name}{count}.db'}" for name in ("source", "target"))
        path = tmp_path / f"{count}.jsonl.gz"
        asyncio.run(fill(source, count))
        peaks["export"].append(peak_bytes(lambda: asyncio.run(export(source, path))))  # noqa: B023 - called at once
        peaks["import"].append(peak_bytes(lambda: asyncio.run(import_(path, target))))  # noqa: B023
    for way, (small, large) in peaks.items():
        # The rows of the larger log alone are 1.5 MB; what the collector has not looked at yet differs from run to run.
        assert large < small + 600_000, (way, small, large)
