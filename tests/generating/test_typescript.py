"""The generated types, as text; tests/typescript has the compiler's opinion."""

from __future__ import annotations

import re
import subprocess
import sys
from typing import Any

import pytest
from pydantic import BaseModel, Field

from dialogue import Dialogue, History, RoomConfig, define_event
from dialogue.generating.schemas import collect
from dialogue.generating.typescript import typescript

from . import rich


def generated(dialogue: Dialogue) -> str:
    """Return the file for *dialogue*."""
    return typescript(dialogue.room_types, target="chat:dialogue")


def fields(text: str, name: str) -> dict[str, str]:
    """Return the fields of an interface with their types; a name ends in ``?`` where it may be left out."""
    found = re.search(rf"^export interface {name} \{{\n(.*?)^\}}", text, re.MULTILINE | re.DOTALL)
    assert found is not None, name
    return dict(re.findall(r'^  ("(?:[^"\\]|\\.)*"\??|[\w$?]+|\[\w+: \w+\]): (.*);$', found[1], re.MULTILINE))


def test_every_kind_of_field() -> None:
    """What pydantic writes is what TypeScript is told, word for word."""
    text = generated(rich.dialogue)
    assert fields(text, "Rich") == {
        "text": "string", "count": "number", "ratio": "number", "exact": "string", "flag": "boolean",
        "nothing": "null", "anything": "unknown", "maybe": "string | null", "moment": "string", "day": "string",
        "span": "number", "id": "string", "raw": "string", "color": "Color", "priority": "Priority",
        "choice": '"a" | "b" | 3 | true | null', "only": '"x"', "union": "number | string | number[]",
        "animal": "Cat | Dog", "animals": "(Cat | Dog)[]", "people": "Person[]", "pair": "[number, string]",
        "many": "number[]", "point": "Point", "by_name": "{ [key: string]: Person; }",
        "by_color": "{ [key in Color]?: number }", "by_word": '{ [key in "one" | "two"]?: number }',
        "nested": "{ [key: string]: ([number, string | null])[]; }", "tree": "Tree", "box": "Box_int",
        "boxes": "Box_Person[]", "options": "Options", "vector": "Vector", "more": "Open", "closed": "Closed",
        "aliased": "Aliased", "both": "Both", "parsed": "number[]", "function": "Function", "other": "Undefined",
        "old": "string", "length": "number",
    }  # fmt: skip
    assert 'export type Color = "red" | "blue";' in text
    assert "export type Priority = 1 | 2;" in text
    assert "export type Tree = { [key: string]: Tree; };" in text
    assert fields(text, "Open") == {"known": "number", "[key: string]": "unknown"}
    assert fields(text, "Options") == {"size": "number", "note?": "string"}
    assert " * Who it is.\n *\n * More than one line.\n" in text
    assert "  /** What is said; *\\/ ends no comment. */\n" in text
    assert "  /** @deprecated */\n  old: string;" in text


def test_what_is_sent_may_lack_defaults_and_have_other_names() -> None:
    """Two types where the two sides differ, one where they agree; a union's tag is always sent."""
    text = generated(rich.dialogue)
    assert fields(text, "Message") == {"text": "string", "reply_to": "number | null"}
    assert fields(text, "MessageInput") == {"text": "string", "reply_to?": "number | null"}
    assert fields(text, "Aliased") == {"user_name": "string"}
    assert fields(text, "AliasedInput") == {"userName": "string"}
    assert fields(text, "Both") == {'"first-name"': "string"}
    assert fields(text, "Cat") == {"kind": '"cat"', "lives": "number"}
    assert fields(text, "DogInput") == {"kind": '"dog"', "owner": "PersonInput"}
    assert "BothInput" not in text
    assert "CatInput" not in text
    sent = fields(text, "RichInput")
    assert "length" not in sent
    assert (sent["exact"], sent["span"], sent["parsed"]) == ("number | string", "string", "string")
    assert {name for name in sent if name.endswith("?")} == {"count?", "nothing?", "old?"}


def test_the_types_are_what_pydantic_does() -> None:
    """The two names and the default, over the adapter that a publish uses."""
    adapter = rich.message.adapter
    assert adapter is not None
    assert adapter.dump_python(adapter.validate_python({"text": "x"}), mode="json") == {
        "text": "x",
        "reply_to": None,
    }
    aliased = rich.Aliased.model_validate({"userName": "ann"})
    assert aliased.model_dump(mode="json") == {"user_name": "ann"}
    assert rich.Both.model_validate({"first-name": "ann"}).model_dump(mode="json") == {"first-name": "ann"}


def test_events_by_name() -> None:
    """Server-only events are not sent, names that are no identifiers are quoted, and alike ones make a union."""
    text = generated(rich.dialogue)
    received, sent = fields(text, "Events"), fields(text, "SentEvents")
    assert received["message"] == "Message | Notice"
    assert received['"an animal: \\"it\'s\\""'] == "Cat | Dog"
    assert (received["typing"], received["number"], received["numbers"]) == ("unknown", "number", "number[]")
    assert (received["maybe"], received['"$edit"'], received['"$delete"']) == (
        "Message | null", "EditData", "DeleteData",
    )  # fmt: skip
    assert set(received) - set(sent) == {"notice", '"$edit"', '"$delete"'}
    assert "  /** All at once. */\n  rich: Rich;" in text


def test_rooms_of_different_events() -> None:
    """A chain, in which an exact id comes before a pattern; none where all rooms are alike."""
    text = generated(rich.dialogue)
    lines = re.findall(r"^  Id extends (\S+) \? (.*) :$", text, re.MULTILINE)
    changes = '"$edit": EditData; "$delete": DeleteData;'
    assert [room for room, _ in lines] == [
        '"general"', '"notes:all"', "`dm:${string}:${string}`", "`notes:${string}`",
    ]  # fmt: skip
    assert lines[1][1] == f"{{ message: Message; {changes} }}"
    assert lines[3][1] == "{ message: Notice; }"
    one = Dialogue(rooms={"a": RoomConfig(events=[rich.message]), "b:{x}": RoomConfig(events=[rich.message])})
    assert "RoomEvents" not in generated(one)


def test_odd_room_names() -> None:
    """What means something in a template literal means nothing here."""
    dialogue = Dialogue(
        rooms={
            'a"b': RoomConfig(events=[rich.typing]),
            "x`\\$:{y}": RoomConfig(events=[]),
            "any": RoomConfig(events="*"),
        }
    )
    text = generated(dialogue)
    assert '  Id extends "a\\"b" ? { typing: unknown; } :' in text
    assert "  Id extends `x\\`\\\\$:${string}` ? {} :" in text
    assert '  Id extends "any" ? { [event: string]: unknown; } :' in text
    assert fields(text, "Events")["[event: string]"] == "unknown"
    assert fields(text, "SentEvents") == {"typing": "unknown", "[event: string]": "unknown"}


def test_models_of_one_name() -> None:
    """Both are told, under two names; so is one that has a name of the file's own."""

    def model(**kinds: type) -> type[BaseModel]:
        return type("Message", (BaseModel,), {"__annotations__": kinds, "__qualname__": "Message"})

    class Events(BaseModel):
        x: int

    first, second = model(a=int), model(b=str)
    dialogue = Dialogue(
        rooms={
            "general": RoomConfig(
                events=[
                    define_event("first", schema=first),
                    define_event("second", schema=second),
                    define_event("third", schema=Events),
                ]
            )
        }
    )
    text = generated(dialogue)
    events = fields(text, "Events")
    assert events["first"] != events["second"]
    assert fields(text, events["first"]) == {"a": "number"}
    assert fields(text, events["second"]) == {"b": "string"}
    assert fields(text, events["third"]) == {"x": "number"}
    assert "$edit" not in text, "nothing is recorded"


def test_the_same_declarations_make_the_same_text() -> None:
    """In every process, whatever order its sets have; so that --check can compare."""
    code = (
        "from dialogue.generating.typescript import typescript; from tests.generating.rich import dialogue\n"
        "print(typescript(dialogue.room_types, target='chat:dialogue'), end='')"
    )
    texts = {
        subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True,
            env={"PYTHONHASHSEED": seed, "PYTHONPATH": ":".join(sys.path), "PYTHONUTF8": "1"},
        ).stdout
        for seed in ("1", "2")
    }  # fmt: skip
    assert texts == {generated(rich.dialogue)}


@pytest.mark.parametrize(
    ("schema", "type_"),
    [
        ({"type": ["string", "null"]}, "string | null"),
        ({"allOf": [{"type": "string"}, {"anyOf": [{"const": 1}, {"const": 2}]}]}, "string & (1 | 2)"),
        ({"not": {}}, "never"),
        (False, "never"),
        ({"type": "array", "prefixItems": [{"type": "string"}], "items": {"type": "number"}}, "[string?, ...number[]]"),
        ({"type": "array", "maxItems": 0}, "[]"),
        ({"type": "object", "patternProperties": {"^x": {"type": "number"}}}, "{ [key: string]: number; }"),
        (
            {"type": "object", "properties": {"a-b": {"const": [1, {"c": "\u2028"}]}}},
            '{ "a-b"?: [1, { c: "\\u2028"; }]; }',
        ),
        ({"type": "object"}, "{ [key: string]: unknown }"),
        ({"enum": []}, "unknown"),
        ({"type": "nothing known"}, "unknown"),
    ],
)  # fmt: skip
def test_schemas_that_only_an_application_writes(schema: object, type_: str) -> None:
    """A model may bring any JSON schema of its own."""

    def replace(given: dict[str, Any]) -> None:
        given.clear()
        given["anyOf"] = [schema]

    class Own(BaseModel):
        x: int = Field(json_schema_extra=replace)

    dialogue = Dialogue(
        rooms={"general": RoomConfig(events=[define_event("own", schema=Own, history=History())])}
    )
    assert fields(generated(dialogue), "Own") in ({"x": type_}, {"x?": type_})


def test_every_definition_is_used_under_its_own_name() -> None:
    """No reference leads nowhere."""
    text = generated(rich.dialogue)
    for name in collect(rich.dialogue.room_types).definitions:
        assert len(re.findall(rf"\b{name}\b", text)) > 1, name
