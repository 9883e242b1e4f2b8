"""`Dialogue.override`: another store, archive, limits or hooks for a while."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from dialogue import (
    Blocked,
    ConfigError,
    Dialogue,
    Event,
    History,
    Hooks,
    Identity,
    Limits,
    MemoryStore,
    MessageTooLarge,
    RoomConfig,
    SQLArchive,
    Unauthenticated,
    define_event,
)
from dialogue.testing import FaultyStore, connect

message = define_event("message", history=History(limit=5))
note = define_event("note", history=History(limit=5))


def refuse(auth: Any) -> Identity:
    raise Unauthenticated


def block(event: Event[Any]) -> None:
    raise Blocked("not now")


def make_dialogue(folder: Path) -> Dialogue:
    return Dialogue(
        {"general": RoomConfig(events=[message, note])},
        store=f"sqlite:///{folder / 'chat.db'}",
        hooks=Hooks(authenticate=refuse),
    )


async def test_the_store_is_another_one_meanwhile(tmp_path: Path) -> None:
    """The application's own is not even opened; afterwards it is back."""
    dialogue = make_dialogue(tmp_path)
    own = dialogue.store
    with dialogue.override(store=FaultyStore(MemoryStore())) as same:
        assert same is dialogue
        async with dialogue.lifespan():
            assert (await dialogue.trigger("general", message, 1)).seq == 1
    assert dialogue.store is own
    assert not (tmp_path / "chat.db").exists()
    with dialogue.override(store=None):
        assert isinstance(dialogue.store, MemoryStore)
    with dialogue.override(store=f"sqlite:///{tmp_path / 'other.db'}"):
        async with dialogue.lifespan():
            pass
    assert (tmp_path / "other.db").exists()


async def test_a_hook_is_taken_away_or_replaced_meanwhile(tmp_path: Path) -> None:
    """None removes it, a function takes its place; the others stay."""
    dialogue = make_dialogue(tmp_path)
    with dialogue.override(store=None, authenticate=None):
        assert dialogue.is_development
        async with connect(dialogue, auth={"user_id": "alice"}) as client:
            assert client.user_id == "alice"
    with dialogue.override(store=None, authenticate=lambda auth: Identity("bob")):
        async with connect(dialogue, auth={}) as client:
            assert client.user_id == "bob"
    with dialogue.override(store=None), pytest.raises(Unauthenticated):
        async with connect(dialogue, auth={}):
            pass
    assert not dialogue.is_development


async def test_one_hook_takes_the_place_of_all_of_its_name(tmp_path: Path) -> None:
    """Also of those that are narrowed to an event; what is registered meanwhile goes in the end."""
    dialogue = make_dialogue(tmp_path)
    dialogue.before_each(message)(block)
    dialogue.before_each(note)(block)
    with dialogue.override(store=None, before_each=lambda event: event.replace(data="changed")):
        async with dialogue.lifespan():
            for event in (message, note):
                await dialogue.trigger("general", event, "mine")
                (found,) = await dialogue.room("general").history(event)
                assert found.data == "changed"
    with dialogue.override(store=None, before_each=None):
        dialogue.before_each(note)(block)
        async with dialogue.lifespan():
            await dialogue.trigger("general", message, "mine")
            with pytest.raises(Blocked):
                await dialogue.trigger("general", note, "mine")
    with dialogue.override(store=None):
        async with dialogue.lifespan():
            with pytest.raises(Blocked):
                await dialogue.trigger("general", message, "mine")


async def test_limits_and_archive_meanwhile(tmp_path: Path) -> None:
    """They take effect, and are those of before afterwards."""
    dialogue = make_dialogue(tmp_path)
    before = dialogue.limits
    archive = SQLArchive(f"sqlite:///{tmp_path / 'archive.db'}", create=True)
    with dialogue.override(store=None, limits=Limits(message_bytes=300), archive=archive):
        async with dialogue.lifespan():
            with pytest.raises(MessageTooLarge):
                await dialogue.trigger("general", message, "x" * 400)
            for number in range(9):
                await dialogue.trigger("general", message, number)
    assert (tmp_path / "archive.db").exists()
    assert dialogue.limits is before
    with dialogue.override(limits=None):
        assert dialogue.limits == Limits()


def test_overrides_nest_and_end_with_errors(tmp_path: Path) -> None:
    """Each restores what it found, also when the block raises."""
    dialogue = make_dialogue(tmp_path)
    own = dialogue.store
    outer, inner = MemoryStore(), MemoryStore()

    def fail() -> None:
        with dialogue.override(store=inner, authenticate=refuse):
            assert (dialogue.store, dialogue.is_development) == (inner, False)
            raise ZeroDivisionError

    with dialogue.override(store=outer, authenticate=None):
        with pytest.raises(ZeroDivisionError):
            fail()
        assert (dialogue.store, dialogue.is_development) == (outer, True)
    assert (dialogue.store, dialogue.is_development) == (own, False)


async def test_a_server_that_runs_is_not_changed(tmp_path: Path) -> None:
    """It was started with what it has; nor does an override that ends before it close another store."""
    dialogue = make_dialogue(tmp_path)
    override = dialogue.override(store=None)
    override.__enter__()
    async with dialogue.lifespan():
        with pytest.raises(ConfigError, match="running"), dialogue.override(authenticate=None):
            pass
        override.__exit__(None, None, None)
        assert (await dialogue.trigger("general", message, 1)).seq == 1
    async with dialogue.lifespan():
        assert await dialogue.room("general").history(message) == []


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"before_joined": None}, TypeError),
        ({"authenticate": "nobody"}, ConfigError),
        ({"authenticate": lambda password: None}, ConfigError),
        ({"store": 7}, ConfigError),
        ({"archive": "sqlite:///archive.db"}, ConfigError),
    ],
    ids=["unknown", "no function", "parameter", "store", "archive"],
)
def test_mistakes_change_nothing(tmp_path: Path, options: dict[str, Any], error: type[Exception]) -> None:
    """They are told before anything is replaced."""
    dialogue = make_dialogue(tmp_path)
    own = dialogue.store
    with pytest.raises(error), dialogue.override(**{"limits": Limits(message_bytes=300), **options}):
        pass
    assert (dialogue.store, dialogue.limits, dialogue.is_development) == (own, Limits(), False)
