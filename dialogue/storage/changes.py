"""Edits, deletions and erasures inside the transaction of their append; see `dialogue.events.Target`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import Connection, select, update

from ..errors import TargetGone
from ..events import (
    CHANGES,
    EDIT,
    ERASED_USER,
    SERVER_KEY_PREFIX,
    Draft,
    EncodedEvent,
    Event,
    change,
    payload_of,
    void,
)
from .base import Appended
from .statements import EVENT_COLUMNS, KEY_CHUNK, chunks, decode_row
from .tables import events


def apply(connection: Connection, drafts: Sequence[Draft], appended: Sequence[Appended]) -> list[Appended]:
    """Change the targets of *drafts*, which have just been recorded; return *appended* with what was replaced.

    Raises:
        TargetGone: One of them is not in the log, or is deleted.
    """
    return [
        item if draft.target is None else item._replace(replaced=_apply(connection, draft, item.seq))
        for draft, item in zip(drafts, appended, strict=True)
    ]


def _apply(connection: Connection, draft: Draft, by_seq: int) -> tuple[EncodedEvent, ...]:
    target, room_id = draft.target, draft.room_id
    assert target is not None
    found = _find(connection, room_id, target.seq)
    if found is None or (found[2] and not target.is_erased):
        raise TargetGone("the event is no longer there")
    before, replaced_by, _ = found
    replaced = [change(before, target)]
    _write(connection, room_id, replaced[0], by_seq, is_erased=target.is_erased)
    # What replaced a change is about the same target and still holds: erasing whose change it was voids nothing else.
    if replaced_by is not None and before.event not in CHANGES:
        earlier = _find(connection, room_id, replaced_by)
        if earlier is not None and earlier[0].event == EDIT:
            replaced.append(void(earlier[0]))
            _write(connection, room_id, replaced[1], by_seq, is_erased=False)
    return tuple(replaced)


def _find(connection: Connection, room_id: str, seq: int) -> tuple[EncodedEvent, int | None, bool] | None:
    """Return an event, the seq of the newest change of it, and whether it is a tombstone."""
    row = connection.execute(
        select(*EVENT_COLUMNS, events.c.replaced_by).where(events.c.room_id == room_id, events.c.seq == seq)
    ).one_or_none()
    return None if row is None else (decode_row(room_id, row), row.replaced_by, bool(row.is_deleted))


def _write(
    connection: Connection, room_id: str, event: EncodedEvent, by_seq: int, *, is_erased: bool
) -> None:
    data_json, meta_json = payload_of(event)
    wire: Event[Any] = Event.decode(event, epoch=None)
    values: dict[str, bytes | str | int | bool | None] = {
        "event_data": data_json,
        "meta": meta_json,
        "is_edited": wire.is_edited,
        "is_deleted": wire.is_deleted,
        "replaced_by": by_seq,
    }
    if is_erased:
        # A key says who used it; this one says only that there was one, and is as unique as the seq.
        values |= {"from_user": ERASED_USER, "key": f"{SERVER_KEY_PREFIX}{event.seq}"}
    connection.execute(
        update(events).where(events.c.room_id == room_id, events.c.seq == event.seq).values(**values)
    )


def replaced_by(
    connection: Connection, room_id: str, targets: Mapping[int, int]
) -> dict[int, tuple[EncodedEvent, ...]]:
    """Return what each of some changes of a room has replaced and no later change has, by the change's seq.

    It reads the targets and, once for all of them, the edits that came after the oldest target: a room that is long
    is not searched, because publishing waits meanwhile.

    Args:
        targets: The seqs of the changes' targets by the seqs of the changes; at least one.
    """
    found: dict[int, dict[int, EncodedEvent]] = {seq: {} for seq in targets}
    columns = select(*EVENT_COLUMNS, events.c.replaced_by).where(events.c.room_id == room_id)
    rows: list[Any] = []
    for target_seqs in chunks(sorted(set(targets.values())), KEY_CHUNK):
        rows += connection.execute(columns.where(events.c.seq.in_(target_seqs)))
    rows += connection.execute(
        columns.where(
            events.c.event_name == EDIT,
            events.c.seq > min(targets.values()),
            events.c.seq < max(targets),
            events.c.replaced_by >= min(targets),
            events.c.replaced_by <= max(targets),
        )
    )
    for row in rows:
        if row.replaced_by in found:
            found[row.replaced_by][row.seq] = decode_row(room_id, row)
    return {seq: tuple(replaced.values()) for seq, replaced in found.items()}
