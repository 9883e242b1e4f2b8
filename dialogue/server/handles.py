"""What hooks and application code hold of a connection and of a room."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from ..config import EventType
from ..core.cursor import Bound
from ..core.patterns import room_id_problem
from ..errors import RoomNotFound
from ..events import Ack, Event

if TYPE_CHECKING:
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
        return list(self._session.memberships)

    def subscriptions(self, room_id: str) -> list[str] | str:
        """Return the event names that the connection gets from a room, or ``"*"``.

        Raises:
            NotJoined: It is not in the room.
        """
        return self._session.subscriptions(room_id)

    async def join(self, room_id: str, *, sync: int | None = None) -> None:
        """Put the connection into a room, as if it had joined: ``before_join`` is asked, ``joined`` is pushed.

        Raises:
            CommandError: The room does not exist, is full, or ``before_join`` denies.
        """
        await self._session.join(room_id, ref=None, sync=sync)

    async def leave(self, room_id: str, *, reason: str = "removed by the server") -> None:
        """Take the connection out of a room and tell it; answers in flight for the room are dropped.

        Raises:
            NotJoined: It is not in the room.
        """
        await self._session.leave(room_id, reason=reason)

    def send(self, event: str, data: Any) -> None:
        """Send a ``message`` to this connection alone; it is queued, and dropped if the connection is going away.

        Raises:
            ValidationFailed: The data is not safe JSON.
        """
        self._session.send_message(event, data)

    def disconnect(self, *, code: int = 1000, reason: str = "") -> None:
        """Close the connection."""
        self._session.close(code, reason)

    def __repr__(self) -> str:
        return f"<Client {self.client_id} user={self.user_id!r}>"


class RoomHandle:
    """A room, as hooks and application code see it; it need not be in memory.

    Raises:
        RoomNotFound: No declaration covers the id.
    """

    __slots__ = ("_hub", "params", "room_id", "room_type")

    def __init__(self, hub: Hub, room_id: str) -> None:
        found = hub.room_types.find(room_id) if room_id_problem(room_id) is None else None
        if found is None:
            raise RoomNotFound
        self._hub = hub
        self.room_id = room_id
        self.room_type, self.params = found

    @property
    def name(self) -> str:
        """The declared name."""
        return self.room_type.config.name

    @property
    def size(self) -> int:
        """How many connections are in the room."""
        room = self._hub.rooms.get(self.room_id)
        return room.size if room is not None else 0

    @property
    def is_full(self) -> bool:
        """Whether another connection would be refused."""
        max_size = self.room_type.config.max_size
        return max_size is not None and self.size >= max_size

    def participants(self) -> list[Client]:
        """Return the connections in the room."""
        room = self._hub.rooms.get(self.room_id)
        return [subscriber.sink.client for subscriber in room.subscribers()] if room is not None else []

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

    async def history(self, event: str | EventType[Any], start: int = 0, end: int = 50) -> list[Event[Any]]:
        """Return the events of one type at offsets [*start*, *end*), newest first (offset 0 is the newest).

        Raises:
            EventNotAllowed: The room has no such recorded event.
            StoreUnavailable: Part of the range cannot be read now.
        """
        name = event.name if isinstance(event, EventType) else event
        return await self._hub.history_by_offset(self.room_id, name, start, end)

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
        return await self._hub.history_page(
            self.room_id, name, before=before, after=after, around=around, limit=limit
        )

    def __repr__(self) -> str:
        return f"<Room {self.room_id!r}>"


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
        return [session.client for session in self.hub.sessions if session.is_connected]

    @property
    def rooms(self) -> list[RoomHandle]:
        """The rooms in memory."""
        return [RoomHandle(self.hub, room_id) for room_id in self.hub.rooms]


def bounds_below(names: Iterable[str], seq: int) -> dict[str, Bound]:
    """Return the bounds that read everything of *names* below *seq* (exclusive)."""
    return {name: Bound(seq) for name in names}
