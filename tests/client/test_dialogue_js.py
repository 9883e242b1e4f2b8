"""The browser client's own tests, which run under Node."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

from dialogue import Dialogue, History, Identity, Limits, RoomConfig, Unauthenticated, define_event
from tests.node import needs_node, run_node
from tests.server.harness import serve

pytestmark = needs_node

HERE = Path(__file__).parent

message = define_event("message", history=History(limit=1000))
note = define_event("note", history=History(limit=10))
typing = define_event("typing")


def make_dialogue() -> Dialogue:
    events = [message, note, typing]
    return Dialogue(
        rooms={
            "general": RoomConfig(events=events),
            "lobby": RoomConfig(events=events),
            "inbox": RoomConfig(events=events),
            "quiet": RoomConfig(events=events, presence=False),
            "room-{number}": RoomConfig(events=events),
        },
        client_rooms=RoomConfig(events=events, max_size=5),
        limits=Limits(presence_seconds=0.01, unread_seconds=0.01, ping_seconds=0.5, replay_events=50),
    )


def make_guarded() -> Dialogue:
    """Who has the token ``ann`` is ann for good, who has ``ann soon gone`` for a moment."""
    dialogue = Dialogue(rooms={"general": RoomConfig(events=[message])})
    ends: dict[str, float] = {}

    @dialogue.authenticate
    def authenticate(request: object, auth: dict[str, Any]) -> Identity:
        name, *soon = str(auth.get("token")).split(" ", 1)
        expires_at = ends.setdefault(name, time.time() + 1) if soon else None
        if name != "ann" or (expires_at is not None and expires_at <= time.time()):
            raise Unauthenticated("log in again")
        return Identity(name, expires_at=expires_at)

    return dialogue


async def run(script: str, **variables: str) -> None:
    """Run one script's tests, all of which hold."""
    # A test that hangs says which one it is, and ends.
    await run_node("--test", "--test-timeout=60000", HERE / f"{script}.test.mjs", environment=variables)


@pytest.mark.parametrize("script", ["websocket", "dialogue_js"])
async def test_under_node(script: str) -> None:
    """Everything in the script holds."""
    await run(script)


@pytest.mark.parametrize("script", ["rooms", "sse"])
async def test_under_node_against_a_server(script: str) -> None:
    """Everything in the script holds against a real server."""
    async with serve(make_dialogue()) as address, serve(make_guarded()) as guarded:
        await run(script, DIALOGUE_URL=f"http://{address}", DIALOGUE_GUARDED_URL=f"http://{guarded}")
