"""An export or an import that kills itself with SIGKILL at a given place; see `test_transfer`.

Called as ``transfer_child export STORE FILE PLACE NUMBER`` or ``import STORE FILE PLACE NUMBER``. PLACE is ``write``
(a batch is half written), ``rename`` (the file is complete but for its name), ``before`` or ``after`` (a transaction's
COMMIT); NUMBER counts them from 1.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

from sqlalchemy import Connection

from dialogue.storage import administration, export_format, log_export
from dialogue.storage.log_import import import_log
from dialogue.storage.sql import SQLStore

BATCH_LINES = 40


def die() -> None:
    """End as the machine's power would end it for this process."""
    os.kill(os.getpid(), signal.SIGKILL)


class HalfWriter:
    """A file that writes half of what it is given at the last, and dies."""

    def __init__(self, file: BinaryIO, number: int) -> None:
        self._file = file
        self._left = number

    def write(self, data: bytes) -> None:
        """Write all or half of it."""
        self._left -= 1
        self._file.write(data if self._left else data[: len(data) // 2])
        if not self._left:
            self._file.flush()
            die()

    def flush(self) -> None:
        """Write what is buffered."""
        self._file.flush()


async def main(command: str, store: str, file: str, place: str, number: int) -> None:
    """Run the command and die on the way."""
    log_export.BATCH_LINES = BATCH_LINES  # type: ignore[attr-defined]
    if place == "write":
        init = export_format.BatchWriter.__init__

        def half(self: export_format.BatchWriter, file: Any, *, is_compressed: bool) -> None:
            init(self, HalfWriter(file, number), is_compressed=is_compressed)  # type: ignore[arg-type]

        export_format.BatchWriter.__init__ = half  # type: ignore[method-assign]
    elif place == "rename":
        Path.rename = lambda self, target: die()  # type: ignore[method-assign, assignment, return-value]
    else:
        transact = administration.Database.transact
        numbers = itertools.count(1)

        async def dying(self: administration.Database, work: Callable[[Connection], Any]) -> Any:
            is_last = next(numbers) == number

            def wrapped(connection: Connection) -> Any:
                result = work(connection)
                if is_last and place == "before":
                    die()
                return result

            result = await transact(self, wrapped)
            if is_last:
                die()
            return result

        administration.Database.transact = dying  # type: ignore[method-assign]
    async with administration.Database(SQLStore(store)) as database:
        if command == "export":
            await log_export.export_log(database, Path(file))
        else:
            await import_log(Path(file), database)
    print("complete")


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2], sys.argv[3], sys.argv[4], int(sys.argv[5])))
