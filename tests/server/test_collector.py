"""The garbage collector of a process that serves."""

from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest

from dialogue.server.collector import THRESHOLDS, collect_seldom


@pytest.fixture(autouse=True)
def settings() -> Iterator[None]:
    """Leave the collector as it was."""
    before = gc.get_threshold()
    yield
    gc.unfreeze()
    gc.set_threshold(*before)


def test_it_collects_seldom_while_the_process_serves() -> None:
    """What was there at the start is not walked again; everything is as before at the end."""
    before, frozen = gc.get_threshold(), gc.get_freeze_count()
    with collect_seldom() as begin:
        assert gc.get_threshold() == before
        begin()
        assert gc.get_threshold() == THRESHOLDS
        assert gc.get_freeze_count() > frozen
    assert gc.get_threshold() == before
    assert gc.get_freeze_count() == 0


def test_what_the_application_has_set_stays() -> None:
    """Who tunes the collector knows more about the process than the server does."""
    with collect_seldom() as begin:
        gc.set_threshold(1234, 5, 6)
        begin()
        assert gc.get_threshold() == (1234, 5, 6)
    assert gc.get_threshold() == (1234, 5, 6)
