"""Rubbish in: a coded error to its sender; the connection and the room go on, and the log has no traceback."""

from __future__ import annotations

import asyncio
import json
import logging
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, Field

from dialogue import Dialogue, History, Limits, RoomConfig, define_event
from dialogue.errors import COMMAND_ERRORS
from dialogue.protocol import BadCommand, decode_frame

from .harness import Refused, rooms, serve, wire


class Post(BaseModel):
    text: str = Field(min_length=1, max_length=10)
    score: float = 0


post = define_event("post", schema=Post, history=History(limit=5))
free = define_event("free", history=History(limit=5))


def trigger(data: str, event: str = "free", **fields: Any) -> str:
    """Return a trigger frame with *data* as raw JSON text."""
    head = json.dumps({"type": "trigger", "room": "r", "event": event, "ref": 99, **fields})
    return head[:-1] + ',"data":' + data + "}"


FRAMES = {
    "not JSON": ("hello", "INVALID_REQUEST"),
    "empty": ("", "INVALID_REQUEST"),
    "half an object": ('{"type":', "INVALID_REQUEST"),
    "a number": ("5", "INVALID_REQUEST"),
    "no type": ('{"ref":1}', "INVALID_REQUEST"),
    "unknown command": ('{"type":"explode","ref":1}', "INVALID_REQUEST"),
    "missing field": ('{"type":"join","ref":1}', "INVALID_REQUEST"),
    "wrong type": ('{"type":"join","room":5,"ref":1}', "INVALID_REQUEST"),
    "ref of a wrong type": ('{"type":"join","room":"r","ref":{}}', "INVALID_REQUEST"),
    "ref too long": (json.dumps({"type": "rooms", "ref": "x" * 200}), "INVALID_REQUEST"),
    "deep nest": ("[" * 100_000, "INVALID_REQUEST"),
    "deep data": (trigger("[" * 50_000 + "]" * 50_000), "INVALID_REQUEST"),
    "data deeper than the limit": (trigger("[" * 70 + "]" * 70), "VALIDATION_FAILED"),
    "NUL in data": (trigger('{"a":"x\\u0000y"}'), "VALIDATION_FAILED"),
    "NUL in a name in data": (trigger('{"x\\u0000y":1}'), "VALIDATION_FAILED"),
    "NUL in a schema's text": (trigger('{"text":"a\\u0000"}', "post"), "VALIDATION_FAILED"),
    "lone surrogate": (trigger('"\\ud800"'), "INVALID_REQUEST"),
    "lone surrogate in a room": ('{"type":"join","room":"\\udfff","ref":1}', "INVALID_REQUEST"),
    "NaN": (trigger("NaN"), "INVALID_REQUEST"),
    "infinity": (trigger("1e999"), "VALIDATION_FAILED"),
    "infinity by a schema": (trigger('{"text":"a","score":"inf"}', "post"), "VALIDATION_FAILED"),
    "infinity as a number in a schema": (trigger('{"text":"a","score":1e999}', "post"), "VALIDATION_FAILED"),
    "an integer of 5000 digits": (trigger("1" * 5000), "VALIDATION_FAILED"),
    "refused by the schema": (trigger('{"text":""}', "post"), "VALIDATION_FAILED"),
    "not the schema's shape": (trigger("[]", "post"), "VALIDATION_FAILED"),
    "unknown room": ('{"type":"join","room":"nowhere","ref":1}', "ROOM_NOT_FOUND"),
    "unknown event": (trigger("1", "nope"), "EVENT_NOT_ALLOWED"),
    "forged token": ('{"type":"history","room":"r","cursor":"AAAA","ref":1}', "INVALID_REQUEST"),
    "huge seq": ('{"type":"history","room":"r","before":99999999999999999999,"ref":1}', "INVALID_REQUEST"),
    "key too long": (trigger("1", key="k" * 200), "INVALID_REQUEST"),
    "key of the server's": (trigger("1", key="$k"), "INVALID_REQUEST"),
    "empty key": (trigger("1", key=""), "INVALID_REQUEST"),
    "meta that is no object": (trigger("1", meta=[1]), "VALIDATION_FAILED"),
    "meta too large": (trigger("1", meta={"a": "x" * 5000}), "MESSAGE_TOO_LARGE"),
    "data too large": (trigger(json.dumps("x" * 70_000)), "MESSAGE_TOO_LARGE"),
}


@pytest.mark.parametrize("name", FRAMES)
async def test_bad_frames_are_answered_and_harm_nothing(name: str, caplog: pytest.LogCaptureFixture) -> None:
    """Each bad frame gets its code; before and after it everything works, for its sender and for others."""
    frame, code = FRAMES[name]
    dialogue = Dialogue({"r": RoomConfig(events=[post, free])})
    with caplog.at_level(logging.INFO):
        async with serve(dialogue) as address, wire(address, "a") as a, wire(address, "b") as b:
            for client in (a, b):
                await client.ask("join", room="r")
            await a.send_raw(frame)
            error = await a.until(lambda: next((m for m in a.messages if m["type"] == "error"), None))
            assert error["code"] == code
            assert error["code"] in COMMAND_ERRORS
            await a.trigger("r", "free", "still here")
            assert [e["data"] for e in await b.until_events(1)] == ["still here"]
            assert [e["seq"] for e in b.events()] == [1], "nothing of the bad frame was recorded"
    assert "Traceback" not in caplog.text
    assert not [record for record in caplog.records if record.exc_info]


async def test_a_frame_too_big_closes_with_1009() -> None:
    """Above `frame_bytes` the transport gives up; before `connected` far earlier."""
    async with serve(Dialogue(rooms(), limits=Limits(frame_bytes=100_000))) as address:
        async with wire(address, "a") as client:
            await client.send_raw("x" * 100_001)
            assert await client.until_closed() == 1009
        async with wire(address, None) as client:
            await client.send_raw(json.dumps({"type": "connect", "auth": {"x": "y" * 5000}}))
            assert await client.until_closed() == 1009


async def test_binary_frames_are_not_this_protocol() -> None:
    """A binary frame closes with 4002."""
    async with serve(Dialogue(rooms())) as address, wire(address) as client:
        await client.send_raw(b"\x00\x01")
        assert await client.until_closed() == 4002


async def test_too_many_errors_close_with_4009() -> None:
    """One bad command never closes a connection; a flood of them does."""
    dialogue = Dialogue(rooms(), limits=Limits(errors_per_minute=20))
    async with serve(dialogue) as address, wire(address) as client:
        for _ in range(30):
            try:
                await client.send_raw("rubbish")
            except Exception:
                break
        assert await client.until_closed() == 4009
        assert dialogue.metrics.registry.get_sample_value("dialogue_closes_total", {"code": "4009"}) == 1


async def test_one_bad_command_in_an_array_harms_no_other() -> None:
    """The good commands around a bad one take effect, in order."""
    async with serve(Dialogue(rooms())) as address, wire(address) as client:
        frame = [
            {"type": "join", "room": "general", "ref": "j"},
            {"type": "nope", "ref": "x"},
            {"type": "trigger", "room": "general", "event": "message", "data": 1, "ref": "t"},
        ]
        await client.send_raw(json.dumps(frame))
        await client.answer("j")
        with pytest.raises(Refused, match="INVALID_REQUEST"):
            await client.answer("x")
        assert (await client.answer("t"))["seq"] == 1


async def test_a_hook_cannot_break_the_frame_that_carries_others() -> None:
    """What `before_each` makes is checked again: infinity and NUL are refused after it too."""
    dialogue = Dialogue({"r": RoomConfig(events=[free])})

    @dialogue.before_each
    def spoil(event: Any) -> Any:
        if event.data == "inf":
            return event.replace(data=float("inf"))
        if event.data == "nul":
            return event.replace(data="\0")
        return event.replace(data={"was": event.data})

    async with serve(dialogue) as address, wire(address) as client:
        await client.ask("join", room="r")
        for bad in ("inf", "nul"):
            with pytest.raises(Refused, match="VALIDATION_FAILED"):
                await client.trigger("r", "free", bad)
        await client.trigger("r", "free", "fine")
        assert (await client.until_events(1))[0]["data"] == {"was": "fine"}


async def test_validation_details_do_not_echo_the_input() -> None:
    """pydantic's details come along, without the refused input."""
    dialogue = Dialogue({"r": RoomConfig(events=[post])})
    async with serve(dialogue) as address, wire(address) as client:
        await client.ask("join", room="r")
        with pytest.raises(Refused) as refused:
            await client.trigger("r", "post", {"text": "secret-and-too-long"})
        assert refused.value.message["details"][0]["loc"] == ["text"]
        assert "secret" not in json.dumps(refused.value.message)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=6), inner, max_size=4),
    max_leaves=12,
)
FIELDS = ("ref", "room", "event", "events", "data", "meta", "key", "since", "limit", "cursor", "before")
TYPES = ("connect", "join", "leave", "subscribe", "trigger", "history", "rooms", "pong", "x")
commands = st.fixed_dictionaries(
    {"type": st.sampled_from(TYPES)}, optional=dict.fromkeys(FIELDS, json_values)
)


@settings(max_examples=300, deadline=None)
@given(
    st.one_of(
        st.binary(max_size=200), st.text(max_size=200).map(lambda t: t.encode("utf-8", "surrogatepass"))
    )
)
def test_no_bytes_raise_from_the_parser(frame: bytes) -> None:
    """Any bytes give commands or coded errors."""
    for item in decode_frame(frame, max_commands=10):
        assert not isinstance(item, BadCommand) or item.error.code in COMMAND_ERRORS


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(commands, min_size=1, max_size=20))
def test_no_commands_bring_a_session_down(batch: list[dict[str, Any]]) -> None:
    """Any mixture of commands leaves a connection that still answers, and logs no traceback."""

    async def play() -> None:
        dialogue = Dialogue(rooms(), limits=Limits(errors_per_minute=1000))
        records: list[logging.LogRecord] = []
        handler = logging.Handler()
        handler.emit = records.append  # type: ignore[assignment]
        dialogue.logger.addHandler(handler)
        try:
            async with serve(dialogue) as address, wire(address) as client:
                await client.send_raw(json.dumps(batch, ensure_ascii=True))
                assert (await client.ask("rooms"))["type"] == "rooms"
        finally:
            dialogue.logger.removeHandler(handler)
        assert not [record for record in records if record.exc_info]

    asyncio.run(play())
