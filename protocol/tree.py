"""One complete request's tokens to its value, with QEMU's words for what is wrong (qobject/json-parser.c).

The text was lexed before (protocol/dialect.py), so each token in it is well-formed, and each number and word is
followed by white space, a quote or one of `[ ] { } , :`.  What remains to be found wrong is the order of tokens, the
content of strings, unknown words and duplicate keys.  The first error counts.  No recursion: a request may nest deeper
than Python's stack.
"""

from __future__ import annotations

from protocol import plain
from protocol.lexis import LETTERS, SPACE, WINDOW, WINDOW_GROWS, run
from protocol.longtext import LongText
from protocol.text import LONG, NONCHARACTERS, decode, lenient

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

    from protocol.longtext import Rope

_MESSAGE_LIMIT: Final = 1023  # bytes that the parser's error buffer holds
_NO_KEY: Final = "\udc00"  # no string of a request has a surrogate in it

_COMMA, _COLON, _QUOTE, _APOSTROPHE, _BACKSLASH = b",:\"'\\"
_NUMBER: Final = b"0123456789+-.eE"
_WORDS: Final = {b"true": True, b"false": False, b"null": None}
_ESCAPES: Final = {
    **{c: chr(c) for c in b"\"'\\/"},
    **dict(zip(b"bfnrt", "\b\f\n\r\t", strict=True)),
}
_REPLACED: Final = tuple((b"\\" + bytes((k,)), v.encode()) for k, v in _ESCAPES.items() if k != _BACKSLASH)
_HEX: Final = frozenset(b"0123456789abcdefABCDEF")
_OPEN_LIST, _CLOSE_LIST, _OPEN_DICT, _CLOSE_DICT = b"[]{}"


class Malformed(Exception):
    """`desc` is the text for the error object."""

    def __init__(self, what: str) -> None:
        super().__init__(what)
        self.desc = "JSON parse error, " + what


def value_of(text: bytearray, tokens: int, long_text: bool = False, rope: Rope | None = None) -> object:
    """The value of a request of so many tokens; raises Malformed.

    With `long_text` long values of members may be a LongText, which may own `text` then.  With a rope the string that begins
    at its place is in it."""
    if (
        rope is None and text[0] == _OPEN_DICT and len(text) < 64 * tokens
    ):  # long strings are better cut out than decoded with the rest
        whole = plain.text_of(text)
        got = plain.scan(whole, 0, counted=True) if whole is not None else None
        if got is not None:
            return got[0]
    return _parse(text, long_text and len(text) > LONG and text.isascii(), rope)


def word_of(word: bytes) -> object:
    """A word's value; raises Malformed."""
    if word not in _WORDS:
        raise Malformed(f"invalid keyword '{word.decode()}'"[:_MESSAGE_LIMIT])
    return _WORDS[word]


def _parse(text: bytearray, long_text: bool, rope: Rope | None) -> object:
    end = len(text)
    rope_at = -1 if rope is None else rope.at
    stack: list[tuple[list[object] | dict[str, object] | None, str]] = []
    container: list[object] | dict[str, object] | None = None
    key = _NO_KEY
    value: object
    pos = 0

    def token(pos: int) -> int:
        """Where the next token begins."""
        if pos < end and text[pos] in SPACE:
            pos = run(text, pos, SPACE)
        if pos >= end:
            raise Malformed("premature EOI")
        return pos

    while True:
        # A value has to come.
        pos = token(pos)
        first = text[pos]
        if first in (_QUOTE, _APOSTROPHE):
            if pos == rope_at:
                value, pos = _roped(text, rope, key is not _NO_KEY)  # type: ignore[arg-type]
            else:
                value, pos = _string(text, pos, long_text and key is not _NO_KEY)
        elif first in (_OPEN_DICT, _OPEN_LIST):
            opened: list[object] | dict[str, object] = {} if first == _OPEN_DICT else []
            pos = token(pos + 1)
            if text[pos] != first + 2:  # the closing one, in ASCII
                stack.append((container, key))
                container, key = opened, _NO_KEY
                continue
            value = opened
            pos += 1
        elif first in _NUMBER and first != 0x65:  # e: a word
            stop = run(text, pos, _NUMBER)
            digits = bytes(text[pos:stop])
            value = plain.integer(digits) if digits.lstrip(b"-").isdigit() else float(digits)
            pos = stop
        elif first in LETTERS:
            stop = run(text, pos, LETTERS)
            value = word_of(bytes(text[pos:stop]))
            pos = stop
        else:
            raise Malformed("expecting value")
        # There it is: it goes into what encloses it, which may thereby be complete.
        while True:
            if container is None:
                return value
            if type(container) is list:
                container.append(value)
                pos = token(pos)
                mark = text[pos]
                if mark != _COMMA and mark != _CLOSE_LIST:
                    raise Malformed("expected separator in list")
            elif key is _NO_KEY:
                if type(value) is not str:
                    raise Malformed("key is not a string in object")
                pos = token(pos)
                if text[pos] != _COLON:
                    raise Malformed("missing : in object pair")
                key = value
                pos += 1
                break
            else:
                assert type(container) is dict
                if key in container:
                    raise Malformed("duplicate key")
                container[key] = value
                key = _NO_KEY
                pos = token(pos)
                mark = text[pos]
                if mark != _COMMA and mark != _CLOSE_DICT:
                    raise Malformed("expected separator in dict")
            pos += 1
            if mark == _COMMA:
                break
            value = container
            container, key = stack.pop()


def _string(text: bytearray, start: int, long_text: bool) -> tuple[str | LongText, int]:
    """The string whose quote is at `start`, and the place after it."""
    quote = text[start]
    stop = text.find(quote, start + 1)
    while text[stop - 1] == _BACKSLASH and _backslashes(text, start + 1, stop) % 2:
        stop = text.find(quote, stop + 1)
    try:
        if text.find(_BACKSLASH, start + 1, stop) < 0:
            if long_text and stop - start > LONG:
                return LongText([memoryview(text)[start + 1 : stop]]), stop + 1
            return decode(text, start + 1, stop), stop + 1
        return _unescape(text, start + 1, stop), stop + 1
    except ValueError:
        raise Malformed("invalid UTF-8 sequence in string") from None


def _roped(text: bytearray, rope: Rope, long_text: bool) -> tuple[str | LongText, int]:
    """The same for the string that is in the rope, its start and its end in the text too: it has no escapes."""
    stop = text.index(text[rope.at], rope.at + 1)
    whole = rope.whole()
    return whole if long_text else str(whole), stop + 1


def _backslashes(text: bytearray, start: int, stop: int) -> int:
    """How many stand before `stop`."""
    window = WINDOW
    while True:
        part = text[max(start, stop - window) : stop]
        left = len(part.rstrip(b"\\"))
        if left or len(part) < window:
            return len(part) - left
        window *= WINDOW_GROWS


def _unescape(text: bytearray, pos: int, stop: int) -> str:
    """The content of a string with escapes, text[stop] being its closing quote; raises ValueError for bad UTF-8."""
    if text.find(b"\\u", pos, stop) < 0:
        try:
            simple = _replace_escapes(text[pos:stop])
            return decode(simple, 0, len(simple))
        except ValueError:
            pass  # which error comes first?
    out: list[str] = []
    while True:
        slash = text.find(_BACKSLASH, pos, stop)
        if slash != pos:
            out.append(decode(text, pos, stop if slash < 0 else slash))
        if slash < 0:
            return "".join(out)
        letter = text[slash + 1]
        pos = slash + 2
        if letter in _ESCAPES:
            out.append(_ESCAPES[letter])
        elif letter == 0x75:  # u
            code = _hex4(text, pos)
            pos += 4
            if 0xD800 <= code < 0xDC00 and text[pos : pos + 2] == b"\\u":
                low = _hex4(text, pos + 2)
                if 0xDC00 <= low < 0xE000:
                    code = 0x10000 + ((code & 0x3FF) << 10 | low & 0x3FF)
                    pos += 6
            if code < 0 or 0xD800 <= code < 0xE000 or chr(code) in NONCHARACTERS:
                sent = lenient(bytes(text[slash : min(pos, stop + 1)]))
                raise Malformed(f"{sent} is not a valid Unicode character")
            out.append(chr(code))
        else:
            raise Malformed("invalid escape sequence in string")


def _replace_escapes(text: bytearray) -> bytearray:
    """Without escapes, if there are only those of one letter; raises ValueError."""
    parts = text.split(b"\\\\")
    for i, part in enumerate(parts):
        if _BACKSLASH in part:
            for escape, meant in _REPLACED:
                part = part.replace(escape, meant)
            if _BACKSLASH in part:
                raise ValueError("unknown escape")
            parts[i] = part
    return bytearray(b"\\").join(parts)


def _hex4(text: bytearray, pos: int) -> int:
    """Four hexadecimal digits' value, -1 if they are not."""
    digits = text[pos : pos + 4]
    return int(digits, 16) if len(digits) == 4 and _HEX.issuperset(digits) else -1
