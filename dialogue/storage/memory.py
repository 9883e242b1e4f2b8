"""`MemoryStore`: a log that lives and dies with the process."""

from __future__ import annotations

import secrets
import time
from array import array
from bisect import bisect_left
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Collection, Iterator, Sequence
from heapq import merge
from itertools import islice

from ..errors import CursorExpired, DraftRefused, StoreUnavailable, TargetGone
from ..events import EDIT, SERVER_KEY_PREFIX, Draft, EncodedEvent, Event, change, id_of, is_deleted, void
from .base import (
    Appended,
    FeedItem,
    LogPage,
    RoomHead,
    Store,
    StoredStream,
    StreamState,
    UserEvent,
    UserEvents,
)
from .directory import Directory, StoredPlace
from .memory_directory import MemoryDirectory

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

    A list with a moving start: bisect needs an index in constant time, which a deque has not. At the same indexes
    `unread_positions` has the room's number of counting events through each of them.
    """

    __slots__ = ("events", "last_id", "start", "state", "unread_positions")

    def __init__(self) -> None:
        self.state = StreamState()
        self.events: list[EncodedEvent] = []
        self.unread_positions = array("q")
        self.start = 0
        self.last_id = 0

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

    def index_of_seq(self, seq: int) -> int | None:
        """Return the index of the event with *seq*, or None."""
        index = bisect_left(self.events, seq, lo=self.start, key=_seq)
        return index if index < len(self.events) and self.events[index].seq == seq else None

    def remove(self, through: int) -> int:
        """Remove everything up to and including position *through*; return the newest id removed, 0 for none."""
        through = min(through, self.state.last)
        if through <= self.state.removed_through:
            return 0
        index = self.index_of(through)
        removed_id = id_of(self.events[index])
        self.state.removed_through_seq = _seq(self.events[index])
        self.state.removed_through = through
        # The slots before the start are freed with the events in them, half the list at a time: constant per event.
        self.start = index + 1
        if self.start * 2 >= len(self.events):
            del self.events[: self.start]
            del self.unread_positions[: self.start]
            self.start = 0
        return removed_id


class _Room:
    __slots__ = ("keys", "last_seq", "streams", "timestamp", "unread_position")

    def __init__(self) -> None:
        self.last_seq = 0
        self.unread_position = 0
        self.timestamp = 0
        self.streams: dict[str, _Stream] = {}
        self.keys: OrderedDict[tuple[str, str], Appended] = OrderedDict()

    def locate(self, seq: int) -> tuple[_Stream, int] | None:
        """Return the stream and the index in it of the event with *seq*, if it is here."""
        for stream in self.streams.values():
            index = stream.index_of_seq(seq)
            if index is not None:
                return stream, index
        return None


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
        self._removed_through_id = 0
        self._latest: dict[tuple[str, str, str], Appended] = {}
        self._directory = MemoryDirectory(self, locate=self._locate, check_open=self._check_open)

    @property
    def directory(self) -> Directory:
        """Rooms made while running, members and sessions, for as long as the store is open."""
        return self._directory

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
        self._last_id = self._removed_through_id = 0
        self._latest = {}
        self._directory.clear()

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
        self._check_targets(drafts)
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
                replaced = self._change(room, draft)
                found = self._record(room, draft, max(now, room.timestamp))
                if replaced:
                    found = found._replace(replaced=replaced)
                latest[draft.room_id, draft.sender, draft.key] = found
                if is_remembered:
                    room.keys[draft.sender, draft.key] = found._replace(event=None, replaced=())
                    if len(room.keys) > KEYS_PER_ROOM:
                        room.keys.popitem(last=False)
            appended.append(found)
        # What `settle` answers from. The events of one append, which the rings are about to hold anyway.
        self._latest = latest
        return appended

    def _check_targets(self, drafts: Sequence[Draft]) -> None:
        deleted: set[tuple[str, int]] = set()
        keys: set[tuple[str, str, str]] = set()
        for draft in drafts:
            target = draft.target
            if target is None:
                continue
            room = self._rooms.get(draft.room_id)
            key = (draft.room_id, draft.sender, draft.key)
            if key in keys or (room is not None and key[1:] in room.keys):
                continue
            keys.add(key)
            place = (draft.room_id, target.seq)
            located = room.locate(target.seq) if room is not None else None
            is_gone = located is None or place in deleted or is_deleted(located[0].events[located[1]])
            if located is None or (is_gone and not target.is_erased):
                raise TargetGone("the event is no longer there")
            if target.data_json is None:
                deleted.add(place)

    def _change(self, room: _Room, draft: Draft) -> tuple[EncodedEvent, ...]:
        """Change the target of *draft*; return what became of it, and of an edit of it that is void now."""
        target = draft.target
        if target is None:
            return ()
        replaced = []
        located = room.locate(target.seq)
        assert located is not None  # checked before anything was recorded
        stream, index = located
        before = stream.events[index]
        if target.is_erased and before.key is not None:
            room.keys.pop((before.sender, before.key), None)
        stream.events[index] = change(before, target)
        replaced.append(stream.events[index])
        edits = room.streams.get(EDIT)
        # What was never edited has no edit to look for, and no edit is older than its target.
        if edits is not None and Event.decode(before, epoch=None).is_edited:
            for index in range(len(edits.events) - 1, edits.start - 1, -1):
                edit = edits.events[index]
                if _seq(edit) < target.seq:
                    break
                data = Event.decode(edit, epoch=None).data
                if data["target_seq"] == target.seq:
                    if "data" in data:
                        edits.events[index] = void(edit)
                        replaced.append(edits.events[index])
                    break
        return tuple(replaced)

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
        if draft.counts_unread:
            room.unread_position += 1
        stream.events.append(event)
        stream.unread_positions.append(room.unread_position)
        stream.last_id = self._last_id
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
                found = found._replace(event=None, replaced=())
            told.add(key)
            settled.append(found)
        return settled

    async def head(self, room_id: str) -> RoomHead:
        """Return where *room_id* stands; see `Store.head`."""
        self._check_open()
        room = self._rooms.get(room_id)
        if room is None:
            return RoomHead(0, {})
        states = {name: _copy(stream.state) for name, stream in room.streams.items()}
        return RoomHead(room.last_seq, states, room.unread_position)

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
            self._removed_through_id = max(self._removed_through_id, stream.remove(through))

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

    async def feed(self, after: int, *, limit: int) -> list[FeedItem]:
        """Return events of all rooms by id; see `Store.feed`. Costs a look at each stream."""
        self._check_open()
        if after < self._removed_through_id:
            raise CursorExpired(self._removed_through_id)
        parts = []
        for room_id, room in self._rooms.items():
            for stream in room.streams.values():
                if stream.last_id > after:
                    first = bisect_left(stream.events, after + 1, lo=stream.start, key=id_of)
                    parts.append(_feed(room_id, stream.events, range(first, len(stream.events))))
        return list(islice(merge(*parts), limit))

    async def last_id(self) -> int:
        """Return the newest id; see `Store.last_id`."""
        self._check_open()
        return self._last_id

    async def stored_streams(self, event_names: Collection[str]) -> AsyncIterator[StoredStream]:
        """Iterate over the streams that have events; see `Store.stored_streams`."""
        self._check_open()
        stored = [
            StoredStream(room_id, name, _copy(stream.state), _timestamp(stream.events[stream.start]))
            for room_id, room in self._rooms.items()
            for name, stream in room.streams.items()
            if name in event_names and stream.start < len(stream.events)
        ]
        for item in stored:
            yield item

    async def position_before(self, room_id: str, event_name: str, *, timestamp: int, limit: int) -> int:
        """Return how far a stream is older than *timestamp*; see `Store.position_before`."""
        self._check_open()
        stream = self._find(room_id, event_name)
        if stream is None:
            return 0
        position = 0
        for event in islice(stream.events, stream.start, stream.start + limit):
            if _timestamp(event) >= timestamp:
                break
            position = event.position
        return position

    async def user_events(self, user_id: str, *, after: int, limit: int) -> UserEvents:
        """Return all of a user's events above an id at once; see `Store.user_events`."""
        self._check_open()
        found = [
            (id_of(event), UserEvent(room_id, _seq(event), event.event))
            for room_id, room in self._rooms.items()
            for stream in room.streams.values()
            for event in islice(stream.events, stream.start, None)
            if event.sender == user_id
        ]
        return UserEvents([event for id_, event in sorted(found) if id_ > after], None)

    def _locate(self, room_id: str, seq: int) -> StoredPlace | None:
        """Return the oldest event of a room at or above *seq*; costs a search of each stream."""
        room = self._rooms.get(room_id)
        found: StoredPlace | None = None
        for name, stream in room.streams.items() if room is not None else ():
            index, end = stream.range(None, seq - 1)
            if index < end and (found is None or _seq(stream.events[index]) < found.seq):
                found = StoredPlace(_seq(stream.events[index]), name, stream.unread_positions[index])
        return found

    def _find(self, room_id: str, event_name: str) -> _Stream | None:
        room = self._rooms.get(room_id)
        return None if room is None else room.streams.get(event_name)


def _each(events: list[EncodedEvent], indexes: range) -> Iterator[EncodedEvent]:
    return (events[index] for index in indexes)


def _feed(room_id: str, events: list[EncodedEvent], indexes: range) -> Iterator[FeedItem]:
    return (FeedItem(id_of(events[index]), room_id, events[index]) for index in indexes)


def _timestamp(event: EncodedEvent) -> int:
    return Event.decode(event, epoch=None).timestamp


def _copy(state: StreamState) -> StreamState:
    return StreamState(state.last, state.handed_through, state.removed_through, state.removed_through_seq)
