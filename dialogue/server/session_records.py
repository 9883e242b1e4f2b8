"""Sessions: which connections a user has and had, when they were last heard, and in which rooms; kept in the store.

Each connection that is told ``connected`` is one. They are written behind, in batches: only what has changed, and now
and then when an open one was last heard. What is open is known here; the store may be behind.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import msgspec

from ..errors import StoreUnavailable
from ..storage.directory import SessionRecord

if TYPE_CHECKING:
    from .hub import Hub
    from .session import Session

LAST_SEEN_SECONDS = 60.0
"""How long what is kept of an open session's last time may be behind."""

RECORDS_PER_WRITE = 50
"""Most sessions in one transaction: appends wait for it, and 500 took up to half a second while thousands came back."""

ENDED_WAITING = 1_000
"""How many sessions more than ``limits.connections`` may wait for their end to be written."""

LONGEST_CLEANING_SECONDS = 3_600.0
"""The time between two looks for sessions that are not kept any longer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionInfo:
    """A connection of a user, as `Dialogue.sessions` tells of it.

    Attributes:
        user_id: Whose it is.
        client_id: The server's name for it.
        first_seen: When it was connected, in milliseconds since the epoch.
        last_seen: When something last came from it, likewise; when it ended, for one that has.
        is_active: Whether it is open.
        rooms: The rooms that it is in, or was in at its end, with how far its user has read them: a seq, 0 for
            nothing, None where the room is not in the user's inbox.
    """

    user_id: str
    client_id: str
    first_seen: int
    last_seen: int
    is_active: bool
    rooms: dict[str, int | None] = field(default_factory=dict)


class _Open:
    """An open session: when it began, and when what it is was last written, in seconds of the loop's clock."""

    __slots__ = ("first_seen", "written")

    def __init__(self, first_seen: int) -> None:
        self.first_seen = first_seen
        self.written: float | None = None


class SessionRecords:
    """Keeps sessions. An async context manager; `aclose` writes what is left, as ended.

    While the store does not take them, what changes of open sessions is one record for each. Of those that end at most
    ``limits.connections_per_user`` of a user wait, and ``limits.connections`` and a thousand in all; of more, the ends
    of the oldest are not kept, and counted.
    """

    def __init__(self, hub: Hub) -> None:
        self._hub = hub
        self._open: dict[Session, _Open] = {}
        self._changed: dict[Session, None] = {}
        self._ended: dict[str, SessionRecord] = {}
        self._ended_of: dict[str, dict[str, None]] = {}
        self._writing = asyncio.Lock()
        self._stopping = asyncio.Event()
        self._has_ended_earlier = False
        self._is_failing = False
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> SessionRecords:
        """Mark what an earlier life has left open as ended."""
        await self._try(self._end_earlier())
        self._task = self._hub.spawn(self._run(), name="dialogue-kept-sessions")
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose(until=None)

    async def aclose(self, *, until: float | None) -> None:
        """Write what is left, as ended, until loop time *until*. May be called twice."""
        task, self._task = self._task, None
        if task is None:
            return
        for session in list(self._open):
            self.ended(session)
        try:
            async with asyncio.timeout_at(until):
                # Not cancelled: what is being written must not come after what is written now.
                self._stopping.set()
                await asyncio.wait({task})
                await self._try(self._write())
        except TimeoutError:
            task.cancel()
        if self._ended:
            self._hub.log.warning("the end of %d sessions could not be kept", len(self._ended))
            self._hub.metrics.sessions_dropped.inc(len(self._ended))

    # -- what happens --------------------------------------------------------------------------------------------

    def connected(self, session: Session) -> None:
        """Note a connection that is told ``connected``, for the first time or again."""
        if session not in self._open:
            self._open[session] = _Open(self._hub.clock_ms())
            self._changed[session] = None

    def changed(self, session: Session) -> None:
        """Note that a connection has entered or left a room."""
        if session in self._open:
            self._changed[session] = None

    def ended(self, session: Session) -> None:
        """Note a connection that has ended, before it leaves its rooms."""
        was = self._open.get(session)
        if was is None:
            return
        record = self._record(session, was, is_active=False)
        del self._open[session]
        self._changed.pop(session, None)
        limits, user_id = self._hub.limits, record.user_id
        of_user = self._ended_of.get(user_id, {})
        if len(of_user) >= limits.connections_per_user:
            self._drop(self._ended[next(iter(of_user))])
        elif len(self._ended) >= limits.connections + ENDED_WAITING:
            self._drop(next(iter(self._ended.values())))
        self._ended[record.client_id] = record
        self._ended_of.setdefault(user_id, {})[record.client_id] = None

    def _drop(self, record: SessionRecord) -> None:
        self._take(record)
        self._hub.metrics.sessions_dropped.inc()

    def _take(self, record: SessionRecord) -> None:
        if self._ended.pop(record.client_id, None) is not None:
            of_user = self._ended_of[record.user_id]
            del of_user[record.client_id]
            if not of_user:
                del self._ended_of[record.user_id]

    async def forget_user(self, user_id: str) -> None:
        """Forget a user's sessions and markers, here and in the store; those that are open are kept no longer.

        Raises:
            StoreUnavailable: They are not known to be forgotten.
        """
        async with self._writing:
            for session in [session for session in self._open if session.user_id == user_id]:
                del self._open[session]
                self._changed.pop(session, None)
            for record in [record for record in self._ended.values() if record.user_id == user_id]:
                self._take(record)
            await self._hub.store.directory.forget_user(user_id)

    def _record(self, session: Session, was: _Open, *, is_active: bool) -> SessionRecord:
        now = self._hub.clock_ms()
        silence = asyncio.get_running_loop().time() - session.heard if is_active else 0.0
        return SessionRecord(
            client_id=session.client.client_id,
            user_id=session.user_id,
            first_seen=was.first_seen,
            last_seen=max(was.first_seen, now - round(silence * 1000)),
            is_active=is_active,
            rooms=tuple(session.memberships.by_room),
        )

    # -- writing -------------------------------------------------------------------------------------------------

    async def _run(self) -> None:
        limits, loop = self._hub.limits, asyncio.get_running_loop()
        between = min(LONGEST_CLEANING_SECONDS, limits.session_retention_seconds)
        cleaned = loop.time()
        while not self._stopping.is_set():
            try:
                async with asyncio.timeout(limits.sessions_seconds * (0.75 + self._hub.random.random() / 2)):
                    await self._stopping.wait()
                return
            except TimeoutError:
                pass
            await self._try(self._write())
            if loop.time() - cleaned >= between:
                cleaned = loop.time()
                await self._try(self._clean())

    async def _try(self, writing: Awaitable[None]) -> None:
        """Await *writing*; that the store does not take it now is logged once."""
        try:
            await writing
        except StoreUnavailable as error:
            if not self._is_failing:
                self._is_failing = True
                self._hub.log.warning("sessions cannot be kept now; it is tried again: %s", error)
        except Exception:
            # Whatever a store raises against its contract: it must not end the keeping.
            self._is_failing = True
            self._hub.log.exception("sessions could not be kept, as in no store should be")
        else:
            self._is_failing = False

    async def _end_earlier(self) -> None:
        if not self._has_ended_earlier:
            await self._hub.store.directory.end_sessions()
            self._has_ended_earlier = True

    async def _write(self) -> None:
        """Write what has changed.

        Raises:
            StoreUnavailable: What is not written still waits.
        """
        async with self._writing:
            # Before any of this life is there.
            await self._end_earlier()
            due = asyncio.get_running_loop().time() - LAST_SEEN_SECONDS
            for session, was in self._open.items():
                if was.written is None or was.written <= due:
                    self._changed[session] = None
            while self._ended or self._changed:
                await self._write_part()

    async def _write_part(self) -> None:
        save = self._hub.store.directory.save_sessions
        ended = list(self._ended.values())[:RECORDS_PER_WRITE]
        if ended:
            await save(ended)
            for record in ended:
                self._take(record)
            return
        changed = list(self._changed)[:RECORDS_PER_WRITE]
        for session in changed:
            del self._changed[session]
        try:
            await save([self._record(session, self._open[session], is_active=True) for session in changed])
        except BaseException:
            self._changed.update((session, None) for session in changed if session in self._open)
            raise
        now = asyncio.get_running_loop().time()
        for session in changed:
            if session in self._open:
                self._open[session].written = now

    async def _clean(self) -> None:
        kept_ms = round(self._hub.limits.session_retention_seconds * 1000)
        await self._hub.store.directory.remove_sessions(before=self._hub.clock_ms() - kept_ms)

    # -- reading -------------------------------------------------------------------------------------------------

    async def sessions(self, user_id: str | None, *, limit: int) -> list[SessionInfo]:
        """Return the newest sessions; see `Dialogue.sessions`."""
        if limit < 1:
            raise ValueError("limit is at least 1")
        directory = self._hub.store.directory
        # Before and after: one that ends and is written meanwhile may be in neither the one nor the answer.
        found = {record.client_id: record for record in self._present(user_id)}
        stored = await directory.sessions(user_id, limit=limit)
        found.update((record.client_id, record) for record in self._present(user_id))
        open_ids = {session.client.client_id for session in self._open}
        for record in stored:
            # What the store has of one that is not open here is behind, if it says that it is.
            found.setdefault(record.client_id, msgspec.structs.replace(record, is_active=False))
        newest = sorted(found.values(), key=lambda record: (record.last_seen, record.client_id), reverse=True)
        newest = newest[:limit]
        read: dict[tuple[str, str], int] = {}
        for owner, room_ids in _rooms_by_user(newest).items():
            seqs = await self._hub.inbox.read_through(owner, room_ids)
            read.update(((owner, room_id), seq) for room_id, seq in seqs.items())
        return [
            SessionInfo(
                user_id=record.user_id,
                client_id=record.client_id,
                first_seen=record.first_seen,
                last_seen=record.last_seen,
                is_active=record.client_id in open_ids,
                rooms={room_id: read.get((record.user_id, room_id)) for room_id in record.rooms},
            )
            for record in newest
        ]

    def _present(self, user_id: str | None) -> list[SessionRecord]:
        """Return what is known here of sessions: the open ones, and those whose end is not written."""
        sessions: Iterable[Session] = self._open if user_id is None else self._hub.connections.of(user_id)
        found = [
            self._record(session, was, is_active=True)
            for session in sessions
            if (was := self._open.get(session)) is not None
        ]
        return found + [record for record in self._ended.values() if user_id in (None, record.user_id)]


def _rooms_by_user(records: Iterable[SessionRecord]) -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
    for record in records:
        if record.rooms:
            found.setdefault(record.user_id, set()).update(record.rooms)
    return found
