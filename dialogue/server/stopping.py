"""The stop: one deadline, made at its beginning, for everything that is still to be done."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, NamedTuple, TypeVar

from .. import protocol
from ..errors import StoreUnavailable
from ..storage.ending import end_tasks

if TYPE_CHECKING:
    from .hub import Hub

FAREWELL = "dialogue-session-end"
"""The name of the tasks that end connections; a stop waits for them."""

_LONGEST_RESERVE_SECONDS = 1.0

_CLOSE_SECONDS = 0.5


T = TypeVar("T")


async def result_of(task: asyncio.Task[T]) -> T:
    """Return what *task* does, which goes on to its end also if whoever waits for it is cancelled.

    Raises:
        StoreUnavailable: A stop has ended it. Its cancellation must not pass for that of whoever waits.
    """
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        waiting = asyncio.current_task()
        if not task.cancelled() or waiting is None or waiting.cancelling():
            raise
        raise StoreUnavailable("the server is stopping", retry_after_seconds=1) from None


class StopTimes(NamedTuple):
    """Until when each part of a stop may take, in loop time.

    What is independent runs side by side. What has to wait for something else finds a reserve kept for it: a store
    that hangs must not take the acks and the close frames of everyone, nor connections that do not read the hooks
    that tell of their end.

    Attributes:
        appends: For what is on its way into the log.
        sockets: For what is queued for connections, and for their close frames.
        end: For everything: the hooks, and the hand-over.
    """

    appends: float
    sockets: float
    end: float

    @classmethod
    def starting(cls, now: float, *, seconds: float) -> StopTimes:
        """Return the times of a stop that begins *now* and may take *seconds*."""
        reserve = min(_LONGEST_RESERVE_SECONDS, seconds / 8)
        end = now + seconds
        return cls(appends=end - 2 * reserve, sockets=end - reserve, end=end)


class Stopping:
    """The stop of a `Hub`, before and while it happens.

    Attributes:
        times: Its deadlines; None until it begins.
    """

    def __init__(self, hub: Hub) -> None:
        self._hub = hub
        self._time = asyncio.get_running_loop().time
        self._closing: set[asyncio.Timeout] = set()
        self._dropped_connections = 0
        self.times: StopTimes | None = None

    @property
    def seconds_to_close(self) -> float:
        """What is left of the stop for closing the store, and a moment if there is nothing left."""
        if self.times is None:
            return self._hub.limits.stop_timeout_seconds
        return max(_CLOSE_SECONDS, self.times.end - self._time())

    def begin(self) -> StopTimes:
        """Refuse new connections and commands, and return the deadlines; only the first call begins a stop.

        Whoever learns of the stop before the lifespan ends calls it then: what leads there takes time too.
        """
        if self.times is None:
            hub = self._hub
            seconds = hub.limits.stop_timeout_seconds
            self.times = StopTimes.starting(self._time(), seconds=seconds)
            hub.log.info(
                "stopping, in at most %g s: connections to close %d, events on their way to the log %d, "
                "events to hand over %d",
                seconds,
                len(hub.connections.sessions),
                hub.commit.waiting_events,
                hub.unhanded_events,
            )
        return self.times

    async def run(self) -> None:
        """Stop: what was accepted is appended and told, connections are closed, hand-overs flushed."""
        times = self.begin()
        hub = self._hub
        began = self._time()
        hub.spawn(hub.retention.aclose(until=times.appends), name="dialogue-retention-end")
        await hub.commit.aclose(until=times.appends)
        # Nothing is recorded from here on: what is left to do is known, and none of it waits for the rest. A hanging
        # on_cleanup keeps no connection from its close frame, nor a connection that does not read the hand-over.
        results = await asyncio.gather(
            self._end_connections(times),
            hub.notifier.aclose(until=times.end),
            self._flush(times),
            return_exceptions=True,
        )
        if hub.handover is not None:
            await hub.handover.aclose(until=times.end)
        # After the connections: their ends are what is left to be kept.
        await hub.inbox.aclose(until=times.end)
        await hub.session_records.aclose(until=times.end)
        await hub.reader.aclose(until=times.end)
        hub.feeds.close()
        hub.presence.close()
        await hub.open_rooms.aclose(until=times.end)
        await end_tasks(hub.tasks, until=times.end)
        for result in results:
            if isinstance(result, BaseException):
                raise result
        hub.log.info("stopped after %.1f s", self._time() - began)

    @asynccontextmanager
    async def time_to_close(self, seconds: float) -> AsyncIterator[None]:
        """Bound the end of a socket: by *seconds*, and by a stop, also one that begins meanwhile.

        Raises:
            TimeoutError: It took longer.
        """
        when = self._time() + seconds
        if self.times is not None:
            when = min(when, self.times.sockets)
        try:
            async with asyncio.timeout_at(when) as timeout:
                self._closing.add(timeout)
                try:
                    yield
                finally:
                    self._closing.discard(timeout)
        except TimeoutError:
            if self.times is not None:
                self._dropped_connections += 1
            raise

    async def _end_connections(self, times: StopTimes) -> None:
        """Close all connections, and wait for their sockets and for the hooks that tell of their end."""
        hub = self._hub
        for session in hub.connections.sessions:
            session.close(protocol.CLOSE_GOING_AWAY, "the server is stopping")
        hub.followers.close()
        # Those that were being closed before the stop began, for reading too slowly for example.
        for timeout in self._closing:
            when = timeout.when()
            if not timeout.expired() and when is not None and when > times.sockets:
                timeout.reschedule(times.sockets)
        with suppress(TimeoutError):
            async with asyncio.timeout_at(times.end):
                # More than once: one whose upgrade was under way comes, and closes itself, after the others.
                while hub.connections.sessions:
                    await asyncio.gather(*(session.wait_closed() for session in hub.connections.sessions))
        await hub.followers.wait_ended(until=times.sockets)
        farewells = {task for task in hub.tasks if task.get_name() == FAREWELL}
        if farewells:
            _, farewells = await asyncio.wait(farewells, timeout=max(0.0, times.end - self._time()))
        if self._dropped_connections:
            hub.log.warning(
                "connections that did not take their close in time, and were dropped: %d",
                self._dropped_connections,
            )
        if farewells:
            hub.log.warning(
                "connections whose on_left or on_disconnected did not end in time: %d", len(farewells)
            )

    async def _flush(self, times: StopTimes) -> None:
        hub = self._hub
        # First: a load that hangs would keep its stream from being handed over.
        hub.reader.cancel_loads()
        if hub.handover is None:
            return
        left = await hub.handover.flush(until=times.end, with_rings=not hub.store.is_durable)
        hub.unflushed_events = left
        if left:
            hub.log.error("%d events could not be handed over before the stop", left)
            hub.metrics.handover.labels("lost").inc(left)
