"""Modified UTF-8, the text encoding of QEMU's strings.

It is UTF-8 in which U+0000 is written C0 80 (so that a C string can hold it).  Overlong forms, surrogates,
noncharacters (the last two code points of each plane, U+FDD0 to U+FDEF) and anything above U+10FFFF are refused in what
comes in and become U+FFFD in what goes out, one for each malformed sequence (util/unicode.c of QEMU).  Here U+0000 is
an ordinary character of a `str`.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

REPLACEMENT: Final = "\ufffd"
NONCHARACTERS: Final = frozenset(
    [
        *map(chr, range(0xFDD0, 0xFDF0)),
        *(chr(plane << 16 | low) for plane in range(17) for low in (0xFFFE, 0xFFFF)),
    ]
)
# What the UTF-8 of every noncharacter has in it.  Other characters' may too: this only says when to look closely.
_SUSPECT: Final = (b"\xef\xb7", b"\xbf\xbe", b"\xbf\xbf")
_NUL: Final = b"\xc0\x80"


LONG: Final = 1 << 16  # bytes from which on a string may stay where it was lexed
ROPED: Final = 1 << 16  # bytes of a string after which it does not grow there any more


class Long:
    """What stands for the `str` of a long string (protocol/longtext.py)."""

    __slots__ = ()


def suspect(data: bytes | bytearray, start: int, stop: int) -> bool:
    """Whether a noncharacter may be in there."""
    lead, low, high = _SUSPECT
    return data.find(lead, start, stop) >= 0 or data.find(low, start, stop) >= 0 or data.find(high, start, stop) >= 0


def decode(data: bytes | bytearray, start: int, stop: int) -> str:
    """The text of a part of `data`, which is not copied first; raises ValueError where QEMU refuses it."""
    try:
        with memoryview(data) as view:
            text = str(view[start:stop], "utf-8")
    except UnicodeDecodeError:
        text = bytes(data[start:stop]).replace(_NUL, b"\0").decode()
    if not text.isascii() and suspect(data, start, stop) and not NONCHARACTERS.isdisjoint(text):
        raise ValueError("noncharacter")
    return text


def _sequences(run: bytes) -> int:
    """How many malformed sequences are in bytes that hold no well-formed one.

    A lead byte takes the continuation bytes that follow it, as many as it announces; each other byte stands alone."""
    count = pos = 0
    while pos < len(run):
        lead = run[pos]
        pos += 1
        count += 1
        if 0xC0 <= lead < 0xFE:
            announced = 8 - (lead ^ 0xFF).bit_length() - 1
            while announced and pos < len(run) and run[pos] & 0xC0 == 0x80:
                pos += 1
                announced -= 1
    return count


def repair(text: str) -> str:
    """`text` with U+FFFD for what modified UTF-8 cannot say.

    Surrogates are what is left of undecodable bytes (surrogateescape, as the os module does it) and count as those."""
    if text.isascii():
        return text
    try:
        text.encode()
    except UnicodeEncodeError:
        text = lenient(text.encode("utf-8", "surrogateescape" if _only_escapes(text) else "surrogatepass"))
    if not NONCHARACTERS.isdisjoint(text):
        text = text.translate({ord(c): REPLACEMENT for c in NONCHARACTERS})
    return text


def _only_escapes(text: str) -> bool:
    return all(not "\ud800" <= c <= "\udfff" or "\udc80" <= c <= "\udcff" for c in text)


def lenient(data: bytes) -> str:
    """The text of bytes of which nothing is known, as QEMU would write it: U+FFFD for each malformed sequence."""
    try:
        text = data.decode()
    except UnicodeDecodeError:
        # Where a well-formed character stands is beyond dispute; what is between them is QEMU's to count.
        out: list[str] = []
        text = data.decode("utf-8", "surrogateescape")
        pos = 0
        while pos < len(text):
            start = pos
            while pos < len(text) and not "\udc80" <= text[pos] <= "\udcff":
                pos += 1
            out.append(text[start:pos])
            start = pos
            while pos < len(text) and "\udc80" <= text[pos] <= "\udcff":
                pos += 1
            run = text[start:pos].encode("utf-8", "surrogateescape")
            out.append("\0".join(REPLACEMENT * _sequences(part) for part in run.split(_NUL)))
        text = "".join(out)
    if not text.isascii() and not NONCHARACTERS.isdisjoint(text):
        text = text.translate({ord(c): REPLACEMENT for c in NONCHARACTERS})
    return text
