"""A whole server over a Postgres that is stopped, cut, frozen, slow, or loses the answer to a COMMIT, under load.

What holds in all of them: publishers are answered while the fault lasts, nothing acked is lost, no seq is left out,
no key is recorded twice, subscribers see what was recorded in order, and service returns by itself.
"""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from random import Random, randrange

import pytest
from sqlalchemy import make_url

from dialogue import Dialogue, Limits, SQLStore
from dialogue.storage import postgres as postgres_module

from ..postgres import Cluster, Server
from ..proxy import Proxy
from .harness import Refused, Wire, eventually, rooms, serve, wire

PUBLISHERS = 6
SECONDS = 60.0
"""How long anything may take; what takes longer has failed."""


class Load:
    """Publishers that send one keyed message after the other, each until it is acked.

    Attributes:
        acked: The seq of each key that was acked.
        acks: How many each publisher has got.
        refusals: How often each publisher was told that the store is unavailable.
    """

    def __init__(self, address: str) -> None:
        self._address = address
        self._is_over = False
        self.acked: dict[str, int] = {}
        self.refusals = [0] * PUBLISHERS
        self.acks = [0] * PUBLISHERS
        self.running: asyncio.Task[None] | None = None

    async def run(self) -> None:
        await asyncio.gather(*(self._publish(number) for number in range(PUBLISHERS)))

    def end(self) -> None:
        self._is_over = True

    async def _publish(self, number: int) -> None:
        async with wire(self._address, f"p{number}") as client:
            await client.ask("join", room="general")
            message = 0
            while not self._is_over:
                message += 1
                key = f"{number}-{message}"
                self.acked[key] = await self._acked(client, number, key)
                self.acks[number] += 1

    async def _acked(self, client: Wire, number: int, key: str) -> int:
        while True:
            try:
                answer = await client.trigger("general", "message", key, key=key)
            except Refused as refused:
                if refused.code != "STORE_UNAVAILABLE":
                    raise
                self.refusals[number] += 1
                # Not at once: a server that refuses without waiting would be asked in a tight loop.
                await asyncio.sleep(0.01)
            else:
                return int(answer["seq"])

    async def goes_on(self) -> None:
        """Wait until every publisher has got more acks."""
        await self._more(self.acks, 3)

    async def is_refused(self) -> None:
        """Wait until every publisher has been answered that the store is unavailable, once more."""
        await self._more(self.refusals, 1)

    async def _more(self, counts: list[int], more: int) -> None:
        wanted = [count + more for count in counts]

        def has_come() -> bool:
            if self.running is not None and self.running.done():
                self.running.result()
            return all(count >= least for count, least in zip(counts, wanted, strict=True))

        await eventually(has_come, SECONDS)


@asynccontextmanager
async def under_load(store: SQLStore) -> AsyncIterator[Load]:
    """Yield a load on a server over *store*; at the end hold what was acked against what everyone saw."""
    limits = Limits(
        append_timeout_seconds=0.3,
        stop_timeout_seconds=5,
        errors_per_minute=1_000_000,
        # The subscriber says nothing for as long as a run takes.
        ping_seconds=1000,
    )
    dialogue = Dialogue(rooms(sync_history_on_join=0), store=store, limits=limits)
    async with serve(dialogue) as address, wire(address, "subscriber") as subscriber:
        await subscriber.ask("join", room="general")
        load = Load(address)
        load.running = running = asyncio.create_task(load.run())
        try:
            await load.goes_on()
            yield load
            await load.goes_on()
            load.end()
            async with asyncio.timeout(SECONDS):
                await running
        finally:
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)
        recorded = await subscriber.scroll("general", limit=200)
        seen = await subscriber.until_events(len(recorded))
    assert [event["seq"] for event in recorded] == list(range(1, len(recorded) + 1)), "no hole"
    assert [(event["seq"], event["data"]) for event in seen] == [
        (event["seq"], event["data"]) for event in recorded
    ], "subscribers see all of it, in order"
    read = {event["data"]: event["seq"] for event in recorded}
    assert len(read) == len(recorded), "no key twice"
    assert load.acked == read, "what was acked is what is there"


@pytest.fixture(params=[30.0, 0.6], ids=["patient", "impatient"])
def bounds(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Connections that wait out a fault, and ones that are cut while it lasts."""
    monkeypatch.setattr(postgres_module, "WRITE_SECONDS", request.param)
    monkeypatch.setattr(postgres_module, "CONNECT_SECONDS", min(request.param, 2.0))


async def test_postgres_is_stopped_and_started(cluster: Cluster, cluster_url: str) -> None:
    """Politely and as in a crash: publishers are told, and it goes on when it is back."""
    async with under_load(SQLStore(cluster_url)) as load:
        for how in (signal.SIGINT, signal.SIGQUIT):
            await asyncio.to_thread(cluster.stop, how)
            await load.is_refused()
            await asyncio.to_thread(cluster.start)
            await load.goes_on()


async def test_all_connections_are_cut_again_and_again(own_cluster: Server, cluster_url: str) -> None:
    """At random moments, also inside COMMIT."""
    await cut_rounds(own_cluster, cluster_url, rounds=8)


@pytest.mark.slow
async def test_all_connections_are_cut_two_hundred_times(own_cluster: Server, cluster_url: str) -> None:
    """The same for longer."""
    await cut_rounds(own_cluster, cluster_url, rounds=200)


async def cut_rounds(server: Server, url: str, *, rounds: int) -> None:
    """Cut all connections to the database while events are published."""
    seed = randrange(10**6)
    print(f"seed {seed}")
    random = Random(seed)
    async with under_load(SQLStore(url)) as load:
        for _ in range(rounds):
            target = len(load.acked) + random.randrange(1, 60)
            await eventually(lambda target=target: len(load.acked) >= target, SECONDS)  # type: ignore[misc]
            await asyncio.to_thread(server.cut, url)


@pytest.mark.usefixtures("bounds")
async def test_postgres_freezes(cluster: Cluster, cluster_url: str) -> None:
    """Nothing answers and nothing breaks: publishers are told in time; what was under way is told late, in order."""
    await freeze_rounds(cluster, cluster_url, rounds=2)


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.usefixtures("bounds")
async def test_postgres_freezes_thirty_times(cluster: Cluster, cluster_url: str) -> None:
    """The same for longer."""
    await freeze_rounds(cluster, cluster_url, rounds=30)


async def freeze_rounds(cluster: Cluster, url: str, *, rounds: int) -> None:
    """Freeze the server until every publisher has been refused twice, then let it go on."""
    async with under_load(SQLStore(url)) as load:
        for _ in range(rounds):
            await asyncio.to_thread(cluster.freeze)
            await load.is_refused()
            await load.is_refused()
            cluster.thaw()
            await load.goes_on()


async def test_a_slow_way_to_postgres(own_cluster: Server, cluster_url: str) -> None:
    """Slower than publishers wait, then quick again: all that was refused is there once, under its key."""
    async with Proxy(own_cluster.url.port or 0) as proxy:
        store = SQLStore(make_url(cluster_url).set(port=proxy.port))
        async with under_load(store) as load:
            proxy.delay_seconds = 0.005
            await load.goes_on()
            proxy.delay_seconds = 0.2
            await load.is_refused()
            proxy.delay_seconds = 0.0
            await load.goes_on()


@pytest.mark.parametrize("lost", ["answer", "question"])
async def test_commits_are_lost(own_cluster: Server, cluster_url: str, lost: str) -> None:
    """Each is settled by its keys before the next append: nobody is refused, and nothing is recorded twice."""
    async with Proxy(own_cluster.url.port or 0) as proxy:
        store = SQLStore(make_url(cluster_url).set(port=proxy.port))
        async with under_load(store) as load:
            for number in range(1, 9):
                proxy.lose_commit = lost
                await eventually(lambda number=number: proxy.lost == number, SECONDS)  # type: ignore[misc]
                await load.goes_on()


async def test_a_lost_commit_is_found_again_after_a_restart(own_cluster: Server, cluster_url: str) -> None:
    """Promise 3: the publisher was never answered, the server died; the retry gets the first one's seq."""
    key = {"key": "once"}
    async with Proxy(own_cluster.url.port or 0) as proxy:
        store = SQLStore(make_url(cluster_url).set(port=proxy.port))
        limits = Limits(append_timeout_seconds=0.3, stop_timeout_seconds=0.2, sessions_seconds=600)
        dialogue = Dialogue(rooms(), store=store, limits=limits)
        async with serve(dialogue) as address, wire(address) as client:
            await client.ask("join", room="general")
            assert (await client.trigger("general", "message", "first"))["seq"] == 1
            # The next COMMIT is the event's, and not that of the membership that the join made.
            assert await dialogue.room("general").members(limit=1) == ["alice"]
            # From the lost answer on, Postgres cannot be reached.
            proxy.lose_commit = "answer"
            proxy.close_after_loss = True
            with pytest.raises(Refused, match="STORE_UNAVAILABLE"):
                await client.trigger("general", "message", "second", **key)
            assert proxy.lost == 1
    async with (
        serve(Dialogue(rooms(), store=SQLStore(cluster_url))) as address,
        wire(address) as client,
    ):
        joined = await client.ask("join", room="general")
        assert [event["data"] for event in joined["events"]] == ["first", "second"]
        again = await client.trigger("general", "message", "second", **key)
        assert (again["seq"], again["duplicate"]) == (2, True)
        assert (await client.trigger("general", "message", "third"))["seq"] == 3
