"""Resuming as one would write it: each client that comes back asks the database for what it has missed."""

from __future__ import annotations

import json
import time
from collections import defaultdict
from contextlib import suppress
from typing import Any

from fastapi import FastAPI, WebSocket, WebSocketDisconnect
from sqlalchemy import JSON, BigInteger, Index, Integer, func, select
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from .common import Message
from .sqlalchemy_async import open_tables

MOST_MISSED = 1000


class Base(DeclarativeBase):
    """The metadata's owner."""


class Row(Base):
    """A message."""

    __tablename__ = "messages"
    __table_args__ = (Index("messages_of_room", "room_id", "seq"),)

    seq: Mapped[int] = mapped_column(BigInteger().with_variant(Integer(), "sqlite"), primary_key=True)
    room_id: Mapped[str]
    from_user: Mapped[str]
    data: Mapped[dict[str, Any]] = mapped_column(JSON)
    timestamp: Mapped[int] = mapped_column(BigInteger)


def _as_message(row: Row) -> dict[str, Any]:
    return {
        "type": "event",
        "room": row.room_id,
        "event": "message",
        "seq": row.seq,
        "from": row.from_user,
        "timestamp": row.timestamp,
        "data": row.data,
    }


def make_app(url: str) -> FastAPI:
    """Return the application over the database at *url*."""
    lifespan, sessions, turn = open_tables(url, Base.metadata)
    subscribers: defaultdict[str, set[WebSocket]] = defaultdict(set)
    app = FastAPI(lifespan=lifespan)

    async def join(command: dict[str, Any]) -> dict[str, Any]:
        room_id, since = command["room"], command.get("since")
        async with sessions() as session:
            missed: list[Row] = []
            if since is not None:
                found = await session.scalars(
                    select(Row)
                    .where(Row.room_id == room_id, Row.seq > since["seq"])
                    .order_by(Row.seq)
                    .limit(MOST_MISSED)
                )
                missed = list(found)
                last_seq = missed[-1].seq if missed else since["seq"]
            else:
                last_seq = await session.scalar(select(func.max(Row.seq)).where(Row.room_id == room_id)) or 0
        return {
            "type": "joined",
            "ref": command["ref"],
            "room": room_id,
            "seq": last_seq,
            "epoch": "",
            "recovered": since is not None,
            "events": [_as_message(row) for row in missed],
        }

    async def trigger(command: dict[str, Any], user_id: str) -> dict[str, Any]:
        message = Message.model_validate(command["data"])
        async with turn, sessions() as session:
            row = Row(
                room_id=command["room"],
                from_user=user_id,
                data=message.model_dump(),
                timestamp=time.time_ns() // 1_000_000,
            )
            session.add(row)
            await session.commit()
        text = json.dumps([_as_message(row)], separators=(",", ":"))
        for subscriber in list(subscribers[row.room_id]):
            with suppress(RuntimeError, WebSocketDisconnect):
                await subscriber.send_text(text)
        return {"type": "ok", "ref": command["ref"], "room": row.room_id, "seq": row.seq}

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
                        answers.append({"type": "connected", "user_id": user_id})
                    elif command["type"] == "join":
                        if command.get("events") != []:
                            subscribers[command["room"]].add(websocket)
                        answers.append(await join(command))
                    else:
                        answers.append(await trigger(command, user_id))
                await websocket.send_text(json.dumps(answers, separators=(",", ":")))
        except WebSocketDisconnect:
            return
        finally:
            for room in subscribers.values():
                room.discard(websocket)

    return app
