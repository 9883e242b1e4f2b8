"""The demo page in a real browser: the first thing that anyone sees."""

from __future__ import annotations

from pathlib import Path

from playwright.async_api import Browser, Page, expect

from dialogue.demo.application import make_app, make_dialogue
from tests.server.harness import _socket, serve

PAST = 400
"""Messages that are there before: four times what memory holds."""


async def window(
    browser: Browser, address: str, name: str, problems: list[str], *, width: int = 1100
) -> Page:
    """Open the page in a window of its own, under *name*; collect what the console complains about."""
    context = await browser.new_context(viewport={"width": width, "height": 800})
    page = await context.new_page()
    page.on("pageerror", lambda error: problems.append(f"{name}: {error}"))
    await page.goto(f"http://{address}/?name={name}")
    await expect(page.locator("#state")).to_contain_text("Connected")
    return page


async def say(page: Page, text: str) -> None:
    """Write and send a message."""
    await page.locator("#text").fill(text)
    await page.locator("#text").press("Enter")


SCROLLER = "document.querySelector('#views > :not([hidden])')"


async def test_two_windows_chat_see_typing_and_scroll_past_memory(tmp_path: Path, browser: Browser) -> None:
    """Two names, live both ways; the scroll goes back to the very first message and keeps its place."""
    problems: list[str] = []
    async with serve(make_app(make_dialogue(tmp_path), tmp_path, messages=PAST)) as address:
        ada = await window(browser, address, "Ada", problems)
        grace = await window(browser, address, "Grace", problems, width=390)
        await say(ada, "hello from Ada")
        await expect(grace.locator("[data-uid]").last).to_contain_text("hello from Ada")
        await grace.locator("#text").press_sequentially("I am wri")
        await expect(ada.locator("#typing")).to_contain_text("Grace")
        await say(grace, "hello from Grace <b>&amp;</b>")
        await expect(ada.locator("[data-uid]").last).to_contain_text("hello from Grace <b>&amp;</b>")
        await expect(ada.locator("#typing")).not_to_contain_text("Grace")

        moved = 0.0
        while await ada.locator("[data-uid]").count() < PAST + 2:
            count = await ada.locator("[data-uid]").count()
            # What is in the middle of the window must stay where it is while older messages come in above.
            before = await ada.evaluate(
                f"""() => {{
                    const view = {SCROLLER};
                    view.scrollTop = 300;
                    const rows = [...view.querySelectorAll('[data-uid]')];
                    window.row = rows.find(row => row.getBoundingClientRect().top > 300);
                    return window.row.getBoundingClientRect().top;
                }}"""
            )
            await ada.wait_for_function(f"document.querySelectorAll('[data-uid]').length > {count}")
            moved = max(moved, abs(await ada.evaluate("window.row.getBoundingClientRect().top") - before))
        assert moved <= 2, f"the viewport moved by {moved} px"
        uids = await ada.evaluate("[...document.querySelectorAll('[data-uid]')].map(row => row.dataset.uid)")
        assert len(uids) == len(set(uids)) == PAST + 2
    assert not problems


async def test_a_restart_of_the_server_loses_and_doubles_nothing(tmp_path: Path, browser: Browser) -> None:
    """What is sent while the server is away arrives once when it is back, in both windows."""
    problems: list[str] = []
    socket = _socket()
    port = socket.getsockname()[1]
    async with serve(make_app(make_dialogue(tmp_path), tmp_path, messages=20), sock=socket) as address:
        ada = await window(browser, address, "Ada", problems)
        grace = await window(browser, address, "Grace", problems)
        await say(ada, "before")
        await expect(grace.locator("[data-uid]").last).to_contain_text("before")
    await expect(ada.locator("#state")).not_to_contain_text("Connected")
    for n in range(3):
        await say(ada, f"while away {n}")
    async with serve(make_app(make_dialogue(tmp_path), tmp_path, messages=20), sock=_socket(port)) as address:
        for page in (ada, grace):
            await expect(page.locator("#state")).to_contain_text("Connected", timeout=30_000)
            await expect(page.locator("[data-uid]").last).to_contain_text("while away 2", timeout=30_000)
            texts = await page.locator("[data-uid]").all_inner_texts()
            tail = [next(line for line in text.splitlines() if "away" in line) for text in texts[-3:]]
            assert tail == [f"while away {n}" for n in range(3)]
            assert len(texts) == 24
        await say(grace, "welcome back")
        await expect(ada.locator("[data-uid]").last).to_contain_text("welcome back")
    assert not problems
