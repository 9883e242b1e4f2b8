"""Fuzzing: the parser of frames and commands, and a live session that is sent whatever a client could make up."""

from __future__ import annotations

import asyncio
import json
from collections import Counter, defaultdict
from contextlib import AsyncExitStack
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

from dialogue import Dialogue, History, Identity, Limits, RoomConfig, define_event
from dialogue.config import DirectRoom
from dialogue.errors import COMMAND_ERRORS
from dialogue.protocol import BadCommand, decode_frame
from dialogue.server.outbox import Frame, WriteNowait
from dialogue.server.session import Session

from ..rates import UNRATED

MARKER = "zqxwvkjh"
"""A text that no message of the server's has a part of."""

TYPES = (
    *(
        "connect",
        "join",
        "leave",
        "subscribe",
        "unsubscribe",
        "trigger",
        "edit",
        "delete",
        "history",
        "rooms",
    ),
    *("create_room", "delete_room", "presence", "mark_read", "unread", "pong"),
)
FIELDS = (
    *(
        "room",
        "event",
        "events",
        "data",
        "meta",
        "key",
        "since",
        "sync",
        "seq",
        "kind",
        "before",
        "after",
        "around",
    ),
    *("epoch", "cursor", "start", "end", "limit", "name", "description", "max_size", "auth", "rooms"),
)

marked = st.sampled_from([MARKER, f"{MARKER}/", f"$.{MARKER}", f"\u0000{MARKER}", f"`{MARKER}`"])
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | marked,
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=6) | marked, inner, max_size=4)
    ),
    max_leaves=12,
)
refs = st.integers(-(2**63), 2**64 - 1) | st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
near_commands = st.fixed_dictionaries(
    {"type": st.sampled_from(TYPES) | marked | values},
    optional={"ref": refs | values, **dict.fromkeys(FIELDS, values), MARKER: values},
)
bad_bytes = st.one_of(
    st.binary(max_size=300),
    st.text(max_size=300).map(lambda text: text.encode("utf-8", "surrogatepass")),
    # Something valid, with a part of it replaced.
    st.tuples(near_commands, st.integers(0, 200), st.binary(max_size=4)).map(
        lambda made: _spliced(json.dumps(made[0]).encode(), made[1], made[2])
    ),
)


def _spliced(text: bytes, at: int, other: bytes) -> bytes:
    at = min(at, len(text))
    return text[:at] + other + text[at + len(other) :]


def _check_parsed(items: list[Any], most: int) -> None:
    assert len(items) <= most + 1
    for item in items:
        if isinstance(item, BadCommand):
            assert item.error.code in COMMAND_ERRORS
            assert MARKER not in item.error.message
            assert len(item.error.message) < 200
            assert item.error.details is None


def _is_ref(ref: Any) -> bool:
    return isinstance(ref, int | str) and not isinstance(ref, bool)


def check_any_bytes(frame: bytes) -> None:
    _check_parsed(decode_frame(frame, max_commands=5), 5)


def _is_json(value: Any) -> bool:
    try:
        msgspec.json.decode(json.dumps(value))
    except msgspec.DecodeError:
        return False
    return True


def check_near_commands(batch: list[dict[str, Any]]) -> None:
    items = decode_frame(json.dumps(batch).encode(), max_commands=5)
    _check_parsed(items, 5)
    if not _is_json(batch):
        return  # what Python writes and JSON has no word for, such as NaN, makes the frame none
    assert len(items) == min(len(batch), 6)
    for item, command in zip(items[:5], batch, strict=False):
        ref = command.get("ref")
        if _is_ref(ref):
            assert item.ref == ref


@settings(max_examples=150, deadline=None)
@given(bad_bytes)
def test_any_bytes_are_commands_or_coded_errors(frame: bytes) -> None:
    """The parser never raises, is bounded, and says nothing of the input."""
    check_any_bytes(frame)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(near_commands, max_size=8))
def test_each_command_of_a_frame_has_its_place(batch: list[dict[str, Any]]) -> None:
    """One item for each, in order, with its ref; what is past the limit is one error more."""
    check_near_commands(batch)


@pytest.mark.slow
@settings(max_examples=100_000, deadline=None, suppress_health_check=list(HealthCheck))
@given(bad_bytes, st.lists(near_commands, max_size=8))
def test_the_parser_for_long(frame: bytes, batch: list[dict[str, Any]]) -> None:
    """The same, as long as one likes to wait."""
    check_any_bytes(frame)
    check_near_commands(batch)


# -- a live session --------------------------------------------------------------------------------------------------


class ListTransport:
    """A socket whose frames come from a queue and go into a list."""

    def __init__(self) -> None:
        self.close_code: int | None = None
        self.closed_with: int | None = None
        self.write_nowait: WriteNowait | None = None
        self.received: asyncio.Queue[str | None] = asyncio.Queue()
        self.messages: list[dict[str, Any]] = []

    async def receive(self) -> str | bytes | None:
        return await self.received.get()

    def allow_large_frames(self) -> None:
        """Nothing bounds them here."""

    async def send(self, frame: Frame) -> None:
        self.messages += json.loads(frame.text)

    async def close(self, code: int, reason: str) -> None:
        self.closed_with = code


ROOMS = ["general", "other", "made", "dm:ann:bob", "dm:a:b", "nowhere"]
EVENTS = ["message", "note", "typing", "$edit", "unknown"]

room_ids = st.sampled_from(ROOMS)
seqs = st.integers(-1, 12)
keys = st.sampled_from(["one", "two", "three"])
events = st.just("*") | st.lists(st.sampled_from(EVENTS), max_size=3)


def _command(type: str, needed: dict[str, Any], **optional: Any) -> st.SearchStrategy[dict[str, Any]]:
    return st.fixed_dictionaries({"type": st.just(type), **needed}, optional=optional)


plain = values.filter(_is_json)
commands = st.one_of(
    _command(
        "join",
        {"room": room_ids},
        events=events,
        sync=seqs,
        since=st.builds(dict, seq=seqs, epoch=st.just("")),
    ),
    _command("join", {"room": room_ids}),
    _command("leave", {"room": room_ids}),
    _command("subscribe", {"room": room_ids, "events": events}),
    _command("unsubscribe", {"room": room_ids, "events": events}),
    _command("trigger", {"room": room_ids, "event": st.sampled_from(EVENTS)}, data=plain, key=keys),
    _command(
        "trigger", {"room": room_ids, "event": st.just("message"), "data": st.integers(0, 9)}, meta=plain
    ),
    _command("edit", {"room": room_ids, "seq": seqs}, data=plain, key=keys),
    _command("delete", {"room": room_ids, "seq": seqs}, key=keys),
    _command(
        "history", {"room": room_ids}, event=st.sampled_from(EVENTS), before=seqs, limit=seqs, start=seqs
    ),
    _command("create_room", {"room": room_ids, "name": st.just("Made")}, max_size=st.integers(0, 2)),
    _command("delete_room", {"room": room_ids}),
    _command("presence", {"room": room_ids}),
    _command("mark_read", {"room": room_ids, "seq": seqs}),
    _command("unread", {}, rooms=st.lists(room_ids, max_size=3)),
    _command("rooms", {}),
    _command("connect", {}),
    # Not NaN and its like, which make the whole frame no JSON: then no command has an answer of its own.
    near_commands.filter(_is_json).map(lambda made: {name: made[name] for name in made if name != "ref"}),
)


class Peer:
    """A session, and what it was told."""

    def __init__(self, dialogue: Dialogue, user_id: str) -> None:
        self.transport = ListTransport()
        self.session = Session(
            dialogue.hub(), self.transport, SimpleNamespace(headers={}), known_identity=Identity(user_id)
        )
        self.task = asyncio.create_task(self.session.run())
        self.refs: dict[str, dict[str, Any]] = {}
        self.may_be_dropped: set[str] = set()

    @property
    def answers(self) -> dict[str, list[dict[str, Any]]]:
        answers: dict[str, list[dict[str, Any]]] = defaultdict(list)
        for message in self.transport.messages:
            if message.get("ref") is not None:
                answers[message["ref"]].append(message)
        return answers

    async def send(self, batch: list[dict[str, Any]]) -> None:
        """Send a frame and wait for its answers."""
        for command in batch:
            ref = f"ref-{len(self.refs)}"
            command["ref"] = ref
            self.refs[ref] = command
        left = {str(command.get("room")) for command in batch if command["type"] in ("leave", "delete_room")}
        self.may_be_dropped |= {
            command["ref"]
            for command in batch
            if command["type"] == "history" and str(command.get("room")) in left
        }
        await self.transport.received.put(json.dumps(batch))
        expected = {command["ref"] for command in batch if command["type"] != "pong"}
        async with asyncio.timeout(10):
            while not expected - self.may_be_dropped <= set(self.answers):
                assert not self.task.done()
                await asyncio.sleep(0)

    async def aclose(self) -> None:
        await self.transport.received.put(None)
        await self.task


class SessionMachine(RuleBasedStateMachine):
    """Two users send anything to one server, and what they are told is compared with what there is."""

    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        self.stack = AsyncExitStack()
        self.runner.run(self._start())

    async def _start(self) -> None:
        history = History(limit=4)
        declared = [
            define_event("message", history=history),
            define_event("note", history=history, publish="server"),
            define_event("typing"),
        ]
        config = RoomConfig(events=declared, max_size=2)
        self.dialogue = Dialogue(
            {"general": config, "other": config, "dm:{a}:{b}": DirectRoom(events=declared)},
            client_rooms=config,
            limits=Limits(**UNRATED, created_rooms_per_user=1, rooms_per_client=3),
        )
        await self.stack.enter_async_context(self.dialogue.lifespan())
        self.peers = [Peer(self.dialogue, name) for name in ("ann", "ann", "bob")]
        for peer in self.peers:
            await peer.send([{"type": "connect"}])

    @rule(who=st.integers(0, 2), batch=st.lists(commands, min_size=1, max_size=5))
    def send(self, who: int, batch: list[dict[str, Any]]) -> None:
        """Send a frame of commands."""
        self.runner.run(self.peers[who].send([dict(command) for command in batch]))

    @rule(user_id=st.sampled_from(["ann", "bob"]), room=st.sampled_from(ROOMS[:4]))
    def remove(self, user_id: str, room: str) -> None:
        """Take a user out of a room."""
        if self.dialogue.hub().registry.find(room) is not None:
            self.runner.run(self.dialogue.remove_from_room(user_id, room))

    @invariant()
    def every_ref_is_answered_once(self) -> None:
        """And never by a fault of the server's own."""
        for peer in self.peers:
            assert peer.transport.closed_with is None
            answers = peer.answers
            assert set(answers) <= set(peer.refs)
            assert all(len(found) == 1 for found in answers.values())
            codes = {m["code"] for m in peer.transport.messages if m["type"] == "error"}
            assert codes <= set(COMMAND_ERRORS) - {
                "INTERNAL",
                "STORE_UNAVAILABLE",
                "BACKPRESSURE",
                "UNAUTHENTICATED",
            }

    @invariant()
    def seqs_have_no_holes(self) -> None:
        """What was acknowledged in a room is numbered without a hole, and live events come in that order."""
        acknowledged: dict[str, list[int]] = defaultdict(list)
        for peer in self.peers:
            live: dict[str, int] = defaultdict(int)
            for message in peer.transport.messages:
                room = message.get("room", "")
                if (
                    message["type"] == "ok"
                    and "id" in message
                    and message["seq"]
                    and not message.get("duplicate")
                ):
                    acknowledged[room].append(message["seq"])
                if message["type"] == "event" and message["seq"] is not None:
                    assert message["seq"] > live[room]
                    live[room] = message["seq"]
                elif message["type"] == "joined":
                    assert [e["seq"] for e in message["events"]] == sorted(
                        e["seq"] for e in message["events"]
                    )
                    assert message["seq"] >= live[room]
                    live[room] = message["seq"]
        for room, found in acknowledged.items():
            assert sorted(found) == list(range(1, len(found) + 1)), room

    @invariant()
    def memberships_agree(self) -> None:
        """Connections, rooms and what was told say the same of who is where."""
        rooms = self.dialogue.hub().rooms
        there: dict[str, Counter[str]] = defaultdict(Counter)
        for peer in self.peers:
            told: set[str] = set()
            for message in peer.transport.messages:
                if message["type"] == "joined":
                    told.add(message["room"])
                elif message["type"] == "left" or (
                    message["type"] == "ok" and peer.refs[message["ref"]]["type"] == "leave"
                ):
                    told.discard(message["room"])
            joined = peer.session.memberships.by_room
            assert told == set(joined)
            assert not peer.session.memberships._joining
            for room_id, subscriber in joined.items():
                assert subscriber in set(rooms[room_id].subscribers())
                assert subscriber.held is None
                there[room_id][peer.session.user_id] += 1
        for room_id, room in rooms.items():
            assert dict(there[room_id]) == room.users
            assert room.size == there[room_id].total()

    def teardown(self) -> None:
        """End everything; nothing is left running."""

        async def end() -> None:
            for peer in self.peers:
                await peer.aclose()
            assert not self.dialogue.hub().connections.sessions
            assert not self.dialogue.hub().access._watched
            await self.stack.aclose()
            assert asyncio.all_tasks() == {asyncio.current_task()}

        self.runner.run(end())
        self.runner.close()


def _run_machine(examples: int, steps: int) -> None:
    run_state_machine_as_test(
        SessionMachine,
        settings=settings(
            max_examples=examples,
            stateful_step_count=steps,
            phases=[Phase.reuse, Phase.generate],
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )


def test_a_session_keeps_its_promises_whatever_it_is_sent() -> None:
    """Refs, seqs and memberships hold over random frames of three connections."""
    _run_machine(60, 15)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_a_session_keeps_its_promises_for_long() -> None:
    """The same, as long as one likes to wait."""
    _run_machine(3000, 60)
