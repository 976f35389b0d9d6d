"""Size, nesting, number of tokens, floods of errors: where they end, and that nothing grows or slows down before."""

from __future__ import annotations

import random
import subprocess
import sys
import time
from pathlib import Path

import pytest

from protocol.dialect import PATIENCE, ParseError, Parser, Value
from protocol.plain import SIZE_LIMIT, TOKEN_LIMIT
from tests.wire.helpers import events, feed, outcomes

PROJECT = Path(__file__).resolve().parents[2]
PING = b'{"execute":"guest-ping"}'
PINGED = {"execute": "guest-ping"}


def pieces(data: bytes, size: int = 1 << 16) -> list[bytes]:
    return [data[i : i + size] for i in range(0, len(data), size)]


def test_1023_lists_in_a_request_are_taken() -> None:
    (event,) = events(b'{"execute":"guest-ping","id":' + b"[" * 1023 + b"]" * 1023 + b"}\n", seeds=2)
    assert isinstance(event, Value)


def test_the_1025th_bracket_is_one_too_many() -> None:
    first, *rest = events(b'{"execute":"guest-ping","id":' + b"[" * 1024 + b"]" * 1024 + b"}\n", seeds=2)
    assert isinstance(first, ParseError)
    assert first.desc == "JSON nesting depth limit exceeded"
    assert len(rest) == PATIENCE - 1  # the closing ones, until patience ends


def test_nesting_does_not_depend_on_the_interpreters_recursion_limit() -> None:
    old = sys.getrecursionlimit()
    try:
        for limit in (old, 5000):
            sys.setrecursionlimit(limit)
            for opened, fine in ((1024, True), (1025, False)):
                first = events(b'{"a":' * opened + b"1" + b"}" * opened, bytewise=False)[0]
                assert isinstance(first, Value) is fine
    finally:
        sys.setrecursionlimit(old)


def test_many_shallow_containers_are_no_deep_ones() -> None:
    assert len(events(b'{"a":[' + b"{}," * 5000 + b"{}]}" + PING, bytewise=False)) == 2


def test_a_token_of_64_mib_is_too_large() -> None:
    fits = SIZE_LIMIT - 1 - len(b'{"a":}') - 2
    for size, fine in ((fits, True), (fits + 1, False)):
        got = feed(pieces(b'{"a":"' + b"x" * size + b'"}' + b"\n" + PING))
        assert isinstance(got[0], Value) is fine
        if not fine:
            assert isinstance(got[0], ParseError)
            assert got[0].desc == "JSON token size limit exceeded"
        assert isinstance(got[-1], Value)
        assert got[-1].value == PINGED


@pytest.mark.parametrize("size", [1 << 16, 1 << 20, 100 << 20])
def test_an_endless_string_is_cut_at_the_same_byte_in_any_pieces(size: int) -> None:
    data = b'{"a":"' + b"x" * (SIZE_LIMIT + 7) + b"\n" + PING
    got = feed(pieces(data, size))
    assert [type(e) for e in got] == [ParseError, ParseError, Value]
    assert got[0].desc == "JSON token size limit exceeded"  # type: ignore[union-attr]
    # The opening quote counts, so eight of the x are left over for a word.
    assert got[1].desc == "JSON parse error, invalid keyword 'xxxxxxx'"  # type: ignore[union-attr]


def test_white_space_does_not_count() -> None:
    blank = b" " * (1 << 20)
    parser = Parser()
    parser.feed(b'{"execute":')
    for _ in range(80):
        assert parser.feed(blank) == []
    assert [e.value for e in parser.feed(b'"guest-ping"}')] == [PINGED]  # type: ignore[union-attr]


@pytest.mark.parametrize("size", [1 << 16, 1 << 30])
def test_too_many_tokens(size: int) -> None:
    # { "a" : [ 1 , 1 ... 1 ] }
    for ones, fine in ((TOKEN_LIMIT // 2 - 3, True), (TOKEN_LIMIT // 2 - 2, False)):
        data = b'{"a":[' + b"1," * (ones - 1) + b"1]}\n" + PING
        first, *_, last = feed(pieces(data, size))
        assert isinstance(first, Value) is fine
        if not fine:
            assert isinstance(first, ParseError)
            assert first.desc == "JSON token count limit exceeded"
        assert isinstance(last, Value)
        assert last.value == PINGED


def test_one_error_a_line_once_patience_has_ended() -> None:
    data = b"}" * 1000 + b"\n" + b"#%#%\n" * 500 + b"{]{]{]\n" * 500 + PING + b"\n" + b"}}}"
    got = outcomes(data, bytewise=True)
    assert got[:PATIENCE] == ["! expecting value"] * PATIENCE
    assert got[PATIENCE : PATIENCE + 500] == ["! stray '#'"] * 500
    assert got[PATIENCE + 500 : -4] == ["! expecting value"] * 500
    assert got[-4:] == [PINGED] + ["! expecting value"] * 3


def test_a_host_that_waits_for_each_error_gets_one() -> None:
    for bad in (b"}\n", b"nonsense\n", b'{"a":1,}\n', b'{"a\n', b'{"a":01}\n', b"7\n", b'"text"\n', b"{]}]#\n"):
        parser = Parser()
        for _ in range(PATIENCE * 5):
            assert parser.feed(bad), bad


@pytest.mark.parametrize("reset", [b"\xff", b"\xfe", b"\xff\n", b"\n\xff", b"\xff \t "])
@pytest.mark.parametrize(
    "noise", [b"}" * 500, b'"' + b"\x01" * 500, b"#" * 500, b"\xff" * 500, b"\n\xff" * 500, b"{[" * 2000]
)
def test_a_reset_is_always_obeyed(noise: bytes, reset: bytes) -> None:
    assert outcomes(noise + reset + PING + b"\n")[-1] == PINGED


def test_the_text_of_a_stray_token_is_bounded() -> None:
    (event,) = feed(pieces(b'"' + b"x" * 1_000_000 + b"\n"))
    assert isinstance(event, ParseError)
    assert len(event.desc) < 66_000


NOISE = {
    "random": random.Random(7).randbytes(1 << 20),
    "like json": bytes(random.Random(7).choices(b'abc {}[]":,0123456789.eE+-truefalsn\\ \n', k=1 << 20)),
    "resets": b"\xff" * (1 << 20),
    "closing": b"}" * (1 << 20),
    "mixed": b"{]" * (1 << 19),
    "blank": b" \n" * (1 << 19),
    "letters": b"a" * (1 << 20),
    "quotes": b"\"'" * (1 << 19),
    "escapes": b'"' + b"\\n" * (1 << 19),
    "escaped quotes": b'"' + b'\\"' * (1 << 19),
    "unicode": b'"' + b"\\u0041" * (1 << 17) + b'"',
    "opening": b'{"a":[' * 100_000,
}


@pytest.mark.parametrize("name", NOISE)
def test_a_mebibyte_of_anything_takes_less_than_two_seconds(name: str) -> None:
    """A loose bound: it is there for what is quadratic, which takes minutes."""
    parser = Parser()
    start = time.process_time()
    for piece in pieces(NOISE[name], 4096):
        parser.feed(piece)
    got = parser.feed(b"\xff" + PING + b"\n")
    assert time.process_time() - start < 2
    assert isinstance(got[-1], Value)


MEMORY = """
import resource, sys
from protocol.dialect import Parser
parser = Parser({options})
piece = {piece}
base = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
parser.feed({first})
for _ in range({count}):
    parser.feed(piece)
parser.feed({last})
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - base) // 1024)
"""


@pytest.mark.parametrize(
    ("options", "first", "piece", "count", "last", "most"),
    [
        ("", b'{"a":"', "b'x' * 65536", 960, b"", 90),
        ("", b'{"a":"', "b'x' * 65536", 2000, b"", 100),  # the second one goes the same way
        ("", b"", "b'a' * 65536", 1000, b"", 4),  # a word of 64 MiB is not kept
        ("", b"{", "b' ' * 65536", 1000, b"", 4),
        ("", b"", "b'}' * 65536", 1000, b"", 4),
        ("", b'{"a":[', "b'[],     ' * 8192", 100, b"", 40),
        ("long_text=True", b'{"a":"', "b'x' * 65536", 960, b"", 60),  # decoded
        ("long_text=True", b'{"a":"', "b'x' * 65536", 960, b'"}', 60),
        ("long_text=True", b'{"a":"', "b'-' * 65536", 960, b"", 75),
        ("long_text=True", b'{"a":"', "b'x' * 65536", 960, b"-", 75),  # it was no base64 after all
        ("long_text=True", b'{"a":"', "b'x' * 65536", 960, b"\\n", 130),  # and is to be in one piece
    ],
)
def test_memory_is_bounded_by_what_is_pending(
    options: str, first: bytes, piece: str, count: int, last: bytes, most: int
) -> None:
    """In MiB, above a bare interpreter with the parser."""
    program = MEMORY.format(options=options, first=first, piece=piece, count=count, last=last)
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=PROJECT, capture_output=True, text=True, check=True, timeout=60
    )
    assert int(done.stdout) <= most
