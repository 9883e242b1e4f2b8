"""What `docs/explanation/speed.md` shows of a run: tables and charts, between markers in its text.

A section has ``<!-- figures: NAME -->`` and ``<!-- end -->`` where the table and the chart of a scenario go; what is
between them is written anew each time. ``<!-- machine -->`` and ``<!-- end -->`` hold what the figures were taken on.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from . import runs
from .report import Figure, number

FOLDER = Path(__file__).parents[2] / "docs" / "explanation"
PAGE, FIGURES, CHARTS = "speed.md", "speed.json", "speed-charts"

_BLOCK = re.compile(
    r"^<!-- (?:(?P<machine>machine)|figures: (?P<name>\S+)) -->\n.*?^<!-- end -->$", re.DOTALL | re.MULTILINE
)


def filled(page: str, run: runs.Run) -> str:
    """Return *page* with the tables of *run* between its markers; markers of other scenarios hold nothing.

    Raises:
        ValueError: A scenario of *run* has no markers, or several.
    """
    check(page, run.scenarios)

    def block(match: re.Match[str]) -> str:
        inside = _system(run) if match["machine"] else _table(match["name"], run)
        return "\n".join((match[0].splitlines()[0], f"{inside}<!-- end -->"))

    return _BLOCK.sub(block, page)


def check(page: str, names: Iterable[str]) -> None:
    """Look for the markers of each scenario of *names*.

    Raises:
        ValueError: It has none, or several.
    """
    found = [match["name"] for match in _BLOCK.finditer(page)]
    for name in names:
        if found.count(name) != 1:
            raise ValueError(
                f"{PAGE} has {found.count(name)} places for {name}: write one section about it, "
                f"with the lines <!-- figures: {name} --> and <!-- end -->"
            )


def write(run: runs.Run, folder: Path) -> None:
    """Merge *run* into the figures in *folder*, and make charts and tables of all that are there now.

    Raises:
        ValueError: See `filled`; figures and charts are written all the same.
    """
    # Here because of what matplotlib takes to import.
    from . import charts

    path = folder / FIGURES
    run = runs.merged(runs.read(path), run) if path.exists() else run
    path.write_bytes(runs.encoded(run))
    (folder / CHARTS).mkdir(exist_ok=True)
    for name, taken in run.scenarios.items():
        (folder / CHARTS / f"{name}.svg").write_bytes(charts.draw(name, taken.figures))
    page = folder / PAGE
    page.write_bytes(filled(page.read_text(encoding="utf-8"), run).encode())


def _system(run: runs.Run) -> str:
    return f"\n{_sentence('The figures were taken on', run)}\n\n"


def _sentence(begun: str, system: runs.System) -> str:
    versions = "".join(f", {name} {told}" for name, told in system.versions.items())
    return f"{begun} {system.machine}; Python {system.python}{versions}."


def _table(name: str, run: runs.Run) -> str:
    taken = run.scenarios.get(name)
    if taken is None:
        return ""
    begun = f"Taken on {taken.taken:%Y-%m-%d}"
    return "\n".join(
        [
            "",
            "| What | Value | Against | Ratio | Wanted | Reached |",
            "|---|---|---|---|---|---|",
            *(_row(figure) for figure in taken.figures),
            "",
            f"![{name}: the values of the table as bars]({CHARTS}/{name}.svg)",
            "",
            _sentence(f"{begun} on", taken.elsewhere) if taken.elsewhere else f"{begun}.",
            "",
            "",
        ]
    )


def _row(figure: Figure) -> str:
    against = ""
    if figure.against_value is not None:
        against = f"{number(figure.against_value)} ({figure.against})"
    cells = (
        figure.what,
        f"{number(figure.value)} {figure.unit}",
        against,
        f"{figure.ratio:.2f}" if figure.ratio is not None else "",
        figure.bound(),
        {True: "yes", False: "**no**", None: ""}[figure.is_met],
    )
    return "| " + " | ".join(cell.replace("|", r"\|") for cell in cells) + " |"
