"""The commands over HTTP (docs: reference/protocol.md, The same over HTTP).

A request is in no room: what a member may do, its user may where ``before_join`` lets it. Who is taken out of a room
while a request is answered (`Access.revoke`) is told nothing of it any more.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

from fastapi import APIRouter
from fastapi.routing import APIRoute
from pydantic import BaseModel
from starlette.datastructures import MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from ..errors import CommandError, Internal, LifespanNotRunning, PermissionDenied, StoreUnavailable
from .cors import cors_headers, is_request_allowed, preflight
from .http_answers import answer, refusal
from .http_endpoints import MOST_SESSIONS, Endpoints
from .http_models import (
    CreateRoomRequest,
    EditRequest,
    ErrorAnswer,
    HistoryAnswer,
    JoinedAnswer,
    MeAnswer,
    PresenceAnswer,
    PublishBody,
    PublishedAnswer,
    ReadAnswer,
    ReadRequest,
    RoomAnswer,
    RoomsAnswer,
    SessionsAnswer,
    UnreadAnswer,
)
from .http_requests import ENDS
from .sse import Streams

if TYPE_CHECKING:
    from ..app import Dialogue

Endpoint = Callable[[Request], Awaitable[bytes | Response]]
"""Answers a request: with JSON, or in a way of its own."""


def _in_path(name: str, kind: str) -> dict[str, Any]:
    return {"name": name, "in": "path", "required": True, "schema": {"type": kind}}


def _in_query(name: str, kind: str, text: str) -> dict[str, Any]:
    return {"name": name, "in": "query", "description": text, "schema": {"type": kind}}


def _several(name: str, text: str) -> dict[str, Any]:
    schema = {"type": "array", "items": {"type": "string"}}
    return {"name": name, "in": "query", "description": text, "schema": schema}


def _body(model: type[BaseModel]) -> dict[str, Any]:
    return {"required": True, "content": {"application/json": {"schema": model.model_json_schema()}}}


_ROOM = [_in_path("room", "string")]
_EVENT = [*_ROOM, _in_path("seq", "integer")]
_HISTORY = [
    _in_query("event", "string", "one event type; without it, all"),
    _in_query("kind", "string", "only events of this kind"),
    _in_query("before", "integer", "the newest events with a seq below it"),
    _in_query("after", "integer", "the oldest events with a seq above it"),
    _in_query("around", "integer", "the event with this seq, and events on both sides of it"),
    _in_query("epoch", "string", "the epoch that the seq belongs to; checked if given"),
    _in_query("cursor", "string", "a `next` or `previous` of an earlier answer"),
    _in_query("start", "integer", "offset within one event type, 0 being the newest (inclusive)"),
    _in_query("end", "integer", "the same (exclusive)"),
    _in_query("limit", "integer", "most events; 50 unless given"),
]
_STREAM = [
    _in_query("after", "integer", "everything through this seq was seen"),
    _in_query("epoch", "string", "the epoch that the seq belongs to; the present one unless given"),
    _several("events", "only these event types, or `*`; may be given several times"),
    _in_query("sync", "integer", "without `after`: how many of the newest events of each type"),
    _in_query(
        "wait_seconds", "number", "answer once, when there is an event after `after`, or after so long"
    ),
    {
        "name": "Last-Event-ID",
        "in": "header",
        "description": "the `id` of the newest message that was seen, `epoch:seq`; goes before `after`",
        "schema": {"type": "string"},
    },
]


_REFUSED = {
    "content": {"application/json": {"schema": {"$ref": f"#/components/schemas/{ErrorAnswer.__name__}"}}}
}


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
            with ExitStack() as scope[ENDS]:
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
    methods: dict[str, list[str]] = {}

    def add(
        method: str,
        path: str,
        endpoint: Endpoint,
        *,
        model: Any,
        errors: tuple[int, ...],
        status_code: int = 200,
        responses: dict[int | str, dict[str, Any]] | None = None,
        **more: Any,
    ) -> None:
        # A model is compiled for each place that names it, which at every status of every route would be most of what
        # making an application costs: the first route brings it into the document, the others refer to it there.
        refusals: dict[int | str, dict[str, Any]] = {400: _REFUSED if methods else {"model": ErrorAnswer}}
        for code in (401, 403, *errors, 429, 500, 503):
            refusals[code] = _REFUSED
        router.add_api_route(
            path,
            _answering(dialogue, endpoint, status_code=status_code),
            methods=[method],
            # Part of the operation's id, which FastAPI makes unique by the path: an application may include several.
            name=f"dialogue_{endpoint.__name__}",
            description=endpoint.__doc__,
            response_model=model,
            status_code=status_code,
            responses={**refusals, **(responses or {})},
            openapi_extra=more,
        )
        methods.setdefault(path, []).append(method)

    def add_preflight(path: str, allowed: str) -> None:
        async def options(request: Request) -> Response:
            try:
                check_origin(request)
            except PermissionDenied as error:
                return refuse(request, error)
            return preflight(request.headers, dialogue.allowed_origins, methods=allowed)

        # No part of what dependencies guard: a browser asks without credentials.
        router.add_route(path, options, methods=["OPTIONS"], include_in_schema=False)

    of_body = (408, 413, 415)
    endpoints, streams = Endpoints(dialogue), Streams(dialogue)
    add("GET", "/me", endpoints.me, model=MeAnswer, errors=())
    add("GET", "/rooms", endpoints.rooms, model=RoomsAnswer, errors=())
    add(
        "POST",
        "/rooms",
        endpoints.create_room,
        model=RoomAnswer,
        errors=(*of_body, 409),
        status_code=201,
        requestBody=_body(CreateRoomRequest),
    )
    add("DELETE", "/rooms/{room}", endpoints.delete_room, model=RoomAnswer, errors=(404,), parameters=_ROOM)
    add(
        "GET",
        "/rooms/{room}/history",
        endpoints.history,
        model=HistoryAnswer,
        errors=(404,),
        parameters=_ROOM + _HISTORY,
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
        "GET",
        "/rooms/{room}/events",
        streams.events,
        model=JoinedAnswer,
        errors=(404,),
        responses={
            200: {
                "description": "A stream; with `wait_seconds` one answer",
                "content": {"text/event-stream": {"schema": {"type": "string"}}},
            }
        },
        parameters=_ROOM + _STREAM,
    )
    add(
        "POST",
        "/rooms/{room}/events",
        endpoints.publish,
        model=PublishedAnswer,
        errors=(404, *of_body, 422),
        status_code=201,
        parameters=_ROOM,
        requestBody=_body(PublishBody),
    )
    add(
        "PATCH",
        "/rooms/{room}/events/{seq}",
        endpoints.edit,
        model=PublishedAnswer,
        errors=(404, *of_body, 422),
        parameters=_EVENT,
        requestBody=_body(EditRequest),
    )
    add(
        "DELETE",
        "/rooms/{room}/events/{seq}",
        endpoints.delete,
        model=PublishedAnswer,
        errors=(404,),
        parameters=[*_EVENT, _in_query("key", "string", "idempotency key, scoped to room and user")],
    )
    add(
        "POST",
        "/rooms/{room}/read",
        endpoints.read,
        model=ReadAnswer,
        errors=(404, *of_body),
        parameters=_ROOM,
        requestBody=_body(ReadRequest),
    )
    add(
        "GET",
        "/unread",
        endpoints.unread,
        model=UnreadAnswer,
        errors=(),
        parameters=[_several("room", "only this room; may be given several times")],
    )
    add(
        "GET",
        "/sessions",
        endpoints.sessions,
        model=SessionsAnswer,
        errors=(422,),
        parameters=[
            _in_query("of", "string", "only of this user"),
            _in_query("limit", "integer", f"most sessions, at most {MOST_SESSIONS}; 100 unless given"),
        ],
    )
    for path, taken in methods.items():
        add_preflight(path, ", ".join([*taken, "OPTIONS"]))
    return router


def _answering(
    dialogue: Dialogue, endpoint: Endpoint, *, status_code: int
) -> Callable[[Request], Awaitable[Response]]:
    """Return what answers with the JSON that *endpoint* returns; a fault in it tells nothing but INTERNAL."""

    async def answer_request(request: Request) -> Response:
        try:
            found = await endpoint(request)
            return found if isinstance(found, Response) else answer(found, status_code=status_code)
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
