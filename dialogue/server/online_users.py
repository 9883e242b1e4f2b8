"""What the inbox keeps of users who are online, and of the rooms in their inboxes."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from ..storage.directory import Marker, Place

if TYPE_CHECKING:
    from .session import Session


class Arrival:
    """What happens of a user until the markers of before are known; those may have been read before it or after.

    Attributes:
        joined: The rooms that were joined, with their ends then.
        marked: The rooms that were marked, with where their markers stand since.
        removed: The rooms that the user was removed from.
        loading: Reads the markers; None for a user who has none, or whose read has failed for good.
        attempt: Done when they are known, failed when a read fails that is done again.
    """

    __slots__ = ("attempt", "joined", "loading", "marked", "removed")

    def __init__(self) -> None:
        self.joined: dict[str, Place] = {}
        self.marked: dict[str, Marker] = {}
        self.removed: set[str] = set()
        self.loading: asyncio.Task[None] | None = None
        self.attempt: asyncio.Future[None] = asyncio.get_running_loop().create_future()


class OnlineUser:
    """The inbox of a user with open connections.

    Attributes:
        sessions: The connections, with what they may read of rooms that they are not in: by room, whether, and until
            when that is remembered, in seconds of the loop's clock.
        places: Where the user's markers stand, by room; complete without an *arrival*.
        arrival: What is kept until the markers are known; None from then on.
    """

    __slots__ = ("arrival", "places", "sessions", "user_id")

    def __init__(self, user_id: str) -> None:
        self.user_id = user_id
        self.sessions: dict[Session, dict[str, tuple[bool, float]]] = {}
        self.places: dict[str, Place] = {}
        self.arrival: Arrival | None = Arrival()

    @property
    def is_loaded(self) -> bool:
        """Whether the markers are known."""
        return self.arrival is None


class WatchedRoom:
    """A room in the inbox of somebody who is online.

    Attributes:
        end: The room's number of counting events.
        users: Whose inbox it is in.
    """

    __slots__ = ("end", "users")

    def __init__(self, end: int) -> None:
        self.end = end
        self.users: dict[OnlineUser, None] = {}
