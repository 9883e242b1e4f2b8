"""The browser client's own tests, which run under Node."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("dialogue_js.test.mjs")


@pytest.mark.skipif(shutil.which("node") is None, reason="node is not on the path")
def test_the_browser_client_under_node() -> None:
    """Everything in ``dialogue_js.test.mjs`` holds."""
    done = subprocess.run(["node", "--test", str(SCRIPT)], capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stdout + done.stderr
