"""The JSON schemas of all declared events as one set, with names that every generated document shares.

There are two sides: what clients send is validated, what they get was written by pydantic. A field with a default may
be left out by who sends, and is there for who receives; a serializer, a computed field or an alias can make them differ
further. Where both sides agree there is one definition; else ``Message`` is what comes, and ``MessageInput`` what is
sent.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

from pydantic import TypeAdapter
from pydantic.json_schema import GenerateJsonSchema

from ..config import EventType
from ..events import DELETE, EDIT
from ..room_types import RoomType, RoomTypes

REF = "#/$defs/"
RESERVED = frozenset(("Events", "SentEvents", "RoomEvents", "EditData", "DeleteData"))
"""Names of what is generated beside the models; a model of such a name gets a number."""

_INPUT, _OUTPUT = "Input", "Output"


class Declared(NamedTuple):
    """An event type and its schemas; references are to `Schemas.definitions`.

    Attributes:
        rooms: The ids and patterns under which it is declared.
        received: What clients get.
        sent: What clients send; None where they may not.
    """

    event_type: EventType[Any]
    rooms: tuple[str, ...]
    received: dict[str, Any]
    sent: dict[str, Any] | None


@dataclass(frozen=True)
class Schemas:
    """All of it, in the order of the declarations.

    Attributes:
        events: Each type once; two rooms may have different types of one name.
        definitions: By name, an identifier in every language; sorted.
        has_changes: Whether rooms tell of edits and deletions, which only recorded events have.
        admits_any_event: Whether some room takes events of any name.
    """

    events: tuple[Declared, ...]
    definitions: dict[str, dict[str, Any]]
    has_changes: bool
    admits_any_event: bool


class _Generator(GenerateJsonSchema):
    """Pydantic's schemas, as data is on the wire."""

    ignored_warning_kinds = {"skipped-choice", "non-serializable-default"}  # noqa: RUF012 - as the base has it

    def handle_invalid_for_json_schema(self, schema: Any, error_info: str) -> dict[str, Any]:
        """What JSON Schema has no word for is any JSON: the other types of a configuration are still told."""
        return {}

    def field_is_required(self, field: Any, total: bool) -> bool:
        """What is written is written with its defaults."""
        if self.mode == "serialization" and field["type"] != "typed-dict-field":
            return field.get("serialization_exclude_if") is None
        return super().field_is_required(field, total)

    def model_schema(self, schema: Any) -> dict[str, Any]:
        with self._names_of(schema):
            return super().model_schema(schema)

    def dataclass_schema(self, schema: Any) -> dict[str, Any]:
        with self._names_of(schema):
            return super().dataclass_schema(schema)

    def typed_dict_schema(self, schema: Any) -> dict[str, Any]:
        with self._names_of(schema):
            return super().typed_dict_schema(schema)

    @contextmanager
    def _names_of(self, schema: Any) -> Iterator[None]:
        """Have fields named as this model's own configuration has them on this side, not as the whole call has them."""
        config = schema.get("config") or {}
        before = self.by_alias
        if self.mode == "serialization":
            self.by_alias = bool(config.get("serialize_by_alias"))
        else:
            self.by_alias = config.get("validate_by_alias") is not False
        try:
            yield
        finally:
            self.by_alias = before


def collect(room_types: RoomTypes) -> Schemas:
    """Return the schemas of every event that *room_types* declare."""
    # By identity: two rooms may have different types under one name.
    found: dict[int, tuple[EventType[Any], list[str]]] = {}
    for room_type in room_types.all:
        for event_type in room_type.events.values():
            found.setdefault(id(event_type), (event_type, []))[1].append(room_type.template)
    adapters = [
        (key, event_type.adapter) for key, (event_type, _) in found.items() if event_type.adapter is not None
    ]
    by_key, whole = TypeAdapter.json_schemas(
        [(key, mode, adapter) for key, adapter in adapters for mode in ("validation", "serialization")],
        by_alias=True,
        ref_template=REF + "{model}",
        schema_generator=_Generator,
    )
    definitions: dict[str, Any] = whole.get("$defs", {})
    _require_tags(definitions, [schema for (_, mode), schema in by_key.items() if mode == "validation"])
    names = _names(definitions)
    schemas = {key: _renamed(schema, names) for key, schema in by_key.items()}
    return Schemas(
        events=tuple(
            Declared(
                event_type,
                tuple(rooms),
                schemas.get((key, "serialization"), {}),
                None if event_type.publish == "server" else schemas.get((key, "validation"), {}),
            )
            for key, (event_type, rooms) in found.items()
        ),
        definitions={
            new: _renamed(definitions[old], names)
            for new, old in sorted((names[old], old) for old in definitions)
        },
        has_changes=any(_is_recorded(room_type) for room_type in room_types.all),
        admits_any_event=any(room_type.admits_any_event for room_type in room_types.all),
    )


def _is_recorded(room_type: RoomType) -> bool:
    return room_type.admits_any_event or any(event.history for event in room_type.events.values())


def change_schemas() -> dict[str, dict[str, Any]]:
    """Return the schemas of Dialogue's own events, by event name."""
    target = {
        "target_seq": {"type": "integer", "description": "The seq of the event."},
        "event": {"type": "string", "description": "The event's name."},
    }
    return {
        EDIT: {
            "type": "object",
            "description": "An event has new data.",
            "properties": {
                **target,
                "data": {
                    "description": "Its data from now on; missing where a later change has made it void."
                },
            },
            "required": ["target_seq", "event"],
        },
        DELETE: {
            "type": "object",
            "description": "An event has been deleted.",
            "properties": {
                **target,
                "erased": {"const": True, "description": "Its sender has been erased, too."},
            },
            "required": ["target_seq", "event"],
        },
    }


def references(schema: Any) -> Iterator[dict[str, Any]]:
    """Yield every object within *schema*, itself included."""
    if isinstance(schema, dict):
        yield schema
        for value in schema.values():
            yield from references(value)
    elif isinstance(schema, list):
        for value in schema:
            yield from references(value)


def _require_tags(definitions: dict[str, Any], roots: list[Any]) -> None:
    """Say that a tagged union's tag has to be sent: pydantic asks for it even where the field has a default."""
    for part in references([roots, definitions]):
        tagged = part.get("discriminator")
        if not isinstance(tagged, dict) or "oneOf" not in part:
            continue
        for member in part["oneOf"]:
            name = str(member.get("$ref", "")).removeprefix(REF)
            schema = definitions.get(name, {})
            required = schema.get("required", [])
            if (
                tagged["propertyName"] in schema.get("properties", {})
                and tagged["propertyName"] not in required
            ):
                in_order = {*required, tagged["propertyName"]}
                schema["required"] = [key for key in schema["properties"] if key in in_order]


def _names(definitions: Mapping[str, Any]) -> dict[str, str]:
    """Return a name for each definition that is an identifier; both of a pair that is the same get one."""
    pairs = {
        name: name.removesuffix("-" + _INPUT) + "-" + _OUTPUT
        for name in definitions
        if name.endswith("-" + _INPUT) and name.removesuffix("-" + _INPUT) + "-" + _OUTPUT in definitions
    }
    # All pairs are taken to be the same until one is found not to be; those that refer to it may then differ, too.
    while True:
        same = {old: old for old in definitions} | pairs
        differing = [
            sent
            for sent, received in pairs.items()
            if _renamed(definitions[sent], same) != _renamed(definitions[received], same)
        ]
        if not differing:
            break
        for sent in differing:
            del pairs[sent]
    names: dict[str, str] = {}
    taken = set(RESERVED)
    # Those without an ending first, then what comes, then what is sent: in this order they get short names.
    for old in sorted(
        definitions, key=lambda old: (old.endswith("-" + _INPUT), old.endswith("-" + _OUTPUT), old)
    ):
        if old in pairs:
            names[old] = names[pairs[old]]
            continue
        words = re.findall(r"[A-Za-z0-9_]+", old.removesuffix("-" + _OUTPUT))
        wanted = "".join(word if word[0].isupper() else word[0].upper() + word[1:] for word in words).strip(
            "_"
        )
        if not wanted or wanted[0].isdigit():
            wanted = f"Model{wanted}"
        name, number = wanted, 2
        while name in taken:
            name, number = f"{wanted}{number}", number + 1
        taken.add(name)
        names[old] = name
    return names


def _renamed(schema: Any, names: Mapping[str, str]) -> Any:
    """Return a copy of *schema* whose references have the new names."""
    if isinstance(schema, list):
        return [_renamed(value, names) for value in schema]
    if not isinstance(schema, dict):
        return schema
    copy: dict[str, Any] = {}
    for key, value in schema.items():
        if key == "$ref" and isinstance(value, str) and value.startswith(REF):
            copy[key] = REF + names[value.removeprefix(REF)]
        elif key == "discriminator" and isinstance(value, dict) and isinstance(value.get("mapping"), dict):
            mapping = {
                tag: REF + names[ref.removeprefix(REF)]
                for tag, ref in value["mapping"].items()
                if ref.startswith(REF)
            }
            copy[key] = {**value, "mapping": mapping}
        else:
            copy[key] = _renamed(value, names)
    return copy
