"""The documentation runs, its links lead somewhere, and its tables are the code's."""

from __future__ import annotations

import ast
import inspect
import logging
import re
import shutil
import subprocess
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest
import typer
from prometheus_client.metrics import MetricWrapperBase

from dialogue import Limits, errors, protocol
from dialogue.cli import cli
from dialogue.config import Hooks
from dialogue.server.hooks import PARAMETERS, SINGLE
from dialogue.server.http_answers import STATUSES
from dialogue.server.metrics import Metrics
from dialogue.storage import tables

from .pages import DOCS, ROOT, Page, name_of, pages, read
from .runner import PageRunner

PAGES = pages()
NO_RUN_LIMIT = 3
"""Blocks that are not run, over all pages: there are very few."""


def quoted(cell: str) -> list[str]:
    """Return what a table's cell has between backticks."""
    return re.findall(r"`([^`]+)`", cell)


def reference(name: str) -> Page:
    """Return a page of the reference."""
    return read(DOCS / "reference" / f"{name}.md")


def metrics() -> dict[str, tuple[str, tuple[str, ...]]]:
    """Return type and labels of every metric, by the name under which Prometheus sees it."""
    found = {}
    for metric in vars(Metrics()).values():
        if isinstance(metric, MetricWrapperBase):
            suffix = "_total" if metric._type == "counter" else ""
            found[metric._name + suffix] = (str(metric._type), tuple(metric._labelnames))
    return found


@pytest.mark.parametrize("path", [path for path in PAGES if read(path).python()], ids=name_of)
def test_python_blocks_run(path: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Every Python block runs as it stands, in order, in an empty folder, and no error is logged meanwhile."""
    page = read(path)
    with PageRunner(page, tmp_path) as runner:
        for block in page.python():
            runner.run(block)
        runner.run_tests()
    assert not [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR]


def test_few_blocks_are_not_run() -> None:
    """A block that is not run is a fragment, says why, and is rare."""
    blocks = [(path, block) for path in PAGES for block in read(path).blocks]
    skipped = [f"{name_of(path)}:{block.line}: {block.no_run}" for path, block in blocks if block.no_run]
    assert len(skipped) <= NO_RUN_LIMIT, skipped
    assert sum(block.language == "python" for _, block in blocks) > 10 * len(skipped)


@pytest.mark.skipif(shutil.which("node") is None, reason="node is not on the path")
@pytest.mark.parametrize("path", PAGES, ids=name_of)
def test_javascript_parses(path: Path, tmp_path: Path) -> None:
    """JavaScript blocks, and the module scripts of HTML blocks, are JavaScript."""
    for number, block in enumerate(read(path).blocks):
        scripts = [block.code] if block.language == "javascript" else []
        if block.language == "html":
            scripts = re.findall(r'<script type="module">(.*?)</script>', block.code, re.DOTALL)
        for part, script in enumerate(scripts):
            file = tmp_path / f"block{number}_{part}.mjs"
            file.write_text(script, encoding="utf-8")
            done = subprocess.run(["node", "--check", str(file)], capture_output=True, text=True, timeout=60)
            assert done.returncode == 0, f"{name_of(path)}:{block.line}\n{done.stderr}"


@pytest.mark.parametrize("path", PAGES, ids=name_of)
def test_links_lead_somewhere(path: Path) -> None:
    """A link inside the repository names a file that is there, and a heading that is in it."""
    broken = []
    for target in read(path).links():
        if re.match(r"[a-z]+:", target):
            continue
        name, _, anchor = unquote(target).partition("#")
        file = (path.parent / name).resolve() if name else path
        is_there = file.exists() and ROOT in (file, *file.parents)
        if not is_there or (anchor and (file.suffix != ".md" or anchor not in read(file).anchors())):
            broken.append(target)
    assert not broken, broken


def test_every_page_is_reached_from_the_index() -> None:
    """`docs/index.md` links every other page."""
    linked = {(DOCS / target.partition("#")[0]).resolve() for target in read(DOCS / "index.md").links()}
    assert set(DOCS.rglob("*.md")) - {DOCS / "index.md"} <= linked


def test_the_limits_page_has_every_limit_with_its_default() -> None:
    """Names, order and defaults of `Limits`, and metrics that exist."""
    rows = reference("limits").rows("Limit")
    documented = {quoted(row[0])[0]: float(row[1].replace(",", "")) for row in rows}
    fields = {name: float(field.default) for name, field in Limits.model_fields.items()}
    assert documented == fields
    assert list(documented) == list(fields), "in order"
    for row in rows:
        for metric in quoted(row[3]):
            assert metric.partition("{")[0] in metrics(), metric


def test_the_metrics_page_has_every_metric() -> None:
    """Name, type and labels of each metric of the registry, and no others."""
    documented = {
        quoted(row[0])[0]: (row[1], tuple(quoted(row[2]))) for row in reference("metrics").rows("Metric")
    }
    assert documented == metrics()


def test_no_page_names_a_metric_or_table_that_is_not_there() -> None:
    """Whatever is called `dialogue_…` exists."""
    known = {*metrics(), *tables.metadata.tables, tables.VERSION_TABLE}
    for path in PAGES:
        for name in re.findall(r"`(dialogue_\w+)", path.read_text(encoding="utf-8")):
            assert name in known, f"{name_of(path)}: {name}"


def test_the_errors_page_has_every_code() -> None:
    """Every wire code with its class, every close code, and the tree as `errors` draws it."""
    page = reference("errors")
    codes = {quoted(row[0])[0]: quoted(row[1])[0] for row in page.rows("Code")}
    assert codes == {code: error.__name__ for code, error in errors.COMMAND_ERRORS.items()}
    closes = {int(row[0]) for row in page.rows("Close code")}
    assert closes >= {value for name, value in vars(protocol).items() if name.startswith("CLOSE_")}
    drawn = [block.code.strip() for block in page.blocks if block.language == "text"]
    tree = re.search(r"::\n\n(.*?)\n\n\S", inspect.cleandoc(errors.__doc__ or ""), re.DOTALL)
    assert tree is not None
    assert inspect.cleandoc(tree[1]).strip() in drawn


def test_the_errors_page_has_the_status_of_every_code() -> None:
    """The table for HTTP is what is answered."""
    rows = reference("errors").rows("Status")
    documented = {(found, int(row[0])) for row in rows if ":" not in row[1] for found in quoted(row[1])}
    assert documented == set(STATUSES.items())


def test_the_hooks_page_has_every_hook_with_its_parameters() -> None:
    """Names and parameters as `PARAMETERS` and `Hooks` have them; what there can be one of, and what a failure does."""
    rows = reference("hooks").rows("Hook")
    documented = {quoted(row[0])[0]: frozenset(quoted(row[1])) for row in rows}
    assert documented == PARAMETERS
    # `on` is given at any time, and is no field of `Hooks`.
    assert list(documented) == [*inspect.signature(Hooks).parameters, "on"], "in order"
    assert {quoted(row[0])[0] for row in rows if "One at most." in row[2]} == SINGLE
    assert {row[3] for row in rows} == {row[0] for row in reference("hooks").rows("If it fails")}


def test_the_protocol_page_has_every_command() -> None:
    """Every command that is decoded, with each of its fields; nothing that is not."""
    documented = {}
    for row in reference("protocol").rows("Command"):
        documented[quoted(row[0])[0]] = {name.rstrip("?") for name in quoted(row[1])}
    commands = {
        command.__struct_config__.tag: set(command.__struct_fields__) - {"ref"}
        for command in protocol.Command.__subclasses__()
    }
    assert documented == commands


def test_the_cli_page_has_every_command_and_option() -> None:
    """Each command has a section that names each of its options."""
    text = (DOCS / "reference" / "cli.md").read_text(encoding="utf-8")
    found = re.findall(r"^## `dialogue ([a-z -]*[a-z]).*?`\n(.*?)(?=^## |\Z)", text, re.MULTILINE | re.DOTALL)
    sections = dict(found)
    assert len(sections) == len(found)
    commands: dict[str, Any] = {}

    def collect(group: Any, before: str) -> None:
        for name, command in group.commands.items():
            if hasattr(command, "commands"):
                collect(command, f"{before}{name} ")
            else:
                commands[before + name] = command

    collect(typer.main.get_command(cli), "")
    assert set(sections) == set(commands)
    for name, command in commands.items():
        documented = set(re.findall(r"--[a-z][\w-]*", sections[name]))
        options = {option for parameter in command.params for option in parameter.opts if option[:2] == "--"}
        assert documented == options - {"--help"}, name


def test_the_tests_that_pages_name_exist() -> None:
    """A promise names the test that attacks it: `tests/…py::test_…`."""

    @cache
    def functions(file: str) -> set[str]:
        tree = ast.parse((ROOT / file).read_text(encoding="utf-8"))
        kinds = ast.FunctionDef | ast.AsyncFunctionDef
        return {node.name for node in ast.walk(tree) if isinstance(node, kinds)}

    named = 0
    for path in PAGES:
        for file, test in re.findall(
            r"`((?:tests|dialogue)/[\w/]+\.py)::(?:\w+\.)?(\w+)`", path.read_text(encoding="utf-8")
        ):
            assert test in functions(file), test
            named += 1
    assert named > 20
