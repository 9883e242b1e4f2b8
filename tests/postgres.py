"""A real Postgres for the tests: whose it is, fresh databases in it, and the faults it can be made to have.

In this order: the server at ``DIALOGUE_TEST_POSTGRES_URL``; a private one from the ``pgserver`` wheel; a private one
from a ``postgres`` on the path or in Debian's folders. Where there is none the tests that need one are skipped.
"""

from __future__ import annotations

import asyncio
import atexit
import importlib.util
import os
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Coroutine, Iterator
from concurrent.futures import Future
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

import asyncpg  # type: ignore[import-untyped]
import pytest
from sqlalchemy import URL, make_url

T = TypeVar("T")

SECONDS = 60.0
"""How long anything of the server may take; what takes longer has failed."""

HOW_TO_GET_ONE = (
    "no Postgres: pip install pgserver, or put postgres on the PATH, or set DIALOGUE_TEST_POSTGRES_URL"
)


def find_binaries() -> Path | None:
    """Return the folder with ``initdb`` and ``postgres``; None where there is none."""
    folders: list[Path] = []
    # Found, not imported: the import writes into the user's runtime folder.
    spec = importlib.util.find_spec("pgserver")
    if spec is not None and spec.origin is not None:
        folders.append(Path(spec.origin).parent / "pginstall" / "bin")
    on_path = shutil.which("postgres")
    if on_path is not None:
        folders.append(Path(on_path).resolve().parent)
    folders += sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    suffix = ".exe" if os.name == "nt" else ""
    for folder in folders:
        if all((folder / f"{name}{suffix}").is_file() for name in ("initdb", "postgres")):
            return folder
    return None


def free_port() -> int:
    """Return a port of 127.0.0.1 that nobody listened on just now."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        return int(listening.getsockname()[1])


class Cluster:
    """A private server over TCP, as a child of this process, which can be stopped, started and frozen.

    Args:
        binaries: The folder with ``initdb`` and ``postgres``.
    """

    def __init__(self, binaries: Path) -> None:
        self._folder = Path(tempfile.mkdtemp(prefix="dialogue-postgres-"))
        self._user: str | None = None
        if hasattr(os, "geteuid") and os.geteuid() == 0:
            # Postgres refuses to run as root.
            self._user = "nobody"
            shutil.chown(self._folder, self._user)
            if not all(folder.stat().st_mode & 0o001 for folder in (binaries, *binaries.parents)):
                # Under a home that only root may enter: the server gets a copy of its own, beside which the wheel's
                # libraries are where its programs look for them.
                install, copied = binaries.parent, self._folder / "install"
                shutil.copytree(install, copied / install.parent.name / install.name)
                libraries = install.parent.with_name(f"{install.parent.name}.libs")
                if libraries.is_dir():
                    shutil.copytree(libraries, copied / libraries.name)
                binaries = copied / install.parent.name / install.name / binaries.name
        self._postgres = binaries / "postgres"
        self._data = self._folder / "data"
        self.port = free_port()
        self._process: subprocess.Popen[bytes] | None = None
        self._frozen: list[int] = []
        self._run(
            binaries / "initdb", "-D", self._data, "-U", "postgres", "-A", "trust", "-E", "UTF8",
            "--locale=C", "--no-sync", "--no-instructions",
        )  # fmt: skip
        self.start()

    @property
    def url(self) -> URL:
        """Where it listens."""
        return URL.create("postgresql", "postgres", None, "127.0.0.1", self.port, "postgres")

    def _run(self, *command: str | Path) -> None:
        done = subprocess.run(
            list(map(str, command)), user=self._user, cwd=self._folder, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr

    def start(self) -> None:
        """Start it, and wait until it answers."""
        assert self._process is None
        with (self._folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [
                    self._postgres, "-D", self._data, "-p", str(self.port),
                    "-c", "listen_addresses=127.0.0.1", "-c", "unix_socket_directories=",
                    "-c", "max_connections=60", "-c", "shared_buffers=64MB",
                    # What is written survives all that tests do to the processes; they cut no power.
                    "-c", "fsync=off", "-c", "full_page_writes=off",
                ],
                user=self._user,
                cwd=self._folder,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                # An interrupt at the terminal is for the tests.
                start_new_session=True,
            )  # fmt: skip
        deadline = time.monotonic() + SECONDS
        while True:
            try:
                in_background(_answers(self.url))
                return
            except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError):
                log_text = (self._folder / "log").read_text(errors="replace")
                assert self._process.poll() is None, log_text
                assert time.monotonic() < deadline, log_text
                time.sleep(0.02)

    def stop(self, how: signal.Signals = signal.SIGINT) -> None:
        """Stop it: SIGINT cuts all connections, SIGQUIT leaves the data as a crash does."""
        self.thaw()
        process, self._process = self._process, None
        if process is not None:
            process.send_signal(how)
            process.wait(SECONDS)

    def freeze(self) -> None:
        """Stop all its processes where they are: connections stay open and nothing answers."""
        assert self._process is not None
        # The parent first, so that no child is born behind our back.
        os.kill(self._process.pid, signal.SIGSTOP)
        self._frozen = [self._process.pid]
        listed = subprocess.run(["ps", "-A", "-o", "pid=,ppid="], capture_output=True, text=True, check=True)
        for line in listed.stdout.splitlines():
            pid, parent = map(int, line.split())
            if parent == self._process.pid:
                # A child that had a moment's work to do may have ended meanwhile.
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGSTOP)
                    self._frozen.append(pid)

    def thaw(self) -> None:
        """Let it go on."""
        for pid in self._frozen:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)
        self._frozen = []

    def remove(self) -> None:
        """Stop it and remove its files."""
        self.stop(signal.SIGQUIT)
        shutil.rmtree(self._folder, ignore_errors=True)


_loop: asyncio.AbstractEventLoop | None = None


def in_background(work: Coroutine[Any, Any, T]) -> T:
    """Run *work* in a loop of its own thread: for fixtures and for tests that have a loop already."""
    global _loop
    if _loop is None:
        _loop = asyncio.new_event_loop()
        threading.Thread(target=_loop.run_forever, daemon=True, name="test-postgres").start()
    result: Future[T] = asyncio.run_coroutine_threadsafe(work, _loop)
    return result.result(SECONDS)


def driver_url(url: URL) -> str:
    """Return what asyncpg takes."""
    return url.set(drivername="postgresql").render_as_string(hide_password=False)


async def _answers(url: URL) -> None:
    await _execute(url, "SELECT 1")


async def _execute(url: URL, *statements: str) -> list[list[Any]]:
    connection = await asyncpg.connect(driver_url(url), timeout=SECONDS)
    try:
        return [list(map(tuple, await connection.fetch(statement))) for statement in statements]
    finally:
        connection.terminate()


class Server:
    """A server that tests make databases in.

    Args:
        url: A role there that may make databases.
        cluster: The private server behind it, if it is one.
    """

    def __init__(self, url: URL, cluster: Cluster | None) -> None:
        self.url = url
        self.cluster = cluster
        self._template: str | None = None
        self._run = f"dialogue_test_{secrets.token_hex(4)}"
        self._number = 0
        self._free: list[str] = []

    def sql(self, statement: str, *, database: str | None = None) -> list[tuple[Any, ...]]:
        """Run one statement in *database*, or in the one that the URL names; return its rows."""
        url = self.url if database is None else self.url.set(database=database)
        return in_background(_execute(url, statement))[0]

    def database(self, *, has_schema: bool = True) -> str:
        """Make a fresh database and return its URL.

        Args:
            has_schema: With Dialogue's tables, or empty.
        """
        if has_schema and self._free:
            return self._free.pop()
        name = self._new()
        template = self._migrated() if has_schema else "template1"
        self.sql(f"CREATE DATABASE {name} TEMPLATE {template}")
        return self.url.set(database=name).render_as_string(hide_password=False)

    def drop(self, url: str) -> None:
        """Drop a database that `database` made."""
        self.sql(f"DROP DATABASE {make_url(url).database} WITH (FORCE)")

    def give_back(self, url: str) -> None:
        """Empty the tables of a database for another test: quicker than dropping it and making a new one."""
        tables = ("log", "rooms", "events", "streams", "markers", "created_rooms", "sessions")
        # Over one connection: most of what a statement costs is the server's new process.
        in_background(
            _execute(
                make_url(url),
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                " WHERE datname = current_database() AND pid <> pg_backend_pid()",
                *(f"DELETE FROM dialogue_{table}" for table in tables),
            )
        )
        self._free.append(url)

    def cut(self, url: str) -> int:
        """Cut all connections to a database; return how many there were."""
        name = make_url(url).database
        return len(
            self.sql(f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{name}'")
        )

    def _new(self) -> str:
        self._number += 1
        return f"{self._run}_{self._number}"

    def _migrated(self) -> str:
        """Return the name of a database with the tables; copying it is quicker than migrating each."""
        if self._template is None:
            from dialogue.storage.sql import SQLStore

            name = self._new()
            self.sql(f"CREATE DATABASE {name}")
            url = self.url.set(database=name).render_as_string(hide_password=False)

            async def migrate() -> None:
                store = SQLStore(url, auto_migrate=True)
                await store.open()
                await store.aclose()

            in_background(migrate())
            # Each copy is to be a new log, with an epoch of its own.
            self.sql("DELETE FROM dialogue_log", database=name)
            self._template = name
        return self._template

    def remove(self) -> None:
        """Leave nothing behind."""
        if self.cluster is not None:
            self.cluster.remove()
            return
        for (name,) in self.sql(f"SELECT datname FROM pg_database WHERE datname LIKE '{self._run}%'"):
            self.sql(f"DROP DATABASE {name} WITH (FORCE)")


_server: Server | None = None


def server() -> Server:
    """Return the server of this run, started at the first call; without one the test is skipped."""
    global _server
    if _server is None:
        given = os.environ.get("DIALOGUE_TEST_POSTGRES_URL")
        if given:
            _server = Server(make_url(given), None)
        else:
            cluster = _private()
            _server = Server(cluster.url, cluster)
        atexit.register(_server.remove)
    return _server


def _private() -> Cluster:
    binaries = find_binaries()
    if binaries is None:
        pytest.skip(HOW_TO_GET_ONE)
    return Cluster(binaries)


@pytest.fixture(scope="session")
def postgres() -> Server:
    """The server of this run."""
    return server()


@pytest.fixture
def postgres_url(postgres: Server) -> Iterator[str]:
    """A fresh database with Dialogue's tables."""
    url = postgres.database()
    yield url
    postgres.give_back(url)


@pytest.fixture(scope="session")
def own_cluster(postgres: Server) -> Iterator[Server]:
    """A server that may be stopped and frozen: the private one, also where another one was given."""
    if postgres.cluster is not None:
        yield postgres
        return
    cluster = _private()
    private = Server(cluster.url, cluster)
    yield private
    private.remove()


@pytest.fixture
def cluster(own_cluster: Server) -> Iterator[Cluster]:
    """The processes of the private server, running again after the test."""
    assert own_cluster.cluster is not None
    yield own_cluster.cluster
    own_cluster.cluster.thaw()
    if own_cluster.cluster._process is None:
        own_cluster.cluster.start()


@pytest.fixture
def cluster_url(own_cluster: Server, cluster: Cluster) -> str:
    """A fresh database in the private server; it goes with the server."""
    return own_cluster.database()
