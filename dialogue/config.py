"""What a developer declares: event types, rooms and hooks. Everything is checked when declared."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields
from datetime import timedelta
from typing import Any, Generic, Literal, TypeVar, overload

from pydantic import PydanticUserError, TypeAdapter

from .errors import ConfigError
from .events import KINDS, Kind
from .limits import RoomLimits

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
