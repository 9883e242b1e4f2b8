"""Unread counts, read markers and sessions over HTTP, and what guards them."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx2

from dialogue import Client, JoinDenied, RoomConfig, SQLStore

from .harness import message, serve, wire
from .test_http import bearer, code, requests, with_users


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
