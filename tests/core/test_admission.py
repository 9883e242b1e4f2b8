"""What may enter a room."""

from __future__ import annotations

import json
from datetime import date
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, ConfigDict, Field, field_serializer

from dialogue import MessageTooLarge, ValidationFailed, define_event
from dialogue.core import admission


class Post(BaseModel):
    text: str
    score: float = Field(default=0, description="any")


class Odd(BaseModel):
    text: str

    @field_serializer("text")
    def spoil(self, value: str) -> str:
        if value == "raise":
            raise ValueError("no")
        return value


post = define_event("post", schema=Post)
odd = define_event("odd", schema=Odd)
free = define_event("free")

json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text("abc\\u0", max_size=6), inner, max_size=4),
    max_leaves=12,
)  # fmt: skip


@given(json_values)
def test_plain_json_passes_unchanged(value: Any) -> None:
    """What is safe comes out as the same JSON value, by both doors."""
    raw = json.dumps(value).encode()
    assert json.loads(admission.encode_payload(free, raw, max_bytes=10_000, max_depth=64)) == value
    assert json.loads(admission.encode_value(free, value, max_bytes=10_000, max_depth=64)) == value


@pytest.mark.parametrize(
    "value",
    [
        float("nan"), float("inf"), -float("inf"), "\0", {"\0": 1}, ["\\\0"], "\ud800", object(), {1, 2}, b"x",
    ],
)  # fmt: skip
def test_unsafe_values_are_refused(value: Any) -> None:
    """NaN, infinity, U+0000, lone surrogates and what is no JSON."""
    with pytest.raises(ValidationFailed):
        admission.encode_json({"x": [value]}, max_depth=64)


def test_a_backslash_and_the_word_u0000_are_text() -> None:
    """Only the character itself is refused, not its spelling."""
    for text in ("\\u0000", "\\\\u0000", "x\\\\\\u0000"):
        assert json.loads(admission.encode_json(text, max_depth=64)) == text
    with pytest.raises(ValidationFailed):
        admission.encode_json("\\\0", max_depth=64)


def test_depth_is_bounded() -> None:
    """Exactly the limit passes; wide values are not mistaken for deep ones."""
    value: Any = 0
    for _ in range(5):
        value = [value]
    assert admission.encode_json(value, max_depth=5)
    with pytest.raises(ValidationFailed, match="levels deep"):
        admission.encode_json([value], max_depth=5)
    assert admission.encode_json([[]] * 50 + [{"a": 1}] * 50, max_depth=5)
    for _ in range(100_000):
        value = [value]
    with pytest.raises(ValidationFailed, match="deep"):
        admission.encode_json(value, max_depth=5)


def test_schemas_validate_and_coerce() -> None:
    """pydantic's coercion is what is stored; its errors come without the input."""
    raw = b'{"text":"a","score":"1.5","more":1}'
    assert json.loads(admission.encode_payload(post, raw, max_bytes=100, max_depth=9)) == {
        "text": "a",
        "score": 1.5,
    }
    assert (
        admission.encode_value(post, Post(text="b"), max_bytes=100, max_depth=9)
        == b'{"text":"b","score":0.0}'
    )
    with pytest.raises(ValidationFailed) as refused:
        admission.encode_payload(post, b'{"text":5}', max_bytes=100, max_depth=9)
    assert refused.value.details == [
        {"loc": ["text"], "msg": "Input should be a valid string", "type": "string_type"}
    ]
    with pytest.raises(ValidationFailed):
        admission.encode_value(post, {"score": 1}, max_bytes=100, max_depth=9)
    with pytest.raises(ValidationFailed, match="cannot be written"):
        admission.encode_value(odd, {"text": "raise"}, max_bytes=100, max_depth=9)


class Named(BaseModel):
    model_config = ConfigDict(ser_json_inf_nan="constants")
    score: float


class Deep(BaseModel):
    tree: Any


@pytest.mark.parametrize(
    ("schema", "value"),
    [
        (Post, {"text": "a", "score": "nan"}),
        (Post, {"text": "a", "score": "-inf"}),
        (Post, {"text": "a\0"}),
        (Post, Post.model_construct(text="\ud800")),
        (Named, {"score": "nan"}),
        (Named, {"score": "inf"}),
        (Deep, {"tree": [[[[0]]]]}),
        (dict[str, float], {"a": "nan"}),
    ],
)
def test_what_a_schema_makes_is_checked(schema: Any, value: Any) -> None:
    """A schema that lets NaN, infinity, U+0000, surrogates or endless nests through changes nothing, by both doors."""
    event_type = define_event("checked", schema=schema)
    with pytest.raises(ValidationFailed, match=r"NaN|0000|surrogate|deep"):
        admission.encode_value(event_type, value, max_bytes=1000, max_depth=4)
    if isinstance(value, dict):
        with pytest.raises(ValidationFailed, match=r"NaN|0000|surrogate|deep"):
            admission.encode_payload(event_type, json.dumps(value).encode(), max_bytes=1000, max_depth=4)


class Mixed(BaseModel):
    text: str
    score: float | None = None
    day: date = date(2024, 2, 29)
    more: dict[str, Any] = {}


@given(json_values, st.floats(allow_nan=False, allow_infinity=False) | st.none())
def test_pydantic_writes_what_it_dumps(more: Any, score: float | None) -> None:
    """The quick way gives the value that the careful one gives: also for null, and for text that looks unsafe."""
    event_type = define_event("mixed", schema=Mixed)
    raw = json.dumps({"text": "NaN null \\u0000 {[", "score": score, "more": {"x": more}}).encode()
    encoded = admission.encode_payload(event_type, raw, max_bytes=10_000, max_depth=64)
    assert json.loads(encoded) == Mixed.model_validate_json(raw).model_dump(mode="json")


def test_a_model_without_a_declared_schema_is_plain_data() -> None:
    """A type without schema takes a pydantic model as what it dumps to."""
    assert (
        admission.encode_value(free, Post(text="a"), max_bytes=100, max_depth=9)
        == b'{"text":"a","score":0.0}'
    )


def test_sizes_are_bounded_before_and_after() -> None:
    """The raw data, what validation made of it, and the meta."""
    with pytest.raises(MessageTooLarge):
        admission.encode_payload(free, b'"' + b"x" * 100 + b'"', max_bytes=50, max_depth=9)
    with pytest.raises(MessageTooLarge):
        admission.encode_value(free, "é" * 30, max_bytes=50, max_depth=9)
    with pytest.raises(MessageTooLarge):
        admission.encode_meta(b'{"a":"' + b"x" * 100 + b'"}', max_bytes=50, max_depth=9)


@pytest.mark.parametrize("raw", [b"1e999", b'"\xff"', b"[" * 100_000 + b"]" * 100_000])
def test_raw_json_that_cannot_be_read(raw: bytes) -> None:
    """Numbers out of range, bytes that are no text, endless nests."""
    with pytest.raises(ValidationFailed):
        admission.encode_payload(free, raw, max_bytes=10**6, max_depth=64)
    with pytest.raises(ValidationFailed):
        admission.encode_meta(raw, max_bytes=10**6, max_depth=64)


def test_meta_is_an_object() -> None:
    """And normalised like data."""
    assert admission.encode_meta(b' {"a" : 1} ', max_bytes=50, max_depth=9) == b'{"a":1}'
    with pytest.raises(ValidationFailed, match="object"):
        admission.encode_meta(b"[1]", max_bytes=50, max_depth=9)
