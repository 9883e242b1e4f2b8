"""Whose turn it is to read a database: as many at a time as there are connections for it, the others in order."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from random import random

from ..errors import StoreBusy

MOST_WAITING = 5000
"""Reads that wait for their turn; further ones are refused at once."""

WAIT_SECONDS = 10.0
"""How long a read waits for its turn."""


def busy() -> StoreBusy:
    """Return what refuses a read: those that are refused together come again apart, in 1 to 3 seconds."""
    return StoreBusy(retry_after_seconds=round(1 + 2 * random(), 2))


class ReadTurns:
    """Lets *at_a_time* reads run, and a bounded number wait, first come first served."""

    def __init__(self, at_a_time: int) -> None:
        self._turns = asyncio.Semaphore(at_a_time)
        self.waiting = 0

    @asynccontextmanager
    async def take(self) -> AsyncIterator[None]:
        """Wait for a turn, and keep it until left.

        Raises:
            StoreBusy: Too many wait already, or it takes too long.
        """
        if self._turns.locked():
            await self._wait()
        else:
            await self._turns.acquire()  # at once
        try:
            yield
        finally:
            self._turns.release()

    async def _wait(self) -> None:
        if self.waiting >= MOST_WAITING:
            raise busy()
        self.waiting += 1
        try:
            async with asyncio.timeout(WAIT_SECONDS):
                await self._turns.acquire()
        except TimeoutError:
            raise busy() from None
        finally:
            self.waiting -= 1
