"""Every benchmark runs: for a moment, with its answers checked and its bounds ignored."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from typer.testing import CliRunner

from .__main__ import POSTGRES, cli
from .generator import percentile
from .report import Figure
from .scale import MOMENT
from .scenarios import SCENARIOS

LONGER = ("idle", "latency", "many_rooms", "pages", "publish", "resume_storm", "slow_readers", "soak")
"""Seconds each even for a moment: run by ``.ci/run``, and with the other slow tests."""


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] * (name in LONGER)) for name in SCENARIOS]
)
def test_a_scenario_runs(name: str) -> None:
    """All is acked, stored once and read in full (each scenario asserts it of itself); every ratio has two sides."""
    figures = SCENARIOS[name](MOMENT, os.environ.get(POSTGRES))
    assert figures
    for figure in figures:
        assert figure.value > 0, figure
        if figure.against and figure.against_value:
            assert figure.ratio == figure.value / figure.against_value


def test_the_command_writes_json(tmp_path: Path) -> None:
    """The table goes to the terminal, the same figures to a file; an unknown scenario is named."""
    path = tmp_path / "figures.json"
    done = CliRunner().invoke(cli, ["ring", "--moment", "--json", str(path)], env={POSTGRES: None})
    assert done.exit_code == 0, done.output
    written = json.loads(path.read_text())
    assert set(written["scenarios"]) == {"ring"}
    assert {figure["scenario"] for figure in written["scenarios"]["ring"]["figures"]} == {"ring"}
    refused = CliRunner().invoke(cli, ["rings"])
    assert refused.exit_code == 2
    assert "rings" in refused.output


def test_a_bound_is_met_or_missed() -> None:
    """Both sides of a bound, and none at all."""
    figure = Figure("s", "w", 20.0, "/s", against="peer", against_value=10.0)
    assert (figure.ratio, figure.is_met) == (2.0, None)
    assert Figure("s", "w", 20.0, "/s", at_least=20).is_met is True
    assert Figure("s", "w", 20.0, "/s", at_most=19).is_met is False
    assert Figure("s", "w", 20.0, "/s", against_value=10.0, ratio_at_least=2.1).is_met is False
    assert Figure("s", "w", 20.0, "/s", against_value=10.0, ratio_at_most=2.0).is_met is True


def test_percentiles_count_weights() -> None:
    """A frame with k acks counts k times."""
    assert percentile([(1.0, 1), (2.0, 98), (9.0, 1)], 0.5) == 2.0
    assert percentile([(1.0, 1), (2.0, 98), (9.0, 1)], 0.995) == 9.0
    assert percentile([], 0.5) == 0.0
