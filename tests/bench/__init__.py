"""Benchmarks: ``python -m tests.bench [SCENARIO...]``. What they measure and found: ``docs/explanation/speed.md``."""
