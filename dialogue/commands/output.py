"""The output of commands that run until they are ended: by Ctrl-C, or by whoever reads their output."""

from __future__ import annotations

import asyncio
import os
import signal
import stat
import sys
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from typing import Any

import typer
from rich.text import Text

from ..errors import DialogueError
from .common import err, fail, out
from .showing import printable


def run_to_its_end(run: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Run a command. Ctrl-C and a reader that has gone are how it ends; `DialogueError` is told, with status 1.

    After SIGTERM it leaves the terminal and the server in order, and the status is 143, as a shell has it.
    """
    is_terminated = False

    async def run_until_terminated() -> None:
        task = asyncio.current_task()
        assert task is not None

        def on_signal() -> None:
            nonlocal is_terminated
            is_terminated = True
            task.cancel()

        with suppress(NotImplementedError, RuntimeError):  # not on Windows, and not beside the main thread
            asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, on_signal)
        await run()

    try:
        asyncio.run(run_until_terminated())
    except KeyboardInterrupt:
        pass
    except BrokenPipeError:
        _forget_output()
    except asyncio.CancelledError:
        if not is_terminated:
            raise
        raise typer.Exit(128 + signal.SIGTERM) from None
    except DialogueError as error:
        fail(printable(str(error)))


def write(line: str) -> None:
    """Print a line as it is, at once: whoever reads a pipe waits for it.

    Raises:
        BrokenPipeError: Nobody does any more.
        DialogueError: It cannot be printed: the disk is full, say.
    """
    with telling_what_fails():
        if sys.stdout is None:  # It was closed when the process began.
            raise DialogueError("there is no standard output")
        encoding = sys.stdout.encoding or "utf-8"
        sys.stdout.write(line.encode(encoding, "backslashreplace").decode(encoding) + "\n")
        sys.stdout.flush()


@contextmanager
def telling_what_fails() -> Iterator[None]:
    """Turn a failed write to standard output into a `DialogueError`; a reader that has gone is none."""
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        _forget_output()
        raise DialogueError(f"standard output: {error.strerror or error}") from None


def _forget_output() -> None:
    # What is flushed at the end of the process must not fail once more.
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)


def show(*parts: tuple[str, str]) -> None:
    """Print parts of a line, each with the style that it has on a terminal. They are safe to print already."""
    if out.is_terminal:
        with telling_what_fails():
            out.print(Text.assemble(*parts), soft_wrap=True)
    else:
        write("".join(text for text, _ in parts))


def note(text: str) -> None:
    """Tell of something that is no event, on standard error."""
    with suppress(OSError):
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
