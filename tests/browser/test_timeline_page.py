"""The browser client in a real browser: its timeline on a page, in what befalls a page that stays open all day.

Every test compares what the page shows with the log, read over HTTP. The long runs::

    python -m pytest -n 0 -m slow -s tests/browser
"""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from playwright.async_api import Browser, expect

from ..chaos.proxy import ChaosProxy
from ..chaos.server import Server
from .serving import Line, Shown, Window, fill, history, lines, module, publish

LOAD = """async () => {
    const scroller = document.querySelector('[aria-label^="Messages"]');
    const rows = () => scroller.querySelectorAll('[data-uid]');
    const frame = () => new Promise(requestAnimationFrame);
    const oldest = rows()[0].dataset.uid;
    if (rows()[0].dataset.seq === '1') throw new Error('there is nothing older');
    scroller.scrollTop = 100;
    const top = scroller.getBoundingClientRect().top;
    const anchor = [...rows()].find((row) => row.getBoundingClientRect().top >= top);
    const before = anchor.getBoundingClientRect().top;
    let moved = 0;
    let framesAfter = 0;
    for (let frames = 1; framesAfter < 3; frames += 1) {
        await frame();
        moved = Math.max(moved, Math.abs(anchor.getBoundingClientRect().top - before));
        if (rows()[0].dataset.uid !== oldest) framesAfter += 1;
        // A load that failed, because the server was away, is for the reader to try again.
        else if (frames % 20 === 0) scroller.dispatchEvent(new Event('scroll'));
    }
    const shown = [...rows()].map((row) => [Number(row.dataset.seq ?? 0), row.querySelector('.text').textContent]);
    return {moved, shown};
}"""
"""Scrolls to where older messages are loaded, and returns once they are there: by how many pixels what was in view
has moved meanwhile, at the most, and what the page shows then."""


@asynccontextmanager
async def serving(folder: Path, *, past: list[Line] | None = None, **limits: Any) -> AsyncIterator[Server]:
    """Serve the page over a log with a past."""
    server = Server(folder, module(**limits))
    await fill(server.database, past or [])
    async with server:
        yield server


async def load_older(window: Window) -> list[Shown]:
    """Load a page of older messages; return the recorded ones that the page shows then, in order and each once."""
    result = await window.page.evaluate(LOAD)
    assert result["moved"] <= 2, f"the viewport moved by {result['moved']} px"
    shown = [Shown(seq, text) for seq, text in result["shown"] if seq]
    seqs = [message.seq for message in shown]
    assert seqs == sorted(set(seqs))
    return shown


async def off_the_loop(work: Callable[..., Any], *arguments: Any) -> Any:
    """Call what blocks in a thread: the proxy runs in this loop."""
    return await asyncio.to_thread(work, *arguments)


async def test_two_windows_and_two_tabs_of_one_user(tmp_path: Path, browser: Browser) -> None:
    """All of them show what the log has; an edit, a deletion and a refused message that is sent again show, too."""
    async with serving(tmp_path) as server:
        ada = await Window.open(browser, server.url, name="Ada")
        tab = await Window.open(browser, server.url, name="Ada")
        grace = await Window.open(browser, server.url, name="Grace")
        windows = (ada, tab, grace)
        for number in range(3):
            for window in windows:
                await window.say(f"{number} <b>&amp;</b> from {windows.index(window)}")
                for other in windows:
                    await other.until_shown(f"{number} <b>&amp;</b> from {windows.index(window)}")
        log = history(server.url)
        assert len(log) == 9
        assert [await window.shown() for window in windows] == [log] * 3

        # Both at once, from two tabs: each shows its own before it is recorded, and the other's live.
        await asyncio.gather(*(window.say(f"at once, {windows.index(window)}") for window in windows))
        await tab.page.evaluate("room.edit(1, {text: 'edited'})")
        await ada.page.evaluate("room.delete(2)")
        for window in windows:
            await expect(window.page.locator("[data-uid]")).to_have_count(12)
            await expect(window.page.locator("[data-seq='1'] .text")).to_have_text("edited")
            await expect(window.page.locator("[data-seq='2'] .text")).to_have_text("(deleted)")
            assert [message.seq for message in await window.shown()] == [*range(1, 13)]

        await ada.say("refuse me once")
        await ada.page.get_by_role("button", name="Retry").click()
        for window in windows:
            await window.until_shown("refuse me once")
            await expect(window.page.locator("[data-uid]")).to_have_count(13)
        assert [await window.shown() for window in windows] == [await ada.shown()] * 3
        assert not [problem for window in windows for problem in window.problems]


async def scroll_back(
    browser: Browser, folder: Path, *, count: int, until: int, page_size: int
) -> tuple[int, int]:
    """Scroll through a past of *count* messages to the one with the seq *until*; return loads and most rows."""
    past = lines(count)
    seen: dict[int, str] = {}
    loads = most = 0
    async with serving(folder, past=past) as server:
        window = await Window.open(browser, server.url, pageSize=page_size)
        shown = await window.shown()
        while True:
            seen |= dict(shown)
            most = max(most, len(shown))
            if shown[0].seq <= until:
                break
            shown = await load_older(window)
            loads += 1
        expected = {seq: line.text for seq, line in enumerate(past, 1) if seq >= shown[0].seq}
        assert seen == expected
        assert not window.problems
    return loads, most


async def test_scrolling_back_keeps_its_place(tmp_path: Path, browser: Browser) -> None:
    """The viewport is steady at each load, and each message is there once and in order."""
    loads, _ = await scroll_back(browser, tmp_path, count=3000, until=1800, page_size=100)
    assert loads >= 10


@pytest.mark.slow
@pytest.mark.timeout(1800)
async def test_scrolling_through_72_000_messages(tmp_path: Path, browser: Browser) -> None:
    """The same, all the way to the first one, with a page that does not grow."""
    begun = time.perf_counter()
    loads, most = await scroll_back(browser, tmp_path, count=72_000, until=1, page_size=200)
    print(f"\n{loads} loads, at most {most} messages on the page; {time.perf_counter() - begun:.1f} s")
    assert most <= 1200


async def kills(browser: Browser, folder: Path, *, past: int, rounds: int) -> None:
    """Kill the server in the middle of loads and sends, start it again, scroll on to the first message."""
    async with serving(folder, past=lines(past), ping_seconds=0.5) as server:
        query: dict[str, Any] = {"pageSize": 50, "maxEntries": 100_000, "backoff": 0.1}
        ada = await Window.open(browser, server.url, name="Ada", **query)
        grace = await Window.open(browser, server.url, name="Grace", **query)
        for number in range(rounds):
            for _ in range(2):
                await load_older(ada)
            # The sends and the load are on their way when it dies.
            loading = asyncio.create_task(load_older(ada))
            saying = asyncio.create_task(say_all(grace, [f"round {number}, {n}" for n in range(10)]))
            await server.kill()
            await ada.until_lost()
            await ada.say(f"while it is away, {number}")
            await server.start()
            await saying
            await loading
            await ada.until_connected()
        while (await load_older(ada))[0].seq > 1:
            pass
        while (await load_older(grace))[0].seq > 1:
            pass
        for window in (ada, grace):
            await window.page.wait_for_function("!document.querySelector('[data-status=sending]')")
        log = history(server.url)
        assert len(log) == past + 11 * rounds
        for window in (ada, grace):
            await expect(window.page.locator("[data-uid]")).to_have_count(len(log))
            assert await window.shown() == log
            assert not window.problems


async def say_all(window: Window, texts: list[str]) -> None:
    """Send them one right after the other."""
    for text in texts:
        await window.say(text)


async def test_the_server_is_killed_mid_scroll_and_mid_send(tmp_path: Path, browser: Browser) -> None:
    """Nothing is lost or doubled on screen."""
    await kills(browser, tmp_path, past=500, rounds=2)


@pytest.mark.slow
@pytest.mark.timeout(900)
async def test_the_server_is_killed_ten_times(tmp_path: Path, browser: Browser) -> None:
    """The same, for longer."""
    await kills(browser, tmp_path, past=2000, rounds=10)


async def cut_off(
    browser: Browser,
    folder: Path,
    away: Callable[[Window, ChaosProxy], Coroutine[Any, Any, None]],
    ping_seconds: float,
) -> None:
    """Let *away* happen to a page between two looks at it, while others publish; compare."""
    async with (
        serving(folder, past=lines(100), ping_seconds=ping_seconds) as server,
        ChaosProxy(server.port) as proxy,
    ):
        window = await Window.open(browser, f"http://127.0.0.1:{proxy.port}", name="Ada", backoff=0.1)
        await window.say("before")
        await window.until_shown("before")
        for number in range(5):
            await off_the_loop(publish, server.url, f"seen, {number}")
        await window.until_shown("seen, 4")
        leaving = asyncio.create_task(away(window, proxy))
        for number in range(20):
            await off_the_loop(publish, server.url, f"missed, {number}")
        await leaving
        await window.until_connected()
        await off_the_loop(publish, server.url, "the end")
        await window.until_shown("the end")
        while (await window.shown())[0].seq > 1:
            await load_older(window)
        assert await window.shown() == await off_the_loop(history, server.url)
        assert not window.problems


async def no_network(window: Window, proxy: ChaosProxy, seconds: float) -> None:
    """Let nothing pass for *seconds*; the page's user goes on writing."""
    proxy.freeze_all()
    proxy.is_down = True
    await window.context.set_offline(True)
    await window.say("without a network, 0")
    # As long as it says: this is the absence itself.
    await asyncio.sleep(seconds)
    await window.until_lost()
    await window.say("without a network, 1")
    await window.context.set_offline(False)
    proxy.mend()


async def test_the_network_is_away(tmp_path: Path, browser: Browser) -> None:
    """What was missed and what was written meanwhile is there once it is back, in order and once."""
    await cut_off(browser, tmp_path, lambda window, proxy: no_network(window, proxy, 1.5), ping_seconds=0.5)


@pytest.mark.slow
@pytest.mark.timeout(300)
async def test_the_network_is_away_for_a_minute(tmp_path: Path, browser: Browser) -> None:
    """The same with everyday times."""
    await cut_off(browser, tmp_path, lambda window, proxy: no_network(window, proxy, 60), ping_seconds=10)


async def asleep(window: Window, proxy: ChaosProxy, seconds: float) -> None:
    """Freeze the page: its timers stand still, and the connection is gone when it wakes."""
    session = await window.context.new_cdp_session(window.page)
    await session.send("Page.setWebLifecycleState", {"state": "frozen"})
    await asyncio.sleep(seconds)
    proxy.cut_all()
    await session.send("Page.setWebLifecycleState", {"state": "active"})


async def suspended(window: Window, proxy: ChaosProxy, seconds: float) -> None:
    """Stop the browser's process that has the page, as a laptop that sleeps does; the server gives it up meanwhile."""
    browser = window.context.browser
    assert browser is not None
    session = await browser.new_browser_cdp_session()
    processes = (await session.send("SystemInfo.getProcessInfo"))["processInfo"]
    renderers = [process["id"] for process in processes if process["type"] == "renderer"]
    for process in renderers:
        os.kill(process, signal.SIGSTOP)
    try:
        await asyncio.sleep(seconds)
    finally:
        for process in renderers:
            os.kill(process, signal.SIGCONT)


@pytest.mark.parametrize("sleep", [asleep, suspended], ids=["frozen", "stopped"])
async def test_a_laptop_that_sleeps(
    tmp_path: Path, browser: Browser, sleep: Callable[[Window, ChaosProxy, float], Coroutine[Any, Any, None]]
) -> None:
    """Timers stand still, time goes on, the server has long closed: all is there after waking, once."""
    await cut_off(browser, tmp_path, lambda window, proxy: sleep(window, proxy, 1.5), ping_seconds=0.5)


async def test_where_no_web_socket_comes_through(tmp_path: Path, browser: Browser) -> None:
    """Over server-sent events the room behaves the same: send, receive, scroll, edit, resume after a cut."""
    async with (
        serving(tmp_path, past=lines(300), ping_seconds=0.5) as server,
        ChaosProxy(server.port) as proxy,
    ):
        proxy.forbids_sockets = True
        # A request that is not answered in time is what tells a page that has no socket.
        query: dict[str, Any] = {"pageSize": 50, "backoff": 0.1, "timeout": 2}
        window = await Window.open(browser, f"http://127.0.0.1:{proxy.port}", name="Ada", **query)
        assert proxy.forbidden_count > 0
        assert await window.page.evaluate("client.transport") == "sse"
        grace = await Window.open(browser, server.url, name="Grace", **query)
        await window.say("over requests")
        await grace.until_shown("over requests")
        await grace.say("over a socket")
        await window.until_shown("over a socket")
        await window.page.evaluate("room.edit(301, {text: 'edited'})")
        for other in (window, grace):
            await expect(other.page.locator("[data-seq='301'] .text")).to_have_text("edited")
        for _ in range(3):
            await load_older(window)

        proxy.is_down = True
        proxy.freeze_all()
        await window.say("without a network")
        await window.until_lost()
        await say_all(grace, [f"missed, {number}" for number in range(10)])
        proxy.mend()
        await window.until_connected()
        assert await window.page.evaluate("client.transport") == "sse"
        await grace.until_shown("without a network")
        await grace.say("the end")
        await window.until_shown("the end")
        while (await window.shown())[0].seq > 1:
            await load_older(window)
        assert await window.shown() == await off_the_loop(history, server.url)
        assert not window.problems + grace.problems
