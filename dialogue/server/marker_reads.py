"""The markers of users that come online, on their way from the store: one call for all who wait.

After a restart everybody comes back at once. A call for each user would take seconds of the store's time and of the
loop's, which are those of the rooms that people look at.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Iterable, Sequence
from itertools import chain
from typing import TYPE_CHECKING

from ..errors import Internal, StoreBusy, StoreUnavailable
from ..storage.directory import Marker
from ..storage.ending import end_tasks

if TYPE_CHECKING:
    from .hub import Hub

USERS_PER_READ = 256
"""Most users whose markers one call reads."""

MARKERS_PER_READ = 2_000
"""Markers that one call returns, and few more: the loop takes them in one step, some milliseconds."""

READS_AT_ONCE = 2
"""How many calls there are at a time; who comes meanwhile waits for the next one, which so is for many."""

Waiter = asyncio.Future[Sequence[Marker]]

Taken = dict[str, list[Waiter]]
"""By user, who waits for the markers."""


class MarkerReads:
    """Reads the markers of users."""

    def __init__(self, hub: Hub) -> None:
        self._hub = hub
        self._waiting: dict[Waiter, str] = {}
        self._readers: set[asyncio.Task[None]] = set()
        # Halved by each failure: one user whose markers cannot be read, or so many that they take too long, is soon
        # alone with it.
        self._most = USERS_PER_READ

    async def aclose(self, *, until: float | None) -> None:
        """Read no more, waiting until loop time *until* for the calls in flight; who still waits is not told.

        May be called twice.
        """
        await end_tasks(list(self._readers), until=math.inf if until is None else until)

    async def read(self, user_id: str) -> Sequence[Marker]:
        """Return a user's markers, by a call that begins after this one.

        As many wait as call this; one who is cancelled waits no more, and the others are none the wiser.

        Raises:
            StoreUnavailable: They cannot be read.
            Exception: Whatever else the directory raises for this user.
        """
        waiter: Waiter = asyncio.get_running_loop().create_future()
        self._waiting[waiter] = user_id
        if len(self._readers) < READS_AT_ONCE:
            # In a task: who comes in this same turn of the loop is read with it.
            reader = self._hub.spawn(self._read_waiting(), name="dialogue-inbox-read")
            self._readers.add(reader)
            # For one that is cancelled before its first step; the others take themselves out.
            reader.add_done_callback(self._readers.discard)
        try:
            return await waiter
        finally:
            self._waiting.pop(waiter, None)

    async def _read_waiting(self) -> None:
        """Read for those who wait until nobody does."""
        reader = asyncio.current_task()
        assert reader is not None
        taken: Taken = {}
        try:
            while self._waiting:
                taken = self._take()
                await self._read_for(taken)
        finally:
            # In one step with the last look at who waits: who comes from here on begins another one.
            self._readers.discard(reader)
            for waiter in chain.from_iterable(taken.values()):
                waiter.cancel()

    def _take(self) -> Taken:
        """Take out who has waited longest."""
        taken: Taken = {}
        for waiter, user_id in self._waiting.items():
            if len(taken) >= self._most:
                break
            taken.setdefault(user_id, []).append(waiter)
        for waiter in chain.from_iterable(taken.values()):
            del self._waiting[waiter]
        return taken

    async def _read_for(self, taken: Taken) -> None:
        """Read for users, and tell and take out each of them."""
        try:
            while taken:
                await self._read_some(taken, list(taken))
            self._most = min(USERS_PER_READ, 2 * self._most)
        except StoreUnavailable as error:
            if not isinstance(error, StoreBusy):
                # Of a crowd of reads smaller calls would only make a larger one.
                self._most = max(1, self._most // 2)
            for user_id in list(taken):
                _fail(taken.pop(user_id), error)
        except Exception as error:
            if len(taken) == 1:
                _fail(taken.popitem()[1], error)
            # Something about one of them, perhaps: the others are not to fail with it.
            for user_id in list(taken):
                await self._read_for({user_id: taken[user_id]})
                del taken[user_id]

    async def _read_some(self, taken: Taken, user_ids: Sequence[str]) -> None:
        """Read for some of *user_ids*, and tell and take out these.

        Raises:
            StoreUnavailable: They cannot be read.
            Internal: The directory has answered nothing, which would go on for ever.
        """
        found = await self._hub.store.directory.markers_of(user_ids, limit=MARKERS_PER_READ)
        if found.keys().isdisjoint(user_ids):
            raise Internal
        for user_id, markers in found.items():
            for waiter in taken.pop(user_id, ()):
                if not waiter.done():
                    waiter.set_result(markers)


def _fail(waiters: Iterable[Waiter], error: Exception) -> None:
    for waiter in waiters:
        if not waiter.done():
            waiter.set_exception(error)
