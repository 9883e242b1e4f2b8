"""What operators are shown of the tiers: ``Dialogue.health()`` and the gauges of the hand-over."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..storage.cleanup import HandOver
from ..storage.condition import Condition
from .group_commit import GroupCommit
from .metrics import Metrics
from .reader import Reader

if TYPE_CHECKING:
    from .hub import Hub


def report(hub: Hub | None) -> dict[str, Any]:
    """Return the state of each tier, without anybody's data.

    ``status`` is ``stopping`` (or not started), ``failing`` when the log does not take events, ``degraded`` when
    the archive cannot be written or read (nothing is lost by that, and everything that memory or log has is
    readable), else ``ok``.

    Args:
        hub: The running part; None when it is not running.
    """
    if hub is None:
        return {"status": "stopping"}
    log, archive = _log(hub), _archive(hub)
    if hub.is_stopping:
        status = "stopping"
    elif log["state"] == "failing":
        status = "failing"
    else:
        status = "degraded" if archive["state"] == "failing" else "ok"
    return {
        "status": status,
        "epoch": hub.store.epoch,
        "is_durable": hub.store.is_durable,
        "connections": len(hub.connections.sessions),
        "open_rooms": len(hub.rooms),
        "log": log,
        "archive": archive,
    }


def _log(hub: Hub) -> dict[str, Any]:
    commit = hub.commit
    state: dict[str, Any] = {"state": "ok", "waiting_events": commit.waiting_events}
    seconds = commit.condition.failing_seconds
    # While something waits the failure goes on, however long ago it was noticed: the append may hang.
    if seconds is not None and (commit.condition.is_recent or commit.waiting_events):
        state |= {"state": "failing", "failing_seconds": round(seconds, 3)}
    return state


def _archive(hub: Hub) -> dict[str, Any]:
    if hub.handover is None:
        return {"state": "none"}
    progress = hub.handover.statistics()
    loads = hub.reader.load_condition
    failing = [progress.failing_seconds] if progress.failing_streams else []
    if progress.longest_call_seconds > hub.limits.hook_seconds:
        failing.append(progress.longest_call_seconds)
    if loads.is_recent:
        failing.append(loads.failing_seconds or 0.0)
    state: dict[str, Any] = {
        "state": "failing" if failing else "ok",
        "waiting_events": progress.waiting_events,
        "waiting_streams": progress.waiting_streams,
        "failing_streams": progress.failing_streams,
        "calls_in_flight": progress.calls_in_flight,
    }
    if failing:
        state["failing_seconds"] = round(max(failing), 3)
    return state


def _seconds(condition: Condition) -> float:
    return condition.failing_seconds or 0.0


def show_progress(
    metrics: Metrics, *, handover: HandOver | None, reader: Reader, commit: GroupCommit
) -> None:
    """Let the gauges of *metrics* read from these parts, whenever they are rendered."""
    metrics.log_failing_seconds.set_function(lambda: _seconds(commit.condition))
    if handover is None:
        return
    metrics.handover_pending.set_function(lambda: handover.pending_events)
    metrics.handover_waiting_events.set_function(lambda: handover.statistics().waiting_events)
    metrics.handover_waiting_streams.set_function(lambda: handover.statistics().waiting_streams)
    metrics.handover_failing_streams.set_function(lambda: handover.statistics().failing_streams)
    metrics.handover_failing_seconds.set_function(lambda: handover.statistics().failing_seconds)
    metrics.handover_in_flight.set_function(lambda: handover.statistics().calls_in_flight)
    metrics.handover_longest_call.set_function(lambda: handover.statistics().longest_call_seconds)
    metrics.load_failing_seconds.set_function(lambda: _seconds(reader.load_condition))
