"""Who a request belongs to, and what hooks hold of it."""

from __future__ import annotations

import math
import secrets
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NoReturn

from starlette.requests import Request

from ..errors import NotJoined, Unauthenticated
from .authentication import authenticate
from .handles import Client, Identity

if TYPE_CHECKING:
    from .hub import Hub


class RequestClient(Client):
    """What hooks see of a request: a client that is in no room and cannot be sent anything.

    Attributes:
        client_id: Made by the server for this request.
        state: Anything of the application's, for as long as the request lasts.
    """

    __slots__ = ("_identity",)

    def __init__(self, identity: Identity, client_id: str) -> None:
        # Without a session: what needs one is overridden below.
        self._identity = identity
        self.client_id = client_id
        self.state = {}

    @property
    def identity(self) -> Identity:
        """What `authenticate` returned."""
        return self._identity

    @property
    def user_id(self) -> str:
        """The user; bound to the request's credentials."""
        return self._identity.user_id

    @property
    def claims(self) -> dict[str, Any]:
        """The identity's claims."""
        return self._identity.claims

    @property
    def meta(self) -> dict[str, Any]:
        """The identity's meta."""
        return self._identity.meta

    @property
    def rooms(self) -> list[str]:
        """Empty: a request joins nothing."""
        return []

    def subscriptions(self, room_id: str) -> list[str] | str:
        """Raise `NotJoined`: a request is in no room."""
        raise NotJoined

    def subscribe(self, room_id: str, events: Sequence[str] | str) -> None:
        """Raise `NotJoined`: a request is in no room."""
        raise NotJoined

    def unsubscribe(self, room_id: str, events: Sequence[str] | str) -> None:
        """Raise `NotJoined`: a request is in no room."""
        raise NotJoined

    async def join(self, room_id: str, *, sync: int | None = None) -> None:
        """Raise RuntimeError: there is no connection that could join."""
        self._refuse("join a room")

    async def leave(self, room_id: str, *, reason: str = "removed by the server") -> None:
        """Raise `NotJoined`: a request is in no room."""
        raise NotJoined

    def send(self, event: str, data: Any) -> None:
        """Raise RuntimeError: there is no connection to send over."""
        self._refuse("be sent messages")

    def disconnect(self, *, code: int = 1000, reason: str = "") -> None:
        """Raise RuntimeError: there is no connection to close."""
        self._refuse("be disconnected")

    def _refuse(self, what: str) -> NoReturn:
        raise RuntimeError(
            f"this client is an HTTP request and cannot {what}: dialogue.clients_of(client.user_id) has the "
            "user's connections"
        )

    def check_not_expired(self) -> None:
        """Check that the identity has not ended.

        Raises:
            Unauthenticated: It has.
        """
        if self.seconds_left <= 0:
            raise Unauthenticated("the credentials have expired")

    @property
    def seconds_left(self) -> float:
        """For how long the identity is good; infinite where it does not end."""
        expires_at = self._identity.expires_at
        return math.inf if expires_at is None else expires_at - time.time()

    def __repr__(self) -> str:
        return f"<Request {self.client_id} user={self.user_id!r}>"


def credentials(request: Request, *, is_development: bool) -> dict[str, Any]:
    """Return what stands for a connection's ``auth``.

    That is ``{"token": ...}`` of ``Authorization: Bearer``, else empty; in development mode, where nobody asks for
    credentials, ``{"user_id": ...}`` of the query, else empty.
    """
    if is_development:
        user_id = request.query_params.get("user_id")
        return {} if user_id is None else {"user_id": user_id}
    scheme, _, token = request.headers.get("authorization", "").partition(" ")
    token = token.strip()
    return {"token": token} if scheme.lower() == "bearer" and token else {}


async def identify(hub: Hub, request: Request) -> RequestClient:
    """Return who *request* belongs to, as hooks see it.

    Raises:
        CommandError: See `authenticate`.
    """
    client_id = secrets.token_hex(8)
    auth = credentials(request, is_development=not hub.hooks.has("authenticate"))
    identity = await authenticate(hub, request, auth, anonymous=Identity(client_id))
    return RequestClient(identity, client_id)
