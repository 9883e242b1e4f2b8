"""What every `Store` promises, as tests over a store that a subclass makes.

::

    from dialogue.testing.store_contract import StoreContract

    class TestMyStore(StoreContract):
        def make(self, folder, clock=None):
            return MyStore(folder / "log", clock=clock)

pytest runs the suite with the class; it needs pytest-asyncio (in either mode) and hypothesis besides. Each test's
docstring says which promise it holds.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import msgspec

try:
    import pytest
    import pytest_asyncio
    from hypothesis import HealthCheck, given, settings
    from hypothesis import strategies as st
except ImportError as error:
    raise ImportError(
        f"dialogue.testing.store_contract is a test suite and needs {error.name}: "
        "pip install pytest pytest-asyncio hypothesis",
        name=error.name,
    ) from error

from ..errors import CursorExpired, DraftRefused, StoreUnavailable, TargetGone
from ..events import DELETE, EDIT, ERASED_USER, SERVER_KEY_PREFIX, Draft, EncodedEvent, Target
from ..storage.base import Appended, LogPage, Store, StoredStream, StreamState, UserEvent

_numbers = itertools.count(1)


def draft(room_id: str = "general", event: str = "message", **changes: Any) -> Draft:
    """Return a draft with a key of the server's, unless *changes* say otherwise."""
    values: dict[str, Any] = {
        "sender": "ann",
        "key": f"{SERVER_KEY_PREFIX}{next(_numbers)}",
        "data_json": b'{"text":"hello"}',
        **changes,
    }
    return Draft(room_id=room_id, event=event, **values)


def change_of(target: Target, room_id: str = "general", **changes: Any) -> Draft:
    """Return the draft of a change, as the server makes it."""
    event = DELETE if target.data_json is None else EDIT
    return draft(
        room_id, event, data_json=target.change_json(), target=target, counts_unread=False, **changes
    )


def seqs(page: LogPage) -> list[int | None]:
    """Return the seqs of a page."""
    return [event.seq for event in page.events]


def positions(page: LogPage) -> list[int]:
    """Return the positions of a page."""
    return [event.position for event in page.events]


def recorded(appended: Appended | None) -> EncodedEvent:
    """Return the event of what must be newly recorded."""
    assert appended is not None
    assert appended.event is not None
    return appended.event


def decoded(event: EncodedEvent) -> dict[str, Any]:
    """Return an event's wire message."""
    message = msgspec.json.decode(event.json)
    assert isinstance(message, dict)
    return message


@pytest.mark.asyncio
class StoreContract:
    """The suite; subclass it as ``Test…`` and override `make`. Each test opens a store of its own.

    Attributes:
        is_durable: Whether the log survives `Store.aclose`. A subclass for a store that forgets sets it to False.
    """

    is_durable = True

    def make(self, folder: Path, clock: Callable[[], int] | None = None) -> Store:
        """Return a new store that is not open.

        Args:
            folder: An existing, initially empty folder of the test's own. Two stores made for the same folder share
                one log if the store is durable; stores made for different folders never do.
            clock: Milliseconds since the epoch, for the timestamps of new events; None for the real one.
        """
        raise NotImplementedError

    @asynccontextmanager
    async def opened(self, folder: Path, clock: Callable[[], int] | None = None) -> AsyncIterator[Store]:
        """Yield an open store over *folder*."""
        store = self.make(folder, clock)
        await store.open()
        try:
            yield store
        finally:
            await store.aclose()

    @pytest_asyncio.fixture
    async def store(self, tmp_path: Path) -> AsyncIterator[Store]:
        """Yield an open store over the test's folder."""
        async with self.opened(tmp_path) as store:
            yield store

    async def test_a_batch_gets_consecutive_seqs_in_its_order(self, store: Store) -> None:
        """Promise 1: seqs are 1, 2, 3 … per room in the order of the drafts; positions the same per stream."""
        appended = await store.append(
            [draft(), draft("other"), draft(event="alert"), draft(), draft("other"), draft()]
        )
        assert [item.seq for item in appended] == [1, 1, 2, 3, 2, 4]
        assert [recorded(item).position for item in appended] == [1, 1, 1, 2, 2, 3]
        assert seqs(await store.page("general", limit=10)) == [1, 2, 3, 4]
        assert seqs(await store.page("other", limit=10)) == [1, 2]

    async def test_seqs_go_on_without_holes(self, store: Store) -> None:
        """Promise 1: batch after batch, no seq is left out."""
        for size in (1, 5, 2, 30):
            await store.append([draft() for _ in range(size)])
        assert seqs(await store.page("general", limit=100)) == list(range(1, 39))

    async def test_ids_grow_over_all_rooms(self, store: Store) -> None:
        """Ids grow in commit order, whatever the room."""
        ids = []
        for room_id in ("a", "b", "a", "c"):
            ids += [item.id for item in await store.append([draft(room_id), draft("b")])]
        assert ids == sorted(set(ids))

    async def test_what_is_read_is_what_was_recorded(self, store: Store) -> None:
        """Everything a publisher gave and the append assigned comes back."""
        given_drafts = [
            draft(data_json='{"text":"grüße 🎉","n":[1,2.5,null]}'.encode(), meta_json=b'{"client":"web"}'),
            draft(sender="bob", key="mine", kind="system", data_json=b"12345678901234567890"),
            draft(data_json=b'"text"'),
            draft(data_json=b"null"),
        ]
        appended = await store.append(given_drafts)
        read = (await store.page("general", limit=10)).events
        for item, one, event in zip(appended, given_drafts, read, strict=True):
            new = recorded(item)
            assert decoded(event) == decoded(new)
            assert decoded(event)["id"] == item.id
            assert decoded(event)["timestamp"] == item.timestamp
            assert decoded(event)["data"] == msgspec.json.decode(one.data_json)
            assert (event.seq, event.position, event.event) == (new.seq, new.position, one.event)
            assert (event.sender, event.key) == (one.sender, one.public_key)
        assert [event.key for event in read] == [None, "mine", None, None]

    async def test_a_known_key_records_nothing(self, store: Store) -> None:
        """Promise 3: a retry gets the first one's seq, id and timestamp."""
        [first] = await store.append([draft(key="k")])
        again, new = await store.append([draft(key="k", data_json=b'"other"'), draft()])
        assert again == first._replace(event=None)
        assert again.is_duplicate
        assert not first.is_duplicate
        assert new.seq == 2
        [alone] = await store.append([draft(key="k")])
        assert alone == again
        assert seqs(await store.page("general", limit=10)) == [1, 2]

    async def test_a_key_twice_in_a_batch_is_recorded_once(self, store: Store) -> None:
        """Promise 3, within one call, also for one and the same draft."""
        same = draft(key="k")
        appended = await store.append([draft(), same, same, draft(key="k"), draft()])
        assert [item.seq for item in appended] == [1, 2, 2, 2, 3]
        assert [item.is_duplicate for item in appended] == [False, False, True, True, False]
        assert seqs(await store.page("general", limit=10)) == [1, 2, 3]

    async def test_a_key_belongs_to_a_room_and_a_user(self, store: Store) -> None:
        """Two users, or two rooms, may choose the same key."""
        appended = await store.append(
            [draft(key="k"), draft(key="k", sender="bob"), draft("other", key="k"), draft(key="K")]
        )
        assert not any(item.is_duplicate for item in appended)

    async def test_many_keys_in_one_batch(self, store: Store) -> None:
        """A batch of any size finds its known keys."""
        drafts = [draft(f"room{n % 700}", sender=f"user{n % 7}", key=f"key{n}") for n in range(1500)]
        await store.append(drafts[::3])
        appended = await store.append(drafts)
        assert [item.is_duplicate for item in appended] == [n % 3 == 0 for n in range(1500)]
        assert all(item.is_duplicate for item in await store.append(drafts))

    async def test_timestamps_never_run_backwards(self, tmp_path: Path) -> None:
        """A clock that jumps back is held at the room's newest timestamp; other rooms are not."""
        times = iter((1000, 500, 1500, 700, 700, 700))
        async with self.opened(tmp_path, clock=lambda: next(times)) as store:
            # A new log may note when it was made.
            stamps = [(await store.append([draft()]))[0].timestamp for _ in range(3)]
            assert stamps == sorted(stamps)
            assert len(set(stamps)) < 3
            [other] = await store.append([draft("other")])
            assert other.timestamp == 700

    async def test_a_draft_that_is_no_text_is_refused_with_its_batch(self, store: Store) -> None:
        """All or nothing: no counter moves for what stands before the culprit."""
        with pytest.raises(DraftRefused):
            await store.append([draft(key="k"), draft(sender="\ud800"), draft("other")])
        assert (await store.head("general")).last_seq == 0
        [item] = await store.append([draft(key="k")])
        assert (item.seq, recorded(item).position, item.is_duplicate) == (1, 1, False)

    async def test_pages_at_the_edges(self, store: Store) -> None:
        """Bounds exclude; without `after` the newest come, with it the oldest; always oldest first."""
        await store.append([draft(event=name) for name in "ababbcb"])
        assert seqs(await store.page("general", limit=3)) == [5, 6, 7]
        assert seqs(await store.page("general", before=5, limit=2)) == [3, 4]
        assert seqs(await store.page("general", after=2, limit=2)) == [3, 4]
        assert seqs(await store.page("general", after=2, before=4, limit=9)) == [3]
        assert seqs(await store.page("general", after=0, limit=2)) == [1, 2]
        assert seqs(await store.page("general", event_names=["a", "c"], limit=2)) == [3, 6]
        assert seqs(await store.page("general", event_names=("b", "b"), after=2, limit=2)) == [4, 5]
        assert seqs(await store.page("general", event_names=["nothing"], limit=2)) == []
        assert await store.page("general", event_names=[], limit=2) == LogPage([], 0, 0)
        assert await store.page("unused", limit=2) == LogPage([], 0, 0)
        many = [f"name{n}" for n in range(150)]
        assert seqs(await store.page("general", event_names=[*many, "a"], limit=9)) == [1, 3]

    async def test_stream_pages_go_by_position(self, store: Store) -> None:
        """The newest below a position, oldest first."""
        await store.append([draft(event=name) for name in "ababbab"])
        page = await store.stream_page("general", "b", before_position=4, limit=2)
        assert (positions(page), seqs(page)) == ([2, 3], [4, 5])
        assert positions(await store.stream_page("general", "b", before_position=99, limit=2)) == [3, 4]
        assert positions(await store.stream_page("general", "b", before_position=1, limit=2)) == []
        assert await store.stream_page("general", "z", before_position=9, limit=2) == LogPage([], 0, 0)
        assert await store.stream_page("unused", "b", before_position=9, limit=2) == LogPage([], 0, 0)

    async def test_removal_leaves_a_floor(self, store: Store) -> None:
        """What left the log is named by position and seq; counters stay used."""
        await store.append([draft(event=name) for name in "ababbab"])
        await store.remove("general", "b", 2)
        page = await store.page("general", limit=9)
        assert (seqs(page), page.floor_seq, page.floor_position) == ([1, 3, 5, 6, 7], 4, 0)
        page = await store.page("general", event_names=["b"], limit=9)
        assert (seqs(page), page.floor_seq, page.floor_position) == ([5, 7], 4, 2)
        page = await store.page("general", event_names=["a"], limit=9)
        assert (seqs(page), page.floor_seq, page.floor_position) == ([1, 3, 6], 0, 0)
        page = await store.stream_page("general", "b", before_position=9, limit=9)
        assert (positions(page), page.floor_seq, page.floor_position) == ([3, 4], 4, 2)
        await store.remove("general", "b", 1)
        assert (await store.head("general")).streams["b"] == StreamState(4, 0, 2, 4)
        [next_b] = await store.append([draft(event="b")])
        assert (next_b.seq, recorded(next_b).position) == (8, 5)

    async def test_removal_ends_at_the_newest_event(self, store: Store) -> None:
        """Removing beyond the end does not promise to remove what is not yet there."""
        await store.append([draft(), draft()])
        await store.remove("general", "message", 99)
        assert (await store.head("general")).streams["message"] == StreamState(2, 0, 2, 2)
        await store.append([draft()])
        page = await store.page("general", limit=9)
        assert (seqs(page), page.floor_seq) == ([3], 2)
        await store.remove("general", "unknown", 5)
        await store.remove("unknown", "message", 5)

    async def test_the_hand_over_never_moves_backwards(self, store: Store) -> None:
        """`handed_through` is the largest that it was told."""
        await store.append([draft() for _ in range(5)])
        for through in (3, 1, 3):
            await store.mark_handed("general", "message", through)
        assert (await store.head("general")).streams["message"] == StreamState(5, 3, 0, 0)
        await store.append([draft()])
        assert (await store.head("general")).streams["message"] == StreamState(6, 3, 0, 0)
        await store.mark_handed("unused", "message", 1)
        assert (await store.head("unused")).streams == {}

    async def test_heads(self, store: Store) -> None:
        """A room's newest seq and all its streams; nothing for a room that was never used."""
        assert (await store.head("general")).last_seq == 0
        assert (await store.head("general")).streams == {}
        await store.append([draft(event=name) for name in "aba"])
        head = await store.head("general")
        assert head.last_seq == 3
        assert head.streams == {"a": StreamState(2), "b": StreamState(1)}

    async def test_streams_that_wait_for_the_hand_over(self, store: Store) -> None:
        """Every stream with something to hand over, once; none of the others."""
        rooms = [f"room{n:04}" for n in range(600)]
        for start in range(0, 600, 100):
            await store.append([draft(room, name) for room in rooms[start : start + 100] for name in "ab"])
        for room in rooms[::2]:
            await store.mark_handed(room, "a", 1)
        found = [(room, name) async for room, name, _ in store.streams()]
        expected = {(room, name) for n, room in enumerate(rooms) for name in "ab" if name == "b" or n % 2}
        assert len(found) == len(expected)
        assert set(found) == expected

    async def test_settle_tells_what_the_latest_append_recorded(self, store: Store) -> None:
        """By their keys: new ones with the event, earlier ones as duplicates, unrecorded ones as None."""
        [early] = await store.append([draft(key="early")])
        drafts = [draft(), draft(key="early"), draft("other", key="k"), draft("other", key="k")]
        appended = await store.append(drafts)
        settled = await store.settle([*drafts, draft(), draft(key="never")])
        assert settled[4:] == [None, None]
        for before, after in zip(appended, settled[:4], strict=True):
            assert after is not None
            assert before[:3] == after[:3]
            assert before.is_duplicate == after.is_duplicate
        assert settled[1] == early._replace(event=None)
        assert decoded(recorded(settled[0])) == decoded(recorded(appended[0]))
        assert recorded(settled[2]).key == "k"

    async def test_settle_after_an_append_of_known_keys(self, store: Store) -> None:
        """An append that recorded nothing has nothing to deliver when it is settled."""
        [first] = await store.append([draft(key="k")])
        await store.append([draft(key="k")])
        assert await store.settle([draft(key="k")]) == [first._replace(event=None)]

    async def test_an_edit_replaces_its_target_in_the_same_transaction(self, store: Store) -> None:
        """The target reads edited, in its place; the `$edit` is a recorded event after it."""
        await store.append([draft(), draft(meta_json=b'{"a":1}', key="mine"), draft(event="other")])
        [item] = await store.append([change_of(Target(2, "message", b'{"text":"new"}'), sender="mod")])
        assert (item.seq, recorded(item).event, recorded(item).position) == (4, EDIT, 1)
        assert decoded(recorded(item))["data"] == {
            "target_seq": 2,
            "event": "message",
            "data": {"text": "new"},
        }
        [replaced] = item.replaced
        page = await store.page("general", limit=9)
        assert seqs(page) == [1, 2, 3, 4]
        edited = page.events[1]
        assert decoded(edited) == decoded(replaced)
        assert (edited.seq, edited.position, edited.sender, edited.key) == (2, 2, "ann", "mine")
        message = decoded(edited)
        assert (message["data"], message["meta"], message["edited"]) == ({"text": "new"}, {"a": 1}, True)
        assert "deleted" not in message
        assert "edited" not in decoded(page.events[0])
        # Its key is still its publisher's.
        [again] = await store.append([draft(key="mine")])
        assert (again.seq, again.is_duplicate) == (2, True)

    async def test_a_deletion_leaves_a_tombstone(self, store: Store) -> None:
        """Seq and position stay, data and meta go; nothing more can be done to it."""
        await store.append([draft(meta_json=b'{"a":1}'), draft()])
        [item] = await store.append([change_of(Target(1, "message"))])
        assert decoded(recorded(item))["data"] == {"target_seq": 1, "event": "message"}
        page = await store.page("general", limit=9)
        assert seqs(page) == [1, 2, 3]
        tombstone = decoded(page.events[0])
        assert (tombstone["data"], tombstone["deleted"], tombstone["from"]) == (None, True, "ann")
        assert "meta" not in tombstone
        assert decoded(item.replaced[0]) == tombstone
        for target in (Target(1, "message", b"1"), Target(1, "message"), Target(99, "message")):
            with pytest.raises(TargetGone):
                await store.append([draft(), change_of(target)])
        with pytest.raises(TargetGone):
            await store.append([change_of(Target(2, "message")), change_of(Target(2, "message"))])
        assert (await store.head("general")).last_seq == 3

    async def test_an_edit_that_is_void_says_nothing_more(self, store: Store) -> None:
        """Of several changes only the newest `$edit` has data, and none has after a deletion."""
        await store.append([draft()])
        for text in (b'"first secret"', b'"second secret"'):
            [item] = await store.append([change_of(Target(1, "message", text))])
        assert [event.seq for event in item.replaced] == [1, 2]
        messages = [decoded(event) for event in (await store.page("general", limit=9)).events]
        assert messages[0]["data"] == "second secret"
        assert messages[1]["data"] == {"target_seq": 1, "event": "message"}
        assert messages[2]["data"] == {"target_seq": 1, "event": "message", "data": "second secret"}
        assert decoded(item.replaced[1]) == messages[1]
        await store.append([change_of(Target(1, "message"))])
        page = await store.page("general", limit=9)
        assert all(b"secret" not in event.json for event in page.events)
        assert [event.event for event in page.events] == ["message", EDIT, EDIT, DELETE]

    async def test_erasing_who_made_a_void_edit_leaves_the_newest_one(self, store: Store) -> None:
        """The edit that took its place is another's, and still says what the event has become."""
        await store.append([draft()])
        await store.append([change_of(Target(1, "message", b'"older"'), sender="bob")])
        await store.append([change_of(Target(1, "message", b'"newest"'))])
        [item] = await store.append([change_of(Target(2, EDIT, is_erased=True), sender="system")])
        assert [event.seq for event in item.replaced] == [2]
        messages = [decoded(event) for event in (await store.page("general", limit=9)).events]
        assert [message["from"] for message in messages] == ["ann", ERASED_USER, "ann", "system"]
        assert messages[0]["data"] == "newest"
        assert messages[2]["data"] == {"target_seq": 1, "event": "message", "data": "newest"}
        # It is void as soon as something takes its place.
        await store.append([change_of(Target(1, "message"))])
        page = await store.page("general", limit=9)
        assert all(b"newest" not in event.json for event in page.events)

    async def test_a_deletion_that_is_twice_in_a_batch_is_made_once(self, store: Store) -> None:
        """The second one's key is known: it is a duplicate, although its target is gone by then."""
        await store.append([draft()])
        deletion = change_of(Target(1, "message"), key="k")
        first, second = await store.append([deletion, deletion])
        assert (first.seq, first.is_duplicate, len(first.replaced)) == (2, False, 1)
        assert second == first._replace(event=None, replaced=())

    async def test_a_change_goes_with_its_batch(self, store: Store) -> None:
        """A change beside publishes, of an event of the same batch, and under a known key."""
        await store.append([draft(), draft("other")])
        appended = await store.append(
            [
                draft(),
                change_of(Target(1, "message", b"1"), key="edit"),
                draft("other"),
                change_of(Target(1, "message", b"2"), "other"),
                change_of(Target(1, "message", b"9"), key="edit"),
            ]
        )
        assert [(item.seq, item.is_duplicate) for item in appended] == [
            (2, False), (3, False), (2, False), (3, False), (3, True),
        ]  # fmt: skip
        assert [len(item.replaced) for item in appended] == [0, 1, 0, 1, 0]
        assert decoded((await store.page("general", limit=9)).events[0])["data"] == 1
        assert decoded((await store.page("other", limit=9)).events[0])["data"] == 2

    async def test_an_erased_event_names_nobody(self, store: Store) -> None:
        """Sender, key, data and meta go; a change that the user made keeps what it was about."""
        await store.append([draft(sender="bob"), draft(key="k", meta_json=b'{"a":1}'), draft()])
        await store.append([change_of(Target(1, "message", b'"better"'), sender="ann")])
        await store.append([change_of(Target(3, "message"), sender="bob")])
        by_ann = (await store.user_events("ann", after=0, limit=99)).events
        assert by_ann == [
            UserEvent("general", 2, "message"),
            UserEvent("general", 3, "message"),
            UserEvent("general", 4, EDIT),
        ]
        for found in by_ann:
            target = Target(found.seq, found.event_name, is_erased=True)
            [item] = await store.append([change_of(target, sender="system")])
            assert decoded(recorded(item))["data"]["erased"] is True
        assert (await store.user_events("ann", after=0, limit=99)).events == []
        messages = [decoded(event) for event in (await store.page("general", limit=9)).events]
        assert [message["from"] for message in messages] == [
            "bob", ERASED_USER, ERASED_USER, ERASED_USER, "bob", "system", "system", "system",
        ]  # fmt: skip
        assert (messages[1]["data"], messages[1]["deleted"], "meta" in messages[1]) == (None, True, False)
        assert messages[0]["data"] == "better"
        assert messages[2]["deleted"] is True
        assert messages[3]["data"] == {"target_seq": 1, "event": "message", "data": "better"}
        # Nothing remembers the key either.
        assert not (await store.append([draft(key="k")]))[0].is_duplicate

    async def test_user_events_are_found_part_by_part(self, store: Store) -> None:
        """All of a user's, in order of id, whatever the size of a part."""
        await store.append([draft(room) for room in "bac"] + [draft("b", "alert"), draft("a", sender="bob")])
        wanted = [
            UserEvent("b", 1, "message"), UserEvent("a", 1, "message"),
            UserEvent("c", 1, "message"), UserEvent("b", 2, "alert"),
        ]  # fmt: skip
        for limit in (1, 2, 3, 5, 99):
            found: list[UserEvent] = []
            after: int | None = 0
            while after is not None:
                events, after = await store.user_events("ann", after=after, limit=limit)
                found += events
            assert found == wanted
        second = (await store.feed(0, limit=9))[1]
        assert (await store.user_events("ann", after=second.id, limit=99)).events == wanted[2:]
        assert (await store.user_events("nobody", after=0, limit=99)) == ([], None)

    async def test_settle_tells_what_a_change_replaced(self, store: Store) -> None:
        """A change whose answer never came is settled with its target, and with the edit that it made void."""
        await store.append([draft()])
        await store.append([change_of(Target(1, "message", b"1"))])
        drafts = [change_of(Target(1, "message", b"2")), draft()]
        appended = await store.append(drafts)
        settled = await store.settle(drafts)
        for before, after in zip(appended, settled, strict=True):
            assert after is not None
            assert before[:3] == after[:3]
            assert sorted(
                map(msgspec.json.decode, (event.json for event in after.replaced)), key=str
            ) == sorted(map(msgspec.json.decode, (event.json for event in before.replaced)), key=str)

    async def test_settle_tells_each_change_of_a_batch_apart(self, store: Store) -> None:
        """Several changes in two rooms, also an erasure of who made a void edit: each with what it has replaced."""
        await store.append([draft(room) for room in "abaab"])
        await store.append([change_of(Target(1, "message", b"1"), room, sender="bob") for room in "ab"])
        await store.append([change_of(Target(1, "message", b"2"), "a")])
        drafts = [
            change_of(Target(2, "message", b"3"), "a"),
            change_of(Target(1, "message"), "b"),
            change_of(Target(4, EDIT, is_erased=True), "a", sender="system"),
            change_of(Target(3, "message", is_erased=True), "a", sender="system"),
        ]
        appended = await store.append(drafts)
        settled = await store.settle(drafts)
        for items in (appended, settled):
            assert [sorted(event.seq or 0 for event in item.replaced) for item in items if item] == [
                [2], [1, 3], [4], [3],
            ]  # fmt: skip

    async def test_the_feed_goes_through_all_rooms(self, store: Store) -> None:
        """By id, oldest first, after an id; empty at the end."""
        assert await store.feed(0, limit=5) == []
        assert await store.last_id() == 0
        appended = []
        for rooms in ("aba", "c", "bb"):
            appended += await store.append([draft(room) for room in rooms])
        items = await store.feed(0, limit=99)
        assert [item.id for item in items] == [item.id for item in appended]
        assert [item.room_id for item in items] == list("abacbb")
        assert [item.event.seq for item in items] == [1, 1, 2, 1, 2, 3]
        assert [decoded(item.event)["id"] for item in items] == [item.id for item in items]
        assert await store.feed(items[1].id, limit=3) == items[2:5]
        assert await store.feed(items[-1].id, limit=3) == []
        assert await store.last_id() == items[-1].id

    async def test_the_feed_tells_what_was_removed(self, store: Store) -> None:
        """A cursor below the newest id that was removed has expired; one at it goes on."""
        appended = await store.append([draft(), draft("other"), draft(), draft()])
        await store.remove("general", "message", 2)
        for after in (0, appended[1].id):
            with pytest.raises(CursorExpired) as expired:
                await store.feed(after, limit=9)
            assert expired.value.removed_through_id == appended[2].id
        assert [item.id for item in await store.feed(appended[2].id, limit=9)] == [appended[3].id]

    async def test_stored_streams_and_their_age(self, tmp_path: Path) -> None:
        """Streams of some names that have events, with the oldest one's time; how far one is older than a time."""
        times = [1000]
        async with self.opened(tmp_path, clock=lambda: times[0]) as store:
            for times[0] in (1000, 2000, 2000, 3000):
                await store.append([draft(room, name) for room in ("a", "b") for name in ("x", "y")])
            await store.append([draft("a", "z")])
            await store.remove("a", "x", 1)
            await store.remove("b", "x", 4)
            await store.mark_handed("b", "y", 4)
            found = {
                (item.room_id, item.event_name): item async for item in store.stored_streams(["x", "y", "q"])
            }
            assert found == {
                ("a", "x"): StoredStream("a", "x", StreamState(4, 0, 1, 1), 2000),
                ("a", "y"): StoredStream("a", "y", StreamState(4), 1000),
                ("b", "y"): StoredStream("b", "y", StreamState(4, 4), 1000),
            }
            assert await store.position_before("a", "x", timestamp=2000, limit=9) == 0
            assert await store.position_before("a", "x", timestamp=2001, limit=9) == 3
            assert await store.position_before("a", "x", timestamp=2001, limit=1) == 2
            assert await store.position_before("a", "y", timestamp=9999, limit=9) == 4
            assert await store.position_before("b", "x", timestamp=9999, limit=9) == 0
            assert await store.position_before("none", "x", timestamp=9999, limit=9) == 0

    async def test_a_store_that_is_not_open_is_unavailable(self, tmp_path: Path) -> None:
        """Before `open` and after `aclose` every call is refused, and `aclose` is harmless."""
        store = self.make(tmp_path)
        await store.aclose()
        for _ in range(2):
            with pytest.raises(StoreUnavailable):
                await store.append([draft()])
            with pytest.raises(StoreUnavailable):
                await store.page("general", limit=1)
            with pytest.raises(StoreUnavailable):
                await store.head("general")
            with pytest.raises(RuntimeError):
                _ = store.epoch
            await store.open()
            with pytest.raises(RuntimeError):
                await store.open()
            await store.aclose()
            await store.aclose()

    async def test_the_epoch_names_a_life_of_the_log(self, tmp_path: Path) -> None:
        """A durable log keeps its epoch; a new log has a new one."""
        epochs = []
        for folder in (tmp_path, tmp_path, tmp_path / "second"):
            folder.mkdir(exist_ok=True)
            async with self.opened(folder) as store:
                epochs.append(store.epoch)
        assert all(0 < len(epoch) <= 64 for epoch in epochs)
        assert (epochs[0] == epochs[1]) == self.is_durable
        assert epochs[0] != epochs[2]

    async def test_a_durable_log_goes_on_after_reopening(self, tmp_path: Path) -> None:
        """Promises 3 and 8: events, seqs, keys, floors and the hand-over's place are as they were."""
        if not self.is_durable:
            async with self.opened(tmp_path) as store:
                await store.append([draft(key="k")])
            async with self.opened(tmp_path) as store:
                assert (await store.head("general")).last_seq == 0
                assert not (await store.append([draft(key="k")]))[0].is_duplicate
            return
        async with self.opened(tmp_path) as store:
            first = await store.append([draft(key="k"), draft(), draft()])
            await store.remove("general", "message", 2)
            await store.mark_handed("general", "message", 2)
        async with self.opened(tmp_path) as store:
            page = await store.page("general", limit=9)
            assert (seqs(page), page.floor_seq) == ([3], 2)
            assert (await store.head("general")).streams["message"] == StreamState(3, 2, 2, 2)
            [new] = await store.append([draft(key="other")])
            assert (new.seq, new.id > first[2].id) == (4, True)
        async with self.opened(tmp_path) as store:
            [again] = await store.append([draft(key="other")])
            assert again == new._replace(event=None)

    async def test_reads_while_appending(self, store: Store) -> None:
        """A page read beside an append is a run without holes."""

        async def publish() -> None:
            for _ in range(30):
                await store.append([draft() for _ in range(5)])

        publishing = asyncio.create_task(publish())
        seen = 0
        while not publishing.done():
            page = await store.page("general", after=0, limit=1000)
            assert seqs(page) == list(range(1, len(page.events) + 1))
            assert len(page.events) % 5 == 0
            assert len(page.events) >= seen
            seen = len(page.events)
            await asyncio.sleep(0)  # a store that waits for nothing would keep the publisher from its turn
        await publishing
        assert seqs(await store.page("general", limit=1)) == [150]

    @settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
    @given(data=st.data())
    async def test_pages_agree_with_a_model(self, data: st.DataObject) -> None:
        """Any page, with any bounds, over any history of appends and removals, is what a plain list gives."""
        with TemporaryDirectory() as folder:
            async with self.opened(Path(folder)) as store:
                await _compare(store, data)


async def _compare(store: Store, data: st.DataObject) -> None:
    names = ("a", "b", "c")
    history: list[EncodedEvent] = []
    floor: dict[str, tuple[int, int]] = dict.fromkeys(names, (0, 0))
    for batch in data.draw(st.lists(st.text("abc", min_size=1, max_size=8), max_size=4), label="batches"):
        history += [recorded(item) for item in await store.append([draft(event=name) for name in batch])]
        name = data.draw(st.sampled_from(names))
        stream = [event for event in history if event.event == name]
        through = data.draw(st.integers(0, len(stream)))
        await store.remove("general", name, through)
        if through > floor[name][0]:
            floor[name] = (through, stream[through - 1].seq or 0)
    kept = [event for event in history if event.position > floor[event.event][0]]
    bound = st.none() | st.integers(0, len(history) + 2)
    for _ in range(6):
        asked: Sequence[str] | None = data.draw(
            st.none() | st.lists(st.sampled_from((*names, "d")), max_size=4)
        )
        before, after = data.draw(bound), data.draw(bound)
        limit = data.draw(st.integers(1, 10))
        matching = [
            event
            for event in kept
            if (asked is None or event.event in asked)
            and (before is None or (event.seq or 0) < before)
            and (after is None or (event.seq or 0) > after)
        ]
        page = await store.page("general", event_names=asked, before=before, after=after, limit=limit)
        expected = matching[-limit:] if after is None else matching[:limit]
        assert seqs(page) == [event.seq for event in expected]
        floors = [floor[name] for name in names if asked is None or name in asked]
        assert page.floor_seq == max((seq for _, seq in floors), default=0)
        if asked is not None and len(set(asked)) == 1:
            assert page.floor_position == (floors[0][0] if floors else 0)
        else:
            assert page.floor_position == 0
    name = data.draw(st.sampled_from(names))
    before_position = data.draw(st.integers(0, len(history) + 2))
    limit = data.draw(st.integers(1, 10))
    page = await store.stream_page("general", name, before_position=before_position, limit=limit)
    expected = [event for event in kept if event.event == name and event.position < before_position][-limit:]
    assert positions(page) == [event.position for event in expected]
    assert (page.floor_position, page.floor_seq) == floor[name]
