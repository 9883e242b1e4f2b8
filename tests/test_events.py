"""Events in their encoded form."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dialogue.events import Draft, EncodedEvent, encode_event, encoded_for

text = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=12)


def encoded(**changes: Any) -> EncodedEvent:
    values: dict[str, Any] = {
        "room_id": "general",
        "event": "message",
        "id": 7,
        "seq": 5,
        "position": 3,
        "sender": "ann",
        "key": None,
        "timestamp": 1000,
        "data_json": b'{"a":1}',
    }
    return encode_event(**(values | changes))


@given(room_id=text, name=text, sender=text, key=st.none() | text, seq=st.none() | st.integers(1, 2**53))
def test_the_wire_message_has_every_field(
    room_id: str, name: str, sender: str, key: str | None, seq: int | None
) -> None:
    """What goes in comes out; the key only for its publisher, and as it was."""
    event = encoded(room_id=room_id, event=name, sender=sender, key=key, seq=seq, id=seq)
    expected = {
        "type": "event",
        "room": room_id,
        "event": name,
        "from": sender,
        "id": seq,
        "seq": seq,
        "timestamp": 1000,
        "data": {"a": 1},
    }
    assert json.loads(event.json) == expected
    assert json.loads(event.json_for(sender + "x")) == expected
    assert json.loads(event.json_for(sender)) == expected | ({} if key is None else {"key": key})
    assert (event.event, event.sender, event.key, event.has_key) == (name, sender, key, key is not None)


@pytest.mark.parametrize("key", [None, "k"])
def test_what_is_not_usual_is_told(key: str | None) -> None:
    """Meta, kind, edited and deleted, before a key and without one."""
    event = encoded(key=key, meta_json=b'{"b":2}', kind="system", is_edited=True, is_deleted=True)
    told = json.loads(event.json)
    assert (told["meta"], told["kind"], told["edited"], told["deleted"]) == ({"b": 2}, "system", True, True)
    assert json.loads(event.json_for("ann")) == told | ({} if key is None else {"key": key})


def test_a_key_of_the_server_is_nobodys() -> None:
    """It is neither kept nor sent."""
    draft = Draft(room_id="general", event="message", sender="ann", key="$1", data_json=b"1")
    event = draft.record(id=1, seq=1, position=1, timestamp=1)
    assert event.key is None
    assert "key" not in json.loads(event.json_for("ann"))


@given(
    st.lists(
        st.tuples(st.sampled_from(["message", "note"]), st.sampled_from(["ann", "bob"]), st.none() | text)
    )
)
def test_a_page_is_encoded_as_its_events_are_one_by_one(given: list[tuple[str, str, str | None]]) -> None:
    """Whoever its events are from, and whoever it is for: a key goes to its publisher only."""
    events = [encoded(event=name, sender=sender, key=key) for name, sender, key in given]
    for user_id in ("ann", "cleo"):
        assert encoded_for(events, user_id) == [event.json_for(user_id) for event in events]
    assert encoded_for(events, None) == [event.json for event in events]
