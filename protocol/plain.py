"""The short way for plain requests: the interpreter's own JSON scanner, where it provably agrees with QEMU.

`_json` is the C half of the `json` package; it costs 0.2 ms to import where the package costs 8 ms (it brings `re`).
Where its dialect is wider than QEMU's, or its answer may differ, `scan` gives up and the exact parser decides:

* lone surrogates and noncharacters: `text_of` refuses text with a \\u escape or a possible noncharacter;
* NaN and Infinity, a zero with an exponent: refused by the hooks;
* integers beyond 64 bits: the hook makes them floats, as QEMU does;
* duplicate keys: noticed by counting colons, which is cheaper than a hook, and then by a hook;
* the limits on size and number of tokens: estimated generously, so the exact parser counts when they are near.

What the scanner raises for malformed text depends on whether `json.decoder` is imported; from Python 3.12 on it imports
it then.  `stand_alone` forbids that, for a process that may not open files.
"""

from __future__ import annotations

import sys
from _json import make_scanner

from protocol.text import suspect

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

SIZE_LIMIT: Final = 64 << 20  # bytes of one token, or of all tokens of one request
TOKEN_LIMIT: Final = 2 << 20  # tokens of one request
NESTING_LIMIT: Final = 1 << 10  # brackets and braces open at once

INT64_MIN: Final = -(1 << 63)
UINT64_MAX: Final = (1 << 64) - 1


def integer(token: str | bytes) -> int | float:
    """A JSON integer's value: int64 if it fits, else uint64, else double."""
    if len(token) < 19:
        return int(token)
    if len(token) <= 20:
        value = int(token)
        if INT64_MIN <= value <= UINT64_MAX:
            return value
    return float(token)


def _number(token: str) -> float:
    if token[token[0] == "-" :][:2] in ("0e", "0E"):
        raise ValueError
    return float(token)


def _no_duplicates(pairs: list[tuple[str, object]]) -> dict[str, object]:
    made = dict(pairs)
    if len(made) != len(pairs):
        raise ValueError
    return made


class _Fast:
    strict = True  # no control characters in strings
    object_hook = None
    object_pairs_hook: object = None
    parse_float = staticmethod(_number)
    parse_int = staticmethod(integer)
    parse_constant = int  # raises for NaN, Infinity and -Infinity


class _Careful(_Fast):
    object_pairs_hook = staticmethod(_no_duplicates)


_fast: Final = make_scanner(_Fast())  # type: ignore[arg-type]
_careful: Final = make_scanner(_Careful())  # type: ignore[arg-type]


def stand_alone() -> None:
    """From now on nothing in this process imports the json package, on whatever occasion."""
    sys.modules.setdefault("json.decoder", None)  # type: ignore[arg-type]


def text_of(data: bytes | bytearray) -> str | None:
    """The text of `data` if it is fit for `scan`, else None."""
    if b"\\" in data and b"\\u" in data:
        return None
    if data.isascii():
        return data.decode("ascii")
    if suspect(data, 0, len(data)):
        return None
    try:
        return data.decode()
    except UnicodeDecodeError:
        return None


def scan(text: str, start: int, *, counted: bool = False) -> tuple[dict[str, object], int] | None:
    """The object whose text begins at `start` and the place after it; None for whatever is not plain.

    `counted` says that the limits are known to be kept."""
    try:
        value, end = _fast(text, start)
        members = _count(text, ":", start, end)
        if members != len(value):
            arguments = value.get("arguments")
            if type(arguments) is not dict or members != len(value) + len(arguments):
                value, end = _careful(text, start)
    except Exception:
        # StopIteration, RecursionError, what the hooks raise, and SystemError for want of json.decoder: not plain.
        return None
    if not counted and end - start > NESTING_LIMIT and not _within_limits(value, text, start, end):
        return None
    return value, end


def _count(text: str, mark: str, start: int, end: int) -> int:
    """text.count, which looks at each character, but at the speed of find where there is little to be found."""
    if end - start > 4096:
        pos = start
        for found in range(64):
            pos = text.find(mark, pos, end) + 1
            if not pos:
                return found
    return text.count(mark, start, end)


def _within_limits(value: object, text: str, start: int, end: int) -> bool:
    length = end - start
    if (length if text.isascii() else 4 * length) >= SIZE_LIMIT:
        return False
    opened = _count(text, "{", start, end) + _count(text, "[", start, end)
    if opened > NESTING_LIMIT and _is_deep(value):
        return False
    # Between two of these is at most one string, number or word.
    if length < TOKEN_LIMIT:
        return True
    return 2 * (2 * opened + _count(text, ":", start, end) + _count(text, ",", start, end)) < TOKEN_LIMIT


def _is_deep(value: object) -> bool:
    """Whether it nests beyond the limit."""
    level = [value]
    for _ in range(NESTING_LIMIT):
        deeper: list[object] = []
        for one in level:
            items = one.values() if type(one) is dict else one
            deeper += [item for item in items if type(item) is dict or type(item) is list]  # type: ignore[attr-defined]
        if not deeper:
            return False
        level = deeper
    return True
