"""Long runs: `pytest -n 0 -m slow -s`."""
