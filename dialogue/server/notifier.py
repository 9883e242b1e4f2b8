"""After the commit: `after_each`, `on_triggered`, handlers of `on`: in order, from one bounded queue, at most once."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Sequence
from typing import Any

from ..errors import RoomNotFound
from ..events import EncodedEvent, Event
from ..limits import Limits
from ..room_types import RoomType
from ..storage.ending import end_tasks
from .handles import Context, RoomHandle
from .hooks import HookRegistry
from .metrics import Metrics

_AFTER = ("after_each", "on_triggered", "on")
"""What is called for an event, in this order."""


class Notifier:
    """Runs these hooks behind the publish path. An async context manager; `aclose` runs what is queued.

    When the hooks fall ``limits.hook_queue_events`` behind, further events are skipped and counted: a slow hook
    must not slow publishers, and whoever needs every event reads the feed of the log.
    """

    def __init__(
        self,
        hooks: HookRegistry,
        *,
        limits: Limits,
        metrics: Metrics,
        context: Context,
        logger: logging.Logger,
    ) -> None:
        self._hooks = hooks
        self._limits = limits
        self._metrics = metrics
        self._context = context
        self._log = logger
        self._queue: deque[tuple[str, RoomType, EncodedEvent, int]] = deque()
        self._arrived = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Notifier:
        self._task = asyncio.create_task(self._run(), name="dialogue-notifier")
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose(until=asyncio.get_running_loop().time() + self._limits.stop_timeout_seconds)

    async def aclose(self, *, until: float) -> None:
        """Run what is queued, until loop time *until*; the rest is skipped and counted. May be called twice."""
        task, self._task = self._task, None
        if task is None:
            return
        try:
            async with asyncio.timeout_at(until):
                await self._idle.wait()
        except TimeoutError:
            self._metrics.hooks_skipped.inc(len(self._queue))
            self._log.warning("stopping with %d events whose after_each was skipped", len(self._queue))
        await end_tasks([task], until=until)

    @property
    def has_hooks(self) -> bool:
        """Whether anyone wants to be told; without, nothing needs to be `put`."""
        return any(map(self._hooks.has, _AFTER))

    def put(self, room_id: str, room_type: RoomType, events: Sequence[tuple[EncodedEvent, int]]) -> None:
        """Queue *events* with the number of their recipients; what does not fit is skipped and counted."""
        free = max(0, self._limits.hook_queue_events - len(self._queue))
        self._queue.extend((room_id, room_type, event, count) for event, count in events[:free])
        if len(events) > free:
            self._metrics.hooks_skipped.inc(len(events) - free)
        if self._queue:
            self._idle.clear()
            self._arrived.set()

    async def _run(self) -> None:
        while True:
            await self._arrived.wait()
            self._arrived.clear()
            while self._queue:
                room_id, room_type, encoded, count = self._queue.popleft()
                event: Event[Any] = Event.decode(
                    encoded,
                    epoch=self._context.epoch if encoded.seq is not None else None,
                    event_type=room_type.event_type(encoded.event),
                )
                try:
                    handle = RoomHandle(self._context.hub, room_id)
                except RoomNotFound:
                    continue  # deleted meanwhile, with the event
                for name in _AFTER:
                    await self._hooks.notify(
                        name,
                        seconds=self._limits.hook_seconds,
                        room_id=room_id,
                        event_name=encoded.event,
                        context=self._context,
                        room=handle,
                        event=event,
                        recipient_count=count,
                    )
            self._idle.set()
