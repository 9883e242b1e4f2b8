"""Joining: register, take the room's seq, answer up to it, and let what came meanwhile follow."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import TYPE_CHECKING

from .. import protocol
from ..core.room import ALL, NONE, Room, Subscriber, Subscription
from ..errors import (
    CommandError,
    EventNotAllowed,
    Internal,
    InvalidRequest,
    JoinDenied,
    NotJoined,
    RateLimited,
    RoomFull,
)
from ..protocol import Ref
from . import history
from .handles import RoomHandle

if TYPE_CHECKING:
    from .hub import Hub
    from .session import Session


class Joins:
    """The joins of one connection: one at a time per room, whether the client or a hook asks."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._in_progress: dict[str, asyncio.Event] = {}
        self._announced: set[str] = set()

    def forget(self, room_id: str) -> bool:
        """Note that a room was left; return whether ``on_left`` should be called, because ``on_joined`` was."""
        was_announced = room_id in self._announced
        self._announced.discard(room_id)
        return was_announced

    async def join(
        self,
        room_id: str,
        *,
        ref: Ref,
        since: protocol.Since | None = None,
        sync: int | None = None,
        events: protocol.EventNames | None = None,
    ) -> None:
        """Join a room and send ``joined`` (docs: reference/protocol.md, Joining).

        Raises:
            CommandError: The room does not exist, is full, a guard denies, or the membership ended meanwhile.
        """
        session, hub = self._session, self._session.hub
        if sync is not None and sync < 0:
            raise InvalidRequest("sync is at least 0")
        handle = RoomHandle(hub, room_id)
        while (other := self._in_progress.get(room_id)) is not None:
            await other.wait()  # a hook and the client may join at once: one after the other
        ended = self._in_progress[room_id] = asyncio.Event()
        try:
            await self._check_access(handle)
            room = await hub.open_rooms.open(room_id)
            if session.is_closing:
                raise NotJoined("the connection has ended")
            subscriber = session.memberships.get(room_id)
            is_new = subscriber is None
            subscription = wanted(hub, room, events) if events is not None else None
            if subscriber is None:
                if len(session.memberships) >= hub.limits.rooms_per_client:
                    raise RateLimited(f"a connection is in at most {hub.limits.rooms_per_client} rooms")
                if handle.is_full:
                    raise RoomFull
                default = room.room_type.default_subscriptions
                if subscription is None:
                    subscription = ALL if default is None else Subscription(False, default)
                subscriber = Subscriber(session.identity.user_id, session, subscription)
                # Registered and S taken in one step: every later event is held and follows the answer.
                hub.add_subscriber(room, subscriber)
                session.memberships[room_id] = subscriber
            before = subscriber.subscription
            if not is_new and subscription is not None:
                room.resubscribe(subscriber, subscription)
            subscriber.held = []
            subscriber.held_bytes = 0
            through = room.last_seq
            try:
                message = await history.joined(
                    hub, room, subscriber, through=through, since=since, sync=sync, ref=ref
                )
            except BaseException:
                if is_new and session.memberships.get(room_id) is subscriber:
                    del session.memberships[room_id]
                    hub.remove_subscriber(room_id, subscriber)
                elif session.memberships.get(room_id) is subscriber:
                    room.resubscribe(subscriber, before)
                    self._release(subscriber)
                raise
            if session.memberships.get(room_id) is not subscriber:
                raise NotJoined("left while joining")
            session.send([message])
            self._release(subscriber)
            if is_new:
                self._announced.add(room_id)
        finally:
            del self._in_progress[room_id]
            ended.set()
        if is_new:
            await hub.hooks.notify(
                "on_joined",
                seconds=hub.limits.hook_seconds,
                room_id=room_id,
                client=session.client,
                room=handle,
            )

    def _release(self, subscriber: Subscriber) -> None:
        held, subscriber.held = subscriber.held, None
        for frame in held or ():
            self._session.send_held(frame)

    async def _check_access(self, handle: RoomHandle) -> None:
        session, hub = self._session, self._session.hub
        for hook in hub.hooks.matching("before_join", handle.room_id):
            try:
                allowed = await hub.hooks.invoke(
                    "before_join",
                    hook,
                    seconds=hub.limits.hook_seconds,
                    context=hub.context,
                    client=session.client,
                    room=handle,
                    params=handle.params,
                    purpose="join",
                )
            except CommandError:
                raise
            except Exception:
                # Fail closed: a guard that cannot decide keeps the door shut.
                hub.log.exception("before_join failed (room %r)", handle.room_id)
                raise Internal from None
            if allowed is False:
                raise JoinDenied


def wanted(hub: Hub, room: Room, events: protocol.EventNames) -> Subscription:
    """Return the subscription that a join asks for."""
    if events == "*":
        return ALL
    check_names(hub, room, events)
    return NONE.add(events)


def check_names(hub: Hub, room: Room, names: Sequence[str]) -> None:
    """Check that a room may have events called *names*.

    Raises:
    InvalidRequest: There are more of them than a room may have.
    EventNotAllowed: It has no such event.
    """
    if len(names) > len(room.room_type.events) + hub.limits.event_names_per_room:
        raise InvalidRequest("too many event names")
    for name in names:
        if room.room_type.event_type(name) is None:
            raise EventNotAllowed("the room has no such event")
