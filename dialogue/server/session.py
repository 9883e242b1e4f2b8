"""One connection: its life, the frames that come, and what is sent."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

from .. import protocol
from ..core import admission
from ..core.limits import TokenBucket
from ..core.room import Subscriber
from ..errors import (
    Backpressure,
    CommandError,
    Internal,
    InvalidRequest,
    NotJoined,
    RateLimited,
    RoomNotFound,
    StoreUnavailable,
    Unauthenticated,
)
from ..protocol import Ref
from .commands import Commands
from .handles import Client, Identity, RoomHandle
from .hub import Hub
from .memberships import Memberships
from .outbox import Frame, Outbox, WriteNowait
from .rates import RatesOfUser, connection_rates, spend
from .stopping import FAREWELL
from .submissions import Outcome, Submission, ack_of

CLOSE_SECONDS = 10.0
"""How long a peer that does not read has to take the close frame before its socket is dropped."""


_LONGEST_EXPIRY_SECONDS = 86_400.0

_REF_BITS = 64
"""Most bits of a ref that is a number."""


class Transport(Protocol):
    """The socket under a session."""

    close_code: int | None

    @property
    def write_nowait(self) -> WriteNowait | None:
        """Writes a frame past `send`; None where there is no such way."""

    async def receive(self) -> str | bytes | None:
        """Return the next frame (text, or bytes for a binary one); None when the peer has gone."""

    def allow_large_frames(self) -> None:
        """Take frames of the full size from now on."""

    async def send(self, frame: Frame) -> None:
        """Send one frame; may wait for the peer."""

    async def close(self, code: int, reason: str) -> None:
        """Send a close frame; may wait for the peer."""


class Session:
    """One connection, from its upgrade to its end.

    Args:
        request: The upgrade request (headers, cookies, query, peer), for ``authenticate``.
        known_identity: Who it is, where that is known: then ``authenticate`` is not asked.

    Attributes:
        client: What hooks see of it.
        identity: Who it belongs to; until it is connected, a user of its own.
        is_connected: Whether it has been told ``connected``.
        memberships: The rooms that it is in.
        rates: How fast it may go.
        heard: When its latest frame came, in seconds of the loop's clock.
    """

    def __init__(
        self, hub: Hub, transport: Transport, request: Any, *, known_identity: Identity | None = None
    ) -> None:
        self.hub = hub
        self.limits = hub.limits
        self._transport = transport
        self.request = request
        self.known_identity = known_identity
        self._outbox = Outbox(
            transport.send,
            limit_bytes=hub.limits.outbox_bytes,
            on_overflow=self._on_overflow,
            on_failed=self._on_send_failed,
            write_nowait=transport.write_nowait,
        )
        self.client = Client(self, secrets.token_hex(8))
        self.identity = Identity(self.client.client_id)
        self.is_connected = False
        self.memberships = Memberships(self)
        self.heard = asyncio.get_running_loop().time()
        self.rates = connection_rates(hub.limits, now=self.heard)
        self._commands = Commands(self)
        self._is_ended = False
        self._connect_timer: asyncio.Timeout | None = None
        self._expiry: asyncio.TimerHandle | None = None
        self._close: tuple[int, str] | None = None
        self._loop = asyncio.get_running_loop()
        self._closing: asyncio.Future[None] = self._loop.create_future()
        self._closed: asyncio.Future[None] = self._loop.create_future()
        self._is_pinged = False
        self._is_working = False
        limits, now = hub.limits, self.heard
        self._command_bucket = TokenBucket(limits.commands_burst, limits.commands_per_second, now=now)
        self._error_bucket = TokenBucket(limits.errors_per_minute, limits.errors_per_minute / 60, now=now)

    @property
    def user_id(self) -> str:
        """Whose connection it is."""
        return self.identity.user_id

    @property
    def user_rates(self) -> RatesOfUser:
        """How fast its user may go."""
        return self.hub.user_rates.of(self.identity.user_id)

    # -- life ----------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Serve the connection until it ends, whoever ends it. Leaves nothing behind."""
        self.hub.connections.add(self)
        if self.hub.is_stopping:
            self.close(protocol.CLOSE_GOING_AWAY, "the server is stopping")
        reader = asyncio.create_task(self._read(), name="dialogue-session-read")
        try:
            await asyncio.wait({reader, self._closing}, return_when=asyncio.FIRST_COMPLETED)
            if reader.done() and not reader.cancelled() and reader.exception() is not None:
                self.hub.log.error("a connection failed", exc_info=reader.exception())
                self.close(protocol.CLOSE_INTERNAL_ERROR, "internal error")
            if self._close is None:
                # The peer has gone, and maybe many others with it. Whom the server closes leaves at once: nothing may
                # be done in that one's name meanwhile.
                reader.cancel()
                self._outbox.close()
                await self.hub.pacer.wait()
        finally:
            # From here on nothing is awaited before the rooms are left: a cancelled session must not stay in them.
            self._is_ended = True
            self.hub.session_records.ended(self)
            left = self.memberships.end_all()
            self.hub.connections.end(self)
            self.hub.inbox.disconnected(self)
            self._cancel_expiry()
            self._commands.close()
            reader.cancel()
            farewell = self.hub.spawn(self._farewell(left), name=FAREWELL)
            # Whatever becomes of it, the hub tells: a stop that cancels it is no failure of the connection's.
            await asyncio.wait({farewell})

    async def _farewell(self, left: Sequence[RoomHandle]) -> None:
        """End the socket, then tell the hooks. Runs as the hub's task: the server may cancel the session's own."""
        try:
            await self._end_socket()
        finally:
            self.hub.connections.remove(self)
            self._closed.set_result(None)
        for handle in left:
            await self.memberships.notify_left(handle)
        if self.is_connected:
            await self.notify("on_disconnected")
        await self.notify("on_socket_disconnect")

    async def notify(self, hook: str) -> None:
        """Call a hook that is told of the connection."""
        hub = self.hub
        await hub.hooks.notify(
            hook, seconds=self.limits.hook_seconds, context=hub.context, client=self.client
        )

    def identify(self, identity: Identity) -> None:
        """Note who the connection belongs to, once or again; it ends when the identity expires.

        Raises:
            RateLimited: Its user has too many connections.
        """
        if not self.is_connected:
            self.hub.connections.identify(self, identity.user_id)
            self._transport.allow_large_frames()
        self.identity = identity
        self.is_connected = True
        self.hub.inbox.connected(self)
        self.hub.session_records.connected(self)
        self._cancel_expiry()
        if identity.expires_at is not None:
            self._check_expiry_in(identity.expires_at - time.time())

    def _check_expiry_in(self, seconds: float) -> None:
        # The loop's clock may differ from the day's by then; a day is no long time for either.
        seconds = min(max(0.0, seconds), _LONGEST_EXPIRY_SECONDS)
        self._expiry = asyncio.get_running_loop().call_later(seconds, self._check_expiry)

    def _check_expiry(self) -> None:
        expires_at = self.identity.expires_at
        assert expires_at is not None
        seconds = expires_at - time.time()
        if seconds <= 0:
            self.close(protocol.CLOSE_UNAUTHENTICATED, "the credentials have expired")
        else:
            self._check_expiry_in(seconds)

    def _cancel_expiry(self) -> None:
        if self._expiry is not None:
            self._expiry.cancel()
            self._expiry = None

    @contextmanager
    def connect_timer_paused(self) -> Iterator[None]:
        """Keep the time to ``connect`` from ending while hooks, which have their own limit, are asked.

        It begins anew if the connection is not connected then.
        """
        timer = self._connect_timer if not self.is_connected else None
        if timer is not None:
            timer.reschedule(None)
        try:
            yield
        finally:
            if timer is not None and not self.is_connected and not self.is_closing:
                timer.reschedule(asyncio.get_running_loop().time() + self.limits.connect_seconds)

    async def _end_socket(self) -> None:
        close = self._close
        if close is None and self._transport.close_code in protocol.CLOSES_BY_SERVER:
            # The server under us has closed it already.
            self.hub.metrics.closes.labels(str(self._transport.close_code)).inc()
        try:
            async with self.hub.stop.time_to_close(CLOSE_SECONDS):
                if close is not None and not self._outbox.is_closed:
                    # What was accepted and answered before the close still goes out: acks of a stopping server.
                    await self._outbox.wait_empty()
                await self._outbox.aclose()
                if close is not None:
                    self.hub.metrics.closes.labels(str(close[0])).inc()
                    await self._transport.close(*close)
        except Exception as error:
            # The peer has gone, or does not read: the server drops the socket when the session returns.
            self.hub.log.debug("a connection ended without a close frame: %r", error)
        finally:
            self._outbox.cancel()

    def close(self, code: int, reason: str) -> None:
        """End the connection with *code*; the first call counts."""
        if self._close is None:
            self._close = (code, reason)
            self._end()

    def _end(self) -> None:
        if not self._closing.done():
            self._closing.set_result(None)

    @property
    def is_closing(self) -> bool:
        """Whether the connection has ended, or is about to: nothing may be registered for it any more."""
        return self._close is not None or self._is_ended

    async def wait_closed(self) -> None:
        """Return when the socket has ended."""
        # Not awaited itself: whoever is cancelled while waiting must not cancel it for the others.
        await asyncio.wait({self._closed})

    def _on_send_failed(self, error: Exception) -> None:
        self.hub.log.debug("a connection does not take frames any more: %r", error)
        self._end()

    def _on_overflow(self) -> None:
        self.close(protocol.CLOSE_SLOW_CONSUMER, "too slow; reconnect and resume")

    def check_silence(self, now: float) -> None:
        """Ping after ``limits.ping_seconds`` of silence; close after twice that."""
        silence = 0.0 if self._is_working else now - self.heard
        if silence >= 2 * self.limits.ping_seconds:
            self.close(protocol.CLOSE_GOING_AWAY, "nothing heard")
        elif silence >= self.limits.ping_seconds and not self._is_pinged and self.is_connected:
            self._is_pinged = True
            self.send([protocol.encode_message({"type": "ping"})])

    # -- reading -------------------------------------------------------------------------------------------------

    async def _read(self) -> None:
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(self.limits.connect_seconds) as self._connect_timer:
                with self.connect_timer_paused():
                    await self.notify("on_socket_connect")
                while not self.is_connected:
                    if not await self._read_frame(loop):
                        return
            self._connect_timer = None
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
        self.heard = loop.time()
        self._is_pinged = False
        if isinstance(frame, bytes):
            self.close(protocol.CLOSE_NOT_THIS_PROTOCOL, "frames are text")
            return False
        limit = self.limits.frame_bytes if self.is_connected else self.limits.frame_before_connect_bytes
        try:
            data = frame.encode()
        except UnicodeEncodeError:
            self.refuse(None, InvalidRequest("the frame is not Unicode text"))
            return True
        if len(data) > limit:
            self.close(protocol.CLOSE_TOO_BIG, f"a frame has at most {limit} bytes")
            return False
        commands = protocol.decode_frame(data, max_commands=self.limits.commands_per_frame)
        if not commands and not self._command_bucket.take(now=self.heard):
            # An empty array is no command, and still work: it must not be a way around the bucket.
            self.refuse(None, RateLimited())
        for command in commands:
            if self._outbox.is_above_mark:
                await self._outbox.wait_below_mark()
            waiting = self._handle(command)
            if waiting is not None:
                # A hook or a deletion may take its time. What the peer says meanwhile is not read, and is no silence.
                self._is_working = True
                try:
                    await waiting
                finally:
                    self._is_working = False
                self.heard = loop.time()
            if self._close is not None:
                return False
        return True

    def _handle(self, command: Any) -> Awaitable[None] | None:
        """Take one command, and answer what is wrong with it; return what is left to await, if anything.

        Most triggers leave nothing, and a coroutine for each would be a part of their cost that shows.
        """
        ref: Ref = command.ref
        # An integer is bounded too: the parser takes thousands of digits, and the answer would repeat them.
        if ref is not None and (
            len(ref) > self.limits.ref_length if isinstance(ref, str) else ref.bit_length() > _REF_BITS
        ):
            self.refuse(None, InvalidRequest(f"a ref has at most {self.limits.ref_length} characters"))
            return None
        if isinstance(command, protocol.BadCommand):
            self.refuse(ref, command.error)
            return None
        try:
            if not self._command_bucket.take(now=self.heard):
                spend(self.heard, self._command_bucket)
            if not self.is_connected and not isinstance(command, protocol.Connect):
                raise Unauthenticated("connect first")
            if self.hub.is_stopping:
                raise StoreUnavailable("the server is stopping", retry_after_seconds=1)
            waiting = self._commands.take(command)
        except NotJoined as error:
            return self._refuse_outsider(command, error)
        except Exception as error:
            self._on_error(command, error)
            return None
        return None if waiting is None else self._finish(command, waiting)

    async def _finish(self, command: Any, waiting: Awaitable[None]) -> None:
        try:
            await waiting
        except NotJoined as error:
            await self._refuse_outsider(command, error)
        except Exception as error:
            self._on_error(command, error)

    async def _refuse_outsider(self, command: Any, error: NotJoined) -> None:
        """Refuse a command for a room that the connection is not in; one that it may not see is not there at all."""
        # A hook may have raised it for a command that names no room.
        room_id = getattr(command, "room", None)
        access = self.hub.access
        if room_id is not None and not access.is_all_visible:
            try:
                is_visible = await access.can_see(self.client, RoomHandle(self.hub, room_id))
            except RoomNotFound:
                is_visible = False  # deleted meanwhile
            if not is_visible:
                self._on_error(command, RoomNotFound())
                return
        self._on_error(command, error)

    def _on_error(self, command: Any, error: Exception) -> None:
        if not isinstance(error, CommandError):
            # One command's bug must not end the connection; the log has the rest.
            self.hub.log.error("command %s failed", type(command).__name__, exc_info=error)
            error = Internal()
        self.refuse(command.ref, error)

    def refuse(self, ref: Ref, error: CommandError) -> None:
        """Answer a command with an error; too many of them end the connection."""
        self.hub.metrics.errors.labels(error.code).inc()
        self.send([protocol.encode_error(error, ref)])
        # What is the server's own failure is not held against the client: an outage must not close its connections,
        # nor a store that is slow. Who sends all the same uses up the rates, whose refusals count.
        is_ours = error.is_outcome_unknown or isinstance(error, Backpressure)
        if not is_ours and not self._error_bucket.take(now=asyncio.get_running_loop().time()):
            self.close(protocol.CLOSE_TOO_MANY_ERRORS, "too many errors")

    # -- writing -------------------------------------------------------------------------------------------------

    def send(self, messages: Sequence[bytes], *, is_live: bool = False) -> None:
        """Queue one frame of encoded messages: answers by default, which do not count as slow reading."""
        self._outbox.put_nowait(Frame(protocol.encode_frame(messages)), is_live=is_live)

    def send_frame(self, frame: Frame) -> None:
        """Queue a frame that others get too, and nobody asked for."""
        self._outbox.put_nowait(frame)

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

    def send_message(self, event: str, data: Any) -> None:
        """Send a ``message`` to this connection alone; it counts as live, for nobody asked for it."""
        encoded = admission.encode_json(data, max_depth=self.limits.data_depth)
        head = protocol.encode_message({"type": "message", "event": event})
        self.in_loop(lambda: self.send([head[:-1] + b',"data":' + encoded + b"}"], is_live=True))

    def in_loop(self, step: Callable[[], None]) -> None:
        """Take *step* in the loop's thread: at once if this is it, soon if a ``def`` hook calls from another one."""
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            self._loop.call_soon_threadsafe(step)
        else:
            step()

    # -- as a publisher ------------------------------------------------------------------------------------------

    def on_recorded(self, submission: Submission, outcome: Outcome) -> bytes | None:
        """A trigger of this connection is recorded; the hub sends the ``ok`` along with the event."""
        if submission.ref is None:
            return None
        return protocol.encode_accepted(submission.ref, submission.draft.room_id, *ack_of(outcome))

    def on_failed(self, submission: Submission, error: CommandError) -> None:
        """A trigger of this connection was not recorded, or not in time."""
        self.refuse(submission.ref, error)
