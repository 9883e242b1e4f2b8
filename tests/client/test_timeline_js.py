"""The browser client's timeline under random calls, which runs under Node."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("timeline.test.mjs")


@pytest.mark.skipif(shutil.which("node") is None, reason="node is not on the path")
def test_the_browser_timeline_under_node() -> None:
    """Everything in ``timeline.test.mjs`` holds; ``TIMELINE_SEED`` and ``TIMELINE_SEEDS`` choose what is tried."""
    done = subprocess.run(["node", "--test", str(SCRIPT)], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
