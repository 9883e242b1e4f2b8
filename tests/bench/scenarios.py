"""The scenarios. Each returns its figures; how much it does is an argument, so that tests can run it in a moment."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from itertools import count

import msgspec

from . import filling, hot_pages, idle, many_rooms, pages, publish, ring, slow_readers
from .databases import postgres_database, sqlite_file
from .load import Plan
from .report import Figure


class Scale(msgspec.Struct, frozen=True, kw_only=True):
    """How much is done.

    Attributes:
        variants: Which of `publish.VARIANTS`, by number.
        is_checked: Whether every answer is compared with what it should be.
        rounds: Runs of each server; the best one counts, because whatever else the machine does makes it slower.
        seconds: Time of each run.
        shallow, deep: Depths at which pages are read, in events.
        reads: Pages read at each depth.
        filled: Events per filling.
        ring: Events in the ring.
        stores: Of what is measured over memory and over SQLite for comparison, which.
        hot: Events in the room whose pages are read from memory.
        idle: Silent connections.
        slow: Its subscribers, how many of them stop reading, documents a second, and how long they are measured.
        rooms: How many rooms are many.
        members: Connections in the room that is compared with them.
        room_messages: Messages over all of these rooms; on SQLite a fifth.
    """

    variants: tuple[int, ...] = tuple(range(len(publish.VARIANTS)))
    is_checked: bool = False
    rounds: int = 3
    warm_up_seconds: float = 1.0
    seconds: float = 5.0
    shallow: int = 1000
    deep: int = 1_000_000
    reads: int = 400
    filled: int = 200_000
    ring: int = 100_000
    stores: tuple[str, ...] = ("memory", "SQLite")
    hot: int = 1000
    idle: int = 5000
    slow: tuple[int, int, float, float] = (500, 50, 20.0, 10.0)
    rooms: int = 10_000
    members: int = 500
    room_messages: int = 10_000


FULL = Scale()
MOMENT = Scale(
    variants=(0, 5, 6),
    is_checked=True,
    rounds=1,
    warm_up_seconds=0.1,
    seconds=0.2,
    shallow=20,
    deep=2000,
    reads=5,
    filled=2000,
    ring=500,
    stores=("memory",),
    hot=120,
    idle=100,
    slow=(4, 2, 200.0, 0.3),
    rooms=20,
    members=5,
    room_messages=100,
)
"""Everything once, for the tests: its figures mean nothing."""


@contextmanager
def databases(postgres: str | None) -> Iterator[dict[str, str]]:
    """Yield a new database of each kind that there is, by its name: a URL that SQLAlchemy's async engine takes."""
    with sqlite_file() as path:
        found = {"SQLite": f"sqlite+aiosqlite:///{path}"}
        if postgres is None:
            yield found
            return
        with postgres_database(postgres) as url:
            yield {**found, "Postgres": url}


def run_publish(scale: Scale, postgres: str | None) -> list[Figure]:
    """Durable publish, and what it is compared with."""
    figures: list[Figure] = []
    bounds = {"SQLite": 40_000.0, "Postgres": 30_000.0}
    plan = Plan(
        port=0, warm_up_seconds=scale.warm_up_seconds, seconds=scale.seconds, is_checked=scale.is_checked
    )
    for database in ("SQLite", *(["Postgres"] if postgres else [])):
        runs: dict[str, publish.Best] = {}
        # Taken in turns: what else the machine does meanwhile then hits all of them alike.
        for _ in range(scale.rounds):
            for name, server, changes in (publish.VARIANTS[number] for number in scale.variants):
                if database == "Postgres" and server == "sqlite3":
                    continue
                with databases(postgres if database == "Postgres" else None) as found:
                    best = runs.setdefault(name, publish.Best())
                    best.add(
                        publish.measure(server, found[database], msgspec.structs.replace(plan, **changes))
                    )
        figures += publish.figures(database, runs, at_least=bounds[database])
    return figures


def run_pages(scale: Scale, postgres: str | None) -> list[Figure]:
    """A page deep in the past against one near its end."""
    figures: list[Figure] = []
    with databases(postgres) as found:
        for database, url in found.items():
            figures += pages.measure(database, url, shallow=scale.shallow, deep=scale.deep, reads=scale.reads)
    return figures


def run_filling(scale: Scale, postgres: str | None) -> list[Figure]:
    """Appends in batches of 500, without a server."""
    figures: list[Figure] = []
    for rooms in (1, 100):
        with databases(postgres) as found:
            for database, url in found.items():
                figures.append(filling.measure(database, url, rooms=rooms, count=scale.filled))
    return figures


def run_ring(scale: Scale, postgres: str | None) -> list[Figure]:
    """What an event in memory costs beside its payload."""
    return ring.measure(count=scale.ring)


def run_hot_pages(scale: Scale, postgres: str | None) -> list[Figure]:
    """Pages from memory; the bound is of the server without a log, as one beside it changes nothing of the path."""
    plan = hot_pages.Plan(
        events=scale.hot,
        is_checked=scale.is_checked,
        warm_up_seconds=scale.warm_up_seconds,
        seconds=scale.seconds,
    )
    runs: dict[str, list[hot_pages.Result]] = {store: [] for store in scale.stores}
    for _ in range(scale.rounds):
        for store, found in runs.items():
            with databases(None) as urls:
                found.append(hot_pages.measure(urls.get(store, ""), plan))
    return [
        hot_pages.figure(store, found, plan, at_least=10_000 if store == "memory" else None)
        for store, found in runs.items()
    ]


def run_idle(scale: Scale, postgres: str | None) -> list[Figure]:
    """Memory of connections that say nothing."""
    plan = idle.Plan(connections=scale.idle)
    runs: dict[str, list[idle.Result]] = {name: [] for name in idle.SIDES}
    for _ in range(scale.rounds):
        for name, found in runs.items():
            found.append(idle.measure(name, plan))
    return idle.figures(runs, plan)


def run_slow_readers(scale: Scale, postgres: str | None) -> list[Figure]:
    """Latency of those who read, and memory, while others do not."""
    subscribers, slow, per_second, seconds = scale.slow
    plan = slow_readers.Plan(
        subscribers=subscribers,
        slow=slow,
        per_second=per_second,
        warm_up_seconds=scale.warm_up_seconds,
        seconds=seconds,
    )
    stopping = msgspec.structs.replace(plan, is_stopping=True)
    rounds = [(slow_readers.measure(plan), slow_readers.measure(stopping)) for _ in range(scale.rounds)]
    return slow_readers.figures([one for one, _ in rounds], [other for _, other in rounds], plan)


def run_many_rooms(scale: Scale, postgres: str | None) -> list[Figure]:
    """Cost in many small rooms; the bound is of the server alone."""
    rounds: dict[str, list[many_rooms.Round]] = {store: [] for store in scale.stores}
    for turn in range(scale.rounds):
        for store in scale.stores if turn == 0 else scale.stores[:1]:
            # A log commits each message by itself, which takes its time, and is there for comparison only.
            messages = scale.room_messages if store == "memory" else scale.room_messages // 5
            with ExitStack() as stack:
                urls = (stack.enter_context(databases(None)).get(store, "") for _ in count())
                rounds[store].append(
                    many_rooms.measure_round(
                        urls, rooms=scale.rooms, members=scale.members, messages=messages
                    )
                )
    return [
        figure
        for store, found in rounds.items()
        for figure in many_rooms.figures(
            store, found, rooms=scale.rooms, members=scale.members, is_bound=store == "memory"
        )
    ]


SCENARIOS = {
    "publish": run_publish,
    "pages": run_pages,
    "hot_pages": run_hot_pages,
    "idle": run_idle,
    "slow_readers": run_slow_readers,
    "many_rooms": run_many_rooms,
    "filling": run_filling,
    "ring": run_ring,
}
