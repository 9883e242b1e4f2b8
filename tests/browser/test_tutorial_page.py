"""The page of the tutorial, as it stands there, in a real browser."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
from playwright.async_api import Browser, expect

from tests.docs.pages import DOCS, read
from tests.server.harness import serve

from .demo import collect


async def test_the_first_chat_chats(
    tmp_path: Path, browser: Browser, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two windows, a typing line, older messages; what others write is text."""
    monkeypatch.chdir(tmp_path)
    blocks = read(DOCS / "tutorial" / "first-chat.md").blocks
    code = next(block.code for block in blocks if block.code.startswith("# chat.py"))
    (tmp_path / "chat.py").write_text(code)
    (tmp_path / "index.html").write_text(next(block.code for block in blocks if block.language == "html"))
    spec = importlib.util.spec_from_file_location("tutorial_chat", tmp_path / "chat.py")
    assert spec is not None
    assert spec.loader is not None
    chat = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(chat)

    problems: list[str] = []
    async with serve(chat.dialogue.app) as address:
        for number in range(30):
            await chat.dialogue.trigger("general", "message", {"text": f"said {number}"}, sender="cid")
        pages = []
        for name in ("ann", "bob"):
            page = await (await browser.new_context()).new_page()
            collect(page, problems)
            await page.goto(f"http://{address}/?name={name}")
            await expect(page.locator("#state")).to_have_text(f"{name}: connected")
            await expect(page.locator("li")).to_have_count(20)
            pages.append(page)
        ann, bob = pages
        await ann.locator("#text").press_sequentially("<b>hel")
        await expect(bob.locator("#typing")).to_have_text("ann: typing…")
        await ann.locator("#text").press("Enter")
        await expect(bob.locator("li").last).to_have_text("ann: <b>hel")
        await expect(bob.locator("#typing")).to_be_empty()
        await bob.get_by_role("button", name="Older messages").click()
        await expect(bob.locator("li").first).to_have_text("cid: said 0")
        await expect(bob.get_by_role("button", name="Older messages")).to_be_hidden()
        assert not problems
