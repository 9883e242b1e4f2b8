"""Frames that no client would send: the connection ends with the right code, or goes on; nobody else notices."""

from __future__ import annotations

import asyncio
import json
import zlib
from collections.abc import Callable

import pytest

from dialogue import Dialogue, Limits

from ..server.harness import rooms, wire
from .raw import BINARY, CLOSE, CONT, PING, PONG, TEXT, RawSocket, frame, raw
from .target import attacked

ROOMS = b'{"type":"rooms","ref":1}'


def bomb(size: int) -> bytes:
    """Return *size* zeros as permessage-deflate has them."""
    compressor = zlib.compressobj(wbits=-12)
    return (compressor.compress(b"0" * size) + compressor.flush(zlib.Z_SYNC_FLUSH))[:-4]


CLOSING: dict[str, tuple[Callable[[], bytes], int]] = {
    "a reserved bit": (lambda: frame(TEXT, ROOMS, reserved=1), 1002),
    "all reserved bits": (lambda: frame(TEXT, ROOMS, reserved=7), 1002),
    "not compressed by agreement": (lambda: frame(TEXT, bomb(50_000_000), reserved=4), 1002),
    "unmasked": (lambda: frame(TEXT, ROOMS, is_masked=False), 1002),
    "an unknown opcode": (lambda: frame(0x3, ROOMS), 1002),
    "an unknown control opcode": (lambda: frame(0xB), 1002),
    "a continuation of nothing": (lambda: frame(CONT, ROOMS), 1002),
    "text within a fragmented text": (lambda: frame(TEXT, b"{", is_final=False) + frame(TEXT, ROOMS), 1002),
    "binary within a fragmented text": (
        lambda: frame(TEXT, b"{", is_final=False) + frame(BINARY, b"x"),
        1002,
    ),
    "a fragmented ping": (lambda: frame(PING, b"x", is_final=False), 1002),
    "a ping of 126 bytes": (lambda: frame(PING, b"x" * 126), 1002),
    "a declared length of 2^62": (lambda: frame(TEXT, b"{", declared_length=2**62), 1009),
    "a declared length of 2^63": (lambda: frame(TEXT, b"{", declared_length=2**63), 1009),
    "a declared length above the limit": (lambda: frame(TEXT, b"{", declared_length=1_048_577), 1009),
    "fragments above the limit": (
        lambda: (
            frame(TEXT, b"[" + b" " * 600_000, is_final=False)
            + frame(CONT, b" " * 600_000, is_final=False)
            + frame(CONT, b"]")
        ),
        1009,
    ),
    "binary": (lambda: frame(BINARY, ROOMS), 4002),
    "invalid UTF-8": (lambda: frame(TEXT, b'{"type":"\xff\xfe"}'), 1007),
    "invalid UTF-8 over fragments": (
        lambda: frame(TEXT, b'{"type":"\xe2\x82', is_final=False) + frame(CONT, b'"}'),
        1007,
    ),
    "a surrogate in UTF-8": (lambda: frame(TEXT, b'{"type":"\xed\xa0\x80"}'), 1007),
    "an overlong NUL": (lambda: frame(TEXT, b'{"type":"\xc0\x80"}'), 1007),
    "a close frame of one byte": (lambda: frame(CLOSE, b"x"), 1002),
    "a close code that is none": (lambda: frame(CLOSE, b"\x00\x05"), 1002),
}


@pytest.mark.parametrize("is_connected", [True, False], ids=["connected", "before connect"])
@pytest.mark.parametrize("name", CLOSING)
async def test_a_broken_frame_ends_its_connection_alone(name: str, is_connected: bool) -> None:
    """Each gets the close code of its fault; a client that talks meanwhile goes on."""
    make, code = CLOSING[name]
    # What is not UTF-8 is logged by the server under us, with the first byte that is not.
    expected = "Invalid UTF-8" if code == 1007 else None
    async with (
        attacked(Dialogue(rooms()), expected=expected) as address,
        wire(address, "ann") as ann,
        raw(address, "mallory" if is_connected else None) as mallory,
    ):
        await ann.ask("join", room="general")
        await mallory.write(make())
        assert await mallory.until_closed() == code
        await ann.trigger("general", "message", "undisturbed")


async def test_a_declared_length_buys_no_memory() -> None:
    """A frame that says it is almost as large as it may be, and never comes, is only as large as what came."""
    dialogue = Dialogue(rooms(), limits=Limits(connect_seconds=0.5))
    async with attacked(dialogue) as address, raw(address, None) as mallory:
        await mallory.write(frame(TEXT, b"{", declared_length=1_048_576))
        assert await mallory.until_closed() == 4001


def one_by_one(text: bytes, *, between: bytes = b"") -> bytes:
    """Return *text* as a message of one-byte fragments."""
    parts = [frame(TEXT, text[:1], is_final=False)]
    parts += [between + frame(CONT, bytes([byte]), is_final=False) for byte in text[1:]]
    return b"".join(parts) + frame(CONT)


async def test_a_message_of_thousands_of_fragments_is_one_message() -> None:
    """However it is cut, a message is taken once, when it is whole."""
    command = json.dumps({"type": "rooms", "ref": "x" * 100, "padding": "y" * 5000}).encode()
    async with attacked(Dialogue(rooms())) as address, raw(address) as mallory:
        await mallory.write(one_by_one(command))
        assert (await mallory.read_message("rooms"))["ref"] == "x" * 100


async def test_control_frames_may_come_between_fragments() -> None:
    """They are answered at once, and the message is whole in the end."""
    async with attacked(Dialogue(rooms())) as address, raw(address) as mallory:
        await mallory.write(one_by_one(ROOMS, between=frame(PING, b"p") + frame(PONG, b"not asked for")))
        for _ in range(len(ROOMS) - 1):
            assert await mallory.read_frame() == (PONG, b"p")
        assert (await mallory.read_message("rooms"))["ref"] == 1


async def test_empty_fragments_without_end_are_silence() -> None:
    """A message that never becomes one does not count as being heard."""
    dialogue = Dialogue(rooms(), limits=Limits(ping_seconds=0.5))
    async with attacked(dialogue) as address, raw(address) as mallory:
        await mallory.write(frame(TEXT, b"{", is_final=False) + frame(CONT, is_final=False) * 50_000)
        assert await mallory.until_closed() == 1001


async def test_a_bomb_is_not_unpacked_where_compression_is_on() -> None:
    """Under a server with permessage-deflate, what a frame unpacks to is bounded as well."""
    async with (
        attacked(Dialogue(rooms()), ws_per_message_deflate=True) as address,
        raw(address, None, **{"Sec-WebSocket-Extensions": "permessage-deflate"}) as mallory,
    ):
        await mallory.write(frame(TEXT, bomb(50_000_000), reserved=4))
        assert await mallory.until_closed() == 1009


async def test_a_flood_of_pings_is_answered_and_nobody_waits() -> None:
    """Pings are the transport's; they keep others waiting no longer than their bytes do."""
    async with (
        attacked(Dialogue(rooms())) as address,
        wire(address, "ann") as ann,
        raw(address) as mallory,
    ):
        await ann.ask("join", room="general")
        for _ in range(20):
            await mallory.write(frame(PING, b"x" * 125) * 500)
            await ann.trigger("general", "message", "undisturbed")
            for _ in range(500):
                assert await mallory.read_frame() == (PONG, b"x" * 125)


async def test_whatever_comes_after_a_close_is_not_read() -> None:
    """A command behind the frame that ends the connection has no effect."""
    async with attacked(Dialogue(rooms())) as address, wire(address, "ann") as ann:
        await ann.ask("join", room="general")
        async with raw(address) as mallory:
            await mallory.text('{"type":"join","room":"general"}')
            await mallory.read_message("joined")
            late = b'{"type":"trigger","room":"general","event":"message","data":"late"}'
            await mallory.write(frame(BINARY, b"x") + frame(TEXT, late))
            assert await mallory.until_closed() == 4002
        ack = await ann.trigger("general", "message", "first")
        assert ack["seq"] == 1


@pytest.mark.parametrize(
    "request_text",
    [
        "GET /ws HTTP/1.1\r\n\r\n",
        "GET /ws HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n",
        "GET /ws HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        "Sec-WebSocket-Key: short\r\nSec-WebSocket-Version: 13\r\n\r\n",
        "GET /ws HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 7\r\n\r\n",
        "\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    ],
    ids=["no host", "no key", "a bad key", "an old version", "TLS"],
)
async def test_a_handshake_that_is_none_makes_no_session(request_text: str) -> None:
    """It is refused before Dialogue hears of it."""
    dialogue = Dialogue(rooms())
    async with attacked(dialogue) as address:
        host, _, port = address.partition(":")
        socket = RawSocket(*await asyncio.open_connection(host, int(port)))
        await socket.write(request_text.encode("latin-1"))
        first = await socket._reader.readline()
        assert b"101" not in first
        assert not dialogue.hub().connections.sessions
        await socket.aclose()
