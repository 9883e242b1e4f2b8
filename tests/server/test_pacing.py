"""Steps that many ask for at once are spread over turns of the loop."""

from __future__ import annotations

import asyncio

import pytest

from dialogue.server.pacing import Pacer


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
