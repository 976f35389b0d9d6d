"""The bytes of QEMU's JSON tokens: classes, the number automaton, and ways to pass over a run without walking it.

From the tables of qobject/json-lexer.c.  A table here is 256 bytes long: `bytes.translate` applies it at memory speed.
"""

from __future__ import annotations

from protocol import base64

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

SPACE: Final = b" \t\r\n"
MARKS: Final = b"[]{}:,"
LETTERS: Final = b"abcdefghijklmnopqrstuvwxyz"  # of words
DIGITS: Final = b"0123456789"
NEVER: Final = bytes(range(32)) + b"\xfe\xff"  # in no string, not even escaped
RESET: Final = 0xFE  # and 0xFF: hosts send one to bring the parser to a known state

# Bytes to look at when the end of a run is not known: first, and at most; each time so many times more.
WINDOW: Final = 64
WINDOW_MOST: Final = 1 << 16
WINDOW_GROWS: Final = 8


def hits(kinds: bytes) -> bytes:
    """A table that makes a 1 of `kinds` and a 0 of all else: translate, then find(1)."""
    return bytes(c in kinds for c in range(256))


RECOVERY_STOPS: Final = hits(NEVER.replace(b"\t", b"") + MARKS)

# Numbers: what a byte makes of each state.
STRAY: Final = 0
SIGN: Final = 1
ZERO: Final = 2
INTEGER: Final = 3
POINT: Final = 4
FRACTION: Final = 5
EXPONENT: Final = 6
EXPONENT_SIGN: Final = 7
POWER: Final = 8
END: Final = 9  # the number ended before this byte

_WHOLE: Final = (ZERO, INTEGER, FRACTION, POWER)  # states that are a number already
REPEATING: Final = (INTEGER, FRACTION, POWER)  # that any number of digits keeps
_TRANSITIONS: Final = {
    SIGN: {b"0": ZERO, b"123456789": INTEGER},
    ZERO: {DIGITS: STRAY, b".": POINT},
    INTEGER: {DIGITS: INTEGER, b"eE": EXPONENT, b".": POINT},
    POINT: {DIGITS: FRACTION},
    FRACTION: {DIGITS: FRACTION, b"eE": EXPONENT},
    EXPONENT: {b"+-": EXPONENT_SIGN, DIGITS: POWER},
    EXPONENT_SIGN: {DIGITS: POWER},
    POWER: {DIGITS: POWER},
}


def _row(state: int) -> bytes:
    row = bytearray([END if state in _WHOLE else STRAY] * 256)
    for kinds, target in _TRANSITIONS[state].items():
        for c in kinds:
            row[c] = target
    return bytes(row)


_FIRST: Final = bytes(
    ZERO if c == 0x30 else SIGN if c == 0x2D else INTEGER if c in DIGITS else STRAY for c in range(256)
)
NUMBERS: Final = (_FIRST, *(_row(s) for s in range(SIGN, END)))  # the first row is for a number's first byte


def is_scalar(token: bytes) -> bool:
    """Whether it is exactly one word or one number."""
    if token.isdigit():
        return token[0] != 0x30 or len(token) == 1
    if not token.lstrip(LETTERS):
        return True
    state = 0
    for c in token:
        state = NUMBERS[state][c]
        if state in (STRAY, END):
            return False
    return state in _WHOLE


def run(data: bytes | bytearray, pos: int, kinds: bytes) -> int:
    """The end of the run of bytes out of `kinds` that begins at `pos`."""
    window = WINDOW
    while True:
        part = data[pos : pos + window]
        left = len(part.lstrip(kinds))
        pos += len(part) - left
        if left or len(part) < window:
            return pos
        window = min(window * WINDOW_GROWS, WINDOW_MOST)


def find(data: bytes, pos: int, end: int, stops: bytes) -> int:
    """The first byte that the table marks, `end` if there is none."""
    window = WINDOW
    while pos < end:
        part = data[pos : pos + window]
        hit = part.translate(stops).find(1)
        if hit >= 0:
            return pos + hit
        pos += len(part)
        window = min(window * WINDOW_GROWS, WINDOW_MOST)
    return end


_STRING_STOPS: Final = {q: hits(NEVER + bytes((q,))) for q in b"\"'"}
_STRING_STOP_LIST: Final = {q: [bytes((c,)) for c in NEVER + bytes((q,))] for q in b"\"'"}


def mask(part: bytes, quote: int) -> bytes:
    """Part of a string, of the same length, in which neither backslash nor quote is an escaped one.

    The part must not begin after a backslash.  If the result ends with one, the escape goes on behind it."""
    if b"\\" in part:
        return part.replace(b"\\\\", b"__").replace(b"\\" + bytes((quote,)), b"__")
    return part


def string_stop(masked: bytes, quote: int) -> int:
    """The place of the first byte that ends a string or must not be in it, -1 if there is none."""
    if len(masked) > 4096:
        end = masked.find(quote)
        inner = masked if end < 0 else masked[:end]
        groups = len(inner) - 1 & ~3  # the last one may be padded
        if base64.is_base64(memoryview(inner)[:groups]):
            inner = inner[groups:]
        elif not any(map(inner.__contains__, _STRING_STOP_LIST[quote])):
            return end  # three dozen memchr are quicker than one table
        else:
            groups = 0
        hit = inner.translate(_STRING_STOPS[quote]).find(1)
        return end if hit < 0 else groups + hit
    return masked.translate(_STRING_STOPS[quote]).find(1)
