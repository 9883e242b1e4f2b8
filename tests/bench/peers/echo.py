"""The least that holds a connection: FastAPI, and a handler that sends back what it receives."""

from __future__ import annotations

from fastapi import FastAPI, WebSocket, WebSocketDisconnect


def make_app(store: str) -> FastAPI:
    """Return the application; *store* is empty, as it stores nothing."""
    assert not store
    app = FastAPI()

    @app.websocket("/ws")
    async def socket(websocket: WebSocket) -> None:
        await websocket.accept()
        try:
            while True:
                await websocket.send_text(await websocket.receive_text())
        except WebSocketDisconnect:
            return

    return app
