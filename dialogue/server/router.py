"""The FastAPI side: a router to include, and a ready-made application."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastapi import APIRouter, FastAPI, Response, WebSocket
from fastapi.responses import FileResponse, JSONResponse

from .http import make_http_router
from .metrics import CONTENT_TYPE
from .websocket import serve_websocket

if TYPE_CHECKING:
    from ..app import Dialogue

# A module is fetched with CORS: pages of other origins may load it; whether they may connect is another question.
_MODULE_HEADERS = {"Cache-Control": "no-cache", "Access-Control-Allow-Origin": "*"}

STATIC = Path(__file__).parent.parent / "static"


def make_router(dialogue: Dialogue) -> APIRouter:
    """Return the router of *dialogue*: the socket, the same over HTTP, the browser client, and the lifespan."""

    @asynccontextmanager
    async def lifespan(app: Any) -> AsyncIterator[None]:
        async with dialogue.lifespan(app):
            yield

    router = APIRouter(lifespan=lifespan)

    @router.websocket("/ws")
    async def websocket(websocket: WebSocket) -> None:
        # Raises with the remedy where a mount keeps the lifespan from running: failing the first connection loudly
        # is better than a server that accepts sockets and serves nobody.
        if dialogue.has_stopped:
            await websocket.close(code=1001)  # a connection that came while the server went
            return
        hub = dialogue.hub()
        await serve_websocket(
            websocket, hub, allowed_origins=dialogue.allowed_origins, logger=dialogue.logger
        )

    @router.get("/dialogue.js", include_in_schema=False)
    async def client() -> FileResponse:
        return FileResponse(STATIC / "dialogue.js", media_type="text/javascript", headers=_MODULE_HEADERS)

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
    app = FastAPI(title="Dialogue")
    app.include_router(dialogue.router)
    app.include_router(dialogue.ops_router)
    return app
