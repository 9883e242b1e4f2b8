"""The I/O side: the publish path, connections, and what serves them."""
