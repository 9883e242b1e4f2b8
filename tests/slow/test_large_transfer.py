"""Export and import of a log of 200,000 events: rates, and memory that does not grow with the log."""

from __future__ import annotations

import asyncio
import filecmp
import os
import subprocess
import sys
from pathlib import Path

import pytest

from dialogue.storage.sql import SQLStore
from dialogue.testing.store_contract import draft

from ..storage.databases import empty
from ..storage.test_transfer import ROOT

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(900),
    pytest.mark.skipif(sys.platform != "linux", reason="the peak of a process's memory is read from /proc"),
]

SMALL, LARGE = 10_000, 200_000

CODE = """
import asyncio, re, sys, time
from pathlib import Path
from dialogue.storage.administration import Database
from dialogue.storage.sql import SQLStore
from dialogue.storage.log_export import export_log
from dialogue.storage.log_import import import_log

async def main(command, url, path):
    async with Database(SQLStore(url, auto_migrate=True)) as database:
        started = time.perf_counter()
        if command == "export":
            done = await export_log(database, Path(path))
        else:
            done = await import_log(Path(path), database)
        seconds = time.perf_counter() - started
    # Not getrusage, which counts the process that started this one.
    peak = int(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1])
    print(done.counts["event"] / seconds, peak / 1024)

asyncio.run(main(*sys.argv[1:]))
"""


def measured(command: str, url: str, path: Path) -> tuple[float, float]:
    """Run an export or import in a process of its own; return its events a second and its peak in MiB."""
    done = subprocess.run(
        [sys.executable, "-c", CODE, command, url, str(path)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
    )
    rate, peak = map(float, done.stdout.split())
    return rate, peak


async def fill(url: str, count: int) -> None:
    """Append *count* events of about 100 bytes to 200 rooms."""
    store = SQLStore(url, auto_migrate=True)
    await store.open()
    for start in range(0, count, 1000):
        await store.append(
            [
                draft(
                    f"room {number % 200}",
                    key=f"key {number}",
                    sender=f"user {number % 37}",
                    data_json=b'{"text":"message %d, of the usual length, as people write them","username":"ann"}'
                    % number,
                )
                for number in range(start, start + 1000)
            ]
        )
    await store.aclose()


@pytest.mark.parametrize("kind", ["sqlite", "postgres"])
@pytest.mark.parametrize("name", ["log.jsonl", "log.jsonl.gz"])
def test_a_large_log(tmp_path: Path, kind: str, name: str) -> None:
    """Twenty times the events take at most 40 MiB more, both ways, and come back as they were."""
    peaks: dict[str, list[float]] = {"export": [], "import": []}
    for count in (SMALL, LARGE):
        path = tmp_path / f"{count}{name}"
        with (
            empty(kind, tmp_path, f"source{count}") as source,
            empty(kind, tmp_path, f"new{count}") as target,
        ):
            asyncio.run(fill(source, count))
            for command, url in (("export", source), ("import", target)):
                rate, peak = measured(command, url, path)
                peaks[command].append(peak)
                print(f"{kind} {name} {command}: {count:,} events, {rate:,.0f} events/s, peak {peak:.0f} MiB")
            again = tmp_path / f"again{count}{name}"
            measured("export", target, again)
            assert filecmp.cmp(path, again, shallow=False)
    for command, (small, large) in peaks.items():
        assert large < small + 40, (command, small, large)
