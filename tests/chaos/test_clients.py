"""Both clients against a network that cuts them a thousand times, and a server that is killed: promises 1 to 5.

Each client's view equals the log, in order, each event once; nothing sent is lost or doubled. A run prints its seed;
``DIALOGUE_CHAOS_SEED`` repeats what it did to the network. The long runs::

    python -m pytest -n 0 -m slow -s tests/chaos
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from ..node import needs_node
from .clients import Fleet, NodeFleet, PythonFleet, parts
from .plan import new_seed, plan
from .proxy import ChaosProxy
from .server import Server
from .verdict import check_log, check_view, read_log

PING_SECONDS = 0.4
"""Half-open connections are found in twice that."""

MODULE = """
from dialogue import Dialogue, History, Limits, RoomConfig, SQLStore, define_event
from tests.rates import UNRATED

message = define_event("message", history=History(limit=30))
dialogue = Dialogue(
    rooms={{f"room-{{number}}": RoomConfig(events=[message]) for number in range({rooms})}},
    store=SQLStore("sqlite:///log.db", lock_wait_seconds=30),
    limits=Limits(**UNRATED | {limits}),
)
"""

TINY_REPLAYS = {"replay_events": 3}

FLEETS = [
    pytest.param(PythonFleet, id="python"),
    pytest.param(
        NodeFleet,
        id="javascript",
        marks=needs_node,
    ),
]


@dataclass(frozen=True)
class Size:
    """How large a run is; *pause_seconds* is between two faults, *publish_seconds* between two events of a client."""

    clients: int
    rooms: int
    cuts: int
    pause_seconds: float
    publish_seconds: float


QUICK = Size(clients=8, rooms=4, cuts=60, pause_seconds=0.03, publish_seconds=0.05)
FULL = Size(clients=50, rooms=20, cuts=1000, pause_seconds=0.06, publish_seconds=0.25)


async def chaos(
    make_fleet: Callable[..., Fleet],
    folder: Path,
    size: Size,
    *,
    kills: int = 0,
    limits: dict[str, Any] | None = None,
) -> int:
    """Run it, compare everything, and return how many resets were told."""
    seed = new_seed()
    print(f"\nDIALOGUE_CHAOS_SEED={seed}")
    begun = time.perf_counter()
    steps = plan(seed, pause_seconds=size.pause_seconds, silence_seconds=2 * PING_SECONDS)
    limits = {"ping_seconds": PING_SECONDS, **(limits or {})}
    members = parts(seed, clients=size.clients, rooms=size.rooms, rooms_each=min(4, size.rooms))
    async with (
        Server(folder, MODULE.format(rooms=size.rooms, limits=limits)) as server,
        ChaosProxy(server.port) as proxy,
        make_fleet(f"http://127.0.0.1:{proxy.port}", members, pause_seconds=size.publish_seconds) as fleet,
    ):
        for killed in range(kills + 1):
            await proxy.play(steps, cuts=-(-size.cuts // (kills + 1)))
            if killed < kills:
                await server.kill()
                await server.start()
        acks = await fleet.stop()
        log = read_log(server.database)
        check_log(log, acks)
        views = await fleet.views({room: rows[-1].seq for room, rows in log.items()})
    resets = sum(check_view(view, log[view.room]) for view in views)
    heard = sum(len(view.heard) for view in views)
    timelines = sum(view.timeline is not None for view in views)
    print(
        f"{size.clients} clients, {size.rooms} rooms, {proxy.summary}, {kills} kills: "
        f"{len(acks.recorded)} sent, {len(acks.edited)} edited, {heard} heard in {len(views)} views "
        f"with {resets} resets, {timelines} timelines; {time.perf_counter() - begun:.1f} s"
    )
    assert len(acks.recorded) > size.cuts
    assert len(views) == sum(len(part.rooms) for part in members)
    return resets


@pytest.mark.parametrize("fleet", FLEETS)
async def test_sixty_cuts(fleet: Callable[..., Fleet], tmp_path: Path) -> None:
    """Nobody misses or doubles anything, and nobody has to be reset."""
    assert await chaos(fleet, tmp_path, QUICK) == 0


@pytest.mark.parametrize("fleet", FLEETS)
async def test_kills_and_tiny_replays(fleet: Callable[..., Fleet], tmp_path: Path) -> None:
    """Where a resume cannot bring everything the client is told, and the rest is in the pages; also after a kill."""
    assert await chaos(fleet, tmp_path, QUICK, kills=1, limits=TINY_REPLAYS) > 0


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("fleet", FLEETS)
async def test_a_thousand_cuts(fleet: Callable[..., Fleet], tmp_path: Path) -> None:
    """50 clients in 20 rooms."""
    assert await chaos(fleet, tmp_path, FULL, limits={"replay_events": 100_000}) == 0


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("fleet", FLEETS)
async def test_a_thousand_cuts_and_five_kills(fleet: Callable[..., Fleet], tmp_path: Path) -> None:
    """The same while the server is killed by SIGKILL and started again."""
    assert await chaos(fleet, tmp_path, FULL, kills=5, limits={"replay_events": 100_000}) == 0


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("fleet", FLEETS)
async def test_a_thousand_cuts_and_tiny_replays(fleet: Callable[..., Fleet], tmp_path: Path) -> None:
    """The same where almost every resume fails."""
    assert await chaos(fleet, tmp_path, FULL, kills=2, limits=TINY_REPLAYS) > 100
