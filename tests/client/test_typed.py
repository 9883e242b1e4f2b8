"""What type checkers see where an event's type is passed instead of its name; mypy reads this file."""

from __future__ import annotations

from typing import Any, assert_type

from pydantic import BaseModel

from dialogue import Dialogue, Event, History, RoomConfig, define_event
from dialogue.client import Page, Room, Stream, Timeline
from dialogue.testing import connect

from .fake import until


class Message(BaseModel):
    text: str


message = define_event("message", schema=Message, history=History(limit=10))


async def test_an_event_type_gives_typed_events() -> None:
    """`on`, `get_history`, `page`, `scroll`, `timeline`, `stream`, `trigger`, `edit`, `subscribe` take it."""
    dialogue = Dialogue(rooms={"general": RoomConfig(name="General", events=[message])})
    async with connect(dialogue, user_id="ann") as client:
        histories: list[tuple[str, int]] = []
        client.on_history(lambda room_id, events: histories.append((room_id, len(events))))
        room = await client.join("general", events=message)
        assert_type(room, Room)
        assert room.subscriptions == ["message"]
        heard: list[Event[Message]] = []

        def hear(event: Event[Message]) -> None:
            heard.append(event)

        room.on(message, hear)
        ack = await room.trigger(message, Message(text="one"))
        await room.edit(ack.seq or 0, Message(text="two"), event=message)
        await until(lambda: heard)
        assert_type(heard[0].model, Message)

        history = await room.get_history(message)
        assert_type(history, list[Event[Message]])
        page = await room.page(message)
        assert_type(page, Page[Message])
        assert_type(page.events[0].model.text, str)
        assert_type(await room.page(), Page[Any])
        scrolled = [assert_type(event.model, Message) async for event in room.scroll(message)]
        stream = room.stream(message, after=0)
        assert_type(stream, Stream[Message])
        streamed = assert_type(await anext(stream), Event[Message])
        assert_type(room.stream("message"), Stream[Any])
        assert_type(room.stream([message, "$edit"]), Stream[Any])
        timeline = room.timeline(message)
        assert_type(timeline, Timeline[Message])
        assert_type(timeline.entries, list[Event[Message]])
        assert_type(room.timeline("message"), Timeline[Any])
        await timeline.load_older()
        (entry,) = timeline.entries
        models = [history[0].model, page.events[0].model, scrolled[0], streamed.model, entry.model]
        assert models == [Message(text="two")] * 5

        await room.unsubscribe(message)
        await room.subscribe(message)
        assert histories == [("general", 0)]


async def test_a_room_that_the_server_joins_is_told_with_its_history() -> None:
    """First the room, then what it brought, newest first, then its events."""
    dialogue = Dialogue(
        rooms={"general": RoomConfig(name="General", events=[message], sync_history_on_join=5)}
    )
    told: list[Any] = []
    async with connect(dialogue, user_id="ann") as client:
        client.on_joined(told.append)
        client.on_history(lambda room_id, events: told.append([event.seq for event in events]))
        for n in range(3):
            await dialogue.trigger("general", message, {"text": str(n)})
        room = client.room("general")
        room.on(message, lambda event: told.append(event.seq))
        assert not room.is_joined
        assert list(room.subscriptions) == []
        (handle,) = dialogue.clients_of("ann")
        await handle.join("general")
        await dialogue.trigger("general", message, {"text": "3"})
        await until(lambda: len(told) == 3)
        assert told == [room, [3, 2, 1], 4]
        assert list(room.subscriptions) == ["*"]
