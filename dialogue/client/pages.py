"""What reads are answered with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from dialogue.events import Event


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
class Page:
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

    events: list[Event[Any]]
    has_more: bool
    next: str | None
    previous: str | None
    gap: Gap | None
    epoch: str | None


@dataclass(frozen=True, slots=True)
class RoomInfo:
    """A room as `DialogueClient.rooms` lists it.

    Attributes:
        size: Connections in it now.
        max_size: Most connections, or None for no limit.
    """

    id: str
    name: str
    description: str
    size: int
    max_size: int | None
    created_by_id: str | None
