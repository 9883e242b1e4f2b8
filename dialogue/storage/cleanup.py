"""The hand-over: what has left its ring goes to the archive, in order, at least once, and stays readable until then.

The store is the queue. What waits lies in the log (or in a `MemoryStore`, bounded by
``limits.handover_queue_events``), and the place per stream is what the store has marked; this module only
remembers which streams have something to hand over.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from random import Random
from typing import Any, NamedTuple
from weakref import WeakValueDictionary

from ..config import EventType
from ..events import CHANGES, Event
from ..limits import Limits
from .archive import Archive
from .backoff import backoff_seconds
from .base import Store, StreamState
from .condition import Condition
from .ending import end_tasks

FIRST_RETRY_SECONDS = 0.1
LONGEST_RETRY_SECONDS = 30.0
"""A failing hook is tried again after a random time below a bound that doubles from the first to the longest."""

_TURN_SECONDS = 0.02
"""After which time a batch that has to wait for another one of its room is looked at again."""

_DURABLE_FLUSH_SECONDS = 1.0

# Streams known to have work, while the log is scanned for more at start: the scan waits above this.
_SCAN_AHEAD = 1000


class Gate:
    """Many loads or one cleanup of a stream at a time; a waiting cleanup goes first.

    Attributes:
        late_loads: Loads that took longer than they may and have not ended yet.
    """

    __slots__ = ("__weakref__", "_is_cleaning", "_loads", "_waiters", "_waiting_cleanups", "late_loads")

    def __init__(self) -> None:
        self.late_loads = 0
        self._loads = 0
        self._is_cleaning = False
        self._waiting_cleanups = 0
        self._waiters: set[asyncio.Future[None]] = set()

    async def _until(self, is_open: Callable[[], bool]) -> None:
        # Everyone is woken and looks again: nobody awaits between looking and taking.
        while not is_open():
            waiter = asyncio.get_running_loop().create_future()
            self._waiters.add(waiter)
            try:
                await waiter
            finally:
                self._waiters.discard(waiter)

    def _wake(self) -> None:
        for waiter in self._waiters:
            if not waiter.done():
                waiter.set_result(None)

    async def begin_load(self) -> None:
        """Wait for cleanups to end; `end_load` must follow unless this raises."""
        await self._until(lambda: not self._is_cleaning and not self._waiting_cleanups)
        self._loads += 1

    def end_load(self) -> None:
        """End what `begin_load` began."""
        self._loads -= 1
        self._wake()

    @asynccontextmanager
    async def cleanup(self) -> AsyncIterator[None]:
        """Wait for loads to end, and keep new ones out."""
        self._waiting_cleanups += 1
        try:
            await self._until(lambda: not self._is_cleaning and not self._loads)
        finally:
            self._waiting_cleanups -= 1
            self._wake()
        self._is_cleaning = True
        try:
            yield
        finally:
            self._is_cleaning = False
            self._wake()


class _Turns:
    """Which batches of a room may run beside each other: those of its events; a batch of its changes runs alone.

    A batch is read from the log in its turn, in the form that its events have then. So a change that is made later is
    handed over after it, and one that was made earlier is in it: the archive can apply changes as they come.
    """

    def __init__(self) -> None:
        self._running: dict[str, int] = {}
        self._wanted: set[str] = set()

    def take(self, room_id: str, event_name: str) -> bool:
        """Begin a batch if it may run now; `end` must follow. Events let waiting changes go first."""
        running = self._running.get(room_id, 0)
        if event_name in CHANGES:
            if running:
                self._wanted.add(room_id)
                return False
            self._wanted.discard(room_id)
            self._running[room_id] = -1
            return True
        if running < 0 or room_id in self._wanted:
            return False
        self._running[room_id] = running + 1
        return True

    def end(self, room_id: str, event_name: str) -> None:
        """End what `take` began."""
        left = 0 if event_name in CHANGES else self._running[room_id] - 1
        if left:
            self._running[room_id] = left
        else:
            del self._running[room_id]


def _done_through(state: StreamState) -> int:
    """Return through which position nothing is left to hand over.

    What retention removed while there was no archive is gone: nobody can be handed it.
    """
    return max(state.handed_through, state.removed_through)


class HandOverStatistics(NamedTuple):
    """How far the hand-over is, at one moment.

    Attributes:
        waiting_events: Evicted events for which ``cleanup`` has not returned, wherever they wait. While a server
            that has just started looks through its log for more, those it has not come to are not counted.
        waiting_streams: Streams that have such events.
        failing_streams: Those whose newest call of ``cleanup`` failed.
        failing_seconds: For how long the longest-failing one has; 0 when none is.
        calls_in_flight: Batches that are being read from the log or are with ``cleanup``.
        longest_call_seconds: How long the longest of the calls of ``cleanup`` has been running; 0 when none is.
        last_error: What the newest failure was, without data; None when there was none.
    """

    waiting_events: int
    waiting_streams: int
    failing_streams: int
    failing_seconds: float
    calls_in_flight: int
    longest_call_seconds: float
    last_error: str | None


class _Stream:
    """A stream with something to hand over.

    Attributes:
        evicted_through: The newest position that may be handed over.
        handed_through: The newest position that has been, as far as it is known here.
        batch: The bounds of the batch being tried, inclusive: a retry has the same ones.
        has_returned: Whether ``cleanup`` has returned for the batch, and only the store must be told.
        failures: In a row, of ``cleanup`` or of the store.
        called_at: When the running call of ``cleanup`` began (monotonic).
        retry: The timer of the next try; while it runs, what is evicted meanwhile waits with the rest.
    """

    __slots__ = (
        "batch",
        "called_at",
        "event_name",
        "evicted_through",
        "failures",
        "handed_through",
        "has_returned",
        "is_queued",
        "retry",
        "room_id",
    )

    def __init__(self, room_id: str, event_name: str, handed_through: int) -> None:
        self.room_id = room_id
        self.event_name = event_name
        self.evicted_through = self.handed_through = handed_through
        self.batch: tuple[int, int] | None = None
        self.has_returned = False
        self.failures = 0
        self.called_at: float | None = None
        self.is_queued = False
        self.retry: asyncio.TimerHandle | None = None


class HandOver:
    """Calls the archive's ``cleanup`` for evicted events. An async context manager.

    Args:
        store: Where events wait and the place per stream is kept.
        archive: Who gets them.
        limits: ``handover_*``.
        event_type: The recorded type of a stream, by room id and event name; None for a stream that is no longer
            declared, which is left in the log as it is.
        random: For the jitter of retries.
        count: Told of every outcome: ``"handed"`` or ``"failed"``, and how many events.
        logger: Gets failures.

    Attributes:
        has_rings: Whether a flush has begun to hand over what is in the rings: `statistics` count it from then on.
    """

    def __init__(
        self,
        store: Store,
        archive: Archive,
        *,
        limits: Limits,
        event_type: Callable[[str, str], EventType[Any] | None],
        random: Random,
        count: Callable[[str, int], None],
        logger: logging.Logger,
    ) -> None:
        self._store = store
        self._archive = archive
        self._limits = limits
        self._event_type = event_type
        self._random = random
        self._count = count
        self._log = logger
        self._streams: dict[tuple[str, str], _Stream] = {}
        self._turns = _Turns()
        self._ready: deque[_Stream] = deque()
        self._work = asyncio.Semaphore(0)
        self._gates: WeakValueDictionary[tuple[str, str], Gate] = WeakValueDictionary()
        self._progress = asyncio.Condition()
        self._condition = Condition()
        # When each began to fail; the first one has failed for longest.
        self._failing: dict[_Stream, float] = {}
        self._waiting_events = 0
        self._waiting_streams = 0
        self._in_flight: dict[_Stream, asyncio.Future[None]] = {}
        self._tasks: list[asyncio.Task[None]] = []
        self._is_stopping = False
        self.has_rings = False

    @property
    def pending_events(self) -> int:
        """How many events a store that is not durable holds for us; admission is refused above the limit."""
        return 0 if self._store.is_durable else self._waiting_events

    async def __aenter__(self) -> HandOver:
        workers = [self._worker() for _ in range(self._limits.handover_streams_in_flight)]
        self._tasks = [asyncio.create_task(coroutine, name="dialogue-handover") for coroutine in workers]
        if self._store.is_durable:
            self._tasks.append(asyncio.create_task(self._resume(), name="dialogue-handover-resume"))
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose(until=asyncio.get_running_loop().time())

    async def aclose(self, *, until: float) -> None:
        """Cancel what runs, and wait for its end until loop time *until*. May be called twice."""
        self._is_stopping = True
        self._cancel_retries()
        tasks, self._tasks = self._tasks, []
        if await end_tasks(tasks, until=until):
            self._log.error("on_cleanup does not let itself be cancelled; the stop goes on without it")

    def gate(self, room_id: str, event_name: str) -> Gate:
        """Return what keeps a stream's loads and cleanups apart; hold on to it while it is used."""
        key = (room_id, event_name)
        gate = self._gates.get(key)
        if gate is None:
            gate = self._gates[key] = Gate()
        return gate

    def evicted(
        self, room_id: str, event_name: str, through: int, *, handed_through: int | None = None
    ) -> None:
        """Note that the events of a stream up to position *through* (inclusive) have left the ring.

        Args:
            handed_through: What has been handed over, where it is known; else a stream of which nothing was
                waiting has one event more than that.
        """
        key = (room_id, event_name)
        stream = self._streams.get(key)
        if stream is None:
            known = through - 1 if handed_through is None else handed_through
            stream = self._streams[key] = _Stream(room_id, event_name, known)
        self._move(stream, evicted_through=through)
        self._queue(stream)

    async def wait_in_flight(self) -> None:
        """Wait until every batch that is being read from the log, or is with ``cleanup``, has ended or failed.

        What begins meanwhile is not waited for. It has no time limit, as ``cleanup`` has none.
        """
        if self._in_flight:
            await asyncio.wait(list(self._in_flight.values()))

    async def hand_over_room(
        self, room_id: str, streams: Mapping[str, StreamState], *, seconds: float
    ) -> bool:
        """Hand over all that a room has, also what is still in its rings; return whether that was done in time.

        Also what is no longer declared: it does not stay in the log after this. What could not be handed over stays
        where it is, and is tried again as always.

        Args:
            streams: Where its streams stand; nothing may be published into them meanwhile.
        """
        for event_name, state in streams.items():
            handed_through = _done_through(state)
            if state.last > handed_through:
                self.evicted(room_id, event_name, state.last, handed_through=handed_through)
        for stream in self._streams.values():
            if stream.room_id == room_id and stream.retry is not None:
                stream.retry.cancel()
                self._again(stream)
        try:
            async with asyncio.timeout(seconds), self._progress:
                await self._progress.wait_for(lambda: all(room != room_id for room, _ in self._streams))
        except TimeoutError:
            return False
        return True

    def statistics(self) -> HandOverStatistics:
        """Return how far the hand-over is, in a time that does not depend on how much waits."""
        now = time.monotonic()
        failing_since = next(iter(self._failing.values()), now)
        in_flight = list(self._in_flight)
        called = [stream.called_at for stream in in_flight if stream.called_at is not None]
        return HandOverStatistics(
            waiting_events=self._waiting_events,
            waiting_streams=self._waiting_streams,
            failing_streams=len(self._failing),
            failing_seconds=now - failing_since,
            calls_in_flight=len(in_flight),
            longest_call_seconds=now - min(called) if called else 0.0,
            last_error=self._condition.last_error,
        )

    def _move(
        self, stream: _Stream, *, evicted_through: int | None = None, handed_through: int | None = None
    ) -> None:
        """Set how far a stream is, and keep the totals right."""
        before = max(0, stream.evicted_through - stream.handed_through)
        if evicted_through is not None:
            stream.evicted_through = max(stream.evicted_through, evicted_through)
        if handed_through is not None:
            stream.handed_through = handed_through
        after = max(0, stream.evicted_through - stream.handed_through)
        self._waiting_events += after - before
        self._waiting_streams += (after > 0) - (before > 0)

    async def flush(self, *, until: float, with_rings: bool) -> int:
        """Hand over what waits, until loop time *until*, or for a second where a log keeps it.

        Args:
            until: When it gives up.
            with_rings: Also what is still in the rings: for a store that ends with the process.

        Returns:
            How many events could not be handed over.
        """
        if with_rings:
            self.has_rings = True
            async for room_id, event_name, state in self._store.streams():
                stream = self._streams.setdefault(
                    (room_id, event_name), _Stream(room_id, event_name, state.handed_through)
                )
                self._move(stream, evicted_through=state.last)
                self._queue(stream)
        self._cancel_retries()
        for stream in self._streams.values():
            self._queue(stream)
        try:
            # A durable log keeps what waits: it goes on at the next start, and a stop need not wait for it.
            if not with_rings:
                until = min(until, asyncio.get_running_loop().time() + _DURABLE_FLUSH_SECONDS)
            async with asyncio.timeout_at(until), self._progress:
                await self._progress.wait_for(lambda: not self._streams)
        except TimeoutError:
            pass
        left = 0
        if with_rings:
            async for _, _, state in self._store.streams():
                left += state.last - state.handed_through
        return left

    def _queue(self, stream: _Stream) -> None:
        if not stream.is_queued and stream.retry is None:
            stream.is_queued = True
            self._ready.append(stream)
            self._work.release()

    async def _resume(self) -> None:
        """Find what an earlier process left waiting in the log; no room needs to wake for it."""
        failures = 0
        while True:
            try:
                async for room_id, event_name, state in self._store.streams():
                    event_type = self._event_type(room_id, event_name)
                    limit = event_type.history.limit if event_type and event_type.history else None
                    if event_name in CHANGES:
                        limit = 0  # told to the archive at once, see `Hub`
                    handed_through = _done_through(state)
                    if limit is not None and state.last - limit > handed_through:
                        self.evicted(room_id, event_name, state.last - limit, handed_through=handed_through)
                    while len(self._streams) > _SCAN_AHEAD:
                        async with self._progress:
                            await self._progress.wait()
                return
            except Exception:
                # Also what no store should raise: without an end to this, what waits would wait for the next start.
                failures += 1
                self._log.warning(
                    "the log cannot be read for waiting hand-overs; trying again", exc_info=True
                )
                await asyncio.sleep(self._retry_seconds(failures))

    async def _worker(self) -> None:
        while True:
            await self._work.acquire()
            stream = self._ready.popleft()
            if not self._turns.take(stream.room_id, stream.event_name):
                stream.is_queued = False
                if not self._is_stopping:
                    stream.retry = asyncio.get_running_loop().call_later(_TURN_SECONDS, self._again, stream)
                continue
            ended = self._in_flight[stream] = asyncio.get_running_loop().create_future()
            try:
                is_done = await self._hand_over(stream)
            except BaseException as error:
                # Our own cancellation passes: the batch stays in the store and is handed over at the next start.
                # A hook may raise one as well, or SystemExit, and neither may end the worker unheard.
                if isinstance(error, KeyboardInterrupt) or self._is_cancelled():
                    raise
                stream.is_queued = False
                self._failed(stream, error)
                self._retry(stream)
                continue
            finally:
                self._turns.end(stream.room_id, stream.event_name)
                del self._in_flight[stream]
                ended.set_result(None)
            stream.failures = 0
            stream.is_queued = False
            if is_done:
                self._streams.pop((stream.room_id, stream.event_name), None)
            else:
                self._queue(stream)
            async with self._progress:
                self._progress.notify_all()

    @staticmethod
    def _is_cancelled() -> bool:
        task = asyncio.current_task()
        return task is not None and task.cancelling() > 0

    def _failed(self, stream: _Stream, error: BaseException) -> None:
        stream.failures += 1
        self._count("failed", stream.batch[1] - stream.batch[0] + 1 if stream.batch else 0)
        line = self._condition.failed(error)
        if line is None:
            return
        self._log.warning(
            "%s for room %r, event %r (%d times in a row); its events stay readable and it is tried again. "
            "Failures since the last such line: %d",
            "the hand-over's place could not be read or kept"
            if stream not in self._failing
            else "on_cleanup failed",
            stream.room_id,
            stream.event_name,
            stream.failures,
            line.failures,
            exc_info=error if line.has_traceback else None,
            extra={"room_id": stream.room_id, "event_name": stream.event_name},
        )

    def _retry_seconds(self, failures: int) -> float:
        return backoff_seconds(
            failures, first=FIRST_RETRY_SECONDS, longest=LONGEST_RETRY_SECONDS, random=self._random
        )

    def _retry(self, stream: _Stream) -> None:
        if self._is_stopping:
            return
        seconds = self._retry_seconds(stream.failures)
        stream.retry = asyncio.get_running_loop().call_later(seconds, self._again, stream)

    def _again(self, stream: _Stream) -> None:
        stream.retry = None
        self._queue(stream)

    def _cancel_retries(self) -> None:
        for stream in self._streams.values():
            if stream.retry is not None:
                stream.retry.cancel()
                stream.retry = None

    async def _hand_over(self, stream: _Stream) -> bool:
        """Hand over one batch; True when nothing is left for now."""
        room_id, event_name = stream.room_id, stream.event_name
        gate = self.gate(room_id, event_name)
        async with gate.cleanup():
            if stream.batch is None:
                state = (await self._store.head(room_id)).streams.get(event_name)
                handed_through = stream.evicted_through if state is None else _done_through(state)
                self._move(stream, handed_through=handed_through)
                if stream.evicted_through <= handed_through:
                    return True
                first = handed_through + 1
                through = min(stream.evicted_through, handed_through + self._limits.handover_batch_events)
                stream.batch = (first, through)
                stream.has_returned = False
            first, through = stream.batch
            if not stream.has_returned:
                page = await self._store.stream_page(
                    room_id, event_name, before_position=through + 1, limit=through - first + 1
                )
                event_type = self._event_type(room_id, event_name)
                events: list[Event[Any]] = [
                    Event.decode(event, epoch=self._store.epoch, event_type=event_type)
                    for event in page.events
                ]
                await self._clean_up(stream, events)
                stream.has_returned = True
            await self._store.mark_handed(room_id, event_name, through)
            if not self._store.is_durable:
                await self._store.remove(room_id, event_name, through)
            stream.batch = None
            self._move(stream, handed_through=through)
            self._count("handed", through - first + 1)
        return stream.evicted_through <= through

    async def _clean_up(self, stream: _Stream, events: list[Event[Any]]) -> None:
        stream.called_at = time.monotonic()
        try:
            await self._archive.cleanup(stream.room_id, stream.event_name, events)
        except BaseException:
            self._failing.setdefault(stream, time.monotonic())
            raise
        finally:
            stream.called_at = None
        self._failing.pop(stream, None)
        if not self._failing:
            self._condition.succeeded()
