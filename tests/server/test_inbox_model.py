"""Unread counts against a naive model, with everything that can happen to a room and a user in between."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AsyncExitStack
from random import Random

import pytest

from dialogue import Dialogue, Limits, RoomNotFound, Store

from .harness import Wire, serve, wire
from .test_unread import chat, make_store, message, reaction, unread

__all__ = ["make_store"]

ROOMS = ("general", "other", "topic:x")
USERS = ("alice", "bob")
STEPS = 60

QUICK = Limits.unlimited().model_copy(update={"unread_seconds": 0.01, "idle_seconds": 0.01})


class Model:
    """What is in each room, by seq, and how far each member has read it."""

    def __init__(self) -> None:
        self.counting: dict[str, list[bool]] = {room_id: [] for room_id in ROOMS}
        self.removed: dict[str, int] = dict.fromkeys(ROOMS, 0)
        self.read: dict[tuple[str, str], int] = {}

    def counts(self, user_id: str) -> dict[str, int]:
        """Return a user's unread counts."""
        return {
            room_id: sum(self.counting[room_id][seq:])
            for (member, room_id), seq in sorted(self.read.items())
            if member == user_id
        }


class Play:
    """Does the same to a server and to the model."""

    def __init__(self, dialogue: Dialogue, model: Model, random: Random, address: str) -> None:
        self.dialogue, self.model, self.random, self.address = dialogue, model, random, address
        self.clients: dict[str, tuple[AsyncExitStack, Wire]] = {}

    async def step(self) -> None:
        """Do one thing."""
        acts = [
            self.connect, self.disconnect, self.join, self.add, self.publish, self.publish, self.publish,
            self.change, self.mark, self.mark, self.mark_for, self.remove, self.delete_room, self.erase,
        ]  # fmt: skip
        weights = [3, 2, 4, 1, 4, 4, 4, 3, 4, 4, 2, 1, 0.5, 0.3]
        (act,) = self.random.choices(acts, weights)
        await act(self.random.choice(USERS), self.random.choice(ROOMS))

    async def connect(self, user_id: str, room_id: str) -> None:
        """Come online."""
        if user_id not in self.clients:
            stack = AsyncExitStack()
            self.clients[user_id] = stack, await stack.enter_async_context(wire(self.address, user_id))

    async def disconnect(self, user_id: str, room_id: str) -> None:
        """Go."""
        if user_id in self.clients:
            stack, _ = self.clients.pop(user_id)
            await stack.aclose()

    async def join(self, user_id: str, room_id: str) -> None:
        """Join a room."""
        if user_id in self.clients:
            await self.clients[user_id][1].ask("join", room=room_id)
            self.model.read.setdefault((user_id, room_id), len(self.model.counting[room_id]))

    async def add(self, user_id: str, room_id: str) -> None:
        """Be added by the application."""
        await self.dialogue.add_member(room_id, user_id)
        self.model.read.setdefault((user_id, room_id), len(self.model.counting[room_id]))

    async def publish(self, user_id: str, room_id: str) -> None:
        """Publish something that counts, or does not."""
        counts = self.random.random() < 0.7
        ack = await self.dialogue.trigger(room_id, message if counts else reaction, 1, sender=user_id)
        self.model.counting[room_id].append(counts)
        assert ack.seq == len(self.model.counting[room_id])

    async def change(self, user_id: str, room_id: str) -> None:
        """Edit or delete one of the newest events: neither counts, and what is deleted does as before."""
        found = await self.dialogue.room(room_id).history(message, 0, 5)
        events = [event for event in found if not event.is_deleted]
        if events:
            event = self.random.choice(events)
            assert event.seq is not None
            if self.random.random() < 0.5:
                await self.dialogue.edit(room_id, event.seq, 2)
            else:
                await self.dialogue.delete(room_id, event.seq)
            self.model.counting[room_id].append(False)

    def _seq(self, room_id: str) -> int:
        """Return a seq, of which the log still knows what counted."""
        last = len(self.model.counting[room_id])
        least = self.model.removed[room_id]
        if not self.dialogue.store.is_durable:
            least = last
        return self.random.randint(min(least, last), last + 2)

    def _marked(self, user_id: str, room_id: str, seq: int) -> int:
        last = len(self.model.counting[room_id])
        self.model.read[user_id, room_id] = max(self.model.read[user_id, room_id], min(seq, last))
        return self.model.counts(user_id)[room_id]

    async def mark(self, user_id: str, room_id: str) -> None:
        """Mark a room as read from a connection."""
        if user_id in self.clients and (user_id, room_id) in self.model.read:
            seq = self._seq(room_id)
            answer = await self.clients[user_id][1].ask("mark_read", room=room_id, seq=seq)
            assert answer["unread"] == self._marked(user_id, room_id, seq)

    async def mark_for(self, user_id: str, room_id: str) -> None:
        """Be marked by the application."""
        if (user_id, room_id) in self.model.read:
            seq = self._seq(room_id)
            assert await self.dialogue.mark_read(user_id, room_id, seq) == self._marked(user_id, room_id, seq)

    async def remove(self, user_id: str, room_id: str) -> None:
        """Be removed from a room."""
        await self.dialogue.remove_from_room(user_id, room_id)
        self.model.read.pop((user_id, room_id), None)

    async def delete_room(self, user_id: str, room_id: str) -> None:
        """Delete the room that can be; the next of its name goes on with the next seq."""
        try:
            await self.dialogue.delete_room("topic:x")
        except RoomNotFound:
            return
        self.model.removed["topic:x"] = len(self.model.counting["topic:x"])
        for user in USERS:
            self.model.read.pop((user, "topic:x"), None)

    async def erase(self, user_id: str, room_id: str) -> None:
        """Erase a user: events keep their places, and each that is emptied is followed by one that does not count."""
        await self.dialogue.erase_user(user_id)
        # A connection that stays is in its rooms still, and by that no member of them.
        await self.disconnect(user_id, room_id)
        for room in ROOMS:
            self.model.read.pop((user_id, room), None)
            head = await self.dialogue.store.head(room)
            counting = self.model.counting[room]
            counting += [False] * (head.last_seq - len(counting))

    async def check(self) -> None:
        """Everyone is told what the model says."""
        for user_id in USERS:
            expected = self.model.counts(user_id)
            assert await self.dialogue.unread(user_id) == expected
            if user_id in self.clients:
                assert await unread(self.clients[user_id][1]) == expected

    async def aclose(self) -> None:
        """Let everyone go."""
        for stack, _ in self.clients.values():
            await stack.aclose()


@pytest.mark.parametrize("seed", range(3))
async def test_counts_are_those_of_the_model_whatever_happens(
    make_store: Callable[[], Store],
    seed: int,
) -> None:
    """Users come and go, rooms sleep and are deleted, events are changed and erased, the server restarts."""
    random, model = Random(seed), Model()
    store = make_store()
    for _ in range(3 if store.is_durable else 1):
        dialogue = chat(store, limits=QUICK)
        async with serve(dialogue) as address:
            play = Play(dialogue, model, random, address)
            try:
                for _ in range(STEPS):
                    await play.step()
                    await play.check()
            finally:
                await play.aclose()
        store = make_store()
