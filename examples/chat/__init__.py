"""A chat with infinite scroll, whose older messages live in a table of its own."""
