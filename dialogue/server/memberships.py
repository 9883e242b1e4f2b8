"""The rooms of one connection: joining, leaving, and what it is subscribed to.

Joining registers, takes the room's seq, answers up to it, and lets what came meanwhile follow.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from .. import protocol
from ..core.room import ALL, NONE, Room, Subscriber, Subscription
from ..errors import EventNotAllowed, InvalidRequest, NotJoined, RateLimited, RoomFull, Unauthenticated
from ..protocol import Ref
from ..storage.directory import Place
from . import history
from .access import Permission
from .handles import RoomHandle
from .turns import Turns

if TYPE_CHECKING:
    from .hub import Hub
    from .session import Session


class Memberships:
    """The rooms that one connection is in, in joining order.

    Attributes:
        by_room: By room id. A `Subscriber` is one membership: whoever awaits something on its behalf looks here
            afterwards whether it is still this one.
    """

    def __init__(self, session: Session) -> None:
        self._session = session
        self._hub = session.hub
        self.by_room: dict[str, Subscriber] = {}
        # One join at a time per room, whether the client or a hook asks.
        self._joining = Turns()
        self._permissions: dict[str, Permission] = {}
        # Those of which ``on_joined`` was called. Kept: a room that is deleted has no handle any more.
        self._announced: dict[str, RoomHandle] = {}

    def member(self, room_id: str) -> tuple[Room, Subscriber]:
        """Return a room that the connection is in, and its membership.

        Raises:
            RoomNotFound: There is no such room.
            NotJoined: The connection is not in it.
        """
        subscriber = self.by_room.get(room_id)
        room = self._hub.rooms.get(room_id)
        if subscriber is None or room is None:
            if subscriber is None:
                RoomHandle(self._hub, room_id)  # raises RoomNotFound where there is none
            raise NotJoined
        return room, subscriber

    def is_current(self, room_id: str, subscriber: Subscriber) -> bool:
        """Whether *subscriber* is still the connection's membership."""
        return self.by_room.get(room_id) is subscriber

    # -- joining -------------------------------------------------------------------------------------------------

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
            Unauthenticated: The connection is not connected yet.
            CommandError: The room does not exist, is full, a guard denies, or the membership ended meanwhile.
        """
        session, hub = self._session, self._hub
        if not session.is_connected:
            # A hook may ask before it is known who is to be admitted; who is counted here would be somebody else.
            raise Unauthenticated("it is not known yet whose connection it is")
        if sync is not None and sync < 0:
            raise InvalidRequest("sync is at least 0")
        handle = RoomHandle(hub, room_id)
        async with self._joining.take(room_id):
            with hub.access.watch(session.identity.user_id, room_id) as permission:
                self._permissions[room_id] = permission
                try:
                    await hub.access.check(session.client, handle, purpose="join")
                    is_new = await self._enter(
                        handle, permission, ref=ref, since=since, sync=sync, events=events
                    )
                finally:
                    del self._permissions[room_id]
        if is_new:
            await hub.hooks.notify(
                "on_joined",
                seconds=hub.limits.hook_seconds,
                room_id=room_id,
                context=hub.context,
                client=session.client,
                room=handle,
            )

    async def _enter(
        self,
        handle: RoomHandle,
        permission: Permission,
        *,
        ref: Ref,
        since: protocol.Since | None,
        sync: int | None,
        events: protocol.EventNames | None,
    ) -> bool:
        """Register and answer a permitted join; return whether the connection was not in the room before."""
        session, hub, room_id = self._session, self._hub, handle.room_id
        room = await hub.open_rooms.open(room_id)
        if session.is_closing:
            raise NotJoined("the connection has ended")
        permission.check()
        hub.registry.check_usable(room_id)
        subscriber = self.by_room.get(room_id)
        is_new = subscriber is None
        subscription = wanted(hub, room, events) if events is not None else None
        if subscriber is None:
            if len(self.by_room) >= hub.limits.rooms_per_client:
                raise RateLimited(f"a connection is in at most {hub.limits.rooms_per_client} rooms")
            if handle.is_full:
                raise RoomFull
            if subscription is None:
                subscription = default_subscription(room)
            subscriber = Subscriber(session.identity.user_id, session, subscription)
            # Registered and S taken in one step: every later event is held and follows the answer.
            hub.add_subscriber(room, subscriber)
            self.by_room[room_id] = subscriber
        before = subscriber.subscription
        if not is_new and subscription is not None:
            room.resubscribe(subscriber, subscription)
        subscriber.held = []
        subscriber.held_bytes = 0
        through, counting = room.last_seq, room.last_unread_position
        try:
            message = await history.joined(
                hub, room, subscriber, through=through, since=since, sync=sync, ref=ref
            )
        except BaseException:
            if is_new and self.is_current(room_id, subscriber):
                self._drop(room_id)
            elif self.is_current(room_id, subscriber):
                room.resubscribe(subscriber, before)
                self._release(subscriber)
            raise
        if not self.is_current(room_id, subscriber):
            raise NotJoined("left while joining")
        session.send([message])
        self._release(subscriber)
        if is_new:
            self._announced[room_id] = handle
            hub.inbox.joined(session, handle, Place(through, counting))
            hub.session_records.changed(session)
        return is_new

    def _release(self, subscriber: Subscriber) -> None:
        held, subscriber.held = subscriber.held, None
        for frame in held or ():
            self._session.deliver(subscriber, frame)

    # -- leaving -------------------------------------------------------------------------------------------------

    async def leave(self, room_id: str, *, reason: str | None = None, ref: Ref = None) -> None:
        """Leave a room: answer *ref* if the client asked, or tell the client the *reason* if it did not.

        Answers in flight for the room are dropped, and a join that is under way does not end in one.

        Raises:
            RoomNotFound, NotJoined: See `member`.
        """
        permission = self._permissions.get(room_id)
        if permission is not None and reason is not None:
            permission.is_revoked = True
        self.member(room_id)
        handle = self.drop(room_id, reason=reason)
        if ref is not None:
            self._session.send([protocol.encode_ok(ref, room=room_id)])
        if handle is not None:
            await self.notify_left(handle)

    def drop(self, room_id: str, *, reason: str | None) -> RoomHandle | None:
        """End the membership in a room, at once, and tell the client if there is a *reason*.

        Returns:
            What `notify_left` is to be called with; None if ``on_joined`` never was.
        """
        self._drop(room_id)
        if reason is not None:
            self._session.send([protocol.encode_message({"type": "left", "room": room_id, "reason": reason})])
        self._hub.session_records.changed(self._session)
        return self._announced.pop(room_id, None)

    def end_all(self) -> list[RoomHandle]:
        """Leave everything at once, for a connection that has ended; return the rooms to `notify_left` of."""
        for room_id in list(self.by_room):
            self._drop(room_id)
        left, self._announced = self._announced, {}
        return list(left.values())

    def _drop(self, room_id: str) -> None:
        subscriber = self.by_room.pop(room_id)
        self._hub.remove_subscriber(room_id, subscriber)

    async def notify_left(self, handle: RoomHandle) -> None:
        """Call ``on_left``."""
        hub = self._hub
        await hub.hooks.notify(
            "on_left",
            seconds=hub.limits.hook_seconds,
            room_id=handle.room_id,
            context=hub.context,
            client=self._session.client,
            room=handle,
        )

    # -- subscriptions -------------------------------------------------------------------------------------------

    def subscriptions(self, room_id: str) -> list[str] | str:
        """Return what the connection gets from a room, as on the wire."""
        return history.subscription_names(*self.member(room_id))

    def subscribe(self, room_id: str, events: protocol.EventNames) -> Room:
        """Get further events of a room, from the next one on; return the room.

        Raises:
            CommandError: The connection is not in the room, it has no such event, or there are too many.
        """
        room, subscriber = self.member(room_id)
        if events == "*":
            return self._resubscribe(room, subscriber, ALL)
        check_names(self._hub, room, events)
        return self._resubscribe(room, subscriber, subscriber.subscription.add(events))

    def unsubscribe(self, room_id: str, events: protocol.EventNames) -> Room:
        """Get no more of these events of a room, from the next one on; return the room.

        Raises:
            CommandError: See `subscribe`.
        """
        room, subscriber = self.member(room_id)
        if events == "*":
            return self._resubscribe(room, subscriber, NONE)
        check_names(self._hub, room, events)
        return self._resubscribe(room, subscriber, subscriber.subscription.remove(events))

    def _resubscribe(self, room: Room, subscriber: Subscriber, subscription: Subscription) -> Room:
        most = len(room.room_type.events) + self._hub.limits.event_names_per_room
        if len(subscription.names) > most:
            raise InvalidRequest(f"a subscription names at most {most} events here")
        room.resubscribe(subscriber, subscription)
        return room


def default_subscription(room: Room) -> Subscription:
    """Return what a join gets that names no events."""
    default = room.room_type.default_subscriptions
    return ALL if default is None else Subscription(False, default)


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
