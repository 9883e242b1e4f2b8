"""Limits for those who go faster than any client should: benches, crash tests, checkers."""

from __future__ import annotations

from dialogue import Limits

UNRATED: dict[str, int] = {
    name: 10**9 for name in Limits.model_fields if name.endswith(("_per_second", "_burst", "_per_minute"))
}
"""All rates out of reach; everything else as it is."""
