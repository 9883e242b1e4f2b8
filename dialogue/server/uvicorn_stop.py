"""Learning that a uvicorn which is not ours is to stop.

It waits for all requests before it ends the lifespan, and tells those that are being answered nothing: a stream that
has no end would keep it for ever. Its server object is where the signals of the process go.
"""

from __future__ import annotations

import signal
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import uvicorn


def find_server() -> uvicorn.Server | None:
    """Return the uvicorn that has this process' signals, whose ``should_exit`` tells of a stop; None if there is none.

    Servers that leave the signals to somebody else, and those of other makes, end a stream when their own time for a
    graceful stop is over.
    """
    # Not imported for this: where it serves it has been.
    module = sys.modules.get("uvicorn")
    server = getattr(signal.getsignal(signal.SIGTERM), "__self__", None)
    return server if module is not None and isinstance(server, module.Server) else None
