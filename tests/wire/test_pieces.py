"""Whatever the bytes and however they are split: the same events, only values and errors, never an exception."""

from __future__ import annotations

import base64 as standard
import itertools
import json
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protocol import base64 as ours
from protocol import wire
from protocol.dialect import ParseError, Parser, Value
from protocol.longtext import LongText, Rope, settle
from protocol.plain import SIZE_LIMIT
from protocol.text import LONG
from tests.wire.helpers import feed, flat, form
from workers import base64

FRAGMENTS = [
    *(bytes((c,)) for c in b"[]{}:,\"'\\/ \t\r\n-+.eE01a%\0\x01\x0b\x7f\x80\xfe\xff"),
    b'{"execute":"guest-ping"}',
    b'{"execute":"guest-sync","arguments":{"id":1}}\n',
    b"true", b"false", b"null", b"nul", b"NaN", b"01", b"0e1", b"1e400", b"18446744073709551616", b"-9223372036854775809",
    b'"key":', b'"key":"value",', b"'it\"s'", b'"\\u0000"', b'"\\ud83d\\ude00"', b'"\\ud83d"', b"\\u00e9", b"\\n", b'\\"',
    b"\\\\", b"\xc0\x80", b"\xe2\x82\xac", b"\xe2\x82", b"\xef\xbf\xbe", b"\xf0\x9f\x98\x80", b'{"a":1,"a":2}', b"[[[", b"]]]",
    b"{}" * 40, b" " * 600, b"x" * 70, b"}" * 70, b'"' + b"y" * 1100 + b'"',
]  # fmt: skip
texts = st.lists(st.sampled_from(FRAGMENTS), max_size=40).map(b"".join)
# Long enough that the middle of a request is measured rather than lexed.
long_texts = st.tuples(texts, texts, st.integers(1, 60), texts).map(lambda t: b'{"a":[' + t[0] + t[1] * t[2] + t[3])
inputs = st.one_of(st.binary(max_size=200), texts, long_texts)
cuts = st.lists(st.floats(0, 1), max_size=12)


def split(data: bytes, places: list[float]) -> list[bytes]:
    at = sorted({int(p * len(data)) for p in places} | {0, len(data)})
    return [data[a:b] for a, b in itertools.pairwise(at)]


@settings(max_examples=400, deadline=None)
@given(inputs, cuts)
def test_events_do_not_depend_on_the_pieces(data: bytes, places: list[float]) -> None:
    expected = [form(e) for e in feed([data])]
    assert [form(e) for e in feed(split(data, places))] == expected
    if len(data) < 3000:
        assert [form(e) for e in feed([data[i : i + 1] for i in range(len(data))])] == expected


@settings(max_examples=200, deadline=None)
@given(inputs)
def test_every_event_can_be_answered(data: bytes) -> None:
    for event in Parser().feed(data):
        line = wire.success(event.value) if isinstance(event, Value) else wire.failure("GenericError", event.desc)
        assert line.isascii()
        assert line.count(b"\n") == 1


@settings(max_examples=200, deadline=None)
@given(inputs)
def test_a_reset_and_a_request_are_always_understood(data: bytes) -> None:
    parser = Parser()
    parser.feed(data)
    (*_, last) = parser.feed(b'\xff{"execute":"guest-sync-delimited","arguments":{"id":7}}\n')
    assert form(last) == ("value", flat({"execute": "guest-sync-delimited", "arguments": {"id": 7}}))


def _is_taken(char: str) -> bool:
    code = ord(char)
    return not (0xD800 <= code < 0xE000 or 0xFDD0 <= code < 0xFDF0 or code & 0xFFFE == 0xFFFE)


# A string long enough to be kept as it comes, and what may be in it, end it, or stand behind it.
LONG_BODY = st.lists(
    st.sampled_from(
        [
            b"A" * 270_000,
            b"Zm9v" * 70_000,
            b"Zm9v" * 20_000,
            b"b" * 300,
            b"+/=",
            b"\\n",
            b'\\"',
            b"\\",
            b"\\u00e9",
            b"\xc3\xa9",
            b"\xff",
            b"\n",
            b"'",
            b'"',
        ]
    ),
    min_size=1,
    max_size=8,
).map(b"".join)
LONG_AFTER = [
    *(b'"}', b'","b":1}', b'"]}', b'","a":1}', b"'}", b'" x}', b'"}{"b":["' + b"c" * 270_000 + b'"]}'),
    *(b'"}}', b'"}}\n{"execute":"y"}\n', b'"}}{"execute":"y"}', b'"}}}', b'"}},"b":1}', b'","b":"(here)"}}', b'":1}}'),
    *(b'"b"}}', b'"}} \xff{"c":3}', b'"}},', b'"'),
]
LONG_BEFORE = [
    *(b'{"a":"', b'{"a":["', b'{"', b'"', b"{'a':'", b'{"x":"\xc3\xa9","a":"', b'{"x":"' + b"d" * 270_000 + b'","a":"'),
    # What may be taken at once, and what only seems to be like it.
    *(b'{"arguments":["', b'{"arguments":"', b'{"execute":"x"}\n{"arguments":{"a":"', b'\xff\n{"arguments":{"a":"'),
    *(
        b'{"arguments":{' + head
        for head in (
            *(
                b'"a":"',
                b'"b":"(here)","a":"',
                b'"b":"(here)","a":{"c":"',
                b'"b":"","a":"',
                b'"a":"","a":"',
                b'"b":"\\"',
            ),
            *(b'"b":"\\\\","a":"', b'"b":"\\u0028here)","a":"', b'"b":"\xc3\xa9","a":"', b'"b":{"a":"', b'"b":["'),
            *(b'"b":"c"', b'"b":1e400,"a":"', b'"', b'"b":' + b" " * 9000 + b'1,"a":"', b'"b":"",' * 70 + b'"a":"'),
        )
    ),
]


def settled(events: list[Value | ParseError]) -> list[tuple[str, object]]:
    """What they say, long text as text."""
    for event in events:
        if isinstance(event, Value):
            box = [event.value]
            settle(box)
            event.value = box[0]
    return [form(e) for e in events]


@pytest.mark.parametrize("body", [b"Zm9v" * 20_000, b"Zm9v" * 20_000 + b"Zg==", b"Zm9v" * 20_000 + b"Z", b"-" * 70_000])
def test_a_long_string_says_the_same_whatever_is_around_it(body: bytes) -> None:
    for before in LONG_BEFORE:
        for after in LONG_AFTER:
            data = before + body + after
            assert settled(Parser(long_text=True).feed(data)) == settled(Parser().feed(data)), (before[:99], after[:99])


@settings(max_examples=150, deadline=None)
@given(
    st.tuples(st.sampled_from(LONG_BEFORE), LONG_BODY, st.sampled_from(LONG_AFTER)).map(b"".join),
    cuts,
    st.sampled_from([0, 900, 30_000]),
)
def test_a_long_string_that_stays_as_it_came_says_the_same(data: bytes, places: list[float], step: int) -> None:
    whole = Parser().feed(data)
    parser = Parser(long_text=True)
    pieces = split(data, places)
    if step:
        pieces = [piece[at : at + step] for piece in pieces for at in range(0, len(piece), step)]
    events = [event for piece in pieces for event in parser.feed(piece)]
    assert settled(events) == [form(e) for e in whole]
    assert parser.feed(b'\xff{"b":1}')[-1].value == {"b": 1}  # type: ignore[union-attr]


@pytest.mark.parametrize("before", [b"", b"\xff", b'\xff{"execute":"guest-sync"}\n' + b" " * 5000, b" \n"])
@pytest.mark.parametrize(
    "after",
    [b"}}", b"}}\n", b'}}\n{"execute":"b"}\n', b'}}{"execute":"b"}', b',"n":1},"execute":"a"}', b'},"id":"x"} '],
)
@pytest.mark.parametrize("size", [LONG - 3, LONG + 1, LONG + 2, LONG + 3, LONG + 4, 200_000])
def test_a_request_with_one_long_argument_is_taken_at_once(before: bytes, after: bytes, size: int) -> None:
    text = standard.b64encode(bytes(range(256)) * (size // 256 + 1))[:size]
    data = before + b'{"arguments":{"a":"' + text + b'"' + after
    whole, taken = Parser().feed(data), Parser(long_text=True).feed(data)
    (value,) = [
        e.value for e in taken if isinstance(e, Value) and b"arguments" in json.dumps(e.value, default=str).encode()
    ]
    found = value["arguments"]["a"]  # type: ignore[index]
    assert str(found).encode() == text
    if b"\n" not in before:  # then all of it may be plain
        assert type(found) is (LongText if size > LONG else str)
    if isinstance(found, LongText):
        assert found.data is not None
        value["arguments"]["a"] = str(found)  # type: ignore[index]
    assert [form(e) for e in taken] == [form(e) for e in whole]


@pytest.mark.parametrize("more", range(-2, 3))
def test_a_long_string_has_the_limit_of_any_other(more: int) -> None:
    """Its quotes are counted, and the tokens around it."""
    for size in (SIZE_LIMIT - 2, SIZE_LIMIT - len('{"a":}') - 2):
        data = b'{"a":"' + b"A" * (size + more) + b'"}'
        pieces = [data[at : at + 262_144] for at in range(0, len(data), 262_144)]
        whole, long = feed(pieces), feed(pieces, Parser(long_text=True))
        assert [type(e) for e in long] == [type(e) for e in whole]


@pytest.mark.parametrize(("fill", "decoded"), [(b"A", True), (b"-", False)])
def test_a_long_string_is_kept_in_the_pieces_that_came(fill: bytes, decoded: bool) -> None:
    parser = Parser(long_text=True)
    pieces = [fill * 200_000 for _ in range(5)]
    for piece in (b'{"a": "' + b"B" * 270_000, *pieces, b'CD", "b": 1'):
        assert not parser.feed(piece)
    (event,) = parser.feed(b"}")
    assert isinstance(event, Value)
    text = event.value["a"]  # type: ignore[index]
    assert isinstance(text, LongText)
    assert len(text) == 1_270_002
    assert str(text) == "B" * 270_000 + fill.decode() * 1_000_000 + "CD"
    if decoded:
        assert text.data is not None
        assert sum(map(len, text.data)) == 1_270_000 // 4 * 3
        assert text.text == [b"CD"]
    else:
        assert text.data is None
        assert [part for part in text.text if any(part is piece for piece in pieces)] == pieces


@settings(max_examples=300, deadline=None)
@given(
    st.lists(
        st.one_of(
            st.binary(max_size=60).map(standard.b64encode),
            st.text(alphabet="A/z=-", max_size=12).map(str.encode),
            st.sampled_from([b"Zm9v" * 9000, b"x" * 20_001]),
        ),
        min_size=1,
        max_size=8,
    )
)
def test_a_rope_says_what_it_was_made_of_and_what_that_means(parts: list[bytes]) -> None:
    rope = Rope(0, parts[0])
    for part in parts[1:]:
        if not rope.decode(part):
            rope.add(part)
    text = b"".join(parts)
    whole = rope.whole()
    assert str(whole).encode() == text
    assert len(whole) == len(text)
    if whole.data is not None:
        (end,) = whole.text
        assert len(end) <= 4
        assert b"".join(whole.data) + base64.decode(bytes(end).decode()) == base64.decode(text.decode())
    poured = bytearray(b"before")
    rope.pour(poured)
    assert poured == b"before" + text


@pytest.mark.parametrize("simd", sorted({False, ours.SIMD}))
@settings(max_examples=100, deadline=None)
@given(
    data=st.binary(max_size=3000), step=st.integers(1, 50), wrong=st.sampled_from([b"", b"-", b"=A", b"\n", b"\x80"])
)
def test_a_rope_of_base64_is_decoded_however_it_comes(simd: bool, data: bytes, step: int, wrong: bytes) -> None:
    text = standard.b64encode(data)
    rope = Rope(0, b"")
    before, ours.SIMD = ours.SIMD, simd
    try:
        assert all(rope.decode(text[at : at + step]) for at in range(0, len(text), step))
        made = rope.whole()
        assert made.data is not None
        assert data.startswith(b"".join(made.data))
        assert not wrong or not rope.decode(wrong + b"AAAA") or not rope.decode(b"AAAA")
    finally:
        ours.SIMD = before


characters = st.characters(exclude_categories=["Cs"]).filter(_is_taken)
strings = st.text(characters, max_size=20)
scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**63), 2**64 - 1),
    st.floats(allow_nan=False, allow_infinity=False),
    strings,
)
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(strings, inner, max_size=4), max_leaves=20
)


def _integral_floats_are_integers(value: object) -> object:
    """%.17g writes 1000.0 as 1000, as the peer does; so it comes back as an integer."""
    match value:
        case float() if value.is_integer() and abs(value) < 1e17 and math.copysign(1, value) * value >= 0:
            return int(value)
        case list():
            return [_integral_floats_are_integers(v) for v in value]
        case dict():
            return {k: _integral_floats_are_integers(v) for k, v in value.items()}
    return value


@settings(max_examples=300, deadline=None)
@given(values, cuts)
def test_what_is_encoded_is_parsed_back(value: object, places: list[float]) -> None:
    line = wire.encode(value) + b"\n"
    (event,) = feed(split(line, places))
    assert form(event) == ("value", flat(_integral_floats_are_integers(value)))


@settings(max_examples=300, deadline=None)
@given(values, st.booleans(), st.sampled_from([None, 1]), cuts)
def test_common_json_means_what_the_standard_library_says(
    value: object, ascii_only: bool, indent: int | None, places: list[float]
) -> None:
    line = json.dumps(value, ensure_ascii=ascii_only, indent=indent).encode() + b"\n"
    (event,) = feed(split(line, places))
    assert form(event) == ("value", flat(value))


@settings(max_examples=300, deadline=None)
@given(values)
def test_responses_are_json_to_others(value: object) -> None:
    assert json.loads(wire.success(value, id=value)) == {"return": value, "id": value}
