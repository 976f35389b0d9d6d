"""msgpack frames on the SEQPACKET sockets between front and workers.

One frame is one msgpack value: a request `[id, verb, args]` or a reply `[id, ok, value]`.  It travels in one datagram, or
in several when it is larger than `PART`; the first byte of each says whether more follow.  A datagram carries no file
descriptor unless the receiver asks for one.

What a peer may send is checked here once, for both directions: exact types (bool is not int), no extension types (a
Timestamp would slip past msgpack's `ext_hook`, hence the walk over the decoded value), no NaN, no duplicate and no
non-string keys, bounded size and nesting.  Anything else is a `ProtocolViolation`: the peer is broken or hostile.

msgpack: <https://github.com/msgpack/msgpack/blob/master/spec.md>.  The ceiling of a datagram is the socket's send
buffer, some 212 kB by default.
"""

from __future__ import annotations

import msgpack

from protocol.errors import ProtocolViolation

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

PART: Final = 128 * 1024  # bytes of payload in one datagram
DATAGRAM: Final = PART + 1
LIMIT: Final = 72 * 1024 * 1024  # bytes of one whole frame: the largest request the wire admits, with room to spare
DEPTH: Final = 32  # containers inside each other; the deepest result in the command table has six

# Verbs that are no command: the first frame of a connection, "do you hold state?", "that reply was written to the host".
HELLO: Final = -1
IDLE: Final = -2
DELIVERED: Final = -3

_LAST: Final = b"\x00"
_MORE: Final = b"\x01"


def encode(value: object) -> list[bytes]:
    """The datagrams of one frame."""
    data: bytes = msgpack.packb(value, use_bin_type=True, unicode_errors="surrogatepass")
    if len(data) <= PART:
        return [_LAST + data]
    view = memoryview(data)
    parts = [_MORE + view[i : i + PART] for i in range(0, len(data), PART)]
    parts[-1] = _LAST + parts[-1][1:]
    return parts


def _no_duplicates(pairs: list[tuple[object, object]]) -> dict[object, object]:
    made = dict(pairs)
    if len(made) != len(pairs):
        raise ProtocolViolation("duplicate key")
    return made


def _no_extension(code: int, data: bytes) -> object:
    raise ProtocolViolation("extension type")


def _check(value: object, depth: int) -> None:
    kind = type(value)
    if kind is str or kind is int or kind is bool or value is None or kind is bytes:
        return
    if kind is float:
        if value != value:
            raise ProtocolViolation("not a number")
    elif kind is list or kind is dict:
        if depth == 0:
            raise ProtocolViolation("nested too deep")
        if kind is dict:
            assert isinstance(value, dict)
            for key in value:
                if type(key) is not str:
                    raise ProtocolViolation("key is not a string")
            items: object = value.values()
        else:
            items = value
        for item in items:  # type: ignore[attr-defined]
            kind = type(item)
            if not (kind is str or kind is int or kind is bool):
                _check(item, depth - 1)
    else:
        raise ProtocolViolation(f"type {kind.__name__}")


def decode(data: bytes | bytearray) -> object:
    """One frame's value, checked; raises ProtocolViolation."""
    try:
        value = msgpack.unpackb(
            data,
            raw=False,
            strict_map_key=False,
            object_pairs_hook=_no_duplicates,
            ext_hook=_no_extension,
            max_ext_len=0,
        )
    except ProtocolViolation:
        raise
    except Exception as e:  # msgpack raises ValueErrors of its own, struct errors, UnicodeDecodeError, RecursionError
        raise ProtocolViolation(f"not a frame: {type(e).__name__}") from None
    _check(value, DEPTH)
    return value


class Assembler:
    """Puts the datagrams of one direction together."""

    __slots__ = ("_parts", "_limit")

    def __init__(self, limit: int = LIMIT) -> None:
        self._parts = bytearray()
        self._limit = limit

    def feed(self, datagram: bytes) -> object | None:
        """The frame that this datagram completes, or None; a frame is never None itself.

        Raises ProtocolViolation."""
        mark = datagram[:1]
        if mark != _LAST and mark != _MORE:
            raise ProtocolViolation("unknown mark")
        if len(self._parts) + len(datagram) - 1 > self._limit:
            raise ProtocolViolation("frame too large")
        if mark == _LAST and not self._parts:
            value = decode(datagram[1:])
        else:
            self._parts += memoryview(datagram)[1:]
            if mark == _MORE:
                return None
            data, self._parts = self._parts, bytearray()
            value = decode(data)
        if value is None:
            raise ProtocolViolation("empty frame")
        return value
