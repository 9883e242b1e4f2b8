"""Tells everyone who may see a room that it was made, changed or deleted: in order, from one bounded queue."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING, Any

from .. import protocol
from .handles import RoomHandle

if TYPE_CHECKING:
    from .hub import Hub


class Announcer:
    """Sends announcements behind the commands that cause them.

    Whether a connection may see the room is asked for each, which may take as long as a ``can_see`` hook does. When
    ``limits.hook_queue_events`` wait, further announcements are skipped and counted: ``rooms`` tells what there is.
    """

    def __init__(self, hub: Hub) -> None:
        self._hub = hub
        self._queue: deque[tuple[bytes, RoomHandle]] = deque()
        self._arrived = asyncio.Event()

    def start(self) -> None:
        """Begin, as a task of the hub's, which ends with it."""
        self._hub.spawn(self._run(), name="dialogue-announcer")

    def put(self, message: dict[str, Any], handle: RoomHandle) -> None:
        """Queue *message*, for those who may see the room. Never waits."""
        if len(self._queue) >= self._hub.limits.hook_queue_events:
            self._hub.metrics.announcements_skipped.inc()
            return
        self._queue.append((protocol.encode_message(message), handle))
        self._arrived.set()

    async def _run(self) -> None:
        hub = self._hub
        while True:
            await self._arrived.wait()
            self._arrived.clear()
            while self._queue:
                message, handle = self._queue.popleft()
                for session in list(hub.connections.sessions):
                    if not session.is_connected or session.is_closing:
                        continue
                    if await hub.access.can_see(session.client, handle) and not session.is_closing:
                        session.send([message], is_live=True)
                # Without a hook nothing above waits.
                await asyncio.sleep(0)
