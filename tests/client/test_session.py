"""The resume state machine, without an event loop."""

from __future__ import annotations

import random
from collections import deque
from functools import partial
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dialogue.client.effects import (
    Announced,
    Deliver,
    DropConnection,
    Effect,
    Ended,
    Failed,
    Joined,
    Left,
    OpenConnection,
    PresenceChanged,
    Reset,
    Resolved,
    Send,
    StateChanged,
    Subscribed,
    Timing,
    Trouble,
    UnreadChanged,
)
from dialogue.client.memberships import RESUMES_AT_ONCE
from dialogue.client.session import Session
from dialogue.errors import (
    Backpressure,
    Blocked,
    ConnectionLost,
    DialogueError,
    MessageTooLarge,
    NotJoined,
    RateLimited,
    RoomExists,
    StoreUnavailable,
    Unauthenticated,
)

from .fake import FakeConnection, FakeServer, Message

ROOM = "general"


class Link:
    """A session and a fake server with a wire between them that loses nothing of itself."""

    def __init__(self, **options: Any) -> None:
        self.now = 1000.0
        self.server = FakeServer()
        self.session = Session(random=random.Random(1).random, **options)
        self.connection: FakeConnection | None = None
        self.to_server: deque[Message] = deque()
        self.delivered: list[Deliver] = []
        self.resolved: dict[int, Message] = {}
        self.failed: dict[int, DialogueError] = {}
        self.others: list[Effect] = []
        self.wants_connection = False
        self.user = "ann"

    def apply(self) -> None:
        for effect in self.session.effects():
            match effect:
                case Send(commands):
                    assert self.connection is not None, "sent without a connection"
                    self.to_server.extend(commands)
                case Deliver():
                    self.delivered.append(effect)
                case Resolved(ref, answer):
                    assert ref not in self.resolved, "resolved twice"
                    assert ref not in self.failed, "resolved after it failed"
                    self.resolved[ref] = answer
                case Failed(ref, error):
                    assert ref not in self.resolved, "failed after it was resolved"
                    assert ref not in self.failed, "failed twice"
                    self.failed[ref] = error
                case OpenConnection():
                    assert self.connection is None, "a second connection"
                    self.wants_connection = True
                case DropConnection():
                    self.others.append(effect)
                    self.lose()
                case _:
                    self.others.append(effect)

    def start(self) -> None:
        self.session.start(self.now)
        self.apply()
        self.open()

    def open(self) -> None:
        """Open the connection that the session wants, waiting out the backoff."""
        if self.connection is not None:
            return
        if not self.wants_connection:
            self.now = max(self.now, self.session.deadline or self.now)
            self.session.tick(self.now)
            self.apply()
        assert self.wants_connection
        self.wants_connection = False
        self.connection = self.server.accept()
        self.session.opened({"user_id": self.user}, self.now)
        self.apply()

    def lose(self, code: int | None = None) -> None:
        if self.connection is not None:
            self.server.lose(self.connection)
            self.connection = None
            self.to_server.clear()
            self.session.closed(code, "", self.now)
            self.apply()

    def serve(self, count: int | None = None) -> None:
        """Let the server take so many commands (or all)."""
        while self.to_server and self.connection is not None and count != 0:
            self.server.receive(self.connection, self.to_server.popleft())
            count = None if count is None else count - 1

    def hear(self, count: int | None = None, *, is_shedding: bool = False) -> None:
        """Let the client take so many messages (or all)."""
        if self.connection is None:
            return
        outbox = self.connection.outbox
        messages = outbox[:count]
        del outbox[: len(messages)]
        if messages:
            self.session.received(messages, self.now, is_shedding=is_shedding)
            self.apply()

    def settle(self) -> None:
        """Let everything through until nothing moves any more."""
        self.open()
        for _ in range(100):
            self.serve()
            self.hear()
            if self.connection is None:
                self.open()
            elif not self.to_server and not self.connection.outbox:
                if not self.session.has_pending and all(
                    room.is_current for room in self.session.rooms.values()
                ):
                    return
                deadline = self.session.deadline
                assert deadline is not None
                self.now = max(self.now, deadline)
                self.session.tick(self.now)
                self.apply()
        raise AssertionError("it does not come to rest")

    def join(self, room: str = ROOM, **options: Any) -> int:
        ref = self.session.join(room, **options)
        self.apply()
        return ref

    def trigger(self, text: str, *, room: str = ROOM, key: str | None = None) -> int:
        ref = self.session.trigger(room, "message", text, key=key or f"k-{text}")
        self.apply()
        return ref

    @property
    def seqs(self) -> list[int]:
        return [item.event.seq for item in self.delivered if item.event.seq is not None]

    def all_of(self, kind: type[Effect]) -> list[Any]:
        return [effect for effect in self.others if isinstance(effect, kind)]


@pytest.fixture
def link() -> Link:
    link = Link()
    link.start()
    return link


@pytest.fixture
def joined(link: Link) -> Link:
    link.join()
    link.settle()
    return link


def test_nothing_but_connect_is_sent_before_the_server_has_answered_it(link: Link) -> None:
    """The server takes only small frames before ``connected``."""
    link.join()
    link.trigger("early")
    assert [command["type"] for command in link.to_server] == ["connect"]
    link.settle()
    assert len(link.resolved) == 2
    assert link.session.state == "connected"
    assert link.session.user_id == "ann"


def test_what_was_missed_is_delivered_after_a_resume(joined: Link) -> None:
    """Resumed events come once, marked as recovered, and live ones go on after them."""
    joined.server.publish(ROOM, "message", 1)
    joined.hear()
    joined.lose()
    joined.server.publish(ROOM, "message", 2)
    joined.server.publish(ROOM, "message", 3)
    joined.settle()
    joined.server.publish(ROOM, "message", 4)
    joined.hear()
    assert joined.seqs == [1, 2, 3, 4]
    assert [item.is_recovered for item in joined.delivered] == [False, True, True, False]


def test_join_sync_is_not_delivered(link: Link) -> None:
    """Events up to the join's seq are its history, not live events."""
    link.server.publish(ROOM, "message", "old")
    link.join()
    link.settle()
    assert link.delivered == []
    assert [effect.answer["seq"] for effect in link.all_of(Joined)] == [1]


def test_an_event_told_twice_is_delivered_once(joined: Link) -> None:
    """A seq at or below the cursor is never delivered again."""
    event = joined.server.publish(ROOM, "message", 1)
    assert joined.connection is not None
    joined.connection.send(event)
    joined.hear()
    assert joined.seqs == [1]


def test_another_epoch_resets(joined: Link) -> None:
    """Under another epoch the cursor means nothing: a reset is told, and the new epoch used from then on."""
    joined.server.publish(ROOM, "message", 1)
    joined.settle()
    joined.lose()
    joined.server.epoch = "e2"
    joined.server.log[ROOM].clear()
    joined.server.publish(ROOM, "message", "new life")
    joined.settle()
    assert [effect.answer["epoch"] for effect in joined.all_of(Reset)] == ["e2"]
    joined.server.publish(ROOM, "message", 2)
    joined.settle()
    assert [(item.epoch, item.event.seq) for item in joined.delivered] == [("e1", 1), ("e2", 2)]


def test_the_servers_own_rejoin_does_not_open_a_hole(link: Link) -> None:
    """A hook that joins the client at connect knows no cursor: what was missed still comes, in order."""
    link.server.auto_join = ROOM
    link.settle()
    assert [effect.is_pushed for effect in link.all_of(Joined)] == [True]
    link.lose()
    link.server.publish(ROOM, "message", 1)
    link.open()
    link.serve()
    link.server.publish(ROOM, "message", 2)
    link.hear()
    link.server.publish(ROOM, "message", 3)
    link.settle()
    assert link.seqs == [1, 2, 3]


def test_triggers_are_sent_again_with_their_keys_in_order(joined: Link) -> None:
    """A lost answer records nothing twice."""
    refs = [joined.trigger(text) for text in "abc"]
    joined.serve(2)
    joined.lose()
    refs.append(joined.trigger("d"))
    joined.settle()
    assert [event["data"] for event in joined.server.log[ROOM]] == ["a", "b", "c", "d"]
    assert [joined.resolved[ref]["seq"] for ref in refs] == [1, 2, 3, 4]
    assert joined.resolved[refs[0]]["duplicate"] is True
    assert joined.seqs == [1, 2, 3, 4]


def test_an_unknown_outcome_is_retried_before_later_triggers(joined: Link) -> None:
    """After STORE_UNAVAILABLE the same key is sent again; triggers made since wait for it."""
    refusals = [True, False, False]
    joined.server.intercept = lambda connection, command: (
        command["type"] == "trigger"
        and refusals.pop(0)
        and joined.server.error(connection, command, "STORE_UNAVAILABLE", retry_after_seconds=3)
    )
    first = joined.trigger("a")
    joined.serve()
    joined.hear()
    second = joined.trigger("b")
    assert not joined.to_server
    assert joined.session.deadline is not None
    assert joined.session.deadline >= joined.now + 3
    joined.settle()
    assert joined.resolved[first]["seq"] == 1
    assert joined.resolved[second]["seq"] == 2


def test_an_outcome_that_stays_unknown_fails_in_the_end(joined: Link) -> None:
    """The number of tries is bounded; the last answer is the error."""
    joined.server.intercept = lambda connection, command: (
        command["type"] == "trigger" and joined.server.error(connection, command, "STORE_UNAVAILABLE")
    )
    ref = joined.trigger("a")
    joined.settle()
    assert isinstance(joined.failed[ref], StoreUnavailable)
    assert joined.connection is not None
    keys = [command["key"] for command in joined.connection.commands if command["type"] == "trigger"]
    assert keys == ["k-a"] * Timing().trigger_attempts


def test_a_refusal_fails_the_trigger_with_its_error(joined: Link) -> None:
    """Any other code means that it was not recorded."""
    joined.server.intercept = lambda connection, command: (
        command["type"] == "trigger" and joined.server.error(connection, command, "BLOCKED")
    )
    ref = joined.trigger("a")
    joined.settle()
    assert isinstance(joined.failed[ref], Blocked)


def test_pending_triggers_are_bounded() -> None:
    """A full queue is told to the caller; nothing is queued without bound."""
    link = Link(max_pending_triggers=2, max_pending_requests=1)
    link.start()
    link.join()
    link.trigger("a")
    link.trigger("b")
    with pytest.raises(Backpressure):
        link.trigger("c")
    with pytest.raises(Backpressure):
        link.session.read({"type": "rooms"})
    link.settle()
    link.trigger("c")
    link.settle()
    assert [event["data"] for event in link.server.log[ROOM]] == ["a", "b", "c"]


def test_reads_and_joins_are_asked_again(joined: Link) -> None:
    """A request lost with its connection is answered by the next one; answers never mix."""
    joined.server.publish(ROOM, "message", 1)
    page = joined.session.read({"type": "history", "room": ROOM})
    rooms = joined.session.read({"type": "rooms"})
    other = joined.join("other")
    joined.serve()
    joined.lose()
    joined.settle()
    assert joined.resolved[page]["type"] == "history"
    assert joined.resolved[rooms]["type"] == "rooms"
    assert joined.resolved[other]["room"] == "other"


def test_the_subscription_survives_a_resume(joined: Link) -> None:
    """What the server last told of the subscription is asked for again."""
    joined.session.subscribe(ROOM, "*", is_adding=False)
    joined.session.subscribe(ROOM, ["message"])
    joined.apply()
    joined.settle()
    joined.lose()
    joined.server.publish(ROOM, "message", 1)
    joined.server.publish(ROOM, "other", 2)
    joined.server.publish(ROOM, "message", 3)
    joined.settle()
    assert joined.seqs == [1, 3]


def test_left_is_told_and_not_rejoined(joined: Link) -> None:
    """Also reads that were in flight fail: the server drops their answers."""
    read = joined.session.read({"type": "history", "room": ROOM})
    joined.apply()
    assert joined.connection is not None
    joined.to_server.clear()
    joined.connection.subscriptions.clear()
    joined.connection.send({"type": "left", "room": ROOM, "reason": "kicked"})
    joined.hear()
    assert joined.all_of(Left) == [Left(ROOM, "kicked")]
    assert isinstance(joined.failed[read], NotJoined)
    joined.lose()
    joined.settle()
    joined.server.publish(ROOM, "message", 1)
    joined.settle()
    assert joined.delivered == []


def test_a_denied_resume_is_left(joined: Link) -> None:
    """A room that does not let the client back in is told as left."""
    joined.lose()
    joined.server.intercept = lambda connection, command: (
        command["type"] == "join" and joined.server.error(connection, command, "JOIN_DENIED")
    )
    joined.settle()
    assert joined.all_of(Left) == [Left(ROOM, "JOIN_DENIED")]


def test_a_resume_that_fails_for_the_moment_is_tried_again(joined: Link) -> None:
    """STORE_UNAVAILABLE during a resume costs time and no event."""
    answers = [True, True, False]
    joined.lose()
    joined.server.publish(ROOM, "message", 1)
    joined.server.intercept = lambda connection, command: (
        command["type"] == "join"
        and answers.pop(0)
        and joined.server.error(connection, command, "STORE_UNAVAILABLE")
    )
    joined.settle()
    assert joined.seqs == [1]
    assert joined.all_of(Left) == []


def test_leave_without_a_connection_is_answered_at_once(joined: Link) -> None:
    """The server forgot the membership with the connection."""
    joined.lose()
    ref = joined.session.leave(ROOM)
    joined.apply()
    assert joined.resolved[ref]["type"] == "ok"
    joined.settle()
    assert joined.session.rooms == {}


def test_a_cancelled_join_leaves_the_room_again(link: Link) -> None:
    """Nobody waits for it: the server is told, or it would go on sending."""
    link.settle()
    ref = link.join()
    link.session.cancel(ref)
    link.serve()
    link.hear()
    link.serve()
    assert link.connection is not None
    assert link.connection.subscriptions == {}
    assert link.session.rooms == {}


def test_silence_ends_the_connection(joined: Link) -> None:
    """Nothing heard for twice ping_seconds: the connection is dropped and opened again."""
    joined.now += 49
    joined.session.tick(joined.now)
    joined.apply()
    assert joined.connection is not None
    joined.now += 2
    joined.session.tick(joined.now)
    joined.apply()
    assert len(joined.all_of(DropConnection)) == 1
    joined.settle()
    assert [effect.state for effect in joined.all_of(StateChanged)][-2:] == ["resuming", "connected"]


def test_a_paused_reader_says_that_it_lives_and_is_not_taken_for_deaf(joined: Link) -> None:
    """While the application is slow, silence means nothing, and pongs go out unasked."""
    joined.session.paused(joined.now)
    for _ in range(3):
        joined.now += 25
        joined.session.tick(joined.now)
        joined.apply()
    assert [command["type"] for command in joined.to_server] == ["pong"] * 3
    joined.session.unpaused(joined.now)
    joined.now += 49
    joined.session.tick(joined.now)
    joined.apply()
    assert joined.all_of(DropConnection) == []


def test_a_cancelled_change_of_a_subscription_is_taken_in(joined: Link) -> None:
    """What the server does all the same is known, also when it refuses it, and undone by a resume when it is not."""
    for is_adding, expected in ((False, []), (True, ["message"])):
        ref = joined.session.subscribe(ROOM, ["message"] if is_adding else "*", is_adding=is_adding)
        joined.apply()
        joined.session.cancel(ref)
        joined.settle()
        assert joined.session.rooms[ROOM].subscriptions == expected
    assert [effect.subscriptions for effect in joined.all_of(Subscribed)] == [[], ["message"]]
    joined.session.cancel(joined.session.subscribe(ROOM, "*"))
    joined.apply()
    joined.lose()
    joined.settle()
    assert joined.connection is not None
    assert joined.connection.subscriptions[ROOM] == joined.session.rooms[ROOM].subscriptions == ["message"]
    refused = joined.session.subscribe("elsewhere", ["message"])
    joined.apply()
    joined.session.cancel(refused)
    joined.settle()
    assert joined.session._unheard == {}
    assert joined.resolved.keys().isdisjoint([ref, refused])


def test_a_cancelled_leave_is_a_leave(link: Link) -> None:
    """A join made before it that is answered after it lets nobody in."""
    link.settle()
    link.join()
    leave = link.session.leave(ROOM)
    link.apply()
    link.session.cancel(leave)
    link.settle()
    assert link.connection is not None
    assert ROOM not in link.connection.subscriptions
    assert ROOM not in link.session.rooms
    assert not link.session.has_pending


@pytest.mark.parametrize("bad", ["\udcff", b"\xff".decode(errors="surrogateescape"), object()])
def test_what_cannot_be_sent_is_not_kept(joined: Link, bad: Any) -> None:
    """It would end each connection to come: told at once, and nothing waits for it."""
    session = joined.session
    for make in (
        partial(session.join, bad),
        partial(session.subscribe, ROOM, [bad]),
        partial(session.trigger, ROOM, bad, "x", key="k"),
        partial(session.read, {"type": "history", "room": ROOM, "event": bad}),
    ):
        with pytest.raises((TypeError, ValueError)):
            make()
    assert not joined.session.has_pending


def test_a_server_that_does_not_answer_connect_is_dropped(link: Link) -> None:
    """An open socket alone is no connection."""
    link.to_server.clear()
    link.now += 10
    link.session.tick(link.now)
    link.apply()
    assert len(link.all_of(DropConnection)) == 1
    link.settle()
    assert link.session.state == "connected"


def test_ping_is_answered(joined: Link) -> None:
    """Each ping gets its pong."""
    assert joined.connection is not None
    joined.connection.send({"type": "ping"})
    joined.hear()
    assert [command["type"] for command in joined.to_server] == ["pong"]


def test_expired_credentials_are_brought_again(joined: Link) -> None:
    """4001 on a connection that stood is a loss like others: only a refused try to connect is the end."""
    ref = joined.trigger("a")
    joined.lose(4001)
    assert ref not in joined.failed
    assert joined.session.state == "resuming"
    assert joined.session.deadline is not None


@pytest.mark.parametrize("code", [4002])
def test_final_close_codes_end_the_session(joined: Link, code: int) -> None:
    """Everything pending fails once, nothing is tried again, later requests are refused at once."""
    ref = joined.trigger("a")
    joined.lose(code)
    assert isinstance(joined.failed[ref], ConnectionLost)
    ended = joined.all_of(Ended)
    assert len(ended) == 1
    assert ended[0].error.code == code
    assert joined.session.deadline is None
    assert joined.session.state == "offline"
    with pytest.raises(ConnectionLost):
        joined.trigger("b")


def test_refused_credentials_end_the_session(link: Link) -> None:
    """The refusal itself is the reason that is told."""
    link.server.refuse_connect = "UNAUTHENTICATED"
    link.serve()
    link.hear()
    assert isinstance(link.all_of(Ended)[0].error, Unauthenticated)


def test_a_greeting_that_fails_for_the_moment_is_tried_again(link: Link) -> None:
    """A store that is down while connecting does not end the retrying."""
    link.server.refuse_connect = "STORE_UNAVAILABLE"
    link.serve()
    link.hear()
    assert len(link.all_of(Trouble)) == 1
    assert link.connection is None
    link.server.refuse_connect = None
    link.settle()
    assert link.session.state == "connected"


def test_the_backoff_grows_is_bounded_and_jitters() -> None:
    """Full jitter: each delay lies between 0 and a bound that doubles up to its limit."""
    drawn = iter([0.999] * 12)
    session = Session(random=lambda: next(drawn), timing=Timing(backoff_seconds=1, backoff_limit_seconds=8))
    session.start(0.0)
    delays = []
    now = 0.0
    for _ in range(6):
        session.open_failed(now)
        assert session.deadline is not None
        delays.append(round(session.deadline - now))
        now = session.deadline
        session.tick(now)
    assert delays == [1, 2, 4, 8, 8, 8]


def test_the_backoff_is_short_where_connections_stand_for_a_moment() -> None:
    """A bad line: each connection is lost soon, yet the client is not away for longer and longer. 4009 is not that."""
    timing = Timing(backoff_seconds=1, backoff_limit_seconds=100, stable_seconds=5)
    session = Session(random=lambda: 0.999, timing=timing)
    session.start(0.0)

    now, delays = 0.0, []
    for stood_seconds, code in [(1, None)] * 6 + [(1, 4009)] * 2 + [(6, None)]:
        session.opened(None, now)
        ref = next(effect.commands[0]["ref"] for effect in session.effects() if isinstance(effect, Send))
        session.received([{"type": "connected", "ref": ref, "client_id": "c", "user_id": "u"}], now)
        now += stood_seconds
        session.closed(code, "", now)
        assert session.deadline is not None
        delays.append(round(session.deadline - now))
        now = session.deadline
        session.tick(now)
    assert delays == [1, 2, 4, 8, 8, 8, 16, 32, 1]


def test_a_frame_too_big_for_the_server_is_not_sent_for_ever(joined: Link) -> None:
    """Close code 1009 fails the largest command that was on its way; the others are sent again."""
    big = joined.trigger("b" * 1000)
    small = joined.trigger("s")
    joined.lose(1009)
    joined.settle()
    assert isinstance(joined.failed[big], MessageTooLarge)
    assert joined.resolved[small]["seq"] == 1


def test_shed_events_are_asked_for_again(joined: Link) -> None:
    """What passed while the application took nothing comes later, once and in order."""
    joined.server.publish(ROOM, "message", 1)
    joined.hear()
    joined.server.publish(ROOM, "message", 2)
    joined.hear(is_shedding=True)
    joined.server.publish(ROOM, "message", 3)
    joined.session.catch_up()
    joined.apply()
    joined.hear()
    joined.settle()
    assert joined.seqs == [1, 2, 3]


def test_catching_up_does_not_undo_a_subscription_on_its_way(joined: Link) -> None:
    """A resume names the subscription; it waits for the answer to a change of it."""
    joined.server.publish(ROOM, "message", 1)
    joined.hear(is_shedding=True)
    joined.session.subscribe(ROOM, ["message"], is_adding=False)
    joined.apply()
    joined.session.catch_up()
    joined.apply()
    joined.settle()
    assert joined.connection is not None
    assert joined.connection.subscriptions == {ROOM: []}


def test_a_message_that_is_not_of_the_protocol_is_an_error(joined: Link) -> None:
    """The shell then drops the connection; the session itself stays whole."""
    with pytest.raises(ValueError, match="event"):
        joined.session.received([{"type": "event", "room": ROOM, "seq": "x"}], joined.now)
    joined.session.received([{"type": "of a later version"}], joined.now)
    joined.lose()
    joined.settle()
    assert joined.session.state == "connected"


def test_states_are_told_in_order(link: Link) -> None:
    """connecting, connected, resuming, connected, offline."""
    link.settle()
    link.lose()
    link.settle()
    link.session.stop()
    link.session.stop()
    link.apply()
    assert [effect.state for effect in link.all_of(StateChanged)] == [
        "connecting",
        "connected",
        "resuming",
        "connected",
        "offline",
    ]


class Bucket:
    """Tokens as the server counts them."""

    def __init__(self, tokens: float, per_second: float, now: float) -> None:
        self.tokens, self.most, self.per_second, self.at = tokens, tokens, per_second, now

    def take(self, now: float) -> float:
        """Take a token; return the seconds until there is one, 0 if one was taken."""
        self.tokens = min(self.most, self.tokens + (now - self.at) * self.per_second)
        self.at = now
        if self.tokens < 1:
            return (1 - self.tokens) / self.per_second
        self.tokens -= 1
        return 0.0


def test_a_thousand_rooms_are_back_although_the_server_lets_no_more_in() -> None:
    """With the joins of the user used up, all rooms come back in time, and errors stay below what closes."""
    link = Link()
    link.start()
    rooms = [f"r{number}" for number in range(1000)]
    for room in rooms:
        link.join(room)
    link.settle()
    link.lose()
    joins = Bucket(60, 40, link.now)
    joins.tokens = 0
    errors = Bucket(120, 2, link.now)

    def refuse_too_fast(connection: FakeConnection, command: Message) -> bool:
        if command["type"] != "join" or not (seconds := joins.take(link.now)):
            return False
        assert not errors.take(link.now), "the server would close the connection"
        return link.server.error(connection, command, "RATE_LIMITED", retry_after_seconds=seconds)

    link.server.intercept = refuse_too_fast
    link.open()
    began = link.now
    while not all(room.is_current for room in link.session.rooms.values()):
        link.serve()
        link.hear()
        link.now += 0.05
        if (deadline := link.session.deadline) is not None and link.now >= deadline:
            link.session.tick(link.now)
            link.apply()
        # So that silence is not what it is about.
        assert link.connection is not None
        link.connection.send({"type": "ping"})
        assert link.now < began + 600
    assert link.all_of(Left) == []
    assert link.connection is not None
    assert set(link.connection.subscriptions) == set(rooms)


def test_what_waits_for_a_room_goes_when_its_resume_is_sent() -> None:
    """With more rooms than are resumed at once, triggers of the later ones wait, shedding or not."""
    link = Link()
    link.start()
    rooms = [f"r{number}" for number in range(RESUMES_AT_ONCE + 1)]
    for room in rooms:
        link.join(room)
    link.settle()
    link.lose()
    ref = link.trigger("a", room=rooms[-1])
    link.open()
    link.serve()
    link.hear(1)
    assert [command["type"] for command in link.to_server] == ["join"] * RESUMES_AT_ONCE
    link.serve()
    link.hear(is_shedding=True)
    assert [command["type"] for command in link.to_server] == ["join", "trigger"]
    link.serve()
    link.hear(is_shedding=True)
    assert link.resolved[ref]["seq"] == 1


def test_a_room_that_waits_for_its_resume_can_be_left(joined: Link) -> None:
    """The server, which has not let the client back in, says so; the room is left, and not asked for again."""
    joined.lose()
    joined.server.intercept = lambda connection, command: (
        (command["type"] == "join" and joined.server.error(connection, command, "BACKPRESSURE"))
        or (command["type"] == "leave" and joined.server.error(connection, command, "NOT_JOINED"))
    )
    joined.open()
    for _ in range(2):
        joined.serve()
        joined.hear()
    ref = joined.session.leave(ROOM)
    joined.apply()
    joined.settle()
    assert joined.resolved[ref]["type"] == "ok"
    assert joined.session.rooms == {}
    assert joined.connection is not None
    commands = [command["type"] for command in joined.connection.commands]
    joined.now += 40
    joined.session.tick(joined.now)
    joined.apply()
    joined.settle()
    assert [command["type"] for command in joined.connection.commands] == commands


def test_rooms_that_are_always_refused_keep_no_others_out() -> None:
    """They are asked for last."""
    link = Link()
    link.start()
    for number in range(RESUMES_AT_ONCE + 10):
        link.join(f"r{number}")
    link.settle()
    link.lose()
    hopeless = {f"r{number}" for number in range(RESUMES_AT_ONCE)}
    link.server.intercept = lambda connection, command: (
        command.get("room") in hopeless and link.server.error(connection, command, "RATE_LIMITED")
    )
    link.open()
    rooms = link.session.rooms
    for _ in range(500):
        link.serve()
        link.hear()
        if all(room.is_current for room in rooms.values() if room.room_id not in hopeless):
            break
        if link.to_server:
            continue
        assert link.session.deadline is not None
        link.now = max(link.now, link.session.deadline)
        link.session.tick(link.now)
        link.apply()
    assert {room_id for room_id in rooms if rooms[room_id].is_current} == set(rooms) - hopeless


@pytest.mark.parametrize("code", ["RATE_LIMITED", "BACKPRESSURE"])
def test_a_first_try_that_is_too_fast_fails_and_says_when_to_come_again(joined: Link, code: str) -> None:
    """Join and trigger leave it to the caller."""
    joined.server.intercept = lambda connection, command: joined.server.error(
        connection, command, code, retry_after_seconds=2.5
    )
    refs = [joined.join("other"), joined.trigger("a")]
    joined.serve()
    joined.hear()
    for ref in refs:
        error = joined.failed[ref]
        assert isinstance(error, RateLimited | Backpressure)
        assert error.retry_after_seconds == 2.5


def test_what_is_sent_again_and_is_too_fast_then_is_tried_until_it_is_taken(joined: Link) -> None:
    """A join and triggers whose answers were lost: not before the time that the server says, in order."""
    joins = joined.join("other")
    triggers = [joined.trigger(text) for text in "ab"]
    joined.serve()
    joined.lose()
    refusals = {"other": 3, ROOM: 9}

    def refuse(connection: FakeConnection, command: Message) -> bool:
        if command["type"] == "connect" or "since" in command or not refusals[command["room"]]:
            return False
        refusals[command["room"]] -= 1
        return joined.server.error(connection, command, "RATE_LIMITED", retry_after_seconds=3)

    joined.server.intercept = refuse
    joined.open()
    for _ in range(2):
        joined.serve()
        joined.hear()
    assert not joined.to_server
    assert joined.session.deadline is not None
    assert joined.session.deadline >= joined.now + 3
    joined.settle()
    assert joined.resolved[joins]["room"] == "other"
    assert [joined.resolved[ref]["seq"] for ref in triggers] == [1, 2]
    assert refusals == {"other": 0, ROOM: 0}


def test_a_client_that_was_too_fast_stays_away_for_a_while(link: Link) -> None:
    """Close code 4009: neither at once nor with a backoff that begins anew, however long it stood."""
    link.settle()
    link.now += 40
    link.lose(4009)
    assert link.session.deadline is not None
    assert link.session.deadline >= link.now + Timing().too_fast_seconds
    link.settle()
    assert link.session.state == "connected"


def test_a_refused_greeting_says_when_to_come_again(link: Link) -> None:
    """As with too many connections of one user."""
    link.server.intercept = lambda connection, command: link.server.error(
        connection, command, "RATE_LIMITED", retry_after_seconds=7
    )
    link.serve()
    link.hear()
    assert link.session.deadline is not None
    assert link.session.deadline >= link.now + 7


def test_changes_of_presence_unread_and_rooms_are_told(joined: Link) -> None:
    """Without ref they are news; of a room that is not joined there is none."""
    assert joined.connection is not None
    room = {"id": "new", "name": "New", "size": 0}
    for message in (
        {"type": "presence", "room": ROOM, "joined": ["bob"], "count": 2},
        {"type": "presence", "room": ROOM, "left": ["bob"], "count": 1},
        {"type": "presence", "room": "other", "joined": ["eve"], "count": 1},
        {"type": "unread", "unread": {"other": 3}},
        {"type": "room_created", **room},
        {"type": "room_deleted", "room": "new"},
    ):
        joined.connection.send(message)
    joined.others.clear()
    joined.hear()
    assert joined.others == [
        PresenceChanged(ROOM, ("bob",), (), 2),
        PresenceChanged(ROOM, (), ("bob",), 1),
        UnreadChanged({"other": 3}),
        Announced("room_created", "new", {"type": "room_created", **room}),
        Announced("room_deleted", "new", {"type": "room_deleted", "room": "new"}),
    ]


def test_reads_and_changes_are_answered_by_their_ref(joined: Link) -> None:
    """Also when the first answer was lost with its connection."""
    answers: dict[str, Message] = {
        "presence": {"type": "presence", "room": ROOM, "users": ["ann"], "count": 1},
        "unread": {"type": "unread", "unread": {ROOM: 2}},
        "mark_read": {"type": "ok", "unread": 0},
    }

    def answer(connection: FakeConnection, command: Message) -> bool:
        if command["type"] not in answers:
            return False
        connection.send({**answers[command["type"]], "ref": command["ref"]})
        return True

    joined.server.intercept = answer
    refs = {
        "presence": joined.session.read({"type": "presence", "room": ROOM}),
        "unread": joined.session.read({"type": "unread"}),
        "mark_read": joined.session.change({"type": "mark_read", "room": ROOM, "seq": 0}),
    }
    joined.apply()
    joined.serve()
    joined.lose()
    joined.settle()
    assert {name: joined.resolved[ref] for name, ref in refs.items()} == {
        name: {**answers[name], "ref": ref} for name, ref in refs.items()
    }
    with pytest.raises(ValueError, match="not a read"):
        joined.session.read({"type": "mark_read"})
    with pytest.raises(ValueError, match="not a change"):
        joined.session.change({"type": "rooms"})


def test_a_room_that_an_earlier_try_has_deleted_is_deleted(joined: Link) -> None:
    """Sent again it is not found; one that was made meanwhile may be someone else's."""
    refs = {
        kind: joined.session.change({"type": kind, "room": "x"}) for kind in ("delete_room", "create_room")
    }
    joined.apply()
    joined.serve()
    joined.lose()
    codes = {"delete_room": "ROOM_NOT_FOUND", "create_room": "ROOM_EXISTS"}
    joined.server.intercept = lambda connection, command: (
        command["type"] in codes and joined.server.error(connection, command, codes[command["type"]])
    )
    joined.settle()
    assert joined.resolved[refs["delete_room"]]["type"] == "ok"
    assert isinstance(joined.failed[refs["create_room"]], RoomExists)


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("publish"), st.sampled_from(["message", "alert"])),
        st.tuples(st.just("trigger"), st.none()),
        st.tuples(st.just("serve"), st.integers(1, 3)),
        st.tuples(st.just("hear"), st.integers(1, 3)),
        st.tuples(st.just("shed"), st.integers(1, 3)),
        st.tuples(st.just("catch_up"), st.none()),
        st.tuples(st.just("lose"), st.sampled_from([None, 1001, 1012, 4008])),
        st.tuples(st.just("open"), st.none()),
        st.tuples(st.just("silence"), st.none()),
        st.tuples(st.just("repeat"), st.none()),
        st.tuples(st.just("unavailable"), st.integers(1, 3)),
        st.tuples(st.just("too_fast"), st.integers(1, 3)),
        st.tuples(st.just("rejoin"), st.none()),
        st.tuples(st.just("epoch"), st.none()),
    ),
    # Long stories: what goes wrong takes several steps in a certain order.
    min_size=15,
    max_size=60,
)


class Story(Link):
    """Any interleaving of what can happen, and what must hold in the end."""

    def __init__(self, *, auto_join: bool, replay_events: int, names: Any) -> None:
        super().__init__()
        self.server.replay_events = replay_events
        self.server.auto_join = ROOM if auto_join else None
        self.names = names
        self.triggers: list[tuple[str, int]] = []
        self.unavailable = 0
        self.too_fast = 0
        self.seen_keys: set[str] = set()
        self.published = 0
        self.server.intercept = self._intercept

    def _intercept(self, connection: FakeConnection, command: Message) -> bool:
        is_known = command.get("key") in self.seen_keys or "since" in command
        if self.too_fast and is_known and command["type"] in ("trigger", "join"):
            # What is sent for the first time would fail, and rightly so.
            self.too_fast -= 1
            return self.server.error(connection, command, "RATE_LIMITED", retry_after_seconds=0.5)
        if command["type"] == "trigger":
            self.seen_keys.add(command["key"])
        if self.unavailable and command["type"] in ("trigger", "join") and "ref" in command:
            is_resume = "since" in command
            if command["type"] == "join" and not is_resume:
                return False
            self.unavailable -= 1
            if command["type"] == "trigger" and self.unavailable % 2:
                # Recorded, and yet answered so: that is what an unknown outcome means.
                known = len(connection.outbox)
                self.server._trigger(connection, command)
                connection.outbox[known:] = [
                    message for message in connection.outbox[known:] if message["type"] != "ok"
                ]
            self.server.error(connection, command, "STORE_UNAVAILABLE")
            return True
        return False

    def step(self, action: str, argument: Any) -> None:
        match action:
            case "publish":
                self.published += 1
                self.server.publish(ROOM, argument, self.published)
            case "trigger":
                text = f"t{len(self.triggers)}"
                self.triggers.append((text, self.trigger(text)))
            case "serve":
                self.serve(argument)
            case "hear":
                self.hear(argument)
            case "shed":
                self.hear(argument, is_shedding=True)
            case "catch_up":
                self.session.catch_up()
                self.apply()
            case "lose":
                self.lose(argument)
            case "open":
                self.open()
            case "silence":
                self.now += 51
                self.session.tick(self.now)
                self.apply()
            case "repeat":
                if self.connection is not None and self.connection.wants(ROOM, "message"):
                    told = [event for event in self.server.log[ROOM] if self._was_told(event["seq"])]
                    self.connection.outbox[:0] = told[-2:]
            case "unavailable":
                self.unavailable = argument
            case "too_fast":
                self.too_fast = argument
            case "rejoin":
                self.join(events=self.names)
            case "epoch":
                if self.connection is None:
                    self.server.epoch += "+"

    def _was_told(self, seq: int) -> bool:
        return any(item.event.seq == seq and item.epoch == self.server.epoch for item in self.delivered)


@settings(max_examples=400, deadline=None)
@given(
    steps=STEPS,
    auto_join=st.booleans(),
    replay_events=st.sampled_from([1000, 2]),
    names=st.sampled_from(["*", ["message"]]),
)
def test_any_interleaving_is_exact(
    steps: list[tuple[str, Any]], auto_join: bool, replay_events: int, names: Any
) -> None:
    """Every event of the subscription once and in order, or a reset; every trigger once, in order."""
    story = Story(auto_join=auto_join, replay_events=replay_events, names=names)
    story.start()
    story.join(events=names)
    story.settle()
    start = story.session.rooms[ROOM].cursor
    for action, argument in steps:
        story.step(action, argument)
    story.unavailable = story.too_fast = 0
    story.settle()

    seqs = story.seqs
    assert seqs == sorted(set(seqs)), "in order, none twice"
    log = story.server.log[ROOM]
    wanted = {event["seq"] for event in log if names == "*" or event["event"] in names} - set(
        range(start + 1)
    )
    assert set(seqs) <= wanted
    if not story.all_of(Reset):
        assert set(seqs) == wanted, "no hole without a reset"
    recorded = [event["data"] for event in log if isinstance(event["data"], str)]
    assert sorted(recorded) == sorted({text for text, _ in story.triggers}), "none lost, none doubled"
    for text, ref in story.triggers:
        seq = story.resolved[ref]["seq"]
        assert log[seq - 1]["data"] == text
    if not any(action in ("unavailable", "too_fast") for action, _ in steps):
        assert recorded == [text for text, _ in story.triggers], "in the order made"
