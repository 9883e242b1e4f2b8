"""The doubles and suites that Dialogue's own tests use, for yours.

- `FaultyStore`: a real store that can be made slow, be held, or fail.
- `dialogue.testing.store_contract.StoreContract`: what every `Store` promises, as tests over a store of yours. It needs
  pytest, pytest-asyncio and hypothesis, so it is imported by its own name; this package alone needs none of them.
- `dialogue.testing.directory_contract.DirectoryContract`: the same for its `Store.directory`.
"""

from __future__ import annotations

import sys

from .faulty import FaultyStore

__all__ = ["FaultyStore"]

if "pytest" in sys.modules:
    # A failed assertion of the suite shows its values only if pytest knows of the module before its first import.
    sys.modules["pytest"].register_assert_rewrite(
        "dialogue.testing.store_contract", "dialogue.testing.directory_contract"
    )
