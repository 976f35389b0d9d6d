"""Response lines, byte for byte."""

from __future__ import annotations

import math

import pytest

from protocol import wire

ENCODED = [
    ({}, b"{}"),
    ([], b"[]"),
    ((), b"[]"),
    ({"a": [1, True, None, "x"], "b": {}}, b'{"a": [1, true, null, "x"], "b": {}}'),
    ([[], {"a": []}], b'[[], {"a": []}]'),
    (2**64 - 1, b"18446744073709551615"),
    (-(2**63), b"-9223372036854775808"),
    (False, b"false"),
    (0.1, b"0.10000000000000001"),
    (1e3, b"1000"),
    (-0.0, b"-0"),
    (1.5e300, b"1.5000000000000001e+300"),
    (18446744073709551616.0, b"1.8446744073709552e+19"),
    (math.inf, b"inf"),
    (-math.inf, b"-inf"),
    ([0.5, {"a": math.inf}], b'[0.5, {"a": inf}]'),
    ("h\xe9llo \u20ac", b'"h\\u00E9llo \\u20AC"'),
    ("\U0001f600", b'"\\uD83D\\uDE00"'),
    ("\x7f", b'"\\u007F"'),
    ("\0\x01\x1f", b'"\\u0000\\u0001\\u001F"'),
    ('"\\/\b\f\n\r\t<>&', b'"\\"\\\\/\\b\\f\\n\\r\\t<>&"'),
    ("\\u00e9\xe9\\", b'"\\\\u00e9\\u00E9\\\\"'),
    ({"k\xe9y": "\x7f"}, b'{"k\\u00E9y": "\\u007F"}'),
    ("\ufffd", b'"\\uFFFD"'),
    # What modified UTF-8 cannot say: noncharacters, and the undecodable bytes of file names, counted by sequences.
    ("a\uffffb\ufdd0\U0001fffe", b'"a\\uFFFDb\\uFFFD\\uFFFD"'),
    (b"a\xffb".decode("utf-8", "surrogateescape"), b'"a\\uFFFDb"'),
    (b"a\xe2\x82b\x80\x80".decode("utf-8", "surrogateescape"), b'"a\\uFFFDb\\uFFFD\\uFFFD"'),
    (b"\xf8\x88\x80\x80\x80\xc3".decode("utf-8", "surrogateescape"), b'"\\uFFFD\\uFFFD"'),
    (b"\xc0\x80".decode("utf-8", "surrogateescape"), b'"\\u0000"'),
    ("\ud800x", b'"\\uFFFDx"'),
]


@pytest.mark.parametrize(("value", "text"), ENCODED)
def test_values(value: object, text: bytes) -> None:
    assert wire.encode(value) == text
    assert wire.encode([value, {"m": value}]) == b"[" + text + b', {"m": ' + text + b"}]"
    assert wire.encode([[[value]], "\xe9", 0.5]) == b"[[[" + text + b']], "\\u00E9", 0.5]'


def test_depth_is_no_limit() -> None:
    value: object = "x"
    for _ in range(2000):
        value = [{"a": value}]
    assert wire.encode(value) == b'[{"a": ' * 2000 + b'"x"' + b"}]" * 2000


@pytest.mark.parametrize("wrap", [lambda v: v, lambda v: [1, [v]], lambda v: {"a": [[], {"b": v}]}])
@pytest.mark.parametrize("value", [b"bytes", bytearray(), {1, 2}, object(), math.nan, {1: 2}, {None: 1}, 1j, range(3)])
def test_nothing_else_gets_out(value: object, wrap: object) -> None:
    for write in (wire.encode, wire.success, lambda v: wire.success({}, id=v), lambda v: wire.failure("K", "D", id=v)):
        with pytest.raises((TypeError, ValueError)):
            write(wrap(value))  # type: ignore[operator]


def test_lines_and_their_member_order() -> None:
    assert wire.success({}) == b'{"return": {}}\n'
    assert wire.success(7, id="x") == b'{"return": 7, "id": "x"}\n'
    assert wire.success({}, id=None) == b'{"return": {}, "id": null}\n'
    assert wire.success([]) == b'{"return": []}\n'
    assert wire.failure("GenericError", "bad") == b'{"error": {"class": "GenericError", "desc": "bad"}}\n'
    assert (
        wire.failure("CommandNotFound", 'no "\xe9"', id=[1])
        == b'{"id": [1], "error": {"class": "CommandNotFound", "desc": "no \\"\\u00E9\\""}}\n'
    )
    assert wire.delimited(wire.success(5)) == b'\xff{"return": 5}\n'
