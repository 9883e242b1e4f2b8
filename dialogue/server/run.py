"""How ``dialogue run`` and ``dialogue demo`` serve: a process of its own, its log, its signals and its end."""

from __future__ import annotations

import asyncio
import functools
import logging
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from types import FrameType, TracebackType
from typing import TYPE_CHECKING, Any

import uvicorn

from ..logs import JSONFormatter
from .collector import collect_seldom
from .listening import DEFAULT_HOST, DEFAULT_PORT, address_of, listen
from .serving import Serving, make_config

if TYPE_CHECKING:
    from fastapi import FastAPI

    from ..app import Dialogue

__all__ = [
    "DEFAULT_HOST",
    "DEFAULT_PORT",
    "FORCED_STATUS",
    "address_of",
    "configure_logging",
    "leave_hanging_threads",
    "listen",
    "serve",
    "serve_reloading",
]

FORCED_STATUS = 130
"""The status of a process that a second signal has ended: what a shell shows for one that SIGINT has ended."""

_SIGNALS = (signal.SIGINT, signal.SIGTERM)

_HOOK_THREADS = "dialogue-hook"
_THREAD_SECONDS = 0.2


def configure_logging(level: str, log_format: str = "text") -> None:
    """Log to standard error from *level* up (a name such as ``info``); of uvicorn only what is worth knowing.

    Handlers that the application has put on the root logger are kept as they are, and none is added to them.

    Args:
        level: The least important messages that are logged.
        log_format: ``"text"``, or ``"json"`` for one object in each line (see `JSONFormatter`).
    """
    handler = logging.StreamHandler(sys.stderr)
    if log_format == "json":
        handler.setFormatter(JSONFormatter())
    logging.basicConfig(format="%(levelname)s %(name)s: %(message)s", handlers=[handler])
    number = logging.getLevelNamesMapping()[level.upper()]
    logging.getLogger().setLevel(max(number, logging.INFO))
    logging.getLogger("dialogue").setLevel(number)
    # It tells of every step of a migration that went well.
    logging.getLogger("alembic").setLevel(max(number, logging.WARNING))
    # On "info" it tells of every start, stop and connection.
    logging.getLogger("uvicorn.error").setLevel(number if number != logging.INFO else logging.WARNING)


class _Signals:
    """What SIGINT and SIGTERM do: the first one stops gracefully, the second one at once. A context manager.

    Args:
        stop: Called by the first signal, between any two steps of the main thread.
        abandoned: Tells in a few words what a stop at once gives up.
    """

    def __init__(
        self,
        stop: Callable[[], None],
        abandoned: Callable[[], str],
        logger: logging.Logger,
        *,
        numbers: Sequence[signal.Signals],
    ) -> None:
        self._numbers = numbers
        self._stop = stop
        self._abandoned = abandoned
        self._log = logger
        self._count = 0
        self._previous: dict[signal.Signals, Any] = {}

    def __enter__(self) -> _Signals:
        for number in self._numbers:
            self._previous[number] = signal.signal(number, self._on_signal)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self._count += 1
        if self._count == 1:
            self._stop()
            return
        try:
            # Of what a half-stopped server raises nothing may keep the process.
            with suppress(Exception):
                self._log.warning("stopped at once by a second signal; given up: %s", self._abandoned())
        finally:
            _exit(FORCED_STATUS)


def _exit(status: int) -> None:
    """End the process now.

    Not by an exception or ``sys.exit``: either would still run what hangs, whether a ``finally`` in the event loop or
    the interpreter's own end, which waits for the threads of hooks.
    """
    for stream in (sys.stdout, sys.stderr):
        with suppress(Exception):
            stream.flush()
    os._exit(status)


def leave_hanging_threads(status: int) -> None:
    """End the process with *status* if a ``def`` hook still runs in its thread after a stop; return if none does.

    A thread cannot be cancelled, and Python waits for each of them at its end.
    """
    for thread in threading.enumerate():
        if thread.name.startswith(_HOOK_THREADS):
            thread.join(_THREAD_SECONDS)
            if thread.is_alive():
                logging.getLogger("dialogue").warning("a hook does not return; the process ends without it")
                _exit(status)


def _abandoned(dialogue: Dialogue) -> str:
    if not dialogue.is_running:
        return f"connections 0, events not handed over {dialogue.unflushed_events}"
    hub = dialogue.hub()
    kept = " (the log keeps them for the next start)" if hub.store.is_durable else ""
    return (
        f"connections {len(hub.connections.sessions)}, events on their way to the log {hub.commit.waiting_events}, "
        f"events not handed over {hub.unhanded_events}{kept}"
    )


def serve(
    dialogue: Dialogue,
    app: FastAPI,
    listener: socket.socket,
    *,
    on_serving: Callable[[], None] = lambda: None,
    is_child: bool = False,
) -> int:
    """Serve *app*, which includes the router of *dialogue*, until SIGINT or SIGTERM; then stop gracefully.

    A signal during the start ends the start; a second signal ends the process at once, with `FORCED_STATUS`. Blocks;
    to be called in the main thread.

    Args:
        listener: From `listen`; it is closed when this returns or raises.
        on_serving: Called once when connections are answered.
        is_child: Whether a reloading server has started this one, see `ignore_terminal`.

    Returns:
        How many events the stop could not hand over to ``on_cleanup``; 0 is a clean stop.

    Raises:
        StartError, ConfigError: It cannot start; the message names the remedy.
    """
    is_asked = False
    wake: Callable[[], object] | None = None

    def stop() -> None:
        nonlocal is_asked
        is_asked = True
        if wake is not None:
            wake()

    async def run(begin_serving: Callable[[], None]) -> None:
        nonlocal wake

        def tell() -> None:
            begin_serving()
            on_serving()

        loop = asyncio.get_running_loop()
        loop.set_default_executor(executor)
        serving = Serving(dialogue, app, on_serving=tell, is_child=is_child)
        wake = functools.partial(loop.call_soon_threadsafe, serving.stop)
        if is_asked:
            serving.stop()
        try:
            await serving.run(listener)
        finally:
            wake = None
            # The loop's own end would wait for a hook that hangs in its thread, for ever.
            executor.shutdown(wait=False, cancel_futures=True)
            loop.set_default_executor(ThreadPoolExecutor(1))

    executor = ThreadPoolExecutor(thread_name_prefix=_HOOK_THREADS)
    factory = make_config(dialogue, app).get_loop_factory()
    try:
        with (
            _Signals(
                stop,
                lambda: _abandoned(dialogue),
                dialogue.logger,
                numbers=(signal.SIGTERM,) if is_child and os.name == "posix" else _SIGNALS,
            ),
            collect_seldom() as begin_serving,
            asyncio.Runner(loop_factory=factory) as runner,
        ):
            runner.run(run(begin_serving))
    finally:
        listener.close()
    return dialogue.unflushed_events


def serve_reloading(target: Callable[..., None], listener: socket.socket) -> int:
    """Call *target* in a child process, again whenever a Python file below the current folder changes.

    Blocks until SIGINT or SIGTERM; a second one is passed on, and ends the child at once. A child that ends by itself
    is started again by the next change.

    Args:
        target: Something that can be pickled; called with ``sockets=[listener]``.
        listener: From `listen`; it is closed at the end.

    Returns:
        The status to end with: 0, or `FORCED_STATUS`.
    """
    from uvicorn.supervisors import ChangeReload

    class Reloader(ChangeReload):  # type: ignore[misc, valid-type]
        signals = 0

        def signal_handler(self, sig: int, frame: FrameType | None) -> None:
            super().signal_handler(sig, frame)
            self.signals += 1
            if self.signals == 2:
                self.process.terminate()
            elif self.signals > 2:
                self.process.kill()  # it is too busy to hear

    # The application is the target's own to find.
    config = uvicorn.Config("", reload=True, log_config=None)
    reloader = Reloader(config, target=target, sockets=[listener])
    reloader.run()
    return FORCED_STATUS if reloader.signals > 1 else 0


def ignore_terminal() -> None:
    """Leave Ctrl-C to the parent, in a reloading server's child process: the terminal sends it to both.

    The parent passes on what it gets, so the child would otherwise take one Ctrl-C for two signals.
    """
    if os.name == "posix":
        signal.signal(signal.SIGINT, signal.SIG_IGN)
