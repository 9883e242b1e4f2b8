"""The Python client: a thin shell of tasks and sockets around `dialogue.client.session`."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Coroutine, Iterable, Mapping
from functools import partial
from types import TracebackType
from typing import Any, overload
from urllib.parse import urlsplit, urlunsplit

from dialogue.config import EventType
from dialogue.errors import ConnectionLost, DialogueError
from dialogue.events import Event

from .connection import Auth, Connections
from .effects import (
    Announced,
    Deliver,
    DeliverMessage,
    DropConnection,
    Effect,
    Ended,
    Failed,
    Joined,
    Left,
    OpenConnection,
    PresenceChanged,
    Reset,
    Resolved,
    Send,
    State,
    StateChanged,
    Subscribed,
    Timing,
    Trouble,
    UnreadChanged,
)
from .handlers import Calls, Dispatcher, Handler, Handlers, Unsubscribe, logger
from .pages import PresenceChange, RoomInfo
from .room import Room
from .session import Session
from .socket import OpenSocket, Socket, web_socket_opener

# Whoever awaited a join runs first and adds its handlers, before the room's first event is handed out. One turn
# would do for a plain await; a timeout around it takes more.
_TURNS_TO_ADD_HANDLERS = 5


def socket_url(url: str) -> str:
    """Return the socket's URL for a router's base.

    Raises:
        ValueError: It is not an http(s) or ws(s) URL.
    """
    parts = urlsplit(url)
    scheme = {"http": "ws", "https": "wss", "ws": "ws", "wss": "wss"}.get(parts.scheme)
    if scheme is None or not parts.netloc:
        shown = "what is given" if "@" in url else repr(url)  # It may have a password in it.
        raise ValueError(f"{shown} is not the URL of a server; write e.g. http://127.0.0.1:3000")
    return urlunsplit((scheme, parts.netloc, parts.path.rstrip("/") + "/ws", parts.query, ""))


class DialogueClient:
    """A connection to a Dialogue server that outlives its sockets::

        async with DialogueClient("http://127.0.0.1:3000", auth={"user_id": "ann"}) as client:
            room = await client.join("general")
            room.on("message", lambda event: print(event.sender, event.data))
            await room.trigger("message", {"text": "hello"})

    A lost connection is tried again for ever, with exponential backoff and full jitter; rooms resume where they
    were, and what was not answered is asked again; *auth* is asked again when credentials have expired. Only the
    close codes 4001 (unauthenticated) on a try to connect and 4002 (not this protocol), or the matching refusal, end
    it: `ConnectionLost` to everything pending and to ``on_error``.

    Handlers of the client and of all its rooms run one at a time, in order, from one queue of *queue_events*. When
    it is full the client stops reading, so that the server feels it; nothing is dropped. One exception keeps
    handlers from waiting for each other: if something awaits an answer meanwhile and no handler comes to an end for
    *stall_seconds*, the client reads on, lets recorded events pass and asks for them again once the queue is half
    empty. Ephemeral events and messages to this client alone cannot be asked for again: twice *queue_events* are
    kept, further ones are dropped, logged and counted in `dropped_count`.

    An instance is used once: after `aclose` make a new one.

    Args:
        url: The router's base; the socket is at ``<url>/ws``.
        auth: The ``auth`` object, or a function (or coroutine function) that returns it, called for every
            connection.
        connect_timeout_seconds: How long entering may take; None to wait for a server for ever.
        max_pending_triggers: Most triggers without an answer; further ones raise `Backpressure`.
        max_pending_requests: The same for everything else.
        queue_events: See above.
        max_frame_bytes: Largest frame taken from the server.
        stall_seconds: See above.
        timing: Backoff and retries.
        connect_options: Further arguments of ``websockets.asyncio.client.connect``: ``ssl``, ``origin``,
            ``additional_headers``, ``proxy``, ...
        open_socket: Opens each connection instead of a WebSocket to *url*; see `dialogue.client.socket.OpenSocket`.
    """

    def __init__(
        self,
        url: str,
        *,
        auth: Auth = None,
        connect_timeout_seconds: float | None = None,
        max_pending_triggers: int = 1000,
        max_pending_requests: int = 1000,
        queue_events: int = 1000,
        max_frame_bytes: int = 16_777_216,
        stall_seconds: float = 1.0,
        timing: Timing | None = None,
        connect_options: Mapping[str, Any] | None = None,
        open_socket: OpenSocket | None = None,
    ) -> None:
        self.url = url
        self.dropped_count = 0
        """Ephemeral events, messages and announcements dropped because no handler took them; see above."""
        self._connect_timeout_seconds = connect_timeout_seconds
        options: dict[str, Any] = {
            "compression": None,
            "max_size": max_frame_bytes,
            "max_queue": 4,
            # The protocol has its own ping, which also tells a server that hangs from one that is there.
            "ping_interval": None,
            "close_timeout": 2,
            **(connect_options or {}),
        }
        self._session = Session(
            random=random.random,
            max_pending_triggers=max_pending_triggers,
            max_pending_requests=max_pending_requests,
            timing=timing,
        )
        self._dispatcher = Dispatcher(queue_events, self._has_space)
        self._messages = Handlers()
        self._notices = Handlers()
        self._rooms: dict[str, Room] = {}
        self._waiting: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self._connections = Connections(
            url,
            open_socket or web_socket_opener(socket_url(url), options),
            auth=auth,
            session=self._session,
            dispatcher=self._dispatcher,
            stall_seconds=stall_seconds,
            apply=self._apply,
            on_trouble=self._trouble,
            on_mistake=self._mistaken,
        )
        self._first: asyncio.Future[None] | None = None
        self._last_trouble: Exception | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._is_up = False
        self._tasks: set[asyncio.Task[None]] = set()
        self._run_task: asyncio.Task[None] | None = None
        self._dispatch_task: asyncio.Task[None] | None = None
        self._is_closed = False

    # ---- life

    async def connect(self) -> None:
        """Connect for the first time; ``async with`` does it, and closes in the end.

        Raises:
            Unauthenticated, CommandError: The server refused the credentials.
            ConnectionLost: The server closed with 4001 or 4002.
            TimeoutError: It took longer than *connect_timeout_seconds*; the cause is what went wrong last.
            Exception: Whatever the *auth* function raised.
            TypeError, ValueError: The credentials are not JSON, or the URL is none.
            RuntimeError: It was called before.
        """
        if self._run_task is not None or self._is_closed:
            raise RuntimeError("a DialogueClient is used once; make a new one")
        loop = asyncio.get_running_loop()
        self._first = loop.create_future()
        self._dispatch_task = loop.create_task(self._dispatcher.run(), name="dialogue-client-handlers")
        self._run_task = loop.create_task(self._connections.run(), name="dialogue-client")
        try:
            async with asyncio.timeout(self._connect_timeout_seconds):
                await self._first
        except TimeoutError as error:
            await self.aclose()
            problem = f": {self._last_trouble}" if self._last_trouble else ""
            raise TimeoutError(
                f"no connection to {self.url} within {self._connect_timeout_seconds:g} s{problem}"
            ) from (self._last_trouble or error)
        except BaseException:
            await self.aclose()
            raise

    async def aclose(self) -> None:
        """Close: everything pending fails with `ConnectionLost`, waiting handlers are not called any more.

        May be called twice, and from a handler.
        """
        self._is_closed = True
        self._session.stop()
        self._apply()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        for room in self._rooms.values():
            room._close_typings()
        current = asyncio.current_task()
        tasks = [task for task in (self._run_task, self._dispatch_task, *self._tasks) if task is not None]
        others = [task for task in tasks if task is not current]
        for task in others:
            task.cancel()
        if others:
            # Not gather: a cancellation of ours must not end the waiting for what was cancelled by us.
            await asyncio.wait(others)
        if current is not None and current is self._dispatch_task:
            current.cancel()

    async def __aenter__(self) -> DialogueClient:
        await self.connect()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.aclose()

    # ---- what it is

    @property
    def state(self) -> State:
        """``connecting``, ``connected``, ``resuming`` or ``offline``; see `State`."""
        return self._session.state

    @property
    def user_id(self) -> str | None:
        """Who the server says this is; None before the first connection."""
        return self._session.user_id

    @property
    def client_id(self) -> str | None:
        """The server's name for the connection that stands now; None while there is none."""
        return self._session.client_id

    @property
    def limits(self) -> Mapping[str, Any]:
        """The server's limits by name, as far as it tells them; empty before the first connection."""
        return dict(self._session.limits)

    # ---- handlers

    @overload
    def on(self, event: str | EventType[Any]) -> Callable[[Handler], Handler]: ...
    @overload
    def on(self, event: str | EventType[Any], fn: Handler) -> Unsubscribe: ...
    def on(self, event: str | EventType[Any], fn: Handler | None = None) -> Any:
        """Call *fn* with the data of each message of this name that the server sends to this client alone.

        Returns:
            A function that takes the handler away; without *fn*, a decorator.
        """
        name = event.name if isinstance(event, EventType) else event
        if fn is not None:
            return self._messages.add(name, fn)

        def decorate(function: Handler) -> Handler:
            self._messages.add(name, function)
            return function

        return decorate

    def on_connect(self, fn: Callable[[], Any]) -> Unsubscribe:
        """Call *fn* when a connection stands, the first one and each one after."""
        return self._notices.add("connect", fn)

    def on_disconnect(self, fn: Callable[[], Any]) -> Unsubscribe:
        """Call *fn* when a connection that stood is lost."""
        return self._notices.add("disconnect", fn)

    def on_error(self, fn: Callable[[Exception], Any]) -> Unsubscribe:
        """Call *fn* with errors that belong to no call: failed tries to connect, the end of the retrying."""
        return self._notices.add("error", fn)

    def on_state(self, fn: Callable[[State], Any]) -> Unsubscribe:
        """Call *fn* with each new `state`."""
        return self._notices.add("state", fn)

    def on_joined(self, fn: Callable[[Room], Any]) -> Unsubscribe:
        """Call *fn* with each room that the server puts this client into, unasked; before any of its events."""
        return self._notices.add("joined", fn)

    def on_history(self, fn: Callable[[str, list[Event[Any]]], Any]) -> Unsubscribe:
        """Call *fn* with a room's id and what entering it brought, **newest first**, empty or not.

        It is called before the handlers of the events that follow, and again after `Room.on_reset`; what a resume
        brings goes to the room's handlers instead.
        """
        return self._notices.add("history", fn)

    def on_room_created(self, fn: Callable[[RoomInfo], Any]) -> Unsubscribe:
        """Call *fn* with each room that is made and that this client may see.

        Announcements are not repeated: after a lost connection, or when handlers are too slow, `rooms` tells.
        """
        return self._notices.add("room_created", fn)

    def on_room_updated(self, fn: Callable[[RoomInfo], Any]) -> Unsubscribe:
        """Call *fn* with each room whose name, description or size limit is changed; see `on_room_created`."""
        return self._notices.add("room_updated", fn)

    def on_room_deleted(self, fn: Callable[[str], Any]) -> Unsubscribe:
        """Call *fn* with the id of each room that is deleted; see `on_room_created`."""
        return self._notices.add("room_deleted", fn)

    def on_unread(self, fn: Callable[[dict[str, int]], Any]) -> Unsubscribe:
        """Call *fn* with the unread counts that have changed, by room, also of rooms that are not joined.

        It is not repeated: after a lost connection, or when handlers are too slow, `unread` tells.
        """
        return self._notices.add("unread", fn)

    # ---- rooms

    def room(self, room_id: str) -> Room:
        """Return the room's object, joined or not: handlers can be added before `join`, or before the server
        joins this client by itself."""
        return self._rooms.setdefault(room_id, Room(self, room_id))

    async def join(
        self,
        room_id: str,
        *,
        sync: int | None = None,
        events: str | EventType[Any] | Iterable[str | EventType[Any]] | None = None,
    ) -> Room:
        """Join a room, or change the subscription of a joined one.

        Args:
            room_id: The room.
            sync: Newest events per type that the join brings as `Room.history`; None for the room's own number.
            events: The events to receive; ``"*"`` for all, None for the room's default.

        Returns:
            The room; always the same object while it is joined.

        Raises:
            CommandError: It was refused, e.g. `RoomNotFound` or `JoinDenied`.
            ConnectionLost: The client was closed, or refused for good.
        """
        is_new = room_id not in self._rooms
        room = self.room(room_id)
        names: Any = None
        if events is not None:
            items = [events] if isinstance(events, str | EventType) else list(events)
            names = [room._name(item) for item in items]
            names = "*" if "*" in names else names
        try:
            answer = await self._request(lambda session: session.join(room_id, sync=sync, events=names))
        except BaseException:
            if is_new and not room.is_joined:
                self._forget(room)
            raise
        if room_id in self._session.rooms:
            room = self.room(room_id)
            room._take_join(answer)
        return room

    async def rooms(self) -> list[RoomInfo]:
        """Return the rooms that this client may see.

        Raises:
            CommandError, ConnectionLost: See `join`.
        """
        answer = await self._request(lambda session: session.read({"type": "rooms"}))
        return [RoomInfo.from_wire(record) for record in answer["rooms"]]

    async def create_room(
        self, room_id: str, name: str, *, description: str = "", max_size: int | None = None
    ) -> None:
        """Make a room, which this client's user may delete again; it is not joined by that.

        Args:
            room_id: Its id.
            name: For people; not empty.
            description: For people.
            max_size: Most connections at once; None for what the server's declaration says.

        Raises:
            PermissionDenied: The server lets clients make no such room.
            RoomExists: There is one already. After a lost connection that may be this call's own work: `rooms` tells
                who has made it.
            CommandError, ConnectionLost: See `join`.
        """
        command: dict[str, Any] = {"type": "create_room", "room": room_id, "name": name}
        if description:
            command["description"] = description
        if max_size is not None:
            command["max_size"] = max_size
        await self._request(lambda session: session.change(command))

    async def delete_room(self, room_id: str) -> None:
        """Delete a room that this client's user has made, with its history.

        Raises:
            RoomNotFound: There is no such room.
            PermissionDenied: It is declared, or someone else has made it.
            CommandError, ConnectionLost: See `join`.
        """
        await self._request(lambda session: session.change({"type": "delete_room", "room": room_id}))

    async def unread(self, rooms: Iterable[str] | None = None) -> dict[str, int]:
        """Return how many events this client's user has not read, by room.

        Args:
            rooms: The rooms to count; None for all in which the user is a member, joined or not.

        Raises:
            CommandError, ConnectionLost: See `join`.
        """
        command: dict[str, Any] = {"type": "unread"}
        if rooms is not None:
            command["rooms"] = [rooms] if isinstance(rooms, str) else list(rooms)
        answer = await self._request(lambda session: session.read(command))
        return dict(answer["unread"])

    # ---- requests

    @property
    def _connection(self) -> Socket | None:
        return self._connections.current

    async def _request(self, make: Callable[[Session], int]) -> dict[str, Any]:
        if self._run_task is None and not self._is_closed:
            raise RuntimeError("connect first: use 'async with DialogueClient(...) as client:'")
        ref = make(self._session)
        future: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()
        self._waiting[ref] = future
        self._apply()
        try:
            return await future
        finally:
            self._waiting.pop(ref, None)
            self._session.cancel(ref)  # Of no effect once it was answered.
            if future.done() and not future.cancelled():
                future.exception()  # Of a caller that was cancelled in the same turn: seen by nobody else.

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        async def run() -> None:
            try:
                await work
            except DialogueError as error:
                self._notify("error", error)

        task = asyncio.get_running_loop().create_task(run())
        self._tasks.add(task)
        task.add_done_callback(self._spawned)

    def _spawned(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            logger.error("a background read failed", exc_info=error)

    def _forget(self, room: Room) -> None:
        if self._rooms.get(room.room_id) is room:
            del self._rooms[room.room_id]

    # ---- effects

    def _apply(self) -> None:
        for effect in self._session.effects():
            self._carry_out(effect)
        self._arm()

    def _carry_out(self, effect: Effect) -> None:
        match effect:
            case Deliver(room_id, event, epoch, _):
                room = self.room(room_id)
                room._streams.receive(event, epoch)
                self._put_event(
                    partial(room._calls_for_event, event, epoch), is_recorded=event.seq is not None
                )
            case Send(commands):
                self._connections.send(commands)
            case Resolved(ref, answer):
                future = self._waiting.get(ref)
                if future is not None and not future.done():
                    future.set_result(answer)
            case Failed(ref, error):
                future = self._waiting.get(ref)
                if future is not None and not future.done():
                    future.set_exception(error)
            case DeliverMessage(event_name, data):
                self._put_event(partial(self._calls_for_message, event_name, data), is_recorded=False)
            case PresenceChanged(room_id, joined, left, count):
                change = PresenceChange(joined, left, count)
                self._put_event(partial(self.room(room_id)._calls_for_presence, change), is_recorded=False)
            case UnreadChanged(counts):
                self._put_event(partial(self._calls_for_notice, "unread", counts), is_recorded=False)
            case Announced(kind, room_id, record):
                about = room_id if kind == "room_deleted" else RoomInfo.from_wire(record)
                self._put_event(partial(self._calls_for_notice, kind, about), is_recorded=False)
            case Joined(room_id, answer, is_pushed):
                room = self.room(room_id)
                room._take_join(answer)
                if is_pushed:
                    self._notify("joined", room)
                else:
                    self._dispatcher.put(_give_way)
                self._notify_history(room)
            case Reset(room_id, answer):
                room = self.room(room_id)
                room._streams.interrupt(answer["epoch"])
                # Told only while the queue takes events, so at most once per room in it and unread frame.
                self._dispatcher.put(partial(room._calls_for_reset, answer))
                self._notify_history(room)
            case Subscribed(room_id, subscriptions):
                self.room(room_id)._streams.narrow(subscriptions)
            case Left(room_id, reason):
                room = self.room(room_id)
                room._end(reason)
                self._forget(room)
                self._dispatcher.put(partial(room._calls_for_left, reason))
            case StateChanged(state):
                self._state_changed(state)
            case Trouble(error):
                self._trouble(error)
            case OpenConnection():
                self._connections.open()
            case DropConnection(reason):
                logger.info("dropping the connection to %s: %s", self.url, reason)
                self._connections.drop()
            case Ended(error):
                self._ended(error)

    def _state_changed(self, state: State) -> None:
        if state == "connected":
            self._notify("connect")
            self._is_up = True
            if self._first is not None and not self._first.done():
                self._first.set_result(None)
        elif self._is_up:
            self._is_up = False
            self._notify("disconnect")
        self._notify("state", state)

    def _ended(self, error: DialogueError) -> None:
        # Who waits for nothing has to wake up to see that it is over.
        self._connections.open()
        for room in self._rooms.values():
            room._streams.end(None if self._is_closed else _as_lost(error))
        if self._first is not None and not self._first.done():
            self._first.set_exception(error)
            self._first.exception()  # `connect` may have been cancelled.
        elif not self._is_closed:
            self._trouble(_as_lost(error))

    def _trouble(self, error: Exception) -> None:
        self._last_trouble = error
        logger.warning("%s: %s", self.url, error)
        self._notify("error", error)

    def _mistaken(self, error: Exception) -> bool:
        if self._first is None or self._first.done():
            return False
        self._first.set_exception(error)
        return True

    # ---- the queue of handlers

    def _put(self, entry: Callable[[], Calls]) -> None:
        # Notices are few, yet a handler that never ends must not pile them up for ever.
        if not self._dispatcher.put_if_room(entry, times=4):
            logger.error("a handler holds up so many others that a notice was dropped")

    def _put_event(self, entry: Callable[[], Calls], *, is_recorded: bool) -> None:
        if is_recorded:
            # Bounded by the limit and one frame: who is full does not read, or sheds.
            self._dispatcher.put(entry)
        elif not self._dispatcher.put_if_room(entry, times=2):
            self.dropped_count += 1
            if self.dropped_count == 1:
                logger.warning("handlers are so slow that ephemeral events are dropped")

    def _notify(self, name: str, *arguments: Any) -> None:
        self._put(partial(self._calls_for_notice, name, *arguments))

    def _notify_history(self, room: Room) -> None:
        if self._notices.get("history"):
            self._put(
                lambda: [(fn, (room.room_id, list(room.history))) for fn in self._notices.get("history")]
            )

    def _calls_for_notice(self, name: str, *arguments: Any) -> Calls:
        return [(fn, arguments) for fn in self._notices.get(name)]

    def _calls_for_message(self, event_name: str, data: Any) -> Calls:
        return [(fn, (data,)) for fn in self._messages.get(event_name)]

    def _has_space(self) -> None:
        if self._connections.is_shedding:
            self._connections.is_shedding = False
            self._session.catch_up()
            self._apply()

    # ---- time

    def _arm(self) -> None:
        deadline = self._session.deadline
        if deadline is None or self._is_closed:
            return
        if self._timer is not None:
            # One that is too early comes back here; so a frame need not move it.
            if self._timer.when() <= deadline:
                return
            self._timer.cancel()
        self._timer = asyncio.get_running_loop().call_at(deadline, self._on_timer)

    def _on_timer(self) -> None:
        self._timer = None
        self._session.tick(_now())
        self._apply()


async def _yield() -> None:
    for _ in range(_TURNS_TO_ADD_HANDLERS):
        await asyncio.sleep(0)


def _as_lost(error: DialogueError) -> ConnectionLost:
    return error if isinstance(error, ConnectionLost) else ConnectionLost(4001, str(error))


def _give_way() -> Calls:
    return [(_yield, ())]


def _now() -> float:
    return asyncio.get_running_loop().time()


__all__ = ["Auth", "DialogueClient", "socket_url"]
