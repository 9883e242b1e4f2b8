"""The demo page when something is missing, in other transports, schemes and sizes."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from playwright.async_api import Browser, Page, expect

from dialogue import Blocked, Dialogue, Event, History, Limits, RoomConfig, define_event
from dialogue.demo.application import database_url, make_app, make_dialogue
from dialogue.storage.sql import SQLStore
from tests.server.harness import _socket, serve

from .demo import SCROLLER, Demo, demo, hold, look_away, messages, moved, say, texts

HOSTILE = "verylongword" * 60
RIGHT_TO_LEFT = "مرحبا بالجميع، هل يعمل هذا؟"
LONG = "line\n" * 300

SCHEMES: tuple[Literal["light", "dark"], ...] = ("light", "dark")

CHECKS = (Path(__file__).parent / "checks.js").read_text()


def small_dialogue(folder: Path, **options: Any) -> Dialogue:
    """Return a room like those of the demo, of which a client that was away gets ten messages, else a hole."""
    message = define_event("message", history=History(limit=20))
    return Dialogue(
        rooms={"general": RoomConfig(name="General", events=[message, define_event("typing")])},
        limits=Limits(replay_events=10),
        **options,
    )


async def test_a_hole_is_a_row_that_fills_itself_when_it_comes_into_view(
    tmp_path: Path, browser: Browser
) -> None:
    """After too long an absence: nothing is missing without being named, and then nothing is missing."""
    store = {"store": SQLStore(database_url(tmp_path))}
    socket = _socket()
    port = socket.getsockname()[1]
    first = small_dialogue(tmp_path, **store)
    async with serve(make_app(first, tmp_path, messages=30), sock=socket) as address:
        shown = Demo(browser, address)
        page = await shown.window("Ada")
    between = small_dialogue(tmp_path, store=SQLStore(database_url(tmp_path)))
    async with between.lifespan():
        for number in range(250):
            await between.trigger("general", "message", {"text": f"missed {number}"}, sender="Grace")
    last = small_dialogue(tmp_path, store=SQLStore(database_url(tmp_path)))
    async with serve(make_app(last, tmp_path, messages=30), sock=_socket(port)):
        await expect(texts(page).last).to_have_text("missed 249", timeout=30_000)
        gap = page.locator(".gap")
        await expect(gap).to_contain_text("You were away for a while")
        await gap.evaluate("row => row.scrollIntoView({ block: 'start' })")
        await gap.get_by_role("button", name="Show them").click()
        # One reads on where one was when the connection was lost.
        await expect(texts(page).filter(has_text="missed 0")).to_be_in_viewport()
        while await gap.count():
            # Who reads down to the rest of it need not ask.
            await gap.evaluate("row => row.scrollIntoView({ block: 'end' })")
            await hold(page)
            await page.wait_for_function(
                "count => document.querySelectorAll('[data-uid]').length > count || !document.querySelector('.gap')",
                arg=await messages(page).count(),
            )
            assert await moved(page) <= 2
        assert (await texts(page).all_inner_texts())[-250:] == [f"missed {number}" for number in range(250)]


async def test_what_cannot_be_read_is_told_in_words(tmp_path: Path, browser: Browser) -> None:
    """An archive in trouble: a row says so, nobody hammers it, and its button tries again."""
    kept: list[Event[Any]] = []
    is_down = True
    reads = 0
    dialogue = small_dialogue(tmp_path)

    @dialogue.on_cleanup
    async def keep(room_id: str, event_name: str, events: list[Event[Any]]) -> None:
        kept.extend(events)

    @dialogue.on_load
    async def load(room_id: str, event_name: str, start: int, end: int) -> list[Event[Any]]:
        nonlocal reads
        reads += 1
        if is_down:
            raise OSError("the archive is away")
        return kept[::-1][start:end]

    async with demo(browser, tmp_path, past=0, dialogue=dialogue) as shown:
        for number in range(60):
            await dialogue.trigger("general", "message", {"text": f"said {number}"}, sender="Grace")
        page = await shown.window("Ada")
        await expect(page.locator(".gap")).to_contain_text("cannot be read at the moment")
        await expect(page.get_by_text("This is the beginning")).to_be_hidden()
        tried = reads
        await page.locator(SCROLLER).evaluate("view => (view.scrollTop = 0)")
        await page.locator(SCROLLER).evaluate("view => (view.scrollTop = 50)")
        assert reads == tried
        is_down = False
        await page.get_by_role("button", name="Try again").click()
        await expect(messages(page)).to_have_count(60)
        await expect(page.locator(".gap")).to_have_count(0)
        await expect(page.get_by_text("This is the beginning")).to_be_visible()


async def test_without_websockets_the_page_says_so_and_works(tmp_path: Path, browser: Browser) -> None:
    """Over plain HTTP both directions, history and unread counts are there."""
    async with demo(browser, tmp_path, past=150) as shown:
        context = await browser.new_context()
        await context.add_init_script("delete window.WebSocket")
        plain = await context.new_page()
        await plain.goto(f"http://{shown.address}/?name=Ada")
        await expect(plain.locator("#state")).to_have_text("Connected over plain HTTP")
        grace = await shown.window("Grace")
        await say(plain, "by request")
        await expect(texts(grace).last).to_have_text("by request")
        await say(grace, "by stream")
        await expect(texts(plain).last).to_have_text("by stream")
        await plain.locator(SCROLLER).evaluate("view => (view.scrollTop = 0)")
        await expect(messages(plain)).to_have_count(152)
        await plain.close()


async def test_without_websockets_rooms_badges_and_people_are_told_too(
    tmp_path: Path, browser: Browser
) -> None:
    """What the server tells nobody over plain HTTP the page finds out: rooms that are made, and what is unread."""
    async with demo(browser, tmp_path) as shown:
        context = await browser.new_context()
        await context.add_init_script("delete window.WebSocket")
        plain = await context.new_page()
        await plain.goto(f"http://{shown.address}/?name=Ada")
        await expect(plain.locator("#state")).to_have_text("Connected over plain HTTP")
        await expect(messages(plain).last).to_be_visible()
        await expect(plain.locator("#unlisted")).to_be_visible()
        assert await plain.locator("#unlisted").evaluate("line => line.scrollWidth <= line.clientWidth")
        grace = await shown.window("Grace")
        await expect(plain.locator("#here")).to_contain_text("Grace")
        await expect(grace.locator("#unlisted")).to_be_hidden()

        await plain.get_by_role("button", name="New room").click()
        await plain.get_by_label("Its name").fill("Tea")
        await plain.get_by_role("button", name="Make it").click()
        await expect(plain.locator("#title")).to_have_text("Tea")
        await say(grace, "are you there?")
        await expect(plain.locator("#rooms .badge:visible")).to_have_text("1 1 new message")
        await expect(plain).to_have_title("(1) Tea · Dialogue")
        await plain.locator("#rooms a", has_text="General").click()
        await expect(texts(plain).last).to_have_text("are you there?")
        await expect(plain).to_have_title("General · Dialogue")
        await plain.locator("#rooms a", has_text="Tea").click()
        # Read is read, although the server has no mark of it.
        await expect(plain.locator("#rooms .badge:visible")).to_have_count(0)

        await plain.get_by_role("button", name="Delete room").click()
        await plain.locator("#confirm").get_by_role("button", name="Delete").click()
        for page in (plain, grace):
            await expect(page.locator("#rooms a")).to_have_text(["General", "Random", "Help"])
            await expect(page.locator("#title")).to_have_text("General")
        await plain.close()


async def fill(shown: Demo) -> Page:
    """Open a window that shows as much as there is to be shown at once."""
    ada = await shown.window("Ada")
    grace = await shown.window("Grace 🦊 " + "ab" * 16)
    await say(ada, "to be changed")
    await say(ada, "to be deleted")
    await expect(ada.locator(".message.own:not(.sending)")).to_have_count(2)
    await ada.locator("#text").press("ArrowUp")
    await say(ada, "changed")
    await expect(ada.locator(".edited:visible")).to_have_count(1)
    await ada.locator(".message.own article").first.focus()
    await ada.keyboard.press("Tab")
    await ada.keyboard.press("Tab")
    await ada.keyboard.press("Enter")
    await ada.get_by_role("button", name="Delete", exact=True).click()
    await expect(ada.locator(".message.gone")).to_have_count(1)
    await say(ada, "this is refused")
    await expect(ada.locator(".message.failed")).to_have_count(1)
    await look_away(ada)
    for text in (HOSTILE, RIGHT_TO_LEFT, LONG):
        await say(grace, text)
    await expect(ada.locator(".marker")).to_be_visible()
    await grace.locator("#text").press_sequentially("…")
    await expect(ada.locator("#typing")).to_contain_text("is typing")
    await expect(ada.locator("#elsewhere, #rooms .badge").first).not_to_be_empty()
    return ada


async def test_everything_has_a_name_and_contrast(tmp_path: Path, browser: Browser) -> None:
    """WCAG AA as far as it can be computed: contrast of all texts, names of all controls, ids, landmarks, sizes."""
    dialogue = make_dialogue(tmp_path)

    @dialogue.before_each
    def gate(event: Event[Any]) -> None:
        if "refused" in str(event.data):
            raise Blocked("the gate is closed")

    async with demo(browser, tmp_path, past=0, dialogue=dialogue) as shown:
        page = await fill(shown)
        await page.evaluate(CHECKS)
        assert await page.evaluate("checkNames()") == []
        for scheme in SCHEMES:
            await page.emulate_media(color_scheme=scheme)
            assert await page.evaluate("checkContrast()") == [], scheme
            await page.locator(
                ".message.own:not(.gone) article"
            ).first.focus()  # what can be done with it is there now
            await expect(page.get_by_role("button", name="Edit this message")).to_be_visible()
            assert await page.evaluate("checkContrast()") == [], scheme
            await page.get_by_role("button", name="New room").click()
            assert await page.evaluate("checkContrast()") == [], scheme
            await page.keyboard.press("Escape")
            # A check that can fail: a text in the color of its ground.
            await page.locator("#about").evaluate("element => (element.style.color = 'var(--hover)')")
            assert ["about" in line for line in await page.evaluate("checkContrast()")] == [True], scheme
            await page.locator("#about").evaluate("element => (element.style.color = '')")
        for landmark, count in (
            ("banner", 1),
            ("navigation", 1),
            ("main", 1),
            ("complementary", 1),
            ("log", 1),
        ):
            await expect(page.get_by_role(landmark)).to_have_count(count)  # type: ignore[arg-type]


async def test_a_phone_shows_everything_without_scrolling_sideways(tmp_path: Path, browser: Browser) -> None:
    """Long words, a long name, right to left; rooms and people come over the page, and Escape closes them."""
    async with demo(browser, tmp_path) as shown:
        page = await shown.window("Ada", width=390)
        grace = await shown.window("Grace" + "W" * 35)
        for text in (HOSTILE, RIGHT_TO_LEFT, LONG):
            await say(grace, text)
        await expect(messages(page)).to_have_count(23)
        for width in (390, 320):
            await page.set_viewport_size({"width": width, "height": 800})
            for locator in (page.locator(SCROLLER), page.locator("html"), page.locator(".top")):
                assert await locator.evaluate("element => element.scrollWidth - element.clientWidth") <= 0
        # Folded: one message does not push all others out of sight.
        long = texts(page).last
        assert await long.evaluate("element => element.clientHeight") < 300
        await page.get_by_role("button", name="Show all").click()
        assert await long.evaluate("element => element.clientHeight") > 300

        await page.get_by_role("button", name="here").click()
        await expect(page.locator("#here li")).to_have_count(2)
        await expect(page.locator("#here li").first).to_be_visible()
        await page.keyboard.press("Escape")
        await expect(page.locator("#people")).to_be_hidden()
        await page.get_by_role("button", name="Rooms").click()
        await page.locator("#rooms a", has_text="Random").click()
        await expect(page.locator("#title")).to_have_text("Random")
        await expect(page.locator("#side")).to_be_hidden()
        # The keyboard of a phone takes half of the height.
        await page.set_viewport_size({"width": width, "height": 330})
        await expect(page.locator("#text")).to_be_in_viewport(ratio=1)
        await expect(texts(page).last).to_be_in_viewport()
