"""What the benchmarks found: a run's JSON, and the options of the command that make it."""

from __future__ import annotations

import re
import sys
from datetime import UTC, datetime
from pathlib import Path

import pytest
from typer.testing import CliRunner

from . import runs
from .__main__ import POSTGRES, cli
from .report import Figure
from .scenarios import SCENARIOS

NOON = datetime(2026, 1, 2, 12, 0, 0, tzinfo=UTC)

KINDS = {
    "peers": [
        Figure("peers", "32 publishers", 1_870_000, "deliveries/s", against="loop", against_value=101_234),
        Figure("peers", "32 publishers", 1_870_000, "deliveries/s", against="Node", against_value=165_432),
    ],
}


def run_of(*figures: Figure, machine: str = "a machine", **versions: str) -> runs.Run:
    """Return a run that found *figures*."""
    return runs.Run(
        machine=machine,
        python="3.11.0",
        versions=versions,
        scenarios={
            name: runs.Taken(taken=NOON, figures=[figure for figure in figures if figure.scenario == name])
            for name in dict.fromkeys(figure.scenario for figure in figures)
        },
    )


def test_a_run_survives_json(tmp_path: Path) -> None:
    """Read again it is equal; what a figure tells of versions belongs to the run, beside the installed packages."""
    figures = [
        *KINDS["peers"],
        Figure("idle", "w", 1.5, "KB", at_most=1, note="n", versions={"node": "22.1.0"}),
    ]
    run = runs.made({"peers": (NOON, figures[:2]), "idle": (NOON, figures[2:])})
    assert run.versions["node"] == "22.1.0"
    assert {"uvicorn", "fastapi", "sqlalchemy"} <= set(run.versions)
    path = tmp_path / "run.json"
    path.write_bytes(runs.encoded(run))
    assert runs.read(path) == run
    assert b'"taken": "2026-01-02T12:00:00Z"' in path.read_bytes()
    assert b'"is_met": false' in path.read_bytes()


def test_runs_of_one_system_join() -> None:
    """Versions that only one of them tells are added; another version of the same is another system."""
    old = run_of(Figure("a", "w", 1, "ms"), node="22.1.0")
    joined = runs.merged(old, run_of(Figure("b", "w", 1, "ms"), uvicorn="0.40"))
    assert joined.versions == {"node": "22.1.0", "uvicorn": "0.40"}
    assert [taken.elsewhere for taken in joined.scenarios.values()] == [None, None]
    newer = runs.merged(joined, run_of(Figure("b", "w", 2, "ms"), uvicorn="0.41"))
    assert newer.versions == {"uvicorn": "0.41"}
    assert newer.scenarios["a"].elsewhere == joined.system
    assert newer.scenarios["b"].elsewhere is None


def test_a_scenario_that_fails_takes_nothing_along(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What others have found before is shown and written, and the failure is the command's."""

    def fails(scale: object, postgres: str | None) -> list[Figure]:
        raise AssertionError("an event is missing")

    monkeypatch.setitem(SCENARIOS, "pages", fails)
    path = tmp_path / "figures.json"
    arguments = ["ring", "pages", "--moment", "--json", str(path)]
    done = CliRunner().invoke(cli, arguments, env={POSTGRES: None})
    assert isinstance(done.exception, AssertionError)
    assert list(runs.read(path).scenarios) == ["ring"]


def test_the_machine_is_named() -> None:
    """Its cores and system, and on Linux what memory it has."""
    assert re.match(r"\d+ cores", runs.machine())
    if sys.platform == "linux":
        assert re.search(r", \d+ GiB of memory, Linux ", runs.machine())
