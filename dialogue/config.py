"""What a developer declares: event types, rooms, limits and hooks. Everything is checked when declared."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from datetime import timedelta
from typing import Any, Generic, Literal, TypeVar, cast, overload

from pydantic import BaseModel, ConfigDict, Field, PydanticUserError, TypeAdapter

from .core.patterns import RoomPattern, room_id_problem
from .errors import ConfigError
from .events import DELETE, EDIT, KINDS, Kind

T = TypeVar("T")

MAX_EVENT_NAME_LENGTH = 100
"""Longest event name in characters; also the width of the column that keeps it."""

_EVENT_NAME = re.compile(rf"[^\x00-\x1f\x7f-\x9f\ud800-\udfff]{{1,{MAX_EVENT_NAME_LENGTH}}}")


def event_name_problem(name: str) -> str | None:
    """Return what is wrong with an event *name*, or None when it is well formed."""
    if not _EVENT_NAME.fullmatch(name):
        return f"an event name has 1 to {MAX_EVENT_NAME_LENGTH} characters, none of them control characters"
    if name.startswith("$"):
        return "event names starting with '$' are Dialogue's own"
    if name == "*":
        return "'*' stands for any event and cannot be a name"
    return None


_AGE = re.compile(r"(\d+(?:\.\d+)?)\s*(s|m|h|d|w)")
_UNIT_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800}


@dataclass(frozen=True, slots=True)
class Retention:
    """How long a type's events stay in the log; what is beyond either bound is removed for good.

    With an archive nothing is removed before ``on_cleanup`` has returned for it.

    Args:
        max_age: A number and a unit (``"30d"``; units are s, m, h, d, w), a `timedelta`, or seconds. It counts from
            an event's timestamp and also empties memory. None for no bound.
        max_events: The newest events of each room that are kept, at least the history's ``limit``. None for no
            bound.
    """

    max_age: str | timedelta | float | None = None
    max_events: int | None = None

    def __post_init__(self) -> None:
        if self.max_age is None and self.max_events is None:
            raise ConfigError("Retention", "neither max_age nor max_events is given", "Give one of them")
        count = self.max_events
        if count is not None and (isinstance(count, bool) or not isinstance(count, int) or count < 1):
            raise ConfigError(
                "Retention, field 'max_events'",
                f"{count!r} is not a whole number of at least 1",
                "Give the number of newest events to keep in each room",
            )
        seconds = self.max_age_seconds
        if seconds is not None and not 0 < seconds < 1e11:
            raise ConfigError(
                "Retention, field 'max_age'", f"{self.max_age!r} is not a time above 0", 'Write "30d"'
            )

    @property
    def max_age_seconds(self) -> float | None:
        """``max_age`` in seconds."""
        age = self.max_age
        if age is None:
            return None
        if isinstance(age, timedelta):
            return age.total_seconds()
        if isinstance(age, int | float) and not isinstance(age, bool):
            return float(age)
        found = _AGE.fullmatch(age.strip()) if isinstance(age, str) else None
        if found is None:
            raise ConfigError(
                "Retention, field 'max_age'",
                f"{age!r} is no time",
                'Write a number and a unit (s, m, h, d, w), e.g. "30d"',
            )
        return float(found[1]) * _UNIT_SECONDS[found[2]]


@dataclass(frozen=True, slots=True)
class History:
    """That a type's events are recorded, how many stay in memory, and how long they stay in the log.

    Args:
        limit: The newest events of each room that are kept in memory, at least 1. It never limits reading.
        retention: When events leave the log; None: never.
    """

    limit: int = 100
    retention: Retention | None = None

    def __post_init__(self) -> None:
        retention = self.retention
        if retention is not None and not isinstance(retention, Retention):
            raise ConfigError(
                "History, field 'retention'",
                f"{retention!r} is not a Retention",
                'Write retention=Retention(max_age="30d")',
            )
        if retention is not None and (retention.max_events or self.limit) < self.limit:
            raise ConfigError(
                "History, field 'retention'",
                f"max_events ({retention.max_events}) is below the limit of what is in memory ({self.limit})",
                "Make the limit smaller, or keep more events",
            )
        if isinstance(self.limit, bool) or not isinstance(self.limit, int) or self.limit < 1:
            raise ConfigError(
                "History, field 'limit'",
                f"{self.limit!r} is not a whole number of at least 1",
                "Give the number of newest events to keep in memory, e.g. History(limit=100); "
                "for an event without history leave 'history' out",
            )


@dataclass(frozen=True, eq=False)
class EventType(Generic[T]):
    """A declared event type; made by `define_event`."""

    name: str
    schema: Any = None
    description: str = ""
    history: History | None = None
    publish: Literal["client", "server"] = "client"
    kind: Kind = "event"
    counts_unread: bool = True
    adapter: TypeAdapter[T] | None = field(default=None, repr=False)

    def validate(self, data: Any) -> T:
        """Return plain *data* as an instance of the schema.

        Raises:
            pydantic.ValidationError: It does not fit.
            TypeError: The type has no schema.
        """
        if self.adapter is None:
            raise TypeError(f"event {self.name!r} has no schema; use .data")
        return self.adapter.validate_python(data)


@overload
def define_event(
    name: str,
    *,
    schema: type[T],
    description: str = "",
    history: History | None = None,
    publish: Literal["client", "server"] = "client",
    kind: Kind = "event",
    counts_unread: bool | None = None,
) -> EventType[T]: ...
@overload
def define_event(
    name: str,
    *,
    schema: None = None,
    description: str = "",
    history: History | None = None,
    publish: Literal["client", "server"] = "client",
    kind: Kind = "event",
    counts_unread: bool | None = None,
) -> EventType[Any]: ...
@overload
def define_event(
    name: str,
    *,
    schema: Any,
    description: str = "",
    history: History | None = None,
    publish: Literal["client", "server"] = "client",
    kind: Kind = "event",
    counts_unread: bool | None = None,
) -> EventType[Any]: ...
def define_event(
    name: str,
    *,
    schema: Any = None,
    description: str = "",
    history: History | None = None,
    publish: Literal["client", "server"] = "client",
    kind: Kind = "event",
    counts_unread: bool | None = None,
) -> EventType[Any]:
    """Declare an event type.

    Args:
        name: 1 to 100 characters, not starting with ``$``.
        schema: A pydantic model or anything that pydantic's ``TypeAdapter`` takes; payloads are validated and
            coerced by it on the way in. Without one any JSON is accepted.
        description: For people and generated documents.
        history: That the events are recorded, and how many stay in memory; without it the type is ephemeral:
            no seq, never stored, delivered to everyone but the connection that sent it.
        publish: ``"client"``: clients and the server may trigger it; ``"server"``: clients may not.
        kind: What the events are for; clients can filter history by it.
        counts_unread: Whether an event raises its room's unread count; by default if it is recorded.

    Raises:
        ConfigError: Something of the above is wrong.
    """
    where = f"event {name!r}"
    if not isinstance(name, str):
        raise ConfigError(where, "the name is not a string", "Give the event a name")
    problem = event_name_problem(name)
    if problem:
        raise ConfigError(f"{where}, field 'name'", problem, "Choose another name")
    if history is not None and not isinstance(history, History):
        raise ConfigError(
            f"{where}, field 'history'", f"{history!r} is not a History", "Write history=History(limit=100)"
        )
    if publish not in ("client", "server"):
        raise ConfigError(
            f"{where}, field 'publish'",
            f"{publish!r} is neither 'client' nor 'server'",
            "Choose one of the two",
        )
    if kind not in KINDS:
        raise ConfigError(
            f"{where}, field 'kind'", f"{kind!r} is not a kind", f"Choose one of {', '.join(KINDS)}"
        )
    if counts_unread and history is None:
        raise ConfigError(
            f"{where}, field 'counts_unread'",
            "an ephemeral event cannot be unread",
            "Give it a history, or leave 'counts_unread' out",
        )
    adapter: TypeAdapter[Any] | None = None
    if schema is not None:
        try:
            adapter = TypeAdapter(schema)
        except PydanticUserError as error:
            raise ConfigError(
                f"{where}, field 'schema'",
                f"pydantic takes no {schema!r} as a schema",
                "Give a pydantic model, a dataclass, a TypedDict or another annotation",
            ) from error
    return EventType(
        name=name,
        schema=schema,
        description=description,
        history=history,
        publish=publish,
        kind=kind,
        counts_unread=history is not None if counts_unread is None else counts_unread,
        adapter=adapter,
    )


UNDECLARED_HISTORY = History(limit=100)
"""What an undeclared event of an ``events="*"`` room is kept with."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RoomConfig:
    """What a room is.

    Args:
        name: For people.
        description: For people.
        events: The event types that the room admits; ``"*"`` admits any name (each recorded, up to
            ``limits.event_names_per_room``), an empty list admits none.
        max_size: Most connections that may be in the room at once; None for no limit.
        default_subscriptions: Event names (or types) that a join without ``events`` subscribes to; None for all.
        sync_history_on_join: The newest events per type that a join brings; True for all that memory holds,
            False for none.
    """

    name: str = ""
    description: str = ""
    events: Sequence[EventType[Any]] | Literal["*"] = ()
    max_size: int | None = None
    default_subscriptions: Sequence[str | EventType[Any]] | None = None
    sync_history_on_join: bool | int = 50


class RoomType:
    """A checked `RoomConfig` under its room id or pattern.

    Attributes:
        template: The room id, or the pattern.
        pattern: None for an exact room.
        events: The declared types by name.
        admits_any_event: Whether the config said ``"*"``.
        default_subscriptions: Names, or None for all.
    """

    __slots__ = (
        "_changes",
        "admits_any_event",
        "config",
        "default_subscriptions",
        "events",
        "pattern",
        "template",
    )

    def __init__(self, template: str, config: RoomConfig) -> None:
        where = f"room {template!r}"
        if not isinstance(template, str):
            raise ConfigError(where, "the room id is not a string", "Use strings as keys of 'rooms'")
        if not isinstance(config, RoomConfig):
            raise ConfigError(
                where, f"{config!r} is not a RoomConfig", "Write RoomConfig(name=..., events=[...])"
            )
        self.template = template
        self.config = config
        self.pattern: RoomPattern | None = None
        if "{" in template or "}" in template:
            try:
                self.pattern = RoomPattern(template)
            except ValueError as error:
                raise ConfigError(where, str(error), 'Write a pattern like "dm:{a}:{b}"') from error
        else:
            problem = room_id_problem(template)
            if problem:
                raise ConfigError(where, problem, "Choose another room id")
        self.admits_any_event = config.events == "*"
        self.events: dict[str, EventType[Any]] = {}
        if not self.admits_any_event:
            if isinstance(config.events, str):
                raise ConfigError(
                    f"{where}, field 'events'",
                    f"{config.events!r} is not a list",
                    'Write a list, or "*" for any',
                )
            for event_type in config.events:
                if not isinstance(event_type, EventType):
                    raise ConfigError(
                        f"{where}, field 'events'",
                        f"{event_type!r} is not an event type",
                        'Write message = define_event("message", ...) and list message',
                    )
                if event_type.name in self.events:
                    raise ConfigError(
                        f"{where}, field 'events'",
                        f"the event {event_type.name!r} is listed twice",
                        "Remove one, or give it another name",
                    )
                self.events[event_type.name] = event_type
        size = config.max_size
        if size is not None and (isinstance(size, bool) or not isinstance(size, int) or size < 1):
            raise ConfigError(
                f"{where}, field 'max_size'",
                f"{size!r} is not a whole number of at least 1",
                "Give the most connections, or None for no limit",
            )
        sync = config.sync_history_on_join
        if not isinstance(sync, int) or sync < 0:
            raise ConfigError(
                f"{where}, field 'sync_history_on_join'",
                f"{sync!r} is neither a bool nor a number of at least 0",
                "Give the newest events per type that a join brings, or True for all that memory holds",
            )
        self.default_subscriptions: frozenset[str] | None = None
        if config.default_subscriptions is not None:
            names = []
            for item in config.default_subscriptions:
                name = item.name if isinstance(item, EventType) else item
                if name not in self.events and not self.admits_any_event:
                    raise ConfigError(
                        f"{where}, field 'default_subscriptions'",
                        f"{name!r} is not an event of this room",
                        f"Choose among {', '.join(map(repr, self.events)) or 'none'}, or add it to 'events'",
                    )
                names.append(name)
            self.default_subscriptions = frozenset(names)

        self._changes = _change_types(self.events.values())

    def event_type(self, name: str) -> EventType[Any] | None:
        """Return the type of event *name* in this room, or None when the room does not admit it."""
        found = self.events.get(name) or self._changes.get(name)
        if found is None and self.admits_any_event and event_name_problem(name) is None:
            return EventType(name=name, history=UNDECLARED_HISTORY)
        return found

    def sync_events(self, event_type: EventType[Any]) -> int:
        """Return how many of the newest events of a recorded *event_type* a join brings."""
        sync = self.config.sync_history_on_join
        if sync is True:
            return event_type.history.limit if event_type.history else 0
        return int(sync)


def _change_types(events: Iterable[EventType[Any]]) -> dict[str, EventType[Any]]:
    """Return the types of the `EDIT` and `DELETE` events of a room with *events*.

    They say what events have become, so they stay no longer than the shortest age among those, and as many as the
    largest count.
    """
    retentions = [event.history.retention for event in events if event.history and event.history.retention]
    ages = [retention.max_age_seconds for retention in retentions if retention.max_age_seconds is not None]
    counts = [retention.max_events for retention in retentions if retention.max_events is not None]
    limit = UNDECLARED_HISTORY.limit
    retention = None
    if ages or counts:
        retention = Retention(min(ages, default=None), max(max(counts), limit) if counts else None)
    history = History(limit, retention)
    return {
        name: EventType(name=name, history=history, publish="server", counts_unread=False)
        for name in (EDIT, DELETE)
    }


class RoomTypes:
    """All declared rooms: an exact id beats a pattern, and patterns never overlap.

    Raises:
        ConfigError: A declaration is wrong, or two patterns overlap.
    """

    __slots__ = ("exact", "patterns")

    def __init__(self, rooms: Mapping[str, RoomConfig]) -> None:
        if not isinstance(rooms, Mapping):
            raise ConfigError(
                "Dialogue, field 'rooms'", "not a mapping", 'Write rooms={"general": RoomConfig(...)}'
            )
        self.exact: dict[str, RoomType] = {}
        self.patterns: list[RoomType] = []
        for template, config in rooms.items():
            room_type = RoomType(template, config)
            if room_type.pattern is None:
                self.exact[template] = room_type
                continue
            for other in self.patterns:
                if room_type.pattern.overlaps(cast(RoomPattern, other.pattern)):
                    raise ConfigError(
                        f"room {template!r}",
                        f"it overlaps the pattern {other.template!r}: some room ids match both",
                        "Give one of them a prefix of its own",
                    )
            self.patterns.append(room_type)

    def expiring_names(self) -> list[str]:
        """Return the names of the events that have a retention in some room."""
        names: dict[str, None] = {}
        for room_type in (*self.exact.values(), *self.patterns):
            for name in (*room_type.events, EDIT, DELETE):
                event_type = room_type.event_type(name)
                if event_type is not None and event_type.history and event_type.history.retention:
                    names[name] = None
        return list(names)

    def find(self, room_id: str) -> tuple[RoomType, dict[str, str]] | None:
        """Return the type of a room and its parameters, or None when no declaration covers *room_id*."""
        exact = self.exact.get(room_id)
        if exact is not None:
            return exact, {}
        for room_type in self.patterns:
            params = cast(RoomPattern, room_type.pattern).match(room_id)
            if params is not None and room_id_problem(room_id) is None:
                return room_type, params
        return None


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
                if info.annotation is int
                and name not in ("key_length", "user_id_length", "data_depth", "handover_streams_in_flight")
            }
        )


Hook = Callable[..., Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Hooks:
    """All hooks in one place; each can also be given as a decorator of `Dialogue`.

    A hook asks by name for the parameters that it wants. ``async def`` hooks run in the loop, ``def`` hooks in a
    worker thread, except ``before_each``, which runs inline when it is ``def``.
    """

    authenticate: Hook | None = None
    before_join: Hook | None = None
    on_connected: Hook | None = None
    on_disconnected: Hook | None = None
    on_joined: Hook | None = None
    on_left: Hook | None = None
    before_each: Hook | None = None
    can_edit: Hook | None = None
    after_each: Hook | None = None
    on_cleanup: Hook | None = None
    on_load: Hook | None = None
    on_load_before: Hook | None = None
    on_erase: Hook | None = None

    def __post_init__(self) -> None:
        for item in fields(self):
            value = getattr(self, item.name)
            if value is not None and not callable(value):
                raise ConfigError(
                    f"Hooks, field {item.name!r}", f"{value!r} is not callable", "Give a function"
                )
