"""One connection: its commands in order, its memberships, its outbox."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Protocol

from .. import protocol
from ..config import EventType
from ..core import admission
from ..core.limits import TokenBucket
from ..core.room import ALL, NONE, Room, Subscriber, Subscription
from ..errors import (
    CommandError,
    EventNotAllowed,
    Internal,
    InvalidRequest,
    NotJoined,
    PermissionDenied,
    StoreUnavailable,
    Unauthenticated,
    ValidationFailed,
)
from ..events import Ack, Draft
from ..protocol import Ref
from ..storage.base import Appended
from . import history
from .changes import Encode
from .group_commit import Outcome, Submission, ack_of
from .handles import Client, Identity, RoomHandle
from .hub import Hub
from .joining import Joins, check_names
from .outbox import Frame, Outbox
from .stopping import FAREWELL

CLOSE_SECONDS = 10.0
"""How long a peer that does not read has to take the close frame before its socket is dropped."""


class Transport(Protocol):
    """The socket under a session."""

    close_code: int | None

    async def receive(self) -> str | bytes | None:
        """Return the next frame (text, or bytes for a binary one); None when the peer has gone."""

    async def send(self, frame: Frame) -> None:
        """Send one frame; may wait for the peer."""

    async def close(self, code: int, reason: str) -> None:
        """Send a close frame; may wait for the peer."""


class Session:
    """One connection, from its upgrade to its end.

    Commands are taken one after the other, so those for one room take effect in the order sent; a trigger does not
    wait for its append, and history is read beside (its answers are matched by ref). What a command awaits, other
    connections, the application or a stop may change meanwhile: after every await the membership is looked at again.

    Args:
        request: The upgrade request (headers, cookies, query, peer), for ``authenticate``.
    """

    def __init__(self, hub: Hub, transport: Transport, request: Any) -> None:
        self.hub = hub
        self.limits = hub.limits
        self._transport = transport
        self._request = request
        self._outbox = Outbox(
            transport.send, limit_bytes=hub.limits.outbox_bytes, on_overflow=self._on_overflow
        )
        self.client = Client(self, secrets.token_hex(8))
        self.identity = Identity(self.client.client_id)
        self.is_connected = False
        self.memberships: dict[str, Subscriber] = {}
        self._joins = Joins(self)
        self._is_ended = False
        self._connect_timer: asyncio.Timeout | None = None
        self._close: tuple[int, str] | None = None
        self._closing = asyncio.Event()
        self._closed = asyncio.Event()
        self._reads: set[asyncio.Task[None]] = set()
        self._read_slots = asyncio.Semaphore(hub.limits.reads_in_flight)
        self._heard = asyncio.get_running_loop().time()
        self._is_pinged = False
        errors = hub.limits.errors_per_minute
        self._error_bucket = TokenBucket(errors, errors / 60, now=self._heard)
        self._handlers: dict[type, Callable[[Any], Awaitable[None] | None]] = {
            protocol.Connect: self._on_connect,
            protocol.Join: self._on_join,
            protocol.Leave: self._on_leave,
            protocol.Subscribe: self._on_subscribe,
            protocol.Unsubscribe: self._on_unsubscribe,
            protocol.Trigger: self._on_trigger,
            protocol.Edit: self._on_edit,
            protocol.Delete: self._on_delete,
            protocol.HistoryRead: self._on_history,
            protocol.Rooms: self._on_rooms,
            protocol.Pong: self._on_pong,
        }

    # -- life ----------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Serve the connection until it ends, whoever ends it. Leaves nothing behind."""
        self.hub.sessions.add(self)
        if self.hub.is_stopping:
            self.close(protocol.CLOSE_GOING_AWAY, "the server is stopping")
        reader = asyncio.create_task(self._read(), name="dialogue-session-read")
        writer = asyncio.create_task(self._outbox.run(), name="dialogue-session-write")
        closing = asyncio.create_task(self._closing.wait(), name="dialogue-session-closing")
        try:
            await asyncio.wait({reader, writer, closing}, return_when=asyncio.FIRST_COMPLETED)
            if reader.done() and not reader.cancelled() and reader.exception() is not None:
                self.hub.log.error("a connection failed", exc_info=reader.exception())
                self.close(protocol.CLOSE_INTERNAL_ERROR, "internal error")
        finally:
            # From here on nothing is awaited before the rooms are left: a cancelled session must not stay in them.
            self._is_ended = True
            left = self._drop_memberships()
            self.hub.sessions.discard(self)
            for task in (reader, writer, closing, *self._reads):
                if task is not writer or self._outbox.is_closed:
                    task.cancel()
            farewell = self.hub.spawn(self._farewell(left, writer), name=FAREWELL)
            # Whatever becomes of it, the hub tells: a stop that cancels it is no failure of the connection's.
            await asyncio.wait({farewell})

    async def _farewell(self, left: Sequence[str], writer: asyncio.Task[None]) -> None:
        """End the socket, then tell the hooks. Runs as the hub's task: the server may cancel the session's own."""
        try:
            await self._end_socket(writer)
        finally:
            self._closed.set()
        seconds = self.limits.hook_seconds
        for room_id in left:
            handle = RoomHandle(self.hub, room_id)
            await self.hub.hooks.notify(
                "on_left", seconds=seconds, room_id=room_id, client=self.client, room=handle
            )
        if self.is_connected:
            await self.hub.hooks.notify("on_disconnected", seconds=seconds, client=self.client)

    async def _end_socket(self, writer: asyncio.Task[None]) -> None:
        close = self._close
        if close is None and self._transport.close_code == protocol.CLOSE_TOO_BIG:
            # The server under us has closed it already.
            self.hub.metrics.closes.labels(str(protocol.CLOSE_TOO_BIG)).inc()
        try:
            async with self.hub.stop.time_to_close(CLOSE_SECONDS):
                if close is not None and not self._outbox.is_closed:
                    # What was accepted and answered before the close still goes out: acks of a stopping server.
                    await self._outbox.wait_empty()
                self._outbox.close()
                writer.cancel()
                await asyncio.gather(writer, return_exceptions=True)
                if close is not None:
                    self.hub.metrics.closes.labels(str(close[0])).inc()
                    await self._transport.close(*close)
        except Exception as error:
            # The peer has gone, or does not read: the server drops the socket when the session returns.
            self.hub.log.debug("a connection ended without a close frame: %r", error)
        finally:
            self._outbox.close()
            writer.cancel()

    def close(self, code: int, reason: str) -> None:
        """End the connection with *code*; the first call counts."""
        if self._close is None:
            self._close = (code, reason)
            self._closing.set()

    @property
    def is_closing(self) -> bool:
        """Whether the connection has ended, or is about to: nothing may be registered for it any more."""
        return self._close is not None or self._is_ended

    async def wait_closed(self) -> None:
        """Return when the socket has ended."""
        await self._closed.wait()

    def _on_overflow(self) -> None:
        self.close(protocol.CLOSE_SLOW_CONSUMER, "too slow; reconnect and resume")

    def check_silence(self, now: float) -> None:
        """Ping after ``limits.ping_seconds`` of silence; close after twice that."""
        silence = now - self._heard
        if silence >= 2 * self.limits.ping_seconds:
            self.close(protocol.CLOSE_GOING_AWAY, "nothing heard")
        elif silence >= self.limits.ping_seconds and not self._is_pinged and self.is_connected:
            self._is_pinged = True
            self.send([protocol.encode_message({"type": "ping"})])

    def _drop_memberships(self) -> list[str]:
        left = [room_id for room_id in self.memberships if self._joins.forget(room_id)]
        for room_id, subscriber in self.memberships.items():
            self.hub.remove_subscriber(room_id, subscriber)
        self.memberships.clear()
        return left

    # -- reading -------------------------------------------------------------------------------------------------

    async def _read(self) -> None:
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(self.limits.connect_seconds) as self._connect_timer:
                while not self.is_connected:
                    if not await self._read_frame(loop):
                        return
        except TimeoutError:
            if not self.is_connected:
                self.close(protocol.CLOSE_UNAUTHENTICATED, "no connect in time")
            return
        while await self._read_frame(loop):
            pass

    async def _read_frame(self, loop: asyncio.AbstractEventLoop) -> bool:
        """Take one frame; False at the end."""
        if self._outbox.is_above_mark:
            await self._outbox.wait_below_mark()
        frame = await self._transport.receive()
        if frame is None or self._close is not None:
            return False
        self._heard = loop.time()
        self._is_pinged = False
        if isinstance(frame, bytes):
            self.close(protocol.CLOSE_NOT_THIS_PROTOCOL, "frames are text")
            return False
        limit = self.limits.frame_bytes if self.is_connected else self.limits.frame_before_connect_bytes
        # A character is 1 to 4 bytes: most frames are judged without encoding them.
        try:
            data = frame.encode()
        except UnicodeEncodeError:
            self._refuse(None, InvalidRequest("the frame is not Unicode text"))
            return True
        if len(data) > limit:
            self.close(protocol.CLOSE_TOO_BIG, f"a frame has at most {limit} bytes")
            return False
        for command in protocol.decode_frame(data, max_commands=self.limits.commands_per_frame):
            if self._outbox.is_above_mark:
                await self._outbox.wait_below_mark()
            waiting = self._handle(command)
            if waiting is not None:
                await waiting
            if self._close is not None:
                return False
        return True

    def _handle(self, command: Any) -> Awaitable[None] | None:
        """Take one command, and answer what is wrong with it; return what is left to await, if anything.

        Most triggers leave nothing, and a coroutine for each would be a part of their cost that shows.
        """
        if isinstance(command, protocol.BadCommand):
            self._refuse(command.ref, command.error)
            return None
        ref: Ref = command.ref
        if isinstance(ref, str) and len(ref) > self.limits.ref_length:
            self._refuse(None, InvalidRequest(f"a ref has at most {self.limits.ref_length} characters"))
            return None
        try:
            if not self.is_connected and not isinstance(command, protocol.Connect):
                raise Unauthenticated("connect first")
            if self.hub.is_stopping:
                raise StoreUnavailable("the server is stopping", retry_after_seconds=1)
            waiting = self._handlers[type(command)](command)
        except Exception as error:
            self._on_error(command, error)
            return None
        return None if waiting is None else self._finish(command, waiting)

    async def _finish(self, command: Any, waiting: Awaitable[None]) -> None:
        try:
            await waiting
        except Exception as error:
            self._on_error(command, error)

    def _on_error(self, command: Any, error: Exception) -> None:
        if not isinstance(error, CommandError):
            # One command's bug must not end the connection; the log has the rest.
            self.hub.log.error("command %s failed", type(command).__name__, exc_info=error)
            error = Internal()
        self._refuse(command.ref, error)

    def _refuse(self, ref: Ref, error: CommandError) -> None:
        self.hub.metrics.errors.labels(error.code).inc()
        self.send([protocol.encode_error(error, ref)])
        # What is the server's own failure is not held against the client: an outage must not close its connections.
        if not error.is_outcome_unknown and not self._error_bucket.take(
            now=asyncio.get_running_loop().time()
        ):
            self.close(protocol.CLOSE_TOO_MANY_ERRORS, "too many errors")

    # -- writing -------------------------------------------------------------------------------------------------

    def send(self, messages: Sequence[bytes], *, is_live: bool = False) -> None:
        """Queue one frame of encoded messages: answers by default, which do not count as slow reading."""
        self._outbox.put_nowait(Frame(protocol.encode_frame(messages)), is_live=is_live)

    def deliver(self, subscriber: Subscriber, frame: Frame) -> None:
        """Queue a frame of events for one of the connection's memberships; held while its join is answered."""
        if subscriber.held is None:
            self._outbox.put_nowait(frame)
            return
        size = len(frame.data)
        subscriber.held.append(frame)
        subscriber.held_bytes += size
        if subscriber.held_bytes > self.limits.outbox_bytes and subscriber.held_bytes > size:
            self._on_overflow()

    def send_held(self, frame: Frame) -> None:
        """Queue a frame that was held while a join was answered."""
        self._outbox.put_nowait(frame)

    def send_message(self, event: str, data: Any) -> None:
        """Send a ``message`` to this connection alone; it counts as live, for nobody asked for it."""
        encoded = admission.encode_json(data, max_depth=self.limits.data_depth)
        head = protocol.encode_message({"type": "message", "event": event})
        self.send([head[:-1] + b',"data":' + encoded + b"}"], is_live=True)

    # -- commands ------------------------------------------------------------------------------------------------

    async def _on_connect(self, command: protocol.Connect) -> None:
        auth = command.auth or {}
        timer = self._connect_timer if not self.is_connected else None
        if timer is not None:
            timer.reschedule(None)  # hooks have their own time limit, and what follows has none
        try:
            identity = await self._authenticate(auth)
        except Unauthenticated as error:
            self._refuse(command.ref, error)
            self.close(protocol.CLOSE_UNAUTHENTICATED, "not authenticated")
            return
        except CommandError:
            if timer is not None:
                timer.reschedule(asyncio.get_running_loop().time() + self.limits.connect_seconds)
            raise
        if self.is_connected and identity.user_id != self.identity.user_id:
            raise PermissionDenied("another user needs another connection")
        self.identity = identity
        is_first, self.is_connected = not self.is_connected, True
        message: dict[str, Any] = {"type": "connected"}
        if command.ref is not None:
            message["ref"] = command.ref
        limits = self.limits
        message |= {
            "client_id": self.client.client_id,
            "user_id": identity.user_id,
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
        self.send([protocol.encode_message(message)])
        if is_first:
            await self.hub.hooks.notify("on_connected", seconds=limits.hook_seconds, client=self.client)

    async def _authenticate(self, auth: dict[str, Any]) -> Identity:
        hub = self.hub
        if not hub.hooks.has("authenticate"):
            # Development mode: the client says who it is.
            user_id = auth.get("user_id", auth.get("userId"))
            if user_id is None:
                return Identity(self.client.client_id) if not self.is_connected else self.identity
            return Identity(
                hub.admission.check_connection_user(str(user_id) if isinstance(user_id, int) else user_id)
            )
        try:
            identity = await hub.hooks.call(
                "authenticate", seconds=self.limits.hook_seconds, request=self._request, auth=auth
            )
        except CommandError:
            raise
        except Exception:
            hub.log.exception("authenticate failed")
            raise Internal from None
        if not isinstance(identity, Identity):
            hub.log.error("authenticate returned a %s; return an Identity", type(identity).__name__)
            raise Internal
        try:
            hub.admission.check_connection_user(identity.user_id)
        except ValidationFailed:
            hub.log.error("authenticate returned a user_id that cannot be one")
            raise Internal from None
        return identity

    async def _on_join(self, command: protocol.Join) -> None:
        await self.join(
            command.room, ref=command.ref, since=command.since, sync=command.sync, events=command.events
        )

    async def join(
        self,
        room_id: str,
        *,
        ref: Ref,
        since: protocol.Since | None = None,
        sync: int | None = None,
        events: protocol.EventNames | None = None,
    ) -> None:
        """Join a room and send ``joined``; see `Joins.join`."""
        await self._joins.join(room_id, ref=ref, since=since, sync=sync, events=events)

    def _member(self, room_id: str) -> tuple[Room, Subscriber]:
        subscriber = self.memberships.get(room_id)
        room = self.hub.rooms.get(room_id)
        if subscriber is None or room is None:
            if subscriber is None:
                RoomHandle(self.hub, room_id)  # raises RoomNotFound where there is none
            raise NotJoined
        return room, subscriber

    async def _on_leave(self, command: protocol.Leave) -> None:
        self._member(command.room)
        self._forget(command.room)
        if command.ref is not None:
            self.send([protocol.encode_ok(command.ref, room=command.room)])
        await self._notify_left(command.room)

    async def leave(self, room_id: str, *, reason: str) -> None:
        """Take the connection out of a room on the server's behalf."""
        self._member(room_id)
        self._forget(room_id)
        self.send([protocol.encode_message({"type": "left", "room": room_id, "reason": reason})])
        await self._notify_left(room_id)

    def _forget(self, room_id: str) -> None:
        subscriber = self.memberships.pop(room_id)
        self.hub.remove_subscriber(room_id, subscriber)

    async def _notify_left(self, room_id: str) -> None:
        if not self._joins.forget(room_id):
            return  # its on_joined never ran
        handle = RoomHandle(self.hub, room_id)
        await self.hub.hooks.notify(
            "on_left", seconds=self.limits.hook_seconds, room_id=room_id, client=self.client, room=handle
        )

    def subscriptions(self, room_id: str) -> list[str] | str:
        """Return what the connection gets from a room, as on the wire."""
        return history.subscription_names(*self._member(room_id))

    async def _on_subscribe(self, command: protocol.Subscribe) -> None:
        room, subscriber = self._member(command.room)
        if command.events == "*":
            subscription = ALL
        else:
            check_names(self.hub, room, command.events)
            subscription = subscriber.subscription.add(command.events)
        self._resubscribe(command, room, subscriber, subscription)

    async def _on_unsubscribe(self, command: protocol.Unsubscribe) -> None:
        room, subscriber = self._member(command.room)
        if command.events == "*":
            subscription = NONE
        else:
            check_names(self.hub, room, command.events)
            subscription = subscriber.subscription.remove(command.events)
        self._resubscribe(command, room, subscriber, subscription)

    def _resubscribe(
        self,
        command: protocol.Subscribe | protocol.Unsubscribe,
        room: Room,
        subscriber: Subscriber,
        subscription: Subscription,
    ) -> None:
        most = len(room.room_type.events) + self.limits.event_names_per_room
        if len(subscription.names) > most:
            raise InvalidRequest(f"a subscription names at most {most} events here")
        room.resubscribe(subscriber, subscription)
        if command.ref is not None:
            names = history.subscription_names(room, subscriber)
            answer = protocol.encode_ok(
                command.ref, room=room.room_id, subscriptions=names, seq=room.last_seq
            )
            self.send([answer])

    def _on_trigger(self, command: protocol.Trigger) -> Awaitable[None] | None:
        """Submit the event; with hooks to ask, return what does so."""
        room, subscriber = self._member(command.room)
        event_type = room.room_type.event_type(command.event)
        if event_type is None or event_type.publish == "server":
            raise EventNotAllowed
        limits = self.limits
        data_json = admission.encode_payload(
            event_type, bytes(command.data), max_bytes=limits.message_bytes, max_depth=limits.data_depth
        )
        raw_meta = bytes(command.meta)
        meta_json = None
        if raw_meta != b"null":
            meta_json = admission.encode_meta(
                raw_meta, max_bytes=limits.meta_bytes, max_depth=limits.data_depth
            )
        admitting = self.hub.admission
        draft = admitting.draft(
            room,
            event_type,
            data_json,
            sender=self.identity.user_id,
            meta_json=meta_json,
            key=admitting.check_key(command.key),
        )
        if admitting.has_hooks:
            return self._ask_hooks(command, room, subscriber, event_type, draft)
        self.hub.submit(room, draft, self, command.ref)
        return None

    async def _ask_hooks(
        self,
        command: protocol.Trigger,
        room: Room,
        subscriber: Subscriber,
        event_type: EventType[Any],
        draft: Draft,
    ) -> None:
        admitted = await self.hub.admission.ask_hooks(room, event_type, draft)
        if isinstance(admitted, Appended):
            self._acknowledge(command.ref, room.room_id, admitted)
            return
        if self.memberships.get(command.room) is not subscriber:
            raise NotJoined  # removed while a hook was asked
        self.hub.submit(room, admitted, self, command.ref)

    async def _on_edit(self, command: protocol.Edit) -> None:
        raw = bytes(command.data)
        limits = self.limits
        await self._change(
            command,
            lambda event_type: admission.encode_payload(
                event_type, raw, max_bytes=limits.message_bytes, max_depth=limits.data_depth
            ),
        )

    async def _on_delete(self, command: protocol.Delete) -> None:
        await self._change(command, None)

    async def _change(self, command: protocol.Edit | protocol.Delete, encode: Encode | None) -> None:
        room, subscriber = self._member(command.room)
        admitted = await self.hub.changes.admit(
            room,
            command.seq,
            encode=encode,
            sender=self.identity.user_id,
            client=self.client,
            key=self.hub.admission.check_key(command.key),
        )
        if self.memberships.get(command.room) is not subscriber:
            raise NotJoined  # removed while hooks were asked
        if isinstance(admitted, Appended):
            self._acknowledge(command.ref, room.room_id, admitted)
        else:
            self.hub.submit(room, admitted, self, command.ref)

    def _acknowledge(self, ref: Ref, room_id: str, known: Appended) -> None:
        """Answer a publish whose first try was recorded."""
        if ref is not None:
            ack = Ack(known.seq, known.id, known.timestamp, True)
            self.send([protocol.encode_accepted(ref, room_id, *ack)])

    def on_recorded(self, submission: Submission, outcome: Outcome) -> bytes | None:
        """A trigger of this connection is recorded; the hub sends the ``ok`` along with the event."""
        if submission.ref is None:
            return None
        room_id, appended = submission.draft.room_id, outcome.appended
        if appended is None:
            return protocol.encode_accepted(submission.ref, room_id, *ack_of(outcome))
        # As `ack_of` has it, without a tuple for each event.
        is_duplicate = appended.event is None
        return protocol.encode_accepted(
            submission.ref, room_id, appended.seq, appended.id, appended.timestamp, is_duplicate
        )

    def on_failed(self, submission: Submission, error: CommandError) -> None:
        """A trigger of this connection was not recorded, or not in time."""
        self._refuse(submission.ref, error)

    async def _on_history(self, command: protocol.HistoryRead) -> None:
        room, subscriber = self._member(command.room)
        read = history.parse(self.hub, room, command)
        # Waits for a slot, and with it further commands do: that bounds what one connection can have read for it.
        await self._read_slots.acquire()
        task = asyncio.create_task(
            self._answer_history(command, room, subscriber, read), name="dialogue-history"
        )
        self._reads.add(task)
        task.add_done_callback(self._on_read_done)

    def _on_read_done(self, task: asyncio.Task[None]) -> None:
        self._reads.discard(task)
        self._read_slots.release()
        if not task.cancelled() and task.exception() is not None:
            self.hub.log.error("a history answer failed", exc_info=task.exception())

    async def _answer_history(
        self, command: protocol.HistoryRead, room: Room, subscriber: Subscriber, read: history.Read
    ) -> None:
        try:
            message = await history.answer(
                self.hub, room, read, user_id=self.identity.user_id, ref=command.ref
            )
        except CommandError as error:
            self._refuse(command.ref, error)
            return
        except Exception:
            self.hub.log.exception("reading history failed (room %r)", room.room_id)
            self._refuse(command.ref, Internal())
            return
        # Membership may have ended while the answer was made: what was readable then is not any more.
        if self.memberships.get(command.room) is subscriber:
            self.send([message])

    async def _on_rooms(self, command: protocol.Rooms) -> None:
        records = [
            history.room_record(RoomHandle(self.hub, room_id))
            for room_id in dict.fromkeys([*self.hub.room_types.exact, *self.memberships])
        ]
        message: dict[str, Any] = {"type": "rooms", "rooms": records}
        if command.ref is not None:
            message["ref"] = command.ref
        self.send([protocol.encode_message(message)])

    async def _on_pong(self, command: protocol.Pong) -> None:
        """Hearing it was enough."""
