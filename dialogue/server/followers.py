"""Who reads a room from outside as it goes on: the core of streams and polls over HTTP.

A follower is a cursor, and for as long as its reader is quick also a queue: what the room is told is queued up to
``limits.outbox_bytes``. One that falls further behind keeps nothing, and reads memory and log from its cursor until it
has caught up; so a slow reader neither grows memory nor misses an event. It is no participant: it does not count in
the room's size or presence, and does not keep the room awake.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Literal, NamedTuple

from ..core.room import Room, Subscriber, Subscription, as_replaced
from ..errors import StoreBusy
from ..events import EncodedEvent, encoded_for
from .uvicorn_stop import find_server, is_stopping

if TYPE_CHECKING:
    from .access import Permission
    from .hub import Hub

End = Literal["gone", "left", "expired", "stopping", "slow", "lost", "failed"]
"""Why nothing more is read: the reader went, its access or its credentials ended, the server stops, it does not take
what it is sent, what it has not read was removed, or it could not be read."""

_LOOK_SECONDS = 0.1
"""How often it is looked whether a uvicorn of somebody else's is to stop, while anyone follows."""


class Told(NamedTuple):
    """One message of a room.

    Attributes:
        seq: Of a recorded event; None for what has no place in the log.
        json: As it is sent to the follower's user.
    """

    seq: int | None
    json: bytes


class _Part(NamedTuple):
    """What one delivery brings to all followers that want the same; shared by them.

    Attributes:
        events: Those that are wanted; None in the place of a message that is no event.
        texts: Their messages, without keys.
        size: Of the texts, in bytes.
        passing: How many of them have no seq.
    """

    events: Sequence[EncodedEvent | None]
    texts: Sequence[bytes]
    size: int
    passing: int


def _part(events: Sequence[EncodedEvent | None], texts: Sequence[bytes]) -> _Part:
    passing = sum(1 for event in events if event is None or event.seq is None)
    return _Part(events, texts, sum(map(len, texts)), passing)


class Follower:
    """One reader of a room; made by `Followers.follow`. Read by one task.

    What waits in it is every wanted event in (``seq``, *through*]; once it is behind, nothing.

    Attributes:
        room_id: The room.
        subscriber: Whose it is and what it wants; not one of the room's.
        takes_passing: Whether it wants what has no seq: ephemeral events and changes of presence.
        seq: Its cursor: everything wanted through this seq has been taken.
        is_behind: Whether it reads memory and log, rather than its queue.
        end: Why nothing more comes; None while something may. What waits may still be taken.
        left_reason: What the reader is told when its access has ended.
        on_ended: Called once, when *end* is set.
    """

    def __init__(self, hub: Hub, room: Room, subscriber: Subscriber, *, takes_passing: bool) -> None:
        self._hub = hub
        self.room_id = room.room_id
        self.subscriber = subscriber
        self.takes_passing = takes_passing
        self.end: End | None = None
        self.left_reason = ""
        self.on_ended: Callable[[], None] = lambda: None
        self._changed = asyncio.Event()
        self.start(room)

    def start(self, room: Room) -> None:
        """Begin at the room's newest event: everything after it is queued from now on."""
        self.seq = self._through = room.last_seq
        self.is_behind = False
        self._waiting: list[_Part] = []
        self._waiting_bytes = 0

    # -- what the room tells -------------------------------------------------------------------------------------

    def put(self, part: _Part, first: int | None, last: int | None) -> None:
        """Queue what is wanted of a delivery.

        Args:
            first, last: The seqs of the delivery's recorded events, also of those that are not wanted; None for none.
        """
        if self.end is not None:
            return
        if not self.is_behind and first is not None and first != self._through + 1:
            # The room was read again meanwhile: what is between is in the log.
            self.fall_behind()
        if self.is_behind:
            self._drop(part)
            return
        if last is not None:
            self._through = last
        if not part.texts:
            return
        # A part that finds nothing before it is not slow reading, whatever its size.
        if self._waiting and self._waiting_bytes + part.size > self._hub.limits.outbox_bytes:
            self._drop(part)
            self.fall_behind()
            return
        self._waiting.append(part)
        self._waiting_bytes += part.size
        self._changed.set()

    def fall_behind(self) -> None:
        """Keep nothing, and read on from the cursor."""
        for part in self._waiting:
            self._drop(part)
        self._waiting = []
        self._waiting_bytes = 0
        self._through = self.seq
        self.is_behind = True
        self._changed.set()

    def _drop(self, part: _Part) -> None:
        # The recorded ones are read later.
        if part.passing:
            self._hub.metrics.stream_drops.inc(part.passing)

    def finish(self, end: End, *, left_reason: str = "") -> None:
        """Let nothing more come; the first call counts."""
        if self.end is None:
            self.end = end
            self.left_reason = left_reason
            self._changed.set()
            self.on_ended()

    # -- what the reader does ------------------------------------------------------------------------------------

    async def wait(self, seconds: float) -> None:
        """Return when there is something to take or to read, at the end, or after *seconds*."""
        try:
            async with asyncio.timeout(seconds):
                await self._changed.wait()
        except TimeoutError:
            pass

    def take(self) -> list[Told]:
        """Return what waits, in room order, and move the cursor past it."""
        self._changed.clear()
        if self.is_behind:
            return []
        parts, self._waiting, self._waiting_bytes = self._waiting, [], 0
        self.seq = self._through
        user_id = self.subscriber.user_id
        return [
            Told(None, text)
            if event is None
            else Told(
                event.seq, event.json_for(user_id) if event.has_key and event.sender == user_id else text
            )
            for part in parts
            for event, text in zip(part.events, part.texts, strict=True)
        ]

    def take_events(self) -> list[EncodedEvent]:
        """Return the events that wait, in room order, and move the cursor past them."""
        self._changed.clear()
        parts, self._waiting, self._waiting_bytes = self._waiting, [], 0
        if not self.is_behind:
            self.seq = self._through
        return [event for part in parts for event in part.events if event is not None]

    async def read_on(self) -> list[Told]:
        """Return the next page after the cursor from memory and log, and move the cursor past it.

        Ends the follower where something after the cursor has been removed, or cannot be read now.

        Raises:
            CommandError: The room cannot be opened.
        """
        hub = self._hub
        room = await hub.open_rooms.open(self.room_id)
        through = room.last_seq
        wants = self.subscriber.subscription.wants
        names = [name for name in room.recorded_names() if wants(name)]
        user_id = self.subscriber.user_id
        try:
            with room.watch() as replaced:
                found = await hub.reader.following(
                    room, names, after=self.seq, limit=hub.limits.page_events, user_id=user_id
                )
        except StoreBusy:
            self.finish("failed")
            return []
        if self.end is not None:
            return []  # what was readable when the read was begun may not be any more
        if found.gap is not None:
            self.finish("failed" if found.gap.reason == "tier_unavailable" else "lost")
            return []
        self.seq = through if found.next_after is None else found.next_after
        if self.seq == room.last_seq and hub.rooms.get(self.room_id) is room:
            # Nothing was told since: what comes next is queued.
            self._through = self.seq
            self.is_behind = False
        events = as_replaced(found.events, replaced)
        texts = encoded_for(events, user_id) if replaced else found.texts
        return [Told(event.seq, text) for event, text in zip(events, texts, strict=True)]


class Followers:
    """All who follow a room."""

    def __init__(self, hub: Hub) -> None:
        self._hub = hub
        self._by_room: dict[str, dict[Follower, None]] = {}
        # How many streams of a room a user has.
        self._streams: Counter[tuple[str, str]] = Counter()
        self._none = asyncio.Event()
        self._none.set()
        self._is_closed = False
        self._server = find_server()
        self._look: asyncio.TimerHandle | None = None
        self.count = 0

    @contextmanager
    def follow(
        self,
        room: Room,
        user_id: str,
        subscription: Subscription,
        permission: Permission,
        *,
        takes_passing: bool,
    ) -> Iterator[Follower]:
        """Yield a follower of a room from its newest event on; it ends when *permission* is taken back."""
        subscriber = Subscriber(user_id, None, subscription)
        follower = Follower(self._hub, room, subscriber, takes_passing=takes_passing)
        permission.on_revoked = lambda reason: follower.finish("left", left_reason=reason)
        self._by_room.setdefault(room.room_id, {})[follower] = None
        self.count += 1
        stream = (room.room_id, user_id)
        self._streams[stream] += takes_passing
        self._none.clear()
        if self._is_closed:
            follower.finish("stopping")
        elif self._server is not None and self._look is None:
            self._look_at_server()
        try:
            yield follower
        finally:
            permission.on_revoked = None
            others = self._by_room[room.room_id]
            del others[follower]
            if not others:
                del self._by_room[room.room_id]
            self.count -= 1
            self._streams[stream] -= takes_passing
            if not self._streams[stream]:
                del self._streams[stream]
            if not self.count:
                self._none.set()
                if self._look is not None:
                    self._look.cancel()
                    self._look = None

    def is_followed_by(self, room_id: str, user_id: str) -> bool:
        """Whether a user has a stream of a room, which is told of changes of presence too."""
        return self._streams[room_id, user_id] > 0

    def deliver(self, room: Room, events: Sequence[EncodedEvent]) -> None:
        """Tell a room's followers what its subscribers are told. Never awaits."""
        followers = self._by_room.get(room.room_id)
        if not followers:
            return
        seqs = [event.seq for event in events if event.seq is not None]
        first, last = (seqs[0], seqs[-1]) if seqs else (None, None)
        texts = [event.json for event in events]
        # Chosen once for all who want the same.
        parts: dict[tuple[Subscription, bool], _Part] = {}
        for follower in followers:
            subscription, takes_passing = follower.subscriber.subscription, follower.takes_passing
            part = parts.get((subscription, takes_passing))
            if part is None:
                chosen = [
                    (event, text)
                    for event, text in zip(events, texts, strict=True)
                    if subscription.wants(event.event) and (takes_passing or event.seq is not None)
                ]
                part = _part([event for event, _ in chosen], [text for _, text in chosen])
                parts[subscription, takes_passing] = part
            follower.put(part, first, last)

    def tell(self, room_id: str, messages: Sequence[bytes]) -> None:
        """Tell a room's followers what is no event: changes of presence."""
        part = _part([None] * len(messages), messages)
        for follower in self._by_room.get(room_id, ()):
            if follower.takes_passing:
                follower.put(part, None, None)

    def look_again(self, room_id: str) -> None:
        """Let a room's followers read the log: what is in it may not have been told."""
        for follower in self._by_room.get(room_id, ()):
            follower.fall_behind()

    # -- the stop ------------------------------------------------------------------------------------------------

    def close(self) -> None:
        """End all followers, and those that still come. May be called twice."""
        self._is_closed = True
        for followers in self._by_room.values():
            for follower in followers:
                follower.finish("stopping")

    async def wait_ended(self, *, until: float) -> None:
        """Return when nobody follows any more, at loop time *until* at the latest."""
        try:
            async with asyncio.timeout_at(until):
                await self._none.wait()
        except TimeoutError:
            pass

    def _look_at_server(self) -> None:
        assert self._server is not None
        if is_stopping(self._server):
            self._look = None
            self.close()
        else:
            self._look = asyncio.get_running_loop().call_later(_LOOK_SECONDS, self._look_at_server)
