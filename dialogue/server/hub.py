"""The running part of a `Dialogue`: its parts put together, and the publish path through them.

::

    Commands ─► Admission.admit ─► Hub.submit ─► GroupCommit ─► Store.append
                                                                     │
         Outbox ◄── Session.deliver ◄── Delivery.deliver ◄───────────┘

What comes over HTTP, or from the application, takes the same way from `Admission` on, and waits for its `Waiter`.

`Delivery.deliver` runs without awaiting: rings, subscribers and acks see a group in one step, in commit order. The
store may be at work on the next group by then; nobody is told of that one before.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine
from random import Random
from typing import TYPE_CHECKING, Any, TypeVar

from ..config import EventType
from ..core import admission
from ..core.room import Room, Subscriber
from ..errors import (
    Backpressure,
    EventNotAllowed,
)
from ..events import CHANGES, Ack, Draft
from ..limits import Limits
from ..room_types import RoomTypes
from ..storage.archive import Archive
from ..storage.base import Appended, Store
from ..storage.cleanup import HandOver
from ..storage.retention import RetentionSweep
from .access import Access
from .admit import Admission, check_not_publishing
from .application_reads import ApplicationReads
from .changes import Changes
from .connections import Connections
from .delivery import Delivery
from .feed import Feeds
from .followers import Followers
from .group_commit import GroupCommit
from .handles import Context, RoomHandle
from .health import show_progress
from .hooks import HookRegistry
from .in_flight import InFlight
from .inbox import Inbox
from .metrics import Metrics
from .notifier import Notifier
from .pacing import Pacer
from .presence import Presence
from .rates import UserRates
from .reader import Reader
from .registry import RoomRegistry
from .rooms import OpenRooms
from .session_records import SessionRecords
from .stopping import Stopping, result_of
from .submissions import Waiter

if TYPE_CHECKING:
    from .session import Session

T = TypeVar("T")


class Hub:
    """The running part of a `Dialogue`: made at start in its event loop, gone at stop. An async context manager."""

    def __init__(
        self,
        *,
        dialogue: Any,
        room_types: RoomTypes,
        store: Store,
        archive: Archive | None,
        is_archive_readable: bool,
        hooks: HookRegistry,
        limits: Limits,
        waits_for_store: bool,
        metrics: Metrics,
        logger: logging.Logger,
        clock_ms: Callable[[], int],
        random: Random,
    ) -> None:
        self.room_types = room_types
        self.store = store
        self.hooks = hooks
        self.limits = limits
        self.metrics = metrics
        self.log = logger
        self.random = random
        self.clock_ms = clock_ms
        self.context = Context(self, dialogue)
        self.connections = Connections(limits=limits, metrics=metrics)
        self.pacer = Pacer()
        self.in_flight = InFlight(limits)
        self.access = Access(hooks, limits=limits, context=self.context)
        self.registry = RoomRegistry(self, room_types)
        self.followers = Followers(self)
        self.presence = Presence(self)
        self.inbox = Inbox(self)
        self.session_records = SessionRecords(self)
        self.user_rates = UserRates(limits, clock=asyncio.get_running_loop().time)
        self.unflushed_events = 0
        # Kept: finding the running loop asks the system for the process's number each time.
        self._time = asyncio.get_running_loop().time
        self.tasks: set[asyncio.Task[Any]] = set()
        self.stop = Stopping(self)
        self.handover = (
            HandOver(
                store,
                archive,
                limits=limits,
                event_type=self._recorded_type,
                random=random,
                count=lambda outcome, events: metrics.handover.labels(outcome).inc(events),
                logger=logger,
            )
            if archive is not None
            else None
        )
        self.reader = Reader(
            store,
            archive=archive if is_archive_readable else None,
            handover=self.handover,
            limits=limits,
            metrics=metrics,
            logger=logger,
        )
        self.delivery = Delivery(self)
        self.commit = GroupCommit(
            store,
            deliver=self.delivery.deliver,
            after_deliver=self.delivery.trim,
            limits=limits,
            waits_for_store=waits_for_store,
            metrics=metrics,
            logger=logger,
            clock_ms=clock_ms,
            random=random,
        )
        self.open_rooms = OpenRooms(
            registry=self.registry, store=store, limits=limits, busy=self.commit.room_ids
        )
        self.rooms = self.open_rooms.rooms
        self.admission = Admission(
            hooks=hooks,
            limits=limits,
            context=self.context,
            access=self.access,
            look_up=self.commit.look_up,
            logger=logger,
        )
        self.retention = RetentionSweep(
            store,
            event_names=room_types.expiring_names(),
            event_type=self._recorded_type,
            handover=self.handover,
            expired=self.open_rooms.expire,
            count=metrics.expired.inc,
            clock_ms=clock_ms,
            limits=limits,
            logger=logger,
        )
        self.reads = ApplicationReads(self)
        self.changes = Changes(self, archive=archive)
        self.feeds = Feeds(store, find=self.registry.find, limits=limits, logger=logger, random=random)
        self.notifier = Notifier(hooks, limits=limits, metrics=metrics, context=self.context, logger=logger)
        show_progress(metrics, handover=self.handover, reader=self.reader, commit=self.commit)
        metrics.rooms.set_function(lambda: len(self.rooms))
        metrics.connections.set_function(lambda: len(self.connections.sessions))
        metrics.streams.set_function(lambda: self.followers.count)

    async def __aenter__(self) -> Hub:
        try:
            await self.registry.open()
            if self.handover is not None:
                await self.handover.__aenter__()
            await self.commit.__aenter__()
            await self.inbox.__aenter__()
            await self.session_records.__aenter__()
            await self.notifier.__aenter__()
            await self.retention.__aenter__()
        except BaseException:
            # Also a cancelled start: what runs already would go on over a store that is closed.
            await self.stop.run()
            raise
        self.spawn(self._sweep(), name="dialogue-sweep")
        return self

    async def __aexit__(self, *_: object) -> None:
        """Stop: no new commands, what was accepted is appended and told, hand-overs are flushed, sockets closed."""
        await self.stop.run()

    @property
    def is_stopping(self) -> bool:
        """Whether a stop has begun."""
        return self.stop.times is not None

    @property
    def unhanded_events(self) -> int:
        """How many events the hand-over has before it; without a durable store also those in the rings."""
        if self.handover is None:
            return 0
        waiting = self.handover.statistics().waiting_events
        if self.store.is_durable or self.handover.has_rings:
            return waiting
        return waiting + sum(len(ring) for room in self.rooms.values() for ring in room.rings.values())

    def spawn(self, coroutine: Coroutine[Any, Any, Any], *, name: str) -> asyncio.Task[Any]:
        """Run *coroutine* as a task that the hub ends with, and whose exception is logged."""
        task = asyncio.create_task(coroutine, name=name)
        self.tasks.add(task)
        task.add_done_callback(self._on_task_done)
        return task

    async def complete(self, coroutine: Coroutine[Any, Any, T], *, name: str) -> T:
        """Return what *coroutine* does; it goes on to its end also if whoever waits for it is cancelled.

        Raises:
            StoreUnavailable: A stop has ended it.
        """
        task = asyncio.create_task(coroutine, name=name)
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)
        try:
            return await result_of(task)
        except asyncio.CancelledError:
            # Nobody else would hear of it now.
            task.add_done_callback(self._on_task_done)
            raise

    def _on_task_done(self, task: asyncio.Task[Any]) -> None:
        self.tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            self.log.error("task %s failed", task.get_name(), exc_info=task.exception())

    # -- rooms ---------------------------------------------------------------------------------------------------

    def _recorded_type(self, room_id: str, event_name: str) -> EventType[Any] | None:
        found = self.registry.find(room_id)
        event_type = found[0].event_type(event_name) if found else None
        return event_type if event_type and event_type.history else None

    async def _sweep(self) -> None:
        """Ping silent connections, close dead ones, and let unused rooms sleep."""
        interval = min(1.0, self.limits.ping_seconds / 4)
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(interval)
            now = loop.time()
            for session in list(self.connections.sessions):
                session.check_silence(now)
            self.open_rooms.let_sleep(now)

    # -- admit ---------------------------------------------------------------------------------------------------

    def recorded_type(self, room: Room, name: str) -> EventType[Any]:
        """Return the recorded event type *name* of a room.

        Raises:
            EventNotAllowed: The room has none.
        """
        event_type = room.room_type.event_type(name)
        if event_type is None or event_type.history is None:
            raise EventNotAllowed("the room records no such event")
        return event_type

    def submit(self, room: Room, draft: Draft, publisher: Any, ref: Any) -> None:
        """Queue an admitted draft; its publisher is told by the delivery.

        Raises:
            Backpressure: Too much waits for the store, or for ``on_cleanup``; or the room is being deleted.
        """
        if draft.is_recorded and self.handover is not None and not self.store.is_durable:
            # Everything accepted may evict something: count it all, so that the queue never passes its bound.
            waiting = self.handover.pending_events + self.commit.waiting_events
            if waiting >= self.limits.handover_queue_events:
                raise Backpressure("too many events wait for on_cleanup", retry_after_seconds=1)
        # The sweeper leaves rooms alone that something is queued for.
        room.last_used = self._time()
        if self.registry.deleting:
            self.registry.check_usable(room.room_id)
        is_declared = draft.event in room.room_type.events or draft.event in CHANGES
        if not is_declared:
            self.admission.check_event_name(room, draft.event)
        self.commit.submit(draft, publisher, ref)
        # Only now: an event that was blocked or refused must not use up a name.
        if not is_declared:
            room.undeclared.add(draft.event)

    async def trigger(
        self,
        room_id: str,
        event: str | EventType[Any],
        data: Any,
        *,
        sender: str,
        meta: dict[str, Any] | None,
        key: str | None,
    ) -> Ack:
        """Publish for the application; see `Dialogue.trigger`."""
        check_not_publishing(room_id)
        room = await self.open_rooms.open(room_id)
        name = event.name if isinstance(event, EventType) else event
        event_type = room.room_type.event_type(name)
        if event_type is None or name in CHANGES:
            raise EventNotAllowed(f"room {room_id!r} declares no event {name!r}")
        draft = self.admission.draft(
            room,
            event_type,
            self.encoder(data)(event_type),
            sender=self.admission.check_user_id(sender),
            meta_json=self.admission.encode_meta(meta),
            key=self.admission.check_key(key),
        )
        if not self.admission.has_hooks:
            return await self.submit_and_wait(room, draft)
        return await self.publish(room_id, await self.admission.ask_hooks(room, event_type, draft))

    async def publish(self, room_id: str, admitted: Draft | Appended) -> Ack:
        """Publish what is admitted, and wait until it is recorded and told."""
        if isinstance(admitted, Appended):
            return admitted.ack
        # The room may have gone to sleep, or away, while hooks were asked.
        room = await self.open_rooms.open(room_id)
        return await self.submit_and_wait(room, admitted)

    async def submit_and_wait(self, room: Room, draft: Draft) -> Ack:
        """Queue an admitted draft at once, and wait until it is recorded and told; raises as `submit` does."""
        waiter = Waiter()
        self.submit(room, draft, waiter, None)
        return await waiter.result

    def encoder(self, data: Any) -> Callable[[EventType[Any]], bytes]:
        """Return what validates *data* of the application's by an event's type, and encodes it."""
        limits = self.limits
        return lambda event_type: admission.encode_value(
            event_type, data, max_bytes=limits.message_bytes, max_depth=limits.data_depth
        )

    # -- subscribers ---------------------------------------------------------------------------------------------

    def add_subscriber(self, room: Room, subscriber: Subscriber) -> None:
        """Register a connection in a room."""
        room.add(subscriber)
        self.presence.entered(room, subscriber)

    def remove_subscriber(self, room_id: str, subscriber: Subscriber) -> None:
        """Remove a connection from a room; the room may sleep some time after the last one left."""
        room = self.rooms.get(room_id)
        # One that was dropped with its connections in it may have been read again.
        if room is not None and room.discard(subscriber):
            room.last_used = self._time()
            self.presence.left(room, subscriber)

    async def remove_from_room(self, user_id: str, room_id: str, *, reason: str) -> None:
        """Take a user out of a room; see `Dialogue.remove_from_room`."""
        RoomHandle(self, room_id)  # raises RoomNotFound where there is none
        # What is being answered is not sent; a join that is under way does not end in one.
        self.access.revoke(user_id, room_id, reason=reason)
        left = [
            (session, session.memberships.drop(room_id, reason=reason))
            for session in self.connections.of(user_id)
            if room_id in session.memberships.by_room
        ]
        self.inbox.removed(user_id, room_id)
        await self.complete(self._end_membership(user_id, room_id, left), name="dialogue-remove-from-room")

    async def _end_membership(
        self, user_id: str, room_id: str, left: list[tuple[Session, RoomHandle | None]]
    ) -> None:
        try:
            await self.inbox.remove_member(user_id, room_id)
        finally:
            for session, handle in left:
                if handle is not None:
                    await session.memberships.notify_left(handle)

    def forget_room(self, room_id: str) -> None:
        """Forget what is kept of a room that was deleted."""
        self.inbox.forget_room(room_id)
        self.presence.forget_room(room_id)
        # What was begun in it must not end in another one of its id.
        self.access.revoke_room(room_id, reason="the room was deleted")

    async def forget_user(self, user_id: str) -> None:
        """Forget a user's markers and sessions.

        Raises:
            StoreUnavailable: They are not known to be forgotten.
        """
        self.inbox.forget_user(user_id)
        await self.session_records.forget_user(user_id)
        # A connection that has come meanwhile has read the markers that were there then.
        self.inbox.forget_user(user_id)
