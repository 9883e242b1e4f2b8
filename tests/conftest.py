"""What all tests share."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest

pytest_plugins = ["tests.postgres"]


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
