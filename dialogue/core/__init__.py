"""The logic without I/O and without a clock: rings, pages, rooms, subscriptions, limits.

What is here decides and returns; `dialogue.server` does. It imports only the standard library, pydantic and
msgspec, and of Dialogue only `errors`, `events` and `config` (held by ``tests/test_layering.py``).
"""
