"""The hot end of one stream: its newest events, in memory, encoded."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable

from ..events import EncodedEvent, encode_event

# In the place of an evicted event until the list is cut: the event itself may be large.
_GONE = encode_event(
    room_id="", event="", id=None, seq=None, position=0, sender="", key=None, timestamp=0, data_json=b""
)


def _seq(event: EncodedEvent) -> int:
    assert event.seq is not None
    return event.seq


class Ring:
    """The newest *limit* events of a stream: a run without holes in position.

    Args:
        limit: Most events to keep, at least 1.
        last_position: The newest position that the stream has had; 0 for a new stream.
        floor_seq: The seq of the newest event that is not here; 0 when the ring starts with the stream's first.
            Everything of the stream above it is here.
    """

    __slots__ = ("_events", "_start", "floor_seq", "last_position", "limit")

    def __init__(self, limit: int, *, last_position: int = 0, floor_seq: int = 0) -> None:
        if limit < 1:
            raise ValueError("a ring holds at least 1 event")
        self.limit = limit
        self.last_position = last_position
        self.floor_seq = floor_seq
        # A list with a moving start: bisect needs an index in constant time, which a deque has not.
        self._events: list[EncodedEvent] = []
        self._start = 0

    @classmethod
    def refill(
        cls, limit: int, events: Iterable[EncodedEvent], *, last_position: int, floor_seq: int
    ) -> Ring:
        """Return a ring with *events* (oldest first, the stream's newest) as read from the log.

        Args:
            last_position: The stream's newest position.
            floor_seq: What the log says has been removed; used when *events* reach down to it.
        """
        ring = cls(limit, last_position=last_position, floor_seq=floor_seq)
        kept = list(events)
        if len(kept) > limit:
            floor_seq = max(floor_seq, _seq(kept[-limit - 1]))
            kept = kept[-limit:]
        elif kept and kept[0].position > 1:
            # Older events are in the log; how far below this seq they are does not matter.
            floor_seq = max(floor_seq, _seq(kept[0]) - 1)
        ring._events = kept
        ring.floor_seq = floor_seq
        return ring

    def __len__(self) -> int:
        return len(self._events) - self._start

    def __bool__(self) -> bool:
        """True: a ring that retention has emptied still knows how far its stream is."""
        return True

    @property
    def first_position(self) -> int:
        """The oldest position that is here; ``last_position + 1`` when the ring is empty."""
        return self.last_position - len(self) + 1

    def push(self, event: EncodedEvent) -> EncodedEvent | None:
        """Add the stream's next event and return the one that it evicts, if any.

        Raises:
            ValueError: The event is not the stream's next one.
        """
        if event.position != self.last_position + 1:
            raise ValueError(f"position {event.position} does not follow {self.last_position}")
        self._events.append(event)
        self.last_position = event.position
        if len(self._events) - self._start <= self.limit:
            return None
        evicted = self._events[self._start]
        self._events[self._start] = _GONE
        self._start += 1
        if self._start >= max(32, self.limit):
            del self._events[: self._start]
            self._start = 0
        self.floor_seq = _seq(evicted)
        return evicted

    def replace(self, event: EncodedEvent) -> None:
        """Put *event* in the place of the one with its position, if that is here."""
        index = event.position - self.first_position
        if 0 <= index < len(self):
            self._events[self._start + index] = event

    def remove(self, through: int) -> None:
        """Drop what has left the log: everything up to and including position *through*."""
        count = min(through - self.first_position + 1, len(self))
        if count > 0:
            self.floor_seq = _seq(self._events[self._start + count - 1])
            del self._events[: self._start + count]
            self._start = 0

    def find(self, seq: int) -> EncodedEvent | None:
        """Return the event with *seq*, or None."""
        index = bisect_left(self._events, seq, lo=self._start, key=_seq)
        return self._events[index] if index < len(self._events) and self._events[index].seq == seq else None

    def position_at(self, seq: int) -> int:
        """Return the position of the first event here with a seq of at least *seq* (``last_position + 1`` if none)."""
        index = bisect_left(self._events, seq, lo=self._start, key=_seq)
        return self.first_position + index - self._start

    def before(self, position: int, limit: int) -> list[EncodedEvent]:
        """Return the newest *limit* events with a position below *position* (exclusive), oldest first."""
        end = self._start + max(0, min(position - self.first_position, len(self)))
        return self._events[max(self._start, end - limit) : end]

    def after(self, seq: int, limit: int) -> list[EncodedEvent]:
        """Return the oldest *limit* events with a seq above *seq* (exclusive), oldest first."""
        start = bisect_left(self._events, seq + 1, lo=self._start, key=_seq)
        return self._events[start : start + limit]
