"""One at a time for each room: what takes turns there, in the order of asking."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


class Turns:
    """A lock for each room id that anybody holds or waits for, and none for the others."""

    def __init__(self) -> None:
        self._locks: dict[str, tuple[asyncio.Lock, int]] = {}

    def __len__(self) -> int:
        """How many rooms somebody has, or waits for, the turn in."""
        return len(self._locks)

    def is_free(self, room_id: str) -> bool:
        """Whether nobody has, or waits for, the turn in a room: who takes it in this same step does not wait."""
        return room_id not in self._locks

    @asynccontextmanager
    async def take(self, room_id: str) -> AsyncIterator[None]:
        """Wait until nobody else has the turn in a room, and keep it until left."""
        lock, users = self._locks.get(room_id, (None, 0))
        lock = lock or asyncio.Lock()
        self._locks[room_id] = lock, users + 1
        try:
            async with lock:
                yield
        finally:
            lock, users = self._locks[room_id]
            if users > 1:
                self._locks[room_id] = lock, users - 1
            else:
                del self._locks[room_id]
