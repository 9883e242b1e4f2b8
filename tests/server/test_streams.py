"""A room over server-sent events: every event once and in order, whatever is cut, slow, taken back or stopped."""

from __future__ import annotations

import asyncio
import random
import time
from pathlib import Path
from typing import Any

import httpx2
import pytest
from hypercorn.asyncio import serve as hypercorn_serve
from hypercorn.config import Config

from dialogue import (
    Dialogue,
    Event,
    History,
    Identity,
    JoinDenied,
    Limits,
    Retention,
    RoomConfig,
    SQLStore,
    define_event,
)
from dialogue.config import DirectRoom

from ..rates import UNRATED
from .harness import _socket, eventually, message, note, rooms, serve, typing_event, wire
from .streaming import Stream, open_stream
from .test_http import bearer, requests, with_users


def counted(dialogue: Dialogue, name: str, **labels: str) -> float:
    return dialogue.metrics.registry.get_sample_value(name, labels) or 0


def ends(dialogue: Dialogue, reason: str) -> float:
    return counted(dialogue, "dialogue_stream_ends_total", reason=reason)


async def nothing_left(dialogue: Dialogue) -> None:
    """Wait until all that a stream holds is given back."""
    hub = dialogue.hub()
    await eventually(lambda: not hub.in_flight.count)
    assert not hub.followers.count
    assert not hub.followers._by_room
    assert hub.followers._look is None
    assert not hub.access._watched
    assert not hub.in_flight._by_user
    assert not [task for task in asyncio.all_tasks() if task.get_name() == "dialogue-stream-end"]


# -- what comes ------------------------------------------------------------------------------------------------------


async def test_a_stream_begins_with_joined_and_goes_on_with_events() -> None:
    """Messages are those of the socket; recorded ones have an id, one's own their key."""
    dialogue = Dialogue(rooms())
    async with serve(dialogue) as address, wire(address, "bob") as bob:
        await bob.ask("join", room="general")
        for n in range(4):
            await dialogue.trigger("general", message, n)
        async with open_stream(address, user_id="ann") as stream:
            assert stream.headers["content-type"].startswith("text/event-stream")
            assert stream.headers["cache-control"] == "no-store"
            assert stream.headers["x-accel-buffering"] == "no"
            joined = await bob.ask("join", room="general")
            assert stream.joined == {key: value for key, value in joined.items() if key != "ref"}
            assert [event["seq"] for event in stream.joined["events"]] == [2, 3, 4]
            assert stream.joined["recovered"] is None
            await bob.trigger("general", "note", {"text": "a\nb\r"}, key="k")
            await bob.trigger("general", "typing", 1)
            await bob.ask("edit", room="general", seq=5, data="edited")
            await bob.ask("delete", room="general", seq=5)
            async with httpx2.AsyncClient(base_url=f"http://{address}") as http:
                body = {"event": "message", "data": 1, "key": "mine"}
                await http.post("/rooms/general/events?user_id=ann", json=body)
            events = await stream.until_events(5)
            assert [event["event"] for event in events] == ["note", "typing", "$edit", "$delete", "message"]
            assert events[0]["data"] == {"text": "a\nb\r"}
            assert ["key" in event for event in events] == [False, False, False, False, True]
            epoch = stream.joined["epoch"]
            assert stream.ids == [f"{epoch}:{seq}" if seq else None for seq in (4, 5, None, 6, 7, 8)]
            assert counted(dialogue, "dialogue_streams") == 1
        await nothing_left(dialogue)
    assert ends(dialogue, "gone") == 1


async def test_a_reader_takes_no_place_in_the_room() -> None:
    """It counts in neither presence nor size, and is told of those who come and go."""
    dialogue = Dialogue(rooms(max_size=1), limits=Limits(presence_seconds=0.01))
    async with serve(dialogue) as address, open_stream(address, user_id="ann") as stream:
        assert dialogue.room("general").size == 0
        async with wire(address, "bob") as bob:
            await bob.ask("join", room="general")
            assert (await bob.ask("presence", room="general"))["users"] == ["bob"]
            change = await stream.until(
                lambda: next((m for m in stream.messages if m["type"] == "presence"), None)
            )
            assert (change["joined"], change["count"]) == (["bob"], 1)
        change = await stream.until(lambda: stream.messages[-1] if "left" in stream.messages[-1] else None)
        assert change["left"] == ["bob"]


async def test_only_what_is_asked_for_comes() -> None:
    """`events`, else the room's default; `sync` bounds the beginning; a jump in the ids is no hole."""
    options: dict[str, Any] = {"default_subscriptions": ["message"]}
    dialogue = Dialogue(rooms(**options))
    async with serve(dialogue) as address:
        for n in range(3):
            await dialogue.trigger("general", message, n)
            await dialogue.trigger("general", note, n)
        async with (
            open_stream(address) as default,
            open_stream(address, events=["note", "typing"], sync=1) as notes,
            open_stream(address, events="*", sync=0) as everything,
        ):
            assert default.joined["subscriptions"] == ["message"]
            assert [event["seq"] for event in notes.joined["events"]] == [6]
            assert (everything.joined["subscriptions"], everything.joined["events"]) == ("*", [])
            await dialogue.trigger("general", typing_event, 1)
            for n in range(3):
                await dialogue.trigger("general", message, n)
            await dialogue.trigger("general", note, 3)
            assert [event["seq"] for event in await everything.until_events(5)] == [None, 7, 8, 9, 10]
            assert [event["seq"] for event in await notes.until_events(2)] == [None, 10]
            assert [event["seq"] for event in await default.until_events(3)] == [7, 8, 9]


async def test_a_silent_stream_pings() -> None:
    """A comment after `ping_seconds`, again and again."""
    async with (
        serve(Dialogue(rooms(), limits=Limits(ping_seconds=0.05))) as address,
        open_stream(address) as stream,
    ):
        await stream.until(lambda: stream.pings >= 3)


# -- coming back -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", ["header", "query", "both"])
async def test_a_reader_comes_back_where_it_was(way: str, tmp_path: Path) -> None:
    """What it missed, and nothing else, though the rings have forgotten it; the header goes before the address."""
    dialogue = Dialogue(rooms(), store=f"sqlite:///{tmp_path}/chat.db")
    async with serve(dialogue) as address:
        async with open_stream(address) as stream:
            await dialogue.trigger("general", message, 0)
            await stream.until_events(1)
            epoch, _, seq = stream.last_id.partition(":")
        for n in range(20):
            await dialogue.trigger("general", message if n % 2 else note, n)
        query = {"after": 19 if way == "both" else seq, "epoch": epoch} if way != "header" else {}
        headers = {"Last-Event-ID": stream.last_id} if way != "query" else {}
        async with open_stream(address, headers=headers, **query) as stream:
            assert stream.joined["recovered"] is True
            assert stream.seqs() == list(range(2, 22))
            await dialogue.trigger("general", message, 20)
            await stream.until_events(1)
            assert stream.seqs() == list(range(2, 23))


async def test_a_cursor_that_means_nothing_any_more(tmp_path: Path) -> None:
    """Another epoch, a seq that is still to come, what retention has removed, too much: `recovered: false`."""
    kept = define_event("message", history=History(limit=3, retention=Retention(max_events=3)))
    config = RoomConfig(events=[kept, note], sync_history_on_join=3)
    limits = Limits(retention_seconds=0.02, replay_events=30)
    dialogue = Dialogue({"general": config}, store=f"sqlite:///{tmp_path}/chat.db", limits=limits)
    async with serve(dialogue) as address:
        for n in range(10):
            await dialogue.trigger("general", kept, n)
        await eventually(lambda: counted(dialogue, "dialogue_events_expired_total") == 7)
        epoch = dialogue.hub().store.epoch
        for after, of, expected in (
            (10, epoch, True),
            (7, epoch, True),
            (6, epoch, False),
            (11, epoch, False),
            (10, "another", False),
        ):
            async with open_stream(address, after=after, epoch=of) as stream:
                assert stream.joined["recovered"] is expected
                assert [event["seq"] for event in stream.joined["events"]] == (
                    list(range(after + 1, 11)) if expected else [8, 9, 10]
                )
        for n in range(31):
            await dialogue.trigger("general", note, n)
        async with open_stream(address, after=10, epoch=epoch) as stream:
            assert stream.joined["recovered"] is False


class Seen:
    """What one reader has seen over all its streams, beginning anew wherever it is told to."""

    def __init__(self) -> None:
        self.last_id: str | None = None
        self.restarts = 0
        self.start = 0
        self.seqs: list[int] = []
        self.has_seen_end = False

    def add(self, stream: Stream) -> None:
        """Take what a stream has brought, after it was cut."""
        joined = stream.joined
        if joined["recovered"] is True:
            events = joined["events"]
        else:
            self.restarts += 1
            self.start, self.seqs, events = joined["seq"], [], []
        events += [event for event in stream.events() if event["seq"] is not None]
        self.seqs += [event["seq"] for event in events]
        self.last_id = stream.last_id
        self.has_seen_end = "end" in [event["data"] for event in joined["events"] + events]


@pytest.mark.parametrize("is_durable", [True, False], ids=["sqlite", "memory"])
async def test_readers_that_are_cut_often_see_what_the_log_has(is_durable: bool, tmp_path: Path) -> None:
    """Publishers write and edit at once into small rings; some readers want one type; each comes back by its last id.

    With a log nobody is ever told to begin anew. With memory alone some are; what follows is complete again.
    """
    choice = random.Random(20)
    store = f"sqlite:///{tmp_path}/chat.db" if is_durable else None
    dialogue = Dialogue(rooms(), store=store, limits=Limits(**UNRATED, outbox_bytes=4096, page_events=7))
    log: list[Event[Any]] = []
    dialogue.on_triggered(lambda event: log.append(event))

    async def publish(address: str, user: str) -> None:
        async with wire(address, user) as client:
            await client.ask("join", room="general", sync=0, events=[])
            for _ in range(12):
                for _ in range(choice.randrange(1, 30)):
                    event = choice.choice(["message", "note", "typing"])
                    await client.send("trigger", room="general", event=event, data=choice.random())
                seq = (await client.trigger("general", "message", 1))["seq"]
                await client.send("edit", room="general", seq=seq, data=2)

    async def read(address: str, wanted: str) -> Seen:
        seen = Seen()
        while not seen.has_seen_end:
            headers = {} if seen.last_id is None else {"Last-Event-ID": seen.last_id}
            async with open_stream(address, headers=headers, events=wanted, sync=0) as stream:
                count = choice.randrange(80)
                await stream.until(
                    lambda: (
                        stream.is_closed
                        or len(stream.messages) > count
                        or any(event["data"] == "end" for event in stream.joined["events"] + stream.events())
                    )
                )
            seen.add(stream)
        return seen

    async with serve(dialogue) as address:
        async with asyncio.TaskGroup() as group:
            readers = [
                (wanted, group.create_task(read(address, wanted))) for wanted in ("*", "note", "*", "message")
            ]
            async with asyncio.TaskGroup() as publishers:
                for n in range(3):
                    publishers.create_task(publish(address, f"w{n}"))
            # Of each type, until each has come to somebody who had not to begin anew after it.
            for name in ("message", "note"):
                await dialogue.trigger("general", name, "end")
        last = dialogue.hub().rooms["general"].last_seq
        await eventually(lambda: log[-1].seq == last)
        recorded = [event for event in log if event.seq is not None]
        assert [event.seq for event in recorded] == list(range(1, last + 1))
        for wanted, reader in readers:
            seen = reader.result()
            names = {"*": {"message", "note", "$edit"}}.get(wanted, {wanted, "$edit"})
            expected = [
                event.seq for event in recorded if event.event in names and (event.seq or 0) > seen.start
            ]
            # It may have been cut after the first of the last two.
            assert seen.seqs == expected[: len(seen.seqs)]
            assert len(expected) - len(seen.seqs) <= 1
            assert seen.restarts == 1 or not is_durable
        await nothing_left(dialogue)
