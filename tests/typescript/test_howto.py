"""The TypeScript of the how-to page compiles, beside the types that are generated from the page's declarations."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

from dialogue.server.static import STATIC

from ..docs.pages import DOCS, ROOT, read
from .conftest import EXAMPLES
from .tools import FOLDER, MODULES, needs_node_modules, tsc


@needs_node_modules
def test_the_page_compiles(tmp_path: Path) -> None:
    """Its files as they stand, with what the commands write and the examples' two files."""
    written = []
    for block in read(DOCS / "howto" / "typescript.md").blocks:
        name, _, code = block.code.partition("\n")
        if block.language in ("typescript", "tsx", "python") and name.startswith(("# ", "// ")):
            (tmp_path / name.split()[1]).write_text(code, encoding="utf-8")
            written.append(name.split()[1])
    assert written == ["chat.py", "usage.ts", "Messages.tsx", "messages.ts"]
    command = [sys.executable, "-m", "dialogue", "types", "chat:dialogue", "-o", "events.ts"]
    subprocess.run(
        command,
        cwd=tmp_path,
        check=True,
        capture_output=True,
        env={"PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"},
    )
    for name in ("dialogue.js", "dialogue.d.ts"):
        shutil.copy(STATIC / name, tmp_path)
    shutil.copy(FOLDER / "tsconfig.json", tmp_path)
    shutil.copy(EXAMPLES / "react" / "src" / "useTimeline.ts", tmp_path)
    shutil.copy(EXAMPLES / "vue" / "src" / "useTimeline.ts", tmp_path / "useVueTimeline.ts")
    (tmp_path / "node_modules").symlink_to(MODULES, target_is_directory=True)
    is_right, said = tsc(tmp_path)
    assert is_right, said
