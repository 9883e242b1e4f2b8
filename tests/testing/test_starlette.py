"""The test client of Starlette and FastAPI, with an application's own routes and lifespan."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from starlette.websockets import WebSocketDisconnect

from dialogue import Dialogue, History, Identity, RoomConfig, Unauthenticated, define_event

message = define_event("message", history=History(limit=5))


def make_dialogue(**options: Any) -> Dialogue:
    return Dialogue({"general": RoomConfig(events=[message])}, **options)


def talk(socket: Any, user_id: str) -> dict[str, Any]:
    """Connect, join and publish; return the ``ok``."""
    socket.send_json(
        [
            {"type": "connect", "ref": 1, "auth": {"user_id": user_id}},
            {"type": "join", "ref": 2, "room": "general"},
        ]
    )
    assert socket.receive_json()[0]["user_id"] == user_id
    assert socket.receive_json()[0]["type"] == "joined"
    socket.send_json({"type": "trigger", "ref": 3, "room": "general", "event": "message", "data": "hello"})
    event, ok = socket.receive_json()
    assert (event["from"], event["data"], ok["ref"]) == (user_id, "hello", 3)
    return dict(ok)


def test_the_test_client_runs_a_dialogues_own_application() -> None:
    """The lifespan is entered and left with it, more than once; an override holds under it."""
    dialogue = make_dialogue(store="sqlite:////nowhere/chat.db")
    for _ in range(2):
        with dialogue.override(store=None):
            with TestClient(dialogue.app) as http, http.websocket_connect("/ws") as socket:
                assert dialogue.is_running
                assert talk(socket, "alice")["seq"] == 1
                assert http.get("/health").status_code == 200
            assert not dialogue.is_running


def test_the_test_client_runs_an_application_that_includes_the_router() -> None:
    """Under a prefix, beside a lifespan and routes of the application's own; two sockets talk."""
    dialogue = make_dialogue()
    told: list[str] = []

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        told.append("started")
        yield
        told.append("stopped")

    app = FastAPI(lifespan=lifespan)
    app.include_router(dialogue.router, prefix="/chat")

    @app.post("/alert")
    def alert() -> dict[str, Any]:
        return {"seq": dialogue.trigger_sync("general", message, "alert").seq}

    with (
        TestClient(app) as http,
        http.websocket_connect("/chat/ws") as alice,
        http.websocket_connect("/chat/ws") as bob,
    ):
        assert dialogue.is_running
        assert talk(alice, "alice")["seq"] == 1
        assert talk(bob, "bob")["seq"] == 2
        assert alice.receive_json()[0]["data"] == "hello"
        assert http.post("/alert").json() == {"seq": 3}
        assert alice.receive_json()[0]["data"] == bob.receive_json()[0]["data"] == "alert"
        assert "createDialogueClient" in http.get("/chat/dialogue.js").text
    assert told == ["started", "stopped"]
    assert not dialogue.is_running


def test_the_test_client_sends_headers_and_is_told_close_codes() -> None:
    """`authenticate` sees the request; who it refuses is closed with 4001."""
    dialogue = make_dialogue()

    @dialogue.authenticate
    async def authenticate(request: Any) -> Identity:
        if request.cookies.get("session") != "right":
            raise Unauthenticated
        return Identity(request.headers["x-user"])

    headers = {"x-user": "alice"}
    with TestClient(dialogue.app) as http:
        with http.websocket_connect("/ws", headers=headers) as socket:
            socket.send_json({"type": "connect", "ref": 1})
            assert socket.receive_json()[0]["code"] == "UNAUTHENTICATED"
            with pytest.raises(WebSocketDisconnect) as closed:
                socket.receive_json()
            assert closed.value.code == 4001
        http.cookies.set("session", "right")
        with http.websocket_connect("/ws", headers=headers) as socket:
            socket.send_json({"type": "connect", "ref": 1})
            assert socket.receive_json()[0]["user_id"] == "alice"
