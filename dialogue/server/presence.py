"""Presence: who is in a room, counted per user over their connections; told on change, never stored.

Changes are gathered for a short time, so that a thousand who come at once are a few messages and not a thousand to
each of a thousand. Who leaves and comes back within that time was never away.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from .. import protocol
from ..core.room import Room, Subscriber
from ..errors import PermissionDenied
from ..protocol import Ref
from .outbox import Frame

if TYPE_CHECKING:
    from .hub import Hub

ROOM_SIZE_PER_STEP = 1000
"""In a room with so many connections changes are gathered for twice as long, with twice as many for three times."""


class Presence:
    """Tells rooms who has come and gone."""

    def __init__(self, hub: Hub) -> None:
        self._hub = hub
        # By room: of each user that has come or gone since the last message, whether they were there before; None
        # where those who are to be told do not all know the same of it.
        self._changed: dict[str, dict[str, bool | None]] = {}
        self._timers: dict[str, asyncio.TimerHandle] = {}

    def entered(self, room: Room, subscriber: Subscriber) -> None:
        """Note a connection that has entered *room*."""
        if room.user_entered(subscriber.user_id):
            self._note(room, subscriber.user_id, was_there=False)

    def left(self, room: Room, subscriber: Subscriber) -> None:
        """Note a connection that has left *room*."""
        if room.user_left(subscriber.user_id):
            self._note(room, subscriber.user_id, was_there=True)

    def snapshot(self, room: Room, *, ref: Ref = None, is_followed: bool) -> bytes:
        """Return the ``presence`` message that answers *ref*: who is there.

        A change that was on its way already is in it, so that one that follows may tell what is known.

        Args:
            is_followed: Whether whoever gets it gets the changes after it, too.

        Raises:
            PermissionDenied: The room tells no presence.
        """
        if not room.room_type.config.presence:
            raise PermissionDenied("the room does not tell who is in it")
        message: dict[str, Any] = {"type": "presence"}
        if ref is not None:
            message["ref"] = ref
        # Whoever gets this knows another state than those who wait for the message. If the user is back to where they
        # were by then, that is no news to the others, and still is to this one.
        changed = self._changed.get(room.room_id)
        if changed and is_followed:
            self._changed[room.room_id] = dict.fromkeys(changed)
        users = list(room.users)
        message |= {
            "room": room.room_id,
            "users": users[: self._hub.limits.presence_users],
            "count": len(users),
        }
        return protocol.encode_message(message)

    def forget_room(self, room_id: str) -> None:
        """Tell nothing more of a room that was deleted: who was in it says nothing of another one of its id."""
        timer = self._timers.pop(room_id, None)
        if timer is not None:
            timer.cancel()
        self._changed.pop(room_id, None)

    def close(self) -> None:
        """Tell nothing more."""
        for timer in self._timers.values():
            timer.cancel()
        self._timers.clear()
        self._changed.clear()

    def _note(self, room: Room, user_id: str, *, was_there: bool) -> None:
        if not room.room_type.config.presence or self._hub.is_stopping:
            return
        room_id = room.room_id
        self._changed.setdefault(room_id, {}).setdefault(user_id, was_there)
        if room_id not in self._timers:
            seconds = self._hub.limits.presence_seconds * (1 + room.size // ROOM_SIZE_PER_STEP)
            self._timers[room_id] = asyncio.get_running_loop().call_later(seconds, self._tell, room_id)

    def _tell(self, room_id: str) -> None:
        del self._timers[room_id]
        changed = self._changed.pop(room_id)
        room = self._hub.rooms.get(room_id)
        if room is None:
            return
        joined = [user for user, was_there in changed.items() if user in room.users and was_there is not True]
        left = [
            user for user, was_there in changed.items() if user not in room.users and was_there is not False
        ]
        most = self._hub.limits.presence_users
        messages = [
            protocol.encode_message(
                {
                    "type": "presence",
                    "room": room_id,
                    **({"joined": joined[start : start + most]} if joined[start : start + most] else {}),
                    **({"left": left[start : start + most]} if left[start : start + most] else {}),
                    "count": len(room.users),
                }
            )
            for start in range(0, max(len(joined), len(left)), most)
        ]
        if not messages:
            return
        frame = Frame(protocol.encode_frame(messages))
        for subscriber in list(room.subscribers()):
            subscriber.sink.deliver(subscriber, frame)
        self._hub.followers.tell(room_id, messages)
