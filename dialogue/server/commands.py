"""What the commands of a connection do (docs: reference/protocol.md, Commands).

They are taken one after the other, so those for one room take effect in the order sent; a trigger does not wait for
its append, and history is read beside (its answers are matched by ref). What a command awaits, other connections, the
application or a stop may change meanwhile: after every await the membership is looked at again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

from .. import protocol
from ..config import EventType
from ..core.room import Room, Subscriber
from ..errors import CommandError, Internal, NotJoined, PermissionDenied, RateLimited, Unauthenticated
from ..events import Draft
from ..limits import Limits
from ..storage.base import Appended
from . import history
from .authentication import authenticate
from .rates import spend

if TYPE_CHECKING:
    from .session import Session

_PAGES_AT_ONCE = 16
"""Pages from memory after which others have their turn: one frame may ask for hundreds."""


def greeting(user_id: str, limits: Limits) -> dict[str, Any]:
    """Return what a client is told of itself and of the server, over the socket and over HTTP."""
    return {
        "user_id": user_id,
        "protocol": protocol.PROTOCOL_VERSION,
        "ping_seconds": limits.ping_seconds,
        "limits": {
            "message_bytes": limits.message_bytes,
            "frame_bytes": limits.frame_bytes,
            "commands_per_frame": limits.commands_per_frame,
            "page_events": limits.page_events,
            "rooms_per_client": limits.rooms_per_client,
            "key_length": limits.key_length,
            "meta_bytes": limits.meta_bytes,
        },
    }


class Commands:
    """The commands of one connection."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._hub = session.hub
        self._limits = session.hub.limits
        self._has_asked = False
        self._pages_at_once = 0
        self._reads: set[asyncio.Task[None]] = set()
        self._read_slots = asyncio.Semaphore(self._limits.reads_in_flight)

    def take(self, command: Any) -> Awaitable[None] | None:
        """Do what *command* says, or return what is left to await for it.

        Most triggers leave nothing, and a coroutine for each would be a part of their cost that shows.

        Raises:
            CommandError: It is refused.
        """
        return self._HANDLERS[type(command)](self, command)

    def close(self) -> None:
        """Give up the reads that are running."""
        for task in self._reads:
            task.cancel()

    def _send_ok(self, command: protocol.Command, **fields: Any) -> None:
        """Answer a command that was done, if it asks for an answer."""
        if command.ref is not None:
            self._session.send([protocol.encode_ok(command.ref, **fields)])

    def _spend_read(self) -> None:
        session = self._session
        spend(session.heard, session.rates.reads, session.user_rates.reads)

    def _spend_trigger(self) -> None:
        session = self._session
        session.rates.spend_trigger(session.heard)
        session.user_rates.spend_trigger(session.heard)

    # -- the connection ------------------------------------------------------------------------------------------

    async def _connect(self, command: protocol.Connect) -> None:
        session, hub = self._session, self._hub
        if self._has_asked:
            # Each asks the application who it is: as often as one may join, and no oftener.
            spend(session.heard, session.rates.joins)
        self._has_asked = True
        hub.connections.asks(session)
        with session.connect_timer_paused():
            await hub.pacer.wait()
            try:
                identity = session.known_identity or await authenticate(
                    hub,
                    session.request,
                    command.auth or {},
                    anonymous=session.identity,
                )
            except Unauthenticated as error:
                session.refuse(command.ref, error)
                session.close(protocol.CLOSE_UNAUTHENTICATED, "not authenticated")
                return
            is_first = not session.is_connected
            if not is_first and identity.user_id != session.identity.user_id:
                raise PermissionDenied("another user needs another connection")
            if session.is_closing:
                return
            try:
                session.identify(identity)
            except RateLimited as error:
                session.refuse(command.ref, error)
                session.close(protocol.CLOSE_TOO_MANY_ERRORS, "too many connections of this user")
                return
        message: dict[str, Any] = {"type": "connected"}
        if command.ref is not None:
            message["ref"] = command.ref
        message |= {"client_id": session.client.client_id, **greeting(identity.user_id, self._limits)}
        session.send([protocol.encode_message(message)])
        if is_first:
            await hub.hooks.notify(
                "on_connected", seconds=self._limits.hook_seconds, context=hub.context, client=session.client
            )

    async def _pong(self, command: protocol.Pong) -> None:
        """Hearing it was enough."""

    # -- rooms ---------------------------------------------------------------------------------------------------

    async def _join(self, command: protocol.Join) -> None:
        session = self._session
        spend(session.heard, session.rates.joins, session.user_rates.joins)
        await self._hub.pacer.wait()
        await session.memberships.join(
            command.room, ref=command.ref, since=command.since, sync=command.sync, events=command.events
        )

    async def _leave(self, command: protocol.Leave) -> None:
        await self._session.memberships.leave(command.room, ref=command.ref)

    async def _subscribe(self, command: protocol.Subscribe) -> None:
        self._tell_subscriptions(command, self._session.memberships.subscribe(command.room, command.events))

    async def _unsubscribe(self, command: protocol.Unsubscribe) -> None:
        self._tell_subscriptions(command, self._session.memberships.unsubscribe(command.room, command.events))

    def _tell_subscriptions(self, command: protocol.Subscribe | protocol.Unsubscribe, room: Room) -> None:
        names = self._session.memberships.subscriptions(room.room_id)
        self._send_ok(command, room=room.room_id, subscriptions=names, seq=room.last_seq)

    async def _rooms(self, command: protocol.Rooms) -> None:
        session = self._session
        self._spend_read()
        records = await self._hub.registry.visible_to(session.client)
        message: dict[str, Any] = {"type": "rooms", "rooms": records}
        if command.ref is not None:
            message["ref"] = command.ref
        session.send([protocol.encode_message(message)])

    async def _create_room(self, command: protocol.CreateRoom) -> None:
        session = self._session
        spend(session.heard, session.user_rates.room_changes)
        await self._hub.registry.create_for(
            session.client,
            command.room,
            name=command.name,
            description=command.description,
            max_size=command.max_size,
        )
        self._send_ok(command, room=command.room)

    async def _delete_room(self, command: protocol.DeleteRoom) -> None:
        session = self._session
        spend(session.heard, session.user_rates.room_changes)
        await self._hub.registry.delete_for(session.client, command.room)
        self._send_ok(command, room=command.room)

    async def _presence(self, command: protocol.Presence) -> None:
        session = self._session
        self._spend_read()
        room, _ = session.memberships.member(command.room)
        session.send([self._hub.presence.snapshot(room, ref=command.ref, is_followed=True)])

    # -- publishing ----------------------------------------------------------------------------------------------

    def _trigger(self, command: protocol.Trigger) -> Awaitable[None] | None:
        """Submit the event; with hooks to ask, return what does so."""
        session, hub = self._session, self._hub
        room, subscriber = session.memberships.member(command.room)
        self._spend_trigger()
        event_type, draft = hub.admission.admit(
            room,
            session.client,
            command.event,
            data=bytes(command.data),
            meta=bytes(command.meta),
            key=command.key,
            now=session.heard,
        )
        if hub.admission.has_hooks:
            return self._ask_hooks(command, room, subscriber, event_type, draft)
        hub.submit(room, draft, session, command.ref)
        return None

    async def _ask_hooks(
        self,
        command: protocol.Trigger,
        room: Room,
        subscriber: Subscriber,
        event_type: EventType[Any],
        draft: Draft,
    ) -> None:
        self._publish(command, room, subscriber, await self._hub.admission.ask_hooks(room, event_type, draft))

    async def _edit(self, command: protocol.Edit) -> None:
        await self._change(command, bytes(command.data))

    async def _delete(self, command: protocol.Delete) -> None:
        await self._change(command, None)

    async def _change(self, command: protocol.Edit | protocol.Delete, data: bytes | None) -> None:
        session, hub = self._session, self._hub
        room, subscriber = session.memberships.member(command.room)
        self._spend_trigger()
        admitted = await hub.changes.admit(
            room,
            command.seq,
            encode=None if data is None else hub.changes.encoder(room, data),
            sender=session.user_id,
            client=session.client,
            key=hub.admission.check_key(command.key),
        )
        self._publish(command, room, subscriber, admitted)

    def _publish(
        self,
        command: protocol.Trigger | protocol.Edit | protocol.Delete,
        room: Room,
        subscriber: Subscriber,
        admitted: Draft | Appended,
    ) -> None:
        """Submit what hooks have admitted, or answer with what an earlier try has recorded."""
        session = self._session
        if not session.memberships.is_current(command.room, subscriber):
            raise NotJoined  # removed while hooks were asked
        if isinstance(admitted, Draft):
            self._hub.submit(room, admitted, session, command.ref)
        elif command.ref is not None:
            session.send([protocol.encode_accepted(command.ref, room.room_id, *admitted.ack)])

    # -- reading -------------------------------------------------------------------------------------------------

    def _history(self, command: protocol.HistoryRead) -> Awaitable[None] | None:
        """Answer at once from memory; for what is not all there, return what waits for the log and the archive."""
        session = self._session
        room, subscriber = session.memberships.member(command.room)
        self._spend_read()
        read = history.parse(self._hub, room, command)
        message = history.answer_nowait(self._hub, room, read, user_id=session.user_id, ref=command.ref)
        if message is None:
            return self._beside(command, partial(self._answer_history, command, room, subscriber, read))
        session.send([message])
        self._pages_at_once += 1
        if self._pages_at_once < _PAGES_AT_ONCE:
            return None
        self._pages_at_once = 0
        return asyncio.sleep(0)

    async def _answer_history(
        self, command: protocol.HistoryRead, room: Room, subscriber: Subscriber, read: history.Read
    ) -> None:
        session = self._session
        message = await history.answer(self._hub, room, read, user_id=session.user_id, ref=command.ref)
        # Membership may have ended while the answer was made: what was readable then is not any more.
        if session.memberships.is_current(command.room, subscriber):
            session.send([message])

    async def _beside(self, command: Any, answer: Callable[[], Awaitable[None]]) -> None:
        """Answer a command beside those that follow, once there is a slot for it.

        Waiting for one, while further commands wait too, bounds what one connection can have read for it.
        """
        await self._read_slots.acquire()
        task = asyncio.create_task(self._answer(command, answer), name="dialogue-read")
        self._reads.add(task)
        task.add_done_callback(self._on_read_done)

    async def _answer(self, command: Any, answer: Callable[[], Awaitable[None]]) -> None:
        try:
            await answer()
        except CommandError as error:
            self._session.refuse(command.ref, error)
        except Exception:
            room_id = getattr(command, "room", None)
            self._hub.log.exception("command %s failed (room %r)", type(command).__name__, room_id)
            self._session.refuse(command.ref, Internal())

    def _on_read_done(self, task: asyncio.Task[None]) -> None:
        self._reads.discard(task)
        self._read_slots.release()
        if not task.cancelled() and task.exception() is not None:
            self._hub.log.error("an answer failed", exc_info=task.exception())

    # -- unread --------------------------------------------------------------------------------------------------

    async def _mark_read(self, command: protocol.MarkRead) -> None:
        session = self._session
        self._spend_read()
        unread = await self._hub.inbox.mark(session, command.room, command.seq)
        self._send_ok(command, room=command.room, unread=unread)

    async def _unread(self, command: protocol.Unread) -> None:
        self._spend_read()
        # Guards may be asked of each room.
        await self._beside(command, partial(self._answer_unread, command))

    async def _answer_unread(self, command: protocol.Unread) -> None:
        message: dict[str, Any] = {"type": "unread"}
        if command.ref is not None:
            message["ref"] = command.ref
        message["unread"] = await self._hub.inbox.answer(self._session, command.rooms)
        self._session.send([protocol.encode_message(message)])

    # Of the class: a bound method of each for each connection would be more than a kilobyte.
    _HANDLERS: ClassVar[dict[type, Callable[[Commands, Any], Awaitable[None] | None]]] = {
        protocol.Connect: _connect,
        protocol.Join: _join,
        protocol.Leave: _leave,
        protocol.Subscribe: _subscribe,
        protocol.Unsubscribe: _unsubscribe,
        protocol.Trigger: _trigger,
        protocol.Edit: _edit,
        protocol.Delete: _delete,
        protocol.HistoryRead: _history,
        protocol.Rooms: _rooms,
        protocol.CreateRoom: _create_room,
        protocol.DeleteRoom: _delete_room,
        protocol.Presence: _presence,
        protocol.MarkRead: _mark_read,
        protocol.Unread: _unread,
        protocol.Pong: _pong,
    }
