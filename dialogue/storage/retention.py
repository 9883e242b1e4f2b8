"""Retention: what is older, or more, than its type keeps leaves the log, in small batches beside publishing."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Collection
from typing import Any

from ..config import EventType, Retention
from ..errors import StoreError
from ..limits import Limits
from .base import Store, StoredStream
from .cleanup import HandOver
from .ending import end_tasks


class RetentionSweep:
    """Removes what retention says, now and then. An async context manager.

    Args:
        store: The log.
        event_names: The names of the types that have a retention in some room; nothing else is looked at.
        event_type: The recorded type of a stream, by room id and event name; None for a stream that is no longer
            declared, which is left in the log as it is.
        handover: If there is one, nothing is removed before it has handed it over.
        expired: Awaited for a stream whose events up to a position (inclusive) have left the log: memory drops them.
        count: Told how many events were removed.
        clock_ms: Milliseconds since the epoch, as events are stamped.
        limits: ``retention_*``.
    """

    def __init__(
        self,
        store: Store,
        *,
        event_names: Collection[str],
        event_type: Callable[[str, str], EventType[Any] | None],
        handover: HandOver | None,
        expired: Callable[[str, str, int], Awaitable[None]],
        count: Callable[[int], None],
        clock_ms: Callable[[], int],
        limits: Limits,
        logger: logging.Logger,
    ) -> None:
        self._store = store
        self._event_names = event_names
        self._event_type = event_type
        self._handover = handover
        self._expired = expired
        self._count = count
        self._clock_ms = clock_ms
        self._limits = limits
        self._log = logger
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> RetentionSweep:
        if self._event_names:
            self._task = asyncio.create_task(self._run(), name="dialogue-retention")
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose(until=asyncio.get_running_loop().time())

    async def aclose(self, *, until: float) -> None:
        """End the sweep, waiting for it until loop time *until*. May be called twice."""
        task, self._task = self._task, None
        if task is not None:
            await end_tasks([task], until=until)

    async def _run(self) -> None:
        while True:
            try:
                await self.sweep()
            except StoreError as error:
                self._log.warning("retention could not look through the log, and tries again: %s", error)
            except Exception:
                self._log.exception("retention failed, and tries again")
            await asyncio.sleep(self._limits.retention_seconds)

    async def sweep(self) -> None:
        """Go through the log once.

        Raises:
            StoreUnavailable: The store cannot be read or written; what was removed until then stays removed.
        """
        async for stream in self._store.stored_streams(self._event_names):
            event_type = self._event_type(stream.room_id, stream.event_name)
            history = event_type.history if event_type is not None else None
            if history is not None and history.retention is not None:
                await self._sweep_stream(stream, history.retention)

    async def _sweep_stream(self, stream: StoredStream, retention: Retention) -> None:
        seconds = retention.max_age_seconds
        before = None if seconds is None else self._clock_ms() - int(seconds * 1000)
        is_old = before is not None and stream.first_timestamp < before
        by_count = 0 if retention.max_events is None else stream.state.last - retention.max_events
        removed_through = stream.state.removed_through
        loop = asyncio.get_running_loop()
        while is_old or by_count > removed_through:
            began = loop.time()
            limit = self._limits.retention_batch_events
            through = min(by_count, removed_through + limit)
            if is_old:
                assert before is not None
                by_age = await self._store.position_before(
                    stream.room_id, stream.event_name, timestamp=before, limit=limit
                )
                is_old = by_age - removed_through >= limit
                through = max(through, by_age)
            if self._handover is not None:
                # What waits for the hand-over stays readable in the log, but no longer in memory.
                await self._expired(stream.room_id, stream.event_name, through)
            through = self._release(stream, through)
            if through <= removed_through:
                return
            await self._store.remove(stream.room_id, stream.event_name, through)
            await self._expired(stream.room_id, stream.event_name, through)
            self._count(through - removed_through)
            removed_through = through
            # Publishers wait for one batch at most, and have the store for themselves as long as that took.
            await asyncio.sleep(loop.time() - began)

    def _release(self, stream: StoredStream, through: int) -> int:
        """Return how much of what is up to *through* may be removed, asking for the hand-over of the rest."""
        if self._handover is None or through <= stream.state.handed_through:
            return through
        self._handover.evicted(
            stream.room_id, stream.event_name, through, handed_through=stream.state.handed_through
        )
        return stream.state.handed_through
