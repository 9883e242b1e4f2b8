"""The Python client.

::

    from dialogue.client import DialogueClient

    async with DialogueClient("http://127.0.0.1:3000", auth={"user_id": "ann"}) as client:
        room = await client.join("general")
        async for event in room.scroll("message"):
            ...
"""

from dialogue.errors import ConnectionLost
from dialogue.events import Ack

from .client import Auth, DialogueClient
from .effects import State, Timing
from .pages import Gap, Page, Presence, PresenceChange, RoomInfo
from .room import Room
from .stream import Stream
from .timeline import Timeline
from .typing import Typing

__all__ = [
    "Ack",
    "Auth",
    "ConnectionLost",
    "DialogueClient",
    "Gap",
    "Page",
    "Presence",
    "PresenceChange",
    "Room",
    "RoomInfo",
    "State",
    "Stream",
    "Timeline",
    "Timing",
    "Typing",
]
