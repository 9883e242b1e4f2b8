"""The browser client in a real browser that lets no WebSocket through."""

from __future__ import annotations

from playwright.async_api import Browser, Page

from dialogue import Dialogue, History, RoomConfig, define_event
from tests.server.harness import serve

message = define_event("message", history=History(limit=100))

BLOCKED = """
const Real = globalThis.WebSocket;
globalThis.isBlocked = true;
globalThis.WebSocket = class {
  constructor(url) {
    if (globalThis.isBlocked) throw new Error("no WebSocket comes through");
    return new Real(url);
  }
};
"""

START = """async ([name, options]) => {
  const { createDialogueClient } = await import("/dialogue.js");
  globalThis.client = createDialogueClient({ url: "", auth: { user_id: name }, pollSeconds: 0.3, ...options });
  globalThis.heard = {};
  globalThis.resets = 0;
  await client.connect();
  for (let number = 0; number < 5; number += 1) {
    const room = await client.join(`room-${number}`);
    heard[room.id] = [];
    room.onAny(({ data }) => heard[room.id].push(data));
    room.onReset(() => (resets += 1));
  }
  return client.transport;
}"""


async def heard_by_all(page: Page, count: int) -> dict[str, list[str]]:
    """Return what was heard in the five rooms when it is *count* events in each."""
    await page.wait_for_function("n => Object.values(heard).every((events) => events.length >= n)", arg=count)
    heard: dict[str, list[str]] = await page.evaluate("heard")
    return heard


async def test_tabs_share_their_streams_and_go_over_to_a_socket(browser: Browser) -> None:
    """Two tabs of more rooms than a browser has connections both hear and say everything, by either transport."""
    dialogue = Dialogue({"room-{number}": RoomConfig(events=[message])})
    async with serve(dialogue) as address:
        context = await browser.new_context()
        await context.add_init_script(BLOCKED)
        pages = {name: await context.new_page() for name in ("ann", "bob")}
        for name, page in pages.items():
            await page.goto(f"http://{address}/dialogue.js")
            # Whoever went over to a socket of their own accord would leave the other all the streams.
            assert await page.evaluate(START, [name, {"probeSeconds": 0.5}]) == "sse"
        locks = await pages["ann"].evaluate("navigator.locks.query().then(({ held }) => held.length)")
        assert locks == 4

        say = (
            "text => Promise.all(Object.keys(heard).map((id) => client.getRoom(id).trigger('message', text)))"
        )
        for name, page in pages.items():
            await page.evaluate(say, f"{name} by requests")
        by_requests = ["ann by requests", "bob by requests"]
        for page in pages.values():
            assert await heard_by_all(page, 2) == {f"room-{number}": by_requests for number in range(5)}

        for name, page in pages.items():
            await page.evaluate("isBlocked = false")
            await page.wait_for_function("client.transport === 'websocket'")
            await page.evaluate(say, f"{name} by a socket")
        everything = [*by_requests, "ann by a socket", "bob by a socket"]
        for page in pages.values():
            assert await heard_by_all(page, 4) == {f"room-{number}": everything for number in range(5)}
            assert await page.evaluate("resets") == 0
        await pages["ann"].wait_for_function("navigator.locks.query().then(({ held }) => held.length === 0)")
        await context.close()
