"""The pure resume state machine of a client: no I/O, no clock, no event loop.

The shell tells it what happened (`opened`, `received`, `closed`, `tick`, ...) and what the application wants
(`join`, `trigger`, `read`, ...), then takes `effects` and carries them out in order. Time comes in as ``now``, in
seconds of any monotonic clock; randomness as a function; keys with the triggers.

What it promises, for any interleaving of losses, resumes and duplicates:

- Every recorded event of a room's subscription is delivered once, in seq order, or a `Reset` is told.
- Every request is resolved or failed once, unless it is cancelled.
- Unanswered triggers are sent again after a reconnect, with the same key and in the order they were made.

Two triggers may change places in one case only: the first one is to be sent again when the second one is already
sent, because its outcome is unknown (``STORE_UNAVAILABLE``, ``INTERNAL``) or because, sent again, it was too much at
the time (``RATE_LIMITED``, ``BACKPRESSURE``). Triggers of the same room made after such an answer wait until the first
one is sent again.

What is refused as too much when it is sent for the first time fails: the caller decides. A room that is resumed, and
a join or trigger that is sent again, is tried until it is taken or refused for another reason.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from dialogue.errors import (
    CommandError,
    ConnectionLost,
    DialogueError,
    InvalidRequest,
    NotJoined,
    PermissionDenied,
    RoomNotFound,
    Unauthenticated,
    command_error,
)
from dialogue.protocol import (
    CLOSE_NORMAL,
    CLOSE_NOT_THIS_PROTOCOL,
    CLOSE_TOO_BIG,
    CLOSE_TOO_MANY_ERRORS,
    CLOSE_UNAUTHENTICATED,
)

from .effects import (
    Announced,
    DeliverMessage,
    DropConnection,
    Effect,
    Ended,
    OpenConnection,
    Send,
    State,
    StateChanged,
    Timing,
    Trouble,
    UnreadChanged,
    is_too_fast,
)
from .memberships import Memberships, RoomState
from .requests import CHANGES, PUBLISHES, READS, TRIGGER, Request, Requests

FINAL_CLOSE_CODES = frozenset({CLOSE_UNAUTHENTICATED, CLOSE_NOT_THIS_PROTOCOL})

# What a server's refusal of `connect` says about any further try with the same credentials.
_FINAL_REFUSALS = (Unauthenticated, InvalidRequest, PermissionDenied)

_DEFAULT_PING_SECONDS = 25.0

FAILURES_ONCE_CONNECTED = 3
"""A connection that stood, however shortly, takes the backoff back to so many doublings: the server is there, and on a
bad line a client that is cut again and again would be away for most of the time."""


class Session:
    """One client's rooms, requests and connection, as pure state.

    Args:
        random: Returns numbers from 0 (inclusive) to 1 (exclusive), for the backoff's jitter.
        max_pending_triggers: Most triggers without an answer; further ones raise `Backpressure`.
        max_pending_requests: Most other requests without an answer; further ones raise `Backpressure`.
        timing: Delays and retries.

    Attributes:
        state: See `State`.
        client_id: The server's name for the connection, from ``connected``; changes with every connection.
        user_id: Who the server says this is; None before the first ``connected``.
        limits: The server's limits by name, as far as it told them.
        timing: As given.
    """

    def __init__(
        self,
        *,
        random: Callable[[], float],
        max_pending_triggers: int = 1000,
        max_pending_requests: int = 1000,
        timing: Timing | None = None,
    ) -> None:
        self.state: State = "offline"
        self.client_id: str | None = None
        self.user_id: str | None = None
        self.limits: dict[str, Any] = {}
        self.ping_seconds = _DEFAULT_PING_SECONDS
        self._random = random
        self.timing = timing or Timing()
        self._effects: list[Effect] = []
        self._requests = Requests(
            self._emit,
            has_to_wait=self._has_to_wait,
            max_pending_triggers=max_pending_triggers,
            max_pending_requests=max_pending_requests,
        )
        self._memberships = Memberships(self._emit, self._requests, delay=self._delay)
        self._connect_ref: int | None = None
        self._failed_tries = 0
        self._up_since = 0.0
        self._open_at: float | None = None
        self._open_not_before = 0.0
        self._greeting_until: float | None = None
        self._last_heard: float | None = None
        self._paused_pong_at: float | None = None
        self._ended: DialogueError | None = None
        # Changes of a subscription that were sent on this connection and then cancelled, by ref, with the room's id.
        self._unheard: dict[int, str | None] = {}

    # ---- the shell's side

    def effects(self) -> list[Effect]:
        """Return what is to be done since the last call, in order; an empty list for nothing."""
        effects, self._effects = self._effects, []
        return effects

    def _emit(self, effect: Effect) -> None:
        self._effects.append(effect)

    @property
    def rooms(self) -> dict[str, RoomState]:
        """The joined rooms by id."""
        return self._memberships.by_room

    @property
    def deadline(self) -> float | None:
        """When `tick` has something to do if nothing else happens before; None for never."""
        times = [
            time for time in (self._open_at, self._greeting_until, self._paused_pong_at) if time is not None
        ]
        if self._last_heard is not None and self._paused_pong_at is None:
            times.append(self._last_heard + 2 * self.ping_seconds)
        if self.state == "connected":
            times.extend(self._requests.held_until.values())
            if self._memberships.deadline is not None:
                times.append(self._memberships.deadline)
        return min(times, default=None)

    @property
    def has_pending(self) -> bool:
        """Whether a request waits for its answer."""
        return len(self._requests) > 0

    @property
    def ended(self) -> DialogueError | None:
        """Why the session is over for good, or None."""
        return self._ended

    def start(self, now: float) -> None:
        """Begin: open the first connection."""
        self._set_state("connecting")
        self._open(now)

    def stop(self) -> None:
        """End: everything pending fails with `ConnectionLost`, and nothing is delivered any more."""
        self._end(ConnectionLost(CLOSE_NORMAL, "closed by this client"))

    def opened(self, auth: dict[str, Any] | None, now: float) -> None:
        """A connection stands; greet the server."""
        if self._ended:
            return
        self._connect_ref = self._requests.next_ref()
        self._greeting_until = now + self.timing.greeting_seconds
        command: dict[str, Any] = {"type": "connect", "ref": self._connect_ref}
        if auth is not None:
            command["auth"] = auth
        self._emit(Send((command,)))

    def open_failed(self, now: float) -> None:
        """A connection could not be opened; try again later. No failure of this kind ends the retrying."""
        self._schedule_open(now)

    def closed(self, code: int | None, reason: str, now: float) -> None:
        """The connection is gone.

        Args:
            code: The close code, or None when there was no close frame. 4002 ends the session, and 4001 one that
                was not connected: credentials that have expired meanwhile are asked for again. After 4009 the client
                stays away for a while, however long the connection stood.
            reason: As the server gave it.
            now: The time.
        """
        if self._ended:
            return
        was_connected = self.state == "connected"
        self._connect_ref = self._greeting_until = self._last_heard = self._paused_pong_at = None
        self.client_id = None
        self._unheard.clear()
        if code in FINAL_CLOSE_CODES and not (was_connected and code == CLOSE_UNAUTHENTICATED):
            self._end(ConnectionLost(code, reason))
            return
        if code == CLOSE_TOO_BIG:
            self._requests.fail_largest(reason)
        self._requests.connection_lost()
        self._memberships.connection_lost()
        if was_connected:
            if code != CLOSE_TOO_MANY_ERRORS:
                has_stood = now - self._up_since >= self.timing.stable_seconds
                self._failed_tries = 0 if has_stood else min(self._failed_tries, FAILURES_ONCE_CONNECTED)
            self._set_state("resuming")
        if code == CLOSE_TOO_MANY_ERRORS:
            self._open_not_before = now + self.timing.too_fast_seconds
        self._schedule_open(now)

    def received(self, messages: Sequence[dict[str, Any]], now: float, *, is_shedding: bool = False) -> None:
        """Take in the messages of one frame.

        Args:
            messages: In order.
            now: The time.
            is_shedding: Whether the application takes no more events now. Recorded events are then left out,
                to be asked for again by `catch_up`; nothing is lost. Ephemeral events and messages to this
                client alone are delivered all the same, for nobody could tell of them later.

        Raises:
            ValueError: A message is not one of the protocol. The connection should be dropped.
        """
        if self._ended:
            return
        self._last_heard = now
        for message in messages:
            try:
                self._take(message, now, is_shedding)
            except (KeyError, TypeError, msgspec.ValidationError) as error:
                raise ValueError(
                    f"a {message.get('type')!r} message is not as it should be: {error}"
                ) from error
            if self._ended:
                return
        if self.state == "connected":
            # Shedding or not, rooms are entered: what makes the application slow may be a request in one of them.
            self._memberships.catch_up(only_suspended=is_shedding)

    def paused(self, now: float) -> None:
        """Reading has stopped because the application is slow: silence is no sign of anything.

        While it lasts a ``pong`` goes out every ``ping_seconds``, so that the server does not take the client
        for dead.
        """
        if self._last_heard is not None:
            self._paused_pong_at = now + self.ping_seconds

    def unpaused(self, now: float) -> None:
        """Reading goes on."""
        if self._last_heard is not None:
            self._last_heard = now
        self._paused_pong_at = None

    def catch_up(self) -> None:
        """The application takes events again: ask for what was shed. `received` calls it, too."""
        if self.state == "connected":
            self._memberships.catch_up()

    def tick(self, now: float) -> None:
        """Do what is due; see `deadline`."""
        if self._ended:
            return
        if self._open_at is not None and now >= self._open_at:
            self._open(now)
        if self._greeting_until is not None and now >= self._greeting_until:
            self._greeting_until = None
            self._emit(DropConnection("the server did not answer 'connect'"))
        if self._paused_pong_at is not None:
            if now >= self._paused_pong_at:
                self._paused_pong_at = now + self.ping_seconds
                self._emit(Send(({"type": "pong"},)))
        elif self._last_heard is not None and now >= self._last_heard + 2 * self.ping_seconds:
            self._last_heard = None
            self._emit(DropConnection(f"nothing heard for {2 * self.ping_seconds:g} s"))
            return
        if self.state != "connected":
            return
        self._requests.release(now)
        self._memberships.tick(now)

    # ---- the application's side

    def join(self, room_id: str, *, sync: int | None = None, events: Any = None) -> int:
        """Join a room, or change the subscription of a joined one; return the request's ref.

        Raises:
            Backpressure: Too many requests wait for their answers.
            ConnectionLost: The session has ended.
        """
        command: dict[str, Any] = {"type": "join", "room": room_id}
        if sync is not None:
            command["sync"] = sync
        if events is not None:
            command["events"] = events
        return self._request(command)

    def leave(self, room_id: str) -> int:
        """Leave a room: none of its events is delivered from now on. Reads of it that are pending fail.

        Raises:
            Backpressure, ConnectionLost: See `join`.
        """
        ref = self._request({"type": "leave", "room": room_id})
        self._memberships.forget(room_id)
        if self.state != "connected":
            self._requests.resolve_leaves()
        return ref

    def subscribe(self, room_id: str, events: Any, *, is_adding: bool = True) -> int:
        """Add event names (or ``"*"``) to a room's subscription, or take them away.

        Raises:
            Backpressure, ConnectionLost: See `join`.
        """
        kind = "subscribe" if is_adding else "unsubscribe"
        return self._request({"type": kind, "room": room_id, "events": events})

    def trigger(self, room_id: str, event: str, data: Any, *, key: str, meta: Any = None) -> int:
        """Publish an event; it is sent until it is answered, always with the same *key*.

        Raises:
            Backpressure: Too many triggers wait for their answers.
            ConnectionLost: The session has ended.
        """
        command = {"type": TRIGGER, "room": room_id, "event": event, "data": data, "key": key}
        if meta is not None:
            command["meta"] = meta
        return self._request(command)

    def edit(self, room_id: str, seq: int, data: Any, *, key: str) -> int:
        """Replace the data of an event; sent like a trigger.

        Raises:
            Backpressure, ConnectionLost: See `trigger`.
        """
        return self._request({"type": "edit", "room": room_id, "seq": seq, "data": data, "key": key})

    def delete(self, room_id: str, seq: int, *, key: str) -> int:
        """Delete an event; sent like a trigger.

        Raises:
            Backpressure, ConnectionLost: See `trigger`.
        """
        return self._request({"type": "delete", "room": room_id, "seq": seq, "key": key})

    def read(self, command: dict[str, Any]) -> int:
        """Send a command that reads (without ``ref``); it is asked again after a reconnect.

        Raises:
            Backpressure, ConnectionLost: See `join`.
        """
        if command["type"] not in READS:
            raise ValueError(f"{command['type']!r} is not a read")
        return self._request(dict(command))

    def change(self, command: dict[str, Any]) -> int:
        """Send ``create_room``, ``delete_room`` or ``mark_read`` (without ``ref``); it is sent until it is answered.

        Raises:
            Backpressure, ConnectionLost: See `join`.
        """
        if command["type"] not in CHANGES:
            raise ValueError(f"{command['type']!r} is not a change")
        return self._request(dict(command))

    def cancel(self, ref: int) -> None:
        """Nobody waits for this request any more: it is not sent again. What was sent may yet be done."""
        request = self._requests.get(ref)
        if request is None or (request.kind == "leave" and request.is_sent):
            return  # While a leave is on its way a join made before it may be answered: see `Memberships`.
        self._requests.pop(ref)
        if request.kind in ("subscribe", "unsubscribe") and request.is_sent:
            self._unheard[ref] = request.room_id

    # ---- requests

    def _request(self, command: dict[str, Any]) -> int:
        if self._ended:
            raise ConnectionLost(getattr(self._ended, "code", None), str(self._ended))
        request = self._requests.add(command)
        self._requests.send(request)
        return request.ref

    def _has_to_wait(self, request: Request) -> bool:
        if self.state != "connected":
            return True
        if request.queue in self._requests.held_until:
            return True
        room = self._memberships.get(request.room_id)
        return room is not None and room.is_suspended and request.kind not in ("join", "leave")

    # ---- the connection

    def _set_state(self, state: State) -> None:
        if state != self.state:
            self.state = state
            self._emit(StateChanged(state))

    def _open(self, now: float) -> None:
        self._open_at = None
        self._emit(OpenConnection())

    def _schedule_open(self, now: float) -> None:
        if self._ended:
            return
        self._open_at = max(now + self._delay(self._failed_tries), self._open_not_before)
        self._failed_tries += 1

    def _delay(self, tries: int) -> float:
        # Full jitter: after a server's restart its clients come back spread out, not in step.
        # 2**tries is kept from growing without bound: past 30 any limit in use is reached.
        highest = min(self.timing.backoff_limit_seconds, self.timing.backoff_seconds * 2 ** min(tries, 30))
        return float(self._random() * highest)

    def _end(self, error: DialogueError) -> None:
        if self._ended:
            return
        self._ended = error
        self._open_at = self._greeting_until = self._last_heard = self._paused_pong_at = None
        lost = (
            error if isinstance(error, ConnectionLost) else ConnectionLost(CLOSE_UNAUTHENTICATED, str(error))
        )
        self._requests.fail_all(lost)
        self._set_state("offline")
        self._emit(Ended(error))

    # ---- messages

    def _take(self, message: dict[str, Any], now: float, is_shedding: bool) -> None:
        match message["type"]:
            case "event":
                self._memberships.take_event(message, is_shedding)
            case "ok" | "history" | "rooms":
                self._take_answer(message)
            case "error":
                self._take_error(message, now)
            case "joined":
                self._memberships.take_joined(message, is_shedding)
            case "left":
                self._memberships.take_left(message["room"], message.get("reason") or "")
            case "message":
                self._emit(DeliverMessage(message["event"], message.get("data")))
            case "presence" | "unread" if message.get("ref") is not None:
                self._take_answer(message)
            case "presence":
                self._memberships.take_presence(message)
            case "unread":
                self._emit(UnreadChanged(dict(message["unread"])))
            case "room_created" | "room_updated" as kind:
                self._emit(Announced(kind, message["id"], message))
            case "room_deleted":
                self._emit(Announced("room_deleted", message["room"], message))
            case "ping":
                self._emit(Send(({"type": "pong"},)))
            case "connected":
                self._take_connected(message, now)
            case _:
                pass  # Of a later version of the protocol, or for a part that is not asked for here.

    def _take_connected(self, message: dict[str, Any], now: float) -> None:
        if message.get("ref") != self._connect_ref or self.state == "connected":
            return
        self.client_id = message["client_id"]
        self.user_id = message["user_id"]
        self.ping_seconds = float(message.get("ping_seconds") or _DEFAULT_PING_SECONDS)
        self.limits = message.get("limits") or {}
        self._greeting_until = None
        self._up_since = now
        self._set_state("connected")
        # Rooms first: the server takes triggers and reads of members only.
        self.catch_up()
        self._requests.send_waiting()

    def _take_answer(self, message: dict[str, Any]) -> None:
        ref = message.get("ref")
        request = self._requests.resolve(ref, message)
        if request is not None and request.kind in ("subscribe", "unsubscribe"):
            self._memberships.take_subscription(message, request.room_id)
        elif isinstance(ref, int) and ref in self._unheard:
            self._memberships.take_subscription(message, self._unheard.pop(ref))

    def _take_error(self, message: dict[str, Any], now: float) -> None:
        error = command_error(
            message["code"],
            message.get("message") or "",
            details=message.get("details"),
            retry_after_seconds=message.get("retry_after_seconds"),
        )
        ref = message.get("ref")
        if ref is not None and ref == self._connect_ref:
            if isinstance(error, _FINAL_REFUSALS):
                self._end(error)
            else:
                self._open_not_before = now + (error.retry_after_seconds or 0.0)
                self._emit(Trouble(error))
                self._emit(DropConnection(f"'connect' was answered with {error.code}"))
            return
        if self._memberships.refused(ref, error, now):
            return
        request = self._requests.get(ref)
        if request is None:
            # An answer to a cancelled request concerns nobody.
            if ref is None:
                self._emit(Trouble(error))
            elif isinstance(ref, int):
                self._unheard.pop(ref, None)
            return
        room = self._memberships.get(request.room_id)
        if isinstance(error, NotJoined) and room is not None and room.is_suspended:
            # Sent right behind a resume that failed for the moment; it goes again when one has succeeded.
            request.is_sent = False
            return
        if request.kind in PUBLISHES and error.is_outcome_unknown:
            request.attempts += 1
            if request.attempts < self.timing.trigger_attempts:
                self._send_again(request, error, request.attempts, now)
                return
        if request.sends > 1 and is_too_fast(error) and request.kind in (*PUBLISHES, "join"):
            # Not even a refusal: whether an earlier try was taken it does not say.
            request.refusals += 1
            self._send_again(request, error, request.refusals, now)
            return
        if (isinstance(error, NotJoined) and request.kind == "leave") or (
            isinstance(error, RoomNotFound) and request.kind == "delete_room" and request.sends > 1
        ):
            # What was asked for is so: an earlier try was taken, or the server has not let the client back in yet.
            self._requests.resolve(request.ref, {"type": "ok", "ref": request.ref})
            return
        self._requests.fail(request.ref, error)

    def _send_again(self, request: Request, error: CommandError, tries: int, now: float) -> None:
        delay = max(self._delay(tries), error.retry_after_seconds or 0.0)
        self._requests.hold(request, now + delay)
