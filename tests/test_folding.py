"""`fold`: streamed messages become one thing again, whatever the order and the cuts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dialogue import Event, Folded, define_event, fold

NAMES: dict[str, Any] = {"start": "started", "delta": "part", "end": "ended"}


def event(
    name: str, data: Any = None, *, seq: int | None = None, sender: str = "bot", **more: Any
) -> Event[Any]:
    """Return an event of the room."""
    return Event(room_id="r", event=name, data=data, sender=sender, seq=seq, **more)


def sequence(*events: Event[Any]) -> list[Event[Any]]:
    """Give *events* their seqs, from 1."""
    for number, one in enumerate(events, start=1):
        one.seq = number
    return list(events)


def texts(folded: Sequence[Folded]) -> list[str]:
    """Return the texts of messages."""
    return [one.text for one in folded]


def test_a_message_is_folded() -> None:
    """Start, deltas and end become one, other events are passed over, and types may stand for names."""
    events = sequence(
        event("started", {"id": 7, "model": "m"}),
        event("part", {"id": 7, "text": "Hel"}),
        event("typing"),
        event("part", {"id": 7, "delta": "lo"}),
        event("ended", {"id": 7}),
    )
    [folded] = fold(events, start=define_event("started"), delta=define_event("part"), end="ended")
    assert (folded.start, folded.end) == (events[0], events[4])
    assert folded.deltas == [events[1], events[3]]
    assert folded.events == [events[0], events[1], events[3], events[4]]
    assert folded.text == "Hello"
    assert folded.is_complete


def test_an_unfinished_message_is_included() -> None:
    """What has come so far is shown, and known to be unfinished."""
    [folded] = fold(sequence(event("started"), event("part", "Hel")), **NAMES)
    assert (folded.text, folded.end, folded.is_complete) == ("Hel", None, False)


def test_a_second_start_leaves_the_first_unfinished() -> None:
    """A producer that died and began anew, without ids: two messages."""
    events = sequence(
        event("started"), event("part", "a"), event("started"), event("part", "b"), event("ended")
    )
    assert [(one.text, one.is_complete) for one in fold(events, **NAMES)] == [("a", False), ("b", True)]


def test_what_is_cut_off_is_included() -> None:
    """Deltas and ends without a start are messages whose start is None, in their place."""
    events = sequence(
        event("part", {"id": 1, "text": "b"}),
        event("started", {"id": 2}),
        event("ended", {"id": 1}),
        event("ended", {"id": 3}),
    )
    first, second, third = fold(events, **NAMES)
    assert (first.start, first.text, first.end, first.is_complete) == (None, "b", events[2], False)
    assert second.start == events[1]
    assert (third.start, third.deltas, third.end) == (None, [], events[3])


def test_an_older_page_completes_what_was_cut_off() -> None:
    """A transcript grows at both ends, and the earlier one stays as it was."""
    events = sequence(event("started"), event("part", "a"), event("part", "b"), event("ended"))
    middle = fold(events[2:3], **NAMES)
    older = fold(events[:2][::-1], **NAMES, onto=middle)
    assert [(one.text, one.is_complete) for one in older] == [("ab", False)]
    [whole] = fold(events[1:], **NAMES, onto=older)
    assert (whole.text, whole.is_complete) == ("ab", True)
    assert texts(middle) == ["b"]


def test_edited_and_deleted_forms_win() -> None:
    """Of two forms of one event the deleted one counts, then the edited one, whichever comes first."""
    first, original = sequence(event("started"), event("part", "a"))
    edited = event("part", "b", seq=2, is_edited=True)
    deleted = event("part", None, seq=2, is_edited=True, is_deleted=True)
    assert texts(fold([edited, first, original], **NAMES)) == ["b"]
    assert texts(fold([first, original, edited], **NAMES)) == ["b"]
    assert texts(fold([deleted, first, edited, original], **NAMES)) == [""]


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        ("a", "a"),
        ({"text": "a"}, "a"),
        ({"delta": "a"}, "a"),
        ({"text": 5}, ""),
        ({}, ""),
        (None, ""),
        (5, ""),
        (["a"], ""),
    ],
)
def test_the_text_of_a_delta(data: Any, expected: str) -> None:
    """A string, or a string under `text` or `delta`; any other form adds nothing and breaks nothing."""
    assert texts(fold(sequence(event("part", data), event("part", "!")), **NAMES)) == [expected + "!"]


def test_the_key_and_the_text_may_be_ones_own() -> None:
    """`by` and `text` are asked for each event that counts."""
    events = sequence(
        event("started", {"id": 1}, sender="ann"),
        event("part", {"id": 1, "n": 4}, sender="eve"),
        event("part", {"id": 1, "n": 2}, sender="ann"),
        event("other"),
    )
    found = fold(
        events, **NAMES, by=lambda one: (one.sender, one.data["id"]), text=lambda one: str(one.data["n"])
    )
    assert texts(found) == ["2", "4"]
    assert texts(fold(events[:3], **NAMES, text=lambda one: str(one.data["n"]))) == ["42"]


@pytest.mark.parametrize("data", [{"id": [1]}, {"id": {}}, {"id": None}, {}, "x"])
def test_an_id_that_is_none_is_not_used(data: Any) -> None:
    """Then events belong together by their sender."""
    events = sequence(
        event("started", data, sender="a"),
        event("started", data, sender="b"),
        event("ended", data, sender="a"),
    )
    assert [one.is_complete for one in fold(events, **NAMES)] == [True, False]


def test_mistakes_are_told() -> None:
    """Equal names, several rooms and several epochs cannot be folded."""
    with pytest.raises(ValueError, match="three different"):
        fold([], start="a", delta=define_event("a"), end="b")
    with pytest.raises(ValueError, match="rooms"):
        fold([event("part"), Event(room_id="other", event="part", data=1, sender="a")], **NAMES)
    with pytest.raises(ValueError, match="epochs"):
        fold([event("part", seq=1, epoch="a"), event("part", seq=2, epoch="b")], **NAMES)
    assert fold([], **NAMES) == []


@st.composite
def streams(draw: st.DrawFn) -> tuple[list[list[str]], list[Event[Any]]]:
    """Return the parts of some messages, and their events interleaved in any way that keeps each one's order."""
    messages = draw(st.lists(st.lists(st.text(max_size=3), max_size=4), min_size=1, max_size=5))
    steps = [number for number, parts in enumerate(messages) for _ in range(len(parts) + 2)]
    done = dict.fromkeys(range(len(messages)), 0)
    events = []
    for number in draw(st.permutations(steps)):
        step, parts = done[number], messages[number]
        done[number] += 1
        if step == 0:
            events.append(event("started", {"id": number}))
        elif step <= len(parts):
            events.append(event("part", {"id": number, "text": parts[step - 1]}))
        else:
            events.append(event("ended", {"id": number}))
    return messages, sequence(*events)


@given(streams())
def test_any_interleaving_gives_each_message_its_own_text(
    given_streams: tuple[list[list[str]], list[Event[Any]]],
) -> None:
    """Whatever is said at the same time, nothing mixes, and the order is that of the starts."""
    messages, events = given_streams
    found = fold(events, **NAMES)
    assert all(one.is_complete for one in found)
    assert len(found) == len(messages)
    starts = [one.start for one in found]
    assert starts == [one for one in events if one.event == "started"]
    for one in found:
        assert one.start is not None
        assert one.text == "".join(messages[one.start.data["id"]])


@given(streams(), st.data())
def test_folding_a_part_and_then_the_rest_is_folding_all(
    given_streams: tuple[list[list[str]], list[Event[Any]]], data: st.DataObject
) -> None:
    """For any cut, from either end, with overlaps and in any order if there are seqs; for prefixes without."""
    _, events = given_streams
    whole = fold(events, **NAMES)
    cut = data.draw(st.integers(0, len(events)))
    overlap = data.draw(st.integers(0, cut))
    first, rest = events[:cut], data.draw(st.permutations(events[overlap:]))
    assert fold(rest, **NAMES, onto=fold(first, **NAMES)) == whole
    assert fold(first, **NAMES, onto=fold(rest, **NAMES)) == whole
    assert fold([*events[::-1], *rest], **NAMES) == whole
    for one in events:
        one.seq = None
    assert fold(events[cut:], **NAMES, onto=fold(events[:cut], **NAMES)) == fold(events, **NAMES)
    assert texts(fold(events, **NAMES)) == texts(whole)
