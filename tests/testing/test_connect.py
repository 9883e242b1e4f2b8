"""`dialogue.testing.connect`: the real client and the real session, joined without a port."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from fastapi import FastAPI

from dialogue import (
    ConfigError,
    ConnectionLost,
    Dialogue,
    DialogueClient,
    Event,
    History,
    Identity,
    JoinDenied,
    Limits,
    RoomConfig,
    Unauthenticated,
    ValidationFailed,
    define_event,
)
from dialogue.testing import HandshakeRefused, connect, link

from ..server.harness import eventually

message = define_event("message", history=History(limit=100))
typing_event = define_event("typing")


def make_dialogue(**options: Any) -> Dialogue:
    return Dialogue(
        {
            "general": RoomConfig(events=[message, typing_event], sync_history_on_join=10),
            "staff": RoomConfig(events=[message]),
        },
        **options,
    )


@asynccontextmanager
async def listening(dialogue: Dialogue, user_id: str) -> AsyncIterator[tuple[DialogueClient, list[Any]]]:
    """A client in "general", and the data of the messages that it hears; "reset" for a reset."""
    async with connect(dialogue, user_id=user_id) as client:
        heard: list[Any] = []
        room = await client.join("general")
        room.on(message, lambda event: heard.append(event.data))
        room.on_reset(lambda: heard.append("reset"))
        yield client, heard


async def test_two_users_talk_and_share_the_lifespan() -> None:
    """Entered with the first connection, left with the last; between them one server."""
    dialogue = make_dialogue()
    async with listening(dialogue, "alice") as (alice, heard):
        assert dialogue.is_running
        async with connect(dialogue, user_id="bob") as bob:
            room = await bob.join("general")
            assert (await room.trigger(message, {"text": "hello"})).seq == 1
            assert [event.sender for event in await room.get_history(message)] == ["bob"]
            await eventually(lambda: heard == [{"text": "hello"}])
            assert {client.user_id for client in dialogue.clients()} == {"alice", "bob"}
        assert dialogue.is_running
        assert alice.user_id == "alice"
    assert not dialogue.is_running


async def test_connections_of_several_tasks_share_one_lifespan() -> None:
    """Whoever is first enters it, whoever is last leaves it, in whatever task; and it is entered again after."""
    dialogue = make_dialogue()
    together = asyncio.Barrier(5)

    async def one(number: int) -> str:
        async with connect(dialogue, user_id=f"user{number}") as client:
            room = await client.join("general")
            await together.wait()
            return str(room.epoch)

    for _ in range(3):
        assert len(set(await asyncio.gather(*map(one, range(5))))) == 1
        assert not dialogue.is_running


async def test_a_lifespan_that_was_entered_before_is_left_alone() -> None:
    """The connection joins it, and does not end it."""
    dialogue = make_dialogue()
    async with dialogue.lifespan():
        async with connect(dialogue, user_id="alice"):
            pass
        assert dialogue.is_running


async def test_a_start_that_fails_is_told_to_each_connection() -> None:
    """Nothing is left running, and a later start is not hindered."""
    dialogue = make_dialogue()
    with dialogue.override(on_load=list):
        outcomes = await asyncio.gather(
            *(connect(dialogue, user_id="alice").__aenter__() for _ in range(2)), return_exceptions=True
        )
    assert [type(outcome) for outcome in outcomes] == [ConfigError, ConfigError]
    async with connect(dialogue, user_id="alice"):
        pass


async def test_a_cancelled_connection_leaves_the_lifespan() -> None:
    """At whichever await it is cancelled."""
    dialogue = make_dialogue()

    async def hang() -> None:
        async with connect(dialogue, user_id="alice"):
            await asyncio.Event().wait()

    for turns in range(0, 40, 3):
        task = asyncio.create_task(hang())
        for _ in range(turns):
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait([task])
        await eventually(lambda: not dialogue.is_running)


async def test_the_applications_own_lifespan_and_state() -> None:
    """Entered first it is the one that runs, and hooks find its state."""
    dialogue = make_dialogue()
    seen: list[Any] = []

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        app.state.name = "mine"
        yield

    @dialogue.before_join
    async def guard(context: Any) -> None:
        seen.append(context.app.state.name)

    app = FastAPI(lifespan=lifespan)
    app.include_router(dialogue.router, prefix="/chat")
    async with app.router.lifespan_context(app), connect(dialogue, user_id="alice") as alice:
        await alice.join("general")
    assert seen == ["mine"]


async def test_without_a_user_the_server_names_the_client() -> None:
    """As over a socket in development mode."""
    async with connect(make_dialogue()) as client:
        assert client.user_id == client.client_id


async def test_a_user_is_who_the_test_says_without_asking_authenticate() -> None:
    """Claims and meta reach the hooks, new ones for each connection."""
    dialogue = make_dialogue()
    seen: list[Any] = []

    @dialogue.authenticate
    async def authenticate(auth: Any) -> Identity:
        raise Unauthenticated

    @dialogue.on_connected
    async def connected(client: Any) -> None:
        seen.append((client.user_id, dict(client.claims), dict(client.meta)))
        client.claims.clear()

    async with connect(dialogue, user_id="alice", claims={"role": "staff"}, meta={"plan": "free"}) as alice:
        link(alice).cut()
        await eventually(lambda: len(seen) == 2)
    assert seen == [("alice", {"role": "staff"}, {"plan": "free"})] * 2


async def test_authenticate_is_asked_with_auth_and_sees_the_request() -> None:
    """Headers, cookies, query and auth are those that the test gives, for each connection."""
    dialogue = make_dialogue()
    tokens = iter(["first", "second"])

    @dialogue.authenticate
    async def authenticate(request: Any, auth: dict[str, Any]) -> Identity:
        parts = request.headers["X-Team"], request.cookies["session"], request.query_params["lang"]
        return Identity("-".join([*parts, auth["token"]]))

    async with connect(
        dialogue,
        auth=lambda: {"token": next(tokens)},
        headers={"X-Team": "red"},
        cookies={"session": "s1", "other": "2"},
        query={"lang": "en & de"},
    ) as client:
        assert client.user_id == "red-s1-en & de-first"


async def test_a_refused_user_ends_with_4001() -> None:
    """What `authenticate` says reaches the test."""
    dialogue = make_dialogue()

    @dialogue.authenticate
    async def authenticate(auth: Any) -> Identity:
        raise Unauthenticated("no token")

    with pytest.raises(Unauthenticated, match="no token"):
        async with connect(dialogue, auth={}):
            pass
    assert not dialogue.is_running


async def test_a_user_that_cannot_be_one_and_contradictions_are_refused() -> None:
    """A mistake in the test is told as such."""
    dialogue = make_dialogue()
    with pytest.raises(ValidationFailed):
        async with connect(dialogue, user_id="system"):
            pass
    mistakes: list[dict[str, Any]] = [{"user_id": "a", "auth": {}}, {"claims": {}}, {"auth": {}, "meta": {}}]
    for mistake in mistakes:
        with pytest.raises(ValueError, match="user_id"):
            async with connect(dialogue, **mistake):
                pass
    assert not dialogue.is_running


async def test_a_foreign_origin_is_refused_at_once() -> None:
    """The check of the origin is the real one."""
    dialogue = make_dialogue()
    with pytest.raises(HandshakeRefused) as refused:
        async with connect(dialogue, user_id="alice", headers={"Origin": "https://evil.example"}):
            pass
    assert refused.value.code == 1008


async def test_resume_after_a_cut_brings_what_was_missed_once_and_in_order() -> None:
    """Over many losses, in both directions."""
    dialogue = make_dialogue()
    async with listening(dialogue, "bob") as (bob, heard), connect(dialogue, user_id="alice") as alice:
        room = await alice.join("general")
        acks = []
        for number in range(60):
            acks.append(asyncio.create_task(room.trigger(message, number)))
            if number % 7 == 3:
                link(bob).cut()
            if number % 11 == 5:
                await asyncio.sleep(0)
                link(alice).cut()
        assert [(await ack).seq for ack in acks] == list(range(1, 61))
        await eventually(lambda: len(heard) >= 60)
        assert heard == list(range(60))


async def test_while_a_link_is_down_the_client_is_away_and_resumes_after() -> None:
    """Both ends are told of a loss without a close frame."""
    dialogue = make_dialogue()
    gone: list[str] = []
    dialogue.on_disconnected(lambda client: gone.append(client.user_id))
    async with listening(dialogue, "alice") as (alice, heard):
        with link(alice).down():
            await eventually(lambda: gone == ["alice"] and alice.state == "resuming")
            assert link(alice).is_held
            await dialogue.trigger("general", message, "missed")
            assert dialogue.clients() == []
        await eventually(lambda: heard == ["missed"])
        assert alice.state == "connected"


async def test_a_held_link_loses_nothing() -> None:
    """Neither what the client sends nor what it is sent arrives before the release; then all of it, in order."""
    dialogue = make_dialogue()
    async with listening(dialogue, "alice") as (alice, heard):
        line = link(alice)
        line.hold()
        for number in range(40):
            await dialogue.trigger("general", message, number)
        sending = asyncio.create_task(alice.room("general").trigger(message, "mine"))
        newest = await dialogue.room("general").history(message, 0, 1)
        assert (heard, sending.done(), newest[0].data) == ([], False, 39)
        line.release()
        assert (await sending).seq == 41
        await eventually(lambda: len(heard) == 41)
        assert heard == [*range(40), "mine"]


async def test_a_reader_that_is_too_slow_is_closed_with_4008_and_resumes() -> None:
    """The queues are bounded, so that the outbox fills as over a socket."""
    dialogue = make_dialogue(limits=Limits(outbox_bytes=20_000))
    async with listening(dialogue, "alice") as (alice, heard):
        lost: list[None] = []
        alice.on_disconnect(lambda: lost.append(None))
        link(alice).hold()
        for number in range(40):
            await dialogue.trigger("general", message, {"n": number, "text": "x" * 1000})
        sample = dialogue.metrics.registry.get_sample_value
        await eventually(lambda: sample("dialogue_closes_total", {"code": "4008"}) == 1)
        link(alice).release()
        await eventually(lambda: len(heard) == 40)
        assert [data["n"] for data in heard] == list(range(40))
        assert lost == [None]


async def test_handlers_that_hold_a_client_up_are_felt_by_the_server() -> None:
    """A client that does not read is as slow as over a socket; it comes back for what it has missed."""
    dialogue = make_dialogue(limits=Limits(outbox_bytes=20_000))
    may_go_on = asyncio.Event()
    heard: list[int] = []

    async def slow(event: Event[Any]) -> None:
        await may_go_on.wait()
        heard.append(event.data["n"])

    async with connect(dialogue, user_id="alice", queue_events=2, stall_seconds=1000) as alice:
        (await alice.join("general")).on(message, slow)
        for number in range(60):
            await dialogue.trigger("general", message, {"n": number, "text": "x" * 1000})
        sample = dialogue.metrics.registry.get_sample_value
        await eventually(lambda: sample("dialogue_closes_total", {"code": "4008"}) == 1)
        assert heard == []
        may_go_on.set()
        await eventually(lambda: len(heard) == 60)
        assert heard == list(range(60))


async def test_final_close_codes_reach_the_client() -> None:
    """What the server closes with is what the client is told; it does not come back."""
    dialogue = make_dialogue()
    async with connect(dialogue, user_id="alice") as alice:
        ended: list[Exception] = []
        alice.on_error(ended.append)
        (client,) = dialogue.clients()
        client.disconnect(code=4002, reason="that was it")
        await eventually(lambda: ended)
        assert isinstance(ended[0], ConnectionLost)
        assert (ended[0].code, ended[0].reason) == (4002, "that was it")
        assert alice.state == "offline"


async def test_a_client_comes_back_with_other_credentials_once_its_own_have_ended() -> None:
    """4001 on a connection that stood: it asks for credentials again, as over a socket."""
    dialogue = make_dialogue()
    async with connect(dialogue, user_id="alice") as alice:
        lost: list[None] = []
        alice.on_disconnect(lambda: lost.append(None))
        (client,) = dialogue.clients()
        client.disconnect(code=4001, reason="the credentials have expired")
        await eventually(lambda: lost and alice.state == "connected")


async def test_a_frame_that_is_too_large_for_the_client_ends_the_connection() -> None:
    """As over a socket: it comes back."""
    dialogue = make_dialogue()
    async with connect(dialogue, user_id="alice", max_frame_bytes=2000) as alice:
        lost: list[None] = []
        alice.on_disconnect(lambda: lost.append(None))
        (client,) = dialogue.clients()
        client.send("big", "x" * 3000)
        await eventually(lambda: lost and alice.state == "connected")


async def test_hooks_of_the_end_have_run_when_the_context_is_left() -> None:
    """A test can look at what they did, without waiting."""
    dialogue = make_dialogue()
    told: list[str] = []

    @dialogue.on_left
    async def left(client: Any) -> None:
        await asyncio.sleep(0)
        told.append("left")

    @dialogue.on_disconnected
    async def disconnected(client: Any) -> None:
        await asyncio.sleep(0)
        told.append("disconnected")

    async with dialogue.lifespan():
        async with connect(dialogue, user_id="alice") as alice:
            await alice.join("general")
            link(alice).hold()
        assert told == ["left", "disconnected"]


async def test_a_server_that_stops_and_starts_again_gets_its_client_back() -> None:
    """1001 at the stop, refused while there is none, a reset at the next life of a log in memory."""
    dialogue = make_dialogue()
    async with dialogue.lifespan():
        stack = listening(dialogue, "alice")
        alice, heard = await stack.__aenter__()
    await eventually(lambda: alice.state == "resuming")
    async with dialogue.lifespan():
        await eventually(lambda: heard == ["reset"])
        await stack.__aexit__(None, None, None)


async def test_an_error_in_the_body_passes_unchanged() -> None:
    """And ends everything first."""
    dialogue = make_dialogue()
    with pytest.raises(ZeroDivisionError):
        async with connect(dialogue, user_id="alice"):
            raise ZeroDivisionError
    assert not dialogue.is_running


async def test_another_event_loop_is_told() -> None:
    """A dialogue lives in one loop: a client of another would not be safe."""
    dialogue = make_dialogue()

    async def elsewhere() -> None:
        async with connect(dialogue, user_id="alice"):
            pass

    async with dialogue.lifespan():
        with pytest.raises(RuntimeError, match="another event loop"):
            await asyncio.to_thread(asyncio.run, elsewhere())


async def test_a_client_over_the_network_has_no_link() -> None:
    """Told as such."""
    with pytest.raises(ValueError, match="its socket is a real one"):
        link(DialogueClient("http://127.0.0.1:1"))


async def test_guards_are_asked() -> None:
    """A connection without a port is not let past them."""
    dialogue = make_dialogue()

    @dialogue.before_join("staff")
    async def staff_only(client: Any) -> None:
        if client.claims.get("role") != "staff":
            raise JoinDenied("staff only")

    async with connect(dialogue, user_id="alice") as alice:
        with pytest.raises(JoinDenied, match="staff only"):
            await alice.join("staff")
    async with connect(dialogue, user_id="bob", claims={"role": "staff"}) as bob:
        assert (await bob.join("staff")).is_joined


async def test_ephemeral_events_and_messages_pass() -> None:
    """Whatever a socket carries."""
    dialogue = make_dialogue()
    async with connect(dialogue, user_id="alice") as alice, connect(dialogue, user_id="bob") as bob:
        typed: asyncio.Queue[Event[Any]] = asyncio.Queue()
        told: asyncio.Queue[Any] = asyncio.Queue()
        (await alice.join("general")).on(typing_event, typed.put_nowait)
        alice.on("notice", told.put_nowait)
        await (await bob.join("general")).trigger(typing_event)
        assert (await typed.get()).sender == "bob"
        next(client for client in dialogue.clients() if client.user_id == "alice").send("notice", "äöü")
        assert await told.get() == "äöü"
