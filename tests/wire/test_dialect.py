"""What the parser makes of single inputs: values, errors, and where it carries on after an error.

The facts are from QEMU's lexer and parser; `test_against_peer.py` asks the real one.
"""

from __future__ import annotations

import math

import pytest

from protocol.dialect import Parser
from tests.wire.helpers import feed, outcomes

PING = b'{"execute":"guest-ping"}'
PINGED = {"execute": "guest-ping"}

VALUES = [
    (PING, PINGED),
    (PING + b"\r\n", PINGED),
    (b"\n\n  \t\r\n" + PING + b"\n\n", PINGED),
    (b"{'execute':'guest-ping'}", PINGED),
    (b"{ }", {}),
    (b"[ ]", []),
    (b'{"a":"it\'s",\'b\':\'say "hi"\'}', {"a": "it's", "b": 'say "hi"'}),
    (b'{"a":"it\\\'s \\" \\\\ \\/ \\b\\f\\n\\r\\t"}', {"a": "it's \" \\ / \b\f\n\r\t"}),
    (b'"\\u0041\\u00e9\\u20AC\\ud83d\\ude00"', "A\xe9\u20ac\U0001f600"),
    (b'"\\u0000"', "\0"),
    (b'"a\xc0\x80b"', "a\0b"),
    (b'"\xc0\x80\\n"', "\0\n"),
    ('{"a":"h\xe9llo \u20ac \U0001f600"}'.encode(), {"a": "h\xe9llo \u20ac \U0001f600"}),
    (b'"\x7f%"', "\x7f%"),
    (b'"\\\\"', "\\"),
    (b'"\\\\\\""', '\\"'),
    (b'{"a\\nb":1}', {"a\nb": 1}),
    (b'"\\ufffd"', "\ufffd"),
    (b"12 ", 12),
    (b"-0 ", 0),
    (b"0 ", 0),
    (b"9223372036854775807 ", 2**63 - 1),
    (b"-9223372036854775808 ", -(2**63)),
    (b"9223372036854775808 ", 2**63),
    (b"18446744073709551615 ", 2**64 - 1),
    (b"18446744073709551616 ", 18446744073709551616.0),
    (b"-9223372036854775809 ", -9223372036854775809.0),
    (b"1e3 ", 1000.0),
    (b"0.5 ", 0.5),
    (b"-1.5E-3 ", -0.0015),
    (b"1e400 ", math.inf),
    (b"-1e400 ", -math.inf),
    (b"true ", True),
    (b"false ", False),
    (b"null ", None),
    (b'{"a":[1,{"b":[]},[[]],"x"],"c":{}}', {"a": [1, {"b": []}, [[]], "x"], "c": {}}),
    (b'{"a":[1,2.0,true,null,"\\u00e9"],\'c\':{}}', {"a": [1, 2.0, True, None, "\xe9"], "c": {}}),
]


@pytest.mark.parametrize(("data", "value"), VALUES)
def test_accepts(data: bytes, value: object) -> None:
    (got,) = outcomes(data)
    assert got == value
    assert type(got) is type(value)


ERRORS = [
    (b"\xff", ["! stray '\ufffd'"]),
    (b"\xfe", ["! stray '\ufffd'"]),
    (b"\xff\xff", ["! stray '\ufffd'", "! stray '\ufffd'"]),
    (b'{"execute":"gu\xff' + PING, ["! stray '\"gu\ufffd'", PINGED]),
    (PING + b"\xff", [PINGED, "! stray '\ufffd'"]),
    (b"12\xff", [12, "! stray '\ufffd'"]),
    (b"\0", ["! stray ''"]),
    (b'"a\0', ["! stray '\"a'"]),
    (b'{"execute":"a\x01b"}\n', ["! stray '\"a\x01'", "! expecting value"]),
    (b'{"execute":"guest-\nping"}\n', ["! stray '\"guest-\n'", "! expecting value"]),
    (b'"a\tb" ', ["! stray '\"a\t'"]),
    (b'"a\\\n"', ["! stray '\"a\\\n'"]),
    (b'"a\\\xff', ["! stray '\"a\\\ufffd'"]),
    (b"# hi\n" + PING, ["! stray '#'", PINGED]),
    (b"// hi\n" + PING, ["! stray '/'", PINGED]),
    (b"\xef\xbb\xbf" + PING, ["! stray '\ufffd'", PINGED]),
    (b'{"a":NaN}\n', ["! stray 'N'", "! expecting value"]),
    (b'{"a":-Infinity}\n', ["! stray '-I'", "! expecting value"]),
    (b'{"a":%s}', ["! stray '%'", "! expecting value"]),
    (b'{"a":1}%' + PING, [{"a": 1}, "! stray '%'", PINGED]),
    (b"# skipped words 12 \" ' \t {}", ["! stray '#'", {}]),
    (b"01\n", ["! stray '01'"]),
    (b"1.\n", ["! stray '1.\n'"]),
    (b"1.e\n", ["! stray '1.e'"]),
    (b"1e\n", ["! stray '1e\n'"]),
    (b"1e+x", ["! stray '1e+x'"]),
    (b"-x", ["! stray '-x'"]),
    (b"+1 ", ["! stray '+'"]),
    (b".5 ", ["! stray '.'"]),
    (b"\x0b1 ", ["! stray '\x0b'"]),
    (b'"\xc3(\x01', ["! stray '\"\ufffd(\x01'"]),
    (b'"\xe2\x82\x01', ["! stray '\"\ufffd\x01'"]),
    (b'"\xf8\x88\x80\x80\x80\x01', ["! stray '\"\ufffd\x01'"]),
    (b'"\x80\x80\x01', ["! stray '\"\ufffd\ufffd\x01'"]),
    (b'"\xc0\x80\x01', ["! stray '\"\0\x01'"]),
    (b'"\xef\xbf\xbe\x01', ["! stray '\"\ufffd\x01'"]),
    (b"0e1 ", [0, "! invalid keyword 'e'", 1]),
    (b'{"a":0e1}', ["! expected separator in dict"]),
    (b'{"a":-0E1}', ["! stray 'E'", "! expecting value"]),
    (b"1-2 ", [1, -2]),
    (b"[1-2]", ["! expected separator in list"]),
    (b"hello\n", ["! invalid keyword 'hello'"]),
    (b"x" * 3000 + b"\n", [("! invalid keyword '" + "x" * 3000)[: 1023 + 2]]),
    (b"trueX ", [True, "! stray 'X'"]),
    (b"true1 ", [True, 1]),
    (b"}\n", ["! expecting value"]),
    (b"]\n", ["! expecting value"]),
    (b",:\n", ["! expecting value", "! expecting value"]),
    (b"{]\n", ["! expecting value"]),
    (b"[}\n", ["! expecting value"]),
    (b'{"a":[}', []),
    (b'{"a":[}]', ["! expecting value"]),
    (b'{"a":[1}]', ["! expected separator in list"]),
    (b'{"a":1]', ["! expected separator in dict"]),
    (b"[[1}", ["! expected separator in list"]),
    (PING + b"}" + PING, [PINGED, "! expecting value", PINGED]),
    (b'{"a":1,}', ["! expecting value"]),
    (b"[1,]", ["! expecting value"]),
    (b"[,]", ["! expecting value"]),
    (b"[1 2]", ["! expected separator in list"]),
    (b"{,}", ["! expecting value"]),
    (b"{1:2}", ["! key is not a string in object"]),
    (b"{{}:2}", ["! key is not a string in object"]),
    (b"{[1,}]:2}", ["! expecting value", "! expecting value", 2, "! expecting value"]),
    (b'{"a" 1}', ["! missing : in object pair"]),
    (b'{"a"}', ["! missing : in object pair"]),
    (b'{"a":}', ["! expecting value"]),
    (b'{"a":1 "b":2}', ["! expected separator in dict"]),
    (b'{"a":1,"a":2}', ["! duplicate key"]),
    (b'{"a":1,"a":x}', ["! invalid keyword 'x'"]),
    (b'{"a":1,"a":2 "b"}', ["! duplicate key"]),
    (b'{"a":{"b":1,"b":2}}', ["! duplicate key"]),
    (b'{"a":":","a":1}', ["! duplicate key"]),
    (b'{"a":1,"\\u0061":2}', ["! duplicate key"]),
    (b'{"a\\u0000b":1,"a\xc0\x80b":2}', ["! duplicate key"]),
    (b'"\\ud83dx"', ["! \\ud83d is not a valid Unicode character"]),
    (b'"\\ud83d\\u0041"', ["! \\ud83d is not a valid Unicode character"]),
    (b'"\\ud83d\\n"', ["! \\ud83d is not a valid Unicode character"]),
    (b'"\\uDE00"', ["! \\uDE00 is not a valid Unicode character"]),
    (b'"\\ud83f\\udffe"', ["! \\ud83f\\udffe is not a valid Unicode character"]),
    (b'"\\uffff"', ["! \\uffff is not a valid Unicode character"]),
    (b'"\\ufdd0"', ["! \\ufdd0 is not a valid Unicode character"]),
    (b'"\\u12"', ['! \\u12" is not a valid Unicode character']),
    (b'"\\u"', ['! \\u" is not a valid Unicode character']),
    (b'"\\u12g4"', ["! \\u12g4 is not a valid Unicode character"]),
    (b'"\\u+123"', ["! \\u+123 is not a valid Unicode character"]),
    (b'"\\x41"', ["! invalid escape sequence in string"]),
    (b'"\\\xc3\xa9"', ["! invalid escape sequence in string"]),
    (b'"\\x\xc3("', ["! invalid escape sequence in string"]),
    (b'"\xc3(\\x"', ["! invalid UTF-8 sequence in string"]),
    (b'"\xc3"', ["! invalid UTF-8 sequence in string"]),
    (b'"\xc3\\/\xa9"', ["! invalid UTF-8 sequence in string"]),
    (b'"\xc0\xaf"', ["! invalid UTF-8 sequence in string"]),
    (b'"\xe2\x82"', ["! invalid UTF-8 sequence in string"]),
    (b'"\xed\xa0\x80"', ["! invalid UTF-8 sequence in string"]),
    (b'"\xef\xbf\xbe"', ["! invalid UTF-8 sequence in string"]),
    (b'{"a":"\xef\xb7\x90"}', ["! invalid UTF-8 sequence in string"]),
    (b'"\xf0\x9f\xbf\xbf"', ["! invalid UTF-8 sequence in string"]),
    (b'"\xf4\x90\x80\x80"', ["! invalid UTF-8 sequence in string"]),
    (b'{"a\xc3(":1}', ["! invalid UTF-8 sequence in string"]),
]


@pytest.mark.parametrize(("data", "expected"), ERRORS)
def test_words_and_place_of_errors(data: bytes, expected: list[object]) -> None:
    assert outcomes(data) == expected


@pytest.mark.parametrize(("data"), [b"12", b"-", b"true", b'"abc', b"{", b'{"a":"b"', b'"\\', b'{"a":[}', b"1.5e3"])
def test_waits_for_more(data: bytes) -> None:
    assert outcomes(data) == []


def test_a_string_needs_no_terminator_but_a_number_does() -> None:
    assert [e.value for e in feed([b'"abc"'])] == ["abc"]  # type: ignore[union-attr]
    parser = Parser()
    assert parser.feed(b"12") == []
    assert [e.value for e in parser.feed(b" ")] == [12]  # type: ignore[union-attr]


def test_state_outlives_a_client() -> None:
    """A half-sent request is continued by whoever comes next; 0xFF is the way out."""
    assert outcomes(b'{"execute":"guest-sync","arguments":{"id"' + PING + b"\n}}\n") == ["! missing : in object pair"]
    assert outcomes(b'{"execute":"guest-sync","arguments":{"id"\xff' + PING) == ["! stray '\ufffd'", PINGED]


def test_pipelined_requests_of_all_kinds_keep_their_order() -> None:
    data = (
        PING + b"\n" + PING + b"{'a':1}" + PING + b'\n\n{"a":"\\u00e9"}\n["x"]7 null\n' + PING + "\n{'b':'é'}".encode()
    )
    assert (
        outcomes(data * 20) == [PINGED, PINGED, {"a": 1}, PINGED, {"a": "é"}, ["x"], 7, None, PINGED, {"b": "é"}] * 20
    )


def test_duplicates_are_found_among_many_members() -> None:
    members = b",".join(b'"k%d":%d' % (i, i) for i in range(8000))
    assert outcomes(b"{" + members + b"}", bytewise=False) == [{f"k{i}": i for i in range(8000)}]
    assert outcomes(b"{" + members + b',"k777":1}', bytewise=False) == ["! duplicate key"]
    colons = members.replace(b"k", b"k:")
    assert outcomes(b"{" + colons + b',"k:777":1}', bytewise=False) == ["! duplicate key"]


LARGE = {
    "flat": b'{"a":{' + b",".join(b'"k%d":"v%d"' % (i, i) for i in range(900)) + b"}}",
    "records": b'{"a":[' + b",".join(b'{"i":%d,"x":[true,null,{}],"s":"\\"q\\\\"}' % i for i in range(400)) + b"]}",
    "indented": b'{"a":[\n' + b",\n".join(b'%s{"i" : %d}' % (b" " * 40, i) for i in range(300)) + b"\n]\n}",
    "numbers": b'{"a":[' + b", ".join(b"%d,%d.5e1" % (i, i) for i in range(900)) + b"]}",
    "single quotes": b"{'a':[" + b",".join(b"'%d\"'" % i for i in range(900)) + b"]}",
    "text": b'{"a":["' + '","'.join(f"é{i}\\n" for i in range(900)).encode() + b'"]}',
}
SPOILERS = [b"01", b"x\x01", b"\xff", b"1-2", b"'", b"\\", b"]", b"}", b"}}", b"nul", b'"\n', b'"\\x"', b"\x0b", b"{"]


@pytest.mark.parametrize("name", LARGE)
def test_large_requests_do_not_depend_on_the_pieces(name: str) -> None:
    (value,) = outcomes(LARGE[name], bytewise=False, seeds=20)
    assert isinstance(value, dict)


@pytest.mark.parametrize("name", LARGE)
@pytest.mark.parametrize("spoiler", SPOILERS)
def test_a_fault_in_the_middle_of_a_large_request(name: str, spoiler: bytes) -> None:
    """The short cuts see what the lexer, which walks single bytes, sees."""
    middle = len(LARGE[name]) // 2
    data = LARGE[name][:middle] + spoiler + LARGE[name][middle:] + b"\n" + PING
    outcomes(data, seeds=6)
    for shift in range(1, 6):
        at = middle + shift
        outcomes(LARGE[name][:at] + spoiler + LARGE[name][at:] + b"\n" + PING, bytewise=False, seeds=2)
