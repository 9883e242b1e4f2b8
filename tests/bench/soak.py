"""A soak: at half of its load for ten minutes, a server must neither grow nor leave anything behind."""

from __future__ import annotations

import sqlite3
import statistics
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import msgspec
from sqlalchemy import make_url

from .databases import database
from .processes import Served, fetch, load, resident_bytes, serving
from .report import Figure
from .soak_load import Entry, Plan, Result

HALF = 0.5
"""The share of a core that the server is to use."""

FIRST, LAST = (0.1, 0.3), (0.8, 1.0)
"""The parts of the time whose samples are compared: minutes 2 and 3 of ten, and the last two."""

SAMPLES = 300
WARM_UP_SECONDS = 3.0
WARM_UP_BURST = 100
START_PER_SECOND = 20.0
REST_SECONDS = 10.0
"""How long the server may take to be at rest after the last visitor has gone."""


class State(msgspec.Struct, frozen=True):
    """What the server says of itself."""

    tasks: int
    rooms: int
    connections: int


class Sample(msgspec.Struct, frozen=True):
    """What the server uses.

    Attributes:
        at: When, by `time.perf_counter`.
        megabytes: Resident memory.
    """

    at: float
    megabytes: float
    files: int
    threads: int
    state: State


def sample(served: Served) -> Sample:
    """Look at the server; where the system has no ``/proc``, only what it says of itself is known."""
    state = msgspec.json.decode(fetch(served.port, "/bench"), type=State)
    process = Path(f"/proc/{served.pid}")
    at = time.perf_counter()
    if not process.exists():
        return Sample(at, 0.0, 0, 0, state)
    return Sample(
        at=at,
        megabytes=(resident_bytes(served.pid) or 0) / 1e6,
        files=len(list((process / "fd").iterdir())),
        threads=len(list((process / "task").iterdir())),
        state=state,
    )


def rest(served: Served, before: Sample | None = None) -> Sample:
    """Wait until nobody is connected, all rooms sleep and nothing is left of it; return the last look.

    Args:
        before: What there was before; with more than that it is waited for until `REST_SECONDS` have passed.
    """
    deadline = time.monotonic() + REST_SECONDS
    while True:
        now = sample(served)
        is_calm = not now.state.rooms and not now.state.connections
        is_less = before is None or (now.files <= before.files and now.state.tasks <= before.state.tasks)
        if (is_calm and is_less) or time.monotonic() > deadline:
            return now
        time.sleep(0.2)


@contextmanager
def sampling(served: Served, *, between: float) -> Iterator[list[Sample]]:
    """Look at the server again and again during the block."""
    found: list[Sample] = []
    ended = threading.Event()

    def look() -> None:
        while not ended.wait(between):
            found.append(sample(served))

    with ThreadPoolExecutor(1) as pool:
        looking = pool.submit(look)
        try:
            yield found
        finally:
            ended.set()
        looking.result()


def measure(*, seconds: float, pause: float, filled: int) -> list[Figure]:
    """Soak a server over a new SQLite file.

    Args:
        pause, filled: See `soak_load.Plan`. What the connection that writes keeps of its file in memory, up to 16 MB,
            is to be full from the start: SQLite would fill it only over minutes, and it would look like a leak.

    Raises:
        AssertionError: A visitor got what it should not, or the log is not what was acked.
    """
    with tempfile.TemporaryDirectory(prefix="dialogue-bench-") as folder, database("SQLite") as url:
        ledgers = [str(Path(folder) / name) for name in ("first", "second")]
        with serving("soak", url) as served:
            # Pools, threads and caches are there after a first visit: what counts is what comes on top of that.
            first = Plan(
                port=served.port,
                pid=served.pid,
                seconds=min(WARM_UP_SECONDS, seconds),
                filled=filled,
                burst=WARM_UP_BURST,
                per_second=START_PER_SECOND,
                pause=pause,
                ledger=ledgers[0],
                seed=1,
            )
            warm = load(first, Result)
            before = rest(served)
            objects = _objects(served)
            plan = msgspec.structs.replace(
                first,
                seconds=seconds,
                filled=0,
                burst=0,
                cpu_share=HALF,
                settle_seconds=seconds * FIRST[0],
                ledger=ledgers[1],
                seed=2,
            )
            with sampling(served, between=max(0.1, seconds / SAMPLES)) as samples:
                found = load(plan, Result)
            after = rest(served, before)
            grown = _objects(served) - objects
        for result in (warm, found):
            assert not result.wrong, result
        path = make_url(url).database
        assert path is not None
        stored = check(path, [entry for ledger in ledgers for entry in _entries(ledger)])
    return _figures(found, seconds, samples, before, after, grown, stored)


def _objects(served: Served) -> Counter[str]:
    return Counter(msgspec.json.decode(fetch(served.port, "/bench/objects"), type=dict[str, int]))


def _entries(ledger: str) -> list[Entry]:
    return msgspec.json.decode(Path(ledger).read_bytes(), type=list[Entry])


def check(path: str, acked: list[Entry]) -> int:
    """Hold the log against what was acked; return how many events it has.

    Raises:
        AssertionError: Something acked is not where its ack said, is there twice, or a seq is missing.
    """
    connection = sqlite3.connect(path)
    try:
        rows = connection.execute(
            "SELECT room_id, seq, json_extract(event_data, '$.text') FROM dialogue_events"
            " WHERE room_id <> 'filled' ORDER BY room_id, seq"
        ).fetchall()
    finally:
        connection.close()
    log: dict[tuple[str, int], str] = {}
    last: dict[str, int] = {}
    turns: dict[tuple[str, ...], int] = {}
    for room, seq, text in rows:
        assert seq == last.get(room, 0) + 1, (room, seq, "after", last.get(room))
        last[room] = seq
        log[room, seq] = text
        *visit, turn = text.split(" ")[:3]
        # Growing, so neither doubled nor out of order.
        assert int(turn) > turns.get(tuple(visit), -1), (room, seq, text)
        turns[tuple(visit)] = int(turn)
    for entry in acked:
        assert log.get((entry.room, entry.seq)) == entry.text, entry
    return len(rows)


def _part(samples: list[Sample], part: tuple[float, float]) -> list[Sample]:
    """Return a part of *samples*, which come at even times; at least one."""
    start, end = (round(len(samples) * share) for share in part)
    return samples[start:end] or samples[-1:]


def _figures(
    found: Result,
    seconds: float,
    samples: list[Sample],
    before: Sample,
    after: Sample,
    grown: Counter[str],
    stored: int,
) -> list[Figure]:
    within = [item for item in samples if 0 <= item.at - found.started <= seconds] or [after]
    first, last = (
        statistics.median(item.megabytes for item in _part(within, part)) for part in (FIRST, LAST)
    )
    share = f"{found.server_share:.0%}" if found.server_share is not None else "?"
    peak = max(samples, key=lambda item: item.state.connections).state
    most = ", ".join(f"{name} {number:+,}" for name, number in grown.most_common(4))
    made = [
        Figure(
            scenario="soak",
            what=f"SQLite: memory, medians of the last fifth of {seconds:,.0f} s",
            value=last,
            unit="MB",
            against=f"from {FIRST[0]:.0%} to {FIRST[1]:.0%} of them",
            against_value=first or None,
            ratio_at_most=1.1 if first else None,
            note=f"server {share} of a core, {found.per_second:.0f} visits/s, {found.visits:,} in all with "
            f"{found.acked:,} acks, {found.events:,} events received, {found.resumes:,} resumes, "
            f"{found.pages:,} pages; {stored:,} in the log, each acked one in its place; "
            f"at most {peak.connections} connections and "
            f"{max(item.state.rooms for item in samples)} rooms awake; at rest {before.megabytes:.0f} MB before and "
            f"{after.megabytes:.0f} MB after, objects that are more then: {most}; "
            f"load generator {found.busy:.0%} of a core",
        ),
        *(
            Figure(
                scenario="soak",
                what=f"SQLite: {what} at rest, after",
                value=float(now),
                unit="",
                against="before",
                against_value=float(was) or None,
                ratio_at_most=1.0 if was else None,
                note=f"at most {most_of} meanwhile",
            )
            for what, was, now, most_of in (
                ("file descriptors", before.files, after.files, max(item.files for item in samples)),
                (
                    "asyncio tasks",
                    before.state.tasks,
                    after.state.tasks,
                    max(item.state.tasks for item in samples),
                ),
                ("threads", before.threads, after.threads, max(item.threads for item in samples)),
            )
        ),
    ]
    # Nothing was counted where the system has no /proc.
    return [figure for figure in made if figure.value]
