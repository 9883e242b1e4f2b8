"""The layers, read from the imports."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "dialogue"

THIRD_PARTY = {
    "alembic", "annotated_types", "fastapi", "filelock", "hypothesis", "jwt", "msgspec", "prometheus_client",
    "prompt_toolkit", "pydantic", "pytest", "pytest_asyncio", "rich", "sqlalchemy", "starlette", "typer", "uvicorn",
    "websockets",
}  # fmt: skip

# What each layer may import of Dialogue and of others; what a developer declares is open to all.
BASE = {"dialogue.errors", "dialogue.events", "dialogue.config", "dialogue.limits", "dialogue.room_types"}
RULES: dict[str, tuple[set[str], set[str]]] = {
    "errors": (set(), set()),
    "events": ({"dialogue.config"}, {"msgspec"}),
    "config": (BASE | {"dialogue.core.patterns"}, {"pydantic"}),
    "room_types": (BASE | {"dialogue.core.patterns"}, set()),
    "limits": ({"dialogue.errors"}, {"pydantic", "annotated_types"}),
    "folding": (BASE, set()),
    "logs": (set(), set()),
    "decorators": (BASE | {"dialogue.server.hooks"}, set()),
    "deployment": (BASE | {"dialogue.storage.archive"}, set()),
    "auth": (BASE | {"dialogue.server.admit", "dialogue.server.handles"}, {"jwt"}),
    "protocol": ({"dialogue.errors"}, {"msgspec"}),
    "core": (BASE | {"dialogue.core"}, {"pydantic", "msgspec"}),
    "storage": (BASE | {"dialogue.storage"}, {"sqlalchemy", "alembic", "filelock", "msgspec"}),
    "server": (
        BASE
        | {"dialogue.core", "dialogue.storage", "dialogue.server", "dialogue.protocol", "dialogue.logs"}
        | {"dialogue.generating.asyncapi"},
        {"fastapi", "msgspec", "prometheus_client", "pydantic", "starlette", "uvicorn"},
    ),
    "testing": (
        BASE
        | {"dialogue.storage", "dialogue.testing", "dialogue.client", "dialogue.server", "dialogue.protocol"},
        {"msgspec", "pytest", "pytest_asyncio", "hypothesis", "starlette"},
    ),
    "overriding": (BASE | {"dialogue.storage"}, set()),
    "generating": (
        BASE
        | {"dialogue.generating", "dialogue.protocol", "dialogue.server.http_models", "dialogue.__version__"},
        {"msgspec", "pydantic"},
    ),
    "commands": (
        BASE
        | {
            "dialogue.app",
            "dialogue.client",
            "dialogue.commands",
            "dialogue.generating",
            "dialogue.server.static",
            "dialogue.storage",
        }
        | {"dialogue.__version__"},
        {"prompt_toolkit", "rich", "typer"},
    ),
    "client": (BASE | {"dialogue.client", "dialogue.protocol"}, {"msgspec", "websockets", "pydantic"}),
}

ROOTS = {"__init__", "__main__", "app", "cli", "demo"}
"""What puts the layers together, and so may import any."""

NEEDS_ITS_TYPE = {"deployment", "overriding", "server", "testing"}
"""Layers that are handed a `Dialogue`, and import it for its type alone."""


def imports(path: Path, *, for_types: bool = True) -> list[str]:
    """Return the modules that a file imports, relative ones resolved.

    Args:
        for_types: Also those under ``if TYPE_CHECKING``, which does not run.
    """
    package = ["dialogue", *path.relative_to(PACKAGE).parts[:-1]]
    found: list[str] = []
    tree = ast.parse(path.read_text())
    if not for_types:
        tree.body = [
            node
            for node in tree.body
            if not (isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test))
        ]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            found += [f"{module}.{alias.name}" if module in ("dialogue",) else module for alias in node.names]
    return found


def layer_of(path: Path) -> str:
    first = path.relative_to(PACKAGE).parts[0]
    return first.removesuffix(".py")


FILES = [path for path in sorted(PACKAGE.rglob("*.py")) if layer_of(path) not in ROOTS]


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_keep_the_layers(path: Path) -> None:
    """`core` knows no I/O, `storage` and `protocol` do not know each other, `client` knows only the wire."""
    own, third_party = RULES[layer_of(path)]
    if layer_of(path) in NEEDS_ITS_TYPE:
        own = own | {"dialogue.app"}
        assert "dialogue.app" not in imports(path, for_types=False)
    for module in imports(path):
        top = module.split(".")[0]
        if top == "dialogue":
            assert any(module == name or module.startswith(name + ".") for name in own), module
        elif top in THIRD_PARTY:
            assert top in third_party, module
        else:
            assert top in sys.stdlib_module_names or top == "__future__", f"{module} is not declared here"


def test_core_does_no_io() -> None:
    """No clock, no randomness, no event loop in `core`."""
    forbidden = {"asyncio", "time", "random", "secrets", "socket", "threading", "datetime", "os", "pathlib"}
    for path in (PACKAGE / "core").rglob("*.py"):
        used = {module.split(".")[0] for module in imports(path)}
        assert not used & forbidden, (path, used & forbidden)


def test_importing_dialogue_is_light() -> None:
    """`import dialogue` imports neither SQLAlchemy nor FastAPI."""
    heavy = ("sqlalchemy", "fastapi", "starlette", "uvicorn")
    code = f"import sys, dialogue; print([m for m in {heavy} if m in sys.modules])"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


def test_importing_the_doubles_needs_no_test_tools() -> None:
    """`dialogue.testing` needs no pytest; its suite, without one, says what to install."""
    code = (
        "import sys; sys.modules['hypothesis'] = None; import dialogue.testing\n"
        "assert not {'pytest', 'pytest_asyncio', 'fastapi', 'starlette', 'websockets'} & set(sys.modules)\n"
        "try: import dialogue.testing.store_contract\n"
        "except ImportError as error: print(error)"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "pip install pytest pytest-asyncio hypothesis" in out.stdout


def test_the_commands_import_what_they_need_when_they_run() -> None:
    """`dialogue --help` waits for no database library."""
    heavy = ("sqlalchemy", "alembic", "fastapi", "uvicorn", "websockets", "prompt_toolkit")
    code = f"import sys, dialogue.cli; print([m for m in {heavy} if m in sys.modules])"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


def test_alembic_is_no_package() -> None:
    """An `alembic/__init__.py` would shadow the library."""
    assert not (PACKAGE.parent / "alembic" / "__init__.py").exists()


def test_modules_stay_small() -> None:
    """Past 600 lines there is a second idea inside."""
    for path in PACKAGE.rglob("*.py"):
        lines = len(path.read_text().splitlines())
        assert lines <= 700, (path, lines)
