"""What clients have missed, shared: each gets every event after its cursor once, in its present form."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from dialogue import (
    Dialogue,
    History,
    Limits,
    MemoryStore,
    RoomConfig,
    StoreUnavailable,
    define_event,
)
from dialogue.core.room import Room
from dialogue.errors import StoreBusy
from dialogue.events import Event
from dialogue.server import replays
from dialogue.server.hub import Hub
from dialogue.server.replays import Replays

from ..attacks.held import HeldReads
from .harness import eventually, message, note, rooms, serve, wire


class CountedReads(HeldReads):
    """Counts what is read from the log, may hold back what it has found, and may fail with anything."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.pages = 0
        self.answering = 0
        self.may_answer = asyncio.Event()
        self.may_answer.set()
        self.error: Exception | None = None

    async def page(self, *args: Any, **kwargs: Any) -> Any:
        self.pages += 1
        found = await super().page(*args, **kwargs)
        self.answering += 1
        await self.may_answer.wait()
        if self.error is not None:
            raise self.error
        return found


class Opened:
    """One room of a running server, and its replays."""

    def __init__(self, dialogue: Dialogue, store: CountedReads, hub: Hub, room: Room) -> None:
        self.dialogue = dialogue
        self.store = store
        self.hub = hub
        self.room = room

    @property
    def replays(self) -> Replays:
        return self.hub.reader.replays

    async def publish(self, *data: Any, **fields: Any) -> None:
        for item in data:
            await self.dialogue.trigger(self.room.room_id, message, item, **fields)

    async def publish_changed(self) -> int:
        """Have events of all kinds in the room, changes too, and return the newest seq: those that read now share."""
        await self.publish("edited", "deleted")
        await self.dialogue.edit(self.room.room_id, 1, "new")
        await self.dialogue.delete(self.room.room_id, 2)
        return self.room.last_seq

    async def resume(self, after: int, *, user_id: str = "ann") -> list[Any] | None:
        """Return the data of what somebody who joins now has missed, as it is sent; None if it is not recovered."""
        through = self.room.last_seq
        found = await self.replays.get(
            self.room, self.room.recorded_names(), after=after, through=through, user_id=user_id
        )
        if found is None:
            return None
        told: list[Event[Any]] = [Event.decode(event, epoch=None) for event in found.events]
        joined = b",".join(found.texts)
        assert joined == b",".join(event.json_for(user_id) for event in found.events)
        assert [event.seq for event in told] == list(range(after + 1, through + 1))
        return [event.data for event in told]

    def resumes(self, count: int, after: int) -> list[asyncio.Task[list[Any] | None]]:
        return [asyncio.create_task(self.resume(after)) for _ in range(count)]


@asynccontextmanager
async def opened(
    path: Path, *, room_id: str = "general", events: Any = (message, note), **limits: Any
) -> AsyncIterator[Opened]:
    store = CountedReads(path)
    config = RoomConfig(events=list(events))
    dialogue = Dialogue({"general": config, "made:{name}": config}, store=store, limits=Limits(**limits))
    async with dialogue.lifespan():
        hub = dialogue.hub()
        yield Opened(dialogue, store, hub, await hub.open_rooms.open(room_id))


async def test_a_crowd_that_comes_back_costs_one_read(tmp_path: Path) -> None:
    """The ring has five of forty; a hundred read the rest once, and those that come later not at all."""
    async with opened(tmp_path) as general:
        await general.publish(*range(40))
        crowd = general.resumes(100, 0)
        assert await asyncio.gather(*crowd) == [list(range(40))] * 100
        assert general.store.pages == 1
        await general.publish(40, 41)
        assert await general.resume(0) == list(range(42))
        assert general.store.pages == 1
        # The ring has passed it by: what is between is read, and nothing before it again.
        await general.publish(*range(42, 60))
        assert await asyncio.gather(*general.resumes(20, 0)) == [list(range(60))] * 20
        assert general.store.pages == 2


async def test_resumes_are_exact_while_everything_moves(tmp_path: Path) -> None:
    """Publishers, editors and deleters at work: whoever comes has each event after its cursor, as it is then."""
    chance = random.Random(1)
    async with opened(tmp_path) as general:
        await general.publish(*range(30))
        texts: dict[int, Any] = {}
        changing = 0
        is_over = False

        async def change() -> None:
            nonlocal changing
            for number in range(60):
                seq = chance.randrange(1, 31)
                if texts.get(seq, "") is None:
                    continue
                changing = seq
                if number % 10 == 9:
                    await general.dialogue.delete("general", seq)
                    texts[seq] = None
                else:
                    await general.dialogue.edit("general", seq, f"edit {number}")
                    texts[seq] = f"edit {number}"
                changing = 0
                await asyncio.sleep(0.002)

        async def come() -> int:
            count = 0
            while not is_over:
                after = chance.choice((0, 0, 3, 10))
                told = dict(texts)
                data = await general.resume(after)
                assert data is not None
                for seq, text in told.items():
                    # A change that was told before it came: never the old form; later ones may be in already.
                    if seq > after and seq != changing and texts[seq] == text:
                        assert data[seq - after - 1] == text, seq
                count += 1
                await asyncio.sleep(chance.random() * 0.02)
            return count

        crowd = [asyncio.create_task(come()) for _ in range(10)]
        flood = asyncio.create_task(general.publish(*range(200)))
        await change()
        await flood
        is_over = True
        assert sum(await asyncio.gather(*crowd)) > 50


async def test_a_change_that_is_told_while_the_log_is_read_is_in_the_replay(tmp_path: Path) -> None:
    """What the log answered before the change does not bring the old form back, now or to those who come later."""
    async with opened(tmp_path) as general:
        after = await general.publish_changed()
        await general.publish(*range(20))
        general.store.may_answer.clear()
        pages, general.store.answering = general.store.pages, 0
        crowd = general.resumes(3, after)
        await eventually(lambda: general.store.answering)
        await general.dialogue.edit("general", after + 18, "new")
        general.store.may_answer.set()
        assert await asyncio.gather(*crowd) == [[*range(17), "new", 18, 19]] * 3
        await general.dialogue.delete("general", after + 19)
        told = await general.resume(after)
        assert told is not None
        assert told[:20] == [*range(17), "new", None, 19]
        assert general.store.pages == pages + 1


async def test_an_erased_user_leaves_nothing_in_a_replay(tmp_path: Path) -> None:
    """Neither the data nor the name nor the key, though the replay was made before."""
    async with opened(tmp_path) as general:
        after = await general.publish_changed()
        await general.dialogue.trigger("general", message, "secret", sender="bob", key="b")
        await general.publish(*range(20))
        assert await general.resume(after, user_id="bob") == ["secret", *range(20)]
        await general.dialogue.erase_user("bob")
        pages = general.store.pages
        found = await general.replays.get(
            general.room, general.room.recorded_names(), after=after, through=after + 21, user_id="bob"
        )
        assert found is not None
        assert b"secret" not in b"".join(found.texts)
        assert b"bob" not in b"".join(found.texts)
        assert general.store.pages == pages


async def test_a_key_goes_to_its_publisher_only(tmp_path: Path) -> None:
    """Also of a replay that all others share."""
    async with opened(tmp_path) as general:
        await general.dialogue.trigger("general", message, "hers", sender="ann", key="mine")
        await general.publish(*range(20))
        for user_id, is_theirs in (("bob", False), ("ann", True), ("cleo", False)):
            found = await general.replays.get(
                general.room, general.room.recorded_names(), after=0, through=21, user_id=user_id
            )
            assert found is not None
            assert (b'"key":"mine"' in b"".join(found.texts)) is is_theirs


async def test_who_goes_away_takes_nothing_from_the_others(tmp_path: Path) -> None:
    """The one who began the read, and any of those that wait for it."""
    async with opened(tmp_path) as general:
        await general.publish(*range(20))
        general.store.may_read.clear()
        crowd = general.resumes(10, 0)
        await eventually(lambda: general.store.reading)
        for gone in (crowd[0], crowd[5]):
            gone.cancel()
            with pytest.raises(asyncio.CancelledError):
                await gone
        general.store.may_read.set()
        left = [task for task in crowd if not task.cancelled()]
        assert await asyncio.gather(*left) == [list(range(20))] * 8
        assert general.store.pages == 1


async def test_a_read_whose_askers_have_all_gone_is_kept_for_who_comes_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It ends by itself, and nothing of it is left when it is too old."""
    async with opened(tmp_path) as general:
        await general.publish(*range(20))
        general.store.may_read.clear()
        (gone,) = general.resumes(1, 0)
        await eventually(lambda: general.store.reading)
        gone.cancel()
        with pytest.raises(asyncio.CancelledError):
            await gone
        general.store.may_read.set()
        await eventually(lambda: not general.replays._reads)
        assert general.replays.size > 0
        assert await general.resume(0) == list(range(20))
        assert general.store.pages == 1
        monkeypatch.setattr(replays, "KEPT_SECONDS", 0.01)
        general.replays._on_timer()
        await eventually(lambda: not len(general.replays))
        assert (general.replays.size, general.room.copies) == (0, ())


async def test_a_read_whose_askers_have_all_gone_reads_no_further(tmp_path: Path) -> None:
    """The step that is under way ends, and whoever comes next goes on from there."""
    async with opened(tmp_path) as general:
        await general.publish(*range(250))
        general.store.may_read.clear()
        (gone,) = general.resumes(1, 0)
        await eventually(lambda: general.store.reading)
        gone.cancel()
        with pytest.raises(asyncio.CancelledError):
            await gone
        general.store.may_read.set()
        await eventually(lambda: not general.replays._reads)
        assert general.store.pages == 1
        assert await general.resume(0) == list(range(250))
        assert general.store.pages == 3


@pytest.mark.parametrize(
    "error", [StoreUnavailable(), StoreBusy(retry_after_seconds=2), RuntimeError("a bug")]
)
async def test_all_who_wait_are_told_of_an_error_and_the_next_read_is_another(
    tmp_path: Path, error: Exception
) -> None:
    """Each gets an error of its own; those that come together after a refusal do not come back together."""
    async with opened(tmp_path) as general:
        await general.publish(*range(20))
        general.store.error = error
        outcomes = await asyncio.gather(*general.resumes(20, 0), return_exceptions=True)
        assert {type(outcome) for outcome in outcomes} == {type(error)}
        if isinstance(error, StoreUnavailable):
            assert len(set(map(id, outcomes))) == 20
        if isinstance(error, StoreBusy):
            seconds = [outcome.retry_after_seconds for outcome in outcomes if isinstance(outcome, StoreBusy)]
            assert len(set(seconds)) > 5
            assert all(second and 1 <= second <= 3 for second in seconds)
            assert (error.code, error.is_outcome_unknown) == ("BACKPRESSURE", False)
        assert general.store.pages == 1
        general.store.error = None
        assert await general.resume(0) == list(range(20))


async def test_a_fault_that_nobody_waits_for_is_logged(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """An exception in the read is lost for nobody."""
    async with opened(tmp_path) as general:
        await general.publish(*range(20))
        general.store.error = RuntimeError("a bug")
        general.store.may_answer.clear()
        (gone,) = general.resumes(1, 0)
        await eventually(lambda: general.store.answering)
        gone.cancel()
        with pytest.raises(asyncio.CancelledError):
            await gone
        with caplog.at_level(logging.ERROR):
            general.store.may_answer.set()
            await eventually(lambda: "a replay failed" in caplog.text)


async def test_what_is_removed_is_not_replayed(tmp_path: Path) -> None:
    """A replay that has it is read again, and is not recovered then; one that begins above it stays."""
    async with opened(tmp_path) as general:
        await general.publish(*range(40))
        assert await general.resume(0) == list(range(40))
        assert await general.resume(20) == list(range(20, 40))
        pages = general.store.pages
        await general.store.remove("general", "message", 10)
        await general.hub.open_rooms.expire("general", "message", 10)
        assert await general.resume(20) == list(range(20, 40))
        assert general.store.pages == pages
        assert await general.resume(0) is None
        assert general.store.pages == pages + 1


async def test_what_is_removed_while_it_is_read_is_read_again(tmp_path: Path) -> None:
    """The answer of before is not given to those that wait."""
    async with opened(tmp_path) as general:
        await general.publish(*range(40))
        general.store.may_answer.clear()
        crowd = general.resumes(3, 0)
        await eventually(lambda: general.store.answering)
        await general.store.remove("general", "message", 10)
        await general.hub.open_rooms.expire("general", "message", 10)
        general.store.may_answer.set()
        assert await asyncio.gather(*crowd) == [None] * 3
        assert general.store.pages == 2


@pytest.mark.parametrize(("name", "through"), [("note", 5), ("message", 20)])
async def test_what_is_removed_beside_a_read_does_not_begin_it_again(
    tmp_path: Path, name: str, through: int
) -> None:
    """Events of a stream that nobody has asked for, or from before all that is read."""
    async with opened(tmp_path) as general:
        for number in range(5):
            await general.dialogue.trigger("general", note, number)
        await general.publish(*range(40))
        general.store.may_answer.clear()
        seqs = []

        async def come() -> None:
            found = await general.replays.get(
                general.room, ["message"], after=25, through=general.room.last_seq, user_id="ann"
            )
            assert found is not None
            seqs.append([event.seq for event in found.events])

        crowd = [asyncio.create_task(come()) for _ in range(3)]
        await eventually(lambda: general.store.answering)
        await general.store.remove("general", name, through)
        await general.hub.open_rooms.expire("general", name, through)
        general.store.may_answer.set()
        await asyncio.gather(*crowd)
        assert seqs == [list(range(26, 46))] * 3
        assert general.store.pages == 1


async def test_a_room_that_is_read_again_has_other_replays(tmp_path: Path) -> None:
    """Those of the room that was dropped are told of nothing any more."""
    async with opened(tmp_path) as general:
        after = await general.publish_changed()
        await general.publish(*range(20))
        assert await general.resume(after) == list(range(20))
        general.hub.open_rooms.reset("general")
        general.room = await general.hub.open_rooms.open("general")
        pages = general.store.pages
        await general.dialogue.edit("general", after + 18, "new")
        told = await general.resume(after)
        assert told is not None
        assert told[:20] == [*range(17), "new", 18, 19]
        assert general.store.pages == pages + 1


async def test_a_deleted_room_replays_nothing(tmp_path: Path) -> None:
    """Whoever waits while it is deleted gets none of its events."""
    async with opened(tmp_path, room_id="made:one") as general:
        await general.publish(*range(20))
        assert await general.resume(10) == list(range(10, 20))
        (kept,) = general.replays._replays.values()
        pages, general.store.answering = general.store.pages, 0
        general.store.may_answer.clear()
        crowd = general.resumes(2, 0)
        await eventually(lambda: general.store.answering)
        await general.dialogue.delete_room(general.room.room_id)
        general.store.may_answer.set()
        assert await asyncio.gather(*crowd) == [None] * 2
        assert general.store.pages == pages + 2
        assert kept.is_void
        general.room = await general.hub.open_rooms.open(general.room.room_id)
        assert await general.resume(0) is None


@pytest.mark.parametrize("is_hot", [True, False])
async def test_too_much_is_not_recovered_for_anyone(tmp_path: Path, is_hot: bool) -> None:
    """As many events, or bytes, as the limit says are; one more is not, and is not read again."""
    ring = define_event("message", history=History(limit=100 if is_hot else 5))
    async with opened(tmp_path, events=[ring], replay_events=20) as general:
        await general.publish(*range(20))
        assert await general.resume(0) == list(range(20))
        await general.publish(20)
        assert await general.resume(0) is None
        assert await general.resume(1) == list(range(1, 21))
        pages, size = general.store.pages, general.replays.size
        assert await general.resume(0) is None
        assert general.store.pages == pages
        # Of what nobody can get nothing is kept.
        over = next(replay for key, replay in general.replays._replays.items() if key[1] == 0)
        assert (len(over), over.size, general.replays.size) == (0, 0, size)
        assert await general.resume(21) == []
        await general.dialogue.edit("general", 5, "new")
        assert await general.resume(0) is None


async def test_too_many_bytes_are_not_recovered(tmp_path: Path) -> None:
    """The size of the messages counts, up to the seq at which one has come."""
    async with opened(tmp_path, replay_bytes=3000) as general:
        await general.publish(*("x" * 100 for _ in range(10)))
        assert await general.resume(0) == ["x" * 100] * 10
        await general.publish("x" * 1000)
        assert await general.resume(0) is None
        assert await general.resume(8) == ["x" * 100, "x" * 100, "x" * 1000]


async def test_replays_are_bounded_and_forgotten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In number and in bytes, those that were used last stay; and all are gone some time after their last use."""
    async with opened(tmp_path) as general:
        await general.publish(*range(40))
        monkeypatch.setattr(replays, "MOST_KEPT", 4)
        for after in range(20):
            await general.resume(after)
        assert len(general.replays) == len(general.room.copies) == 4
        pages = general.store.pages
        await general.resume(17)
        assert general.store.pages == pages
        monkeypatch.setattr(replays, "MOST_KEPT_BYTES", 2 * general.replays.size // 4)
        await general.resume(16)
        assert 1 <= len(general.replays) < 4
        assert general.replays.size <= replays.MOST_KEPT_BYTES
        monkeypatch.setattr(replays, "KEPT_SECONDS", 0.01)
        general.replays._on_timer()
        await eventually(lambda: not len(general.replays))
        assert general.replays.size == 0
        assert not general.room.copies


async def test_what_is_being_read_is_kept_besides(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """More of it than may be kept takes the place of nothing that is kept."""
    monkeypatch.setattr(replays, "MOST_KEPT", 2)
    async with opened(tmp_path) as general:
        await general.publish(*range(40))
        await general.resume(0)
        size = general.replays.size
        assert size > 0
        general.store.may_read.clear()
        crowd = [task for after in range(1, 6) for task in general.resumes(1, after)]
        await eventually(lambda: len(general.replays) == 6)
        assert general.replays.size == size
        pages = general.store.pages
        assert await general.resume(0) == list(range(40))
        assert (general.store.pages, general.replays.size) == (pages, size)
        general.store.may_read.set()
        assert await asyncio.gather(*crowd) == [list(range(after, 40)) for after in range(1, 6)]
        assert len(general.replays) == len(general.room.copies) == 2
        kept = general.replays._replays.values()
        assert general.replays.size == sum(replay.size for replay in kept)


async def test_what_was_kept_and_is_read_on_is_not_among_the_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is not dropped while somebody waits for it, also if others of those who wait have gone."""
    monkeypatch.setattr(replays, "MOST_KEPT", 2)
    async with opened(tmp_path) as general:
        await general.publish(*range(40))
        await general.resume(0)
        assert general.replays.size > 0
        await general.publish(*range(40, 60))
        pages = general.store.pages
        general.store.may_read.clear()
        gone, left = general.resumes(2, 0)
        await eventually(lambda: general.store.reading)
        assert general.replays.size == 0
        gone.cancel()
        with pytest.raises(asyncio.CancelledError):
            await gone
        assert general.replays.size == 0
        for after in (57, 58, 59):
            assert await general.resume(after) == list(range(after, 60))
        assert len(general.replays) == 3
        general.store.may_read.set()
        assert await left == list(range(60))
        assert len(general.replays) == 2
        assert general.store.pages == pages + 1


async def test_a_store_that_keeps_nothing_keeps_no_replays() -> None:
    """What has left memory is gone there, and nothing would tell a replay."""
    dialogue = Dialogue({"general": RoomConfig(events=[message])}, store=MemoryStore())
    async with dialogue.lifespan():
        hub = dialogue.hub()
        room = await hub.open_rooms.open("general")
        for number in range(7):
            await dialogue.trigger("general", message, number)
        found = await hub.reader.replays.get(room, ["message"], after=2, through=7, user_id="ann")
        assert found is not None
        assert [event.seq for event in found.events] == [3, 4, 5, 6, 7]
        assert await hub.reader.replays.get(room, ["message"], after=1, through=7, user_id="ann") is None
        assert (len(hub.reader.replays), room.copies) == (0, ())


async def test_a_stop_ends_what_is_read(tmp_path: Path) -> None:
    """Who waits is told that the server stops, and nothing goes on."""
    async with opened(tmp_path, stop_timeout_seconds=0.5) as general:
        await general.publish(*range(20))
        general.store.may_read.clear()
        crowd = general.resumes(3, 0)
        await eventually(lambda: general.store.reading)
    for task in crowd:
        with pytest.raises(StoreUnavailable, match="stopping"):
            await task


async def test_a_crowd_over_the_wire_has_everything_once(tmp_path: Path) -> None:
    """Thirty come back while others publish into the same room: replay and live events join without a hole."""
    store = CountedReads(tmp_path)
    async with serve(Dialogue(rooms(), store=store)) as address, wire(address, "ann") as ann:
        joined = await ann.ask("join", room="general")
        for number in range(50):
            await ann.trigger("general", "message", number)

        async def come(number: int) -> None:
            async with wire(address, f"user-{number}") as client:
                since = {"seq": 10, "epoch": joined["epoch"]}
                answer = await client.ask("join", room="general", since=since)
                assert answer["recovered"] is True
                await client.until(lambda: len(answer["events"]) + len(client.events()) >= 90)
                seqs = [event["seq"] for event in answer["events"] + client.events()]
                assert seqs == list(range(11, 101))

        async def publish() -> None:
            for number in range(50, 100):
                await ann.trigger("general", "message", number)

        await asyncio.gather(publish(), *(come(number) for number in range(30)))
        assert store.pages <= 20
