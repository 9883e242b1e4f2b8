"""``dialogue check --deploy``: each thing that is not safe to expose, and nothing else."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from dialogue import (
    Archive,
    ConfigError,
    Dialogue,
    EventType,
    History,
    Hooks,
    Identity,
    Limits,
    Retention,
    RoomConfig,
    SQLArchive,
    define_event,
)
from dialogue.deployment import PROBLEMS, RAISED, Problem, problems

from .docs.pages import DOCS, read
from .processes import finished

PAGE = read(DOCS / "howto" / "deploy-checklist.md")


class Text(BaseModel):
    """A payload with a schema."""

    text: str


message = define_event("message", schema=Text, history=History(limit=5))
kept = define_event("message", schema=Text, history=History(limit=5, retention=Retention(max_age="30d")))
FILE = "sqlite:///chat.db"


def authenticate() -> Identity:
    """Let everyone in."""
    return Identity("ann")


def chat(*events: EventType[Any], rooms: dict[str, RoomConfig] | None = None, **options: Any) -> Dialogue:
    """Return a server that is safe but for *options*."""
    hooks = Hooks(**({"authenticate": authenticate} | options.pop("hooks", {})))
    options = {"store": FILE} | options
    return Dialogue(rooms or {"general": RoomConfig(events=events or [message])}, hooks=hooks, **options)


def found(dialogue: Dialogue) -> list[tuple[str, str]]:
    """Return name and place of each problem."""
    return [(problem.name, problem.where) for problem in problems(dialogue)]


def test_what_is_safe_has_no_problem() -> None:
    """Neither with a store alone, nor with an archive that can do everything beside it."""
    assert problems(chat()) == []
    assert problems(chat(kept, archive=SQLArchive(FILE))) == []
    hooks = {name: lambda: None for name in ("on_cleanup", "on_load", "on_erase")}
    assert problems(chat(kept, hooks=hooks)) == []
    assert problems(chat(define_event("typing"), store=None)) == []


def test_a_problem_says_what_to_do() -> None:
    """Each is what `PROBLEMS` has of its name, and they come in its order."""
    names = []
    for problem in problems(Dialogue({"a:{b}": RoomConfig(events="*")}, allowed_origins=["*"])):
        assert problem == Problem(problem.name, problem.where, *PROBLEMS[problem.name])
        names.append(problem.name)
    assert names == ["no-authentication", "any-origin", "memory-only", "unguarded-pattern", "any-event"]


def test_no_authentication() -> None:
    """Development mode."""
    assert found(Dialogue({"general": RoomConfig(events=[message])}, store=FILE)) == [
        ("no-authentication", "Dialogue")
    ]


def test_any_origin() -> None:
    """The star among others too; named ones are what is wanted."""
    (problem,) = found(chat(allowed_origins=["https://example.com", "*"]))
    assert problem == ("any-origin", "Dialogue, field 'allowed_origins'")
    assert problems(chat(allowed_origins=["https://example.com"])) == []


def test_memory_only() -> None:
    """Recorded events that nothing keeps."""
    assert found(chat(store=None)) == [("memory-only", "Dialogue, field 'store'")]


def test_memory_beside_an_archive() -> None:
    """What is in the ring is lost with the process, although the archive has the rest."""
    assert found(chat(store=None, archive=SQLArchive(FILE))) == [
        ("memory-beside-archive", "Dialogue, field 'store'")
    ]


UNLIMITED = [
    name for name in Limits.model_fields if getattr(Limits.unlimited(), name) != getattr(Limits(), name)
]


@pytest.mark.parametrize("name", UNLIMITED)
def test_an_unlimited_limit(name: str) -> None:
    """Each that `Limits.unlimited()` raises, alone."""
    limits = Limits(**{name: getattr(Limits.unlimited(), name)})
    assert found(chat(limits=limits)) == [("unlimited", f"Limits: {name}")]


def test_all_limits_unlimited() -> None:
    """One problem that names them all."""
    assert found(chat(limits=Limits.unlimited())) == [("unlimited", f"Limits: {', '.join(UNLIMITED)}")]


def test_limits_raised() -> None:
    """More than ten times the default, times and sizes alike; ten times is not, nor is what is lower."""
    default = Limits()
    at = Limits(message_bytes=RAISED * default.message_bytes, connect_seconds=1, page_events=1)
    assert problems(chat(limits=at)) == []
    above = Limits(
        message_bytes=RAISED * default.message_bytes + 1, connect_seconds=RAISED * default.connect_seconds + 1
    )
    assert found(chat(limits=above)) == [("limits-raised", "Limits: message_bytes, connect_seconds")]


def test_an_unguarded_pattern() -> None:
    """A guard for another room, or for one room that fits the pattern, does not guard it."""
    rooms = {
        "general": RoomConfig(events=[message]),
        "dm:{a}:{b}": RoomConfig(events=[message]),
        "dm:p0:p0": RoomConfig(events=[message]),
        "team:{name}": RoomConfig(events=[message]),
    }
    dialogue = chat(rooms=rooms)
    dialogue.before_join("general", "dm:p0:p0", "team:{name}")(lambda: None)
    assert found(dialogue) == [("unguarded-pattern", "room 'dm:{a}:{b}'")]
    dialogue.before_join("dm:{a}:{b}")(lambda: None)
    assert problems(dialogue) == []
    everything = chat(rooms=rooms)
    everything.before_join(lambda: None)
    assert problems(everything) == []


def test_a_room_that_guards_itself_needs_no_hook() -> None:
    """A kind of room whose ``is_guarded`` is true."""

    class Guarded(RoomConfig):
        is_guarded = True

    assert problems(chat(rooms={"dm:{a}:{b}": Guarded(events=[message])})) == []


def test_rooms_of_clients_without_a_guard() -> None:
    """Whoever may make rooms makes them for everyone, unless some hook is asked."""
    dialogue = chat()
    dialogue.client_rooms = RoomConfig(events=[message])  # type: ignore[attr-defined,unused-ignore]
    assert found(dialogue) == [("unguarded-client-rooms", "Dialogue, field 'client_rooms'")]
    dialogue.before_join(lambda: None)
    assert problems(dialogue) == []


def test_any_event() -> None:
    """A room that takes any name."""
    assert found(chat(rooms={"general": RoomConfig(events="*")})) == [("any-event", "room 'general'")]


def test_any_data() -> None:
    """Recorded, without a schema, and from clients: told once, with its rooms."""
    loose = define_event("loose", history=History(limit=5))
    rooms = {name: RoomConfig(events=[loose, message]) for name in ("one", "two")}
    assert found(chat(rooms=rooms)) == [("any-data", "event 'loose' in 'one', 'two'")]
    from_server = define_event("loose", history=History(limit=5), publish="server")
    assert problems(chat(from_server)) == []


def test_no_retention_beside_an_archive() -> None:
    """The log keeps for ever what the archive has; undeclared events have no retention at all."""
    archive = SQLArchive(FILE)
    assert found(chat(archive=archive)) == [("no-retention", "event 'message' in 'general'")]
    rooms = {"any": RoomConfig(events="*")}
    assert found(chat(rooms=rooms, archive=archive))[1:] == [
        ("no-retention", "room 'any', its undeclared events")
    ]


def test_no_load() -> None:
    """`on_cleanup` without a way back; either of the two is one."""
    hooks = {"on_cleanup": lambda: None, "on_erase": lambda: None}
    assert found(chat(kept, hooks=hooks)) == [("no-load", "hook 'on_cleanup'")]
    assert problems(chat(kept, hooks=hooks | {"on_load_before": lambda: None})) == []


def test_no_erase() -> None:
    """`erase_user` would be refused: hooks without `on_erase`, and an `Archive` that has no `erase`."""
    hooks = {"on_cleanup": lambda: None, "on_load": lambda: None}
    assert found(chat(kept, hooks=hooks)) == [("no-erase", "hook 'on_cleanup'")]

    class Bucket(Archive):
        async def cleanup(self, room_id: str, event_name: str, events: list[Any]) -> None:
            """Keep nothing."""

        async def load(self, room_id: str, event_name: str, start: int, end: int) -> Any:
            """Have nothing."""
            return []

    assert found(chat(kept, archive=Bucket())) == [("no-erase", "Dialogue, field 'archive'")]


@pytest.fixture
def levels() -> Iterator[None]:
    """Put the levels back that a test sets."""
    loggers = [logging.getLogger(name) for name in ("dialogue", "uvicorn.error")]
    before = [logger.level for logger in loggers]
    yield
    for logger, level in zip(loggers, before, strict=True):
        logger.setLevel(level)


@pytest.mark.usefixtures("levels")
def test_debug_logging() -> None:
    """The logger that is used, and the one that is told every frame."""
    logging.getLogger("dialogue").setLevel(logging.DEBUG)
    assert found(chat()) == [("debug-logging", "logger 'dialogue'")]
    mine = logging.Logger("mine", logging.INFO)
    assert problems(chat(logger=mine)) == []
    logging.getLogger("uvicorn.error").setLevel(logging.DEBUG)
    assert found(chat(logger=mine)) == [("debug-logging", "logger 'uvicorn.error'")]


def test_hooks_that_do_not_fit_together_are_no_problem_but_an_error() -> None:
    """As without `--deploy`."""
    with pytest.raises(ConfigError, match="no on_cleanup"):
        problems(chat(hooks={"on_load": lambda: None}))


def test_every_problem_is_documented() -> None:
    """The page's table is `PROBLEMS`, word for word."""
    rows = PAGE.rows("Problem")
    assert [(row[0].strip("`"), row[1], row[2]) for row in rows] == [
        (name, *text) for name, text in PROBLEMS.items()
    ]


def test_the_example_of_the_page_passes(tmp_path: Path) -> None:
    """Status 0, and it says that nothing was found; nothing is opened."""
    (tmp_path / "chat.py").write_text(PAGE.python()[0].code)
    status, output = finished("check", "--deploy", "chat:dialogue", folder=tmp_path)
    assert status == 0, output
    assert "OK: chat:dialogue can be served; nothing was found that is not safe to expose" in output
    assert not (tmp_path / "chat.db").exists()


def test_problems_are_a_table_and_status_1(tmp_path: Path) -> None:
    """Beside what `check` shows anyway; without the option nothing changes."""
    (tmp_path / "chat.py").write_text(
        "from dialogue import Dialogue, RoomConfig\ndialogue = Dialogue({'x:{a}': RoomConfig(events='*')})\n"
    )
    status, output = finished("check", "--deploy", "chat:dialogue", folder=tmp_path)
    assert status == 1
    for name in ("no-authentication", "memory-only", "unguarded-pattern", "any-event"):
        assert name in output
    assert "room 'x:{a}'" in output
    assert "Error: chat:dialogue is not safe to expose: 4 problems, listed above" in output
    assert "OK" not in output
    status, output = finished("check", "chat:dialogue", folder=tmp_path)
    assert status == 0
    assert "OK: chat:dialogue can be served\n" in output
    assert "unguarded" not in output
