"""A room over server-sent events: every event once and in order, whatever is cut, slow, taken back or stopped."""

from __future__ import annotations

import asyncio
import random
import socket
import time
import tracemalloc
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path
from typing import Any

import httpx2
import pytest
from fastapi import BackgroundTasks, Depends, FastAPI

from dialogue import (
    Dialogue,
    Event,
    History,
    Identity,
    JoinDenied,
    Limits,
    MemoryStore,
    Retention,
    RoomConfig,
    SQLStore,
    define_event,
)
from dialogue.config import DirectRoom

from ..rates import UNRATED
from .harness import (
    address_in_thread,
    eventually,
    message,
    note,
    rooms,
    serve,
    serve_in_thread,
    typing_event,
    wire,
)
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
            # Who comes into the room may be told anywhere in between.
            pairs = zip(stream.messages, stream.ids, strict=True)
            ids = [id for told, id in pairs if told["type"] != "presence"]
            assert ids == [f"{epoch}:{seq}" if seq else None for seq in (4, 5, None, 6, 7, 8)]
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


async def test_a_reader_who_asked_who_is_there_is_told_what_changes_after() -> None:
    """Also of who has come and gone again before others were told: the answer had named them."""
    dialogue = Dialogue(rooms(), limits=Limits(presence_seconds=1000))
    async with (
        serve(dialogue) as address,
        open_stream(address, user_id="ann") as stream,
        httpx2.AsyncClient(base_url=f"http://{address}") as http,
        wire(address, "bob") as bob,
    ):
        for is_asked in (False, True):
            await bob.ask("join", room="general")
            if is_asked:
                answer = await http.get("/rooms/general/presence?user_id=ann")
                assert answer.json()["users"] == ["bob"]
            await bob.ask("leave", room="general")
            presence = dialogue.hub().presence
            presence._timers["general"].cancel()
            presence._tell("general")
        change = await stream.until(lambda: stream.messages[1:])
        assert change == [{"type": "presence", "room": "general", "left": ["bob"], "count": 0}]


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
        query: dict[str, Any] = (
            {"after": 19 if way == "both" else seq, "epoch": epoch} if way != "header" else {}
        )
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


def is_enough(stream: Stream, count: int) -> bool:
    """Whether a stream has brought more than *count* messages, or the end."""
    events = stream.joined["events"] + stream.events()
    return stream.is_closed or len(stream.messages) > count or "end" in [event["data"] for event in events]


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
                await stream.until(partial(is_enough, stream, choice.randrange(80)))
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


# -- slow readers ----------------------------------------------------------------------------------------------------


BIG = "x" * 20_000


async def test_a_reader_that_falls_behind_reads_the_log_and_catches_up(tmp_path: Path) -> None:
    """Nothing is queued for it past `outbox_bytes`; ephemeral events are dropped and counted; no event is missed."""
    limits = Limits(**UNRATED, outbox_bytes=8192, page_events=10)
    dialogue = Dialogue(rooms(), store=f"sqlite:///{tmp_path}/chat.db", limits=limits)
    async with serve(dialogue) as address:
        async with open_stream(address, is_read=False) as stream:
            (follower,) = dialogue.hub().followers._by_room["general"]
            count = 0
            while not follower.is_behind or count < 1000:
                await asyncio.gather(*(dialogue.trigger("general", message, BIG) for _ in range(20)))
                await dialogue.trigger("general", typing_event, 1)
                count += 20
                assert follower._waiting_bytes <= 20 * len(BIG) + 8192
            assert counted(dialogue, "dialogue_stream_messages_dropped_total") > 0
            stream.read_on()
            await stream.until(lambda: len([s for s in stream.seqs() if s]) == count)
            assert stream.seqs() == list(range(1, count + 1))
            await eventually(lambda: not follower.is_behind)
            await dialogue.trigger("general", typing_event, "now")
            await stream.until(lambda: stream.events()[-1]["data"] == "now")
        await nothing_left(dialogue)


async def test_a_reader_for_whom_something_is_lost_is_ended_and_told_when_it_comes_back() -> None:
    """Memory has forgotten what it has not read: never a silent hole."""
    dialogue = Dialogue(rooms(), limits=Limits(**UNRATED, outbox_bytes=8192))
    async with serve(dialogue) as address:
        async with open_stream(address, is_read=False) as stream:
            (follower,) = dialogue.hub().followers._by_room["general"]
            count = 0
            while not follower.is_behind or count < 400:
                await dialogue.trigger("general", message, BIG)
                count += 1
            stream.read_on()
            await stream.until_closed()
            assert stream.has_ended
            assert stream.seqs() == list(range(1, len(stream.seqs()) + 1))
            assert len(stream.seqs()) < count
            last_id = stream.last_id
        assert ends(dialogue, "lost") == 1
        async with open_stream(address, headers={"Last-Event-ID": last_id}) as stream:
            assert stream.joined["recovered"] is False
        await nothing_left(dialogue)


async def test_a_reader_that_does_not_read_is_dropped(caplog: pytest.LogCaptureFixture) -> None:
    """After twice `ping_seconds`, and counted; the socket is not kept for its peer to take what was written."""
    dialogue = Dialogue(rooms(), limits=Limits(**UNRATED, ping_seconds=0.1))
    async with serve(dialogue) as address, open_stream(address, is_read=False) as stream:
        while not ends(dialogue, "slow"):
            await dialogue.trigger("general", message, BIG)
        await nothing_left(dialogue)
        # What is under way is still read, and then the connection turns out to be reset.
        stream.read_on()
        await stream.until_closed()
        assert not stream.has_ended
    assert "ASGI" not in caplog.text


async def test_a_reader_that_does_not_read_is_dropped_under_uvloop() -> None:
    """Which has transports of its own: nothing of the connection is left.

    A peer whose network is away is dropped by the system, after a while, and over other loops too.
    """
    dialogue = Dialogue(rooms(), limits=Limits(**UNRATED, ping_seconds=0.1))
    milliseconds: set[int] = set()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        async def look(event: Any) -> None:
            await send(event)
            if event["type"] == "http.response.start":
                found = receive.__self__.transport.get_extra_info("socket")
                milliseconds.add(found.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT))

        await dialogue.app(scope, receive, look)

    async with (
        serve_in_thread(app, loop="uvloop") as server,
        open_stream(address_in_thread(server), is_read=False),
    ):
        while not ends(dialogue, "slow"):
            await asyncio.to_thread(dialogue.trigger_sync, "general", message, BIG)
        await eventually(lambda: not server.server_state.connections)
    assert milliseconds == {10_000}


# -- access ----------------------------------------------------------------------------------------------------------


async def test_who_may_not_read_gets_no_stream() -> None:
    """The status of the refusal, and nothing of a stream; reading is what the guard is asked for."""
    asked: list[str] = []
    hidden = {"hidden": RoomConfig(events=[message]), "dm:{a}:{b}": DirectRoom(events=[message])}
    dialogue = with_users(rooms=rooms() | hidden, allowed_origins=["https://good.example"])

    @dialogue.before_join("general")
    def guard(client: Any, purpose: str) -> None:
        asked.append(purpose)
        if client.user_id == "eve":
            raise JoinDenied("not you")

    dialogue.can_see("hidden")(lambda: False)
    async with serve(dialogue) as address:
        for room, headers, status in (
            ("general", {}, 401),
            ("general", bearer("eve"), 403),
            ("general", bearer("ann") | {"Origin": "https://evil.example"}, 403),
            ("hidden", bearer("ann"), 404),
            ("nowhere", bearer("ann"), 404),
            ("dm:ann:bob", bearer("eve"), 403),
        ):
            queries: list[dict[str, Any]] = [{}, {"wait_seconds": 5}]
            for query in queries:
                async with open_stream(address, room, headers=headers, **query) as stream:
                    assert stream.status == status, (room, headers)
                    assert stream.headers["content-type"] == "application/json"
        async with open_stream(address, headers=bearer("ann") | {"Origin": "https://good.example"}) as stream:
            assert stream.headers["access-control-allow-origin"] == "https://good.example"
        assert asked == ["read"] * 3
        await nothing_left(dialogue)


async def test_access_that_is_taken_back_ends_the_stream() -> None:
    """`left` with the reason, after what came before; others read on."""
    dialogue = Dialogue(rooms())
    async with (
        serve(dialogue) as address,
        open_stream(address, user_id="ann") as ann,
        open_stream(address, user_id="ann") as second,
        open_stream(address, user_id="bob") as bob,
    ):
        await dialogue.trigger("general", message, 1)
        await dialogue.remove_from_room("ann", "general", reason="enough")
        await dialogue.trigger("general", message, 2)
        for stream in (ann, second):
            await stream.until_closed()
            assert stream.has_ended
            assert stream.seqs() == [1]
            assert stream.messages[-1] == {"type": "left", "room": "general", "reason": "enough"}
        await bob.until_events(2)
        assert ends(dialogue, "left") == 2


async def test_a_deleted_room_ends_its_streams() -> None:
    """`left`; one of the same id that is made then is another room."""
    dialogue = Dialogue(rooms(), client_rooms=RoomConfig(events=[message]))
    async with serve(dialogue) as address:
        await dialogue.create_room("made", name="Made")
        async with open_stream(address, "made") as stream:
            await dialogue.trigger("made", message, 1)
            await stream.until_events(1)
            await dialogue.delete_room("made")
            await dialogue.create_room("made", name="Made")
            await dialogue.trigger("made", message, 2)
            await stream.until_closed()
            assert [event["data"] for event in stream.events()] == [1]
            assert stream.messages[-1]["type"] == "left"
            assert stream.messages[-1]["reason"] == "the room was deleted"
        async with open_stream(address, "made", headers={"Last-Event-ID": stream.last_id}) as stream:
            assert [event["data"] for event in stream.joined["events"]] == [2]
        await nothing_left(dialogue)


async def test_credentials_that_expire_end_the_stream_and_the_poll() -> None:
    """The client comes back with others, and misses nothing."""
    dialogue = Dialogue(rooms())
    until = time.time() + 1000

    @dialogue.authenticate
    def authenticate() -> Identity:
        return Identity("ann", expires_at=until)

    async with requests(dialogue) as http:
        address = f"{http.base_url.host}:{http.base_url.port}"
        until = time.time() + 0.3
        async with open_stream(address) as stream:
            epoch = stream.joined["epoch"]
            poll = await http.get(
                "/rooms/general/events", params={"after": 0, "epoch": epoch, "wait_seconds": 50}
            )
            assert (poll.status_code, poll.json()["code"]) == (401, "UNAUTHENTICATED")
            await stream.until_closed()
            assert stream.has_ended
            assert [m["type"] for m in stream.messages] == ["joined"]
        assert ends(dialogue, "expired") == 1
        await nothing_left(dialogue)


@pytest.mark.usefixtures("no_refill")
async def test_streams_count_as_requests_and_joins() -> None:
    """As many at a time as a user has connections; opening one is rated as a join, a poll as a read."""
    limits = Limits(
        connections_per_user=2,
        user_joins_per_second=1,
        user_joins_burst=2,
        user_reads_per_second=1,
        user_reads_burst=1,
    )
    dialogue = with_users(limits=limits)
    async with serve(dialogue) as address:
        ann = bearer("ann")
        async with open_stream(address, headers=ann), open_stream(address, headers=ann):
            async with open_stream(address, headers=ann) as third:
                assert third.status == 429
            async with open_stream(address, headers=bearer("bob")) as stream:
                assert stream.status == 200
        await nothing_left(dialogue)
        async with open_stream(address, headers=ann) as third:
            assert third.status == 429  # two joins at once
        for status in (200, 429):
            async with open_stream(address, headers=ann, is_read=False, wait_seconds=0) as poll:
                assert poll.status == status


# -- what a room does meanwhile --------------------------------------------------------------------------------------


async def test_a_room_sleeps_and_wakes_under_a_stream(tmp_path: Path) -> None:
    """It takes no memory while it is quiet, and what comes then is told."""
    limits = Limits(idle_seconds=0.05, ping_seconds=0.2)
    dialogue = Dialogue(rooms(), store=f"sqlite:///{tmp_path}/chat.db", limits=limits)
    async with serve(dialogue) as address:
        await dialogue.trigger("general", message, 0)
        async with open_stream(address) as stream:
            for n in range(1, 4):
                await eventually(lambda: not dialogue.hub().rooms)
                await dialogue.trigger("general", message, n)
                await stream.until_events(n)
            assert stream.seqs() == [1, 2, 3, 4]


class HeldPages(SQLStore):
    """A store whose pages are read at once, and given out when they are let go."""

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self.asked, self.go_on = asyncio.Event(), asyncio.Event()
        self.go_on.set()

    async def page(self, *args: Any, **kwargs: Any) -> Any:
        found = await super().page(*args, **kwargs)
        if kwargs["limit"] > 1:  # one is what a change looks for
            self.asked.set()
            await self.go_on.wait()
        return found


async def test_an_event_that_is_changed_while_it_is_read_comes_as_it_is(tmp_path: Path) -> None:
    """What was deleted does not come back to life; that it was deleted follows. Joining, and for one who is behind."""
    store = HeldPages(f"sqlite:///{tmp_path}/chat.db")
    dialogue = Dialogue(rooms(), store=store)
    async with serve(dialogue) as address:
        for n in range(10):
            await dialogue.trigger("general", message, n)

        async def delete(seq: int) -> None:
            await store.asked.wait()
            await dialogue.delete("general", seq)
            store.go_on.set()

        store.go_on.clear()
        deleting = asyncio.create_task(delete(1))
        async with open_stream(address, after=0, epoch=store.epoch) as stream:
            await deleting
            await stream.until(lambda: 11 in stream.seqs())
            assert stream.seqs() == list(range(1, 12))
            first = stream.joined["events"][0]
            assert (first["data"], first["deleted"]) == (None, True)

            store.go_on.clear()
            store.asked.clear()
            (follower,) = dialogue.hub().followers._by_room["general"]
            follower.seq = 1  # as if nothing had been sent since
            follower.fall_behind()
            await delete(2)
            await stream.until(lambda: 12 in stream.seqs())
            assert stream.seqs() == [*range(1, 12), *range(2, 13)]
            first = next(event for event in stream.events() if event["seq"] == 2)
            assert (first["data"], first["deleted"]) == (None, True)


async def test_access_that_is_taken_back_while_the_log_is_read(tmp_path: Path) -> None:
    """What was being read is not told any more."""
    store = HeldPages(f"sqlite:///{tmp_path}/chat.db")
    dialogue = Dialogue(rooms(), store=store)
    async with serve(dialogue) as address, open_stream(address, user_id="ann") as stream:
        for n in range(10):
            await dialogue.trigger("general", message, n)
        await stream.until_events(10)
        (follower,) = dialogue.hub().followers._by_room["general"]
        store.go_on.clear()
        store.asked.clear()
        follower.seq = 0
        follower.fall_behind()
        await store.asked.wait()
        await dialogue.remove_from_room("ann", "general")
        store.go_on.set()
        await stream.until_closed()
        assert stream.seqs() == list(range(1, 11))
        assert stream.messages[-1]["type"] == "left"


async def test_a_log_that_cannot_be_read_ends_the_stream(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The client comes back; a fault is logged, and harms nobody else."""
    store = HeldPages(f"sqlite:///{tmp_path}/chat.db")
    dialogue = Dialogue(rooms(), store=store)
    async with serve(dialogue) as address, open_stream(address) as stream, open_stream(address) as other:
        for n in range(10):
            await dialogue.trigger("general", message, n)
        await stream.until_events(10)
        follower = next(iter(dialogue.hub().followers._by_room["general"]))
        store.page = None  # type: ignore[assignment, method-assign]
        follower.seq = 0
        follower.fall_behind()
        await stream.until_closed()
        assert stream.has_ended
        await dialogue.trigger("general", message, 10)
        await other.until_events(11)
    assert ends(dialogue, "failed") == 1
    assert "a stream of room 'general' failed" in caplog.text


# -- any server ------------------------------------------------------------------------------------------------------


class Channel:
    """The two ends of one request over plain ASGI.

    Attributes:
        sent: What the application has sent.
        on_send: Awaited with each part of the answer.
        leave: Lets the client go.
    """

    def __init__(self, dialogue: Dialogue) -> None:
        self.dialogue = dialogue
        self.sent: list[Any] = []
        self.leave = asyncio.Event()
        self.failure: Exception | None = None

    async def receive(self) -> Any:
        await self.leave.wait()
        if self.failure is not None:
            raise self.failure
        return {"type": "http.disconnect"}

    async def send(self, message: Any) -> None:
        self.sent.append(message)
        await self.on_send(message)

    async def on_send(self, message: Any) -> None:
        pass

    def start(self) -> asyncio.Task[None]:
        scope = {
            "type": "http",
            "asgi": {"version": "3.0"},
            "http_version": "1.1",
            "method": "GET",
            "scheme": "http",
            "path": "/rooms/general/events",
            "raw_path": b"/rooms/general/events",
            "query_string": b"",
            "root_path": "",
            "headers": [(b"host", b"localhost")],
            "client": ("127.0.0.1", 1),
            "server": ("localhost", 80),
        }
        return asyncio.create_task(self.dialogue.app(scope, self.receive, self.send))


async def test_a_server_that_says_by_an_error_that_the_reader_went() -> None:
    """That is no fault of anybody's."""
    dialogue = Dialogue(rooms())
    async with dialogue.lifespan():
        channel = Channel(dialogue)

        async def gone(message: Any) -> None:
            if b'"type":"event"' in message.get("body", b""):
                raise BrokenPipeError

        channel.on_send = gone  # type: ignore[method-assign]
        task = channel.start()
        await eventually(lambda: len(channel.sent) == 2)
        await dialogue.trigger("general", message, 1)
        await task
        assert ends(dialogue, "gone") == 1
        await nothing_left(dialogue)


async def test_a_reader_that_does_not_read_under_another_server() -> None:
    """The answer ends; what becomes of the connection is that server's business."""
    dialogue = Dialogue(rooms(), limits=Limits(ping_seconds=0.05))
    async with dialogue.lifespan():
        channel = Channel(dialogue)

        async def wait(message: Any) -> None:
            await asyncio.Event().wait()

        channel.on_send = wait  # type: ignore[method-assign]
        await channel.start()
        assert ends(dialogue, "slow") == 1
        await nothing_left(dialogue)


async def test_a_slow_network_is_not_taken_for_a_reader_that_has_gone() -> None:
    """What is sent goes in pieces, each with its time: a long message over a slow line takes longer than that."""
    dialogue = Dialogue(rooms(), limits=Limits(ping_seconds=0.5))
    async with dialogue.lifespan():
        for _ in range(5):
            await dialogue.trigger("general", "message", "x" * 60_000)
        channel = Channel(dialogue)
        sizes: list[int] = []

        async def pass_slowly(message: Any) -> None:
            if b": ping" not in message.get("body", b""):
                sizes.append(len(message.get("body", b"")))
                await asyncio.sleep(sizes[-1] / 150_000)

        channel.on_send = pass_slowly  # type: ignore[method-assign]
        task = channel.start()
        await eventually(lambda: channel.sent and channel.sent[-1].get("body") == b": ping\n\n")
        channel.leave.set()
        await task
        assert ends(dialogue, "gone") == 1
        assert (sum(sizes) > 180_000, max(sizes)) == (True, 65_536)
        stream = b"".join(event.get("body", b"") for event in channel.sent)
        assert stream.count(b'"seq":') == 1 + 3


async def test_a_stream_does_not_keep_what_it_has_sent() -> None:
    """Its beginning may be large, and it may be open for days."""
    dialogue = Dialogue(rooms())

    def size(part: Any) -> int:
        return len(part.get("body", b""))

    async with dialogue.lifespan():
        for _ in range(3):
            await dialogue.trigger("general", message, "x" * 60_000)
        channels = [Channel(dialogue) for _ in range(20)]
        assert dialogue.app  # made now, and not counted
        tracemalloc.start()
        try:
            tasks = [channel.start() for channel in channels]
            await eventually(lambda: all(sum(map(size, channel.sent)) > 180_000 for channel in channels))
            for channel in channels:
                channel.sent.clear()
            await asyncio.gather(*(asyncio.sleep(0) for _ in channels))
            kept, _ = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert kept < 20 * 90_000
        for channel in channels:
            channel.leave.set()
        await asyncio.gather(*tasks)


async def test_what_a_dependency_leaves_to_do_is_done_when_the_stream_ends() -> None:
    """As for any other answer. One that yields ends with the stream, or before it where it says so."""
    dialogue = Dialogue(rooms())
    done: list[str] = []

    async def note_use(tasks: BackgroundTasks) -> None:
        tasks.add_task(done.append, "task")

    async def hold() -> AsyncIterator[None]:
        yield
        done.append("held")

    async def let_go() -> AsyncIterator[None]:
        yield
        done.append("let go")

    app = FastAPI()
    dependencies = [Depends(note_use), Depends(hold), Depends(let_go, scope="function")]
    app.include_router(dialogue.router, dependencies=dependencies)
    async with serve(app) as address:
        async with open_stream(address):
            assert done == ["let go"]
        await eventually(lambda: len(done) == 3)
        assert done == ["let go", "task", "held"]


async def test_an_answer_that_is_cancelled_leaves_nothing() -> None:
    """As servers end what is open when their time for a stop is over."""
    dialogue = Dialogue(rooms())
    async with dialogue.lifespan():
        channel = Channel(dialogue)
        task = channel.start()
        await eventually(lambda: len(channel.sent) == 2)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await nothing_left(dialogue)


async def test_a_server_that_cannot_tell_whether_the_reader_is_there(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The stream ends, and the log says why."""
    dialogue = Dialogue(rooms())
    async with dialogue.lifespan():
        channel = Channel(dialogue)
        channel.failure = RuntimeError("broken server")
        channel.leave.set()
        await channel.start()
        await nothing_left(dialogue)
    assert "broken server" in caplog.text


class Pretty(MemoryStore):
    """A store that writes JSON for people."""

    async def append(self, drafts: Any) -> Any:
        for draft in drafts:
            draft.data_json = b'{\n  "a": "\\n",\r\n  "b": 1\r}'
        return await super().append(drafts)


async def test_a_message_is_one_line_however_a_store_writes_it() -> None:
    """A line's end would end the data; in strings it is escaped."""
    dialogue = Dialogue(rooms(), store=Pretty())
    async with serve(dialogue) as address:
        await dialogue.trigger("general", message, 0)
        async with open_stream(address) as stream:
            await dialogue.trigger("general", message, 0)
            (event,) = await stream.until_events(1)
            assert event["data"] == stream.joined["events"][0]["data"] == {"a": "\n", "b": 1}


async def test_a_room_that_is_read_again_is_told_in_full(tmp_path: Path) -> None:
    """What is in the log and was not told, after a fault in a store, is found there; the stream goes on."""
    dialogue = Dialogue(rooms(), store=f"sqlite:///{tmp_path}/chat.db")
    async with serve(dialogue) as address, open_stream(address) as stream:
        hub = dialogue.hub()
        await dialogue.trigger("general", message, 1)
        await stream.until_events(1)
        room = hub.rooms["general"]
        room.last_seq = 5  # so the next one does not follow
        dialogue.logger.disabled = True
        try:
            await dialogue.trigger("general", message, 2)
        finally:
            dialogue.logger.disabled = False
        await stream.until_events(2)
        await dialogue.trigger("general", message, 3)
        await stream.until_events(3)
        assert stream.seqs() == [1, 2, 3]
        # Likewise where it was not even told that a room was read again.
        (follower,) = hub.followers._by_room["general"]
        follower._through -= 1
        follower.seq -= 1
        await dialogue.trigger("general", message, 4)
        await stream.until_events(5)
        assert stream.seqs() == [1, 2, 3, 3, 4]
