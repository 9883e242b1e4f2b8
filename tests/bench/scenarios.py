"""The scenarios. Each returns its figures; how much it does is an argument, so that tests can run it in a moment."""

from __future__ import annotations

from . import (
    fanout,
    fanout_load,
    filling,
    hot_pages,
    idle,
    latency,
    latency_load,
    many_rooms,
    pages,
    publish,
    ring,
    slow_readers,
    soak,
    storm,
)
from .databases import database, durable
from .publish_load import Plan
from .report import Figure
from .scale import Scale


def run_publish(scale: Scale, postgres: str | None) -> list[Figure]:
    """Durable publish, and what it is compared with."""
    plan = Plan(
        port=0, warm_up_seconds=scale.warm_up_seconds, seconds=scale.seconds, is_checked=scale.is_checked
    )
    return publish.compare(plan, variants=scale.variants, rounds=scale.rounds, postgres=postgres)


def run_pages(scale: Scale, postgres: str | None) -> list[Figure]:
    """A page deep in the past against one near its end."""
    figures: list[Figure] = []
    for kind in durable(postgres):
        with database(kind, postgres) as url:
            figures += pages.measure(kind, url, shallow=scale.shallow, deep=scale.deep, reads=scale.reads)
    return figures


def run_hot_pages(scale: Scale, postgres: str | None) -> list[Figure]:
    """Pages from memory."""
    plan = hot_pages.Plan(
        events=scale.hot,
        is_checked=scale.is_checked,
        warm_up_seconds=scale.warm_up_seconds,
        seconds=scale.seconds,
    )
    return hot_pages.measure(plan, stores=scale.stores, rounds=scale.rounds)


def run_filling(scale: Scale, postgres: str | None) -> list[Figure]:
    """Appends in batches of 500, without a server."""
    figures: list[Figure] = []
    for rooms in (1, 100):
        for kind in durable(postgres):
            with database(kind, postgres) as url:
                figures.append(filling.measure(kind, url, rooms=rooms, count=scale.filled))
    return figures


def run_ring(scale: Scale, postgres: str | None) -> list[Figure]:
    """What an event in memory costs beside its payload."""
    return ring.measure(count=scale.ring)


def run_idle(scale: Scale, postgres: str | None) -> list[Figure]:
    """Memory of connections that say nothing."""
    return idle.measure(idle.Plan(connections=scale.idlers), names=scale.idle_sides, rounds=scale.rounds)


def run_fanout(scale: Scale, postgres: str | None) -> list[Figure]:
    """Everyone in a room is told of each message."""
    plan = fanout_load.Plan(
        subscribers=scale.subscribers, warm_up_seconds=scale.warm_up_seconds, seconds=scale.fanout_seconds
    )
    return fanout.measure(plan, names=scale.sides, rounds=scale.rounds)


def run_latency(scale: Scale, postgres: str | None) -> list[Figure]:
    """How long a message is on its way to everyone in a room."""
    plan = latency_load.Plan(
        subscribers=scale.subscribers, warm_up_seconds=scale.warm_up_seconds, seconds=scale.latency_seconds
    )
    return latency.measure(plan, names=scale.sides, rounds=scale.rounds)


def run_slow_readers(scale: Scale, postgres: str | None) -> list[Figure]:
    """Latency of those who read, and memory, while others do not."""
    (subscribers, slow), (per_second, seconds) = scale.slow, scale.documents
    plan = slow_readers.Plan(
        subscribers=subscribers,
        slow=slow,
        per_second=per_second,
        warm_up_seconds=scale.warm_up_seconds,
        seconds=seconds,
    )
    return slow_readers.measure(plan, rounds=scale.rounds)


def run_many_rooms(scale: Scale, postgres: str | None) -> list[Figure]:
    """Cost in many small rooms."""
    return many_rooms.measure(
        stores=scale.stores,
        rounds=scale.rounds,
        rooms=scale.rooms,
        members=scale.members,
        messages=scale.room_messages,
    )


def run_resume_storm(scale: Scale, postgres: str | None) -> list[Figure]:
    """All clients of a room come back at once."""
    return storm.measure(
        rounds=scale.rounds,
        clients=scale.storm_clients,
        clients_shared=scale.storm_shared,
        in_flight=scale.storm_in_flight,
        seconds=scale.storm_seconds,
        postgres=postgres,
    )


def run_soak(scale: Scale, postgres: str | None) -> list[Figure]:
    """Half of a server's load, for long."""
    return soak.measure(seconds=scale.soak_seconds, pause=scale.soak_pause, filled=scale.soak_filled)


SCENARIOS = {
    "publish": run_publish,
    "fanout": run_fanout,
    "latency": run_latency,
    "resume_storm": run_resume_storm,
    "slow_readers": run_slow_readers,
    "many_rooms": run_many_rooms,
    "pages": run_pages,
    "hot_pages": run_hot_pages,
    "filling": run_filling,
    "ring": run_ring,
    "idle": run_idle,
    "soak": run_soak,
}
