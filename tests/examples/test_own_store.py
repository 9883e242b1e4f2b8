"""The store of the examples passes the public contract, and does what it is for."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from dialogue import (
    Dialogue,
    History,
    MemoryStore,
    RoomConfig,
    SQLStore,
    Store,
    StoreUnavailable,
    define_event,
)
from dialogue.testing.store_contract import StoreContract, decoded, draft
from examples.own_store import SealedStore

ROOT = Path(__file__).parents[2]


def sealing(inner: Store, key: int = 0x55) -> SealedStore:
    """Seal with something that hides no secret and whose other keys give no JSON."""
    scramble = bytes.maketrans(bytes(range(256)), bytes(byte ^ key for byte in range(256)))
    return SealedStore(
        inner, seal=lambda text: text.translate(scramble), unseal=lambda text: text.translate(scramble)
    )


class TestSealedMemory(StoreContract):
    """The contract over memory with sealed payloads; over SQLite, the tests that the how-to shows run it."""

    is_durable = False

    def make(self, folder: Path, clock: Callable[[], int] | None = None) -> Store:
        return sealing(MemoryStore() if clock is None else MemoryStore(clock=clock))


def contents(folder: Path) -> bytes:
    """Return everything that the files of *folder* hold."""
    return b"".join(file.read_bytes() for file in folder.iterdir())


async def test_what_is_stored_is_sealed(tmp_path: Path) -> None:
    """The database has no payload in the clear; readers have, over restarts, with meta."""
    message = define_event("message", history=History(limit=2))
    for start in (0, 3):
        store = sealing(SQLStore(f"sqlite:///{tmp_path / 'log.db'}"))
        dialogue = Dialogue({"general": RoomConfig(events=[message])}, store=store)
        async with dialogue.lifespan():
            for n in range(start, start + 3):
                await dialogue.trigger("general", message, f"secret {n}", meta={"n": f"hidden {n}"})
            events = await dialogue.room("general").history(message, 0, 10)
            assert [event.data for event in events[::-1]] == [f"secret {n}" for n in range(start + 3)]
            assert events[0].meta == {"n": f"hidden {start + 2}"}
        stored = contents(tmp_path)
        assert b"general" in stored
        assert b"secret" not in stored
        assert b"hidden" not in stored


async def test_another_key_is_told() -> None:
    """What cannot be unsealed is unavailable, and readable again with the right key."""
    inner = MemoryStore()
    right, wrong = sealing(inner), sealing(inner, key=0x0F)
    await right.open()
    await right.append([draft(data_json=b'{"n":12345678901234567890}')])
    with pytest.raises(StoreUnavailable, match="unsealed"):
        await wrong.page("general", limit=1)
    page = await right.page("general", limit=1)
    assert decoded(page.events[0])["data"] == {"n": 12345678901234567890}
    await right.aclose()


def test_the_how_to_shows_the_example() -> None:
    """`docs/howto/write-a-store.md` has the file as it is."""
    shown = (ROOT / "docs" / "howto" / "write-a-store.md").read_text()
    example = (ROOT / "examples" / "own_store.py").read_text()
    assert f"```python\n# own_store.py\n{example}```" in shown
    assert len(example.splitlines()) < 150
