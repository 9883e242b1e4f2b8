"""How ``dialogue run`` and ``dialogue demo`` serve: uvicorn with our settings, and a stop that tells before it closes.

The application's lifespan is entered here and not by uvicorn, which logs a failed start as a traceback, waits for a
start that Ctrl-C should end, and closes the sockets before the lifespan ends: publishers would not be told of what
was accepted.
"""

from __future__ import annotations

import asyncio
import errno
import gc
import logging
import math
import os
import signal
import socket
import sys
from collections.abc import Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import uvicorn

from ..errors import StartError
from ..logs import JSONFormatter
from .websocket import is_loopback

if TYPE_CHECKING:
    from fastapi import FastAPI

    from ..app import Dialogue

DEFAULT_HOST = "127.0.0.1"
DEFAULT_PORT = 3000

BACKLOG_CONNECTIONS = 2048
"""How many connections the kernel keeps until they are accepted."""

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


def listen(host: str, port: int, *, tries: int = 1) -> socket.socket:
    """Return a listening socket; whoever gets it closes it.

    It listens at once, because a port that is only bound can still be taken by another program.

    Args:
        host: A name or an address of this machine.
        port: The first port to try; 0 for any free one.
        tries: How many ports to try, counting up from *port*; at least 1.

    Raises:
        StartError: The ports are taken or may not be used, or *host* is not this machine's.
    """
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError) as error:
        raise StartError(
            f"the host {host!r} is not known. Name an address of this machine: --host"
        ) from error
    # IPv4 first: of the two addresses of "localhost" it is the one that every program tries.
    family, _, _, _, address = min(found, key=lambda info: info[0] != socket.AF_INET)
    last = min(port + tries - 1, 65_535) if port else 0
    for candidate in range(port, last + 1):
        try:
            return _listen(family, (address[0], candidate, *address[2:]))
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                continue
            if error.errno in (errno.EACCES, errno.EPERM):
                raise StartError(
                    f"port {candidate} may not be used by this user. Choose one from 1024 up: --port"
                ) from error
            raise StartError(
                f"{host} cannot be listened on ({error.strerror}). Name an address of this machine: --host"
            ) from error
    if last > port:
        raise StartError(f"the ports {port} to {last} are all taken on {host}. Choose another: --port")
    raise StartError(
        f"port {port} is taken by another program on {host}. End that program, or choose another port: --port"
    )


def _listen(family: int, address: tuple[Any, ...]) -> socket.socket:
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        # Without it a port stays taken for a minute after a stop. Windows means something else by it: sharing.
        if os.name == "posix":
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6 and address[0] != "::":
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        listener.bind(address)
        listener.listen(BACKLOG_CONNECTIONS)
        # A reloading server's children get it.
        listener.set_inheritable(True)
    except BaseException:
        listener.close()
        raise
    return listener


def address_of(listener: socket.socket) -> str:
    """Return the URL under which a browser on this machine reaches *listener*."""
    host, port = listener.getsockname()[:2]
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


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


class _Server(uvicorn.Server):
    """uvicorn's server, telling when it serves, and ending the lifespan before it closes the connections."""

    def __init__(
        self,
        config: uvicorn.Config,
        *,
        on_serving: Callable[[], None],
        before_close: Callable[[], Awaitable[None]],
    ) -> None:
        super().__init__(config)
        self._on_serving = on_serving
        self._before_close = before_close

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            self._on_serving()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        for server in self.servers:
            server.close()
        try:
            await self._before_close()
        finally:
            await super().shutdown(sockets)


@contextmanager
def _signals(stop: Callable[[], None]) -> Iterator[None]:
    """Call *stop* on SIGINT and SIGTERM.

    uvicorn has handlers of its own while it serves; it puts these back and raises its signals again at the end.
    """
    previous = {number: signal.signal(number, lambda *_: stop()) for number in _SIGNALS}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


async def _serve(
    app: FastAPI, config: uvicorn.Config, listener: socket.socket, on_serving: Callable[[], None]
) -> None:
    loop = asyncio.get_running_loop()
    task = asyncio.current_task()
    assert task is not None
    is_stopping = False

    def stop() -> None:
        nonlocal is_stopping
        if not is_stopping:
            is_stopping = True
            loop.call_soon_threadsafe(task.cancel)

    async def before_close() -> None:
        nonlocal is_stopping
        # From here on a signal asks for what is being done.
        is_stopping = True
        await stack.aclose()

    with _signals(stop):
        try:
            async with AsyncExitStack() as stack:
                await stack.enter_async_context(app.router.lifespan_context(app))
                # What there is now stays until the end. Walking it took the collector 50 ms and more, in which
                # every publisher waited.
                gc.collect()
                gc.freeze()
                server = _Server(config, on_serving=on_serving, before_close=before_close)
                await server.serve([listener])
        except asyncio.CancelledError:
            if not is_stopping:
                raise


def serve(
    dialogue: Dialogue,
    app: FastAPI,
    listener: socket.socket,
    *,
    on_serving: Callable[[], None] = lambda: None,
) -> int:
    """Serve *app*, which includes the router of *dialogue*, until SIGINT or SIGTERM; then stop gracefully.

    A signal during the start ends the start. Blocks; to be called in the main thread.

    Args:
        listener: From `listen`; it is closed when this returns or raises.
        on_serving: Called once when connections are answered.

    Returns:
        How many events the stop could not hand over to ``on_cleanup``; 0 is a clean stop.

    Raises:
        StartError, ConfigError: It cannot start; the message names the remedy.
    """
    limits = dialogue.limits
    config = uvicorn.Config(
        app,
        lifespan="off",  # entered by `_serve`
        ws="websockets-sansio",
        ws_max_size=limits.frame_bytes,
        ws_per_message_deflate=False,  # costs 33 KB a connection
        ws_ping_interval=None,  # the protocol has its own ping, which a browser's page can see
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=math.ceil(limits.stop_seconds),
    )
    try:
        host = listener.getsockname()[0]
        if dialogue.is_development and not is_loopback(host):
            dialogue.logger.warning(
                "development mode on %s: WHOEVER REACHES THIS ADDRESS CAN BE ANY USER. "
                "Register an authenticate hook, or leave --host out to be reached from this machine only",
                host,
            )
        with asyncio.Runner(loop_factory=config.get_loop_factory()) as runner:
            runner.run(_serve(app, config, listener, on_serving))
    finally:
        gc.unfreeze()
        listener.close()
    return dialogue.unflushed_events


def serve_reloading(target: Callable[..., None], listener: socket.socket) -> None:
    """Call *target* in a child process, again whenever a Python file below the current folder changes.

    Blocks until SIGINT or SIGTERM. A child that ends by itself is started again by the next change.

    Args:
        target: Something that can be pickled; called with ``sockets=[listener]``.
        listener: From `listen`; it is closed at the end.
    """
    from uvicorn.supervisors import ChangeReload

    # The application is the target's own to find.
    config = uvicorn.Config("", reload=True, log_config=None)
    ChangeReload(config, target=target, sockets=[listener]).run()
