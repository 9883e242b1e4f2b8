"""The limits: the table in the reference is the code, and every setting has the effect that it names."""

from __future__ import annotations

import re
from dataclasses import fields
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from prometheus_client import CollectorRegistry

from dialogue import Dialogue, Limits, RoomLimits
from dialogue.server.metrics import Metrics

from .limit_cases import CASES, ROOM_CASES

PAGE = Path(__file__).parents[1] / "docs" / "reference" / "limits.md"

_METRIC = re.compile(r'(\w+)(?:\{(\w+)="([^"]+)"\})?')


class Row(NamedTuple):
    """One line of a table; *metrics* are name, label and the label's value."""

    name: str
    default: str
    effect: str
    metrics: list[tuple[str, str, str]]


def _rows() -> tuple[list[Row], list[Row]]:
    """Return the table of `Limits` and that of `RoomLimits`."""
    text = PAGE.read_text(encoding="utf-8")
    found: list[list[Row]] = []
    for part in text.split("## Fixed bounds")[0].split("## Limits of a room"):
        rows = []
        for line in part.splitlines():
            if re.match(r"\| `\w+` \|", line):
                cells = [cell.strip() for cell in line.strip("|").split(" |")]
                name, default, effect, metrics = (cell.strip() for cell in cells)
                named = [_METRIC.fullmatch(metric) for metric in re.findall(r"`([^`]+)`", metrics)]
                assert all(named), line
                rows.append(
                    Row(
                        name.strip("`"), default, effect, [(m[1], m[2] or "", m[3] or "") for m in named if m]
                    )
                )
        found.append(rows)
    whole, of_rooms = found
    return whole, of_rooms


ROWS, ROOM_ROWS = _rows()


def as_written(value: Any) -> str:
    """Return a default as the table has it."""
    if value is None:
        return "none"
    return f"{int(value):,}" if value == int(value) else f"{value:,}"


def test_the_table_is_the_code() -> None:
    """Every limit is in the table, in the code's order, with its default and what happens at it."""
    assert [(row.name, row.default) for row in ROWS] == [
        (name, as_written(info.default)) for name, info in Limits.model_fields.items()
    ]
    assert all(row.effect.endswith(".") for row in ROWS)


def test_the_table_of_a_rooms_limits_is_the_code() -> None:
    """Likewise for `RoomLimits`."""
    assert [(row.name, row.default) for row in ROOM_ROWS] == [
        (field.name, as_written(field.default)) for field in fields(RoomLimits)
    ]


def test_the_tables_name_metrics_that_there_are() -> None:
    """With labels that they have; so do the page of the metrics, for each."""
    families = {family.name: family for family in Metrics().registry.collect()}
    labels = {
        name: set(metric._labelnames)
        for metric in vars(Metrics()).values()
        if not isinstance(metric, CollectorRegistry)
        for name in [metric._name]
    }
    page = (PAGE.parent / "metrics.md").read_text(encoding="utf-8")
    for row in ROWS + ROOM_ROWS:
        for name, label, _ in row.metrics:
            family = name.removesuffix("_total")
            assert family in families, (row.name, name)
            assert label in labels[family] | {""}, (row.name, label)
            assert f"`{name}`" in page, name


def test_every_limit_has_a_case() -> None:
    """A new one without a case below fails here."""
    assert set(CASES) == set(Limits.model_fields)
    assert set(ROOM_CASES) == {field.name for field in fields(RoomLimits)}


def _check_counted(dialogue: Dialogue, row: Row) -> None:
    for name, label, value in row.metrics:
        samples = {name: {label: value} if label else {}}
        if not name.endswith("_total"):
            samples = {f"{name}_count": {}}
            if dialogue.metrics.registry.get_sample_value(f"{name}_count") is None:
                continue  # a gauge, which the case has looked at
        for sample, labels in samples.items():
            assert (dialogue.metrics.registry.get_sample_value(sample, labels) or 0) > 0, (row.name, sample)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
async def test_every_limit_has_an_effect(row: Row, tmp_path: Path) -> None:
    """Set small, it does what the table says, and the metric that the table names has counted it."""
    _check_counted(await CASES[row.name](tmp_path), row)


@pytest.mark.parametrize("row", ROOM_ROWS, ids=lambda row: row.name)
async def test_every_limit_of_a_room_has_an_effect(row: Row, tmp_path: Path) -> None:
    """Likewise; and other rooms go on as they were."""
    _check_counted(await ROOM_CASES[row.name](tmp_path), row)
