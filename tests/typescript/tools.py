"""The tools of Node that some tests need; where they are missing, these are skipped with the line that gets them."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent
MODULES = FOLDER / "node_modules"

needs_node_modules = pytest.mark.skipif(
    shutil.which("node") is None or not (MODULES / "typescript").exists(),
    reason="node and its packages are needed: npm install --prefix tests/typescript",
)


def node(*arguments: str | Path, folder: Path = FOLDER, **environment: str) -> str:
    """Run node; return what it prints, or fail with it."""
    done = subprocess.run(
        ["node", *map(str, arguments)],
        cwd=folder,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def tsc(folder: Path, *arguments: str) -> tuple[bool, str]:
    """Compile the project in *folder*; return whether nothing is wrong with it, and what was said."""
    done = subprocess.run(
        [str(MODULES / ".bin" / "tsc"), "--pretty", "false", *arguments],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=100,
    )
    return done.returncode == 0, done.stdout + done.stderr
