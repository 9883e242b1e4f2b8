"""FastAPI as its documentation broadcasts: a list of connections, and a loop that awaits `send_text` for each."""

from __future__ import annotations

from fastapi import FastAPI, WebSocket, WebSocketDisconnect


def make_app(store: str) -> FastAPI:
    """Return the application; it has no store."""
    app = FastAPI()
    subscribers: list[WebSocket] = []

    @app.websocket("/subscribe")
    async def subscribe(websocket: WebSocket) -> None:
        await websocket.accept()
        subscribers.append(websocket)
        await websocket.send_text("joined")
        try:
            while True:
                await websocket.receive_text()
        except WebSocketDisconnect:
            subscribers.remove(websocket)

    @app.websocket("/publish")
    async def publish(websocket: WebSocket) -> None:
        await websocket.accept()
        await websocket.send_text("joined")
        try:
            while True:
                text = await websocket.receive_text()
                for subscriber in subscribers:
                    await subscriber.send_text(text)
        except WebSocketDisconnect:
            return

    return app
