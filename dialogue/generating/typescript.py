"""TypeScript types of the declared events, from their JSON schemas.

The file imports nothing and needs nothing. The same declarations make the same text, so that a check can compare it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from typing import Any

from ..config import EventType
from ..events import DELETE, EDIT
from ..room_types import RoomType, RoomTypes
from .schemas import REF, Declared, change_schemas, collect

_IDENTIFIER = re.compile(r"[A-Za-z_$][A-Za-z0-9_$]*")
_SIMPLE = re.compile(r'[\w$]+(\[\])*|"[^"]*"')

_CHANGES = {EDIT: "EditData", DELETE: "DeleteData"}


def typescript(room_types: RoomTypes, *, target: str) -> str:
    """Return the text of the file.

    Args:
        target: As on the command line; the first line tells where the types come from.
    """
    schemas = collect(room_types)
    writer = _Writer()
    parts = [
        f"{first_line(target)}\n"
        '// createDialogueClient<Events, SentEvents>({ url }), and then room.on("…", (event) => event.data) is checked.'
    ]
    parts += [writer.declaration(name, schema) for name, schema in schemas.definitions.items()]
    changes = change_schemas() if schemas.has_changes else {}
    parts += [writer.declaration(_CHANGES[name], schema) for name, schema in changes.items()]
    received = [(event.event_type, writer.type_of(event.received)) for event in schemas.events]
    sent = [
        (event.event_type, writer.type_of(event.sent)) for event in schemas.events if event.sent is not None
    ]
    own = [f"  {json.dumps(name)}: {_CHANGES[name]};" for name in changes]
    any_event = [f"  {_ANY_EVENT}"] if schemas.admits_any_event else []
    parts.append(
        "/** Data of the events, by name, as it comes. */\n"
        + _map("Events", [*_members(received), *own, *any_event])
    )
    parts.append(
        "/** Data of the events that clients may trigger, by name, as it is sent. */\n"
        + _map("SentEvents", [*_members(sent), *any_event])
    )
    if len({frozenset(room_type.events.values()) for room_type in room_types.all}) > 1:
        parts.append(_rooms(room_types, schemas.events, writer, list(changes)))
    return "\n\n".join(parts) + "\n"


def first_line(target: str) -> str:
    """Return how the file begins; by this it is known as one that may be written over."""
    return f"// Written by `dialogue types {target}`: change the declarations, and run it again."


FIRST_WORDS = "// Written by `dialogue types "

_ANY_EVENT = "[event: string]: unknown;"


def _map(name: str, members: Iterable[str]) -> str:
    return "\n".join([f"export interface {name} {{", *members, "}"])


def _members(events: list[tuple[EventType[Any], str]]) -> list[str]:
    """Return the members of a map of events; types of one name, of different rooms, become one union."""
    by_name: dict[str, tuple[list[str], list[str]]] = {}
    for event_type, type_ in events:
        descriptions, types = by_name.setdefault(event_type.name, ([], []))
        if event_type.description and event_type.description not in descriptions:
            descriptions.append(event_type.description)
        if type_ not in types:
            types.append(type_)
    return [
        f"{_comment(' '.join(descriptions), '  ')}  {_key(name)}: {_union(types)};"
        for name, (descriptions, types) in by_name.items()
    ]


def _rooms(room_types: RoomTypes, events: tuple[Declared, ...], writer: _Writer, changes: list[str]) -> str:
    """Return a type that says which events a room has: a chain, since an exact id beats a pattern."""
    received = {id(event.event_type): event for event in events}

    def of(room_type: RoomType) -> str:
        if room_type.admits_any_event:
            return f"{{ {_ANY_EVENT} }}"
        members = [
            f"{_key(name)}: {writer.type_of(received[id(event_type)].received)};"
            for name, event_type in room_type.events.items()
        ]
        if any(event_type.history for event_type in room_type.events.values()):
            members += [f"{json.dumps(name)}: {_CHANGES[name]};" for name in changes]
        return f"{{ {' '.join(members)} }}" if members else "{}"

    lines = [
        "/** Data of the events of one room, as it comes. */",
        "export type RoomEvents<Id extends string> =",
    ]
    lines += [
        f"  Id extends {_string(room_type.template)} ? {of(room_type)} :"
        for room_type in room_types.exact.values()
    ]
    for room_type in room_types.patterns:
        assert room_type.pattern is not None
        text = re.sub(r"\{[^}]*\}", "\0", room_type.template)
        text = re.sub(r"([`\\]|\$(?=\{))", r"\\\1", text).replace("\0", "${string}")
        lines.append(f"  Id extends `{text}` ? {of(room_type)} :")
    made = room_types.client_type
    lines.append(f"  {'Events' if made is None else of(made)};")
    return "\n".join(lines)


class _Writer:
    """Writes types."""

    def declaration(self, name: str, schema: dict[str, Any]) -> str:
        """Return a definition: an interface where it has fields, else an alias."""
        comment = _comment(_documentation(schema), "")
        if schema.get("type") == "object" and ("properties" in schema or not _is_map(schema)):
            return comment + "\n".join([f"export interface {name} {{", *self._fields(schema, "  "), "}"])
        return f"{comment}export type {name} = {self.type_of(schema)};"

    def type_of(self, schema: Any) -> str:
        """Return the type of what fits *schema*; ``unknown`` for any JSON."""
        if schema is False:
            return "never"
        if not isinstance(schema, dict):
            return "unknown"
        if "$ref" in schema:
            return str(schema["$ref"]).removeprefix(REF)
        if "const" in schema:
            return _literal(schema["const"])
        if "enum" in schema:
            return _union(_literal(value) for value in schema["enum"])
        for key in ("anyOf", "oneOf"):
            if key in schema:
                return _union(self.type_of(part) for part in schema[key])
        if "allOf" in schema:
            return " & ".join(_in_brackets(self.type_of(part)) for part in schema["allOf"])
        if schema.get("not") == {}:
            return "never"
        type_ = schema.get("type")
        if isinstance(type_, list):
            return _union(self.type_of({**schema, "type": one}) for one in type_)
        if type_ == "array":
            return self._array(schema)
        if type_ == "object" or "properties" in schema:
            return self._object(schema)
        return _PLAIN.get(str(type_), "unknown")

    def _array(self, schema: dict[str, Any]) -> str:
        items = schema.get("items", True)
        first = schema.get("prefixItems")
        if first is None:
            if schema.get("maxItems") == 0:
                return "[]"
            return f"{_in_brackets(self.type_of(items))}[]"
        least = schema.get("minItems", 0)
        parts = [
            self.type_of(part) if number < least else f"{_in_brackets(self.type_of(part))}?"
            for number, part in enumerate(first)
        ]
        if items is not False and schema.get("maxItems", len(first) + 1) > len(first):
            parts.append(f"...{_in_brackets(self.type_of(items))}[]")
        return f"[{', '.join(parts)}]"

    def _object(self, schema: dict[str, Any]) -> str:
        if "properties" in schema:
            return f"{{ {' '.join(line.strip() for line in self._fields(schema, '', has_comments=False))} }}"
        if not _is_map(schema):
            return "{ [key: string]: unknown }"
        return f"{{ {self._index(schema)} }}"

    def _fields(self, schema: dict[str, Any], indent: str, *, has_comments: bool = True) -> list[str]:
        required = set(schema.get("required", ()))
        lines = []
        for name, field in schema.get("properties", {}).items():
            comment = _comment(_documentation(field), indent) if has_comments else ""
            mark = "" if name in required else "?"
            lines.append(f"{comment}{indent}{_key(name)}{mark}: {self.type_of(field)};")
        if _is_map(schema):
            # Beside named fields an index has to take their types, too.
            index = "[key: string]: unknown;" if lines else self._index(schema)
            lines.append(indent + index)
        return lines

    def _index(self, schema: dict[str, Any]) -> str:
        values = [
            *(
                []
                if schema.get("additionalProperties") in (None, False)
                else [schema["additionalProperties"]]
            ),
            *schema.get("patternProperties", {}).values(),
        ]
        of = _union(self.type_of(value) for value in values)
        keys = schema.get("propertyNames")
        if isinstance(keys, dict) and ("enum" in keys or "const" in keys or "$ref" in keys):
            return f"[key in {self.type_of(keys)}]?: {of}"
        return f"[key: string]: {of};"


_PLAIN = {"string": "string", "integer": "number", "number": "number", "boolean": "boolean", "null": "null"}


def _is_map(schema: dict[str, Any]) -> bool:
    """Whether an object takes fields that are not named."""
    return schema.get("additionalProperties", False) is not False or bool(schema.get("patternProperties"))


def _documentation(schema: Any) -> str:
    if not isinstance(schema, dict):
        return ""
    text = str(schema.get("description", ""))
    if "format" in schema:
        text = f"{text}\nFormat: {schema['format']}".strip()
    if schema.get("deprecated"):
        text = f"{text}\n@deprecated".strip()
    return text


def _comment(text: str, indent: str) -> str:
    """Return *text* as a comment with the line's end, or nothing where there is none."""
    lines = [" ".join(line.split()).replace("*/", "*\\/") for line in text.strip().splitlines()]
    if not lines:
        return ""
    if len(lines) == 1:
        return f"{indent}/** {lines[0]} */\n"
    inner = "".join(f"{indent} * {line}".rstrip() + "\n" for line in lines)
    return f"{indent}/**\n{inner}{indent} */\n"


def _union(types: Iterable[str]) -> str:
    """Return what is one of *types*, each once."""
    different = dict.fromkeys(types)
    if not different or "unknown" in different:
        return "unknown"
    return " | ".join(different)


def _in_brackets(type_: str) -> str:
    return type_ if _SIMPLE.fullmatch(type_) else f"({type_})"


def _string(text: str) -> str:
    # These two end a line in older readings of the language.
    return json.dumps(text, ensure_ascii=False).replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")


def _literal(value: Any) -> str:
    if isinstance(value, str):
        return _string(value)
    if isinstance(value, list):
        return f"[{', '.join(map(_literal, value))}]"
    if isinstance(value, dict):
        return f"{{ {' '.join(f'{_key(name)}: {_literal(item)};' for name, item in value.items())} }}"
    return json.dumps(value)


def _key(name: str) -> str:
    return name if _IDENTIFIER.fullmatch(name) else _string(name)
