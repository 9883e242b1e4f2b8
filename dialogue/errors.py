"""The error tree.

::

    DialogueError
    ├── ConfigError                 a declaration is wrong; raised when declared
    ├── StartError                  the server cannot start
    │   ├── LogLocked               another process owns the log
    │   ├── SchemaMismatch          the database is behind or ahead of this code
    │   └── LifespanNotRunning      a socket arrived before the lifespan was entered
    ├── StoreError                  raised by a Store
    │   ├── StoreUnavailable        nothing was recorded (wire: STORE_UNAVAILABLE)
    │   │   └── StoreBusy           more wants to be read than may wait (wire: BACKPRESSURE)
    │   ├── OutcomeUnknown          the append may or may not have been recorded
    │   ├── DraftRefused            the database refuses this event, however often it is tried
    │   │   └── TargetGone          what an edit or deletion is for is no longer there
    │   └── CursorExpired           a feed starts below what has been removed
    ├── TransferError               a log cannot be exported or imported
    ├── ConnectionLost              (client) the connection ended and is not coming back
    ├── StreamBroken                (client) a room's stream cannot go on without a hole
    └── CommandError                a command was refused; one subclass per wire code
        ├── InvalidRequest          INVALID_REQUEST
        ├── Unauthenticated         UNAUTHENTICATED
        ├── RoomNotFound            ROOM_NOT_FOUND
        ├── RoomExists              ROOM_EXISTS
        ├── RoomFull                ROOM_FULL
        ├── JoinDenied              JOIN_DENIED
        ├── NotJoined               NOT_JOINED
        ├── PermissionDenied        PERMISSION_DENIED
        ├── EventNotAllowed         EVENT_NOT_ALLOWED
        ├── ValidationFailed        VALIDATION_FAILED
        ├── Blocked                 BLOCKED
        ├── MessageTooLarge         MESSAGE_TOO_LARGE
        ├── RateLimited             RATE_LIMITED
        ├── Backpressure            BACKPRESSURE
        ├── StoreUnavailable        STORE_UNAVAILABLE (also a StoreError)
        └── Internal                INTERNAL

A caller's mistake in calling the API stays ``TypeError`` or ``ValueError``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar


class DialogueError(Exception):
    """Base of everything that Dialogue raises on purpose."""


class ConfigError(DialogueError):
    """A declaration is wrong.

    Args:
        where: What is wrong, from the outside in, e.g. ``room 'general', field 'events'``.
        problem: What is wrong with it.
        remedy: What to do about it.
    """

    def __init__(self, where: str, problem: str, remedy: str) -> None:
        self.where = where
        self.problem = problem
        self.remedy = remedy
        super().__init__(f"{where}: {problem}. {remedy}")


class StartError(DialogueError):
    """The server cannot start; the message names the remedy."""


class LogLocked(StartError):
    """Another process owns the log."""

    def __init__(self, log: str, waited_seconds: float) -> None:
        self.log = log
        self.waited_seconds = waited_seconds
        waited = f" (waited {waited_seconds:g} s for it)" if waited_seconds else ""
        super().__init__(
            f"another process is serving the log {log}{waited}. "
            "Two servers on one log would split its rooms: stop the other one, or give this one a log of its own"
        )


class SchemaMismatch(StartError):
    """The database is behind or ahead of this version of Dialogue."""

    def __init__(self, log: str, found: str, expected: str, remedy: str) -> None:
        self.log = log
        self.found = found
        self.expected = expected
        self.remedy = remedy
        super().__init__(f"the log {log} has schema {found}, this version needs {expected}. {remedy}")


class LifespanNotRunning(StartError):
    """A connection arrived although the lifespan of this Dialogue was never entered."""

    def __init__(self) -> None:
        super().__init__(
            "this Dialogue was not started: the application that serves it does not run its lifespan. "
            "A mounted sub-application's lifespan is not run by its parent: use "
            "app.include_router(dialogue.router, prefix=...) instead of app.mount(...), or enter "
            "'async with dialogue.lifespan():' in the parent's own lifespan"
        )


class StoreError(DialogueError):
    """Base of what a Store raises."""


class OutcomeUnknown(StoreError):
    """The append may or may not have been recorded; `Store.settle` tells."""


class DraftRefused(StoreError):
    """The database refuses one of these drafts, and would again.

    Raised for the whole append (nothing was recorded). The caller finds the culprit by halving.
    """


class TargetGone(DraftRefused):
    """The event that an edit or deletion is for has left the log, or is deleted."""


class CursorExpired(StoreError):
    """A feed cannot go on where it is asked to.

    Args:
        removed_through_id: Everything up to and including this id may be missing; a reader that takes the loss goes
            on after it. None where the cursor is of another life of the log, or above all that it has recorded.
    """

    def __init__(self, removed_through_id: int | None) -> None:
        self.removed_through_id = removed_through_id
        super().__init__(
            "the cursor is of another life of the log, or of a time after the backup that it was restored from: "
            "its ids mean nothing here. feed(after=0) starts again"
            if removed_through_id is None
            else f"events up to id {removed_through_id} have been removed from the log; "
            f"feed(after={removed_through_id}) goes on with what is left"
        )


class TransferError(DialogueError):
    """A log cannot be exported or imported; the message names the remedy. Log and file are as they were."""


class ConnectionLost(DialogueError):
    """The connection ended and will not be tried again.

    Args:
        code: The WebSocket close code, or None when there was no close frame.
        reason: The server's reason, possibly empty.
    """

    def __init__(self, code: int | None = None, reason: str = "") -> None:
        self.code = code
        self.reason = reason
        detail = f" with code {code}" if code is not None else ""
        super().__init__(f"the connection was closed{detail}{': ' + reason if reason else ''}")


_BROKEN = {
    "retention": "events that come next have been removed for good",
    "no_seq": "events that come next are in an archive that keeps no seq, by which a stream could go through them",
    "epoch": "its seq is of another life of the log, or of a time after the backup that it was restored from",
    "unsubscribed": "the room's subscription does not have all of its events any more",
}


class StreamBroken(DialogueError):
    """A room's stream cannot go on without a hole.

    Args:
        room_id: The room.
        reason: ``retention``: events above *after* have been removed for good. ``no_seq``: they are in an archive
            that keeps no seq; `Room.scroll` reads them. ``epoch``: seqs of before mean nothing any more.
            ``unsubscribed``: the subscription was changed.
        after: The seq of the event that was yielded last; before that, where the stream began.
        resume_after: Where a new stream goes on if the loss is accepted; None where seqs of before mean nothing. Of
            several names it is behind what is missing of one, and events of the others may lie between *after* and
            it; *on_gap* of `Room.stream` passes over none of them.
    """

    def __init__(self, room_id: str, reason: str, *, after: int, resume_after: int | None) -> None:
        self.room_id = room_id
        self.reason = reason
        self.after = after
        self.resume_after = resume_after
        remedy = (
            "stream(after=0) starts again"
            if resume_after is None
            else f"stream(after={resume_after}) goes on"
        )
        super().__init__(
            f"the stream of the room {room_id!r} ends after seq {after}: {_BROKEN.get(reason, reason)}; {remedy}"
        )


class CommandError(DialogueError):
    """A command was refused.

    Args:
        message: What is told to the client; never contains its input.
        details: Machine-readable parts, e.g. pydantic's errors without the input.
        retry_after_seconds: When trying again makes sense, if the server knows.

    Attributes:
        code: The wire code (PROTOCOL, Errors).
    """

    code: ClassVar[str] = "INTERNAL"
    default_message: ClassVar[str] = "the command failed"

    def __init__(
        self,
        message: str = "",
        *,
        details: Sequence[Any] | None = None,
        retry_after_seconds: float | None = None,
    ) -> None:
        self.message = message or self.default_message
        self.details = list(details) if details is not None else None
        self.retry_after_seconds = retry_after_seconds
        super().__init__(self.message)

    @property
    def is_outcome_unknown(self) -> bool:
        """Whether a trigger that got this may have been recorded; retry it with the same key."""
        return self.code in ("STORE_UNAVAILABLE", "INTERNAL")


class InvalidRequest(CommandError):
    code = "INVALID_REQUEST"
    default_message = "the command is not valid"


class Unauthenticated(CommandError):
    code = "UNAUTHENTICATED"
    default_message = "not authenticated"


class RoomNotFound(CommandError):
    code = "ROOM_NOT_FOUND"
    default_message = "there is no such room"


class RoomExists(CommandError):
    code = "ROOM_EXISTS"
    default_message = "there is already such a room"


class RoomFull(CommandError):
    code = "ROOM_FULL"
    default_message = "the room is full"


class JoinDenied(CommandError):
    code = "JOIN_DENIED"
    default_message = "joining was denied"


class NotJoined(CommandError):
    code = "NOT_JOINED"
    default_message = "join the room first"


class PermissionDenied(CommandError):
    code = "PERMISSION_DENIED"
    default_message = "not permitted"


class EventNotAllowed(CommandError):
    code = "EVENT_NOT_ALLOWED"
    default_message = "the room does not take this event from a client"


class ValidationFailed(CommandError):
    code = "VALIDATION_FAILED"
    default_message = "the data does not fit the event's schema"


class Blocked(CommandError):
    code = "BLOCKED"
    default_message = "the event was blocked"


class MessageTooLarge(CommandError):
    code = "MESSAGE_TOO_LARGE"
    default_message = "the message is too large"


class RateLimited(CommandError):
    code = "RATE_LIMITED"
    default_message = "too fast"


class Backpressure(CommandError):
    code = "BACKPRESSURE"
    default_message = "the server has more to do than it may queue"


class StoreUnavailable(CommandError, StoreError):
    """The store cannot be written or read now.

    Raised by a Store it means that nothing was recorded; on the wire the outcome is unknown, because a
    publisher may also be answered so when its append takes longer than ``limits.append_timeout_seconds``.
    """

    code = "STORE_UNAVAILABLE"
    default_message = "the store is unavailable"


class StoreBusy(Backpressure, StoreUnavailable):
    """More reads wait for the store than may, or one has waited too long. To clients it is `Backpressure`."""

    default_message = "too many reads wait for the store"


class Internal(CommandError):
    code = "INTERNAL"
    default_message = "internal error"


COMMAND_ERRORS: dict[str, type[CommandError]] = {
    cls.code: cls
    for cls in (
        InvalidRequest,
        Unauthenticated,
        RoomNotFound,
        RoomExists,
        RoomFull,
        JoinDenied,
        NotJoined,
        PermissionDenied,
        EventNotAllowed,
        ValidationFailed,
        Blocked,
        MessageTooLarge,
        RateLimited,
        Backpressure,
        StoreUnavailable,
        Internal,
    )
}


def command_error(
    code: str,
    message: str = "",
    *,
    details: Sequence[Any] | None = None,
    retry_after_seconds: float | None = None,
) -> CommandError:
    """Return the error for a wire *code*; an unknown code gives `Internal` with the code in its message."""
    cls = COMMAND_ERRORS.get(code)
    if cls is None:
        return Internal(f"{code}: {message}", details=details, retry_after_seconds=retry_after_seconds)
    return cls(message, details=details, retry_after_seconds=retry_after_seconds)
