"""Which rooms there are: those that are declared, and those that are made and deleted while running."""

from __future__ import annotations

import asyncio
import re
import time
from collections import Counter
from typing import TYPE_CHECKING, Any, Literal

import msgspec

from ..core.patterns import room_id_problem
from ..errors import (
    Backpressure,
    InvalidRequest,
    PermissionDenied,
    RateLimited,
    RoomExists,
    RoomNotFound,
    StoreUnavailable,
)
from ..room_types import RoomType, RoomTypes
from ..storage.directory import RoomRecord
from .announcer import Announcer
from .handles import Client, RoomHandle
from .turns import Turns

if TYPE_CHECKING:
    from .hub import Hub

_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")

_STEP = 200
"""After how many rooms others have their turn."""

UNCHANGED: Literal["unchanged"] = "unchanged"
"""What a field of an update is that stays as it is."""


class RoomRegistry:
    """Finds the declaration of a room, and makes, changes and deletes rooms.

    Attributes:
        types: What is declared.
        records: The rooms that were made while running, by id.
        deleting: The rooms that are being deleted; nothing may be published into them or opened.
    """

    def __init__(self, hub: Hub, types: RoomTypes) -> None:
        self._hub = hub
        self.types = types
        self.records: dict[str, RoomRecord] = {}
        self.deleting: set[str] = set()
        self._changing = Turns()
        self._announcer = Announcer(hub)
        # How many of the records are whose.
        self._made_by: Counter[str | None] = Counter()

    async def open(self) -> None:
        """Read the rooms that were made, and begin to tell of further ones.

        Raises:
            StoreUnavailable: The store cannot be read.
        """
        self.records = {record.room_id: record for record in await self._hub.store.directory.rooms()}
        self._made_by = Counter(record.created_by_id for record in self.records.values())
        lost = [room_id for room_id in self.records if self.find(room_id) is None]
        if lost:
            self._hub.log.warning(
                "%d rooms that were made while running are covered by no declaration any more and cannot be used, "
                "e.g. %r: declare client_rooms=, or the pattern that they were made under",
                len(lost),
                lost[0],
            )
        self._announcer.start()

    # -- finding -------------------------------------------------------------------------------------------------

    def find(self, room_id: str) -> tuple[RoomType, dict[str, str]] | None:
        """Return the type of a room and its parameters, or None when there is no such room."""
        found = self.types.find(room_id)
        if found is None and room_id in self.records and self.types.client_type is not None:
            return self.types.client_type, {}
        return found

    def check_usable(self, room_id: str) -> None:
        """Check that a room is not being deleted.

        Raises:
            Backpressure: It is.
        """
        if room_id in self.deleting:
            raise Backpressure("the room is being deleted", retry_after_seconds=1)

    async def visible_to(self, client: Client) -> list[dict[str, Any]]:
        """Return the rooms that *client* may see, as the wire has them, at most ``limits.listed_rooms``.

        Declared rooms first, then those that were made, then those of a pattern that the connection is in. Others'
        rooms of a pattern are not told of.
        """
        hub = self._hub
        shown: list[dict[str, Any]] = []
        joined = set(client.rooms)
        for number, room_id in enumerate(dict.fromkeys([*self.types.exact, *self.records, *client.rooms]), 1):
            if not number % _STEP:
                # A hook that awaits nothing would keep everyone else waiting for all of them.
                await asyncio.sleep(0)
            if len(shown) >= hub.limits.listed_rooms:
                break
            if self.find(room_id) is None:
                continue
            handle = RoomHandle(hub, room_id)
            if room_id in joined or await hub.access.can_see(client, handle):
                shown.append(handle.record())
        return shown

    # -- making --------------------------------------------------------------------------------------------------

    async def create_for(
        self, client: Client, room_id: str, *, name: str, description: str | None, max_size: int | None
    ) -> None:
        """Make a room for a client; its user alone may delete it.

        Raises:
            PermissionDenied: Clients may not make such rooms.
            RateLimited: The user has made too many.
            CommandError: See `create`.
        """
        hub, client_type = self._hub, self.types.client_type
        if client_type is None:
            raise PermissionDenied("clients make no rooms here")
        if not name:
            raise InvalidRequest("a room has a name")
        self._check_id(room_id)
        if room_id not in self.types.exact and self.types.find(room_id) and room_id not in self.records:
            raise PermissionDenied("a room of this pattern is made by joining it")
        most = client_type.config.max_size
        if most is not None and max_size is not None and max_size > most:
            raise InvalidRequest(f"max_size is at most {most} here")
        self._check_made_by(client.user_id)
        if hub.reader.has_archive and (await hub.store.head(room_id)).last_seq:
            # Its archive still has what was there before; who makes it again would read that.
            raise RoomExists("the room id has been used")
        await self.create(
            room_id,
            name=name,
            description=description or "",
            max_size=max_size,
            created_by_id=client.user_id,
            is_for_client=True,
        )

    async def create(
        self,
        room_id: str,
        *,
        name: str,
        description: str,
        max_size: int | None,
        created_by_id: str | None,
        is_for_client: bool = False,
    ) -> RoomHandle:
        """Make a room, in the store; see `Dialogue.create_room`.

        Args:
            is_for_client: Whether ``limits.created_rooms_per_user`` holds.
        """
        record = RoomRecord(
            room_id=room_id,
            name=self._check_text("name", name, self._hub.limits.room_name_length),
            description=self._check_text(
                "description", description, self._hub.limits.room_description_length
            ),
            max_size=_check_size(max_size),
            created_by_id=created_by_id,
            created_at=time.time_ns() // 1_000_000,
        )
        self._check_id(room_id)
        if created_by_id is not None:
            self._hub.admission.check_user_id(created_by_id)
        if self.types.find(room_id) is None and self.types.client_type is None:
            raise PermissionDenied("no declaration covers such a room: declare a pattern, or client_rooms")
        return await self._hub.complete(self._create(record, is_for_client), name="dialogue-create-room")

    async def _create(self, record: RoomRecord, is_for_client: bool) -> RoomHandle:
        user_id = record.created_by_id
        if is_for_client and user_id is not None:
            self._check_made_by(user_id)
        # Counted at once: others of the user's connections may be making rooms too.
        self._count(user_id, 1)
        try:
            return await self._save_new(record)
        except BaseException:
            if self.records.get(record.room_id) is not record:
                self._count(user_id, -1)
            raise

    async def _save_new(self, record: RoomRecord) -> RoomHandle:
        room_id = record.room_id
        async with self._changing.take(room_id):
            if room_id in self.types.exact or room_id in self.records:
                raise RoomExists
            # Those that are being made are counted already, this one too.
            if self._made_by.total() > self._hub.limits.created_rooms:
                raise RateLimited("there are too many rooms")
            await self._hub.store.directory.save_room(record)
            self.records[room_id] = record
            handle = RoomHandle(self._hub, room_id)
            self._announcer.put({"type": "room_created", **handle.record()}, handle)
        await self._notify("on_room_created", handle)
        return handle

    # -- changing ------------------------------------------------------------------------------------------------

    async def update(
        self,
        room_id: str,
        *,
        name: str | None,
        description: str | None,
        max_size: int | Literal["unchanged"] | None,
    ) -> RoomHandle:
        """Change a room that was made; see `Dialogue.update_room`."""
        limits = self._hub.limits
        changes: dict[str, Any] = {}
        if name is not None:
            changes["name"] = self._check_text("name", name, limits.room_name_length)
        if description is not None:
            changes["description"] = self._check_text(
                "description", description, limits.room_description_length
            )
        if max_size != "unchanged":
            changes["max_size"] = _check_size(max_size)
        return await self._hub.complete(self._update(room_id, changes), name="dialogue-update-room")

    async def _update(self, room_id: str, changes: dict[str, Any]) -> RoomHandle:
        async with self._changing.take(room_id):
            handle = RoomHandle(self._hub, room_id)
            before = self.records.get(room_id)
            if before is None:
                raise PermissionDenied("only a room that was made while running can be changed")
            record = msgspec.structs.replace(before, **changes)
            await self._hub.store.directory.save_room(record)
            self.records[room_id] = record
            self._announcer.put({"type": "room_updated", **handle.record()}, handle)
        await self._notify("on_room_updated", handle)
        return handle

    # -- deleting ------------------------------------------------------------------------------------------------

    async def delete_for(self, client: Client, room_id: str) -> None:
        """Delete a room for the client whose user has made it.

        Raises:
            RoomNotFound: There is no such room, or the client may not see it.
            PermissionDenied: Someone else has made it.
            CommandError: See `delete`.
        """
        handle = RoomHandle(self._hub, room_id)
        if room_id not in client.rooms and not await self._hub.access.can_see(client, handle):
            raise RoomNotFound
        if handle.created_by_id != client.user_id:
            raise PermissionDenied("only who has made a room may delete it")
        await self.delete(room_id, made_by=client.user_id)

    async def delete(self, room_id: str, *, made_by: str | None = None) -> None:
        """Delete a room with its history, once that is handed over; see `Dialogue.delete_room`.

        Args:
            made_by: The client's user who asks; None for the application, which may delete everyone's.
        """
        await self._hub.complete(self._delete(room_id, made_by), name="dialogue-delete-room")

    async def _delete(self, room_id: str, made_by: str | None) -> None:
        hub = self._hub
        async with self._changing.take(room_id):
            handle = RoomHandle(hub, room_id)
            if made_by is not None and handle.created_by_id != made_by:
                # It was deleted while this one waited for its turn, and somebody else has made it again.
                raise PermissionDenied("only who has made a room may delete it")
            if room_id in self.types.exact:
                raise PermissionDenied("a declared room cannot be deleted")
            handle.keep_record()
            self.deleting.add(room_id)
            try:
                # What was accepted is recorded and told, and nothing more is accepted.
                await hub.commit.wait_told(room_id)
                await self._remove_events(room_id)
                # Nobody becomes a member between the store's forgetting them and memory's.
                async with hub.inbox.writes.turns.take(room_id):
                    await hub.store.directory.remove_room(room_id)
                    await hub.open_rooms.wait_woken(room_id)
                    # Nothing is awaited from here until all of it is gone.
                    room = hub.open_rooms.rooms.get(room_id)
                    sessions = (
                        [subscriber.sink for subscriber in room.subscribers()] if room is not None else []
                    )
                    left = [
                        (session, session.memberships.drop(room_id, reason="the room was deleted"))
                        for session in sessions
                    ]
                    hub.open_rooms.rooms.pop(room_id, None)
                    made = self.records.pop(room_id, None)
                    if made is not None:
                        self._count(made.created_by_id, -1)
                    hub.forget_room(room_id)
            finally:
                self.deleting.discard(room_id)
            self._announcer.put({"type": "room_deleted", "room": room_id}, handle)
        for session, was_in in left:
            if was_in is not None:
                await session.memberships.notify_left(was_in)
        await self._notify("on_room_deleted", handle)

    async def _remove_events(self, room_id: str) -> None:
        """Hand over what the archive has not got, then remove everything from the log; seqs stay used.

        Raises:
            StoreUnavailable: The archive or the log does not take it; what is not removed is still there.
        """
        hub = self._hub
        head = await hub.store.head(room_id)
        if hub.handover is not None:
            seconds = hub.limits.append_timeout_seconds
            if not await hub.handover.hand_over_room(room_id, head.streams, seconds=seconds):
                raise StoreUnavailable(
                    "the room's events could not be handed over, so it was not deleted", retry_after_seconds=1
                )
        for event_name, state in head.streams.items():
            through = state.removed_through
            while through < state.last:
                # In parts, as retention does it: publishers of other rooms come between.
                through = min(through + hub.limits.retention_batch_events, state.last)
                await hub.store.remove(room_id, event_name, through)
                # Should the rest fail the room stays, and memory must not have what the log has not.
                await hub.open_rooms.expire(room_id, event_name, through)

    # -- helpers -------------------------------------------------------------------------------------------------

    async def _notify(self, hook: str, handle: RoomHandle) -> None:
        hub = self._hub
        await hub.hooks.notify(
            hook, seconds=hub.limits.hook_seconds, room_id=handle.room_id, context=hub.context, room=handle
        )

    def _check_made_by(self, user_id: str) -> None:
        most = self._hub.limits.created_rooms_per_user
        if self._made_by.get(user_id, 0) >= most:
            raise RateLimited(f"a user has made at most {most} rooms")

    def _count(self, user_id: str | None, change: int) -> None:
        self._made_by[user_id] += change
        if not self._made_by[user_id]:
            del self._made_by[user_id]

    @staticmethod
    def _check_id(room_id: str) -> None:
        problem = room_id_problem(room_id)
        if problem is None and ("{" in room_id or "}" in room_id):
            problem = "braces are for patterns"
        if problem is not None:
            raise InvalidRequest(problem)

    @staticmethod
    def _check_text(field: str, text: str, most: int) -> str:
        if not isinstance(text, str) or len(text) > most or _CONTROL.search(text):
            raise InvalidRequest(
                f"a room's {field} has at most {most} characters, none of them control characters"
            )
        return text


def _check_size(max_size: int | None) -> int | None:
    if max_size is not None and (not isinstance(max_size, int) or not 1 <= max_size <= 2**31 - 1):
        raise InvalidRequest("max_size is at least 1")
    return max_size
