"""What export and import share: a whole log goes to a file and back as it was, with its ids, seqs, keys and times.

Rows are read and written by the columns that the tables have; nothing here knows what most of them mean. Memory is
bounded by a batch, whatever the size of the log. Either way may be killed at any moment and run again.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from sqlalchemy import Connection, func, select

from .export_format import SECTIONS

Progress = Callable[[int, int], None]
"""Is told how many rows are done, and of how many."""


class Transferred(NamedTuple):
    """What an export or an import did.

    Attributes:
        counts: Rows in the file, by the name of their line.
        epoch: Of the log.
        is_resumed: Whether it went on with an interrupted one.
    """

    counts: dict[str, int]
    epoch: str
    is_resumed: bool


def ignore_progress(done: int, total: int) -> None:
    """Tell nobody."""


def all_counts(counts: dict[str, int]) -> dict[str, int]:
    """Return the counts of a file for every kind of row: an earlier version did not know them all."""
    return dict.fromkeys(SECTIONS, 0) | counts


def count_rows(connection: Connection) -> dict[str, int]:
    return {
        line: int(connection.execute(select(func.count()).select_from(table)).scalar_one())
        for line, table in SECTIONS.items()
    }
