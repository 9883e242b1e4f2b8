"""The browser client's own tests, which run under Node."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(shutil.which("node") is None, reason="node is not on the path")

HERE = Path(__file__).parent


@pytest.mark.parametrize("script", ["websocket", "dialogue_js"])
def test_under_node(script: str) -> None:
    """Everything in the script holds."""
    path = HERE / f"{script}.test.mjs"
    done = subprocess.run(["node", "--test", str(path)], capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stdout + done.stderr
