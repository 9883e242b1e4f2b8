"""The exclusive lock beside a SQLite log: one owner at a time, freed by the kernel when its process dies."""

from __future__ import annotations

import asyncio
import logging
import time
from pathlib import Path

from filelock import FileLock, Timeout

from ..errors import LogLocked, StartError
from .postgres import tell_waiting

POLL_SECONDS = 0.05
"""How often a waiting process looks; file locks have no way to be told."""


class LogLock:
    """The lock of the log at *path*; another instance, in this process or another, cannot hold it too.

    The lock is a file of its own, since SQLite's locks on the log itself end with each transaction. Links to the
    log lead to the same lock.
    """

    def __init__(self, path: Path) -> None:
        self._log = path
        resolved = path.resolve()
        self.path = resolved.with_name(resolved.name + ".lock")
        self._lock = FileLock(self.path, thread_local=False)

    async def acquire(self, *, wait_seconds: float, logger: logging.Logger | None = None) -> None:
        """Take the lock, waiting up to *wait_seconds* for its owner to end, and saying so to *logger*.

        Raises:
            LogLocked: Another owner still has it.
            StartError: The lock's file cannot be made.
        """
        deadline = time.monotonic() + wait_seconds
        is_told = False
        while True:
            try:
                self._lock.acquire(blocking=False)
            except Timeout:
                if time.monotonic() >= deadline:
                    if not self.path.exists():
                        # Some file systems answer that there is no such file where none can be made.
                        raise self._cannot_be_made("No such file or directory") from None
                    raise LogLocked(str(self._log), wait_seconds) from None
                if not is_told:
                    is_told = True
                    tell_waiting(str(self._log), wait_seconds, logger or logging.getLogger("dialogue"))
            except OSError as error:
                raise self._cannot_be_made(error.strerror) from error
            else:
                return
            await asyncio.sleep(POLL_SECONDS)

    def _cannot_be_made(self, why: str | None) -> StartError:
        return StartError(
            f"the lock {self.path} beside the log cannot be made ({why}). "
            "Let this user write to the folder, or put the log into another one"
        )

    def release(self) -> None:
        """Free the lock; nothing happens when it is not held."""
        self._lock.release(force=True)
