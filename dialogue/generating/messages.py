"""The wire's messages as models, for documents: what is sent is encoded elsewhere, and not checked by them.

What is the same over HTTP is the same model there, so that the documents agree.
"""

from __future__ import annotations

from typing import Any, Literal

import msgspec
from pydantic import BaseModel, Field

from .. import protocol
from ..server.http_models import ConnectionLimits, HistoryAnswer, JoinedAnswer, RoomEntry

Ref = int | str
_REF: Any = Field(
    None, description="That of the command; missing where it had none, and where the server speaks first."
)


class Connected(BaseModel):
    """The connection stands."""

    type: Literal["connected"]
    ref: Ref = _REF
    client_id: str
    user_id: str
    protocol: Literal[1]
    ping_seconds: float
    limits: ConnectionLimits


class Ok(BaseModel):
    """A command was done; the other fields are those of its answer."""

    type: Literal["ok"]
    ref: Ref
    room: str = Field("", description="The room that it was about.")
    seq: int | None = Field(None, description="Of what was recorded; null for an ephemeral event.")
    id: int | None = Field(None, description="Likewise.")
    timestamp: int = Field(0, description="Milliseconds since the epoch.")
    duplicate: bool = Field(False, description="True if the key was known, else missing.")
    subscriptions: list[str] | Literal["*"] = Field(
        "*", description="What the connection now gets of the room."
    )
    unread: int = Field(0, description="How many events are unread then.")


class Error(BaseModel):
    """A command was refused."""

    type: Literal["error"]
    ref: Ref = _REF
    code: str
    message: str
    details: list[Any] = Field([], description="Of VALIDATION_FAILED.")
    retry_after_seconds: float = Field(0, description="Missing where the server does not know.")


class Joined(JoinedAnswer):
    """The room is joined; what follows has a larger seq."""

    type: Literal["joined"]
    ref: Ref = _REF


class History(HistoryAnswer):
    """A page, oldest event first."""

    type: Literal["history"]
    ref: Ref = _REF


class Left(BaseModel):
    """The server has ended the membership."""

    type: Literal["left"]
    room: str
    reason: str


class PresenceMessage(BaseModel):
    """Who is in a room: all of them as an answer, or who has come and gone."""

    type: Literal["presence"]
    ref: Ref = _REF
    room: str
    count: int
    users: list[str] = Field([], description="In an answer.")
    joined: list[str] = Field([], description="In a change.")
    left: list[str] = Field([], description="In a change.")


class RoomsMessage(BaseModel):
    """The rooms that the user may see."""

    type: Literal["rooms"]
    ref: Ref = _REF
    rooms: list[RoomEntry]


class RoomCreated(RoomEntry):
    """There is a new room."""

    type: Literal["room_created"]


class RoomUpdated(RoomEntry):
    """A room has changed."""

    type: Literal["room_updated"]


class RoomDeleted(BaseModel):
    """A room is gone."""

    type: Literal["room_deleted"]
    room: str


class UnreadMessage(BaseModel):
    """How many events are unread, by room."""

    type: Literal["unread"]
    ref: Ref = _REF
    unread: dict[str, int]


class ClientMessage(BaseModel):
    """Sent to this client alone by the server's application."""

    type: Literal["message"]
    event: str
    data: Any


class Ping(BaseModel):
    """To be answered with a pong."""

    type: Literal["ping"]


OF_CONNECTION: tuple[type[BaseModel], ...] = (
    Connected, Ok, Error, RoomsMessage, RoomCreated, RoomUpdated, RoomDeleted, UnreadMessage, ClientMessage, Ping,
)  # fmt: skip
"""Messages that are of no room, or of any."""

OF_ROOM: tuple[type[BaseModel], ...] = (Ok, Error, Joined, History, Left, PresenceMessage)
"""Messages of a room, besides its events."""

COMMANDS_OF_CONNECTION: tuple[type[protocol.Command], ...] = (
    protocol.Connect, protocol.Rooms, protocol.CreateRoom, protocol.DeleteRoom, protocol.Unread, protocol.Pong,
)  # fmt: skip
"""Commands that need no room to be joined."""

COMMANDS_OF_ROOM: tuple[type[protocol.Command], ...] = (
    protocol.Join, protocol.Leave, protocol.Subscribe, protocol.Unsubscribe, protocol.Edit, protocol.Delete,
    protocol.HistoryRead, protocol.Presence, protocol.MarkRead,
)  # fmt: skip
"""Commands about a room, besides ``trigger``, which is one message for each event."""

SUMMARIES: dict[type[protocol.Command], str] = {
    protocol.Connect: "Says who connects; comes first.",
    protocol.Join: "Joins a room, or resumes it where `since` tells what has been seen.",
    protocol.Leave: "Leaves a room.",
    protocol.Subscribe: "Asks for events of a room.",
    protocol.Unsubscribe: "Asks for no more events of these names.",
    protocol.Trigger: "Brings an event into a room.",
    protocol.Edit: "Replaces the data of an event.",
    protocol.Delete: "Deletes an event.",
    protocol.HistoryRead: "Reads a page of a room's history.",
    protocol.Rooms: "Asks for the rooms that the user may see.",
    protocol.CreateRoom: "Makes a room.",
    protocol.DeleteRoom: "Deletes a room that the user has made.",
    protocol.Presence: "Asks who is in a room.",
    protocol.MarkRead: "Marks a room as read through an event.",
    protocol.Unread: "Asks how many events are unread.",
    protocol.Pong: "Answers a ping.",
}


def tag_of(command: type[protocol.Command]) -> str:
    """Return the ``type`` of a command on the wire."""
    return str(command.__struct_config__.tag)


def command_schemas(
    ref: str,
) -> tuple[dict[type[protocol.Command], dict[str, Any]], dict[str, dict[str, Any]]]:
    """Return the schema of each command, and those that they refer to, by name.

    Args:
        ref: A reference with ``{name}`` in it.
    """
    found = {}
    named: dict[str, dict[str, Any]] = {}
    for command in SUMMARIES:
        properties: dict[str, Any] = {"type": {"const": tag_of(command)}}
        fields = msgspec.structs.fields(command)
        for field in sorted(fields, key=lambda field: field.name == "ref"):
            if field.type is msgspec.Raw:
                properties[field.name] = {} if field.name == "data" else {"type": "object"}
                continue
            (schema,), more = msgspec.json.schema_components([field.type], ref_template=ref)
            properties[field.name] = schema
            named |= more
        required = ["type", *(field.name for field in fields if field.required)]
        found[command] = {
            "type": "object",
            "description": SUMMARIES[command],
            "properties": properties,
            "required": required,
        }
    return found, named
