"""The ring: a run without holes, bounded, and honest about what it no longer has."""

from __future__ import annotations

import gc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dialogue.core.ring import Ring
from dialogue.events import EncodedEvent, encode_event


def event(seq: int, position: int) -> EncodedEvent:
    return encode_event(
        room_id="r",
        event="a",
        id=seq,
        seq=seq,
        position=position,
        sender="s",
        key=None,
        timestamp=1,
        data_json=b"1",
    )


@given(limit=st.integers(1, 6), gaps=st.lists(st.integers(1, 3), max_size=200), data=st.data())
def test_a_ring_is_the_end_of_its_stream(limit: int, gaps: list[int], data: st.DataObject) -> None:
    """After any number of pushes it holds the newest events, and every read is a slice of them."""
    ring = Ring(limit)
    stream: list[EncodedEvent] = []
    seq = 0
    for gap in gaps:
        seq += gap  # other streams of the room take seqs too
        stream.append(event(seq, len(stream) + 1))
        evicted = ring.push(stream[-1])
        assert evicted == (stream[-limit - 1] if len(stream) > limit else None)
    hot = stream[-limit:]
    assert len(ring) == len(hot)
    assert ring.first_position == len(stream) - len(hot) + 1
    assert ring.floor_seq == (stream[-limit - 1].seq if len(stream) > limit else 0)
    position = data.draw(st.integers(0, len(stream) + 2))
    count = data.draw(st.integers(1, limit + 1))
    assert ring.before(position, count) == [e for e in hot if e.position < position][-count:]
    bound = data.draw(st.integers(0, seq + 2))
    assert ring.after(bound, count) == [e for e in hot if (e.seq or 0) > bound][:count]
    expected = next((e.position for e in hot if (e.seq or 0) >= bound), len(stream) + 1)
    assert ring.position_at(bound) == expected


def test_a_ring_takes_only_the_next_event() -> None:
    """A hole would be hidden for good."""
    ring = Ring(3)
    ring.push(event(1, 1))
    with pytest.raises(ValueError, match="does not follow"):
        ring.push(event(3, 3))
    with pytest.raises(ValueError, match="at least 1"):
        Ring(0)


@given(limit=st.integers(1, 5), total=st.integers(0, 12), removed=st.integers(0, 12), extra=st.integers(0, 3))
def test_a_refilled_ring_knows_its_floor(limit: int, total: int, removed: int, extra: int) -> None:
    """Everything of the stream above `floor_seq` is in a ring that was read from the log."""
    stream = [event(n * 2, n) for n in range(1, total + 1)]
    removed = min(removed, total)
    left = stream[removed:]
    ring = Ring.refill(limit, left[-(limit + extra) :], last_position=total, floor_seq=removed * 2)
    hot = ring.before(total + 1, limit)
    assert hot == left[-limit:]
    assert [e for e in stream if (e.seq or 0) > ring.floor_seq] == hot
    ring.push(event(total * 2 + 2, total + 1))
    assert ring.last_position == total + 1


def test_an_evicted_event_is_let_go() -> None:
    """A ring refers to what it holds and to nothing else: an evicted event may have been large."""
    ring = Ring(40)
    events = [event(number, number) for number in range(1, 71)]
    for each in events:
        ring.push(each)
    held = {id(each) for each in gc.get_referents(ring._events)}
    assert [id(each) in held for each in events] == [False] * 30 + [True] * 40


def test_an_empty_ring_is_a_ring() -> None:
    """It knows how far its stream is, and so is not taken for none; what it has not got it does not replace."""
    ring = Ring(2, last_position=3)
    assert ring
    ring.replace(event(3, 3))
    assert len(ring) == 0
