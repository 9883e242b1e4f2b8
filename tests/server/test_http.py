"""The same over HTTP: reading and publishing without a socket, and what guards it."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import quote

import httpx2
import pytest
from fastapi import Depends, FastAPI, HTTPException
from fastapi.testclient import TestClient
from hypercorn.asyncio import serve as hypercorn_serve
from hypercorn.config import Config
from pydantic import BaseModel

from dialogue import (
    Blocked,
    Client,
    CommandError,
    Dialogue,
    Event,
    History,
    Identity,
    JoinDenied,
    Limits,
    MemoryStore,
    RoomConfig,
    RoomHandle,
    Unauthenticated,
    define_event,
)
from dialogue.config import DirectRoom
from dialogue.errors import COMMAND_ERRORS
from dialogue.limits import RoomLimits
from dialogue.server.http_answers import STATUSES

from .harness import _socket, eventually, message, rooms, serve, wire

EVIL = "https://evil.example"
GOOD = "https://good.example"


@asynccontextmanager
async def requests(app: Any, **options: Any) -> AsyncIterator[httpx2.AsyncClient]:
    """Serve *app*, and yield a client of it."""
    async with serve(app) as address, httpx2.AsyncClient(base_url=f"http://{address}", **options) as http:
        yield http


def with_users(**options: Any) -> Dialogue:
    """Return a Dialogue whose users have tokens: ``ann's`` is ann's."""
    dialogue = Dialogue(options.pop("rooms", rooms()), **options)

    @dialogue.authenticate
    async def authenticate(auth: dict[str, Any]) -> Identity:
        token = auth.get("token", "")
        if not token.endswith("'s"):
            raise Unauthenticated("log in again")
        return Identity(token.removesuffix("'s"))

    return dialogue


def bearer(user: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {user}'s"}


def code(response: Any, status: int) -> str:
    """Return the code of a refusal, of which the form is checked."""
    body = response.json()
    assert response.status_code == status, body
    assert set(body) <= {"code", "message", "details", "retry_after_seconds"}
    assert response.headers["cache-control"] == "no-store"
    return str(body["code"])


async def publish(http: httpx2.AsyncClient, data: Any, *, user: str = "ann", **fields: Any) -> Any:
    return await http.post(
        f"/rooms/general/events?user_id={user}", json={"event": "message", "data": data, **fields}
    )


# -- reading ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "parameters",
    [
        {},
        {"limit": 3},
        {"event": "message"},
        {"kind": "event", "limit": 2},
        {"before": 9, "limit": 4},
        {"after": 0},
        {"after": 4, "limit": 2, "event": "note"},
        {"around": 6, "limit": 5},
        {"event": "message", "start": 1, "end": 4},
        {"event": "message", "start": 2, "end": 2},
        {"limit": 100_000},
    ],
    ids=lambda parameters: ",".join(parameters) or "none",
)
async def test_pages_are_those_of_the_socket(parameters: dict[str, Any], tmp_path: Any) -> None:
    """For the same parameters the same page, with one's own keys, and `next` and `previous` go on alike."""
    dialogue = Dialogue(rooms(), store=f"sqlite:///{tmp_path}/chat.db")
    async with serve(dialogue) as address, wire(address, "ann") as client:
        await client.ask("join", room="general")
        for n in range(12):
            await client.trigger(
                "general", "note" if n % 3 == 0 else "message", {"n": n}, key=f"k{n}", meta={"m": n}
            )
        await client.ask("edit", room="general", seq=2, data="edited")
        async with httpx2.AsyncClient(base_url=f"http://{address}") as http:

            async def compare(given: dict[str, Any]) -> dict[str, Any]:
                page = await client.ask("history", room="general", **given)
                answer = await http.get("/rooms/general/history", params={"user_id": "ann", **given})
                assert answer.status_code == 200
                body: dict[str, Any] = answer.json()
                assert body == {key: value for key, value in page.items() if key not in ("type", "ref")}
                return body

            body = await compare(parameters)
            filters: dict[str, Any] = {key: parameters[key] for key in ("event", "kind") if key in parameters}
            for cursor in (body["next"], body.get("previous")):
                if cursor is not None:
                    await compare({**filters, "cursor": cursor})
            epoch = {"epoch": body["epoch"]} if {"before", "after"} & set(parameters) else {}
            await compare({**parameters, **epoch})


@pytest.mark.parametrize(
    "query",
    [
        "before=x",
        "before=",
        "before=1.0",
        "before=%31%00",
        "before=-1",
        "limit=0",
        "limit=99999999999999999999999999",
        "before=1&after=2",
        "before=1&before=2",
        "event=message&event=note",
        "event=message&start=0",
        "start=0&end=5",
        "cursor=rubbish",
        "before=5&epoch=another",
        "kind=secret-kind",
        "before=%D9%A1",
    ],
)
async def test_parameters_that_cannot_be(query: str) -> None:
    """`INVALID_REQUEST`, and nothing of them is in the answer."""
    async with requests(Dialogue(rooms())) as http:
        answer = await http.get(f"/rooms/general/history?{query}")
        assert code(answer, 400) == "INVALID_REQUEST"
        assert "rubbish" not in answer.text
        assert "secret" not in answer.text


async def test_rooms_and_presence() -> None:
    """The rooms that one may see, and who is in one."""
    hidden = {"hidden": RoomConfig(events=[message]), "quiet": RoomConfig(events=[message], presence=False)}
    dialogue = Dialogue(rooms() | hidden)
    dialogue.can_see("hidden")(lambda client: client.user_id == "bob")
    async with serve(dialogue) as address, wire(address, "ann") as client:
        await client.ask("join", room="general")
        listed = await client.ask("rooms")
        async with httpx2.AsyncClient(base_url=f"http://{address}") as http:
            assert (await http.get("/rooms?user_id=ann")).json() == {"rooms": listed["rooms"]}
            of_bob = (await http.get("/rooms?user_id=bob")).json()["rooms"]
            assert [room["id"] for room in of_bob] == ["general", "other", "hidden", "quiet"]
            who = await http.get("/rooms/general/presence")
            assert who.json() == {"room": "general", "users": ["ann"], "count": 1}
            # A room that one may not see answers as one that is not there.
            for path in ("/rooms/hidden/presence", "/rooms/hidden/history", "/rooms/nowhere/history"):
                answer = await http.get(path, params={"user_id": "ann"})
                assert (code(answer, 404), answer.json()["message"]) == (
                    "ROOM_NOT_FOUND",
                    "there is no such room",
                )
            assert code(await http.get("/rooms/quiet/presence"), 403) == "PERMISSION_DENIED"
            assert code(await http.get("/rooms/general/history?event=typing"), 403) == "EVENT_NOT_ALLOWED"


@pytest.mark.parametrize("room", ["dm:ann:bob", "café ☕", "50% {off}?#", "a+b&c=d", "..."])
async def test_room_ids_come_percent_encoded(room: str) -> None:
    """Whatever a room's id may be."""
    dialogue = Dialogue(
        {"dm:{a}:{b}": RoomConfig(events=[message])}, client_rooms=RoomConfig(events=[message])
    )
    async with requests(dialogue) as http:
        if "{" not in room and not room.startswith("dm"):
            await dialogue.create_room(room)
        elif "{" in room:
            assert code(await http.get(f"/rooms/{quote(room, safe='')}/history"), 404) == "ROOM_NOT_FOUND"
            return
        path = f"/rooms/{quote(room, safe='')}"
        sent = await http.post(f"{path}/events?user_id=ann", json={"event": "message", "data": room})
        assert (sent.status_code, sent.json()["room"]) == (201, room)
        page = (await http.get(f"{path}/history")).json()
        assert (page["room"], [event["data"] for event in page["events"]]) == (room, [room])


@pytest.mark.parametrize(
    "path", ["/rooms/a%0Ab/history", "/rooms/%00/history", f"/rooms/{'x' * 300}/history"]
)
async def test_room_ids_that_cannot_be(path: str) -> None:
    """There is no such room; nothing fails."""
    dialogue = Dialogue(rooms() | {"{any}": RoomConfig(events=[message])})
    async with requests(dialogue) as http:
        assert code(await http.get(path), 404) == "ROOM_NOT_FOUND"


# -- publishing ------------------------------------------------------------------------------------------------------


async def test_a_publish_reaches_subscribers_and_is_recorded_once_under_its_key() -> None:
    """201 with what a trigger is told; the key is the user's, whichever way it comes."""
    async with serve(Dialogue(rooms())) as address, wire(address, "bob") as bob, wire(address, "ann") as ann:
        await bob.ask("join", room="general")
        await ann.ask("join", room="general")
        async with httpx2.AsyncClient(base_url=f"http://{address}") as http:
            first = await publish(http, {"text": "hello"}, key="k", meta={"from": "http"})
            assert first.status_code == 201
            assert set(first.json()) == {"room", "seq", "id", "timestamp"}
            again = await publish(http, {"text": "hello"}, key="k")
            assert (again.status_code, again.json()) == (201, first.json() | {"duplicate": True})
            assert (await ann.trigger("general", "message", 1, key="k"))["duplicate"] is True
            assert (await publish(http, 2, user="bob", key="k")).json()["seq"] == 2
        (event, other) = await bob.until_events(2)
        assert (event["from"], event["data"], event["meta"]) == ("ann", {"text": "hello"}, {"from": "http"})
        assert "key" not in event
        assert other["key"] == "k"
        assert (await ann.until_events(1))[0]["key"] == "k"


async def test_an_ephemeral_event_has_no_seq() -> None:
    """It reaches everyone, also connections of the user who published it."""
    async with serve(Dialogue(rooms())) as address, wire(address, "ann") as ann:
        await ann.ask("join", room="general")
        async with httpx2.AsyncClient(base_url=f"http://{address}") as http:
            answer = await http.post("/rooms/general/events?user_id=ann", json={"event": "typing"})
        assert (answer.status_code, answer.json()["seq"], answer.json()["id"]) == (201, None, None)
        assert (await ann.until_events(1))[0]["event"] == "typing"


async def test_what_a_publish_is_refused_for() -> None:
    """The same errors as a trigger, each with its status; nothing that was sent is in them."""

    class Said(BaseModel):
        text: str

    said = define_event("said", schema=Said, history=History(limit=5))
    alert = define_event("alert", history=History(limit=5), publish="server")
    slow = RoomConfig(events=[message], limits=RoomLimits(triggers_per_second=0.001))
    dialogue = Dialogue(
        {"general": RoomConfig(events=[message, said, alert]), "slow": slow}, limits=Limits(message_bytes=256)
    )

    @dialogue.before_each(message)
    def refuse(event: Event[Any]) -> None:
        if event.data == "rude":
            raise Blocked("be kind")
        if event.data == "bug":
            raise RuntimeError("secret detail")

    async with requests(dialogue) as http:

        async def refused(status: int, room: str = "general", **body: Any) -> tuple[str, Any]:
            answer = await http.post(f"/rooms/{room}/events?user_id=ann", json=body)
            assert "secret" not in answer.text
            return code(answer, status), answer

        assert (await refused(403, event="message", data="rude"))[0] == "BLOCKED"
        assert (await refused(403, event="secret"))[0] == "EVENT_NOT_ALLOWED"
        assert (await refused(403, event="alert"))[0] == "EVENT_NOT_ALLOWED"
        found, answer = await refused(422, event="said", data={"text": ["secret"]})
        assert found == "VALIDATION_FAILED"
        assert answer.json()["details"][0]["loc"] == ["text"]
        assert (await refused(413, event="message", data="x" * 300))[0] == "MESSAGE_TOO_LARGE"
        assert (await refused(400, event="message", key="$secret"))[0] == "INVALID_REQUEST"
        assert (await refused(404, room="nowhere", event="message"))[0] == "ROOM_NOT_FOUND"
        assert (await refused(500, event="message", data="bug"))[0] == "INTERNAL"
        await http.post("/rooms/slow/events", json={"event": "message"})
        found, answer = await refused(429, room="slow", event="message")
        assert found == "RATE_LIMITED"
        assert int(answer.headers["retry-after"]) >= answer.json()["retry_after_seconds"] > 1
        assert (await http.get("/rooms/general/history")).json()["events"] == []
    count = dialogue.metrics.registry.get_sample_value("dialogue_errors_total", {"code": "EVENT_NOT_ALLOWED"})
    assert count == 2


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"secret",
        b"[]",
        b"null",
        b'{"data": 1}',
        b'{"event": 5}',
        b'{"event": "message", "key": 5}',
        b'{"event": "message", "data": "\xff\xfe"}',
        b'{"event": "message", "data": "\\ud800',
        b'\xef\xbb\xbf{"event": "message"}',
        b'{"event": "message", "data": ' + b"[" * 200_000,
        b'{"event": "message", "data": ' + b"[" * 200_000 + b"]" * 200_000 + b"}",
        b'{"a":' * 100_000 + b"1" + b"}" * 100_000,
    ],
    ids=lambda body: repr(body[:40]),
)
async def test_bodies_that_cannot_be(body: bytes) -> None:
    """`INVALID_REQUEST`, and nothing of them is in the answer."""
    async with requests(Dialogue(rooms())) as http:
        answer = await http.post(
            "/rooms/general/events", content=body, headers={"Content-Type": "application/json"}
        )
        assert code(answer, 400) == "INVALID_REQUEST"
        assert "secret" not in answer.text


async def test_data_that_is_nested_too_deeply() -> None:
    """As over the socket."""
    async with requests(Dialogue(rooms())) as http:
        data: Any = 1
        for _ in range(100):
            data = [data]
        assert code(await publish(http, data), 422) == "VALIDATION_FAILED"


@pytest.mark.parametrize(
    "media_type",
    [
        "text/plain",
        "application/x-www-form-urlencoded",
        "multipart/form-data; boundary=x",
        "",
        "application/jsonp",
    ],
)
async def test_only_json_is_taken(media_type: str) -> None:
    """A form of another site cannot send it without a browser's asking first: 415."""
    async with requests(Dialogue(rooms())) as http:
        body = json.dumps({"event": "message", "data": 1})
        headers = {"Content-Type": media_type} if media_type else {}
        answer = await http.post("/rooms/general/events", content=body, headers=headers)
        assert code(answer, 415) == "INVALID_REQUEST"
        answer = await http.post(
            "/rooms/general/events", content=body, headers={"Content-Type": "Application/JSON; charset=utf-8"}
        )
        assert (answer.status_code, answer.json()["seq"]) == (201, 1)


async def talk(address: str, raw: bytes) -> bytes:
    """Send *raw*, and return what comes until the server closes the connection."""
    reader, writer = await asyncio.open_connection(*address.split(":"))
    try:
        writer.write(raw)
        return await reader.read()
    finally:
        writer.close()


@pytest.mark.parametrize("is_chunked", [False, True], ids=["length", "chunked"])
async def test_a_body_is_bounded_while_it_is_read(is_chunked: bool) -> None:
    """413 before all of it has come, and the connection is not used any more."""
    head = b"POST /rooms/general/events HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
    if is_chunked:
        raw = head + b"Transfer-Encoding: chunked\r\n\r\n" + b"400\r\n%b\r\n" % (b"x" * 1024) * 2
    else:
        raw = head + b"Content-Length: 1000000\r\n\r\n"
    async with serve(Dialogue(rooms(), limits=Limits(frame_bytes=1024))) as address:
        answer = await talk(address, raw)
        assert answer.startswith(b"HTTP/1.1 413")
        assert b"MESSAGE_TOO_LARGE" in answer


async def test_a_body_that_does_not_come_is_not_waited_for_for_ever() -> None:
    """408, and the connection is closed."""
    head = b"POST /rooms/general/events HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
    dialogue = Dialogue(rooms(), limits=Limits(connect_seconds=0.05))
    async with serve(dialogue) as address:
        answer = await talk(address, head + b'Content-Length: 100\r\n\r\n{"event":')
        assert answer.startswith(b"HTTP/1.1 408")
        assert b"INVALID_REQUEST" in answer


async def test_a_client_that_goes_while_it_sends_leaves_nothing() -> None:
    """Nothing is counted as in flight any more, and nothing is logged."""
    head = b"POST /rooms/general/events HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
    dialogue = Dialogue(rooms())
    async with serve(dialogue) as address:
        _, writer = await asyncio.open_connection(*address.split(":"))
        writer.write(head + b'Content-Length: 100\r\n\r\n{"event":')
        await eventually(lambda: dialogue.hub().in_flight.count == 1)
        writer.close()
        await eventually(lambda: dialogue.hub().in_flight.count == 0)
        assert not dialogue.hub().in_flight._by_user


# -- identity --------------------------------------------------------------------------------------------------------


async def test_the_bearers_token_goes_to_the_hook() -> None:
    """As `auth={"token": ...}`, with the request; the user is what the hook says and no parameter's."""
    dialogue = Dialogue(rooms())
    seen: list[tuple[dict[str, Any], str | None, str | None]] = []

    @dialogue.authenticate
    def authenticate(request: Any, auth: dict[str, Any]) -> Identity:
        seen.append((auth, request.cookies.get("session"), request.headers.get("x-own")))
        if request.cookies.get("session") == "bob":
            return Identity("bob")
        if auth.get("token") == "late":
            return Identity("ann", expires_at=time.time() - 1)
        if auth != {"token": "t"}:
            raise Unauthenticated("log in again")
        return Identity("ann", expires_at=time.time() + 60)

    async with requests(dialogue) as http:
        path = "/rooms/general/events?user_id=eve"
        body = {"event": "message", "user_id": "eve", "from": "eve"}
        assert (await http.post(path, json=body, headers={"Authorization": "bearer  t"})).status_code == 201
        cookie = {"Cookie": "session=bob", "X-Own": "1"}
        assert (await http.post(path, json=body, headers=cookie)).status_code == 201
        for value in ("Bearer wrong", "Bearer", "Basic t", "t", ""):
            answer = await http.post(path, json=body, headers={"Authorization": value})
            assert (code(answer, 401), answer.json()["message"]) == ("UNAUTHENTICATED", "log in again")
            assert answer.headers["www-authenticate"] == "Bearer"
        late = await http.get("/rooms", headers={"Authorization": "Bearer late"})
        assert code(late, 401) == "UNAUTHENTICATED"
        for get in ("/rooms", "/rooms/general/history", "/rooms/general/presence"):
            assert code(await http.get(get), 401) == "UNAUTHENTICATED"
        events = await dialogue.room("general").page()
        assert [event.sender for event in events] == ["ann", "bob"]
    assert seen[:3] == [({"token": "t"}, None, None), ({}, "bob", "1"), ({"token": "wrong"}, None, None)]


async def test_in_development_the_query_says_who() -> None:
    """Else the request has a user of its own; the server's own name is nobody's."""
    async with requests(Dialogue(rooms())) as http:
        for query in ("?user_id=ann", ""):
            answer = await http.post(
                f"/rooms/general/events{query}", json={"event": "message"}, headers=bearer("eve")
            )
            assert answer.status_code == 201
        events = (await http.get("/rooms/general/history")).json()["events"]
        assert events[0]["from"] == "ann"
        assert events[1]["from"] not in ("ann", "eve")
        for wrong in ("system", "", "x" * 200):
            assert code(await http.get("/rooms", params={"user_id": wrong}), 422) == "VALIDATION_FAILED"


async def test_hooks_that_fail_tell_nothing(caplog: pytest.LogCaptureFixture) -> None:
    """`INTERNAL`; the log has the rest."""
    dialogue = Dialogue(rooms())

    @dialogue.authenticate
    async def authenticate() -> Identity:
        raise RuntimeError("secret detail")

    async with requests(dialogue) as http:
        answer = await http.get("/rooms")
        assert code(answer, 500) == "INTERNAL"
        assert "secret" not in answer.text
    assert "secret detail" in caplog.text


# -- guards ----------------------------------------------------------------------------------------------------------


async def test_before_join_guards_every_route_of_a_room() -> None:
    """Reading asks with `purpose="read"`, publishing as a join would; `max_size` counts connections alone."""
    asked: list[tuple[str, str, list[str]]] = []
    dialogue = with_users(rooms=rooms(max_size=1))

    @dialogue.before_join("general")
    def guard(client: Client, room: RoomHandle, purpose: str) -> None:
        asked.append((client.user_id, purpose, client.rooms))
        if client.user_id == "eve":
            raise JoinDenied("not you")

    async with requests(dialogue) as http:
        for user, refused in (("ann", False), ("eve", True)):
            for answer in (
                await http.get("/rooms/general/history", headers=bearer(user)),
                await http.get("/rooms/general/presence", headers=bearer(user)),
                await http.post("/rooms/general/events", json={"event": "message"}, headers=bearer(user)),
            ):
                if refused:
                    assert (code(answer, 403), answer.json()["message"]) == ("JOIN_DENIED", "not you")
                else:
                    assert answer.is_success
    assert [purpose for _, purpose, _ in asked] == ["read", "read", "join"] * 2
    assert all(joined == [] for *_, joined in asked)


async def test_a_direct_room_is_for_its_two_alone() -> None:
    """Without any hook."""
    dialogue = with_users(rooms={"dm:{a}:{b}": DirectRoom(events=[message])})
    async with requests(dialogue) as http:
        sent = await http.post("/rooms/dm:ann:bob/events", json={"event": "message"}, headers=bearer("ann"))
        assert sent.status_code == 201
        for answer in (
            await http.get("/rooms/dm:ann:bob/history", headers=bearer("eve")),
            await http.post("/rooms/dm:ann:bob/events", json={"event": "message"}, headers=bearer("eve")),
        ):
            assert code(answer, 403) == "JOIN_DENIED"


async def test_what_hooks_may_not_do_with_a_requests_client(caplog: pytest.LogCaptureFixture) -> None:
    """There is no connection: it is in no room, and the error says where connections are."""
    dialogue = Dialogue(rooms())
    problems: list[str] = []

    @dialogue.before_join
    async def guard(client: Client) -> None:
        client.state["seen"] = True
        assert (client.claims, client.meta, client.identity.user_id) == ({}, {}, "ann")
        for refuse in (
            lambda: client.send("hello", 1),
            lambda: client.disconnect(),
            lambda: client.subscriptions("general"),
            lambda: client.subscribe("general", "*"),
            lambda: client.unsubscribe("general", "*"),
        ):
            with pytest.raises((RuntimeError, CommandError)) as refused:
                refuse()
            problems.append(str(refused.value))
        with pytest.raises(CommandError):
            await client.leave("general")
        await client.join("other")

    async with requests(dialogue) as http:
        answer = await http.get("/rooms/general/history?user_id=ann")
        assert code(answer, 500) == "INTERNAL"
    assert "cannot be sent messages: dialogue.clients_of" in problems[0]
    assert "cannot join a room" in caplog.text


class SlowPages(MemoryStore):
    """A store whose pages come when they are let go."""

    def __init__(self) -> None:
        super().__init__()
        self.asked, self.go_on = asyncio.Event(), asyncio.Event()

    async def page(self, *args: Any, **kwargs: Any) -> Any:
        self.asked.set()
        await self.go_on.wait()
        return await super().page(*args, **kwargs)

    async def stream_page(self, *args: Any, **kwargs: Any) -> Any:
        self.asked.set()
        await self.go_on.wait()
        return await super().stream_page(*args, **kwargs)


@pytest.mark.parametrize("path", ["history", "presence"])
async def test_an_answer_in_flight_is_dropped_when_its_user_is_removed(path: str) -> None:
    """`dialogue.remove_from_room` while a guard is asked: what it answers does not count any more."""
    dialogue = Dialogue(rooms())
    asked, go_on = asyncio.Event(), asyncio.Event()

    @dialogue.before_join
    async def guard() -> None:
        asked.set()
        await go_on.wait()

    async with requests(dialogue) as http:
        reading = asyncio.create_task(http.get(f"/rooms/general/{path}?user_id=ann"))
        other = asyncio.create_task(http.get(f"/rooms/general/{path}?user_id=bob"))
        await asked.wait()
        await eventually(lambda: len(dialogue.hub().access._watched) == 2)
        await dialogue.remove_from_room("ann", "general")
        go_on.set()
        assert code(await reading, 403) == "JOIN_DENIED"
        assert (await other).status_code == 200
        assert not dialogue.hub().access._watched


async def test_a_page_that_is_being_read_is_dropped_when_its_user_is_removed() -> None:
    """Also once the guard has let the user in."""
    store = SlowPages()
    dialogue = Dialogue(rooms(), store=store)
    async with requests(dialogue) as http:
        store.go_on.set()
        for n in range(20):
            await dialogue.trigger("general", message, n)
        store.asked.clear()
        store.go_on.clear()
        reading = asyncio.create_task(http.get("/rooms/general/history?user_id=ann&after=0&event=message"))
        await store.asked.wait()
        await dialogue.remove_from_room("ann", "general")
        store.go_on.set()
        assert code(await reading, 403) == "JOIN_DENIED"


async def test_a_publish_whose_user_is_removed_while_hooks_are_asked_is_not_recorded() -> None:
    """`JOIN_DENIED` says that it was not."""
    dialogue = Dialogue(rooms())
    asked, go_on = asyncio.Event(), asyncio.Event()

    @dialogue.before_each
    async def wait() -> None:
        asked.set()
        await go_on.wait()

    async with requests(dialogue) as http:
        publishing = asyncio.create_task(publish(http, 1))
        await asked.wait()
        await dialogue.remove_from_room("ann", "general")
        go_on.set()
        assert code(await publishing, 403) == "JOIN_DENIED"
        assert await dialogue.room("general").page() == []


# -- limits ----------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("no_refill")
async def test_rates_are_the_users() -> None:
    """Reads and triggers are counted apart, over sockets and requests, and another user's are others."""
    limits = Limits(
        user_reads_per_second=1, user_reads_burst=2, user_triggers_per_second=1, user_triggers_burst=1
    )
    async with (
        serve(with_users(limits=limits)) as address,
        wire(address, None) as ann,
        httpx2.AsyncClient(base_url=f"http://{address}") as http,
    ):
        await ann.ask("connect", auth={"token": "ann's"})
        await ann.ask("rooms")
        assert (await http.get("/rooms", headers=bearer("ann"))).status_code == 200
        for path in ("/rooms", "/rooms/general/history", "/rooms/general/presence"):
            answer = await http.get(path, headers=bearer("ann"))
            assert code(answer, 429) == "RATE_LIMITED"
            assert answer.headers["retry-after"] == "1"
        assert (await http.get("/rooms", headers=bearer("bob"))).status_code == 200
        body = {"event": "message"}
        statuses = [
            (await http.post("/rooms/general/events", json=body, headers=bearer("ann"))).status_code
            for _ in range(2)
        ]
        assert statuses == [201, 429]


async def test_requests_at_a_time_are_bounded() -> None:
    """As connections are: of one user, and in all. Others' places are not taken."""
    limits = Limits(connections_per_user=2, connections=3)
    dialogue = with_users(limits=limits)
    go_on = asyncio.Event()

    @dialogue.before_join
    async def guard() -> None:
        await go_on.wait()

    async with requests(dialogue) as http:

        async def read(user: str) -> Any:
            return await http.get("/rooms/general/history", headers=bearer(user))

        waiting = [asyncio.create_task(read("ann")) for _ in range(2)]
        await eventually(lambda: dialogue.hub().in_flight.count == 2)
        assert code(await read("ann"), 429) == "RATE_LIMITED"
        waiting.append(asyncio.create_task(read("bob")))
        await eventually(lambda: dialogue.hub().in_flight.count == 3)
        answer = await read("cat")
        assert code(answer, 429) == "RATE_LIMITED"
        assert answer.headers["retry-after"] == "1"
        go_on.set()
        assert [(await task).status_code for task in waiting] == [200, 200, 200]
        assert (await read("cat")).status_code == 200
        await eventually(lambda: dialogue.hub().in_flight.count == 0)


# -- origins ---------------------------------------------------------------------------------------------------------

PATHS = ["/rooms", "/rooms/general/history", "/rooms/general/presence", "/rooms/general/events"]


async def ask(http: httpx2.AsyncClient, path: str, **headers: str) -> Any:
    headers = {name.replace("_", "-"): value for name, value in headers.items()}
    if path.endswith("/events"):
        return await http.post(path, json={"event": "message"}, headers=headers)
    return await http.get(path, headers=headers)


@pytest.mark.parametrize("path", PATHS)
async def test_a_page_of_another_origin_is_refused(path: str, caplog: pytest.LogCaptureFixture) -> None:
    """403 before anybody is asked, whatever cookies it has; the log says how to allow it."""
    dialogue = with_users()
    async with requests(dialogue, headers=bearer("ann")) as http:
        answer = await ask(http, path, Origin=EVIL)
        assert code(answer, 403) == "PERMISSION_DENIED"
        assert "access-control-allow-origin" not in answer.headers
        assert "evil" not in answer.text
        assert (await ask(http, path, Origin=str(http.base_url).rstrip("/"))).is_success
        assert (await ask(http, path)).is_success
        assert len(await dialogue.room("general").page()) == (2 if path.endswith("/events") else 0)
        refused = await http.options(path, headers={"Origin": EVIL, "Access-Control-Request-Method": "GET"})
        assert refused.status_code == 403
        assert "access-control-allow-origin" not in refused.headers
    assert f"allowed_origins=['{EVIL}']" in caplog.text
    count = dialogue.metrics.registry.get_sample_value(
        "dialogue_connections_refused_total", {"reason": "origin"}
    )
    assert count == 2


@pytest.mark.parametrize("path", PATHS)
async def test_an_allowed_origin_may_read_the_answer(path: str) -> None:
    """Its browser asks first, and is told; refusals can be read too."""
    method = "POST" if path.endswith("/events") else "GET"
    methods = {"/rooms": "GET, POST, OPTIONS", "/rooms/general/events": "GET, POST, OPTIONS"}.get(
        path, "GET, OPTIONS"
    )
    async with requests(with_users(allowed_origins=[GOOD])) as http:
        preflight = await http.options(
            path,
            headers={
                "Origin": GOOD,
                "Access-Control-Request-Method": method,
                "Access-Control-Request-Headers": "authorization,content-type",
            },
        )
        assert preflight.status_code == 204
        assert preflight.headers["access-control-allow-methods"] == methods
        assert (
            preflight.headers["access-control-allow-headers"] == "Authorization, Content-Type, Last-Event-ID"
        )
        for answer in (
            preflight,
            await ask(http, path, Origin=GOOD, **bearer("ann")),
            await ask(http, path, Origin=GOOD),
        ):
            assert answer.headers["access-control-allow-origin"] == GOOD
            assert answer.headers["access-control-allow-credentials"] == "true"
            assert answer.headers["access-control-expose-headers"] == "Retry-After"
            assert answer.headers["vary"] == "Origin"
        assert code(answer, 401) == "UNAUTHENTICATED"
        plain = await http.options(path)
        assert (plain.status_code, plain.headers["allow"]) == (204, methods)


async def test_any_origin_may_come_without_cookies() -> None:
    """`*` is never sent along with leave to send credentials."""
    async with requests(Dialogue(rooms(), allowed_origins=["*"])) as http:
        asking = {"Origin": EVIL, "Access-Control-Request-Method": "GET"}
        for answer in (await ask(http, "/rooms", Origin=EVIL), await http.options("/rooms", headers=asking)):
            assert answer.is_success
            assert answer.headers["access-control-allow-origin"] == "*"
            assert "access-control-allow-credentials" not in answer.headers


async def test_other_routes_of_the_application_get_no_headers_of_ours() -> None:
    """Preflights are answered for our routes alone."""
    app = FastAPI()
    app.include_router(Dialogue(rooms(), allowed_origins=[GOOD]).router, prefix="/chat")
    app.get("/own")(lambda: {"own": True})
    async with requests(app) as http:
        answer = await http.get("/own", headers={"Origin": GOOD})
        assert "access-control-allow-origin" not in answer.headers
        asking = {"Origin": GOOD, "Access-Control-Request-Method": "GET"}
        assert (await http.options("/own", headers=asking)).status_code == 405
        assert (await http.options("/chat/rooms", headers=asking)).status_code == 204


@pytest.mark.parametrize("theirs", [["*"], [GOOD]], ids=["any", "named"])
@pytest.mark.parametrize("ours", [["*"], [GOOD]], ids=["any", "named"])
async def test_beside_a_cors_middleware_no_header_comes_twice(theirs: list[str], ours: list[str]) -> None:
    """The application's middleware has the last word."""
    from fastapi.middleware.cors import CORSMiddleware

    app = FastAPI()
    app.include_router(Dialogue(rooms(), allowed_origins=ours).router, prefix="/chat")
    app.add_middleware(CORSMiddleware, allow_origins=theirs, expose_headers=["X-Own"])
    async with requests(app) as http:
        asking = {"Origin": GOOD, "Access-Control-Request-Method": "GET"}
        for answer in (
            await http.get("/chat/rooms", headers={"Origin": GOOD}),
            await http.options("/chat/rooms", headers=asking),
        ):
            assert answer.is_success
            assert answer.headers.get_list("access-control-allow-origin") == theirs
            for name in ("access-control-expose-headers", "access-control-allow-credentials"):
                assert len(answer.headers.get_list(name)) <= 1


async def test_in_development_a_name_of_another_hand_is_refused() -> None:
    """A page that has bound its name to this machine reads its own origin without an Origin header."""
    async with requests(Dialogue(rooms())) as http:
        port = http.base_url.port
        for host in ("evil.example", f"evil.example:{port}", "evil.example.", "[bad"):
            assert code(await ask(http, "/rooms", Host=host), 403) == "PERMISSION_DENIED"
        for host in (f"127.0.0.1:{port}", "localhost", "chat.localhost", "[::1]:5", "chat:3000", "10.0.0.7"):
            assert (await ask(http, "/rooms", Host=host)).status_code == 200, host
    async with requests(Dialogue(rooms(), allowed_origins=["https://chat.example"])) as http:
        assert (await ask(http, "/rooms", Host="chat.example")).status_code == 200
    async with requests(with_users(), headers=bearer("ann")) as http:
        assert (await ask(http, "/rooms", Host="chat.example")).status_code == 200


# -- in an application -----------------------------------------------------------------------------------------------


async def test_dependencies_hold_on_every_route() -> None:
    """What include_router is given guards requests before anybody is asked; a browser's preflight is let through."""
    dialogue = Dialogue(rooms(), allowed_origins=[GOOD])

    def guard(connection: Any = None) -> None:
        raise HTTPException(402, "pay first")

    app = FastAPI()
    app.include_router(dialogue.router, prefix="/chat", dependencies=[Depends(guard)])
    async with requests(app) as http:
        for path in PATHS:
            answer = await ask(http, f"/chat{path}", Origin=GOOD)
            assert (answer.status_code, answer.json()) == (402, {"detail": "pay first"})
            assert answer.headers["access-control-allow-origin"] == GOOD
            asking = {"Origin": GOOD, "Access-Control-Request-Method": "GET"}
            assert (await http.options(f"/chat{path}", headers=asking)).status_code == 204


def test_openapi_names_the_routes() -> None:
    """Paths, parameters, bodies and answers, under ids of which no two are alike; every reference leads somewhere."""
    one, other = Dialogue(rooms()), Dialogue(rooms())
    app = FastAPI()
    app.include_router(one.router, prefix="/one")
    app.include_router(other.router, prefix="/other")
    document = app.openapi()
    operations = [
        (path, method, operation)
        for path, methods in document["paths"].items()
        for method, operation in methods.items()
    ]
    assert sorted((method, path) for path, method, _ in operations) == sorted(
        (method, prefix + path)
        for prefix in ("/one", "/other")
        for method, path in (
            ("get", "/me"),
            ("get", "/rooms"),
            ("post", "/rooms"),
            ("delete", "/rooms/{room}"),
            ("get", "/rooms/{room}/history"),
            ("get", "/rooms/{room}/presence"),
            ("get", "/rooms/{room}/events"),
            ("post", "/rooms/{room}/events"),
            ("patch", "/rooms/{room}/events/{seq}"),
            ("delete", "/rooms/{room}/events/{seq}"),
            ("post", "/rooms/{room}/read"),
            ("get", "/unread"),
            ("get", "/sessions"),
        )
    )
    ids = [operation["operationId"] for *_, operation in operations]
    assert len(set(ids)) == len(ids)
    for path, _, operation in operations:
        assert operation["description"]
        named = {
            parameter["name"] for parameter in operation.get("parameters", ()) if parameter["in"] == "path"
        }
        assert ("{room}" in path) == ("room" in named)
        for status, answer in operation["responses"].items():
            schema = answer["content"]["application/json"]["schema"]["$ref"].removeprefix(
                "#/components/schemas/"
            )
            assert (schema == "ErrorAnswer") == (int(status) >= 400)
            assert schema in document["components"]["schemas"]
    history = document["paths"]["/one/rooms/{room}/history"]["get"]["parameters"]
    assert {"event", "kind", "before", "after", "around", "epoch", "cursor", "start", "end", "limit"} < {
        parameter["name"] for parameter in history
    }
    stream = document["paths"]["/one/rooms/{room}/events"]["get"]
    assert set(stream["responses"]["200"]["content"]) == {"application/json", "text/event-stream"}
    assert {"after", "epoch", "events", "sync", "wait_seconds", "Last-Event-ID"} < {
        parameter["name"] for parameter in stream["parameters"]
    }
    body = document["paths"]["/one/rooms/{room}/events"]["post"]["requestBody"]["content"]
    assert list(body) == ["application/json"]
    assert set(body["application/json"]["schema"]["properties"]) == {"event", "data", "meta", "key"}


def test_every_code_has_a_status() -> None:
    """Whatever a hook raises is answered."""
    assert set(STATUSES) == set(COMMAND_ERRORS)


def test_under_starlettes_test_client() -> None:
    """No port is needed; once the server has stopped it says so."""
    dialogue = Dialogue(rooms())
    app = FastAPI()
    app.include_router(dialogue.router)
    with TestClient(app) as http:
        sent = http.post("/rooms/general/events?user_id=ann", json={"event": "message", "data": 1})
        assert sent.json()["seq"] == 1
        assert http.get("/rooms/general/history").json()["events"][0]["from"] == "ann"
    answer = http.get("/rooms")
    assert code(answer, 503) == "STORE_UNAVAILABLE"
    assert answer.headers["retry-after"] == "1"


async def test_a_stopping_server_takes_no_more() -> None:
    """503, and when to come again."""
    dialogue = Dialogue(rooms())
    async with requests(dialogue) as http:
        dialogue.hub().stop.begin()
        for path in PATHS:
            answer = await ask(http, path)
            assert code(answer, 503) == "STORE_UNAVAILABLE"
            assert answer.headers["retry-after"] == "1"


class NoHead(MemoryStore):
    """A store that never says what is in a room."""

    def __init__(self) -> None:
        super().__init__()
        self.asked = asyncio.Event()

    async def head(self, room_id: str) -> Any:
        self.asked.set()
        await asyncio.Event().wait()


async def test_a_request_whose_room_is_waking_is_answered_when_the_server_stops() -> None:
    """What it waits for is ended by the stop; it is told to come again."""
    store = NoHead()
    dialogue = Dialogue(rooms(), store=store)
    transport = httpx2.ASGITransport(app=dialogue.app)
    async with httpx2.AsyncClient(transport=transport, base_url="http://chat") as http:
        async with dialogue.lifespan():
            reading = asyncio.create_task(http.get("/rooms/general/history"))
            await store.asked.wait()
        assert code(await reading, 503) == "STORE_UNAVAILABLE"


async def test_a_mount_whose_lifespan_does_not_run_fails_with_the_remedy(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """As the socket does."""
    app = FastAPI()
    app.mount("/d", Dialogue(rooms()).app)
    async with requests(app) as http:
        assert (await http.get("/d/rooms")).status_code == 500
    assert "include_router" in caplog.text


async def test_under_hypercorn() -> None:
    """Everything works over plain ASGI under another server."""
    dialogue = Dialogue(rooms())
    socket = _socket()
    port = socket.getsockname()[1]
    socket.close()
    config = Config()
    config.bind = [f"127.0.0.1:{port}"]
    config.accesslog = config.errorlog = None
    stop = asyncio.Event()
    server = asyncio.create_task(hypercorn_serve(dialogue.app, config, shutdown_trigger=stop.wait))  # type: ignore[arg-type]
    try:
        async with httpx2.AsyncClient(base_url=f"http://127.0.0.1:{port}") as http:
            while True:
                try:
                    assert (await publish(http, 1)).json()["seq"] == 1
                    break
                except httpx2.ConnectError:
                    await asyncio.sleep(0.01)
            page = (await http.get("/rooms/general/history")).json()
            assert [event["data"] for event in page["events"]] == [1]
            assert code(await http.post("/rooms/general/events", content=b"x"), 415) == "INVALID_REQUEST"
    finally:
        stop.set()
        await server
