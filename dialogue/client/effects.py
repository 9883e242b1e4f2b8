"""What a `Session` wants done, and the times that it keeps to.

The shell carries effects out in the order given; see `dialogue.client.session`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from dialogue.errors import CommandError, DialogueError
from dialogue.events import WireEvent

State = Literal["connecting", "connected", "resuming", "offline"]
"""``connecting``: until the first connection stands. ``connected``. ``resuming``: the connection was lost and is
being tried again. ``offline``: not started, closed, or ended for good."""


@dataclass(frozen=True, slots=True)
class OpenConnection:
    """Open a connection now; answer with `Session.opened` or `Session.open_failed`."""


@dataclass(frozen=True, slots=True)
class DropConnection:
    """Drop the connection without waiting for the other side; answer with `Session.closed`.

    Attributes:
        reason: Why, for the log.
    """

    reason: str


@dataclass(frozen=True, slots=True)
class Send:
    """Send these commands, in order, on the connection that stands now."""

    commands: tuple[dict[str, Any], ...]


@dataclass(frozen=True, slots=True)
class Resolved:
    """A request was answered; *answer* is the message."""

    ref: int
    answer: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Failed:
    """A request was refused, or cannot be answered any more."""

    ref: int
    error: DialogueError


@dataclass(frozen=True, slots=True)
class Deliver:
    """An event of a joined room for the application: live, or missed and now told.

    Attributes:
        is_recovered: Whether it was missed and came with a resume.
    """

    room_id: str
    event: WireEvent
    epoch: str | None
    is_recovered: bool = False


@dataclass(frozen=True, slots=True)
class DeliverMessage:
    """The server sent *event* to this client alone."""

    event: str
    data: Any


@dataclass(frozen=True, slots=True)
class PresenceChanged:
    """Users have come to a joined room or gone; *count* is how many are there now."""

    room_id: str
    joined: tuple[str, ...]
    left: tuple[str, ...]
    count: int


@dataclass(frozen=True, slots=True)
class UnreadChanged:
    """Unread counts by room, of those that have changed."""

    counts: dict[str, int]


@dataclass(frozen=True, slots=True)
class Announced:
    """A room was made, changed or deleted.

    Attributes:
        kind: ``room_created``, ``room_updated`` or ``room_deleted``.
        record: What the server tells of it.
    """

    kind: str
    room_id: str
    record: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Joined:
    """The client is in a room in which it was not before.

    Attributes:
        answer: The ``joined`` message.
        is_pushed: Whether the server joined the client, unasked.
    """

    room_id: str
    answer: dict[str, Any]
    is_pushed: bool


@dataclass(frozen=True, slots=True)
class Reset:
    """Events may have been missed that nobody can tell of; *answer* is ``joined`` with the newest page."""

    room_id: str
    answer: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Subscribed:
    """From here on the client gets these events of a joined room, by name, or ``"*"``."""

    room_id: str
    subscriptions: Any


@dataclass(frozen=True, slots=True)
class Left:
    """The server took the client out of a room, or did not let it back in; it is not rejoined."""

    room_id: str
    reason: str


@dataclass(frozen=True, slots=True)
class StateChanged:
    """The state is now *state*."""

    state: State


@dataclass(frozen=True, slots=True)
class Trouble:
    """An error that belongs to no request."""

    error: DialogueError


@dataclass(frozen=True, slots=True)
class Ended:
    """The session is over for good: refused by the server (`CommandError` or `ConnectionLost`) or stopped."""

    error: DialogueError


Effect = (
    OpenConnection
    | DropConnection
    | Send
    | Resolved
    | Failed
    | Deliver
    | DeliverMessage
    | PresenceChanged
    | UnreadChanged
    | Announced
    | Joined
    | Reset
    | Subscribed
    | Left
    | StateChanged
    | Trouble
    | Ended
)


@dataclass(frozen=True, slots=True)
class Timing:
    """Times of a session, all in seconds.

    Attributes:
        backoff_seconds: The first delay is drawn from 0 up to this; each further one from twice as much.
        backoff_limit_seconds: No delay is drawn from more.
        greeting_seconds: How long the server may take to answer ``connect``.
        stable_seconds: A connection that stood this long starts the backoff anew; one that did not goes on
            with its fourth delay at most, so that a server which takes connections only to close them is not hammered.
        too_fast_seconds: How long the client stays away at least when the server has closed with 4009.
        trigger_attempts: How many answers of unknown outcome a trigger gets before it fails with the last one.
    """

    backoff_seconds: float = 0.5
    backoff_limit_seconds: float = 30.0
    greeting_seconds: float = 10.0
    stable_seconds: float = 5.0
    trigger_attempts: int = field(default=6)
    too_fast_seconds: float = 2.0


def is_for_the_moment(error: CommandError) -> bool:
    """Whether the same command may be taken later: nothing is wrong with the command itself."""
    return error.is_outcome_unknown or is_too_fast(error)


def is_too_fast(error: CommandError) -> bool:
    """Whether the command was not looked at, for there are too many; it counts as an error of this client."""
    return error.code in ("RATE_LIMITED", "BACKPRESSURE")


READ_PAUSE_SECONDS = 1.0
"""How long a reader of many pages waits at least once the server found it too fast: each such answer counts as an
error of the client, and one that asked again at once would be answered so until it is closed with 4009."""
