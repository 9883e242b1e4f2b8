"""A browser's own EventSource over a room: no code of ours on that side."""

from __future__ import annotations

from pathlib import Path

from fastapi import FastAPI
from fastapi.responses import HTMLResponse
from playwright.async_api import Browser

from dialogue import Dialogue
from tests.server.harness import eventually, message, rooms, serve

PAGE = """
<!doctype html>
<script>
  window.told = [];
  window.source = new EventSource("/rooms/general/events?user_id=ann");
  source.onmessage = (e) => told.push([e.lastEventId, JSON.parse(e.data)]);
</script>
"""


async def test_a_browser_comes_back_by_itself_and_misses_nothing(tmp_path: Path, browser: Browser) -> None:
    """Its `Last-Event-ID` is the cursor: what came while it was away is in the `joined` that it gets then."""
    dialogue = Dialogue(rooms(), store=f"sqlite:///{tmp_path}/chat.db")
    app = FastAPI()
    app.include_router(dialogue.router)
    app.get("/")(lambda: HTMLResponse(PAGE))
    async with serve(app) as address:
        page = await browser.new_page()
        await page.goto(f"http://{address}/")
        await page.wait_for_function("told.length === 1")
        await dialogue.trigger("general", message, "one")
        await page.wait_for_function("told.length === 2")
        await dialogue.remove_from_room("ann", "general")
        hub = dialogue.hub()
        await eventually(lambda: not hub.followers.count)
        for text in ("two", "three"):
            await dialogue.trigger("general", message, text)
        await page.wait_for_function("told.length === 4")
        await dialogue.trigger("general", message, "four")
        await page.wait_for_function("told.length === 5")
        told = await page.evaluate("told")
        await page.close()
        await eventually(lambda: not hub.in_flight.count)
        epoch = hub.store.epoch
    first, one, left, again, four = (each for _, each in told)
    assert [first["type"], first["recovered"], left["type"]] == ["joined", None, "left"]
    assert (one["data"], four["data"]) == ("one", "four")
    assert (again["type"], again["recovered"]) == ("joined", True)
    assert [event["data"] for event in again["events"]] == ["two", "three"]
    assert [id for id, _ in told] == [f"{epoch}:{seq}" for seq in (0, 1, 1, 3, 4)]
