"""A server in the running event loop: uvicorn with our settings, and a stop that tells before it closes.

The application's lifespan is entered here and not by uvicorn, which logs a failed start as a traceback, waits for a
start that Ctrl-C should end, and closes the sockets before the lifespan ends: publishers would not be told of what
was accepted.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import AsyncExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import uvicorn

from ..errors import StartError
from .handshake import guarded_http
from .listening import listen
from .uvicorn_socket import uvicorn_socket
from .websocket import is_loopback

if TYPE_CHECKING:
    from fastapi import FastAPI

    from ..app import Dialogue

_LAST_SECONDS = 0.25
"""What connections have to take what was written to them when the stop has used up its time."""

_LOOK_SECONDS = 0.02


def make_config(dialogue: Dialogue, app: FastAPI) -> uvicorn.Config:
    """Return uvicorn's settings for *app*, which includes the router of *dialogue*."""
    limits = dialogue.limits
    return uvicorn.Config(
        app,
        http=guarded_http(
            seconds=limits.handshake_seconds,
            on_refused=dialogue.metrics.refused.labels("handshake").inc,
            logger=dialogue.logger,
        ),
        lifespan="off",  # entered by `Serving`
        ws=uvicorn_socket(bytes_before_connect=limits.frame_before_connect_bytes, logger=dialogue.logger),
        ws_max_size=limits.frame_bytes,
        ws_per_message_deflate=False,  # costs 33 KB a connection
        ws_ping_interval=None,  # the protocol has its own ping, which a browser's page can see
        log_config=None,
        access_log=False,
        server_header=False,
    )


class _Server(uvicorn.Server):
    """uvicorn's server, telling when it serves, and ending the lifespan before it closes anything.

    Args:
        state: What the lifespan has given, for ``request.state``.
        on_serving: Called once when connections are answered.
        before_close: Ends the lifespan; connections are still answered meanwhile.
        until: Returns the loop time at which the stop ends.
        is_child: Whether the listener is a reloading parent's, which the next child answers.
    """

    def __init__(
        self,
        config: uvicorn.Config,
        *,
        state: Mapping[str, Any],
        on_serving: Callable[[], None],
        before_close: Callable[[], Awaitable[None]],
        until: Callable[[], float],
        is_child: bool,
    ) -> None:
        super().__init__(config)
        self._state = state
        self._on_serving = on_serving
        self._before_close = before_close
        self._until = until
        self._is_child = is_child

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave signals to whoever serves: uvicorn takes a second one as a wish to skip the lifespan's end."""
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        self.lifespan.state.update(self._state)
        await super().startup(sockets)
        if self.started:
            self._on_serving()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        loop = asyncio.get_running_loop()
        until = self._until()
        # The listener stays open: a load balancer is to see that /health says "stopping". Where another process
        # answers next, who comes now had better wait for it.
        if self._is_child:
            self._listen_no_more()
        try:
            await self._before_close()
        finally:
            self._listen_no_more()
            await self._close_connections(max(until, loop.time() + _LAST_SECONDS))
            # For requests that are still being answered.
            left = max(_LAST_SECONDS, until - loop.time())
            self.config.timeout_graceful_shutdown = left  # type: ignore[assignment]
            await super().shutdown(sockets)

    async def _close_connections(self, until: float) -> None:
        """Close them, giving each until loop time *until* to take what was written to it.

        uvicorn's own wait has no end for a peer that does not read: a transport closes when its buffer is empty.
        """
        connections = self.server_state.connections
        for connection in list(connections):
            connection.shutdown()
        loop = asyncio.get_running_loop()
        while connections and loop.time() < until:  # noqa: ASYNC110 - nothing announces that one has closed
            await asyncio.sleep(_LOOK_SECONDS)
        self.abort()
        await asyncio.sleep(_LOOK_SECONDS)

    def abort(self) -> None:
        """Drop all connections."""
        for connection in list(self.server_state.connections):
            if connection.transport is not None:
                connection.transport.abort()

    def close_at_once(self) -> None:
        """Listen no more, and drop all connections."""
        self._listen_no_more()
        self.abort()

    def _listen_no_more(self) -> None:
        for server in getattr(self, "servers", ()):
            server.close()


class Serving:
    """Serves *app*, which includes the router of *dialogue*, in the running loop; once.

    Args:
        on_serving: Called once when connections are answered.
        is_child: Whether the listener is a reloading parent's.

    Attributes:
        port: The one that is served; None when none is.
    """

    def __init__(
        self,
        dialogue: Dialogue,
        app: FastAPI,
        *,
        on_serving: Callable[[], None] = lambda: None,
        is_child: bool = False,
    ) -> None:
        self._dialogue = dialogue
        self._app = app
        self._on_serving = on_serving
        self._is_child = is_child
        self._server: _Server | None = None
        self._running: asyncio.Task[Any] | None = None
        self._task: asyncio.Task[None] | None = None
        self._serving: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._is_stopping = False
        self._is_cancelled = False
        self._until: float | None = None
        self.port: int | None = None

    async def start(self, host: str, port: int) -> None:
        """Serve as a task, and return when connections are answered. Cancelled, it ends what it has started.

        Raises:
            StartError, ConfigError: It cannot start; the message names the remedy.
        """
        # In a thread: a name is looked up.
        listener = await asyncio.to_thread(listen, host, port)
        task = self._task = asyncio.create_task(self.run(listener), name="dialogue-server")
        try:
            await asyncio.wait({task, self._serving}, return_when=asyncio.FIRST_COMPLETED)
        except asyncio.CancelledError:
            self.stop()
            await asyncio.wait({task})
            raise
        if task.done():
            task.result()
            raise StartError("the server was stopped while it started")
        task.add_done_callback(self._on_end)

    def _on_end(self, task: asyncio.Task[None]) -> None:
        # Whoever calls `aclose` gets it, too; but that may be never.
        if not task.cancelled() and task.exception() is not None:
            self._dialogue.logger.critical("the server has failed", exc_info=task.exception())

    async def aclose(self) -> None:
        """Stop gracefully. May be called twice, and at the same time; cancelled, it leaves the stop going on.

        Raises:
            Exception: With which the server has failed.
        """
        self.stop()
        if self._task is not None:
            await asyncio.wait({self._task})
            if not self._task.cancelled():
                self._task.result()

    @property
    def has_ended(self) -> bool:
        """Whether nothing is served any more."""
        return self._task is None or self._task.done()

    async def run(self, listener: socket.socket) -> None:
        """Serve until `stop` is called, then stop gracefully; a call during the start ends the start.

        Args:
            listener: From `listen`; it is closed when this returns or raises.

        Raises:
            StartError, ConfigError: It cannot start; the message names the remedy.
        """
        self._running = asyncio.current_task()
        try:
            if self._is_stopping:
                return
            self._warn_of_development(listener.getsockname()[0])
            async with AsyncExitStack() as stack:
                state = await stack.enter_async_context(self._app.router.lifespan_context(self._app))
                server = _Server(
                    make_config(self._dialogue, self._app),
                    state=state or {},
                    on_serving=self._tell,
                    before_close=stack.aclose,
                    until=self._begin_stop,
                    is_child=self._is_child,
                )
                if self._is_stopping:
                    return
                self._server = server
                self.port = listener.getsockname()[1]
                try:
                    await server.serve([listener])
                except BaseException:
                    server.close_at_once()
                    raise
        except asyncio.CancelledError:
            if not self._is_cancelled:
                raise
        finally:
            self.port = None
            listener.close()

    def stop(self) -> None:
        """Begin to stop; readiness goes down at once. May be called twice."""
        if self._is_stopping:
            return
        self._is_stopping = True
        if self._server is not None:
            self._begin_stop()
            self._server.should_exit = True
        elif self._running is not None:
            self._is_cancelled = True
            self._running.cancel()

    def _begin_stop(self) -> float:
        if self._until is None:
            dialogue = self._dialogue
            if dialogue.is_running:
                self._until = dialogue.hub().stop.begin().end
            else:
                self._until = asyncio.get_running_loop().time() + dialogue.limits.stop_timeout_seconds
        return self._until

    def _tell(self) -> None:
        if not self._serving.done():
            self._serving.set_result(None)
        self._on_serving()

    def _warn_of_development(self, host: str) -> None:
        if self._dialogue.is_development and not is_loopback(host):
            self._dialogue.logger.warning(
                "development mode on %s: WHOEVER REACHES THIS ADDRESS CAN BE ANY USER. "
                "Register an authenticate hook, or leave --host out to be reached from this machine only",
                host,
            )
