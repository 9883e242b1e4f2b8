"""The archive that hooks make, and which archive a server has."""

from __future__ import annotations

from typing import Any

from ..core.cursor import MAX_SEQ
from ..errors import ConfigError
from ..events import as_mapping
from ..storage.archive import Archive
from .hooks import HookRegistry

COUNTED_ROWS = 500
"""Rows that ``on_load_before`` is asked for at a time where an offset has to be counted out."""


class HookArchive(Archive):
    """The archive that ``on_cleanup``, ``on_load``, ``on_load_before`` and ``on_erase`` make."""

    def __init__(self, hooks: HookRegistry, *, is_keyset: bool) -> None:
        self._hooks = hooks
        self.is_keyset = is_keyset
        self.can_erase = hooks.has("on_erase")

    async def cleanup(self, room_id: str, event_name: str, events: list[Any]) -> None:
        # No time limit: a retry may only start after the earlier call has ended.
        await self._hooks.call(
            "on_cleanup", seconds=None, room_id=room_id, event_name=event_name, events=events
        )

    async def load(self, room_id: str, event_name: str, start: int, end: int) -> Any:
        if self._hooks.has("on_load"):
            return await self._hooks.call(
                "on_load", seconds=None, room_id=room_id, event_name=event_name, start=start, end=end
            )
        # By seq alone an offset has to be counted out from the newest row.
        rows: list[Any] = []
        before, count = MAX_SEQ, 0
        while count < end:
            limit = min(end - count, COUNTED_ROWS)
            page = list(await self.load_before(room_id, event_name, before, limit))[:limit]
            rows += page[max(0, start - count) :]
            count += len(page)
            if len(page) < limit:
                break
            before = as_mapping(page[-1])["seq"]
        return rows

    async def load_before(self, room_id: str, event_name: str, before: int, limit: int) -> Any:
        return await self._hooks.call(
            "on_load_before", seconds=None, room_id=room_id, event_name=event_name, before=before, limit=limit
        )

    async def erase(self, user_id: str) -> None:
        await self._hooks.call("on_erase", seconds=None, user_id=user_id)


def choose_archive(
    declared: Archive | None, hooks: HookRegistry, *, is_store_durable: bool
) -> tuple[Archive | None, bool]:
    """Return the archive of a server, if it has one, and whether what is in it can be read.

    Args:
        declared: ``Dialogue(archive=...)``.
        hooks: Make an archive if ``on_cleanup`` is among them.
        is_store_durable: Whether the log outlives the process.

    Raises:
        ConfigError: There are both, or hooks that need ``on_cleanup`` without it.
    """
    has_hooks = any(map(hooks.has, ("on_cleanup", "on_load", "on_load_before", "on_erase")))
    if declared is not None:
        if has_hooks:
            raise ConfigError(
                "Dialogue, field 'archive'",
                "there are on_cleanup, on_load or on_erase hooks too",
                "Use one or the other",
            )
        return declared, True
    if not has_hooks:
        return None, False
    if not hooks.has("on_cleanup"):
        found = "on_erase" if hooks.has("on_erase") else "on_load"
        raise ConfigError(
            f"hook {found!r}",
            f"there is no on_cleanup hook, so nothing would ever be there to {found.removeprefix('on_')}",
            "Register on_cleanup too",
        )
    is_readable = hooks.has("on_load") or hooks.has("on_load_before")
    # A memory store's archive holds earlier lives too: only offsets reach them.
    prefers_offsets = not is_store_durable and hooks.has("on_load")
    is_keyset = hooks.has("on_load_before") and not prefers_offsets
    return HookArchive(hooks, is_keyset=is_keyset), is_readable
