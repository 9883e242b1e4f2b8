"""What load generators count and check is right, however the bytes come: a figure is worth what its checks are."""

from __future__ import annotations

import asyncio
import select
import socket
from collections.abc import Iterator

import msgspec
import pytest

from . import fanout_load, latency_load
from .dialects import DIALECTS, Dialect
from .members import MARK, Publisher, marked, message
from .sides import SIDES, Side


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    """A server's end, and a subscriber's that does not block."""
    server, subscriber = socket.socketpair()
    subscriber.setblocking(False)
    with server, subscriber:
        yield server, subscriber


def frames(*numbers: int) -> bytes:
    """Return messages of publisher 3 as a server sends them, each with a length of 126, which is a ``~``."""
    return b"".join(b"\x81\x7e" + b"\0\x7e" + marked(3, number).ljust(126) for number in numbers)


@pytest.mark.parametrize("cut", range(40))
async def test_a_sweep_counts_marks_wherever_reads_end(
    pair: tuple[socket.socket, socket.socket], cut: int
) -> None:
    """Three messages count as three, cut at any byte of the second."""
    server, subscriber = pair
    subscribers = fanout_load.Subscribers([subscriber])
    sweep = asyncio.create_task(subscribers.sweep(lambda: None))
    data = frames(1, 2, 3)
    first = len(frames(1)) + cut
    for part in (data[:first], data[first:]):
        server.sendall(part)
        while select.select([subscriber], [], [], 0)[0]:
            await asyncio.sleep(0.001)
    sweep.cancel()
    assert subscribers.counts == [3]


@pytest.mark.parametrize("cut", range(40))
def test_arrivals_are_known_wherever_reads_end(pair: tuple[socket.socket, socket.socket], cut: int) -> None:
    """Each message is told once, with its publisher and number, cut at any byte of the second."""
    server, subscriber = pair
    subscribers = latency_load.Subscribers([subscriber], publishers=4)
    data = frames(1, 2, 3)
    first = len(frames(1)) + cut
    for part in (data[:first], data[first:]):
        server.sendall(part)
        subscribers.read()
    subscribers.selector.close()
    assert [(publisher, number) for publisher, number, _ in subscribers.arrivals] == [(3, 1), (3, 2), (3, 3)]
    assert subscribers.wrong == 0


@pytest.mark.parametrize(("numbers", "wrong"), [((1, 3), 1), ((1, 1), 1), ((1, 2), 0)])
async def test_lost_and_doubled_messages_are_seen(
    pair: tuple[socket.socket, socket.socket], numbers: tuple[int, ...], wrong: int
) -> None:
    """By the observer of a fan-out and by each subscriber of a latency run."""
    server, subscriber = pair
    subscribers = latency_load.Subscribers([subscriber], publishers=4)
    server.sendall(frames(*numbers))
    subscribers.read()
    subscribers.selector.close()
    assert subscribers.wrong == wrong
    dialect = Dialect()
    observer = fanout_load.Observer(
        dialect, [Publisher(dialect, index) for index in range(4)], fanout_load.Subscribers([])
    )
    observer.is_ended = True
    for number in numbers:
        observer.on_data(marked(3, number))
    assert observer.wrong == wrong


async def test_publishers_wait_for_the_sweep() -> None:
    """Who is measured is never the slow reading of who measures."""

    class Noted(Publisher):
        published = 0

        def publish(self, count: int) -> None:
            self.published += count

    dialect = Dialect()
    publisher = Noted(dialect, 0)
    subscribers = fanout_load.Subscribers([])
    observer = fanout_load.Observer(dialect, [publisher], subscribers)
    for number in range(1, fanout_load.MOST_UNREAD + 4):
        observer.on_data(marked(0, number))
    assert publisher.published == fanout_load.MOST_UNREAD
    subscribers.fewest = 3
    observer.go_on()
    assert publisher.published == fanout_load.MOST_UNREAD + 3
    assert observer.wrong == 0


def test_a_result_with_something_missing_is_refused() -> None:
    """A figure that is not backed by true answers does not count."""
    result = fanout_load.Result(
        deliveries_per_second=1.0,
        sent=3,
        landed=3,
        fewest=3,
        most=3,
        acked=None,
        wrong=0,
        busy=0.1,
        server_us=None,
    )
    result.check()
    for change in ({"fewest": 2}, {"most": 4}, {"landed": 2}, {"acked": 2}, {"wrong": 1}):
        with pytest.raises(AssertionError):
            msgspec.structs.replace(result, **change).check()


@pytest.mark.parametrize("name", DIALECTS)
def test_a_message_has_one_mark_in_every_dialect(name: str) -> None:
    """Messages that are due at one time have as many marks as messages."""
    sent = b"".join(DIALECTS[name](b"bench:0").frames([message(3, number) for number in range(1, 11)]))
    assert sent.count(MARK) == 10


def test_what_is_not_installed_is_left_out() -> None:
    """It is said how to get it; FastAPI and Dialogue are always there."""
    assert "[bench]" in Side("litestar_channels", package="no_such_package").missing()
    assert "npm install" in Side("ws", package="no-such-package").missing()
    assert not SIDES["FastAPI loop"].missing()
