"""Unread counts, read markers and sessions over HTTP, and what guards them."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import httpx2
import pytest

from dialogue import Client, Dialogue, History, JoinDenied, RoomConfig, SQLStore, define_event
from dialogue.config import DirectRoom

from .harness import eventually, message, rooms, serve, wire
from .streaming import open_stream
from .test_http import bearer, code, requests, with_users
from .test_inbox_races import HeldDirectory


async def test_unread_counts_and_marks_are_those_of_the_socket() -> None:
    """D7 over HTTP: counts of the inbox, of all rooms or of those asked for; a mark is told to the user's sockets."""
    dialogue = with_users()
    async with serve(dialogue) as address, wire(address, None) as ann, at(address) as http:
        await ann.ask("connect", auth={"token": "ann's"})
        for room in ("general", "other"):
            await ann.ask("join", room=room)
            for number in range(3):
                await dialogue.trigger(room, message, number)
        await ann.ask("leave", room="other")
        await dialogue.trigger("other", message, "more")
        answer = await http.get("/unread", headers=bearer("ann"))
        assert (answer.status_code, answer.json()) == (200, {"unread": {"general": 3, "other": 4}})
        only = await http.get(
            "/unread", params={"room": ["other", "dm:ann:bob", "nowhere"]}, headers=bearer("ann")
        )
        assert only.json() == {"unread": {"other": 4}}
        marked = await http.post("/rooms/other/read", json={"seq": 3}, headers=bearer("ann"))
        assert (marked.status_code, marked.json()) == (200, {"room": "other", "unread": 1})
        await ann.until(
            lambda: any(m["type"] == "unread" and m["unread"].get("other") == 1 for m in ann.messages)
        )
        assert (await http.get("/unread", headers=bearer("bob"))).json() == {"unread": {}}
        assert code(await http.get("/unread"), 401) == "UNAUTHENTICATED"


async def test_marks_are_checked() -> None:
    """A room that is not in the inbox, a seq that is none, another body or media type: refused, and nothing moves."""
    dialogue = with_users()
    async with requests(dialogue) as http:
        await dialogue.add_member("general", "ann")
        await dialogue.trigger("general", message, 1)
        for room, body, status, expected in (
            ("other", {"seq": 1}, 403, "NOT_JOINED"),
            ("nowhere", {"seq": 1}, 404, "ROOM_NOT_FOUND"),
            ("general", {"seq": -1}, 400, "INVALID_REQUEST"),
            ("general", {"seq": "x"}, 400, "INVALID_REQUEST"),
            ("general", {}, 400, "INVALID_REQUEST"),
            ("general", [1], 400, "INVALID_REQUEST"),
        ):
            response = await http.post(f"/rooms/{room}/read", json=body, headers=bearer("ann"))
            assert code(response, status) == expected, (room, body)
        form = await http.post("/rooms/general/read", data={"seq": "1"}, headers=bearer("ann"))
        assert code(form, 415) == "INVALID_REQUEST"
        assert await dialogue.unread("ann") == {"general": 1}


async def test_guards_hold_for_unread_and_marks() -> None:
    """``before_join`` with purpose "read" covers both: what it denies is not told of."""
    dialogue = with_users()
    purposes: list[str] = []

    @dialogue.before_join("other")
    def guard(client: Client, purpose: str) -> None:
        purposes.append(purpose)
        raise JoinDenied("not any more")

    async with requests(dialogue) as http:
        for room in ("general", "other"):
            await dialogue.add_member(room, "ann")
            await dialogue.trigger(room, message, 1)
        assert (await http.get("/unread", headers=bearer("ann"))).json() == {"unread": {"general": 1}}
        response = await http.post("/rooms/other/read", json={"seq": 1}, headers=bearer("ann"))
        assert code(response, 403) == "JOIN_DENIED"
        assert set(purposes) == {"read"}
        assert (await dialogue.unread("ann"))["other"] == 1


async def test_a_room_that_one_is_removed_from_meanwhile_is_not_told_of() -> None:
    """Though its guards have been asked already, while those of another room take their time."""
    dialogue = with_users()
    asked, go_on = asyncio.Event(), asyncio.Event()

    @dialogue.before_join("other")
    async def slow() -> None:
        asked.set()
        await go_on.wait()

    async with requests(dialogue) as http:
        for room in ("general", "other"):
            await dialogue.add_member(room, "ann")
        request = asyncio.create_task(http.get("/unread", headers=bearer("ann")))
        await asked.wait()
        await dialogue.remove_from_room("ann", "general")
        go_on.set()
        assert (await request).json() == {"unread": {"other": 0}}
        assert not dialogue.hub().access._watched


async def test_ids_that_the_store_does_not_take_never_reach_it(postgres_url: str) -> None:
    """A room that cannot be is none of the user's; a user who cannot be is refused."""
    dialogue = with_users(store=SQLStore(postgres_url))
    dialogue.can_see_sessions(lambda: True)
    async with requests(dialogue) as http:
        await dialogue.add_member("general", "ann")
        answer = await http.get("/unread", params={"room": ["\0", "general"]}, headers=bearer("ann"))
        assert (answer.status_code, answer.json()) == (200, {"unread": {"general": 0}})
        none = await http.get("/unread", params={"room": "\0"}, headers=bearer("ann"))
        assert none.json() == {"unread": {}}
        refused = await http.get("/sessions", params={"of": "\0"}, headers=bearer("ann"))
        assert code(refused, 422) == "VALIDATION_FAILED"


async def test_d10_sessions_are_listed_to_whom_the_hook_allows() -> None:
    """D10 over HTTP: nobody without a hook; with one, whom it allows, with the rooms and how far they are read."""
    closed = with_users()
    async with requests(closed) as http:
        assert code(await http.get("/sessions", headers=bearer("ann")), 403) == "PERMISSION_DENIED"
    dialogue = with_users(rooms={"general": RoomConfig(events=[message])})
    asked: list[tuple[str, str | None]] = []

    @dialogue.can_see_sessions
    def allow(client: Client, user_id: str | None) -> bool:
        asked.append((client.user_id, user_id))
        return client.user_id in ("admin", user_id)

    async with serve(dialogue) as address, wire(address, None) as ann, at(address) as http:
        connected = await ann.ask("connect", auth={"token": "ann's"})
        await ann.ask("join", room="general")
        await ann.trigger("general", "message", "hi")
        await ann.ask("mark_read", room="general", seq=1)
        (mine,) = await listed(http, "ann", of="ann")
        assert (mine["client_id"], mine["user_id"], mine["is_active"]) == (
            connected["client_id"],
            "ann",
            True,
        )
        assert mine["rooms"] == {"general": 1}
        assert mine["first_seen"] <= mine["last_seen"]
        assert [session["user_id"] for session in await listed(http, "admin")] == ["ann"]
        for who, of in (("ann", None), ("bob", "ann")):
            params = {} if of is None else {"of": of}
            refused = await http.get("/sessions", params=params, headers=bearer(who))
            assert code(refused, 403) == "PERMISSION_DENIED"
        assert code(await http.get("/sessions?limit=0", headers=bearer("admin")), 400) == "INVALID_REQUEST"
    assert asked == [("ann", "ann"), ("admin", None), ("ann", None), ("bob", "ann")]


def at(address: str) -> httpx2.AsyncClient:
    """Return a client of a server that is there already."""
    return httpx2.AsyncClient(base_url=f"http://{address}")


async def listed(http: Any, user: str, **params: str) -> list[dict[str, Any]]:
    """Return the sessions that *user* is shown."""
    response = await http.get("/sessions", params=params, headers=bearer(user))
    assert response.status_code == 200, response.text
    found: list[dict[str, Any]] = response.json()["sessions"]
    return found


# -- who reads from outside ------------------------------------------------------------------------------------------


QUIET = define_event("tick", history=History(limit=5), counts_unread=False)


@pytest.mark.parametrize("wait_seconds", [None, 0], ids=["stream", "poll"])
async def test_who_follows_a_room_has_it_in_the_inbox(wait_seconds: int | None, tmp_path: Path) -> None:
    """As by a first join: what comes afterwards is unread, of a pair for both, and a mark counts; in the store, too."""
    query = {} if wait_seconds is None else {"wait_seconds": wait_seconds}
    path = f"sqlite:///{tmp_path}/chat.db"
    config = rooms() | {
        "dm:{a}:{b}": DirectRoom(events=[message]),
        "quiet": RoomConfig(events=[QUIET]),
    }
    dialogue = with_users(rooms=config, store=path)
    async with serve(dialogue) as address, at(address) as http:
        await dialogue.trigger("general", message, "before")
        for room in ("general", "dm:ann:bob", "quiet"):
            async with open_stream(address, room, headers=bearer("ann"), is_read=False, **query) as stream:
                assert stream.status == 200
        for room in ("general", "dm:ann:bob"):
            await dialogue.trigger(room, message, 1)
        await dialogue.trigger("general", message, 2)
        counts = {"dm:ann:bob": 1, "general": 2}
        assert (await http.get("/unread", headers=bearer("ann"))).json() == {"unread": counts}
        assert await dialogue.unread("bob") == {"dm:ann:bob": 1}
        marked = await http.post("/rooms/general/read", json={"seq": 2}, headers=bearer("ann"))
        assert marked.json() == {"room": "general", "unread": 1}
        # Where nothing counts there is nothing to mark, as over the socket.
        marked = await http.post("/rooms/quiet/read", json={"seq": 1}, headers=bearer("ann"))
        assert marked.json() == {"room": "quiet", "unread": 0}
        assert not dialogue.hub().inbox._online
    again = with_users(rooms=config, store=path)
    async with again.lifespan():
        assert await again.unread("ann") == {"dm:ann:bob": 1, "general": 1}
        assert await again.room("general").members() == ["ann"]


async def test_who_comes_back_or_is_nobody_gets_nothing_into_an_inbox() -> None:
    """A cursor is of one who has been there: who was removed meanwhile stays so. A user of one request has no inbox."""
    dialogue = Dialogue(rooms())
    async with serve(dialogue) as address, at(address) as http:
        async with open_stream(address, user_id="ann") as stream:
            await dialogue.trigger("general", message, 1)
            await stream.until_events(1)
            assert await dialogue.unread("ann") == {"general": 1}
            await dialogue.remove_from_room("ann", "general")
            await stream.until_closed()
        async with (
            open_stream(address, user_id="ann", headers={"Last-Event-ID": stream.last_id}),
            open_stream(address),
        ):
            await http.get("/rooms/general/events?wait_seconds=0&after=0&user_id=ann")
            assert await dialogue.unread("ann") == {}
            assert await dialogue.room("general").members() == []
            # Nobody has read anything; who only asks is not following.
            assert (await http.post("/rooms/general/read", json={"seq": 1})).json()["unread"] == 0
            refused = await http.post("/rooms/general/read?user_id=bob", json={"seq": 1})
            assert code(refused, 403) == "NOT_JOINED"


async def test_who_has_a_stream_may_mark(monkeypatch: pytest.MonkeyPatch) -> None:
    """Though more waited to be written than may when it began, or it began with a cursor: as one who has joined."""
    dialogue = Dialogue(rooms())
    async with serve(dialogue) as address, at(address) as http:
        await dialogue.trigger("general", message, 1)
        monkeypatch.setattr("dialogue.server.member_writes.MEMBERS_WAITING", 0)
        async with open_stream(address, user_id="ann"), open_stream(address, user_id="bob", after=0):
            await eventually(lambda: dropped(dialogue) == 1)
            monkeypatch.undo()
            await dialogue.trigger("general", message, 2)
            for user in ("ann", "bob"):
                answer = await http.post(f"/rooms/general/read?user_id={user}", json={"seq": 1})
                assert (answer.status_code, answer.json()["unread"]) == (200, 0)
            await dialogue.trigger("general", message, 3)
            assert await dialogue.unread("ann") == await dialogue.unread("bob") == {"general": 1}


async def test_an_inbox_is_bounded_for_who_reads_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    """As for joins: a further room does not get into it, and is counted; so is who waits when too many do."""
    monkeypatch.setattr("dialogue.server.inbox.ROOMS_PER_INBOX", 2)
    store = HeldDirectory()
    dialogue = Dialogue(rooms(), store=store)
    async with serve(dialogue) as address, at(address) as http:
        for n in range(3):
            await http.get(f"/rooms/dm:x:{n}/events?wait_seconds=0&user_id=ann")
        assert await dialogue.unread("ann") == {"dm:x:0": 0, "dm:x:1": 0}
        assert dropped(dialogue) == 1

        monkeypatch.setattr("dialogue.server.inbox.DEPARTED_USERS", 2)
        inbox = dialogue.hub().inbox
        store.hold_call("markers_of")
        for n in range(3):
            await http.get(f"/rooms/general/events?wait_seconds=0&user_id=user{n}")
        assert (len(inbox._online), len(inbox._departed), dropped(dialogue)) == (2, 2, 2)
        store.let_go("markers_of")
        await eventually(lambda: not inbox._online)
        await eventually(lambda: not inbox._loads)
        assert await dialogue.room("general").members() == ["user1", "user2"]


async def test_who_is_removed_while_the_inbox_is_read_is_no_member() -> None:
    """Nor is one whose room is deleted; who connects meanwhile has what was read before."""
    store = HeldDirectory()
    dialogue = Dialogue(rooms(), store=store, client_rooms=RoomConfig(events=[message]))
    async with serve(dialogue) as address, at(address) as http:
        await dialogue.create_room("made", name="Made")
        inbox = dialogue.hub().inbox
        store.hold_call("markers_of")
        for room in ("general", "made", "other"):
            await http.get(f"/rooms/{room}/events?wait_seconds=0&user_id=ann")
        await dialogue.remove_from_room("ann", "general")
        await dialogue.delete_room("made")
        async with wire(address, "ann") as ann:
            assert not inbox._departed
            store.let_go("markers_of")
            assert (await ann.ask("unread"))["unread"] == {"other": 0}
            await dialogue.trigger("other", message, 1)
            await ann.until(
                lambda: any(m["type"] == "unread" and m["unread"] == {"other": 1} for m in ann.messages)
            )
            # A room that is read from outside is told of from then on.
            await http.get("/rooms/general/events?wait_seconds=0&user_id=ann")
            await dialogue.trigger("general", message, 1)
            await ann.until(
                lambda: any(m["type"] == "unread" and m["unread"] == {"general": 1} for m in ann.messages)
            )
        await eventually(lambda: not inbox._online)
        assert await dialogue.hub().store.directory.members("made", limit=1) == []


def dropped(dialogue: Dialogue) -> float:
    """Return how many memberships were not kept."""
    return dialogue.metrics.registry.get_sample_value("dialogue_members_dropped_total") or 0
