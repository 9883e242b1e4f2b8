"""Calling the developer's hooks: parameters by name, sync or async, with a time limit."""

from __future__ import annotations

import asyncio
import inspect
import logging
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

from ..config import Hook
from ..core.patterns import RoomPattern
from ..errors import CommandError, ConfigError, Internal

_CLIENT = frozenset({"context", "client"})
_MEMBER = frozenset({"context", "client", "room"})
_ROOM = frozenset({"context", "room"})

PARAMETERS: dict[str, frozenset[str]] = {
    "authenticate": frozenset({"context", "request", "auth"}),
    "on_socket_connect": _CLIENT,
    "on_socket_disconnect": _CLIENT,
    "before_join": frozenset({"context", "client", "room", "params", "purpose"}),
    "can_see": _MEMBER,
    "can_see_sessions": frozenset({"context", "client", "user_id"}),
    "on_connected": _CLIENT,
    "on_disconnected": _CLIENT,
    "on_joined": _MEMBER,
    "on_left": _MEMBER,
    "before_each": frozenset({"context", "room", "event"}),
    "after_each": frozenset({"context", "room", "event", "recipient_count"}),
    "on_triggered": frozenset({"context", "room", "event"}),
    "on": frozenset({"context", "room", "event"}),
    "on_room_created": _ROOM,
    "on_room_updated": _ROOM,
    "on_room_deleted": _ROOM,
    "on_cleanup": frozenset({"room_id", "event_name", "events"}),
    "on_load": frozenset({"room_id", "event_name", "start", "end"}),
    "on_load_before": frozenset({"room_id", "event_name", "before", "limit"}),
    "on_erase": frozenset({"user_id"}),
    "can_edit": frozenset({"context", "client", "event"}),
}
"""What each hook may ask for (DESIGN of the hooks: `docs/reference/hooks.md`)."""

SINGLE = frozenset({"authenticate", "on_cleanup", "on_load", "on_load_before", "on_erase"})
"""Hooks of which there can be only one: their answer is the answer."""

INLINE = frozenset({"before_each", "can_see"})
"""Hooks that run in the event loop also when they are ``def``: a thread for each event or room would cost more."""

Matches = Callable[[str | None, str | None], bool]
"""Whether a hook is for a room (its id) and an event (its name); None where there is none."""


class Registered(NamedTuple):
    """A hook, and what it is for."""

    function: Hook
    wanted: frozenset[str] | None
    is_async: bool
    matches: Matches


def _check_parameters(name: str, function: Hook) -> frozenset[str] | None:
    """Return the parameters that *function* asks for; None when it takes any (``**kwargs``)."""
    where = f"hook {name!r}"
    offered = PARAMETERS[name]
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError) as error:
        raise ConfigError(where, f"{function!r} has no signature", "Give a function") from error
    wanted = set()
    for parameter in parameters:
        if parameter.kind is parameter.VAR_KEYWORD:
            return None
        if parameter.kind is parameter.VAR_POSITIONAL:
            continue
        if parameter.kind is parameter.POSITIONAL_ONLY or parameter.name not in offered:
            if parameter.default is not parameter.empty:
                continue
            raise ConfigError(
                where,
                f"it asks for {parameter.name!r}",
                f"A hook asks by name for what it wants of: {', '.join(sorted(offered))}",
            )
        wanted.add(parameter.name)
    return frozenset(wanted)


def _is_async(function: Hook) -> bool:
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(
        getattr(function, "__call__", None)  # noqa: B004 - an object with an async __call__ is meant
    )


def room_filter(templates: tuple[str, ...]) -> Matches:
    """Return a filter that lets only rooms of *templates* (ids or patterns) pass."""
    exact = {template for template in templates if "{" not in template}
    patterns = [RoomPattern(template) for template in templates if "{" in template]

    def matches(room_id: str | None, event: str | None) -> bool:
        return room_id is not None and (
            room_id in exact or any(pattern.match(room_id) is not None for pattern in patterns)
        )

    return matches


def event_filter(names: tuple[str, ...]) -> Matches:
    """Return a filter that lets only events of *names* pass."""
    allowed = frozenset(names)
    return lambda room_id, event: event in allowed


def both(*filters: Matches) -> Matches:
    """Return a filter that lets pass what all of *filters* do; all, if there are none."""
    return lambda room_id, event: all(matches(room_id, event) for matches in filters)


class HookRegistry:
    """The hooks of one `Dialogue`, checked when they are registered."""

    def __init__(self, *, logger: logging.Logger) -> None:
        self._hooks: dict[str, list[Registered]] = {}
        self._log = logger

    def add(
        self,
        name: str,
        function: Hook,
        matches: Matches | None = None,
    ) -> Callable[[], None]:
        """Register a hook; return what takes it away again, which may be called twice.

        Raises:
            ConfigError: It asks for parameters that the hook has not, or there is one already where only one can be.
        """
        hooks = self._hooks.get(name, [])
        if hooks and name in SINGLE:
            raise ConfigError(f"hook {name!r}", "there is one already", "Combine them into one function")
        hook = Registered(function, _check_parameters(name, function), _is_async(function), matches or both())
        # A new list: the old one may be being walked through.
        self._hooks[name] = [*hooks, hook]

        def remove() -> None:
            self._hooks[name] = [other for other in self._hooks.get(name, ()) if other is not hook]

        return remove

    def replaced(self, functions: Mapping[str, Hook | None]) -> HookRegistry:
        """Return a copy in which each name of *functions* has this one hook, or none where it is None.

        Raises:
            ConfigError: A function asks for parameters that its hook has not.
        """
        copy = HookRegistry(logger=self._log)
        copy._hooks = {name: [*hooks] for name, hooks in self._hooks.items() if name not in functions}
        for name, function in functions.items():
            if function is not None:
                copy.add(name, function)
        return copy

    def has(self, name: str) -> bool:
        """Whether such a hook is registered."""
        return bool(self._hooks.get(name))

    def matching(
        self, name: str, room_id: str | None = None, event: str | None = None
    ) -> Iterator[Registered]:
        """Iterate over the hooks of *name* that are for this room and event, in the order of registration."""
        for hook in self._hooks.get(name, ()):
            if hook.matches(room_id, event):
                yield hook

    async def call(self, name: str, *, seconds: float | None, **arguments: Any) -> Any:
        """Call the one hook of *name* and return its answer; exceptions pass.

        Args:
            seconds: Time limit; None for none.

        Raises:
            TimeoutError: It took longer. A ``def`` hook goes on in its thread.
        """
        (hook,) = self._hooks[name]
        return await self.invoke(name, hook, seconds=seconds, **arguments)

    async def ask(
        self,
        name: str,
        hook: Registered | None = None,
        *,
        seconds: float,
        room_id: str | None = None,
        event_name: str | None = None,
        **arguments: Any,
    ) -> Any:
        """Return what a hook answers on which it depends whether something is allowed. Fails closed.

        Args:
            hook: One of several; None for the one of *name*.

        Raises:
            CommandError: The hook's own refusal.
            Internal: It raised anything else, or took too long; that is logged.
        """
        if hook is None:
            (hook,) = self._hooks[name]
        try:
            return await self.invoke(name, hook, seconds=seconds, **arguments)
        except CommandError:
            raise
        except Exception:
            self.log_failure(name, room_id, event_name)
            raise Internal from None

    def log_failure(self, name: str, room_id: str | None, event_name: str | None) -> None:
        """Log the exception that is being handled, as that of a hook."""
        self._log.exception(
            "hook %s failed (room %r, event %r)",
            name,
            room_id,
            event_name,
            extra={"hook": name, "room_id": room_id, "event_name": event_name},
        )

    async def invoke(self, name: str, hook: Registered, *, seconds: float | None, **arguments: Any) -> Any:
        """Call one registered hook with those of *arguments* that it asks for."""
        chosen = arguments if hook.wanted is None else {key: arguments[key] for key in hook.wanted}
        if not hook.is_async and name in INLINE:
            result = hook.function(**chosen)
            if not inspect.isawaitable(result):
                return result
        elif hook.is_async:
            result = hook.function(**chosen)
        else:
            result = asyncio.to_thread(hook.function, **chosen)
        async with asyncio.timeout(seconds):
            try:
                result = await result
                # A plain function may still return an awaitable: a lambda around an async one, a partial.
                return await result if inspect.isawaitable(result) else result
            except asyncio.CancelledError as error:
                task = asyncio.current_task()
                if task is None or task.cancelling():
                    raise
                # What the hook has waited for was cancelled, and not the hook: taken for the task's own end it would
                # silently end a connection, or everything that runs behind.
                raise RuntimeError("what the hook has waited for was cancelled") from error

    async def notify(
        self,
        name: str,
        *,
        seconds: float,
        room_id: str | None = None,
        event_name: str | None = None,
        **arguments: Any,
    ) -> None:
        """Call all hooks of *name*; a failure is logged with room and event and changes nothing else."""
        for hook in self.matching(name, room_id, event_name):
            try:
                await self.invoke(name, hook, seconds=seconds, **arguments)
            except Exception:
                self.log_failure(name, room_id, event_name)
