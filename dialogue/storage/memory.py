"""`MemoryStore`: a log that lives and dies with the process."""

from __future__ import annotations

import secrets
import time
from bisect import bisect_left
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Collection, Iterator, Sequence
from heapq import merge
from itertools import islice

from ..errors import DraftRefused, StoreUnavailable
from ..events import SERVER_KEY_PREFIX, Draft, EncodedEvent
from .base import Appended, LogPage, RoomHead, Store, StreamState

KEYS_PER_ROOM = 10_000
"""How many of a room's newest keys are remembered (DESIGN, promise 3)."""


def milliseconds() -> int:
    """Return the time in milliseconds since the epoch."""
    return time.time_ns() // 1_000_000


def _seq(event: EncodedEvent) -> int:
    assert event.seq is not None  # everything here is recorded
    return event.seq


class _Stream:
    """The events of one stream that have not been removed: a run without holes in position.

    A list with a moving start: bisect needs an index in constant time, which a deque has not.
    """

    __slots__ = ("events", "start", "state")

    def __init__(self) -> None:
        self.state = StreamState()
        self.events: list[EncodedEvent] = []
        self.start = 0

    def index_of(self, position: int) -> int:
        """Return the index of *position*, within the list's bounds."""
        index = self.start + position - self.state.removed_through - 1
        return max(self.start, min(index, len(self.events)))

    def range(self, before: int | None, after: int | None) -> tuple[int, int]:
        """Return the indexes (inclusive, exclusive) of the events between two seqs, both exclusive."""
        low, high = self.start, len(self.events)
        if after is not None:
            low = bisect_left(self.events, after + 1, lo=low, key=_seq)
        if before is not None:
            high = bisect_left(self.events, before, lo=low, key=_seq)
        return low, high

    def remove(self, through: int) -> None:
        """Remove everything up to and including position *through*."""
        through = min(through, self.state.last)
        if through <= self.state.removed_through:
            return
        index = self.index_of(through)
        self.state.removed_through_seq = _seq(self.events[index])
        self.state.removed_through = through
        # The slots before the start are freed with the events in them, half the list at a time: constant per event.
        self.start = index + 1
        if self.start * 2 >= len(self.events):
            del self.events[: self.start]
            self.start = 0


class _Room:
    __slots__ = ("keys", "last_seq", "streams", "timestamp")

    def __init__(self) -> None:
        self.last_seq = 0
        self.timestamp = 0
        self.streams: dict[str, _Stream] = {}
        self.keys: OrderedDict[tuple[str, str], Appended] = OrderedDict()


class MemoryStore(Store):
    """Keeps what the server has not told it to `remove`, and the last 10,000 client-made keys of each room.

    Its events are the very objects that the rings hold, so that they cost a reference each. Each `open` begins a new
    life with a new epoch and nothing in it. No method waits for anything.

    Args:
        clock: Returns the time in milliseconds since the epoch.
    """

    is_durable = False

    def __init__(self, *, clock: Callable[[], int] = milliseconds) -> None:
        self._clock = clock
        self._epoch: str | None = None
        self._rooms: dict[str, _Room] = {}
        self._last_id = 0
        self._latest: dict[tuple[str, str, str], Appended] = {}

    @property
    def epoch(self) -> str:
        """The name of this life of the log.

        Raises:
            RuntimeError: The store is not open.
        """
        if self._epoch is None:
            raise RuntimeError("the store is not open")
        return self._epoch

    async def open(self) -> None:
        """Begin a new, empty life.

        Raises:
            RuntimeError: The store is open.
        """
        if self._epoch is not None:
            raise RuntimeError("the store is open already")
        self._epoch = secrets.token_hex(8)

    async def aclose(self) -> None:
        """Forget everything."""
        self._epoch = None
        self._rooms = {}
        self._last_id = 0
        self._latest = {}

    def _check_open(self) -> None:
        if self._epoch is None:
            raise StoreUnavailable("the store is not open")

    async def append(self, drafts: Sequence[Draft]) -> list[Appended]:
        """Record *drafts*; see `Store.append`."""
        self._check_open()
        # Before anything is recorded, so that it is all or nothing: nothing after this can fail.
        for draft in drafts:
            try:
                for text in (draft.room_id, draft.event, draft.sender, draft.key):
                    text.encode()
            except UnicodeEncodeError as error:
                raise DraftRefused("one of these events is not valid text") from error
        now = self._clock()
        appended = []
        latest: dict[tuple[str, str, str], Appended] = {}
        for draft in drafts:
            room = self._rooms.get(draft.room_id)
            if room is None:
                room = self._rooms[draft.room_id] = _Room()
            is_remembered = not draft.key.startswith(SERVER_KEY_PREFIX)
            found = room.keys.get((draft.sender, draft.key)) if is_remembered else None
            if found is None:
                found = self._record(room, draft, max(now, room.timestamp))
                latest[draft.room_id, draft.sender, draft.key] = found
                if is_remembered:
                    room.keys[draft.sender, draft.key] = found._replace(event=None)
                    if len(room.keys) > KEYS_PER_ROOM:
                        room.keys.popitem(last=False)
            appended.append(found)
        # What `settle` answers from. The events of one append, which the rings are about to hold anyway.
        self._latest = latest
        return appended

    def _record(self, room: _Room, draft: Draft, timestamp: int) -> Appended:
        stream = room.streams.get(draft.event)
        if stream is None:
            stream = room.streams[draft.event] = _Stream()
        self._last_id += 1
        room.last_seq += 1
        room.timestamp = timestamp
        stream.state.last += 1
        event = draft.record(
            id=self._last_id, seq=room.last_seq, position=stream.state.last, timestamp=timestamp
        )
        stream.events.append(event)
        return Appended(room.last_seq, self._last_id, timestamp, event)

    async def settle(self, drafts: Sequence[Draft]) -> list[Appended | None]:
        """Return what the latest append recorded of *drafts*; see `Store.settle`.

        An append here has no unknown outcome; one of a store that wraps this one may.
        """
        self._check_open()
        settled: list[Appended | None] = []
        told = set()
        for draft in drafts:
            key = (draft.room_id, draft.sender, draft.key)
            found = self._latest.get(key)
            if found is None:
                room = self._rooms.get(draft.room_id)
                found = room.keys.get((draft.sender, draft.key)) if room is not None else None
            elif key in told:
                found = found._replace(event=None)
            told.add(key)
            settled.append(found)
        return settled

    async def head(self, room_id: str) -> RoomHead:
        """Return where *room_id* stands; see `Store.head`."""
        self._check_open()
        room = self._rooms.get(room_id)
        if room is None:
            return RoomHead(0, {})
        return RoomHead(room.last_seq, {name: _copy(stream.state) for name, stream in room.streams.items()})

    async def page(
        self,
        room_id: str,
        *,
        event_names: Collection[str] | None = None,
        before: int | None = None,
        after: int | None = None,
        limit: int,
    ) -> LogPage:
        """Return events of a room by seq; see `Store.page`. Costs what it returns, whatever the room holds."""
        self._check_open()
        room = self._rooms.get(room_id)
        streams = (
            []
            if room is None
            else [s for n, s in room.streams.items() if event_names is None or n in event_names]
        )
        floor_seq = max((stream.state.removed_through_seq for stream in streams), default=0)
        is_one = event_names is not None and len(set(event_names)) == 1
        floor_position = streams[0].state.removed_through if is_one and streams else 0
        runs = [(stream.events, *stream.range(before, after)) for stream in streams]
        if after is not None:
            upwards = merge(*(_each(events, range(low, high)) for events, low, high in runs), key=_seq)
            return LogPage(list(islice(upwards, limit)), floor_seq, floor_position)
        downwards = merge(
            *(_each(events, range(high - 1, low - 1, -1)) for events, low, high in runs),
            key=_seq,
            reverse=True,
        )
        return LogPage(list(islice(downwards, limit))[::-1], floor_seq, floor_position)

    async def stream_page(
        self, room_id: str, event_name: str, *, before_position: int, limit: int
    ) -> LogPage:
        """Return events of one stream by position; see `Store.stream_page`."""
        self._check_open()
        stream = self._find(room_id, event_name)
        if stream is None:
            return LogPage([], 0, 0)
        end = stream.index_of(before_position)
        return LogPage(
            stream.events[max(stream.start, end - limit) : end],
            stream.state.removed_through_seq,
            stream.state.removed_through,
        )

    async def mark_handed(self, room_id: str, event_name: str, through: int) -> None:
        """Move a stream's hand-over forward; see `Store.mark_handed`."""
        self._check_open()
        stream = self._find(room_id, event_name)
        if stream is not None:
            stream.state.handed_through = max(stream.state.handed_through, through)

    async def remove(self, room_id: str, event_name: str, through: int) -> None:
        """Remove a stream's events through a position; see `Store.remove`."""
        self._check_open()
        stream = self._find(room_id, event_name)
        if stream is not None:
            stream.remove(through)

    async def streams(self) -> AsyncIterator[tuple[str, str, StreamState]]:
        """Iterate over the streams that wait for the hand-over; see `Store.streams`."""
        self._check_open()
        waiting = [
            (room_id, name, _copy(stream.state))
            for room_id, room in self._rooms.items()
            for name, stream in room.streams.items()
            if stream.state.handed_through < stream.state.last
        ]
        for item in waiting:
            yield item

    def _find(self, room_id: str, event_name: str) -> _Stream | None:
        room = self._rooms.get(room_id)
        return None if room is None else room.streams.get(event_name)


def _each(events: list[EncodedEvent], indexes: range) -> Iterator[EncodedEvent]:
    return (events[index] for index in indexes)


def _copy(state: StreamState) -> StreamState:
    return StreamState(state.last, state.handed_through, state.removed_through, state.removed_through_seq)
