"""Edits, deletions and rooms over HTTP: what the socket's commands do, with the same guards and rates."""

from __future__ import annotations

from typing import Any

import httpx2
import pytest
from pydantic import BaseModel

from dialogue import Client, Dialogue, Event, History, JoinDenied, Limits, RoomConfig, define_event
from dialogue.limits import RoomLimits

from .harness import message, note, rooms, serve, wire
from .test_http import GOOD, bearer, code, publish, requests, with_users


@pytest.mark.usefixtures("no_refill")
async def test_me_is_what_connected_says() -> None:
    """Without what belongs to a connection."""
    dialogue = with_users(limits=Limits(user_reads_per_second=1, user_reads_burst=1))
    async with serve(dialogue) as address, wire(address, None) as ann:
        connected = await ann.ask("connect", auth={"token": "ann's"})
        async with httpx2.AsyncClient(base_url=f"http://{address}") as http:
            answer = await http.get("/me", headers=bearer("ann"))
            assert answer.status_code == 200
            assert answer.json() == {
                key: value for key, value in connected.items() if key not in ("type", "ref", "client_id")
            }
            assert code(await http.get("/me", headers=bearer("ann")), 429) == "RATE_LIMITED"
            assert code(await http.get("/me"), 401) == "UNAUTHENTICATED"


async def test_an_event_is_edited_and_deleted() -> None:
    """Everyone in the room is told; a key makes it once."""
    dialogue = Dialogue(rooms())
    async with serve(dialogue) as address, wire(address, "bob") as bob:
        await bob.ask("join", room="general")
        async with httpx2.AsyncClient(base_url=f"http://{address}") as http:
            await publish(http, {"text": "helo"})
            path = "/rooms/general/events/1"
            body = {"data": {"text": "hello"}, "key": "e"}
            edited = await http.patch(f"{path}?user_id=ann", json=body)
            assert edited.status_code == 200
            assert set(edited.json()) == {"room", "seq", "id", "timestamp"}
            again = await http.patch(f"{path}?user_id=ann", json=body)
            assert again.json() == edited.json() | {"duplicate": True}
            page = (await http.get("/rooms/general/history?event=message")).json()
            assert (page["events"][0]["data"], page["events"][0]["edited"]) == ({"text": "hello"}, True)
            deleted = await http.delete(f"{path}?user_id=ann&key=d")
            assert (deleted.status_code, deleted.json()["seq"]) == (200, 3)
            again = await http.delete(f"{path}?user_id=ann&key=d")
            assert again.json() == deleted.json() | {"duplicate": True}
            assert code(await http.delete(f"{path}?user_id=ann"), 400) == "INVALID_REQUEST"
        events = await bob.until_events(3)
        assert [event["event"] for event in events] == ["message", "$edit", "$delete"]


async def test_what_a_change_is_refused_for() -> None:
    """As over the socket; it counts as a trigger, of the user and in the room."""

    class Said(BaseModel):
        text: str

    said = define_event("said", schema=Said, history=History(limit=5))
    slow = RoomConfig(events=[message], limits=RoomLimits(user_triggers_per_second=0.001))
    dialogue = with_users(
        rooms={"general": RoomConfig(events=[said]), "slow": slow},
        limits=Limits(message_bytes=256, user_triggers_burst=20, user_triggers_per_second=1),
    )
    purposes: list[str] = []

    @dialogue.before_join("general")
    def guard(client: Client, purpose: str) -> None:
        purposes.append(purpose)
        if client.user_id == "eve":
            raise JoinDenied("not you")

    @dialogue.before_each(said)
    def refuse(event: Event[Any]) -> Event[Any] | None:
        return None

    async with requests(dialogue) as http:
        await dialogue.trigger("general", said, {"text": "1"}, sender="ann")

        async def change(status: int, user: str, seq: Any = 1, **body: Any) -> str:
            return code(
                await http.patch(f"/rooms/general/events/{seq}", json=body, headers=bearer(user)), status
            )

        good = {"text": "2"}
        assert await change(403, "bob", data=good) == "PERMISSION_DENIED"
        assert await change(403, "eve", data=good) == "JOIN_DENIED"
        assert await change(422, "ann", data={"text": 5}) == "VALIDATION_FAILED"
        assert await change(413, "ann", data={"text": "x" * 300}) == "MESSAGE_TOO_LARGE"
        assert await change(400, "ann") == "INVALID_REQUEST"
        assert await change(400, "ann", data=good, key="$k") == "INVALID_REQUEST"
        for seq in (0, 2, -1, 99999999999999999):
            assert await change(400, "ann", seq, data=good) == "INVALID_REQUEST"
        assert await change(400, "ann", "x", data=good) == "INVALID_REQUEST"
        form = await http.patch("/rooms/general/events/1", content=b"{}", headers=bearer("ann"))
        assert code(form, 415) == "INVALID_REQUEST"
        missing = await http.delete("/rooms/nowhere/events/1", headers=bearer("ann"))
        assert code(missing, 404) == "ROOM_NOT_FOUND"
        assert set(purposes) == {"join"}
        await dialogue.trigger("slow", message, 1, sender="bob")
        statuses = [
            (await http.patch("/rooms/slow/events/1", json={"data": n}, headers=bearer("bob"))).status_code
            for n in range(2)
        ]
        assert statuses == [200, 429]
        statuses = [
            (await http.delete("/rooms/general/events/1", headers=bearer("ann"))).status_code
            for _ in range(40)
        ]
        assert statuses[0] == 200
        assert statuses[-1] == 429


async def test_a_user_who_is_removed_while_hooks_are_asked_changes_nothing() -> None:
    """`JOIN_DENIED` says that it was not done."""
    dialogue = Dialogue(rooms())

    @dialogue.before_each
    async def remove(event: Event[Any]) -> None:
        if event.event == "message" and event.data == "edited":
            await dialogue.remove_from_room("ann", "general")

    async with requests(dialogue) as http:
        await publish(http, 1)
        refused = await http.patch("/rooms/general/events/1?user_id=ann", json={"data": "edited"})
        assert code(refused, 403) == "JOIN_DENIED"
        (event,) = await dialogue.room("general").page()
        assert event.data == 1


async def test_rooms_are_made_and_deleted() -> None:
    """By whom clients' rooms allow it; everyone who may see them is told."""
    made = RoomConfig(events=[message, note])
    dialogue = Dialogue(
        rooms(), client_rooms=made, limits=Limits(user_room_changes_per_minute=8), allowed_origins=[GOOD]
    )
    async with (
        serve(dialogue) as address,
        wire(address, "bob") as bob,
        httpx2.AsyncClient(base_url=f"http://{address}") as http,
    ):
        body = {"room": "plans", "name": "Plans", "description": "d", "max_size": 3}
        answer = await http.post("/rooms?user_id=ann", json=body)
        assert (answer.status_code, answer.json()) == (201, {"room": "plans"})
        created = await bob.until(
            lambda: next((m for m in bob.messages if m["type"] == "room_created"), None)
        )
        assert (created["id"], created["max_size"], created["created_by_id"]) == ("plans", 3, "ann")
        assert code(await http.post("/rooms?user_id=ann", json=body), 409) == "ROOM_EXISTS"
        for wrong in ({}, {"room": "x"}, {"room": "a/b", "name": "x"}, {"room": "x", "name": ""}):
            assert code(await http.post("/rooms?user_id=ann", json=wrong), 400) == "INVALID_REQUEST"
        assert code(await http.delete("/rooms/plans?user_id=bob"), 403) == "PERMISSION_DENIED"
        assert code(await http.delete("/rooms/nowhere?user_id=ann"), 404) == "ROOM_NOT_FOUND"
        asking = {"Origin": GOOD, "Access-Control-Request-Method": "DELETE"}
        preflight = await http.options("/rooms/plans", headers=asking)
        assert preflight.headers["access-control-allow-methods"] == "DELETE, OPTIONS"
        preflight = await http.options("/rooms/plans/events/1", headers=asking)
        assert preflight.headers["access-control-allow-methods"] == "PATCH, DELETE, OPTIONS"
        answer = await http.delete("/rooms/plans?user_id=ann")
        assert (answer.status_code, answer.json()) == (200, {"room": "plans"})
        await bob.until(lambda: any(m["type"] == "room_deleted" for m in bob.messages))
        answer = await http.delete("/rooms/nowhere?user_id=ann")
        assert code(answer, 429) == "RATE_LIMITED"


@pytest.mark.parametrize("method", ["post", "delete"])
async def test_where_clients_make_no_rooms(method: str) -> None:
    """403, as over the socket."""
    async with requests(Dialogue(rooms())) as http:
        if method == "post":
            answer = await http.post("/rooms", json={"room": "x", "name": "X"})
        else:
            answer = await http.delete("/rooms/general")
        assert code(answer, 403) == "PERMISSION_DENIED"
