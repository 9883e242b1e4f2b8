"""Records the demo's past, so that an interruption at any moment does no harm."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from pathlib import Path

from sqlalchemy import URL

from ..errors import StartError
from ..events import Draft
from ..storage.sql import SQLStore
from .past import ROOMS, Moment, make_past

OnProgress = Callable[[int, int], None]
"""Told how many messages are recorded, of how many."""

PLAN = "past.json"


class _Clock:
    """The time that the log is told: each moment's own."""

    def __init__(self) -> None:
        self.now_ms = 0

    def __call__(self) -> int:
        return self.now_ms


def _plan(folder: Path) -> tuple[int, int] | None:
    """Return how many messages an interrupted recording was to make and until when; None when there is none."""
    path = folder / PLAN
    try:
        plan = json.loads(path.read_bytes())
        return int(plan["messages"]), int(plan["until_ms"])
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise StartError(
            f"{path}, which an interrupted start has left, cannot be read. Remove the folder {folder}"
        ) from error


def _write_plan(folder: Path, messages: int, until_ms: int) -> None:
    path, new = folder / PLAN, folder / f"{PLAN}.new"
    try:
        new.write_text(json.dumps({"messages": messages, "until_ms": until_ms}))
        os.replace(new, path)  # noqa: PTH105  # says that it replaces
    except OSError as error:
        raise StartError(
            f"{path} cannot be written ({error.strerror}). Let this user write to the folder: --data"
        ) from error


async def record_past(
    url: URL,
    folder: Path,
    *,
    messages: int,
    lock_wait_seconds: float,
    on_progress: OnProgress = lambda *_: None,
) -> int:
    """Record a generated past in an empty log, or go on with one whose recording was interrupted.

    While it is being made a plan lies in *folder*: what is to be made, and until when. The past is the same for the
    same plan, and each message has a key, so making it again records only what is missing.

    Args:
        messages: How many messages the largest room gets; 0 for no past. An interrupted recording keeps its own.
        lock_wait_seconds: See `SQLStore`.
        on_progress: Called before the first message and after each group, while there is something to record.

    Returns:
        How many messages are in the past that was made now; 0 when there was something in the log.

    Raises:
        StartError: The database or the folder cannot be used.
    """
    clock = _Clock()
    store = SQLStore(url, lock_wait_seconds=lock_wait_seconds, clock=clock)
    clock.now_ms = time.time_ns() // 1_000_000
    await store.open()
    try:
        plan = _plan(folder)
        if plan is None:
            heads = [await store.head(room_id) for room_id in ROOMS]
            if messages == 0 or any(head.last_seq for head in heads):
                return 0
            plan = messages, clock.now_ms
            _write_plan(folder, *plan)
        moments = make_past(plan[0], until_ms=plan[1])
        total = sum(len(moment.lines) for moment in moments)
        done = 0
        on_progress(done, total)
        for moment in moments:
            clock.now_ms = moment.timestamp
            await store.append(_drafts(moment, done))
            done += len(moment.lines)
            on_progress(done, total)
    finally:
        await store.aclose()
    (folder / PLAN).unlink()
    return total


def _drafts(moment: Moment, first: int) -> list[Draft]:
    return [
        Draft(
            room_id=moment.room_id,
            event="message",
            sender=sender,
            key=f"past-{number}",
            data_json=json.dumps({"text": text}, ensure_ascii=False).encode(),
        )
        for number, (sender, text) in enumerate(moment.lines, first)
    ]
