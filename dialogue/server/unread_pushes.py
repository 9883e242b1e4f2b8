"""Tells connections of unread counts that have changed, and asks the guards of rooms that they are not in.

Changes are gathered, so that a busy room is one message in a while and not one for each event. A count is taken when
its message is made, in one step with sending it: what comes later is newer.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from .. import protocol
from ..errors import CommandError
from .handles import RoomHandle

if TYPE_CHECKING:
    from .hub import Hub
    from .inbox import Inbox
    from .online_users import OnlineUser
    from .session import Session

REMEMBERED_SECONDS = 60.0
"""How long the guards' answer for a connection and a room is remembered, so that no event asks them."""

ASKED_AT_ONCE = 8
"""How many guards are asked at a time for one connection."""

ASKED_IN_ALL = 64
"""How many guards are asked at a time for all connections."""

TOLD_PER_STEP = 200
"""How many users are told, or rooms and users put together, before others have their turn."""

LONGEST_SHARE = 0.1
"""The share of the time that telling may take; in between it waits for as long as that needs."""


class UnreadPushes:
    """Pushes ``unread`` messages from one task. An async context manager."""

    def __init__(self, hub: Hub, inbox: Inbox) -> None:
        self._hub = hub
        self._inbox = inbox
        self._changed: dict[str, None] = {}
        self._arrived = asyncio.Event()
        self._slots = asyncio.Semaphore(ASKED_IN_ALL)
        # Of connections for which guards are being asked: the rooms that have changed since.
        self._asking: dict[Session, dict[str, None]] = {}
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> UnreadPushes:
        self._task = self._hub.spawn(self._run(), name="dialogue-unread")
        return self

    async def __aexit__(self, *_: object) -> None:
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    def put(self, room_id: str) -> None:
        """Note that the end of a watched room has moved. Never waits."""
        self._changed[room_id] = None
        self._arrived.set()

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await self._arrived.wait()
            await asyncio.sleep(self._hub.limits.unread_seconds)
            self._arrived.clear()
            began = loop.time()
            await self._tell_changed()
            await asyncio.sleep((loop.time() - began) * (1 / LONGEST_SHARE - 1))

    async def _tell_changed(self) -> None:
        changed, self._changed = self._changed, {}
        of_user: dict[OnlineUser, list[str]] = {}
        steps = 0
        for room_id in changed:
            watched = self._inbox.watched.get(room_id)
            for user in list(watched.users) if watched is not None else ():
                of_user.setdefault(user, []).append(room_id)
                steps += 1
            if steps > TOLD_PER_STEP:
                steps = 0
                await asyncio.sleep(0)
        for number, (user, room_ids) in enumerate(of_user.items(), start=1):
            self.tell(user, room_ids)
            if number % TOLD_PER_STEP == 0:
                await asyncio.sleep(0)

    def tell(self, user: OnlineUser, room_ids: Sequence[str], *, but: Session | None = None) -> None:
        """Tell a user's connections how much is unread in rooms; where guards have to be asked, once they are."""
        for session in list(user.sessions):
            if session is not but and room_ids:
                unknown = [room_id for room_id in room_ids if self._may_read(user, session, room_id) is None]
                self._send(user, session, room_ids)
                if unknown:
                    self._ask(user, session, unknown)

    def _send(self, user: OnlineUser, session: Session, room_ids: Iterable[str]) -> None:
        """Send what the connection is known to be allowed to read of *room_ids*."""
        if session.is_closing:
            return
        counts = self._counts(user, session, room_ids)
        most = self._hub.limits.unread_rooms
        names = list(counts)
        for start in range(0, len(names), most):
            part = {room_id: counts[room_id] for room_id in names[start : start + most]}
            session.send([protocol.encode_message({"type": "unread", "unread": part})], is_live=True)

    def _counts(self, user: OnlineUser, session: Session, room_ids: Iterable[str]) -> dict[str, int]:
        counts = {}
        for room_id in room_ids:
            count = self._inbox.count(user, room_id)
            if count is not None and self._may_read(user, session, room_id):
                counts[room_id] = count
        return counts

    async def counts(self, user: OnlineUser, session: Session, room_ids: Sequence[str]) -> dict[str, int]:
        """Return how much is unread in those of *room_ids* that a connection may read.

        At most ``limits.unread_rooms``, in the order of their ids; those with something unread first.
        """
        unknown = [room_id for room_id in room_ids if self._may_read(user, session, room_id) is None]
        if unknown:
            await self._ask_guards(user, session, unknown)
        counts = self._counts(user, session, room_ids)
        chosen = sorted(counts, key=lambda room_id: (not counts[room_id], room_id))
        return {room_id: counts[room_id] for room_id in sorted(chosen[: self._hub.limits.unread_rooms])}

    # -- guards --------------------------------------------------------------------------------------------------

    def _may_read(self, user: OnlineUser, session: Session, room_id: str) -> bool | None:
        """Whether a connection may read a room of its user's inbox; None if guards have to be asked."""
        if room_id in session.memberships.by_room:
            return True
        found = self._hub.registry.find(room_id)
        if found is None:
            return False  # nothing declares it any more
        is_open = self._hub.access.is_open(room_id, found, session.user_id)
        if is_open is not None:
            return is_open
        remembered = user.sessions.get(session, {}).get(room_id)
        if remembered is None or remembered[1] < asyncio.get_running_loop().time():
            return None
        return remembered[0]

    def _ask(self, user: OnlineUser, session: Session, room_ids: Sequence[str]) -> None:
        """Ask the guards beside, one task for each connection, and tell what they allow."""
        asking = self._asking.get(session)
        if asking is not None:
            asking.update(dict.fromkeys(room_ids))
            return
        self._asking[session] = dict.fromkeys(room_ids)
        self._hub.spawn(self._ask_and_tell(user, session), name="dialogue-unread-guards")

    async def _ask_and_tell(self, user: OnlineUser, session: Session) -> None:
        try:
            while (room_ids := self._asking[session]) and not session.is_closing:
                self._asking[session] = {}
                await self._ask_guards(user, session, list(room_ids))
                self._send(user, session, room_ids)
        finally:
            del self._asking[session]

    async def _ask_guards(self, user: OnlineUser, session: Session, room_ids: Sequence[str]) -> None:
        """Ask the guards of rooms for a connection, a few at a time, and remember what they say."""
        # This very one: it is replaced when the connection's credentials are.
        remembered = user.sessions.get(session)
        if remembered is None:
            return
        left = iter(room_ids)

        async def ask() -> None:
            for room_id in left:
                if session.is_closing:
                    return
                async with self._slots:
                    await self._ask_guard(session, room_id, remembered)

        workers = [
            asyncio.create_task(ask(), name="dialogue-unread-guard")
            for _ in range(min(ASKED_AT_ONCE, len(room_ids)))
        ]
        try:
            await asyncio.gather(*workers)
        finally:
            for worker in workers:
                worker.cancel()
            await asyncio.gather(*workers, return_exceptions=True)

    async def _ask_guard(
        self, session: Session, room_id: str, remembered: dict[str, tuple[bool, float]]
    ) -> None:
        access = self._hub.access
        with access.watch(session.user_id, room_id) as permission:
            try:
                await access.check(session.client, RoomHandle(self._hub, room_id), purpose="read")
                may_read = True
            except CommandError:
                may_read = False  # a guard that failed has been logged
            if not permission.is_revoked:
                until = asyncio.get_running_loop().time() + REMEMBERED_SECONDS
                remembered[room_id] = may_read, until
