"""Every program that Dialogue is compared with does what it is compared for: a message comes through it."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest

from . import idle, storm
from .databases import database
from .dialects import DIALECTS, Dialect
from .generator import until
from .members import MARK, Member, message, open_all
from .processes import NODE, PEERS, Served, serving_all
from .publish import VARIANTS
from .scale import MOMENT
from .serve import SERVERS
from .sides import SIDES

COMMON = {"__init__", "common"}

IN_SCENARIOS = {
    *(SIDES[name].server for name in MOMENT.sides),
    *(VARIANTS[number][1] for number in MOMENT.variants),
    *(idle.SIDES[name][0] for name in MOMENT.idle_sides),
    storm.PEER_SERVER,
}
"""Those that a moment of some scenario starts."""

OTHERS = {side.server: side for side in SIDES.values() if side.server not in {*IN_SCENARIOS, *SERVERS}}

ACKING = "bare_sqlite"


class Listener(Member):
    """A connection that counts what comes through.

    Attributes:
        heard: Messages and acks.
    """

    def __init__(self, dialect: Dialect, user: bytes, *, is_subscriber: bool) -> None:
        super().__init__(dialect, user, is_subscriber=is_subscriber)
        self.heard = 0

    def on_data(self, frame: bytes) -> None:
        self.heard += frame.count(MARK) + frame.count(b'"type":"ok"')


@pytest.fixture(scope="module")
def served() -> Iterator[dict[str, Served]]:
    """Each of those that can run, by name."""
    servers = [name for name, side in OTHERS.items() if not side.missing()]
    with database("SQLite") as first, database("SQLite") as second:
        urls = {"insert_commit_broadcast": first, ACKING: second}
        with serving_all({name: (name, urls.get(name, "")) for name in (*servers, ACKING)}) as found:
            yield found


def test_each_is_tried() -> None:
    """Here, or by a scenario."""
    programs = {path.stem for path in (*PEERS.glob("*.py"), *NODE.glob("*.mjs"))} - COMMON
    assert programs == {*OTHERS, ACKING, *IN_SCENARIOS} - set(SERVERS)


@pytest.mark.parametrize("name", OTHERS)
async def test_a_message_comes_through(name: str, served: dict[str, Served]) -> None:
    """From a publisher to two subscribers, once each, and not back."""
    missing = OTHERS[name].missing()
    if missing:
        pytest.skip(f"a peer of the benchmarks needs {missing}")
    dialect = DIALECTS[OTHERS[name].dialect](b"bench:0")
    subscribers = [Listener(dialect, b"subscriber-%d" % number, is_subscriber=True) for number in range(2)]
    publisher = Listener(dialect, b"publisher", is_subscriber=False)
    await open_all([*subscribers, publisher], served[name].port)
    for frame in dialect.frames([message(3, 1)]):
        publisher.send(frame)
    await until(lambda: all(subscriber.heard for subscriber in subscribers))
    assert [subscriber.heard for subscriber in subscribers] == [1, 1]
    assert not publisher.heard
    for member in (*subscribers, publisher):
        member.close()
    await asyncio.gather(*(member.closed for member in (*subscribers, publisher)))


async def test_a_message_is_acked(served: dict[str, Served]) -> None:
    """By what stores and passes nothing on."""
    dialect = DIALECTS["dialogue"](b"bench:0")
    publisher = Listener(dialect, b"publisher", is_subscriber=False)
    await open_all([publisher], served[ACKING].port)
    for frame in dialect.frames([message(3, 1)]):
        publisher.send(frame)
    await until(lambda: publisher.heard == 1)
    publisher.close()
    await publisher.closed
