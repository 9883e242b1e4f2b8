"""The agent session of the examples: streamed, cut, resumed in the middle, and folded from history."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from dialogue import DialogueClient, fold
from dialogue.client import Timing
from examples.agent_session import ANSWERS, Transcript, ask, make_dialogue
from tests.client.fake import until
from tests.server.harness import serve, wire

QUICK = Timing(backoff_seconds=0.01, backoff_limit_seconds=0.05)


class Slow:
    """A model that says a word each time it is allowed to."""

    def __init__(self) -> None:
        self.words: asyncio.Queue[str | None] = asyncio.Queue()

    async def __call__(self, question: str) -> AsyncIterator[str]:
        while (word := await self.words.get()) is not None:
            yield word

    def say(self, *words: str | None) -> None:
        for word in words:
            self.words.put_nowait(word)


@pytest.mark.parametrize("store", [None, "sqlite"])
async def test_a_client_that_was_cut_off_resumes_in_the_middle(store: str | None, tmp_path: Path) -> None:
    """The connection is lost in the middle of an answer: live and history give the same whole text."""
    model = Slow()
    dialogue = make_dialogue(store and f"sqlite:///{tmp_path / 'log.db'}", model=model)
    async with (
        serve(dialogue) as address,
        DialogueClient(f"http://{address}", auth={"user_id": "ann"}, timing=QUICK) as client,
    ):
        room = await client.join("session:1")
        transcript = Transcript(room)
        await room.trigger(ask, {"text": "hello?"})
        model.say("one ", "two ")
        await until(lambda: [one.text for one in transcript.answers] == ["one two "])
        assert not transcript.answers[0].is_complete
        connection = client._connection
        assert connection is not None
        connection.abort()
        model.say("three ", "four", None)
        await until(lambda: bool(transcript.answers[0].is_complete))
        assert [one.text for one in transcript.answers] == ["one two three four"]
        assert client._connection is not connection
        fresh = Transcript(room)
        await fresh.load()
        assert fresh.answers == transcript.answers
        assert fresh.answers[0].start is not None
        assert fresh.answers[0].start.data["question"] == "hello?"


async def test_since_gives_the_rest_of_an_answer(tmp_path: Path) -> None:
    """On the wire: a join with `since` from the middle, folded onto what was there, is the whole answer."""
    model = Slow()
    dialogue = make_dialogue(f"sqlite:///{tmp_path / 'log.db'}", model=model)
    async with serve(dialogue) as address:
        async with wire(address, "ann") as client:
            joined = await client.ask("join", room="session:1")
            await client.trigger("session:1", "ask", {"text": "hello?"})
            model.say("one ", "two ")
            seen = await client.until_events(4)
        model.say("three", None)
        await until(lambda: dialogue.health()["connections"] == 0)
        async with wire(address, "ann") as client:
            since = {"seq": seen[-1]["seq"], "epoch": joined["epoch"]}
            again = await client.ask("join", room="session:1", since=since)
            assert again["recovered"]
            missed = again["events"] + await client.until_events(2 - len(again["events"]))
        assert [event["seq"] for event in missed] == [5, 6]
        room = dialogue.room("session:1")
        events = [event for kind in ANSWERS.values() for event in await room.history(kind, 0, 100)]
        [folded] = fold(events, **ANSWERS)
        assert (folded.text, folded.is_complete) == ("one two three", True)


async def test_two_answers_at_once_and_one_that_breaks(caplog: pytest.LogCaptureFixture) -> None:
    """Answers given at the same time do not mix; one whose model fails stays unfinished, and is shown."""

    async def model(question: str) -> AsyncIterator[str]:
        for number in range(3):
            await asyncio.sleep(0)
            yield f"{question}{number} "
        if question == "bad":
            raise RuntimeError("the model failed")

    dialogue = make_dialogue(model=model)
    async with (
        serve(dialogue) as address,
        DialogueClient(f"http://{address}", auth={"user_id": "ann"}) as client,
    ):
        room = await client.join("session:1")
        transcript = Transcript(room)
        await asyncio.gather(*(room.trigger(ask, {"text": text}) for text in ("a", "b")))
        await until(lambda: [one.is_complete for one in transcript.answers] == [True, True])
        assert {one.text for one in transcript.answers} == {"a0 a1 a2 ", "b0 b1 b2 "}
        await room.trigger(ask, {"text": "bad"})
        await until(lambda: "the model failed" in caplog.text)
        await until(lambda: [one.text for one in transcript.answers][2:] == ["bad0 bad1 bad2 "])
        assert [one.is_complete for one in transcript.answers] == [True, True, False]
