"""What a benchmark found: figures with both sides of their ratio, as a table and as JSON."""

from __future__ import annotations

import os
import platform
from pathlib import Path

import msgspec
from rich.console import Console
from rich.table import Table


class Figure(msgspec.Struct, frozen=True):
    """One measurement, and what it is held against.

    Attributes:
        scenario: The scenario that it is of.
        what: What was measured.
        value: The result, in *unit*.
        against: What it is compared with; empty for nothing.
        against_value: The other side of the ratio, in *unit*.
        at_least: The bound that *value* is to reach.
        at_most: The bound that *value* is not to pass.
        ratio_at_least: The bound that *value* / *against_value* is to reach.
        ratio_at_most: The bound that it is not to pass.
        note: What else is worth knowing, such as latencies.
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
        parts = [
            f"{sign} {number(bound)}{suffix}"
            for sign, bound, suffix in (
                (">=", self.at_least, ""),
                ("<=", self.at_most, ""),
                (">=", self.ratio_at_least, " x"),
                ("<=", self.ratio_at_most, " x"),
            )
            if bound is not None
        ]
        return ", ".join(parts)


def number(value: float) -> str:
    """Return *value* as people read it."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:,.2f}"


def table(figures: list[Figure]) -> Table:
    """Return *figures* as a table."""
    shown = Table(title=machine())
    for head in ("scenario", "what", "value", "against", "ratio", "bound", "", "note"):
        shown.add_column(head, justify="right" if head in ("value", "ratio") else "left")
    marks = {True: "met", False: "MISSED", None: ""}
    for figure in figures:
        against = f"{number(figure.against_value)} ({figure.against})" if figure.against_value else ""
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


def machine() -> str:
    """Return what the figures were measured on."""
    return f"{os.cpu_count()} cores, Python {platform.python_version()}, {platform.system()} {platform.machine()}"


def show(figures: list[Figure], *, json_path: Path | None) -> None:
    """Print *figures*, and write them to *json_path* if one is given."""
    Console(width=None if os.environ.get("COLUMNS") else 200).print(table(figures))
    if json_path is None:
        return
    rows = [{**msgspec.to_builtins(f), "ratio": f.ratio, "is_met": f.is_met} for f in figures]
    encoded = msgspec.json.encode({"machine": machine(), "figures": rows})
    json_path.write_bytes(msgspec.json.format(encoded, indent=2) + b"\n")
