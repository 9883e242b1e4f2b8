"""Steps that many ask for at once are spread over turns of the loop."""

from __future__ import annotations

import asyncio

import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import InvalidHandshake

from dialogue import Dialogue, Limits
from dialogue.server.pacing import Pacer

from .harness import eventually, rooms, serve, wire


async def turns_of(pacer: Pacer, count: int) -> list[int]:
    """Let *count* ask at once; return in which turn each went on, counted from 0."""
    turn = 0
    found: list[int] = []

    async def step() -> None:
        await pacer.wait()
        found.append(turn)

    tasks = [asyncio.create_task(step()) for _ in range(count)]
    while not all(task.done() for task in tasks):
        await asyncio.sleep(0)
        turn += 1
    return found


async def test_few_do_not_wait() -> None:
    """As many as a turn has go on at once, without a turn of the loop, and again in the next one."""
    pacer = Pacer(per_turn=3)
    for _ in range(4):
        for _ in range(3):
            with pytest.raises(StopIteration):
                pacer.wait().send(None)
        await asyncio.sleep(0)


async def test_many_go_on_a_few_a_turn_in_the_order_of_asking() -> None:
    """No turn has more than its share; nobody is left."""
    found = await turns_of(Pacer(per_turn=3), 20)
    assert len(found) == 20
    assert found == sorted(found)
    assert max(map(found.count, found)) == 3


async def test_who_has_gone_takes_nobodys_place() -> None:
    """A step that is cancelled while it waits is passed over, and the next one goes on in its place."""
    pacer = Pacer(per_turn=1)
    order: list[int] = []

    async def step(number: int) -> None:
        await pacer.wait()
        order.append(number)

    tasks = [asyncio.create_task(step(number)) for number in range(6)]
    await asyncio.sleep(0)
    for number in (1, 2, 4):
        tasks[number].cancel()
    await asyncio.wait(tasks)
    assert order == [0, 3, 5]


async def test_arrivals_yield_to_what_has_begun() -> None:
    """One a turn goes on, whatever else waits; the rest when nothing else does."""
    pacer = Pacer(per_turn=4)
    order: list[str] = []

    async def step(name: str, *, is_arrival: bool) -> None:
        await pacer.wait(is_arrival=is_arrival)
        order.append(name)

    tasks = [asyncio.create_task(step("arrival", is_arrival=True)) for _ in range(12)]
    await asyncio.sleep(0)
    assert pacer.arriving == 8
    tasks += [asyncio.create_task(step("begun", is_arrival=False)) for _ in range(12)]
    await asyncio.wait(tasks)
    assert order == ["arrival"] * 8 + ["begun", "begun", "begun", "arrival"] * 4
    assert not pacer.arriving


async def test_others_are_served_between() -> None:
    """While a thousand wait, whoever asks nothing has every turn of the loop."""
    pacer = Pacer(per_turn=2)
    waiting = [asyncio.create_task(pacer.wait()) for _ in range(1000)]
    served = 0
    while not all(task.done() for task in waiting):
        await asyncio.sleep(0)
        served += 1
    assert served >= 500


async def test_a_stop_waits_for_nobodys_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who stands at the door, and who has gone and waits to be cleared away, are ended by a stop, and nothing stays."""
    dialogue = Dialogue(rooms(), limits=Limits(stop_timeout_seconds=2))
    await dialogue.start(port=0)
    hub = dialogue.hub()
    address = f"127.0.0.1:{dialogue.port}"
    async with wire(address) as alice, wire(address, "bob") as bob:
        for client in (alice, bob):
            await client.ask("join", room="general")
        turn, waiting = asyncio.Event(), 0

        async def wait(*, is_arrival: bool = False) -> None:
            nonlocal waiting
            waiting += 1
            await turn.wait()

        monkeypatch.setattr(hub.pacer, "wait", wait)
        bob.ws.transport.abort()
        late = asyncio.create_task(connect(f"ws://{address}/ws").__aenter__())
        await eventually(lambda: waiting == 2)
        await dialogue.stop()
        assert await alice.until_closed() == 1001
        with pytest.raises((InvalidHandshake, ConnectionError, EOFError)):
            await late
    assert not hub.connections.sessions
    assert not hub.connections._ending
    assert not [task for task in asyncio.all_tasks() if task.get_name().startswith("dialogue-session")]


async def test_whom_the_server_closes_waits_for_no_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that is disconnected has left its rooms at once, however many others come and go."""
    dialogue = Dialogue(rooms())
    async with serve(dialogue) as address, wire(address) as alice, wire(address, "bob") as bob:
        for client in (alice, bob):
            await client.ask("join", room="general")
        hub = dialogue.hub()
        turn = asyncio.Event()

        async def wait(*, is_arrival: bool = False) -> None:
            await turn.wait()

        monkeypatch.setattr(hub.pacer, "wait", wait)
        (session,) = hub.connections.of("bob")
        session.client.disconnect(code=4321)
        assert await bob.until_closed() == 4321
        assert hub.rooms["general"].size == 1
        turn.set()
