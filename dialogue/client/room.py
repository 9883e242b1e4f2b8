"""A room as a client sees it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterable
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar, overload

import msgspec

from dialogue.config import EventType
from dialogue.errors import NotJoined, RateLimited, StoreUnavailable
from dialogue.events import Ack, Event, WireEvent

from .effects import READ_PAUSE_SECONDS
from .encoding import ack_of, check_size, encode_data, new_key
from .handlers import Calls, Handlers, Unsubscribe
from .pages import Gap, Page, Presence, PresenceChange
from .stream import Stream
from .streams import Streams
from .timeline import Timeline
from .typing import TYPING_SECONDS, OwnTyping, Typing

if TYPE_CHECKING:
    from .client import DialogueClient
    from .session import Session

T = TypeVar("T")

_ANY = "*"
_PAGE_EVENTS = 200


class Room:
    """A room; from `DialogueClient.join` or `DialogueClient.room`.

    Handlers are called with every recorded event of the subscription once, in seq order, also over lost
    connections, and with ephemeral events while the connection stands; never with what the join brought. They run
    one at a time per client (see `DialogueClient`). After `leave` or `on_left` the object is spent: its calls raise
    `NotJoined` with the reason, and joining again gives a new one.

    Attributes:
        room_id: Its id.
        name: For people; empty before the join.
        is_joined: Whether the client is in it; stays true while a lost connection is resumed.
        epoch: The life of the log that its seqs belong to; None before the join.
        history: What the join brought, newest first; replaced when the timeline begins anew (`on_reset`).
    """

    def __init__(self, client: DialogueClient, room_id: str) -> None:
        self.room_id = room_id
        self.name = ""
        self.is_joined = False
        self.epoch: str | None = None
        self.history: list[Event[Any]] = []
        self._client = client
        self._events = Handlers()
        self._notices = Handlers()
        self._types: dict[str, EventType[Any]] = {}
        self._timelines: list[Timeline[Any]] = []
        self._typings: dict[Typing, str] = {}
        self._changed: set[Timeline[Any] | Typing] = set()
        self._own_typing: dict[str, OwnTyping] = {}
        self._newest_seq = 0
        self._end_reason: str | None = None
        self._streams = Streams(self)

    @property
    def subscriptions(self) -> list[str] | str:
        """The names of the events that it receives, as the server has told last; ``"*"`` for all.

        Empty while it is not joined.
        """
        state = self._client._session.rooms.get(self.room_id)
        subscriptions = [] if state is None else state.subscriptions
        return subscriptions if isinstance(subscriptions, str) else list(subscriptions)

    # ---- handlers

    @overload
    def on(self, event: EventType[T], fn: Callable[[Event[T]], Any]) -> Unsubscribe: ...
    @overload
    def on(self, event: str, fn: Callable[[Event[Any]], Any]) -> Unsubscribe: ...
    def on(self, event: str | EventType[Any], fn: Callable[[Event[Any]], Any]) -> Unsubscribe:
        """Call *fn* (a function or a coroutine function) with each event of this name, live or resumed.

        It adds a handler, not a subscription: see `subscribe`.

        Returns:
            A function that takes the handler away; it may be called twice.
        """
        return self._events.add(self._name(event), fn)

    def on_any(self, fn: Callable[[Event[Any]], Any]) -> Unsubscribe:
        """Call *fn* with every event of the room, after the handlers of its name."""
        return self._events.add(_ANY, fn)

    def on_reset(self, fn: Callable[[], Any]) -> Unsubscribe:
        """Call *fn* when events were missed that the server cannot tell: `history` is new by then.

        That is so after a long absence, or when the log has another epoch.
        """
        return self._notices.add("reset", fn)

    def on_left(self, fn: Callable[[str], Any]) -> Unsubscribe:
        """Call *fn* with the reason when the server ends the membership, or refuses it after a reconnect."""
        return self._notices.add("left", fn)

    def on_presence(self, fn: Callable[[PresenceChange], Any]) -> Unsubscribe:
        """Call *fn* when users have come or gone, each counted once over all connections.

        Changes are not repeated: after a lost connection, or when handlers are too slow, `presence` tells who is there.
        """
        return self._notices.add("presence", fn)

    # ---- publishing

    async def trigger(
        self,
        event: str | EventType[Any],
        data: Any = None,
        *,
        meta: dict[str, Any] | None = None,
        key: str | None = None,
    ) -> Ack:
        """Publish an event and wait until it is recorded.

        It waits through lost connections: an event without an answer is sent again with its key, which the server
        records once. Events of one room are sent in the order of the calls.

        Args:
            event: The event's name or its type.
            data: Plain JSON data, or an instance of the type's schema (or of any pydantic model).
            meta: What goes along with the data.
            key: The idempotency key; a new one is made if there is none.

        Raises:
            CommandError: The event was refused and not recorded; the subclass tells why. Except
                `StoreUnavailable` and `Internal`: the outcome is still unknown after several tries with one key.
            Backpressure: Too many triggers wait for an answer already (or the server says so).
            ConnectionLost: The client was closed, or refused for good. The outcome is unknown.
            TypeError, ValueError: The data is not JSON (NaN and infinity, say, are not).
        """
        encoded = encode_data(data, event if isinstance(event, EventType) else None)
        check_size(len(encoded), self._client._session.limits)
        meta_raw = None if meta is None else msgspec.Raw(encode_data(meta, None))
        answer = await self._request(
            lambda session: session.trigger(
                self.room_id,
                self._name(event),
                msgspec.Raw(encoded),
                meta=meta_raw,
                key=new_key() if key is None else key,
            )
        )
        if answer.get("seq") is not None:
            for own in self._own_typing.values():
                own.forget()
        return ack_of(answer)

    async def edit(
        self,
        seq: int,
        data: Any,
        *,
        event: EventType[Any] | None = None,
        key: str | None = None,
    ) -> Ack:
        """Replace the data of an event of one's own, or of one that the server lets one edit.

        It waits and is sent again as `trigger` does. Everyone in the room is told by a ``$edit``.

        Args:
            seq: The event's.
            data: Plain JSON data, or an instance of the type's schema (or of any pydantic model).
            event: The event's type, if *data* is to be checked by it first.
            key: The idempotency key; a new one is made if there is none.

        Returns:
            That of the ``$edit``.

        Raises:
            InvalidRequest: There is no such event in the log, or it is deleted.
            PermissionDenied: It is someone else's.
            CommandError, Backpressure, ConnectionLost, TypeError, ValueError: As `trigger`.
        """
        encoded = encode_data(data, event)
        check_size(len(encoded), self._client._session.limits)
        answer = await self._request(
            lambda session: session.edit(self.room_id, seq, msgspec.Raw(encoded), key=key or new_key())
        )
        return ack_of(answer)

    async def delete(self, seq: int, *, key: str | None = None) -> Ack:
        """Delete an event of one's own, or of one that the server lets one delete.

        Everyone in the room is told by a ``$delete``; the event stays as a tombstone without data.

        Returns:
            That of the ``$delete``.

        Raises:
            InvalidRequest: There is no such event in the log, or it is deleted.
            PermissionDenied: It is someone else's.
            CommandError, Backpressure, ConnectionLost: As `trigger`.
        """
        answer = await self._request(lambda session: session.delete(self.room_id, seq, key=key or new_key()))
        return ack_of(answer)

    async def set_typing(
        self,
        is_typing: bool = True,
        *,
        event: str | EventType[Any] = "typing",
        meta: dict[str, Any] | None = None,
    ) -> None:
        """Say that one is typing, or no more; call it at every stroke.

        It triggers the ephemeral *event* with ``{"is_typing": ...}`` when that changes, and every few seconds while
        the typing goes on. A recorded event that this room object triggers ends the typing by itself. Without a
        connection nothing is said, and nothing is made up for.

        Raises:
            CommandError, Backpressure, ConnectionLost: As `trigger`.
        """
        own = self._own_typing.setdefault(self._name(event), OwnTyping())
        if self._client.state != "connected":
            own.forget()
        elif own.should_say(is_typing, time.monotonic()):
            try:
                await self.trigger(event, {"is_typing": is_typing}, meta=meta)
            except BaseException:
                own.forget()
                raise

    def typing_users(
        self, event: str | EventType[Any] = "typing", *, seconds: float = TYPING_SECONDS
    ) -> Typing:
        """Return who is typing, kept up to date until it is closed or the room is left.

        Args:
            event: The ephemeral event that tells of it; the subscription must have it.
            seconds: How long an entry stays without another event, above 0; longer than what `set_typing` (or another
                client) takes to repeat itself.
        """
        typing = Typing(
            seconds=seconds,
            own_user=lambda: self._client.user_id,
            notify=self._notify_changed,
            on_close=self._drop_typing,
        )
        self._typings[typing] = self._name(event)
        return typing

    # ---- reading

    async def presence(self) -> Presence:
        """Return who is in the room now.

        Raises:
            PermissionDenied: The room does not tell who is in it.
            CommandError, ConnectionLost: See `page`.
        """
        answer = await self._request(lambda session: session.read({"type": "presence", "room": self.room_id}))
        return Presence(users=list(answer["users"]), count=answer.get("count", len(answer["users"])))

    async def mark_read(self, seq: int | None = None) -> int:
        """Mark the room's events up to *seq* as read by this client's user, on all devices; it never goes back.

        Args:
            seq: Included; None for the newest event that the join has brought or a handler was called with.

        Returns:
            How many events are still unread.

        Raises:
            CommandError, ConnectionLost: See `page`.
            ValueError: There is no *seq*, and the room was not joined.
        """
        if seq is None:
            if self.epoch is None:
                raise ValueError(f"the room {self.room_id!r} was not joined: say up to which seq it is read")
            seq = self._newest_seq
        command = {"type": "mark_read", "room": self.room_id, "seq": seq}
        answer = await self._request(lambda session: session.change(command))
        return int(answer["unread"])

    @overload
    async def get_history(self, event: EventType[T], start: int = 0, end: int = 50) -> list[Event[T]]: ...
    @overload
    async def get_history(self, event: str, start: int = 0, end: int = 50) -> list[Event[Any]]: ...
    async def get_history(
        self, event: str | EventType[Any], start: int = 0, end: int = 50
    ) -> list[Event[Any]]:
        """Return events by offset, **newest first**: 0 is the newest, *start* is included, *end* is not.

        Every new event shifts the offsets; `page`, `timeline` and `scroll` do not shift.

        Raises:
            StoreUnavailable: Part of the range cannot be read now.
            CommandError: The read was refused.
            ConnectionLost: The client was closed, or refused for good.
            ValueError: The bounds are not ``0 <= start <= end``.
        """
        if not 0 <= start <= end:
            raise ValueError(f"0 <= start <= end is needed, not start={start}, end={end}")
        events: list[Event[Any]] = []
        fields: dict[str, Any] = {"start": start, "end": end}
        while (missing := end - start - len(events)) > 0:
            page = await self._page({"event": self._name(event), **fields})
            events.extend(reversed(page.events[-missing:]))
            if page.gap is not None and page.gap.reason == "tier_unavailable":
                # `next` stays where the failing tier begins: going on would ask it again without a pause.
                raise StoreUnavailable("part of the history cannot be read now")
            if page.next is None:
                break
            # A page is shorter than asked for where the server's limits say so.
            fields = {"cursor": page.next, "limit": self._limit(end - start - len(events))}
        return events

    @overload
    async def page(
        self,
        event: EventType[T],
        *,
        kind: str | None = None,
        before: int | None = None,
        after: int | None = None,
        around: int | None = None,
        cursor: str | None = None,
        limit: int | None = None,
    ) -> Page[T]: ...
    @overload
    async def page(
        self,
        event: str | None = None,
        *,
        kind: str | None = None,
        before: int | None = None,
        after: int | None = None,
        around: int | None = None,
        cursor: str | None = None,
        limit: int | None = None,
    ) -> Page[Any]: ...
    async def page(
        self,
        event: str | EventType[Any] | None = None,
        *,
        kind: str | None = None,
        before: int | None = None,
        after: int | None = None,
        around: int | None = None,
        cursor: str | None = None,
        limit: int | None = None,
    ) -> Page[Any]:
        """Return a page of the room's history, **oldest first**; the newest one unless a bound says otherwise.

        Args:
            event: One event name or type; None for all.
            kind: Only events of this kind.
            before: A seq, excluded: the events before it.
            after: A seq, excluded: the events after it.
            around: A seq: the events on both sides of it.
            cursor: ``next`` or ``previous`` of an earlier page of the same event.
            limit: Most events; the server's default is 50, and it has a limit of its own.

        Raises:
            CommandError: The read was refused, e.g. `InvalidRequest` for a cursor of another epoch.
            ConnectionLost: The client was closed, or refused for good.
            ValueError: More than one of the bounds was given.
        """
        bounds = {"before": before, "after": after, "around": around, "cursor": cursor}
        fields: dict[str, Any] = {name: value for name, value in bounds.items() if value is not None}
        if len(fields) > 1:
            raise ValueError(f"only one of {', '.join(fields)} can be given")
        if fields and cursor is None and self.epoch is not None:
            fields["epoch"] = self.epoch
        optional = {"event": None if event is None else self._name(event), "kind": kind, "limit": limit}
        fields.update({name: value for name, value in optional.items() if value is not None})
        return await self._page(fields)

    @overload
    def scroll(self, event: EventType[T], *, page_size: int = 50) -> AsyncIterator[Event[T]]: ...
    @overload
    def scroll(self, event: str | None = None, *, page_size: int = 50) -> AsyncIterator[Event[Any]]: ...
    async def scroll(
        self, event: str | EventType[Any] | None = None, *, page_size: int = 50
    ) -> AsyncIterator[Event[Any]]:
        """Yield the room's history from the newest event back to the first, each once, whatever happens meanwhile.

        Where the server finds it too fast, it waits.

        Raises:
            StoreUnavailable: A part cannot be read for the moment; everything newer has been yielded.
            CommandError, ConnectionLost: See `page`.
        """
        cursor: str | None = None
        while True:
            try:
                page = await self.page(event, cursor=cursor, limit=page_size)
            except RateLimited as error:
                await asyncio.sleep(max(error.retry_after_seconds or 0.0, READ_PAUSE_SECONDS))
                continue
            for item in reversed(page.events):
                yield item
            if page.gap is not None and page.gap.is_for_the_moment:
                raise StoreUnavailable("a part of the history cannot be read for the moment")
            if page.next is None:
                return
            cursor = page.next

    @overload
    def stream(
        self,
        events: EventType[T],
        *,
        after: int | None = None,
        epoch: str | None = None,
        follow: bool = True,
        page_size: int = 200,
        max_buffered_events: int = 1000,
        on_gap: Callable[[Gap], Any] | None = None,
    ) -> Stream[T]: ...
    @overload
    def stream(
        self,
        events: str | Iterable[str | EventType[Any]] | None = None,
        *,
        after: int | None = None,
        epoch: str | None = None,
        follow: bool = True,
        page_size: int = 200,
        max_buffered_events: int = 1000,
        on_gap: Callable[[Gap], Any] | None = None,
    ) -> Stream[Any]: ...
    def stream(
        self,
        events: str | EventType[Any] | Iterable[str | EventType[Any]] | None = None,
        *,
        after: int | None = None,
        epoch: str | None = None,
        follow: bool = True,
        page_size: int = 200,
        max_buffered_events: int = 1000,
        on_gap: Callable[[Gap], Any] | None = None,
    ) -> Stream[Any]:
        """Return an iterator over recorded events from a past seq into live: each once, in order, without a hole::

            async for event in room.stream(message, after=0):
                ...

        It goes on over lost connections, restarts of the server, and resumes that could not bring all that was
        missed. A slow reader costs others nothing; see `Stream`. Ephemeral events are no part of it, and it is not to
        be read to its end in a handler of the same client: that would hold up all the others.

        Args:
            events: One event, or several; None or ``"*"`` for all that the subscription has, changes (``$edit``,
                ``$delete``) included. With names, changes are yielded only if they are named, too. Events that were
                changed before they are read come as they are by then.
            after: The seq to begin above (exclusive); 0 for the beginning of the room, None for what comes after what
                the join has brought and handlers were called with.
            epoch: The life of the log that *after* is of (`Event.epoch`), if it was kept along with it.
            follow: Whether to go on with live events; otherwise it ends with the newest one.
            page_size: Events that are read at a time, of each name; the server may send fewer.
            max_buffered_events: Live events that may wait to be read; past that they are read again by pages.
            on_gap: Called (it may be a coroutine function) with each part that is gone for good, before the stream goes
                on behind it; without it that is raised.

        Raises:
            NotJoined: The room is not joined.
            StreamBroken: *epoch* is not that of the room, or the subscription does not have all of *events*. What
                comes later is raised by the iterator: see `Stream.__anext__`.
            ValueError: A number is too small, *events* are none, there is an *epoch* without *after*, or an event type
                is not recorded.
        """
        return self._streams.open(
            self._names_of(events),
            after=after,
            newest_seq=self._newest_seq,
            epoch=epoch,
            follow=follow,
            page_size=page_size,
            max_buffered_events=max_buffered_events,
            on_gap=on_gap,
        )

    @overload
    def timeline(
        self, events: EventType[T], *, page_size: int = 50, max_live_events: int = 10_000
    ) -> Timeline[T]: ...
    @overload
    def timeline(
        self,
        events: str | Iterable[str | EventType[Any]] | None = None,
        *,
        page_size: int = 50,
        max_live_events: int = 10_000,
    ) -> Timeline[Any]: ...
    def timeline(
        self,
        events: str | EventType[Any] | Iterable[str | EventType[Any]] | None = None,
        *,
        page_size: int = 50,
        max_live_events: int = 10_000,
    ) -> Timeline[Any]:
        """Return a list of live events and older pages without holes or duplicates; `load_older` fills it.

        Args:
            events: One event, several, or None (or ``"*"``) for all that are recorded.
            page_size: Events that one `load_older` reads.
            max_live_events: Bound of what comes live; see `Timeline`.
        """
        names = self._names_of(events)
        only = next(iter(names)) if names is not None and len(names) == 1 else None

        async def fetch(cursor: str | None, before: int | None) -> Page[Any]:
            return await self.page(only, cursor=cursor, before=before, limit=page_size)

        timeline: Timeline[Any] = Timeline(
            fetch=fetch,
            names=names,
            max_live_events=max_live_events,
            notify=self._notify_changed,
            on_close=self._drop_timeline,
        )
        self._timelines.append(timeline)
        return timeline

    # ---- membership

    async def subscribe(self, *events: str | EventType[Any]) -> None:
        """Also receive these events from now on; without arguments, or with ``"*"``, all.

        Raises:
            CommandError: It was refused, e.g. `NotJoined`.
            ConnectionLost: The client was closed, or refused for good.
        """
        await self._request(lambda session: session.subscribe(self.room_id, self._names(events)))

    async def unsubscribe(self, *events: str | EventType[Any]) -> None:
        """Receive these events no more; without arguments, or with ``"*"``, none.

        Raises:
            CommandError, ConnectionLost: See `subscribe`.
        """
        await self._request(
            lambda session: session.subscribe(self.room_id, self._names(events), is_adding=False)
        )

    async def leave(self) -> None:
        """Leave the room: no handler is called with an event of it any more, and timelines are closed.

        Raises:
            CommandError, ConnectionLost: See `subscribe`. The room is left all the same.
        """

        def make(session: Session) -> int:
            ref = session.leave(self.room_id)
            self._streams.end(None)
            self._end("it was left")
            self._close()
            self._client._forget(self)
            return ref

        await self._request(make)

    # ---- the client's side

    async def _request(self, make: Callable[[Session], int]) -> dict[str, Any]:
        if self._end_reason is not None:
            raise NotJoined(self._ended_message())
        return await self._client._request(make)

    def _end(self, reason: str) -> None:
        # At once, while events from before the end may still wait for their handlers.
        self._end_reason = reason or "the server has ended it"
        self._streams.end(NotJoined(self._ended_message()))

    def _ended_message(self) -> str:
        return f"the membership in the room {self.room_id!r} has ended: {self._end_reason}"

    def _limit(self, wanted: int) -> int:
        most = self._client._session.limits.get("page_events")
        return min(wanted, most if isinstance(most, int) else _PAGE_EVENTS)

    def _name(self, event: str | EventType[Any]) -> str:
        if isinstance(event, EventType):
            self._types[event.name] = event
            return event.name
        return event

    def _names(self, events: tuple[str | EventType[Any], ...]) -> Any:
        names = [self._name(event) for event in events]
        return "*" if not names or "*" in names else names

    def _names_of(
        self, events: str | EventType[Any] | Iterable[str | EventType[Any]] | None
    ) -> frozenset[str] | None:
        if events is None:
            return None
        items = [events] if isinstance(events, str | EventType) else events
        names = frozenset(map(self._name, items))
        return None if _ANY in names else names

    def _event(self, wire: WireEvent, epoch: str | None) -> Event[Any]:
        return Event.from_wire(wire, epoch=epoch, event_type=self._types.get(wire.event))

    async def _page(self, fields: dict[str, Any]) -> Page[Any]:
        command = {"type": "history", "room": self.room_id, **fields}
        return Page.from_wire(await self._request(lambda session: session.read(command)), self._event)

    def _take_join(self, answer: dict[str, Any]) -> None:
        self.is_joined = True
        self.name = answer.get("name") or self.name
        # Of the same epoch it may be behind what handlers have had while whoever joined was waiting for its turn.
        before = self._newest_seq if self.epoch == answer["epoch"] else 0
        self._newest_seq = max(before, answer["seq"])
        self.epoch = answer["epoch"]
        wires = msgspec.convert(answer.get("events") or [], list[WireEvent])
        self.history = [self._event(wire, self.epoch) for wire in reversed(wires)]

    def _calls_for_event(self, wire: WireEvent, epoch: str | None) -> Calls:
        if not self.is_joined:
            return []
        event = self._event(wire, epoch)
        if event.seq is not None:
            self._newest_seq = max(self._newest_seq, event.seq)
        for timeline in self._timelines:
            timeline.receive(event)
        for typing, name in list(self._typings.items()):
            if event.seq is not None:
                typing.stopped([event.sender])
            elif event.event == name:
                typing.heard(event.sender, event.data)
        handlers = self._events.get(wire.event) + self._events.get(_ANY)
        return [(fn, (event,)) for fn in handlers]

    def _calls_for_reset(self, answer: dict[str, Any]) -> Calls:
        if not self.is_joined:
            return []
        self._take_join(answer)
        for timeline in self._timelines:
            if timeline.reset():
                self._client._spawn(timeline.load_older())
        return [(fn, ()) for fn in self._notices.get("reset")]

    def _calls_for_left(self, reason: str) -> Calls:
        self._close()
        return [(fn, (reason,)) for fn in self._notices.get("left")]

    def _calls_for_presence(self, change: PresenceChange) -> Calls:
        if not self.is_joined:
            return []
        for typing in list(self._typings):
            typing.stopped(change.left)
        return [(fn, (change,)) for fn in self._notices.get("presence")]

    def _close(self) -> None:
        self.is_joined = False
        for timeline in list(self._timelines):
            timeline.close()
        self._close_typings()

    def _drop_timeline(self, timeline: Timeline[Any]) -> None:
        if timeline in self._timelines:
            self._timelines.remove(timeline)

    def _notify_changed(self, what: Timeline[Any] | Typing) -> None:
        if what not in self._changed:
            self._changed.add(what)
            # At most one entry for each waits, so no bound is needed.
            self._client._dispatcher.put(partial(self._calls_for_changed, what))

    def _calls_for_changed(self, what: Timeline[Any] | Typing) -> Calls:
        self._changed.discard(what)
        return [(fn, ()) for fn in what.changed()]

    def _drop_typing(self, typing: Typing) -> None:
        self._typings.pop(typing, None)

    def _close_typings(self) -> None:
        for typing in list(self._typings):
            typing.close()

    def __repr__(self) -> str:
        return f"<Room {self.room_id!r}{'' if self.is_joined else ' (not joined)'}>"
