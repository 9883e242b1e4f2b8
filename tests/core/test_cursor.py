"""Tokens: opaque, checked, and of one epoch."""

from __future__ import annotations

import base64

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dialogue import InvalidRequest
from dialogue.core import cursor
from dialogue.core.cursor import MAX_SEQ, Bound

bounds = st.builds(Bound, st.integers(0, MAX_SEQ), st.none() | st.integers(-MAX_SEQ, MAX_SEQ))


@given(st.dictionaries(st.text(min_size=1, max_size=5), bounds, min_size=1, max_size=6))
def test_older_tokens_round_trip(streams: dict[str, Bound]) -> None:
    """Every stream gets its own bound back."""
    token = cursor.encode_older("e1", streams)
    decoded = cursor.decode(token, epoch="e1", event_names=streams)
    assert decoded.is_older
    assert {name: decoded.bound(name) for name in streams} == streams


def test_a_converged_token_names_no_stream() -> None:
    """Streams that go on at the same seq share the general bound, new names too."""
    decoded = cursor.decode(
        cursor.encode_older("e", {"a": Bound(5), "b": Bound(5)}), epoch="e", event_names=["a", "b", "c"]
    )
    assert decoded.streams == {}
    assert decoded.bound("c") == Bound(5)


@given(st.integers(0, MAX_SEQ))
def test_newer_tokens_round_trip(after: int) -> None:
    """A newer token is one number."""
    assert cursor.decode(cursor.encode_newer("e", after), epoch="e", event_names=[]) == (False, after, {})


def token(*values: object) -> str:
    return base64.urlsafe_b64encode(msgspec.msgpack.encode(values)).rstrip(b"=").decode()


@pytest.mark.parametrize(
    "text",
    [
        "",
        "!!!",
        "AAAA",
        "é",
        token(2, "e", True, 5, []),
        token(1, "other", True, 5, []),
        token(1, "e", True, -1, []),
        token(1, "e", True, MAX_SEQ + 2, []),
        token(1, "e", True, 5, [[cursor.name_hash("a"), -1, None]]),
        token(1, "e", True, 5, [[cursor.name_hash("a"), 5, MAX_SEQ + 1]]),
        token(1, "e", True, 5, [[cursor.name_hash("a"), 5, -MAX_SEQ - 1]]),
        token(1, "e", False, 5, [[cursor.name_hash("a"), 5, None]]),
        token(1, "e", True, "5", []),
        token(1, "e", True, 5),
    ],
)
def test_forged_tokens_are_refused(text: str) -> None:
    """Rubbish, a foreign epoch, and numbers out of bounds."""
    with pytest.raises(InvalidRequest):
        cursor.decode(text, epoch="e", event_names=["a"])


@given(st.text(max_size=60) | st.binary(max_size=60).map(lambda raw: base64.urlsafe_b64encode(raw).decode()))
def test_no_text_raises_anything_else(text: str) -> None:
    """Whatever a client sends as a cursor is a token or an InvalidRequest."""
    try:
        cursor.decode(text, epoch="e", event_names=["a"])
    except InvalidRequest:
        return


def test_foreign_streams_in_a_token_are_ignored() -> None:
    """A token of one event type does not steer the read of another."""
    decoded = cursor.decode(
        cursor.encode_older("e", {"a": Bound(5, 3), "b": Bound(9)}), epoch="e", event_names=["c"]
    )
    assert decoded.streams == {}
