"""The server under attack, which is looked at afterwards: it serves, has logged no failure, and has kept nothing."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from dialogue import Dialogue, Identity, Unauthenticated

from ..server.harness import Refused, Wire, eventually, serve, wire

MAX_FRAME_BYTES = 1_048_576


class _Records(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.failures: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        if record.exc_info or record.levelno >= logging.ERROR:
            self.failures.append(self.format(record))


@asynccontextmanager
async def attacked(
    dialogue: Dialogue, *, room: str = "general", expected: str | None = None, **settings: Any
) -> AsyncIterator[str]:
    """Serve as ``dialogue run`` does, and look at the server when the attack is over.

    Args:
        room: Where a well-behaved client talks afterwards.
        expected: Part of what the log may say of the attack.
    """
    records = _Records()
    loggers = [dialogue.logger, logging.getLogger("uvicorn.error")]
    for logger in loggers:
        logger.addHandler(records)
    options = {"ws_max_size": MAX_FRAME_BYTES, "ws_per_message_deflate": False, **settings}
    try:
        async with serve(dialogue, **options) as address:
            yield address
            hub = dialogue.hub()
            await eventually(lambda: not hub.connections.sessions)
            async with wire(address, None) as polite:
                await polite.ask("connect", auth=auth_of("polite"))
                await still_serves(polite, room)
            await eventually(lambda: not hub.connections.sessions and not hub.connections.is_full)
            await eventually(lambda: not _session_tasks())
            assert not hub.connections.users
            assert not hub.connections._silent
            assert not hub.connections._asking
            assert not hub.connections._ending
            assert not hub.access._watched
            assert all(not found.size and not found.users for found in hub.rooms.values())
    finally:
        for logger in loggers:
            logger.removeHandler(records)
    unexpected = [text for text in records.failures if expected is None or expected not in text]
    assert not unexpected, unexpected


def _session_tasks() -> list[str]:
    names = (task.get_name() for task in asyncio.all_tasks() if not task.done())
    return [name for name in names if name.startswith(("dialogue-session", "dialogue-history"))]


def auth_of(user_id: str) -> dict[str, str]:
    """Return what *user_id* connects with, whether or not there is `authenticate`."""
    return {"user_id": user_id, "token": f"secret-{user_id}"}


async def still_serves(client: Wire, room: str = "general") -> None:
    """Check that a client can join, publish, read it back, and leave."""
    await client.ask("join", room=room)
    ack = await client.trigger(room, "message", "still here")
    page = await client.ask("history", room=room, event="message", limit=1)
    assert page["events"][0]["seq"] == ack["seq"]
    await client.ask("leave", room=room)


async def code_of(asking: Any) -> str:
    """Return the code that a command is refused with."""
    try:
        answer = await asking
    except Refused as refused:
        return str(refused.code)
    raise AssertionError(f"it was answered: {answer}")


def authenticate(auth: dict[str, Any]) -> Identity:
    """Know users by tokens that only they have: the token of ``ann`` is ``secret-ann``."""
    user_id = str(auth.get("token", "")).removeprefix("secret-")
    if auth.get("token") != f"secret-{user_id}" or not user_id:
        raise Unauthenticated
    return Identity(user_id)
