"""The publish path: admit, append, ring, fan-out, ack - and the rooms that it goes through.

::

    Session.trigger ─► Hub.admit ─► GroupCommit.submit ─► Store.append
                                                              │
         Outbox ◄── Session.deliver ◄── Hub.deliver ◄─────────┘

`deliver` runs without awaiting from the moment an append returns: rings, subscribers and acks see a group in one
step, in commit order, before anything of the next group exists.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Callable, Coroutine, Sequence
from contextvars import ContextVar
from random import Random
from typing import TYPE_CHECKING, Any

from .. import protocol
from ..config import EventType, Limits, RoomTypes
from ..core import admission
from ..core.cursor import MAX_SEQ, Bound
from ..core.patterns import room_id_problem
from ..core.ring import Ring
from ..core.room import Room, Subscriber
from ..errors import (
    Backpressure,
    Blocked,
    CommandError,
    EventNotAllowed,
    Internal,
    InvalidRequest,
    RoomNotFound,
    StoreUnavailable,
    ValidationFailed,
)
from ..events import SERVER_KEY_PREFIX, Ack, Draft, EncodedEvent, Event
from ..storage.archive import Archive
from ..storage.base import Appended, Store
from ..storage.cleanup import HandOver
from .group_commit import GroupCommit, Outcome, Submission
from .handles import Context, RoomHandle, bounds_below
from .hooks import HookRegistry
from .metrics import Metrics
from .notifier import Notifier
from .outbox import Frame
from .reader import Reader

if TYPE_CHECKING:
    from .session import Session

SERVER_SENDER = "system"
"""The sender of what the application publishes without naming one."""

FAREWELL = "dialogue-session-end"
"""The name of the tasks that end connections; a stop waits for them."""

_RESET_SECONDS = 0.02

_publishing_in: ContextVar[str | None] = ContextVar("dialogue_publishing_in", default=None)


class _Waiter:
    """A publisher inside the process."""

    __slots__ = ("result",)

    def __init__(self) -> None:
        self.result: asyncio.Future[Ack] = asyncio.get_running_loop().create_future()

    def on_recorded(self, submission: Submission, outcome: Outcome) -> None:
        if not self.result.done():
            self.result.set_result(ack_of(outcome))

    def on_failed(self, submission: Submission, error: CommandError) -> None:
        if not self.result.done():
            self.result.set_exception(error)


def ack_of(outcome: Outcome) -> Ack:
    """Return what the publisher of *outcome* is told."""
    appended = outcome.appended
    if appended is None:
        assert outcome.event is not None
        event: Event[Any] = Event.decode(outcome.event, epoch=None)
        return Ack(None, None, event.timestamp)
    return Ack(appended.seq, appended.id, appended.timestamp, appended.is_duplicate)


class Hub:
    """The running part of a `Dialogue`: made at start, gone at stop. An async context manager."""

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
        self.context = Context(self, dialogue)
        self.rooms: dict[str, Room] = {}
        self.sessions: set[Session] = set()
        self.is_stopping = False
        self.unflushed_events = 0
        self._reset_rooms: set[str] = set()
        self._waking: dict[str, asyncio.Task[Room]] = {}
        self._trims: dict[tuple[str, str], int] = {}
        self._tasks: set[asyncio.Task[Any]] = set()
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
        self.commit = GroupCommit(
            store,
            deliver=self.deliver,
            after_deliver=self._trim,
            limits=limits,
            metrics=metrics,
            logger=logger,
            clock_ms=clock_ms,
            random=random,
        )
        self.notifier = Notifier(hooks, limits=limits, metrics=metrics, context=self.context)
        metrics.handover_pending.set_function(lambda: self.handover.pending_events if self.handover else 0)
        metrics.rooms.set_function(lambda: len(self.rooms))
        metrics.connections.set_function(lambda: len(self.sessions))

    async def __aenter__(self) -> Hub:
        if self.handover is not None:
            await self.handover.__aenter__()
        await self.commit.__aenter__()
        await self.notifier.__aenter__()
        self.spawn(self._sweep(), name="dialogue-sweep")
        return self

    async def __aexit__(self, *_: object) -> None:
        """Stop: no new commands, what was accepted is appended and told, hand-overs are flushed, sockets closed."""
        self.is_stopping = True
        await self.commit.__aexit__()
        for session in list(self.sessions):
            session.close(protocol.CLOSE_GOING_AWAY, "the server is stopping")
        try:
            async with asyncio.timeout(self.limits.stop_seconds):
                await asyncio.gather(*(session.wait_closed() for session in list(self.sessions)))
        except TimeoutError:
            self.log.warning("%d connections did not close in time", len(self.sessions))
        # on_left and on_disconnected of those connections; they have their own time limits.
        farewells = {task for task in self._tasks if task.get_name() == FAREWELL}
        if farewells:
            await asyncio.wait(farewells, timeout=self.limits.stop_seconds)
        await self.notifier.__aexit__()
        if self.handover is not None:
            self.unflushed_events = await self.handover.flush(with_rings=not self.store.is_durable)
            if self.unflushed_events:
                self.log.error("%d events could not be handed over before the stop", self.unflushed_events)
                self.metrics.handover.labels("lost").inc(self.unflushed_events)
            await self.handover.__aexit__()
        await self.reader.aclose()
        for task in (*self._tasks, *self._waking.values()):
            task.cancel()
        await asyncio.gather(*self._tasks, *self._waking.values(), return_exceptions=True)

    def spawn(self, coroutine: Coroutine[Any, Any, Any], *, name: str) -> asyncio.Task[Any]:
        """Run *coroutine* as a task that the hub ends with, and whose exception is logged."""
        task = asyncio.create_task(coroutine, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._on_task_done)
        return task

    def _on_task_done(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            self.log.error("task %s failed", task.get_name(), exc_info=task.exception())

    # -- rooms ---------------------------------------------------------------------------------------------------

    def _recorded_type(self, room_id: str, event_name: str) -> EventType[Any] | None:
        found = self.room_types.find(room_id)
        event_type = found[0].event_type(event_name) if found else None
        return event_type if event_type and event_type.history else None

    async def open_room(self, room_id: str) -> Room:
        """Return the room, woken from the log if it was not in memory.

        Waking is single-flight. Nobody can publish into a room that is waking, for publishing needs this too: so
        nothing can be missed between reading the log and answering.

        Raises:
            RoomNotFound: No declaration covers the id.
            Backpressure: ``limits.open_rooms`` are in memory.
            StoreUnavailable: The log cannot be read.
        """
        while (room := self.rooms.get(room_id)) is None:
            if room_id_problem(room_id) is not None or self.room_types.find(room_id) is None:
                raise RoomNotFound
            task = self._waking.get(room_id)
            if task is None:
                if len(self.rooms) + len(self._waking) >= self.limits.open_rooms:
                    raise Backpressure(
                        "too many rooms are open", retry_after_seconds=self.limits.idle_seconds
                    )
                task = self._waking[room_id] = asyncio.create_task(self._wake(room_id), name="dialogue-wake")
                task.add_done_callback(lambda done: self._on_woken(room_id, done))
            # Shielded: one who gives up waiting must not take the room from the others.
            await asyncio.shield(task)
        room.last_used = asyncio.get_running_loop().time()
        return room

    def _on_woken(self, room_id: str, task: asyncio.Task[Room]) -> None:
        self._waking.pop(room_id, None)
        if not task.cancelled():
            task.exception()  # those who wait are told; nobody waiting is no reason for a warning

    async def _wake(self, room_id: str) -> Room:
        found = self.room_types.find(room_id)
        assert found is not None
        room_type, params = found
        while room_id in self._reset_rooms and room_id in self.commit.room_ids():  # noqa: ASYNC110 - a store's fault
            # After a reset something may still be on its way into the room: reading now would miss it.
            await asyncio.sleep(_RESET_SECONDS)
        self._reset_rooms.discard(room_id)
        head = await self.store.head(room_id)
        rings: dict[str, Ring] = {}
        for name, state in head.streams.items():
            event_type = room_type.event_type(name)
            # A type that is no longer declared keeps one event: enough to count its positions on.
            limit = event_type.history.limit if event_type and event_type.history else 1
            page = await self.store.stream_page(room_id, name, before_position=state.last + 1, limit=limit)
            rings[name] = Ring.refill(limit, page.events, last_position=state.last, floor_seq=page.floor_seq)
        room = Room(room_id, room_type, params, last_seq=head.last_seq, rings=rings)
        room.last_used = asyncio.get_running_loop().time()
        self.rooms[room_id] = room
        return room

    async def _sweep(self) -> None:
        """Ping silent connections, close dead ones, and let unused rooms sleep."""
        interval = min(1.0, self.limits.ping_seconds / 4)
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(interval)
            now = loop.time()
            for session in list(self.sessions):
                session.check_silence(now)
            busy: set[str] | None = None
            for room in list(self.rooms.values()):
                if now - room.last_used < self.limits.idle_seconds or room.size:
                    continue
                if busy is None:
                    busy = self.commit.room_ids()
                # Without a durable store the ring is the only copy; an empty room has nothing to lose.
                if (self.store.is_durable or not room.last_seq) and room.room_id not in busy:
                    del self.rooms[room.room_id]

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

    async def admit(
        self,
        room: Room,
        event_type: EventType[Any],
        data_json: bytes,
        *,
        sender: str,
        meta_json: bytes | None,
        key: str | None,
    ) -> Draft | Appended:
        """Run the hooks over a validated event and return its draft.

        Returns:
            The draft to submit; or, when a hook blocks a retry whose first try was recorded, what was recorded.

        Raises:
            CommandError: It is not admitted.
        """
        self._check_event_names(room, event_type)
        draft = Draft(
            room_id=room.room_id,
            event=event_type.name,
            sender=sender,
            key=SERVER_KEY_PREFIX + secrets.token_hex(12) if key is None else key,
            data_json=data_json,
            meta_json=meta_json,
            kind=event_type.kind,
            is_recorded=event_type.history is not None,
            counts_unread=event_type.counts_unread,
        )
        if self.hooks.has("before_each"):
            try:
                await self._before_each(room, event_type, draft)
            except Blocked:
                if key is None or not draft.is_recorded:
                    raise
                found = await self.commit.look_up(draft)
                if found is None:
                    raise
                return found._replace(event=None)
        return draft

    def _check_event_names(self, room: Room, event_type: EventType[Any]) -> None:
        name = event_type.name
        if name in room.room_type.events or name in room.undeclared:
            return
        if len(room.undeclared) >= self.limits.event_names_per_room:
            raise EventNotAllowed("the room has as many event names as it may have")

    async def _before_each(self, room: Room, event_type: EventType[Any], draft: Draft) -> None:
        handle = RoomHandle(self, room.room_id)
        for hook in self.hooks.matching("before_each", room.room_id, draft.event):
            event: Event[Any] = Event(
                room_id=room.room_id,
                event=draft.event,
                data=admission.decode_json(draft.data_json),
                sender=draft.sender,
                meta=admission.decode_json(draft.meta_json) if draft.meta_json is not None else None,
                kind=event_type.kind,
                key=draft.public_key,
                event_type=event_type,
            )
            token = _publishing_in.set(room.room_id)
            try:
                changed = await self.hooks.invoke(
                    "before_each",
                    hook,
                    seconds=self.limits.hook_seconds,
                    context=self.context,
                    room=handle,
                    event=event,
                )
            except CommandError:
                raise
            except Exception:
                self.log.exception("before_each failed (room %r, event %r)", room.room_id, draft.event)
                raise Internal from None
            finally:
                _publishing_in.reset(token)
            if changed is None:
                continue
            if not isinstance(changed, Event):
                self.log.error("before_each returned a %s; return an Event or None", type(changed).__name__)
                raise Internal
            limits = self.limits
            # Checked again: what a hook makes goes into the same frames and the same store.
            draft.data_json = admission.encode_value(
                event_type, changed.data, max_bytes=limits.message_bytes, max_depth=limits.data_depth
            )
            draft.meta_json = self.encode_meta(changed.meta)
            if changed.sender != draft.sender:
                # Identity is bound to the connection, and keys to the identity.
                self.log.error(
                    "before_each may not change the sender (room %r, event %r)", room.room_id, draft.event
                )
                raise Internal

    def encode_meta(self, meta: dict[str, Any] | None) -> bytes | None:
        """Check and encode the meta of an event of the application's.

        Raises:
            ValidationFailed, MessageTooLarge: It is not an object, not safe JSON, or too large.
        """
        if meta is None:
            return None
        raw = admission.encode_json(meta, max_depth=self.limits.data_depth, what="meta")
        return admission.encode_meta(raw, max_bytes=self.limits.meta_bytes, max_depth=self.limits.data_depth)

    def check_user_id(self, user_id: Any) -> str:
        """Return *user_id* if it can be one.

        Raises:
            ValidationFailed: It is not 1 to ``limits.user_id_length`` characters without control characters.
        """
        if not isinstance(user_id, str) or not 1 <= len(user_id) <= self.limits.user_id_length:
            raise ValidationFailed(f"a user id has 1 to {self.limits.user_id_length} characters")
        if any(char < " " or "\ud800" <= char <= "\udfff" for char in user_id):
            raise ValidationFailed("a user id has no control characters and is Unicode text")
        return user_id

    def check_connection_user(self, user_id: Any) -> str:
        """Return *user_id* if a connection's user can be called so.

        Raises:
            ValidationFailed: It cannot be one, or is the server's own name: keys are scoped to it.
        """
        if user_id == SERVER_SENDER:
            raise ValidationFailed(f"the user id {SERVER_SENDER!r} is the server's own")
        return self.check_user_id(user_id)

    def check_key(self, key: str | None) -> str | None:
        """Return *key* if a publisher may use it.

        Raises:
            InvalidRequest: It is empty, too long, starts with ``$`` or has control characters.
        """
        if key is None:
            return None
        if not isinstance(key, str) or not 1 <= len(key) <= self.limits.key_length:
            raise InvalidRequest(f"a key has 1 to {self.limits.key_length} characters")
        if key.startswith(SERVER_KEY_PREFIX):
            raise InvalidRequest(f"a key does not start with '{SERVER_KEY_PREFIX}'")
        if any(char < " " or "\ud800" <= char <= "\udfff" for char in key):
            raise InvalidRequest("a key has no control characters")
        return key

    def submit(self, room: Room, draft: Draft, publisher: Any, ref: Any) -> None:
        """Queue an admitted draft; its publisher is told by the delivery.

        Raises:
            Backpressure: Too much waits for the store, or for ``on_cleanup``.
        """
        if draft.is_recorded and self.handover is not None and not self.store.is_durable:
            # Everything accepted may evict something: count it all, so that the queue never passes its bound.
            waiting = self.handover.pending_events + self.commit.waiting_events
            if waiting >= self.limits.handover_queue_events:
                raise Backpressure("too many events wait for on_cleanup", retry_after_seconds=1)
        # The sweeper leaves rooms alone that something is queued for.
        room.last_used = asyncio.get_running_loop().time()
        is_new_name = draft.event not in room.room_type.events and draft.event not in room.undeclared
        if is_new_name and len(room.undeclared) >= self.limits.event_names_per_room:
            raise EventNotAllowed("the room has as many event names as it may have")
        self.commit.submit(draft, publisher, ref)
        # Only now: an event that was blocked or refused must not use up a name.
        if is_new_name:
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
        if _publishing_in.get() == room_id:
            raise RuntimeError(
                f"before_each of room {room_id!r} may not trigger into the same room: it would wait for itself. "
                "Return a changed event, or trigger from after_each"
            )
        room = await self.open_room(room_id)
        name = event.name if isinstance(event, EventType) else event
        event_type = room.room_type.event_type(name)
        if event_type is None:
            raise EventNotAllowed(f"room {room_id!r} declares no event {name!r}")
        data_json = admission.encode_value(
            event_type, data, max_bytes=self.limits.message_bytes, max_depth=self.limits.data_depth
        )
        admitted = await self.admit(
            room,
            event_type,
            data_json,
            sender=self.check_user_id(sender),
            meta_json=self.encode_meta(meta),
            key=self.check_key(key),
        )
        if isinstance(admitted, Appended):
            return Ack(admitted.seq, admitted.id, admitted.timestamp, True)
        room = await self.open_room(room_id)
        waiter = _Waiter()
        self.submit(room, admitted, waiter, None)
        return await waiter.result

    # -- deliver -------------------------------------------------------------------------------------------------

    def deliver(self, outcomes: Sequence[Outcome]) -> None:
        """Tell a committed group: rings, subscribers, publishers. Never awaits."""
        acks: dict[tuple[Any, str], list[bytes]] = {}
        by_room: dict[str, list[Outcome]] = {}
        for outcome in outcomes:
            submission = outcome.submission
            room_id = submission.draft.room_id
            if outcome.event is not None:
                by_room.setdefault(room_id, []).append(outcome)
            else:
                self.metrics.duplicates.inc()
            if submission.publisher is not None and not submission.is_answered:
                submission.is_answered = True
                ack = submission.publisher.on_recorded(submission, outcome)
                if ack is not None:
                    acks.setdefault((submission.publisher, room_id), []).append(ack)
        for room_id, group in by_room.items():
            room = self.rooms.get(room_id)
            if room is not None:
                self._deliver_room(room, group, acks)
        for (session, _), messages in acks.items():
            session.send(messages)

    def _deliver_room(
        self, room: Room, outcomes: list[Outcome], acks: dict[tuple[Any, str], list[bytes]]
    ) -> None:
        events: list[EncodedEvent] = []
        origins: dict[int, Any] = {}
        keyed_users: set[str] = set()
        for outcome in outcomes:
            event = outcome.event
            assert event is not None
            if event.seq is None:
                origins[id(event)] = outcome.submission.publisher
            else:
                try:
                    evicted = room.push(event)
                except ValueError:
                    self._reset(room)
                    return
                if evicted is not None:
                    self._evicted(room, evicted)
            if event.key is not None:
                keyed_users.add(event.sender)
            events.append(event)
        recorded = len(events) - len(origins)
        self.metrics.recorded.inc(recorded)
        self.metrics.ephemeral.inc(len(origins))
        special = {session for session, room_id in acks if room_id == room.room_id} | set(origins.values())
        delivered = 0
        recipients = dict.fromkeys(map(id, events), 0)
        for group in room.groups(events):
            frame: Frame | None = None
            count = len(group.events)
            for subscriber in group.subscribers:
                session: Session = subscriber.sink
                if session in special or subscriber.user_id in keyed_users:
                    own = [event for event in group.events if origins.get(id(event), event) is not session]
                    messages = [event.json_for(subscriber.user_id) for event in own]
                    if subscriber.held is None:
                        # Else the frame waits for a join that may fail: the acks must not wait with it.
                        messages += acks.pop((session, room.room_id), ())
                    if messages:
                        session.deliver(subscriber, Frame(protocol.encode_frame(messages)))
                    delivered += len(own)
                    for event in group.events:
                        recipients[id(event)] -= origins.get(id(event), event) is session
                else:
                    if frame is None:
                        frame = Frame(protocol.encode_frame([event.json for event in group.events]))
                    session.deliver(subscriber, frame)
                    delivered += count
            size = sum(1 for _ in group.subscribers)
            for event in group.events:
                recipients[id(event)] += size
        self.metrics.deliveries.inc(delivered)
        self.notifier.put(room.room_id, room.room_type, [(event, recipients[id(event)]) for event in events])

    def _evicted(self, room: Room, evicted: EncodedEvent) -> None:
        if self.handover is not None:
            self.handover.evicted(room.room_id, evicted.event, evicted.position)
        elif not self.store.is_durable:
            self._trims[room.room_id, evicted.event] = evicted.position
            self.metrics.forgotten.inc()

    async def _trim(self) -> None:
        """Let a store that only mirrors the rings forget what they have forgotten."""
        trims, self._trims = self._trims, {}
        for (room_id, event_name), through in trims.items():
            await self.store.remove(room_id, event_name, through)

    def _reset(self, room: Room) -> None:
        """Drop a room whose next seq is not what it should be, and its connections: they resume from the log.

        It takes a fault in the store to come here. Going on would hide a hole from everyone.
        """
        self.log.critical(
            "room %r: the store skipped a seq; its connections are closed and will resume", room.room_id
        )
        self.rooms.pop(room.room_id, None)
        self._reset_rooms.add(room.room_id)
        for subscriber in list(room.subscribers()):
            subscriber.sink.close(protocol.CLOSE_RESTARTING, "the room is read again")

    # -- subscribers ---------------------------------------------------------------------------------------------

    def add_subscriber(self, room: Room, subscriber: Subscriber) -> None:
        """Register a connection in a room."""
        room.add(subscriber)

    def remove_subscriber(self, room_id: str, subscriber: Subscriber) -> None:
        """Remove a connection from a room; the room may sleep some time after the last one left."""
        room = self.rooms.get(room_id)
        if room is not None:
            room.discard(subscriber)
            room.last_used = asyncio.get_running_loop().time()

    # -- reads for the application -------------------------------------------------------------------------------

    async def history_by_offset(self, room_id: str, name: str, start: int, end: int) -> list[Event[Any]]:
        """Return events of one type by offset, newest first."""
        if start < 0 or end < start:
            raise ValueError("0 <= start <= end is needed")
        room = await self.open_room(room_id)
        event_type = self.recorded_type(room, name)
        ring = room.rings.get(name)
        position = (ring.last_position if ring else 0) - start + 1
        return await self._events(room, {name: Bound(MAX_SEQ, position)}, end - start, event_type)

    async def history_before(
        self, room_id: str, name: str | None, before: int | None, limit: int
    ) -> list[Event[Any]]:
        """Return the newest events below a seq, oldest first."""
        room = await self.open_room(room_id)
        names = room.recorded_names() if name is None else [self.recorded_type(room, name).name]
        bounds = bounds_below(names, room.last_seq + 1 if before is None else before)
        return (await self._events(room, bounds, limit, None))[::-1]

    async def _events(
        self, room: Room, bounds: dict[str, Bound], limit: int, event_type: EventType[Any] | None
    ) -> list[Event[Any]]:
        """Read *limit* events below *bounds*, newest first, over as many pages as it takes."""
        newest_first: list[EncodedEvent] = []
        goes_on: dict[str, Bound] | None = bounds
        while goes_on is not None and len(newest_first) < limit:
            part = await self.reader.older(room, goes_on, limit=limit - len(newest_first))
            if part.gap is not None and part.gap.reason == "tier_unavailable":
                raise StoreUnavailable("part of the history cannot be read now", retry_after_seconds=1)
            newest_first += part.events[::-1]
            goes_on = part.bounds
        return [
            Event.decode(
                event, epoch=self.store.epoch, event_type=event_type or room.room_type.event_type(event.event)
            )
            for event in newest_first
        ]
