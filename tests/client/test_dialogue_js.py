"""The browser client's own tests, which run under Node."""

from __future__ import annotations

import asyncio
import os
import shutil
from pathlib import Path

import pytest

from dialogue import Dialogue, History, Limits, RoomConfig, define_event
from tests.server.harness import serve

pytestmark = pytest.mark.skipif(shutil.which("node") is None, reason="node is not on the path")

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


async def run(script: str, **variables: str) -> None:
    """Run one script's tests, all of which hold."""
    node = await asyncio.create_subprocess_exec(
        "node",
        "--test",
        str(HERE / f"{script}.test.mjs"),
        env=os.environ | variables,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    try:
        output, _ = await node.communicate()
    finally:
        if node.returncode is None:
            node.kill()
            await node.wait()
    assert node.returncode == 0, output.decode()


@pytest.mark.parametrize("script", ["websocket", "dialogue_js"])
async def test_under_node(script: str) -> None:
    """Everything in the script holds."""
    await run(script)


@pytest.mark.parametrize("script", ["rooms", "sse"])
async def test_under_node_against_a_server(script: str) -> None:
    """Everything in the script holds against a real server."""
    async with serve(make_dialogue()) as address:
        await run(script, DIALOGUE_URL=f"http://{address}")
