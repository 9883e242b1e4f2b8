"""The doubles and suites that Dialogue's own tests use, for yours.

- `connect`: a real client of your dialogue, in process and without a port.
- `link`: the line under such a client, a `Link`, to cut or to hold it.
- `HandshakeRefused`: what `connect` raises where the server does not accept the connection.
- `FaultyStore`: a real store that can be made slow, be held, or fail.
- `dialogue.testing.store_contract.StoreContract`: what every `Store` promises, as tests over a store of yours. It needs
  pytest, pytest-asyncio and hypothesis, so it is imported by its own name; this package alone needs none of them.
- `dialogue.testing.directory_contract.DirectoryContract`: the same for its `Store.directory`.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from .faulty import FaultyStore

if TYPE_CHECKING:
    from .connecting import connect
    from .linking import HandshakeRefused, Link, link

__all__ = ["FaultyStore", "HandshakeRefused", "Link", "connect", "link"]

# They bring the client and FastAPI, which the doubles do without.
_LAZY = {
    "HandshakeRefused": "dialogue.testing.linking",
    "Link": "dialogue.testing.linking",
    "connect": "dialogue.testing.connecting",
    "link": "dialogue.testing.linking",
}


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        from importlib import import_module

        return getattr(import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'dialogue.testing' has no attribute {name!r}")


if "pytest" in sys.modules:
    # A failed assertion of the suite shows its values only if pytest knows of the module before its first import.
    sys.modules["pytest"].register_assert_rewrite(
        "dialogue.testing.store_contract", "dialogue.testing.directory_contract"
    )
