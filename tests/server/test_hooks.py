"""Hooks: what they may do, what their failures do, and that they are bounded in time."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from typing import Any

import pytest

from dialogue import (
    Archive,
    Blocked,
    Client,
    ConfigError,
    Context,
    Dialogue,
    Event,
    Hooks,
    Identity,
    Limits,
    RoomHandle,
)

from .harness import Refused, eventually, message, note, rooms, serve, wire


async def test_before_each_blocks_and_transforms() -> None:
    """It sees sender and data, may change data and meta, and its reason is told."""
    dialogue = Dialogue(rooms())

    @dialogue.before_each(message)
    def moderate(event: Event[Any], room: RoomHandle) -> Event[Any] | None:
        if event.data == "rude":
            raise Blocked("be kind")
        if event.data == "shout":
            return event.replace(data="whisper", meta={"room": room.room_id, "by": event.sender})
        return None

    async with serve(dialogue) as address, wire(address) as client:
        await client.ask("join", room="general")
        with pytest.raises(Refused) as refused:
            await client.trigger("general", "message", "rude")
        assert (refused.value.code, refused.value.message["message"]) == ("BLOCKED", "be kind")
        await client.trigger("general", "message", "shout")
        await client.trigger("general", "note", "rude")
        first, second = await client.until_events(2)
        assert (first["data"], first["meta"]) == ("whisper", {"room": "general", "by": "alice"})
        assert second["data"] == "rude", "the hook is narrowed to messages"


async def test_a_connections_order_is_kept_although_a_hook_awaits() -> None:
    """Commands of one connection take effect in the order sent, however long the hook takes for each."""
    dialogue = Dialogue(rooms())

    @dialogue.before_each
    async def dawdle(event: Event[Any]) -> None:
        await asyncio.sleep(0.003 if event.data % 3 == 0 else 0)

    async with serve(dialogue) as address, wire(address) as client:
        await client.ask("join", room="general")
        for n in range(30):
            await client.send("trigger", room="general", event="message", data=n)
        assert [e["data"] for e in await client.until_events(30)] == list(range(30))


async def test_failing_and_slow_hooks_are_internal_errors(caplog: pytest.LogCaptureFixture) -> None:
    """The client is told nothing but INTERNAL; the log has the rest; the connection goes on."""
    dialogue = Dialogue(rooms(), limits=Limits(hook_seconds=0.05))

    @dialogue.before_each(message)
    async def broken(event: Event[Any]) -> Any:
        if event.data == "raise":
            raise RuntimeError("secret detail")
        if event.data == "hang":
            await asyncio.Event().wait()
        if event.data == "odd":
            return {"not": "an event"}
        return None

    async with serve(dialogue) as address, wire(address) as client:
        await client.ask("join", room="general")
        for data in ("raise", "hang", "odd"):
            with pytest.raises(Refused) as refused:
                await client.trigger("general", "message", data)
            assert refused.value.code == "INTERNAL"
            assert "secret" not in str(refused.value.message)
        assert (await client.trigger("general", "message", "fine"))["seq"] == 1
    assert "secret detail" in caplog.text


async def test_removed_while_a_hook_is_asked() -> None:
    """A publish whose membership ended while it was admitted is not recorded."""
    dialogue = Dialogue(rooms())
    asked, go_on = asyncio.Event(), asyncio.Event()

    @dialogue.before_each
    async def wait(event: Event[Any]) -> None:
        asked.set()
        await go_on.wait()

    async with serve(dialogue) as address, wire(address) as client:
        await client.ask("join", room="general")
        ref = await client.send("trigger", room="general", event="message", data=1)
        await asked.wait()
        (member,) = dialogue.room("general").participants()
        await member.leave("general")
        go_on.set()
        with pytest.raises(Refused, match="NOT_JOINED"):
            await client.answer(ref)
        assert await dialogue.room("general").history(message) == []


@pytest.mark.parametrize("answer", [None, "alice", Identity(""), Identity("x" * 200), Identity("a\nb")])
async def test_what_authenticate_may_not_return(answer: Any) -> None:
    """An answer that is no identity lets nobody in, and is the application's bug, not the client's."""
    dialogue = Dialogue(rooms(), hooks=Hooks(authenticate=lambda: answer))
    async with serve(dialogue) as address, wire(address, None) as client:
        with pytest.raises(Refused, match="INTERNAL"):
            await client.ask("connect")
        with pytest.raises(Refused, match="UNAUTHENTICATED"):
            await client.ask("join", room="general")


async def test_def_hooks_run_in_a_thread() -> None:
    """A blocking authenticate does not block the loop."""

    def slow(auth: dict[str, Any]) -> Identity:
        time.sleep(0.3)
        return Identity(auth["name"])

    dialogue = Dialogue(rooms(), hooks=Hooks(authenticate=slow))
    async with serve(dialogue) as address:
        ticks = 0

        async def tick() -> None:
            nonlocal ticks
            while True:
                await asyncio.sleep(0.01)
                ticks += 1

        ticking = asyncio.create_task(tick())
        async with wire(address, None) as client:
            assert (await client.ask("connect", auth={"name": "ann"}))["user_id"] == "ann"
        ticking.cancel()
        assert ticks > 5


async def test_credentials_are_refreshed_by_a_second_connect() -> None:
    """The same user's claims are renewed; another user is refused."""
    dialogue = Dialogue(rooms())

    @dialogue.authenticate
    def check(auth: dict[str, Any]) -> Identity:
        return Identity(auth["name"], claims={"level": auth["level"]})

    async with serve(dialogue) as address, wire(address, None) as client:
        await client.ask("connect", auth={"name": "ann", "level": 1})
        await client.ask("connect", auth={"name": "ann", "level": 2})
        (connected,) = dialogue.clients()
        assert connected.claims == {"level": 2}
        with pytest.raises(Refused, match="PERMISSION_DENIED"):
            await client.ask("connect", auth={"name": "bob", "level": 3})
        assert connected.claims == {"level": 2}


async def test_the_context_knows_the_whole() -> None:
    """Hooks that ask for `context` get the Dialogue, its clients, its rooms and the application."""
    dialogue = Dialogue(rooms())
    seen: dict[str, Any] = {}

    @dialogue.before_join
    async def look(context: Context, client: Client) -> None:
        seen.update(
            dialogue=context.dialogue,
            clients=[c.user_id for c in context.clients],
            rooms=[r.room_id for r in context.rooms],
            state=context.app.state.greeting,
        )
        client.state["seen"] = True

    dialogue.app.state.greeting = "hi"
    async with serve(dialogue) as address, wire(address) as client:
        await client.ask("join", room="general")
        assert seen == {"dialogue": dialogue, "clients": ["alice"], "rooms": [], "state": "hi"}
        assert dialogue.clients()[0].state == {"seen": True}


async def test_after_each_that_falls_behind_is_skipped_and_counted() -> None:
    """A slow after_each never slows publishers: at most once, from a bounded queue."""
    dialogue = Dialogue(rooms(), limits=Limits(hook_queue_events=3))
    gate = asyncio.Event()
    seen: list[Any] = []

    @dialogue.after_each
    async def slow(event: Event[Any]) -> None:
        await gate.wait()
        seen.append(event.data)

    async with dialogue.lifespan():
        await dialogue.trigger("general", message, 0)
        await eventually(lambda: not dialogue.hub().notifier._queue)
        for n in range(1, 10):
            await dialogue.trigger("general", message, n)
        gate.set()
        await eventually(lambda: len(seen) == 4)
    assert seen == [0, 1, 2, 3]
    assert dialogue.metrics.registry.get_sample_value("dialogue_after_each_skipped_total") == 6


class ListArchive(Archive):
    """An archive as a class, instead of hooks."""

    def __init__(self) -> None:
        self.events: list[Event[Any]] = []

    async def cleanup(self, room_id: str, event_name: str, events: list[Event[Any]]) -> None:
        self.events.extend(events)

    async def load(self, room_id: str, event_name: str, start: int, end: int) -> Sequence[Event[Any]]:
        return [e for e in self.events[::-1] if (e.room_id, e.event) == (room_id, event_name)][start:end]


async def test_an_archive_as_a_class() -> None:
    """`archive=` takes the place of the hooks; Events that come back keep seq and id."""
    archive = ListArchive()
    dialogue = Dialogue(rooms(), archive=archive)
    async with serve(dialogue) as address, wire(address) as client:
        await client.ask("join", room="general")
        for n in range(20):
            await client.trigger("general", "message", n, meta={"n": n}, key=f"k{n}")
            await client.trigger("general", "note", n)
        await eventually(lambda: len(archive.events) == 30)
        shown = await client.scroll("general", limit=7)
        assert [e["seq"] for e in shown] == list(range(1, 41))
        assert shown[0]["meta"] == {"n": 0}
        assert shown[0]["key"] == "k0", "the publisher's own key comes back to it"
        assert all(isinstance(e["id"], int) for e in shown)
    both = Dialogue(rooms(), archive=ListArchive(), hooks=Hooks(on_cleanup=lambda events: None))
    with pytest.raises(ConfigError, match="one or the other"):
        async with both.lifespan():
            pass


@pytest.mark.parametrize(
    "row",
    [
        5,
        {"data": 1, "timestamp": 1},
        {"data": 1, "from": "a"},
        {"data": 1, "from": "a", "timestamp": "yesterday"},
        {"data": 1, "from": "a", "timestamp": 1, "kind": "alarm"},
        {"data": object(), "from": "a", "timestamp": 1},
    ],
)
async def test_rows_that_are_no_events_make_the_tier_unavailable(
    row: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """A hook's mistake is named to readers as a gap, and explained in the log."""
    hooks = Hooks(on_cleanup=lambda events: None, on_load=lambda: [row])
    dialogue = Dialogue(rooms(), hooks=hooks)
    async with serve(dialogue) as address, wire(address) as client:
        await client.ask("join", room="general")
        for n in range(8):
            await client.trigger("general", note.name, n)
        await eventually(lambda: dialogue.hub().handover.pending_events == 0)  # type: ignore[union-attr]
        page = await client.ask("history", room="general", event="note")
        assert [e["data"] for e in page["events"]] == [3, 4, 5, 6, 7]
        assert page["gap"]["reason"] == "tier_unavailable"
    assert "on_load failed" in caplog.text
