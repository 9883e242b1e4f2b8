"""A folder in which everything that is TypeScript is side by side, as in an application."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from dialogue.generating.typescript import typescript
from dialogue.server.static import STATIC

from ..generating.rich import dialogue as rich
from .tools import FOLDER, MODULES, node

EXAMPLES = FOLDER.parents[1] / "examples"
CLIENT = ("dialogue.js", "dialogue.d.ts")


@pytest.fixture(scope="session")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The client with its usage, generated types with theirs, and the examples; Node's packages are in reach."""
    folder = tmp_path_factory.mktemp("typescript")
    (folder / "node_modules").symlink_to(MODULES, target_is_directory=True)
    for name in ("tsconfig.json", "usage.ts", "rich_usage.ts", "compile_vue.mjs", "timeline.test.mjs"):
        shutil.copy(FOLDER / name, folder / name)
    (folder / "package.json").write_text('{"type": "module"}')
    (folder / "rich.ts").write_text(typescript(rich.room_types, target="rich:dialogue"), encoding="utf-8")
    for place in (folder, folder / "react", folder / "vue"):
        if place != folder:
            shutil.copytree(EXAMPLES / place.name / "src", place)
        for name in CLIENT:
            shutil.copy(STATIC / name, place / name)
    node("compile_vue.mjs", folder / "vue" / "Chat.vue", folder=folder)
    return folder
