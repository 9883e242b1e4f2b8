"""An agent whose answers are streamed, and followed by clients that come and go.

::

    python examples/agent_session.py

serves on port 3000. An answer is recorded as a start, deltas and an end, so that a client that lost its connection in
the middle resumes in the middle, and one that comes later reads the same transcript from history.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterable, AsyncIterator, Callable
from typing import Any

from pydantic import BaseModel, Field

from dialogue import Dialogue, Event, Folded, History, RoomConfig, define_event, fold
from dialogue.client import Room


class Ask(BaseModel):
    text: str = Field(min_length=1, max_length=10_000)


class Started(BaseModel):
    id: str
    question: str


class Delta(BaseModel):
    id: str
    text: str


class Ended(BaseModel):
    id: str


ask = define_event("ask", schema=Ask, history=History(limit=100))
# publish="server": only the agent's own process writes answers, so the id in the data is enough to tell them apart.
started = define_event("answer.started", schema=Started, history=History(limit=100), publish="server")
delta = define_event("answer.delta", schema=Delta, history=History(limit=1000), publish="server")
ended = define_event("answer.ended", schema=Ended, history=History(limit=100), publish="server")
ANSWERS: dict[str, Any] = {"start": started, "delta": delta, "end": ended}


async def parrot(question: str) -> AsyncIterator[str]:
    """Stand in for a model: say the question again, word by word."""
    for word in question.split(" "):
        await asyncio.sleep(0)
        yield word + " "


async def answer(dialogue: Dialogue, room_id: str, question: str, chunks: AsyncIterable[str]) -> str:
    """Stream *chunks* into a room as one answer; return its id.

    If the chunks end with an error, the answer stays unfinished, and readers see it so.
    """
    answer_id = secrets.token_hex(8)
    await dialogue.trigger(room_id, started, Started(id=answer_id, question=question), sender="agent")
    async for chunk in chunks:
        await dialogue.trigger(room_id, delta, Delta(id=answer_id, text=chunk), sender="agent")
    await dialogue.trigger(room_id, ended, Ended(id=answer_id), sender="agent")
    return answer_id


def make_dialogue(store: Any = None, *, model: Callable[[str], AsyncIterable[str]] = parrot) -> Dialogue:
    """Return a Dialogue with a room per session, in which *model* answers what is asked."""
    room = RoomConfig(name="Session", events=[ask, started, delta, ended], sync_history_on_join=False)
    dialogue = Dialogue(rooms={"session:{id}": room}, store=store)
    answering: set[asyncio.Task[str]] = set()

    @dialogue.after_each(ask)
    async def reply(room: Any, event: Event[Ask]) -> None:
        question = event.model.text
        # A task, for after_each has a time limit and is called for one event at a time; held, or it could be collected.
        task = asyncio.create_task(answer(dialogue, room.room_id, question, model(question)))
        answering.add(task)
        task.add_done_callback(finished)

    def finished(task: asyncio.Task[str]) -> None:
        answering.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            dialogue.logger.error("an answer broke off", exc_info=error)

    return dialogue


class Transcript:
    """The answers of a session, live: what history has, and what comes while one watches."""

    def __init__(self, room: Room) -> None:
        self.answers: list[Folded] = []
        self._room = room
        for event in ANSWERS.values():
            room.on(event, self._add)

    def _add(self, event: Event[Any]) -> None:
        # Live events and pages may overlap: an event is taken once.
        self.answers = fold([event], **ANSWERS, onto=self.answers)

    async def load(self) -> None:
        """Add everything that the history has, an answer that is being given included."""
        self.answers = fold([event async for event in self._room.scroll()], **ANSWERS, onto=self.answers)


if __name__ == "__main__":
    import uvicorn

    uvicorn.run(make_dialogue("sqlite:///sessions.db").app, port=3000)
