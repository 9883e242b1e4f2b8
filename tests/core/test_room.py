"""One open room: who is in it, which seq comes next, and what running reads are told."""

from __future__ import annotations

import pytest

from dialogue import History, RoomConfig, define_event
from dialogue.core.room import ALL, NONE, Room, Subscriber, as_replaced
from dialogue.events import EDIT, EncodedEvent, Event, encode_event
from dialogue.room_types import RoomType

message = define_event("message", history=History(limit=2))
other = define_event("other", history=History(limit=2))


def room() -> Room:
    return Room("general", RoomType("general", RoomConfig(events=[message, other])), {})


def event(seq: int, *, position: int, name: str = "message", data_json: bytes = b"1") -> EncodedEvent:
    return encode_event(
        room_id="general",
        event=name,
        id=seq,
        seq=seq,
        position=position,
        sender="ann",
        key=None,
        timestamp=1,
        data_json=data_json,
    )


def data(events: list[EncodedEvent]) -> list[object]:
    return [Event.decode(encoded, epoch=None).data for encoded in events]


def test_connections_come_and_go() -> None:
    """Whoever is taken out twice, or was never in, changes nothing for the others."""
    general = room()
    ann, bob, cleo = (Subscriber(name, None, ALL) for name in ("ann", "bob", "cleo"))
    general.discard(ann)
    general.add(ann)
    general.add(bob)
    general.discard(cleo)
    assert list(general.subscribers()) == [ann, bob]
    general.resubscribe(ann, NONE.add(["other"]))
    assert general.size == 2
    general.discard(ann)
    general.discard(ann)
    assert list(general.subscribers()) == [bob]


def test_users_are_counted_by_their_connections() -> None:
    """The first one that comes and the last one that goes are told apart from those between."""
    general = room()
    assert [general.user_entered("ann") for _ in range(3)] == [True, False, False]
    assert general.users == {"ann": 3}
    assert [general.user_left("ann") for _ in range(4)] == [False, False, True, False]
    assert general.users == {}


def test_an_event_is_the_next_one_or_none() -> None:
    """A seq that does not follow is refused, and leaves the room as it was."""
    general = room()
    assert general.push(event(1, position=1)) is None
    with pytest.raises(ValueError, match="does not follow 1"):
        general.push(event(3, position=2))
    assert general.push(event(2, position=2)) is None
    evicted = general.push(event(3, position=3))
    assert evicted is not None
    assert evicted.seq == 1
    assert general.last_seq == 3


def test_running_reads_get_the_newest_form() -> None:
    """Of events in a ring, and of those that are in none any more; a read that has ended gathers nothing more."""
    general = room()
    old = [event(1, position=1), event(2, position=1, name="other")]
    general.push(old[0])
    with general.watch() as first:
        with general.watch() as second:
            general.replace(event(1, position=1, data_json=b"2"))
        # Of a type that has had no event in memory.
        general.replace(event(2, position=1, name="other", data_json=b"3"))
    general.replace(event(1, position=1, data_json=b"4"))
    assert data(as_replaced(old, first)) == [2, 3]
    assert data(as_replaced(old, second)) == [2, 1]
    found = general.rings["message"].find(1)
    assert found is not None
    assert data([found]) == [4]


def test_an_offset_counts_from_the_newest() -> None:
    """Also of a type that has had no event yet."""
    general = room()
    general.push(event(1, position=1))
    general.push(event(2, position=2))
    assert general.bound_at_offset("message", 0).position == 3
    assert general.bound_at_offset("message", 1).position == 2
    assert general.bound_at_offset("other", 0).position == 1


def test_subscriptions_name_events_or_exceptions() -> None:
    """What is taken from everything is an exception; changes come with whatever else is wanted."""
    some = NONE.add(["message", "other"]).remove(["other"])
    rest = ALL.remove(["message", "other"]).add(["other"])
    names = ("message", "other", EDIT)
    assert [some.wants(name) for name in names] == [True, False, True]
    assert [rest.wants(name) for name in names] == [False, True, True]
    assert [NONE.wants(name) for name in names] == [False, False, False]


def test_equal_subscriptions_share_what_they_get() -> None:
    """One group for each subscription that wants something of a batch."""
    general = room()
    ann, bob, cleo, dan = (
        Subscriber(str(number), None, subscription)
        for number, subscription in enumerate((ALL, NONE.add(["other"]), ALL, NONE))
    )
    for subscriber in (ann, bob, cleo, dan):
        general.add(subscriber)
    batch = [event(1, position=1), event(2, position=1, name="other")]
    found = [(list(group.events), list(group.subscribers)) for group in general.groups(batch)]
    assert found == [(batch, [ann, cleo]), (batch[1:], [bob])]
