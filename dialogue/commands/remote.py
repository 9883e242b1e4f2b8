"""What the commands that talk to a server share: the connection, and a room's newest events and all after them."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Annotated, Any
from urllib.parse import urlsplit

import typer

from ..errors import (
    CommandError,
    ConnectionLost,
    DialogueError,
    InvalidRequest,
    RateLimited,
    StoreUnavailable,
    StreamBroken,
    Unauthenticated,
)
from ..events import Event
from .showing import printable

if TYPE_CHECKING:
    from ..client import DialogueClient, Gap, Room

CONNECT_SECONDS = 10.0
"""How long the first connection may take."""

_PAGE_EVENTS = 200
_PAUSE_SECONDS = 1.0


def is_text(value: Any) -> Any:
    """Return the value of an option or an argument, which is UTF-8."""
    # Other bytes of a command line are halves of surrogate pairs, which JSON has not.
    try:
        "".join([value] if isinstance(value, str) else value or ()).encode()
    except UnicodeEncodeError:
        raise typer.BadParameter("this is not UTF-8") from None
    return value


Url = Annotated[
    str,
    typer.Argument(
        metavar="URL",
        help="The router's base, e.g. http://127.0.0.1:3000 or https://example.org/dialogue.",
        callback=is_text,
        show_default=False,
    ),
]
RoomId = Annotated[
    str, typer.Argument(metavar="ROOM", help="The room's id.", callback=is_text, show_default=False)
]
Token = Annotated[
    str | None,
    typer.Option(
        envvar="DIALOGUE_TOKEN",
        help="What the server's authenticate hook gets as auth['token']; better kept in DIALOGUE_TOKEN.",
        callback=is_text,
        show_default=False,
        show_envvar=False,
    ),
]

Note = Callable[[str], None]
"""Tells of the connection; what it gets is safe to print."""


@asynccontextmanager
async def connected(
    url: str, *, user: str | None, token: str | None, note: Note
) -> AsyncIterator[DialogueClient]:
    """Connect; a connection that is lost later is tried again for ever, one that cannot be made is not.

    Raises:
        DialogueError: There is none, and why.
    """
    from ..client import DialogueClient

    # It warns of each try, for which there are the notes.
    logger = logging.getLogger("dialogue.client")
    level = logger.level
    auth = {name: value for name, value in (("user_id", user), ("token", token)) if value is not None}
    try:
        client = DialogueClient(url, auth=auth or None, connect_timeout_seconds=CONNECT_SECONDS)
    except ValueError as error:
        raise DialogueError(str(error)) from None
    try:
        logger.setLevel(logging.ERROR)
        await _connect(client)
        client.on_state(_noting(note))
        yield client
    finally:
        await client.aclose()
        logger.setLevel(level)


async def _connect(client: DialogueClient) -> None:
    where = _shown(client.url)
    problem: asyncio.Future[Exception] = asyncio.get_running_loop().create_future()

    def first(error: Exception) -> None:
        if not problem.done():
            problem.set_result(error)

    stop = client.on_error(first)
    connecting = asyncio.create_task(client.connect())
    try:
        waited: list[asyncio.Future[Any]] = [connecting, problem]
        await asyncio.wait(waited, return_when=asyncio.FIRST_COMPLETED)
        if not connecting.done():
            error = problem.result()
            raise DialogueError(f"cannot connect to {where}: {_explained(error)}")
        await connecting
    except Unauthenticated as error:
        raise DialogueError(f"{where} refuses the credentials: {printable(str(error))}") from None
    except (CommandError, ConnectionLost, TimeoutError, TypeError, ValueError) as error:
        raise DialogueError(f"cannot connect to {where}: {printable(str(error))}") from None
    finally:
        stop()
        connecting.cancel()
        await asyncio.wait([connecting])
        if not connecting.cancelled():
            connecting.exception()  # It was raised above, or came too late to be of interest.


def _explained(error: Exception) -> str:
    text = printable(str(error.__cause__ or error))
    if "HTTP 404" in text or "HTTP 403" in text:  # which servers answer for a path that they do not have
        text += ". Is this the router's base, with the prefix that it is included under?"
    return text


def _shown(url: str) -> str:
    # A URL may have a password in it.
    parts = urlsplit(url)
    return printable(f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}")


def _noting(note: Note) -> Callable[[str], None]:
    was_lost = False

    def on_state(state: str) -> None:
        nonlocal was_lost
        if state == "resuming" and not was_lost:
            was_lost = True
            note("The connection is lost; trying again.")
        elif state == "connected" and was_lost:
            was_lost = False
            note("Connected again.")

    return on_state


async def newest(room: Room, names: Sequence[str], count: int, *, epoch: str) -> list[Event[Any]]:
    """Return the newest *count* events of these names (none: of all), oldest first.

    Where the server finds it too fast, it waits.

    Raises:
        StreamBroken: The log is not that of *epoch* any more.
        StoreUnavailable: Some of them cannot be read now.
        CommandError, ConnectionLost: As `Room.page`.
    """
    found: list[Event[Any]] = []
    chosen: Sequence[str | None] = names or [None]
    for name in chosen:
        events: list[Event[Any]] = []
        cursor: str | None = None
        while len(events) < count:
            try:
                page = await room.page(name, cursor=cursor, limit=min(_PAGE_EVENTS, count - len(events)))
            except RateLimited as error:
                await asyncio.sleep(max(error.retry_after_seconds or 0.0, _PAUSE_SECONDS))
                continue
            if page.epoch != epoch:
                raise StreamBroken(room.room_id, "epoch", after=0, resume_after=None)
            events[:0] = page.events
            if page.gap is not None and page.gap.is_for_the_moment:
                raise StoreUnavailable("a part of the history cannot be read now")
            if page.next is None:
                break
            cursor = page.next
        found += events
    if len(names) > 1:
        # Rows of an archive without seq are older than what has one, and have but their time.
        found.sort(key=lambda event: (event.seq is not None, event.seq or event.timestamp))
    return found[max(len(found) - count, 0) :]


async def follow(
    room: Room,
    *,
    names: Sequence[str],
    live_names: Sequence[str] = (),
    after: int | None,
    lines: int,
    is_endless: bool,
    show: Callable[[Event[Any]], None],
    note: Note,
    on_another_log: Callable[[], None] = lambda: None,
) -> None:
    """Show a room's events, and those to come, each once and in order.

    When the server comes back with another log, that one's newest events are shown, and those to come.

    Args:
        room: Joined, with a subscription that has all these names.
        names: The events; none for all.
        live_names: Further ones, of which only what is to come is shown.
        after: The seq to begin above; None for the newest *lines*.
        lines: See *after*.
        is_endless: Whether to go on with what is to come.
        show: Called with each event.
        note: Told of what is lost.
        on_another_log: Called when seqs of before mean nothing any more.

    Raises:
        StreamBroken, StoreUnavailable, CommandError, ConnectionLost: As `Room.stream` and `newest`.
    """

    def on_gap(gap: Gap) -> None:
        why = "kept without seqs" if gap.reason == "no_seq" else "gone for good"
        note(f"Events {gap.from_seq} to {gap.through_seq} are left out: some of them are {why}.")

    wanted = [*names, *live_names] or None
    epoch: str | None = None
    broken: StreamBroken | None = None
    while True:
        # Before the read: what comes meanwhile is in one of the two, or in both.
        stream = room.stream(wanted, after=after, follow=is_endless, on_gap=on_gap)
        if broken is not None:
            if stream.epoch == epoch:
                raise broken  # It began above all there is: a mistake, and no other log.
            note("The server has another log now.")
            on_another_log()
        epoch = stream.epoch
        shown_through = 0
        try:
            if after is None:
                for event in await newest(room, names, lines, epoch=stream.epoch):
                    show(event)
                    shown_through = max(shown_through, event.seq or 0)
                if not is_endless:
                    return
            async for event in stream:
                if (event.seq or 0) > shown_through:
                    show(event)
            return
        except (StreamBroken, InvalidRequest) as error:
            # A cursor of a log that is not there any more is refused; the stream knows that this is why.
            cause = error if isinstance(error, StreamBroken) else stream.error
            if not isinstance(cause, StreamBroken) or cause.reason != "epoch":
                raise
            if not is_endless:
                raise cause from None
            broken, after = cause, None
