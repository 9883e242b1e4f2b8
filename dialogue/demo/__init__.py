"""``dialogue demo``: a chat on an embedded database, with a past to scroll through."""
