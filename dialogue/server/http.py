"""The commands over HTTP (docs: reference/protocol.md, The same over HTTP).

A request is in no room: what a member may do, its user may where ``before_join`` lets it. Who is taken out of a room
while a request is answered (`Access.revoke`) is told nothing of it any more.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from fastapi import APIRouter
from fastapi.routing import APIRoute
from starlette.datastructures import MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from .. import protocol
from ..core.patterns import room_id_problem
from ..errors import (
    CommandError,
    Internal,
    InvalidRequest,
    LifespanNotRunning,
    PermissionDenied,
    StoreUnavailable,
)
from ..events import Ack
from ..storage.base import Appended
from . import history
from .access import Permission, Purpose
from .cors import cors_headers, is_request_allowed, preflight
from .handles import RoomHandle
from .http_answers import (
    EventBody,
    ReadBody,
    answer,
    check_is_json,
    decode_body,
    number,
    parameter,
    read_body,
    refusal,
    without_type,
)
from .http_identity import RequestClient, identify
from .http_models import (
    ErrorAnswer,
    HistoryAnswer,
    PresenceAnswer,
    PublishBody,
    PublishedAnswer,
    ReadAnswer,
    ReadRequest,
    RoomsAnswer,
    SessionsAnswer,
    UnreadAnswer,
)
from .rates import Rates, spend

if TYPE_CHECKING:
    from ..app import Dialogue
    from .hub import Hub

_ENDS = "dialogue.ends"
"""Where in a request's scope is kept what is to be called when its answer is sent."""

_MOST_SESSIONS = 1000
"""Most sessions in one answer."""

_GUARDS_AT_ONCE = 8
"""How many rooms' guards one request asks at a time."""

_ROOM = [{"name": "room", "in": "path", "required": True, "schema": {"type": "string"}}]
_HISTORY = [
    ("event", "string", "one event type; without it, all"),
    ("kind", "string", "only events of this kind"),
    ("before", "integer", "the newest events with a seq below it"),
    ("after", "integer", "the oldest events with a seq above it"),
    ("around", "integer", "the event with this seq, and events on both sides of it"),
    ("epoch", "string", "the epoch that the seq belongs to; checked if given"),
    ("cursor", "string", "a `next` or `previous` of an earlier answer"),
    ("start", "integer", "offset within one event type, 0 being the newest (inclusive)"),
    ("end", "integer", "the same (exclusive)"),
    ("limit", "integer", "most events; 50 unless given"),
]


def make_http_router(dialogue: Dialogue) -> APIRouter:
    """Return the routes under which *dialogue* is read and published to without a socket."""

    def check_origin(request: Request) -> None:
        if not is_request_allowed(
            request, allowed_origins=dialogue.allowed_origins, is_development=dialogue.is_development
        ):
            dialogue.metrics.refused.labels("origin").inc()
            dialogue.logger.warning(
                "a request from another origin was refused; to allow it: Dialogue(..., allowed_origins=[%r])",
                request.headers.get("origin") or f"{request.url.scheme}://{request.headers.get('host')}",
            )
            raise PermissionDenied("the origin is not allowed")

    def refuse(request: Request, error: CommandError) -> Response:
        dialogue.metrics.errors.labels(error.code).inc()
        return refusal(request, error)

    class Route(APIRoute):
        """A route with the checks and headers that all of them have, around what ``dependencies=`` adds."""

        async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
            request = Request(scope)

            async def send_with_headers(message: Message) -> None:
                if message["type"] == "http.response.start":
                    headers = MutableHeaders(scope=message)
                    headers["Cache-Control"] = "no-store"
                    headers.append("Vary", "Origin")
                    headers.update(cors)
                await send(message)

            cors: dict[str, str] = {}
            try:
                check_origin(request)
            except PermissionDenied as error:
                await refuse(request, error)(scope, receive, send_with_headers)
                return
            cors = cors_headers(request.headers, dialogue.allowed_origins)
            with ExitStack() as scope[_ENDS]:
                await super().handle(scope, receive, send_with_headers)

        def get_route_handler(self) -> Callable[[Request], Any]:
            original = super().get_route_handler()

            async def handle(request: Request) -> Response:
                try:
                    return await original(request)
                except CommandError as error:
                    return refuse(request, error)
                except ClientDisconnect:
                    return Response(status_code=400)  # which nobody gets

            return handle

    router = APIRouter(route_class=Route, tags=["dialogue"])
    endpoints = _Endpoints(dialogue)

    def add(
        method: str,
        path: str,
        endpoint: Callable[[Request], Awaitable[bytes]],
        *,
        model: Any,
        errors: tuple[int, ...],
        status_code: int = 200,
        **more: Any,
    ) -> None:
        router.add_api_route(
            path,
            _answering(dialogue, endpoint, status_code=status_code),
            methods=[method],
            # Part of the operation's id, which FastAPI makes unique by the path: an application may include several.
            name=f"dialogue_{endpoint.__name__}",
            description=endpoint.__doc__,
            response_model=model,
            status_code=status_code,
            responses={code: {"model": ErrorAnswer} for code in (400, 401, 403, *errors, 429, 500, 503)},
            openapi_extra=more,
        )

        async def options(request: Request) -> Response:
            try:
                check_origin(request)
            except PermissionDenied as error:
                return refuse(request, error)
            return preflight(request.headers, dialogue.allowed_origins, methods=f"{method}, OPTIONS")

        # No part of what dependencies guard: a browser asks without credentials.
        router.add_route(path, options, methods=["OPTIONS"], include_in_schema=False)

    add("GET", "/rooms", endpoints.rooms, model=RoomsAnswer, errors=())
    add(
        "GET",
        "/rooms/{room}/history",
        endpoints.history,
        model=HistoryAnswer,
        errors=(404,),
        parameters=_ROOM
        + [
            {"name": name, "in": "query", "description": text, "schema": {"type": kind}}
            for name, kind, text in _HISTORY
        ],
    )
    add(
        "GET",
        "/rooms/{room}/presence",
        endpoints.presence,
        model=PresenceAnswer,
        errors=(404,),
        parameters=_ROOM,
    )
    add(
        "POST",
        "/rooms/{room}/events",
        endpoints.publish,
        model=PublishedAnswer,
        errors=(404, 408, 413, 415, 422),
        status_code=201,
        parameters=_ROOM,
        requestBody={
            "required": True,
            "content": {"application/json": {"schema": PublishBody.model_json_schema()}},
        },
    )
    add(
        "POST",
        "/rooms/{room}/read",
        endpoints.read,
        model=ReadAnswer,
        errors=(404, 408, 413, 415),
        parameters=_ROOM,
        requestBody={
            "required": True,
            "content": {"application/json": {"schema": ReadRequest.model_json_schema()}},
        },
    )
    add(
        "GET",
        "/unread",
        endpoints.unread,
        model=UnreadAnswer,
        errors=(),
        parameters=[
            {
                "name": "room",
                "in": "query",
                "description": "only this room; may be given several times",
                "schema": {"type": "array", "items": {"type": "string"}},
            }
        ],
    )
    add(
        "GET",
        "/sessions",
        endpoints.sessions,
        model=SessionsAnswer,
        errors=(422,),
        parameters=[
            {"name": "of", "in": "query", "description": "only of this user", "schema": {"type": "string"}},
            {
                "name": "limit",
                "in": "query",
                "description": f"most sessions, at most {_MOST_SESSIONS}; 100 unless given",
                "schema": {"type": "integer"},
            },
        ],
    )
    return router


def _answering(
    dialogue: Dialogue, endpoint: Callable[[Request], Awaitable[bytes]], *, status_code: int
) -> Callable[[Request], Awaitable[Response]]:
    """Return what answers with the JSON that *endpoint* returns; a fault in it tells nothing but INTERNAL."""

    async def answer_request(request: Request) -> Response:
        try:
            return answer(await endpoint(request), status_code=status_code)
        except (CommandError, ClientDisconnect, LifespanNotRunning, HTTPException):
            raise
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is None or task.cancelling():
                raise
            # Not the request was cancelled but what it waited for, by a stop.
            raise StoreUnavailable("the server is stopping", retry_after_seconds=1) from None
        except Exception:
            if dialogue.has_stopped or dialogue.hub().is_stopping:
                # Its store was closed under it.
                raise StoreUnavailable("the server is stopping", retry_after_seconds=1) from None
            dialogue.logger.exception("a request failed (%s)", endpoint.__name__)
            raise Internal from None

    return answer_request


class _Endpoints:
    """What the routes do; each returns its answer as JSON."""

    def __init__(self, dialogue: Dialogue) -> None:
        self._dialogue = dialogue

    async def rooms(self, request: Request) -> bytes:
        """Return the rooms that the user may see."""
        hub, client = await self._begin(request)
        self._spend(hub, client, lambda rates: rates.reads)
        return protocol.encode_message({"rooms": await hub.registry.visible_to(client)})

    async def history(self, request: Request) -> bytes:
        """Return a page of a room's history, oldest event first."""
        hub, client = await self._begin(request)
        self._spend(hub, client, lambda rates: rates.reads)
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
        with _watching(hub, client, command.room) as (handle, permission):
            await self._check(hub, client, handle, permission, purpose="read")
            room = await hub.open_rooms.open(command.room)
            read = history.parse(hub, room, command)
            message = await history.answer(hub, room, read, user_id=client.user_id, ref=None)
            # What was readable when it was begun may not be any more; or the room has been deleted.
            permission.check()
            RoomHandle(hub, command.room)
        return without_type(message)

    async def presence(self, request: Request) -> bytes:
        """Return who is in a room."""
        hub, client = await self._begin(request)
        self._spend(hub, client, lambda rates: rates.reads)
        with _watching(hub, client, request.path_params["room"]) as (handle, permission):
            await self._check(hub, client, handle, permission, purpose="read")
            room = await hub.open_rooms.open(handle.room_id)
            permission.check()
            return without_type(hub.presence.snapshot(room, is_followed=False))

    async def publish(self, request: Request) -> bytes:
        """Publish an event into a room, as a member's trigger does."""
        check_is_json(request.headers)
        hub, client = await self._begin(request)
        self._spend(hub, client, lambda rates: rates.triggers)
        body = decode_body(await self._body(hub, request), EventBody)
        # The body may have taken its time.
        client.check_not_expired()
        with _watching(hub, client, request.path_params["room"]) as (handle, permission):
            await self._check(hub, client, handle, permission, purpose="join")
            ack = await self._publish(hub, client, handle.room_id, permission, body)
        fields = {"room": handle.room_id, "seq": ack.seq, "id": ack.id, "timestamp": ack.timestamp}
        return protocol.encode_message(fields | ({"duplicate": True} if ack.is_duplicate else {}))

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

    async def read(self, request: Request) -> bytes:
        """Mark a room of the user's inbox as read through an event."""
        check_is_json(request.headers)
        hub, client = await self._begin(request)
        self._spend(hub, client, lambda rates: rates.reads)
        body = decode_body(await self._body(hub, request), ReadBody)
        client.check_not_expired()
        with _watching(hub, client, request.path_params["room"]) as (handle, permission):
            await self._check(hub, client, handle, permission, purpose="read")
            unread = await hub.inbox.mark_read(client.user_id, handle.room_id, body.seq)
            permission.check()
        return protocol.encode_message({"room": handle.room_id, "unread": unread})

    async def unread(self, request: Request) -> bytes:
        """Return how many events are unread in the rooms of the user's inbox."""
        hub, client = await self._begin(request)
        self._spend(hub, client, lambda rates: rates.reads)
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
                    handle, permission = watches.enter_context(_watching(hub, client, room_id))
                    await self._check(hub, client, handle, permission, purpose="read")
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
        hub, client = await self._begin(request)
        self._spend(hub, client, lambda rates: rates.reads)
        user_id = parameter(request, "of")
        if user_id is not None:
            hub.admission.check_connection_user(user_id)
        limit = number(request, "limit")
        if limit is not None and not 1 <= limit <= _MOST_SESSIONS:
            raise InvalidRequest(f"limit is at least 1 and at most {_MOST_SESSIONS}")
        if not await hub.access.may_see_sessions(client, user_id):
            raise PermissionDenied
        found = await hub.session_records.sessions(user_id, limit=100 if limit is None else limit)
        return protocol.encode_message({"sessions": [asdict(session) for session in found]})

    # -- what all of them begin with -----------------------------------------------------------------------------

    async def _begin(self, request: Request) -> tuple[Hub, RequestClient]:
        """Return the running part and who asks."""
        if self._dialogue.has_stopped:
            raise StoreUnavailable("the server is stopping", retry_after_seconds=1)
        # Raises with the remedy where a mount keeps the lifespan from running, as the socket does.
        hub = self._dialogue.hub()
        if hub.is_stopping:
            raise StoreUnavailable("the server is stopping", retry_after_seconds=1)
        hub.context.app = request.scope.get("app")
        ends: ExitStack = request.scope[_ENDS]
        ends.callback(hub.in_flight.begin())
        client = await identify(hub, request)
        ends.callback(hub.in_flight.begin_of(client.user_id))
        return hub, client

    @staticmethod
    async def _body(hub: Hub, request: Request) -> bytes:
        return await read_body(request, most_bytes=hub.limits.frame_bytes, seconds=hub.limits.connect_seconds)

    @staticmethod
    def _spend(hub: Hub, client: RequestClient, bucket: Callable[[Rates], Any]) -> None:
        spend(asyncio.get_running_loop().time(), bucket(hub.user_rates.of(client.user_id)))

    @staticmethod
    async def _check(
        hub: Hub, client: RequestClient, handle: RoomHandle, permission: Permission, *, purpose: Purpose
    ) -> None:
        await hub.access.check(client, handle, purpose=purpose)
        permission.check()


@contextmanager
def _watching(hub: Hub, client: RequestClient, room_id: str) -> Iterator[tuple[RoomHandle, Permission]]:
    """Yield a room, and a permission that ends when the user is taken out of it.

    Raises:
        RoomNotFound: There is no such room.
    """
    handle = RoomHandle(hub, room_id)
    with hub.access.watch(client.user_id, room_id) as permission:
        yield handle, permission
