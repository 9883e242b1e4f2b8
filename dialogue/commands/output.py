"""The output of commands that run until they are ended: by Ctrl-C, or by whoever reads their output."""

from __future__ import annotations

import asyncio
import os
import stat
import sys
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager, suppress
from typing import Any

from rich.text import Text

from ..errors import DialogueError
from .common import err, fail, out
from .showing import printable


def run_to_its_end(run: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Run a command. Ctrl-C and a reader that has gone are how it ends; `DialogueError` is told, with status 1."""
    try:
        asyncio.run(run())
    except KeyboardInterrupt:
        pass
    except BrokenPipeError:
        # What is flushed at the end of the process must not fail once more.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    except DialogueError as error:
        fail(printable(str(error)))


def write(line: str) -> None:
    """Print a line as it is, at once: whoever reads a pipe waits for it.

    Raises:
        BrokenPipeError: Nobody does any more.
    """
    encoding = sys.stdout.encoding or "utf-8"
    sys.stdout.write(line.encode(encoding, "backslashreplace").decode(encoding) + "\n")
    sys.stdout.flush()


def show(*parts: tuple[str, str]) -> None:
    """Print parts of a line, each with the style that it has on a terminal. They are safe to print already."""
    if out.is_terminal:
        out.print(Text.assemble(*parts), soft_wrap=True)
    else:
        write("".join(text for text, _ in parts))


def note(text: str) -> None:
    """Tell of something that is no event, on standard error."""
    with suppress(BrokenPipeError):
        err.print(Text(text, style="dim"), soft_wrap=True)


@asynccontextmanager
async def ending_with_its_reader() -> AsyncIterator[None]:
    """End the block when standard output is a pipe and its reader has gone, also while there is nothing to write."""
    task, loop, is_gone = asyncio.current_task(), asyncio.get_running_loop(), False
    assert task is not None

    def on_gone() -> None:
        nonlocal is_gone
        loop.remove_reader(1)
        is_gone = True
        task.cancel()

    is_watched = False
    with suppress(OSError, NotImplementedError):
        if stat.S_ISFIFO(os.fstat(1).st_mode):
            loop.add_reader(1, on_gone)
            is_watched = True
    try:
        yield
    except asyncio.CancelledError:
        if not is_gone:
            raise
        task.uncancel()
    finally:
        if is_watched:
            loop.remove_reader(1)
