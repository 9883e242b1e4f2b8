"""What clients have missed, read and encoded once for all who come back from the same place.

A crowd that was cut off together comes back together, and each of it asks for the events after the same seq. They share
a `Replay`, which grows towards the present: what one of them gets is its beginning, up to the seq at which that one
was registered. It is kept for a moment after its last use, and told by its room of what becomes of its events.
"""

from __future__ import annotations

import asyncio
import logging
from bisect import bisect_left, bisect_right
from collections.abc import Awaitable, Callable, Generator, Sequence
from copy import copy
from itertools import accumulate
from typing import NamedTuple

from ..core.room import Room, as_replaced
from ..core.timeline import NewerSlice, Read, Reply, newer_room
from ..errors import CommandError, StoreBusy, StoreUnavailable
from ..events import EncodedEvent, encoded_for
from ..limits import Limits
from ..storage.ending import end_tasks
from ..storage.read_turns import busy
from .stopping import result_of

KEPT_SECONDS = 5.0
"""How long a replay is kept after it was last asked for."""

MOST_KEPT = 128
"""Replays that are kept at most; the one that was not asked for the longest goes first."""

MOST_KEPT_BYTES = 16_777_216
"""Their size at most, as `Replay.size` counts it. What is being read, or waited for, is kept besides."""

_STEP = 100
"""Events that are read at a time."""

_EVENT_BYTES = 300
"""What an event takes beside its text."""

RunNowait = Callable[[Generator[Read, Reply, NewerSlice]], NewerSlice | None]
Run = Callable[[str, Generator[Read, Reply, NewerSlice]], Awaitable[NewerSlice]]


class Replayed(NamedTuple):
    """All that a client has missed.

    Attributes:
        events: Oldest first.
        texts: What is to be joined for their messages, as the client gets them; most clients get the same one.
    """

    events: list[EncodedEvent]
    texts: list[bytes]


class Replay:
    """The events of some streams of a room after a seq, without holes; see `core.room.Copies`.

    Attributes:
        through: It is complete up to this seq, inclusive.
        is_over: Whether it does not grow any more: it is too much to replay, or what follows is not all there.
        is_void: Whether it is not to be used any more: something of it has been removed, or it is not told any more.
        reading: What reads on from the log; None where nothing does.
        waiting: How many wait for it.
        used_at: When it was last asked for, in loop time.
    """

    __slots__ = (
        "_ends",
        "_events",
        "_first_keyed",
        "_first_positions",
        "_joined",
        "_removed",
        "_seqs",
        "is_over",
        "is_void",
        "names",
        "reading",
        "room",
        "through",
        "used_at",
        "waiting",
    )

    def __init__(self, room: Room, names: Sequence[str], after: int) -> None:
        self.room = room
        self.names = names
        self.through = after
        self.is_over = False
        self.is_void = False
        self.reading: asyncio.Task[None] | None = None
        self.waiting = 0
        self.used_at = 0.0
        self._events: list[EncodedEvent] = []
        self._seqs: list[int] = []
        self._first_positions: dict[str, int] = {}
        # By stream: through which position it has been removed.
        self._removed: dict[str, int] = {}
        # The events' messages without keys, and where each ends; not up to date while None.
        self._joined: bytes | None = b""
        self._ends: list[int] = []
        # By publisher: the first one with a key, which only the publisher gets.
        self._first_keyed: dict[str, int] = {}

    def __len__(self) -> int:
        return len(self._events)

    @property
    def text_bytes(self) -> int:
        """The size of all messages."""
        self._encode()
        return self._ends[-1] + 1 - len(self._ends) if self._ends else 0

    @property
    def size(self) -> int:
        """About how much memory it takes: the events, which a ring may have too, and their joined messages."""
        return 2 * self.text_bytes + _EVENT_BYTES * len(self._events)

    def covers(self, through: int) -> bool:
        """Whether nothing more is to be read to tell what there is up to seq *through*."""
        return self.is_over or self.through >= through

    def add(self, events: Sequence[EncodedEvent], through: int) -> None:
        """Go on to seq *through* (inclusive); *events* are all that lie between."""
        for event in events:
            self._first_positions.setdefault(event.event, event.position)
        self._events += events
        self._seqs += [event.seq or 0 for event in events]
        self.through = through
        if self._joined is not None:
            self._append(events, len(self._events) - len(events))
        if self._removed and any(event.position <= self._removed.get(event.event, 0) for event in events):
            # The log was read before, and is told of only now.
            self.is_void = True

    def _append(self, events: Sequence[EncodedEvent], at: int) -> None:
        if not events:
            return
        assert self._joined is not None
        texts = encoded_for(events, None)
        start = self._ends[-1] + 1 if self._ends else 0
        self._ends += [end + number for number, end in enumerate(accumulate(map(len, texts)), start)]
        self._joined = b",".join((self._joined, *texts) if at else texts)
        for number, event in enumerate(events, at):
            if event.has_key:
                self._first_keyed.setdefault(event.sender, number)

    def _encode(self) -> bytes:
        if self._joined is None:
            self._joined, self._ends, self._first_keyed = b"", [], {}
            self._append(self._events, 0)
        return self._joined

    def part(self, through: int, *, user_id: str, limits: Limits) -> Replayed | None:
        """Return what *user_id* gets up to seq *through* (inclusive), or None if it is too much, or not all there."""
        count = bisect_right(self._seqs, through)
        if through > self.through or count > limits.replay_events:
            return None
        joined = self._encode()
        if not count:
            return Replayed([], [])
        end = self._ends[count - 1]
        if end + 1 - count > limits.replay_bytes:
            return None
        events = self._events[:count]
        if self._first_keyed.get(user_id, count) < count:
            return Replayed(events, encoded_for(events, user_id))
        return Replayed(events, [joined if end == len(joined) else joined[:end]])

    def empty(self) -> None:
        """Keep no events; nobody gets a part any more."""
        self._events, self._seqs, self._ends, self._joined = [], [], [], b""
        self._first_keyed.clear()
        self.through = -1

    def replaced(self, event: EncodedEvent) -> None:
        """Put *event* in the place of its earlier form."""
        assert event.seq is not None
        index = bisect_left(self._seqs, event.seq)
        if index < len(self._seqs) and self._seqs[index] == event.seq:
            self._events[index] = event
            self._joined = None

    def removed(self, event_name: str, through: int) -> None:
        """Take note that a stream's events up to position *through* are not in the log any more."""
        if event_name not in self.names:
            return
        self._removed[event_name] = max(through, self._removed.get(event_name, 0))
        if self._first_positions.get(event_name, through + 1) <= through:
            self.is_void = True


_Key = tuple[Room, int, tuple[str, ...]]
"""By the object: a room that has been read again is told of what becomes of its events, the one before is not."""


class Replays:
    """The replays that are asked for at present, and for a moment after.

    Args:
        run: Runs a read, with log and memory.
        run_nowait: Runs one that memory alone can answer, or returns None.
        are_kept: Whether events stay in the log when they leave memory; else nothing tells a replay that they are
            gone.
    """

    def __init__(
        self, *, run: Run, run_nowait: RunNowait, are_kept: bool, limits: Limits, logger: logging.Logger
    ) -> None:
        self._run = run
        self._run_nowait = run_nowait
        self._are_kept = are_kept
        self._limits = limits
        self._log = logger
        self._replays: dict[_Key, Replay] = {}
        # Of those that nobody waits for and nothing reads; those that were asked for last are last.
        self._sizes: dict[_Key, int] = {}
        self._size = 0
        self._reads: set[asyncio.Task[None]] = set()
        self._timer: asyncio.TimerHandle | None = None

    def __len__(self) -> int:
        return len(self._replays)

    @property
    def size(self) -> int:
        """The sum of the sizes of what is kept, without what is being read or waited for."""
        return self._size

    async def get(
        self, room: Room, names: Sequence[str], *, after: int, through: int, user_id: str
    ) -> Replayed | None:
        """Return all events in (*after*, *through*], or None when they are too many or not all there.

        Args:
            through: At most the room's last seq.

        Raises:
            CommandError: The log cannot be read now.
        """
        if after >= through or not names:
            return Replayed([], [])
        key = (room, after, tuple(names))
        replay = self._find(key)
        replay.waiting += 1
        try:
            while True:
                if replay.is_void:
                    # Read again: what was removed is a gap then, unless only memory was emptied.
                    replay.waiting -= 1
                    replay = self._find(key)
                    replay.waiting += 1
                if replay.covers(through):
                    return replay.part(through, user_id=user_id, limits=self._limits)
                if replay.reading is None and not self._read_memory(replay):
                    self._start(key, replay)
                if replay.reading is not None:
                    await self._result_of(replay.reading)
        finally:
            replay.waiting -= 1
            self._keep(key, replay)

    def _find(self, key: _Key) -> Replay:
        """Return what is to be waited for, which is not among the unused from here on."""
        replay = self._replays.get(key)
        if replay is not None and replay.is_void:
            self._drop(key, replay)
            replay = None
        if replay is None:
            room, after, names = key
            replay = self._replays[key] = Replay(room, names, after)
            room.copies = (*room.copies, replay)
        self._size -= self._sizes.pop(key, 0)
        return replay

    # -- reading -------------------------------------------------------------------------------------------------

    def _read_memory(self, replay: Replay) -> bool:
        """Go on to the present, if memory has all that is between; return whether it has."""
        room = replay.room
        while not replay.covers(room.last_seq):
            through = room.last_seq
            part = self._run_nowait(self._next(replay, through))
            if part is None:
                return False
            self._take(replay, part.events, part, through)
        return True

    def _start(self, key: _Key, replay: Replay) -> None:
        # A task of its own: whoever began it may go away, and the others still get what it finds.
        task = replay.reading = asyncio.create_task(self._read_log(replay), name="dialogue-replay")
        self._reads.add(task)
        task.add_done_callback(lambda done: self._on_read(done, key, replay))

    async def _read_log(self, replay: Replay) -> None:
        """Go on to the present."""
        room = replay.room
        try:
            # For those who wait: what all of them have left is not read to its end.
            while replay.waiting and not replay.covers(room.last_seq) and not replay.is_void:
                with room.watch() as replaced:
                    through = room.last_seq
                    part = await self._run(room.room_id, self._next(replay, through))
                # Nothing is awaited between the watch's end and the beginning of the replay's own.
                self._take(replay, as_replaced(part.events, replaced), part, through)
        finally:
            replay.reading = None

    def _next(self, replay: Replay, through: int) -> Generator[Read, Reply, NewerSlice]:
        # In pieces: what is too much to replay is not read to its end first. One more than that tells that it is.
        limit = max(1, min(self._limits.replay_events + 1 - len(replay), _STEP))
        return newer_room(
            replay.room, replay.names, after=replay.through, through=through, limit=limit, archive=None
        )

    def _take(self, replay: Replay, events: Sequence[EncodedEvent], part: NewerSlice, through: int) -> None:
        if part.gap is not None:
            if part.gap.reason == "tier_unavailable":
                raise StoreUnavailable
            replay.is_over = True
            return
        replay.add(events, through if part.next_after is None else part.next_after)
        limits = self._limits
        replay.is_over = len(replay) > limits.replay_events or replay.text_bytes > limits.replay_bytes

    @staticmethod
    async def _result_of(reading: asyncio.Task[None]) -> None:
        try:
            await result_of(reading)
        except CommandError as error:
            # Each who waits is answered with an error of its own.
            raise busy() if isinstance(error, StoreBusy) else copy(error) from error

    def _on_read(self, task: asyncio.Task[None], key: _Key, replay: Replay) -> None:
        self._reads.discard(task)
        error = None if task.cancelled() else task.exception()
        if replay.waiting:
            return
        self._keep(key, replay)
        if error is not None and not isinstance(error, CommandError):
            self._log.error("a replay failed after those who asked for it had gone", exc_info=error)

    # -- keeping -------------------------------------------------------------------------------------------------

    def _keep(self, key: _Key, replay: Replay) -> None:
        """Keep what was used now, within the bounds."""
        if self._replays.get(key) is not replay:
            return
        if replay.is_void or (not self._are_kept and not replay.waiting):
            self._drop(key, replay)
            return
        loop = asyncio.get_running_loop()
        replay.used_at = loop.time()
        if replay.waiting or replay.reading is not None:
            return
        if replay.is_over:
            # Who comes from here on is to get more than it has: that it is over is all there is to know.
            replay.empty()
        size = replay.size
        # Again, if its last asker has gone in the moment in which its read has ended.
        self._size += size - self._sizes.pop(key, 0)
        self._sizes[key] = size
        while len(self._sizes) > MOST_KEPT or self._size > MOST_KEPT_BYTES:
            self._drop_oldest()
        if self._timer is None and self._sizes:
            self._timer = loop.call_later(KEPT_SECONDS, self._on_timer)

    def _on_timer(self) -> None:
        loop = asyncio.get_running_loop()
        used_since = loop.time() - KEPT_SECONDS
        while self._sizes and self._replays[next(iter(self._sizes))].used_at <= used_since:
            self._drop_oldest()
        self._timer = loop.call_later(KEPT_SECONDS, self._on_timer) if self._sizes else None

    def _drop_oldest(self) -> None:
        key = next(iter(self._sizes))
        self._drop(key, self._replays[key])

    def _drop(self, key: _Key, replay: Replay) -> None:
        # Whoever still waits for it looks again: it is told of nothing from now on.
        replay.is_void = True
        del self._replays[key]
        self._size -= self._sizes.pop(key, 0)
        replay.room.copies = tuple(copies for copies in replay.room.copies if copies is not replay)

    async def aclose(self, *, until: float) -> None:
        """Keep nothing, and end the reads in flight, waiting for them until loop time *until*. May be called twice."""
        self._are_kept = False
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        for key, replay in list(self._replays.items()):
            if not replay.waiting:
                self._drop(key, replay)
        await end_tasks(list(self._reads), until=until)
