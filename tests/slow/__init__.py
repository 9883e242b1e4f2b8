"""Long runs: `pytest -m slow`."""
