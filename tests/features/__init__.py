"""The list of what Dialogue can do, a test or more for each row, over a real WebSocket and the public API alone."""
