"""What of a `Dialogue` is not safe to expose: ``dialogue check --deploy``.

Nothing is opened or asked: a problem is one of the declarations, and of those that a default would not have.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Iterator
from itertools import count
from typing import TYPE_CHECKING, NamedTuple

from .limits import Limits
from .room_types import RoomType
from .storage.archive import Archive

if TYPE_CHECKING:
    from .app import Dialogue

RAISED = 10
"""A limit above so many times its default no longer protects; see `limits-raised`."""


class Problem(NamedTuple):
    """Something that is not safe to expose.

    Attributes:
        name: Short and stable, for scripts; one of `PROBLEMS`.
        where: Which declaration it is.
        problem: What is unsafe about it.
        remedy: What to do.
    """

    name: str
    where: str
    problem: str
    remedy: str


PROBLEMS: dict[str, tuple[str, str]] = {
    "no-authentication": (
        "whoever connects says who they are, and can be any user",
        "Register an authenticate hook, e.g. dialogue.auth.jwt(...)",
    ),
    "any-origin": (
        "a page of any site may connect with the cookies of its visitors",
        "Name the origins of your own pages in allowed_origins",
    ),
    "memory-only": (
        "recorded events are in memory only: what leaves the ring is forgotten, and a restart forgets the rest",
        'Give Dialogue a store, e.g. store="sqlite:///chat.db"',
    ),
    "memory-beside-archive": (
        "a process that is killed loses what has not been handed over to the archive yet",
        'Give Dialogue a store, e.g. store="sqlite:///chat.db"',
    ),
    "unlimited": (
        "a limit as high as Limits.unlimited() has it bounds nothing: one client can take all memory",
        "Leave it at its default, or give it a value that the machine can bear",
    ),
    "limits-raised": (
        f"a limit of more than {RAISED} times its default was not meant for clients that are not trusted",
        "Lower it, and split what needs it so high",
    ),
    "unguarded-pattern": (
        "whoever is connected may join every room that fits the pattern, and so read it, by guessing its id",
        "Register a before_join hook for it, or make it a room that guards itself",
    ),
    "unguarded-client-rooms": (
        "clients make rooms, and no before_join hook says who may join them",
        "Register a before_join hook without arguments, which guards every room",
    ),
    "any-event": (
        "clients may publish events of any name with any data, and all of it is recorded",
        "Declare the events of the room with define_event",
    ),
    "any-data": (
        "clients may record any JSON, and every reader has to expect it",
        "Give the event a schema, or publish='server'",
    ),
    "no-retention": (
        "the log keeps what the archive has a copy of, and grows for ever",
        "Give the event's History a retention",
    ),
    "no-load": (
        "what on_cleanup has stored is never read back: readers see a gap there",
        "Register on_load or on_load_before",
    ),
    "no-erase": (
        "erase_user is refused, because the archive would keep its copies",
        "Register on_erase, or let the Archive have an erase",
    ),
    "debug-logging": (
        "at debug level the log of the socket has what clients send, their tokens included",
        "Log from level info up",
    ),
}
"""What is unsafe and what to do about it, by name, in the order in which it is told."""


def problems(dialogue: Dialogue) -> list[Problem]:
    """Return what is not safe to expose, in the order of `PROBLEMS`; empty if nothing was found.

    Raises:
        ConfigError: The hooks do not fit together.
    """
    found = [
        *_access(dialogue),
        *_storage(dialogue),
        *_limits(dialogue.limits),
        *_rooms(dialogue),
        *_logging(dialogue.logger),
    ]
    order = list(PROBLEMS)
    return [
        Problem(name, where, *PROBLEMS[name])
        for name, where in sorted(found, key=lambda item: order.index(item[0]))
    ]


_Found = Iterator[tuple[str, str]]


def _access(dialogue: Dialogue) -> _Found:
    if dialogue.is_development:
        yield "no-authentication", "Dialogue"
    if "*" in dialogue.allowed_origins:
        yield "any-origin", "Dialogue, field 'allowed_origins'"


def _storage(dialogue: Dialogue) -> _Found:
    archive, is_readable = dialogue._choose_archive()
    types = _room_types(dialogue)
    records = any(
        room_type.admits_any_event or any(event.history for event in room_type.events.values())
        for room_type in types
    )
    if records and not dialogue.store.is_durable:
        yield ("memory-only" if archive is None else "memory-beside-archive"), "Dialogue, field 'store'"
    if archive is None:
        return
    if dialogue.store.is_durable:
        # Without a durable store what was handed over is removed at once.
        for room_type in types:
            if room_type.admits_any_event:
                yield "no-retention", f"room {room_type.template!r}, its undeclared events"
        endless = (
            (event.name, room_type.template)
            for room_type in types
            for event in room_type.events.values()
            if event.history is not None and event.history.retention is None
        )
        yield from (("no-retention", where) for where in _events(endless))
    if not is_readable:
        yield "no-load", "hook 'on_cleanup'"
    if dialogue._hooks.has("on_cleanup"):
        if not archive.can_erase:
            yield "no-erase", "hook 'on_cleanup'"
    elif type(archive).erase is Archive.erase:
        # Whether another one can is known when it is open.
        yield "no-erase", "Dialogue, field 'archive'"


def _limits(limits: Limits) -> _Found:
    highest = Limits.unlimited()
    unlimited, raised = [], []
    for name, field in Limits.model_fields.items():
        value, default, high = getattr(limits, name), field.default, getattr(highest, name)
        if value is None or default is None:
            # None is no limit, and no default may be one that a value takes the place of.
            if value is None and default is not None:
                unlimited.append(name)
        elif high > default and value >= high:
            unlimited.append(name)
        elif value > RAISED * default:
            raised.append(name)
    if unlimited:
        yield "unlimited", f"Limits: {', '.join(unlimited)}"
    if raised:
        yield "limits-raised", f"Limits: {', '.join(raised)}"


def _rooms(dialogue: Dialogue) -> _Found:
    types = _room_types(dialogue)
    for room_type in dialogue.room_types.patterns:
        if not getattr(room_type.config, "is_guarded", False) and not _has_guard(dialogue, room_type):
            yield "unguarded-pattern", f"room {room_type.template!r}"
    if getattr(dialogue, "client_rooms", None) and not dialogue._hooks.has("before_join"):
        yield "unguarded-client-rooms", "Dialogue, field 'client_rooms'"
    for room_type in types:
        if room_type.admits_any_event:
            yield "any-event", f"room {room_type.template!r}"
    loose = (
        (event.name, room_type.template)
        for room_type in types
        for event in room_type.events.values()
        if event.history is not None and event.schema is None and event.publish == "client"
    )
    yield from (("any-data", where) for where in _events(loose))


def _has_guard(dialogue: Dialogue, room_type: RoomType) -> bool:
    """Return whether some guard is asked for every room of a pattern.

    A guard is for a whole pattern or for none of it, so one room tells; but not one that is also declared by its id.
    """
    for number in count():
        room_id = re.sub(r"\{[^{}]*\}", f"p{number}", room_type.template)
        if room_id not in dialogue.room_types.exact:
            return any(dialogue._hooks.matching("before_join", room_id))
    raise AssertionError("unreachable")


def _logging(logger: logging.Logger) -> _Found:
    # What the frames of a socket have is told by the loggers of uvicorn, which follow the root's level.
    for name in (logger, logging.getLogger("uvicorn.error")):
        if name.getEffectiveLevel() <= logging.DEBUG:
            yield "debug-logging", f"logger {name.name!r}"


def _room_types(dialogue: Dialogue) -> list[RoomType]:
    return [*dialogue.room_types.exact.values(), *dialogue.room_types.patterns]


def _events(found: Iterable[tuple[str, str]]) -> Iterator[str]:
    """Yield an event's place once for each name, with the rooms that it is in."""
    rooms: dict[str, list[str]] = {}
    for name, room in found:
        rooms.setdefault(name, []).append(room)
    for name, names in rooms.items():
        yield f"event {name!r} in {', '.join(map(repr, names))}"
