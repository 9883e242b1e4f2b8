"""FastAPI as most tutorials of a chat have it: each message is inserted, committed and sent in a loop."""

from __future__ import annotations

from fastapi import FastAPI, WebSocket, WebSocketDisconnect

from .common import Message
from .sqlalchemy_async import open_database


def make_app(url: str) -> FastAPI:
    """Return the application over the database at *url*."""
    lifespan, insert = open_database(url)
    app = FastAPI(lifespan=lifespan)
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
                message = Message.model_validate_json(text)
                await insert("bench", message.username, message)
                for subscriber in subscribers:
                    await subscriber.send_text(text)
        except WebSocketDisconnect:
            return

    return app
