"""Promise 5 in the core: any interleaving of publishes, evictions, hand-overs and page reads is complete."""

from __future__ import annotations

import json
from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dialogue.core import cursor
from dialogue.core.cursor import Bound
from dialogue.core.ring import Ring
from dialogue.core.timeline import (
    Archive,
    Gap,
    NewerSlice,
    Read,
    ReadArchive,
    ReadLog,
    ReadStream,
    Reply,
    Slice,
    Unavailable,
    cut,
    newer_room,
    older_room,
    older_stream,
)
from dialogue.events import EncodedEvent, encode_event
from dialogue.storage.base import LogPage

NAMES = ("a", "b")


def event(name: str, seq: int | None, position: int, text: str = "") -> EncodedEvent:
    data_json = json.dumps(text).encode()
    return encode_event(
        room_id="r",
        event=name,
        id=seq,
        seq=seq,
        position=position,
        sender="s",
        key=None,
        timestamp=1,
        data_json=data_json,
    )


def text_of(event: EncodedEvent) -> str:
    """Return the text that `event` was given, or else its seq."""
    return str(json.loads(event.json)["data"]) or str(event.seq)


@dataclass
class World:
    """A room over the simplest possible tiers: everything is a list, and time is a list of steps."""

    limit: int
    is_durable: bool
    has_archive: bool
    has_seq: bool = True
    is_keyset: bool = False
    earlier: int = 0
    last_seq: int = 0
    rings: dict[str, Ring] = field(default_factory=dict)
    log: list[EncodedEvent] = field(default_factory=list)
    published: list[EncodedEvent] = field(default_factory=list)
    handed: dict[str, int] = field(default_factory=dict)
    removed: dict[str, tuple[int, int]] = field(default_factory=dict)
    table: dict[str, list[EncodedEvent]] = field(default_factory=dict)
    is_archive_down: bool = False

    def __post_init__(self) -> None:
        for name in NAMES:
            # Rows that an earlier life of the log handed over: no seq of this life.
            self.table[name] = [event(name, None, 0, f"earlier {n}") for n in range(self.earlier)]

    def publish(self, name: str) -> None:
        self.last_seq += 1
        ring = self.rings.setdefault(name, Ring(self.limit))
        new = event(name, self.last_seq, ring.last_position + 1)
        self.published.append(new)
        self.log.append(new)
        ring.push(new)
        if not self.is_durable and not self.has_archive:
            self.remove(name, ring.first_position - 1)

    def hand_over(self, name: str, count: int, interrupted: bool = False) -> None:
        ring = self.rings.get(name)
        if ring is None or not self.has_archive:
            return
        start = self.handed.get(name, 0) + 1
        end = min(start + count, ring.first_position)
        batch = [e for e in self.log if e.event == name and start <= e.position < end]
        self.table[name].extend(batch)
        if interrupted:
            return
        self.handed[name] = max(self.handed.get(name, 0), end - 1)
        if not self.is_durable:
            self.remove(name, self.handed[name])

    def remove(self, name: str, through: int) -> None:
        if self.has_archive:
            through = min(through, self.handed.get(name, 0))
        gone = [e for e in self.log if e.event == name and e.position <= through]
        if gone:
            self.removed[name] = (gone[-1].position, gone[-1].seq or 0)
            self.log = [e for e in self.log if e not in gone]

    def answer(self, read: Read) -> Reply:
        if isinstance(read, ReadLog):
            names = NAMES if read.event_names is None else read.event_names
            floor = max((self.removed.get(n, (0, 0))[1] for n in names), default=0)
            rows = [
                e
                for e in self.log
                if e.event in names
                and (read.before is None or (e.seq or 0) < read.before)
                and (read.after is None or (e.seq or 0) > read.after)
            ]
            rows = rows[: read.limit] if read.after is not None else rows[-read.limit :]
            (only,) = names if len(names) == 1 else (None,)
            return LogPage(rows, floor, self.removed.get(only, (0, 0))[0] if only else 0)
        if isinstance(read, ReadStream):
            rows = [e for e in self.log if e.event == read.event_name and e.position < read.before_position]
            position, seq = self.removed.get(read.event_name, (0, 0))
            return LogPage(rows[-read.limit :], seq, position)
        assert isinstance(read, ReadArchive)
        assert self.has_archive
        if self.is_archive_down:
            return Unavailable()
        table = self.table[read.event_name]
        if self.is_keyset and read.before_seq is not None:
            table = [e for e in table if e.seq is None or e.seq < read.before_seq]
            offset = 0
        else:
            offset = self.handed.get(read.event_name, 0) - (read.before_position - 1)
        assert offset >= 0
        newest_first = table[::-1][offset : offset + read.limit]
        rows = [
            event(
                e.event,
                e.seq if self.has_seq else None,
                read.before_position - 1 - n,
                text_of(e),
            )
            for n, e in enumerate(newest_first)
        ]
        return LogPage(rows[::-1], 0, 0)

    @property
    def archive(self) -> Archive | None:
        return Archive(self.is_keyset) if self.has_archive else None


def run(world: World, read: Generator[Read, Reply, Any], between: Callable[[], None] = lambda: None) -> Any:
    """Drive *read*, calling *between* before each answer and again after it: the world moves while it waits."""
    try:
        request = next(read)
        while True:
            between()
            reply = world.answer(request)
            between()
            request = read.send(reply)
    except StopIteration as stop:
        return stop.value


steps = st.lists(
    st.one_of(
        st.tuples(st.just("publish"), st.sampled_from(NAMES), st.integers(1, 4)),
        st.tuples(st.just("hand"), st.sampled_from(NAMES), st.integers(1, 4)),
        # Retention empties a ring before, or without, the log: what was in it must be found there.
        st.tuples(st.just("expire"), st.sampled_from(NAMES), st.integers(1, 4)),
    ),
    min_size=1,
    max_size=30,
)


def act(world: World, step: tuple[str, str, int]) -> None:
    kind, name, count = step
    if kind == "publish":
        for _ in range(count):
            world.publish(name)
    elif kind == "expire":
        ring = world.rings.get(name)
        if ring is not None:
            ring.remove(ring.first_position + count - 1)
    else:
        world.hand_over(name, count)


def scroll(
    world: World, names: tuple[str, ...], page: int, moves: list[tuple[str, str, int]]
) -> list[EncodedEvent]:
    """Scroll from the newest event to the end while the world makes *moves*; return what was shown, oldest first."""
    queue = list(moves)

    def between() -> None:
        if queue:
            act(world, queue.pop())

    shown: list[EncodedEvent] = []
    bounds: dict[str, Bound] | None = {name: Bound(world.last_seq + 1) for name in names}
    for _ in range(2000):
        assert bounds is not None
        part: Slice = run(world, older_room(world, bounds, limit=page, archive=world.archive), between)
        assert part.gap is None
        assert len(part.events) <= page
        shown = part.events + shown
        bounds = part.bounds
        between()
        if bounds is None:
            return shown
    raise AssertionError("the scroll does not end")


@settings(max_examples=300, deadline=None)
@given(
    before=steps,
    during=steps,
    limit=st.integers(1, 5),
    page=st.integers(1, 6),
    durable=st.booleans(),
    archive=st.booleans(),
    keyset=st.booleans(),
    names=st.sampled_from([("a",), ("a", "b")]),
)
def test_scroll_gives_each_event_once_in_order(
    before: list[tuple[str, str, int]],
    during: list[tuple[str, str, int]],
    limit: int,
    page: int,
    durable: bool,
    archive: bool,
    keyset: bool,
    names: tuple[str, ...],
) -> None:
    """Each event that was there when the scroll began is shown once, in order, whatever moves meanwhile."""
    if not durable and not archive:
        archive = True  # memory alone forgets; see the retention test
    world = World(limit, durable, archive, is_keyset=keyset)
    for step in before:
        act(world, step)
    expected = [e.seq for e in world.published if e.event in names]
    shown = [e.seq for e in scroll(world, names, page, during)]
    assert shown == expected


@settings(max_examples=200, deadline=None)
@given(before=steps, during=steps, limit=st.integers(1, 5), page=st.integers(1, 6), earlier=st.integers(0, 7))
def test_scroll_over_a_table_without_seq(
    before: list[tuple[str, str, int]],
    during: list[tuple[str, str, int]],
    limit: int,
    page: int,
    earlier: int,
) -> None:
    """`next` stays exact where a seq cannot: in rows without seq, and in rows of earlier lives."""
    world = World(limit, False, True, has_seq=False, earlier=earlier)
    for step in before:
        act(world, step)
    expected = [f"earlier {n}" for n in range(earlier)] + [
        str(e.seq) for e in world.published if e.event == "a"
    ]
    shown = [text_of(e) for e in scroll(world, ("a",), page, during)]
    assert shown == expected


@settings(max_examples=100, deadline=None)
@given(moves=steps, limit=st.integers(1, 3), page=st.integers(1, 6), copies=st.integers(1, 3))
def test_an_interrupted_batch_shows_once_where_rows_have_a_seq(
    moves: list[tuple[str, str, int]], limit: int, page: int, copies: int
) -> None:
    """A batch that was written twice, because the hook raised after writing, is recognised by its seqs."""
    world = World(limit, False, True)
    for step in moves:
        act(world, step)
    for _ in range(copies):
        world.hand_over("a", 3, interrupted=True)
    world.hand_over("a", 3)
    shown = [e.seq for e in scroll(world, ("a",), page, [])]
    assert shown == [e.seq for e in world.published if e.event == "a"]


@settings(max_examples=200, deadline=None)
@given(
    before=steps,
    during=steps,
    limit=st.integers(1, 5),
    page=st.integers(1, 6),
    durable=st.booleans(),
    keyset=st.booleans(),
    after=st.integers(0, 40),
    names=st.sampled_from([("a",), ("a", "b")]),
)
def test_reading_newer_gives_each_event_once_in_order(
    before: list[tuple[str, str, int]],
    during: list[tuple[str, str, int]],
    limit: int,
    page: int,
    durable: bool,
    keyset: bool,
    after: int,
    names: tuple[str, ...],
) -> None:
    """Reading upwards from any seq meets every event up to the newest, through archive, log and rings."""
    world = World(limit, durable, True, is_keyset=keyset)
    for step in before:
        act(world, step)
    through = world.last_seq
    queue = list(during)

    def between() -> None:
        if queue:
            act(world, queue.pop())

    shown: list[int] = []
    cursor: int | None = after
    for _ in range(2000):
        assert cursor is not None
        read = newer_room(world, names, after=cursor, through=through, limit=page, archive=world.archive)
        part: NewerSlice = run(world, read, between)
        assert part.gap is None
        shown += [e.seq or 0 for e in part.events]
        if part.next_after is None:
            break
        assert part.next_after > cursor
        cursor = part.next_after
    assert shown == [e.seq for e in world.published if e.event in names and after < (e.seq or 0) <= through]


def test_memory_alone_names_what_it_forgot() -> None:
    """Without log and archive the end of the scroll says that older events are gone, and how far."""
    world = World(3, False, False)
    for _ in range(10):
        world.publish("a")
    bounds = {"a": Bound(world.last_seq + 1)}
    part: Slice = run(world, older_room(world, bounds, limit=50, archive=None))
    assert [e.seq for e in part.events] == [8, 9, 10]
    assert part.bounds is None
    assert part.gap is not None
    assert (part.gap.from_seq, part.gap.through_seq, part.gap.reason) == (1, 7, "retention")
    newer: NewerSlice = run(world, newer_room(world, ["a"], after=2, through=10, limit=50, archive=None))
    assert [e.seq for e in newer.events] == [8, 9, 10]
    assert newer.gap is not None
    assert (newer.gap.from_seq, newer.gap.through_seq) == (3, 7)


def test_two_streams_over_memory_alone_end_with_a_gap() -> None:
    """A busy stream's loss is told also when a rare one is still whole."""
    world = World(3, False, False)
    world.publish("b")
    for _ in range(10):
        world.publish("a")
    bounds = {name: Bound(world.last_seq + 1) for name in NAMES}
    part: Slice = run(world, older_room(world, bounds, limit=50, archive=None))
    assert part.gap is not None
    assert part.gap.reason == "retention"
    assert part.bounds is None


@pytest.mark.parametrize("names", [("a",), ("a", "b")])
def test_an_archive_that_is_down_is_named_and_the_same_cursor_goes_on(names: tuple[str, ...]) -> None:
    """What cannot be read now is named, nothing is skipped, and trying again is exact."""
    world = World(2, False, True)
    for n in range(12):
        world.publish(NAMES[n % 2])
    for name in NAMES:
        world.hand_over(name, 10)
    world.is_archive_down = True
    bounds: dict[str, Bound] | None = {name: Bound(world.last_seq + 1) for name in names}
    shown: list[int | None] = []
    for attempt in range(8):
        assert bounds is not None
        part: Slice = run(world, older_room(world, bounds, limit=5, archive=world.archive))
        shown = [e.seq for e in part.events] + shown
        bounds = part.bounds
        if attempt < 2:
            assert part.gap is not None
            assert part.gap.reason == "tier_unavailable"
        else:
            world.is_archive_down = False
        if bounds is None:
            break
        if attempt == 1:
            world.is_archive_down = False
    assert bounds is None
    assert shown == [e.seq for e in world.published if e.event in names]


@pytest.mark.parametrize("names", [("a",), ("b",), ("a", "b")])
@pytest.mark.parametrize("limit", [2, 12])
def test_an_archive_read_by_seq_is_not_asked_below_the_first_event(
    names: tuple[str, ...], limit: int
) -> None:
    """While the log has everything a scroll is complete, whatever state such an archive is in."""
    world = World(limit, True, True, is_keyset=True)
    for n in range(12):
        world.publish(NAMES[n % 2])
    world.is_archive_down = True
    for page in (1, 3, 6, 50):
        shown = [e.seq for e in scroll(world, names, page, [])]
        assert shown == [e.seq for e in world.published if e.event in names]


def test_several_streams_over_a_table_without_seq_end_at_the_floor() -> None:
    """Rows without seq cannot be merged in room order: the read ends and says why."""
    world = World(2, False, True, has_seq=False)
    for n in range(12):
        world.publish(NAMES[n % 2])
    for name in NAMES:
        world.hand_over(name, 10)
    bounds = {name: Bound(world.last_seq + 1) for name in NAMES}
    part: Slice = run(world, older_room(world, bounds, limit=50, archive=world.archive))
    assert [e.seq for e in part.events] == [9, 10, 11, 12]
    assert part.bounds is None
    assert part.gap is not None
    assert part.gap.reason == "no_seq"


@settings(max_examples=300, deadline=None)
@given(
    moves=steps,
    removals=st.lists(st.tuples(st.sampled_from(NAMES), st.integers(0, 20)), max_size=3),
    failures=st.lists(st.booleans(), max_size=40),
    limit=st.integers(1, 4),
    page=st.integers(1, 6),
    keep=st.integers(1, 6),
    archive=st.booleans(),
    keyset=st.booleans(),
    names=st.sampled_from([("a",), ("a", "b")]),
)
def test_any_tier_may_fail_and_any_page_may_be_cut(
    moves: list[tuple[str, str, int]],
    removals: list[tuple[str, int]],
    failures: list[bool],
    limit: int,
    page: int,
    keep: int,
    archive: bool,
    keyset: bool,
    names: tuple[str, ...],
) -> None:
    """A failed read is named, a page may end early by its bytes, tokens go over the wire: still each event once."""
    world = World(limit, True, archive, is_keyset=keyset)
    for step in moves:
        act(world, step)
    for name, through in removals:
        if archive:
            world.remove(name, through)
    expected = [e.seq for e in world.published if e.event in names]
    pending = list(failures)
    shown: list[int | None] = []
    bounds: dict[str, Bound] = {name: Bound(world.last_seq + 1) for name in names}
    for _ in range(2000):
        read = older_room(world, bounds, limit=page, archive=world.archive)
        failed = False
        try:
            request = next(read)
            while True:
                fails = pending.pop() if pending else False
                failed = failed or fails
                request = read.send(Unavailable() if fails else world.answer(request))
        except StopIteration as stop:
            part: Slice = stop.value
        assert (part.gap is not None) == failed, part
        if part.gap is not None:
            assert part.gap.reason == "tier_unavailable"
            assert part.bounds is not None
        part = cut(part, bounds, keep)
        assert len(part.events) <= keep
        shown = [e.seq for e in part.events] + shown
        if part.bounds is None:
            break
        token = cursor.encode_older("epoch", part.bounds)
        decoded = cursor.decode(token, epoch="epoch", event_names=names)
        bounds = {name: decoded.bound(name) for name in names}
    assert shown == expected


def test_newer_reads_name_a_tier_that_is_down() -> None:
    """Reading upwards stops before what cannot be read, and goes on exactly there."""
    for archive in (False, True):
        world = World(2, True, archive)
        for n in range(12):
            world.publish(NAMES[n % 2])
        if archive:
            for name in NAMES:
                world.hand_over(name, 10)
                world.remove(name, 3)
        count = 0
        while True:
            read = newer_room(world, NAMES, after=1, through=12, limit=50, archive=world.archive)
            asked = 0
            try:
                request = next(read)
                while True:
                    asked += 1
                    request = read.send(Unavailable() if asked == count + 1 else world.answer(request))
            except StopIteration as stop:
                part: NewerSlice = stop.value
            if part.gap is None:
                assert [e.seq for e in part.events] == list(range(2, 13))
                break
            assert part.gap.reason == "tier_unavailable"
            assert part.events == []
            assert part.next_after == 1
            count += 1
        assert count >= 1


def test_rows_without_seq_end_every_read_but_next() -> None:
    """Where rows carry no seq, `before` and `after` below the floor end with `no_seq`."""
    world = World(2, True, True, has_seq=False)
    for _ in range(12):
        world.publish("a")
    world.hand_over("a", 10)
    world.remove("a", 8)
    part: Slice = run(world, older_room(world, {"a": Bound(5)}, limit=5, archive=world.archive))
    assert part == ([], None, Gap(1, 4, "no_seq"))
    newer: NewerSlice = run(
        world, newer_room(world, ["a"], after=3, through=12, limit=5, archive=world.archive)
    )
    assert [e.seq for e in newer.events] == [9, 10, 11, 12]
    assert newer.gap == Gap(4, 8, "no_seq")
    none: NewerSlice = run(world, newer_room(world, ["a"], after=12, through=12, limit=5, archive=None))
    assert none == ([], None, None)
    empty: Slice = run(world, older_room(world, {}, limit=5, archive=None))
    assert empty == ([], None, None)
    assert run(world, older_stream(world, "a", Bound(0), limit=5, archive=None)) == ([], None, None)
