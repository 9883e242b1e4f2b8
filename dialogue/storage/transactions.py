"""What a log does inside one transaction, as plain functions over a synchronous connection.

A `Writer` runs them: on SQLite in the thread that owns the connection, elsewhere through the async driver. So one
code serves both, and an append costs the event loop one wait instead of one per statement.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeVar

from sqlalchemy import Connection, Dialect, Row, delete, select, update
from sqlalchemy.exc import DataError, DBAPIError, IntegrityError

from ..errors import CursorExpired, DraftRefused, StartError
from ..events import SERVER_KEY_PREFIX, Draft, EncodedEvent
from . import changes
from .base import Appended, FeedItem, LogPage, RoomHead, StoredStream, StreamState, UserEvent, UserEvents
from .statements import (
    KEY_CHUNK,
    Before,
    append_statements,
    chunks,
    decode_row,
    feed,
    first_times,
    floors,
    heads_statement,
    key_parameters,
    nth_id,
    page_parameters,
    page_statement,
    settle_statement,
    slots,
    stored_streams,
    stream_page,
    unhanded_streams,
    user_events,
)
from .tables import events, log, streams
from .writer import without_data

T = TypeVar("T")

Key = tuple[str, str, str]
"""(room id, sender, key)."""


class AppendOutcome(NamedTuple):
    """What an append did.

    Attributes:
        appended: One per draft.
        last_id_before: The log's last id before this append; None when nothing was recorded.
    """

    appended: list[Appended]
    last_id_before: int | None


class _Room:
    """A room's counters while an append hands them out."""

    __slots__ = ("seq", "streams", "timestamp", "unread_position")

    def __init__(self, seq: int, timestamp: int, unread_position: int) -> None:
        self.seq = seq
        self.timestamp = timestamp
        self.unread_position = unread_position
        self.streams: dict[str, int] = {}


class Appender:
    """Appends to the log of one dialect.

    Args:
        clock: Returns milliseconds since the epoch.
    """

    def __init__(self, dialect: Dialect, *, clock: Callable[[], int]) -> None:
        self._statements = append_statements(dialect)
        self._clock = clock

    def append(self, connection: Connection, drafts: Sequence[Draft]) -> AppendOutcome:
        """Record *drafts* in the transaction that *connection* is in; see `Store.append`.

        Raises:
            DraftRefused: The database refuses at least one of them.
        """
        firsts: dict[Key, int] = {}
        for index, draft in enumerate(drafts):
            if not draft.key.startswith(SERVER_KEY_PREFIX):
                firsts.setdefault((draft.room_id, draft.sender, draft.key), index)
        try:
            return self._append(connection, drafts, firsts)
        except (DBAPIError, UnicodeEncodeError) as error:
            if is_refusal(error):
                raise DraftRefused("the database refuses one of these events") from without_data(error)
            raise

    def _append(
        self, connection: Connection, drafts: Sequence[Draft], firsts: dict[Key, int]
    ) -> AppendOutcome:
        rooms = list({draft.room_id: None for draft in drafts})
        before = self._statements.read(connection, list(firsts), rooms)
        known = {row[:3]: Appended(*row[3:], None) for row in before.known}
        fresh = list(drafts)
        if firsts:
            fresh = []
            for index, draft in enumerate(drafts):
                key = (draft.room_id, draft.sender, draft.key)
                if firsts.get(key, index) == index and key not in known:
                    fresh.append(draft)
        if not fresh:
            return AppendOutcome([known[draft.room_id, draft.sender, draft.key] for draft in drafts], None)
        recorded = self._record(connection, fresh, before)
        if any(draft.target is not None for draft in fresh):
            recorded = changes.apply(connection, fresh, recorded)
        if len(fresh) == len(drafts):
            return AppendOutcome(recorded, before.last_id)
        appended = []
        new = iter(recorded)
        for draft in drafts:
            key = (draft.room_id, draft.sender, draft.key)
            found = known.get(key)
            if found is None:
                found = next(new)
                if key in firsts:
                    known[key] = found._replace(event=None, replaced=())
            appended.append(found)
        return AppendOutcome(appended, before.last_id)

    def _record(self, connection: Connection, drafts: Sequence[Draft], before: Before) -> list[Appended]:
        """Write new events after what was *before*, and the counters that they move."""
        now = self._clock()
        id_ = before.last_id
        counters: dict[str, _Room] = {}
        for room_id, seq, timestamp, unread_position in before.rooms:
            counters[room_id] = _Room(seq, max(now, timestamp), unread_position)
        for room_id, name, last in before.streams:
            counters[room_id].streams[name] = last
        touched: set[tuple[str, str]] = set()
        rows: list[tuple[Any, ...]] = []
        appended: list[Appended] = []
        for draft in drafts:
            room_id = draft.room_id
            name = draft.event
            found = counters.get(room_id)
            if found is None:
                found = counters[room_id] = _Room(0, now, 0)
            id_ += 1
            seq = found.seq = found.seq + 1
            position = found.streams.get(name, 0) + 1
            found.streams[name] = position
            touched.add((room_id, name))
            if draft.counts_unread:
                found.unread_position += 1
            timestamp = found.timestamp
            meta = draft.meta_json
            try:
                row = (
                    id_,
                    room_id,
                    seq,
                    name,
                    draft.kind,
                    draft.data_json.decode(),
                    draft.sender,
                    timestamp,
                    None if meta is None else meta.decode(),
                    draft.key,
                    position,
                    found.unread_position,
                    now,
                )
                event = draft.record(id=id_, seq=seq, position=position, timestamp=timestamp)
            except UnicodeError as error:
                raise DraftRefused("one of these events is not valid text") from error
            rows.append(row)
            appended.append(Appended(seq, id_, timestamp, event))
        moved = {room_id: counters[room_id] for room_id, _ in touched}
        self._statements.write(
            connection,
            id_,
            rows,
            [(room_id, room.seq, room.timestamp, room.unread_position) for room_id, room in moved.items()],
            [(room_id, name, counters[room_id].streams[name], 0, 0, 0) for room_id, name in touched],
        )
        return appended


def is_refusal(error: Exception) -> bool:
    """Return whether a database would refuse the same data again."""
    if isinstance(error, IntegrityError | DataError | UnicodeEncodeError):
        return True
    cause = error.orig if isinstance(error, DBAPIError) else None
    # Postgres: wrong data, a violated constraint, or a limit of the database's own (a key too long for an index).
    state = getattr(cause, "sqlstate", None) or ""
    # A ValueError is the driver's own, which cannot encode a value.
    return state.startswith(("22", "23", "54")) or isinstance(cause and cause.__cause__, ValueError)


def settle(connection: Connection, drafts: Sequence[Draft], *, above_id: int) -> list[Appended | None]:
    """Return what the log has of *drafts*; see `Store.settle`.

    Args:
        above_id: The log's last id before the append in question. What is at or below it was known by its key
            already when that append came, so it is told as a duplicate, and not as an event to deliver.
    """
    found: dict[Key, tuple[Appended, EncodedEvent]] = {}
    keys = list({(draft.room_id, draft.sender, draft.key): None for draft in drafts})
    for chunk in chunks(keys, KEY_CHUNK):
        size = slots(len(chunk))
        for row in connection.execute(settle_statement(size), key_parameters(chunk, size)):
            event = decode_row(row.room_id, row)
            found[row.room_id, row.from_user, row.key] = Appended(row.seq, row.id, row.timestamp, None), event
    settled: list[Appended | None] = []
    told: set[Key] = set()
    # By room, and the seq of the change: the seq of its target.
    made: dict[str, dict[int, int]] = {}
    for draft in drafts:
        key = (draft.room_id, draft.sender, draft.key)
        if key not in found:
            settled.append(None)
            continue
        appended, event = found[key]
        is_new = appended.id > above_id and key not in told
        told.add(key)
        if is_new:
            appended = appended._replace(event=event)
            if draft.target is not None:
                made.setdefault(draft.room_id, {})[appended.seq] = draft.target.seq
        settled.append(appended)
    replaced = {room_id: changes.replaced_by(connection, room_id, made[room_id]) for room_id in made}
    return [
        item
        if item is None or item.event is None or draft.target is None
        else item._replace(replaced=replaced[draft.room_id][item.seq])
        for draft, item in zip(drafts, settled, strict=True)
    ]


def mark_handed(connection: Connection, room_id: str, event_name: str, through: int) -> None:
    """Move a stream's ``handed_through`` forward; see `Store.mark_handed`."""
    connection.execute(
        update(streams)
        .where(
            streams.c.room_id == room_id,
            streams.c.event_name == event_name,
            streams.c.handed_through < through,
        )
        .values(handed_through=through)
    )


def remove(connection: Connection, room_id: str, event_name: str, through: int) -> None:
    """Remove a stream's events through a position; see `Store.remove`."""
    is_stream = (streams.c.room_id == room_id) & (streams.c.event_name == event_name)
    stream = connection.execute(
        select(streams.c.last, streams.c.removed_through).where(is_stream)
    ).one_or_none()
    if stream is None:
        return
    # Beyond the newest event it would be a promise to remove what is not yet there.
    through = min(through, stream.last)
    if through <= stream.removed_through:
        return
    of_stream = (events.c.room_id == room_id) & (events.c.event_name == event_name)
    seq, id_ = connection.execute(
        select(events.c.seq, events.c.id).where(of_stream, events.c.position == through)
    ).one()
    # From the floor up: the index still has what was removed before, for as long as any snapshot is open or until a
    # vacuum, and each batch would walk over all of it.
    connection.execute(
        delete(events).where(
            of_stream, events.c.position > stream.removed_through, events.c.position <= through
        )
    )
    connection.execute(
        update(streams).where(is_stream).values(removed_through=through, removed_through_seq=seq)
    )
    connection.execute(update(log).where(log.c.removed_through_id < id_).values(removed_through_id=id_))


def head(connection: Connection, room_id: str) -> RoomHead:
    """Return where a room stands; see `Store.head`. One statement, so that seq and streams fit together."""
    found = RoomHead(0, {})
    for row in connection.execute(heads_statement(1), {"room_id_0": room_id}):
        found.last_seq = row.last_seq
        found.last_unread_position = row.last_unread_position
        if row.event_name is not None:
            found.streams[row.event_name] = state_of(row)
    return found


def state_of(row: Any) -> StreamState:
    """Return where a stream stands, from a row with its columns."""
    return StreamState(row.last, row.handed_through, row.removed_through, row.removed_through_seq)


def page(
    connection: Connection,
    room_id: str,
    names: Sequence[str] | None,
    before: int | None,
    after: int | None,
    limit: int,
) -> LogPage:
    """Return a page by seq; see `Store.page`. *names* are sorted and distinct."""
    count = None if names is None else len(names)
    statement = page_statement(count, has_before=before is not None, has_after=after is not None)
    parameters = page_parameters(room_id, names, before, after, limit)

    def read() -> list[Any]:
        return list(connection.execute(statement, parameters))

    rows, removed = _with_floors(connection, room_id, names, read)
    if after is None:
        rows.reverse()
    return LogPage(
        [decode_row(room_id, row) for row in rows],
        max((seq for _, seq in removed.values()), default=0),
        removed.get(names[0], (0, 0))[0] if names is not None and len(names) == 1 else 0,
    )


def page_of_stream(
    connection: Connection, room_id: str, event_name: str, before_position: int, limit: int
) -> LogPage:
    """Return a page by position; see `Store.stream_page`."""
    parameters = {
        "room_id": room_id,
        "event_name": event_name,
        "before_position": before_position,
        "limit": limit,
    }

    def read() -> list[Any]:
        return list(connection.execute(stream_page, parameters))

    rows, removed = _with_floors(connection, room_id, (event_name,), read)
    position, seq = removed.get(event_name, (0, 0))
    return LogPage([decode_row(room_id, row) for row in reversed(rows)], seq, position)


def _with_floors(
    connection: Connection, room_id: str, names: Sequence[str] | None, read: Callable[[], list[Any]]
) -> tuple[list[Any], dict[str, tuple[int, int]]]:
    """Return rows and, by stream, the (position, seq) through which it has been removed.

    The floors are read after the rows: read before, a removal in between would leave a hole above them. If a
    removal took rows that were read already, all is read again, because the rest of a page that was cut at its
    limit may lie above the new floor.
    """
    while True:
        rows = read()
        removed = {
            row[0]: (row[1], row[2])
            for row in connection.execute(floors, {"room_id": room_id})
            if names is None or row[0] in names
        }
        if all(row.position > removed.get(row.event_name, (0, 0))[0] for row in rows):
            return rows, removed


def streams_above(connection: Connection, last: tuple[str, str]) -> Sequence[Row[Any]]:
    """Return the next streams that wait for the hand-over, above the (room id, event name) *last*; empty at the end."""
    room_id, event_name = last
    return connection.execute(unhanded_streams, {"room_id": room_id, "event_name": event_name}).all()


IMPORTING = "importing:"
"""What the epoch starts with while an import is not complete."""


def epoch_and_last_id(connection: Connection) -> tuple[str, int] | None:
    """Return the log's epoch and its newest id; None for a log that was never opened.

    Raises:
        StartError: It holds a part of an import. Served or exported now, what is missing would be missing for good.
    """
    row = connection.execute(select(log.c.epoch, log.c.last_id)).one_or_none()
    if row is None:
        return None
    if row.epoch.startswith(IMPORTING):
        raise StartError(
            "this log holds a part of an import that was interrupted. Run 'dialogue import' again with the same file: "
            "it goes on where it was"
        )
    return row.epoch, row.last_id


def feed_page(connection: Connection, after: int, limit: int) -> list[FeedItem]:
    """Return events of all rooms by id; see `Store.feed`."""
    rows = connection.execute(feed, {"after": after, "limit": limit}).all()
    # After the rows: what was removed before they were read is known then.
    removed_through_id = connection.execute(select(log.c.removed_through_id)).scalar_one()
    if after < removed_through_id:
        raise CursorExpired(removed_through_id)
    return [FeedItem(row.id, row.room_id, decode_row(row.room_id, row)) for row in rows]


def stored_above(connection: Connection, names: Sequence[str], last: tuple[str, str]) -> list[StoredStream]:
    """Return the next streams of *names* with events, above the (room id, event name) *last*; empty at the end."""
    parameters = {f"name_{index}": name for index, name in enumerate(names)}
    parameters |= {"room_id": last[0], "event_name": last[1]}
    return [
        StoredStream(
            row.room_id,
            row.event_name,
            state_of(row),
            row.timestamp,
        )
        for row in connection.execute(stored_streams(len(names)), parameters)
    ]


def position_before(connection: Connection, room_id: str, event_name: str, timestamp: int, limit: int) -> int:
    """Return how far a stream is older than *timestamp*; see `Store.position_before`."""
    is_stream = (streams.c.room_id == room_id) & (streams.c.event_name == event_name)
    removed_through = connection.execute(select(streams.c.removed_through).where(is_stream)).scalar()
    if removed_through is None:
        return 0
    parameters = {
        "room_id": room_id,
        "event_name": event_name,
        "removed_through": removed_through,
        "limit": limit,
    }
    rows = connection.execute(first_times, parameters)
    return max((row.position for row in rows if row.timestamp < timestamp), default=0)


def events_of_user(connection: Connection, user_id: str, after: int, limit: int) -> UserEvents:
    """Look through a part of the log for a user's events; see `Store.user_events`."""
    through = connection.execute(nth_id, {"after": after, "skipped": limit - 1}).scalar()
    last = connection.execute(select(log.c.last_id)).scalar_one() if through is None else through
    found = connection.execute(user_events, {"after": after, "through": last, "user_id": user_id})
    return UserEvents([UserEvent(*row) for row in found], through)
