"""Who is typing: what is kept and for how long, and what is said of oneself."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dialogue.client.typing import OwnTyping, Typists, is_typing


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        ({"is_typing": True}, True),
        ({"is_typing": False}, False),
        ({"is_typing": None}, True),
        ({}, True),
        (None, True),
        ("is_typing", True),
        (False, True),
    ],
)
def test_only_a_plain_no_says_that_nobody_types(data: Any, expected: bool) -> None:
    """Any other data counts as typing."""
    assert is_typing(data) is expected


def test_an_entry_stays_for_some_seconds_after_the_last_event() -> None:
    """Another event makes it stay longer, and is no change."""
    typists = Typists(seconds=6)
    assert typists.heard("ann", None, 100.0)
    assert not typists.heard("ann", None, 104.0)
    assert typists.deadline == 110.0
    assert not typists.expire(109.9)
    assert list(typists.users) == ["ann"]
    assert typists.expire(110.0)
    assert list(typists.users) == []
    assert typists.deadline is None


def test_who_stops_is_not_typing_any_more() -> None:
    """By saying so, by sending, by leaving; the others stay in the order in which they began."""
    typists = Typists()
    for user in ("ann", "bob", "eve", "dan"):
        typists.heard(user, {"is_typing": True}, 0.0)
    assert typists.heard("bob", {"is_typing": False}, 1.0)
    assert typists.stopped(["eve", "nobody"])
    assert not typists.stopped(["eve"])
    assert typists.users == ("ann", "dan")
    assert typists.clear()
    assert not typists.clear()


def test_entries_are_bounded() -> None:
    """A room full of typists costs no more than so many; those that began first are left out."""
    typists = Typists(max_users=2)
    for number in range(4):
        assert typists.heard(f"u{number}", None, float(number))
    assert typists.users == ("u2", "u3")


def test_an_entry_that_would_never_be_is_a_mistake() -> None:
    """Neither 0 seconds nor NaN."""
    for seconds in (0.0, -1.0, float("nan")):
        with pytest.raises(ValueError, match="above 0"):
            Typists(seconds=seconds)


def test_own_typing_is_said_on_change_and_now_and_then() -> None:
    """Not at every stroke, and no second time that it is over."""
    own = OwnTyping(repeat_seconds=3)
    said = [own.should_say(True, now) for now in (0.0, 0.1, 2.9, 3.0, 5.9, 6.0)]
    assert said == [True, False, False, True, False, True]
    assert [own.should_say(False, now) for now in (6.1, 6.2)] == [True, False]
    assert own.should_say(True, 6.3)
    own.forget()
    assert not own.should_say(False, 6.4)
    assert own.should_say(True, 6.5)


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["typing", "not", "left", "nothing"]),
            st.sampled_from("abcd"),
            st.floats(0, 4, allow_nan=False),
        )
    )
)
def test_users_are_those_heard_of_in_time(steps: list[tuple[str, str, float]]) -> None:
    """Whatever happens: exactly those whose last word was that they type, not longer ago than the time."""
    typists, last, now = Typists(seconds=6), dict[str, float](), 0.0
    for what, user, later in steps:
        now += later
        before = typists.users
        has_changed = typists.expire(now)
        if what in ("typing", "not"):
            has_changed |= typists.heard(user, {"is_typing": what == "typing"}, now)
        elif what == "left":
            has_changed |= typists.stopped([user])
        last = {**last, user: now} if what == "typing" else last
        if what in ("not", "left"):
            last.pop(user, None)
        last = {one: at for one, at in last.items() if now < at + 6}
        assert set(typists.users) == set(last)
        if set(before) != set(typists.users):
            assert has_changed
