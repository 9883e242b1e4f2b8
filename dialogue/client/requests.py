"""The requests of a session: each is kept until it is answered, and sent again until then.

Pure, as the `dialogue.client.session` that they are a part of.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import msgspec

from dialogue.errors import Backpressure, DialogueError, MessageTooLarge

from .effects import Effect, Failed, Resolved, Send

TRIGGER = "trigger"
PUBLISHES = frozenset((TRIGGER, "edit", "delete"))
"""Commands that record something: sent in order, and again with their key until their outcome is known."""
READS = frozenset(("history", "rooms", "presence", "unread"))
CHANGES = frozenset(("create_room", "delete_room", "mark_read"))


@dataclass(slots=True)
class Request:
    """A command of the application that waits for its answer.

    Attributes:
        ref: What ties the answer to it; never used twice by a session.
        command: The command as it is sent, ``ref`` included.
        room_id: The room that it concerns, or None.
        is_sent: Whether it was sent on the connection that stands now.
        sends: How often it was sent, on whatever connection.
        attempts: How often the server answered that the outcome is unknown.
        refusals: How often the server did not look at it when it was sent again.
    """

    ref: int
    command: dict[str, Any]
    room_id: str | None
    is_sent: bool = False
    sends: int = 0
    attempts: int = 0
    refusals: int = 0

    @property
    def kind(self) -> str:
        """The command's type."""
        return str(self.command["type"])

    @property
    def queue(self) -> str | int:
        """What it is held with: publishes of one room keep their order."""
        return str(self.room_id) if self.kind in PUBLISHES else self.ref


class Requests:
    """Requests without an answer, in the order made.

    Args:
        emit: Takes what is to be done.
        has_to_wait: Whether a request may not be sent yet.
        max_pending_triggers, max_pending_requests: See `Session`.

    Attributes:
        held_until: Queues (see `Request`) of which one has to be sent again, and not before this time.
    """

    def __init__(
        self,
        emit: Callable[[Effect], None],
        *,
        has_to_wait: Callable[[Request], bool],
        max_pending_triggers: int,
        max_pending_requests: int,
    ) -> None:
        self.held_until: dict[str | int, float] = {}
        self._emit = emit
        self._has_to_wait = has_to_wait
        self._max_pending_triggers = max_pending_triggers
        self._max_pending_requests = max_pending_requests
        self._by_ref: dict[int, Request] = {}
        self._pending_triggers = 0
        self._last_ref = 0

    def __len__(self) -> int:
        return len(self._by_ref)

    def __iter__(self) -> Iterator[Request]:
        """Go through them as they are now; they may be answered meanwhile."""
        return iter(list(self._by_ref.values()))

    def next_ref(self) -> int:
        """Return a ref that no command had before."""
        self._last_ref += 1
        return self._last_ref

    def get(self, ref: Any) -> Request | None:
        """Return the request that *ref* is of, if it still waits."""
        return self._by_ref.get(ref) if isinstance(ref, int) else None

    def add(self, command: dict[str, Any]) -> Request:
        """Keep a new request, and put its ref into its *command*.

        Raises:
            Backpressure: Too many wait for their answers.
            TypeError, ValueError: It is not JSON; a name with a lone surrogate is not, say.
        """
        # Kept, one that cannot be sent would end each connection to come.
        try:
            msgspec.json.encode(command)
        except UnicodeEncodeError as error:
            raise ValueError(f"a name or an option is not text that JSON can have: {error}") from None
        is_trigger = command["type"] in PUBLISHES
        limit = self._max_pending_triggers if is_trigger else self._max_pending_requests
        count = self._pending_triggers if is_trigger else len(self._by_ref) - self._pending_triggers
        if count >= limit:
            what = "triggers" if is_trigger else "requests"
            raise Backpressure(f"{limit} {what} are waiting for their answers already")
        request = Request(self.next_ref(), command, command.get("room"))
        command["ref"] = request.ref
        self._by_ref[request.ref] = request
        self._pending_triggers += is_trigger
        return request

    # ---- sending

    def send_waiting(self, room_id: str | None = None) -> None:
        """Send what was not sent and need not wait, of one room or of all."""
        self._send(
            request
            for request in self._by_ref.values()
            if room_id in (None, request.room_id) and not request.is_sent and not self._has_to_wait(request)
        )

    def send(self, request: Request) -> None:
        """Send *request* now, unless it has to wait."""
        if not self._has_to_wait(request):
            self._send([request])

    def _send(self, requests: Iterable[Request]) -> None:
        commands = []
        for request in requests:
            request.is_sent = True
            request.sends += 1
            commands.append(request.command)
        if commands:
            self._emit(Send(tuple(commands)))

    def hold(self, request: Request, until: float) -> None:
        """Send a request again, and what comes behind it in its queue, but not before *until*."""
        request.is_sent = False
        # One time for all of the room's, and the later one: they go out together, in the order made.
        self.held_until[request.queue] = max(self.held_until.get(request.queue, 0.0), until)

    def release(self, now: float) -> None:
        """Send what was held until *now*."""
        due = [queue for queue, until in self.held_until.items() if now >= until]
        for queue in due:
            del self.held_until[queue]
        if due:
            self.send_waiting()

    def connection_lost(self) -> None:
        """All of them are to be sent again, but those that the end of the connection has answered."""
        self.held_until.clear()
        for request in self._by_ref.values():
            request.is_sent = False
        self.resolve_leaves()

    # ---- answers

    def pop(self, ref: int) -> Request | None:
        """Forget a request: it is not sent again, and nobody is told."""
        request = self._by_ref.pop(ref, None)
        if request is not None and request.kind in PUBLISHES:
            self._pending_triggers -= 1
        return request

    def resolve(self, ref: Any, answer: dict[str, Any]) -> Request | None:
        """Answer a request, and return it; None if it does not wait any more."""
        request = self.pop(ref)
        if request is not None:
            self._emit(Resolved(request.ref, answer))
        return request

    def fail(self, ref: int, error: DialogueError) -> None:
        """Answer a request with an error."""
        if self.pop(ref) is not None:
            self._emit(Failed(ref, error))

    def fail_all(self, error: DialogueError) -> None:
        """Answer everything with an error."""
        self.held_until.clear()
        for request in self:
            self.fail(request.ref, error)

    def fail_largest(self, reason: str) -> None:
        """Give up the largest command that was sent, after the server has closed over its size."""
        # The server refuses a frame by closing, so which command it was nobody says. Sent again for ever, it
        # would close every connection to come.
        sent = [request for request in self._by_ref.values() if request.is_sent]
        if sent:
            largest = max(sent, key=lambda request: len(msgspec.json.encode(request.command)))
            self.fail(largest.ref, MessageTooLarge(reason))

    def resolve_leaves(self) -> None:
        """Answer leaves while there is no connection."""
        # The server has forgotten the connection, and with it the memberships.
        for request in self:
            if request.kind == "leave":
                self.resolve(request.ref, {"type": "ok", "ref": request.ref})
