"""The demo page in a real browser: the first thing that anyone sees."""

from __future__ import annotations

import asyncio
from pathlib import Path

from playwright.async_api import Browser, Page, expect

from dialogue import Blocked, Event
from dialogue.demo.application import make_app, make_dialogue
from tests.server.harness import _socket, serve

from .demo import SCROLLER, Demo, demo, hold, look_away, messages, moved, say, texts

LONG_PAST = 1000
"""More than the page holds at once."""

MOST_ROWS = 700
"""The page's bound, and a page."""


async def sequence(page: Page) -> list[int]:
    """The seqs of the messages that are shown, in their order."""
    uids = await page.evaluate(
        "selector => [...document.querySelectorAll(`${selector} [data-uid]`)].map((row) => row.dataset.uid)",
        SCROLLER,
    )
    return [int(uid.rpartition(":")[2]) for uid in uids]


async def scroll_to_edge(page: Page, *, up: bool) -> bool:
    """Scroll near an edge, wait for what comes in there, and look that nothing has moved; False when nothing came."""
    before = await sequence(page)
    edge = before[0] if up else before[-1]
    await page.evaluate(
        """async ([selector, up]) => {
            const view = document.querySelector(selector);
            view.scrollTop = up ? 300 : view.scrollHeight - view.clientHeight - 300;
        }""",
        [SCROLLER, up],
    )
    await hold(page)
    if edge == (1 if up else LONG_PAST):
        return False
    await page.wait_for_function(
        """([selector, edge, up]) => {
            const rows = document.querySelectorAll(`${selector} [data-uid]`);
            return Number(rows[up ? 0 : rows.length - 1].dataset.uid.split(":")[1]) !== edge;
        }""",
        arg=[SCROLLER, edge, up],
    )
    off = await moved(page)
    assert off <= 2, f"the viewport moved by {off} px"
    after = await sequence(page)
    assert after == list(range(after[0], after[-1] + 1))
    assert len(after) <= MOST_ROWS
    return True


async def test_scrolling_up_and_down_keeps_its_place_over_more_than_the_page_holds(
    tmp_path: Path, browser: Browser
) -> None:
    """To the very first message and back: each once, in order, within 2 px, and never more rows than the bound."""
    async with demo(browser, tmp_path, past=LONG_PAST) as shown:
        page = await shown.window("Ada")
        while await scroll_to_edge(page, up=True):
            pass
        await page.locator(SCROLLER).evaluate("view => (view.scrollTop = 0)")
        await expect(page.get_by_text("This is the beginning of the conversation")).to_be_in_viewport()
        # The day stands above the first message; once that is out of view, it is told at the top.
        await expect(page.locator("#date")).to_be_hidden()
        await page.locator(SCROLLER).evaluate("view => (view.scrollTop = 800)")
        await expect(page.locator("#date")).not_to_be_empty()
        while await scroll_to_edge(page, up=False):
            pass

        await page.locator(SCROLLER).evaluate("view => (view.scrollTop = 0)")
        await expect(page.locator("#jump")).to_have_text("Newest messages")
        grace = await shown.window("Grace")
        await say(grace, "news for who reads old things")
        await expect(page.locator("#jump")).to_have_text("1 new message")
        await expect(page).to_have_title("(1) General · Dialogue")
        await page.locator("#jump").click()
        await expect(texts(page).last).to_have_text("news for who reads old things")
        await expect(texts(page).last).to_be_in_viewport()
        await expect(page.locator("#jump")).to_be_hidden()
        await expect(page).to_have_title("General · Dialogue")


async def test_two_windows_see_each_other_write_and_come_and_go(tmp_path: Path, browser: Browser) -> None:
    """Live both ways, typing line, presence list; what others write is text and nothing else."""
    async with demo(browser, tmp_path) as shown:
        ada = await shown.window("Ada")
        await expect(ada.locator("#here li")).to_have_count(1)
        grace = await shown.window("Grace", width=390)
        await expect(ada.locator("#people-title")).to_have_text("Here now: 2")
        await expect(ada.locator("#here bdi")).to_have_text(["Ada", "Grace"])
        await say(ada, "hello from Ada")
        await expect(texts(grace).last).to_have_text("hello from Ada")
        await grace.locator("#text").press_sequentially("I am wri")
        await expect(ada.locator("#typing")).to_have_text("Grace is typing…")
        await say(grace, "hello <img src=x onerror=alert(1)> &amp;")
        await expect(texts(ada).last).to_have_text("hello <img src=x onerror=alert(1)> &amp;")
        await expect(ada.locator("#typing")).to_be_empty()
        await expect(ada.locator("#announcer")).to_contain_text("Grace: hello")
        await expect(ada.locator("#announcer")).not_to_contain_text("hello from Ada")  # her own
        await grace.close()
        await expect(ada.locator("#here bdi")).to_have_text(["Ada"])


async def test_what_is_unread_is_counted_marked_and_read_once_it_was_seen(
    tmp_path: Path, browser: Browser
) -> None:
    """Badge, title and marker line; over a reload, too; a scroll that is up stays where it is."""
    async with demo(browser, tmp_path, past=300) as shown:
        ada = await shown.window("Ada")
        grace = await shown.window("Grace", room="help")
        await expect(grace.locator("#rooms a[aria-current]")).to_have_text("Help")
        badge = grace.locator("#rooms li", has_text="General").locator(".badge")
        for number in range(2):
            await say(ada, f"news {number}")
        await expect(badge).to_contain_text("2 new messages")
        await expect(grace).to_have_title("(2) Help · Dialogue")
        await grace.reload()
        await expect(badge).to_contain_text("2 new messages")
        await expect(grace.locator("#rooms a[aria-current]")).to_have_text("Help")
        is_left_alone = await grace.evaluate(
            """() => {
                const painted = document.querySelector("#rooms .badge:not([hidden])").firstElementChild;
                document.querySelector(".view:not([hidden])").dispatchEvent(new Event("scroll"));
                return painted.isConnected;
            }"""
        )
        assert is_left_alone, "a scroll paints the badges again"

        await grace.locator("#rooms a", has_text="General").click()
        await expect(grace.locator(".marker + [data-uid] .text")).to_have_text("news 0")
        await expect(badge).to_be_hidden()
        await expect(grace).to_have_title("General · Dialogue")
        inbox = f"http://{shown.address}/unread?user_id=Grace"
        while (await (await grace.request.get(inbox)).json())["unread"]["general"]:
            await asyncio.sleep(0.02)
        await grace.reload()
        await expect(texts(grace).last).to_have_text("news 1")
        await expect(badge).to_be_hidden()
        await expect(grace.locator(".marker")).to_have_count(0)

        # A window that nobody looks at has seen nothing, though the message is in view.
        await look_away(grace)
        await say(ada, "while you were away")
        await expect(grace).to_have_title("(1) General · Dialogue")
        await expect(grace.locator(".marker + [data-uid] .text")).to_have_text("while you were away")
        await look_away(grace, away=False)
        await expect(grace).to_have_title("General · Dialogue")

        await grace.locator(SCROLLER).evaluate("view => (view.scrollTop -= 1500)")
        await hold(grace)
        for number in range(3):
            await say(ada, f"below {number}")
        await expect(grace.locator("#jump")).to_have_text("3 new messages")
        assert await moved(grace) <= 2
        await grace.locator("#jump").click()
        await expect(grace.locator(".marker + [data-uid] .text")).to_have_text("below 0")
        await expect(grace.locator("#jump")).to_be_hidden()
        await grace.locator("#text").press("Escape")
        await expect(grace.locator(".marker")).to_have_count(0)


async def test_messages_are_changed_and_deleted_with_the_keyboard_alone(
    tmp_path: Path, browser: Browser
) -> None:
    """From the box to the list, from message to message, to what can be done with one, and back."""
    async with demo(browser, tmp_path) as shown:
        ada, grace = await shown.window("Ada"), await shown.window("Grace")
        keys = ada.keyboard
        await expect(ada.locator("#text")).to_be_focused()
        for text in ("frist", "second"):
            await keys.type(text)
            await keys.press("Enter")
        await expect(texts(grace).last).to_have_text("second")

        await keys.press("ArrowUp")  # in the empty box: the last one of one's own
        await expect(ada.locator("#editing")).to_be_visible()
        await keys.type(", better")
        await keys.press("Escape")  # thought better of it
        await expect(ada.locator("#text")).to_have_value("")

        await keys.press("Shift+Tab")
        await expect(ada.locator(SCROLLER)).to_be_focused()
        await expect(ada.locator(SCROLLER)).to_have_attribute("aria-label", "Messages in General")
        await keys.press("ArrowUp")
        await keys.press("ArrowUp")
        await expect(ada.locator("article:focus .text")).to_have_text("frist")
        await keys.press("Tab")
        await keys.press("Enter")
        await expect(ada.locator("#text")).to_be_focused()
        await keys.press("Control+A")
        await keys.type("first")
        await keys.press("Enter")
        row = messages(grace).nth(-2)
        await expect(row.locator(".text")).to_have_text("first")
        await expect(row.locator(".edited")).to_be_visible()
        await expect(row.locator(".actions")).to_be_hidden()  # it is not hers

        await keys.press("Shift+Tab")
        await keys.press("End")
        await expect(ada.locator("article:focus .text")).to_have_text("second")
        await keys.press("Tab")
        await keys.press("Tab")
        await expect(ada.locator(":focus")).to_have_text("Delete this message")
        await keys.press("Enter")
        await expect(ada.locator("#confirm")).to_be_visible()
        await keys.press("Escape")
        await expect(ada.locator("article:focus .text")).to_have_text("second")
        for key in ("Tab", "Tab", "Enter", "Tab", "Enter"):
            await keys.press(key)
        await expect(texts(grace).last).to_have_text("This message was deleted.")
        await expect(ada.locator("article:focus .text")).to_have_text("This message was deleted.")
        await keys.press("Home")
        await expect(messages(ada).first.locator("article")).to_be_focused()
        await keys.press("PageDown")
        await expect(messages(ada).first.locator("article")).not_to_be_focused()
        await keys.press("Escape")
        await expect(ada.locator("#text")).to_be_focused()


async def test_a_refused_message_is_tried_again_or_discarded(tmp_path: Path, browser: Browser) -> None:
    """It stays at the end with its reason until one decides."""
    dialogue = make_dialogue(tmp_path)
    is_open = False

    @dialogue.before_each
    def gate(event: Event[object]) -> None:
        if not is_open:
            raise Blocked("the gate is closed")

    async with demo(browser, tmp_path, dialogue=dialogue) as shown:
        page = await shown.window("Ada")
        await say(page, "let me in")
        await say(page, "and me")
        failed = page.locator(".message.failed")
        await expect(failed).to_have_count(2)
        await expect(failed.first.locator(".fate")).to_contain_text("Not sent: the gate is closed")
        is_open = True
        await failed.first.get_by_role("button", name="Try again").click()
        await expect(failed).to_have_count(1)
        await expect(failed.locator(".text")).to_have_text("and me")
        await failed.get_by_role("button", name="Discard").click()
        await expect(failed).to_have_count(0)
        await expect(texts(page).last).to_have_text("let me in")


async def test_rooms_are_made_linked_to_and_deleted(tmp_path: Path, browser: Browser) -> None:
    """A form makes one, its address opens it, its maker deletes it, and everyone's list follows."""
    async with demo(browser, tmp_path) as shown:
        ada, grace = await shown.window("Ada"), await shown.window("Grace")
        for name, room in (("General", "general"), ("Tea & Cake", "tea-&-cake")):
            await ada.get_by_role("button", name="New room").click()
            await ada.get_by_label("Its name").fill(name)
            await ada.get_by_role("button", name="Make it").click()
            if room == "general":
                await expect(ada.locator("#room-error")).to_have_text("There is a room of that name already.")
                await ada.get_by_role("button", name="Cancel").click()
        await expect(ada.locator("#title")).to_have_text("Tea & Cake")
        await expect(ada.locator(".view:not([hidden]) .beginning h2")).to_have_text("Nothing here yet")
        link = grace.locator("#rooms a", has_text="Tea & Cake")
        await expect(link).to_have_attribute("href", "#tea-%26-cake")
        await link.click()
        await expect(grace.locator("#title")).to_have_text("Tea & Cake")
        await expect(grace.get_by_role("button", name="Delete room")).to_be_hidden()
        await say(grace, "is there any left?")
        await expect(texts(ada).last).to_have_text("is there any left?")
        await grace.go_back()
        await expect(grace.locator("#title")).to_have_text("General")

        await ada.get_by_role("button", name="Delete room").click()
        await ada.locator("#confirm").get_by_role("button", name="Delete").click()
        for page in (ada, grace):
            await expect(page.locator("#rooms a")).to_have_text(["General", "Random", "Help"])
            await expect(page.locator("#title")).to_have_text("General")
        await expect(ada.locator("#notice")).to_contain_text("no longer in Tea & Cake: the room was deleted")
        await grace.goto(f"http://{shown.address}/?name=Grace#nowhere")
        await expect(grace.locator("#notice")).to_contain_text("nowhere cannot be opened")


async def test_a_restart_of_the_server_loses_and_doubles_nothing(tmp_path: Path, browser: Browser) -> None:
    """What is sent while the server is away arrives once when it is back, in both windows; the state says so."""
    socket = _socket()
    port = socket.getsockname()[1]
    async with serve(make_app(make_dialogue(tmp_path), tmp_path, messages=20), sock=socket) as address:
        shown = Demo(browser, address)
        ada, grace = await shown.window("Ada"), await shown.window("Grace")
        await say(ada, "before")
        await expect(texts(grace).last).to_have_text("before")
    await expect(ada.locator("#state")).to_have_text("Reconnecting…")
    for n in range(3):
        await say(ada, f"while away {n}")
    await expect(ada.locator(".message.sending")).to_have_count(3)
    async with serve(make_app(make_dialogue(tmp_path), tmp_path, messages=20), sock=_socket(port)) as address:
        for page in (ada, grace):
            await expect(page.locator("#state")).to_have_text("Connected", timeout=30_000)
            await expect(texts(page).last).to_have_text("while away 2", timeout=30_000)
            assert (await texts(page).all_inner_texts())[-4:] == [
                "before",
                *(f"while away {n}" for n in range(3)),
            ]
            await expect(messages(page)).to_have_count(24)
        await say(grace, "welcome back")
        await expect(texts(ada).last).to_have_text("welcome back")
