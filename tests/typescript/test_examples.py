"""The examples in React and Vue behave: compiled, in a DOM, against a real server."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from dialogue import Dialogue, Event, History, Limits, RoomConfig, define_event
from examples.chat.config import Message

from ..node import run_node
from ..server.harness import serve
from .conftest import CLIENT
from .tools import needs_node_modules, tsc

message = define_event("message", schema=Message, history=History(limit=1000))
kick = define_event("kick")


@needs_node_modules
async def test_the_examples_behave(project: Path) -> None:
    """Everything in ``timeline.test.mjs`` holds."""
    is_right, said = tsc(project, "--noEmit", "false", "--outDir", "out")
    assert is_right, said
    for example in ("react", "vue"):
        shutil.copy(project / CLIENT[0], project / "out" / example / CLIENT[0])
    room = RoomConfig(events=[message, kick])
    # Who misses more than ten events is told of a hole.
    dialogue = Dialogue(rooms={"general": room, "other": room}, limits=Limits(replay_events=10))

    @dialogue.on_triggered
    async def obey(room: Any, event: Event[Any]) -> None:
        if event.event == "kick":
            await dialogue.remove_from_room(event.data, room.room_id, reason="out")

    async with serve(dialogue) as address:
        for room_id, count in (("general", 100), ("other", 3)):
            for number in range(count):
                await dialogue.trigger(room_id, message, {"text": f"{number}", "username": "Past"})
        await run_node(
            # Of itself from version 22 on.
            "--experimental-websocket",
            "--test",
            "timeline.test.mjs",
            folder=project,
            environment={"DIALOGUE_URL": f"http://{address}", "NODE_ENV": "development"},
        )
