"""The FastAPI side: a router to include, and a ready-made application."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Any

from fastapi import APIRouter, FastAPI, HTTPException, Request, Response, WebSocket
from fastapi.responses import JSONResponse
from starlette.types import Receive, Scope, Send

from ..generating.asyncapi import asyncapi, servers
from .http import make_http_router
from .metrics import CONTENT_TYPE
from .static import STATIC, StaticFile
from .websocket import serve_websocket

if TYPE_CHECKING:
    from ..app import Dialogue

CLIENT_FILES = {
    "dialogue.js": "text/javascript; charset=utf-8",
    "dialogue.d.ts": "application/typescript; charset=utf-8",
}
"""The browser client and its types, with their content types."""


SOCKET_PATH = "/ws"


async def _serve_socket(dialogue: Dialogue, websocket: WebSocket) -> None:
    if dialogue.has_stopped:
        await websocket.close(code=1001)  # a connection that came while the server went
        return
    # Raises with the remedy where a mount keeps the lifespan from running: failing the first connection loudly
    # is better than a server that accepts sockets and serves nobody.
    hub = dialogue.hub()
    await serve_websocket(websocket, hub, allowed_origins=dialogue.allowed_origins, logger=dialogue.logger)


class Application(FastAPI):
    """A FastAPI application whose socket is not reached through FastAPI.

    It includes the router of *dialogue* without a prefix and without dependencies. Then nothing on the way to the
    socket's route can differ from connection to connection, and the way costs each one ten kilobytes, which its
    coroutines and exit stacks keep as long as it is open, and a third of its upgrade. Where middleware was added, the
    way is taken. What else is hooked into that way, such as tracing by a patched `FastAPI.__call__` or a handler of
    exceptions, does not see the socket; include the router in an application of your own for that.
    """

    def __init__(self, dialogue: Dialogue, **options: Any) -> None:
        super().__init__(**options)
        self._dialogue = dialogue

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if (
            scope["type"] == "websocket"
            and scope["path"] == scope.get("root_path", "") + SOCKET_PATH
            and not self.user_middleware
        ):
            scope["app"] = self
            scope["router"] = self.router
            await _serve_socket(self._dialogue, WebSocket(scope, receive, send))
        else:
            await super().__call__(scope, receive, send)


def make_router(dialogue: Dialogue) -> APIRouter:
    """Return the router of *dialogue*: the socket, the same over HTTP, the browser client, and the lifespan."""

    @asynccontextmanager
    async def lifespan(app: Any) -> AsyncIterator[None]:
        async with dialogue.lifespan(app):
            yield

    router = APIRouter(lifespan=lifespan)

    @router.websocket(SOCKET_PATH)
    async def websocket(websocket: WebSocket) -> None:
        await _serve_socket(dialogue, websocket)

    for name, media_type in CLIENT_FILES.items():
        file = StaticFile(STATIC / name, media_type=media_type)
        router.add_api_route(f"/{name}", file.answer, methods=["GET", "HEAD"], include_in_schema=False)

    # Everything that a request changes but its own address; it is made once, since it takes a while.
    describe = lru_cache(maxsize=4)(partial(asyncapi, dialogue.room_types))

    @router.get("/asyncapi.json", include_in_schema=False)
    def document(request: Request) -> JSONResponse:
        """Describe the socket to whoever may see the application's OpenAPI, which names the routes beside it."""
        app = request.app
        # Rooms that a hook hides are not told of in another way.
        if getattr(app, "openapi_url", None) is None or dialogue.hides_rooms:
            raise HTTPException(404)
        is_authenticated = not dialogue.is_development
        found = describe(is_authenticated=is_authenticated, title=app.title, version=app.version)
        base = str(request.url.replace(query="")).partition("?")[0].removesuffix("/asyncapi.json")
        with suppress(ValueError):  # whoever asks has named a host that is none
            found = {**found, "servers": servers(base, is_authenticated=is_authenticated)}
        return JSONResponse(found, headers={"Cache-Control": "no-cache", "Vary": "Host"})

    router.include_router(make_http_router(dialogue))
    return router


def make_ops_router(dialogue: Dialogue) -> APIRouter:
    """Return ``/health`` and ``/metrics``, for whoever may see them."""
    router = APIRouter()

    @router.get("/health")
    async def health() -> JSONResponse:
        state = dialogue.health()
        return JSONResponse(state, status_code=200 if state["status"] in ("ok", "degraded") else 503)

    @router.get("/metrics")
    async def metrics() -> Response:
        return Response(dialogue.metrics.render(), media_type=CONTENT_TYPE)

    return router


def make_app(dialogue: Dialogue) -> FastAPI:
    """Return an application that serves *dialogue* alone."""
    app = Application(dialogue, title="Dialogue")
    app.include_router(dialogue.router)
    app.include_router(dialogue.ops_router)
    return app
