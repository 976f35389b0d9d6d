"""base64 at the speed that this machine has: pybase64's (SIMD, an optional dependency), else binascii's.

For the front, which writes bulk data as base64 text and passes over it in requests.  What a *worker* makes of a host's text,
the lenient rules included, is `workers/base64.py`.
"""

from __future__ import annotations

import binascii

from protocol import cmodule

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

try:
    _simd = cmodule.load("pybase64", "_pybase64")
except ImportError:
    SIMD = False
else:
    SIMD = True

ALPHABET: Final = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
PIECE: Final = 192 * 1024  # bytes of data encoded at a time: whole groups of three


def encode(data: bytes | bytearray | memoryview) -> bytes:
    """The text of `data`, padded, without newlines."""
    if SIMD:
        text: bytes = _simd.b64encode(data)
        return text
    return binascii.b2a_base64(data, newline=False)


def decode(groups: bytes | memoryview) -> bytes | None:
    """The data that whole groups of four stand for: three bytes for each.  None when there is anything in them but the alphabet,
    padding too: then `encode` would not give the same text again."""
    try:
        data: bytes = _simd.b64decode(groups, validate=True) if SIMD else binascii.a2b_base64(groups, strict_mode=True)
    except ValueError:
        return None
    return data if len(data) * 4 == len(groups) * 3 else None


def is_base64(groups: bytes | memoryview) -> bool:
    """Whether `decode` has an answer; only where that is quicker than to look for each byte that a text must not have, else False."""
    return SIMD and decode(groups) is not None
