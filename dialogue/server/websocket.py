"""The WebSocket endpoint: origin check, upgrade, and the ASGI socket under a session."""

from __future__ import annotations

import asyncio
import ipaddress
import logging
from collections.abc import Collection
from contextlib import suppress
from urllib.parse import urlsplit

from starlette.responses import Response
from starlette.websockets import WebSocket, WebSocketDisconnect, WebSocketState

from .handles import Identity
from .hub import Hub
from .outbox import Frame, WriteNowait
from .session import Session
from .uvicorn_socket import EXTENSION, SocketExtension

_GONE_SECONDS = 1.0
"""How long a refused connection has to go."""

_DISCONNECTS = 2
"""How often uvicorn tells of the end of a refused connection: when it was refused, and when it has gone."""

_DEFAULT_PORTS = {"http": 80, "ws": 80, "https": 443, "wss": 443}


class AsgiTransport:
    """A session's socket over ASGI: works under any server, and knows what Dialogue's own can do besides."""

    def __init__(self, websocket: WebSocket) -> None:
        self._websocket = websocket
        self._extension: SocketExtension | None = websocket.scope.get("extensions", {}).get(EXTENSION)
        self.close_code: int | None = None

    async def receive(self) -> str | bytes | None:
        """Return the next frame, or None when the peer has gone."""
        if self._websocket.client_state is not WebSocketState.CONNECTED:
            return None
        message = await self._websocket.receive()
        if message["type"] == "websocket.disconnect":
            self.close_code = message.get("code")
            return None
        text = message.get("text")
        if text is not None:
            return str(text)
        return bytes(message.get("bytes") or b"")

    def allow_large_frames(self) -> None:
        """Take frames of the full size from now on, where the server under us bounds them itself."""
        if self._extension is not None:
            self._extension.allow_large_frames()

    @property
    def write_nowait(self) -> WriteNowait | None:
        """Writes a frame without ASGI; None where the server under us has no such way."""
        return None if self._extension is None else self._extension.write_nowait

    async def send(self, frame: Frame) -> None:
        """Send one frame; waits while the peer's buffers are full."""
        await self._websocket.send({"type": "websocket.send", "text": frame.text})

    async def close(self, code: int, reason: str) -> None:
        """Send a close frame, unless the peer has closed already."""
        if self._websocket.client_state is WebSocketState.DISCONNECTED:
            return
        if self._websocket.application_state is WebSocketState.CONNECTED:
            await self._websocket.close(code, reason)


def is_loopback(host: str) -> bool:
    """Whether *host* names this machine."""
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def is_address(host: str) -> bool:
    """Whether *host* is this machine's own name or an IP address, which no one else can point elsewhere."""
    if is_loopback(host):
        return True
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def origin_allowed(
    origin: str | None, *, host: str | None, scheme: str, allowed: Collection[str], is_development: bool
) -> bool:
    """Whether a browser page of *origin* may connect.

    Args:
        origin: The Origin header; None where there is none (not a browser), which is allowed.
        host: The Host header of the request.
        scheme: The scheme of the request.
        allowed: Further origins (``https://example.com``), or ``"*"`` for any.
        is_development: Whether any loopback origin is allowed.
    """
    if origin is None or "*" in allowed or origin in allowed:
        return True
    try:
        theirs = urlsplit(origin)
        ours = urlsplit(f"//{host or ''}")
        their_port = theirs.port or _DEFAULT_PORTS.get(theirs.scheme)
        # Behind a proxy that ends TLS the request's own scheme is http: an origin's default port is then as good.
        our_ports = (
            {ours.port} if ours.port else {_DEFAULT_PORTS.get(scheme), _DEFAULT_PORTS.get(theirs.scheme)}
        )
    except ValueError:
        return False
    if theirs.hostname is None or ours.hostname is None:
        return False
    # In development mode anyone may be anyone: a name that a foreign page has bound to this machine, as in DNS
    # rebinding, must not let it in.
    is_own = not is_development or is_address(ours.hostname)
    if is_own and theirs.hostname == ours.hostname and their_port in our_ports:
        return True
    return is_development and is_loopback(theirs.hostname)


async def _refuse(websocket: WebSocket, hub: Hub, reason: str) -> None:
    """Answer an upgrade with 503 where the server under us can, so that the client comes again later; else with 403."""
    hub.metrics.refused.labels(reason).inc()
    if "websocket.http.response" in websocket.scope.get("extensions", {}):
        await websocket.send_denial_response(Response(status_code=503, headers={"Retry-After": "1"}))
        # uvicorn logs an error for an endpoint that returns before the refused connection is gone: a flood of
        # connections would be one of the log.
        with suppress(TimeoutError):
            async with asyncio.timeout(_GONE_SECONDS):
                for _ in range(_DISCONNECTS):
                    while (await websocket._receive())["type"] != "websocket.disconnect":
                        pass
    else:
        await websocket.close(code=1013)


def _reason_to_refuse(hub: Hub) -> str | None:
    """Return why no connection can be taken now; None if one can."""
    if hub.is_stopping:
        return "stopping"
    if hub.connections.is_full or hub.pacer.arriving >= hub.limits.connections:
        return "connections"
    return None


async def serve_websocket(
    websocket: WebSocket,
    hub: Hub,
    *,
    allowed_origins: Collection[str],
    logger: logging.Logger,
    known_identity: Identity | None = None,
) -> None:
    """Check the origin, accept, and run a session until it ends; see `Session` for *known_identity*."""
    origin = websocket.headers.get("origin")
    if not origin_allowed(
        origin,
        host=websocket.headers.get("host"),
        scheme=websocket.url.scheme,
        allowed=allowed_origins,
        is_development=not hub.hooks.has("authenticate"),
    ):
        hub.metrics.refused.labels("origin").inc()
        logger.warning(
            "a connection from another origin was refused; to allow it: Dialogue(..., allowed_origins=[%r])",
            origin,
        )
        await websocket.close(code=1008)
        return
    if _reason_to_refuse(hub) is None:
        await hub.pacer.wait(is_arrival=True)
    reason = _reason_to_refuse(hub)
    if reason is not None:
        await _refuse(websocket, hub, reason)
        return
    try:
        await websocket.accept()
    except (WebSocketDisconnect, RuntimeError, OSError):
        return  # gone before the upgrade
    hub.context.app = websocket.scope.get("app")
    await Session(hub, AsgiTransport(websocket), websocket, known_identity=known_identity).run()
