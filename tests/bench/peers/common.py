"""The socket of the peers that store and ack: the same frames, the same schema, one acknowledged commit per message."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from typing import Any

from fastapi import FastAPI, WebSocket, WebSocketDisconnect
from pydantic import BaseModel, Field


class Message(BaseModel):
    """The payload."""

    text: str = Field(min_length=1, max_length=2000)
    username: str


Insert = Callable[[str, str, Message], Awaitable[int]]
"""Inserts and commits (room id, user id, message); returns the row's number."""


def add_socket(app: FastAPI, insert: Insert) -> None:
    """Give *app* a ``/ws`` whose triggers go through *insert*.

    The answers to a frame go into one frame, as its triggers came in one: the framing costs both sides the same.
    """

    @app.websocket("/ws")
    async def socket(websocket: WebSocket) -> None:
        await websocket.accept()
        user_id = ""
        try:
            while True:
                frame = json.loads(await websocket.receive_text())
                answers: list[dict[str, Any]] = []
                for command in frame if isinstance(frame, list) else [frame]:
                    if command["type"] == "connect":
                        user_id = command["auth"]["user_id"]
                        answers.append({"type": "connected", "ref": command["ref"]})
                    elif command["type"] == "join":
                        answers.append({"type": "joined", "ref": command["ref"]})
                    else:
                        room = command["room"]
                        seq = await insert(room, user_id, Message.model_validate(command["data"]))
                        answers.append({"type": "ok", "ref": command["ref"], "room": room, "seq": seq})
                await websocket.send_text(json.dumps(answers, separators=(",", ":")))
        except WebSocketDisconnect:
            return
