"""Commands and messages to bytes and back."""

from __future__ import annotations

import json

import pytest

from dialogue import errors, protocol
from dialogue.protocol import BadCommand, HistoryRead, Join, Trigger, decode_frame


def test_frames_of_one_and_of_many() -> None:
    """A client frame is one command or an array of them; unknown fields are ignored."""
    (join,) = decode_frame(b' {"type":"join","room":"a","later":1}', max_commands=5)
    assert isinstance(join, Join)
    frame = b'[{"type":"history","room":"a","limit":3},{"type":"trigger","room":"a","event":"m","data":{"x":[1]}}]'
    read, trigger = decode_frame(frame, max_commands=5)
    assert isinstance(read, HistoryRead)
    assert read.limit == 3
    assert isinstance(trigger, Trigger)
    assert bytes(trigger.data) == b'{"x":[1]}'
    assert bytes(trigger.meta) == b"null"
    assert decode_frame(b"[]", max_commands=5) == []


def test_too_many_commands() -> None:
    """Those past the limit are answered by one error."""
    frame = b"[" + b",".join([b'{"type":"rooms"}'] * 7) + b"]"
    items = decode_frame(frame, max_commands=5)
    assert len(items) == 6
    assert isinstance(items[5], BadCommand)


@pytest.mark.parametrize(
    ("frame", "ref", "words"),
    [
        (b"hello", None, "not JSON"),
        (b"\xff", None, "UTF-8"),
        (b'["\xff"]', None, "UTF-8"),
        (b"[" * 100_000, None, "deep"),
        (
            b'{"type":"trigger","ref":7,"room":"a","event":"m","data":'
            + b"[" * 50_000
            + b"]" * 50_000
            + b"}",
            None,
            "deep",
        ),
        (b'{"type":"nope","ref":"x"}', "x", "unknown command"),
        (b'{"ref":3}', 3, "a 'type'"),
        (b"5", None, "a 'type'"),
        (b'{"type":"join","ref":4}', 4, "room"),
        (b'{"type":"join","ref":4,"room":"a","events":"nope"}', 4, "'events' is a list"),
        (b'{"type":"join","room":5,"ref":4}', 4, "room"),
        (b'{"type":"join","room":"a","ref":[]}', None, "ref"),
        (b'[{"type":"join","ref":4}', None, "not JSON"),
    ],
)
def test_what_cannot_be_read_is_told_with_its_ref(frame: bytes, ref: object, words: str) -> None:
    """The ref is kept where it can be read; nothing of the input is echoed."""
    (bad,) = decode_frame(frame, max_commands=5)
    assert isinstance(bad, BadCommand)
    assert bad.ref == ref
    assert words in bad.error.message
    assert "nope" not in bad.error.message


def test_messages() -> None:
    """Server frames are arrays; errors carry what they have."""
    error = errors.RateLimited("slow down", details=[1], retry_after_seconds=2)
    frame = protocol.encode_frame([protocol.encode_error(error, 5), protocol.encode_ok("r", seq=1)])
    assert json.loads(frame) == [
        {
            "type": "error",
            "ref": 5,
            "code": "RATE_LIMITED",
            "message": "slow down",
            "details": [1],
            "retry_after_seconds": 2,
        },
        {"type": "ok", "ref": "r", "seq": 1},
    ]
    assert json.loads(protocol.encode_with_events({"type": "joined"}, [b'{"a":1}', b'{"a":2}'])) == {
        "type": "joined",
        "events": [{"a": 1}, {"a": 2}],
    }
    assert "ref" not in json.loads(protocol.encode_error(errors.Internal()))


def test_clients_read_server_frames() -> None:
    """Arrays of objects, nothing else."""
    assert protocol.decode_messages('[{"type":"ping"}]') == [{"type": "ping"}]
    for bad in ("{}", "[1]", "x", b"\xff"):
        with pytest.raises(ValueError, match="server frame"):
            protocol.decode_messages(bad)


def test_every_wire_code_has_its_error() -> None:
    """`command_error` gives the class of a code, and Internal for one that it does not know."""
    for code, cls in errors.COMMAND_ERRORS.items():
        made = errors.command_error(code, "m", retry_after_seconds=1)
        assert type(made) is cls
        assert made.code == code
        assert made.message == "m"
        assert errors.command_error(code).message
    unknown = errors.command_error("NEW", "later")
    assert isinstance(unknown, errors.Internal)
    assert "NEW" in str(unknown)
    assert errors.StoreUnavailable().is_outcome_unknown
    assert not errors.Blocked().is_outcome_unknown


@pytest.mark.parametrize("ref", [0, -1, 2**63, "r", '"é\n'])
@pytest.mark.parametrize("is_duplicate", [False, True])
def test_the_quick_ok_is_the_ok(ref: protocol.Ref, is_duplicate: bool) -> None:
    """What answers a trigger is what `encode_ok` would write, ephemeral events included."""
    extra = {"duplicate": True} if is_duplicate else {}
    for seq, id_ in ((1, 2**53), (None, None)):
        quick = protocol.encode_accepted(ref, 'a"é', seq, id_, 1_700_000_000_000, is_duplicate)
        assert quick == protocol.encode_ok(
            ref, room='a"é', seq=seq, id=id_, timestamp=1_700_000_000_000, **extra
        )
