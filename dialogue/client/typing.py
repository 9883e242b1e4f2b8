"""Who is typing: told by an ephemeral event, kept for a few seconds, stored nowhere.

By convention the event's data is ``{"is_typing": true}`` or ``{"is_typing": false}``; any other data says that its
sender is typing. `Typists` and `OwnTyping` are pure: time comes in as ``now``, in seconds of any monotonic clock.
`Typing` is what an application gets.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from typing import Any

from .handlers import Handlers, Unsubscribe

TYPING_SECONDS = 6.0
"""How long someone is taken to be typing who says nothing more of it."""

REPEAT_SECONDS = 3.0
"""How often it is said at most while it goes on: one that is lost, or late, does no harm."""

MAX_TYPISTS = 1000
"""Of a room in which more users type at a time, those that began first are left out."""


def is_typing(data: Any) -> bool:
    """Whether an event with *data* says that its sender is typing."""
    return not (isinstance(data, dict) and data.get("is_typing") is False)


class Typists:
    """Who is typing in one room.

    Args:
        seconds: How long an entry stays without another event.
        max_users: Most entries; the one that began first makes room for another.

    Each method that takes something in returns whether `users` has changed.
    """

    def __init__(self, *, seconds: float = TYPING_SECONDS, max_users: int = MAX_TYPISTS) -> None:
        if not seconds > 0:
            raise ValueError(f"seconds is above 0, not {seconds!r}")
        self._seconds = seconds
        self._max_users = max_users
        self._until: dict[str, float] = {}

    @property
    def users(self) -> tuple[str, ...]:
        """Those who are typing, in the order in which they began."""
        return tuple(self._until)

    @property
    def deadline(self) -> float | None:
        """When `expire` has something to do if nothing else happens before; None for never."""
        return min(self._until.values(), default=None)

    def heard(self, user_id: str, data: Any, now: float) -> bool:
        """Take in an event of the typing kind."""
        if not is_typing(data):
            return self.stopped([user_id])
        is_new = user_id not in self._until
        if is_new and len(self._until) >= self._max_users:
            del self._until[next(iter(self._until))]
        self._until[user_id] = now + self._seconds
        return is_new

    def stopped(self, user_ids: Iterable[str]) -> bool:
        """Take in that users have sent what they typed, or have left."""
        before = len(self._until)
        for user_id in user_ids:
            self._until.pop(user_id, None)
        return len(self._until) < before

    def expire(self, now: float) -> bool:
        """Drop those of whom nothing was heard for too long."""
        return self.stopped([user_id for user_id, until in self._until.items() if now >= until])

    def clear(self) -> bool:
        """Drop everyone."""
        return self.stopped(self.users)


class OwnTyping:
    """What is to be said of one's own typing: changes, and from time to time that it goes on.

    Args:
        repeat_seconds: See `REPEAT_SECONDS`.
    """

    def __init__(self, *, repeat_seconds: float = REPEAT_SECONDS) -> None:
        self._repeat_seconds = repeat_seconds
        self._said_at: float | None = None

    def should_say(self, is_typing: bool, now: float) -> bool:
        """Note what is so now; return whether it is to be told."""
        if not is_typing:
            was_typing, self._said_at = self._said_at is not None, None
            return was_typing
        if self._said_at is not None and now < self._said_at + self._repeat_seconds:
            return False
        self._said_at = now
        return True

    def forget(self) -> None:
        """What was said is over: a recorded event ends it for everyone, or it was never told."""
        self._said_at = None


class Typing:
    """Who is typing in a room, from `Room.typing_users`: everyone but this client's own user.

    An entry goes when its user says so, triggers a recorded event that this client receives, leaves the room, or is
    not heard of for some seconds. `close` it when it is not shown any more; leaving the room does.
    """

    def __init__(
        self,
        *,
        seconds: float,
        own_user: Callable[[], str | None],
        notify: Callable[[Typing], None],
        on_close: Callable[[Typing], None],
    ) -> None:
        self._typists = Typists(seconds=seconds)
        self._own_user = own_user
        self._notify = notify
        self._on_close = on_close
        self._handlers = Handlers()
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        self._is_closed = False

    @property
    def users(self) -> tuple[str, ...]:
        """Those who are typing now, in the order in which they began; empty once it is closed."""
        return self._typists.users

    def on_change(self, fn: Callable[[], Any]) -> Unsubscribe:
        """Call *fn* when `users` has changed; several changes may be one call.

        Returns:
            A function that takes the handler away; it may be called twice.
        """
        return self._handlers.add("change", fn)

    def close(self) -> None:
        """Follow the room no more. May be called twice."""
        if self._is_closed:
            return
        self._is_closed = True
        self._took_in(self._typists.clear())
        self._on_close(self)

    # ---- the room's side

    def heard(self, user_id: str, data: Any) -> None:
        """Take in an event of the typing kind."""
        if not self._is_closed and user_id != self._own_user():
            self._took_in(self._typists.heard(user_id, data, self._loop.time()))

    def stopped(self, user_ids: Iterable[str]) -> None:
        """Take in that users have sent what they typed, or have left."""
        self._took_in(self._typists.stopped(user_ids))

    def changed(self) -> tuple[Callable[..., Any], ...]:
        """Return the handlers that are to be called after a change."""
        return self._handlers.get("change")

    def _took_in(self, has_changed: bool) -> None:
        deadline = self._typists.deadline
        if self._timer is not None and (deadline is None or self._timer.when() > deadline):
            self._timer.cancel()
            self._timer = None
        # One that is too early comes back here; so an event need not move it.
        if self._timer is None and deadline is not None:
            self._timer = self._loop.call_at(deadline, self._on_timer)
        if has_changed:
            self._notify(self)

    def _on_timer(self) -> None:
        self._timer = None
        self._took_in(self._typists.expire(self._loop.time()))
