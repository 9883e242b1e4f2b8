"""The chat: one room, the newest 100 messages in memory, everything older in the application's own table."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, Field

from dialogue import Client, Dialogue, Event, History, RoomConfig, define_event

from .db import insert_messages, load_messages


class Message(BaseModel):
    """What a message holds."""

    text: str = Field(min_length=1, max_length=2000)
    username: str


message = define_event("message", schema=Message, history=History(limit=100))
typing = define_event("typing")  # no history: told to the others and forgotten

dialogue = Dialogue(
    rooms={"general": RoomConfig(name="General Chat", events=[message, typing], sync_history_on_join=50)},
)


@dialogue.on_connected
async def welcome(client: Client) -> None:
    """Everyone who connects is in the room."""
    await client.join("general")


@dialogue.on_cleanup
def persist(room_id: str, event_name: str, events: list[Event[Any]]) -> None:
    """Keep what leaves memory. Raising is allowed: the same events come again, and stay readable until then."""
    print(f"Persisting {len(events)} {event_name} events from {room_id}")
    insert_messages(room_id, event_name, events)


@dialogue.on_load
def load(room_id: str, event_name: str, start: int, end: int) -> list[dict[str, Any]]:
    """Page back through what was kept, newest first."""
    print(f"Loading {event_name} events {start}-{end} from {room_id}")
    return load_messages(room_id, event_name, start, end)
