"""Where events live: the `Store` contract, its implementations, and the hand-over to the developer's archive."""
