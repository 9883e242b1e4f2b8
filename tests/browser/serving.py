"""What the tests of the client in a browser share: a server with a page and a past, and looks at the page."""

from __future__ import annotations

import json
import os
import random
import urllib.request
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlencode

from playwright.async_api import Browser, BrowserContext, Page, expect

from dialogue import SQLStore
from dialogue.demo import phrases
from dialogue.events import Draft
from examples.irc_replay import Reading, read_log

PAGE = Path(__file__).with_name("page")
LOG_VARIABLE = "DIALOGUE_IRC_LOG"
WAIT_MS = 30_000

MODULE = """
from fastapi.staticfiles import StaticFiles

from dialogue import Blocked, Dialogue, History, Limits, RoomConfig, SQLStore, define_event

message = define_event("message", history=History(limit=100))
dialogue = Dialogue(
    rooms={{"general": RoomConfig(name="General", events=[message])}},
    store=SQLStore("sqlite:///log.db", lock_wait_seconds=30),
    limits=Limits(**{limits}),
)
dialogue.app.mount("/page", StaticFiles(directory={page!r}, html=True))
refused = set()


@dialogue.before_each(message)
async def refuse_once(event):
    if event.data["text"].startswith("refuse me once") and event.key not in refused:
        refused.add(event.key)
        raise Blocked("not the first time")
"""


def module(**limits: Any) -> str:
    """Return the text of a module that serves the page at ``/page/``."""
    return MODULE.format(limits=limits, page=str(PAGE))


class Line(NamedTuple):
    """A message: who says what."""

    sender: str
    text: str


def lines(count: int) -> list[Line]:
    """Return *count* messages: of the chat log that ``DIALOGUE_IRC_LOG`` names, made-up ones past its end or without
    it; of all lengths."""
    found: list[Line] = []
    if name := os.environ.get(LOG_VARIABLE):
        found = [Line(line.nick, line.text) for line in islice(read_log(Path(name), Reading()), count)]
    return found + list(islice(_made_up(), count - len(found)))


def _made_up() -> Iterator[Line]:
    chance = random.Random(72_000)
    number = 0
    while True:
        number += 1
        words = " ".join(chance.choices(phrases.REACTIONS, k=chance.choice((1, 1, 1, 2, 3, 8, 30))))
        yield Line(chance.choice(phrases.PEOPLE).name, f"{number}: {words}")


async def fill(database: Path, past: Sequence[Line]) -> None:
    """Record *past* in the room of an empty log."""
    store = SQLStore(f"sqlite:///{database}")
    await store.open()
    try:
        for first in range(0, len(past), 1000):
            await store.append(
                [
                    Draft(
                        room_id="general",
                        event="message",
                        sender=line.sender,
                        key=f"past-{number}",
                        data_json=json.dumps({"text": line.text}).encode(),
                    )
                    for number, line in enumerate(past[first : first + 1000], first)
                ]
            )
    finally:
        await store.aclose()


class Shown(NamedTuple):
    """A message as the page shows it."""

    seq: int
    text: str


def history(url: str, *, user: str = "checker") -> list[Shown]:
    """Return the room's messages as the server tells them over HTTP, oldest first."""
    found: list[Shown] = []
    cursor: dict[str, str] = {}
    while True:
        query = urlencode({"event": "message", "limit": 200, "user_id": user, **cursor})
        with urllib.request.urlopen(f"{url}/rooms/general/history?{query}", timeout=30) as response:
            page = json.load(response)
        found = [Shown(event["seq"], event["data"]["text"]) for event in page["events"]] + found
        if page["next"] is None:
            return found
        cursor = {"cursor": page["next"]}


def publish(url: str, text: str, *, user: str = "Robot") -> int:
    """Publish a message over HTTP; return its seq."""
    request = urllib.request.Request(
        f"{url}/rooms/general/events?user_id={user}",
        data=json.dumps({"event": "message", "data": {"text": text}}).encode(),
        headers={"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=30) as response:
        return int(json.load(response)["seq"])


class Window:
    """The page in a window of its own.

    Attributes:
        problems: What its console complained about, and exceptions that nobody caught.
    """

    def __init__(self, context: BrowserContext, page: Page) -> None:
        self.context = context
        self.page = page
        self.problems: list[str] = []
        page.on("pageerror", lambda error: self.problems.append(str(error)))

    @classmethod
    async def open(cls, browser: Browser, url: str, **query: Any) -> Window:
        """Open the page at *url* and wait until it is connected and shows what there is."""
        context = await browser.new_context(viewport={"width": 390, "height": 844})
        window = cls(context, await context.new_page())
        await window.page.goto(f"{url}/page/?{urlencode(query)}")
        await window.until_connected()
        await window.page.wait_for_function("window.timeline && !timeline.getSnapshot().loading")
        return window

    async def until_connected(self) -> None:
        """Wait until the connection stands."""
        await expect(self.page.get_by_role("status")).to_have_text("connected", timeout=WAIT_MS)

    async def until_lost(self) -> None:
        """Wait until the page knows that its connection is gone."""
        await expect(self.page.get_by_role("status")).not_to_have_text("connected", timeout=WAIT_MS)

    async def say(self, text: str) -> None:
        """Write and send a message."""
        await self.page.get_by_label("Message", exact=True).fill(text)
        await self.page.get_by_label("Message", exact=True).press("Enter")

    async def until_shown(self, text: str) -> None:
        """Wait until the last message is *text*, and recorded."""
        last = self.page.locator("[data-uid]").last
        await expect(last.locator(".text")).to_have_text(text, timeout=WAIT_MS)
        await self.page.wait_for_function("!document.querySelector('[data-status=sending]')", timeout=WAIT_MS)

    async def shown(self) -> list[Shown]:
        """Return the messages on the page, in the order in which they stand there."""
        found = await self.page.evaluate(
            """() => [...document.querySelectorAll('[data-uid]')].map(
                (row) => [Number(row.dataset.seq ?? 0), row.querySelector('.text').textContent])"""
        )
        return [Shown(seq, text) for seq, text in found]
