"""Fixtures of the server's tests."""

from __future__ import annotations

import pytest

from . import harness


@pytest.fixture(params=["asgi", "straight"])
def both_outboxes(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run a test with frames that go out by ASGI, and with frames that are written straight to the transport."""
    monkeypatch.setattr(harness, "is_straight", request.param == "straight")
