"""The documentation as data: pages, headings, links, tables and code blocks."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"

_FENCE = re.compile(r"^(?P<indent> *)(?P<fence>`{3,})(?P<language>[\w-]*)[^\n`]*$")
_NO_RUN = re.compile(r"^\s*<!-- no-run: (?P<reason>\S.*) -->\s*$")
_LINK = re.compile(r"\[[^\]]*\]\((?P<target>[^)\s]+)\)")
_HEADING = re.compile(r"^#{1,6} +(?P<text>.+?) *$")


class Block(NamedTuple):
    """A fenced code block.

    Attributes:
        line: Of its first line of code, from 1.
        no_run: Why it is not run, if it says so.
    """

    language: str
    code: str
    line: int
    no_run: str | None


class Page(NamedTuple):
    """A page: its code blocks, and its text without them."""

    path: Path
    blocks: list[Block]
    prose: str

    def python(self) -> list[Block]:
        """Return the Python blocks that are to be run, in order."""
        return [block for block in self.blocks if block.language == "python" and block.no_run is None]

    def anchors(self) -> set[str]:
        """Return what a link to this page may name behind a ``#``."""
        slugs: dict[str, int] = {}
        found = set()
        for line in self.prose.splitlines():
            heading = _HEADING.match(line)
            if heading is None:
                continue
            # GitHub's rule: no punctuation, dashes for spaces, a number behind the second of a kind.
            slug = re.sub(r"[^\w\- ]", "", heading["text"].lower()).replace(" ", "-")
            count = slugs.get(slug, 0)
            slugs[slug] = count + 1
            found.add(f"{slug}-{count}" if count else slug)
        return found

    def links(self) -> list[str]:
        """Return the targets of its links and images, code not counted."""
        text = re.sub(r"`[^`\n]*`", "", self.prose)
        return [match["target"] for match in _LINK.finditer(text)]

    def rows(self, header: str) -> list[list[str]]:
        """Return the cells of the table whose first column is called *header*, without the head."""
        rows: list[list[str]] = []
        is_inside = False
        for line in self.prose.splitlines():
            # A \| inside of a cell is no border.
            cells = [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
            if line.startswith("|") and cells[0] == header:
                is_inside = True
            elif not line.startswith("|"):
                is_inside = False
            elif is_inside and set(cells[0]) - set(":-"):
                rows.append(cells)
        return rows


def read(path: Path) -> Page:
    """Return the page at *path*."""
    blocks: list[Block] = []
    prose: list[str] = []
    opened: re.Match[str] | None = None
    code: list[str] = []
    no_run: str | None = None
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        if opened is None:
            opened = _FENCE.match(line)
            if opened is not None:
                said = _NO_RUN.match(prose[-1]) if prose else None
                no_run = said["reason"] if said else None
                code = []
            else:
                prose.append(line)
        elif line.strip() == opened["fence"]:
            indent = len(opened["indent"])
            text = "".join(f"{row[indent:]}\n" for row in code)
            blocks.append(Block(opened["language"], text, number - len(code), no_run))
            opened = None
            prose.append("")
        else:
            code.append(line)
    assert opened is None, f"{path}: a code block does not end"
    return Page(path, blocks, "\n".join(prose))


def pages() -> list[Path]:
    """Return README and every page under docs."""
    readme = ROOT / "README.md"
    return [*([readme] if readme.exists() else []), *sorted(DOCS.rglob("*.md"))]


def name_of(path: Path) -> str:
    """Return a page's path from the root."""
    return path.relative_to(ROOT).as_posix()
