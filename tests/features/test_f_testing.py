"""Group F: the test kit, beside a client over a real WebSocket."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from dialogue import (
    Dialogue,
    Event,
    History,
    Identity,
    JoinDenied,
    MemoryStore,
    RoomConfig,
    StoreUnavailable,
    Unauthenticated,
    define_event,
)
from dialogue.testing import FaultyStore, connect, link
from tests.server.harness import Refused, serve, wire

message = define_event("message", history=History(limit=10))


def application(folder: Path) -> Dialogue:
    """What is to be tested: a log in a file, tokens, and a room for staff."""
    dialogue = Dialogue(
        rooms={"general": RoomConfig(events=[message]), "staff": RoomConfig(events=[message])},
        store=f"sqlite:///{folder / 'production.db'}",
    )

    @dialogue.authenticate
    def authenticate(auth: dict[str, Any]) -> Identity:
        if auth.get("token") != "ann's":
            raise Unauthenticated
        return Identity("ann")

    @dialogue.before_join("staff")
    def staff_only(client: Any) -> None:
        if client.claims.get("role") != "staff":
            raise JoinDenied("staff only")

    return dialogue


async def test_f4_clients_in_process_talk_to_clients_over_the_network(tmp_path: Path) -> None:
    """F4: one server, one room, both ways; who the test says it is needs no token, and guards are asked."""
    dialogue = application(tmp_path)
    heard: asyncio.Queue[Event[Any]] = asyncio.Queue()
    async with (
        serve(dialogue) as address,
        wire(address, None) as ann,
        connect(dialogue, user_id="bob", claims={"role": "staff"}) as bob,
        connect(dialogue, user_id="eve") as eve,
    ):
        assert (await ann.ask("connect", auth={"token": "ann's"}))["user_id"] == "ann"
        await ann.ask("join", room="general")
        room = await bob.join("general")
        room.on(message, heard.put_nowait)
        await room.trigger(message, "from the test")
        assert [(event["from"], event["data"]) for event in await ann.until_events(1)] == [
            ("bob", "from the test")
        ]
        with link(bob).down():
            await ann.trigger("general", "message", "while bob is away")
        assert (await heard.get()).data == "from the test"
        assert (await heard.get()).data == "while bob is away"
        assert (await bob.join("staff")).is_joined
        with pytest.raises(JoinDenied):
            await eve.join("staff")
        with pytest.raises(Refused, match="JOIN_DENIED"):
            await ann.ask("join", room="staff")


async def test_f4_overrides_hold_for_the_network_too(tmp_path: Path) -> None:
    """F4: another store and another authentication while the context is entered; nothing of it stays."""
    dialogue = application(tmp_path)
    store = FaultyStore(MemoryStore())
    with dialogue.override(store=store, authenticate=None):
        async with serve(dialogue) as address, wire(address, "whoever") as client:
            await client.ask("join", room="general")
            store.fail_append = StoreUnavailable("told to")
            with pytest.raises(Refused, match="STORE_UNAVAILABLE"):
                await client.trigger("general", "message", 1)
            store.fail_append = None
            assert (await client.trigger("general", "message", 1))["seq"] == 1
    assert not (tmp_path / "production.db").exists()
    async with serve(dialogue) as address, wire(address, None) as client:
        with pytest.raises(Refused, match="UNAUTHENTICATED"):
            await client.ask("connect", auth={"user_id": "whoever"})


def test_f4_starlettes_test_client_speaks_the_protocol(tmp_path: Path) -> None:
    """F4: the whole application, without a port and without ``async``."""
    dialogue = application(tmp_path)
    with (
        dialogue.override(store=None),
        TestClient(dialogue.app) as http,
        http.websocket_connect("/ws") as socket,
    ):
        socket.send_json({"type": "connect", "ref": 1, "auth": {"token": "ann's"}})
        assert socket.receive_json()[0]["user_id"] == "ann"
        socket.send_json({"type": "join", "ref": 2, "room": "general"})
        assert socket.receive_json()[0]["type"] == "joined"
        socket.send_json({"type": "trigger", "ref": 3, "room": "general", "event": "message", "data": "hi"})
        event, ok = socket.receive_json()
        assert (event["data"], ok["seq"]) == ("hi", 1)
