"""What is on its way to the store: events with their publishers, and questions; and what became of them."""

from __future__ import annotations

import asyncio
from typing import Any, NamedTuple, Protocol

from ..errors import CommandError
from ..events import Ack, Draft, EncodedEvent, Event
from ..storage.base import Appended


class Publisher(Protocol):
    """Who is told what became of a submission. Neither method may raise."""

    def on_recorded(self, submission: Submission, outcome: Outcome) -> bytes | None:
        """The submission is recorded; return the ``ok`` message to send along, if it goes over a connection."""

    def on_failed(self, submission: Submission, error: CommandError) -> None:
        """The submission was not recorded, or its outcome is not known in time."""


class Submission:
    """One draft on its way through the group.

    Attributes:
        publisher: Who is told; None when nobody waits.
        ref: The publisher's name for it.
        deadline: Loop time after which the publisher is answered, whatever the append does.
        is_answered: Whether the publisher has been told already; an event recorded later is still delivered.
        size: Bytes that it counts for.
    """

    __slots__ = ("deadline", "draft", "is_answered", "publisher", "ref", "size")

    def __init__(self, draft: Draft, publisher: Publisher | None, ref: Any, deadline: float) -> None:
        self.draft = draft
        self.publisher = publisher
        self.ref = ref
        self.deadline = deadline
        self.is_answered = publisher is None
        self.size = _size(draft)

    def fail(self, error: CommandError) -> None:
        """Tell the publisher, once."""
        if not self.is_answered and self.publisher is not None:
            self.is_answered = True
            self.publisher.on_failed(self, error)


class Outcome(NamedTuple):
    """A submission that is recorded (or passed through, if ephemeral)."""

    submission: Submission
    appended: Appended | None
    event: EncodedEvent | None


class Waiter:
    """A publisher inside the process.

    Attributes:
        result: What it is told.
    """

    __slots__ = ("result",)

    def __init__(self) -> None:
        self.result: asyncio.Future[Ack] = asyncio.get_running_loop().create_future()

    def on_recorded(self, submission: Submission, outcome: Outcome) -> None:
        if not self.result.done():
            self.result.set_result(ack_of(outcome))

    def on_failed(self, submission: Submission, error: CommandError) -> None:
        if not self.result.done():
            self.result.set_exception(error)


def ack_of(outcome: Outcome) -> Ack:
    """Return what the publisher of *outcome* is told."""
    appended = outcome.appended
    if appended is None:
        assert outcome.event is not None
        event: Event[Any] = Event.decode(outcome.event, epoch=None)
        return Ack(None, None, event.timestamp)
    return appended.ack


class Lookup:
    """A question for what is recorded under a draft's key, in its place among the submissions."""

    __slots__ = ("deadline", "draft", "result", "size")

    def __init__(self, draft: Draft, deadline: float) -> None:
        self.draft = draft
        self.deadline = deadline
        self.size = _size(draft)
        self.result: asyncio.Future[Appended | None] = asyncio.get_running_loop().create_future()

    @property
    def is_answered(self) -> bool:
        """Whether whoever asked has been told, or has gone."""
        return self.result.done()

    def fail(self, error: CommandError) -> None:
        """Tell whoever asked, once."""
        if not self.result.done():
            self.result.set_exception(error)


def _size(draft: Draft) -> int:
    return len(draft.data_json) + (0 if draft.meta_json is None else len(draft.meta_json))
