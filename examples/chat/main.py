"""The chat inside a FastAPI application that also serves its page.

Run it with ``uvicorn examples.chat.main:app --port 3000``.
"""

from __future__ import annotations

from pathlib import Path

from fastapi import FastAPI
from fastapi.staticfiles import StaticFiles

from .config import dialogue

app = FastAPI(title="Chat")
# The router brings its own start and stop along, so nothing else is needed to run the rooms.
app.include_router(dialogue.router, prefix="/dialogue")
# Last, because it takes every path that is left.
app.mount("/", StaticFiles(directory=Path(__file__).parent / "static", html=True))
