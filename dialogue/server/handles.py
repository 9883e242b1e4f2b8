"""What hooks and application code hold of a connection and of a room."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, overload

from ..config import EventType
from ..core.cursor import Bound
from ..core.patterns import room_id_problem
from ..errors import RoomNotFound
from ..events import Ack, Event

if TYPE_CHECKING:
    from ..storage.directory import RoomRecord
    from .hub import Hub
    from .session import Session


class Identity:
    """Who a connection belongs to; what an ``authenticate`` hook returns.

    Args:
        user_id: 1 to ``limits.user_id_length`` characters.
        claims: What the credentials said, for hooks.
        meta: Anything of the application's, for hooks.
        expires_at: When the credentials end, in seconds since the epoch; None: never. The connection is closed with
            4001 then, unless a second ``connect`` has brought newer ones.
    """

    __slots__ = ("claims", "expires_at", "meta", "user_id")

    def __init__(
        self,
        user_id: str,
        claims: Mapping[str, Any] | None = None,
        meta: Mapping[str, Any] | None = None,
        *,
        expires_at: float | None = None,
    ) -> None:
        self.user_id = user_id
        self.claims: dict[str, Any] = dict(claims or {})
        self.meta: dict[str, Any] = dict(meta or {})
        self.expires_at = expires_at


class Client:
    """One connection, as hooks see it.

    Attributes:
        client_id: Made by the server for this connection.
        state: Anything of the application's, for as long as the connection lives.
    """

    __slots__ = ("_session", "client_id", "state")

    def __init__(self, session: Session, client_id: str) -> None:
        self._session = session
        self.client_id = client_id
        self.state: dict[str, Any] = {}

    @property
    def identity(self) -> Identity:
        """What `authenticate` returned last."""
        return self._session.identity

    @property
    def user_id(self) -> str:
        """The user; bound to the connection and never read from a payload."""
        return self._session.identity.user_id

    @property
    def claims(self) -> dict[str, Any]:
        """The identity's claims."""
        return self._session.identity.claims

    @property
    def meta(self) -> dict[str, Any]:
        """The identity's meta."""
        return self._session.identity.meta

    @property
    def rooms(self) -> list[str]:
        """The ids of the rooms that the connection is in, in joining order."""
        return list(self._session.memberships.by_room)

    def subscriptions(self, room_id: str) -> list[str] | str:
        """Return the event names that the connection gets from a room, or ``"*"``.

        Raises:
            NotJoined: It is not in the room.
        """
        return self._session.memberships.subscriptions(room_id)

    def subscribe(self, room_id: str, events: Sequence[str] | str) -> None:
        """Give the connection further events of a room, named in a list, or ``"*"`` for all; from the next one on.

        Raises:
            CommandError: It is not in the room, or the room has no such event.
        """
        self._session.memberships.subscribe(room_id, _names(events))

    def unsubscribe(self, room_id: str, events: Sequence[str] | str) -> None:
        """Take events of a room from the connection, named in a list, or ``"*"`` for all; from the next one on.

        Raises:
            CommandError: See `subscribe`.
        """
        self._session.memberships.unsubscribe(room_id, _names(events))

    async def join(self, room_id: str, *, sync: int | None = None) -> None:
        """Put the connection into a room, as if it had joined: ``before_join`` is asked, ``joined`` is pushed.

        Raises:
            CommandError: The room does not exist, is full, or ``before_join`` denies.
        """
        await self._session.memberships.join(room_id, ref=None, sync=sync)

    async def leave(self, room_id: str, *, reason: str = "removed by the server") -> None:
        """Take the connection out of a room and tell it; answers in flight for the room are dropped.

        Raises:
            NotJoined: It is not in the room.
        """
        self._session.hub.inbox.forget_permission(self.user_id, room_id)
        await self._session.memberships.leave(room_id, reason=reason)

    def send(self, event: str, data: Any) -> None:
        """Send a ``message`` to this connection alone; it is queued, and dropped if the connection is going away.

        Raises:
            ValidationFailed: The data is not safe JSON.
        """
        self._session.send_message(event, data)

    def disconnect(self, *, code: int = 1000, reason: str = "") -> None:
        """Close the connection."""
        self._session.in_loop(lambda: self._session.close(code, reason))

    def __repr__(self) -> str:
        return f"<Client {self.client_id} user={self.user_id!r}>"


def _names(events: Sequence[str] | str) -> list[str] | Literal["*"]:
    if isinstance(events, str):
        return "*" if events == "*" else [events]
    return list(events)


class RoomHandle:
    """A room, as hooks and application code see it; it need not be in memory.

    Raises:
        RoomNotFound: No declaration covers the id.
    """

    __slots__ = ("_hub", "_kept", "params", "room_id", "room_type")

    def __init__(self, hub: Hub, room_id: str) -> None:
        found = hub.registry.find(room_id) if room_id_problem(room_id) is None else None
        if found is None:
            raise RoomNotFound
        self._hub = hub
        self._kept: RoomRecord | None = None
        self.room_id = room_id
        self.room_type, self.params = found

    @property
    def name(self) -> str:
        """Its name for people: as declared, or as given when the room was made."""
        made = self._made
        return self.room_type.config.name if made is None else made.name

    @property
    def description(self) -> str:
        """Its description for people, likewise."""
        made = self._made
        return self.room_type.config.description if made is None else made.description

    @property
    def max_size(self) -> int | None:
        """Most connections that may be in the room at once; None for no limit."""
        made = self._made
        most = self.room_type.config.max_size
        return most if made is None or made.max_size is None else made.max_size

    @property
    def created_by_id(self) -> str | None:
        """The user who made the room while running; None for others, and where the application did."""
        made = self._made
        return None if made is None else made.created_by_id

    @property
    def _made(self) -> RoomRecord | None:
        return self._kept or self._hub.registry.records.get(self.room_id)

    def keep_record(self) -> None:
        """Keep what the room was made with: hooks that are told of its deletion ask for it when it is gone."""
        self._kept = self._made

    def record(self) -> dict[str, Any]:
        """Return the room as clients are told of it."""
        return {
            "id": self.room_id,
            "name": self.name,
            "description": self.description,
            "size": self.size,
            "max_size": self.max_size,
            "created_by_id": self.created_by_id,
        }

    @property
    def size(self) -> int:
        """How many connections are in the room."""
        room = self._hub.rooms.get(self.room_id)
        return room.size if room is not None else 0

    @property
    def is_full(self) -> bool:
        """Whether another connection would be refused."""
        max_size = self.max_size
        return max_size is not None and self.size >= max_size

    def participants(self) -> list[Client]:
        """Return the connections in the room."""
        room = self._hub.rooms.get(self.room_id)
        return [subscriber.sink.client for subscriber in room.subscribers()] if room is not None else []

    async def members(self, *, after: str = "", limit: int = 100) -> list[str]:
        """Return the ids of the users whose inbox has the room, connected or not, in ascending order.

        Args:
            after: Only ids above it (exclusive), by their UTF-8 bytes: the last one of the page before.
            limit: At least 1.

        Raises:
            StoreUnavailable: They cannot be read now.
        """
        return await self._hub.inbox.members(self.room_id, after=after, limit=limit)

    async def trigger(
        self,
        event: str | EventType[Any],
        data: Any = None,
        *,
        sender: str = "system",
        meta: dict[str, Any] | None = None,
        key: str | None = None,
    ) -> Ack:
        """Publish into the room; see `Dialogue.trigger`."""
        return await self._hub.trigger(self.room_id, event, data, sender=sender, meta=meta, key=key)

    async def edit(self, seq: int, data: Any, *, sender: str = "system", key: str | None = None) -> Ack:
        """Replace the data of an event; see `Dialogue.edit`."""
        return await self._hub.changes.change(
            self.room_id, seq, encode=self._hub.encoder(data), sender=sender, key=key
        )

    async def delete(self, seq: int, *, sender: str = "system", key: str | None = None) -> Ack:
        """Delete an event; see `Dialogue.delete`."""
        return await self._hub.changes.change(self.room_id, seq, encode=None, sender=sender, key=key)

    def on(self, event: str | EventType[Any], handler: Callable[..., Any]) -> Callable[[], None]:
        """Call *handler* with each event of a type in the room; see `Dialogue.on`."""
        return self._hub.context.dialogue.on(self.room_id, event, handler)  # type: ignore[no-any-return]

    async def history(self, event: str | EventType[Any], start: int = 0, end: int = 50) -> list[Event[Any]]:
        """Return the events of one type at offsets [*start*, *end*), newest first (offset 0 is the newest).

        Raises:
            EventNotAllowed: The room has no such recorded event.
            StoreUnavailable: Part of the range cannot be read now.
        """
        name = event.name if isinstance(event, EventType) else event
        return await self._hub.reads.by_offset(self.room_id, name, start, end)

    async def page(
        self,
        event: str | EventType[Any] | None = None,
        *,
        before: int | None = None,
        after: int | None = None,
        around: int | None = None,
        limit: int = 50,
    ) -> list[Event[Any]]:
        """Return up to *limit* events of one type, or of all, oldest first; the newest ones unless a seq is given.

        Args:
            before: The newest below this seq (exclusive).
            after: The oldest above this seq (exclusive).
            around: The event with this seq, and as many on both sides of it.

        Raises:
            EventNotAllowed: The room has no such recorded event.
            StoreUnavailable: Part of the range cannot be read now.
            ValueError: More than one seq is given.
        """
        name = event.name if isinstance(event, EventType) else event
        return await self._hub.reads.page(
            self.room_id, name, before=before, after=after, around=around, limit=limit
        )

    def __repr__(self) -> str:
        return f"<Room {self.room_id!r}>"


class UserRooms(Sequence[RoomHandle]):
    """The rooms that a user's connections were in when it was made, in joining order."""

    __slots__ = ("_hub", "_rooms", "user_id")

    def __init__(self, hub: Hub, user_id: str) -> None:
        self._hub = hub
        self.user_id = user_id
        sessions = hub.connections.of(user_id)
        room_ids = dict.fromkeys(room_id for session in sessions for room_id in session.memberships.by_room)
        self._rooms = [RoomHandle(hub, room_id) for room_id in room_ids]

    @overload
    def __getitem__(self, index: int) -> RoomHandle: ...
    @overload
    def __getitem__(self, index: slice) -> list[RoomHandle]: ...
    def __getitem__(self, index: int | slice) -> RoomHandle | list[RoomHandle]:
        return self._rooms[index]

    def __len__(self) -> int:
        return len(self._rooms)

    async def for_all(self, callback: Callable[[RoomHandle], Any]) -> None:
        """Call *callback* with each room, one after the other; what it returns is awaited if it can be."""
        for room in self._rooms:
            result = callback(room)
            if inspect.isawaitable(result):
                await result

    async def leave_all(
        self, callback: Callable[[RoomHandle], Any] | None = None, *, reason: str = "removed by the server"
    ) -> None:
        """Take the user's connections out of all these rooms, and call *callback* with each room that was left."""
        for room in self._rooms:
            for session in self._hub.connections.of(self.user_id):
                if room.room_id in session.memberships.by_room:
                    await session.client.leave(room.room_id, reason=reason)
            result = callback(room) if callback is not None else None
            if inspect.isawaitable(result):
                await result

    def __repr__(self) -> str:
        return f"<rooms of {self.user_id!r}: {[room.room_id for room in self._rooms]}>"


class Context:
    """What hooks that ask for ``context`` get.

    Attributes:
        dialogue: The `Dialogue`.
        app: The ASGI application that serves it, once known; its ``state`` is the application's.
    """

    __slots__ = ("app", "dialogue", "hub")

    def __init__(self, hub: Hub, dialogue: Any) -> None:
        self.hub = hub
        self.dialogue = dialogue
        self.app: Any = None

    @property
    def epoch(self) -> str:
        """The present life of the log."""
        return self.hub.store.epoch

    @property
    def clients(self) -> list[Client]:
        """All connected clients."""
        return [session.client for session in self.hub.connections.sessions if session.is_connected]

    @property
    def rooms(self) -> list[RoomHandle]:
        """The rooms in memory."""
        return [RoomHandle(self.hub, room_id) for room_id in self.hub.rooms]


def bounds_below(names: Iterable[str], seq: int) -> dict[str, Bound]:
    """Return the bounds that read everything of *names* below *seq* (exclusive)."""
    return {name: Bound(seq) for name in names}
