"""What a `Session` wants done, and the requests that it keeps until they are answered.

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

TRIGGER = "trigger"
PUBLISHES = frozenset((TRIGGER, "edit", "delete"))
"""Commands that record something: sent in order, and again with their key until their outcome is known."""
READS = frozenset({"history", "rooms"})


@dataclass(slots=True)
class Request:
    """A command of the application that waits for its answer.

    Attributes:
        ref: What ties the answer to it; never used twice by a session.
        command: The command as it is sent, ``ref`` included.
        room_id: The room that it concerns, or None.
        is_sent: Whether it was sent on the connection that stands now.
        attempts: How often the server answered that the outcome is unknown.
    """

    ref: int
    command: dict[str, Any]
    room_id: str | None
    is_sent: bool = False
    attempts: int = 0

    @property
    def kind(self) -> str:
        """The command's type."""
        return str(self.command["type"])


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
    | Joined
    | Reset
    | Left
    | StateChanged
    | Trouble
    | Ended
)


@dataclass(slots=True)
class RoomState:
    """What a session knows of a room that it is in.

    Attributes:
        cursor: The seq up to which (included) everything of the subscription was delivered.
        subscriptions: As the server last told them; what a resume asks for.
        resume_ref: The ref of the ``join`` whose answer tells what was missed; None when nothing was. Until
            it is answered recorded events are ignored: they are part of the answer.
        is_behind: Whether events were shed and a resume has to fetch them, which `catch_up` asks for.
        resume_at: When to ask again after a resume that failed for the moment.
        resume_attempts: How often it failed for the moment.
    """

    room_id: str
    epoch: str
    cursor: int
    subscriptions: Any = "*"
    resume_ref: int | None = None
    is_behind: bool = False
    resume_at: float | None = None
    resume_attempts: int = 0

    @property
    def is_current(self) -> bool:
        """Whether live events continue what was delivered."""
        return self.resume_ref is None and not self.is_behind

    @property
    def is_suspended(self) -> bool:
        """Whether the server may not have let the client back in yet, for reasons of the moment."""
        return self.resume_attempts > 0


@dataclass(frozen=True, slots=True)
class Timing:
    """Times of a session, all in seconds.

    Attributes:
        backoff_seconds: The first delay is drawn from 0 up to this; each further one from twice as much.
        backoff_limit_seconds: No delay is drawn from more.
        greeting_seconds: How long the server may take to answer ``connect``.
        stable_seconds: A connection that stood this long starts the backoff anew; one that did not goes on
            with it, so that a server which takes connections only to close them is not hammered.
        trigger_attempts: How many answers of unknown outcome a trigger gets before it fails with the last one.
    """

    backoff_seconds: float = 0.5
    backoff_limit_seconds: float = 30.0
    greeting_seconds: float = 10.0
    stable_seconds: float = 5.0
    trigger_attempts: int = field(default=6)


def is_for_the_moment(error: CommandError) -> bool:
    """Whether the same command may be taken later: nothing is wrong with the command itself."""
    return error.code in ("STORE_UNAVAILABLE", "INTERNAL", "RATE_LIMITED", "BACKPRESSURE")
