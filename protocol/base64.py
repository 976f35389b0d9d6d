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

PIECE: Final = 192 * 1024  # bytes of data encoded at a time: whole groups of three


def encode(data: bytes | memoryview) -> bytes:
    """The text of `data`, padded, without newlines."""
    if SIMD:
        text: bytes = _simd.b64encode(data)
        return text
    return binascii.b2a_base64(data, newline=False)


def is_base64(text: bytes | memoryview) -> bool:
    """Whether `text`, whole groups of four without padding at the end, has nothing but base64's alphabet.

    Only where that is quicker than to look for each byte that it must not have, else False."""
    if not SIMD:
        return False
    try:
        _simd.b64decode(text, validate=True)
    except ValueError:
        return False
    return True
