"""What of a `Dialogue` can be replaced for a while: its store, archive, limits and hooks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields
from enum import Enum
from typing import TYPE_CHECKING, Any

from .config import Hook, Hooks
from .errors import ConfigError
from .limits import Limits
from .storage.archive import Archive
from .storage.base import Store
from .storage.memory import MemoryStore

if TYPE_CHECKING:
    from .app import Dialogue


class Unchanged(Enum):
    """The type of `UNCHANGED`: None has a meaning of its own everywhere."""

    UNCHANGED = "unchanged"


UNCHANGED = Unchanged.UNCHANGED
"""Leave it as it is."""


def make_store(store: str | Store | None) -> Store:
    """Return the store that an application means.

    Raises:
        ConfigError: It is neither a URL, nor a `Store`, nor None for memory; or the URL is not one of a store.
    """
    if store is None:
        return MemoryStore()
    if isinstance(store, Store):
        return store
    if isinstance(store, str):
        from .storage.sql import SQLStore

        return SQLStore(store)
    raise ConfigError(
        "Dialogue, field 'store'",
        f"{store!r} is neither a URL nor a Store",
        'Write store="sqlite:///chat.db", or None for memory',
    )


def check_archive(archive: Archive | None) -> Archive | None:
    """Return *archive* if it can be one.

    Raises:
        ConfigError: It is not an `Archive`.
    """
    if archive is not None and not isinstance(archive, Archive):
        raise ConfigError(
            "Dialogue, field 'archive'",
            f"{archive!r} is not an Archive",
            'Write archive=SQLArchive("sqlite:///archive.db"), or subclass Archive',
        )
    return archive


@contextmanager
def overridden(
    dialogue: Dialogue,
    *,
    store: str | Store | Unchanged | None,
    archive: Archive | Unchanged | None,
    limits: Limits | Unchanged | None,
    hooks: Mapping[str, Hook | None],
) -> Iterator[None]:
    """Replace what is given while the context is entered; see `Dialogue.override`.

    A server that still runs when the context ends goes on with what it was started with.
    """
    if dialogue.is_running:
        raise ConfigError("Dialogue.override", "the server is running", "Override before it starts")
    known = [item.name for item in fields(Hooks)]
    for name, function in hooks.items():
        if name not in known:
            raise TypeError(f"there is nothing called {name!r} to override; hooks are: {', '.join(known)}")
        if function is not None and not callable(function):
            raise ConfigError(
                f"Dialogue.override, hook {name!r}",
                f"{function!r} is not callable",
                "Give a function, or None",
            )
    values: dict[str, Any] = {}
    # Everything is checked before anything is replaced.
    if not isinstance(store, Unchanged):
        values["store"] = make_store(store)
    if not isinstance(archive, Unchanged):
        values["_archive"] = check_archive(archive)
    if not isinstance(limits, Unchanged):
        values["limits"] = limits or Limits()
    # A copy also where no hook is replaced: what a test registers must not outlive it.
    values["_hooks"] = dialogue._hooks.replaced(hooks)
    before = {name: getattr(dialogue, name) for name in values}
    for name, value in values.items():
        setattr(dialogue, name, value)
    try:
        yield
    finally:
        for name, value in before.items():
            setattr(dialogue, name, value)
