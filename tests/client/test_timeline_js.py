"""The browser client's timeline under random calls, and on a real server; both run under Node."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from dialogue import Dialogue, History, Limits, RoomConfig, define_event
from tests.node import needs_node, run_node

from .test_against_server import serving

FOLDER = Path(__file__).parent


@needs_node
async def test_the_browser_timeline_under_node() -> None:
    """Everything in ``timeline.test.mjs`` holds; ``TIMELINE_SEED`` and ``TIMELINE_SEEDS`` choose what is tried."""
    await run_node("--test", FOLDER / "timeline.test.mjs")


def without_seqs(dialogue: Dialogue) -> None:
    """Hand over to a table that keeps neither seqs nor epochs."""
    table: dict[str, list[dict[str, Any]]] = {}

    @dialogue.on_cleanup
    async def keep(room_id: str, event_name: str, events: list[Any]) -> None:
        table.setdefault(event_name, []).extend(
            {"event": event_name, "data": event.data, "sender": event.sender, "timestamp": event.timestamp}
            for event in events
        )

    @dialogue.on_load
    async def older(room_id: str, event_name: str, start: int, end: int) -> list[dict[str, Any]]:
        return table.get(event_name, [])[::-1][start:end]


@needs_node
@pytest.mark.parametrize("kind", ["log", "archive", "gone"])
async def test_the_browser_timeline_on_a_server(kind: str, tmp_path: Path) -> None:
    """Scrolling both ways and filling what was missed shows every event, whichever tier has it."""
    message = define_event("message", schema=dict[str, Any], history=History(limit=30))
    dialogue = Dialogue(
        rooms={"general": RoomConfig(name="General", events=[message])},
        store=f"sqlite:///{tmp_path / 'log.db'}" if kind == "log" else None,
        limits=Limits(replay_events=5),
    )
    if kind == "archive":
        without_seqs(dialogue)
    async with serving(dialogue) as port:
        await run_node(
            "--experimental-websocket",
            "--no-warnings",
            FOLDER / "timeline_against_server.mjs",
            f"http://127.0.0.1:{port}",
            kind,
        )
