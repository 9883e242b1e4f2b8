"""Group commit: one append in flight per store; whatever arrives meanwhile forms the next group.

A group is told while the next one is appended, and always before that one is told.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Sequence
from random import Random
from typing import Any, NamedTuple

from ..errors import (
    Backpressure,
    CommandError,
    DraftRefused,
    Internal,
    InvalidRequest,
    OutcomeUnknown,
    StoreUnavailable,
    TargetGone,
)
from ..events import Draft
from ..limits import Limits
from ..storage.backoff import backoff_seconds
from ..storage.base import Appended, Store
from ..storage.condition import Condition
from ..storage.ending import end_tasks
from .metrics import Metrics
from .submissions import Lookup, Outcome, Publisher, Submission


def _why(error: BaseException) -> str:
    """Return an error with its cause, which the store keeps from publishers and operators need.

    Of the cause the first line: a database's further lines may quote what was written.
    """
    if error.__cause__ is None:
        return str(error)
    lines = str(error.__cause__).splitlines()
    return f"{error} ({lines[0] if lines else type(error.__cause__).__name__})"


Deliver = Callable[[Sequence[Outcome]], None]

_FIRST_SETTLE_SECONDS = 0.05
_LONGEST_SETTLE_SECONDS = 5.0
_FIRST_RETRY_SECONDS = 0.05
_TOLD_SECONDS = 0.005
_LONGEST_RETRY_SECONDS = 1.0

TURNS_TO_START = 2
"""How many turns of the loop it takes until a store that was called has its thread or socket at work."""


class Done(NamedTuple):
    """What work on a group came to.

    Attributes:
        outcomes: What is to be told.
        kept: The end of the group that is to be tried again; nothing of it was recorded. Nothing overtakes it.
    """

    outcomes: list[Outcome]
    kept: list[Submission]


class GroupCommit:
    """The one writer of a store, made in its event loop. An async context manager.

    Leaving it waits for what was accepted, for as long as `aclose` would be given by a stop that begins then.

    Args:
        store: The log.
        deliver: Called without awaiting, in commit order, with what a group recorded.
        after_deliver: Awaited before the next group, for what a delivery leaves to do in the store.
        limits: ``append_*`` and ``stop_timeout_seconds``.
        waits_for_store: Whether an append that the store refuses is tried again until its publishers' deadlines
            (``Dialogue(on_store_failure="wait")``) instead of being answered at once.
        clock_ms: Milliseconds since the epoch, for ephemeral events.
    """

    def __init__(
        self,
        store: Store,
        *,
        deliver: Deliver,
        after_deliver: Callable[[], Awaitable[None]],
        limits: Limits,
        waits_for_store: bool,
        metrics: Metrics,
        logger: logging.Logger,
        clock_ms: Callable[[], int],
        random: Random,
    ) -> None:
        self._store = store
        self._deliver = deliver
        self._after_deliver = after_deliver
        self._limits = limits
        # Kept: finding the running loop asks the system for the process's number each time.
        self._time = asyncio.get_running_loop().time
        self._waits_for_store = waits_for_store
        # Kept from group to group: a store that has been down for long is not asked faster by the next one.
        self._refusals = 0
        self._metrics = metrics
        self._log = logger
        self._clock_ms = clock_ms
        self._random = random
        self._queue: deque[Submission | Lookup] = deque()
        self._arrived = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()
        self._is_closed = False
        self._queue_bytes = 0
        # Taken from the queue and not yet told: one that is appended, and the one before it that is being told.
        self._groups: deque[list[Submission | Lookup]] = deque()
        self._appending: asyncio.Task[Done] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._task: asyncio.Task[None] | None = None
        self.condition = Condition()

    @property
    def waiting_events(self) -> int:
        """How many events are queued, being appended or about to be told."""
        return len(self._queue) + sum(map(len, self._groups))

    async def wait_told(self, room_id: str) -> None:
        """Return when nothing is on its way into a room."""
        while room_id in self.room_ids():  # noqa: ASYNC110 - for what happens rarely, as a deletion does
            await asyncio.sleep(_TOLD_SECONDS)

    def room_ids(self) -> set[str]:
        """Return the rooms that something is on its way into."""
        return {item.draft.room_id for item in itertools.chain(self._queue, *self._groups)}

    async def __aenter__(self) -> GroupCommit:
        self._task = asyncio.create_task(self._run(), name="dialogue-group-commit")
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose(until=self._time() + self._limits.stop_timeout_seconds)

    async def aclose(self, *, until: float) -> None:
        """Take nothing more, and wait for what was accepted until loop time *until*. May be called twice.

        Whoever still waits then is told `StoreUnavailable`: what became of the append is not known.
        """
        self._is_closed = True
        task, self._task = self._task, None
        if task is None:
            return
        try:
            async with asyncio.timeout_at(until):
                await self._idle.wait()
        except TimeoutError:
            self._log.error(
                "stopping with %d events that the store did not take in time",
                self.waiting_events,
                extra={"event_count": self.waiting_events},
            )
        if self._timer is not None:
            self._timer.cancel()
        ending = [task] if self._appending is None else [task, self._appending]
        if await end_tasks(ending, until=until):
            self._log.error("the store does not let its append be cancelled; the stop goes on without it")
        # Also the group that was being appended: whether it was recorded is not known, and nobody may wait for ever.
        for item in itertools.chain(*self._groups, self._queue):
            item.fail(StoreUnavailable("the server is stopping", retry_after_seconds=1))
        self._groups.clear()
        self._queue.clear()
        self._queue_bytes = 0

    def submit(self, draft: Draft, publisher: Publisher | None, ref: Any) -> None:
        """Queue *draft*; its publisher is told by the delivery or by ``on_failed``. Never waits.

        An ephemeral event that nothing is queued before is delivered at once; behind others it keeps its place.

        Raises:
            Backpressure: ``limits.append_queue_events`` or ``limits.append_queue_bytes`` are waiting.
            StoreUnavailable: The server is stopping.
        """
        if self._is_closed:
            raise StoreUnavailable("the server is stopping", retry_after_seconds=1)
        submission = Submission(draft, publisher, ref, self._time() + self._limits.append_timeout_seconds)
        self._check_room(submission.size)
        if not draft.is_recorded and self._idle.is_set():
            self._deliver([self._ephemeral(submission)])
            return
        self._enqueue(submission)

    def _check_room(self, size: int) -> None:
        if (
            len(self._queue) >= self._limits.append_queue_events
            or self._queue_bytes + size > self._limits.append_queue_bytes
        ):
            raise Backpressure("too many events wait for the store", retry_after_seconds=1)

    def _enqueue(self, item: Submission | Lookup) -> None:
        self._queue.append(item)
        self._queue_bytes += item.size
        if len(self._queue) == 1:
            self._idle.clear()
            self._arrived.set()

    def _dequeue(self) -> Submission | Lookup:
        item = self._queue.popleft()
        self._queue_bytes -= item.size
        return item

    async def look_up(self, draft: Draft) -> Appended | None:
        """Return what is recorded under the key of *draft*, after everything that was submitted before.

        Raises:
            StoreUnavailable: It cannot be told now.
        """
        if self._is_closed:
            raise StoreUnavailable("the server is stopping", retry_after_seconds=1)
        lookup = Lookup(draft, self._time() + self._limits.append_timeout_seconds)
        self._check_room(lookup.size)
        self._enqueue(lookup)
        return await lookup.result

    def _ephemeral(self, submission: Submission) -> Outcome:
        event = submission.draft.record(id=None, seq=None, position=0, timestamp=self._clock_ms())
        return Outcome(submission, None, event)

    async def _run(self) -> None:
        while True:
            await self._arrived.wait()
            self._arrived.clear()
            group = self._take()
            # Awaited here and not in a task of its own: what is alone is told in the turn in which its append ends.
            appending: Awaitable[Done] | None = None if group is None else self._work(group)
            while appending is not None:
                outcomes, kept = await appending
                if kept:
                    self._groups[0] = [*kept]
                    await self._tell(outcomes)
                    appending = self._try_again(kept)
                    continue
                group = self._take()
                appending = None if group is None else self._start(self._work(group))
                if appending is not None:
                    # Telling a group takes about as long as appending one. So the next append is on its way first:
                    # these are the turns of the loop that it takes until a store has its thread or socket at work.
                    for _ in range(TURNS_TO_START):
                        await asyncio.sleep(0)
                await self._tell(outcomes)
                self._groups.popleft()
            if not self._queue:
                # Else something came while the last group was told, and is still to be appended.
                self._idle.set()

    def _take(self) -> list[Submission | Lookup] | None:
        """Take the next group, to be worked on; None when nothing is queued."""
        if not self._queue:
            return None
        group = self._next_group()
        self._groups.append(group)
        self._watch()
        return group

    def _start(self, work: Coroutine[Any, Any, Done]) -> asyncio.Task[Done]:
        self._appending = asyncio.create_task(work, name="dialogue-append")
        return self._appending

    async def _try_again(self, kept: list[Submission]) -> Done:
        """Work on what the store has refused, after a pause, for those whose publishers still wait."""
        await self._back_off()
        now = self._time()
        self._watch()
        # The others' events were never recorded, and never will be.
        waiting: list[Submission | Lookup] = [item for item in kept if item.deadline > now]
        self._groups[0] = waiting
        return await self._work(waiting) if waiting else Done([], [])

    async def _back_off(self) -> None:
        await asyncio.sleep(
            backoff_seconds(
                self._refusals,
                first=_FIRST_RETRY_SECONDS,
                longest=_LONGEST_RETRY_SECONDS,
                random=self._random,
            )
        )
        self._refusals += 1

    async def _work(self, group: list[Submission | Lookup]) -> Done:
        """Return what is to be told of *group*; who is not to be told of anything recorded is told here."""
        try:
            if isinstance(group[0], Lookup):
                await self._answer(group[0])
                return Done([], [])
            return await self._commit([item for item in group if isinstance(item, Submission)])
        except Exception as error:
            # A bug in the store must not end the writer: the publishers are told and the log has the traceback.
            self._on_bug(group, error)
            return Done([], [])

    async def _tell(self, outcomes: list[Outcome]) -> None:
        if not outcomes:
            return
        try:
            self._deliver(outcomes)
            await self._after_deliver()
        except Exception as error:
            self._on_bug([outcome.submission for outcome in outcomes], error)

    def _on_bug(self, items: Sequence[Submission | Lookup], error: Exception) -> None:
        self._log.exception("a group of %d events failed", len(items), extra={"event_count": len(items)})
        self._metrics.append_failures.labels("internal").inc()
        self._fail(items, error if isinstance(error, CommandError) else Internal())

    def _next_group(self) -> list[Submission | Lookup]:
        """Take the next append's submissions, or one lookup: it sees everything that came before it."""
        first = self._dequeue()
        if isinstance(first, Lookup):
            return [first]
        group: list[Submission | Lookup] = [first]
        size = first.size
        while self._queue and len(group) < self._limits.append_batch_events:
            item = self._queue[0]
            size += item.size
            if isinstance(item, Lookup) or size > self._limits.append_batch_bytes:
                break
            group.append(self._dequeue())
        return group

    async def _answer(self, lookup: Lookup) -> None:
        while not lookup.is_answered:
            try:
                (found,) = await self._store.settle([lookup.draft])
            except StoreUnavailable as error:
                if not self._waits_for_store:
                    lookup.fail(error)
                    return
                await self._back_off()
            else:
                if not lookup.result.done():
                    lookup.result.set_result(found)

    async def _commit(self, group: list[Submission]) -> Done:
        recorded = [submission for submission in group if submission.draft.is_recorded]
        found, kept = await self._append(recorded) if recorded else ([], None)
        # Ephemeral events behind what is kept wait, too.
        end = len(group) if kept is None else group.index(kept)
        results = iter(found)
        outcomes = []
        for submission in itertools.islice(group, end):
            if not submission.draft.is_recorded:
                outcomes.append(self._ephemeral(submission))
                continue
            appended = next(results)
            if appended is not None:
                outcomes.append(Outcome(submission, appended, appended.event))
        return Done(outcomes, group[end:])

    def _watch(self) -> None:
        """Answer those who have waited too long, and look again when the next of them has.

        Called when the work on a group begins. A timeout answers those who wait and never cancels an append.
        """
        loop = asyncio.get_running_loop()
        now = loop.time()
        error = StoreUnavailable(
            "the store did not answer in time; retry with the same key", retry_after_seconds=1
        )
        # Everything waits equally long, so the first that waits is the next to expire.
        deadline = now + self._limits.append_timeout_seconds
        for item in itertools.chain.from_iterable(self._groups):
            if item.deadline > now:
                deadline = item.deadline
                break
            if not item.is_answered:
                self.condition.failed(error)
            item.fail(error)
        else:
            # What is still queued and past its deadline was never sent to the store: it is taken out.
            while self._queue and self._queue[0].deadline <= now:
                self._dequeue().fail(error)
            if self._queue:
                deadline = self._queue[0].deadline
        if self._timer is not None:
            self._timer.cancel()
        self._timer = loop.call_at(deadline, self._watch) if self._groups else None

    async def _append(self, submissions: list[Submission]) -> tuple[list[Appended | None], Submission | None]:
        """Append, settling unknown outcomes and finding poison by halving; failures are told to publishers.

        Returns:
            One entry per submission, None for one that was not recorded; and the first of *submissions* that is to
            be tried again with all that follow it, which then have no entry (None unless the writer waits for its
            store).
        """
        drafts = [submission.draft for submission in submissions]
        results: Sequence[Appended | None]
        try:
            with self._metrics.append_seconds.time():
                results = await self._store.append(drafts)
            self.condition.succeeded()
            self._metrics.append_events.observe(len(drafts))
        except DraftRefused as error:
            if len(submissions) == 1 and isinstance(error, TargetGone):
                self._fail(submissions, InvalidRequest("the event is not in the log any more, or is deleted"))
                return [None], None
            if len(submissions) == 1:
                self._metrics.append_failures.labels("refused").inc()
                self._log.warning(
                    "the database refuses an event of room %r: %s",
                    drafts[0].room_id,
                    error,
                    extra={
                        "room_id": drafts[0].room_id,
                        "event_name": drafts[0].event,
                        "user_id": drafts[0].sender,
                    },
                )
                self._fail(submissions, Internal("the database refuses this event"))
                return [None], None
            middle = len(submissions) // 2
            first, kept = await self._append(submissions[:middle])
            if kept is not None:
                return first, kept
            second, kept = await self._append(submissions[middle:])
            return [*first, *second], kept
        except OutcomeUnknown as error:
            self._metrics.append_failures.labels("unknown").inc()
            self.condition.failed(error)
            self._log.error(
                "the outcome of an append of %d events is not known: %s",
                len(drafts),
                _why(error),
                extra={"event_count": len(drafts)},
            )
            results = await self._settle(drafts)
            if self._waits_for_store and not any(results):
                return [], submissions[0]
        except StoreUnavailable as error:
            self._metrics.append_failures.labels("unavailable").inc()
            self.condition.failed(error)
            self._log.error(
                "the store did not take %d events: %s",
                len(drafts),
                _why(error),
                extra={"event_count": len(drafts)},
            )
            if self._waits_for_store:
                return [], submissions[0]
            self._fail(submissions, StoreUnavailable(retry_after_seconds=1))
            return [None] * len(submissions), None
        except (Exception, asyncio.CancelledError) as error:
            task = asyncio.current_task()
            if isinstance(error, asyncio.CancelledError) and task is not None and task.cancelling():
                raise  # the stop's, not the store's own
            # Whatever a store raises against its contract, the next append must not leave a hole behind this one.
            self._log.exception(
                "an append of %d events failed in a way that no store should",
                len(drafts),
                extra={"event_count": len(drafts)},
            )
            self._metrics.append_failures.labels("internal").inc()
            self.condition.failed(error)
            results = await self._settle(drafts)
        self._refusals = 0
        lost = [item for item, result in zip(submissions, results, strict=True) if result is None]
        self._fail(lost, StoreUnavailable("the event was not recorded", retry_after_seconds=1))
        return list(results), None

    async def _settle(self, drafts: list[Draft]) -> Sequence[Appended | None]:
        """Ask until the store tells what became of *drafts*: nothing is appended before that is known."""
        failures = 0
        while True:
            try:
                settled = await self._store.settle(drafts)
                self.condition.succeeded()
                return settled
            except StoreUnavailable as error:
                self.condition.failed(error)
                self._log.error(
                    "an append's outcome is unknown and the store cannot be asked: %s",
                    error,
                    extra={"event_count": len(drafts)},
                )
            except Exception as error:
                # Whatever a store raises against its contract: what is not settled is a hole below the next append.
                self.condition.failed(error)
                self._log.exception(
                    "an append's outcome is unknown and settling it failed as no store should",
                    extra={"event_count": len(drafts)},
                )
            await asyncio.sleep(
                backoff_seconds(
                    failures,
                    first=_FIRST_SETTLE_SECONDS,
                    longest=_LONGEST_SETTLE_SECONDS,
                    random=self._random,
                )
            )
            failures += 1

    def _fail(self, items: Iterable[Submission | Lookup], error: CommandError) -> None:
        for item in items:
            item.fail(error)
