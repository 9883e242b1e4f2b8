"""A run: what each scenario found, when, and on what; read from JSON, written to it, and put together."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterable
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import msgspec

from .report import Figure

PACKAGES = (
    "uvicorn",
    "uvloop",
    "fastapi",
    "pydantic",
    "msgspec",
    "sqlalchemy",
    "aiosqlite",
    "asyncpg",
    "websockets",
    "litestar",
    "python-socketio",
)
"""What is measured, or measured with; those that are installed are told. A scenario tells the rest by its figures."""


class System(msgspec.Struct, frozen=True, kw_only=True):
    """What figures were taken on: the machine, the version of Python, and those of what is measured."""

    machine: str
    python: str
    versions: dict[str, str]


class Taken(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What a scenario found.

    Attributes:
        taken: When it ended, in UTC.
        elsewhere: Where, if not on the run's own system.
    """

    taken: datetime
    figures: list[Figure]
    elsewhere: System | None = None


class Run(System, frozen=True, kw_only=True):
    """What the scenarios found, by their names."""

    scenarios: dict[str, Taken]

    @property
    def system(self) -> System:
        """What it was taken on."""
        return System(machine=self.machine, python=self.python, versions=self.versions)

    @property
    def figures(self) -> list[Figure]:
        """The figures of all scenarios, in order."""
        return [figure for taken in self.scenarios.values() for figure in taken.figures]

    def only(self, names: Iterable[str]) -> Run:
        """Return it with the scenarios of *names* alone."""
        wanted = {name: self.scenarios[name] for name in names if name in self.scenarios}
        return msgspec.structs.replace(self, scenarios=wanted)


def made(found: dict[str, tuple[datetime, list[Figure]]]) -> Run:
    """Return the run of this machine that *found* these figures; what they tell of versions moves into it."""
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    scenarios = {}
    for name, (taken, figures) in found.items():
        for figure in figures:
            versions.update(figure.versions)
        plain = [msgspec.structs.replace(figure, versions={}) for figure in figures]
        scenarios[name] = Taken(taken=taken.astimezone(UTC).replace(microsecond=0), figures=plain)
    return Run(machine=machine(), python=platform.python_version(), versions=versions, scenarios=scenarios)


def merged(old: Run, new: Run) -> Run:
    """Return *old* with the scenarios of *new* in the place of its own.

    What stays from *old* keeps the name of its system where *new* has another.
    """
    is_same = (old.machine, old.python) == (new.machine, new.python) and all(
        new.versions.get(name, told) == told for name, told in old.versions.items()
    )
    kept = {
        name: taken if is_same or taken.elsewhere else msgspec.structs.replace(taken, elsewhere=old.system)
        for name, taken in old.scenarios.items()
    }
    return Run(
        machine=new.machine,
        python=new.python,
        versions={**old.versions, **new.versions} if is_same else new.versions,
        scenarios={**kept, **new.scenarios},
    )


def encoded(run: Run) -> bytes:
    """Return *run* as JSON; each figure with its ratio and whether its bounds are met."""
    tree = msgspec.to_builtins(run)
    for name, taken in run.scenarios.items():
        tree["scenarios"][name]["figures"] = [
            {**msgspec.to_builtins(figure), "ratio": figure.ratio, "is_met": figure.is_met}
            for figure in taken.figures
        ]
    return msgspec.json.format(msgspec.json.encode(tree), indent=2) + b"\n"


def read(path: Path) -> Run:
    """Return the run that *path* has as JSON.

    Raises:
        msgspec.ValidationError: It is another JSON.
    """
    return msgspec.json.decode(path.read_bytes(), type=Run)


def machine() -> str:
    """Return what the figures are taken on; processor and memory where Linux tells them."""
    processor = _told("/proc/cpuinfo", "model name") or platform.processor()
    memory = _told("/proc/meminfo", "MemTotal").removesuffix(" kB")
    parts = [
        f"{os.cpu_count()} cores" + (f" of {processor}" if processor else ""),
        f"{int(memory) / 1024**2:.0f} GiB of memory" if memory else "",
        f"{platform.system()} {platform.machine()}",
    ]
    return ", ".join(part for part in parts if part)


def _told(path: str, key: str) -> str:
    """Return what the first line of *key* says; empty where there is none."""
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except OSError:
        return ""
    return next((line.partition(":")[2].strip() for line in lines if line.startswith(key)), "")
