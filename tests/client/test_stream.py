"""`Room.stream` against the real server: exactly once, in order, or an error that says why not."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import random
from pathlib import Path
from typing import Any

import pytest

from dialogue import Dialogue, History, Limits, MemoryStore, RoomConfig, SQLStore, define_event
from dialogue.client import DialogueClient, Gap, Room, Stream, Timing
from dialogue.errors import (
    ConnectionLost,
    EventNotAllowed,
    NotJoined,
    StoreUnavailable,
    StreamBroken,
)
from dialogue.events import Event
from dialogue.testing import FaultyStore, connect, link

from .fake import FakeSocketServer, until
from .test_against_server import connected, serving

message = define_event("message", history=History(limit=5))
alert = define_event("alert", history=History(limit=2))
typing = define_event("typing")
EVENTS = [message, alert, typing]


def make_dialogue(store: Any, **options: Any) -> Dialogue:
    return Dialogue(
        rooms={"general": RoomConfig(name="General", events=EVENTS)},
        store=store,
        **{"limits": Limits.unlimited(), **options},
    )


@pytest.fixture
def store(tmp_path: Path) -> str:
    """A log that outlives its rings."""
    return f"sqlite:///{tmp_path / 'log.db'}"


async def taken(stream: Stream[Any], count: int) -> list[int | None]:
    """Return the seqs of the next *count* events."""
    return [(await anext(stream)).seq for _ in range(count)]


async def publish(room: Room, count: int, event: Any = message) -> None:
    for n in range(count):
        await room.trigger(event, n)


async def test_from_the_beginning_into_live(store: str) -> None:
    """Any past seq will do; without one it begins where the join ended; several at once have their own places."""
    dialogue = make_dialogue(store)
    async with connect(dialogue, user_id="ann") as ann, connect(dialogue, user_id="bob") as bob:
        ours = await ann.join("general")
        await publish(ours, 30)
        room = await bob.join("general", sync=0)
        everything, late, live = (
            room.stream(after=0, page_size=7),
            room.stream("message", after=25, epoch=room.epoch),
            room.stream(message),
        )
        assert await taken(everything, 30) == list(range(1, 31))
        await publish(ours, 3)
        await ours.trigger(typing)
        for stream, first in ((everything, 31), (late, 26), (live, 31)):
            assert await taken(stream, 34 - first) == list(range(first, 34))
            assert stream.cursor == 33
        assert [event.seq async for event in room.stream(after=30, follow=False)] == [31, 32, 33]
        assert [event.seq async for event in room.stream(after=33, follow=False)] == []


async def test_what_the_join_brought_and_a_stream_have_no_hole(store: str) -> None:
    """Whatever comes between the join's answer and the stream's beginning."""
    dialogue = make_dialogue(store)
    async with connect(dialogue, user_id="ann") as ann, connect(dialogue, user_id="bob") as bob:
        ours = await ann.join("general")
        await publish(ours, 3)
        publishing = [asyncio.create_task(ours.trigger(message, n)) for n in range(50)]
        room = await bob.join("general", sync=100)
        stream = room.stream()
        seqs = [event.seq for event in reversed(room.history)]
        await asyncio.gather(*publishing)
        seqs += await taken(stream, 53 - len(seqs))
        assert seqs == list(range(1, 54))


async def test_several_events_are_merged(store: str) -> None:
    """In room order, the rarer one as the busier one; one that is not asked for is left out."""
    dialogue = make_dialogue(store)
    async with connect(dialogue, user_id="ann") as ann:
        room = await ann.join("general")
        expected = []
        for n in range(60):
            event = alert if n in (3, 4, 40) else message
            ack = await room.trigger(event, n)
            expected.append((ack.seq, event.name))
        both = room.stream([message, "alert"], after=0, page_size=8)
        one = room.stream(alert, after=0, page_size=8)
        for n in range(60, 70):
            await room.trigger(message if n % 2 else alert, n)
            expected.append((n + 1, "message" if n % 2 else "alert"))
        assert [(event.seq, event.event) for event in [await anext(both) for _ in expected]] == expected
        alerts = [seq for seq, name in expected if name == "alert"]
        assert await taken(one, len(alerts)) == alerts


async def test_changes_come_when_they_are_asked_for(store: str) -> None:
    """By name, or with everything; what was changed before is read as it is by then."""
    dialogue = make_dialogue(store)
    async with connect(dialogue, user_id="ann") as ann:
        room = await ann.join("general")
        await publish(room, 12)
        everything, messages, edits = (
            room.stream(after=0),
            room.stream(message, after=0),
            room.stream([message, "$edit", "$delete"], after=0),
        )
        await room.edit(1, "new")
        await room.delete(2)
        await room.trigger(message, "last")
        assert await taken(messages, 13) == [*range(1, 13), 15]
        for stream in (everything, edits):
            events = [await anext(stream) for _ in range(15)]
            assert [event.seq for event in events] == list(range(1, 16))
            assert [(event.data, event.is_edited, event.is_deleted) for event in events[:2]] == [
                ("new", True, False),
                (None, False, True),
            ]
            assert [event.event for event in events[12:14]] == ["$edit", "$delete"]
        assert await taken(room.stream("$edit", after=0), 1) == [13]


async def test_a_slow_reader_holds_up_nobody(store: str) -> None:
    """Its buffer is bounded; handlers go on; what fell out is read again, also over a loss with too much missed."""
    dialogue = make_dialogue(store, limits=Limits.unlimited().model_copy(update={"replay_events": 5}))
    async with connect(dialogue, user_id="ann") as ann, connect(dialogue, user_id="bob") as bob:
        ours, room = await ann.join("general"), await bob.join("general")
        stream = room.stream(max_buffered_events=3)
        heard: list[Any] = []
        resets: list[None] = []
        room.on(message, lambda event: heard.append(event.seq))
        room.on_reset(lambda: resets.append(None))
        await publish(ours, 20)
        await until(lambda: len(heard) == 20)
        assert stream._buffer is None
        with link(bob).down():
            await publish(ours, 20)
        await until(lambda: resets)
        waiting = asyncio.create_task(taken(stream, 41))
        await publish(ours, 1)
        assert await waiting == list(range(1, 42))


async def test_a_loss_while_live(store: str) -> None:
    """Resumed, or not: the gap never shows, and the reader that waits is woken."""
    dialogue = make_dialogue(store, limits=Limits.unlimited().model_copy(update={"replay_events": 5}))
    async with connect(dialogue, user_id="ann") as ann, connect(dialogue, user_id="bob") as bob:
        ours, room = await ann.join("general"), await bob.join("general")
        stream = room.stream()
        seqs: list[int | None] = []
        for missed in (3, 30, 0, 6):
            reading = asyncio.create_task(taken(stream, missed + 1))
            with link(bob).down():
                await publish(ours, missed)
            await publish(ours, 1)
            seqs += await reading
        assert seqs == list(range(1, len(seqs) + 1))


@pytest.mark.parametrize("seed", range(3))
async def test_whatever_happens_it_equals_the_log(store: str, seed: int) -> None:
    """Publishers, tiny rings, cuts, holds, resumes that cannot bring everything, readers of every speed."""
    chance = random.Random(seed)
    limits = Limits.unlimited().model_copy(update={"replay_events": 10, "page_events": 9})
    dialogue = make_dialogue(store, limits=limits)
    async with contextlib.AsyncExitStack() as stack:
        clients = [
            await stack.enter_async_context(
                connect(dialogue, user_id=name, queue_events=chance.choice([4, 1000]), stall_seconds=0.01)
            )
            for name in ("ann", "bob", "eve")
        ]
        rooms = [await client.join("general", sync=0) for client in clients]
        await publish(rooms[0], chance.randrange(7, 30))
        count, acked, progress = 160, list[int | None](), asyncio.Event()

        async def write(room: Room) -> None:
            for n in range(count // 2):
                ack = await room.trigger(chance.choice([message, message, message, alert]), n)
                acked.append(ack.seq)
                progress.set()

        async def read(room: Room, names: Any, after: int) -> list[Any]:
            stream = room.stream(
                names,
                after=after,
                page_size=chance.randrange(1, 20),
                max_buffered_events=chance.choice([1, 2, 8, 1000]),
            )
            pace = chance.choice([0, 0, 1, 5])
            found: list[Any] = []
            while True:
                event = await anext(stream)
                for _ in range(chance.randrange(pace + 1)):
                    await asyncio.sleep(0)
                if event.data == "end":
                    return found
                found.append((event.seq, event.event, event.data))

        async def disturb() -> None:
            while len(acked) < count:
                line = link(chance.choice(clients))
                if chance.randrange(2):
                    line.cut()
                else:
                    line.hold()
                    for _ in range(chance.randrange(40)):
                        await asyncio.sleep(0)
                    line.release()
                more = chance.randrange(1, 12)
                while more and len(acked) < count:
                    progress.clear()
                    await progress.wait()
                    more -= 1

        wanted: list[Any] = [None, message, alert, [message, alert]]
        starts = [(room, chance.choice(wanted), chance.choice([0, 0, 7])) for room in rooms * 3]
        readers = [asyncio.create_task(read(*start)) for start in starts]
        await asyncio.gather(write(rooms[0]), write(rooms[1]), disturb())
        await rooms[0].trigger(message, "end")
        await rooms[0].trigger(alert, "end")
        log = [event async for event in rooms[0].scroll(page_size=9)][::-1]
        assert len(log) >= count
        for (_, names, after), reader in zip(starts, readers, strict=True):
            named = [names] if names in (message, alert) else names or [message, alert]
            chosen = {event_type.name for event_type in named}
            assert await reader == [
                (event.seq, event.event, event.data)
                for event in log
                if (event.seq or 0) > after and event.data != "end" and event.event in chosen
            ]


@pytest.mark.parametrize("seed", range(2))
async def test_begun_again_wherever_it_ended_it_equals_the_log(store: str, seed: int) -> None:
    """Timeouts around each event, subscriptions changed and given up, memberships ended by either side, cuts."""
    chance = random.Random(seed)
    limits = Limits.unlimited().model_copy(update={"replay_events": 5, "page_events": 7})
    dialogue = make_dialogue(store, limits=limits)
    async with connect(dialogue, user_id="ann") as ann, connect(dialogue, user_id="bob") as bob:
        ours = await ann.join("general", sync=0)
        await bob.join("general", sync=0)
        count, is_over = 80, False
        ends: list[tuple[str, int]] = []

        async def write() -> None:
            for n in range(count):
                await ours.trigger(chance.choice([message, alert]), n)
                for _ in range(chance.randrange(20)):
                    await asyncio.sleep(0)

        async def disturb() -> None:
            while not is_over:
                room = bob.room("general")
                with contextlib.suppress(NotJoined, TimeoutError):
                    async with asyncio.timeout(chance.choice([0, 0.001, None])):
                        match chance.randrange(16):
                            case 0:
                                await room.leave()
                            case 1:
                                for handle in dialogue.clients_of("bob"):
                                    await handle.leave("general")
                            case 2 | 3:
                                await room.unsubscribe(chance.choice([message, alert]))
                            case 4:
                                link(bob).cut()
                            case 5:
                                await room.subscribe()
                for _ in range(chance.randrange(60)):
                    await asyncio.sleep(0)

        async def read() -> list[int | None]:
            found: list[int | None] = []
            stream: Stream[Any] | None = None
            while len(found) < count:
                try:
                    if stream is None:
                        room = await bob.join("general", sync=0, events="*")
                        stream = room.stream(
                            [message, alert],
                            after=len(found),
                            page_size=chance.randrange(1, 9),
                            max_buffered_events=chance.choice([1, 5, 100]),
                        )
                    async with asyncio.timeout(chance.choice([0, 0.0005, None])):
                        found.append((await anext(stream)).seq)
                except TimeoutError:
                    continue
                except StreamBroken as error:
                    stream = None
                    ends.append((error.reason, error.after - len(found)))
                except (NotJoined, StopAsyncIteration):
                    stream = None
            return found

        writing, disturbing = asyncio.create_task(write()), asyncio.create_task(disturb())
        for seqs in await asyncio.gather(read(), read()):
            assert seqs == list(range(1, count + 1))
        await writing
        is_over = True
        await disturbing
        assert set(ends) <= {("unsubscribed", 0)}


async def test_what_was_removed_is_told() -> None:
    """Raised, with where to go on; or told, and gone on behind it."""
    dialogue = make_dialogue(MemoryStore())
    async with connect(dialogue, user_id="ann") as ann:
        room = await ann.join("general")
        await publish(room, 8)
        await publish(room, 3, alert)
        stream = room.stream(message, after=1)
        for _ in range(2):
            with pytest.raises(
                StreamBroken, match=r"'general' ends after seq 1: .* removed for good"
            ) as raised:
                await anext(stream)
        error = raised.value
        assert (error.reason, error.after, error.resume_after) == ("retention", 1, 3)
        assert await taken(room.stream(message, after=error.resume_after), 5) == [4, 5, 6, 7, 8]
        gaps: list[Gap] = []
        both = room.stream([message, alert], after=0, on_gap=gaps.append)
        assert await taken(both, 7) == [4, 5, 6, 7, 8, 10, 11]
        assert gaps == [Gap(1, 9, "retention"), Gap(1, 3, "retention")]

        async def keep(gap: Gap) -> None:
            await asyncio.sleep(0)
            gaps.append(gap)

        assert await taken(room.stream(message, after=0, on_gap=keep), 2) == [4, 5]
        assert gaps[2:] == [Gap(1, 3, "retention")]


async def test_rows_without_a_seq_cannot_be_followed() -> None:
    """An archive that keeps none is no past to follow; what has a seq is."""
    dialogue = make_dialogue(None)
    kept: list[dict[str, Any]] = []

    @dialogue.on_cleanup
    async def keep(room_id: str, event_name: str, events: list[Any]) -> None:
        kept.extend(
            {"event": event.event, "data": event.data, "from": event.sender, "timestamp": event.timestamp}
            for event in events
        )

    @dialogue.on_load
    async def load(room_id: str, event_name: str, start: int, end: int) -> list[dict[str, Any]]:
        rows = [row for row in kept if row["event"] == event_name]
        return rows[::-1][start:end]

    async with connect(dialogue, user_id="ann") as ann:
        room = await ann.join("general")
        await publish(room, 9)
        await until(lambda: len(kept) == 4)
        with pytest.raises(StreamBroken, match=r"keeps no seq.*stream\(after=4\) goes on") as raised:
            await anext(room.stream(message, after=0))
        assert raised.value.reason == "no_seq"
        assert await taken(room.stream(message, after=4), 5) == [5, 6, 7, 8, 9]


async def test_another_log_is_told() -> None:
    """Seqs of before mean nothing: live, while reading pages, kept by the application, or above all there is."""
    dialogue = make_dialogue(MemoryStore())
    async with contextlib.AsyncExitStack() as stack:
        async with serving(dialogue) as port:
            client = await stack.enter_async_context(connected(f"http://127.0.0.1:{port}"))
            room = await client.join("general")
            epoch = room.epoch
            live, behind = room.stream(), room.stream(after=0, page_size=1)
            reading = asyncio.create_task(anext(live))
            await publish(room, 2)
            assert (await reading).seq == 1
            assert (await anext(behind)).seq == 1
        async with serving(make_dialogue(MemoryStore()), port):
            for stream in (live, behind):
                with pytest.raises(StreamBroken) as raised:
                    await taken(stream, 2)
                assert (raised.value.reason, raised.value.resume_after) == ("epoch", None)
                assert raised.value.after == stream.cursor == 2
            await until(lambda: room.epoch != epoch)
            with pytest.raises(StreamBroken):
                room.stream(after=1, epoch=epoch)
            with pytest.raises(StreamBroken, match="another life"):
                await anext(room.stream(after=1))
            stream = room.stream()
            await publish(room, 1)
            assert (await anext(stream)).seq == 1
            await client.aclose()


async def test_a_cursor_that_another_client_got_further_with(store: str) -> None:
    """It is above what this client knows of yet, and yet of this log."""
    dialogue = make_dialogue(store)
    async with connect(dialogue, user_id="ann") as ann, connect(dialogue, user_id="bob") as bob:
        ours, room = await ann.join("general"), await bob.join("general")
        with link(bob).down():
            await publish(ours, 4)
            stream = room.stream(after=3)
        assert await taken(stream, 1) == [4]


async def test_its_end_is_told(store: str) -> None:
    """One's own doing ends it; what the server does is raised, after what came before."""
    dialogue = make_dialogue(store)
    async with connect(dialogue, user_id="ann") as ann, connect(dialogue, user_id="bob") as bob:
        ours, room = await ann.join("general"), await bob.join("general")
        stream = room.stream()
        reading = asyncio.create_task(anext(stream, None))
        await asyncio.sleep(0)
        await stream.aclose()
        await stream.aclose()
        assert await reading is None
        stream = room.stream()
        reading = asyncio.create_task(anext(stream, None))
        await room.leave()
        assert await reading is None
        with pytest.raises(NotJoined):
            room.stream()
        await publish(ours, 2)
        room = await bob.join("general")
        stream, behind = room.stream(), room.stream(after=0)
        await publish(ours, 2)
        await until(lambda: room._newest_seq == 4)
        (handle,) = dialogue.clients_of("bob")
        await handle.leave("general")
        await until(lambda: not room.is_joined)
        assert await taken(stream, 2) == [3, 4]
        for ended in (stream, behind):
            with pytest.raises(NotJoined, match="has ended"):
                await anext(ended)
        stream = ours.stream()
        reading = asyncio.create_task(anext(stream, None))
        await asyncio.sleep(0)
        await ann.aclose()
        assert await reading is None


async def test_being_refused_for_good_is_raised() -> None:
    """Credentials that are not taken any more end the client, and its streams with it."""
    async with (
        FakeSocketServer().running() as server,
        DialogueClient(server.url, timing=Timing(backoff_seconds=0.01)) as client,
    ):
        room = await client.join("general")
        stream = room.stream()
        reading = asyncio.create_task(anext(stream))
        server.refuse_connect = "UNAUTHENTICATED"
        await server.drop()
        with pytest.raises(ConnectionLost):
            await reading


async def test_nothing_is_left_behind(store: str) -> None:
    """A loop that is broken out of, a reader that is cancelled; the latter has lost nothing."""
    dialogue = make_dialogue(store)
    async with connect(dialogue, user_id="ann") as ann:
        room = await ann.join("general")
        await publish(room, 11)
        tasks = asyncio.all_tasks()
        async for event in room.stream(after=0, page_size=2):
            if event.seq == 5:
                break
        gc.collect()
        assert len(room._streams) == 0
        await until(lambda: asyncio.all_tasks() == tasks)
        stream = room.stream(after=0, page_size=1)
        seqs: list[int | None] = []
        while len(seqs) < 10:
            reading = asyncio.create_task(anext(stream))
            for _ in range(len(seqs)):  # cancelled a little later each time
                await asyncio.sleep(0)
            reading.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                seqs.append((await reading).seq)
            seqs.append((await anext(stream)).seq)
        assert seqs == list(range(1, len(seqs) + 1))
        reading = asyncio.create_task(anext(stream))
        while not stream._is_reading:
            await asyncio.sleep(0)
        with pytest.raises(RuntimeError, match="one stream for each"):
            await anext(stream)
        reading.cancel()
        await until(lambda: asyncio.all_tasks() - {reading} == tasks)


async def test_a_task_that_nobody_holds_goes_on(store: str) -> None:
    """While it waits for the next event the garbage collector leaves it and its stream alone."""
    dialogue = make_dialogue(store)
    async with connect(dialogue, user_id="ann") as ann:
        room = await ann.join("general")
        heard: list[Event[Any]] = []

        async def read(room: Room) -> None:
            async for event in room.stream():
                heard.append(event)
                assert event.seq == len(heard)

        asyncio.get_running_loop().create_task(read(room))
        await until(lambda: room._streams._waiting)
        for _ in range(3):
            gc.collect()
            before = len(heard)
            await publish(room, 1)
            while len(heard) == before:
                await asyncio.sleep(0)
        await room.leave()
        await until(lambda: not room._streams._waiting)
        gc.collect()
        assert len(room._streams) == 0


@pytest.mark.parametrize("is_cancelled", [False, True])
async def test_what_comes_after_its_end_is_no_part_of_it(store: str, is_cancelled: bool) -> None:
    """Subscribed again it would go on behind a hole; its error tells of the place where it has really ended."""
    dialogue = make_dialogue(store)
    async with connect(dialogue, user_id="ann") as ann:
        room = await ann.join("general")
        stream = room.stream(message)
        await publish(room, 2)
        unsubscribing = asyncio.create_task(room.unsubscribe(message))
        if is_cancelled:
            await asyncio.sleep(0)  # it is sent now
            unsubscribing.cancel()
        await asyncio.wait([unsubscribing])
        await publish(room, 2, alert)
        assert room.subscriptions == ["alert", "typing"]
        await room.subscribe(message)
        await publish(room, 2)
        assert await taken(stream, 2) == [1, 2]
        for _ in range(2):
            with pytest.raises(StreamBroken) as raised:
                await anext(stream)
            assert (raised.value.reason, raised.value.after, raised.value.resume_after) == (
                "unsubscribed",
                2,
                2,
            )
        assert await taken(room.stream(message, after=2), 2) == [5, 6]


async def test_a_subscription_that_is_narrowed_for_a_moment_ends_it(store: str) -> None:
    """Also where both answers come in one frame."""
    dialogue = make_dialogue(store)
    async with connect(dialogue, user_id="ann") as ann:
        room = await ann.join("general")
        stream = room.stream(message)
        await asyncio.gather(room.unsubscribe(message), room.subscribe(message))
        with pytest.raises(StreamBroken, match="subscription"):
            await anext(stream)


async def test_it_needs_the_subscription(store: str) -> None:
    """Refused where live events would be missing, and ended when they would be from now on."""
    dialogue = make_dialogue(store)
    async with connect(dialogue, user_id="ann") as ann:
        room = await ann.join("general", events=message)
        with pytest.raises(StreamBroken, match="subscription"):
            room.stream(alert)
        everything = room.stream(after=0)
        await publish(room, 2, alert)
        await publish(room, 1)
        assert await taken(everything, 1) == [3]
        await room.unsubscribe(message)
        await room.subscribe(alert)
        for _ in range(2):
            with pytest.raises(StreamBroken) as raised:
                await anext(everything)
            assert (raised.value.reason, raised.value.resume_after) == ("unsubscribed", 3)
        stream = room.stream(alert)
        await ann.join("general", events=[message])
        with pytest.raises(StreamBroken):
            await anext(stream)


async def test_mistakes_are_told(store: str) -> None:
    """Numbers, an event that is not recorded, an event that the room has not."""
    dialogue = make_dialogue(store)
    async with connect(dialogue, user_id="ann") as ann:
        with pytest.raises(NotJoined):
            ann.room("general").stream()
        room = await ann.join("general")
        for options in ({"after": -1}, {"page_size": 0}, {"max_buffered_events": 0}, {"epoch": "e"}):
            with pytest.raises(ValueError, match=next(iter(options))):
                room.stream(**options)
        with pytest.raises(ValueError, match="not recorded"):
            room.stream(typing)
        with pytest.raises(ValueError, match="no events are named"):
            room.stream([])
        await publish(room, 1)
        assert await taken(room.stream("*", after=0), 1) == [1]
        stream = room.stream("nonsense", after=0)
        for _ in range(2):
            with pytest.raises(EventNotAllowed):
                await anext(stream)


async def test_a_log_that_cannot_be_read_is_waited_for(tmp_path: Path) -> None:
    """It goes on at the very place, without a hole; so it does after reads that were too many."""
    store = FaultyStore(SQLStore(f"sqlite:///{tmp_path / 'log.db'}"))
    limits = Limits.unlimited().model_copy(
        update={"reads_per_second": 8, "reads_burst": 8, "errors_per_minute": 10}
    )
    dialogue = make_dialogue(store, limits=limits)
    async with connect(dialogue, user_id="ann") as ann:
        room = await ann.join("general")
        await publish(room, 20)
        stream = room.stream(after=0, page_size=2)
        assert await taken(stream, 3) == [1, 2, 3]
        store.fail_read = StoreUnavailable("gone")
        reading = asyncio.create_task(taken(stream, 17))
        await until(lambda: stream._failures >= 3)
        store.fail_read = None
        assert await reading == list(range(4, 21))
        told: list[None] = []
        ann.on_disconnect(lambda: told.append(None))
        assert [event.seq async for event in room.scroll(page_size=2)] == list(range(20, 0, -1))
        assert not told
