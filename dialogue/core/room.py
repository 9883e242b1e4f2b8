"""One open room: its rings, its seq, and who is subscribed to what."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple, Protocol

from ..events import CHANGES, EncodedEvent
from ..room_types import RoomType
from .cursor import MAX_SEQ, Bound
from .ring import Ring


class Subscription(NamedTuple):
    """The event names that a subscriber wants; hashable, so that equal ones share their frames.

    Attributes:
        is_all: Whether *names* are the exceptions from everything, rather than the only ones.
        names: See *is_all*.
    """

    is_all: bool
    names: frozenset[str]

    def wants(self, event: str) -> bool:
        """Whether *event* belongs to the subscription.

        Changes come with whatever else is wanted: who gets an event is told what became of it.
        """
        if event in CHANGES:
            return self.is_all or bool(self.names)
        return (event in self.names) is not self.is_all

    def add(self, names: Iterable[str]) -> Subscription:
        """Return the subscription with *names* added."""
        return self._replace(names=self.names - set(names) if self.is_all else self.names | set(names))

    def remove(self, names: Iterable[str]) -> Subscription:
        """Return the subscription without *names*."""
        return self._replace(names=self.names | set(names) if self.is_all else self.names - set(names))


ALL = Subscription(True, frozenset())
NONE = Subscription(False, frozenset())


class Subscriber:
    """A connection in a room.

    Its identity is the membership: leaving and joining again makes another one, so an answer that was started
    under the old one can tell that it is stale.

    Attributes:
        user_id: Whose connection it is.
        sink: Where its frames go; opaque here.
        subscription: What it wants; change it with `Room.resubscribe`.
        held: While a join is being answered, the frames that must follow the answer; None otherwise.
        held_bytes: Their size.
    """

    __slots__ = ("held", "held_bytes", "sink", "subscription", "user_id")

    def __init__(self, user_id: str, sink: Any, subscription: Subscription) -> None:
        self.user_id = user_id
        self.sink = sink
        self.subscription = subscription
        self.held: list[Any] | None = None
        self.held_bytes = 0


def as_replaced(events: Iterable[EncodedEvent], replaced: Mapping[int, EncodedEvent]) -> list[EncodedEvent]:
    """Return *events* in the forms that they have now; *replaced* is what a `Room.watch` over their read gathered."""
    if not replaced:
        return list(events)
    return [event if event.seq is None else replaced.get(event.seq, event) for event in events]


class Copies(Protocol):
    """What keeps events of a room: it is told what becomes of them."""

    def replaced(self, event: EncodedEvent) -> None:
        """Put *event* in the place of its earlier form."""

    def removed(self, event_name: str, through: int) -> None:
        """Take note that a stream's events up to position *through* have left the log, or are about to."""


class Group(NamedTuple):
    """The subscribers that get the same messages of a batch."""

    events: Sequence[EncodedEvent]
    subscribers: Iterable[Subscriber]


class Room:
    """One open room.

    Args:
        room_id: Its id.
        room_type: Its declaration.
        params: The pattern's parameters.
        last_seq: The newest seq that subscribers have been told of.
        last_unread_position: How many of the events through it ever counted as unread.
        rings: By event name.

    Attributes:
        copies: What keeps events of the room besides its rings.
        last_used: When the room was last asked for, in seconds of the caller's monotonic clock.
        undeclared: The names that were admitted although none is declared (``events="*"``).
        users: Who is in the room, with the number of their connections, in the order of their coming.
        rates: What bounds how fast the room's own limits let it be; the caller's, None where it has none.
    """

    __slots__ = (
        "_groups",
        "_watches",
        "copies",
        "last_seq",
        "last_unread_position",
        "last_used",
        "params",
        "rates",
        "rings",
        "room_id",
        "room_type",
        "undeclared",
        "users",
    )

    def __init__(
        self,
        room_id: str,
        room_type: RoomType,
        params: dict[str, str],
        *,
        last_seq: int = 0,
        last_unread_position: int = 0,
        rings: dict[str, Ring] | None = None,
    ) -> None:
        self.room_id = room_id
        self.room_type = room_type
        self.params = params
        self.last_seq = last_seq
        self.last_unread_position = last_unread_position
        self.rings: dict[str, Ring] = {} if rings is None else rings
        self.last_used = 0.0
        self.undeclared = {
            name for name in self.rings if name not in room_type.events and name not in CHANGES
        }
        self.users: dict[str, int] = {}
        self.copies: tuple[Copies, ...] = ()
        self.rates: Any = None
        self._watches: list[dict[int, EncodedEvent]] = []
        # A dict keeps joining order, and removes in constant time.
        self._groups: dict[Subscription, dict[Subscriber, None]] = {}

    @property
    def size(self) -> int:
        """How many connections are in the room."""
        return sum(map(len, self._groups.values()))

    def subscribers(self) -> Iterator[Subscriber]:
        """Iterate over all connections in the room."""
        for group in self._groups.values():
            yield from group

    def add(self, subscriber: Subscriber) -> None:
        """Add a connection."""
        self._groups.setdefault(subscriber.subscription, {})[subscriber] = None

    def discard(self, subscriber: Subscriber) -> bool:
        """Remove a connection if it is in the room; return whether it was."""
        group = self._groups.get(subscriber.subscription)
        if group is None or subscriber not in group:
            return False
        del group[subscriber]
        if not group:
            del self._groups[subscriber.subscription]
        return True

    def user_entered(self, user_id: str) -> bool:
        """Count a connection of a user; return whether it is the user's first one here."""
        count = self.users.get(user_id, 0)
        self.users[user_id] = count + 1
        return not count

    def user_left(self, user_id: str) -> bool:
        """Stop counting a connection of a user; return whether it was the user's last one here."""
        count = self.users.get(user_id, 0) - 1
        if count > 0:
            self.users[user_id] = count
            return False
        return self.users.pop(user_id, None) is not None

    def resubscribe(self, subscriber: Subscriber, subscription: Subscription) -> None:
        """Give *subscriber* another subscription, from the next batch on."""
        self.discard(subscriber)
        subscriber.subscription = subscription
        self.add(subscriber)

    def recorded_names(self) -> list[str]:
        """Return the names of the recorded types: declared ones first, then others that have events."""
        names = {name: None for name, event_type in self.room_type.events.items() if event_type.history}
        return list(names | dict.fromkeys(self.rings))

    def bound_at_offset(self, event_name: str, offset: int) -> Bound:
        """Return the bound below which the event of a type at *offset* is the newest; 0 is the newest of all."""
        ring = self.rings.get(event_name)
        return Bound(MAX_SEQ, (ring.last_position if ring is not None else 0) - offset + 1)

    def push(self, event: EncodedEvent) -> EncodedEvent | None:
        """Add a recorded event; return the one that leaves its ring, if any.

        Raises:
            ValueError: Its seq is not the room's next one: telling it would hide a hole.
        """
        if event.seq != self.last_seq + 1:
            raise ValueError(f"seq {event.seq} does not follow {self.last_seq} in room {self.room_id!r}")
        ring = self.rings.get(event.event)
        if ring is None:
            event_type = self.room_type.event_type(event.event)
            limit = event_type.history.limit if event_type and event_type.history else 1
            ring = self.rings[event.event] = Ring(limit, last_position=event.position - 1)
        evicted = ring.push(event)
        self.last_seq = event.seq
        return evicted

    @contextmanager
    def watch(self) -> Iterator[dict[int, EncodedEvent]]:
        """Yield a mapping that gathers, by seq, what is replaced meanwhile.

        A read that was begun before a change and is answered after its `EDIT` or `DELETE` was told must not bring
        the old form back.
        """
        replaced: dict[int, EncodedEvent] = {}
        self._watches.append(replaced)
        try:
            yield replaced
        finally:
            # By identity: two that are empty are equal.
            self._watches = [watch for watch in self._watches if watch is not replaced]

    def replace(self, event: EncodedEvent) -> None:
        """Put *event* in the place of its earlier form: in its ring, in copies, and in the reads that are running."""
        assert event.seq is not None
        ring = self.rings.get(event.event)
        if ring is not None:
            ring.replace(event)
        for watch in self._watches:
            watch[event.seq] = event
        for copies in self.copies:
            copies.replaced(event)

    def remove(self, event_name: str, through: int) -> None:
        """Drop from memory what leaves the log: a stream's events up to and including position *through*."""
        ring = self.rings.get(event_name)
        if ring is not None:
            ring.remove(through)
        for copies in self.copies:
            copies.removed(event_name, through)

    def groups(self, events: Sequence[EncodedEvent]) -> list[Group]:
        """Return who gets which of *events*: one entry per distinct selection, so that it is encoded once."""
        if len(self._groups) == 1:
            (subscription,) = self._groups
            selected = [event for event in events if subscription.wants(event.event)]
            return [Group(selected, self._groups[subscription])] if selected else []
        names = {event.event for event in events}
        by_selection: dict[frozenset[str], list[Subscriber]] = {}
        for subscription, group in self._groups.items():
            wanted = frozenset(name for name in names if subscription.wants(name))
            if wanted:
                by_selection.setdefault(wanted, []).extend(group)
        return [
            Group([event for event in events if event.event in wanted], subscribers)
            for wanted, subscribers in by_selection.items()
        ]
