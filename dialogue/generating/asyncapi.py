"""The AsyncAPI document of what a Dialogue serves over its socket.

Its schemas are of the dialect that AsyncAPI reads without saying so, which is JSON Schema's draft 7.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from typing import Any
from urllib.parse import urlsplit

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from .. import __version__, protocol
from ..room_types import RoomType, RoomTypes
from .messages import (
    COMMANDS_OF_CONNECTION,
    COMMANDS_OF_ROOM,
    OF_CONNECTION,
    OF_ROOM,
    SUMMARIES,
    command_schemas,
    tag_of,
)
from .schemas import REF, Declared, Schemas, change_schemas, collect

VERSION = "3.0.0"
_SCHEMAS = "#/components/schemas/"

_DESCRIPTION = """\
One WebSocket carries everything. A frame of a client is one command or an array of them; a frame of the server is \
always an array of messages. What is described here are the single commands and messages.

The channel `connection` is the socket; every other channel is a room of it, whose address is the field `room` of its \
commands and messages. `ref`, an integer or a string of the client's choice, ties an answer to its command."""


def asyncapi(
    room_types: RoomTypes,
    *,
    is_authenticated: bool,
    server: str | None = None,
    title: str = "Dialogue",
    version: str = "1.0.0",
) -> dict[str, Any]:
    """Return the document.

    Args:
        is_authenticated: Whether there is an ``authenticate`` hook.
        server: The router's base, http(s) or ws(s); None for a document without servers.
        title, version: Of the application.

    Raises:
        ValueError: *server* is no such URL.
    """
    return _Document(room_types, is_authenticated=is_authenticated).build(server, title, version)


def servers(url: str, *, is_authenticated: bool) -> dict[str, Any]:
    """Return the document's part ``servers``; see `asyncapi` for *url*.

    Raises:
        ValueError: It is no such URL.
    """
    parts = urlsplit(url)
    schemes = {"http": "ws", "https": "wss", "ws": "ws", "wss": "wss"}
    if parts.scheme not in schemes or not parts.hostname or parts.username or parts.query or parts.fragment:
        raise ValueError(
            "a server is http(s)://HOST[:PORT][/PATH] or ws(s)://…, without a user, query or fragment"
        )
    server: dict[str, Any] = {
        "host": parts.netloc,
        "protocol": schemes[parts.scheme],
        "pathname": f"{parts.path.rstrip('/')}/ws",
    }
    if is_authenticated:
        server["security"] = [{"$ref": "#/components/securitySchemes/authenticate"}]
    return {"dialogue": server}


class _Document:
    def __init__(self, room_types: RoomTypes, *, is_authenticated: bool) -> None:
        self._room_types = room_types
        self._is_authenticated = is_authenticated
        self._schemas: Schemas = collect(room_types)
        self._messages: dict[str, Any] = {}
        models = tuple(dict.fromkeys((*OF_CONNECTION, *OF_ROOM)))
        _, whole = models_json_schema(
            [(model, "serialization") for model in models], ref_template=_SCHEMAS + "{model}"
        )
        self._commands, named = command_schemas(_SCHEMAS + "{name}")
        own = whole["$defs"] | named
        # An application's models keep their names, which are the same in every document.
        self._own_names = _own_names(own, self._schemas.definitions)
        self._own: dict[str, Any] = self._with_own_names(own)
        self._commands = self._with_own_names(self._commands)
        self._models = models

    def build(self, server: str | None, title: str, version: str) -> dict[str, Any]:
        for command in (*COMMANDS_OF_CONNECTION, *COMMANDS_OF_ROOM):
            self._add_message(f"{tag_of(command)}.command", tag_of(command), self._commands[command])
        for model in self._models:
            payload = {"$ref": _SCHEMAS + self._own_names[model.__name__]}
            self._add_message(_type_of(model), _type_of(model), payload, model.__doc__)
        channels: dict[str, Any] = {"connection": self._connection()}
        operations = _operations("connection", COMMANDS_OF_CONNECTION, (), map(_type_of, OF_CONNECTION), ())
        ids = _channel_ids(self._room_types)
        for room_type in self._room_types.all:
            name = ids[id(room_type)]
            sent, received = self._events_of(room_type)
            channels[name] = self._room(room_type, sent, received)
            operations |= _operations(name, COMMANDS_OF_ROOM, sent, map(_type_of, OF_ROOM), received)
        schemas = {
            **{self._own_names[name]: schema for name, schema in self._own.items()},
            **{name: self._of_draft_7(schema) for name, schema in self._schemas.definitions.items()},
        }
        document: dict[str, Any] = {
            "asyncapi": VERSION,
            "info": {"title": title, "version": version, "description": _DESCRIPTION},
            "defaultContentType": "application/json",
        }
        if server is not None:
            document["servers"] = servers(server, is_authenticated=self._is_authenticated)
        document["channels"] = channels
        document["operations"] = operations
        document["components"] = {
            "messages": self._messages,
            "schemas": {name: schemas[name] for name in sorted(schemas)},
        }
        if self._is_authenticated:
            document["components"]["securitySchemes"] = {
                "authenticate": {
                    "type": "http",
                    "scheme": "bearer",
                    "description": "The application decides: it is given `auth` of the command `connect` (a bearer "
                    'token is `{"token": …}` there), and the headers and cookies of the request.',
                }
            }
        document["x-dialogue-version"] = __version__
        return document

    def _connection(self) -> dict[str, Any]:
        names = [
            *(f"{tag_of(command)}.command" for command in COMMANDS_OF_CONNECTION),
            *map(_type_of, OF_CONNECTION),
        ]
        return {
            "address": None,
            "title": "The connection",
            "description": "The socket itself: what is of no room.",
            "messages": _references(names),
            "bindings": {"ws": {"method": "GET", "bindingVersion": "0.1.0"}},
        }

    def _room(self, room_type: RoomType, sent: list[str], received: list[str]) -> dict[str, Any]:
        config = room_type.config
        commands = [f"{tag_of(command)}.command" for command in COMMANDS_OF_ROOM]
        is_made = room_type is self._room_types.client_type
        channel: dict[str, Any] = {
            # Parameters are `{a}` in both languages, and the rest of an address is the room's id as it is.
            "address": "{room}" if is_made else room_type.template,
            **({"title": config.name} if config.name else {}),
            "description": config.description or ("A room that clients make." if is_made else "A room."),
            "messages": _references([*commands, *sent, *map(_type_of, OF_ROOM), *received]),
        }
        if is_made:
            channel["parameters"] = {"room": {"description": "The room's id."}}
        elif room_type.pattern is not None:
            channel["parameters"] = {
                name: {"description": "Part of the room's id: 1 to 128 characters, neither `:` nor `/`."}
                for name in room_type.pattern.parameters
            }
        return channel

    # -- messages ------------------------------------------------------------------------------------------------

    def _add_message(self, key: str, name: str, payload: dict[str, Any], summary: str | None = None) -> None:
        summary = summary or payload.get("description")
        self._messages[key] = {
            "name": name,
            "title": name,
            **({"summary": summary} if summary else {}),
            "contentType": "application/json",
            "payload": payload,
        }

    def _events_of(self, room_type: RoomType) -> tuple[list[str], list[str]]:
        """Return the names of the messages in which a room's events are sent and received, adding them."""
        if room_type.admits_any_event:
            # A declared event may be called so, too; no key of one has a dot.
            key = (
                "any.other"
                if any(_key(event.event_type.name) == "any" for event in self._schemas.events)
                else "any"
            )
            return [self._trigger(key, None, {})], [self._event(key, None, {}), *self._changes()]
        mine = {id(event_type) for event_type in room_type.events.values()}
        declared = [event for event in self._schemas.events if id(event.event_type) in mine]
        received = [self._event(self._key(event), event, event.received) for event in declared]
        sent = [
            self._trigger(self._key(event), event, event.sent) for event in declared if event.sent is not None
        ]
        if any(event.event_type.history for event in declared):
            received += self._changes()
        return sent, received

    def _changes(self) -> list[str]:
        names = []
        for name, schema in change_schemas().items():
            names.append(f"change.{name.removeprefix('$')}.event")
            payload = _with(self._own["RoomEvent"], event={"const": name}, data=schema)
            self._add_message(names[-1], name, payload, schema["description"])
        return names

    def _key(self, event: Declared) -> str:
        """Return an event's part in the names of its messages: two types of one name have two."""
        key = _key(event.event_type.name)
        alike = [other for other in self._schemas.events if _key(other.event_type.name) == key]
        number = next(number for number, other in enumerate(alike, 1) if other.event_type is event.event_type)
        return key if number == 1 else f"{key}.{number}"

    def _trigger(self, key: str, event: Declared | None, data: dict[str, Any]) -> str:
        payload = _with(
            self._commands[protocol.Trigger],
            event={"type": "string"} if event is None else {"const": event.event_type.name},
            data=self._of_draft_7(data),
        )
        if data:
            payload["required"] = [*payload["required"], "data"]
        name = "any event" if event is None else event.event_type.name
        summary = (event and event.event_type.description) or SUMMARIES[protocol.Trigger]
        self._add_message(f"{key}.trigger", f"trigger {name}", payload, summary)
        return f"{key}.trigger"

    def _event(self, key: str, event: Declared | None, data: dict[str, Any]) -> str:
        # A tombstone has no data.
        if data:
            data = {"anyOf": [self._of_draft_7(data), {"type": "null", "description": "Of a deleted event."}]}
        payload = _with(
            self._own["RoomEvent"],
            event={"type": "string"} if event is None else {"const": event.event_type.name},
            data=data,
        )
        name = "any event" if event is None else event.event_type.name
        self._add_message(f"{key}.event", name, payload, event and event.event_type.description)
        return f"{key}.event"

    def _with_own_names(self, value: Any) -> Any:
        """Return a copy of *value* whose references are to the names that the project's own schemas have here."""
        if isinstance(value, list):
            return [self._with_own_names(item) for item in value]
        if not isinstance(value, dict):
            return value
        return {
            key: _SCHEMAS + self._own_names[item.removeprefix(_SCHEMAS)]
            if key == "$ref"
            else self._with_own_names(item)
            for key, item in value.items()
        }

    def _of_draft_7(self, schema: Any) -> Any:
        """Return *schema* with draft 7's tuples, the document's references, and no discriminator of OpenAPI's."""
        if isinstance(schema, list):
            return [self._of_draft_7(value) for value in schema]
        if not isinstance(schema, dict):
            return schema
        copy = {}
        for key, value in schema.items():
            if key == "$ref" and isinstance(value, str) and value.startswith(REF):
                copy["$ref"] = _SCHEMAS + value.removeprefix(REF)
            elif key == "discriminator" and isinstance(value, dict) and "oneOf" in schema:
                continue
            elif key == "prefixItems":
                copy["items"] = self._of_draft_7(value)
                if "items" in schema:
                    copy["additionalItems"] = self._of_draft_7(schema["items"])
            elif key != "items" or "prefixItems" not in schema:
                copy[key] = self._of_draft_7(value)
        return copy


def _own_names(own: Collection[str], taken: Collection[str]) -> dict[str, str]:
    """Return a name for each of the project's own schemas, none of which is *taken* by an application's model."""
    names: dict[str, str] = {}
    for name in own:
        free = name
        while free in taken or (free != name and free in own):
            free = f"Dialogue{free}"
        names[name] = free
    return names


def _with(schema: dict[str, Any], **properties: Any) -> dict[str, Any]:
    """Return a copy of an object's schema with other *properties* in the place of its own."""
    copy = {key: value for key, value in schema.items() if key != "title"}
    return copy | {"properties": {**schema["properties"], **properties}}


def _type_of(model: type[BaseModel]) -> str:
    """Return the ``type`` of a message on the wire."""
    return str(model.model_fields["type"].annotation.__args__[0])  # type: ignore[union-attr]


def _references(names: Iterable[str]) -> dict[str, Any]:
    return {name: {"$ref": f"#/components/messages/{name}"} for name in names}


def _operations(
    channel: str,
    commands: Iterable[type[protocol.Command]],
    sent: Iterable[str],
    answers: Iterable[str],
    received: Iterable[str],
) -> dict[str, Any]:
    """Return what happens in a channel, as the server sees it: it receives commands, and sends messages."""

    def references(names: Iterable[str]) -> list[dict[str, str]]:
        return [{"$ref": f"#/channels/{channel}/messages/{name}"} for name in names]

    answers = list(answers)
    here = {"$ref": f"#/channels/{channel}"}
    return {
        f"{channel}.commands": {
            "action": "receive",
            "channel": here,
            "summary": "Commands of clients, each with its answer.",
            "messages": references([*(f"{tag_of(command)}.command" for command in commands), *sent]),
            "reply": {"channel": here, "messages": references(answers)},
        },
        f"{channel}.messages": {
            "action": "send",
            "channel": here,
            "summary": "What clients are told.",
            "messages": references([*received, *answers]),
        },
    }


def _key(text: str) -> str:
    """Return *text* as a key of the document, which takes few characters."""
    return re.sub(r"[^A-Za-z0-9_-]+", "_", text).strip("_") or "_"


def _channel_ids(room_types: RoomTypes) -> dict[int, str]:
    """Return a name for each room's channel, by the identity of its type."""
    names: dict[int, str] = {}
    taken = {"connection"}
    for room_type in room_types.all:
        wanted = _key(room_type.template)
        name, number = wanted, 2
        while name in taken:
            name, number = f"{wanted}_{number}", number + 1
        taken.add(name)
        names[id(room_type)] = name
    return names
