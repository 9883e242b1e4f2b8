"""One read over ring, log and archive, decided without I/O.

The functions are generators: they yield the read that they need next (`ReadLog`, `ReadStream`, `ReadArchive`), are
sent its `Rows` (or `Unavailable`), and return a `Slice`. Between two steps anything may happen to the room -
publishes, evictions, hand-overs - so nothing is remembered by offset: a stream is walked by position and a room by
seq, both of which an event keeps for good.

A read towards older events goes down through three zones, each complete above its floor:

1. the rings, complete above the largest ``floor_seq`` among the streams that are read;
2. the log, complete above what has been removed from it;
3. the archive, by offset (`on_load`) or by seq (`on_load_before`), down to the first event of earlier lives.
"""

from __future__ import annotations

from collections.abc import Collection, Generator, Iterable, Mapping
from heapq import merge
from itertools import islice
from typing import Literal, NamedTuple, Protocol

from ..events import EncodedEvent
from .cursor import MAX_SEQ, Bound
from .ring import Ring


class ReadLog(NamedTuple):
    """Events of a room by seq; see `Store.page`."""

    event_names: Collection[str] | None
    before: int | None
    after: int | None
    limit: int


class ReadStream(NamedTuple):
    """The newest events of one stream below a position; see `Store.stream_page`."""

    event_name: str
    before_position: int
    limit: int


class ReadArchive(NamedTuple):
    """Handed-over events of one stream below a position, and below a seq if that is known.

    The answer's rows have consecutive positions ending at ``before_position - 1``; fewer than *limit* rows mean
    that the archive has no older ones.
    """

    event_name: str
    before_position: int
    before_seq: int | None
    limit: int


class Rows(Protocol):
    """The answer to a read; `dialogue.storage.base.LogPage` is one. Events are oldest first."""

    @property
    def events(self) -> list[EncodedEvent]: ...
    @property
    def floor_seq(self) -> int: ...
    @property
    def floor_position(self) -> int: ...


class Unavailable(NamedTuple):
    """The answer when a tier cannot be read now."""


Read = ReadLog | ReadStream | ReadArchive
Reply = Rows | Unavailable


class Gap(NamedTuple):
    """A part of the asked-for range that could not be read; seqs inclusive."""

    from_seq: int
    through_seq: int
    reason: Literal["retention", "tier_unavailable", "no_seq"]


class Slice(NamedTuple):
    """What a read towards older events found.

    Attributes:
        events: Oldest first.
        bounds: Where to go on, by event name; None at the end. A bound with seq 0 is a stream that has ended.
        gap: What is missing, if anything.
    """

    events: list[EncodedEvent]
    bounds: dict[str, Bound] | None
    gap: Gap | None = None


class NewerSlice(NamedTuple):
    """What a read towards newer events found.

    Attributes:
        events: Oldest first.
        next_after: Go on above this seq (exclusive); None when caught up.
        gap: What is missing, if anything.
    """

    events: list[EncodedEvent]
    next_after: int | None
    gap: Gap | None = None


class View(Protocol):
    """What a read needs to know of a room; looked at again after every step."""

    @property
    def rings(self) -> Mapping[str, Ring]: ...
    @property
    def last_seq(self) -> int: ...


class Archive(NamedTuple):
    """What the archive can do.

    Attributes:
        is_keyset: Whether it is read by seq (``on_load_before``) rather than by offset.
    """

    is_keyset: bool


_ENDED = Bound(0)

MOST_SKIPPED = 1000
"""How many second copies of an archive's rows one read passes over before it ends early."""


def _by_seq(event: EncodedEvent) -> int:
    return event.seq or 0


def _merge_newest_first(parts: Iterable[Iterable[EncodedEvent]]) -> Iterable[EncodedEvent]:
    return merge(*parts, key=_by_seq, reverse=True)


def _ring_floor(view: View, names: Collection[str]) -> int:
    """Everything of these streams with a seq above it is in the rings."""
    return max((view.rings[name].floor_seq for name in names if name in view.rings), default=0)


def older_stream(
    view: View, name: str, bound: Bound, *, limit: int, archive: Archive | None
) -> Generator[Read, Reply, Slice]:
    """Read the newest *limit* events of one stream below *bound*.

    Args:
        limit: At least 1.
        archive: None to stop at the log's floor.

    Returns:
        A slice whose ``bounds`` name this stream only.
    """
    if bound == _ENDED:
        return Slice([], None)
    wanted = limit + 1  # one more, to know whether there is more
    found: list[EncodedEvent] = []  # newest first
    before_seq = bound.seq
    floor_position = -1  # what has left the log; unknown until it has been asked
    skipped = 0
    is_hot = False  # whether `position` is that of an event that ring or log has just shown

    # 1. At which position does the bound lie? From here on `position` and `before_seq` are where reading goes on.
    ring = view.rings.get(name)
    last_position = ring.last_position if ring is not None else 0
    if bound.position is not None:
        position = min(bound.position, last_position + 1)
    elif ring is None or before_seq > view.last_seq:
        position = last_position + 1
    elif before_seq > ring.floor_seq:
        position = ring.position_at(before_seq)
    else:
        reply = yield ReadLog((name,), before_seq, None, wanted)
        if isinstance(reply, Unavailable):
            return _unavailable(name, bound, found)
        floor_position = reply.floor_position
        if reply.events:
            found.extend(reversed(reply.events))
            position, before_seq, is_hot = found[-1].position, _by_seq(found[-1]), True
        elif archive is None or archive.is_keyset or before_seq > reply.floor_seq:
            position = floor_position + 1
        else:
            located = yield from _locate(name, before_seq, floor_position)
            if isinstance(located, Gap):
                bounds = {name: bound} if located.reason == "tier_unavailable" else None
                return Slice([], bounds, located)
            position = located

    # 2. Down through the tiers, by position: it stays true whatever is evicted or handed over meanwhile.
    while len(found) < wanted:
        want = wanted - len(found)
        ring = view.rings.get(name)
        if ring is not None and len(ring) and position > ring.first_position:
            rows = ring.before(position, want)
            found.extend(reversed(rows))
            position, before_seq, is_hot = rows[0].position, _by_seq(rows[0]), True
        elif position > max(1, floor_position + 1):
            reply = yield ReadStream(name, position, want)
            if isinstance(reply, Unavailable):
                return _unavailable(name, Bound(before_seq, position), found)
            floor_position = reply.floor_position
            if reply.events:
                found.extend(reversed(reply.events))
                position, before_seq, is_hot = reply.events[0].position, _by_seq(reply.events[0]), True
            else:
                # Nothing left in the log below the position: the archive goes on, never above where we are.
                floor_position = max(floor_position, position - 1)
        elif archive is None:
            gap = Gap(1, min(before_seq - 1, view.last_seq), "retention") if floor_position > 0 else None
            return Slice(found[::-1], None, gap if gap and gap.through_seq >= 1 else None)
        elif archive.is_keyset and (before_seq <= 1 or (is_hot and position <= 1)):
            # By seq there is nothing below the stream's first event: an archive that does not answer need not be
            # asked. Positions of an archive's rows would not do: copies of an interrupted batch are counted there.
            return Slice(found[::-1], None)
        else:
            # Below the log an offset's seq is not known until a row has been seen: an archive is asked by position.
            is_offset = before_seq == MAX_SEQ and bound.position is not None
            reply = yield ReadArchive(name, position, None if is_offset else before_seq, want)
            if isinstance(reply, Unavailable):
                return _unavailable(name, Bound(before_seq, position), found)
            is_hot = False
            for row in reversed(reply.events):
                position = row.position
                if row.seq is not None:
                    # An interrupted batch stands in the table twice: with a seq the second copy is recognised.
                    if row.seq >= before_seq:
                        skipped += 1
                        continue
                    before_seq = row.seq
                found.append(row)
            if len(reply.events) < want and len(found) <= limit:
                return Slice(found[::-1], None)
            if skipped > MOST_SKIPPED and len(found) <= limit:
                # A page may end early: a forged bound must not read a whole archive in one command.
                return Slice(found[::-1], {name: Bound(before_seq, position)})
    shown = found[limit - 1 :: -1]
    # Seqs only grow with positions: the oldest event that has one has the smallest.
    next_seq = next((event.seq for event in shown if event.seq is not None), bound.seq)
    return Slice(shown, {name: Bound(next_seq, shown[0].position)})


def _unavailable(name: str, bound: Bound, found: list[EncodedEvent]) -> Slice:
    # The bound stays where the failing tier begins: the same cursor, tried again, goes on exactly there.
    gap = Gap(1, max(1, min(bound.seq - 1, MAX_SEQ)), "tier_unavailable")
    return Slice(found[::-1], {name: bound}, gap)


def _probe(name: str, position: int, seq: int) -> Generator[Read, Reply, bool | Gap]:
    """Whether the archive's row at *position* lies below *seq* (a missing row, or one of an earlier life, does)."""
    reply = yield ReadArchive(name, position + 1, None, 1)
    if isinstance(reply, Unavailable):
        return Gap(1, max(1, seq - 1), "tier_unavailable")
    if not reply.events:
        return True
    row_seq = reply.events[0].seq
    if row_seq is None and position >= 1:
        return Gap(1, max(1, seq - 1), "no_seq")
    return row_seq is None or row_seq < seq


def _locate(name: str, seq: int, floor_position: int) -> Generator[Read, Reply, int | Gap]:
    """Find the smallest position in an offset archive whose event has a seq of at least *seq*, by bisection.

    About log2(n) reads of one row each. Copies of an interrupted batch push the oldest rows below position 1, so
    the lower end is felt for before the bisection.
    """
    low, high, step = 1, floor_position + 1, 1
    while True:
        is_below = yield from _probe(name, low, seq)
        if isinstance(is_below, Gap):
            return is_below
        if is_below:
            break
        high, low, step = low, low - step, step * 2
    while high - low > 1:
        middle = (low + high) // 2
        is_below = yield from _probe(name, middle, seq)
        if isinstance(is_below, Gap):
            return is_below
        if is_below:
            low = middle
        else:
            high = middle
    return high


def older_room(
    view: View, bounds: Mapping[str, Bound], *, limit: int, archive: Archive | None
) -> Generator[Read, Reply, Slice]:
    """Read the newest *limit* events below *bounds* over several streams, in room order.

    Args:
        bounds: Where each stream is read from, by event name.
        limit: At least 1.
        archive: None to stop at the log's floor.
    """
    state = {name: bound for name, bound in bounds.items() if bound != _ENDED}
    if not state:
        return Slice([], None)
    if len(state) == 1:
        ((name, bound),) = state.items()
        part = yield from older_stream(view, name, bound, limit=limit, archive=archive)
    else:
        part = yield from _older_streams(view, state, limit=limit, archive=archive)
    if part.bounds is None or all(bound == _ENDED for bound in part.bounds.values()):
        return part._replace(bounds=None)
    # The streams that have ended stay named: a cursor reads unnamed ones from its general bound.
    return part._replace(bounds={**dict.fromkeys(bounds, _ENDED), **part.bounds})


def _older_streams(
    view: View, state: dict[str, Bound], *, limit: int, archive: Archive | None
) -> Generator[Read, Reply, Slice]:
    wanted = limit + 1
    found: list[EncodedEvent] = []  # newest first

    # 1. The rings: everything above their common floor, without I/O.
    floor = _ring_floor(view, state)
    hot = []
    for name, bound in state.items():
        ring = view.rings.get(name)
        if ring is not None and bound.seq > floor + 1:
            rows = ring.before(ring.position_at(bound.seq), wanted)
            rows.reverse()
            if rows and _by_seq(rows[-1]) <= floor:
                rows = [event for event in rows if _by_seq(event) > floor]
            hot.append(rows)
    found.extend(islice(_merge_newest_first(hot), wanted))

    # 2. The log, by seq, down to what has left it. Streams that were sent further down are filtered here.
    top = min(floor + 1, max(bound.seq for bound in state.values()))
    log_floor = 0
    while len(found) < wanted and top > log_floor + 1:
        want = wanted - len(found)
        reply = yield ReadLog(tuple(state), top, None, want)
        if isinstance(reply, Unavailable):
            return _slice_room(found, state, limit, top, Gap(1, max(1, top - 1), "tier_unavailable"))
        log_floor = reply.floor_seq
        rows = [event for event in reply.events if _by_seq(event) > log_floor]
        found.extend(event for event in reversed(rows) if _by_seq(event) < state[event.event].seq)
        if len(rows) < want:
            break
        top = _by_seq(rows[0])
    if len(found) > limit:
        return _slice_room(found, state, limit, 0, None)
    if archive is None:
        return Slice(found[::-1], None, Gap(1, log_floor, "retention") if log_floor else None)

    # 3. Below the log's common floor each stream goes on by itself, through log and archive, and they are merged.
    below = min(top, log_floor + 1)
    parts: dict[str, Slice] = {}
    for name, bound in state.items():
        # A position holds only while nothing of the stream has been found above the floor.
        is_exact = bound.position is not None and bound.seq <= below
        start = bound if is_exact else Bound(min(bound.seq, below))
        if start.seq <= 0:
            start = Bound(1)
        part = yield from older_stream(view, name, start, limit=wanted - len(found), archive=archive)
        if part.gap is not None and part.gap.reason == "tier_unavailable":
            return _slice_room(found, state, limit, below, part.gap._replace(through_seq=max(1, log_floor)))
        if part.gap is not None or any(event.seq is None for event in part.events):
            # Without seqs the streams cannot be merged: the read ends at the log's floor and says so.
            return Slice(found[::-1], None, Gap(1, max(1, log_floor), "no_seq"))
        parts[name] = part
        state[name] = start
    merged = list(_merge_newest_first(part.events[::-1] for part in parts.values()))
    kept = merged[: limit - len(found)]
    for name, part in parts.items():
        shown = [event for event in kept if event.event == name]
        if len(shown) < len(part.events):
            if shown:
                state[name] = Bound(_by_seq(shown[-1]), shown[-1].position)
        else:
            state[name] = part.bounds[name] if part.bounds else _ENDED
    found.extend(kept)
    return Slice(found[::-1], state)


def _slice_room(
    found: list[EncodedEvent], bounds: Mapping[str, Bound], limit: int, below: int, gap: Gap | None
) -> Slice:
    """Return the newest *limit* of *found* (newest first), going on below the oldest of them.

    Args:
        bounds: Of the streams that have not ended.
        below: Where to go on when all of *found* is kept: nothing at or above it is left to read.
    """
    if len(found) > limit:
        found = found[:limit]
        below = _by_seq(found[-1])
    state = {name: Bound(below) if bound.seq > below else bound for name, bound in bounds.items()}
    return Slice(found[::-1], state, gap)


def newer_room(
    view: View, names: Collection[str], *, after: int, through: int, limit: int, archive: Archive | None
) -> Generator[Read, Reply, NewerSlice]:
    """Read the oldest *limit* events above *after* (exclusive) over several streams, in room order.

    Args:
        through: Inclusive upper bound; what is above it has not been told to subscribers yet.
        limit: At least 1.
        archive: None to stop at the log's floor.
    """
    if after >= through or not names:
        return NewerSlice([], None)
    wanted = limit + 1
    found: list[EncodedEvent] = []
    gap: Gap | None = None
    # The seq through which a read that was cut short is complete; None when it reached the newest event.
    read_through: int | None = None
    floor = _ring_floor(view, names)
    if floor <= after:
        hot = [view.rings[name].after(after, wanted) for name in names if name in view.rings]
        found.extend(islice(merge(*hot, key=_by_seq), wanted))
    else:
        reply = yield ReadLog(tuple(names), None, after, wanted)
        if isinstance(reply, Unavailable):
            return NewerSlice([], after, Gap(after + 1, min(floor, through), "tier_unavailable"))
        rest = reply.events
        if len(rest) == wanted:
            read_through = _by_seq(reply.events[-1])
        if reply.floor_seq > after:
            if archive is None:
                gap = Gap(after + 1, reply.floor_seq, "retention")
            else:
                complete = reply.floor_seq
                parts: list[list[EncodedEvent]] = []
                for name in names:
                    part = yield from _newer_archived(name, after, complete, limit, archive)
                    if isinstance(part, Gap):
                        if part.reason == "tier_unavailable":
                            return NewerSlice([], after, part)
                        gap, parts, complete = part, [], reply.floor_seq
                        break
                    rows, through_part = part
                    parts.append(rows)
                    complete = min(complete, through_part)
                found.extend(event for event in merge(*parts, key=_by_seq) if _by_seq(event) <= complete)
                if complete < reply.floor_seq:
                    read_through, rest = complete, []
        found.extend(event for event in rest if _by_seq(event) > reply.floor_seq)
    next_after = _by_seq(found[limit - 1]) if len(found) > limit else read_through
    shown = [event for event in found[:limit] if _by_seq(event) <= through]
    return NewerSlice(shown, None if next_after is None or next_after >= through else next_after, gap)


def _newer_archived(
    name: str, after: int, floor_seq: int, limit: int, archive: Archive
) -> Generator[Read, Reply, tuple[list[EncodedEvent], int] | Gap]:
    """Read the oldest events of one stream in (*after*, *floor_seq*], from log and archive.

    Returns:
        The events, oldest first, and the seq through which they are complete; or why it cannot be done.
    """
    gap = Gap(after + 1, floor_seq, "tier_unavailable")
    reply = yield ReadLog((name,), None, after, limit + 1)
    if isinstance(reply, Unavailable):
        return gap
    events = [event for event in reply.events if _by_seq(event) > reply.floor_seq]
    complete = _by_seq(events[-1]) if len(reply.events) > limit else floor_seq
    if reply.floor_seq <= after:
        return events, min(complete, floor_seq)
    if archive.is_keyset:
        # Reading by seq goes downwards only: a window of `limit` seqs holds at most `limit` events of the stream.
        window = min(reply.floor_seq, after + limit)
        rows = yield ReadArchive(name, reply.floor_position + 1, window + 1, limit)
        if isinstance(rows, Unavailable):
            return gap
        archived, reached = rows.events, window
    else:
        start = yield from _locate(name, after + 1, reply.floor_position)
        if isinstance(start, Gap):
            return gap._replace(reason=start.reason)
        end = min(start + limit, reply.floor_position + 1)
        if end <= start:
            archived, reached = [], reply.floor_seq
        else:
            rows = yield ReadArchive(name, end, None, end - start)
            if isinstance(rows, Unavailable):
                return gap
            archived = rows.events
            reached = reply.floor_seq if end > reply.floor_position else _by_seq(archived[-1])
    unique: list[EncodedEvent] = []
    for row in archived:
        if row.seq is None:
            return gap._replace(reason="no_seq")
        if row.seq > (unique[-1].seq or 0 if unique else after):
            unique.append(row)
    if reached < reply.floor_seq:
        return unique, max(reached, after + 1 if archive.is_keyset else reached)
    return unique + events, min(complete, floor_seq)


def cut(part: Slice, start: Mapping[str, Bound], keep: int) -> Slice:
    """Return *part* with only its newest *keep* events, and bounds that go on exactly below them.

    Args:
        part: What `older_room` returned.
        start: The bounds that it was read from.
        keep: At least 0; at least 1 for a page to make progress.
    """
    if keep >= len(part.events):
        return part
    dropped, kept = part.events[: len(part.events) - keep], part.events[len(part.events) - keep :]
    bounds = part.bounds or dict.fromkeys(start, _ENDED)
    for event in dropped:  # oldest first, so the newest dropped one of each stream stays
        seq = start[event.event].seq if event.seq is None else event.seq + 1
        bounds = {**bounds, event.event: Bound(seq, event.position + 1)}
    return Slice(kept, bounds, part.gap)
