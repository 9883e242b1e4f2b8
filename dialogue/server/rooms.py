"""The rooms in memory: woken from the log when they are used, asleep when they are not."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from ..core.patterns import room_id_problem
from ..core.ring import Ring
from ..core.room import Room
from ..errors import Backpressure, RoomNotFound
from ..limits import Limits
from ..storage.base import Store
from ..storage.ending import end_tasks
from .rates import RoomRates
from .registry import RoomRegistry
from .stopping import result_of

_RESET_SECONDS = 0.02


class OpenRooms:
    """The rooms in memory, by id.

    Args:
        busy: Returns the rooms that something is queued for; they do not sleep.

    Attributes:
        rooms: Those that are awake.
    """

    def __init__(
        self, *, registry: RoomRegistry, store: Store, limits: Limits, busy: Callable[[], set[str]]
    ) -> None:
        self._registry = registry
        self.store = store
        self.limits = limits
        self.rooms: dict[str, Room] = {}
        self._busy = busy
        self._waking: dict[str, asyncio.Task[Room]] = {}
        self._reset_rooms: set[str] = set()

    async def open(self, room_id: str) -> Room:
        """Return the room, woken from the log if it was not in memory.

        Waking is single-flight. Nobody can publish into a room that is waking, for publishing needs this too: so
        nothing can be missed between reading the log and answering.

        Raises:
            RoomNotFound: No declaration covers the id.
            Backpressure: ``limits.open_rooms`` are in memory, or the room is being deleted.
            StoreUnavailable: The log cannot be read, or the server stops.
        """
        while (room := self.rooms.get(room_id)) is None:
            if room_id_problem(room_id) is not None or self._registry.find(room_id) is None:
                raise RoomNotFound
            self._registry.check_usable(room_id)
            task = self._waking.get(room_id)
            if task is None:
                if len(self.rooms) + len(self._waking) >= self.limits.open_rooms:
                    raise Backpressure(
                        "too many rooms are open", retry_after_seconds=self.limits.idle_seconds
                    )
                task = self._waking[room_id] = asyncio.create_task(self._wake(room_id), name="dialogue-wake")
                task.add_done_callback(lambda done: self._on_woken(room_id, done))
            # Shielded: one who gives up waiting must not take the room from the others.
            await result_of(task)
        room.last_used = asyncio.get_running_loop().time()
        return room

    def _on_woken(self, room_id: str, task: asyncio.Task[Room]) -> None:
        self._waking.pop(room_id, None)
        if not task.cancelled():
            task.exception()  # those who wait are told; nobody waiting is no reason for a warning

    async def _wake(self, room_id: str) -> Room:
        found = self._registry.find(room_id)
        assert found is not None
        room_type, params = found
        while room_id in self._reset_rooms and room_id in self._busy():  # noqa: ASYNC110 - a store's fault
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
        room = Room(
            room_id,
            room_type,
            params,
            last_seq=head.last_seq,
            last_unread_position=head.last_unread_position,
            rings=rings,
        )
        room.last_used = asyncio.get_running_loop().time()
        room_limits = room_type.config.limits
        if room_limits is not None:
            room.rates = RoomRates(room_limits, now=room.last_used)
        self.rooms[room_id] = room
        return room

    async def expire(self, room_id: str, event_name: str, through: int) -> None:
        """Drop from memory what has left the log: a stream's events up to and including position *through*."""
        # It may have read them before they were removed.
        await self.wait_woken(room_id)
        room = self.rooms.get(room_id)
        if room is not None:
            room.remove(event_name, through)

    async def wait_woken(self, room_id: str) -> None:
        """Return when a room that is waking is awake, or has failed to."""
        waking = self._waking.get(room_id)
        if waking is not None:
            await asyncio.wait({waking})

    def reset(self, room_id: str) -> None:
        """Drop a room whose content can no longer be trusted; its next use reads it from the log."""
        self.rooms.pop(room_id, None)
        self._reset_rooms.add(room_id)

    def let_sleep(self, now: float) -> None:
        """Drop the rooms that nobody has been in, or asked for, for ``limits.idle_seconds``."""
        busy: set[str] | None = None
        for room in list(self.rooms.values()):
            if now - room.last_used < self.limits.idle_seconds or room.size:
                continue
            if busy is None:
                busy = self._busy()
            # Without a durable store the ring is the only copy; an empty room has nothing to lose.
            if (self.store.is_durable or not room.last_seq) and room.room_id not in busy:
                del self.rooms[room.room_id]

    async def aclose(self, *, until: float) -> None:
        """End what is waking, waiting for it until loop time *until*. May be called twice."""
        await end_tasks(list(self._waking.values()), until=until)
