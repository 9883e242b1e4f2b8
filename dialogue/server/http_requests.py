"""What every request begins with: who asks, what it counts for, and whether it may."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

from starlette.requests import Request

from ..errors import StoreUnavailable
from .access import Permission, Purpose
from .handles import RoomHandle
from .http_answers import read_body
from .http_identity import RequestClient, identify
from .rates import RatesOfUser, spend

if TYPE_CHECKING:
    from ..app import Dialogue
    from .hub import Hub

ENDS = "dialogue.ends"
"""Where in a request's scope is kept what is to be called when its answer is sent."""


class Requests:
    """The beginning of a request; what answers requests is built on it."""

    def __init__(self, dialogue: Dialogue) -> None:
        self._dialogue = dialogue

    async def begin(self, request: Request) -> tuple[Hub, RequestClient]:
        """Return the running part and who asks."""
        if self._dialogue.has_stopped:
            raise StoreUnavailable("the server is stopping", retry_after_seconds=1)
        # Raises with the remedy where a mount keeps the lifespan from running, as the socket does.
        hub = self._dialogue.hub()
        if hub.is_stopping:
            raise StoreUnavailable("the server is stopping", retry_after_seconds=1)
        hub.context.app = request.scope.get("app")
        ends: ExitStack = request.scope[ENDS]
        ends.callback(hub.in_flight.begin())
        client = await identify(hub, request)
        ends.callback(hub.in_flight.begin_of(client.user_id))
        return hub, client

    @staticmethod
    async def body(hub: Hub, request: Request) -> bytes:
        """Return the body of a request, within its bounds."""
        return await read_body(request, most_bytes=hub.limits.frame_bytes, seconds=hub.limits.connect_seconds)

    @staticmethod
    def spend(hub: Hub, client: RequestClient, bucket: Callable[[RatesOfUser], Any]) -> None:
        """Take a token of the user's."""
        spend(asyncio.get_running_loop().time(), bucket(hub.user_rates.of(client.user_id)))

    @staticmethod
    async def check(
        hub: Hub, client: RequestClient, handle: RoomHandle, permission: Permission, *, purpose: Purpose
    ) -> None:
        """Check that the user may, and has not been taken out of the room meanwhile."""
        await hub.access.check(client, handle, purpose=purpose)
        permission.check()


@contextmanager
def watching(hub: Hub, client: RequestClient, room_id: str) -> Iterator[tuple[RoomHandle, Permission]]:
    """Yield a room, and a permission that ends when the user is taken out of it.

    Raises:
        RoomNotFound: There is no such room.
    """
    handle = RoomHandle(hub, room_id)
    with hub.access.watch(client.user_id, room_id) as permission:
        yield handle, permission
