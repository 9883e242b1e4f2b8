"""Group commit: one append in flight per store; whatever arrives meanwhile forms the next group."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from random import Random
from typing import Any, NamedTuple, Protocol

from ..config import Limits
from ..errors import (
    Backpressure,
    CommandError,
    DialogueError,
    DraftRefused,
    Internal,
    OutcomeUnknown,
    StoreUnavailable,
)
from ..events import Draft, EncodedEvent
from ..storage.base import Appended, Store
from .metrics import Metrics


class Publisher(Protocol):
    """Who is told what became of a submission. Neither method may raise."""

    def on_recorded(self, submission: Submission, outcome: Outcome) -> bytes | None:
        """The submission is recorded; return the ``ok`` message to send along, if it goes over a connection."""

    def on_failed(self, submission: Submission, error: CommandError) -> None:
        """The submission was not recorded, or its outcome is not known in time."""


class Submission:
    """One draft on its way through the group.

    Attributes:
        publisher: Who is told; None when nobody waits.
        ref: The publisher's name for it.
        deadline: Loop time after which the publisher is answered, whatever the append does.
        is_answered: Whether the publisher has been told already; an event recorded later is still delivered.
    """

    __slots__ = ("deadline", "draft", "is_answered", "publisher", "ref")

    def __init__(self, draft: Draft, publisher: Publisher | None, ref: Any, deadline: float) -> None:
        self.draft = draft
        self.publisher = publisher
        self.ref = ref
        self.deadline = deadline
        self.is_answered = publisher is None

    def fail(self, error: CommandError) -> None:
        """Tell the publisher, once."""
        if not self.is_answered and self.publisher is not None:
            self.is_answered = True
            self.publisher.on_failed(self, error)


class Outcome(NamedTuple):
    """A submission that is recorded (or passed through, if ephemeral)."""

    submission: Submission
    appended: Appended | None
    event: EncodedEvent | None


class _Lookup(NamedTuple):
    draft: Draft
    result: asyncio.Future[Appended | None]


Deliver = Callable[[Sequence[Outcome]], None]

_FIRST_SETTLE_SECONDS = 0.05
_LONGEST_SETTLE_SECONDS = 5.0


class GroupCommit:
    """The one writer of a store. An async context manager; leaving it waits for what was accepted.

    Args:
        store: The log.
        deliver: Called without awaiting, in commit order, with what a group recorded.
        after_deliver: Awaited before the next group, for what a delivery leaves to do in the store.
        limits: ``append_*`` and ``stop_seconds``.
        clock_ms: Milliseconds since the epoch, for ephemeral events.
    """

    def __init__(
        self,
        store: Store,
        *,
        deliver: Deliver,
        after_deliver: Callable[[], Awaitable[None]],
        limits: Limits,
        metrics: Metrics,
        logger: logging.Logger,
        clock_ms: Callable[[], int],
        random: Random,
    ) -> None:
        self._store = store
        self._deliver = deliver
        self._after_deliver = after_deliver
        self._limits = limits
        self._metrics = metrics
        self._log = logger
        self._clock_ms = clock_ms
        self._random = random
        self._queue: deque[Submission | _Lookup] = deque()
        self._arrived = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()
        self._is_closed = False
        self._group: list[Submission | _Lookup] = []
        self._task: asyncio.Task[None] | None = None

    @property
    def waiting_events(self) -> int:
        """How many events are queued or in the append that is running."""
        return len(self._queue) + len(self._group)

    def room_ids(self) -> set[str]:
        """Return the rooms that something is queued for."""
        items = [*self._queue, *self._group]
        return {item.draft.room_id for item in items}

    async def __aenter__(self) -> GroupCommit:
        self._task = asyncio.create_task(self._run(), name="dialogue-group-commit")
        return self

    async def __aexit__(self, *_: object) -> None:
        self._is_closed = True
        task, self._task = self._task, None
        if task is None:
            return
        try:
            async with asyncio.timeout(self._limits.stop_seconds):
                await self._idle.wait()
        except TimeoutError:
            self._log.error(
                "stopping with %d events that the store did not take in time", self.waiting_events
            )
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        for item in self._queue:
            if isinstance(item, Submission):
                item.fail(StoreUnavailable("the server is stopping"))
            elif not item.result.done():
                item.result.set_exception(StoreUnavailable("the server is stopping"))
        self._queue.clear()

    def submit(self, draft: Draft, publisher: Publisher | None, ref: Any) -> None:
        """Queue *draft*; its publisher is told by the delivery or by ``on_failed``. Never waits.

        An ephemeral event that nothing is queued before is delivered at once; behind others it keeps its place.

        Raises:
            Backpressure: ``limits.append_queue_events`` are waiting.
            StoreUnavailable: The server is stopping.
        """
        if self._is_closed:
            raise StoreUnavailable("the server is stopping", retry_after_seconds=1)
        if len(self._queue) >= self._limits.append_queue_events:
            raise Backpressure("too many events wait for the store", retry_after_seconds=1)
        now = asyncio.get_running_loop().time()
        submission = Submission(draft, publisher, ref, now + self._limits.append_timeout_seconds)
        if not draft.is_recorded and self._idle.is_set():
            self._deliver([self._ephemeral(submission)])
            return
        self._queue.append(submission)
        self._idle.clear()
        self._arrived.set()

    async def look_up(self, draft: Draft) -> Appended | None:
        """Return what is recorded under the key of *draft*, after everything that was submitted before.

        Raises:
            StoreUnavailable: It cannot be told now.
        """
        if self._is_closed:
            raise StoreUnavailable("the server is stopping")
        if len(self._queue) >= self._limits.append_queue_events:
            raise Backpressure("too many events wait for the store", retry_after_seconds=1)
        lookup = _Lookup(draft, asyncio.get_running_loop().create_future())
        self._queue.append(lookup)
        self._idle.clear()
        self._arrived.set()
        return await lookup.result

    def _ephemeral(self, submission: Submission) -> Outcome:
        event = submission.draft.record(id=None, seq=None, position=0, timestamp=self._clock_ms())
        return Outcome(submission, None, event)

    async def _run(self) -> None:
        while True:
            await self._arrived.wait()
            self._arrived.clear()
            while self._queue:
                self._group = group = self._next_group()
                try:
                    await self._commit(group)
                except Exception as error:
                    # A bug in the store or in the delivery must not end the writer: the publishers are told and
                    # the log has the traceback.
                    self._log.exception("a group of %d events failed", len(group))
                    self._metrics.append_failures.labels("internal").inc()
                    self._fail(group, Internal() if not isinstance(error, CommandError) else error)
                finally:
                    self._group = []
            self._idle.set()

    def _next_group(self) -> list[Submission | _Lookup]:
        queue = self._queue
        return [queue.popleft() for _ in range(min(len(queue), self._limits.append_batch_events))]

    async def _commit(self, group: list[Submission | _Lookup]) -> None:
        """Commit one group in order; a lookup sees everything before it."""
        run: list[Submission] = []
        for item in group:
            if isinstance(item, Submission):
                run.append(item)
                continue
            await self._commit_run(run)
            run = []
            if item.result.done():
                continue
            try:
                (found,) = await self._store.settle([item.draft])
            except DialogueError as error:
                if not item.result.done():
                    item.result.set_exception(error)
            else:
                if not item.result.done():
                    item.result.set_result(found)
        await self._commit_run(run)

    async def _commit_run(self, run: list[Submission]) -> None:
        recorded = [submission for submission in run if submission.draft.is_recorded]
        results: dict[int, Appended] = {}
        if recorded:
            results = await self._append_watched(recorded, run)
        outcomes = []
        for submission in run:
            appended = results.get(id(submission))
            if not submission.draft.is_recorded:
                outcomes.append(self._ephemeral(submission))
            elif appended is not None:
                outcomes.append(Outcome(submission, appended, appended.event))
        if outcomes:
            self._deliver(outcomes)
            await self._after_deliver()

    async def _append_watched(self, recorded: list[Submission], run: list[Submission]) -> dict[int, Appended]:
        """Append while watching the deadlines: a timeout answers the publisher and never cancels the append."""
        loop = asyncio.get_running_loop()
        append = asyncio.create_task(self._append(recorded), name="dialogue-append")
        try:
            while not append.done():
                deadline = self._next_deadline(run)
                timeout = None if deadline is None else max(0.0, deadline - loop.time())
                await asyncio.wait({append}, timeout=timeout)
                if not append.done():
                    self._expire(run, loop.time())
            return append.result()
        finally:
            # Only a cancelled writer (a stop that ran out of time) comes here with the append still running.
            if not append.done():
                append.cancel()
                await asyncio.gather(append, return_exceptions=True)

    def _next_deadline(self, run: Sequence[Submission]) -> float | None:
        waiting = [submission.deadline for submission in run if not submission.is_answered]
        if self._queue:
            # The queue is in order of arrival, so its first submission is the next to expire.
            first = next((item for item in self._queue if isinstance(item, Submission)), None)
            if first is not None:
                waiting.append(first.deadline)
        return min(waiting, default=None)

    def _expire(self, run: Sequence[Submission], now: float) -> None:
        error = StoreUnavailable(
            "the store did not answer in time; retry with the same key", retry_after_seconds=1
        )
        for submission in run:
            if submission.deadline <= now:
                submission.fail(error)
        # What is still queued and past its deadline was never sent to the store: it is taken out.
        while self._queue:
            first = self._queue[0]
            if isinstance(first, _Lookup):
                if not first.result.done():
                    first.result.set_exception(error)
            elif first.deadline <= now:
                first.fail(error)
            else:
                break
            self._queue.popleft()

    async def _append(self, submissions: list[Submission]) -> dict[int, Appended]:
        """Append, settling unknown outcomes and finding poison by halving; failures are told to publishers."""
        drafts = [submission.draft for submission in submissions]
        results: Sequence[Appended | None]
        try:
            with self._metrics.append_seconds.time():
                results = await self._store.append(drafts)
            self._metrics.append_events.observe(len(drafts))
        except DraftRefused as error:
            if len(submissions) == 1:
                self._metrics.append_failures.labels("refused").inc()
                self._log.warning("the database refuses an event of room %r: %s", drafts[0].room_id, error)
                self._fail(submissions, Internal("the database refuses this event"))
                return {}
            middle = len(submissions) // 2
            first = await self._append(submissions[:middle])
            return first | await self._append(submissions[middle:])
        except OutcomeUnknown:
            self._metrics.append_failures.labels("unknown").inc()
            results = await self._settle(drafts)
        except StoreUnavailable as error:
            self._metrics.append_failures.labels("unavailable").inc()
            self._log.error("the store did not take %d events: %s", len(drafts), error)
            self._fail(submissions, StoreUnavailable(retry_after_seconds=1))
            return {}
        except Exception:
            # Whatever a store raises against its contract, the next append must not leave a hole behind this one.
            self._log.exception("an append of %d events failed in a way that no store should", len(drafts))
            self._metrics.append_failures.labels("internal").inc()
            results = await self._settle(drafts)
        settled = {
            id(submission): result
            for submission, result in zip(submissions, results, strict=True)
            if result is not None
        }
        lost = [submission for submission in submissions if id(submission) not in settled]
        self._fail(lost, StoreUnavailable("the event was not recorded", retry_after_seconds=1))
        return settled

    async def _settle(self, drafts: list[Draft]) -> Sequence[Appended | None]:
        """Ask until the store tells what became of *drafts*: nothing is appended before that is known."""
        bound = _FIRST_SETTLE_SECONDS
        while True:
            try:
                return await self._store.settle(drafts)
            except StoreUnavailable as error:
                self._log.error("an append's outcome is unknown and the store cannot be asked: %s", error)
            await asyncio.sleep(self._random.uniform(0, bound))
            bound = min(bound * 2, _LONGEST_SETTLE_SECONDS)

    def _fail(self, items: Sequence[Submission | _Lookup], error: CommandError) -> None:
        for item in items:
            if isinstance(item, Submission):
                item.fail(error)
            elif not item.result.done():
                item.result.set_exception(error)
