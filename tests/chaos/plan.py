"""What a chaos run does to connections, drawn from a seed before it begins."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum

SEED_VARIABLE = "DIALOGUE_CHAOS_SEED"


class Fault(StrEnum):
    """What happens to a connection that stands."""

    RESET = "reset"
    """Both sides are reset."""
    SPLIT = "split"
    """Half of the next piece of data passes, then the connection ends: most often in the middle of a frame."""
    FREEZE = "freeze"
    """Nothing passes any more, and neither side is told; then it is reset, or goes on as if nothing had been."""
    LINGER = "linger"
    """The client's side is reset. The server's stays, and gets the client's last words when the client has long had
    another connection."""
    DELAY = "delay"
    """Each piece of data is held for a moment."""
    TRICKLE = "trickle"
    """A few bytes pass at a time."""


class Welcome(StrEnum):
    """What happens to the connection that is made next."""

    REFUSED = "refused"
    """It is reset before a word is said."""
    BUSY = "busy"
    """Its handshake is answered by a 503 that is no answer of Dialogue."""
    RUBBISH = "rubbish"
    """Its handshake is answered by what is no HTTP."""
    MUTE = "mute"
    """It is taken, and nothing passes."""


class Way(StrEnum):
    """Which direction is concerned."""

    UP = "up"
    """From client to server."""
    DOWN = "down"
    BOTH = "both"


@dataclass(frozen=True, slots=True)
class Step:
    """One deed.

    Attributes:
        pause_seconds: Waited before it.
        pick: From 0 (inclusive) to 1 (exclusive): which of the connections that stand, in the order made.
        seconds: How long a fault that lasts lasts.
        is_mended: Whether a frozen connection goes on in the end.
        welcome: What meets the next connection that is made; None for nothing.
    """

    pause_seconds: float
    fault: Fault
    pick: float
    way: Way
    seconds: float
    is_mended: bool
    welcome: Welcome | None

    @property
    def is_cut(self) -> bool:
        """Whether it ends a connection, at once or by leaving it half open."""
        return self.fault not in (Fault.DELAY, Fault.TRICKLE)


def plan(seed: int, *, pause_seconds: float, silence_seconds: float) -> Iterator[Step]:
    """Yield steps without end, the same ones for the same arguments.

    Args:
        pause_seconds: The mean time between two.
        silence_seconds: After how long client and server take a silent connection for dead: what lasts, lasts for
            less than that or for more.
    """
    chance = random.Random(seed)
    while True:
        yield Step(
            pause_seconds=chance.expovariate(1 / pause_seconds),
            fault=chance.choices(list(Fault), (30, 15, 15, 15, 10, 5))[0],
            pick=chance.random(),
            way=chance.choice(list(Way)),
            seconds=silence_seconds * chance.uniform(0.1, 2.5),
            is_mended=chance.random() < 0.5,
            welcome=chance.choice(list(Welcome)) if chance.random() < 0.3 else None,
        )


def new_seed() -> int:
    """Return the seed that ``DIALOGUE_CHAOS_SEED`` gives, or a new one."""
    given = os.environ.get(SEED_VARIABLE)
    return int(given) if given else random.randrange(10**6)
