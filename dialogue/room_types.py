"""The declared rooms, checked, and which of them covers a room id."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, cast

from .config import (
    UNDECLARED_HISTORY,
    DirectRoom,
    EventType,
    History,
    Retention,
    RoomConfig,
    event_name_problem,
)
from .core.patterns import RoomPattern, room_id_problem
from .errors import ConfigError
from .events import DELETE, EDIT
from .limits import RoomLimits


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
