"""base64 as the peer reads it.  (What is written leaves a worker as it is; the front makes it base64.)

What the peer accepts is looser than RFC 4648: after a check that the text has nothing but the alphabet, `=` and newlines
(qemu's util/base64.c), GLib's g_base64_decode takes it in groups of four.  Newlines are passed over, an incomplete last group
gives nothing, and `=` counts as a zero wherever it stands, but as third or fourth of its group it takes that byte away.

Nearly every text is canonical, so a strict decoder tries first: pybase64's (SIMD, an optional dependency; some twenty times
the standard library's speed), else binascii's.  Only what it refuses is looked at more closely.
"""

from __future__ import annotations

import binascii
from itertools import chain, compress

from protocol.errors import CommandError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Final

    from privsep.frame import Incoming

try:
    from pybase64 import b64decode as _simd_decode
except ImportError:
    SIMD = False
else:
    SIMD = True

_VALID: Final = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/=\n"
_PAD_IS_ZERO: Final = bytes.maketrans(b"=", b"A")
_IS_NO_PAD: Final = bytes(0 if c == ord("=") else 1 for c in range(256))
_SLICE: Final = 1 << 20  # characters decoded at a time in the lenient way, a multiple of four: bounds its memory


def decoded(text: str | Incoming) -> tuple[int, Iterable[bytes | memoryview]]:
    """How many bytes the text stands for, and those, once, in pieces that are good until the next is taken.

    Raises CommandError as `decode` does, before there is any of it.  What is still in the socket may raise what `Incoming` does."""
    if isinstance(text, str):
        pieces = [decode(text)]
    elif text.end is None:
        pieces = decode_all(text)
    else:  # whole groups of it are decoded, so what is behind them means what it would alone
        last = decode(text.end)
        return text.size + len(last), chain(text, (last,))
    return sum(map(len, pieces)), pieces


def whole(text: str | Incoming) -> bytes:
    """All of that."""
    made = bytearray()
    for piece in decoded(text)[1]:
        made += piece
    return bytes(made)


def decode_all(text: Iterable[memoryview]) -> list[bytes]:
    """`decode` of a text that comes in pieces (of whole groups, but for the last), each gone when the next comes.

    Every piece has been looked at when it returns.  Raises CommandError as `decode` does."""
    found: list[bytes] = []
    rest = bytearray()
    for piece in text:
        if not rest:
            try:
                if not found or len(found[-1]) % 3 == 0:
                    found.append(_strict(piece))
                    continue
            except ValueError:
                pass
            # Not canonical: what was decoded so far is, so its text is known.
            for data in found:
                rest += binascii.b2a_base64(data, newline=False)
            found = []
        rest += piece
    return found if not rest else [decode(rest.decode("latin-1"))]


def decode(text: str) -> bytes:
    """The bytes that the peer makes of `text`.  Raises CommandError for a character that has no place in base64."""
    try:
        return _strict(text)
    except ValueError:  # binascii.Error is one, and what is raised for characters beyond ASCII
        pass
    try:
        raw = text.encode("ascii")
    except UnicodeEncodeError:
        raw = b"\0"
    if raw.translate(None, _VALID):
        raise CommandError("Base64 data contains invalid characters")
    if b"\n" in raw:
        raw = raw.replace(b"\n", b"")
        try:
            return _strict(raw)
        except ValueError:
            pass
    end = len(raw) // 4 * 4
    return b"".join(_lenient(raw[i : min(i + _SLICE, end)]) for i in range(0, end, _SLICE))


def _strict(text: str | bytes | memoryview) -> bytes:
    """Raises ValueError for anything that is not canonical."""
    if SIMD:
        data: bytes = _simd_decode(text, validate=True)
        return data
    raw = text.encode("ascii") if isinstance(text, str) else bytes(text)
    # The standard library's strict mode passes over padding after a whole group.
    if len(raw) % 4 or raw.find(b"=", 0, max(len(raw) - 2, 0)) >= 0:
        raise ValueError("not canonical")
    return binascii.a2b_base64(raw, strict_mode=True)


def _lenient(groups: bytes) -> bytes:
    """Whole groups of the alphabet and `=`; the work is done by C loops because a host may send megabytes of `=`."""
    data = binascii.a2b_base64(groups.translate(_PAD_IS_ZERO))
    keep = bytearray(b"\1") * len(data)
    keep[1::3] = groups[2::4].translate(_IS_NO_PAD)
    keep[2::3] = groups[3::4].translate(_IS_NO_PAD)
    return bytes(compress(data, keep))
