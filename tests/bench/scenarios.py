"""The scenarios. Each returns its figures; how much it does is an argument, so that tests can run it in a moment."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import msgspec

from . import filling, pages, publish, ring, soak, storm
from .databases import postgres_database, sqlite_file
from .load import Plan
from .report import Figure
from .storm_load import Step


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
        storm_clients: Clients that drop and come back.
        storm_rounds: Storms against each server.
        storm_in_flight: Most of their connections that are being opened.
        storm_seconds: Time before each storm.
        storm_shared: Clients of a storm whose publishers are in the same room; 0 for none, nor the parts of the others.
        soak_seconds: Time of the soak.
        soak_pause: Longest time between two triggers of a visitor.
        soak_filled: Events of 50 kB that are published before.
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
    storm_clients: int = 2000
    storm_rounds: int = 3
    storm_in_flight: int = 256
    storm_seconds: float = 5.0
    storm_shared: int = 500
    soak_seconds: float = 600.0
    soak_pause: float = 0.6
    soak_filled: int = 400


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
    storm_clients=40,
    storm_rounds=1,
    storm_in_flight=8,
    storm_seconds=0.2,
    storm_shared=0,
    soak_seconds=0.5,
    soak_pause=0.05,
    soak_filled=2,
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


def run_resume_storm(scale: Scale, postgres: str | None) -> list[Figure]:
    """All clients of a room come back at once."""
    figures: list[Figure] = []
    steps: tuple[Step, ...] = ("resume", "connect", "upgrade") if scale.storm_shared else ("resume",)
    for database in ("SQLite", *(["Postgres"] if postgres else [])):
        ours: list[storm.Round] = []
        peers: list[storm.Round] = []
        shared: list[storm.Round] = []
        for _ in range(scale.storm_rounds):
            turns: list[tuple[list[storm.Round], str, dict[str, Any]]] = [
                (ours, "dialogue", {"clients": scale.storm_clients, "steps": steps}),
                (peers, "resume_query", {"clients": scale.storm_clients, "steps": steps}),
            ]
            if scale.storm_shared:
                turns.append((shared, "dialogue", {"clients": scale.storm_shared, "is_shared": True}))
            for rounds, server, changes in turns:
                with databases(postgres if database == "Postgres" else None) as found:
                    rounds.append(
                        storm.measure(
                            server,
                            found[database],
                            in_flight=scale.storm_in_flight,
                            seconds=scale.storm_seconds,
                            **changes,
                        )
                    )
        figures += storm.figures(
            database,
            scale.storm_clients,
            scale.storm_shared,
            ours,
            peers,
            shared,
            is_bound=database == "SQLite",
        )
    return figures


def run_soak(scale: Scale, postgres: str | None) -> list[Figure]:
    """Half of a server's load, for long."""
    with sqlite_file() as path:
        return soak.measure(
            path, seconds=scale.soak_seconds, pause=scale.soak_pause, filled=scale.soak_filled
        )


SCENARIOS = {
    "publish": run_publish,
    "pages": run_pages,
    "filling": run_filling,
    "ring": run_ring,
    "resume_storm": run_resume_storm,
    "soak": run_soak,
}
