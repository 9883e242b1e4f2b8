"""The chat example over a real server: its scroll, its table, its restart and its page."""

from __future__ import annotations

import asyncio
import importlib
import random
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import httpx2
import pytest

from dialogue import Dialogue, DialogueClient
from dialogue.client import Room
from tests.server.harness import eventually, serve


class Chat(NamedTuple):
    """The example's modules, as one process would have them."""

    db: Any
    config: Any
    app: Any

    @property
    def dialogue(self) -> Dialogue:
        dialogue: Dialogue = self.config.dialogue
        return dialogue


@pytest.fixture
def start_chat(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], Chat]:
    """Return a function that imports the example afresh, over one database file: a new process, as it were."""
    monkeypatch.setenv("CHAT_DATABASE", str(tmp_path / "chat.db"))

    def start() -> Chat:
        for name in [name for name in sys.modules if name.startswith("examples.chat")]:
            monkeypatch.delitem(sys.modules, name)
        db, config, main = (
            importlib.import_module(f"examples.chat.{name}") for name in ("db", "config", "main")
        )
        return Chat(db, config, main.app)

    return start


class FlakyInsert:
    """An insert that fails now and then, before it writes anything."""

    def __init__(self, insert: Callable[..., None], *, seed: int) -> None:
        self._insert = insert
        self._random = random.Random(seed)
        self.failures = 0
        self.writes = 0

    def __call__(self, *arguments: Any) -> None:
        if self._random.random() < 0.4:
            self.failures += 1
            raise OSError("the disk is having a moment")
        self._insert(*arguments)
        self.writes += 1


def rows(chat: Chat) -> list[str]:
    """Return the texts in the table, in the order in which they were written."""
    with chat.db.connect() as connection:
        found = connection.execute("SELECT json_extract(event_data, '$.text') FROM messages ORDER BY id")
        return [text for (text,) in found]


async def say(room: Room, numbers: range) -> None:
    for number in numbers:
        await room.trigger("message", {"text": str(number), "username": "ann"})


def client(address: str, user: str = "ann") -> DialogueClient:
    return DialogueClient(f"http://{address}/dialogue", auth={"user_id": user})


async def scroll_all(room: Room, *, page_size: int) -> list[str]:
    """Return the texts from the newest to the oldest, by ``next``."""
    return [event.data["text"] async for event in room.scroll("message", page_size=page_size)]


@pytest.mark.parametrize("seed", [1, 2, 3])
async def test_scrolling_by_next_is_exact_while_messages_arrive_and_cleanup_fails(
    start_chat: Callable[[], Chat], monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    """Promise 5, over a table without seq: no duplicate and none missing, whatever happens meanwhile."""
    chat = start_chat()
    flaky = FlakyInsert(chat.config.insert_messages, seed=seed)
    monkeypatch.setattr(chat.config, "insert_messages", flaky)
    async with serve(chat.app) as address, client(address) as ann, client(address, "bob") as bob:
        room, reading = await ann.join("general"), await bob.join("general")
        await say(room, range(300))
        writing = asyncio.create_task(say(room, range(300, 900)))
        scrolls = 0
        while not writing.done():
            texts = await scroll_all(reading, page_size=17)
            newest = int(texts[0])
            assert texts == [str(number) for number in range(newest, -1, -1)]
            scrolls += 1
        await writing
        assert scrolls > 1
        await eventually(lambda: flaky.writes)
        assert flaky.failures, "the insert never failed: the test shows nothing"


async def test_offsets_equal_ring_and_table_once_things_have_settled(
    start_chat: Callable[[], Chat], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The reference's scroll: `get_history(event, count, count + 20)` until it brings nothing."""
    chat = start_chat()
    monkeypatch.setattr(chat.config, "insert_messages", FlakyInsert(chat.config.insert_messages, seed=4))
    async with serve(chat.app) as address, client(address) as ann:
        room = await ann.join("general")
        await say(room, range(350))
        # 100 stay in memory; the rest has been handed over once the failing hook has been tried often enough.
        await eventually(lambda: len(rows(chat)) == 250)
        shown: list[str] = []
        while older := await room.get_history("message", len(shown), len(shown) + 20):
            shown.extend(event.data["text"] for event in older)
        assert shown == [str(number) for number in range(349, -1, -1)]
        assert rows(chat) == [str(number) for number in range(250)]


async def test_offsets_while_messages_arrive_lack_none_of_what_was_there(
    start_chat: Callable[[], Chat],
) -> None:
    """Every new message shifts the offsets, so one may show twice; what was there at the start is never missed."""
    chat = start_chat()
    async with serve(chat.app) as address, client(address) as ann, client(address, "bob") as bob:
        room, reading = await ann.join("general"), await bob.join("general")
        await say(room, range(300))
        writing = asyncio.create_task(say(room, range(300, 600)))
        shown: list[str] = []
        while older := await reading.get_history("message", len(shown), len(shown) + 20):
            shown.extend(event.data["text"] for event in older)
        await writing
        assert set(shown) >= {str(number) for number in range(300)}


async def test_after_a_clean_restart_a_join_brings_nothing_and_everything_can_be_scrolled(
    start_chat: Callable[[], Chat],
) -> None:
    """Memory and archive: a stop hands over the ring; the table's rows have no seq and page by ``next``."""
    chat = start_chat()
    async with serve(chat.app) as address, client(address) as ann:
        await say(await ann.join("general"), range(260))
    assert chat.dialogue.unflushed_events == 0
    assert rows(chat) == [str(number) for number in range(260)]

    again = start_chat()
    assert again.dialogue is not chat.dialogue
    async with serve(again.app) as address, client(address) as ann:
        room = await ann.join("general")
        assert room.history == []
        page = await room.page("message", limit=30)
        assert [(event.seq, event.id) for event in page.events] == [(None, None)] * 30
        assert {event.sender for event in page.events} == {"ann"}
        assert await scroll_all(room, page_size=30) == [str(number) for number in range(259, -1, -1)]

        await say(room, range(260, 420))
        assert await scroll_all(room, page_size=30) == [str(number) for number in range(419, -1, -1)]


async def test_a_timeline_shows_rows_of_the_table_and_live_messages_once(
    start_chat: Callable[[], Chat],
) -> None:
    """The list behind the page: older pages without seq below live messages with one."""
    chat = start_chat()
    async with serve(chat.app) as address, client(address) as ann:
        await say(await ann.join("general"), range(130))
    again = start_chat()
    async with serve(again.app) as address, client(address) as ann:
        room = await ann.join("general")
        timeline = room.timeline("message", page_size=25)
        await timeline.load_older()
        await say(room, range(130, 140))
        while timeline.has_older:
            await timeline.load_older()
        await eventually(lambda: len(timeline.entries) == 140)
        assert [event.data["text"] for event in timeline.entries] == [str(number) for number in range(140)]


async def test_everyone_who_connects_is_in_the_room_and_hears_the_others(
    start_chat: Callable[[], Chat],
) -> None:
    """`on_connected` joins: a client that asks for nothing has the room."""
    chat = start_chat()
    async with serve(chat.app) as address, client(address) as ann, client(address, "bob") as bob:
        heard: list[str] = []
        room = bob.room("general")
        room.on("message", lambda event: heard.append(event.data["text"]))
        await eventually(lambda: room.is_joined)
        await say(await ann.join("general"), range(3))
        await eventually(lambda: heard == ["0", "1", "2"])


async def test_the_page_and_its_client_are_served(start_chat: Callable[[], Chat]) -> None:
    """The page asks for two scripts; all three are there."""
    chat = start_chat()
    async with serve(chat.app) as address, httpx2.AsyncClient(base_url=f"http://{address}") as http:
        page = await http.get("/")
        assert page.status_code == 200
        assert 'src="chat.js"' in page.text
        script = await http.get("/chat.js")
        assert '"./dialogue/dialogue.js"' in script.text
        library = await http.get("/dialogue/dialogue.js")
        assert library.headers["content-type"].startswith("text/javascript")
        assert "createDialogueClient" in library.text


def test_rows_of_one_millisecond_have_an_order(start_chat: Callable[[], Chat]) -> None:
    """Ties are broken by ``id``: pages of any size put together are the same list."""
    chat = start_chat()
    events = [
        type("Row", (), {"data": {"text": str(number)}, "sender": "ann", "timestamp": 1_700_000_000_000})
        for number in range(50)
    ]
    chat.db.insert_messages("general", "message", events)
    for size in (1, 7, 50):
        shown = [
            row["data"]["text"]
            for start in range(0, 50, size)
            for row in chat.db.load_messages("general", "message", start, start + size)
        ]
        assert shown == [str(number) for number in range(49, -1, -1)]
    assert chat.db.load_messages("other", "message", 0, 10) == []
