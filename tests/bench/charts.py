"""A scenario's figures as bars, in SVG: Dialogue's in one colour, what they are compared with in grey.

The same figures make the same bytes, so that a chart that is committed can be held against its figures.
Imported only where charts are drawn: matplotlib takes longer to import than a scenario's moment to run.
"""

from __future__ import annotations

import io
import textwrap
from collections.abc import Sequence
from typing import NamedTuple

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Sheet
from matplotlib.patches import Rectangle

from .report import Figure, number

OURS, PEER, INK, PALE = "#0f766e", "#b8bfc9", "#1f2328", "#59636e"
"""Readable on white; the sheet is white wherever it is shown, also in a dark page."""

WIDTH = 620.0
"""Of a sheet, in points: what fits GitHub's column."""

ROW, BETWEEN, MARGIN, PAD = 15.0, 7.0, 14.0, 6.0
"""In points: a bar with its space, and the space between groups, around the sheet, and beside a bar."""

TITLE, HEAD = 32.0, 26.0
"""Heights in points: of the sheet's title with its key, and of a panel's."""

CHARACTER = 5.2
"""Width of a character in points; fonts are the reader's, and this is that of a wide one."""

LABEL = 40
"""Most characters in a line of a label."""

APART = 30
"""A group on one scale with others is at most so many times as long or as short as the first of them."""


class Bar(NamedTuple):
    """One bar, with the absolute bounds of its value in words."""

    label: str
    value: float
    wanted: str
    is_ours: bool

    @property
    def length(self) -> float:
        """How far it reaches; what is negative, as memory that was given back, has a number and no bar."""
        return max(0.0, self.value)

    @property
    def text(self) -> str:
        """What stands at its end."""
        return f"{number(self.value)} ({self.wanted})" if self.wanted else number(self.value)

    @property
    def lines(self) -> list[str]:
        """Its label in as few lines as it needs, none of them much longer than the others."""
        count = len(textwrap.wrap(self.label, LABEL))
        wrapped = (textwrap.wrap(self.label, width) for width in range(LABEL // 2, LABEL + 1))
        return next(lines for lines in wrapped if len(lines) <= count) or [""]

    @property
    def height(self) -> float:
        """With its space, in points."""
        return ROW * len(self.lines)


class Group(NamedTuple):
    """What was measured, our value, the absolute bounds in words and as lines, and what it is compared with."""

    what: str
    value: float
    wanted: str
    bounds: tuple[float, ...]
    peers: dict[str, float]

    @property
    def bars(self) -> list[Bar]:
        """Ours, then the peers'."""
        ours = Bar(self.what, self.value, self.wanted, True)
        return [ours, *(Bar(peer, value, "", False) for peer, value in self.peers.items())]

    @property
    def longest(self) -> float:
        """The largest of its values and bounds."""
        return max(self.value, *self.bounds, *self.peers.values(), 0.0)


class Panel(NamedTuple):
    """Groups on one scale, from zero."""

    title: str
    groups: list[Group]

    @property
    def bars(self) -> list[Bar]:
        """The bars of all groups."""
        return [bar for group in self.groups for bar in group.bars]

    @property
    def height(self) -> float:
        """Without the title, in points."""
        return sum(bar.height for bar in self.bars) + BETWEEN * len(self.groups)


def groups(figures: Sequence[Figure]) -> list[Group]:
    """Return what to draw, in the order of *figures*; figures that differ only in their peer are one group.

    A peer that is the `what` of another figure has its bar there, and gets no second one.
    """
    names = {figure.what for figure in figures}
    found: dict[tuple[str, float], Group] = {}
    for figure in figures:
        bounds = tuple(bound for bound in (figure.at_least, figure.at_most) if bound is not None)
        group = Group(figure.what, figure.value, figure.absolute_bound(), bounds, {})
        group = found.setdefault((figure.what, figure.value), group)
        if figure.against_value is not None and figure.against not in names:
            group.peers[figure.against or "compared with"] = figure.against_value
    return list(found.values())


def panels(figures: Sequence[Figure]) -> list[Panel]:
    """Return a panel for each unit, and further ones for what would be too short to see beside the rest."""
    found = []
    for unit in dict.fromkeys(figure.unit for figure in figures):
        of_unit = [figure for figure in figures if figure.unit == unit]
        scales: list[list[Group]] = []
        for group in groups(of_unit):
            for scale in scales:
                low, high = sorted((group.longest, scale[0].longest))
                if high <= APART * low or not low:
                    scale.append(group)
                    break
            else:
                scales.append([group])
        found += [Panel(_title(unit, of_unit), scale) for scale in scales]
    return found


def draw(name: str, figures: Sequence[Figure]) -> bytes:
    """Return the chart of a scenario; *figures* are at least one."""
    drawn = panels(figures)
    height = 2 * MARGIN + TITLE + sum(HEAD + panel.height for panel in drawn)
    lines = [line for panel in drawn for bar in panel.bars for line in bar.lines]
    left = MARGIN + PAD + CHARACTER * max(map(len, lines))
    width = WIDTH - left - MARGIN
    with matplotlib.rc_context():
        _set()
        sheet = Sheet(figsize=(WIDTH / 72, height / 72), facecolor="white")
        _head(sheet, name, [group for panel in drawn for group in panel.groups])
        bottom = height - MARGIN - TITLE
        for panel in drawn:
            title = bottom - HEAD + PAD
            sheet.text(MARGIN / WIDTH, title / height, panel.title, color=PALE, fontweight="bold")
            bottom -= HEAD + panel.height
            box = (left / WIDTH, bottom / height, width / WIDTH, panel.height / height)
            _fill(sheet.add_axes(box), panel, width)
        written = io.BytesIO()
        # Neither when nor by which version: both would change the bytes.
        sheet.savefig(written, format="svg", metadata={"Date": None, "Creator": None, "Title": name})
    return written.getvalue()


def _set() -> None:
    # Whatever is set for matplotlib on this machine must not show.
    matplotlib.rcdefaults()
    # Text stays text: it can be searched, and glyphs would make a chart five times as large.
    matplotlib.rc("svg", hashsalt="dialogue", fonttype="none")
    # The names of Dialogue's own events begin with a dollar.
    matplotlib.rc("text", color=INK, parse_math=False)
    matplotlib.rc("font", **{"size": 9, "sans-serif": ["DejaVu Sans", "Verdana", "Arial"]})


def _title(unit: str, figures: Sequence[Figure]) -> str:
    bounds = ", ".join(figure.bound() for figure in figures)
    is_more, is_less = "at least" in bounds, "at most" in bounds
    better = "" if is_more == is_less else f"{'more' if is_more else 'less'} is better"
    return ", ".join(part for part in ("per second" if unit == "/s" else unit, better) if part)


def _head(sheet: Sheet, name: str, drawn: Sequence[Group]) -> None:
    """Write the title, and below it what the colours and the line mean."""
    height = sheet.get_figheight() * 72
    sheet.text(MARGIN / WIDTH, 1 - (MARGIN + 12) / height, name, fontsize=13, fontweight="bold")
    keys = [(OURS, "Dialogue", 9.0)]
    if any(group.peers for group in drawn):
        keys.append((PEER, "what it is compared with", 9.0))
    if any(group.bounds for group in drawn):
        keys.append((INK, "bound", 1.0))
    # Not by matplotlib's own legend, which lays out by the fonts of the machine.
    left, base = MARGIN, 1 - (MARGIN + TITLE - 2) / height
    for color, text, width in keys:
        box = (left / WIDTH, base), width / WIDTH, 8 / height
        sheet.add_artist(Rectangle(*box, color=color, linewidth=0))
        left += width + 5
        sheet.text(left / WIDTH, base, text)
        left += CHARACTER * len(text) + 12


def _fill(axes: Axes, panel: Panel, width: float) -> None:
    longest = max(group.longest for group in panel.groups) or 1.0
    room = PAD + CHARACTER * max(len(bar.text) for bar in panel.bars)
    point = longest / (width - room)
    axes.set_xlim(0, width * point)
    axes.set_ylim(panel.height, 0)
    axes.set_axis_off()
    axes.axvline(0, color=PEER, linewidth=1)
    top = 0.0
    for group in panel.groups:
        axes.vlines(group.bounds, top, top + sum(bar.height for bar in group.bars), color=INK, linewidth=1)
        for bar in group.bars:
            place = top + bar.height / 2
            axes.barh(place, bar.length, ROW - 4, color=OURS if bar.is_ours else PEER)
            _label(axes, bar, place)
            _value(axes, bar, place, group.bounds, point)
            top += bar.height
        top += BETWEEN


def _label(axes: Axes, bar: Bar, place: float) -> None:
    for row, line in enumerate(bar.lines):
        down = ROW * (row - (len(bar.lines) - 1) / 2) * 0.75
        _write(axes, line, 0, place + down, color=INK if bar.is_ours else PALE, is_left=True)


def _value(axes: Axes, bar: Bar, place: float, bounds: Sequence[float], point: float) -> None:
    """Write the value at the end of its bar, where no bound runs through it; *point* is what a point stands for."""
    space = (PAD + CHARACTER * len(bar.text)) * point
    crossing = [bound for bound in bounds if bar.length <= bound <= bar.length + space]
    if crossing and bar.length > (2 * PAD + CHARACTER * len(number(bar.value))) * point:
        _write(
            axes, number(bar.value), bar.length, place, color="white" if bar.is_ours else INK, is_left=True
        )
        if bar.wanted:
            _write(axes, bar.wanted, max(crossing), place)
    else:
        _write(axes, bar.text, max([bar.length, *crossing]), place)


def _write(axes: Axes, text: str, x: float, y: float, *, color: str = INK, is_left: bool = False) -> None:
    # At a distance from the base line and by an anchor, so that no font's measures go into the chart.
    side = (-PAD, "right") if is_left else (PAD - 2, "left")
    axes.annotate(text, (x, y), (side[0], -3), textcoords="offset points", ha=side[1], color=color)
