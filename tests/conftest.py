"""What all tests share."""

from __future__ import annotations

import asyncio
import gc
import logging
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


QUICK_ELSEWHERE = (
    "browser/test_timeline_page.py::test_a_laptop_that_sleeps[stopped]",
    "browser/test_timeline_page.py::test_scrolling_back_keeps_its_place",
    "browser/test_timeline_page.py::test_two_windows_and_two_tabs_of_one_user",
    "browser/test_timeline_page.py::test_where_no_web_socket_comes_through",
    "client/test_stream.py::test_begun_again_wherever_it_ended_it_equals_the_log[1]",
    "client/test_stream.py::test_whatever_happens_it_equals_the_log[1]",
    "client/test_stream.py::test_whatever_happens_it_equals_the_log[2]",
    "docs/test_share_your_database.py::test_two_sets_of_migrations_in_one_database[postgres]",
    "server/test_inbox_model.py::test_counts_are_those_of_the_model_whatever_happens[postgres-1]",
    "server/test_inbox_model.py::test_counts_are_those_of_the_model_whatever_happens[postgres-2]",
    "server/test_inbox_model.py::test_counts_are_those_of_the_model_whatever_happens[sqlite-1]",
    "server/test_inbox_model.py::test_counts_are_those_of_the_model_whatever_happens[sqlite-2]",
    "server/test_unread.py::test_counts_are_those_of_a_naive_model[postgres-1]",
    "server/test_unread.py::test_counts_are_those_of_a_naive_model[postgres-2]",
    "server/test_unread.py::test_counts_are_those_of_a_naive_model[sqlite-1]",
    "server/test_unread.py::test_counts_are_those_of_a_naive_model[sqlite-2]",
    "server/test_unread.py::test_one_query_for_a_user_in_a_thousand_rooms[postgres]",
    "storage/test_directory.py::TestPostgresSchema::test_more_rooms_than_one_read_takes",
    "storage/test_directory.py::TestSharedEngine::test_more_rooms_than_one_read_takes",
    "storage/test_transfer.py::test_an_export_that_is_killed_goes_on[log.jsonl.gz]",
    "storage/test_transfer.py::test_an_import_that_is_killed_goes_on[postgres]",
    "test_run.py::test_run_serves_until_a_signal[2]",
    "storage/test_directory.py::TestPostgresSchema::test_unread_counts_agree_with_a_model",
    "storage/test_directory.py::TestSharedEngine::test_unread_counts_agree_with_a_model",
    "storage/test_postgres.py::TestPostgresSchema::test_pages_agree_with_a_model",
    "storage/test_postgres.py::TestSharedPostgresEngine::test_pages_agree_with_a_model",
    "storage/test_sql.py::TestSharedEngine::test_pages_agree_with_a_model",
    "server/test_crash.py::test_kill_9_under_sixteen_publishers[sqlite-log+archive]",
    "server/test_crash.py::test_kill_9_under_sixteen_publishers[postgres-log]",
    "chaos/test_clients.py::test_sixty_cuts[python]",
    "chaos/test_clients.py::test_kills_and_tiny_replays[javascript]",
    "test_demo.py::test_an_interrupted_past_is_gone_on_with[2]",
    "test_demo.py::test_an_interrupted_past_is_gone_on_with[9]",
)
"""Slow, and shown of a sibling in every run: these differ from it in engine, schema, seed, signal or page."""


@pytest.hookimpl(tryfirst=True)  # before "-m" is looked at
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the longest files first; a file's tests keep their order. Mark what is slow and has a quick sibling."""
    for item in items:
        if item.nodeid.removeprefix("tests/") in QUICK_ELSEWHERE:
            item.add_marker(pytest.mark.slow)
    ranks = {Path(__file__).parent / name: rank for rank, name in enumerate(FIRST)}
    assert all(path.is_file() for path in ranks), "FIRST names a file that is not there"
    items.sort(key=lambda item: ranks.get(item.path, len(ranks)))


def pytest_collection_finish() -> None:
    """Collect garbage from here on, among what comes from here on."""
    gc.freeze()
    gc.enable()


@pytest.fixture(autouse=True)
def _logging_as_it_was() -> Iterator[None]:
    """Take back what a command that ran in this process has set: later tests would miss what they expect in the log."""
    loggers = [logging.getLogger(name) for name in ("", "dialogue", "alembic", "uvicorn.error")]
    before = [(logger, logger.level, list(logger.handlers)) for logger in loggers]
    yield
    for logger, level, handlers in before:
        logger.setLevel(level)
        logger.handlers[:] = handlers


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
