"""Serving: inside a FastAPI application, under other servers, and the traps of mounting."""

from __future__ import annotations

import asyncio
import json
from typing import Annotated, Any, ClassVar

import httpx2
import pytest
from fastapi import Body, Depends, FastAPI, HTTPException, WebSocketException
from fastapi.testclient import TestClient
from hypercorn.asyncio import serve as hypercorn_serve
from hypercorn.config import Config
from pydantic import BaseModel
from starlette.requests import HTTPConnection
from websockets.exceptions import InvalidStatus

from dialogue import (
    Blocked,
    CommandError,
    Dialogue,
    EventNotAllowed,
    Identity,
    InvalidRequest,
    LifespanNotRunning,
    MemoryStore,
    MessageTooLarge,
    RoomConfig,
    RoomNotFound,
    StartError,
    StoreUnavailable,
    ValidationFailed,
    define_event,
)
from dialogue.server.websocket import origin_allowed
from dialogue.testing import FaultyStore

from .harness import _socket, message, rooms, serve, wire


class Text(BaseModel):
    text: str


text_event = define_event("text", schema=Text)


async def test_included_in_an_application_under_a_prefix() -> None:
    """The router's lifespan comes along with it."""
    dialogue = Dialogue(rooms())
    app = FastAPI()
    app.include_router(dialogue.router, prefix="/dialogue")

    @app.post("/alert")
    def alert() -> dict[str, Any]:
        return {"seq": dialogue.trigger_sync("general", message, "from a thread").seq}

    async with (
        serve(app) as address,
        wire(address, path="/dialogue/ws") as client,
        httpx2.AsyncClient() as http,
    ):
        await client.ask("join", room="general")
        answer = await http.post(f"http://{address}/alert")
        assert answer.json() == {"seq": 1}
        assert (await client.until_events(1))[0]["data"] == "from a thread"
        script = await http.get(f"http://{address}/dialogue/dialogue.js")
        assert script.headers["content-type"].startswith("text/javascript")
        assert "createDialogueClient" in script.text
    assert not dialogue.is_running


class Noted:
    """ASGI middleware that notes what passes it."""

    passed: ClassVar[list[str]] = []

    def __init__(self, app: Any) -> None:
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        self.passed.append(scope["type"])
        await self.app(scope, receive, send)


@pytest.mark.parametrize("has_middleware", [False, True])
async def test_middleware_of_the_ready_made_application_sees_the_socket(has_middleware: bool) -> None:
    """Its socket is reached past FastAPI only while nothing is on the way; hooks see the application both ways."""
    Noted.passed.clear()
    dialogue = Dialogue(rooms())
    apps: list[Any] = []

    @dialogue.authenticate
    async def authenticate(request: HTTPConnection, auth: dict[str, Any]) -> Identity:
        apps.append((request.app, str(request.url_for("health").path)))
        return Identity("alice")

    if has_middleware:
        dialogue.app.add_middleware(Noted)
    async with serve(dialogue) as address, wire(address) as client:
        await client.ask("join", room="general")
    assert apps == [(dialogue.app, "/health")]
    assert ("websocket" in Noted.passed) is has_middleware


async def test_the_ready_made_application_can_be_mounted() -> None:
    """Below a path of another application, whose lifespan enters ours."""
    dialogue = Dialogue(rooms())
    outer = FastAPI(lifespan=lambda app: dialogue.lifespan(app))
    outer.mount("/chat", dialogue.app)
    async with serve(outer) as address, wire(address, path="/chat/ws") as client:
        await client.ask("join", room="general")
        await client.trigger("general", "message", "hello")
        assert (await client.until_events(1))[0]["data"] == "hello"


async def test_dependencies_of_the_include_guard_the_socket_too() -> None:
    """`dependencies=[...]` given to include_router hold on every route, `/ws` included."""

    def guard(connection: HTTPConnection) -> None:
        if connection.headers.get("x-pass") != "yes":
            raise WebSocketException(1008) if connection.scope["type"] == "websocket" else HTTPException(403)

    dialogue = Dialogue(rooms())
    app = FastAPI()
    app.include_router(dialogue.router, prefix="/d", dependencies=[Depends(guard)])
    async with serve(app) as address:
        with pytest.raises(InvalidStatus) as refused:
            async with wire(address, path="/d/ws"):
                pass
        assert refused.value.response.status_code == 403
        async with wire(address, path="/d/ws", additional_headers={"x-pass": "yes"}):
            pass


async def test_a_mount_whose_lifespan_does_not_run_fails_with_the_remedy(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The first connection fails, and says what to do."""
    dialogue = Dialogue(rooms())
    app = FastAPI()
    app.mount("/d", dialogue.app)
    async with serve(app) as address:
        with pytest.raises(InvalidStatus) as refused:
            async with wire(address, path="/d/ws"):
                pass
        assert refused.value.response.status_code == 500
    assert "include_router" in caplog.text
    with pytest.raises(LifespanNotRunning, match="include_router"):
        await dialogue.trigger("general", message, 1)


async def test_including_twice_is_an_error() -> None:
    """Two lifespans of one Dialogue would be two owners of its rooms."""
    dialogue = Dialogue(rooms())
    app = FastAPI()
    app.include_router(dialogue.router, prefix="/a")
    app.include_router(dialogue.router, prefix="/b")
    with pytest.raises(StartError, match="included twice"):
        async with app.router.lifespan_context(app):
            pass
    assert not dialogue.is_running


def test_under_starlettes_test_client() -> None:
    """No port is needed to test an application that uses Dialogue."""
    dialogue = Dialogue(rooms())
    with TestClient(dialogue.app) as http, http.websocket_connect("/ws") as socket:
        socket.send_text(
            json.dumps([{"type": "connect", "ref": 1}, {"type": "join", "room": "general", "ref": 2}])
        )
        assert socket.receive_json()[0]["type"] == "connected"
        assert socket.receive_json()[0]["type"] == "joined"
        socket.send_text(
            json.dumps({"type": "trigger", "room": "general", "event": "message", "data": 1, "ref": 3})
        )
        assert [m["type"] for m in socket.receive_json()] == ["event", "ok"]
        assert http.get("/health").json()["status"] == "ok"
        assert "dialogue_events_recorded_total 1.0" in http.get("/metrics").text


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
        async with asyncio.timeout(20):
            while True:
                try:
                    async with wire(f"127.0.0.1:{port}") as client:
                        await client.ask("join", room="general")
                        assert (await client.trigger("general", "message", 1))["seq"] == 1
                        assert len(await client.until_events(1)) == 1
                    break
                except OSError:
                    await asyncio.sleep(0.01)
    finally:
        stop.set()
        await server


async def test_trigger_sync_in_the_loop_is_refused() -> None:
    """It would wait for itself."""
    dialogue = Dialogue(rooms())
    async with dialogue.lifespan():
        with pytest.raises(RuntimeError, match="would block the event loop"):
            dialogue.trigger_sync("general", message, 1)
        ack = await asyncio.to_thread(dialogue.trigger_sync, "general", message, 1)
        assert ack.seq == 1


async def test_trigger_sync_raises_what_trigger_raises() -> None:
    """In a thread of one's own and in a ``def`` endpoint the errors are the same, with codes and seconds."""
    store = FaultyStore(MemoryStore())
    dialogue = Dialogue({**rooms(), "small": RoomConfig(events=[text_event])}, store=store)
    app = FastAPI()
    app.include_router(dialogue.router)

    @dialogue.before_each(message)
    def no_advertising(event: Any) -> None:
        if event.data == "buy":
            raise Blocked("no advertising")

    def outcome(*arguments: Any, **options: Any) -> list[Any]:
        try:
            return ["ok", dialogue.trigger_sync(*arguments, **options).seq]
        except CommandError as error:
            return [type(error).__name__, str(error), error.retry_after_seconds]

    @app.post("/publish")
    def publish(arguments: Annotated[list[Any], Body()], options: Annotated[dict[str, Any], Body()]) -> Any:
        return outcome(*arguments, **options)

    expected: list[tuple[list[Any], dict[str, Any], type[CommandError]]] = [
        (["nowhere", "message", 1], {}, RoomNotFound),
        (["general", "unheard-of", 1], {}, EventNotAllowed),
        (["small", "text", {"text": 1}], {}, ValidationFailed),
        (["general", "message", "x" * 70_000], {}, MessageTooLarge),
        (["general", "message", 1], {"key": "k" * 1000}, InvalidRequest),
        (["general", "message", "buy"], {}, Blocked),
    ]
    async with serve(app) as address, httpx2.AsyncClient() as http:
        for arguments, options, kind in expected:
            with pytest.raises(kind) as raised:
                await dialogue.trigger(*arguments, **options)
            said = [kind.__name__, str(raised.value), raised.value.retry_after_seconds]
            assert await asyncio.to_thread(outcome, *arguments, **options) == said
            answer = await http.post(
                f"http://{address}/publish", json={"arguments": arguments, "options": options}
            )
            assert answer.json() == said
        store.fail_append = StoreUnavailable("down")
        assert (await asyncio.to_thread(outcome, "general", message, 1))[0] == "StoreUnavailable"
        store.fail_append = None
        keyed = await asyncio.to_thread(outcome, "general", message, 1, key="once")
        assert keyed == await asyncio.to_thread(outcome, "general", message, 1, key="once") == ["ok", 1]
    with pytest.raises(LifespanNotRunning):
        await asyncio.to_thread(dialogue.trigger_sync, "general", message, 1)


async def test_triggering_into_the_same_room_from_before_each_is_refused() -> None:
    """It would wait for itself; the error says what to do instead."""
    dialogue = Dialogue(rooms())
    errors: list[str] = []

    @dialogue.before_each(message)
    async def nested(event: Any) -> None:
        try:
            await dialogue.trigger("general", "note", 1)
        except RuntimeError as error:
            errors.append(str(error))
        await dialogue.trigger("other", "note", 2)

    async with dialogue.lifespan():
        await dialogue.trigger("general", message, 1)
    assert len(errors) == 1
    assert "after_each" in errors[0]


async def test_after_each_runs_in_order_with_the_recipients() -> None:
    """After the commit, in seq order, with how many got it."""
    dialogue = Dialogue(rooms())
    seen: list[tuple[int | None, int]] = []

    @dialogue.after_each
    async def after(event: Any, recipient_count: int) -> None:
        await asyncio.sleep(0)
        seen.append((event.seq, recipient_count))

    async with serve(dialogue) as address, wire(address, "a") as a, wire(address, "b") as b:
        await a.ask("join", room="general")
        await b.ask("join", room="general", events=["note"])
        for n in range(5):
            await a.trigger("general", "message", n)
        await a.trigger("general", "note", 1)
        await a.trigger("general", "typing", 1)
    assert seen == [(1, 1), (2, 1), (3, 1), (4, 1), (5, 1), (6, 2), (None, 0)]


@pytest.mark.parametrize(
    ("origin", "expected"),
    [
        (None, True),
        ("http://chat.example:8000", True),
        ("http://chat.example", False),
        ("https://chat.example:8000", True),
        ("http://evil.example:8000", False),
        ("http://evil.example", False),
        ("https://good.example", True),
        ("http://localhost:5173", False),
        ("null", False),
        ("http://chat.example:x", False),
    ],
)
def test_origins(origin: str | None, expected: bool) -> None:
    """Same host and port, or none, or one that was allowed."""
    allowed = origin_allowed(
        origin,
        host="chat.example:8000",
        scheme="ws",
        allowed=["https://good.example"],
        is_development=False,
    )
    assert allowed is expected


def test_loopback_origins_in_development() -> None:
    """Without an authenticate hook any page of this machine may connect, and only of this machine."""
    for origin, expected in (
        ("http://localhost:5173", True),
        ("http://127.0.0.1:9", True),
        ("http://[::1]:9", True),
        ("http://evil.example", False),
        ("http://x", False),
    ):
        assert origin_allowed(origin, host="x", scheme="ws", allowed=[], is_development=True) is expected, (
            origin
        )


async def test_a_foreign_origin_is_refused_before_the_upgrade(caplog: pytest.LogCaptureFixture) -> None:
    """403, counted, and the log says how to allow it."""
    dialogue = Dialogue(rooms())
    async with serve(dialogue) as address:
        with pytest.raises(InvalidStatus) as refused:
            async with wire(address, origin="https://evil.example"):
                pass
        assert refused.value.response.status_code == 403
        async with wire(address, origin=f"http://{address}"):
            pass
    assert "allowed_origins=['https://evil.example']" in caplog.text
    count = dialogue.metrics.registry.get_sample_value(
        "dialogue_connections_refused_total", {"reason": "origin"}
    )
    assert count == 1
