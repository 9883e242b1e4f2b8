"""A mistake in a declaration fails when declared, and names room, field and remedy."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, ValidationError

from dialogue import ConfigError, Dialogue, History, Hooks, Limits, RoomConfig, define_event
from dialogue.core.patterns import RoomPattern
from dialogue.room_types import RoomTypes


class Text(BaseModel):
    text: str


message = define_event("message", schema=Text, history=History(limit=10))
typing_event = define_event("typing")


def room(**fields: Any) -> Callable[[], Any]:
    return lambda: Dialogue({"general": RoomConfig(events=[message], **fields)})


MISTAKES: dict[str, tuple[Callable[[], Any], list[str]]] = {
    "a pattern that takes long not to match": (
        lambda: Dialogue({"x-{a}-{b}-{c}": RoomConfig()}),
        ["'x-{a}-{b}-{c}'", "no ':' between them"],
    ),
    "duplicate event": (
        lambda: Dialogue({"general": RoomConfig(events=[message, define_event("message")])}),
        ["room 'general'", "'events'", "'message'", "twice"],
    ),
    "limit below 1": (lambda: History(limit=0), ["'limit'", "0", "at least 1"]),
    "limit no number": (lambda: History(limit="many"), ["'limit'", "'many'"]),  # type: ignore[arg-type]
    "unknown subscription": (
        room(default_subscriptions=["mesage"]),
        ["room 'general'", "'default_subscriptions'", "'mesage'", "'message'"],
    ),
    "overlapping patterns": (
        lambda: Dialogue({"dm:{a}:{b}": RoomConfig(), "dm:{x}:{y}": RoomConfig()}),
        ["'dm:{x}:{y}'", "'dm:{a}:{b}'", "overlaps"],
    ),
    "unknown store": (lambda: Dialogue({}, store="mysql://x/y"), ["mysql"]),
    "no store": (lambda: Dialogue({}, store=5), ["'store'", "5"]),  # type: ignore[arg-type]
    "memory sqlite": (lambda: Dialogue({}, store="sqlite://"), ["store=None"]),
    "room id with a slash": (lambda: Dialogue({"a/b": RoomConfig()}), ["'a/b'", "'/'"]),
    "room id too long": (lambda: Dialogue({"x" * 256: RoomConfig()}), ["255"]),
    "pattern with a bad parameter": (lambda: Dialogue({"dm:{1}": RoomConfig()}), ["'{1}'"]),
    "pattern with a parameter twice": (lambda: Dialogue({"dm:{a}:{a}": RoomConfig()}), ["twice"]),
    "pattern with neighbours": (lambda: Dialogue({"dm:{a}{b}": RoomConfig()}), ["between"]),
    "pattern with a slash": (lambda: Dialogue({"dm/{a}": RoomConfig()}), ["contains no '/'"]),
    "pattern with an open brace": (lambda: Dialogue({"dm:{a": RoomConfig()}), ["braces"]),
    "not a RoomConfig": (lambda: Dialogue({"general": {"name": "x"}}), ["room 'general'", "RoomConfig"]),  # type: ignore[dict-item]
    "not a mapping": (lambda: Dialogue([RoomConfig()]), ["'rooms'", "mapping"]),  # type: ignore[arg-type]
    "not an event": (
        lambda: Dialogue({"general": RoomConfig(events=["message"])}),  # type: ignore[list-item]
        ["room 'general'", "'events'", "define_event"],
    ),
    "events as a word": (lambda: Dialogue({"general": RoomConfig(events="any")}), ["'events'", '"*"']),  # type: ignore[arg-type]
    "no size": (room(max_size=0), ["room 'general'", "'max_size'"]),
    "bad sync": (room(sync_history_on_join=-1), ["room 'general'", "'sync_history_on_join'"]),
    "event name of Dialogue's own": (lambda: define_event("$edit"), ["'$edit'", "Dialogue's own"]),
    "event name star": (lambda: define_event("*"), ["'*'"]),
    "event name with a control character": (lambda: define_event("a\nb"), ["control"]),
    "history no History": (lambda: define_event("x", history=5), ["'history'", "History(limit=100)"]),  # type: ignore[call-overload]
    "bad kind": (lambda: define_event("x", kind="alarm"), ["'kind'", "'alarm'"]),  # type: ignore[call-overload]
    "bad publish": (lambda: define_event("x", publish="all"), ["'publish'", "'all'"]),  # type: ignore[call-overload]
    "unread ephemeral": (lambda: define_event("x", counts_unread=True), ["'counts_unread'"]),
    "bad schema": (lambda: define_event("x", schema=object()), ["'schema'"]),
    "hook no function": (lambda: Hooks(on_joined=5), ["'on_joined'"]),  # type: ignore[arg-type]
    "hook with a strange parameter": (
        lambda: Dialogue({}, hooks=Hooks(on_joined=lambda clint: None)),
        ["'on_joined'", "'clint'", "client, context, room"],
    ),
    "guard of an unknown room": (lambda: Dialogue({}).before_join("nowhere"), ["'nowhere'"]),
    "origins as a word": (lambda: Dialogue({}, allowed_origins="https://x"), ["'allowed_origins'", "list"]),
    "archive that is none": (lambda: Dialogue({}, archive=5), ["'archive'", "Archive"]),  # type: ignore[arg-type]
}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes_name_room_field_and_remedy(name: str) -> None:
    """Each mistake raises when declared, with words that help."""
    declare, words = MISTAKES[name]
    with pytest.raises(ConfigError) as raised:
        declare()
    for word in words:
        assert word in str(raised.value), str(raised.value)
    assert raised.value.remedy


def test_unknown_limits_are_refused() -> None:
    """A misspelt limit is no limit."""
    with pytest.raises(ValidationError):
        Limits(page_event=5)  # type: ignore[call-arg]
    with pytest.raises(ValidationError):
        Limits(page_events=0)
    assert Limits.unlimited().page_events > 10**12


def test_two_hooks_where_one_answers() -> None:
    """Of `authenticate` there can be only one."""
    dialogue = Dialogue({}, hooks=Hooks(authenticate=lambda auth: None))
    with pytest.raises(ConfigError, match="one already"):
        dialogue.authenticate(lambda request: None)


def test_an_exact_name_beats_a_pattern() -> None:
    """`dm:system:all` may be declared beside `dm:{a}:{b}`."""
    types = RoomTypes({"dm:{a}:{b}": RoomConfig(name="pattern"), "dm:system:all": RoomConfig(name="exact")})
    exact = types.find("dm:system:all")
    other = types.find("dm:ann:bob")
    assert exact is not None
    assert other is not None
    assert (exact[0].config.name, exact[1]) == ("exact", {})
    assert (other[0].config.name, other[1]) == ("pattern", {"a": "ann", "b": "bob"})
    for room_id in ("dm:ann", "dm:ann:bob:eve", "dm::bob", "dm:a/b:c", "dm:" + "x" * 129 + ":b"):
        assert types.find(room_id) is None


def test_events_of_a_room() -> None:
    """`"*"` admits any well-formed name, a list only its own."""
    any_room, own_room = RoomTypes(
        {"a": RoomConfig(events="*"), "b": RoomConfig(events=[message])}
    ).exact.values()
    assert any_room.event_type("whatever") is not None
    assert any_room.event_type("$unknown") is None
    change = any_room.event_type("$edit")
    assert change is not None
    assert change.publish == "server"
    assert own_room.event_type("message") is message
    assert own_room.event_type("whatever") is None


def test_sync_counts() -> None:
    """True is all that memory holds, False nothing."""
    for sync, expected in ((True, 10), (False, 0), (7, 7)):
        types = RoomTypes({"a": RoomConfig(events=[message], sync_history_on_join=sync)})
        assert types.exact["a"].sync_events(message) == expected


names = st.text("ab:-", min_size=1, max_size=3)
templates = st.lists(st.one_of(names, st.just(None)), min_size=1, max_size=4).map(
    lambda parts: "".join(f"{{p{n}}}" if part is None else part for n, part in enumerate(parts))
)


@given(templates, templates, st.text("ab:-x", min_size=1, max_size=7))
def test_patterns_that_share_a_room_overlap(one: str, two: str, room_id: str) -> None:
    """Whatever two patterns both match makes them overlap; overlap is symmetric."""
    try:
        first, second = RoomPattern(one), RoomPattern(two)
    except ValueError:
        return
    assert first.overlaps(second) == second.overlaps(first)
    if first.match(room_id) is not None and second.match(room_id) is not None:
        assert first.overlaps(second)
