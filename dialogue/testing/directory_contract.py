"""What every `Directory` promises, as tests over the directory of a store that a subclass makes.

::

    from dialogue.testing.directory_contract import DirectoryContract

    class TestMyDirectory(DirectoryContract):
        def make(self, folder, clock=None):
            return MyStore(folder / "log", clock=clock)

pytest runs the suite with the class, as it does `dialogue.testing.store_contract.StoreContract`. Each test's docstring
says which promise it holds.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

try:
    import pytest
    import pytest_asyncio
    from hypothesis import HealthCheck, given, settings
    from hypothesis import strategies as st
except ImportError as error:
    raise ImportError(
        f"dialogue.testing.directory_contract is a test suite and needs {error.name}: "
        "pip install pytest pytest-asyncio hypothesis",
        name=error.name,
    ) from error

from ..events import Target
from ..storage.base import Store
from ..storage.directory import Marker, Place, RoomRecord, SessionRecord
from .store_contract import change_of, draft

UNCOUNTED = frozenset(("reaction",))
"""The event type of these tests that does not count."""


def room(room_id: str = "club", **changes: object) -> RoomRecord:
    """Return a room's record."""
    values = {
        "name": "Club",
        "description": "",
        "max_size": None,
        "created_by_id": "ann",
        "created_at": 1_700_000_000_000,
        **changes,
    }
    return RoomRecord(room_id, **values)  # type: ignore[arg-type]


def session(client_id: str, user_id: str = "ann", **changes: object) -> SessionRecord:
    """Return a session's record."""
    values = {"first_seen": 1_000, "last_seen": 2_000, "is_active": True, "rooms": ("general",), **changes}
    return SessionRecord(client_id, user_id, **values)  # type: ignore[arg-type]


async def publish(store: Store, *names: str, room_id: str = "general") -> None:
    """Append events of the types *names*; those of `UNCOUNTED` do not count."""
    await store.append([draft(room_id, name, counts_unread=name not in UNCOUNTED) for name in names])


async def mark(store: Store, user_id: str, seq: int, room_id: str = "general") -> Marker:
    """Mark a room as read by a member."""
    marker = await store.directory.mark_read(room_id, user_id, seq, uncounted=UNCOUNTED)
    assert marker is not None
    return marker


@pytest.mark.asyncio
class DirectoryContract:
    """The suite; subclass it as ``Test…`` and override `make`. Each test opens a store of its own.

    Attributes:
        is_durable: Whether the directory survives `Store.aclose`.
        keeps_positions: Whether it knows the number of counting events at each event. A `MemoryDirectory` over a
            store of an application's own counts instead what is left of the events behind a marker that moves.
    """

    is_durable = True
    keeps_positions = True

    def make(self, folder: Path, clock: Callable[[], int] | None = None) -> Store:
        """Return a new store that is not open; see `StoreContract.make`."""
        raise NotImplementedError

    @asynccontextmanager
    async def opened(self, folder: Path) -> AsyncIterator[Store]:
        """Yield an open store over *folder*."""
        store = self.make(folder)
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

    # Rooms

    async def test_rooms_come_back_as_they_were_saved(self, store: Store) -> None:
        """Every field, in the order of the ids' bytes; the newest record of a room replaces the others."""
        records = [
            room("z", name="Ünïcode 😀", description="line\nline", max_size=3, created_by_id=None),
            room("Z", max_size=2**40),
            room("é", name="x" * 1_000),
            room("a", name="first"),
        ]
        for record in records:
            await store.directory.save_room(record)
        records[3] = room("a", name="second", max_size=1, created_by_id="bob", created_at=7)
        await store.directory.save_room(records[3])
        assert await store.directory.rooms() == [records[1], records[3], records[0], records[2]]

    async def test_more_rooms_than_one_read_takes(self, store: Store) -> None:
        """All of them, once and in order."""
        names = [f"room{n:04}" for n in range(1_001)]
        await asyncio.gather(*(store.directory.save_room(room(name)) for name in reversed(names)))
        assert [record.room_id for record in await store.directory.rooms()] == names

    async def test_a_room_that_is_removed_goes_with_its_members(self, store: Store) -> None:
        """And no other does; its seqs and counts go on where they were if it is made again."""
        await publish(store, "message", "message", room_id="club")
        for name in ("club", "other"):
            await store.directory.save_room(room(name))
            await store.directory.add_member(name, ["ann", "bob"])
        await store.directory.remove_room("club")
        await store.directory.remove_room("club")
        await store.directory.remove_room("never made")
        assert [record.room_id for record in await store.directory.rooms()] == ["other"]
        assert await store.directory.members("club", limit=10) == []
        assert [marker.room_id for marker in await store.directory.markers("ann")] == ["other"]
        await store.directory.save_room(room("club"))
        [again] = await store.directory.add_member("club", ["ann"])
        assert again == Marker("club", "ann", 2, 2, 2)
        [item] = await store.append([draft("club")])
        assert item.seq == 3
        assert [marker.unread for marker in await store.directory.markers("ann")] == [1, 0]

    # Members

    async def test_a_new_member_has_read_everything(self, store: Store) -> None:
        """The marker is made at the room's end, also in a room that has never had an event."""
        assert await store.directory.add_member("general", []) == []
        assert await store.directory.add_member("general", ["ann"]) == [Marker("general", "ann", 0, 0, 0)]
        await publish(store, "message", "reaction", "message")
        assert await store.directory.add_member("general", ["bob", "ann", "bob"]) == [
            Marker("general", "bob", 3, 2, 2),
            Marker("general", "ann", 0, 0, 2),
            Marker("general", "bob", 3, 2, 2),
        ]
        assert [marker.unread for marker in await store.directory.add_member("general", ["bob", "ann"])] == [
            0,
            2,
        ]

    async def test_a_member_may_be_noted_later_at_an_earlier_end(self, store: Store) -> None:
        """Where the room ended when the user became a member; a marker that is there stays as it is."""
        await publish(store, "message", "reaction")
        at = Place(2, 1)
        await publish(store, "message", "reaction", "message")
        added = await store.directory.add_member("general", ["ann", "bob"], places={"ann": at})
        assert [(marker.seq, marker.unread) for marker in added] == [(2, 2), (5, 0)]
        again = await store.directory.add_member(
            "general", ["bob", "ann"], places={"bob": at, "ann": Place(0, 0)}
        )
        assert [(marker.seq, marker.unread) for marker in again] == [(5, 0), (2, 2)]

    async def test_a_member_who_is_removed_has_no_marker(self, store: Store) -> None:
        """It says whether there was one; coming back means everything is read."""
        await store.directory.add_member("general", ["ann", "bob"])
        await publish(store, "message")
        assert await store.directory.remove_member("general", "ann")
        assert not await store.directory.remove_member("general", "ann")
        assert not await store.directory.remove_member("nowhere", "ann")
        assert await store.directory.markers("ann") == []
        assert await store.directory.mark_read("general", "ann", 1, uncounted=()) is None
        assert await store.directory.members("general", limit=10) == ["bob"]
        [back] = await store.directory.add_member("general", ["ann"])
        assert back.unread == 0

    async def test_members_are_paged_in_the_order_of_bytes(self, store: Store) -> None:
        """Each once, whatever the language of the database: capitals before small letters before accents."""
        users = ["a", "B", "b", "é", "Z", "a b", "a-b", "ab", "😀", "\uffff", "10", "9", "_"]
        await store.directory.add_member("general", users)
        await store.directory.add_member("other", ["nobody"])
        found: list[str] = []
        while page := await store.directory.members("general", after=found[-1] if found else "", limit=4):
            assert len(page) <= 4
            found += page
        assert found == sorted(users, key=str.encode)
        assert await store.directory.members("nowhere", limit=1) == []

    async def test_many_members_are_made_at_once(self, store: Store) -> None:
        """More than a statement takes."""
        users = [f"user{n:04}" for n in range(1_200)]
        await store.directory.add_member("general", users[300:500])
        await publish(store, "message")
        made = await store.directory.add_member("general", users)
        assert [marker.user_id for marker in made] == users
        assert sum(marker.unread for marker in made) == 200
        assert await store.directory.members("general", limit=2_000) == users

    async def test_members_join_while_others_publish(self, store: Store) -> None:
        """Wherever a marker is made, its count is the one of its seq."""
        names = ["message", "reaction", "message", "message"]

        async def join(number: int) -> Marker:
            [marker] = await store.directory.add_member("general", [f"user{number}"])
            return marker

        async def publish_all() -> None:
            for name in names * 10:
                await publish(store, name)

        joins = [asyncio.create_task(join(number)) for number in range(30)]
        await publish_all()
        recorded = names * 10
        for marker in await asyncio.gather(*joins):
            counting = [name for name in recorded[: marker.seq] if name not in UNCOUNTED]
            assert marker.unread_position == len(counting)
            assert marker.unread == 0
        again = await store.directory.add_member("general", [f"user{number}" for number in range(30)])
        for marker in again:
            rest = [name for name in recorded[marker.seq :] if name not in UNCOUNTED]
            assert marker.unread == len(rest)

    async def test_the_same_member_made_twice_at_once_has_one_marker(self, store: Store) -> None:
        """All callers are told of the same one."""
        await publish(store, "message")
        made = await asyncio.gather(*(store.directory.add_member("general", ["ann"]) for _ in range(20)))
        assert made == [[Marker("general", "ann", 1, 1, 1)]] * 20
        assert await store.directory.members("general", limit=10) == ["ann"]

    async def test_members_of_many_rooms_are_made_at_once(self, store: Store) -> None:
        """Each as by itself: at the room's end or where it is told, and a marker that is there stays as it is."""
        assert await store.directory.add_members({}) == {}
        await publish(store, "message", "reaction", "message")
        await store.directory.add_member("other", ["ann"])
        await publish(store, "message", room_id="other")
        added = await store.directory.add_members(
            {
                "other": {"bob": None, "ann": None, "eve": Place(0, 0)},
                "new": {"ann": None},
                "general": {"bob": Place(1, 1), "ann": None},
                "nobody's": {},
            }
        )
        assert added == {
            "other": [
                Marker("other", "bob", 1, 1, 1),
                Marker("other", "ann", 0, 0, 1),
                Marker("other", "eve", 0, 0, 1),
            ],
            "new": [Marker("new", "ann", 0, 0, 0)],
            "general": [Marker("general", "bob", 1, 1, 2), Marker("general", "ann", 3, 2, 2)],
            "nobody's": [],
        }
        again = await store.directory.add_members({"general": {"ann": Place(0, 0)}, "new": {"ann": None}})
        assert again == {"general": added["general"][1:], "new": added["new"]}
        assert await store.directory.members("nobody's", limit=10) == []
        many = {f"room{n}": {f"user{k}": Place(0, 0) for k in range(n % 4)} for n in range(400)}
        made = await store.directory.add_members(many)
        assert {room_id: [marker.user_id for marker in made[room_id]] for room_id in made} == {
            room_id: list(many[room_id]) for room_id in many
        }
        assert len(await store.directory.markers("user2")) == 100

    # Unread counts

    async def test_a_users_markers_come_at_once(self, store: Store) -> None:
        """All rooms or those asked for, in order, with the count of each and nobody else's."""
        for name in ("c", "a", "b"):
            await store.directory.add_member(name, ["ann", "bob"])
        await publish(store, "message", "message", room_id="c")
        await publish(store, "message", "reaction", room_id="a")
        found = await store.directory.markers("ann")
        assert [(marker.room_id, marker.user_id, marker.unread) for marker in found] == [
            ("a", "ann", 1),
            ("b", "ann", 0),
            ("c", "ann", 2),
        ]
        assert await store.directory.markers("ann", ["c", "b", "c", "nowhere"]) == found[1:]
        assert await store.directory.markers("ann", []) == []
        assert await store.directory.markers("nobody") == []
        many = [f"room{n}" for n in range(2_000)]
        assert await store.directory.markers("ann", {*many, "a"}) == found[:1]

    async def test_the_markers_of_several_users_come_at_once(self, store: Store) -> None:
        """For each what `Directory.markers` has, also for who has none, and however often one is named."""
        for name in ("c", "a", "b"):
            await store.directory.add_member(name, ["bob", "ann", "é", "eve"])
        await store.directory.remove_member("b", "bob")
        await publish(store, "message", "reaction", "message", room_id="c")
        users = ["nobody", "é", "ann", "bob", "ann", "\uffff", "😀"]
        found = await store.directory.markers_of(users, limit=1_000)
        assert found == {user_id: await store.directory.markers(user_id) for user_id in users}
        assert [marker.room_id for marker in found["bob"]] == ["a", "c"]
        assert [marker.unread for marker in found["é"]] == [0, 0, 2]
        assert await store.directory.markers_of({"nobody"}, limit=1) == {"nobody": []}

    async def test_the_markers_of_more_users_than_a_statement_takes(self, store: Store) -> None:
        """Each has exactly its own."""
        users = [f"user{n:03}" for n in range(600)]
        await store.directory.add_member("general", users[::2])
        await store.directory.add_member("other", users[::3])
        found = await store.directory.markers_of(users, limit=10_000)
        assert {user_id: [marker.room_id for marker in found[user_id]] for user_id in users} == {
            user_id: ["general"] * (n % 2 == 0) + ["other"] * (n % 3 == 0) for n, user_id in enumerate(users)
        }
        assert all(marker.user_id == user_id for user_id in users for marker in found[user_id])

    @pytest.mark.parametrize("limit", [1, 2, 3, 7, 20, 59, 60, 61])
    async def test_what_is_beyond_the_limit_is_asked_for_again(self, store: Store, limit: int) -> None:
        """A user's markers come whole, of at least one user, and of all when those who are left out are asked for."""
        users = [f"user{n:02}" for n in range(20)]
        for n in range(6):
            await store.directory.add_member(f"room{n}", [user for k, user in enumerate(users) if k % 7 > n])
        found: dict[str, list[Marker]] = {}
        while left := [user_id for user_id in [*users, "nobody"] if user_id not in found]:
            part = await store.directory.markers_of(left, limit=limit)
            assert part
            assert part.keys() <= set(left)
            found |= part
        assert {user_id: len(found[user_id]) for user_id in users} == {
            user_id: k % 7 for k, user_id in enumerate(users)
        }
        assert found == {user_id: await store.directory.markers(user_id) for user_id in found}

    async def test_a_marker_moves_forward_only(self, store: Store) -> None:
        """An earlier seq changes nothing, one beyond the end is the end; nobody else's marker moves."""
        await store.directory.add_member("general", ["ann", "bob"])
        assert (await mark(store, "ann", 5)).seq == 0
        await publish(store, *["message"] * 5)
        assert await mark(store, "ann", 3) == Marker("general", "ann", 3, 3, 5)
        for seq in (2, 0, -1, 3):
            assert await mark(store, "ann", seq) == Marker("general", "ann", 3, 3, 5)
        assert await mark(store, "ann", 2**62) == Marker("general", "ann", 5, 5, 5)
        await publish(store, "message")
        assert [marker.unread for marker in await store.directory.markers("ann")] == [1]
        assert [marker.unread for marker in await store.directory.markers("bob")] == [6]

    async def test_edits_and_deletions_do_not_count(self, store: Store) -> None:
        """Neither at the place that was read nor behind it; an event that is deleted still does."""
        await store.directory.add_member("general", ["ann"])
        await publish(store, "message", "message")
        await store.append([change_of(Target(2, "message", b'{"text":"better"}'))])
        await publish(store, "message")
        await store.append([change_of(Target(1, "message"))])
        assert [marker.unread for marker in await store.directory.markers("ann")] == [3]
        assert [(await mark(store, "ann", seq)).unread for seq in range(1, 6)] == [2, 1, 1, 0, 0]

    async def test_markers_moved_at_once_end_at_the_newest(self, store: Store) -> None:
        """Whatever order they take effect in, and while others publish."""
        await store.directory.add_member("general", ["ann"])
        await publish(store, *["message"] * 20)
        calls = [mark(store, "ann", seq) for seq in (20, 3, 11, 7, 20, 1)]
        await asyncio.gather(publish(store, "message", "message"), *calls)
        [marker] = await store.directory.markers("ann")
        assert marker == Marker("general", "ann", 20, 20, 22)

    async def test_what_was_removed_counts_as_read(self, store: Store) -> None:
        """Reading through a seq that has left the log reads all that left with it, and no more."""
        users = [f"user{n}" for n in range(12)]
        await store.directory.add_member("general", users)
        # 1 to 4 are removed, 5 and 6 stay, 7 and 8 are removed, 9 to 11 stay.
        await publish(store, *["old"] * 4, "message", "reaction", "old", "old", "reaction", "message", "x")
        await store.remove("general", "old", 6)
        unread = [(await mark(store, user, seq)).unread for seq, user in enumerate(users)]
        if self.keeps_positions:
            assert unread == [9, 5, 5, 5, 5, 4, 4, 2, 2, 2, 1, 0]
        else:
            # Those that are still there.
            assert unread == [9, 3, 3, 3, 3, 2, 2, 2, 2, 2, 1, 0]
        await store.remove("general", "message", 2)
        await store.remove("general", "x", 1)
        await publish(store, "gone")
        await store.remove("general", "reaction", 2)
        await store.remove("general", "gone", 1)
        # Nothing is left to be read.
        assert (await mark(store, "user0", 1)).unread == 0

    @settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
    @given(data=st.data())
    async def test_unread_counts_agree_with_a_model(self, data: st.DataObject) -> None:
        """Any history of publishing, reading and removing gives the counts of a plain list."""
        with TemporaryDirectory() as folder:
            async with self.opened(Path(folder)) as store:
                await _compare(store, data, can_remove=self.keeps_positions)

    async def test_every_place_of_a_room_gives_its_count(self, store: Store) -> None:
        """Exhaustively: a reader at each seq has as many unread as counting events follow."""
        names = ["message", "reaction", "reaction", "alert", "message", "alert", "reaction", "message"] * 4
        users = [f"user{n}" for n in range(len(names) + 2)]
        await store.directory.add_member("general", users)
        await publish(store, *names)
        for seq, user_id in enumerate(users):
            rest = [name for name in names[seq:] if name not in UNCOUNTED]
            assert (await mark(store, user_id, seq)).unread == len(rest)

    # Sessions

    async def test_sessions_come_newest_first(self, store: Store) -> None:
        """By the time last seen, then by the client id, both downwards; of all users or of one."""
        records = [
            session("c1", last_seen=10, rooms=()),
            session("c2", "bob", last_seen=30, rooms=("general", 'a "b" é')),
            session("c3", last_seen=20, is_active=False),
            session("c4", last_seen=20, first_seen=5),
        ]
        await store.directory.save_sessions([])
        await store.directory.save_sessions(records)
        newest = [records[1], records[3], records[2], records[0]]
        assert await store.directory.sessions(limit=10) == newest
        assert await store.directory.sessions(limit=2) == newest[:2]
        assert await store.directory.sessions("ann", limit=10) == newest[1:]
        assert await store.directory.sessions("ann", limit=1) == newest[1:2]
        assert await store.directory.sessions("nobody", limit=1) == []

    async def test_a_session_that_is_saved_again_is_replaced(self, store: Store) -> None:
        """Every field; of two in one call the later one is kept."""
        await store.directory.save_sessions([session("c1"), session("c2")])
        last = session("c1", "bob", first_seen=1, last_seen=9_000, is_active=False, rooms=("other",))
        await store.directory.save_sessions([session("c1", last_seen=8_000), last])
        assert await store.directory.sessions(limit=10) == [last, session("c2")]

    async def test_the_sessions_of_a_crash_are_ended(self, store: Store) -> None:
        """All that are active become inactive and keep the rest; it says how many there were."""
        active = [session(f"c{n}", last_seen=n) for n in range(5)]
        await store.directory.save_sessions([*active, session("old", is_active=False, last_seen=0)])
        assert await store.directory.end_sessions() == 5
        assert await store.directory.end_sessions() == 0
        found = await store.directory.sessions(limit=10)
        assert [record.client_id for record in found] == ["c4", "c3", "c2", "c1", "old", "c0"]
        assert not any(record.is_active for record in found)
        assert found[0].rooms == ("general",)

    async def test_old_sessions_are_removed(self, store: Store) -> None:
        """Inactive ones last seen before the time, more than one batch of them, and no active one."""
        await store.directory.save_sessions(
            [session(f"c{n:04}", last_seen=n, is_active=n % 3 == 0) for n in range(3_600)]
        )
        assert await store.directory.remove_sessions(before=3_500) == 2_333
        assert await store.directory.remove_sessions(before=3_500) == 0
        left = await store.directory.sessions(limit=5_000)
        assert {record.last_seen for record in left} == {n for n in range(3_600) if n % 3 == 0 or n >= 3_500}

    async def test_a_user_who_is_forgotten_has_nothing(self, store: Store) -> None:
        """Neither markers nor sessions; others keep theirs, and so do the rooms."""
        for name in ("general", "other"):
            await store.directory.save_room(room(name))
            await store.directory.add_member(name, ["ann", "bob"])
        await store.directory.save_sessions([session("c1"), session("c2"), session("c3", "bob")])
        await store.directory.forget_user("ann")
        await store.directory.forget_user("ann")
        assert await store.directory.markers("ann") == []
        assert await store.directory.members("other", limit=10) == ["bob"]
        assert [record.client_id for record in await store.directory.sessions(limit=10)] == ["c3"]
        assert len(await store.directory.rooms()) == 2

    # Lives

    async def test_reopening_keeps_or_forgets_everything(self, tmp_path: Path) -> None:
        """A durable directory goes on where it was; one that is not durable begins with nothing."""
        async with self.opened(tmp_path) as store:
            await publish(store, "message", "message")
            await store.directory.save_room(room())
            await store.directory.add_member("club", ["ann"])
            await store.directory.add_member("general", ["ann"])
            await publish(store, "message", "reaction")
            await store.directory.save_sessions([session("c1")])
        async with self.opened(tmp_path) as store:
            if not self.is_durable:
                assert await store.directory.rooms() == []
                assert await store.directory.markers("ann") == []
                assert await store.directory.sessions(limit=1) == []
                return
            assert await store.directory.rooms() == [room()]
            assert await store.directory.markers("ann") == [
                Marker("club", "ann", 0, 0, 0),
                Marker("general", "ann", 2, 2, 3),
            ]
            assert await store.directory.sessions(limit=2) == [session("c1")]
            assert await mark(store, "ann", 3) == Marker("general", "ann", 3, 3, 3)

    async def test_the_head_has_the_rooms_count(self, store: Store) -> None:
        """`RoomHead.last_unread_position` is what unread counts are taken from."""
        assert (await store.head("general")).last_unread_position == 0
        await publish(store, "message", "reaction", "message")
        await publish(store, "reaction", room_id="other")
        await store.remove("general", "message", 2)
        assert (await store.head("general")).last_unread_position == 2
        assert (await store.head("other")).last_unread_position == 0

    async def test_a_directory_is_one_object(self, store: Store) -> None:
        """Whoever keeps it keeps the one that everybody uses."""
        assert store.directory is store.directory


class _Model:
    """Unread counts over plain lists."""

    def __init__(self) -> None:
        self.names: list[str] = []
        self.removed: set[int] = set()
        self.markers: dict[str, tuple[int, int]] = {}

    def counting(self, through: int) -> int:
        """Return how many of the events through a seq count."""
        return sum(name not in UNCOUNTED for name in self.names[:through])

    def mark(self, user_id: str, seq: int) -> None:
        """Move a marker: over what is removed up to the next event that is there."""
        seq = min(seq, len(self.names))
        if seq <= self.markers[user_id][0]:
            return
        through = seq
        if seq in self.removed:
            while through < len(self.names) and through + 1 in self.removed:
                through += 1
        self.markers[user_id] = seq, self.counting(through)

    def unread(self, user_id: str) -> int:
        """Return a user's count."""
        return self.counting(len(self.names)) - self.markers[user_id][1]


async def _compare(store: Store, data: st.DataObject, *, can_remove: bool) -> None:
    model = _Model()
    names = ("message", "alert", "reaction")
    users = ("ann", "bob", "eve")
    floors = dict.fromkeys(names, 0)
    steps = ["publish", "publish", "read", "read", "join", "leave", *(["remove"] if can_remove else [])]
    for step in data.draw(st.lists(st.sampled_from(steps), max_size=25), label="steps"):
        user_id = data.draw(st.sampled_from(users))
        if step == "publish":
            batch = data.draw(st.lists(st.sampled_from(names), min_size=1, max_size=6))
            await publish(store, *batch)
            model.names += batch
        elif step == "join":
            await store.directory.add_member("general", [user_id])
            model.markers.setdefault(user_id, (len(model.names), model.counting(len(model.names))))
        elif step == "leave":
            was_member = model.markers.pop(user_id, None) is not None
            assert await store.directory.remove_member("general", user_id) == was_member
        elif step == "read":
            seq = data.draw(st.integers(-1, len(model.names) + 1))
            found = await store.directory.mark_read("general", user_id, seq, uncounted=UNCOUNTED)
            assert (found is not None) == (user_id in model.markers)
            if found is not None:
                model.mark(user_id, seq)
                assert (found.seq, found.unread) == (model.markers[user_id][0], model.unread(user_id))
        else:
            name = data.draw(st.sampled_from(names))
            seqs = [seq for seq, of in enumerate(model.names, 1) if of == name]
            through = data.draw(st.integers(0, len(seqs)))
            if through > floors[name]:
                floors[name] = through
                await store.remove("general", name, through)
                model.removed.update(seqs[:through])
        for user_id in users:
            expected = (
                [(*model.markers[user_id][:1], model.unread(user_id))] if user_id in model.markers else []
            )
            got = await store.directory.markers(user_id)
            assert [(marker.seq, marker.unread) for marker in got] == expected
