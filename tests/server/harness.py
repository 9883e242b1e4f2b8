"""A real server on a free port, and a raw WebSocket client that speaks the wire protocol word by word."""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import uvicorn
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

from dialogue import Dialogue, History, RoomConfig, define_event
from dialogue.server.uvicorn_socket import uvicorn_socket

message = define_event("message", history=History(limit=5))
note = define_event("note", history=History(limit=5))
typing_event = define_event("typing")

WS_PROTOCOL = os.environ.get("DIALOGUE_TEST_WS", "websockets-sansio")
"""Which of uvicorn's WebSocket protocols the tests run over."""


def own_socket(dialogue: Dialogue) -> type[WebSocketsSansIOProtocol]:
    """Return the protocol that ``dialogue run`` gives to uvicorn, whose outboxes write straight to the transport."""
    return uvicorn_socket(
        bytes_before_connect=dialogue.limits.frame_before_connect_bytes, logger=dialogue.logger
    )


is_straight = False
"""Whether `serve` takes `own_socket` for a Dialogue unless told otherwise; set by `both_outboxes`."""


def rooms(**overrides: Any) -> dict[str, RoomConfig]:
    """Two rooms and a pattern, with small rings so that everything is evicted soon."""
    options: dict[str, Any] = {"events": [message, note, typing_event], "sync_history_on_join": 3} | overrides
    return {
        "general": RoomConfig(name="General", **options),
        "other": RoomConfig(name="Other", **options),
        "dm:{a}:{b}": RoomConfig(name="Direct", **options),
    }


@asynccontextmanager
async def serve(app: Any, *, sock: socket.socket | None = None, **settings: Any) -> AsyncIterator[str]:
    """Serve a Dialogue (or any ASGI app) and yield its address, ``127.0.0.1:PORT``; *settings* are uvicorn's."""
    s = sock or _socket()
    asgi = app.app if isinstance(app, Dialogue) else app
    socket_type = own_socket(app) if is_straight and isinstance(app, Dialogue) else WS_PROTOCOL
    settings = {"ws": socket_type, "ws_ping_interval": None} | settings
    config = uvicorn.Config(asgi, host="127.0.0.1", port=0, log_config=None, **settings)
    server = uvicorn.Server(config)
    # Signal handlers belong to the test runner.
    task = asyncio.create_task(server._serve([s]), name="test-server")
    try:
        while not server.started:
            if task.done():
                task.result()
                raise RuntimeError("the server did not start")
            await asyncio.sleep(0.005)
        yield "127.0.0.1:%d" % s.getsockname()[1]  # noqa: UP031 - an address, not a sentence
    finally:
        server.should_exit = True
        await task
        s.close()


@asynccontextmanager
async def serve_in_thread(app: Any, **settings: Any) -> AsyncIterator[uvicorn.Server]:
    """Serve an ASGI app from a thread with an event loop of its own; *settings* are uvicorn's."""
    server = uvicorn.Server(uvicorn.Config(app, log_config=None, **settings))
    with _socket() as listener:
        task = asyncio.create_task(asyncio.to_thread(server.run, sockets=[listener]), name="test-server")
        try:
            await eventually(lambda: server.started or task.done())
            yield server
        finally:
            server.should_exit = True
            await task


def address_in_thread(server: uvicorn.Server) -> str:
    """Return the address of a server from `serve_in_thread`."""
    return "127.0.0.1:%d" % server.servers[0].sockets[0].getsockname()[1]  # noqa: UP031 - as above


def _socket(port: int = 0) -> socket.socket:
    """Return a socket bound to *port*, or to a free one."""
    s = socket.socket()
    s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    s.bind(("127.0.0.1", port))
    return s


class Refused(Exception):
    """An ``error`` came as the answer."""

    def __init__(self, message: dict[str, Any]) -> None:
        self.code = message["code"]
        self.message = message
        super().__init__(f"{self.code}: {message['message']}")


class Wire:
    """One connection; every message that comes is kept, in order."""

    def __init__(self, ws: ClientConnection) -> None:
        self.ws = ws
        self.messages: list[dict[str, Any]] = []
        self.frames: list[list[dict[str, Any]]] = []
        self.close_code: int | None = None
        self._refs = itertools.count(1)
        self._changed = asyncio.Condition()
        self._task = asyncio.create_task(self._read(), name="test-wire")

    async def _read(self) -> None:
        try:
            async for frame in self.ws:
                batch = json.loads(frame)
                assert isinstance(batch, list), "a server frame is always an array"
                async with self._changed:
                    self.frames.append(batch)
                    self.messages.extend(batch)
                    self._changed.notify_all()
        except ConnectionClosed:
            pass
        async with self._changed:
            self.close_code = self.ws.close_code
            self._changed.notify_all()

    async def send_raw(self, frame: str | bytes) -> None:
        await self.ws.send(frame)

    def ref(self) -> int:
        return next(self._refs)

    async def send(self, type: str, **fields: Any) -> int:
        """Send a command and return its ref."""
        ref = self.ref()
        await self.ws.send(json.dumps({"type": type, "ref": ref, **fields}))
        return ref

    async def until(self, condition: Callable[[], Any], timeout: float = 20) -> Any:
        """Wait until *condition* gives something true."""
        async with asyncio.timeout(timeout), self._changed:
            await self._changed.wait_for(lambda: condition() or self.close_code is not None)
            result = condition()
            if not result:
                raise AssertionError(
                    f"closed with {self.close_code} before it happened; got {self.messages[-5:]}"
                )
            return result

    async def answer(self, ref: int | str) -> dict[str, Any]:
        """Return the answer to *ref*; raise `Refused` for an error."""
        found: dict[str, Any] = await self.until(
            lambda: next((m for m in self.messages if m.get("ref") == ref), None)
        )
        if found["type"] == "error":
            raise Refused(found)
        return found

    async def ask(self, type: str, **fields: Any) -> dict[str, Any]:
        """Send a command and return its answer."""
        return await self.answer(await self.send(type, **fields))

    async def trigger(self, room: str, event: str, data: Any, **fields: Any) -> dict[str, Any]:
        return await self.ask("trigger", room=room, event=event, data=data, **fields)

    def events(self, room: str | None = None, event: str | None = None) -> list[dict[str, Any]]:
        """Return the live events that have come so far."""
        return [
            m
            for m in self.messages
            if m["type"] == "event"
            and (room is None or m["room"] == room)
            and (event is None or m["event"] == event)
        ]

    async def until_events(
        self, count: int, room: str | None = None, event: str | None = None
    ) -> list[dict[str, Any]]:
        await self.until(lambda: len(self.events(room, event)) >= count)
        return self.events(room, event)

    async def until_closed(self, timeout: float = 20) -> int:
        async with asyncio.timeout(timeout), self._changed:
            await self._changed.wait_for(lambda: self.close_code is not None)
        assert self.close_code is not None
        return self.close_code

    async def scroll(self, room: str, **fields: Any) -> list[dict[str, Any]]:
        """Scroll by ``next`` from the newest event to the end; return the events, oldest first."""
        shown: list[dict[str, Any]] = []
        cursor: str | None = None
        while True:
            extra = {} if cursor is None else {"cursor": cursor}
            page = await self.ask("history", room=room, **fields, **extra)
            assert "gap" not in page, page["gap"]
            shown = page["events"] + shown
            cursor = page["next"]
            if cursor is None:
                return shown

    async def aclose(self) -> None:
        await self.ws.close()
        await self._task


@asynccontextmanager
async def wire(
    address: str, user: str | None = "alice", *, path: str = "/ws", **options: Any
) -> AsyncIterator[Wire]:
    """Open a connection, and ``connect`` as *user* unless that is None."""
    ws = await connect(
        f"ws://{address}{path}", compression=None, max_size=None, ping_interval=None, **options
    )
    client = Wire(ws)
    try:
        if user is not None:
            await client.ask("connect", auth={"user_id": user})
        yield client
    finally:
        await client.aclose()


async def eventually(condition: Callable[[], Any], timeout: float = 20) -> Any:
    """Wait for a condition that nothing announces."""
    async with asyncio.timeout(timeout):
        while not (result := condition()):
            await asyncio.sleep(0.005)
        return result
