"""Benchmarks: ``python -m tests.bench [SCENARIO...]``. What they measure and found: ``docs/explanation/speed.md``.

A scenario is a module with its figures, mostly one beside it with its load generator (``*_load``), a line in
`scenarios.SCENARIOS`, its sizes in `scale.Scale`, and a section of the page. What we are compared with is a program in
``peers/``: ``NAME.py`` with ``make_app(store)``, or ``node/NAME.mjs``; for a fan-out it is a `sides.Side` and a line in
`fanout.BOUNDS` besides.
"""
