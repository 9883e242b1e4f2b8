"""The demo's rooms, pages and start."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from fastapi.responses import FileResponse
from pydantic import BaseModel, Field
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from sqlalchemy import URL

from ..app import Dialogue
from ..config import EventType, History, RoomConfig, define_event
from ..errors import LogLocked, StartError
from ..server.router import Application
from ..storage.sql import SQLStore
from .recording import OnProgress, record_past

STATIC = Path(__file__).parent.parent / "static" / "demo"

MEDIA_TYPES = {".html": "text/html", ".js": "text/javascript", ".css": "text/css"}
"""Known by its ending everywhere but on systems whose registry says otherwise, and a module must be JavaScript."""

HEADERS = {
    "Cache-Control": "no-cache",
    # Nothing but the demo's own files and its socket. Browsers differ in whether 'self' covers a socket.
    "Content-Security-Policy": "default-src 'self'; connect-src 'self' ws: wss:; img-src 'self' data:; "
    "base-uri 'none'; object-src 'none'",
    "X-Content-Type-Options": "nosniff",
}

PORTS_TRIED = 101
"""The port that was asked for, and the hundred after it."""

LOCK_WAIT_SECONDS = 2.0
"""How long a start waits for another demo on the same folder: long enough for one that is just stopping."""

DATABASE = "demo.db"


class Message(BaseModel):
    text: str = Field(min_length=1, max_length=2000)


class Typing(BaseModel):
    is_typing: bool


def database_url(folder: Path) -> URL:
    """Return the URL of the demo's database in *folder*; whatever characters its path has."""
    return URL.create("sqlite+aiosqlite", database=str(folder / DATABASE))


def make_dialogue(folder: Path) -> Dialogue:
    """Return the demo's `Dialogue` over the database in *folder*. Opens nothing."""
    message = define_event("message", schema=Message, history=History(limit=100))
    typing = define_event("typing", schema=Typing)
    events: list[EventType[Any]] = [message, typing]
    return Dialogue(
        rooms={
            "general": RoomConfig(name="General", description="What everyone should hear", events=events),
            "random": RoomConfig(name="Random", description="Everything else", events=events),
            "help": RoomConfig(name="Help", description="Questions and answers", events=events),
        },
        client_rooms=RoomConfig(name="A room of someone's", events=events),
        store=SQLStore(database_url(folder), lock_wait_seconds=LOCK_WAIT_SECONDS),
    )


def make_app(
    dialogue: Dialogue, folder: Path, *, messages: int, on_progress: OnProgress = lambda *_: None
) -> FastAPI:
    """Return the application that serves *dialogue* and the page; its start records the past.

    Args:
        messages: See `record_past`.
        on_progress: See `record_past`.
    """

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        # Before the Dialogue's own lifespan, whose router is included below: it holds the log from then on.
        await record_past(
            database_url(folder),
            folder,
            messages=messages,
            lock_wait_seconds=LOCK_WAIT_SECONDS,
            on_progress=on_progress,
        )
        yield

    app = Application(dialogue, title="Dialogue demo", lifespan=lifespan, openapi_url=None)
    app.include_router(dialogue.router)
    app.include_router(dialogue.ops_router)
    app.add_api_route("/", _page(STATIC / "index.html"), methods=["GET", "HEAD"])
    for file in sorted(STATIC.glob("*.js")) + sorted(STATIC.glob("*.css")):
        app.add_api_route(f"/demo/{file.name}", _page(file), methods=["GET", "HEAD"])
    return app


def _page(file: Path) -> Callable[[], FileResponse]:
    def page() -> FileResponse:
        return FileResponse(file, media_type=MEDIA_TYPES[file.suffix], headers=HEADERS)

    return page


def run_demo(*, folder: Path, host: str, port: int, messages: int, log_level: str, console: Console) -> int:
    """Serve the demo until SIGINT or SIGTERM.

    Args:
        folder: For the database; made if it is missing.
        host: The address to listen on.
        port: The first port to try; up to a hundred further ones are tried. 0 for any free one.
        messages: How many messages the past of the largest room gets, if there is none yet.
        log_level: The least important messages that are logged.
        console: Where the progress and the address are shown.

    Returns:
        How many events could not be handed over; always 0, because the demo has no archive.

    Raises:
        StartError: The folder or the ports cannot be used, or another demo uses the folder.
    """
    from ..server import run as server

    server.configure_logging(log_level)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StartError(
            f"the data folder {folder} cannot be made ({error.strerror}). Name another one: --data"
        ) from error
    dialogue = make_dialogue(folder)
    listener = server.listen(host, port, tries=PORTS_TRIED)
    console.print(f"Data: {escape(str(folder / DATABASE))}", soft_wrap=True)
    progress = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )
    task = progress.add_task("Making a past", total=None)

    def on_progress(done: int, total: int) -> None:
        progress.start()
        progress.update(task, completed=done, total=total)

    def tell() -> None:
        progress.stop()
        address = server.address_of(listener)
        console.print(f"Dialogue's demo is at [bold cyan]{address}[/]", soft_wrap=True)
        console.print("Open it in two windows, under two names. Ctrl-C ends it.", soft_wrap=True)

    app = make_app(dialogue, folder, messages=messages, on_progress=on_progress)
    try:
        return server.serve(dialogue, app, listener, on_serving=tell)
    except LogLocked as error:
        raise StartError(
            f"another demo is running on the data folder {folder}. "
            "Use that one, end it, or give this one a folder of its own: --data another-folder"
        ) from error
    finally:
        progress.stop()
