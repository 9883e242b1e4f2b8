"""What all tests share."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Iterator

import pytest

pytest_plugins = ["tests.postgres"]

# Thousands of tests and all that they import stay to the end. Looked through for garbage again and again, they were a
# third of what it takes to collect them, and then of what it takes to run them.
gc.disable()


def pytest_collection_finish() -> None:
    """Collect garbage from here on, among what comes from here on."""
    gc.freeze()
    gc.enable()


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
