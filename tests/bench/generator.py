"""What load generators have in common as processes: their command, how they wait, and how they sum up latencies."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

import msgspec
import uvloop

from .processes import cpu_seconds, pin

SETTLE_SECONDS = 30.0
"""How long the server may take for an answer, or for what is in flight."""

_QUIET_SECONDS = 0.2

_Plan = TypeVar("_Plan", bound=msgspec.Struct)


def main(
    plan_type: type[_Plan], run: Callable[[_Plan], Awaitable[msgspec.Struct]], *, is_pinned: bool = True
) -> None:
    """Run the plan of the command line and print the result.

    Args:
        is_pinned: Whether the process keeps to the last core, so that the server has the others.
    """
    if is_pinned:
        pin(last=True)
    plan = msgspec.json.decode(sys.argv[1], type=plan_type)

    async def found() -> msgspec.Struct:
        return await run(plan)

    print(msgspec.json.encode(uvloop.run(found())).decode())


async def until(is_done: Callable[[], bool]) -> None:
    """Return when *is_done*.

    Raises:
        TimeoutError: It was not within `SETTLE_SECONDS`.
    """
    async with asyncio.timeout(SETTLE_SECONDS):
        while not is_done():
            await asyncio.sleep(0.005)


async def until_quiet(pid: int, *, share: float = 0.1) -> None:
    """Return when a server has done what was left, such as the telling of who has come.

    Args:
        share: Of a core; a server that uses no more is quiet. Where the system does not tell it is after a moment.

    Raises:
        TimeoutError: It was not after ten times `SETTLE_SECONDS`.
    """
    loop = asyncio.get_running_loop()
    async with asyncio.timeout(10 * SETTLE_SECONDS):
        while True:
            at, before = loop.time(), cpu_seconds(pid)
            await asyncio.sleep(_QUIET_SECONDS)
            after = cpu_seconds(pid)
            if before is None or after is None or after - before <= share * (loop.time() - at):
                return


def percentile(weighted: Sequence[tuple[float, int]], share: float) -> float:
    """Return the value below which *share* of the (value, count) pairs lie; they are sorted. 0 for none."""
    wanted = share * sum(count for _, count in weighted)
    for value, count in weighted:
        wanted -= count
        if wanted <= 0:
            return value
    return 0.0
