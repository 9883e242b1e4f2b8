"""What all tests share."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Iterator
from pathlib import Path

import pytest

from . import rates

pytest_plugins = ["tests.postgres"]

# Thousands of tests and all that they import stay to the end. Looked through for garbage again and again, they were a
# third of what it takes to collect them, and then of what it takes to run them.
gc.disable()

FIRST = (
    "storage/test_directory.py",
    "storage/test_postgres.py",
    "docs/test_docs.py",
    "browser/test_demo_page.py",
    "server/test_unread.py",
    "test_demo.py",
    "test_run.py",
    "storage/test_transfer.py",
    "bench/test_smoke.py",
    "chaos/test_clients.py",
    "browser/test_timeline_page.py",
    "server/test_crash.py",
    "server/test_http.py",
    "storage/test_sql.py",
    "browser/test_demo_page_states.py",
    "attacks/test_floods.py",
    "attacks/test_identity.py",
    "server/test_archive.py",
    "attacks/test_values.py",
    "server/test_promises.py",
    "client/test_dialogue_js.py",
    "client/test_timeline_js.py",
    "test_secrets.py",
)
"""The files that take longest, begun first: whichever is begun last is what the other processes wait for at the end."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the longest files first; a file's tests keep their order."""
    ranks = {Path(__file__).parent / name: rank for rank, name in enumerate(FIRST)}
    assert all(path.is_file() for path in ranks), "FIRST names a file that is not there"
    items.sort(key=lambda item: ranks.get(item.path, len(ranks)))


def pytest_collection_finish() -> None:
    """Collect garbage from here on, among what comes from here on."""
    gc.freeze()
    gc.enable()


@pytest.fixture
def no_refill() -> Iterator[None]:
    """See `rates.no_refill`."""
    with rates.no_refill():
        yield


@pytest.fixture(autouse=True)
def _no_lost_exceptions(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Fail a test in which the event loop was told of an exception that nobody retrieved."""
    lost: list[str] = []
    original = asyncio.BaseEventLoop.call_exception_handler

    def record(self: asyncio.BaseEventLoop, context: dict[str, object]) -> None:
        lost.append(f"{context.get('message')}: {context.get('exception')!r}")
        original(self, context)

    monkeypatch.setattr(asyncio.BaseEventLoop, "call_exception_handler", record)
    yield
    assert not lost, lost
