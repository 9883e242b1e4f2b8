"""Values that are JSON and still no good: deep, huge, twice, of the wrong kind, or named like something else."""

from __future__ import annotations

import json
from typing import Any

import pytest

from dialogue import Dialogue, Limits, RoomConfig, define_event
from dialogue.errors import COMMAND_ERRORS
from tests.rates import UNRATED

from ..server.harness import Refused, rooms, wire
from .raw import raw
from .target import attacked, code_of

DEEP = 20_000

NUMBERS: tuple[str, ...] = (
    "1e999",
    "-0",
    "-0.0",
    "1e2",
    "1.0",
    "1.5",
    "-1",
    str(2**53),
    str(2**63),
    str(-(2**63) - 1),
    str(2**64),
)
NUMBERS += ("9" * 400, "9" * 4300, "9" * 5000)
OTHERS = (
    "true",
    "false",
    "null",
    "{}",
    "[]",
    '""',
    '"1"',
    '"\\u0000"',
    '"\\u202e\\u001b[31m"',
    '"__proto__"',
)

FIELDS: dict[str, tuple[str, ...]] = {
    "connect": ("ref", "auth"),
    "join": ("ref", "room", "since", "sync", "events"),
    "subscribe": ("ref", "room", "events"),
    "trigger": ("ref", "room", "event", "data", "meta", "key"),
    "edit": ("ref", "room", "seq", "data", "key"),
    "delete": ("ref", "room", "seq", "key"),
    "history": (
        *(
            "ref",
            "room",
            "event",
            "kind",
            "before",
            "after",
            "around",
            "epoch",
            "cursor",
            "start",
            "end",
            "limit",
        ),
    ),
    "create_room": ("ref", "room", "name", "description", "max_size"),
    "delete_room": ("ref", "room"),
    "presence": ("ref", "room"),
}
GOOD: dict[str, Any] = {"ref": 1, "room": "general", "event": "message", "seq": 1, "name": "x", "events": "*"}


def command(type: str, field: str, value: str) -> str:
    """Return a command with a raw JSON *value* for one field and good ones for what else it needs."""
    good = {name: GOOD[name] for name in FIELDS[type] if name in GOOD and name != field}
    return json.dumps({"type": type, **good})[:-1] + f',"{field}":{value}}}'


@pytest.mark.parametrize("type", FIELDS)
async def test_any_value_in_any_field_is_answered(type: str) -> None:
    """Each command is answered by one message or one coded error, never `INTERNAL`; the connection goes on."""
    dialogue = Dialogue(
        rooms(),
        client_rooms=RoomConfig(events="*"),
        limits=Limits(**UNRATED),
    )
    values = [
        *NUMBERS,
        *OTHERS,
        "[" * 50 + "]" * 50,
        '{"a":' * 50 + "1" + "}" * 50,
        '{"seq":1e999,"epoch":"x"}',
    ]
    async with attacked(dialogue) as address, wire(address, "mallory") as mallory:
        await mallory.ask("join", room="general")
        await mallory.trigger("general", "message", "first")
        for field in FIELDS[type]:
            for value in values:
                await mallory.send_raw(command(type, field, value))
            await mallory.ask("rooms")
            await mallory.ask("join", room="general")
        codes = {m["code"] for m in mallory.messages if m["type"] == "error"}
        assert codes <= set(COMMAND_ERRORS) - {"INTERNAL", "STORE_UNAVAILABLE", "RATE_LIMITED"}
        for m in mallory.messages:
            if m["type"] == "error":
                assert len(m["message"]) < 150
                assert "9" * 30 not in json.dumps(m)


@pytest.mark.parametrize(
    ("type", "field"),
    [
        *(
            ("connect", "auth"),
            ("trigger", "data"),
            ("trigger", "meta"),
            ("join", "events"),
            ("join", "since"),
        ),
        *(("trigger", "ref"), ("trigger", "room"), ("history", "cursor"), ("rooms", "whatever")),
    ],
)
@pytest.mark.parametrize("shape", ["arrays", "objects", "unclosed arrays", "unclosed objects"])
async def test_nesting_without_end_is_one_error(type: str, field: str, shape: str) -> None:
    """However deep, in whichever field, known or not."""
    values = {
        "arrays": "[" * DEEP + "]" * DEEP,
        "objects": '{"a":' * DEEP + "1" + "}" * DEEP,
        "unclosed arrays": "[" * DEEP,
        "unclosed objects": '{"a":' * DEEP,
    }
    async with attacked(Dialogue(rooms())) as address, wire(address, "mallory") as mallory:
        await mallory.ask("join", room="general")
        good = {"type": type, "room": "general", "event": "message"}
        good.pop(field, None)
        await mallory.send_raw(json.dumps(good)[:-1] + f',"{field}":{values[shape]}}}')
        error = await mallory.until(lambda: next((m for m in mallory.messages if m["type"] == "error"), None))
        assert error["code"] in ("INVALID_REQUEST", "VALIDATION_FAILED")
        await mallory.trigger("general", "message", "still here")


async def test_arrays_of_arrays_are_no_commands() -> None:
    """An array is a frame of commands once, and not again inside."""
    async with attacked(Dialogue(rooms())) as address, wire(address, "mallory") as mallory:
        await mallory.send_raw('[[{"type":"rooms","ref":1}],[],[[[]]],{"type":"rooms","ref":"good"}]')
        assert (await mallory.answer("good"))["type"] == "rooms"
        assert [m["code"] for m in mallory.messages if m["type"] == "error"] == ["INVALID_REQUEST"] * 3


@pytest.mark.parametrize("bad", ["ref of a good command", "ref of a bad command"])
async def test_a_long_ref_is_not_repeated(bad: str) -> None:
    """Neither that of a command nor that of something which is none; a number of thousands of digits neither."""
    async with attacked(Dialogue(rooms())) as address, raw(address) as mallory:
        for ref in (json.dumps("r" * 100_000), "9" * 4000):
            type = "rooms" if bad == "ref of a good command" else "explode"
            await mallory.text(f'{{"type":"{type}","ref":{ref}}}')
            found = await mallory.read_frame()
            assert found is not None
            assert b'"INVALID_REQUEST"' in found[1]
            assert len(found[1]) < 200


async def test_the_last_of_two_equal_keys_counts_everywhere() -> None:
    """A field that is given twice means one thing, so that no two readers of a payload see different ones."""
    async with (
        attacked(Dialogue(rooms())) as address,
        wire(address, "ann") as ann,
        wire(address, "mallory") as mallory,
    ):
        await ann.ask("join", room="general")
        await mallory.ask("join", room="general")
        await mallory.send_raw(
            '{"type":"join","type":"trigger","ref":1,"ref":"two","room":"other","room":"general",'
            '"event":"note","event":"message","data":1,"data":{"a":1,"a":2},"meta":{"b":1,"b":2}}'
        )
        # But for the type: which fields there are depends on it, so that a second one is a contradiction.
        error = await mallory.until(lambda: next((m for m in mallory.messages if m["type"] == "error"), None))
        assert error["code"] == "INVALID_REQUEST"
        await mallory.send_raw(
            '{"type":"trigger","ref":1,"ref":"three","room":"other","room":"general",'
            '"event":"note","event":"message","data":1,"data":{"a":1,"a":2},"meta":{"b":1,"b":2}}'
        )
        await mallory.answer("three")
        (event,) = await ann.until_events(1)
        assert (event["event"], event["data"], event["meta"]) == ("message", {"a": 2}, {"b": 2})


NAMES = [
    "__proto__",
    "constructor",
    "toString",
    "hasOwnProperty",
    "__class__",
    "__dict__",
    "event",
    "*",
    "$edit",
]
NAMES += [
    "$delete",
    "$",
    "",
    " ",
    "a\u0000b",
    "a\nb",
    "\u001b[31m",
    "\u0085",
    "\u202egnp",
    "x" * 101,
    "é\u0301",
    "💥",
]


@pytest.mark.parametrize(
    "name", NAMES, ids=lambda name: name.encode("unicode_escape").decode()[:20] or "empty"
)
async def test_odd_names_are_names_or_refused(name: str) -> None:
    """As room, event, key, field of data and meta: what is let in comes out the same for others, and breaks nothing."""
    anything = RoomConfig(events="*")
    dialogue = Dialogue(rooms() | {"any": anything, "p-{x}": anything}, client_rooms=anything)
    async with (
        attacked(dialogue) as address,
        wire(address, "ann") as ann,
        wire(address, "mallory") as mallory,
    ):
        for client in (ann, mallory):
            await client.ask("join", room="any")
        got: list[Any] = []

        async def tried(asking: Any) -> bool:
            try:
                await asking
            except Refused as refused:
                code = refused.code
            else:
                return True
            assert code in set(COMMAND_ERRORS) - {"INTERNAL", "STORE_UNAVAILABLE"}
            return False

        if await tried(mallory.trigger("any", name, "as an event")):
            got.append((name, "as an event", None))
        if await tried(mallory.trigger("any", "x", {name: name})):
            got.append(("x", {name: name}, None))
        if await tried(mallory.trigger("any", "x", "with meta", meta={name: name})):
            got.append(("x", "with meta", {name: name}))
        await tried(mallory.trigger("any", "x", "with a key", key=name))
        events = await ann.until_events(len(got))
        assert [(e["event"], e["data"], e.get("meta")) for e in events[: len(got)]] == got
        if await tried(mallory.ask("join", room=f"p-{name}")):
            await mallory.trigger(f"p-{name}", "x", "in a room")
        if await tried(mallory.ask("create_room", room=name, name="x", description=name)):
            await mallory.ask("join", room=name)
            await mallory.trigger(name, "x", "in a made room")
            records = (await ann.ask("rooms"))["rooms"]
            assert name in {record["id"] for record in records}
        await tried(mallory.ask("create_room", room="named", name=name))
        await tried(mallory.ask("subscribe", room="any", events=[name]))
        await tried(mallory.ask("history", room="any", event=name))
        await tried(mallory.ask("history", room="any", kind=name))
        await tried(mallory.ask("connect", auth={"user_id": "mallory", name: name}))


async def test_changes_are_not_triggered_by_their_name() -> None:
    """`$edit` and `$delete` as events of a client would change what is not its own; they are refused everywhere."""
    declared = define_event("x")
    dialogue = Dialogue(rooms() | {"any": RoomConfig(events="*"), "none": RoomConfig(events=[declared])})
    async with attacked(dialogue) as address, wire(address, "mallory") as mallory:
        for room in ("general", "any", "none"):
            await mallory.ask("join", room=room)
            for name in ("$edit", "$delete", "$anything"):
                data = {"seq": 1, "event": "message", "data": "forged"}
                assert await code_of(mallory.trigger(room, name, data)) == "EVENT_NOT_ALLOWED"


async def test_a_huge_list_of_names_is_refused() -> None:
    """Subscribing to, or joining with, more names than a room may have costs one error."""
    names = [f"event{number}" for number in range(50_000)]
    dialogue = Dialogue(rooms() | {"any": RoomConfig(events="*")})
    async with attacked(dialogue) as address, wire(address, "mallory") as mallory:
        assert await code_of(mallory.ask("join", room="any", events=names)) == "INVALID_REQUEST"
        await mallory.ask("join", room="any")
        for type in ("subscribe", "unsubscribe"):
            assert await code_of(mallory.ask(type, room="any", events=names)) == "INVALID_REQUEST"
        # In parts, too.
        parts = [names[start : start + 50] for start in range(0, 500, 50)]
        for part in parts[:2]:
            await mallory.ask("unsubscribe", room="any", events=part)
        codes = {await code_of(mallory.ask("unsubscribe", room="any", events=part)) for part in parts[2:]}
        assert codes == {"INVALID_REQUEST"}
        (group,) = dialogue.hub().rooms["any"]._groups
        assert len(group.names) <= 100
