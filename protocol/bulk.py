"""The middle of a large request, measured without taking it apart.

A request of many members that arrives in pieces would be lexed token by token, a microsecond each.  `measure` looks at
up to 64 KiB of it with a handful of C calls and tells what the lexer would have found, or None where it cannot be sure.
"""

from __future__ import annotations

from protocol import base64
from protocol.lexis import MARKS, NEVER, is_scalar, mask

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

LARGEST: Final = 1 << 16
LEAST: Final = 1 << 9  # below this the lexer is as quick

_LONG: Final = 4096  # bytes of strings in it that are worth a look whether they are base64
_DEPTH: Final = 64  # brackets opened and closed in the block that are nested deeper are left to the lexer

# Structure with blanks for all but numbers and words.  Vertical tab and form feed would split what is not two tokens.
_BLANKED: Final = bytes(0x20 if c in MARKS + b'"' else 0x58 if c in b"\x0b\x0c" else c for c in range(256))
_NOT_BRACKETS: Final = bytes(c for c in range(256) if c not in b"[]{}")
_AFTER_STRING: Final = b",:}] \t\r\n"
_NOT_MARKS: Final = bytes(c for c in range(256) if c not in MARKS)


class Measure:
    """taken      bytes from the block's start; after them the lexer is between tokens or in a string of double quotes
    text       the same, with less white space if there was much
    open_size  bytes of that unfinished string with its quote, 0: between tokens
    tokens     complete ones
    size       their bytes
    braces     by how much the balance of { and } changes
    brackets   the same for [ and ]
    lowest     how far the two may have been down in between, both not above zero
    highest    how many more may have been open at once
    """

    __slots__ = ("taken", "text", "open_size", "tokens", "size", "braces", "brackets", "lowest", "highest")

    taken: int
    text: bytes
    open_size: int
    tokens: int
    size: int
    braces: int
    brackets: int
    lowest: tuple[int, int]
    highest: int


def is_string(block: bytes) -> bool:
    """Whether most of the block seems to be one string that begins in it: there is nothing to measure then, and the lexer is
    quicker."""
    last = block.rfind(b'"')
    return 0 <= last < len(block) // 4 and block[last + 1] not in _AFTER_STRING


def measure(block: bytes) -> Measure | None:
    """What is in a block that begins between two tokens; None when it is not that simple."""
    # Escapes are only in strings.  Those in the structure become something that is no scalar.
    masked = mask(block, 0x22)
    if masked.endswith(b"\\"):
        return None
    parts = masked.split(b'"')
    outside, inside = parts[::2], parts[1::2]
    unfinished = len(inside) == len(outside)
    made = Measure()
    made.taken = len(block)
    if not unfinished:
        # A number or word at the end may go on in the next block: leave it.
        last = outside[-1]
        keep = max(map(last.rfind, (b"[", b"]", b"{", b"}", b":", b","))) + 1
        made.taken -= len(last) - keep
        outside[-1] = last[:keep]
    strings = b"".join(inside)
    groups = len(strings) & ~3
    if len(strings) > _LONG and base64.is_base64(strings[:groups]):
        strings = strings[groups:]
    if len(strings) != len(strings.translate(None, NEVER)):
        return None
    structure = b'"'.join(outside)
    # Whatever is no mark, no white space and no part of a string has to be a number or word; a stray byte is not.
    scalars = structure.translate(_BLANKED).split()
    if not all(map(is_scalar, set(scalars))):
        return None

    brackets = structure.translate(None, _NOT_BRACKETS)
    made.highest = 0
    while True:
        # What opens and closes in here neither lowers the balance nor changes it.
        fewer = brackets.replace(b"{}", b"").replace(b"[]", b"")
        if fewer == brackets:
            break
        brackets = fewer
        made.highest += 2
        if made.highest > _DEPTH:
            return None
    closed = brackets.count(b"}"), brackets.count(b"]")
    opened = brackets.count(b"{"), brackets.count(b"[")
    made.highest += sum(opened)
    made.lowest = -closed[0], -closed[1]
    made.braces = opened[0] - closed[0]
    made.brackets = opened[1] - closed[1]

    blanks = sum(map(structure.count, (b" ", b"\t", b"\r", b"\n")))
    made.text = block[: made.taken]
    if blanks * 2 > made.taken and masked is block:
        parts[::2] = [b" ".join(part.split()) for part in outside]
        made.text = b'"'.join(parts)
    elif blanks * 2 > made.taken:
        return None  # kept, it would fill the memory
    made.open_size = len(inside[-1]) + 1 if unfinished else 0
    made.size = made.taken - blanks - made.open_size
    made.tokens = len(structure.translate(None, _NOT_MARKS)) + len(scalars) + len(inside) - unfinished
    return made
