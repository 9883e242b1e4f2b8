"""The public names exist, are documented, and the reference lists them."""

from __future__ import annotations

import inspect
from pathlib import Path

import dialogue

ROOT = Path(__file__).parents[1]


def test_every_public_name_exists_and_has_a_docstring() -> None:
    """`__all__` promises nothing that is not there."""
    assert sorted(dialogue.__all__) == list(dialogue.__all__), "in order"
    for name in dialogue.__all__:
        value = getattr(dialogue, name)
        own = value.__doc__ or ""
        assert own or issubclass(value, dialogue.CommandError), name
        assert inspect.isclass(value) or callable(value)


def test_the_reference_lists_exactly_the_public_names() -> None:
    """`docs/reference/api.md` has a heading for each of `__all__` and for nothing else."""
    text = (ROOT / "docs" / "reference" / "api.md").read_text()
    headings = [
        line.removeprefix("### `").split("`")[0] for line in text.splitlines() if line.startswith("### `")
    ]
    assert sorted(headings) == list(dialogue.__all__)


def test_the_changelog_knows_this_version() -> None:
    """The version that is built is described."""
    assert f"## {dialogue.__version__}" in (ROOT / "docs" / "changelog.md").read_text()


def test_unknown_names_are_attribute_errors() -> None:
    """The lazy imports invent nothing."""
    assert not hasattr(dialogue, "Nonsense")
