"""The rooms of a session: what of each was delivered, and how it is taken up again.

Pure, as the `dialogue.client.session` that they are a part of.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import msgspec

from dialogue.errors import CommandError, NotJoined
from dialogue.events import WireEvent

from .effects import (
    Deliver,
    Effect,
    Joined,
    Left,
    PresenceChanged,
    Reset,
    Send,
    Subscribed,
    is_for_the_moment,
    is_too_fast,
)
from .requests import Requests

RESUMES_AT_ONCE = 50
"""Resumes that wait for their answers at a time. All at once, those of many rooms could cost more errors than a
server allows: it would close the connection, and each further one, for what the first few ask too much."""

RESUMES_AFTER_REFUSAL = 5
"""The same after one was refused as too fast, until every room is back: each try at the limit costs so many errors."""


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
        is_asked: Whether the connection that stands was asked to let the client in.
    """

    room_id: str
    epoch: str
    cursor: int
    subscriptions: Any = "*"
    resume_ref: int | None = None
    is_behind: bool = False
    resume_at: float | None = None
    resume_attempts: int = 0
    is_asked: bool = True

    @property
    def is_current(self) -> bool:
        """Whether live events continue what was delivered."""
        return self.resume_ref is None and not self.is_behind

    @property
    def is_suspended(self) -> bool:
        """Whether the server was not asked to let the client back in, or refused it for reasons of the moment."""
        return not self.is_asked or self.resume_attempts > 0


class Memberships:
    """The rooms that a client is in.

    Args:
        emit: Takes what is to be done.
        requests: Those of the session.
        delay: The delay before another try, after so many.

    Attributes:
        by_room: By room id.
    """

    def __init__(
        self, emit: Callable[[Effect], None], requests: Requests, *, delay: Callable[[int], float]
    ) -> None:
        self.by_room: dict[str, RoomState] = {}
        self._emit = emit
        self._requests = requests
        self._delay = delay
        self._may_be_behind = False
        self._resuming: dict[int, RoomState] = {}
        self._at_once = RESUMES_AT_ONCE
        # How often in a row the server found resumes too fast; those sent together count once.
        self._refusals = 0
        self._paused_until: float | None = None

    def __iter__(self) -> Iterator[RoomState]:
        return iter(list(self.by_room.values()))

    def get(self, room_id: str | None) -> RoomState | None:
        """Return a room that the client is in."""
        return self.by_room.get(room_id or "")

    # ---- taking up again

    def connection_lost(self) -> None:
        """Every room is to be taken up again on the next connection."""
        self._resuming.clear()
        self._paused_until = None
        for room in self.by_room.values():
            room.resume_ref = room.resume_at = None
            room.resume_attempts = 0
            room.is_asked = False
            self._fall_behind(room)

    def catch_up(self, *, only_suspended: bool = False) -> None:
        """Ask for what was missed, in rooms where nothing stands against it; so many at a time.

        Args:
            only_suspended: Only where the client has to be let in first: what was missed is not wanted yet, but
                requests may be waiting.
        """
        if not self._may_be_behind or self._paused_until is not None:
            return
        most = self._at_once - len(self._resuming)
        if most <= 0:
            return
        # A resume names the subscription as it was last told: sent after a change that is still on its way,
        # it would undo that change. It goes when the change is answered.
        changing = {
            request.room_id
            for request in self._requests
            if request.is_sent and request.kind in ("join", "subscribe", "unsubscribe")
        }
        behind = [room for room in self.by_room.values() if room.is_behind and room.resume_ref is None]
        ready = [
            room
            for room in behind
            if room.resume_at is None
            and room.room_id not in changing
            and (room.is_suspended or not only_suspended)
        ]
        # Those that were refused come last: rooms that are refused for ever do not keep others out.
        ready.sort(key=lambda room: room.resume_attempts)
        del ready[most:]
        self._may_be_behind = len(ready) < len(behind)
        if not ready:
            return
        self._emit(Send(tuple(self._resume(room) for room in ready)))
        for room in ready:
            if not room.is_asked:
                room.is_asked = True
                self._requests.send_waiting(room.room_id)

    @property
    def deadline(self) -> float | None:
        """When `tick` has something to do; None for never."""
        times = [room.resume_at for room in self.by_room.values() if room.resume_at is not None]
        if self._paused_until is not None:
            times.append(self._paused_until)
        return min(times, default=None)

    def tick(self, now: float) -> None:
        """Ask again in rooms whose time has come."""
        is_due = self._paused_until is not None and now >= self._paused_until
        if is_due:
            self._paused_until = None
        for room in self.by_room.values():
            if room.resume_at is not None and now >= room.resume_at:
                room.resume_at = None
                is_due = True
        if is_due:
            self.catch_up()

    def refused(self, ref: Any, error: CommandError, now: float) -> bool:
        """Take in an error; return whether it was the answer to a resume."""
        room = self._resuming.pop(ref, None)
        if room is None:
            return False
        room.resume_ref = None
        if is_for_the_moment(error):
            self._fall_behind(room)
            room.resume_attempts += 1
            wait_seconds = error.retry_after_seconds or 0.0
            if is_too_fast(error):
                self._pause(wait_seconds, now)
            room.resume_at = now + max(self._delay(room.resume_attempts), wait_seconds)
        else:
            self.forget(room.room_id)
            self._emit(Left(room.room_id, error.code))
        return True

    def _pause(self, wait_seconds: float, now: float) -> None:
        # The server counts the joins of all rooms together, and its errors, too.
        self._at_once = RESUMES_AFTER_REFUSAL
        if self._paused_until is None:
            self._refusals += 1
            self._paused_until = now + self._delay(self._refusals)
        self._paused_until = max(self._paused_until, now + wait_seconds)

    def _resume(self, room: RoomState) -> dict[str, Any]:
        room.resume_ref = self._requests.next_ref()
        self._resuming[room.resume_ref] = room
        return {
            "type": "join",
            "ref": room.resume_ref,
            "room": room.room_id,
            "since": {"seq": room.cursor, "epoch": room.epoch},
            "events": room.subscriptions,
        }

    def _fall_behind(self, room: RoomState) -> None:
        room.is_behind = True
        self._may_be_behind = True

    # ---- messages

    def take_joined(self, message: dict[str, Any], is_shedding: bool) -> None:
        """Take in ``joined``: the answer to a join or a resume, or the server's own doing."""
        room_id: str = message["room"]
        ref = message.get("ref")
        room = self.by_room.get(room_id)
        if ref is not None and room is not None and ref == room.resume_ref:
            self._take_resumed(room, message, is_shedding)
            return
        request = self._requests.get(ref)
        if room is not None:
            # Joined by the server's own doing while our resume is still to come, which names the subscription.
            if ref is not None or room.is_current:
                self._subscribed(room, message["subscriptions"])
            self._advance(room, message["seq"])
        elif self._is_leaving(room_id, ref):
            pass
        elif ref is not None and request is None:
            # Its caller gave up; the server is told, or it would go on sending.
            self._emit(Send(({"type": "leave", "room": room_id},)))
        else:
            self.by_room[room_id] = RoomState(
                room_id, message["epoch"], message["seq"], subscriptions=message["subscriptions"]
            )
            self._emit(Joined(room_id, message, is_pushed=request is None))
        if request is not None:
            self._requests.resolve(request.ref, message)

    def _is_leaving(self, room_id: str, ref: Any) -> bool:
        # A join made before a leave that is still on its way: by now the room is left.
        return any(
            request.kind == "leave"
            and request.room_id == room_id
            and (not isinstance(ref, int) or request.ref > ref)
            for request in self._requests
        )

    def _take_resumed(self, room: RoomState, message: dict[str, Any], is_shedding: bool) -> None:
        self._resuming.pop(message["ref"], None)
        if not self._resuming and not self._may_be_behind:
            self._at_once, self._refusals = RESUMES_AT_ONCE, 0
        room.resume_ref = None
        room.resume_attempts = 0
        self._subscribed(room, message["subscriptions"])
        self._requests.send_waiting(room.room_id)
        is_recovered = bool(message.get("recovered"))
        if is_shedding and (message["events"] or not is_recovered):
            self._fall_behind(room)
            return
        room.is_behind = False
        if not is_recovered:
            room.epoch = message["epoch"]
            room.cursor = message["seq"]
            self._emit(Reset(room.room_id, message))
            return
        for event in message["events"]:
            self._deliver(room, msgspec.convert(event, WireEvent), is_recovered=True)
        room.cursor = max(room.cursor, message["seq"])

    def take_subscription(self, message: dict[str, Any], room_id: str | None) -> None:
        """Take in the answer to a change of a room's subscription."""
        room = self.get(room_id)
        if room is not None:
            self._subscribed(room, message["subscriptions"])
            self._advance(room, message.get("seq"))

    def _subscribed(self, room: RoomState, subscriptions: Any) -> None:
        # Told each time: one that is narrowed and widened again has left out what came between.
        if subscriptions != room.subscriptions:
            room.subscriptions = subscriptions
            self._emit(Subscribed(room.room_id, subscriptions))

    def _advance(self, room: RoomState, seq: int | None) -> None:
        # Everything of the subscription up to here came before this answer, unless some was left out.
        # Without it a resume would replay what a wider subscription does not reach back to.
        if seq is not None and room.is_current:
            room.cursor = max(room.cursor, seq)

    def take_event(self, message: dict[str, Any], is_shedding: bool) -> None:
        """Take in a live event."""
        room = self.by_room.get(message["room"])
        if room is None:
            return
        event = msgspec.convert(message, WireEvent)
        if event.seq is None:
            self._emit(Deliver(room.room_id, event, room.epoch))
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
        self._emit(Deliver(room.room_id, event, room.epoch, is_recovered))

    def take_presence(self, message: dict[str, Any]) -> None:
        """Take in a change of who is in a room."""
        room_id = message["room"]
        if room_id in self.by_room:
            joined, left = (tuple(message.get(field) or ()) for field in ("joined", "left"))
            self._emit(PresenceChanged(room_id, joined, left, int(message["count"])))

    # ---- leaving

    def take_left(self, room_id: str, reason: str) -> None:
        """Take in ``left``."""
        if room_id in self.by_room:
            self.forget(room_id)
            self._emit(Left(room_id, reason))

    def forget(self, room_id: str) -> None:
        """The client is not in the room any more."""
        room = self.by_room.pop(room_id, None)
        if room is not None and room.resume_ref is not None:
            self._resuming.pop(room.resume_ref, None)
        # The server drops answers that are in flight when membership ends: nobody would ever hear.
        for request in self._requests:
            if request.room_id == room_id and request.kind == "history":
                self._requests.fail(request.ref, NotJoined("the room was left"))
        self._requests.send_waiting(room_id)  # What waited for a resume is refused by the server now.
