"""Standard input, line by line, beside an event loop."""

from __future__ import annotations

import asyncio
import codecs
import os
import threading
from collections.abc import AsyncGenerator
from concurrent.futures import CancelledError

_BYTES = 65_536


async def standard_input() -> AsyncGenerator[str, None]:
    """Yield the lines of standard input, without their ends; what is no UTF-8 is replaced.

    It is read ahead by one read of at most 64 KiB, in a thread of its own: a file or a terminal has no other way to
    wait beside a loop, and a thread of the loop's own would be waited for at the end.
    """
    loop = asyncio.get_running_loop()
    chunks: asyncio.Queue[bytes | None] = asyncio.Queue(1)

    def read() -> None:
        chunk: bytes | None = b""
        while chunk is not None:
            try:
                chunk = os.read(0, _BYTES) or None
            except OSError:
                chunk = None
            putting = chunks.put(chunk)
            try:
                put = asyncio.run_coroutine_threadsafe(putting, loop)
            except RuntimeError:  # The loop has gone while this was reading.
                putting.close()
                return
            try:
                put.result()
            except CancelledError:
                return

    threading.Thread(target=read, name="dialogue-standard-input", daemon=True).start()
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    rest = ""
    while True:
        chunk = await chunks.get()
        *lines, rest = (rest + decoder.decode(chunk or b"", final=chunk is None)).split("\n")
        for line in lines:
            yield line.removesuffix("\r")
        if chunk is None:
            if rest:
                yield rest.removesuffix("\r")
            return
