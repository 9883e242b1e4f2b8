"""python-socketio: an asynchronous server as an ASGI application, and an emit to a room."""

from __future__ import annotations

from typing import Any

import socketio


def make_app(store: str) -> Any:
    """Return the application; it has no store."""
    server = socketio.AsyncServer(async_mode="asgi", transports=["websocket"])

    async def join(sid: str) -> None:
        await server.enter_room(sid, "bench")

    async def message(sid: str, data: dict[str, Any]) -> None:
        await server.emit("message", data, room="bench")

    server.on("join", join)
    server.on("message", message)
    return socketio.ASGIApp(server)
