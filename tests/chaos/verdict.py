"""Compares what clients were told, and what they were promised, with the log."""

from __future__ import annotations

import json
import sqlite3
from collections import defaultdict
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple


class Row(NamedTuple):
    """A recorded event.

    Attributes:
        mark: What its publisher called it, ``CLIENT.ROOM.NUMBER``; for an edit ``edit SEQ``, with what it changes.
        text: As it is now, after edits; empty for an edit.
    """

    seq: int
    mark: str
    text: str


@dataclass
class View:
    """What one client saw of one room.

    Attributes:
        base: The newest message's seq when the client came. Edits of before that may follow it in the log.
        heard: Each event that handlers were called with, as (seq, mark), in that order; None where a reset was told.
        filled: What pages brought after resets, by seq.
        timeline: The entries of its timeline in the end, as (seq, mark, text); None if it kept none.
        window: Those of a timeline that holds few entries; None if it kept none.
        streamed: What a stream from the room's beginning gave, as (seq, mark); None if there was none.
    """

    client: str
    room: str
    base: int
    heard: list[tuple[int, str] | None] = field(default_factory=list)
    filled: dict[int, str] = field(default_factory=dict)
    timeline: list[Row] | None = None
    window: list[Row] | None = None
    streamed: list[tuple[int, str]] | None = None

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> View:
        timeline, window = (
            None if value[name] is None else [Row(*entry) for entry in value[name]]
            for name in ("timeline", "window")
        )
        return cls(
            client=value["client"],
            room=value["room"],
            base=value["base"],
            heard=[None if item is None else (item[0], item[1]) for item in value["heard"]],
            filled={int(seq): mark for seq, mark in value["filled"].items()},
            timeline=timeline,
            window=window,
        )


@dataclass
class Acks:
    """What publishers were told.

    Attributes:
        recorded: The seq of each event, by its mark.
        edited: The seqs of the ``$edit`` events.
    """

    recorded: dict[str, int] = field(default_factory=dict)
    edited: list[tuple[str, int]] = field(default_factory=list)


def read_log(database: Path) -> dict[str, list[Row]]:
    """Return each room's events, in order."""
    query = "SELECT room_id, seq, event_name, event_data FROM dialogue_events ORDER BY room_id, seq"
    log: dict[str, list[Row]] = defaultdict(list)
    with closing(sqlite3.connect(database, timeout=30)) as connection:
        for room, seq, name, data_json in connection.execute(query):
            data = json.loads(data_json)
            if name == "$edit":
                log[room].append(Row(seq, f"edit {data['target_seq']}", ""))
            else:
                log[room].append(Row(seq, data["mark"], data["text"]))
    return log


def check_log(log: dict[str, list[Row]], acks: Acks) -> None:
    """Nothing sent is lost or doubled: each acked event is where its ack says, once, and there is no other one."""
    recorded: dict[str, int] = {}
    edited: list[tuple[str, int]] = []
    for room, rows in log.items():
        assert [row.seq for row in rows] == list(range(1, len(rows) + 1)), f"seqs of {room}"
        newest: dict[str, int] = {}
        for row in rows:
            if row.mark.startswith("edit "):
                edited.append((room, row.seq))
                continue
            assert row.mark not in recorded, f"{row.mark} is recorded twice: {recorded[row.mark]}, {row.seq}"
            recorded[row.mark] = row.seq
            publisher, _, number = row.mark.rpartition(".")
            assert int(number) == newest.get(publisher, -1) + 1, f"{row.mark} out of the order sent"
            newest[publisher] = int(number)
    assert recorded == acks.recorded, set(recorded.items()) ^ set(acks.recorded.items())
    assert sorted(edited) == sorted(acks.edited)


def check_view(view: View, rows: list[Row]) -> int:
    """The view is the log from its base on, in order, each event once; return how many resets it was told.

    Between two events that were heard the log has no other one, unless a reset was told between them; with what pages
    brought after it, there is nothing missing there either.
    """
    who = f"{view.client} in {view.room}"
    expected = {row.seq: row.mark for row in rows if row.seq > view.base}
    resets = 0
    is_hole_told = False
    last = view.base
    seen: dict[int, str] = {}
    for item in view.heard:
        if item is None:
            resets += 1
            is_hole_told = True
            continue
        seq, mark = item
        assert seq > last, f"{who}: {seq} after {last}"
        if not seen and not is_hole_told:
            while last + 1 < seq and expected.get(last + 1, "").startswith("edit "):
                last += 1
                del expected[last]
        assert seq == last + 1 or is_hole_told, f"{who}: {last + 1} to {seq - 1} missing, and nobody said so"
        assert expected[seq] == mark, f"{who}: {seq}"
        seen[seq] = mark
        last = seq
        is_hole_told = False
    assert resets or not view.filled
    found = {**view.filled, **seen}
    assert found == expected, f"{who}: {found.items() ^ expected.items()}"
    if view.streamed is not None:
        assert view.streamed == [(row.seq, row.mark) for row in rows], f"{who}: the stream"
    if view.window is not None:
        messages = [row for row in rows if not row.mark.startswith("edit ")]
        expected_window = messages[-len(view.window) :]
        assert view.window == expected_window, (
            f"{who}: the timeline that holds few: {view.window} and not {expected_window}"
        )
    if view.timeline is not None:
        messages = [row for row in rows if not row.mark.startswith("edit ")]
        wrong = sorted(set(messages) ^ set(view.timeline))
        assert view.timeline == messages, f"{who}: the timeline differs, {wrong or 'in its order'}"
    return resets
