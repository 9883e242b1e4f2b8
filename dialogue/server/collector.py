"""Python's garbage collector in a process that only serves: ``dialogue run`` and ``dialogue demo``.

A collection walks what may have cycles, and nothing is served meanwhile. While connections come, each of which is
some eighty objects that stay, Python's own settings have it walk all of them again and again: a third of what a
connection costs.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager

THRESHOLDS = (10_000, 10, 2)
"""When the three generations are collected: objects that the youngest has grown by, and how many collections of the
one before. Measured with connections that come and join: 0.85 ms of processor time each with Python's 700, 10, 10;
about 0.6 ms with these. Connections that have gone are cycles: a full collection has to come early enough for them."""

_BEFORE = gc.get_threshold()


@contextmanager
def collect_seldom() -> Iterator[Callable[[], None]]:
    """Yield what is to be called when the process serves; undone at the end.

    Thresholds that the application has set before it serves are left alone.
    """

    def begin() -> None:
        # What there is now stays until the end. Walking it took the collector 50 ms and more, in which every
        # publisher waited.
        gc.collect()
        gc.freeze()
        if gc.get_threshold() == _BEFORE:
            gc.set_threshold(*THRESHOLDS)

    try:
        yield begin
    finally:
        gc.unfreeze()
        if gc.get_threshold() == THRESHOLDS:
            gc.set_threshold(*_BEFORE)
