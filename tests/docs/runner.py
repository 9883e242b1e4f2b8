"""Runs a page's Python blocks as a reader would: in order, in an empty folder, against a server that runs."""

from __future__ import annotations

import ast
import asyncio
import gc
import importlib
import inspect
import os
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import uvicorn

from ..postgres import server
from .pages import ROOT, Block, Page, name_of

ADDRESS = "127.0.0.1:3000"
"""What pages call the server that they have started; the blocks get the address of one that has a free port."""

DATABASE = "postgresql://chat@localhost/chat"
"""What pages call their Postgres; the blocks of a page get an empty database of the tests' own server."""

_FILE = re.compile(r"# (?P<name>[\w/]+\.py)\n")


@contextmanager
def serving(app: Any) -> Iterator[str]:
    """Serve an ASGI application from a thread; yield its address, ``127.0.0.1:PORT``."""
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    config = uvicorn.Config(app, ws="websockets-sansio", log_config=None, ws_ping_interval=None)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, args=([listener],), name="docs-server")
    thread.start()
    try:
        while not server.started:
            assert thread.is_alive(), "the page's application did not start"
            time.sleep(0.005)
        yield f"127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()
        listener.close()


class PageRunner:
    """The namespace, folder and event loop of one page. A context manager.

    - Blocks share a namespace. ``await`` stands anywhere; such blocks share a loop.
    - A block that begins with ``# name.py`` is written to that file and imported; its names join the namespace.
      ``# test_name.py`` is only written: `run_tests` runs them all.
    - A block that names `ADDRESS` runs against the namespace's ``app``, or else its ``dialogue``.
    """

    def __init__(self, page: Page, folder: Path) -> None:
        self._page = page
        self._folder = folder
        self._module = ModuleType("docs_page")
        self._runner = asyncio.Runner()
        self._modules: set[str] = {self._module.__name__}
        self._exit = ExitStack()
        self._url: str | None = None
        self._tests: list[str] = []

    def __enter__(self) -> PageRunner:
        back = Path.cwd()
        self._exit.callback(os.chdir, back)
        os.chdir(self._folder)
        sys.path.insert(0, str(self._folder))
        self._exit.callback(sys.path.remove, str(self._folder))
        # pydantic looks a model's module up.
        sys.modules[self._module.__name__] = self._module
        self._exit.enter_context(self._runner)
        return self

    def __exit__(self, *exception: Any) -> None:
        self._exit.close()
        for name in self._modules:
            sys.modules.pop(name, None)
        # What the page leaves open is told in its own test, and not in whichever comes next.
        vars(self._module).clear()
        gc.collect()

    def run(self, block: Block) -> None:
        """Run one block; whatever it raises passes."""
        namespace = vars(self._module)
        with ExitStack() as stack:
            code = block.code
            if ADDRESS in code:
                app = namespace["app"] if "app" in namespace else namespace["dialogue"].app
                code = code.replace(ADDRESS, stack.enter_context(serving(app)))
            if DATABASE in code:
                code = code.replace(DATABASE, self._database())
            file = _FILE.match(code)
            if file is not None:
                self._run_file(Path(file["name"]), code)
                return
            # Blank lines in front, so that a traceback names the page's own line.
            compiled = compile(
                "\n" * (block.line - 1) + code,
                name_of(self._page.path),
                "exec",
                flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT,
            )
            if compiled.co_flags & inspect.CO_COROUTINE:
                self._runner.run(eval(compiled, namespace))
            else:
                exec(compiled, namespace)

    def _database(self) -> str:
        if self._url is None:
            self._url = server().database(has_schema=False)
            self._exit.callback(server().drop, self._url)
        return self._url

    def _run_file(self, name: Path, code: str) -> None:
        path = self._folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(code, encoding="utf-8")
        if name.name.startswith("test_"):
            self._tests.append(str(name))
            return
        module = ".".join(name.with_suffix("").parts)
        self._modules.add(module)
        importlib.invalidate_caches()
        found = importlib.import_module(module)
        assert found.__file__ == str(path), f"another {module} is in the way: {found.__file__}"
        vars(self._module).update({key: value for key, value in vars(found).items() if key[:2] != "__"})

    def run_tests(self) -> None:
        """Run the page's test files by one pytest, as a reader would: it takes longer to start than to run them."""
        if not self._tests:
            return
        # The folder is its own root: no settings are found above it.
        command = [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "-p",
            "no:cacheprovider",
            "-W",
            "error",
            "--rootdir",
            ".",
        ]
        settings = ("asyncio_mode=auto", "asyncio_default_fixture_loop_scope=function")
        done = subprocess.run(
            [*command, *(part for setting in settings for part in ("-o", setting)), *self._tests],
            cwd=self._folder,
            env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(self._folder)])},
            capture_output=True,
            text=True,
            timeout=100,
        )
        assert done.returncode == 0, done.stdout + done.stderr
