"""Who may see a room, enter it, read it, and trigger what in it.

Fails closed: a hook that cannot decide allows nothing.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any, Literal

from ..config import DirectRoom, EventType
from ..errors import CommandError, Internal, JoinDenied, RoomNotFound
from ..limits import Limits
from ..room_types import RoomType
from .handles import Client, Context, RoomHandle
from .hooks import HookRegistry

Purpose = Literal["join", "read"]
"""What access is asked for: to be in the room, or to read of it from outside."""


class Permission:
    """That someone has begun to enter or read a room; it may be taken back before the answer is sent.

    Attributes:
        is_revoked: Whether it was.
        on_revoked: Called with the reason when it is, by who keeps reading rather than answers once.
    """

    __slots__ = ("is_revoked", "on_revoked")

    def __init__(self) -> None:
        self.is_revoked = False
        self.on_revoked: Callable[[str], None] | None = None

    def revoke(self, reason: str) -> None:
        """Take it back."""
        self.is_revoked = True
        if self.on_revoked is not None:
            self.on_revoked(reason)

    def check(self) -> None:
        """Check that nobody has taken it back.

        Raises:
            JoinDenied: Someone has.
        """
        if self.is_revoked:
            raise JoinDenied("removed from the room")


class Access:
    """Asks the hooks."""

    def __init__(self, hooks: HookRegistry, *, limits: Limits, context: Context) -> None:
        self._hooks = hooks
        self._limits = limits
        self._context = context
        self._watched: dict[tuple[str, str], set[Permission]] = {}

    async def check(self, client: Client, handle: RoomHandle, *, purpose: Purpose) -> None:
        """Check that *client* may enter or read a room.

        Raises:
            RoomNotFound: The client may not even see it.
            JoinDenied: It is not for this client, or a guard says so.
            CommandError: A guard raised it.
            Internal: A guard failed.
        """
        if not await self.can_see(client, handle):
            raise RoomNotFound
        if isinstance(handle.room_type.config, DirectRoom) and client.user_id not in handle.params.values():
            raise JoinDenied
        for hook in self._hooks.matching("before_join", handle.room_id):
            allowed = await self._hooks.ask(
                "before_join",
                hook,
                seconds=self._limits.hook_seconds,
                room_id=handle.room_id,
                context=self._context,
                client=client,
                room=handle,
                params=handle.params,
                purpose=purpose,
            )
            if allowed is False:
                raise JoinDenied

    def is_open(self, room_id: str, found: tuple[RoomType, dict[str, str]], user_id: str) -> bool | None:
        """Whether `check` would pass for a user of a room, as far as that can be told without asking a hook.

        Args:
            found: The room's type and parameters.

        Returns:
            None where there are hooks to ask.
        """
        room_type, params = found
        if isinstance(room_type.config, DirectRoom) and user_id not in params.values():
            return False
        for name in ("can_see", "before_join"):
            for _ in self._hooks.matching(name, room_id):
                return None
        return True

    async def can_see(self, client: Client, handle: RoomHandle) -> bool:
        """Whether *client* may know of a room: every ``can_see`` hook returns something true."""
        for hook in self._hooks.matching("can_see", handle.room_id):
            try:
                is_visible = await self._hooks.ask(
                    "can_see",
                    hook,
                    seconds=self._limits.hook_seconds,
                    room_id=handle.room_id,
                    context=self._context,
                    client=client,
                    room=handle,
                )
            except CommandError:
                return False
            if not is_visible:
                return False
        return True

    async def may_see_sessions(self, client: Client, user_id: str | None) -> bool:
        """Whether *client* may list the sessions of a user (None: of everyone): a ``can_see_sessions`` hook says so.

        Raises:
            CommandError: A hook raised it.
            Internal: A hook failed.
        """
        hooks = list(self._hooks.matching("can_see_sessions"))
        for hook in hooks:
            if not await self._hooks.ask(
                "can_see_sessions",
                hook,
                seconds=self._limits.hook_seconds,
                context=self._context,
                client=client,
                user_id=user_id,
            ):
                return False
        return bool(hooks)

    @property
    def is_all_visible(self) -> bool:
        """Whether there is no ``can_see`` hook."""
        return not self._hooks.has("can_see")

    def may_publish(
        self, event_type: EventType[Any], client: Client, handle: Callable[[], RoomHandle]
    ) -> bool:
        """Whether *client* may trigger an event, as its declaration says.

        Args:
            handle: Makes the room's handle, where it is asked for.

        Raises:
            Internal: The declared function failed.
        """
        publish = event_type.publish
        if isinstance(publish, str):
            return publish == "client"
        try:
            wanted = _wanted(publish)
            offered = {
                "context": lambda: self._context,
                "client": lambda: client,
                "room": handle,
            }
            allowed = publish(**{name: offered[name]() for name in offered if name in wanted})
            if inspect.isawaitable(allowed):
                # It counts as true, and nobody awaits it here.
                if inspect.iscoroutine(allowed):
                    allowed.close()
                raise TypeError("publish returned an awaitable; give a plain function")
            return bool(allowed)
        except CommandError:
            raise
        except Exception:
            self._hooks.log_failure("publish", None, event_type.name)
            raise Internal from None

    @contextmanager
    def watch(self, user_id: str, room_id: str) -> Iterator[Permission]:
        """Yield a permission that `revoke` takes back, for as long as an answer is being made."""
        key = (user_id, room_id)
        permission = Permission()
        self._watched.setdefault(key, set()).add(permission)
        try:
            yield permission
        finally:
            watched = self._watched[key]
            watched.discard(permission)
            if not watched:
                del self._watched[key]

    def revoke(self, user_id: str, room_id: str, *, reason: str) -> None:
        """Take back what a user has begun in a room."""
        for permission in self._watched.get((user_id, room_id), ()):
            permission.revoke(reason)

    def revoke_room(self, room_id: str, *, reason: str) -> None:
        """Take back what anyone has begun in a room. Costs a look at everything that is being answered."""
        for (_, watched_room), permissions in self._watched.items():
            if watched_room == room_id:
                for permission in permissions:
                    permission.revoke(reason)


@lru_cache(maxsize=1024)
def _wanted(publish: Callable[..., bool]) -> frozenset[str]:
    """Return what a checked ``publish`` function asks for."""
    parameters = inspect.signature(publish).parameters.values()
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
        return frozenset({"context", "client", "room"})
    return frozenset(parameter.name for parameter in parameters)
