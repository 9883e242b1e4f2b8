"""A stop with open streams and waiting polls: it is not theirs to keep it."""

from __future__ import annotations

import asyncio
import signal
import socket
import subprocess
import sys
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import httpx2
import pytest
from fastapi import FastAPI
from hypercorn.asyncio import serve as hypercorn_serve
from hypercorn.config import Config
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.requests import Request

from dialogue import Dialogue, Limits

from ..processes import ROOT, SECONDS
from .harness import _socket, address_in_thread, eventually, message, rooms, serve, serve_in_thread
from .streaming import open_stream


async def poll(http: httpx2.AsyncClient, **query: Any) -> Any:
    return await http.get("/rooms/general/events", params={"wait_seconds": 50, **query}, timeout=60)


async def test_our_own_server_stops_at_once(caplog: pytest.LogCaptureFixture) -> None:
    """Streams bring what was accepted and end, polls answer; a reader that does not read is no reason to wait."""
    dialogue = Dialogue(rooms(), limits=Limits(stop_timeout_seconds=1000))
    await dialogue.start(port=0)
    address = f"127.0.0.1:{dialogue.port}"
    epoch = dialogue.hub().store.epoch
    async with (
        httpx2.AsyncClient(base_url=f"http://{address}") as http,
        open_stream(address) as stream,
        open_stream(address, is_read=False),
    ):
        waiting = asyncio.create_task(poll(http, after=0, epoch=epoch, events="note"))
        await eventually(lambda: dialogue.hub().followers.count == 3)
        for _ in range(400):
            await dialogue.trigger("general", message, "x" * 60_000)
        publishing = asyncio.create_task(dialogue.trigger("general", message, "last"))
        await asyncio.sleep(0)
        async with asyncio.timeout(60):
            await dialogue.stop()
        await publishing
        await stream.until_closed()
        assert stream.has_ended
        assert stream.events()[-1]["data"] == "last"
        answer = await waiting
        assert (answer.status_code, answer.json()["events"]) == (200, [])
        assert answer.json()["seq"] >= 400
    ends = dialogue.metrics.registry.get_sample_value("dialogue_stream_ends_total", {"reason": "stopping"})
    assert ends == 2
    assert "ASGI" not in caplog.text


APPLICATION = """
from dialogue import Dialogue, RoomConfig

dialogue = Dialogue(rooms={"general": RoomConfig(events="*")})
app = dialogue.app
"""


@pytest.mark.parametrize("server", ["uvicorn", "hypercorn"])
async def test_a_server_of_somebody_elses_stops(server: str, tmp_path: Path) -> None:
    """uvicorn would wait for ever for an answer that has no end, and tells it nothing: its stop is seen all the same.

    hypercorn ends what is open when its own time for a stop is over.
    """
    (tmp_path / "own.py").write_text(APPLICATION)
    listener = _socket()
    address = f"127.0.0.1:{listener.getsockname()[1]}"
    listener.listen()
    number = str(listener.fileno())
    options = {
        "uvicorn": ["--fd", number],
        "hypercorn": ["--bind", f"fd://{number}", "--workers", "0", "--graceful-timeout", "1"],
    }
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", server, "own:app", *options[server]),
        pass_fds=[listener.fileno()],
        cwd=tmp_path,
        env={"PYTHONPATH": str(ROOT), "PATH": ""},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )
    listener.close()
    try:
        async with open_stream(address) as stream, httpx2.AsyncClient(base_url=f"http://{address}") as http:
            waiting = asyncio.create_task(poll(http, after=0, epoch=stream.joined["epoch"]))
            # In its turn: the poll waits when this is answered.
            assert (await http.get("/rooms")).status_code == 200
            process.send_signal(signal.SIGTERM)
            await stream.until_closed()
            await asyncio.wait({waiting})
            async with asyncio.timeout(SECONDS):
                _, errors = await process.communicate()
        # Retrieved: under hypercorn it may have been cut.
        failure = waiting.exception()
        if server == "uvicorn":
            assert failure is None
            assert stream.has_ended
            assert waiting.result().json()["events"] == []
            assert b"Traceback" not in errors
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def pass_on(request: Request, call_next: Any) -> Any:
    return await call_next(request)


@pytest.mark.parametrize("has_middleware", [False, True], ids=["plain", "middleware"])
async def test_a_uvicorn_in_a_task_stops(has_middleware: bool) -> None:
    """Nobody has its signals: it is found all the same, through whatever stands between, for any client."""
    dialogue = Dialogue(rooms())
    app = FastAPI()
    app.include_router(dialogue.router)
    if has_middleware:
        app.add_middleware(BaseHTTPMiddleware, dispatch=pass_on)
    async with AsyncExitStack() as after:
        async with serve(app) as address:
            stream = await after.enter_async_context(open_stream(address, headers={"Connection": "close"}))
            async with open_stream(address) as other:
                pass
            await eventually(lambda: dialogue.hub().followers.count == 1)
            assert not other.has_ended
            assert not stream.is_closed
        await stream.until_closed()
        assert stream.has_ended


async def test_a_uvicorn_in_a_thread_stops_and_another_ones_stop_is_its_own() -> None:
    """Two in one process: what one is told is nothing to the readers of the other."""
    dialogue, other = Dialogue(rooms()), Dialogue(rooms())
    async with serve_in_thread(dialogue.app) as server, AsyncExitStack() as after:
        mine = await after.enter_async_context(open_stream(address_in_thread(server)))
        async with serve(other) as another:
            theirs = await after.enter_async_context(open_stream(another))
            (follower,) = dialogue.hub().followers._by_room["general"]
        await theirs.until_closed()
        assert theirs.has_ended
        assert (follower.end, mine.is_closed) == (None, False)
        server.should_exit = True
        await mine.until_closed()
        assert mine.has_ended


async def test_of_two_that_start_at_once_each_is_found() -> None:
    """In one loop, and both waiting for a lifespan: the one that is stopped ends its own streams."""
    dialogues = [Dialogue(rooms()), Dialogue(rooms())]
    servers = [AsyncExitStack(), AsyncExitStack()]
    async with servers[0], servers[1], AsyncExitStack() as after:
        addresses = await asyncio.gather(
            *(stack.enter_async_context(serve(one)) for stack, one in zip(servers, dialogues, strict=True))
        )
        streams = [await after.enter_async_context(open_stream(address)) for address in addresses]
        for stack, stream in zip(servers, streams, strict=True):
            assert not stream.is_closed
            await stack.aclose()
            await stream.until_closed()
            assert stream.has_ended


async def test_a_uvicorn_that_has_served_enough_stops() -> None:
    """It tells nobody of its stop: that it does not listen any more shows it."""
    async with (
        serve(Dialogue(rooms()), limit_max_requests=2) as address,
        open_stream(address) as stream,
        httpx2.AsyncClient(base_url=f"http://{address}") as http,
    ):
        for _ in range(2):
            assert (await http.get("/rooms")).status_code == 200
        await stream.until_closed()
        assert stream.has_ended


async def test_under_hypercorn() -> None:
    """Streams, polls and their ends over another server."""
    dialogue = Dialogue(rooms(), limits=Limits(ping_seconds=0.1))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    config = Config()
    config.bind = [address]
    config.accesslog = config.errorlog = None
    stop = asyncio.Event()
    server = asyncio.create_task(hypercorn_serve(dialogue.app, config, shutdown_trigger=stop.wait))  # type: ignore[arg-type]

    async def is_served() -> bool:
        try:
            async with open_stream(address):
                return True
        except OSError:
            return False

    try:
        while not await is_served():
            await asyncio.sleep(0.01)
        hub = dialogue.hub()
        await eventually(lambda: not hub.followers.count)
        async with open_stream(address, user_id="ann") as stream, open_stream(address):
            await stream.until(lambda: stream.pings)
            await dialogue.trigger("general", message, 1)
            await stream.until_events(1)
            async with httpx2.AsyncClient(base_url=f"http://{address}") as http:
                waiting = asyncio.create_task(poll(http, after=1, epoch=hub.store.epoch))
                await eventually(lambda: hub.followers.count == 3)
                await dialogue.trigger("general", message, 2)
                assert [event["seq"] for event in (await waiting).json()["events"]] == [2]
            await dialogue.remove_from_room("ann", "general")
            await stream.until_closed()
            assert stream.messages[-1]["type"] == "left"
            await eventually(lambda: hub.followers.count == 1)
        await eventually(lambda: not hub.in_flight.count)
        assert not hub.followers.count
    finally:
        stop.set()
        await server
