"""Learning that a uvicorn which is not ours is to stop.

It waits for all requests before it ends the lifespan, and tells those that are being answered nothing: a stream that
has no end would keep it for ever. Its server object says so, and is found where it waits for the lifespan to begin.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import uvicorn


def find_server() -> uvicorn.Server | None:
    """Return the uvicorn that runs the lifespan in which this is called; None if another server does, or nobody.

    Whether the process, a thread or a task serves, and whoever has the signals: it waits in a task of the same loop
    for the lifespan to begin, while this is called in the one that runs it.
    """
    # Not imported for this: where it serves it has been.
    module = sys.modules.get("uvicorn")
    task = asyncio.current_task()
    lifespan = next(_owners(task.get_coro()), None) if task is not None else None
    if module is None or lifespan is None:
        return None
    for waiting in asyncio.all_tasks():
        for owner in _owners(waiting.get_coro()):
            if isinstance(owner, module.Server) and getattr(owner, "lifespan", None) is lifespan:
                server: uvicorn.Server = owner
                return server
    return None


def is_stopping(server: uvicorn.Server) -> bool:
    """Whether it is to stop: somebody said so, or it does not listen any more, having served enough requests."""
    if server.should_exit:
        return True
    # It has none before it listens.
    return any(not listener.is_serving() for listener in getattr(server, "servers", ()))


def _owners(coroutine: Any) -> Iterator[object]:
    """Iterate over the objects whose methods a suspended coroutine is in, from the outermost one."""
    while coroutine is not None:
        frame = getattr(coroutine, "cr_frame", None)
        if frame is not None and "self" in frame.f_locals:
            yield frame.f_locals["self"]
        coroutine = getattr(coroutine, "cr_await", None)
