"""What the routes do, except for streams (`sse`): the commands of a connection, one to a request."""

from __future__ import annotations

import asyncio
from contextlib import ExitStack
from dataclasses import asdict
from typing import TYPE_CHECKING

from starlette.requests import Request

from .. import protocol
from ..core.patterns import room_id_problem
from ..errors import CommandError, InvalidRequest, PermissionDenied
from ..events import Ack
from ..storage.base import Appended
from . import history
from .access import Permission
from .commands import greeting
from .handles import RoomHandle
from .http_answers import (
    EditBody,
    EventBody,
    ReadBody,
    RoomBody,
    check_is_json,
    decode_body,
    number,
    parameter,
    whole_number,
    without_type,
)
from .http_identity import RequestClient
from .http_requests import Requests, watching

if TYPE_CHECKING:
    from .hub import Hub

MOST_SESSIONS = 1000
"""Most sessions in one answer."""

_GUARDS_AT_ONCE = 8
"""How many rooms' guards one request asks at a time."""


class Endpoints(Requests):
    """What the routes do; each returns its answer as JSON."""

    async def me(self, request: Request) -> bytes:
        """Return who the user is, and what the server bounds."""
        hub, client = await self.begin(request)
        self.spend(hub, client, lambda rates: rates.reads)
        return protocol.encode_message(greeting(client.user_id, hub.limits))

    async def rooms(self, request: Request) -> bytes:
        """Return the rooms that the user may see."""
        hub, client = await self.begin(request)
        self.spend(hub, client, lambda rates: rates.reads)
        return protocol.encode_message({"rooms": await hub.registry.visible_to(client)})

    async def history(self, request: Request) -> bytes:
        """Return a page of a room's history, oldest event first."""
        hub, client = await self.begin(request)
        self.spend(hub, client, lambda rates: rates.reads)
        command = protocol.HistoryRead(
            room=request.path_params["room"],
            event=parameter(request, "event"),
            kind=parameter(request, "kind"),
            before=number(request, "before"),
            after=number(request, "after"),
            around=number(request, "around"),
            epoch=parameter(request, "epoch"),
            cursor=parameter(request, "cursor"),
            start=number(request, "start"),
            end=number(request, "end"),
            limit=number(request, "limit"),
        )
        with watching(hub, client, command.room) as (handle, permission):
            await self.check(hub, client, handle, permission, purpose="read")
            room = await hub.open_rooms.open(command.room)
            read = history.parse(hub, room, command)
            message = await history.answer(hub, room, read, user_id=client.user_id, ref=None)
            # What was readable when it was begun may not be any more; or the room has been deleted.
            permission.check()
            RoomHandle(hub, command.room)
        return without_type(message)

    async def presence(self, request: Request) -> bytes:
        """Return who is in a room."""
        hub, client = await self.begin(request)
        self.spend(hub, client, lambda rates: rates.reads)
        with watching(hub, client, request.path_params["room"]) as (handle, permission):
            await self.check(hub, client, handle, permission, purpose="read")
            room = await hub.open_rooms.open(handle.room_id)
            permission.check()
            # Whoever also reads the room's stream gets the changes after it.
            is_followed = hub.followers.is_followed_by(room.room_id, client.user_id)
            return without_type(hub.presence.snapshot(room, is_followed=is_followed))

    async def publish(self, request: Request) -> bytes:
        """Publish an event into a room, as a member's trigger does."""
        check_is_json(request.headers)
        hub, client = await self.begin(request)
        self.spend(hub, client, lambda rates: rates.triggers)
        body = decode_body(await self.body(hub, request), EventBody)
        # The body may have taken its time.
        client.check_not_expired()
        with watching(hub, client, request.path_params["room"]) as (handle, permission):
            await self.check(hub, client, handle, permission, purpose="join")
            ack = await self._publish(hub, client, handle.room_id, permission, body)
        return _accepted(handle.room_id, ack)

    async def _publish(
        self, hub: Hub, client: RequestClient, room_id: str, permission: Permission, body: EventBody
    ) -> Ack:
        room = await hub.open_rooms.open(room_id)
        permission.check()
        event_type, draft = hub.admission.admit(
            room,
            client,
            body.event,
            data=bytes(body.data),
            meta=bytes(body.meta),
            key=body.key,
            now=asyncio.get_running_loop().time(),
        )
        if hub.admission.has_hooks:
            admitted = await hub.admission.ask_hooks(room, event_type, draft)
            if isinstance(admitted, Appended):
                return admitted.ack
            # The room may have gone to sleep while hooks were asked, and the user out of it.
            room = await hub.open_rooms.open(room_id)
            permission.check()
            draft = admitted
        # Whoever is taken out of the room from here on has published before.
        return await hub.submit_and_wait(room, draft)

    async def edit(self, request: Request) -> bytes:
        """Change an event's data, as a member's edit does."""
        check_is_json(request.headers)
        hub, client = await self.begin(request)
        self.spend(hub, client, lambda rates: rates.triggers)
        body = decode_body(await self.body(hub, request), EditBody)
        client.check_not_expired()
        return await self._change(hub, client, request, bytes(body.data), key=body.key)

    async def delete(self, request: Request) -> bytes:
        """Delete an event, as a member's delete does."""
        hub, client = await self.begin(request)
        self.spend(hub, client, lambda rates: rates.triggers)
        return await self._change(hub, client, request, None, key=parameter(request, "key"))

    async def _change(
        self, hub: Hub, client: RequestClient, request: Request, data: bytes | None, *, key: str | None
    ) -> bytes:
        seq = whole_number("seq", request.path_params["seq"])
        with watching(hub, client, request.path_params["room"]) as (handle, permission):
            await self.check(hub, client, handle, permission, purpose="join")
            room = await hub.open_rooms.open(handle.room_id)
            permission.check()
            admitted = await hub.changes.admit(
                room,
                seq,
                encode=None if data is None else hub.changes.encoder(room, data),
                sender=client.user_id,
                client=client,
                key=hub.admission.check_key(key),
            )
            if isinstance(admitted, Appended):
                return _accepted(handle.room_id, admitted.ack)
            # As in `_publish`.
            room = await hub.open_rooms.open(handle.room_id)
            permission.check()
            return _accepted(handle.room_id, await hub.submit_and_wait(room, admitted))

    async def create_room(self, request: Request) -> bytes:
        """Make a room; its user alone may delete it."""
        check_is_json(request.headers)
        hub, client = await self.begin(request)
        self.spend(hub, client, lambda rates: rates.room_changes)
        body = decode_body(await self.body(hub, request), RoomBody)
        client.check_not_expired()
        await hub.registry.create_for(
            client, body.room, name=body.name, description=body.description, max_size=body.max_size
        )
        return protocol.encode_message({"room": body.room})

    async def delete_room(self, request: Request) -> bytes:
        """Delete a room that the user has made, with its history."""
        hub, client = await self.begin(request)
        self.spend(hub, client, lambda rates: rates.room_changes)
        room_id = request.path_params["room"]
        await hub.registry.delete_for(client, room_id)
        return protocol.encode_message({"room": room_id})

    async def read(self, request: Request) -> bytes:
        """Mark a room of the user's inbox as read through an event."""
        check_is_json(request.headers)
        hub, client = await self.begin(request)
        self.spend(hub, client, lambda rates: rates.reads)
        body = decode_body(await self.body(hub, request), ReadBody)
        client.check_not_expired()
        with watching(hub, client, request.path_params["room"]) as (handle, permission):
            await self.check(hub, client, handle, permission, purpose="read")
            is_following = hub.followers.is_followed_by(handle.room_id, client.user_id)
            unread = await hub.inbox.mark_from_outside(
                client, handle, body.seq, permission, is_following=is_following
            )
            permission.check()
        return protocol.encode_message({"room": handle.room_id, "unread": unread})

    async def unread(self, request: Request) -> bytes:
        """Return how many events are unread in the rooms of the user's inbox."""
        hub, client = await self.begin(request)
        self.spend(hub, client, lambda rates: rates.reads)
        rooms = request.query_params.getlist("room") or None
        if rooms is not None:
            # What is no room's id is not for the store, which may not take it.
            rooms = [room_id for room_id in rooms if room_id_problem(room_id) is None]
        counts = await hub.inbox.unread(client.user_id, rooms)
        # Those with something unread first, as over the socket; and no more guards are asked than rooms can be told.
        by_unread = sorted(counts, key=lambda room_id: (not counts[room_id], room_id))
        left = iter(by_unread[: hub.limits.unread_rooms])
        shown: dict[str, Permission] = {}

        async def ask() -> None:
            for room_id in left:
                try:
                    handle, permission = watches.enter_context(watching(hub, client, room_id))
                    await self.check(hub, client, handle, permission, purpose="read")
                except CommandError:
                    continue  # not told of, as one that is not in the inbox
                shown[room_id] = permission

        with ExitStack() as watches:
            async with asyncio.TaskGroup() as group:
                for _ in range(_GUARDS_AT_ONCE):
                    group.create_task(ask())
            # What was readable while others were asked may not be any more.
            told = [
                room_id
                for room_id, permission in shown.items()
                if not permission.is_revoked and hub.registry.find(room_id) is not None
            ]
        return protocol.encode_message({"unread": {room_id: counts[room_id] for room_id in sorted(told)}})

    async def sessions(self, request: Request) -> bytes:
        """Return who is and was connected, to whom ``can_see_sessions`` allows it."""
        hub, client = await self.begin(request)
        self.spend(hub, client, lambda rates: rates.reads)
        user_id = parameter(request, "of")
        if user_id is not None:
            hub.admission.check_connection_user(user_id)
        limit = number(request, "limit")
        if limit is not None and not 1 <= limit <= MOST_SESSIONS:
            raise InvalidRequest(f"limit is at least 1 and at most {MOST_SESSIONS}")
        if not await hub.access.may_see_sessions(client, user_id):
            raise PermissionDenied
        found = await hub.session_records.sessions(user_id, limit=100 if limit is None else limit)
        return protocol.encode_message({"sessions": [asdict(session) for session in found]})


def _accepted(room_id: str, ack: Ack) -> bytes:
    """Return what a publisher is told."""
    fields = {"room": room_id, "seq": ack.seq, "id": ack.id, "timestamp": ack.timestamp}
    return protocol.encode_message(fields | ({"duplicate": True} if ack.is_duplicate else {}))
