"""Runs the reads that `core.timeline` decides: rings at once, log and archive by awaiting."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Generator, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

from ..core.cursor import Bound
from ..core.room import Room
from ..core.timeline import (
    Archive as ArchiveAbility,
)
from ..core.timeline import (
    Gap,
    Read,
    ReadArchive,
    ReadLog,
    Reply,
    Slice,
    Unavailable,
    cut,
    newer_room,
    older_room,
)
from ..errors import StoreBusy, StoreUnavailable
from ..events import EncodedEvent, encoded_for
from ..limits import Limits
from ..storage.archive import Archive, encode_row
from ..storage.base import LogPage, Store
from ..storage.cleanup import Gate, HandOver
from ..storage.condition import Condition, describe
from ..storage.ending import end_tasks
from .metrics import Metrics
from .replays import Replays

R = TypeVar("R")
T = TypeVar("T")


async def _heard(rows: Awaitable[T]) -> T:
    """Return *rows*; SystemExit, with which a task would end the whole server, is a failure like others."""
    try:
        return await rows
    except SystemExit as error:
        raise RuntimeError("it raised SystemExit") from error


class OlderPage(NamedTuple):
    """A page towards older events.

    Attributes:
        events, bounds, gap: See `core.timeline.Slice`.
        texts: The messages of *events*, as whoever it is for gets them.
    """

    events: list[EncodedEvent]
    texts: list[bytes]
    bounds: dict[str, Bound] | None
    gap: Gap | None


class NewerPage(NamedTuple):
    """A page towards newer events.

    Attributes:
        events, next_after, gap: See `core.timeline.NewerSlice`.
        texts: The messages of *events*, as whoever it is for gets them.
    """

    events: list[EncodedEvent]
    texts: list[bytes]
    next_after: int | None
    gap: Gap | None


class JoinPage(NamedTuple):
    """What a join brings: the newest events per stream, in room order, and where each stream goes on."""

    events: list[EncodedEvent]
    bounds: dict[str, Bound] | None


class Reader:
    """Reads one timeline over ring, log and archive.

    Args:
        archive: The developer's storage, if it can be read.
        handover: What keeps loads and cleanups of a stream apart; given with *archive*.

    Attributes:
        replays: What clients have missed.
    """

    def __init__(
        self,
        store: Store,
        *,
        archive: Archive | None,
        handover: HandOver | None,
        limits: Limits,
        metrics: Metrics,
        logger: logging.Logger,
    ) -> None:
        self._store = store
        self._archive = archive
        self._handover = handover
        self._limits = limits
        self._metrics = metrics
        self._log = logger
        self._loads: set[asyncio.Task[Any]] = set()
        self.load_condition = Condition()
        self.replays = Replays(
            run=self.run,
            run_nowait=self.run_nowait,
            are_kept=store.is_durable,
            limits=limits,
            logger=logger,
        )

    @property
    def has_archive(self) -> bool:
        """Whether there is something below the log."""
        return self._archive is not None

    @property
    def _ability(self) -> ArchiveAbility | None:
        # Not kept: an archive learns what it can do when it is opened, which is after this was made.
        return ArchiveAbility(self._archive.is_keyset) if self._archive is not None else None

    async def older(self, room: Room, bounds: Mapping[str, Bound], *, limit: int) -> OlderPage:
        """Return what `read_older` finds."""
        return await self.run(room.room_id, self.read_older(room, bounds, limit=limit))

    async def newer(self, room: Room, names: Sequence[str], *, after: int, limit: int) -> NewerPage:
        """Return what `read_newer` finds."""
        return await self.run(room.room_id, self.read_newer(room, names, after=after, limit=limit))

    async def following(
        self, room: Room, names: Sequence[str], *, after: int, limit: int, user_id: str
    ) -> NewerPage:
        """Return what `read_newer` finds in memory and log alone: what has been removed from them is a gap."""
        read = self._newer(room, names, after=after, limit=limit, user_id=user_id, archive=None)
        return await self.run(room.room_id, read)

    def read_older(
        self, room: Room, bounds: Mapping[str, Bound], *, limit: int, user_id: str | None = None
    ) -> Generator[Read, Reply, OlderPage]:
        """Read the newest *limit* events below *bounds*, cut at ``limits.page_bytes``.

        Args:
            user_id: Whose page it is; None for nobody's.
        """
        part = yield from older_room(room, bounds, limit=limit, archive=self._ability)
        if part.gap is not None:
            self._metrics.gaps.labels(part.gap.reason).inc()
        texts = encoded_for(part.events, user_id)
        keep = self._fitting(texts[::-1])
        if keep < len(texts):
            part, texts = cut(part, bounds, keep), texts[-keep:]
        return OlderPage(part.events, texts, part.bounds, part.gap)

    def read_newer(
        self, room: Room, names: Sequence[str], *, after: int, limit: int, user_id: str | None = None
    ) -> Generator[Read, Reply, NewerPage]:
        """Read the oldest *limit* events above *after* that have been told, cut at ``limits.page_bytes``.

        Args:
            user_id: Whose page it is; None for nobody's.
        """
        return self._newer(room, names, after=after, limit=limit, user_id=user_id, archive=self._ability)

    def _newer(
        self,
        room: Room,
        names: Sequence[str],
        *,
        after: int,
        limit: int,
        user_id: str | None,
        archive: ArchiveAbility | None,
    ) -> Generator[Read, Reply, NewerPage]:
        part = yield from newer_room(
            room, names, after=after, through=room.last_seq, limit=limit, archive=archive
        )
        if part.gap is not None:
            self._metrics.gaps.labels(part.gap.reason).inc()
        events, next_after = part.events, part.next_after
        texts = encoded_for(events, user_id)
        keep = self._fitting(texts)
        if keep < len(texts):
            events, texts, next_after = events[:keep], texts[:keep], events[keep - 1].seq
        return NewerPage(events, texts, next_after, part.gap)

    async def one(self, room: Room, seq: int) -> EncodedEvent | None:
        """Return the event with *seq* from memory or log, or None when it is in neither.

        Raises:
            StoreUnavailable: The log cannot be read now.
        """
        if not 1 <= seq <= room.last_seq:
            return None
        for ring in room.rings.values():
            event = ring.find(seq)
            if event is not None:
                return event
        page = await self._store.page(room.room_id, before=seq + 1, after=seq - 1, limit=1)
        return page.events[0] if page.events else None

    async def newest_per_stream(self, room: Room, counts: Mapping[str, int], *, through: int) -> JoinPage:
        """Return the newest events of each stream up to seq *through* (inclusive), from memory and log.

        Args:
            counts: How many, by event name.
        """
        events: list[EncodedEvent] = []
        bounds: dict[str, Bound] = {}
        for name, count in counts.items():
            start = Bound(through + 1)
            ring = room.rings.get(name)
            if self._archive is None and (ring is None or ring.last_position == 0):
                bounds[name] = Bound(0)
                continue
            bounds[name] = start
            if count > 0:
                read = older_room(room, {name: start}, limit=count, archive=None)
                part = await self.run(room.room_id, read)
                if part.gap is not None and part.gap.reason == "tier_unavailable":
                    raise StoreUnavailable
                events.extend(part.events)
                if part.bounds is not None:
                    bounds[name] = part.bounds[name]
                elif self._archive is None:
                    bounds[name] = Bound(0)
                elif part.events:
                    bounds[name] = Bound(part.events[0].seq or 0, part.events[0].position)
        events.sort(key=lambda event: event.seq or 0)
        is_end = all(bound == Bound(0) for bound in bounds.values())
        start_bounds = {name: Bound(through + 1) for name in counts}
        keep = self._fitting([event.json for event in reversed(events)])
        part = cut(Slice(events, None if is_end else bounds), start_bounds, keep)
        return JoinPage(part.events, part.bounds)

    def _fitting(self, texts: Sequence[bytes]) -> int:
        """Return how many of *texts*, from the first, fit into a page; at least one."""
        if sum(map(len, texts)) <= self._limits.page_bytes:
            return len(texts)
        size = 0
        for count, text in enumerate(texts):
            size += len(text)
            if size > self._limits.page_bytes:
                return max(1, count)
        return len(texts)

    @staticmethod
    def run_nowait(read: Generator[Read, Reply, R]) -> R | None:
        """Return what *read* finds if memory has all of it; else None, having read nothing."""
        try:
            next(read)
        except StopIteration as stop:
            result: R = stop.value
            return result
        read.close()
        return None

    async def run(self, room_id: str, read: Generator[Read, Reply, R]) -> R:
        """Return what *read* finds, reading log and archive of a room for it."""
        try:
            request = next(read)
            while True:
                request = read.send(await self._answer(room_id, request))
        except StopIteration as stop:
            result: R = stop.value
            return result

    async def _answer(self, room_id: str, request: Read) -> Reply:
        if isinstance(request, ReadArchive):
            return await self._load(room_id, request)
        try:
            if isinstance(request, ReadLog):
                return await self._store.page(
                    room_id,
                    event_names=request.event_names,
                    before=request.before,
                    after=request.after,
                    limit=request.limit,
                )
            return await self._store.stream_page(
                room_id, request.event_name, before_position=request.before_position, limit=request.limit
            )
        except StoreBusy:
            # What it asked for is there: it is to be asked for again.
            raise
        except StoreUnavailable as error:
            self._log.error("the log cannot be read for room %r: %s", room_id, error)
            return Unavailable()

    async def _load(self, room_id: str, request: ReadArchive) -> Reply:
        """Read the archive; a hook that fails or takes too long makes the tier unavailable, not the read fail."""
        assert self._archive is not None
        assert self._handover is not None
        gate = self._handover.gate(room_id, request.event_name)
        if gate.late_loads:
            # One that hangs is enough: more of them would pile up behind it.
            return Unavailable()
        try:
            async with asyncio.timeout(self._limits.hook_seconds):
                await gate.begin_load()
        except TimeoutError:
            self._load_failed(room_id, request, "waited too long for on_cleanup to return")
            return Unavailable()
        # The load is a task of its own: a reader that goes away or runs out of time must not end it half way, and
        # the gate stays closed to on_cleanup until it has really returned.
        task = asyncio.create_task(self._load_rows(room_id, request), name="dialogue-load")
        self._loads.add(task)
        task.add_done_callback(lambda done: self._end_load(done, gate))
        try:
            done, _ = await asyncio.wait({task}, timeout=self._limits.hook_seconds)
            if not done:
                self._load_failed(room_id, request, "takes too long")
                gate.late_loads += 1
                task.add_done_callback(lambda _: self._end_late_load(gate))
                task.add_done_callback(lambda done: self._late_load_ended(done, room_id, request))
                return Unavailable()
            if task.cancelled():
                # By a stop, and not by whoever reads: a hook that reads must not take it for its own end.
                return Unavailable()
            page = LogPage(task.result(), 0, 0)
            self.load_condition.succeeded()
            return page
        except asyncio.CancelledError:
            task.add_done_callback(lambda done: self._late_load_ended(done, room_id, request))
            raise
        except Exception as error:
            self._load_failed(room_id, request, "failed", error)
            return Unavailable()

    def _load_failed(
        self, room_id: str, request: ReadArchive, what: str, error: BaseException | None = None
    ) -> None:
        line = self.load_condition.failed(error)
        if line is None:
            return
        self._log.warning(
            "on_load %s for room %r, event %r%s. Failures since the last such line: %d",
            what,
            room_id,
            request.event_name,
            f" ({describe(error)})" if error is not None else "",
            line.failures,
            exc_info=error if line.has_traceback else None,
        )

    def _end_load(self, task: asyncio.Task[Any], gate: Gate) -> None:
        self._loads.discard(task)
        gate.end_load()

    @staticmethod
    def _end_late_load(gate: Gate) -> None:
        gate.late_loads -= 1

    def cancel_loads(self) -> None:
        """Cancel the loads in flight: their streams are to be handed over. Their readers are told of a gap."""
        for task in self._loads:
            task.cancel()

    async def aclose(self, *, until: float) -> None:
        """End what is being read, waiting for it until loop time *until*. May be called twice."""
        await self.replays.aclose(until=until)
        await end_tasks(list(self._loads), until=until)

    def _late_load_ended(self, task: asyncio.Task[Any], room_id: str, request: ReadArchive) -> None:
        if task.cancelled():
            return
        error = task.exception()
        if error is not None:
            self._load_failed(room_id, request, "failed after its reader had gone", error)
        else:
            self.load_condition.succeeded()

    async def _load_rows(self, room_id: str, request: ReadArchive) -> list[EncodedEvent]:
        assert self._archive is not None
        name, limit = request.event_name, request.limit
        epoch = self._store.epoch
        is_keyset = self._archive.is_keyset and request.before_seq is not None
        if is_keyset:
            assert request.before_seq is not None
            rows = await _heard(self._archive.load_before(room_id, name, request.before_seq, limit))
        else:
            state = (await self._store.head(room_id)).streams.get(name)
            handed_through = state.handed_through if state is not None else 0
            # Counted from what has been handed over now: positions stay, offsets shift with every hand-over.
            start = max(0, handed_through - (request.before_position - 1))
            rows = await _heard(self._archive.load(room_id, name, start, start + limit))
        events = [
            encode_row(
                row, room_id=room_id, event_name=name, position=request.before_position - 1 - n, epoch=epoch
            )
            for n, row in enumerate(list(rows)[:limit])
        ]
        foreign = next((n for n, event in enumerate(events) if event.seq is None), None)
        if is_keyset and foreign is not None:
            if self._store.is_durable:
                raise ValueError("on_load_before returned a row without 'seq' and the present 'epoch'")
            # Rows of earlier lives of a memory store: by seq they cannot be reached.
            events = events[:foreign]
        return events[::-1]
