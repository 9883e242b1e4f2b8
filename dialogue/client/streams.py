"""The streams of a room, and what they are told of."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from dialogue.errors import NotJoined, StreamBroken
from dialogue.events import CHANGES, WireEvent

from .pages import Gap, Page
from .stream import Stream

if TYPE_CHECKING:
    from .room import Room


class Streams:
    """Makes the streams of a room, and passes on what happens to it.

    Live events reach them at once, and not by the queue of handlers: a stream is held up by no handler, and holds up
    none.
    """

    def __init__(self, room: Room) -> None:
        self._room = room
        # Kept alive by those who read them: a loop that is broken out of takes its stream along.
        self._streams: weakref.WeakSet[Stream[Any]] = weakref.WeakSet()
        # Those whose readers wait.
        self._waiting: set[Stream[Any]] = set()

    def __len__(self) -> int:
        return len(self._streams)

    def open(
        self,
        names: frozenset[str] | None,
        *,
        after: int | None,
        newest_seq: int,
        epoch: str | None,
        follow: bool,
        page_size: int,
        max_buffered_events: int,
        on_gap: Callable[[Gap], Any] | None,
    ) -> Stream[Any]:
        """Return a new stream; see `Room.stream`.

        Args:
            newest_seq: Where one begins that is to have what comes from now on.
        """
        room = self._room
        for name, value, least in (
            ("after", 0 if after is None else after, 0),
            ("page_size", page_size, 1),
            ("max_buffered_events", max_buffered_events, 1),
        ):
            if value < least:
                raise ValueError(f"{name} is at least {least}, not {value}")
        if epoch is not None and after is None:
            raise ValueError("an epoch goes along with an 'after'")
        if names is not None and not names:
            raise ValueError("no events are named: None is for all of them")
        for name in sorted(names or ()):
            event_type = room._types.get(name)
            if event_type is not None and event_type.history is None:
                raise ValueError(f"{name!r} is not recorded: nobody could tell what was missed of it")
        session = room._client._session
        state = session.rooms.get(room.room_id)
        if state is None or not room.is_joined:
            raise NotJoined(f"the room {room.room_id!r} is not joined")
        if after is None:
            # Of a new epoch that handlers were not told of yet nothing was missed.
            after = newest_seq if room.epoch == state.epoch else state.cursor
        if epoch is not None and epoch != state.epoch:
            raise StreamBroken(room.room_id, "epoch", after=after, resume_after=None)
        if names is None and state.subscriptions != "*":
            names = CHANGES.union(state.subscriptions)
        stream: Stream[Any] = Stream(
            room_id=room.room_id,
            names=names,
            after=after,
            epoch=state.epoch,
            follow=follow,
            page_size=page_size,
            max_buffered_events=max_buffered_events,
            on_gap=on_gap,
            fetch=partial(self._fetch, state.epoch),
            position=lambda: state.cursor,
            timing=session.timing,
            waiting=self._waiting,
        )
        stream.narrow(state.subscriptions)
        if stream.error is not None:
            raise stream.error
        self._streams.add(stream)
        return stream

    async def _fetch(
        self,
        epoch: str,
        name: str | None,
        *,
        after: int | None = None,
        cursor: str | None = None,
        limit: int,
    ) -> Page[Any]:
        optional = {"event": name, "after": after, "cursor": cursor}
        fields = {field: value for field, value in optional.items() if value is not None}
        return await self._room._page({**fields, "epoch": epoch, "limit": limit})

    # ---- what happens to the room

    def receive(self, wire: WireEvent, epoch: str | None) -> None:
        """Pass on a live or resumed event."""
        if self._streams and wire.seq is not None:
            event = self._room._event(wire, epoch)
            for stream in list(self._streams):
                stream.receive(event)

    def interrupt(self, epoch: str) -> None:
        """Pass on that live events were lost, or that the log is another one."""
        for stream in list(self._streams):
            stream.interrupt(epoch)

    def narrow(self, subscriptions: Any) -> None:
        """Pass on what the subscription is from now on."""
        for stream in list(self._streams):
            stream.narrow(subscriptions)

    def end(self, error: Exception | None) -> None:
        """End them all; see `Stream.finish`."""
        for stream in list(self._streams):
            stream.finish(error)
