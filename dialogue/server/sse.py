"""A room as it goes on, over HTTP: as server-sent events, and as a long poll (docs: reference/protocol.md).

Both are reads without a state of their own: the cursor that the client gives says where they begin, and what is kept
of it in between (`followers`) may be lost at any time.
"""

from __future__ import annotations

import asyncio
import math
import re
import socket
from collections.abc import AsyncIterator, Iterable
from contextlib import ExitStack, asynccontextmanager, suppress
from typing import TYPE_CHECKING, Any

from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from .. import protocol
from ..core.cursor import MAX_SEQ
from ..core.room import Room
from ..errors import CommandError, InvalidRequest
from ..storage.directory import Place
from . import history
from .followers import Follower, Told
from .handles import RoomHandle
from .http_answers import number, parameter, whole_number, without_type
from .http_identity import RequestClient
from .http_requests import ENDS, Requests, watching
from .memberships import default_subscription, wanted

if TYPE_CHECKING:
    from .hub import Hub

_PING = b": ping\n\n"

_PIECE_BYTES = 65_536
"""What is sent at a time: each has its own time limit, so that a slow network is not taken for one that has gone."""

_LEAST_SILENCE_SECONDS = 10.0
"""A network that is away for less is no reason to drop a connection."""

_LAST_SECONDS = 1.0
"""What a reader has to take what was written to it when the server stops."""

_SECONDS = re.compile(r"[0-9]{1,19}(\.[0-9]{1,19})?", re.ASCII)

_HEADERS = {
    # A proxy that gathers an answer before it passes it on would keep events back.
    "X-Accel-Buffering": "no",
}


class Streams(Requests):
    """Answers ``GET /rooms/{room}/events``."""

    async def events(self, request: Request) -> bytes | Response:
        """Follow a room as server-sent events; with `wait_seconds`, wait for its next event.

        The first message of a stream is a `joined`, and every subscribed event after it follows, once and in order.
        """
        hub, client = await self.begin(request)
        wait_seconds = _seconds(request, "wait_seconds")
        is_poll = wait_seconds is not None
        since = _since(request, present=hub.store.epoch)
        sync = number(request, "sync")
        if sync is not None and sync < 0:
            raise InvalidRequest("sync is at least 0")
        names = _names(request)
        self.spend(hub, client, lambda rates: rates.reads if is_poll else rates.joins)
        ends: ExitStack = request.scope[ENDS]
        handle, permission = ends.enter_context(watching(hub, client, request.path_params["room"]))
        await self.check(hub, client, handle, permission, purpose="read")
        room = await hub.open_rooms.open(handle.room_id)
        permission.check()
        hub.registry.check_usable(handle.room_id)
        subscription = default_subscription(room) if names is None else wanted(hub, room, names)
        # Registered and S taken in one step: every later event is queued and follows the answer.
        follower = ends.enter_context(
            hub.followers.follow(room, client.user_id, subscription, permission, takes_passing=not is_poll)
        )
        through = follower.seq
        begun = Place(through, room.last_unread_position)
        found = await history.read_joined(
            hub, room, follower.subscriber, through=through, since=since, sync=sync
        )
        if wait_seconds is not None and since is not None:
            deadline = asyncio.get_running_loop().time() + min(wait_seconds, hub.limits.poll_seconds)
            async with _until_gone(request.receive, follower, hub):
                found = await _wait(hub, client, follower, found, since, sync=sync, deadline=deadline)
            through = follower.seq
            client.check_not_expired()
        # What was readable when it was begun may not be any more; or the room has been deleted.
        handle = RoomHandle(hub, handle.room_id)
        permission.check()
        if since is None:
            # Whoever comes back is a member since then, or was removed.
            hub.inbox.followed(client, handle, begun)
        message = history.encode_joined(hub, room, follower.subscriber, found, through=through, ref=None)
        if is_poll:
            return without_type(message)
        return EventStream(hub, client, follower, Told(through, message))


async def _wait(
    hub: Hub,
    client: RequestClient,
    follower: Follower,
    found: history.Joined,
    since: protocol.Since,
    *,
    sync: int | None,
    deadline: float,
) -> history.Joined:
    """Wait until there is something after *since*, and return it; *found* when there is nothing by *deadline*.

    Raises:
        ClientDisconnect: The client has gone.
    """
    time = asyncio.get_running_loop().time
    while found.recovered and not found.events:
        if follower.is_behind:
            # More came at once than is queued, or the room was read again: it is looked for in memory and log.
            room: Room = await hub.open_rooms.open(follower.room_id)
            follower.start(room)
            found = await history.read_joined(
                hub, room, follower.subscriber, through=follower.seq, since=since, sync=sync
            )
            continue
        events = follower.take_events()
        if events:
            return found._replace(events=events)
        seconds = min(deadline - time(), client.seconds_left)
        if follower.end is not None or seconds <= 0:
            break
        await follower.wait(seconds)
    if follower.end == "gone":
        raise ClientDisconnect
    return found


class _NotTaken(Exception):
    """The reader does not take what it is sent."""


class _Gone(Exception):
    """The reader is not there any more."""


class EventStream(Response):
    """A stream that has been let in: `joined`, and then what *follower* brings.

    Args:
        joined: The first message.
    """

    media_type = "text/event-stream"

    def __init__(self, hub: Hub, client: RequestClient, follower: Follower, joined: Told) -> None:
        # Without a body, whose length would be told.
        self.status_code = 200
        self.background = None
        self.init_headers(_HEADERS)
        self._hub = hub
        self._client = client
        self._follower = follower
        self._first: Told | None = joined
        self._epoch = hub.store.epoch
        self._time = asyncio.get_running_loop().time
        # A peer that takes nothing for as long has gone, as one of whom nothing is heard.
        self._send_seconds = 2 * hub.limits.ping_seconds
        self._until = math.inf
        self._sending: asyncio.Timeout | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        follower = self._follower
        follower.on_ended = self._hurry
        if follower.end is not None:
            self._hurry()
        # Later than our own time: that tells why a stream ends.
        _bound_silence(receive, seconds=max(_LEAST_SILENCE_SECONDS, 2 * self._send_seconds))
        try:
            async with _until_gone(receive, follower, self._hub):
                await self._send_all(send)
                if follower.end != "gone":
                    await self._send(send, {"type": "http.response.body", "body": b"", "more_body": False})
        except _NotTaken:
            follower.finish("slow")
            if follower.end != "gone":
                await _drop(receive)
        except _Gone:
            follower.finish("gone")
        finally:
            self._hub.metrics.stream_ends.labels(follower.end or "gone").inc()
        if self.background is not None:
            # What a dependency of the router's has left to do.
            await self.background()

    async def _send_all(self, send: Send) -> None:
        """Send until the end; what goes wrong on the server's side ends the stream, and the client comes back."""
        follower, hub = self._follower, self._hub
        try:
            await self._follow(send)
        except (_NotTaken, _Gone):
            raise
        except CommandError as error:
            hub.log.info("a stream of room %r ended: %s", follower.room_id, error)
            follower.finish("failed")
        except Exception:
            if not hub.is_stopping:  # else its store may have been closed under it
                hub.log.exception("a stream of room %r failed", follower.room_id)
            follower.finish("failed")

    def _hurry(self) -> None:
        if self._follower.end not in ("stopping", "gone"):
            return
        # Nothing is owed: the client comes back with its cursor.
        self._until = self._time() + _LAST_SECONDS
        sending = self._sending
        if sending is not None and not sending.expired():
            when = sending.when()
            if when is not None and when > self._until:
                sending.reschedule(self._until)

    async def _follow(self, send: Send) -> None:
        follower, client = self._follower, self._client
        await self._send(
            send, {"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers}
        )
        first, self._first = self._first, None
        assert first is not None
        await self._write(send, self._encoded([first]))
        del first  # it may be large, and the stream go on for days
        sent = self._time()
        while follower.end != "gone":
            if client.seconds_left <= 0:
                follower.finish("expired")
                break
            told = follower.take()
            if not told and follower.end is None and follower.is_behind:
                try:
                    told = await follower.read_on()
                except CommandError:
                    if follower.end is None:
                        raise
                    # The room was deleted while it was read: why the stream ends is known.
                if not told:
                    continue
            if told:
                await self._write(send, self._encoded(told))
                sent = self._time()
                continue
            if follower.end is not None:
                break
            silence = self._time() - sent
            if silence >= self._hub.limits.ping_seconds:
                await self._write(send, _PING)
                sent = self._time()
                continue
            await follower.wait(min(self._hub.limits.ping_seconds - silence, client.seconds_left))
        if follower.end == "left":
            left = {"type": "left", "room": follower.room_id, "reason": follower.left_reason}
            await self._write(send, self._encoded([Told(None, protocol.encode_message(left))]))

    def _encoded(self, messages: Iterable[Told]) -> bytes:
        parts = []
        for seq, text in messages:
            if b"\n" in text or b"\r" in text:
                # Between the tokens of a store's own JSON: in strings they are escaped. Here they end a line.
                text = text.replace(b"\n", b" ").replace(b"\r", b" ")
            if seq is None:
                parts.append(b"data: %b\n\n" % text)
            else:
                parts.append(b"id: %b:%d\ndata: %b\n\n" % (self._epoch.encode(), seq, text))
        return b"".join(parts)

    async def _write(self, send: Send, body: bytes) -> None:
        for start in range(0, len(body), _PIECE_BYTES):
            piece = body[start : start + _PIECE_BYTES]
            await self._send(send, {"type": "http.response.body", "body": piece, "more_body": True})

    async def _send(self, send: Send, message: Any) -> None:
        """Send one part of the answer.

        Raises:
            _NotTaken, _Gone: It could not be sent.
        """
        when = min(self._time() + self._send_seconds, self._until)
        try:
            async with asyncio.timeout_at(when) as self._sending:
                await send(message)
        except TimeoutError:
            raise _NotTaken from None
        except OSError:
            raise _Gone from None  # how a server may say it
        finally:
            self._sending = None


def _transport(receive: Receive) -> asyncio.Transport | None:
    """Return a request's connection, where it can be reached.

    *receive* is a method of uvicorn's, which has the transport, unless something of the application's stands between;
    other servers have their own ways.
    """
    transport: asyncio.Transport | None = getattr(getattr(receive, "__self__", None), "transport", None)
    # By what it can: uvloop's are of no class of asyncio's.
    return transport if hasattr(transport, "abort") and hasattr(transport, "get_extra_info") else None


def _bound_silence(receive: Receive, *, seconds: float) -> None:
    """Have the system drop a connection whose peer acknowledges nothing for so long, where it can.

    A peer whose network went away says nothing, and the few bytes of a ping fit into the socket's buffer: without
    this they are sent again and again for a quarter of an hour, in which the stream counts as one of its user's.
    """
    transport = _transport(receive)
    sock = transport.get_extra_info("socket") if transport is not None else None
    if sock is not None and hasattr(socket, "TCP_USER_TIMEOUT"):
        with suppress(OSError, ValueError):  # no TCP; or closed already, as uvloop says it
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, max(1, int(seconds * 1000)))


async def _drop(receive: Receive) -> None:
    """Drop the connection of a reader that does not read, where it can be reached.

    A socket that is closed waits for its peer to take what was written.
    """
    transport = _transport(receive)
    if transport is not None:
        transport.abort()
        await asyncio.sleep(0)  # the server hears of it, and does not log an answer that was not completed


@asynccontextmanager
async def _until_gone(receive: Receive, follower: Follower, hub: Hub) -> AsyncIterator[None]:
    """End *follower* when the client goes."""

    async def wait() -> None:
        try:
            while (await receive())["type"] != "http.disconnect":
                pass
        except Exception:
            hub.log.exception("whether a reader of room %r is there cannot be told", follower.room_id)
        follower.finish("gone")

    task = asyncio.create_task(wait(), name="dialogue-stream-end")
    try:
        yield
    finally:
        task.cancel()
        await asyncio.wait({task})


# -- what is asked -----------------------------------------------------------------------------------------------


def _since(request: Request, *, present: str) -> protocol.Since | None:
    """Return the client's cursor; that of a browser which comes back goes before the one in the address.

    Args:
        present: The epoch that a seq given without one belongs to.

    Raises:
        InvalidRequest: It is none.
    """
    headers = request.headers.getlist("last-event-id")
    after, epoch = parameter(request, "after"), parameter(request, "epoch")
    if headers:
        epoch, colon, seq = headers[0].rpartition(":")
        if len(headers) > 1 or not colon or not epoch:
            raise InvalidRequest("Last-Event-ID is the id of a message: 'epoch:seq'")
        after = seq
    elif epoch is None:
        if after is None:
            return None
        epoch = present
    if after is None or not epoch:
        raise InvalidRequest("'epoch' is that of a seq, which is given as 'after'")
    found = whole_number("after", after)
    if not 0 <= found <= MAX_SEQ:
        raise InvalidRequest("a seq is out of range")
    return protocol.Since(found, epoch)


def _names(request: Request) -> protocol.EventNames | None:
    names = request.query_params.getlist("events")
    if not names:
        return None
    if "*" in names:
        if len(names) > 1:
            raise InvalidRequest("'events' is a list of names, or '*'")
        return "*"
    return names


def _seconds(request: Request, name: str) -> float | None:
    """Return a time that is given in seconds.

    Raises:
        InvalidRequest: It is no number, or below 0.
    """
    text = parameter(request, name)
    if text is None:
        return None
    if not _SECONDS.fullmatch(text):
        raise InvalidRequest(f"{name!r} is a number of seconds, at least 0")
    return float(text)
