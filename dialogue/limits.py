"""Every bound of a server, and the bounds that a room may add."""

from __future__ import annotations

from dataclasses import dataclass, fields

from annotated_types import Le
from pydantic import BaseModel, ConfigDict, Field

from .errors import ConfigError


class Limits(BaseModel):
    """Every bound, with protective defaults. Nests in pydantic's ``BaseSettings``.

    What is over a limit is refused with a coded error, counted in metrics, and harms nobody else.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    message_bytes: int = Field(65_536, ge=256, description="largest data of one trigger, encoded")
    frame_bytes: int = Field(
        1_048_576, ge=1024, description="largest frame from a client; a larger one closes with 1009"
    )
    frame_before_connect_bytes: int = Field(4096, ge=256, description="largest frame before `connected`")
    commands_per_frame: int = Field(1000, ge=1, description="most commands in one frame")
    handshake_seconds: float = Field(
        10.0, gt=0, description="how long a connection may take to send its request head"
    )
    connect_seconds: float = Field(10.0, gt=0, description="how long a connection may wait before `connect`")
    ping_seconds: float = Field(
        25.0, gt=0, description="silence after which a ping is sent; twice that closes"
    )
    ref_length: int = Field(128, ge=1, description="most characters of a textual ref")
    key_length: int = Field(128, ge=1, le=255, description="most characters of an idempotency key")
    user_id_length: int = Field(128, ge=1, le=255, description="most characters of a user id")
    meta_bytes: int = Field(4096, ge=2, description="largest meta, encoded")
    data_depth: int = Field(
        64, ge=1, le=500, description="deepest nesting of arrays and objects in data and meta"
    )
    event_names_per_room: int = Field(
        100, ge=1, description='most undeclared event names in a room with events="*"'
    )
    triggers_per_second: int = Field(
        100, ge=1, description="triggers, edits and deletions of one connection, lastingly"
    )
    triggers_burst: int = Field(1000, ge=1, description="the same, at once")
    user_triggers_per_second: int = Field(
        200, ge=1, description="the same of one user over all connections, lastingly"
    )
    user_triggers_burst: int = Field(2000, ge=1, description="the same, at once")
    joins_per_second: int = Field(20, ge=1, description="joins of one connection, lastingly")
    joins_burst: int = Field(1000, ge=1, description="the same, at once")
    user_joins_per_second: int = Field(
        40, ge=1, description="the same of one user over all connections, lastingly"
    )
    user_joins_burst: int = Field(2000, ge=1, description="the same, at once")
    reads_per_second: int = Field(
        50, ge=1, description="reads (history, rooms, presence, unread) of one connection, lastingly"
    )
    reads_burst: int = Field(500, ge=1, description="the same, at once")
    user_reads_per_second: int = Field(
        100, ge=1, description="the same of one user over all connections, lastingly"
    )
    user_reads_burst: int = Field(1000, ge=1, description="the same, at once")
    commands_per_second: int = Field(
        500, ge=1, description="commands of any kind of one connection, lastingly"
    )
    commands_burst: int = Field(5000, ge=1, description="the same, at once")
    connections: int = Field(20_000, ge=1, description="most connections in all")
    connections_per_user: int = Field(50, ge=1, description="most connections of one user")
    connecting: int = Field(
        2000,
        ge=1,
        description="most connections that have not been told `connected`; for another, the oldest is closed",
    )
    user_room_changes_per_minute: int = Field(
        20, ge=1, description="rooms that one user makes and deletes over connections, lastingly and at once"
    )
    created_rooms: int = Field(10_000, ge=1, description="most rooms that were made while running")
    created_rooms_per_user: int = Field(100, ge=1, description="most of them that one client user has made")
    listed_rooms: int = Field(1000, ge=1, description="most rooms in one `rooms` answer")
    room_name_length: int = Field(100, ge=1, le=255, description="most characters of a room's name")
    room_description_length: int = Field(
        1000, ge=0, le=4000, description="most characters of a room's description"
    )
    presence_seconds: float = Field(
        0.2, gt=0, description="time over which a room's presence changes are gathered"
    )
    presence_users: int = Field(1000, ge=1, description="most users named in one presence message")
    unread_seconds: float = Field(
        0.5, gt=0, description="time over which changes of unread counts are gathered"
    )
    unread_rooms: int = Field(1000, ge=1, description="most rooms in one unread message")
    sessions_seconds: float = Field(
        5.0, gt=0, description="time over which changes of sessions are gathered before they are kept"
    )
    session_retention_seconds: float = Field(
        2_592_000.0, gt=0, description="how long a session that has ended is kept"
    )
    rooms_per_client: int = Field(1000, ge=1, description="most rooms that one connection may be in")
    reads_in_flight: int = Field(8, ge=1, description="most history reads of one connection at a time")
    errors_per_minute: int = Field(
        120, ge=1, description="most errors of one connection; more closes with 4009"
    )
    outbox_bytes: int = Field(
        1_048_576, ge=4096, description="most bytes waiting for one reader; more closes with 4008"
    )
    page_events: int = Field(200, ge=1, description="most events in a page")
    page_bytes: int = Field(1_048_576, ge=4096, description="a page ends early at this size")
    poll_seconds: float = Field(60.0, gt=0, description="longest that a poll over HTTP waits for an event")
    replay_events: int = Field(1000, ge=0, description="most events that a resume replays")
    replay_bytes: int = Field(1_048_576, ge=0, description="most bytes that a resume replays")
    append_queue_events: int = Field(10_000, ge=1, description="most events waiting for the store")
    append_queue_bytes: int = Field(67_108_864, ge=4096, description="most bytes waiting for the store")
    append_batch_events: int = Field(1000, ge=1, description="most events in one append")
    append_batch_bytes: int = Field(
        262_144,
        ge=1,
        description="an append, and so a live frame, ends early at this size; one event always fits",
    )
    append_timeout_seconds: float = Field(10.0, gt=0, description="how long a publisher waits for its append")
    handover_queue_events: int = Field(
        10_000,
        ge=1,
        description="without a durable store: most events waiting for on_cleanup, over all rooms",
    )
    handover_batch_events: int = Field(500, ge=1, description="most events in one call of on_cleanup")
    handover_streams_in_flight: int = Field(8, ge=1, description="most calls of on_cleanup at a time")
    hook_seconds: float = Field(10.0, gt=0, description="how long a hook may take (on_cleanup excepted)")
    hook_queue_events: int = Field(
        10_000, ge=1, description="most events waiting for after_each; more are skipped"
    )
    open_rooms: int = Field(100_000, ge=1, description="most rooms in memory; opening another one is refused")
    idle_seconds: float = Field(
        60.0, gt=0, description="how long an unused room of a durable store stays in memory"
    )
    retention_seconds: float = Field(
        60.0, gt=0, description="time between two looks for what retention removes"
    )
    retention_batch_events: int = Field(
        500, ge=1, description="most events that retention removes in one transaction"
    )
    feed_queue_events: int = Field(
        1000,
        ge=1,
        description="most events waiting for one reader of a feed; one behind reads the log instead",
    )
    stop_timeout_seconds: float = Field(
        10.0, gt=0, description="how long a stop may take: appends, connections, hooks and hand-over together"
    )

    @classmethod
    def unlimited(cls) -> Limits:
        """Return limits so high that only a bench should use them."""
        high = 2**53
        return cls(
            **{
                name: high
                for name, info in cls.model_fields.items()
                # What has an upper bound is a length that something depends on.
                if info.annotation is int
                and not any(isinstance(bound, Le) for bound in info.metadata)
                and name != "handover_streams_in_flight"
            }
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class RoomLimits:
    """Bounds of one room, below those of `Limits`. None: no other than those.

    Args:
        message_bytes: Largest data of one trigger, encoded.
        triggers_per_second: Triggers into the room, whoever's they are, lastingly.
        triggers_burst: The same, at once.
        user_triggers_per_second: Triggers of one user into the room, lastingly; 0.1 is one in ten seconds.
        user_triggers_burst: The same, at once.

    The server's own triggers are not counted.
    """

    message_bytes: int | None = None
    triggers_per_second: float | None = None
    triggers_burst: int = 1
    user_triggers_per_second: float | None = None
    user_triggers_burst: int = 1

    def __post_init__(self) -> None:
        for item in fields(self):
            value = getattr(self, item.name)
            is_number = isinstance(value, int | float) and not isinstance(value, bool)
            if value is None and item.default is None:
                continue
            if not is_number or value <= 0 or (item.name.endswith(("bytes", "burst")) and value < 1):
                raise ConfigError(
                    f"RoomLimits, field {item.name!r}",
                    f"{value!r} is not a number above 0",
                    "Give a number, or leave it out",
                )
        for name in ("triggers", "user_triggers"):
            if getattr(self, f"{name}_per_second") is None and getattr(self, f"{name}_burst") != 1:
                raise ConfigError(
                    f"RoomLimits, field '{name}_burst'",
                    f"it has no effect without {name}_per_second",
                    "Give both",
                )
