"""What a benchmark found: figures with both sides of their ratio, and their table in a terminal."""

from __future__ import annotations

import os
from collections.abc import Sequence

import msgspec
from rich.console import Console
from rich.table import Table


class Figure(msgspec.Struct, frozen=True, omit_defaults=True):
    """One measurement, and what it is held against.

    Attributes:
        scenario: The scenario that it is of.
        what: What was measured.
        value: The result, in *unit*.
        against: What it is compared with; empty for nothing. Another figure of the scenario goes by its *what*.
        against_value: The other side of the ratio, in *unit*.
        at_least: The bound that *value* is to reach.
        at_most: The bound that *value* is not to pass.
        ratio_at_least: The bound that *value* / *against_value* is to reach.
        ratio_at_most: The bound that it is not to pass.
        note: What else is worth knowing, such as latencies.
        versions: Of what it is compared with, by name, where no installed Python package tells it.
    """

    scenario: str
    what: str
    value: float
    unit: str
    against: str = ""
    against_value: float | None = None
    at_least: float | None = None
    at_most: float | None = None
    ratio_at_least: float | None = None
    ratio_at_most: float | None = None
    note: str = ""
    versions: dict[str, str] = {}

    @property
    def ratio(self) -> float | None:
        """*value* / *against_value*; None where there is no other side."""
        return self.value / self.against_value if self.against_value else None

    @property
    def is_met(self) -> bool | None:
        """Whether every bound holds; None where there is none."""
        ratio = self.ratio
        checks = [
            self.at_least is None or self.value >= self.at_least,
            self.at_most is None or self.value <= self.at_most,
            self.ratio_at_least is None or (ratio is not None and ratio >= self.ratio_at_least),
            self.ratio_at_most is None or (ratio is not None and ratio <= self.ratio_at_most),
        ]
        bounds = (self.at_least, self.at_most, self.ratio_at_least, self.ratio_at_most)
        return None if all(bound is None for bound in bounds) else all(checks)

    def bound(self) -> str:
        """Return the bounds in words."""
        parts = (_at_least(self.ratio_at_least, " ×"), _at_most(self.ratio_at_most, " ×"))
        return ", ".join(part for part in (self.absolute_bound(), *parts) if part)

    def absolute_bound(self) -> str:
        """Return in words the bounds of the value itself."""
        return ", ".join(part for part in (_at_least(self.at_least), _at_most(self.at_most)) if part)


def _at_least(bound: float | None, suffix: str = "") -> str:
    return "" if bound is None else f"at least {bound:,.10g}{suffix}"


def _at_most(bound: float | None, suffix: str = "") -> str:
    return "" if bound is None else f"at most {bound:,.10g}{suffix}"


def number(value: float) -> str:
    """Return *value* as people read it."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:,.2f}"


def table(figures: Sequence[Figure], *, title: str) -> Table:
    """Return *figures* as a table."""
    shown = Table(title=title)
    for head in ("scenario", "what", "value", "against", "ratio", "bound", "", "note"):
        shown.add_column(head, justify="right" if head in ("value", "ratio") else "left")
    marks = {True: "met", False: "MISSED", None: ""}
    for figure in figures:
        against = (
            f"{number(figure.against_value)} ({figure.against})" if figure.against_value is not None else ""
        )
        shown.add_row(
            figure.scenario,
            figure.what,
            f"{number(figure.value)} {figure.unit}",
            against,
            f"{figure.ratio:.2f}" if figure.ratio is not None else "",
            figure.bound(),
            marks[figure.is_met],
            figure.note,
        )
    return shown


def show(figures: Sequence[Figure], *, title: str) -> None:
    """Print *figures*."""
    Console(width=None if os.environ.get("COLUMNS") else 200).print(table(figures, title=title))
