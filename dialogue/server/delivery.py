"""What a committed group becomes: events in rings, frames to subscribers, acks; in one step, in commit order."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from .. import protocol
from ..core.room import Room
from ..events import CHANGES, EncodedEvent
from ..storage.base import FeedItem
from .outbox import Frame
from .submissions import Outcome

if TYPE_CHECKING:
    from .hub import Hub
    from .session import Session


class Delivery:
    """Tells of what is recorded, or passed through."""

    def __init__(self, hub: Hub) -> None:
        self._hub = hub
        self._trims: dict[tuple[str, str], int] = {}

    def deliver(self, outcomes: Sequence[Outcome]) -> None:
        """Tell a committed group: rings, subscribers, publishers. Never awaits."""
        hub = self._hub
        acks: defaultdict[tuple[Any, str], list[bytes]] = defaultdict(list)
        by_room: defaultdict[str, list[Outcome]] = defaultdict(list)
        duplicates = 0
        for outcome in outcomes:
            submission = outcome.submission
            room_id = submission.draft.room_id
            if outcome.event is not None:
                by_room[room_id].append(outcome)
            else:
                duplicates += 1
            publisher = submission.publisher
            if publisher is not None and not submission.is_answered:
                submission.is_answered = True
                ack = publisher.on_recorded(submission, outcome)
                if ack is not None:
                    acks[publisher, room_id].append(ack)
        hub.metrics.duplicates.inc(duplicates)
        if hub.feeds.has_readers:
            hub.feeds.put(
                [
                    FeedItem(outcome.appended.id, outcome.submission.draft.room_id, outcome.event)
                    for outcome in outcomes
                    if outcome.appended is not None and outcome.event is not None
                ]
            )
        for room_id, group in by_room.items():
            room = hub.rooms.get(room_id)
            if room is not None:
                self._deliver_room(room, group, acks)
        for (session, _), messages in acks.items():
            session.send(messages)

    def _deliver_room(
        self, room: Room, outcomes: list[Outcome], acks: dict[tuple[Any, str], list[bytes]]
    ) -> None:
        hub = self._hub
        events: list[EncodedEvent] = []
        origins: dict[int, Any] = {}
        keyed_users: set[str] = set()
        counting = 0
        for outcome in outcomes:
            event = outcome.event
            assert event is not None
            if event.seq is None:
                origins[id(event)] = outcome.submission.publisher
            else:
                try:
                    evicted = room.push(event)
                except ValueError:
                    self._reset(room)
                    return
                if evicted is not None:
                    self._evicted(room, evicted)
                counting += outcome.submission.draft.counts_unread
                assert outcome.appended is not None
                # After what came before it in the group is in the rings: an edit of the same group may be void now.
                for replaced in outcome.appended.replaced:
                    room.replace(replaced)
                if event.event in CHANGES and hub.handover is not None:
                    # At once: until then the archive's copy of what was changed is out of date.
                    hub.handover.evicted(room.room_id, event.event, event.position)
            if event.has_key:
                keyed_users.add(event.sender)
            events.append(event)
        hub.followers.deliver(room, events)
        if counting:
            room.last_unread_position += counting
            hub.inbox.counted(room)
        recorded = len(events) - len(origins)
        hub.metrics.recorded.inc(recorded)
        hub.metrics.ephemeral.inc(len(origins))
        special = {session for session, room_id in acks if room_id == room.room_id} | set(origins.values())
        delivered = 0
        # Counted by event only for those who ask: of a busy room that alone is a tenth of its cost.
        recipients = dict.fromkeys(map(id, events), 0) if hub.notifier.has_hooks else {}
        for group in room.groups(events):
            frame: Frame | None = None
            texts = [event.json for event in group.events]
            count = len(texts)
            for subscriber in group.subscribers:
                session: Session = subscriber.sink
                if session in special or subscriber.user_id in keyed_users:
                    user_id = subscriber.user_id
                    messages = [
                        event.json_for(user_id) if event.has_key and event.sender == user_id else text
                        for event, text in zip(group.events, texts, strict=True)
                        if not origins or origins.get(id(event), event) is not session
                    ]
                    delivered += len(messages)
                    if subscriber.held is None:
                        # Else the frame waits for a join that may fail: the acks must not wait with it.
                        messages += acks.pop((session, room.room_id), ())
                    if messages:
                        session.deliver(subscriber, Frame(protocol.encode_frame(messages)))
                    for event in group.events if recipients else ():
                        recipients[id(event)] -= origins.get(id(event), event) is session
                else:
                    if frame is None:
                        frame = Frame(protocol.encode_frame(texts))
                    session.deliver(subscriber, frame)
                    delivered += count
            if recipients:
                size = sum(1 for _ in group.subscribers)
                for event in group.events:
                    recipients[id(event)] += size
        hub.metrics.deliveries.inc(delivered)
        if recipients:
            counted = [(event, recipients[id(event)]) for event in events]
            hub.notifier.put(room.room_id, room.room_type, counted)

    def _evicted(self, room: Room, evicted: EncodedEvent) -> None:
        hub = self._hub
        if hub.handover is not None:
            hub.handover.evicted(room.room_id, evicted.event, evicted.position)
        elif not hub.store.is_durable:
            self._trims[room.room_id, evicted.event] = evicted.position
            hub.metrics.forgotten.inc()

    async def trim(self) -> None:
        """Let a store that only mirrors the rings forget what they have forgotten."""
        hub = self._hub
        trims, self._trims = self._trims, {}
        for (room_id, event_name), through in trims.items():
            await hub.store.remove(room_id, event_name, through)

    def _reset(self, room: Room) -> None:
        """Drop a room whose next seq is not what it should be, and its connections: they resume from the log.

        It takes a fault in the store to come here. Going on would hide a hole from everyone.
        """
        hub = self._hub
        hub.log.critical(
            "room %r: the store skipped a seq; its connections are closed and will resume", room.room_id
        )
        hub.open_rooms.reset(room.room_id)
        hub.followers.look_again(room.room_id)
        for subscriber in list(room.subscribers()):
            subscriber.sink.close(protocol.CLOSE_RESTARTING, "the room is read again")
