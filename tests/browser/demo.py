"""The demo in windows of a real browser."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from playwright.async_api import Browser, ConsoleMessage, Locator, Page, ViewportSize, expect

from dialogue import Dialogue
from dialogue.demo.application import make_app, make_dialogue
from tests.server.harness import serve

SCROLLER = "#views > :not([hidden])"


def collect(page: Page, problems: list[str]) -> None:
    """Add to *problems* whatever the console of *page* complains about."""

    def heard(line: ConsoleMessage) -> None:
        if line.type == "error":
            problems.append(f"{page.url}: {line.text}")

    page.on("console", heard)
    page.on("pageerror", lambda error: problems.append(f"{page.url}: {error}"))


class Demo:
    """The demo's server, and whoever looks at it.

    Attributes:
        problems: What consoles complained about; has to be empty.
    """

    def __init__(self, browser: Browser, address: str) -> None:
        self.browser = browser
        self.address = address
        self.problems: list[str] = []

    async def window(self, name: str, *, room: str = "", width: int = 1280, **context: Any) -> Page:
        """Open the page in a window of its own, under *name*, and wait until it is connected and has its messages."""
        size: ViewportSize = {"width": width, "height": 800}
        page = await (await self.browser.new_context(viewport=size, **context)).new_page()
        collect(page, self.problems)
        await page.goto(f"http://{self.address}/?name={name}#{room}")
        await expect(page.locator("#state")).to_contain_text("Connected")
        await expect(messages(page).or_(page.locator(".beginning h2:visible")).first).to_be_visible()
        return page


@asynccontextmanager
async def demo(
    browser: Browser, folder: Path, *, past: int = 20, dialogue: Dialogue | None = None
) -> AsyncIterator[Demo]:
    """Serve the demo with *past* messages in General, and look that no console has complained at the end."""
    app = make_app(dialogue or make_dialogue(folder), folder, messages=past)
    async with serve(app) as address:
        shown = Demo(browser, address)
        yield shown
        assert not shown.problems


def messages(page: Page) -> Locator:
    """The messages of the room that is open."""
    return page.locator(f"{SCROLLER} [data-uid]")


def texts(page: Page) -> Locator:
    """The texts of the messages."""
    return page.locator(f"{SCROLLER} [data-uid] .text")


async def say(page: Page, text: str) -> None:
    """Write and send a message."""
    await page.locator("#text").fill(text)
    await page.locator("#text").press("Enter")


async def look_away(page: Page, *, away: bool = True) -> None:
    """Make the window one that is not in front; each window of a test's browser believes that it is."""
    await page.evaluate(
        """away => {
            document.hasFocus = () => !away;
            window.dispatchEvent(new Event(away ? "blur" : "focus"));
        }""",
        away,
    )


async def hold(page: Page) -> None:
    """Remember which message is in the middle of the view, and where."""
    await page.evaluate(
        """selector => {
            const view = document.querySelector(selector);
            const middle = view.getBoundingClientRect().top + view.clientHeight / 2;
            const rows = [...view.querySelectorAll("[data-uid] article")];
            window.held = rows.find((row) => row.getBoundingClientRect().bottom > middle);
            window.heldTop = window.held.getBoundingClientRect().top;
        }""",
        SCROLLER,
    )


async def moved(page: Page) -> float:
    """By how many pixels the held message is somewhere else now; it must still be there."""
    return float(
        await page.evaluate(
            "window.held.isConnected ? Math.abs(window.held.getBoundingClientRect().top - window.heldTop) : 1e9"
        )
    )
