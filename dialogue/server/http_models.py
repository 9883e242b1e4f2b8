"""The answers over HTTP as models: OpenAPI shows them; what is sent is encoded elsewhere, and not checked again."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, Field


class RoomEntry(BaseModel):
    """A room, as clients are told of it."""

    id: str
    name: str
    description: str
    size: int = Field(description="connections in it")
    max_size: int | None
    created_by_id: str | None


class RoomsAnswer(BaseModel):
    """The rooms that the user may see."""

    rooms: list[RoomEntry]


class RoomEvent(BaseModel):
    """An event of a page."""

    type: Literal["event"]
    room: str
    event: str
    id: int | None
    seq: int | None
    sender: str = Field(alias="from")
    timestamp: int = Field(description="milliseconds since the epoch")
    data: Any
    meta: dict[str, Any] = Field({}, description="missing where there is none")
    kind: str = Field("event", description="missing where it is `event`")
    key: str = Field("", description="in one's own events that were published under one")
    edited: bool = False
    deleted: bool = False


class HistoryGap(BaseModel):
    """A part that could not be read."""

    from_seq: int
    through_seq: int
    reason: Literal["retention", "tier_unavailable", "no_seq"]


class HistoryAnswer(BaseModel):
    """A page, oldest event first."""

    room: str
    event: str | None
    epoch: str
    events: list[RoomEvent]
    has_more: bool
    next: str | None = Field(description="give it as `cursor` for the following page in the same direction")
    previous: str = Field("", description="the other direction; missing where there is none")
    gap: HistoryGap | None = Field(None, description="missing where there is none")


class ConnectionLimits(BaseModel):
    """Bounds that a client should know."""

    message_bytes: int
    frame_bytes: int
    commands_per_frame: int
    page_events: int
    rooms_per_client: int
    key_length: int
    meta_bytes: int


class MeAnswer(BaseModel):
    """Who the user is, and what the server bounds."""

    user_id: str
    protocol: int
    ping_seconds: float
    limits: ConnectionLimits


class JoinedAnswer(BaseModel):
    """What a room has for a reader that comes, or comes back; oldest event first."""

    room: str
    name: str
    seq: int = Field(description="the room's newest; with `epoch` the cursor of the next request")
    epoch: str
    subscriptions: list[str] | Literal["*"]
    has_more: bool
    next: str | None = Field(description="give it to the history as `cursor` for older events")
    recovered: bool | None = Field(
        description="whether `events` is everything since the given cursor; null where none was given"
    )
    events: list[RoomEvent]


class PublishedAnswer(BaseModel):
    """What was recorded."""

    room: str
    seq: int | None = Field(description="null for an ephemeral event")
    id: int | None = Field(description="null for an ephemeral event")
    timestamp: int
    duplicate: bool = Field(False, description="true if the key was known, else missing")


class PublishBody(BaseModel):
    """An event to publish."""

    event: str
    data: Any = None
    meta: dict[str, Any] | None = None
    key: str | None = Field(None, description="idempotency key, scoped to room and user")


class EditRequest(BaseModel):
    """What an event's data becomes."""

    data: Any
    key: str | None = Field(None, description="idempotency key, scoped to room and user")


class CreateRoomRequest(BaseModel):
    """A room to make."""

    room: str = Field(description="its id")
    name: str
    description: str | None = None
    max_size: int | None = Field(None, description="most connections in it")


class RoomAnswer(BaseModel):
    """The room that was made or deleted."""

    room: str


class PresenceAnswer(BaseModel):
    """Who is in a room."""

    room: str
    users: list[str]
    count: int = Field(description="how many users there are, also those that are not named")


class ReadRequest(BaseModel):
    """How far a room is read."""

    seq: int = Field(description="inclusive; beyond the newest event it means that one")


class ReadAnswer(BaseModel):
    """What is unread then."""

    room: str
    unread: int


class UnreadAnswer(BaseModel):
    """How many events are unread, by room."""

    unread: dict[str, int]


class SessionEntry(BaseModel):
    """A connection that is open, or was."""

    user_id: str
    client_id: str
    first_seen: int = Field(description="milliseconds since the epoch")
    last_seen: int
    is_active: bool
    rooms: dict[str, int | None] = Field(
        description="how far the user has read each room that it is or was in"
    )


class SessionsAnswer(BaseModel):
    """Sessions, the last seen first."""

    sessions: list[SessionEntry]


class ErrorAnswer(BaseModel):
    """Why a request was refused."""

    code: str
    message: str
    details: list[Any] | None = Field(None, description="of VALIDATION_FAILED; else missing")
    retry_after_seconds: float | None = Field(None, description="missing where the server does not know")
