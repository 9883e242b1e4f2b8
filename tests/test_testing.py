"""What `dialogue.testing` offers to applications, used as one would."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import dialogue.testing

APPLICATION = """
from dialogue import MemoryStore
from dialogue.testing.store_contract import StoreContract

class Losing(MemoryStore):
    async def page(self, *args, **kwargs):
        found = await super().page(*args, **kwargs)
        return found._replace(events=found.events[1:])

class TestMine(StoreContract):
    is_durable = False
    def make(self, folder, clock=None):
        return STORE() if clock is None else STORE(clock=clock)
"""


def run_contract(folder: Path, store: str, mode: str, *, tests: str) -> subprocess.CompletedProcess[str]:
    """Run some *tests* of the suite over *store* as an application would, in pytest-asyncio's *mode*."""
    (folder / "test_mine.py").write_text(APPLICATION.replace("STORE", store))
    options = ["-q", "-p", "no:cacheprovider", "-o", f"asyncio_mode={mode}", "-k", tests]
    return subprocess.run(
        [sys.executable, "-m", "pytest", *options, "test_mine.py"],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize("mode", ["strict", "auto"])
def test_the_contract_runs_over_an_applications_store(tmp_path: Path, mode: str) -> None:
    """The public suite runs by subclassing alone, in both modes of pytest-asyncio."""
    result = run_contract(tmp_path, "MemoryStore", mode, tests="consecutive or model")
    assert result.returncode == 0, result.stdout
    assert "2 passed" in result.stdout


def test_the_contract_fails_for_a_store_that_loses(tmp_path: Path) -> None:
    """A broken promise is a failed test that shows the values."""
    result = run_contract(tmp_path, "Losing", "strict", tests="consecutive")
    assert result.returncode == 1, result.stdout
    assert "assert [2, 3, 4] == [1, 2, 3, 4]" in result.stdout


def test_every_public_name_exists_and_is_in_the_reference() -> None:
    """`__all__` promises nothing that is not there, lazy names included, and the reference has them all."""
    text = (Path(__file__).parents[1] / "docs" / "reference" / "api.md").read_text()
    section = text.partition("## Testing")[2].partition("\n## ")[0]
    assert sorted(dialogue.testing.__all__) == list(dialogue.testing.__all__), "in order"
    for name in dialogue.testing.__all__:
        assert getattr(dialogue.testing, name).__doc__
        assert f"| `{name}" in section, name
    assert not hasattr(dialogue.testing, "Nonsense")
