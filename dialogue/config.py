"""What a developer declares: event types, rooms, limits and hooks. Everything is checked when declared."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from datetime import timedelta
from typing import Any, Generic, Literal, TypeVar, cast, overload

from pydantic import PydanticUserError, TypeAdapter

from .core.patterns import RoomPattern, room_id_problem
from .errors import ConfigError
from .events import DELETE, EDIT, KINDS, Kind
from .limits import Limits as Limits
from .limits import RoomLimits as RoomLimits

T = TypeVar("T")

Publish = Literal["client", "server"] | Callable[..., bool]
"""Who may trigger an event: anyone in the room, the server alone, or the clients for which a function returns True."""

PUBLISH_PARAMETERS = frozenset({"context", "client", "room"})
"""What such a function may ask for by name."""

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
    publish: Publish = "client"
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


def _check_publish(where: str, publish: Callable[..., bool]) -> None:
    """Check that *publish* can be asked with what there is.

    Raises:
        ConfigError: It is async, or asks for something else.
    """
    where = f"{where}, field 'publish'"
    if inspect.iscoroutinefunction(publish) or inspect.iscoroutinefunction(
        getattr(publish, "__call__", None)  # noqa: B004 - an object with an async __call__ is meant
    ):
        raise ConfigError(where, "it is async", "Give a plain function; what it needs is in client.claims")
    try:
        parameters = inspect.signature(publish).parameters.values()
    except (TypeError, ValueError) as error:
        raise ConfigError(where, f"{publish!r} has no signature", "Give a function") from error
    for parameter in parameters:
        if parameter.kind in (parameter.POSITIONAL_ONLY, parameter.VAR_POSITIONAL) or (
            parameter.kind is not parameter.VAR_KEYWORD
            and parameter.name not in PUBLISH_PARAMETERS
            and parameter.default is parameter.empty
        ):
            raise ConfigError(
                where,
                f"it asks for {parameter.name!r}",
                f"It asks by name for what it wants of: {', '.join(sorted(PUBLISH_PARAMETERS))}",
            )


@overload
def define_event(
    name: str,
    *,
    schema: type[T],
    description: str = "",
    history: History | None = None,
    publish: Publish = "client",
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
    publish: Publish = "client",
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
    publish: Publish = "client",
    kind: Kind = "event",
    counts_unread: bool | None = None,
) -> EventType[Any]: ...
def define_event(
    name: str,
    *,
    schema: Any = None,
    description: str = "",
    history: History | None = None,
    publish: Publish = "client",
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
        publish: ``"client"``: clients and the server may trigger it; ``"server"``: clients may not; a function: those
            clients for which it returns True. It asks by name for what it wants of ``context``, ``client`` and
            ``room``, and is called in the event loop for each trigger, so that it must not block.
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
    if not callable(publish) and publish not in ("client", "server"):
        raise ConfigError(
            f"{where}, field 'publish'",
            f"{publish!r} is neither 'client' nor 'server', nor a function",
            "Choose one of the two, or give a function that returns a bool",
        )
    if callable(publish):
        _check_publish(where, publish)
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
        presence: Whether those in the room are told who else is.
        limits: Bounds of the room's own.
    """

    name: str = ""
    description: str = ""
    events: Sequence[EventType[Any]] | Literal["*"] = ()
    max_size: int | None = None
    default_subscriptions: Sequence[str | EventType[Any]] | None = None
    sync_history_on_join: bool | int = 50
    presence: bool = True
    limits: RoomLimits | None = None

    @property
    def is_guarded(self) -> bool:
        """Whether the rooms admit only whom their id names, without a ``before_join`` hook."""
        return False


@dataclass(frozen=True, slots=True, kw_only=True)
class DirectRoom(RoomConfig):
    """Direct messages: rooms of two users, under a pattern with two parameters (``"dm:{a}:{b}"``).

    The parameters are the users' ids, the smaller first (as Python sorts strings, by code point); a room id in any
    other order is no room. Only these two are admitted, and both are members of its inbox from the first join on.
    A user whose id has a ``:`` or ``/``, or more than 128 characters, has no such rooms. `Dialogue.direct_room`
    makes the id.
    """

    @property
    def is_guarded(self) -> bool:
        """True."""
        return True


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
        if isinstance(config, DirectRoom) and (self.pattern is None or len(self.pattern.parameters) != 2):
            raise ConfigError(
                where,
                "a DirectRoom's id has not exactly two parameters",
                'Declare it under a pattern like "dm:{a}:{b}"',
            )
        if config.limits is not None and not isinstance(config.limits, RoomLimits):
            raise ConfigError(
                f"{where}, field 'limits'",
                f"{config.limits!r} is not a RoomLimits",
                "Write limits=RoomLimits(user_triggers_per_second=1)",
            )
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

    def params(self, room_id: str) -> dict[str, str] | None:
        """Return the parameters in *room_id*, or None when this declaration does not cover it."""
        if self.pattern is None:
            return {} if room_id == self.template else None
        params = self.pattern.match(room_id)
        if params is None or room_id_problem(room_id) is not None:
            return None
        if isinstance(self.config, DirectRoom):
            first, second = params.values()
            if first > second:
                return None
        return params

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

    Attributes:
        client_type: What a room is that clients make; None: they may not.

    Raises:
        ConfigError: A declaration is wrong, or two patterns overlap.
    """

    __slots__ = ("client_type", "exact", "patterns")

    def __init__(self, rooms: Mapping[str, RoomConfig], *, client_rooms: RoomConfig | None = None) -> None:
        if not isinstance(rooms, Mapping):
            raise ConfigError(
                "Dialogue, field 'rooms'", "not a mapping", 'Write rooms={"general": RoomConfig(...)}'
            )
        self.client_type = None if client_rooms is None else RoomType("client_rooms", client_rooms)
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
        for room_type in self.all:
            for name in (*room_type.events, EDIT, DELETE):
                event_type = room_type.event_type(name)
                if event_type is not None and event_type.history and event_type.history.retention:
                    names[name] = None
        return list(names)

    @property
    def all(self) -> list[RoomType]:
        """All declarations: exact rooms, patterns, and what clients may make."""
        made = [] if self.client_type is None else [self.client_type]
        return [*self.exact.values(), *self.patterns, *made]

    def find(self, room_id: str) -> tuple[RoomType, dict[str, str]] | None:
        """Return the type of a room and its parameters, or None when no declaration covers *room_id*."""
        exact = self.exact.get(room_id)
        if exact is not None:
            return exact, {}
        for room_type in self.patterns:
            params = room_type.params(room_id)
            if params is not None:
                return room_type, params
        return None


Hook = Callable[..., Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Hooks:
    """All hooks in one place; each can also be given as a decorator of `Dialogue`.

    A hook asks by name for the parameters that it wants. ``async def`` hooks run in the loop, ``def`` hooks in a
    worker thread, except ``before_each`` and ``can_see``, which run inline when they are ``def``.
    """

    authenticate: Hook | None = None
    on_socket_connect: Hook | None = None
    on_socket_disconnect: Hook | None = None
    before_join: Hook | None = None
    can_see: Hook | None = None
    can_see_sessions: Hook | None = None
    on_connected: Hook | None = None
    on_disconnected: Hook | None = None
    on_joined: Hook | None = None
    on_left: Hook | None = None
    before_each: Hook | None = None
    can_edit: Hook | None = None
    after_each: Hook | None = None
    on_triggered: Hook | None = None
    on_room_created: Hook | None = None
    on_room_updated: Hook | None = None
    on_room_deleted: Hook | None = None
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
