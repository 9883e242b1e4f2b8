"""What clients write is never part of a statement to the database."""

from __future__ import annotations

from pathlib import Path

import pytest

from dialogue import Dialogue, RoomConfig, SQLStore

from ..storage.databases import KINDS, empty
from .harness import serve, wire

EVIL = "'); DROP TABLE dialogue_events; -- \" ` :name %(name)s ? $1"
"""Ends a statement, and has the placeholders of every driver."""

PART = EVIL.replace(":", "")
"""The same, as far as a parameter of a pattern takes it."""


@pytest.mark.parametrize("kind", KINDS)
async def test_names_and_data_are_kept_as_they_are(kind: str, tmp_path: Path) -> None:
    """A room, an event, a user, a key, data and meta that end a statement are names and data, also after a restart."""
    room_id, user_id = f"team:{PART}", EVIL
    with empty(kind, tmp_path) as url:
        dialogue = Dialogue(
            rooms={"team:{name}": RoomConfig(events="*")},
            client_rooms=RoomConfig(events="*"),
            store=SQLStore(url, auto_migrate=True),
        )
        event = {"room": room_id, "event": EVIL, "data": {EVIL: EVIL}, "meta": {EVIL: EVIL}, "key": EVIL}
        async with serve(dialogue) as address, wire(address, user_id) as client:
            await client.ask("join", room=room_id)
            assert (await client.ask("trigger", **event))["seq"] == 1
            assert (await client.ask("trigger", **event))["duplicate"]
            await client.ask("create_room", room=EVIL, name=EVIL, description=EVIL)
            await client.ask("join", room=EVIL)
            await client.ask("edit", room=room_id, seq=1, data=[EVIL])
        async with serve(dialogue) as address, wire(address, user_id) as client:
            made = {room["id"]: room for room in (await client.ask("rooms"))["rooms"]}[EVIL]
            assert (made["name"], made["description"], made["created_by_id"]) == (EVIL, EVIL, user_id)
            joined = await client.ask("join", room=room_id)
            (told,) = [found for found in joined["events"] if found["event"] == EVIL]
            assert (told["from"], told["data"], told["meta"]) == (user_id, [EVIL], {EVIL: EVIL})
            assert await dialogue.erase_user(user_id) == 2
            await client.ask("delete_room", room=EVIL)
