"""Calling the developer's hooks: parameters by name, sync or async, with a time limit."""

from __future__ import annotations

import asyncio
import inspect
import logging
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

from ..config import Hook
from ..core.patterns import RoomPattern
from ..errors import ConfigError

PARAMETERS: dict[str, frozenset[str]] = {
    "authenticate": frozenset({"request", "auth"}),
    "before_join": frozenset({"context", "client", "room", "params", "purpose"}),
    "on_connected": frozenset({"client"}),
    "on_disconnected": frozenset({"client"}),
    "on_joined": frozenset({"client", "room"}),
    "on_left": frozenset({"client", "room"}),
    "before_each": frozenset({"context", "room", "event"}),
    "after_each": frozenset({"context", "room", "event", "recipient_count"}),
    "on_cleanup": frozenset({"room_id", "event_name", "events"}),
    "on_load": frozenset({"room_id", "event_name", "start", "end"}),
    "on_load_before": frozenset({"room_id", "event_name", "before", "limit"}),
    "on_erase": frozenset({"user_id"}),
    "can_edit": frozenset({"context", "client", "event"}),
}
"""What each hook may ask for (DESIGN of the hooks: `docs/reference/hooks.md`)."""

SINGLE = frozenset({"authenticate", "on_cleanup", "on_load", "on_load_before", "on_erase"})
"""Hooks of which there can be only one: their answer is the answer."""

INLINE = frozenset({"before_each"})
"""Hooks that run in the event loop also when they are ``def``: a thread per event would cost more than they do."""


class _Registered(NamedTuple):
    function: Hook
    wanted: frozenset[str] | None
    is_async: bool
    matches: Callable[[str | None, str | None], bool]


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


def room_filter(templates: tuple[str, ...]) -> Callable[[str | None, str | None], bool]:
    """Return a filter that lets only rooms of *templates* (ids or patterns) pass."""
    exact = {template for template in templates if "{" not in template}
    patterns = [RoomPattern(template) for template in templates if "{" in template]

    def matches(room_id: str | None, event: str | None) -> bool:
        return room_id is not None and (
            room_id in exact or any(pattern.match(room_id) is not None for pattern in patterns)
        )

    return matches


def event_filter(names: tuple[str, ...]) -> Callable[[str | None, str | None], bool]:
    """Return a filter that lets only events of *names* pass."""
    allowed = frozenset(names)
    return lambda room_id, event: event in allowed


def _always(room_id: str | None, event: str | None) -> bool:
    return True


class HookRegistry:
    """The hooks of one `Dialogue`, checked when they are registered."""

    def __init__(self, *, logger: logging.Logger) -> None:
        self._hooks: dict[str, list[_Registered]] = {}
        self._log = logger

    def add(
        self,
        name: str,
        function: Hook,
        matches: Callable[[str | None, str | None], bool] = _always,
    ) -> None:
        """Register a hook.

        Raises:
            ConfigError: It asks for parameters that the hook has not, or there is one already where only one can be.
        """
        hooks = self._hooks.setdefault(name, [])
        if hooks and name in SINGLE:
            raise ConfigError(f"hook {name!r}", "there is one already", "Combine them into one function")
        hooks.append(_Registered(function, _check_parameters(name, function), _is_async(function), matches))

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
        return name in self._hooks

    def matching(
        self, name: str, room_id: str | None = None, event: str | None = None
    ) -> Iterator[_Registered]:
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

    async def invoke(self, name: str, hook: _Registered, *, seconds: float | None, **arguments: Any) -> Any:
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
            result = await result
            # A plain function may still return an awaitable: a lambda around an async one, a partial.
            return await result if inspect.isawaitable(result) else result

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
                self._log.exception("hook %s failed (room %r, event %r)", name, room_id, event_name)
