"""The wire protocol, command by command, over a real WebSocket."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from dialogue import (
    Client,
    Dialogue,
    History,
    Identity,
    JoinDenied,
    Limits,
    RoomConfig,
    RoomHandle,
    Unauthenticated,
    define_event,
)
from dialogue.server import history

from ..attacks.held import HeldReads
from .harness import Refused, eventually, message, note, rooms, serve, typing_event, wire

pytestmark = pytest.mark.usefixtures("both_outboxes")


@pytest.fixture(params=["memory", "sqlite"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> str | None:
    """Both kinds of store: the protocol is the same."""
    return None if request.param == "memory" else f"sqlite:///{tmp_path / 'log.db'}"


async def test_connect_answers_who_one_is() -> None:
    """`connected` tells client and user, the protocol's version, the ping and the limits."""
    async with serve(Dialogue(rooms())) as address, wire(address, None) as client:
        answer = await client.ask("connect", auth={"userId": "alice"})
        assert answer["type"] == "connected"
        assert answer["user_id"] == "alice"
        assert answer["protocol"] == 1
        assert answer["ping_seconds"] == 25
        assert answer["limits"]["page_events"] == 200
        other = await client.ask("connect", auth={"user_id": "alice"})
        assert other["client_id"] == answer["client_id"]
        with pytest.raises(Refused, match="PERMISSION_DENIED"):
            await client.ask("connect", auth={"user_id": "bob"})


async def test_without_a_name_the_user_is_the_client() -> None:
    """In development mode a nameless client is known by its client id."""
    async with serve(Dialogue(rooms())) as address, wire(address, None) as client:
        answer = await client.ask("connect")
        assert answer["user_id"] == answer["client_id"]
        with pytest.raises(Refused, match="VALIDATION_FAILED"):
            await client.ask("connect", auth={"user_id": ""})


async def test_a_hook_in_a_thread_can_send_and_disconnect() -> None:
    """`Client.send` and `disconnect` of a `def` hook happen in the loop, in their order."""
    dialogue = Dialogue(rooms())

    @dialogue.on_joined
    def joined(client: Client, room: RoomHandle) -> None:
        for number in range(3):
            client.send("greeting", number)
        if room.room_id == "other":
            client.disconnect(code=4321)

    async with serve(dialogue) as address, wire(address) as client:
        await client.ask("join", room="general")

        def greetings() -> list[int]:
            return [message["data"] for message in client.messages if message["type"] == "message"]

        await client.until(lambda: len(greetings()) == 3)
        assert greetings() == [0, 1, 2]
        await client.ask("join", room="other")
        assert await client.until_closed() == 4321


async def test_commands_before_connect_are_refused() -> None:
    """Nothing but `connect` is taken first, and the connection goes on."""
    async with serve(Dialogue(rooms())) as address, wire(address, None) as client:
        with pytest.raises(Refused, match="UNAUTHENTICATED"):
            await client.ask("join", room="general")
        await client.ask("connect", auth={"user_id": "alice"})
        await client.ask("join", room="general")


async def test_a_client_that_never_connects_is_closed() -> None:
    """A socket that does not say `connect` in time is closed with 4001."""
    dialogue = Dialogue(rooms(), limits=Limits(connect_seconds=0.1))
    async with serve(dialogue) as address, wire(address, None) as client:
        assert await client.until_closed() == 4001


async def test_publish_reaches_everyone_with_seq_and_ack(store: str | None) -> None:
    """A recorded event reaches its sender and the others by one path; only the sender sees the key."""
    async with (
        serve(Dialogue(rooms(), store=store)) as address,
        wire(address, "a") as a,
        wire(address, "b") as b,
    ):
        await a.ask("join", room="general")
        await b.ask("join", room="general")
        ack = await a.trigger("general", "message", {"text": "hi"}, key="k1", meta={"m": 1})
        assert (ack["seq"], ack["room"]) == (1, "general")
        (own,) = await a.until_events(1)
        (other,) = await b.until_events(1)
        assert own["key"] == "k1"
        assert "key" not in other
        assert other == {key: value for key, value in own.items() if key != "key"}
        assert other["data"] == {"text": "hi"}
        assert other["meta"] == {"m": 1}
        assert other["from"] == "a"
        assert (other["seq"], other["id"], other["timestamp"]) == (1, ack["id"], ack["timestamp"])
        # The ack comes with the event, not before it.
        assert a.messages.index(own) < a.messages.index(ack)


async def test_a_retry_with_the_same_key_is_recorded_once(store: str | None) -> None:
    """Promise 3: the same key by the same user gets the first one's seq; another user's key is another key."""
    async with (
        serve(Dialogue(rooms(), store=store)) as address,
        wire(address, "a") as a,
        wire(address, "b") as b,
    ):
        for client in (a, b):
            await client.ask("join", room="general")
        first = await a.trigger("general", "message", 1, key="k")
        again = await a.trigger("general", "message", 1, key="k")
        other = await b.trigger("general", "message", 1, key="k")
        assert again["duplicate"] is True
        assert "duplicate" not in first
        assert (again["seq"], again["id"], again["timestamp"]) == (
            first["seq"],
            first["id"],
            first["timestamp"],
        )
        assert other["seq"] == 2
        assert len(await b.until_events(2)) == 2


async def test_ephemeral_events_skip_their_sender_and_are_never_stored(store: str | None) -> None:
    """Typing has no seq, reaches the others only, and leaves no trace in history."""
    async with (
        serve(Dialogue(rooms(), store=store)) as address,
        wire(address, "a") as a,
        wire(address, "b") as b,
    ):
        for client in (a, b):
            await client.ask("join", room="general")
        ack = await a.trigger("general", "typing", {"is_typing": True})
        assert ack["seq"] is None
        assert ack["id"] is None
        (event,) = await b.until_events(1)
        assert event["seq"] is None
        await a.trigger("general", "message", "x")
        assert [e["event"] for e in await a.until_events(1)] == ["message"]
        assert [e["event"] for e in await b.scroll("general")] == ["message"]


async def test_an_ephemeral_event_keeps_its_place_behind_recorded_ones(store: str | None) -> None:
    """A connection's commands take effect in the order sent, ephemeral ones too."""
    async with (
        serve(Dialogue(rooms(), store=store)) as address,
        wire(address, "a") as a,
        wire(address, "b") as b,
    ):
        for client in (a, b):
            await client.ask("join", room="general")
        commands = []
        for n in range(50):
            commands.append({"type": "trigger", "room": "general", "event": "message", "data": n})
            commands.append({"type": "trigger", "room": "general", "event": "typing", "data": n})
        await a.send_raw(json.dumps(commands))
        events = await b.until_events(100)
        assert [(e["event"], e["data"]) for e in events] == [(c["event"], c["data"]) for c in commands]


async def test_join_brings_the_newest_per_type_and_next_goes_on_exactly(store: str | None) -> None:
    """`next` of a join remembers how far each type was sent: the rarer type is not missed, the busier not doubled."""
    async with (
        serve(Dialogue(rooms(), store=store)) as address,
        wire(address, "a") as a,
        wire(address, "b") as b,
    ):
        await a.ask("join", room="general")
        for n in range(4):
            await a.trigger("general", "note", n)
        for n in range(5):
            await a.trigger("general", "message", n)
        joined = await b.ask("join", room="general")
        assert joined["recovered"] is None
        assert joined["seq"] == 9
        assert [(e["event"], e["data"]) for e in joined["events"]] == [
            ("note", 1), ("note", 2), ("note", 3), ("message", 2), ("message", 3), ("message", 4),
        ]  # fmt: skip
        rest: list[dict[str, Any]] = []
        cursor = joined["next"]
        while cursor:
            page = await b.ask("history", room="general", cursor=cursor, limit=2)
            rest = page["events"] + rest
            cursor = page["next"]
        assert [(e["event"], e["data"]) for e in rest] == [("note", 0), ("message", 0), ("message", 1)]


async def test_subscriptions_filter_and_answer_with_the_seq(store: str | None) -> None:
    """A filtered client sees seqs jump; subscribing says from which seq on events follow."""
    async with (
        serve(Dialogue(rooms(), store=store)) as address,
        wire(address, "a") as a,
        wire(address, "b") as b,
    ):
        await a.ask("join", room="general")
        joined = await b.ask("join", room="general", events=["note"])
        assert joined["subscriptions"] == ["note"]
        await a.trigger("general", "message", 1)
        await a.trigger("general", "note", 2)
        assert [e["seq"] for e in await b.until_events(1)] == [2]
        answer = await b.ask("subscribe", room="general", events=["message"])
        assert answer["seq"] == 2
        assert answer["subscriptions"] == ["message", "note"]
        await a.trigger("general", "message", 3)
        assert [e["seq"] for e in await b.until_events(2)] == [2, 3]
        answer = await b.ask("subscribe", room="general", events="*")
        assert answer["subscriptions"] == "*"
        answer = await b.ask("unsubscribe", room="general", events=["message"])
        assert answer["subscriptions"] == ["note", "typing"]
        await a.trigger("general", "message", 4)
        await a.trigger("general", "note", 5)
        assert [e["seq"] for e in await b.until_events(3)] == [2, 3, 5]
        answer = await b.ask("unsubscribe", room="general", events="*")
        assert answer["subscriptions"] == []


async def test_history_by_before_after_around_offset_and_kind(store: str | None) -> None:
    """Every way of asking gives the same events, oldest first."""
    log = define_event("log", history=History(limit=3), kind="system")
    config = RoomConfig(events=[message, log])
    async with serve(Dialogue({"r": config}, store=store)) as address, wire(address) as client:
        await client.ask("join", room="r")
        for n in range(1, 7):
            await client.trigger("r", "message" if n % 2 else "log", n)

        async def seqs(**fields: Any) -> list[int]:
            page = await client.ask("history", room="r", **fields)
            return [e["seq"] for e in page["events"]]

        assert await seqs() == [1, 2, 3, 4, 5, 6]
        assert await seqs(limit=2) == [5, 6]
        assert await seqs(before=4) == [1, 2, 3]
        assert await seqs(before=4, limit=1) == [3]
        assert await seqs(after=4) == [5, 6]
        assert await seqs(after=1, limit=2) == [2, 3]
        assert await seqs(around=3, limit=3) == [2, 3, 4]
        assert await seqs(event="message") == [1, 3, 5]
        assert await seqs(event="message", start=0, end=2) == [3, 5]
        assert await seqs(event="message", start=2, end=9) == [1]
        assert await seqs(event="message", start=3, end=9) == []
        assert await seqs(kind="system") == [2, 4, 6]
        page = await client.ask("history", room="r", after=1, limit=2)
        page = await client.ask("history", room="r", cursor=page["next"], limit=2)
        assert [e["seq"] for e in page["events"]] == [4, 5]
        back = await client.ask("history", room="r", cursor=page["previous"], limit=2)
        assert [e["seq"] for e in back["events"]] == [2, 3]
        page = await client.ask("history", room="r", around=3, limit=3)
        older = await client.ask("history", room="r", cursor=page["next"])
        newer = await client.ask("history", room="r", cursor=page["previous"])
        assert [e["seq"] for e in older["events"]] == [1]
        assert [e["seq"] for e in newer["events"]] == [5, 6]
        assert newer["next"] is None


@pytest.mark.parametrize(
    ("fields", "code"),
    [
        ({"limit": 0}, "INVALID_REQUEST"),
        ({"before": 1, "after": 1}, "INVALID_REQUEST"),
        ({"before": -1}, "INVALID_REQUEST"),
        ({"before": 2**53}, "INVALID_REQUEST"),
        ({"start": 0}, "INVALID_REQUEST"),
        ({"start": 2, "end": 1, "event": "message"}, "INVALID_REQUEST"),
        ({"start": 0, "end": 1}, "INVALID_REQUEST"),
        ({"event": "typing"}, "EVENT_NOT_ALLOWED"),
        ({"event": "nope"}, "EVENT_NOT_ALLOWED"),
        ({"kind": "nope"}, "INVALID_REQUEST"),
        ({"before": 1, "epoch": "other"}, "INVALID_REQUEST"),
        ({"cursor": "rubbish"}, "INVALID_REQUEST"),
        ({"cursor": ""}, "INVALID_REQUEST"),
        ({"cursor": "lQGwZWRiYTBjZDA1ZTFkYjA4OMMJkA"}, "INVALID_REQUEST"),
    ],
)
async def test_bad_history_bounds_are_refused(fields: dict[str, Any], code: str) -> None:
    """Contradictory, absurd or foreign bounds are told, and the connection goes on."""
    async with serve(Dialogue(rooms())) as address, wire(address) as client:
        await client.ask("join", room="general")
        with pytest.raises(Refused, match=code):
            await client.ask("history", room="general", **fields)
        await client.ask("history", room="general")


async def test_a_page_from_memory_does_not_wait_for_one_from_the_log(tmp_path: Path) -> None:
    """All reads of the connection wait for the log, and what is in memory is answered all the same."""
    store = HeldReads(tmp_path)
    dialogue = Dialogue(rooms(), store=store, limits=Limits(reads_in_flight=1))
    async with serve(dialogue) as address, wire(address) as client:
        await client.ask("join", room="general")
        for number in range(20):
            await client.trigger("general", "message", number, key=f"k{number}")
        store.may_read.clear()
        cold = await client.send("history", room="general", before=3)
        await eventually(lambda: store.reading)
        hot = await client.ask("history", room="general", event="message", limit=2)
        assert [(event["data"], event["key"]) for event in hot["events"]] == [(18, "k18"), (19, "k19")]
        store.may_read.set()
        assert [event["data"] for event in (await client.answer(cold))["events"]] == [0, 1]


async def test_many_pages_from_memory_leave_others_their_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    """A frame may ask for hundreds of pages: the loop comes round between them."""
    rounds = 0
    answered: Counter[int] = Counter()
    answer_nowait = history.answer_nowait

    def counted(*args: Any, **kwargs: Any) -> bytes | None:
        answered[rounds] += 1
        return answer_nowait(*args, **kwargs)

    async def go_round() -> None:
        nonlocal rounds
        while True:
            await asyncio.sleep(0)
            rounds += 1

    monkeypatch.setattr(history, "answer_nowait", counted)
    async with serve(Dialogue(rooms())) as address, wire(address) as client:
        await client.ask("join", room="general")
        await client.trigger("general", "message", 1)
        going = asyncio.create_task(go_round())
        commands = [{"type": "history", "ref": f"page-{number}", "room": "general"} for number in range(200)]
        await client.send_raw(json.dumps(commands))
        assert [event["data"] for event in (await client.answer("page-199"))["events"]] == [1]
        going.cancel()
    assert answered.total() == 200
    assert max(answered.values()) <= 16


async def test_membership_guards_everything() -> None:
    """Reading and publishing need membership now; leaving twice is told."""
    async with serve(Dialogue(rooms())) as address, wire(address) as client:
        for command in ("history", "leave"):
            with pytest.raises(Refused, match="NOT_JOINED"):
                await client.ask(command, room="general")
            with pytest.raises(Refused, match="ROOM_NOT_FOUND"):
                await client.ask(command, room="nowhere")
        with pytest.raises(Refused, match="NOT_JOINED"):
            await client.trigger("general", "message", 1)
        await client.ask("join", room="general")
        await client.ask("leave", room="general")
        with pytest.raises(Refused, match="NOT_JOINED"):
            await client.trigger("general", "message", 1)


async def test_unknown_rooms_and_events_are_refused() -> None:
    """What is not declared does not exist, in every command."""
    alert = define_event("alert", history=History(), publish="server")
    dialogue = Dialogue({"general": RoomConfig(events=[message, alert])})
    async with serve(dialogue) as address, wire(address) as client:
        for room in ("nowhere", "", "a/b", "x" * 300, "dm:{a}:{b}", "a\u0001"):
            with pytest.raises(Refused, match="ROOM_NOT_FOUND"):
                await client.ask("join", room=room)
        await client.ask("join", room="general")
        for event in ("nope", "$edit", "alert", "*", ""):
            with pytest.raises(Refused, match="EVENT_NOT_ALLOWED"):
                await client.trigger("general", event, 1)
        with pytest.raises(Refused, match="EVENT_NOT_ALLOWED"):
            await client.ask("subscribe", room="general", events=["nope"])
        with pytest.raises(Refused, match="EVENT_NOT_ALLOWED"):
            await client.ask("join", room="general", events=["nope"])
        await dialogue.trigger("general", alert, {"level": 1})
        assert (await client.until_events(1))[0]["from"] == "system"


async def test_rooms_lists_records() -> None:
    """`rooms` lists the declared rooms and the pattern rooms that one is in."""
    async with serve(Dialogue(rooms(max_size=3))) as address, wire(address) as client:
        await client.ask("join", room="dm:a:b")
        answer = await client.ask("rooms")
        assert [record["id"] for record in answer["rooms"]] == ["general", "other", "dm:a:b"]
        assert answer["rooms"][2] == {
            "id": "dm:a:b",
            "name": "Direct",
            "description": "",
            "size": 1,
            "max_size": 3,
            "created_by_id": None,
        }


async def test_a_full_room_refuses() -> None:
    """`max_size` counts connections; a place becomes free when one leaves."""
    async with (
        serve(Dialogue(rooms(max_size=1))) as address,
        wire(address, "a") as a,
        wire(address, "b") as b,
    ):
        await a.ask("join", room="general")
        with pytest.raises(Refused, match="ROOM_FULL"):
            await b.ask("join", room="general")
        await a.ask("join", room="general")
        await a.ask("leave", room="general")
        await b.ask("join", room="general")


async def test_any_event_rooms_take_new_names_up_to_a_limit() -> None:
    """`events="*"` admits any name, recorded, but not without bound."""
    dialogue = Dialogue({"r": RoomConfig(events="*")}, limits=Limits(event_names_per_room=3))
    async with serve(dialogue) as address, wire(address) as client:
        await client.ask("join", room="r")
        for name in ("a", "b", "c", "a"):
            await client.trigger("r", name, 1)
        with pytest.raises(Refused, match="EVENT_NOT_ALLOWED"):
            await client.trigger("r", "d", 1)
        assert [e["event"] for e in await client.scroll("r")] == ["a", "b", "c", "a"]


async def test_pings_and_silence() -> None:
    """After `ping_seconds` of silence a ping comes; after twice that the server closes."""
    async with serve(Dialogue(rooms(), limits=Limits(ping_seconds=0.1))) as address:
        async with wire(address, "a") as quiet:
            await quiet.until(lambda: any(m["type"] == "ping" for m in quiet.messages))
            assert await quiet.until_closed() == 1001
        async with wire(address, "b") as lively:
            for _ in range(3):
                seen = sum(m["type"] == "ping" for m in lively.messages)
                await lively.until(lambda seen=seen: sum(m["type"] == "ping" for m in lively.messages) > seen)  # type: ignore[misc]
                await lively.send_raw('{"type":"pong"}')
            assert lively.close_code is None


async def test_commands_without_ref_get_no_ok_but_errors() -> None:
    """A command without `ref` is silent unless it fails."""
    async with serve(Dialogue(rooms())) as address, wire(address) as client:
        await client.send_raw('{"type":"join","room":"general"}')
        await client.send_raw('{"type":"trigger","room":"general","event":"message","data":1}')
        await client.send_raw('{"type":"trigger","room":"general","event":"nope","data":1}')
        error = await client.until(lambda: next((m for m in client.messages if m["type"] == "error"), None))
        assert error["code"] == "EVENT_NOT_ALLOWED"
        await client.until_events(1)
        assert not [m for m in client.messages if m["type"] == "ok"]


async def test_authenticate_binds_the_identity() -> None:
    """The hook sees request and auth; who it returns is the sender of everything, whatever a payload says."""
    dialogue = Dialogue(rooms())
    seen: list[tuple[str | None, dict[str, Any]]] = []

    @dialogue.authenticate
    async def check(request: Any, auth: dict[str, Any]) -> Identity:
        seen.append((request.headers.get("x-test"), auth))
        if auth.get("token") != "secret":
            raise Unauthenticated("no such token")
        return Identity("alice", claims={"role": "admin"})

    async with serve(dialogue) as address:
        async with wire(address, None, additional_headers={"x-test": "1"}) as client:
            await client.ask("connect", auth={"token": "secret", "user_id": "mallory"})
            await client.ask("join", room="general")
            await client.trigger("general", "message", {"from": "mallory"}, **{"from": "mallory"})
            assert (await client.until_events(1))[0]["from"] == "alice"
        async with wire(address, None) as client:
            with pytest.raises(Refused, match="UNAUTHENTICATED"):
                await client.ask("connect", auth={"token": "wrong"})
            assert await client.until_closed() == 4001
    assert seen[0] == ("1", {"token": "secret", "user_id": "mallory"})


async def test_before_join_guards_and_gets_the_parameters() -> None:
    """A guard denies with its reason; a guard that fails keeps the door shut."""
    dialogue = Dialogue(rooms())

    @dialogue.before_join("dm:{a}:{b}")
    async def pair_only(client: Client, params: dict[str, str], purpose: str) -> None:
        assert purpose == "join"
        if client.user_id not in params.values():
            raise JoinDenied("not yours")

    @dialogue.before_join("other")
    def broken() -> None:
        raise RuntimeError("boom")

    async with serve(dialogue) as address, wire(address, "ann") as client:
        await client.ask("join", room="dm:ann:bob")
        with pytest.raises(Refused) as refused:
            await client.ask("join", room="dm:bob:eve")
        assert refused.value.message["code"] == "JOIN_DENIED"
        assert refused.value.message["message"] == "not yours"
        with pytest.raises(Refused, match="INTERNAL"):
            await client.ask("join", room="other")
        await client.ask("join", room="general")


async def test_hooks_see_connections_come_and_go() -> None:
    """`on_connected` may join; the notifying hooks run in order, and a failing one harms nothing."""
    dialogue = Dialogue(rooms())
    seen: list[str] = []
    done = asyncio.Event()

    @dialogue.on_connected
    async def connected(client: Client) -> None:
        seen.append(f"connected {client.user_id}")
        await client.join("general")
        client.send("welcome", {"to": client.user_id})

    @dialogue.on_joined
    def joined(client: Client, room: RoomHandle) -> None:
        seen.append(f"joined {room.room_id} {room.size}")
        raise RuntimeError("harmless")

    @dialogue.on_left
    async def left(client: Client, room: RoomHandle) -> None:
        seen.append(f"left {room.room_id} {room.size}")

    @dialogue.on_disconnected
    async def disconnected(client: Client) -> None:
        seen.append(f"disconnected {client.user_id}")
        done.set()

    async with serve(dialogue) as address:
        async with wire(address, "alice") as client:
            joined_message = await client.until(
                lambda: next((m for m in client.messages if m["type"] == "joined"), None)
            )
            assert "ref" not in joined_message
            welcome = await client.until(
                lambda: next((m for m in client.messages if m["type"] == "message"), None)
            )
            assert welcome == {"type": "message", "event": "welcome", "data": {"to": "alice"}}
        await asyncio.wait_for(done.wait(), 20)
    assert seen == ["connected alice", "joined general 1", "left general 0", "disconnected alice"]


async def test_the_server_can_remove_a_client() -> None:
    """`client.leave` ends the membership at once and tells the client."""
    dialogue = Dialogue(rooms())
    async with serve(dialogue) as address, wire(address) as client:
        await client.ask("join", room="general")
        (member,) = dialogue.room("general").participants()
        assert member.rooms == ["general"]
        assert member.subscriptions("general") == "*"
        await member.leave("general", reason="enough")
        left = await client.until(lambda: next((m for m in client.messages if m["type"] == "left"), None))
        assert left == {"type": "left", "room": "general", "reason": "enough"}
        with pytest.raises(Refused, match="NOT_JOINED"):
            await client.trigger("general", "message", 1)
        member.disconnect(reason="bye")
        assert await client.until_closed() == 1000


async def test_server_side_reads_and_publishes(store: str | None) -> None:
    """`trigger`, `history` and `page` of the application see what clients see."""
    dialogue = Dialogue(rooms(), store=store)
    async with dialogue.lifespan():
        room = dialogue.room("general")
        for n in range(8):
            ack = await room.trigger(message, {"n": n}, sender="bot", key=f"k{n}")
            assert ack.seq == n + 1
        again = await dialogue.trigger("general", "message", {"n": 0}, sender="bot", key="k0")
        assert again.is_duplicate
        newest = await room.history(message, 0, 3)
        assert [event.data["n"] for event in newest] == [7, 6, 5]
        page = await room.page(limit=3)
        assert [event.seq for event in page] == [6, 7, 8]
        if store is not None:
            assert [event.data["n"] for event in await room.history("message", 5, 99)] == [2, 1, 0]
            assert [event.seq for event in await room.page("message", before=4)] == [1, 2, 3]
        assert (await room.trigger(typing_event, True)).seq is None
        assert await room.history(note) == []
