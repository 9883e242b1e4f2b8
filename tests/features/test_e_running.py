"""Group E: limits, origins, logging and a graceful stop. `tests/test_limits.py` shows each limit by itself."""

from __future__ import annotations

import asyncio
import itertools
import logging
import signal
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import httpx2
import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

from dialogue import (
    Dialogue,
    Event,
    History,
    Identity,
    Limits,
    MemoryStore,
    RoomConfig,
    Unauthenticated,
    define_event,
)
from dialogue.testing import FaultyStore
from tests.processes import Command
from tests.rates import no_refill
from tests.server.harness import Refused, Wire, eventually, serve, wire

message = define_event("message", history=History(limit=5))
ROOMS = {"general": RoomConfig(events=[message]), "team:{id}": RoomConfig(events=[message])}


async def test_e5_too_fast_is_refused_and_says_when_to_come_again() -> None:
    """E5: triggers, joins and reads are counted by connection and by user; others do not feel it."""
    limits = Limits(
        triggers_burst=3,
        triggers_per_second=1,
        joins_burst=2,
        joins_per_second=1,
        reads_burst=2,
        reads_per_second=1,
        user_triggers_burst=5,
        user_triggers_per_second=1,
    )
    async with (
        serve(Dialogue(rooms=ROOMS, limits=limits)) as address,
        wire(address) as alice,
        wire(address) as tablet,
        wire(address, "bob") as bob,
    ):
        with no_refill():
            for client in (alice, tablet, bob):
                await client.ask("join", room="general")
            await alice.ask("join", room="team:1")
            assert await retry_after(alice, "join", room="team:2") <= 1
            for number in range(3):
                await alice.trigger("general", "message", number)
            assert 0 < await retry_after(alice, "trigger", room="general", event="message", data=3) <= 1
            # A second connection of the same user shares the user's bucket.
            for number in range(2):
                await tablet.trigger("general", "message", number)
            assert 0 < await retry_after(tablet, "trigger", room="general", event="message", data=3) <= 1
            for _ in range(2):
                await alice.ask("history", room="general")
            assert 0 < await retry_after(alice, "history", room="general") <= 1
        assert (await bob.trigger("general", "message", "not slowed down"))["seq"] == 6
        # What was refused can be sent after that time.
        await eventually_accepted(alice, "general", "later")


async def retry_after(client: Wire, type: str, **fields: Any) -> float:
    """Return for how long a refused command tells to wait."""
    with pytest.raises(Refused) as raised:
        await client.ask(type, **fields)
    assert raised.value.code == "RATE_LIMITED"
    return float(raised.value.message["retry_after_seconds"])


async def eventually_accepted(client: Wire, room: str, data: Any) -> None:
    """Send until it is accepted, waiting as long as each refusal tells."""
    while True:
        try:
            await client.trigger(room, "message", data)
            return
        except Refused as error:
            await asyncio.sleep(error.message["retry_after_seconds"])


async def test_e5_whoever_does_not_stop_is_closed() -> None:
    """E5: a client that goes on in spite of the refusals is closed with 4009."""
    limits = Limits(triggers_burst=1, triggers_per_second=1, errors_per_minute=5)
    async with serve(Dialogue(rooms=ROOMS, limits=limits)) as address, wire(address) as alice:
        await alice.ask("join", room="general")
        for _ in range(20):
            await alice.send("trigger", room="general", event="message", data=1)
        assert await alice.until_closed() == 4009


async def test_e5_connections_of_a_user_and_in_all() -> None:
    """E5: one too many of a user is closed, one too many in all is refused before the upgrade, and counted."""
    dialogue = Dialogue(rooms=ROOMS, limits=Limits(connections=3, connections_per_user=2))
    async with serve(dialogue) as address, wire(address), wire(address):
        async with wire(address, None) as third:
            with pytest.raises(Refused, match="RATE_LIMITED"):
                await third.ask("connect", auth={"user_id": "alice"})
            assert await third.until_closed() == 4009
        await eventually(lambda: len(dialogue.hub().connections.sessions) == 2)
        async with wire(address, "bob") as bob:
            with pytest.raises(InvalidStatus) as raised:
                await connect(f"ws://{address}/ws")
            assert raised.value.response.status_code == 503
            assert raised.value.response.headers["Retry-After"]
            await bob.ask("join", room="general")
        assert b'dialogue_connections_refused_total{reason="connections"} 1.0' in dialogue.metrics.render()


async def test_e5_those_who_never_speak_keep_nobody_out() -> None:
    """E5: of connections that have not said who they are, the oldest makes room for the next."""
    dialogue = Dialogue(rooms=ROOMS, limits=Limits(connecting=20))
    async with serve(dialogue) as address:
        silent = [await connect(f"ws://{address}/ws") for _ in range(30)]
        async with wire(address) as alice:
            await alice.ask("join", room="general")
            await eventually(lambda: len(dialogue.hub().connections.sessions) <= 21)
            await alice.trigger("general", "message", "nobody is in the way")
        await asyncio.gather(*(socket.close() for socket in silent))


async def test_e6_origins_and_a_logger_of_ones_own() -> None:
    """E6: a foreign page is refused, a declared one is not; everything is logged to the logger that was given."""
    records: list[logging.LogRecord] = []
    logger = logging.getLogger("an.application.of.mine")
    handler = logging.Handler()
    handler.emit = records.append  # type: ignore[assignment, method-assign]
    logger.addHandler(handler)
    dialogue = Dialogue(rooms=ROOMS, allowed_origins=["https://app.example"], logger=logger)

    @dialogue.authenticate
    async def authenticate(auth: dict[str, Any]) -> Identity:
        if auth.get("token") != "a-token":
            raise Unauthenticated
        return Identity("alice")

    @dialogue.on_joined
    def broken() -> None:
        raise ValueError("a bug")

    try:
        async with serve(dialogue) as address:
            with pytest.raises(InvalidStatus) as raised:
                await connect(f"ws://{address}/ws", origin="https://evil.example")  # type: ignore[arg-type]
            assert raised.value.response.status_code == 403
            async with wire(address, None, origin="https://app.example") as alice:
                await alice.ask("connect", auth={"token": "a-token"})
                await alice.ask("join", room="general")
                await eventually(lambda: any("on_joined" in record.getMessage() for record in records))
    finally:
        logger.removeHandler(handler)
    texts = [record.getMessage() for record in records]
    assert any("https://evil.example" in text and "allowed_origins" in text for text in texts)
    assert not any("a-token" in text for text in texts)


async def test_e6_identities_end() -> None:
    """E6: when what was proved expires the connection ends with 4001; a second ``connect`` in time keeps it."""
    loop = asyncio.get_running_loop()
    import time

    dialogue = Dialogue(rooms=ROOMS)

    @dialogue.authenticate
    async def authenticate(auth: dict[str, Any]) -> Identity:
        return Identity(auth["name"], expires_at=time.time() + auth["seconds"])

    async with serve(dialogue) as address, wire(address, None) as alice, wire(address, None) as bob:
        started = loop.time()
        await alice.ask("connect", auth={"name": "alice", "seconds": 0.5})
        await bob.ask("connect", auth={"name": "bob", "seconds": 0.5})
        await bob.ask("connect", auth={"name": "bob", "seconds": 3600})
        assert await alice.until_closed() == 4001
        assert loop.time() - started >= 0.4
        assert (await bob.ask("join", room="general"))["type"] == "joined"
        with pytest.raises(Refused, match="PERMISSION_DENIED"):
            await bob.ask("connect", auth={"name": "alice", "seconds": 3600})


async def test_e8_a_stop_acks_flushes_and_closes(tmp_path: Path) -> None:
    """E8: what was accepted is recorded, acked and handed over; sockets end with 1001; clients resume at the next."""
    kept: list[Any] = []
    rooms = {"general": RoomConfig(events=[message])}
    dialogue = Dialogue(rooms=rooms)

    @dialogue.on_cleanup
    async def keep(events: list[Event[Any]]) -> None:
        kept.extend(event.data for event in events)

    await dialogue.start(port=0)
    async with wire(f"127.0.0.1:{dialogue.port}") as alice:
        await alice.ask("join", room="general")
        refs = [
            await alice.send("trigger", room="general", event="message", data=number) for number in range(20)
        ]
        await alice.answer(refs[0])
        await dialogue.stop()
        assert await alice.until_closed() == 1001
        acked = [m for m in alice.messages if m["type"] == "ok" and m.get("seq")]
    assert dialogue.unflushed_events == 0
    assert kept == list(range(len(kept)))
    assert len(kept) >= len(acked)
    assert dialogue.health()["status"] == "stopping"


async def test_e8_readiness_goes_down_and_nothing_new_is_taken() -> None:
    """E8: from the signal on /health is 503, upgrades are refused, new commands too; what was accepted is acked."""
    store = FaultyStore(MemoryStore())
    dialogue = Dialogue(rooms=ROOMS, store=store)
    await dialogue.start(port=0)
    address = f"127.0.0.1:{dialogue.port}"
    async with wire(address) as alice, wire(address, "bob") as bob, httpx2.AsyncClient() as http:
        for client in (alice, bob):
            await client.ask("join", room="general")
        store.hold()
        accepted = await alice.send("trigger", room="general", event="message", data="accepted")
        await eventually(lambda: store.waiting_appends)
        stopping = asyncio.create_task(dialogue.stop())
        await eventually(lambda: dialogue.hub().is_stopping)
        health = await http.get(f"http://{address}/health")
        assert (health.status_code, health.json()["status"]) == (503, "stopping")
        with pytest.raises(InvalidStatus) as raised:
            await connect(f"ws://{address}/ws")
        assert raised.value.response.status_code == 503
        with pytest.raises(Refused, match="STORE_UNAVAILABLE") as refused:
            await bob.trigger("general", "message", "too late")
        assert refused.value.message["retry_after_seconds"] > 0
        store.release()
        assert (await alice.answer(accepted))["seq"] == 1
        assert [await client.until_closed() for client in (alice, bob)] == [1001, 1001]
        assert [event["data"] for event in bob.events()] == ["accepted"]
        await stopping


CHAT = """
import asyncio
from dialogue import Dialogue, History, RoomConfig, define_event

message = define_event("message", history=History(limit=5))
dialogue = Dialogue(rooms={"general": RoomConfig(events=[message])}, store="sqlite:///chat.db")
"""

HANGING = """
@dialogue.after_each
async def hang():
    await asyncio.sleep(600)
"""


async def test_e8_a_signal_under_load_loses_no_ack(tmp_path: Path) -> None:
    """E8: ``dialogue run`` closes all with 1001 and status 0; acked is recorded and recorded is acked; all resume."""
    (tmp_path / "chat.py").write_text(CHAT)
    with Command("run", "chat:dialogue", "--port", "0", folder=tmp_path) as command:
        address = (await asyncio.to_thread(command.address)).removeprefix("http://")
        async with AsyncExitStack() as stack:
            clients = [await stack.enter_async_context(wire(address, f"user-{n}")) for n in range(8)]
            for client in clients:
                await client.ask("join", room="general")
            loads = [asyncio.create_task(load(client)) for client in clients]
            await asyncio.gather(*(client.until_events(30) for client in clients))
            assert await asyncio.to_thread(command.end, signal.SIGTERM) == 0, command.output
            assert {await client.until_closed() for client in clients} == {1001}
            await asyncio.gather(*loads)
            acked = {m["seq"] for client in clients for m in client.messages if m["type"] == "ok"}
            heard = [event["seq"] for event in clients[0].events()]
    assert "Traceback" not in command.output
    with Command("run", "chat:dialogue", "--port", "0", folder=tmp_path) as again:
        address = (await asyncio.to_thread(again.address)).removeprefix("http://")
        async with wire(address, "user-0") as client:
            joined = await client.ask("join", room="general")
            assert acked == set(range(1, joined["seq"] + 1))
            since = {"epoch": joined["epoch"], "seq": heard[-1]}
            await client.ask("leave", room="general")
            resumed = await client.ask("join", room="general", since=since)
            assert resumed["recovered"] is True
            missed = [event["seq"] for event in resumed["events"]]
            assert heard + missed == list(range(1, joined["seq"] + 1))
        assert await asyncio.to_thread(again.end, signal.SIGTERM) == 0


async def load(client: Wire) -> None:
    """Publish without waiting for answers until the connection is closed."""
    for number in itertools.count():
        try:
            await client.send("trigger", room="general", event="message", data=number)
        except ConnectionClosed:
            return
        await asyncio.sleep(0.002)


async def test_e8_a_second_signal_stops_at_once(tmp_path: Path) -> None:
    """E8: whatever still hangs: the process ends with status 130, and what was acked is in the log."""
    limits = "limits=Limits(hook_seconds=600, stop_timeout_seconds=600),\n    store="
    chat = CHAT.replace("History, ", "History, Limits, ").replace("store=", limits)
    (tmp_path / "chat.py").write_text(chat + HANGING)
    with Command("run", "chat:dialogue", "--port", "0", folder=tmp_path) as command:
        address = (await asyncio.to_thread(command.address)).removeprefix("http://")
        async with wire(address) as alice:
            await alice.ask("join", room="general")
            assert (await alice.trigger("general", "message", "acked"))["seq"] == 1
            command.process.send_signal(signal.SIGTERM)
            assert await alice.until_closed() == 1001
        assert await asyncio.to_thread(command.end, signal.SIGTERM) == 130
    (tmp_path / "chat.py").write_text(CHAT)
    with Command("run", "chat:dialogue", "--port", "0", folder=tmp_path) as again:
        address = (await asyncio.to_thread(again.address)).removeprefix("http://")
        async with wire(address) as alice:
            joined = await alice.ask("join", room="general")
            assert [event["data"] for event in joined["events"]] == ["acked"]
