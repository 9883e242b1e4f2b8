"""``python -m dialogue``: the same as the ``dialogue`` command."""

from __future__ import annotations

from .cli import main

# Guarded: a reloading server starts its child by importing this module again.
if __name__ == "__main__":
    main()
