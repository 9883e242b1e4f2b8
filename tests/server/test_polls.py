"""A room by long polls: answered when there is something, with a cursor that goes on exactly."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import httpx2
import pytest

from dialogue import Dialogue, Limits

from ..rates import UNRATED
from .harness import eventually, message, note, rooms, serve, typing_event, wire
from .streaming import open_stream
from .test_http import code, requests
from .test_streams import nothing_left


async def poll(http: httpx2.AsyncClient, *, status: int = 200, **query: Any) -> dict[str, Any]:
    answer = await http.get("/rooms/general/events", params=query, timeout=60)
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["cache-control"] == "no-store"
    body: dict[str, Any] = answer.json()
    return body


def cursor(answer: dict[str, Any]) -> dict[str, Any]:
    return {"after": answer["seq"], "epoch": answer["epoch"]}


async def waiting(dialogue: Dialogue, count: int) -> None:
    """Wait until so many polls wait."""
    followers = dialogue.hub().followers
    await eventually(lambda: sum(map(len, followers._by_room.values())) == count)
    await eventually(lambda: all(f._changed._waiters for part in followers._by_room.values() for f in part))


async def test_a_poll_without_a_cursor_is_a_join() -> None:
    """It answers at once, whatever it would wait, with the fields of `joined`."""
    dialogue = Dialogue(rooms())
    async with serve(dialogue) as address, wire(address, "ann") as ann:
        for n in range(5):
            await dialogue.trigger("general", message, n)
        joined = await ann.ask("join", room="general")
        async with httpx2.AsyncClient(base_url=f"http://{address}") as http:
            answer = await poll(http, wait_seconds=50, user_id="ann")
            assert answer == {key: value for key, value in joined.items() if key not in ("type", "ref")}
            assert [event["seq"] for event in answer["events"]] == [3, 4, 5]


async def test_a_poll_answers_when_something_comes() -> None:
    """Also one's own event, with its key; what is there already is answered at once."""
    dialogue = Dialogue(rooms())
    async with requests(dialogue) as http:
        first = await poll(http, wait_seconds=0)
        polling = asyncio.create_task(poll(http, wait_seconds=50, user_id="ann", **cursor(first)))
        await waiting(dialogue, 1)
        body = {"event": "message", "data": 1, "key": "k"}
        await http.post("/rooms/general/events?user_id=ann", json=body)
        answer = await polling
        assert [(event["data"], event["key"]) for event in answer["events"]] == [(1, "k")]
        assert (answer["seq"], answer["recovered"]) == (1, True)
        assert (await poll(http, wait_seconds=50, **cursor(first)))["events"][0]["seq"] == 1
        await nothing_left(dialogue)


async def test_a_quiet_room_answers_in_the_end() -> None:
    """Nothing, with a cursor that has moved past what was not asked for; what has no seq wakes nobody."""
    dialogue = Dialogue(rooms())
    async with requests(dialogue) as http:
        first = await poll(http, wait_seconds=0)
        query = {**cursor(first), "events": "note"}
        polling = asyncio.create_task(poll(http, wait_seconds=0.4, **query))
        await waiting(dialogue, 1)
        for n in range(3):
            await dialogue.trigger("general", message, n)
            await dialogue.trigger("general", typing_event, n)
        answer = await polling
        assert (answer["events"], answer["seq"], answer["recovered"]) == ([], 3, True)
        assert (await poll(http, wait_seconds=0, **query))["seq"] == 3
        polling = asyncio.create_task(poll(http, wait_seconds=50, **{**query, **cursor(answer)}))
        await waiting(dialogue, 1)
        await dialogue.trigger("general", message, 3)
        await dialogue.trigger("general", note, 4)
        assert [event["seq"] for event in (await polling)["events"]] == [5]


async def test_two_pollers_take_nothing_from_each_other() -> None:
    """The cursor is the state: both get everything after it."""
    dialogue = Dialogue(rooms())
    async with requests(dialogue) as http:
        query = cursor(await poll(http, wait_seconds=0))
        polls = [asyncio.create_task(poll(http, wait_seconds=50, user_id="ann", **query)) for _ in range(2)]
        await waiting(dialogue, 2)
        await dialogue.trigger("general", message, 1)
        one, other = [await task for task in polls]
        assert one == other
        assert [event["seq"] for event in one["events"]] == [1]


@pytest.mark.parametrize("is_durable", [True, False], ids=["sqlite", "memory"])
async def test_polls_one_after_the_other_miss_nothing(is_durable: bool, tmp_path: Path) -> None:
    """Or, where memory has forgotten, say so; more than is queued while one waits is found in the log."""
    store = f"sqlite:///{tmp_path}/chat.db" if is_durable else None
    dialogue = Dialogue(rooms(), store=store, limits=Limits(**UNRATED, outbox_bytes=4096))
    total = 300
    async with requests(dialogue) as http:
        answer = await poll(http, wait_seconds=0)
        start, seen = 0, [0]

        async def publish() -> None:
            for begin in range(0, total, 20):
                await asyncio.gather(
                    *(dialogue.trigger("general", message, "x" * 500) for _ in range(begin, begin + 20))
                )

        publishing = asyncio.create_task(publish())
        while seen[-1] < total:
            answer = await poll(http, wait_seconds=50, **cursor(answer))
            if answer["recovered"] is False:
                assert not is_durable
                start, seen = answer["seq"], [answer["seq"]]
            else:
                seen += [event["seq"] for event in answer["events"]]
                assert seen[-1] == answer["seq"]
        await publishing
        assert seen == list(range(start, total + 1))
        await nothing_left(dialogue)


async def test_a_poll_that_is_overrun_reads_the_log(tmp_path: Path) -> None:
    """What came at once was more than is queued."""
    dialogue = Dialogue(rooms(), store=f"sqlite:///{tmp_path}/chat.db")
    async with requests(dialogue) as http:
        query = cursor(await poll(http, wait_seconds=0))
        polling = asyncio.create_task(poll(http, wait_seconds=50, events="note", **query))
        await waiting(dialogue, 1)
        (follower,) = dialogue.hub().followers._by_room["general"]
        follower.fall_behind()  # with nothing that is asked for: it goes on waiting
        await waiting(dialogue, 1)
        follower.fall_behind()
        for n in range(10):
            await dialogue.trigger("general", note, n)
        answer = await polling
        assert [event["seq"] for event in answer["events"]] == list(range(1, answer["seq"] + 1))


async def test_a_poll_whose_access_ends_is_refused() -> None:
    """Taken out of the room, or the room deleted: nothing of it is told."""
    dialogue = Dialogue(rooms(), client_rooms=rooms()["general"])
    async with requests(dialogue) as http:
        query = cursor(await poll(http, wait_seconds=0))
        polling = asyncio.create_task(poll(http, status=403, wait_seconds=50, user_id="ann", **query))
        await waiting(dialogue, 1)
        await dialogue.remove_from_room("ann", "general")
        assert (await polling)["code"] == "JOIN_DENIED"
        await dialogue.create_room("made", name="Made")
        deleting = asyncio.create_task(http.get("/rooms/made/events", params={"wait_seconds": 50, **query}))
        await waiting(dialogue, 1)
        await dialogue.delete_room("made")
        assert code(await deleting, 404) == "ROOM_NOT_FOUND"
        await nothing_left(dialogue)


async def test_a_poll_whose_client_goes_leaves_nothing(caplog: pytest.LogCaptureFixture) -> None:
    """At once, and nothing is logged."""
    dialogue = Dialogue(rooms())
    async with requests(dialogue) as http:
        query = cursor(await poll(http, wait_seconds=0))
        caplog.clear()
        polling = asyncio.create_task(poll(http, wait_seconds=50, **query))
        await waiting(dialogue, 1)
        polling.cancel()
        await nothing_left(dialogue)
    assert not [record for record in caplog.records if record.levelname in ("WARNING", "ERROR")]


async def test_a_seq_without_an_epoch_is_of_the_present_one() -> None:
    """As for the history: what came after it is told, also as a stream; one that is still to come is none."""
    dialogue = Dialogue(rooms())
    async with serve(dialogue) as address, httpx2.AsyncClient(base_url=f"http://{address}") as http:
        for n in range(3):
            await dialogue.trigger("general", message, n)
        for after, is_recovered, seqs in ((1, True, [2, 3]), (3, True, []), (4, False, [1, 2, 3])):
            answer = await poll(http, wait_seconds=0, after=after)
            assert (answer["recovered"], [event["seq"] for event in answer["events"]]) == (is_recovered, seqs)
        async with open_stream(address, after=2) as stream:
            assert (stream.joined["recovered"], stream.seqs()) == (True, [3])


@pytest.mark.parametrize(
    ("query", "last_id"),
    [
        ("after=x", None),
        ("after=x&epoch=e", None),
        ("after=-1&epoch=e", None),
        ("after=1.5&epoch=e", None),
        ("after=9007199254740992&epoch=e", None),
        ("after=99999999999999999999&epoch=e", None),
        ("after=1&epoch=", None),
        ("epoch=e", None),
        ("after=1&after=2&epoch=e", None),
        ("after=1&epoch=e&epoch=f", None),
        ("", ""),
        ("", "rubbish"),
        ("", "e:"),
        ("", ":5"),
        ("", "e:x"),
        ("", "e:-1"),
        ("", "e:1:"),
        ("after=1&epoch=e", "rubbish"),
        ("wait_seconds=-1", None),
        ("wait_seconds=nan", None),
        ("wait_seconds=inf", None),
        ("wait_seconds=", None),
        ("wait_seconds=1e3", None),
        ("wait_seconds=1&wait_seconds=2", None),
        ("sync=-1", None),
        ("sync=x", None),
        ("events=*&events=message", None),
    ],
)
async def test_what_cannot_be_asked(query: str, last_id: str | None) -> None:
    """`INVALID_REQUEST`, and nothing of it is in the answer; nothing is left of it."""
    dialogue = Dialogue(rooms())
    transport = httpx2.ASGITransport(app=dialogue.app)
    async with dialogue.lifespan(), httpx2.AsyncClient(transport=transport, base_url="http://chat") as http:
        headers = {} if last_id is None else {"Last-Event-ID": last_id}
        answer = await http.get(f"/rooms/general/events?{query}", headers=headers)
        assert code(answer, 400) == "INVALID_REQUEST"
        assert "rubbish" not in answer.text
        assert code(await http.get("/rooms/general/events?events=secret"), 403) == "EVENT_NOT_ALLOWED"
        await nothing_left(dialogue)
