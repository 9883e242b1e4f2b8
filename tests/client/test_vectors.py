"""What both clients must read, write and do alike: the files in ``tests/vectors`` (see the README there)."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from dialogue.client import DialogueClient, Room, Timing
from dialogue.client.effects import Deliver, Failed, Left, OpenConnection, Reset, Resolved, Send
from dialogue.client.session import Session
from dialogue.errors import CommandError
from dialogue.events import Event
from tests.node import needs_node, run_node

from .fake import FakeConnection, FakeSocketServer, Message, until

FOLDER = Path(__file__).parents[1] / "vectors"
SCRIPT = Path(__file__).with_name("vectors.test.mjs")
QUICK = Timing(backoff_seconds=0.01, backoff_limit_seconds=0.05)
ROOM = "general"


def load(name: str) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((FOLDER / name).read_text())
    assert content["format"] == 1, f"{name} has another format than the one that is read here"
    return content


MESSAGES, RESUME, TIMELINE = load("messages.json"), load("resume.json"), load("timeline.json")
READ = {"messages.json", "resume.json", "timeline.json"}


def named(items: list[dict[str, Any]]) -> pytest.MarkDecorator:
    """Run a test with each of these."""
    return pytest.mark.parametrize("vector", items, ids=[item["name"] for item in items])


def test_every_file_is_read_here() -> None:
    """A file that no test reads holds nobody to anything."""
    assert {path.name for path in FOLDER.glob("*.json")} == READ


@needs_node
async def test_the_browser_client_does_the_same() -> None:
    """Everything in ``vectors.test.mjs`` holds; it fails if it leaves a file unread."""
    await run_node("--test", SCRIPT)


# ---- messages


class Scripted:
    """A client in a room of a server whose answers are the test's."""

    def __init__(self, server: FakeSocketServer, client: DialogueClient, room: Room) -> None:
        self.server, self.client, self.room = server, client, room
        self.commands: list[Message] = []
        self.answers: list[Message] = []
        server.intercept = self._take

    def _take(self, connection: FakeConnection, command: Message) -> bool:
        self.commands.append(command)
        if self.answers:
            connection.send({"ref": command["ref"], **self.answers.pop(0)})
        return True

    def has_new(self, count: int) -> bool:
        return len(self.commands) > count

    def say(self, *messages: Message) -> None:
        for message in messages:
            self.server.connections[-1].send(message)

    def answer(self, message: Message) -> None:
        self.say({**message, "ref": self.commands[-1]["ref"]})


@pytest.fixture
async def scripted() -> AsyncIterator[Scripted]:
    async with (
        FakeSocketServer().running() as server,
        DialogueClient(server.url, auth={"user_id": "ann"}, timing=QUICK) as client,
    ):
        yield Scripted(server, client, await client.join(ROOM))


def as_vector(event: Event[Any]) -> dict[str, Any]:
    return {
        "room": event.room_id,
        "event": event.event,
        "id": event.id,
        "seq": event.seq,
        "from": event.sender,
        "timestamp": event.timestamp,
        "data": event.data,
        "meta": event.meta or {},
        "kind": event.kind,
        "key": event.key,
        "edited": event.is_edited,
        "deleted": event.is_deleted,
    }


@named(MESSAGES["events"])
async def test_events(scripted: Scripted, vector: dict[str, Any]) -> None:
    """An event message becomes an event with these fields."""
    received: list[Event[Any]] = []
    scripted.room.on_any(received.append)
    scripted.say(vector["wire"])
    await until(lambda: received)
    assert as_vector(received[0]) == vector["event"]


@named(MESSAGES["pages"])
async def test_pages(scripted: Scripted, vector: dict[str, Any]) -> None:
    """A history message becomes a page with these fields."""
    scripted.answers.append(vector["answer"])
    page = await scripted.room.page()
    gap = page.gap and {name: getattr(page.gap, name) for name in ("from_seq", "through_seq", "reason")}
    assert {
        "seqs": [event.seq for event in page.events],
        "has_more": page.has_more,
        "next": page.next,
        "previous": page.previous,
        "gap": gap,
    } == vector["page"]


async def test_rooms(scripted: Scripted) -> None:
    """A record of a room becomes one with these fields."""
    records = MESSAGES["rooms"]
    scripted.answers.append({"type": "rooms", "rooms": [record["record"] for record in records]})
    rooms = await scripted.client.rooms()
    fields = ("id", "name", "description", "size", "max_size", "created_by_id")
    assert [{name: getattr(room, name) for name in fields} for room in rooms] == [
        record["room"] for record in records
    ]


@named(MESSAGES["acks"])
async def test_acks(scripted: Scripted, vector: dict[str, Any]) -> None:
    """An answer to a trigger becomes an ack with these fields."""
    scripted.answers.append(vector["answer"])
    ack = await scripted.room.trigger("message", "x")
    assert vector["ack"] == {
        "seq": ack.seq,
        "id": ack.id,
        "timestamp": ack.timestamp,
        "duplicate": ack.is_duplicate,
    }


@named(MESSAGES["errors"])
async def test_errors(scripted: Scripted, vector: dict[str, Any]) -> None:
    """An error message becomes an error with these fields."""
    scripted.answers.append(vector["answer"])
    with pytest.raises(CommandError) as caught:
        await scripted.room.page()
    error = caught.value
    assert vector["error"] == {
        "code": error.code,
        "message": error.message,
        "details": error.details,
        "retry_after_seconds": error.retry_after_seconds,
    }


async def call(scripted: Scripted, name: str, arguments: dict[str, Any]) -> Any:
    room = scripted.room
    match name:
        case "join":
            rest = {key: value for key, value in arguments.items() if key != "room"}
            return await scripted.client.join(arguments["room"], **rest)
        case "trigger":
            rest = {key: value for key, value in arguments.items() if key not in ("event", "data")}
            return await room.trigger(arguments["event"], arguments["data"], **rest)
        case "subscribe" | "unsubscribe":
            names = arguments["events"]
            return await getattr(room, name)(*([names] if names == "*" else names))
        case "list_rooms":
            return await scripted.client.rooms()
        case "create_room":
            rest = {key: value for key, value in arguments.items() if key != "room"}
            return await scripted.client.create_room(arguments["room"], **rest)
        case "delete_room":
            return await scripted.client.delete_room(arguments["room"])
        case "unread":
            return await scripted.client.unread(**arguments)
        case _:
            return await getattr(room, name)(**arguments)


async def test_commands(scripted: Scripted) -> None:
    """The same call writes the same command, but for its ref."""
    scripted.room.epoch = "e1"
    for vector in MESSAGES["commands"]:
        waiting = asyncio.create_task(call(scripted, vector["call"], vector["args"]))
        await until(partial(scripted.has_new, len(scripted.commands)))
        command = dict(scripted.commands[-1])
        assert isinstance(command.pop("ref"), int)
        assert command == vector["command"]
        waiting.cancel()
        await asyncio.wait([waiting])


# ---- resume


class Resume:
    """A session and the script that it goes through."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.session = Session(random=lambda: 0.0)
        self.refs: dict[str, Any] = {}
        self.sent: list[Message] = []
        self.is_wanted = False
        self.told: list[list[Any]] = []
        self.resets = self.left = 0
        self.triggers: dict[int, str] = {}
        self.settled: dict[str, Any] = {}

    def apply(self) -> None:
        for effect in self.session.effects():
            match effect:
                case OpenConnection():
                    self.is_wanted = True
                case Send(commands):
                    self.sent.extend(commands)
                case Deliver(_, event):
                    self.told.append([event.seq, event.data])
                case Reset():
                    self.resets += 1
                case Left():
                    self.left += 1
                case Resolved(ref, answer) if ref in self.triggers:
                    duplicate = bool(answer.get("duplicate"))
                    self.settled[self.triggers[ref]] = {"seq": answer["seq"], "duplicate": duplicate}
                case Failed(ref, error) if ref in self.triggers:
                    assert isinstance(error, CommandError)
                    self.settled[self.triggers[ref]] = {"error": error.code}

    def pass_time(self) -> None:
        assert self.session.deadline is not None
        self.now = max(self.now, self.session.deadline)
        self.session.tick(self.now)
        self.apply()

    def do(self, step: dict[str, Any]) -> None:
        match step["do"]:
            case "connect":
                self.session.start(self.now)
            case "open":
                if not self.is_wanted:
                    self.pass_time()
                assert self.is_wanted
                self.is_wanted = False
                self.session.opened({"user_id": "ann"}, self.now)
            case "lose":
                self.session.closed(step["code"], "", self.now)
            case "join":
                self.session.join(step["room"])
            case "trigger":
                ref = self.session.trigger(step["room"], step["event"], step["data"], key=step["key"])
                self.triggers[ref] = step["id"]
            case other:
                raise AssertionError(f"what is {other!r}?")
        self.apply()

    def expect_sent(self, expected: Message) -> None:
        def of_its_type() -> Message | None:
            return next((command for command in self.sent if command["type"] == expected["type"]), None)

        if of_its_type() is None:
            self.pass_time()
        command = of_its_type()
        assert command is not None, f"not sent: {expected}"
        self.sent.remove(command)
        if "ref" in expected:
            self.refs[expected["ref"]] = command["ref"]
        assert {**command, "ref": expected.get("ref")} == {**expected, "ref": expected.get("ref")}

    def run(self, steps: list[dict[str, Any]]) -> None:
        for step in steps:
            match step:
                case {"do": _}:
                    self.do(step)
                case {"receives": messages}:
                    known = [
                        {**message, "ref": self.refs[message["ref"]]} if "ref" in message else message
                        for message in messages
                    ]
                    self.session.received(known, self.now)
                    self.apply()
                case {"sends": commands}:
                    for command in commands:
                        self.expect_sent(command)
                case {"state": state}:
                    assert self.session.state == state
                case _:
                    ((name, value),) = step.items()
                    assert getattr(self, name) == value, name
        assert self.sent == []


@named(RESUME["scripts"])
def test_resume(vector: dict[str, Any]) -> None:
    """What is sent, and what the application is told, over lost connections."""
    Resume().run(vector["steps"])


# ---- timelines


@named(TIMELINE["scripts"])
async def test_timelines(scripted: Scripted, vector: dict[str, Any]) -> None:
    """What a timeline asks for and shows."""
    timeline = scripted.room.timeline("message", page_size=3)
    loads = [asyncio.create_task(timeline.load_older())]
    asked = 0

    def shows(expected: dict[str, Any]) -> Callable[[], bool]:
        def check() -> bool:
            gaps = [
                {"from_seq": gap.from_seq, "through_seq": gap.through_seq, "reason": gap.reason}
                for gap in timeline.gaps
            ]
            return {
                "shows": [[event.seq, event.data] for event in timeline.entries],
                "has_older": timeline.has_older,
                "gaps": gaps,
            } == expected

        return check

    for step in vector["steps"]:
        match step:
            case {"asks": command}:
                await until(partial(scripted.has_new, asked))
                asked += 1
                sent = dict(scripted.commands[-1])
                del sent["ref"]
                assert sent == command
            case {"answer": message}:
                scripted.answer(message)
            case {"live": events}:
                scripted.say(*events)
            case {"load_older": _}:
                await asyncio.wait(loads)
                loads.append(asyncio.create_task(timeline.load_older()))
            case _:
                await until(shows(step))
    assert len(scripted.commands) == asked
    results = await asyncio.gather(*loads, return_exceptions=True)
    assert all(result is None or isinstance(result, CommandError) for result in results)
