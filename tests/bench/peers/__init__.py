"""What the publish path is compared with: FastAPI handlers that insert and commit each message."""
