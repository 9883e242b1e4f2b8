"""The pure resume state machine of a client: no I/O, no clock, no event loop.

The shell tells it what happened (`opened`, `received`, `closed`, `tick`, ...) and what the application wants
(`join`, `trigger`, `read`, ...), then takes `effects` and carries them out in order. Time comes in as ``now``, in
seconds of any monotonic clock; randomness as a function; keys with the triggers.

What it promises, for any interleaving of losses, resumes and duplicates:

- Every recorded event of a room's subscription is delivered once, in seq order, or a `Reset` is told.
- Every request is resolved or failed once, unless it is cancelled.
- Unanswered triggers are sent again after a reconnect, with the same key and in the order they were made.

Two triggers may change places in one case only: the first one is answered with an unknown outcome
(``STORE_UNAVAILABLE``, ``INTERNAL``) when the second one is already sent. Triggers of the same room made after
such an answer wait until the first one is sent again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import msgspec

from dialogue.errors import (
    Backpressure,
    CommandError,
    ConnectionLost,
    DialogueError,
    InvalidRequest,
    MessageTooLarge,
    NotJoined,
    PermissionDenied,
    Unauthenticated,
    command_error,
)
from dialogue.events import WireEvent
from dialogue.protocol import CLOSE_NORMAL, CLOSE_NOT_THIS_PROTOCOL, CLOSE_TOO_BIG, CLOSE_UNAUTHENTICATED

from .effects import (
    PUBLISHES,
    READS,
    TRIGGER,
    Deliver,
    DeliverMessage,
    DropConnection,
    Effect,
    Ended,
    Failed,
    Joined,
    Left,
    OpenConnection,
    Request,
    Reset,
    Resolved,
    RoomState,
    Send,
    State,
    StateChanged,
    Timing,
    Trouble,
    is_for_the_moment,
)

FINAL_CLOSE_CODES = frozenset({CLOSE_UNAUTHENTICATED, CLOSE_NOT_THIS_PROTOCOL})

# What a server's refusal of `connect` says about any further try with the same credentials.
_FINAL_REFUSALS = (Unauthenticated, InvalidRequest, PermissionDenied)

_DEFAULT_PING_SECONDS = 25.0


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
        rooms: The joined rooms by id.
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
        self.rooms: dict[str, RoomState] = {}
        self._random = random
        self._max_pending_triggers = max_pending_triggers
        self._max_pending_requests = max_pending_requests
        self._timing = timing or Timing()
        self._effects: list[Effect] = []
        self._requests: dict[int, Request] = {}
        self._pending_triggers = 0
        self._last_ref = 0
        self._connect_ref: int | None = None
        self._may_be_behind = False
        self._failed_tries = 0
        self._up_since = 0.0
        self._open_at: float | None = None
        self._greeting_until: float | None = None
        self._last_heard: float | None = None
        self._paused_pong_at: float | None = None
        # Rooms whose triggers wait because one of them has to be sent again first, and until when.
        self._held_until: dict[str, float] = {}
        self._ended: DialogueError | None = None

    # ---- the shell's side

    def effects(self) -> list[Effect]:
        """Return what is to be done since the last call, in order; an empty list for nothing."""
        effects, self._effects = self._effects, []
        return effects

    @property
    def deadline(self) -> float | None:
        """When `tick` has something to do if nothing else happens before; None for never."""
        times = [
            time for time in (self._open_at, self._greeting_until, self._paused_pong_at) if time is not None
        ]
        if self._last_heard is not None and self._paused_pong_at is None:
            times.append(self._last_heard + 2 * self.ping_seconds)
        if self.state == "connected":
            times.extend(self._held_until.values())
            times.extend(room.resume_at for room in self.rooms.values() if room.resume_at is not None)
        return min(times, default=None)

    @property
    def has_pending(self) -> bool:
        """Whether a request waits for its answer."""
        return bool(self._requests)

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
        self._connect_ref = self._next_ref()
        self._greeting_until = now + self._timing.greeting_seconds
        command: dict[str, Any] = {"type": "connect", "ref": self._connect_ref}
        if auth is not None:
            command["auth"] = auth
        self._effects.append(Send((command,)))

    def open_failed(self, now: float) -> None:
        """A connection could not be opened; try again later. No failure of this kind ends the retrying."""
        self._schedule_open(now)

    def closed(self, code: int | None, reason: str, now: float) -> None:
        """The connection is gone.

        Args:
            code: The close code, or None when there was no close frame. 4001 and 4002 end the session.
            reason: As the server gave it.
            now: The time.
        """
        if self._ended:
            return
        was_connected = self.state == "connected"
        self._connect_ref = self._greeting_until = self._last_heard = self._paused_pong_at = None
        self.client_id = None
        if code in FINAL_CLOSE_CODES:
            self._end(ConnectionLost(code, reason))
            return
        if code == CLOSE_TOO_BIG:
            self._fail_largest(reason)
        self._held_until.clear()
        for request in self._requests.values():
            request.is_sent = False
        self._resolve_leaves()
        for room in self.rooms.values():
            room.resume_ref = room.resume_at = None
            room.resume_attempts = 0
            self._fall_behind(room)
        if was_connected:
            if now - self._up_since >= self._timing.stable_seconds:
                self._failed_tries = 0
            self._set_state("resuming")
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
        if not is_shedding:
            self.catch_up()

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
        if self.state != "connected" or not self._may_be_behind:
            return
        # A resume names the subscription as it was last told: sent after a change that is still on its way,
        # it would undo that change. It goes when the change is answered.
        changing = {
            request.room_id
            for request in self._requests.values()
            if request.is_sent and request.kind in ("join", "subscribe", "unsubscribe")
        }
        behind = [room for room in self.rooms.values() if room.is_behind and room.resume_ref is None]
        ready = [room for room in behind if room.resume_at is None and room.room_id not in changing]
        self._may_be_behind = len(ready) < len(behind)
        if ready:
            self._effects.append(Send(tuple(self._resume(room) for room in ready)))

    def tick(self, now: float) -> None:
        """Do what is due; see `deadline`."""
        if self._ended:
            return
        if self._open_at is not None and now >= self._open_at:
            self._open(now)
        if self._greeting_until is not None and now >= self._greeting_until:
            self._greeting_until = None
            self._effects.append(DropConnection("the server did not answer 'connect'"))
        if self._paused_pong_at is not None:
            if now >= self._paused_pong_at:
                self._paused_pong_at = now + self.ping_seconds
                self._effects.append(Send(({"type": "pong"},)))
        elif self._last_heard is not None and now >= self._last_heard + 2 * self.ping_seconds:
            self._last_heard = None
            self._effects.append(DropConnection(f"nothing heard for {2 * self.ping_seconds:g} s"))
            return
        if self.state != "connected":
            return
        for room_id in [room_id for room_id, until in self._held_until.items() if now >= until]:
            del self._held_until[room_id]
            self._send_waiting(room_id)
        is_due = False
        for room in self.rooms.values():
            if room.resume_at is not None and now >= room.resume_at:
                room.resume_at = None
                is_due = True
        if is_due:
            self.catch_up()

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
        self._forget_room(room_id)
        if self.state != "connected":
            self._resolve_leaves()
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
        """Send a ``history`` or ``rooms`` command (without ``ref``); it is asked again after a reconnect.

        Raises:
            Backpressure, ConnectionLost: See `join`.
        """
        if command["type"] not in READS:
            raise ValueError(f"{command['type']!r} is not a read")
        return self._request(dict(command))

    def cancel(self, ref: int) -> None:
        """Nobody waits for this request any more: it is not sent again. A sent trigger may yet be recorded."""
        self._pop(ref)

    # ---- requests

    def _next_ref(self) -> int:
        self._last_ref += 1
        return self._last_ref

    def _request(self, command: dict[str, Any]) -> int:
        if self._ended:
            raise ConnectionLost(getattr(self._ended, "code", None), str(self._ended))
        is_trigger = command["type"] in PUBLISHES
        limit = self._max_pending_triggers if is_trigger else self._max_pending_requests
        count = self._pending_triggers if is_trigger else len(self._requests) - self._pending_triggers
        if count >= limit:
            what = "triggers" if is_trigger else "requests"
            raise Backpressure(f"{limit} {what} are waiting for their answers already")
        request = Request(self._next_ref(), command, command.get("room"))
        command["ref"] = request.ref
        self._requests[request.ref] = request
        self._pending_triggers += is_trigger
        if self.state == "connected" and not self._has_to_wait(request):
            self._send([request])
        return request.ref

    def _has_to_wait(self, request: Request) -> bool:
        if request.kind in PUBLISHES and request.room_id in self._held_until:
            return True
        room = self.rooms.get(request.room_id or "")
        return room is not None and room.is_suspended and request.kind not in ("join", "leave")

    def _send_waiting(self, room_id: str) -> None:
        requests = (request for request in self._requests.values() if request.room_id == room_id)
        self._send(request for request in requests if not request.is_sent and not self._has_to_wait(request))

    def _send(self, requests: Iterable[Request]) -> None:
        commands = []
        for request in requests:
            request.is_sent = True
            commands.append(request.command)
        if commands:
            self._effects.append(Send(tuple(commands)))

    def _pop(self, ref: int) -> Request | None:
        request = self._requests.pop(ref, None)
        if request is not None and request.kind in PUBLISHES:
            self._pending_triggers -= 1
        return request

    def _resolve(self, ref: int, answer: dict[str, Any]) -> Request | None:
        request = self._pop(ref)
        if request is not None:
            self._effects.append(Resolved(ref, answer))
        return request

    def _resolve_leaves(self) -> None:
        # The server has forgotten the connection, and with it the memberships.
        for request in list(self._requests.values()):
            if request.kind == "leave":
                self._resolve(request.ref, {"type": "ok", "ref": request.ref})

    def _fail(self, ref: int, error: DialogueError) -> None:
        if self._pop(ref) is not None:
            self._effects.append(Failed(ref, error))

    def _fail_largest(self, reason: str) -> None:
        # The server refuses a frame by closing, so which command it was nobody says. Sent again for ever, it
        # would close every connection to come.
        sent = [request for request in self._requests.values() if request.is_sent]
        if sent:
            largest = max(sent, key=lambda request: len(msgspec.json.encode(request.command)))
            self._fail(largest.ref, MessageTooLarge(reason))

    # ---- the connection

    def _set_state(self, state: State) -> None:
        if state != self.state:
            self.state = state
            self._effects.append(StateChanged(state))

    def _open(self, now: float) -> None:
        self._open_at = None
        self._effects.append(OpenConnection())

    def _schedule_open(self, now: float) -> None:
        if self._ended:
            return
        self._open_at = now + self._delay(self._failed_tries)
        self._failed_tries += 1

    def _delay(self, tries: int) -> float:
        # Full jitter: after a server's restart its clients come back spread out, not in step.
        # 2**tries is kept from growing without bound: past 30 any limit in use is reached.
        highest = min(self._timing.backoff_limit_seconds, self._timing.backoff_seconds * 2 ** min(tries, 30))
        return float(self._random() * highest)

    def _end(self, error: DialogueError) -> None:
        if self._ended:
            return
        self._ended = error
        self._open_at = self._greeting_until = self._last_heard = self._paused_pong_at = None
        self._held_until.clear()
        lost = (
            error if isinstance(error, ConnectionLost) else ConnectionLost(CLOSE_UNAUTHENTICATED, str(error))
        )
        for ref in list(self._requests):
            self._fail(ref, lost)
        self._set_state("offline")
        self._effects.append(Ended(error))

    # ---- messages

    def _take(self, message: dict[str, Any], now: float, is_shedding: bool) -> None:
        match message["type"]:
            case "event":
                self._take_event(message, is_shedding)
            case "ok" | "history" | "rooms":
                self._take_answer(message)
            case "error":
                self._take_error(message, now)
            case "joined":
                self._take_joined(message, is_shedding)
            case "left":
                self._take_left(message["room"], message.get("reason") or "")
            case "message":
                self._effects.append(DeliverMessage(message["event"], message.get("data")))
            case "ping":
                self._effects.append(Send(({"type": "pong"},)))
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
        self._send([request for request in self._requests.values() if not request.is_sent])

    def _take_answer(self, message: dict[str, Any]) -> None:
        request = self._resolve(message.get("ref"), message)  # type: ignore[arg-type]
        if request is None or request.kind not in ("subscribe", "unsubscribe"):
            return
        room = self.rooms.get(request.command["room"])
        if room is not None:
            room.subscriptions = message["subscriptions"]
            self._advance(room, message.get("seq"))

    def _advance(self, room: RoomState, seq: int | None) -> None:
        # Everything of the subscription up to here came before this answer, unless some was left out.
        # Without it a resume would replay what a wider subscription does not reach back to.
        if seq is not None and room.is_current:
            room.cursor = max(room.cursor, seq)

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
                self._effects.append(Trouble(error))
                self._effects.append(DropConnection(f"'connect' was answered with {error.code}"))
            return
        for room in self.rooms.values():
            if ref is not None and room.resume_ref == ref:
                self._resume_failed(room, error, now)
                return
        request = self._requests.get(ref) if isinstance(ref, int) else None
        if request is None:
            # An answer to a cancelled request concerns nobody.
            if ref is None:
                self._effects.append(Trouble(error))
            return
        room_of_request = self.rooms.get(request.room_id or "")
        if isinstance(error, NotJoined) and room_of_request is not None and room_of_request.is_suspended:
            # Sent right behind a resume that failed for the moment; it goes again when one has succeeded.
            request.is_sent = False
            return
        if request.kind in PUBLISHES and error.is_outcome_unknown:
            request.attempts += 1
            if request.attempts < self._timing.trigger_attempts:
                self._hold(request, error, now)
                return
        self._fail(request.ref, error)

    def _hold(self, request: Request, error: CommandError, now: float) -> None:
        request.is_sent = False
        delay = max(self._delay(request.attempts), error.retry_after_seconds or 0.0)
        room_id = str(request.room_id)
        # One time for all of the room's, and the later one: they go out together, in the order made.
        self._held_until[room_id] = max(self._held_until.get(room_id, 0.0), now + delay)

    # ---- rooms

    def _resume(self, room: RoomState) -> dict[str, Any]:
        room.resume_ref = self._next_ref()
        return {
            "type": "join",
            "ref": room.resume_ref,
            "room": room.room_id,
            "since": {"seq": room.cursor, "epoch": room.epoch},
            "events": room.subscriptions,
        }

    def _resume_failed(self, room: RoomState, error: CommandError, now: float) -> None:
        room.resume_ref = None
        if is_for_the_moment(error):
            self._fall_behind(room)
            room.resume_attempts += 1
            delay = max(self._delay(room.resume_attempts), error.retry_after_seconds or 0.0)
            room.resume_at = now + delay
            return
        self._forget_room(room.room_id)
        self._effects.append(Left(room.room_id, error.code))

    def _take_joined(self, message: dict[str, Any], is_shedding: bool) -> None:
        room_id: str = message["room"]
        ref = message.get("ref")
        room = self.rooms.get(room_id)
        if ref is not None and room is not None and ref == room.resume_ref:
            self._take_resumed(room, message, is_shedding)
            return
        request = self._requests.get(ref) if isinstance(ref, int) else None
        if room is not None:
            # Joined by the server's own doing while our resume is still to come, which names the subscription.
            if ref is not None or room.is_current:
                room.subscriptions = message["subscriptions"]
            self._advance(room, message["seq"])
        elif self._is_leaving(room_id, ref):
            pass
        elif ref is not None and request is None:
            # Its caller gave up; the server is told, or it would go on sending.
            self._effects.append(Send(({"type": "leave", "room": room_id},)))
        else:
            self.rooms[room_id] = RoomState(
                room_id, message["epoch"], message["seq"], subscriptions=message["subscriptions"]
            )
            self._effects.append(Joined(room_id, message, is_pushed=request is None))
        if request is not None:
            self._resolve(request.ref, message)

    def _is_leaving(self, room_id: str, ref: Any) -> bool:
        # A join made before a leave that is still on its way: by now the room is left.
        return any(
            request.kind == "leave"
            and request.room_id == room_id
            and (not isinstance(ref, int) or request.ref > ref)
            for request in self._requests.values()
        )

    def _take_resumed(self, room: RoomState, message: dict[str, Any], is_shedding: bool) -> None:
        room.resume_ref = None
        room.resume_attempts = 0
        room.subscriptions = message["subscriptions"]
        self._send_waiting(room.room_id)
        is_recovered = bool(message.get("recovered"))
        if is_shedding and (message["events"] or not is_recovered):
            self._fall_behind(room)
            return
        room.is_behind = False
        if not is_recovered:
            room.epoch = message["epoch"]
            room.cursor = message["seq"]
            self._effects.append(Reset(room.room_id, message))
            return
        for event in message["events"]:
            self._deliver(room, msgspec.convert(event, WireEvent), is_recovered=True)
        room.cursor = max(room.cursor, message["seq"])

    def _take_event(self, message: dict[str, Any], is_shedding: bool) -> None:
        room = self.rooms.get(message["room"])
        if room is None:
            return
        event = msgspec.convert(message, WireEvent)
        if event.seq is None:
            self._effects.append(Deliver(room.room_id, event, room.epoch))
        elif is_shedding or not room.is_current:
            # Also after a rejoin by the server itself, which knows no cursor: what comes between it and the
            # answer to our own resume is part of that answer.
            if room.resume_ref is None:
                self._fall_behind(room)
        else:
            self._deliver(room, event, is_recovered=False)

    def _deliver(self, room: RoomState, event: WireEvent, *, is_recovered: bool) -> None:
        if event.seq is not None and event.seq <= room.cursor:
            return
        if event.seq is not None:
            room.cursor = event.seq
        self._effects.append(Deliver(room.room_id, event, room.epoch, is_recovered))

    def _fall_behind(self, room: RoomState) -> None:
        room.is_behind = True
        self._may_be_behind = True

    def _take_left(self, room_id: str, reason: str) -> None:
        if room_id in self.rooms:
            self._forget_room(room_id)
            self._effects.append(Left(room_id, reason))

    def _forget_room(self, room_id: str) -> None:
        self.rooms.pop(room_id, None)
        # The server drops answers that are in flight when membership ends: nobody would ever hear.
        for request in list(self._requests.values()):
            if request.room_id == room_id and request.kind == "history":
                self._fail(request.ref, NotJoined("the room was left"))
        if self.state == "connected":
            self._send_waiting(room_id)  # What waited for a resume is refused by the server now.
