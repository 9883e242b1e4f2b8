"""The page of `examples/chat` in a real browser."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import pytest
from playwright.async_api import Browser, expect

from dialogue import Blocked, Dialogue, Event
from tests.server.harness import serve

from .demo import collect


async def test_the_example_chats_scrolls_and_changes(
    tmp_path: Path, browser: Browser, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two windows: history from the table, place kept, new messages counted and marked, edits, a refused one."""
    monkeypatch.setenv("CHAT_DATABASE", str(tmp_path / "chat.db"))
    for name in [name for name in sys.modules if name.startswith("examples.chat")]:
        monkeypatch.delitem(sys.modules, name)
    main = importlib.import_module("examples.chat.main")
    dialogue: Dialogue = main.dialogue
    is_open = True

    @dialogue.before_each
    def gate(event: Event[object]) -> None:
        if not is_open:
            raise Blocked("the gate is closed")

    problems: list[str] = []
    async with serve(main.app) as address:
        for number in range(260):
            await dialogue.trigger(
                "general", "message", {"text": f"said {number}", "username": "cid"}, sender="cid"
            )
        windows = {}
        for name in ("ann", "bob"):
            page = windows[name] = await (await browser.new_context()).new_page()
            collect(page, problems)
            await page.goto(f"http://{address}/?name={name}")
            await expect(page.locator("#state")).to_have_text("connected")
            await expect(page.locator(".text").last).to_have_text("said 259")
        ann, bob = windows["ann"], windows["bob"]

        await ann.locator("#text").press_sequentially("hel")
        await expect(bob.locator("#typing")).to_have_text("ann: typing…")
        await ann.locator("#text").fill("hello <b>bob</b>")
        await ann.locator("#text").press("Enter")
        await expect(bob.locator(".text").last).to_have_text("hello <b>bob</b>")
        await expect(bob.locator("#typing")).to_be_empty()
        own = ann.locator("li").last
        await own.get_by_role("button", name="Edit").click()
        await ann.locator("#text").fill("hello, Bob")
        await ann.locator("#text").press("Enter")
        await expect(bob.locator(".text").last).to_have_text("hello, Bob")
        await expect(bob.locator("li").last.get_by_role("button", name="Edit")).to_have_count(0)
        ann.on("dialog", lambda dialog: dialog.accept())
        await own.get_by_role("button", name="Delete").click()
        await expect(bob.locator(".text").last).to_have_text("deleted")

        while await bob.locator("#edge").inner_text() != "The beginning of the room":
            count = await bob.locator("[data-uid]").count()
            before = await bob.evaluate(
                """() => {
                    scroller.scrollTop = 200;
                    window.held = [...list.children].find((row) => row.getBoundingClientRect().top > 300);
                    return window.held.getBoundingClientRect().top;
                }"""
            )
            await bob.wait_for_function(
                """count => document.querySelectorAll("[data-uid]").length > count
                    || edge.textContent.startsWith("The beginning")""",
                arg=count,
            )
            assert abs(await bob.evaluate("window.held.getBoundingClientRect().top") - before) <= 2
        assert await bob.locator("[data-uid]").count() == 261

        await bob.evaluate("scroller.scrollTop = 0")
        await ann.locator("#text").fill("news")
        await ann.locator("#text").press("Enter")
        await expect(bob.locator("#jump")).to_have_text("1 new ↓")
        await expect(bob).to_have_title("(1) General Chat")
        await bob.locator("#jump").click()
        await expect(bob.locator(".unread .text")).to_have_text("news")
        await expect(bob).to_have_title("General Chat")

        is_open = False
        await bob.locator("#text").fill("let me in")
        await bob.locator("#text").press("Enter")
        await expect(bob.locator(".failed .fate")).to_have_text("Not sent: the gate is closed.")
        is_open = True
        await bob.get_by_role("button", name="Try again").click()
        await expect(ann.locator(".text").last).to_have_text("let me in")
        assert not problems
