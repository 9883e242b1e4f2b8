"""Where a chat is shown and lines come from: a terminal with a prompt, or a pipe."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncGenerator, Callable, Coroutine
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Protocol

from .lines import standard_input
from .output import note, show

if TYPE_CHECKING:
    from prompt_toolkit import PromptSession

_SURROGATES = re.compile("[\ud800-\udfff]")

OnTyping = Callable[[bool], Coroutine[Any, Any, None]]


class Screen(Protocol):
    """What a chat needs of one. All text is safe to print already."""

    is_interactive: bool
    """Whether someone is there to end it; otherwise the end of the lines does, once all are sent."""

    def show(self, *parts: tuple[str, str]) -> None:
        """Print a line, in parts with their styles."""

    def note(self, text: str) -> None:
        """Print a line that is no message."""

    def set_state(self, state: str) -> None:
        """Show the state of the connection."""

    def set_typing(self, users: list[str]) -> None:
        """Show who is typing."""

    def set_waiting(self, count: int) -> None:
        """Show how many lines are not sent yet."""

    def lines(self, on_typing: OnTyping) -> AsyncGenerator[str, None]:
        """Yield what is entered, until the end of it."""


class Pipe:
    """Lines in, lines out; what is no message goes to standard error."""

    is_interactive = False

    def show(self, *parts: tuple[str, str]) -> None:
        """See `Screen`."""
        show(*parts)

    def note(self, text: str) -> None:
        """See `Screen`."""
        note(text)

    def set_state(self, state: str) -> None:
        """Told by notes."""

    def set_typing(self, users: list[str]) -> None:
        """Not told."""

    def set_waiting(self, count: int) -> None:
        """Not told."""

    async def lines(self, on_typing: OnTyping) -> AsyncGenerator[str, None]:
        """See `Screen`."""
        async for line in standard_input():
            yield line


class Terminal:
    """A prompt in the last line, which stays while messages are printed above it."""

    is_interactive = True

    def __init__(self) -> None:
        from prompt_toolkit import PromptSession

        self._state = "connecting"
        self._typing: list[str] = []
        self._waiting_count = 0
        # What is entered is shown when it comes back from the server, in its place.
        self._session: PromptSession[str] = PromptSession(
            "> ", erase_when_done=True, bottom_toolbar=self._toolbar, reserve_space_for_menu=0
        )
        self._tasks: set[asyncio.Task[None]] = set()

    def show(self, *parts: tuple[str, str]) -> None:
        """See `Screen`."""
        from prompt_toolkit import print_formatted_text
        from prompt_toolkit.formatted_text import FormattedText

        styles = {"dim": "ansibrightblack", "bold cyan": "bold ansicyan", "bold green": "bold ansigreen"}
        print_formatted_text(FormattedText([(styles.get(style, ""), text) for text, style in parts]))

    def note(self, text: str) -> None:
        """See `Screen`."""
        self.show((f"* {text}", "dim"))

    def set_state(self, state: str) -> None:
        """See `Screen`."""
        self._state = state
        self._session.app.invalidate()

    def set_typing(self, users: list[str]) -> None:
        """See `Screen`."""
        self._typing = users
        self._session.app.invalidate()

    def set_waiting(self, count: int) -> None:
        """See `Screen`."""
        self._waiting_count = count
        self._session.app.invalidate()

    def _toolbar(self) -> str:
        parts = [self._state]
        if self._waiting_count:
            parts.append(f"{self._waiting_count} not sent yet")
        if self._typing:
            parts.append(f"{', '.join(self._typing[:3])} typing")
        return " · ".join(parts)

    async def lines(self, on_typing: OnTyping) -> AsyncGenerator[str, None]:
        """See `Screen`."""
        from prompt_toolkit.patch_stdout import patch_stdout

        def on_text(buffer: Any) -> None:
            is_typing = bool(buffer.text) and not buffer.text.startswith("/")
            task = asyncio.get_running_loop().create_task(on_typing(is_typing))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

        self._session.default_buffer.on_text_changed += on_text
        try:
            with patch_stdout(), suppress(EOFError, KeyboardInterrupt):
                while True:
                    # Bytes that are no UTF-8 come as halves of surrogate pairs.
                    yield _SURROGATES.sub("\ufffd", await self._session.prompt_async())
        finally:
            self._session.default_buffer.on_text_changed -= on_text
            for task in self._tasks:
                task.cancel()
