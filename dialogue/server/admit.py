"""What happens to an event before it may be appended: who may, limits, schema, keys, and the `before_each` hooks."""

from __future__ import annotations

import itertools
import logging
import re
import secrets
from collections.abc import Awaitable, Callable
from contextvars import ContextVar
from typing import Any

from ..config import EventType
from ..core import admission
from ..core.room import Room
from ..errors import CommandError, EventNotAllowed, Internal, InvalidRequest, ValidationFailed
from ..events import CHANGES, ERASED_USER, SERVER_KEY_PREFIX, Draft, Event
from ..limits import Limits, RoomLimits
from ..storage.base import Appended
from .access import Access
from .handles import Client, Context, RoomHandle
from .hooks import HookRegistry

SERVER_SENDER = "system"
"""The sender of what the application publishes without naming one."""

_UNSAFE = re.compile("[\x00-\x1f\ud800-\udfff]")

_publishing_in: ContextVar[str | None] = ContextVar("dialogue_publishing_in", default=None)


def check_not_publishing(room_id: str) -> None:
    """Check that what is about to be published is not so inside of the room's own ``before_each``.

    Raises:
        RuntimeError: It is.
    """
    if _publishing_in.get() == room_id:
        raise RuntimeError(
            f"before_each of room {room_id!r} may not trigger into the same room, or edit in it: it would wait for "
            "itself. Return a changed event, or trigger from after_each"
        )


class Admission:
    """Admits events.

    Args:
        look_up: Returns what is recorded under a draft's key, after everything that was submitted before.
    """

    def __init__(
        self,
        *,
        hooks: HookRegistry,
        limits: Limits,
        context: Context,
        access: Access,
        look_up: Callable[[Draft], Awaitable[Appended | None]],
        logger: logging.Logger,
    ) -> None:
        self.hooks = hooks
        self.limits = limits
        self.context = context
        self.log = logger
        self._access = access
        self._look_up = look_up
        # Never the same again, in no other process either; and those of one user are neighbours in the log's index,
        # where random ones would touch a page each.
        self._key_prefix = SERVER_KEY_PREFIX + secrets.token_urlsafe(9)
        self._key_numbers = itertools.count()

    def server_key(self) -> str:
        """Return a key that no publisher has given, or will."""
        return f"{self._key_prefix}{next(self._key_numbers):09x}"

    def admit(
        self,
        room: Room,
        client: Client,
        event: str,
        *,
        data: bytes,
        meta: bytes,
        key: str | None,
        now: float,
    ) -> tuple[EventType[Any], Draft]:
        """Return the draft of what a client triggers; where there `has_hooks`, `ask_hooks` comes next.

        Args:
            data, meta: As they came, raw JSON.
            now: The present, for the room's own rate limits.

        Raises:
            CommandError: It is not admitted.
        """
        event_type = room.room_type.event_type(event)
        if event_type is None or (
            event_type.publish != "client"
            and not self._access.may_publish(
                event_type, client, lambda: RoomHandle(self.context.hub, room.room_id)
            )
        ):
            raise EventNotAllowed
        if room.rates is not None:
            room.rates.spend_trigger(client.user_id, now=now)
        data_json = self.encode(event_type, data, room_limits=room.room_type.config.limits)
        meta_json = None
        if meta != b"null":
            meta_json = admission.encode_meta(
                meta, max_bytes=self.limits.meta_bytes, max_depth=self.limits.data_depth
            )
        draft = self.draft(
            room,
            event_type,
            data_json,
            sender=client.user_id,
            meta_json=meta_json,
            key=self.check_key(key),
        )
        return event_type, draft

    def encode(
        self, event_type: EventType[Any], raw: bytes, *, room_limits: RoomLimits | None = None
    ) -> bytes:
        """Validate a client's raw data and return what is stored and sent.

        Raises:
            MessageTooLarge, ValidationFailed: See `admission.encode_payload`.
        """
        most = self.limits.message_bytes
        if room_limits is not None and room_limits.message_bytes is not None:
            most = min(most, room_limits.message_bytes)
        return admission.encode_payload(event_type, raw, max_bytes=most, max_depth=self.limits.data_depth)

    def draft(
        self,
        room: Room,
        event_type: EventType[Any],
        data_json: bytes,
        *,
        sender: str,
        meta_json: bytes | None,
        key: str | None,
    ) -> Draft:
        """Return the draft of a validated event; where there `has_hooks`, `ask_hooks` comes next.

        Raises:
            EventNotAllowed: See `check_event_name`.
        """
        self.check_event_name(room, event_type.name)
        return Draft(
            room_id=room.room_id,
            event=event_type.name,
            sender=sender,
            key=self.server_key() if key is None else key,
            data_json=data_json,
            meta_json=meta_json,
            kind=event_type.kind,
            is_recorded=event_type.history is not None,
            counts_unread=event_type.counts_unread,
        )

    @property
    def has_hooks(self) -> bool:
        """Whether a ``before_each`` is to be asked."""
        return self.hooks.has("before_each")

    async def ask_hooks(self, room: Room, event_type: EventType[Any], draft: Draft) -> Draft | Appended:
        """Run ``before_each`` over *draft*, which it may change.

        Returns:
            The draft to submit; or, when a hook refuses a retry whose first try was recorded, what was recorded.

        Raises:
            CommandError: It is not admitted.
        """
        try:
            await self._before_each(room, event_type, draft)
        except CommandError as error:
            if draft.public_key is None or not draft.is_recorded or error.is_outcome_unknown:
                raise
            found = await self._look_up(draft)
            if found is None:
                raise
            return found._replace(event=None)
        return draft

    async def admit_edit(
        self, room: Room, event_type: EventType[Any], data_json: bytes, *, sender: str, seq: int
    ) -> bytes:
        """Run the hooks over the new data of an event and return what becomes of it.

        The hooks see an `Event` with the target's ``seq``, ``is_edited`` and the editor as its sender; the meta of
        what they return is left out, because an edit keeps it.

        Raises:
            CommandError: It is not admitted.
        """
        draft = Draft(
            room_id=room.room_id,
            event=event_type.name,
            sender=sender,
            key=SERVER_KEY_PREFIX,
            data_json=data_json,
        )
        await self._before_each(room, event_type, draft, edited_seq=seq)
        return draft.data_json

    def check_event_name(self, room: Room, name: str) -> None:
        """Check that a room may have events called *name*.

        Raises:
            EventNotAllowed: It is not declared, and the room has ``limits.event_names_per_room`` such names.
        """
        if name in room.room_type.events or name in room.undeclared or name in CHANGES:
            return
        if len(room.undeclared) >= self.limits.event_names_per_room:
            raise EventNotAllowed("the room has as many event names as it may have")

    async def _before_each(
        self, room: Room, event_type: EventType[Any], draft: Draft, *, edited_seq: int | None = None
    ) -> None:
        handle = RoomHandle(self.context.hub, room.room_id)
        for hook in self.hooks.matching("before_each", room.room_id, draft.event):
            event: Event[Any] = Event(
                room_id=room.room_id,
                event=draft.event,
                data=admission.decode_json(draft.data_json),
                sender=draft.sender,
                meta=admission.decode_json(draft.meta_json) if draft.meta_json is not None else None,
                kind=event_type.kind,
                key=draft.public_key,
                seq=edited_seq,
                is_edited=edited_seq is not None,
                event_type=event_type,
            )
            token = _publishing_in.set(room.room_id)
            try:
                changed = await self.hooks.ask(
                    "before_each",
                    hook,
                    seconds=self.limits.hook_seconds,
                    room_id=room.room_id,
                    event_name=draft.event,
                    context=self.context,
                    room=handle,
                    event=event,
                )
            finally:
                _publishing_in.reset(token)
            if changed is None:
                continue
            if not isinstance(changed, Event):
                self.log.error("before_each returned a %s; return an Event or None", type(changed).__name__)
                raise Internal
            limits = self.limits
            # Checked again: what a hook makes goes into the same frames and the same store.
            draft.data_json = admission.encode_value(
                event_type, changed.data, max_bytes=limits.message_bytes, max_depth=limits.data_depth
            )
            draft.meta_json = self.encode_meta(changed.meta)
            if changed.sender != draft.sender:
                # Identity is bound to the connection, and keys to the identity.
                self.log.error(
                    "before_each may not change the sender (room %r, event %r)", room.room_id, draft.event
                )
                raise Internal

    def encode_meta(self, meta: dict[str, Any] | None) -> bytes | None:
        """Check and encode the meta of an event of the application's.

        Raises:
            ValidationFailed, MessageTooLarge: It is not an object, not safe JSON, or too large.
        """
        if meta is None:
            return None
        raw = admission.encode_json(meta, max_depth=self.limits.data_depth, what="meta")
        return admission.encode_meta(raw, max_bytes=self.limits.meta_bytes, max_depth=self.limits.data_depth)

    def check_user_id(self, user_id: Any) -> str:
        """Return *user_id* if it can be one.

        Raises:
            ValidationFailed: It is not 1 to ``limits.user_id_length`` characters without control characters.
        """
        if not isinstance(user_id, str) or not 1 <= len(user_id) <= self.limits.user_id_length:
            raise ValidationFailed(f"a user id has 1 to {self.limits.user_id_length} characters")
        if _UNSAFE.search(user_id):
            raise ValidationFailed("a user id has no control characters and is Unicode text")
        return user_id

    def check_connection_user(self, user_id: Any) -> str:
        """Return *user_id* if a connection's user can be called so.

        Raises:
            ValidationFailed: It cannot be one, or is a name of the server's own: keys are scoped to it.
        """
        if user_id in (SERVER_SENDER, ERASED_USER):
            raise ValidationFailed(f"the user id {user_id!r} is the server's own")
        return self.check_user_id(user_id)

    def check_key(self, key: str | None) -> str | None:
        """Return *key* if a publisher may use it.

        Raises:
            InvalidRequest: It is empty, too long, starts with ``$`` or has control characters.
        """
        if key is None:
            return None
        if not isinstance(key, str) or not 1 <= len(key) <= self.limits.key_length:
            raise InvalidRequest(f"a key has 1 to {self.limits.key_length} characters")
        if key.startswith(SERVER_KEY_PREFIX):
            raise InvalidRequest(f"a key does not start with '{SERVER_KEY_PREFIX}'")
        if _UNSAFE.search(key):
            raise InvalidRequest("a key has no control characters")
        return key
