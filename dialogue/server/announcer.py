"""Tells everyone who may see a room that it was made, changed or deleted: in order, from one bounded queue."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING, Any

from .. import protocol
from .handles import RoomHandle
from .outbox import Frame

if TYPE_CHECKING:
    from .hub import Hub
    from .session import Session

_TOGETHER = 100
"""Most announcements in one frame."""

_STEP = 200
"""After how many connections, or questions to a hook, others have their turn."""

_CONNECTIONS_PER_STEP = 1000
"""For each so many connections there is a rest of ``limits.presence_seconds`` after what they were told."""


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
                # Together: one who makes and deletes rooms in a loop must not cost everyone a frame for each.
                messages = [self._queue.popleft() for _ in range(min(len(self._queue), _TOGETHER))]
                sessions = list(hub.connections.sessions)
                if hub.access.is_all_visible:
                    await self._tell_all(sessions, Frame(protocol.encode_frame(text for text, _ in messages)))
                else:
                    await self._tell_by_visibility(sessions, messages)
                # The more there are to tell, the more is gathered for them meanwhile.
                await asyncio.sleep(hub.limits.presence_seconds * (len(sessions) // _CONNECTIONS_PER_STEP))

    @staticmethod
    async def _tell_all(sessions: list[Session], frame: Frame) -> None:
        for number, session in enumerate(sessions, 1):
            if session.is_connected and not session.is_closing:
                session.send_frame(frame)
            if not number % _STEP:
                await asyncio.sleep(0)

    async def _tell_by_visibility(
        self, sessions: list[Session], messages: list[tuple[bytes, RoomHandle]]
    ) -> None:
        access, asked = self._hub.access, 0
        for session in sessions:
            visible = []
            for message, handle in messages:
                if not session.is_connected or session.is_closing:
                    break
                if await access.can_see(session.client, handle):
                    visible.append(message)
                asked += 1
                if not asked % _STEP:
                    # A hook that awaits nothing would keep everyone else waiting for all of them.
                    await asyncio.sleep(0)
            if visible and not session.is_closing:
                session.send(visible, is_live=True)
