"""What reads are answered with, and what announcements tell."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import msgspec

from dialogue.events import Event, WireEvent

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Gap:
    """A part of a history that could not be read.

    Attributes:
        from_seq, through_seq: Its first and last seq, both included; None where they are not known.
        reason: ``retention`` (removed for good), ``tier_unavailable`` (for the moment: read again) or ``no_seq``
            (only ``next`` goes past it).
    """

    from_seq: int | None
    through_seq: int | None
    reason: str

    @property
    def is_for_the_moment(self) -> bool:
        """Whether reading again may fill it."""
        return self.reason == "tier_unavailable"


@dataclass(frozen=True, slots=True)
class Page(Generic[T]):
    """One page of a room's history.

    Attributes:
        events: In room order, oldest first; empty where nothing matched.
        has_more: Whether there is more in the direction of ``next``.
        next: The cursor of the following page in the same direction (the older one for ``around`` and offsets);
            None at the end, and only there.
        previous: The cursor of the other direction, or None.
        gap: What could not be read of it, or None.
        epoch: The life of the log that its seqs belong to.
    """

    events: list[Event[T]]
    has_more: bool
    next: str | None
    previous: str | None
    gap: Gap | None
    epoch: str | None

    @classmethod
    def from_wire(
        cls, answer: Mapping[str, Any], make_event: Callable[[WireEvent, str | None], Event[Any]]
    ) -> Page[Any]:
        """Return what the answer to a read says, with events as *make_event* makes them of an epoch."""
        epoch, gap = answer.get("epoch"), answer.get("gap")
        return Page(
            events=[make_event(wire, epoch) for wire in msgspec.convert(answer["events"], list[WireEvent])],
            has_more=bool(answer.get("has_more")),
            next=answer.get("next"),
            previous=answer.get("previous"),
            gap=None if not gap else Gap(gap.get("from_seq"), gap.get("through_seq"), str(gap.get("reason"))),
            epoch=epoch,
        )


@dataclass(frozen=True, slots=True)
class RoomInfo:
    """A room as `DialogueClient.rooms` lists it, and as `DialogueClient.on_room_created` tells of it.

    Attributes:
        size: Connections in it now.
        max_size: Most connections, or None for no limit.
        created_by_id: The user who has made it; None for a room that is declared, or that the server has made.
    """

    id: str
    name: str
    description: str
    size: int
    max_size: int | None
    created_by_id: str | None

    @classmethod
    def from_wire(cls, record: Mapping[str, Any]) -> RoomInfo:
        """Return what a record of the server says."""
        return cls(
            id=record["id"],
            name=record.get("name") or "",
            description=record.get("description") or "",
            size=record.get("size") or 0,
            max_size=record.get("max_size"),
            created_by_id=record.get("created_by_id"),
        )


@dataclass(frozen=True, slots=True)
class Presence:
    """Who is in a room, as `Room.presence` tells.

    Attributes:
        users: Each once, however many connections it has; not all of them where there are more than the server names
            in one message.
        count: How many users there are.
    """

    users: list[str]
    count: int


@dataclass(frozen=True, slots=True)
class PresenceChange:
    """Who has come to a room and who has gone, as `Room.on_presence` tells.

    Attributes:
        joined, left: Users; the server gathers changes for a moment, and whoever was away only meanwhile is in neither.
        count: How many users are there now.
    """

    joined: tuple[str, ...]
    left: tuple[str, ...]
    count: int
