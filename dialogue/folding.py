"""Folding: a message that was streamed as events (start, deltas, end) becomes one thing again."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass, field
from typing import Any

from .config import EventType
from .events import Event


@dataclass(slots=True)
class Folded:
    """One streamed message.

    Attributes:
        start: The event that began it; None if it is not among the events: cut off by paging or retention.
        deltas: Its parts, in order; may be empty.
        end: The event that ended it; None while it is unfinished, or for ever if its producer died.
        text: The texts of the deltas, joined.
    """

    start: Event[Any] | None = None
    deltas: list[Event[Any]] = field(default_factory=list)
    end: Event[Any] | None = None
    text: str = ""

    @property
    def is_complete(self) -> bool:
        """Whether start and end are both there; then, with a gapless history, so is everything between them."""
        return self.start is not None and self.end is not None

    @property
    def events(self) -> list[Event[Any]]:
        """All its events, in order."""
        ends = [self.start], self.deltas, [self.end]
        return [event for part in ends for event in part if event is not None]


def text_of(event: Event[Any]) -> str:
    """Return a delta's text: the data if it is a string, else the string under its ``text`` or ``delta``, else nothing.

    Nothing, not an error: one delta of another form (or a deleted one) must not take the transcript with it.
    """
    data = event.data
    if isinstance(data, dict):
        data = data.get("text", data.get("delta"))
    return data if isinstance(data, str) else ""


def message_of(event: Event[Any]) -> Hashable:
    """Return what an event's message is known by: the ``id`` in its data (a string or number), else its sender."""
    known_by = event.data.get("id") if isinstance(event.data, dict) else None
    return ("id", known_by) if isinstance(known_by, str | int | float) else ("sender", event.sender)


def fold(
    events: Iterable[Event[Any]],
    *,
    start: str | EventType[Any],
    delta: str | EventType[Any],
    end: str | EventType[Any],
    by: Callable[[Event[Any]], Hashable] = message_of,
    text: Callable[[Event[Any]], str] = text_of,
    onto: Iterable[Folded] = (),
) -> list[Folded]:
    """Fold events of one room into the messages that they are parts of.

    Several messages may be open at once: events belong together by what *by* returns. A start while a message of the
    same kind is open begins another one and leaves that one unfinished. A delta or an end without its start, cut off
    by paging, makes a message whose ``start`` is None; nothing is left out.

    Args:
        events: Of one room, of any names; other names are passed over. If all that count have a seq, in any order
            (history comes newest first, live events oldest first) and with repetitions: an event is taken by its seq,
            once, a deleted form before an edited one before the original. Otherwise oldest first.
        start, delta, end: Names or types of the events; three different ones.
        by: What a message's events have in common. By default an ``id`` in their data, else their sender. Where
            clients may publish these events, an id alone lets anyone write into another's message: use
            ``by=lambda event: (event.sender, event.data["id"])``.
        text: The text of one delta. By default its data if that is a string, else the string under its ``text`` or
            ``delta``, else nothing.
        onto: What an earlier fold gave, left as it is: the result is that of folding its events and these together.
            So a transcript grows with live events at one end and older pages at the other.

    Returns:
        A new list, in the order of the starts (of the first events, where the start is missing).

    Raises:
        ValueError: Two of the names are the same, or the events are of several rooms or lives of the log.
    """
    names = [name.name if isinstance(name, EventType) else name for name in (start, delta, end)]
    if len(set(names)) < 3:
        raise ValueError(f"start, delta and end are three different events, not {', '.join(names)}")
    start_name, delta_name, _ = names
    earlier = [event for folded in onto for event in folded.events]
    found: list[Folded] = []
    is_open: dict[Hashable, Folded] = {}
    for event in _in_order([*earlier, *(event for event in events if event.event in names)]):
        message = by(event)
        folded = is_open.get(message)
        if folded is None or event.event == start_name:
            folded = is_open[message] = Folded()
            found.append(folded)
        if event.event == start_name:
            folded.start = event
        elif event.event == delta_name:
            folded.deltas.append(event)
        else:
            folded.end = event
            del is_open[message]
    for folded in found:
        folded.text = "".join(map(text, folded.deltas))
    return found


def _in_order(events: list[Event[Any]]) -> list[Event[Any]]:
    """Return *events* once each, by seq if all have one."""
    if len({event.room_id for event in events}) > 1:
        raise ValueError("events of several rooms cannot be folded together")
    if len({event.epoch for event in events if event.seq is not None} - {None}) > 1:
        raise ValueError("events of several lives of the log (epochs) cannot be folded together")
    once: dict[tuple[str, int], Event[Any]] = {}
    for event in events:
        # Without a seq two events that are equal may still be two.
        key = ("object", id(event)) if event.seq is None else ("seq", event.seq)
        known = once.get(key)
        if known is None or (event.is_deleted, event.is_edited) >= (known.is_deleted, known.is_edited):
            once[key] = event
    if all(event.seq is not None for event in events):
        return sorted(once.values(), key=lambda event: event.seq or 0)
    return list(once.values())
