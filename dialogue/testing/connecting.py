"""In-process clients: the real client and the real session, without a port."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode
from weakref import WeakKeyDictionary

from starlette.websockets import WebSocket

from ..client import Auth, DialogueClient, Timing
from ..client.socket import OpenSocket, Socket
from ..server.handles import Identity
from ..server.websocket import serve_websocket
from .linking import Link, register

if TYPE_CHECKING:
    from ..app import Dialogue

_QUICK = Timing(backoff_seconds=0.01, backoff_limit_seconds=0.1)


class _Lifespan:
    """A lifespan that was entered for connections, and is left with the last of them.

    It runs in a task of its own: it may be left by another task than entered it, which a task group within an
    application's lifespan would not allow.
    """

    def __init__(self, dialogue: Dialogue) -> None:
        self.users = 0
        self._entered: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._leave = asyncio.Event()
        self.task = asyncio.create_task(self._run(dialogue), name="dialogue-testing-lifespan")

    async def _run(self, dialogue: Dialogue) -> None:
        app = dialogue.app
        try:
            async with app.router.lifespan_context(app):
                self._entered.set_result(None)
                await self._leave.wait()
        except BaseException as error:
            if self._entered.done():
                raise
            # Of no harm if it is a cancellation: whoever waits is not told of a start that will never be.
            self._entered.set_exception(
                error
                if isinstance(error, Exception)
                else RuntimeError("the start of the server was cancelled")
            )
        finally:
            del _lifespans[dialogue]

    async def wait_entered(self) -> None:
        """Return when the server runs; raises what its start raised."""
        # Others may wait, too: one that is cancelled must not cancel it for all.
        await asyncio.shield(self._entered)

    async def leave(self) -> None:
        """Stop the server; raises what its stop raised."""
        self._leave.set()
        await asyncio.shield(self.task)


_lifespans: WeakKeyDictionary[Dialogue, _Lifespan] = WeakKeyDictionary()


@asynccontextmanager
async def _running(dialogue: Dialogue) -> AsyncIterator[None]:
    """Keep the server running: enter the lifespan of ``dialogue.app``, unless it was entered by someone else."""
    while (lifespan := _lifespans.get(dialogue)) is not None and not lifespan.users:
        await asyncio.wait([lifespan.task])  # It is being left; the next one starts from nothing.
    if lifespan is None:
        if dialogue.is_running:
            yield
            return
        lifespan = _lifespans[dialogue] = _Lifespan(dialogue)
    lifespan.users += 1
    try:
        await lifespan.wait_entered()
        yield
    finally:
        lifespan.users -= 1
        if not lifespan.users:
            await lifespan.leave()


def _scope(
    dialogue: Dialogue, *, headers: Mapping[str, str], cookies: Mapping[str, str], query: Mapping[str, str]
) -> dict[str, Any]:
    lines = {"host": "testserver", **{name.lower(): value for name, value in headers.items()}}
    if cookies:
        lines["cookie"] = "; ".join(f"{name}={value}" for name, value in cookies.items())
    return {
        "type": "websocket",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "scheme": "ws",
        "path": "/ws",
        "raw_path": b"/ws",
        "root_path": "",
        "query_string": urlencode(query).encode("ascii"),
        "headers": [(name.encode("latin-1"), value.encode("latin-1")) for name, value in lines.items()],
        "client": ("127.0.0.1", 50000),
        "server": ("testserver", 80),
        "subprotocols": [],
        "state": {},
        "extensions": {},
        # Whichever application runs it: hooks find its state under `context.app`.
        "app": dialogue.hub().context.app,
    }


def _opener(
    dialogue: Dialogue, link: Link, *, identity: Identity | None, request: Mapping[str, Mapping[str, str]]
) -> OpenSocket:
    async def endpoint(scope: Any, receive: Any, send: Any) -> None:
        await serve_websocket(
            WebSocket(scope, receive, send),
            dialogue.hub(),
            allowed_origins=dialogue.allowed_origins,
            logger=dialogue.logger,
            # A new one for each connection: its claims are the hooks' to change.
            known_identity=identity and Identity(identity.user_id, identity.claims, identity.meta),
        )

    async def open_socket() -> Socket:
        await link.wait_passable()
        if not dialogue.is_running:
            raise ConnectionRefusedError("the server does not run")
        return await link.open(endpoint, _scope(dialogue, **request))

    return open_socket


@asynccontextmanager
async def connect(
    dialogue: Dialogue,
    *,
    user_id: str | None = None,
    auth: Auth = None,
    claims: Mapping[str, Any] | None = None,
    meta: Mapping[str, Any] | None = None,
    headers: Mapping[str, str] | None = None,
    cookies: Mapping[str, str] | None = None,
    query: Mapping[str, str] | None = None,
    max_frame_bytes: int = 16_777_216,
    connect_timeout_seconds: float | None = 10.0,
    timing: Timing = _QUICK,
    **options: Any,
) -> AsyncIterator[DialogueClient]:
    """Connect a client to *dialogue* in this process, without a port::

        async with connect(dialogue, user_id="ann") as ann, connect(dialogue, user_id="bob") as bob:
            ...

    The client is a `DialogueClient` and the server's side its real session: text frames, back-pressure and close
    codes are those of a socket. The lifespan of ``dialogue.app`` is entered unless the dialogue is running, is shared
    by all such connections, and left with the last of them; to test an application with a lifespan of its own, enter
    that first. When the context is left, ``on_left`` and ``on_disconnected`` have run.

    Args:
        dialogue: What to connect to.
        user_id: Who it is. The ``authenticate`` hook, if there is one, is not asked.
        auth: What ``authenticate`` is asked with, instead of *user_id*; as for `DialogueClient`.
        claims, meta: Of the `Identity`; only with *user_id*.
        headers, cookies, query: Of the upgrade request, which ``authenticate`` sees. A header ``origin`` is checked
            as always.
        max_frame_bytes, connect_timeout_seconds, timing: As for `DialogueClient`; a lost connection is tried again
            sooner than there, after at most 0.1 s.
        options: Further arguments of `DialogueClient`.

    Raises:
        HandshakeRefused: The server did not accept the connection, e.g. because of its origin.
        Unauthenticated, CommandError, ConnectionLost, TimeoutError: As for `DialogueClient`.
        StartError, ConfigError: As for ``dialogue.lifespan``.
        ValidationFailed: The *user_id* cannot be one.
        ValueError: There is a *user_id* beside *auth*; or *claims* or *meta* without one.
        RuntimeError: The dialogue is running in another event loop.
    """
    if user_id is not None and auth is not None:
        raise ValueError("give user_id, which authenticate is not asked about, or auth, which it is")
    if user_id is None and (claims is not None or meta is not None):
        raise ValueError("claims and meta belong to a user_id; with auth they are what authenticate returns")
    request = {"headers": headers or {}, "cookies": cookies or {}, "query": query or {}}
    async with _running(dialogue):
        hub = dialogue.hub()
        if dialogue._loop is not asyncio.get_running_loop():
            raise RuntimeError("the dialogue is running in another event loop; connect where it runs")
        identity = None
        if user_id is not None:
            identity = Identity(hub.admission.check_connection_user(user_id), claims, meta)
        link = Link(max_frame_bytes=max_frame_bytes, logger=dialogue.logger)
        client = DialogueClient(
            "http://testserver",
            auth={"user_id": user_id} if user_id is not None else auth,
            max_frame_bytes=max_frame_bytes,
            connect_timeout_seconds=connect_timeout_seconds,
            timing=timing,
            open_socket=_opener(dialogue, link, identity=identity, request=request),
            **options,
        )
        register(client, link)
        try:
            async with client:
                yield client
        finally:
            await link.wait_closed(seconds=hub.limits.stop_timeout_seconds)
