"""What the benchmarks found is told once: in `speed.json`, of which tables and charts are made."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from xml.etree import ElementTree

import matplotlib
import pytest
from typer.testing import CliRunner

from . import charts, runs, speed_page
from .__main__ import POSTGRES, cli
from .report import Figure, number
from .scenarios import SCENARIOS
from .speed_page import CHARTS, FIGURES, FOLDER, PAGE

NOON = datetime(2026, 1, 2, 12, 0, 0, tzinfo=UTC)

AGAIN = "run: python -m tests.bench --from docs/explanation/speed.json --docs"

KINDS = {
    "peers": [
        Figure("peers", "32 publishers", 1_870_000, "deliveries/s", against="loop", against_value=101_234),
        Figure("peers", "32 publishers", 1_870_000, "deliveries/s", against="Node", against_value=165_432),
    ],
    "a bound and no peer": [Figure("idle", "each of 5,000", 17.25, "KB", at_most=25)],
    "missed": [Figure("hot", "pages", 8_211, "/s", at_least=10_000, ratio_at_least=2)],
    "several units": [
        Figure("storm", "caught up", 812, "ms", against="the database", against_value=9_120),
        Figure("storm", "clients", 2_000, "clients", at_least=2_000),
    ],
    "nothing and less": [
        Figure(
            "soak", "tasks & <handles> of $edit$", 0, "tasks", against="before", against_value=0, at_most=0
        ),
        Figure("soak", "growth", -0.75, "MB"),
    ],
    "many": [
        Figure("many", f"number {n} has a label that is longer than a line can be", 200 + n, "ms")
        for n in range(40)
    ],
}


def texts(chart: bytes) -> list[str]:
    """Return the texts of a chart in the order of drawing."""
    return [
        element.text or ""
        for element in ElementTree.fromstring(chart).iter("{http://www.w3.org/2000/svg}text")
    ]


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


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A copy of what the documentation has."""
    return Path(shutil.copytree(FOLDER, tmp_path / "explanation"))


def test_the_page_shows_the_figures() -> None:
    """Tables and charts are exactly what `speed.json` makes of them, none too few and none too many."""
    path = FOLDER / FIGURES
    run = runs.read(path)
    assert runs.encoded(run) == path.read_bytes(), AGAIN
    page = (FOLDER / PAGE).read_text(encoding="utf-8")
    assert speed_page.filled(page, run) == page, AGAIN
    drawn = {path.name: path.read_bytes() for path in (FOLDER / CHARTS).iterdir()}
    expected = {f"{name}.svg": charts.draw(name, taken.figures) for name, taken in run.scenarios.items()}
    assert sorted(drawn) == sorted(expected), AGAIN
    for name, chart in expected.items():
        # Their texts: another release of the library may draw the same chart by other bytes.
        assert texts(drawn[name]) == texts(chart), f"{name}: {AGAIN}"


def test_the_figures_are_of_scenarios_that_exist() -> None:
    """Whoever renames a scenario renames its figures."""
    run = runs.read(FOLDER / FIGURES)
    assert set(run.scenarios) <= set(SCENARIOS)
    for name, taken in run.scenarios.items():
        assert {figure.scenario for figure in taken.figures} == {name}


def test_every_scenario_has_its_section() -> None:
    """In the page, whether it has figures yet or not."""
    speed_page.check((FOLDER / PAGE).read_text(encoding="utf-8"), SCENARIOS)


def test_a_figure_that_is_edited_by_hand_is_found() -> None:
    """In whichever row: the page is no longer what its figures make of it."""
    run = runs.read(FOLDER / FIGURES)
    page = (FOLDER / PAGE).read_text(encoding="utf-8")
    values = [match.start(1) for match in re.finditer(r"^\| [^|]+ \| (\d)", page, re.MULTILINE)]
    assert len(values) == len(run.figures)
    for place in values:
        edited = f"{page[:place]}{9 - int(page[place])}{page[place + 1 :]}"
        assert speed_page.filled(edited, run) == page != edited


def test_a_scenario_without_a_section_is_named() -> None:
    """The message says what to write, and a section that is there twice is as wrong."""
    run = run_of(Figure("storm", "w", 1, "ms"))
    with pytest.raises(ValueError, match=r"speed\.md has 0 places for storm: .*<!-- figures: storm -->"):
        speed_page.filled("# Speed\n", run)
    section = "<!-- figures: storm -->\n<!-- end -->\n"
    with pytest.raises(ValueError, match="2 places for storm"):
        speed_page.filled(section * 2, run)
    assert "| w | 1.00 ms |" in speed_page.filled(section, run)


def test_markers_without_figures_hold_nothing() -> None:
    """A table of a scenario that is not in the figures is none that was measured."""
    page = "<!-- figures: storm -->\n\n| What |\n\n<!-- end -->\nText.\n"
    assert speed_page.filled(page, run_of()) == "<!-- figures: storm -->\n<!-- end -->\nText.\n"


@pytest.mark.parametrize("kind", KINDS)
def test_a_chart_says_what_its_figures_say(kind: str) -> None:
    """Well-formed, every label, value and bound in it, and the same bytes each time, whatever is set for matplotlib."""
    figures = KINDS[kind]
    chart = charts.draw(figures[0].scenario, figures)
    written = texts(chart)
    joined = " ".join(written)
    for panel in charts.panels(figures):
        assert panel.title in written
        for bar in panel.bars:
            assert set(bar.lines) <= set(written)
            assert any(number(bar.value) == text.partition(" (")[0] for text in written), bar
    for figure in figures:
        assert figure.absolute_bound() in joined
    with matplotlib.rc_context({"font.size": 20, "svg.fonttype": "path"}):
        assert charts.draw(figures[0].scenario, figures) == chart


def test_a_peer_with_a_bar_of_its_own_gets_no_second_one() -> None:
    """One group for one value and all its peers; another figure is known by its name."""
    first = Figure("s", "acks", 30.0, "/s", against="peer", against_value=2.0)
    second = Figure("s", "acks", 30.0, "/s", against="other", against_value=3.0)
    third = Figure("s", "acks, with keys", 20.0, "/s", against="acks", against_value=30.0)
    assert [group.peers for group in charts.groups([first, second, third])] == [
        {"peer": 2.0, "other": 3.0},
        {},
    ]


def test_what_would_be_too_short_to_see_has_its_own_scale() -> None:
    """Units are apart, and so is what is far smaller; what is a few times smaller stays."""
    figures = [
        Figure("s", what, value, unit)
        for what, value, unit in (
            ("a", 9_000, "ms"),
            ("b", 3, "ms"),
            ("c", 900, "ms"),
            ("d", 0, "ms"),
            ("e", 5, "MB"),
            ("f", 4, "ms"),
        )
    ]
    found = [[group.what for group in panel.groups] for panel in charts.panels(figures)]
    assert found == [["a", "c", "d"], ["b", "f"], ["e"]]


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


def test_a_partial_run_replaces_what_ran(folder: Path) -> None:
    """Other scenarios keep table, chart and figures, and say where they were taken if that was elsewhere."""
    before = runs.read(folder / FIGURES)
    kept = {path.name: path.read_bytes() for path in (folder / CHARTS).iterdir() if path.stem != "ring"}
    ring = Figure("ring", "an event", 123.0, "bytes/event", at_most=300)
    speed_page.write(run_of(ring, node="22.1.0"), folder)
    after = runs.read(folder / FIGURES)
    assert after.scenarios["ring"].figures == [ring]
    assert list(after.scenarios) == list(before.scenarios)
    assert after.scenarios["publish"].figures == before.scenarios["publish"].figures
    assert after.scenarios["publish"].elsewhere == before.system
    assert {
        path.name: path.read_bytes() for path in (folder / CHARTS).iterdir() if path.stem != "ring"
    } == kept
    assert "123 (at most 300)" in texts((folder / CHARTS / "ring.svg").read_bytes())
    page = (folder / PAGE).read_text(encoding="utf-8")
    assert "| an event | 123 bytes/event |  |  | at most 300 | yes |" in page
    assert "The figures were taken on a machine; Python 3.11.0, node 22.1.0." in page
    assert page.count(f"on {before.machine}; Python {before.python}") == len(before.scenarios) - 1
    assert speed_page.filled(page, after) == page


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


def test_the_command_takes_an_earlier_run(tmp_path: Path) -> None:
    """`--from` runs nothing, and shows and writes the scenarios that are named."""
    path = tmp_path / "figures.json"
    done = CliRunner().invoke(
        cli, ["ring", "--from", str(FOLDER / FIGURES), "--json", str(path)], env={"COLUMNS": "200"}
    )
    assert done.exit_code == 0, done.output
    earlier = runs.read(FOLDER / FIGURES)
    assert runs.read(path) == earlier.only(["ring"])
    assert earlier.only(["ring"]).figures[-1].what.split(",")[0] in done.output


def test_the_command_fills_the_page(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With `--docs`, unless the figures mean nothing or there is no section for them."""
    monkeypatch.setattr(speed_page, "FOLDER", folder)
    path = folder / "run.json"
    path.write_bytes(runs.encoded(run_of(Figure("ring", "an event", 123.0, "bytes/event"))))
    done = CliRunner().invoke(cli, ["--from", str(path), "--docs"])
    assert done.exit_code == 0, done.output
    assert "| an event | 123 bytes/event |" in (folder / PAGE).read_text(encoding="utf-8")
    assert CliRunner().invoke(cli, ["ring", "--moment", "--docs"]).exit_code == 2
    (folder / PAGE).write_text("# Speed\n", encoding="utf-8")
    refused = CliRunner().invoke(cli, ["ring", "--docs"])
    assert refused.exit_code == 2
    assert "0 places" in refused.output


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


def test_the_command_starts_without_the_charts() -> None:
    """Only `--docs` pays for matplotlib, and works where it is not installed."""
    code = "import sys, tests.bench.__main__; sys.exit('matplotlib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0


def test_the_machine_is_named() -> None:
    """Its cores and system, and on Linux what memory it has."""
    assert re.match(r"\d+ cores", runs.machine())
    if sys.platform == "linux":
        assert re.search(r", \d+ GiB of memory, Linux ", runs.machine())
