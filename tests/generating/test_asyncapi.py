"""The AsyncAPI document: valid by itself, by AsyncAPI's own parser, and by what goes over the wire."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft7Validator

from dialogue import Dialogue, EventType, History, Limits, RoomConfig, define_event, protocol
from dialogue.generating.asyncapi import asyncapi
from dialogue.generating.messages import COMMANDS_OF_CONNECTION, COMMANDS_OF_ROOM, tag_of
from dialogue.generating.schemas import collect, references
from examples.chat.config import dialogue as chat

from ..server.harness import Wire, serve, wire
from ..typescript.tools import FOLDER, needs_node_modules, node
from . import rich


class Error(rich.Notice):
    """An application's own model of a name that the wire has, too."""


ODD = Dialogue(
    rooms={
        "connection": RoomConfig(events="*"),
        "Ünï/".replace("/", ""): RoomConfig(events=[]),
        "a.b": RoomConfig(
            events=[
                define_event("edit", history=History()),
                define_event("a b"),
                define_event("a-b"),
                define_event("a_b"),
                define_event("日本"),
                define_event("error", schema=Error),
            ]
        ),
        "a_b": RoomConfig(events=[]),
        "{x}": RoomConfig(events=[]),
    }
)
DOCUMENTS = {
    "rich": asyncapi(rich.dialogue.room_types, is_authenticated=True, server="https://chat.example/rooms/"),
    "odd": asyncapi(ODD.room_types, is_authenticated=False, server="ws://localhost:3000"),
    "chat": asyncapi(chat.room_types, is_authenticated=False),
    "empty": asyncapi(Dialogue(rooms={}).room_types, is_authenticated=False),
}
each = pytest.mark.parametrize("document", DOCUMENTS.values(), ids=DOCUMENTS)


def validator(document: dict[str, Any], message: str) -> Draft7Validator:
    """Return what validates a message of the document by its name there."""
    return Draft7Validator(
        {"$ref": f"#/components/messages/{message}/payload", "components": document["components"]}
    )


@each
def test_references_lead_somewhere_and_schemas_are_schemas(document: dict[str, Any]) -> None:
    """Each `$ref`, each payload, and nothing of a newer JSON Schema than is said."""
    for part in references(document):
        if isinstance(part.get("$ref"), str):
            found: Any = document
            for key in part["$ref"].removeprefix("#/").split("/"):
                found = found[key]
            assert set(part) <= {"$ref", "description", "default", "title", "deprecated"}
    payloads = [message["payload"] for message in document["components"]["messages"].values()]
    for schema in [*payloads, *document["components"]["schemas"].values()]:
        Draft7Validator.check_schema(schema)
    text = json.dumps(document)
    assert not re.search(r'"(\$defs|prefixItems|discriminator)":', text)


@each
def test_keys_are_what_asyncapi_takes(document: dict[str, Any]) -> None:
    """And every message of the components is in some channel."""
    used = set()
    for name, channel in document["channels"].items():
        assert re.fullmatch(r"[\w.-]+", name, re.ASCII)
        used |= set(channel["messages"])
        assert set(re.findall(r"\{(\w+)\}", channel["address"] or "")) == set(channel.get("parameters", {}))
    for name in (
        *document["operations"],
        *document["components"]["messages"],
        *document["components"]["schemas"],
    ):
        assert re.fullmatch(r"[\w.-]+", name, re.ASCII)
    rooms = len(document["channels"]) - 1
    if rooms:
        assert used == set(document["components"]["messages"])
    assert len(document["operations"]) == 2 * (rooms + 1)


@needs_node_modules
def test_asyncapis_own_parser_finds_nothing_wrong(tmp_path: Path) -> None:
    """The official schema, and the rules that no schema can say."""
    for name, document in DOCUMENTS.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(document))
    said = node(FOLDER / "asyncapi.mjs", *sorted(tmp_path.iterdir()))
    assert said.count("AsyncAPI 3.0.0") == len(DOCUMENTS)


def test_rooms_are_channels() -> None:
    """With the messages of their own events, and only those of them that clients may send."""
    document = DOCUMENTS["rich"]
    channels = document["channels"]
    assert {name: channel["address"] for name, channel in channels.items()} == {
        "connection": None,
        "general": "general",
        "notes_all": "notes:all",
        "dm_a_b": "dm:{a}:{b}",
        "notes_owner": "notes:{owner}",
        "client_rooms": "{room}",
    }
    assert (channels["general"]["title"], channels["general"]["description"]) == ("General", "For all.")
    direct = set(channels["dm_a_b"]["messages"])
    assert {"message.trigger", "message.event", "typing.trigger", "change.edit.event"} <= direct
    assert not {"rich.event", "message.2.event"} & direct
    assert "message.2.event" in channels["notes_owner"]["messages"]
    assert "change.edit.event" not in channels["notes_owner"]["messages"]
    assert "notice.event" in channels["general"]["messages"]
    assert "notice.trigger" not in channels["general"]["messages"]
    assert document["servers"]["dialogue"]["pathname"] == "/rooms/ws"
    assert "servers" not in DOCUMENTS["chat"]


def test_every_command_is_described() -> None:
    """Nothing of the protocol is left out; a trigger is one message for each event."""
    commands: set[type[protocol.Command]] = {*COMMANDS_OF_CONNECTION, *COMMANDS_OF_ROOM, protocol.Trigger}
    assert commands == set(protocol.Command.__subclasses__())
    for command in commands - {protocol.Trigger}:
        payload = DOCUMENTS["chat"]["components"]["messages"][f"{tag_of(command)}.command"]["payload"]
        assert set(payload["properties"]) == {"type", *command.__struct_fields__}


def test_models_have_the_names_of_the_types() -> None:
    """An application's names are the same in TypeScript and here, also where the wire has the same one."""
    for dialogue, document in ((rich.dialogue, DOCUMENTS["rich"]), (ODD, DOCUMENTS["odd"])):
        assert set(collect(dialogue.room_types).definitions) <= set(document["components"]["schemas"])
    schemas = DOCUMENTS["odd"]["components"]["schemas"]
    assert "level" in schemas["Error"]["properties"]
    assert "code" in schemas["DialogueError"]["properties"]


def test_what_an_application_names_like_the_document_is_kept_apart() -> None:
    """Its models take every name that the wire's could get, and its event is called as those of any name are."""

    class DialogueError(rich.Notice):
        reason: str

    events: list[EventType[Any]] = [
        define_event("any", schema=Error),
        define_event("other", schema=DialogueError),
    ]
    dialogue = Dialogue(rooms={"named": RoomConfig(events=events), "free": RoomConfig(events="*")})
    document = asyncapi(dialogue.room_types, is_authenticated=False)
    schemas = document["components"]["schemas"]
    assert "reason" in schemas["DialogueError"]["properties"]
    assert "code" in schemas["DialogueDialogueError"]["properties"]
    assert not validator(document, "any.trigger").is_valid({"type": "trigger", "room": "named", "event": "x"})
    assert validator(document, "any.other.trigger").is_valid(
        {"type": "trigger", "room": "free", "event": "x"}
    )
    for name, key in (("named", "any"), ("free", "any.other")):
        assert {f"{key}.trigger", f"{key}.event"} <= set(document["channels"][name]["messages"])


@pytest.mark.parametrize(
    "url", ["", "chat.example", "ftp://chat.example", "https://", "https://a@b", "https://a?b", "ws://a#b"]
)
def test_a_server_is_a_url(url: str) -> None:
    """Anything else is refused."""
    with pytest.raises(ValueError, match="a server is"):
        asyncapi(chat.room_types, is_authenticated=False, server=url)


def test_what_differs_on_the_wire_differs_in_the_document() -> None:
    """What is sent may lack a default, what comes never does; a deleted event's data is null."""
    document = DOCUMENTS["rich"]
    trigger = {"type": "trigger", "room": "general", "event": "message", "data": {"text": "x"}}
    event = {"id": 1, "seq": 1, "from": "ann", "timestamp": 1, **trigger, "type": "event"}
    assert validator(document, "message.trigger").is_valid(trigger)
    assert not validator(document, "message.trigger").is_valid({**trigger, "event": "other"})
    assert not validator(document, "message.trigger").is_valid({**trigger, "data": {"text": 1}})
    assert not validator(document, "message.trigger").is_valid({**trigger, "data": None})
    assert not validator(document, "message.event").is_valid(event)
    assert validator(document, "message.event").is_valid({**event, "data": {"text": "x", "reply_to": None}})
    assert validator(document, "message.event").is_valid({**event, "data": None, "deleted": True})
    assert not validator(document, "message.event").is_valid({**event, "data": None, "seq": "1"})


async def test_the_wire_is_as_described() -> None:
    """Every message of a session, and every command of it, fits the message that the document has for it."""
    room = RoomConfig(name="General", events=[rich.message, rich.animal, rich.typing], sync_history_on_join=2)
    dialogue = Dialogue(
        rooms={"general": room, "dm:{a}:{b}": room},
        client_rooms=RoomConfig(events=[rich.message]),
        limits=Limits(presence_seconds=0.01, ping_seconds=0.2),
    )
    document = asyncapi(dialogue.room_types, is_authenticated=False)
    sent: list[dict[str, Any]] = []
    seen: set[str] = set()

    def check(name: str, message: dict[str, Any]) -> None:
        errors = [
            f"{list(error.path)}: {error.message}" for error in validator(document, name).iter_errors(message)
        ]
        assert not errors, (name, message, errors)
        seen.add(name)

    async def ask(client: Wire, type: str, **fields: Any) -> dict[str, Any]:
        sent.append({"type": type, "ref": 1, **fields})
        return await client.ask(type, **fields)

    animal = rich.animal.name
    async with serve(dialogue) as address, wire(address, user="ann") as ann, wire(address, user="bob") as bob:
        for client in (ann, bob):
            await ask(client, "join", room="general", events="*")
        first = await ask(
            ann, "trigger", room="general", event="message", data={"text": "1"}, key="k", meta={"a": 1}
        )
        await ask(ann, "trigger", room="general", event="message", data={"text": "1"}, key="k")
        await ask(ann, "trigger", room="general", event=animal, data={"kind": "cat", "lives": 9})
        await ask(ann, "trigger", room="general", event="typing")
        await ask(ann, "edit", room="general", seq=first["seq"], data={"text": "2"})
        await ask(ann, "delete", room="general", seq=first["seq"])
        page = await ask(bob, "history", room="general", limit=1)
        await ask(bob, "history", room="general", cursor=page["next"])
        await ask(bob, "presence", room="general")
        await ask(bob, "mark_read", room="general", seq=1)
        await ask(bob, "unread")
        await ask(bob, "rooms")
        await ask(bob, "subscribe", room="general", events=["message"])
        await ask(bob, "unsubscribe", room="general", events=["message"])
        await ask(ann, "create_room", room="club", name="Club")
        await ask(ann, "join", room="club", since={"seq": 0, "epoch": "x"})
        await dialogue.update_room("club", name="The club")
        await ask(ann, "delete_room", room="club")
        await ask(bob, "leave", room="general")
        for connected in dialogue.clients():
            connected.send("hello", {"x": 1})
        await bob.send("nonsense")
        for client in (ann, bob):
            await client.until(lambda client=client: any(one["type"] == "message" for one in client.messages))  # type: ignore[misc]
        await bob.until(lambda: any(one["type"] == "error" for one in bob.messages))
        await ann.until(lambda: any(one["type"] == "presence" for one in ann.messages))
        await ann.until(lambda: any(one["type"] == "ping" for one in ann.messages))
        for message in [*ann.messages, *bob.messages]:
            for event in [message] if message["type"] == "event" else message.get("events", []):
                names = {"message": "message", animal: "an_animal_it_s", "typing": "typing"}
                check(f"{names.get(event['event'], 'change.' + event['event'][1:])}.event", event)
            if message["type"] != "event":
                check(message["type"], message)
    for command in sent:
        name = {"message": "message", animal: "an_animal_it_s", "typing": "typing"}.get(
            command.get("event", "")
        )
        check(f"{name}.trigger" if command["type"] == "trigger" else f"{command['type']}.command", command)
    described = set(document["components"]["messages"])
    assert described - seen == {"connect.command", "pong.command"}, described - seen
