"""Edits, deletions and erasures: who may, and what is appended for them.

A change is an event of its own (`$edit`, `$delete`) that goes the way of every publish; the store changes its target
in the same transaction, and the delivery puts the new form into the ring and into the reads that are running.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ..config import EventType
from ..core.room import Room
from ..errors import (
    CommandError,
    ConfigError,
    EventNotAllowed,
    InvalidRequest,
    PermissionDenied,
    RoomNotFound,
)
from ..events import (
    CHANGES,
    DELETE,
    EDIT,
    Ack,
    Draft,
    EncodedEvent,
    Event,
    Target,
    is_deleted,
)
from ..storage.archive import Archive
from ..storage.base import Appended, UserEvent
from .admit import SERVER_SENDER, check_not_publishing
from .handles import Client
from .submissions import Waiter

if TYPE_CHECKING:
    from .hub import Hub

Encode = Callable[[EventType[Any]], bytes]
"""Validates an edit's new data by the type of its target, and returns it encoded."""

ERASED_AT_ONCE = 200
"""How many events of an erased user are on their way to the store at a time."""

SCANNED_AT_ONCE = 10_000
"""How many events one read looks at for those of a user."""


class Changes:
    """Changes what has been recorded.

    Args:
        archive: The developer's storage, if there is one.
    """

    def __init__(self, hub: Hub, *, archive: Archive | None) -> None:
        self._hub = hub
        self._archive = archive
        self._erasing = asyncio.Lock()

    def encoder(self, room: Room, data: bytes) -> Encode:
        """Return what makes a client's raw JSON the data of an event of the room."""
        limits = room.room_type.config.limits
        return lambda event_type: self._hub.admission.encode(event_type, data, room_limits=limits)

    async def admit(
        self,
        room: Room,
        seq: int,
        *,
        encode: Encode | None,
        sender: str,
        client: Client | None,
        key: str | None,
    ) -> Draft | Appended:
        """Return the draft of a change; or what an earlier try under the same key has recorded.

        Args:
            encode: None for a deletion.
            sender: Whose the change is.
            client: Who asks; None for the application, which may change everything.

        Raises:
            RateLimited: The room lets its users trigger less often.
            InvalidRequest: There is no such event, it is deleted, or it is itself a change.
            PermissionDenied: It is someone else's, and no ``can_edit`` hook allows it.
            CommandError: The new data does not fit, or is blocked.
        """
        if client is not None and room.rates is not None:
            # A change comes to everyone in the room like any other event.
            room.rates.spend_trigger(client.user_id, now=asyncio.get_running_loop().time())
        draft = Draft(
            room_id=room.room_id,
            event=DELETE if encode is None else EDIT,
            sender=sender,
            key=self._hub.admission.server_key() if key is None else key,
            data_json=b"",
            counts_unread=False,
        )
        try:
            await self._aim(draft, room, seq, encode=encode, client=client)
        except CommandError as error:
            # What has happened since the first try (the deletion itself, too) must not hide what it has recorded.
            if key is None or error.is_outcome_unknown:
                raise
            found = await self._hub.commit.look_up(draft)
            if found is None:
                raise
            return found._replace(event=None, replaced=())
        return draft

    async def _aim(
        self, draft: Draft, room: Room, seq: int, *, encode: Encode | None, client: Client | None
    ) -> None:
        """Give *draft* its target, if the change is admitted; see `admit`."""
        hub = self._hub
        event = await hub.reader.one(room, seq)
        if event is None:
            raise InvalidRequest("there is no such event in the log")
        if event.event in CHANGES:
            raise InvalidRequest("what tells of a change cannot be changed")
        event_type = room.room_type.event_type(event.event)
        if client is not None:
            is_own = event.sender == client.user_id
            if not is_own or (event_type is not None and event_type.publish == "server"):
                # Also what the application has published in the client's name, of a type that is not for clients.
                await self._check_allowed(room, event, client)
        if is_deleted(event):
            raise InvalidRequest("the event is deleted")
        data_json = None
        if encode is not None:
            if event_type is None or event_type.history is None:
                raise EventNotAllowed("the room records no such event any more")
            data_json = await hub.admission.admit_edit(
                room, event_type, encode(event_type), sender=draft.sender, seq=seq
            )
        draft.target = Target(seq, event.event, data_json)
        draft.data_json = draft.target.change_json()

    async def _check_allowed(self, room: Room, encoded: EncodedEvent, client: Client) -> None:
        hub = self._hub
        event: Event[Any] = Event.decode(
            encoded, epoch=hub.store.epoch, event_type=room.room_type.event_type(encoded.event)
        )
        for hook in hub.hooks.matching("can_edit", room.room_id, encoded.event):
            allowed = await hub.hooks.ask(
                "can_edit",
                hook,
                seconds=hub.limits.hook_seconds,
                room_id=room.room_id,
                event_name=encoded.event,
                context=hub.context,
                client=client,
                event=event,
            )
            if allowed is True:
                return
        raise PermissionDenied("the event is not yours to change")

    async def change(
        self, room_id: str, seq: int, *, encode: Encode | None, sender: str, key: str | None
    ) -> Ack:
        """Change an event for the application; see `Dialogue.edit` and `Dialogue.delete`."""
        hub = self._hub
        if encode is not None:
            check_not_publishing(room_id)
        room = await hub.open_rooms.open(room_id)
        admitted = await self.admit(
            room,
            seq,
            encode=encode,
            sender=hub.admission.check_user_id(sender),
            client=None,
            key=hub.admission.check_key(key),
        )
        return await hub.publish(room_id, admitted)

    async def erase_user(self, user_id: str) -> int:
        """Erase what a user has sent; see `Dialogue.erase_user`."""
        hub, archive = self._hub, self._archive
        if archive is not None and not archive.can_erase:
            raise ConfigError(
                "erase_user",
                "on_cleanup keeps copies of events, and there is no on_erase hook that removes this user's",
                "Register on_erase",
            )
        # Neither of the server's own: what an erasure records is from the one, and what it leaves from the other.
        hub.admission.check_connection_user(user_id)
        # One after the other: two that find the same event would both tell its room.
        async with self._erasing:
            await hub.forget_user(user_id)
            erased = 0
            after: int | None = 0
            while after is not None:
                found, after = await hub.store.user_events(user_id, after=after, limit=SCANNED_AT_ONCE)
                for start in range(0, len(found), ERASED_AT_ONCE):
                    erased += await self._erase_part(found[start : start + ERASED_AT_ONCE])
            if archive is not None:
                # A batch that was read before its events were erased may still be on its way there.
                if hub.handover is not None:
                    await hub.handover.wait_in_flight()
                await archive.erase(user_id)
            return erased

    async def _erase_part(self, found: list[UserEvent]) -> int:
        erased = 0
        for room_id in dict.fromkeys(event.room_id for event in found):
            left = [event for event in found if event.room_id == room_id]
            while left:
                count, taken = await self._erase(room_id, left)
                erased += count
                left = left[taken:]
        return erased

    async def _erase(self, room_id: str, found: list[UserEvent]) -> tuple[int, int]:
        """Erase events of one room, from the first, as many as can be queued now; return how many, and how far."""
        hub = self._hub
        room = None
        # Open, so that its ring and its subscribers learn of it; kept open by what is queued for it. A room that is
        # no longer declared has neither.
        with contextlib.suppress(RoomNotFound):
            room = await hub.open_rooms.open(room_id)
        waiters: list[Waiter] = []
        for event in found:
            target = Target(event.seq, event.event_name, is_erased=True)
            draft = Draft(
                room_id=room_id,
                event=DELETE,
                sender=SERVER_SENDER,
                key=hub.admission.server_key(),
                data_json=target.change_json(),
                counts_unread=False,
                target=target,
            )
            waiter = Waiter()
            try:
                if room is None:
                    hub.commit.submit(draft, waiter, None)
                else:
                    hub.submit(room, draft, waiter, None)
            except CommandError:
                if not waiters:
                    raise
                break  # those on their way make room for what is left
            waiters.append(waiter)
        results = await asyncio.gather(*(waiter.result for waiter in waiters), return_exceptions=True)
        for result in results:
            # One that has meanwhile left the log by retention is gone as it should be.
            if isinstance(result, BaseException) and not isinstance(result, InvalidRequest):
                raise result
        return sum(isinstance(result, Ack) for result in results), len(waiters)
