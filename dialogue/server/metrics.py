"""Prometheus metrics, in a registry of each Dialogue's own."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class Metrics:
    """What is counted. Every refusal, drop and disconnect shows in one of these."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        r = self.registry
        self.connections = Gauge("dialogue_connections", "Open connections", registry=r)
        self.streams = Gauge(
            "dialogue_streams", "Streams over HTTP that are open, and polls that wait", registry=r
        )
        self.stream_ends = Counter(
            "dialogue_stream_ends", "Streams over HTTP that have ended", ["reason"], registry=r
        )
        self.stream_drops = Counter(
            "dialogue_stream_messages_dropped",
            "Messages without a seq that a stream over HTTP was too slow for",
            registry=r,
        )
        self.rooms = Gauge("dialogue_open_rooms", "Rooms in memory", registry=r)
        self.recorded = Counter("dialogue_events_recorded", "Events appended to the log", registry=r)
        self.ephemeral = Counter("dialogue_events_ephemeral", "Ephemeral events delivered", registry=r)
        self.duplicates = Counter("dialogue_events_duplicate", "Publishes whose key was known", registry=r)
        self.deliveries = Counter("dialogue_deliveries", "Events handed to outboxes", registry=r)
        self.forgotten = Counter(
            "dialogue_events_forgotten", "Events that left memory with neither log nor archive", registry=r
        )
        self.expired = Counter(
            "dialogue_events_expired", "Events that retention has removed from the log", registry=r
        )
        self.handover = Counter(
            "dialogue_handover_events", "Events through on_cleanup", ["outcome"], registry=r
        )
        self.handover_pending = Gauge(
            "dialogue_handover_pending_events", "Events that wait for on_cleanup in memory", registry=r
        )
        self.handover_waiting_events = Gauge(
            "dialogue_handover_waiting_events", "Evicted events that on_cleanup has not got", registry=r
        )
        self.handover_waiting_streams = Gauge(
            "dialogue_handover_waiting_streams", "Streams that have such events", registry=r
        )
        self.handover_failing_streams = Gauge(
            "dialogue_handover_failing_streams", "Streams whose newest on_cleanup failed", registry=r
        )
        self.handover_failing_seconds = Gauge(
            "dialogue_handover_failing_seconds", "For how long the longest-failing stream has", registry=r
        )
        self.handover_in_flight = Gauge(
            "dialogue_handover_calls_in_flight", "Batches being handed over", registry=r
        )
        self.handover_longest_call = Gauge(
            "dialogue_handover_longest_call_seconds", "For how long the longest on_cleanup runs", registry=r
        )
        self.load_failing_seconds = Gauge(
            "dialogue_load_failing_seconds", "For how long on_load has failed", registry=r
        )
        self.log_failing_seconds = Gauge(
            "dialogue_log_failing_seconds", "For how long appends have failed", registry=r
        )
        self.errors = Counter("dialogue_errors", "Commands refused", ["code"], registry=r)
        self.closes = Counter("dialogue_closes", "Connections closed by the server", ["code"], registry=r)
        self.refused = Counter(
            "dialogue_connections_refused", "Connections refused before the upgrade", ["reason"], registry=r
        )
        self.hooks_skipped = Counter(
            "dialogue_after_each_skipped",
            "Events whose after_each was skipped, the queue being full",
            registry=r,
        )
        self.announcements_skipped = Counter(
            "dialogue_announcements_skipped",
            "Rooms made, changed or deleted of which clients were not told, the queue being full",
            registry=r,
        )
        self.members_dropped = Counter(
            "dialogue_members_dropped",
            "Joins and streams that did not bring the room into the user's inbox, there being too many",
            registry=r,
        )
        self.sessions_dropped = Counter(
            "dialogue_sessions_dropped", "Sessions whose end was not kept, there being too many", registry=r
        )
        self.append_seconds = Histogram("dialogue_append_seconds", "Time of one append", registry=r)
        self.append_events = Histogram(
            "dialogue_append_events",
            "Events in one append",
            buckets=(1, 2, 5, 10, 20, 50, 100, 200, 500, 1000),
            registry=r,
        )
        self.append_failures = Counter(
            "dialogue_append_failures", "Appends that failed", ["kind"], registry=r
        )
        self.gaps = Counter("dialogue_history_gaps", "Reads that had to name a gap", ["reason"], registry=r)

    def render(self) -> bytes:
        """Return the present values in Prometheus' text format."""
        return generate_latest(self.registry)
