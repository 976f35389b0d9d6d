"""Internal frames: what is sent arrives, and nothing else is accepted."""

from __future__ import annotations

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from privsep import frame
from protocol.errors import ProtocolViolation

values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False) | st.text() | st.binary(),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(), inner, max_size=5),
    max_leaves=20,
)


def join(parts: list[bytes]) -> object:
    assembler = frame.Assembler()
    for part in parts[:-1]:
        assert assembler.feed(part) is None
    return assembler.feed(parts[-1])


@given(st.lists(values, max_size=6))
def test_what_is_sent_arrives(value: list[object]) -> None:
    assert join(frame.encode(value)) == value


@pytest.mark.parametrize("size", [0, 1, frame.PART - 10, frame.PART, frame.PART + 1, 5 * frame.PART + 3])
def test_a_large_frame_travels_in_parts_that_a_datagram_holds(size: int) -> None:
    parts = frame.encode([1, 2, "x" * size])
    assert all(len(p) <= frame.DATAGRAM for p in parts)
    assert join(parts) == [1, 2, "x" * size]


def _pack(value: object) -> bytes:
    return b"\0" + msgpack.packb(value)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x02\x90",
        b"\0",
        b"\0\xc1",
        b"\0\xc0",
        _pack(float("nan")),
        _pack([float("nan")]),
        _pack({1: 2}),
        _pack(msgpack.Timestamp(1, 2)),
        _pack([msgpack.Timestamp(1)]),
        _pack(msgpack.ExtType(5, b"x")),
        _pack(msgpack.ExtType(5, b"")),
        b"\0\x82\xa1a\x01\xa1a\x02",  # duplicate key
        b"\0\xa2\xc3\x28",  # a string that is not UTF-8
        b"\0\x90\x90",  # something after the value
        b"\0\xdd\xff\xff\xff\xff",  # a list of 4 Gi elements that are not there
        b"\0" + b"\x91" * 100 + b"\x01",  # nested too deep
        b"\0" + b"\x91" * 100000 + b"\x01",
    ],
)
def test_anything_else_is_a_violation(data: bytes) -> None:
    with pytest.raises(ProtocolViolation):
        frame.Assembler().feed(data)


def test_a_frame_that_never_ends_is_a_violation_before_it_is_large() -> None:
    assembler = frame.Assembler(limit=1000)
    assert assembler.feed(b"\x01" + b"x" * 600) is None
    with pytest.raises(ProtocolViolation):
        assembler.feed(b"\x01" + b"x" * 600)


@given(st.binary(max_size=200))
def test_no_datagram_does_anything_but_complete_continue_or_violate(data: bytes) -> None:
    try:
        frame.Assembler().feed(data)
    except ProtocolViolation:
        pass
