"""Running JavaScript of the tests under Node, beside a server in this process."""

from __future__ import annotations

import asyncio
import os
import shutil
from collections.abc import Mapping
from pathlib import Path

import pytest

needs_node = pytest.mark.skipif(shutil.which("node") is None, reason="node is not on the path")


async def run_node(
    *arguments: str | Path, folder: Path | None = None, environment: Mapping[str, str] | None = None
) -> None:
    """Run node with *arguments*, whose status is to be 0; what it prints is told if it is not. Leaves no process."""
    node = await asyncio.create_subprocess_exec(
        "node",
        *map(str, arguments),
        cwd=folder,
        env={**os.environ, **(environment or {})},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    try:
        output, _ = await node.communicate()
    finally:
        if node.returncode is None:
            node.kill()
            await node.wait()
    assert node.returncode == 0, output.decode()
