"""How fast a connection, a user and a room may go: token buckets by what is asked for."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable

from ..core.limits import TokenBucket
from ..errors import RateLimited
from ..limits import Limits, RoomLimits

USERS_REMEMBERED = 10_000
"""For how many users buckets are kept at least, those that were used last: a new connection fills no empty one."""


def spend(now: float, *buckets: TokenBucket) -> None:
    """Take a token from each of *buckets*.

    Raises:
        RateLimited: One is empty; it says when there is a token again.
    """
    for bucket in buckets:
        if not bucket.take(now=now):
            raise RateLimited(retry_after_seconds=max(0.001, round(bucket.wait_seconds, 3)))


class Rates:
    """The buckets of one connection, each made when it is first asked for: an idle one has none.

    Args:
        now: Since when they are full.
    """

    __slots__ = ("_joins", "_limits", "_now", "_reads", "_triggers")

    def __init__(self, limits: Limits, *, now: float) -> None:
        self._limits = limits
        self._now = now
        self._triggers: TokenBucket | None = None
        self._joins: TokenBucket | None = None
        self._reads: TokenBucket | None = None

    @property
    def triggers(self) -> TokenBucket:
        """What brings an event into a room: triggers, edits, deletions."""
        if self._triggers is None:
            self._triggers = self._new_triggers()
        return self._triggers

    @property
    def joins(self) -> TokenBucket:
        """Joining rooms."""
        if self._joins is None:
            self._joins = self._new_joins()
        return self._joins

    @property
    def reads(self) -> TokenBucket:
        """History, rooms, presence, unread."""
        if self._reads is None:
            self._reads = self._new_reads()
        return self._reads

    def spend_trigger(self, now: float) -> None:
        """Take a token for a trigger; `spend`, and quicker.

        Raises:
            RateLimited: There is none.
        """
        bucket = self._triggers or self.triggers
        if not bucket.take(now=now):
            spend(now, bucket)

    def _new_triggers(self) -> TokenBucket:
        return TokenBucket(self._limits.triggers_burst, self._limits.triggers_per_second, now=self._now)

    def _new_joins(self) -> TokenBucket:
        return TokenBucket(self._limits.joins_burst, self._limits.joins_per_second, now=self._now)

    def _new_reads(self) -> TokenBucket:
        return TokenBucket(self._limits.reads_burst, self._limits.reads_per_second, now=self._now)


class RatesOfUser(Rates):
    """The buckets of one user, over all connections and requests."""

    __slots__ = ("_room_changes",)

    def __init__(self, limits: Limits, *, now: float) -> None:
        super().__init__(limits, now=now)
        self._room_changes: TokenBucket | None = None

    @property
    def room_changes(self) -> TokenBucket:
        """Making and deleting rooms, of which everyone is told."""
        if self._room_changes is None:
            changes = self._limits.user_room_changes_per_minute
            self._room_changes = TokenBucket(changes, changes / 60, now=self._now)
        return self._room_changes

    def _new_triggers(self) -> TokenBucket:
        limits = self._limits
        return TokenBucket(limits.user_triggers_burst, limits.user_triggers_per_second, now=self._now)

    def _new_joins(self) -> TokenBucket:
        limits = self._limits
        return TokenBucket(limits.user_joins_burst, limits.user_joins_per_second, now=self._now)

    def _new_reads(self) -> TokenBucket:
        limits = self._limits
        return TokenBucket(limits.user_reads_burst, limits.user_reads_per_second, now=self._now)


def connection_rates(limits: Limits, *, now: float) -> Rates:
    """Return the buckets of a new connection."""
    return Rates(limits, now=now)


class UserRates:
    """The buckets of users, over all their connections and requests.

    Args:
        clock: Seconds of the clock that tokens are counted by.
    """

    def __init__(self, limits: Limits, *, clock: Callable[[], float]) -> None:
        self._limits = limits
        self._clock = clock
        self._rates: OrderedDict[str, RatesOfUser] = OrderedDict()

    def of(self, user_id: str) -> RatesOfUser:
        """Return the buckets of a user, full ones if the user was not seen for long."""
        rates = self._rates.get(user_id)
        if rates is not None:
            self._rates.move_to_end(user_id)
            return rates
        rates = self._rates[user_id] = RatesOfUser(self._limits, now=self._clock())
        # Those who are connected now are among the last that were used.
        if len(self._rates) > max(USERS_REMEMBERED, self._limits.connections):
            self._rates.popitem(last=False)
        return rates


class RoomRates:
    """The buckets of one open room: of the room as a whole, and of each user in it.

    Args:
        limits: What the room's declaration says.
    """

    __slots__ = ("_limits", "_room", "_users")

    def __init__(self, limits: RoomLimits, *, now: float) -> None:
        self._limits = limits
        self._room = None
        if limits.triggers_per_second is not None:
            self._room = TokenBucket(limits.triggers_burst, limits.triggers_per_second, now=now)
        self._users: OrderedDict[str, TokenBucket] = OrderedDict()

    def spend_trigger(self, user_id: str, *, now: float) -> None:
        """Take a token for a trigger of *user_id*.

        Raises:
            RateLimited: The room, or the user in it, is too fast.
        """
        per_second = self._limits.user_triggers_per_second
        if per_second is not None:
            bucket = self._users.get(user_id)
            if bucket is None:
                bucket = TokenBucket(self._limits.user_triggers_burst, per_second, now=now)
                self._users[user_id] = bucket
                if len(self._users) > USERS_REMEMBERED:
                    self._users.popitem(last=False)
            else:
                self._users.move_to_end(user_id)
            spend(now, bucket)
        if self._room is not None:
            spend(now, self._room)
