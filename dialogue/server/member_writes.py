"""The memberships of the inbox on their way to the store: written behind, one call for all who wait.

A join must neither wait for its marker nor fail with it. What is written and removed of one room takes turns, so that
no write that was begun before a removal brings the member back.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from itertools import islice
from typing import TYPE_CHECKING

from ..errors import StoreUnavailable
from ..storage.backoff import backoff_seconds
from ..storage.directory import Marker, Place
from .turns import Turns

if TYPE_CHECKING:
    from .hub import Hub

MEMBERS_WAITING = 10_000
"""Most memberships that wait to be written, over all rooms; one more is not kept, and counted."""

MEMBERS_PER_WRITE = 500
"""Most memberships that one call adds; appends take their turns between two of them."""

FIRST_RETRY_SECONDS = 0.05
LONGEST_RETRY_SECONDS = 5.0

Members = dict[str, Place | None]
"""Users with where their markers are to stand; None for the room's end at the time of the write."""


class MemberWrites:
    """Writes and removes the markers of members. An async context manager; `aclose` writes what waits.

    Args:
        written: Called with the markers of a room as they are in the store, once they are, and without awaiting.
    """

    def __init__(self, hub: Hub, *, written: Callable[[str, Sequence[Marker]], None]) -> None:
        self._hub = hub
        self._written = written
        self._waiting: dict[str, Members] = {}
        self._waiting_members = 0
        # What the store is being asked to add. Who is removed meanwhile is taken out here as well.
        self._in_flight: dict[str, Members] = {}
        # Of what is being removed: how many removals there are of each.
        self._removing: Counter[tuple[str, str]] = Counter()
        # Who writes or removes members of a room; a deletion of the room takes its turn among them.
        self.turns = Turns()
        # Halved by each failure: one membership that the store cannot take is soon alone with it.
        self._most = MEMBERS_PER_WRITE
        # Calls that have failed since the last one that did not.
        self._failures = 0
        self._arrived = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> MemberWrites:
        self._task = self._hub.spawn(self._run(), name="dialogue-members")
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose(until=None)

    async def aclose(self, *, until: float | None) -> None:
        """Write what waits, until loop time *until*; what is not written then is counted. May be called twice."""
        task, self._task = self._task, None
        if task is None:
            return
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        try:
            async with asyncio.timeout_at(until):
                while self._waiting:
                    await self._write_some()
        except (TimeoutError, StoreUnavailable):
            self._dropped(self._waiting_members)

    # -- changing ------------------------------------------------------------------------------------------------

    def put(self, room_id: str, user_id: str, place: Place) -> None:
        """Have a user made a member of a room, behind. Never waits."""
        members = self._waiting.get(room_id)
        if members is None or user_id not in members:
            if self._waiting_members >= MEMBERS_WAITING:
                self._dropped(1)
                return
            self._wait(room_id, {user_id: place})
        self._arrived.set()

    async def add(self, room_id: str, user_id: str, place: Place | None = None) -> None:
        """Make a user a member of a room, now.

        Raises:
            StoreUnavailable: The user is not known to be one.
        """
        was_waiting = self.is_waiting(room_id, user_id)
        if not was_waiting:
            self._wait(room_id, {user_id: place})
        try:
            await self.write(room_id)
        except BaseException:
            if not was_waiting:
                self._take_out(room_id, user_id)
            raise

    async def remove(self, room_id: str, user_id: str) -> None:
        """Remove a user's marker; the user may become a member again meanwhile.

        Raises:
            StoreUnavailable: It is not known to be removed.
        """
        self.forget(room_id, user_id)
        self._removing[room_id, user_id] += 1
        try:
            async with self.turns.take(room_id):
                await self._hub.store.directory.remove_member(room_id, user_id)
        finally:
            self._removing[room_id, user_id] -= 1
            if not self._removing[room_id, user_id]:
                del self._removing[room_id, user_id]

    def is_removing(self, room_id: str, user_id: str) -> bool:
        """Whether a user's marker is being removed: one that the store has now is no membership any more."""
        return (room_id, user_id) in self._removing

    def forget(self, room_id: str, user_id: str) -> None:
        """Write no more of a user in a room. Never waits."""
        self._take_out(room_id, user_id)
        self._in_flight.get(room_id, {}).pop(user_id, None)

    def forget_room(self, room_id: str) -> None:
        """Write no more of a room."""
        self._take(room_id)
        self._in_flight.get(room_id, {}).clear()

    def forget_user(self, user_id: str) -> None:
        """Write no more of a user. Costs a look at each room that something waits for."""
        for room_id in [*self._waiting, *self._in_flight]:
            self.forget(room_id, user_id)

    def _wait(self, room_id: str, earlier: Members) -> None:
        """Let users wait for a write; a place that one of them waits with is replaced."""
        members = self._waiting.setdefault(room_id, {})
        self._waiting_members -= len(members)
        members.update(earlier)
        self._waiting_members += len(members)

    def _take(self, room_id: str) -> Members:
        """Take out what waits for a room."""
        members = self._waiting.pop(room_id, {})
        self._waiting_members -= len(members)
        return members

    def _take_out(self, room_id: str, user_id: str) -> None:
        members = self._waiting.get(room_id)
        if members is not None and user_id in members:
            del members[user_id]
            self._waiting_members -= 1
            if not members:
                del self._waiting[room_id]

    def waiting_of(self, user_id: str) -> dict[str, Place]:
        """Return where a user's markers will stand that are not in the store yet, by room.

        Costs a look at each room that something waits for.
        """
        found: dict[str, Place] = {}
        for rooms in (self._waiting, self._in_flight):
            for room_id, members in rooms.items():
                place = members.get(user_id)
                if place is not None:
                    found[room_id] = place
        return found

    def is_waiting(self, room_id: str, user_id: str) -> bool:
        """Whether a membership is not in the store yet."""
        return any(user_id in rooms.get(room_id, ()) for rooms in (self._waiting, self._in_flight))

    # -- writing -------------------------------------------------------------------------------------------------

    async def write(self, room_id: str) -> None:
        """Write what waits for a room.

        Raises:
            StoreUnavailable: It is not known to be written; it still waits.
        """
        while room_id in self._waiting or room_id in self._in_flight:
            async with self.turns.take(room_id):
                members = self._take(room_id)
                if members:
                    await self._add({room_id: members})

    async def _write_some(self) -> None:
        """Write what waits for some of the rooms.

        Raises:
            StoreUnavailable: It is not known to be written; it still waits.
        """
        chosen = self._choose()
        if chosen:
            try:
                await self._write_together(chosen)
                return
            except StoreUnavailable:
                raise
            except Exception:
                # Something about one of them, perhaps: the others are not to be dropped with it.
                self._hub.log.exception("memberships could not be written; each room is tried by itself")
        for room_id in chosen or [next(iter(self._waiting))]:
            try:
                await self.write(room_id)
            except StoreUnavailable:
                raise
            except Exception:
                # Not the store's state but something about these: trying again would be for ever.
                self._hub.log.exception("memberships could not be written (room %r)", room_id)
                self._dropped(len(self._take(room_id)))

    def _choose(self) -> list[str]:
        """Return rooms that are written together, those that have waited longest; none if all are busy."""
        chosen, count = list[str](), 0
        for room_id, members in self._waiting.items():
            # Only turns that are free: nobody is waited for while others wait for the turns that are taken already.
            if self.turns.is_free(room_id):
                if chosen and count + len(members) > self._most:
                    break
                chosen.append(room_id)
                count += len(members)
        return chosen

    async def _write_together(self, room_ids: Sequence[str]) -> None:
        """Write what waits for rooms whose turns are free."""
        async with AsyncExitStack() as turns:
            for room_id in room_ids:
                await turns.enter_async_context(self.turns.take(room_id))
            await self._add({room_id: self._take(room_id) for room_id in room_ids})

    async def _add(self, taken: dict[str, Members]) -> None:
        """Add members in the store, in the turns of their rooms."""
        directory = self._hub.store.directory
        self._in_flight.update(taken)
        try:
            while part := _first(taken, self._most):
                try:
                    added = await directory.add_members(part)
                except StoreUnavailable:
                    self._most = max(1, sum(map(len, part.values())) // 2)
                    _put_last(taken, part)
                    raise
                self._most = min(MEMBERS_PER_WRITE, 2 * self._most)
                self._failures = 0
                removed = []
                for room_id, wanted in part.items():
                    members = taken[room_id]
                    self._written(room_id, [marker for marker in added[room_id] if marker.user_id in members])
                    removed += [(room_id, user_id) for user_id in wanted if user_id not in members]
                    for user_id in wanted:
                        members.pop(user_id, None)
                for room_id, user_id in removed:
                    # The room was deleted, or the user forgotten, while the marker was being made.
                    await directory.remove_member(room_id, user_id)
        except BaseException:
            for room_id, members in taken.items():
                if members:
                    self._wait(room_id, members)
            raise
        finally:
            for room_id in taken:
                del self._in_flight[room_id]

    async def _run(self) -> None:
        while True:
            await self._arrived.wait()
            self._arrived.clear()
            is_told = False
            while self._waiting:
                try:
                    await self._write_some()
                except StoreUnavailable as error:
                    # Once until all is written: of one that is never taken not after each that is.
                    if not is_told:
                        self._hub.log.warning(
                            "memberships cannot be written now and are tried again: %s", error
                        )
                        is_told = True
                    self._failures += 1
                    await self.back_off(self._failures)

    async def back_off(self, failures: int) -> None:
        """Wait before the store is asked again, after so many failures in a row."""
        await asyncio.sleep(
            backoff_seconds(
                failures, first=FIRST_RETRY_SECONDS, longest=LONGEST_RETRY_SECONDS, random=self._hub.random
            )
        )

    def _dropped(self, members: int) -> None:
        self._hub.metrics.members_dropped.inc(members)


def _first(taken: dict[str, Members], limit: int) -> dict[str, Members]:
    """Return the first *limit* members, in dicts that stay as they are when somebody is removed."""
    part: dict[str, Members] = {}
    left = limit
    for room_id, members in taken.items():
        if members and left:
            part[room_id] = dict(islice(members.items(), left))
            left -= len(part[room_id])
    return part


def _put_last(taken: dict[str, Members], part: dict[str, Members]) -> None:
    """Have the members of *part* come last in their rooms: others are not to wait behind them."""
    for room_id, wanted in part.items():
        members = taken[room_id]
        for user_id in wanted:
            if user_id in members:
                members[user_id] = members.pop(user_id)
