"""``dialogue chat``: a small chat in a terminal, or in a pipe."""

from __future__ import annotations

import asyncio
import getpass
import sys
from contextlib import aclosing
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import CommandError, DialogueError
from ..events import Event
from .common import out
from .output import ending_with_its_reader, run_to_its_end
from .remote import RoomId, Token, Url, connected, follow, is_text
from .screen import Pipe, Screen, Terminal
from .showing import printable, text_of, time_of

if TYPE_CHECKING:
    from ..client import DialogueClient, PresenceChange, Room

cli = typer.Typer()

_HELP = "/users shows who is there, /quit ends (so do Ctrl-C and Ctrl-D), //text sends /text"
_NAMES_SHOWN = 10
_CHARACTERS_SHOWN = 200
_RETRY_SECONDS = 1.0
_WAITING_LINES = 100


def _login() -> str | None:
    try:
        return getpass.getuser()
    except (KeyError, OSError, ImportError):
        return None


@cli.command()
def chat(
    url: Url,
    room: RoomId,
    name: Annotated[
        str | None,
        typer.Option(
            help="Who to be, where the server lets clients say so; by default the name of your login.",
            callback=is_text,
            show_default=False,
        ),
    ] = None,
    token: Token = None,
    event: Annotated[str, typer.Option(help="The event that a message is.", callback=is_text)] = "message",
    field: Annotated[
        str, typer.Option(help="The field of its data that has the text.", callback=is_text)
    ] = "text",
    field_user: Annotated[
        str | None,
        typer.Option(
            help="A field of its data that has the sender's name, if there is one.",
            callback=is_text,
            show_default=False,
        ),
    ] = None,
    lines: Annotated[
        int, typer.Option("--lines", "-n", min=0, help="Begin with so many of the newest messages.")
    ] = 20,
) -> None:
    """Chat in a room. Each line of a standard input that is no terminal is sent; at its end, so is the command's."""
    user = name if name is not None or token is not None else _login()
    is_terminal = out.is_terminal and sys.stdin.isatty()
    failed = 0

    async def run() -> None:
        nonlocal failed
        screen: Screen = Terminal() if is_terminal else Pipe()
        async with (
            ending_with_its_reader(),
            connected(url, user=user, token=token, note=screen.note) as client,
        ):
            joined = await client.join(room, sync=0, events="*")
            data = {} if field_user is None else {field_user: name or client.user_id}
            conversation = Conversation(client, joined, screen, event=event, field=field, data=data)
            await conversation.run(lines)
            failed = conversation.failed_count

    run_to_its_end(run)
    if failed and not is_terminal:
        raise typer.Exit(1)


class Conversation:
    """One room on one screen.

    Args:
        client: Connected.
        room: Joined, with all its events.
        screen: Where it is shown, and where lines come from.
        event: The event that a message is.
        field: The field with its text.
        data: The other fields of what is sent.
    """

    def __init__(
        self,
        client: DialogueClient,
        room: Room,
        screen: Screen,
        *,
        event: str,
        field: str,
        data: dict[str, Any],
    ) -> None:
        self.failed_count = 0
        """How many lines the server has refused."""
        self._client = client
        self._room = room
        self._screen = screen
        self._event = event
        self._field = field
        self._data = data
        self._outgoing: asyncio.Queue[str] = asyncio.Queue(_WAITING_LINES)
        self._sent_seq = 0
        self._shown_seq = 0
        self._has_shown = asyncio.Event()
        self._can_type = True

    async def run(self, lines: int) -> None:
        """Show the room until the lines end, and all of them are sent.

        Raises:
            DialogueError: It cannot be shown any more.
        """
        self._room.on_presence(self._on_presence)
        typing = self._room.typing_users()
        typing.on_change(lambda: self._screen.set_typing([printable(user) for user in typing.users]))
        self._client.on_state(self._screen.set_state)
        self._screen.set_state(self._client.state)
        if self._screen.is_interactive:
            self._screen.note(f"{printable(self._room.name or self._room.room_id)}. {_HELP}.")
        following = asyncio.create_task(
            follow(
                self._room,
                names=[self._event],
                live_names=["$edit", "$delete"],
                after=None,
                lines=lines,
                is_endless=True,
                show=self._show,
                note=self._screen.note,
                on_another_log=self._on_another_log,
            )
        )
        tasks = [following, asyncio.create_task(self._send_all()), asyncio.create_task(self._read())]
        try:
            # Only the reading ends without an error.
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)
        errors = [error for task in tasks if not task.cancelled() and (error := task.exception()) is not None]
        if errors:
            raise errors[0]

    # ---- what is shown

    def _show(self, event: Event[Any]) -> None:
        is_own = event.sender == self._client.user_id
        self._screen.show(
            (time_of(event), "dim"),
            ("  ", ""),
            (printable(event.sender), "bold green" if is_own else "bold cyan"),
            ("  ", ""),
            (text_of(event, field=self._field), ""),
        )
        self._shown_seq = max(self._shown_seq, event.seq or 0)
        self._has_shown.set()

    def _on_another_log(self) -> None:
        # What was sent to the one of before is waited for no more.
        self._sent_seq = self._shown_seq = 0
        self._has_shown.set()

    def _on_presence(self, change: PresenceChange) -> None:
        for users, what in ((change.joined, "came"), (change.left, "left")):
            others = [user for user in users if user != self._client.user_id]
            if others:
                self._screen.note(f"{_list(others)} {what}.")

    # ---- what is sent

    async def _read(self) -> None:
        async with aclosing(self._screen.lines(self._typing)) as lines:
            async for line in lines:
                if line.startswith("/") and not line.startswith("//"):
                    if await self._command(line.strip()):
                        break
                elif line.strip():
                    await self._outgoing.put(line.removeprefix("/") if line.startswith("//") else line)
                    self._screen.set_waiting(self._outgoing.qsize())
        if self._screen.is_interactive:
            return
        await self._outgoing.join()
        while self._shown_seq < self._sent_seq:
            self._has_shown.clear()
            await self._has_shown.wait()

    async def _command(self, line: str) -> bool:
        """Do what a line with a slash says; return whether that is to end."""
        if line == "/quit":
            return True
        if line == "/users":
            try:
                presence = await self._room.presence()
                self._screen.note(f"{presence.count} here: {_list(presence.users, presence.count)}.")
            except CommandError as error:
                self._screen.note(f"Who is here is not told: {printable(str(error))}.")
        else:
            self._screen.note(_HELP if line == "/help" else f"There is no {printable(line)}: {_HELP}.")
        return False

    async def _send_all(self) -> None:
        while True:
            text = await self._outgoing.get()
            try:
                await self._send(text)
            finally:
                self._outgoing.task_done()
                self._screen.set_waiting(self._outgoing.qsize())

    async def _send(self, text: str) -> None:
        from ..client.encoding import new_key

        key, is_told = new_key(), False
        while True:
            try:
                ack = await self._room.trigger(self._event, {**self._data, self._field: text}, key=key)
            except CommandError as error:
                is_passing = error.code in ("RATE_LIMITED", "BACKPRESSURE", "STORE_UNAVAILABLE")
                why = f"{_shortened(text)} ({printable(str(error))}{_details(error)})"
                if not is_passing:
                    self.failed_count += 1
                    self._screen.note(f"{'Perhaps not' if error.is_outcome_unknown else 'Not'} sent: {why}")
                    return
                if not is_told:
                    is_told = True
                    self._screen.note(f"Not sent yet, trying again: {why}")
                # The same key: if an earlier try was recorded after all, this one is not.
                await asyncio.sleep(error.retry_after_seconds or _RETRY_SECONDS)
            else:
                self._sent_seq = max(self._sent_seq, ack.seq or 0)
                return

    async def _typing(self, is_typing: bool) -> None:
        if not self._can_type:
            return
        try:
            await self._room.set_typing(is_typing)
        except DialogueError:
            self._can_type = False  # The room has no such event.


def _details(error: CommandError) -> str:
    found = [detail for detail in error.details or () if isinstance(detail, dict)]
    said = [f"{'.'.join(map(str, detail.get('loc', ())))}: {detail.get('msg', '')}" for detail in found]
    return printable(f": {'; '.join(said)}") if said else ""


def _shortened(text: str) -> str:
    more = len(text) - _CHARACTERS_SHOWN
    return printable(text[:_CHARACTERS_SHOWN]) + (f"… and {more} characters more" if more > 0 else "")


def _list(users: list[str], count: int | None = None) -> str:
    shown = users[:_NAMES_SHOWN]
    more = max(count or 0, len(users)) - len(shown)
    return printable(", ".join(shown)) + (f" and {more} more" if more else "")
