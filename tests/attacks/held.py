"""A store whose reads can be held."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

from dialogue import SQLStore
from dialogue.testing import FaultyStore


class HeldReads(FaultyStore):
    """A store over SQLite in a folder.

    Attributes:
        may_read: Reads of pages wait until it is set, as it is at first.
        reading: How many reads are held at present.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(SQLStore(f"sqlite:///{path / 'log.db'}"))
        self.may_read = asyncio.Event()
        self.may_read.set()
        self.reading = 0

    async def _held(self) -> None:
        self.reading += 1
        try:
            await self.may_read.wait()
        finally:
            self.reading -= 1

    async def page(self, *args: Any, **kwargs: Any) -> Any:
        await self._held()
        return await super().page(*args, **kwargs)

    async def stream_page(self, *args: Any, **kwargs: Any) -> Any:
        await self._held()
        return await super().stream_page(*args, **kwargs)
