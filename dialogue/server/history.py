"""History commands and join answers: from a command to a read, and from events to a message."""

from __future__ import annotations

from collections.abc import Generator
from typing import TYPE_CHECKING, Any, NamedTuple

from .. import protocol
from ..core import cursor, timeline
from ..core.cursor import MAX_SEQ, Bound
from ..core.room import Room, Subscriber, as_replaced
from ..core.timeline import Gap, Reply
from ..errors import InvalidRequest
from ..events import CHANGES, KINDS, EncodedEvent, encoded_for
from ..protocol import Ref
from .handles import RoomHandle, bounds_below

if TYPE_CHECKING:
    from .hub import Hub

DEFAULT_PAGE_EVENTS = 50
"""How many events a history answer holds when the command does not say (PROTOCOL, Commands)."""


class Read(NamedTuple):
    """A checked history command.

    Attributes:
        names: The streams to read.
        event: What the answer calls the event; None for all.
        older: Where to read towards older events, if that is asked for.
        after: Where to read towards newer ones (exclusive), if that is asked for.
        limit: Most events of the answer.
    """

    names: list[str]
    event: str | None
    older: dict[str, Bound] | None
    after: int | None
    limit: int


def subscription_names(room: Room, subscriber: Subscriber) -> list[str] | str:
    """Return a subscription as the wire tells it: ``"*"`` or a sorted list of names."""
    subscription = subscriber.subscription
    if not subscription.is_all:
        return sorted(subscription.names)
    if not subscription.names:
        return "*"
    known = {*room.room_type.events, *room.recorded_names()}
    return sorted(name for name in known if subscription.wants(name))


def parse(hub: Hub, room: Room, command: protocol.HistoryRead) -> Read:
    """Check a history command.

    Raises:
        InvalidRequest: Its bounds contradict each other, are out of range, or its cursor is not one.
        EventNotAllowed: The room records no such event.
    """
    names = _names(hub, room, command)
    limit = DEFAULT_PAGE_EVENTS if command.limit is None else command.limit
    if limit < 1:
        raise InvalidRequest("limit is at least 1")
    limit = min(limit, hub.limits.page_events)
    epoch = hub.store.epoch
    if command.epoch is not None and command.epoch != epoch:
        raise InvalidRequest("the cursor is of another epoch: start again from the newest page")
    bounds = [command.before, command.after, command.around]
    given = [bound for bound in bounds if bound is not None]
    has_offsets = command.start is not None or command.end is not None
    if len(given) + (command.cursor is not None) + has_offsets > 1:
        raise InvalidRequest("give one of before, after, around, cursor, or start and end")
    if any(not 0 <= bound <= MAX_SEQ for bound in given):
        raise InvalidRequest("a seq is out of range")
    if has_offsets:
        return _by_offset(hub, room, command, names)
    if command.cursor is not None:
        decoded = cursor.decode(command.cursor, epoch=epoch, event_names=names)
        if decoded.is_older:
            return Read(names, command.event, {name: decoded.bound(name) for name in names}, None, limit)
        return Read(names, command.event, None, decoded.seq, limit)
    if command.after is not None:
        return Read(names, command.event, None, command.after, limit)
    if command.around is not None:
        return Read(names, command.event, bounds_below(names, command.around + 1), command.around, limit)
    top = room.last_seq + 1 if command.before is None else command.before
    return Read(names, command.event, bounds_below(names, top), None, limit)


def _names(hub: Hub, room: Room, command: protocol.HistoryRead) -> list[str]:
    if command.kind is not None and command.kind not in KINDS:
        raise InvalidRequest("unknown kind")
    names = room.recorded_names() if command.event is None else [hub.recorded_type(room, command.event).name]
    if command.kind is None:
        return names
    kinds = {name: room.room_type.event_type(name) for name in names}
    return [name for name, event_type in kinds.items() if event_type and event_type.kind == command.kind]


def _by_offset(hub: Hub, room: Room, command: protocol.HistoryRead, names: list[str]) -> Read:
    start, end = command.start, command.end
    if command.event is None or start is None or end is None:
        raise InvalidRequest("offsets need event, start and end")
    if not 0 <= start <= end <= MAX_SEQ:
        raise InvalidRequest("offsets need 0 <= start <= end")
    if not names:
        return Read([], command.event, {}, None, 1)
    if end == start:
        return Read([], command.event, {}, None, 1)
    bounds = {command.event: room.bound_at_offset(command.event, start)}
    return Read(names, command.event, bounds, None, min(end - start, hub.limits.page_events))


async def answer(hub: Hub, room: Room, read: Read, *, user_id: str, ref: Ref) -> bytes:
    """Run *read* and return the ``history`` message."""
    with room.watch() as replaced:
        found = await hub.reader.run(room.room_id, _reading(hub, room, read, user_id))
    if replaced:
        texts = encoded_for(as_replaced(found.events, replaced), user_id)
        found = found._replace(texts=texts)
    return _encode(hub, room, read, found, ref)


def answer_nowait(hub: Hub, room: Room, read: Read, *, user_id: str, ref: Ref) -> bytes | None:
    """Return the ``history`` message if memory has all of it; None if log or archive are to be asked."""
    found = hub.reader.run_nowait(_reading(hub, room, read, user_id))
    return None if found is None else _encode(hub, room, read, found, ref)


def _encode(hub: Hub, room: Room, read: Read, found: _Found, ref: Ref) -> bytes:
    message: dict[str, Any] = {"type": "history"}
    if ref is not None:
        message["ref"] = ref
    message |= {
        "room": room.room_id,
        "event": read.event,
        "epoch": hub.store.epoch,
        "has_more": found.next is not None,
        "next": found.next,
    }
    if found.previous is not None:
        message["previous"] = found.previous
    if found.gap is not None:
        gap = found.gap
        message["gap"] = {"from_seq": gap.from_seq, "through_seq": gap.through_seq, "reason": gap.reason}
    return protocol.encode_with_events(message, found.texts)


class _Found(NamedTuple):
    """What a history command finds: events with their messages, and the tokens and the gap that go with them."""

    events: list[EncodedEvent]
    texts: list[bytes]
    next: str | None
    previous: str | None
    gap: Gap | None


def _reading(hub: Hub, room: Room, read: Read, user_id: str) -> Generator[timeline.Read, Reply, _Found]:
    epoch = hub.store.epoch
    events: list[EncodedEvent] = []
    texts: list[bytes] = []
    gap: Gap | None = None
    next_token: str | None = None
    previous: str | None = None
    if read.older is not None:
        limit = read.limit if read.after is None else (read.limit + 1) // 2
        older = yield from hub.reader.read_older(room, read.older, limit=limit, user_id=user_id)
        events, texts, gap = older.events, older.texts, older.gap
        next_token = cursor.encode_older(epoch, older.bounds) if older.bounds is not None else None
        newest = _last_seq(events)
        if newest is not None:
            previous = cursor.encode_newer(epoch, newest)
    if read.after is not None:
        limit = read.limit if read.older is None else read.limit - len(events)
        if limit > 0:
            newer = yield from hub.reader.read_newer(
                room, read.names, after=read.after, limit=limit, user_id=user_id
            )
            if read.older is None:
                first = _first_seq(newer.events)
                below = read.after + 1 if first is None else first
                previous = cursor.encode_older(epoch, bounds_below(read.names, below)) if below > 1 else None
                next_token = (
                    cursor.encode_newer(epoch, newer.next_after) if newer.next_after is not None else None
                )
            else:
                shown = _last_seq(newer.events)
                previous = cursor.encode_newer(epoch, read.after if shown is None else shown)
            events, texts = events + newer.events, texts + newer.texts
            gap = _join(gap, newer.gap)
    return _Found(events, texts, next_token, previous, gap)


def _join(gap: Gap | None, other: Gap | None) -> Gap | None:
    """Return one gap that names both: what can be read later is the stronger reason."""
    if gap is None or other is None:
        return gap or other
    later = "tier_unavailable" in (gap.reason, other.reason)
    return Gap(
        min(gap.from_seq, other.from_seq),
        max(gap.through_seq, other.through_seq),
        "tier_unavailable" if later else gap.reason,
    )


def _last_seq(events: list[EncodedEvent]) -> int | None:
    return next((event.seq for event in reversed(events) if event.seq is not None), None)


def _first_seq(events: list[EncodedEvent]) -> int | None:
    return next((event.seq for event in events if event.seq is not None), None)


class Joined(NamedTuple):
    """What a join brings.

    Attributes:
        events: Oldest first, in the form that they have now.
        bounds: Where each stream goes on towards older events; None at the end.
        recovered: Whether *events* is everything since the client's cursor; None where it gave none.
        texts: What is to be joined for their messages, if others get the same ones; else None.
    """

    events: list[EncodedEvent]
    bounds: dict[str, Bound] | None
    recovered: bool | None
    texts: list[bytes] | None = None


async def joined(
    hub: Hub,
    room: Room,
    subscriber: Subscriber,
    *,
    through: int,
    since: protocol.Since | None,
    sync: int | None,
    ref: Ref,
) -> bytes:
    """Return the ``joined`` message (PROTOCOL, Joining).

    Args:
        through: S: the room's seq when the subscriber was registered.
    """
    found = await read_joined(hub, room, subscriber, through=through, since=since, sync=sync)
    return encode_joined(hub, room, subscriber, found, through=through, ref=ref)


async def read_joined(
    hub: Hub,
    room: Room,
    subscriber: Subscriber,
    *,
    through: int,
    since: protocol.Since | None,
    sync: int | None,
) -> Joined:
    """Return what a join brings, up to *through*."""
    epoch = hub.store.epoch
    names = [name for name in room.recorded_names() if subscriber.subscription.wants(name)]
    if since is not None and since.epoch == epoch and 0 <= since.seq <= through:
        missed = await hub.reader.replays.get(
            room, names, after=since.seq, through=through, user_id=subscriber.user_id
        )
        if missed is not None:
            has_older = since.seq > 0 or hub.reader.has_archive
            bounds = bounds_below(names, since.seq + 1) if has_older else None
            return Joined(missed.events, bounds, True, missed.texts or None)
    with room.watch() as replaced:
        page = await hub.reader.newest_per_stream(room, _counts(hub, room, names, sync), through=through)
    return Joined(as_replaced(page.events, replaced), page.bounds, None if since is None else False)


def encode_joined(
    hub: Hub, room: Room, subscriber: Subscriber, found: Joined, *, through: int, ref: Ref
) -> bytes:
    """Return the ``joined`` message that brings *found*."""
    epoch = hub.store.epoch
    token = cursor.encode_older(epoch, found.bounds) if found.bounds else None
    message: dict[str, Any] = {"type": "joined"}
    if ref is not None:
        message["ref"] = ref
    message |= {
        "room": room.room_id,
        "name": RoomHandle(hub, room.room_id).name,
        "seq": through,
        "epoch": epoch,
        "subscriptions": subscription_names(room, subscriber),
        "has_more": token is not None,
        "next": token,
        "recovered": found.recovered,
    }
    texts = encoded_for(found.events, subscriber.user_id) if found.texts is None else found.texts
    return protocol.encode_with_events(message, texts)


def _counts(hub: Hub, room: Room, names: list[str], sync: int | None) -> dict[str, int]:
    counts: dict[str, int] = {}
    for name in names:
        event_type = room.room_type.event_type(name)
        if event_type is not None and event_type.history is not None:
            wanted = room.room_type.sync_events(event_type) if sync is None else sync
            # What the newest events have become is in them; the changes themselves are for who saw them before.
            counts[name] = 0 if name in CHANGES else min(wanted, hub.limits.page_events)
    return counts
