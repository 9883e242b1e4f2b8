"""Edits, deletions and erasures: who may, and what is appended for them.

A change is an event of its own (`$edit`, `$delete`) that goes the way of every publish; the store changes its target
in the same transaction, and the delivery puts the new form into the ring and into the reads that are running.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ..config import EventType
from ..core.room import Room
from ..errors import (
    ConfigError,
    EventNotAllowed,
    Internal,
    InvalidRequest,
    PermissionDenied,
    RoomNotFound,
)
from ..events import (
    CHANGES,
    DELETE,
    EDIT,
    ERASED_USER,
    SERVER_KEY_PREFIX,
    Ack,
    Draft,
    EncodedEvent,
    Event,
    Target,
    is_deleted,
)
from ..storage.archive import Archive
from ..storage.base import Appended, UserEvent
from .admit import SERVER_SENDER
from .group_commit import Waiter
from .handles import Client

if TYPE_CHECKING:
    from .hub import Hub

Encode = Callable[[EventType[Any]], bytes]
"""Validates an edit's new data by the type of its target, and returns it encoded."""

ERASED_AT_ONCE = 200
"""How many events of an erased user are on their way to the store at a time."""


class Changes:
    """Changes what has been recorded.

    Args:
        archive: The developer's storage, if there is one.
    """

    def __init__(self, hub: Hub, *, archive: Archive | None) -> None:
        self._hub = hub
        self._archive = archive

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
            InvalidRequest: There is no such event, it is deleted, or it is itself a change.
            PermissionDenied: It is someone else's, and no ``can_edit`` hook allows it.
            CommandError: The new data does not fit, or is blocked.
        """
        hub = self._hub
        event = await hub.reader.one(room, seq)
        if event is None:
            raise InvalidRequest("there is no such event in the log")
        if event.event in CHANGES:
            raise InvalidRequest("what tells of a change cannot be changed")
        if client is not None and event.sender != client.user_id:
            await self._check_allowed(room, event, client)
        draft = Draft(
            room_id=room.room_id,
            event=DELETE if encode is None else EDIT,
            sender=sender,
            key=SERVER_KEY_PREFIX + secrets.token_hex(12) if key is None else key,
            data_json=b"",
            counts_unread=False,
        )
        if is_deleted(event):
            found = await hub.commit.look_up(draft) if key is not None else None
            if found is None:
                raise InvalidRequest("the event is deleted")
            return found._replace(event=None, replaced=())
        data_json = None
        if encode is not None:
            event_type = room.room_type.event_type(event.event)
            if event_type is None or event_type.history is None:
                raise EventNotAllowed("the room records no such event any more")
            data_json = await hub.admission.admit_edit(
                room, event_type, encode(event_type), sender=sender, seq=seq
            )
        draft.target = Target(seq, event.event, data_json)
        draft.data_json = draft.target.change_json()
        return draft

    async def _check_allowed(self, room: Room, encoded: EncodedEvent, client: Client) -> None:
        hub = self._hub
        event: Event[Any] = Event.decode(
            encoded, epoch=hub.store.epoch, event_type=room.room_type.event_type(encoded.event)
        )
        for hook in hub.hooks.matching("can_edit", room.room_id, encoded.event):
            try:
                allowed = await hub.hooks.invoke(
                    "can_edit",
                    hook,
                    seconds=hub.limits.hook_seconds,
                    context=hub.context,
                    client=client,
                    event=event,
                )
            except Exception:
                # Fail closed: a hook that cannot decide allows nothing.
                hub.log.exception("can_edit failed (room %r, event %r)", room.room_id, encoded.event)
                raise Internal from None
            if allowed is True:
                return
        raise PermissionDenied("the event is someone else's")

    async def change(
        self, room_id: str, seq: int, *, encode: Encode | None, sender: str, key: str | None
    ) -> Ack:
        """Change an event for the application; see `Dialogue.edit` and `Dialogue.delete`."""
        hub = self._hub
        room = await hub.open_rooms.open(room_id)
        admitted = await self.admit(
            room,
            seq,
            encode=encode,
            sender=hub.admission.check_user_id(sender),
            client=None,
            key=hub.admission.check_key(key),
        )
        if isinstance(admitted, Appended):
            return Ack(admitted.seq, admitted.id, admitted.timestamp, True)
        room = await hub.open_rooms.open(room_id)
        waiter = Waiter()
        hub.submit(room, admitted, waiter, None)
        return await waiter.result

    async def erase_user(self, user_id: str) -> int:
        """Erase what a user has sent; see `Dialogue.erase_user`."""
        hub, archive = self._hub, self._archive
        if archive is not None and not archive.can_erase:
            raise ConfigError(
                "erase_user",
                "on_cleanup keeps copies of events, and there is no on_erase hook that removes this user's",
                "Register on_erase",
            )
        hub.admission.check_user_id(user_id)
        if user_id == ERASED_USER:
            # What was erased has nothing left to erase; each look would find the same tombstones again, without end.
            return 0
        # What tells of an erasure must not be by the one who is erased: it would be found and erased in turn.
        sender = ERASED_USER if user_id == SERVER_SENDER else SERVER_SENDER
        erased = 0
        from_room = ""
        while found := await hub.store.user_events(user_id, from_room=from_room, limit=ERASED_AT_ONCE):
            for room_id in dict.fromkeys(event.room_id for event in found):
                targets = [event for event in found if event.room_id == room_id]
                erased += await self._erase(room_id, targets, sender)
            from_room = found[-1].room_id
        if archive is not None:
            # A batch that was read before its events were erased may still be on its way there.
            if hub.handover is not None:
                await hub.handover.wait_in_flight()
            await archive.erase(user_id)
        return erased

    async def _erase(self, room_id: str, found: list[UserEvent], sender: str) -> int:
        hub = self._hub
        # Open, so that its ring and its subscribers learn of it; kept open by what is queued for it. A room that is
        # no longer declared has neither.
        with contextlib.suppress(RoomNotFound):
            await hub.open_rooms.open(room_id)
        waiters = []
        for event in found:
            target = Target(event.seq, event.event_name, is_erased=True)
            draft = Draft(
                room_id=room_id,
                event=DELETE,
                sender=sender,
                key=SERVER_KEY_PREFIX + secrets.token_hex(12),
                data_json=target.change_json(),
                counts_unread=False,
                target=target,
            )
            waiter = Waiter()
            hub.commit.submit(draft, waiter, None)
            waiters.append(waiter)
        results = await asyncio.gather(*(waiter.result for waiter in waiters), return_exceptions=True)
        for result in results:
            # One that has meanwhile left the log by retention, or was erased by another call, is gone as it should be.
            if isinstance(result, BaseException) and not isinstance(result, InvalidRequest):
                raise result
        return sum(isinstance(result, Ack) for result in results)
