"""The `Store` contract.

One process owns a log at a time, so everything that a store returns about a room stays true until the owner itself
appends, hands over or removes. All methods may be called concurrently with reads; `append` is never called while
another `append` or `settle` is running (the group commit sees to it).
"""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Collection, Sequence
from typing import NamedTuple

import msgspec

from ..events import Ack, Draft, EncodedEvent
from .directory import Directory


class Appended(NamedTuple):
    """What an append gave one draft.

    Attributes:
        seq, id, timestamp: Assigned now, or by the first append under the same key.
        event: The recorded event; None when the key was known and nothing new was recorded.
        replaced: Earlier events of the room as the draft's `Target` has left them: the target, and an edit of it
            that is void now.
    """

    seq: int
    id: int
    timestamp: int
    event: EncodedEvent | None
    replaced: tuple[EncodedEvent, ...] = ()

    @property
    def ack(self) -> Ack:
        """What the publisher is told."""
        return Ack(self.seq, self.id, self.timestamp, self.event is None)

    @property
    def is_duplicate(self) -> bool:
        """Whether the key was known."""
        return self.event is None


class StreamState(msgspec.Struct):
    """Where one stream (an event type in a room) stands, in positions.

    Attributes:
        last: The newest position; 0 for an empty stream.
        handed_through: ``on_cleanup`` has returned for everything up to and including it.
        removed_through: Everything up to and including it has left the log.
        removed_through_seq: The seq of the event at ``removed_through``; 0 when nothing was removed.
    """

    last: int = 0
    handed_through: int = 0
    removed_through: int = 0
    removed_through_seq: int = 0


class RoomHead(msgspec.Struct):
    """Where a room stands.

    Attributes:
        last_seq: The newest seq; 0 for a room without events.
        streams: The streams that ever had an event, by event name.
        last_unread_position: How many of its events ever counted as unread.
    """

    last_seq: int
    streams: dict[str, StreamState]
    last_unread_position: int = 0


class LogPage(NamedTuple):
    """What a read found.

    Attributes:
        events: Oldest first, whichever end was read from.
        floor_seq: The largest seq that has left the log among the streams that were asked for, 0 if none.
            The answer is complete above it; events at or below it may be missing.
        floor_position: For a read of one stream, the largest position that has left the log; else 0.
    """

    events: list[EncodedEvent]
    floor_seq: int
    floor_position: int


class FeedItem(NamedTuple):
    """An event with its place in the log.

    Attributes:
        id: The log's position.
        room_id: The room it is in; an `EncodedEvent` does not say.
        event: The event.
    """

    id: int
    room_id: str
    event: EncodedEvent


class StoredStream(NamedTuple):
    """A stream that has events in the log.

    Attributes:
        first_timestamp: Of its oldest event there, in milliseconds since the epoch.
    """

    room_id: str
    event_name: str
    state: StreamState
    first_timestamp: int


class UserEvent(NamedTuple):
    """Where an event of some user is."""

    room_id: str
    seq: int
    event_name: str


class UserEvents(NamedTuple):
    """What a look through a part of the log found of a user.

    Attributes:
        events: In order of id.
        through_id: Where to look on: after this id (exclusive); None when the end was reached.
    """

    events: list[UserEvent]
    through_id: int | None


class Store(ABC):
    """A log of recorded events.

    Attributes:
        is_durable: Whether acked events survive the process. A store that is not durable keeps only what the
            rings hold and what waits for the hand-over: the server calls `remove` for the rest.
    """

    is_durable: bool = True
    _memory_directory: Directory | None = None

    @property
    def directory(self) -> Directory:
        """The rooms made while running, the members and the sessions beside this log; always the same object.

        Usable while the store is open. A store that does not override it gets a `MemoryDirectory`: created rooms,
        members and sessions then live as long as the store object, whatever the log keeps.
        """
        if self._memory_directory is None:
            # Imported here because it is written in terms of stores.
            from .memory_directory import MemoryDirectory

            self._memory_directory = MemoryDirectory(self)
        return self._memory_directory

    def use_logger(self, logger: logging.Logger) -> None:  # noqa: B027 - most stores log nothing
        """Log to *logger* from now on; the `Dialogue` of this store calls it with its own. By default nothing is."""

    @property
    @abstractmethod
    def epoch(self) -> str:
        """The name of this life of the log (at most 64 characters); valid while the store is open."""

    @abstractmethod
    async def open(self) -> None:
        """Make the store ready; called once per lifespan, before anything else.

        Raises:
            StartError: It cannot be used; the message names the remedy.
        """

    @abstractmethod
    async def aclose(self) -> None:
        """Release everything. May be called twice, and without `open`."""

    async def aclose_within(self, seconds: float) -> None:
        """Release everything, as `aclose`, in at most about *seconds*: a stop has only so long.

        What is being written when the time is over may or may not be recorded. The default is `aclose`, for a store
        that never waits long.
        """
        await self.aclose()

    @abstractmethod
    async def append(self, drafts: Sequence[Draft]) -> list[Appended]:
        """Record *drafts*, all or nothing, durably when it returns.

        Per room, new events get the next seqs in the order of *drafts*, without holes, and timestamps (in
        milliseconds) that never run backwards; over all rooms, ids that grow in commit order. A draft whose
        (room, sender, key) is known - from the log or from an earlier draft of the same call - records nothing
        and gets the first one's values.

        A draft with a `Target` also changes that event, in the same transaction: its data and `edited`, or as a
        tombstone. An earlier `EDIT` of the same event loses its data, so that nothing of what was replaced stays.

        Args:
            drafts: At least one, all with ``is_recorded``.

        Returns:
            One `Appended` per draft, in the same order.

        Raises:
            StoreUnavailable: Nothing was recorded.
            OutcomeUnknown: Whether they were recorded is not known (all of them or none).
            DraftRefused: The database refuses at least one of them; nothing was recorded.
            TargetGone: The target of one of them is not in the log, or is deleted; nothing was recorded.

        Cancelling the call leaves the outcome unknown. Whoever cancels must `settle` before the next append.
        """

    @abstractmethod
    async def settle(self, drafts: Sequence[Draft]) -> list[Appended | None]:
        """Return what was recorded of *drafts* whose append ended with an unknown outcome, by their keys.

        Returns:
            One entry per draft: the recorded event as if its append had just returned it (``event`` set, also
            though the key is known now), or None when it was not recorded.

        Raises:
            StoreUnavailable: It cannot be told now; ask again.
        """

    @abstractmethod
    async def head(self, room_id: str) -> RoomHead:
        """Return where *room_id* stands; a room that was never used has seq 0 and no streams.

        Raises:
            StoreUnavailable: The store cannot be read.
        """

    @abstractmethod
    async def page(
        self,
        room_id: str,
        *,
        event_names: Collection[str] | None = None,
        before: int | None = None,
        after: int | None = None,
        limit: int,
    ) -> LogPage:
        """Return events of a room by seq.

        Args:
            event_names: Only these; None for all.
            before: Exclusive upper bound; None for none.
            after: Exclusive lower bound. If given, the *oldest* ``limit`` events within the bounds are returned,
                else the newest.
            limit: At least 1.

        Raises:
            StoreUnavailable: The store cannot be read.
        """

    @abstractmethod
    async def stream_page(
        self, room_id: str, event_name: str, *, before_position: int, limit: int
    ) -> LogPage:
        """Return the newest *limit* events of one stream with a position below *before_position* (exclusive).

        Raises:
            StoreUnavailable: The store cannot be read.
        """

    @abstractmethod
    async def mark_handed(self, room_id: str, event_name: str, through: int) -> None:
        """Record that ``on_cleanup`` has returned for every position up to and including *through*.

        Never moves backwards.

        Raises:
            StoreUnavailable: It was not recorded.
        """

    @abstractmethod
    async def remove(self, room_id: str, event_name: str, through: int) -> None:
        """Remove the events of one stream up to and including position *through*; seqs and positions stay used.

        Raises:
            StoreUnavailable: Nothing was removed.
        """

    @abstractmethod
    def streams(self) -> AsyncIterator[tuple[str, str, StreamState]]:
        """Iterate over (room id, event name, state) of all streams whose ``handed_through`` is below ``last``.

        In no particular order; streams that change meanwhile may be missed.

        Raises:
            StoreUnavailable: The store cannot be read.
        """

    @abstractmethod
    async def feed(self, after: int, *, limit: int) -> list[FeedItem]:
        """Return the oldest *limit* events of all rooms with an id above *after* (exclusive), in order of id.

        Empty when *after* is at or above the newest id.

        Raises:
            CursorExpired: Something above *after* has been removed.
            StoreUnavailable: The store cannot be read.
        """

    @abstractmethod
    async def last_id(self) -> int:
        """Return the newest id; 0 for a log without events.

        Raises:
            StoreUnavailable: The store cannot be read.
        """

    @abstractmethod
    def stored_streams(self, event_names: Collection[str]) -> AsyncIterator[StoredStream]:
        """Iterate over the streams of *event_names* that have events in the log, for retention.

        In no particular order; streams that change meanwhile may be missed.

        Raises:
            StoreUnavailable: The store cannot be read.
        """

    @abstractmethod
    async def position_before(self, room_id: str, event_name: str, *, timestamp: int, limit: int) -> int:
        """Return the newest position with a time before *timestamp* among the oldest *limit* events of a stream.

        Args:
            timestamp: In milliseconds since the epoch, exclusive.
            limit: At least 1.

        Returns:
            0 if the oldest event is not before it, or there is none.

        Raises:
            StoreUnavailable: The store cannot be read.
        """

    @abstractmethod
    async def user_events(self, user_id: str, *, after: int, limit: int) -> UserEvents:
        """Look through the log for what *user_id* has sent.

        Args:
            after: Exclusive lower bound of the ids; 0 for the start.
            limit: Most events to look at, whoever sent them; at least 1. There is no index by user.

        Raises:
            StoreUnavailable: The store cannot be read.
        """
