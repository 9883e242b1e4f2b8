"""The decorators with which an application gives a `Dialogue` its hooks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, overload

from .config import EventType
from .errors import ConfigError
from .room_types import RoomTypes
from .server.hooks import HookRegistry, Matches, both, event_filter, room_filter

F = TypeVar("F", bound=Callable[..., Any])


class HookDecorators:
    """What registers hooks; `Dialogue` is one."""

    room_types: RoomTypes

    def __init__(self, hooks: HookRegistry) -> None:
        self._hooks = hooks

    @property
    def is_running(self) -> bool:
        """Whether the lifespan is entered: hooks are registered before that."""
        raise NotImplementedError

    def authenticate(self, function: F) -> F:
        """Register the hook that tells who a connection is: ``request``, ``auth`` -> `Identity`."""
        return self._add("authenticate", function)

    def on_socket_connect(self, function: F) -> F:
        """Register a hook for a connection that has been opened, before it says who it is: ``context``, ``client``."""
        return self._add("on_socket_connect", function)

    def on_socket_disconnect(self, function: F) -> F:
        """Register a hook for a connection that has ended, whether or not it was ever connected."""
        return self._add("on_socket_disconnect", function)

    def on_connected(self, function: F) -> F:
        """Register a hook for a connection that has been told ``connected``: ``client``."""
        return self._add("on_connected", function)

    def on_disconnected(self, function: F) -> F:
        """Register a hook for a connection that has ended: ``client``."""
        return self._add("on_disconnected", function)

    def on_joined(self, function: F) -> F:
        """Register a hook for a connection that has joined a room: ``client``, ``room``."""
        return self._add("on_joined", function)

    def on_left(self, function: F) -> F:
        """Register a hook for a connection that has left a room: ``client``, ``room``."""
        return self._add("on_left", function)

    def on_room_created(self, function: F) -> F:
        """Register a hook for a room that was made while running: ``room``."""
        return self._add("on_room_created", function)

    def on_room_updated(self, function: F) -> F:
        """Register a hook for a room whose name, description or size was changed: ``room``."""
        return self._add("on_room_updated", function)

    def on_room_deleted(self, function: F) -> F:
        """Register a hook for a room that was deleted: ``room``, of which only the id and declaration are left."""
        return self._add("on_room_deleted", function)

    def on_cleanup(self, function: F) -> F:
        """Register the hook that stores evicted events: ``room_id``, ``event_name``, ``events`` (oldest first)."""
        return self._add("on_cleanup", function)

    def on_load(self, function: F) -> F:
        """Register the hook that reads them back: ``room_id``, ``event_name``, ``start``, ``end``; newest first."""
        return self._add("on_load", function)

    def on_load_before(self, function: F) -> F:
        """Register its keyset form: ``room_id``, ``event_name``, ``before`` (a seq), ``limit``; newest first."""
        return self._add("on_load_before", function)

    def on_erase(self, function: F) -> F:
        """Register the hook that blanks a user's rows in your own storage: ``user_id``."""
        return self._add("on_erase", function)

    def can_see_sessions(self, function: F) -> F:
        """Register who may list sessions over HTTP: ``context``, ``client``, ``user_id`` (None: of everyone)."""
        return self._add("can_see_sessions", function)

    @overload
    def before_join(self, *rooms: F) -> F: ...
    @overload
    def before_join(self, *rooms: str) -> Callable[[F], F]: ...
    def before_join(self, *rooms: Any) -> Any:
        """Register a guard: ``context``, ``client``, ``room``, ``params``, ``purpose``; raises `JoinDenied`.

        It is asked before a client enters a room (*purpose* ``"join"``) or reads of it from outside (``"read"``).
        ``@dialogue.before_join`` guards every room, ``@dialogue.before_join("dm:{a}:{b}")`` only these.
        """
        return self._for_rooms("before_join", rooms)

    @overload
    def can_see(self, *rooms: F) -> F: ...
    @overload
    def can_see(self, *rooms: str) -> Callable[[F], F]: ...
    def can_see(self, *rooms: Any) -> Any:
        """Register who may know of a room: ``context``, ``client``, ``room``; returns a bool.

        A room that a client may not see is as none for it. ``@dialogue.can_see("board:{id}")`` is asked for these only.
        """
        return self._for_rooms("can_see", rooms)

    @overload
    def before_each(self, *events: F) -> F: ...
    @overload
    def before_each(
        self, *events: EventType[Any] | str, rooms: tuple[str, ...] | list[str] = ()
    ) -> Callable[[F], F]: ...
    def before_each(self, *events: Any, rooms: tuple[str, ...] | list[str] = ()) -> Any:
        """Register a hook before every publish: ``context``, ``room``, ``event``.

        It returns a changed `Event`, or None to leave it, or raises `Blocked`. ``@dialogue.before_each(message)``
        is asked for these types only, ``@dialogue.before_each(rooms=["general"])`` for these rooms and patterns only.
        """
        return self._narrowed("before_each", events, rooms)

    @overload
    def can_edit(self, *events: F) -> F: ...
    @overload
    def can_edit(
        self, *events: EventType[Any] | str, rooms: tuple[str, ...] | list[str] = ()
    ) -> Callable[[F], F]: ...
    def can_edit(self, *events: Any, rooms: tuple[str, ...] | list[str] = ()) -> Any:
        """Register who else than its sender may edit or delete an event: ``context``, ``client``, ``event``.

        True allows it. ``@dialogue.can_edit(message)`` is asked for these types only.
        """
        return self._narrowed("can_edit", events, rooms)

    @overload
    def after_each(self, *events: F) -> F: ...
    @overload
    def after_each(
        self, *events: EventType[Any] | str, rooms: tuple[str, ...] | list[str] = ()
    ) -> Callable[[F], F]: ...
    def after_each(self, *events: Any, rooms: tuple[str, ...] | list[str] = ()) -> Any:
        """Register a hook after every commit: ``context``, ``room``, ``event``, ``recipient_count``."""
        return self._narrowed("after_each", events, rooms)

    @overload
    def on_triggered(self, *events: F) -> F: ...
    @overload
    def on_triggered(
        self, *events: EventType[Any] | str, rooms: tuple[str, ...] | list[str] = ()
    ) -> Callable[[F], F]: ...
    def on_triggered(self, *events: Any, rooms: tuple[str, ...] | list[str] = ()) -> Any:
        """Register a hook for what was triggered, after the commit: ``room``, ``event``."""
        return self._narrowed("on_triggered", events, rooms)

    def on(self, room: str, event: EventType[Any] | str, handler: Callable[..., Any]) -> Callable[[], None]:
        """Call *handler* with each event of a type in a room (or in the rooms of a pattern), after its commit.

        It asks by name for what it wants of ``event``, ``room`` and ``context``. Unlike hooks it may also be given,
        and taken away, while the server runs. It is called at most once for an event, in seq order.

        Args:
            event: A type or a name; ``"*"`` for every one.

        Returns:
            What takes it away again; may be called twice.

        Raises:
            ConfigError: It asks for what there is not, or the pattern is none.
        """
        filters: list[Matches] = [self._room_filter("on", (room,), must_be_declared="{" in room)]
        name = event.name if isinstance(event, EventType) else event
        if name != "*":
            filters.append(event_filter((name,)))
        return self._hooks.add("on", handler, both(*filters))

    # -- helpers -------------------------------------------------------------------------------------------------

    def _for_rooms(self, name: str, rooms: tuple[Any, ...]) -> Any:
        if len(rooms) == 1 and callable(rooms[0]):
            return self._add(name, rooms[0])
        matches = self._room_filter(name, rooms) if rooms else None
        return lambda function: self._add(name, function, matches)

    def _narrowed(self, name: str, events: tuple[Any, ...], rooms: tuple[str, ...] | list[str]) -> Any:
        if len(events) == 1 and callable(events[0]):
            return self._add(name, events[0])
        filters: list[Matches] = []
        if events:
            filters.append(
                event_filter(tuple(event.name if isinstance(event, EventType) else event for event in events))
            )
        if rooms:
            if isinstance(rooms, str):
                raise ConfigError(f"hook {name!r}", "rooms is a string", "Write a list: rooms=['general']")
            filters.append(self._room_filter(name, tuple(rooms)))
        return lambda function: self._add(name, function, both(*filters))

    def _room_filter(self, name: str, rooms: tuple[str, ...], *, must_be_declared: bool = True) -> Matches:
        declared = {*self.room_types.exact, *(room_type.template for room_type in self.room_types.patterns)}
        for template in rooms:
            if must_be_declared and template not in declared:
                raise ConfigError(
                    f"hook {name!r}",
                    f"{template!r} is not declared",
                    "Name a room id or pattern of 'rooms'",
                )
        return room_filter(rooms)

    def _add(self, name: str, function: F, matches: Matches | None = None) -> F:
        if self.is_running:
            raise ConfigError(f"hook {name!r}", "the server is running", "Register hooks before it starts")
        self._hooks.add(name, function, matches)
        return function
