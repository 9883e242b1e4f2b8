"""Ending tasks in a bounded time."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Any

GRACE_SECONDS = 0.05
"""What a cancelled task has at least: its own ``finally`` takes some turns of the loop, also past the deadline."""


async def end_tasks(tasks: Iterable[asyncio.Task[Any]], *, until: float) -> set[asyncio.Task[Any]]:
    """Cancel *tasks* and wait for their ends until loop time *until*; what they raise is dropped.

    Returns:
        Those that go on all the same: they run code that does not let itself be cancelled. ``asyncio.gather`` would
        wait for them without a bound, whatever timeout is put around it.
    """
    left = {task for task in tasks if not task.done()}
    if not left:
        return left
    for task in left:
        task.cancel()
    seconds = max(GRACE_SECONDS, until - asyncio.get_running_loop().time())
    ended, left = await asyncio.wait(left, timeout=seconds)
    for task in ended:
        if not task.cancelled():
            task.exception()  # else it is told as one that nobody has looked at
    return left
