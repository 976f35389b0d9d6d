"""msgpack frames on the SEQPACKET sockets between front and workers, and the bulk data beside them.

One frame is one msgpack value: a request `[id, verb, args]` or a reply `[id, ok, value]`.  It travels in one datagram, or
in several when it is larger than `PART`; the first byte of each says whether more follow.

Large base64 members (`bulk` in the command table) are not part of the frame.  No JSON or msgpack codec runs over them:

* a request has a fourth element `[member, size]`; so many bytes of text follow in datagrams of `BULK_PART` bytes (`Pieces`,
  `Incoming`), which cost less than a memfd that somebody would have to map and fill.  Of a long text the front has decoded all but
  the end already: then it is `[member, size, end]`, and so many bytes of data follow, three for each group of the text;
* a reply's member is the bytes themselves, raw, or their number while the bytes are in a memfd: the reply's fourth element
  names those members in the memfd's order, and the descriptor comes with the same datagram (`privsep/blob.py`).  The fifth says
  which kind: `SEALED`, `KEPT`, or `FLOW`: then `[id, true, size]` follows for each further slot that is filled, and at last
  `[id, true, {the other members}]`; for each `blob.SPEND` slots that it took, and at the end for those that are left, the front sends
  the datagram `TAKEN`.

What the front may send is checked here once: exact types (bool is not int), no extension types (a
Timestamp would slip past msgpack's `ext_hook`, hence the limit of 0 and the walk over the decoded value), no NaN, no
duplicate and no non-string keys, bounded size and nesting.  Anything else is a `ProtocolViolation`: the peer is broken or
hostile.  What a worker sends is checked here for size and codec; the rest when it is compared with what the command returns.

A reply that is a long list may come in parts, made and read at the same time: `[id, nil, rows]` any number of times, in order,
then `[id, true, rows]` with the last of them, or an error, and then there is no list.  All its parts together are no more than a reply
may be.

msgpack: <https://github.com/msgpack/msgpack/blob/master/spec.md>.  The ceiling of a datagram is the socket's send
buffer, some 212 kB by default.
"""

from __future__ import annotations

from _functools import partial  # type: ignore[import-not-found]  # functools would bring collections

from privsep.codec import pack, unpack
from protocol.errors import ProtocolViolation

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from mmap import mmap
    from typing import Final

    from privsep.wiring import Socket

PART: Final = 128 * 1024  # bytes of payload in one datagram
DATAGRAM: Final = PART + 1
LIMIT: Final = 72 * 1024 * 1024  # bytes of one whole frame: the largest request the wire admits, with room to spare
# Bytes of one whole reply; bulk data is beside it.  What a small frame decodes to may be seventy times as large, hence less.
REPLY_LIMIT: Final = 16 * 1024 * 1024
DEPTH: Final = 32  # containers inside each other; the deepest result in the command table has six
BULK_PART: Final = 64 * 1024  # bytes of bulk data in one: whole groups of four (as text), and several fit a socket
ROWS: Final = 256  # of a list in one part
INLINE: Final = 32 * 1024  # bytes of bulk data that travel inside the frame: a copy more, some system calls less

# Verbs that are no command: the first frame of a connection, "do you hold state?", "that reply was written to the host",
# "the host has closed the channel".
HELLO: Final = -1
IDLE: Final = -2
DELIVERED: Final = -3
ABSENT: Final = -4

SEALED: Final = 0
KEPT: Final = 1
FLOW: Final = 2
TAKEN: Final = b"\2"

_LAST: Final = 0
_MORE: Final = 1


def encode(value: object) -> list[bytes]:
    """The datagrams of one frame."""
    data = pack(value)
    if len(data) <= PART:
        return [b"\0" + data]
    view = memoryview(data)
    parts = [b"\1" + view[i : i + PART] for i in range(0, len(data), PART)]
    parts[-1] = b"\0" + parts[-1][1:]
    return parts


class Pieces:
    """The datagrams of a bulk text that is in parts of any size, one at a time."""

    __slots__ = ("_parts", "_part", "_at", "_next")

    def __init__(self, parts: Sequence[bytes | bytearray | memoryview]) -> None:
        self._parts = parts
        self._part = 0  # the first that is not all in datagrams
        self._at = 0  # how much of it is
        self._next = self._cut()

    def next(self) -> bytes | memoryview:
        """The datagram that is to be sent now; empty when all are."""
        return self._next

    def sent(self) -> None:
        self._next = self._cut()

    def _cut(self) -> bytes | memoryview:
        wanted = BULK_PART
        found: list[memoryview] = []
        while wanted and self._part < len(self._parts):
            view = memoryview(self._parts[self._part])[self._at : self._at + wanted]
            if len(view):
                found.append(view)
            wanted -= len(view)
            self._at += len(view)
            if wanted:
                self._part += 1
                self._at = 0
        return found[0] if len(found) == 1 else b"".join(found)


class FrontGone(BaseException):
    """The front went away in the middle of a request.  Nobody but the worker's loop has a use for it."""


class Incoming:
    """The other end: `size` bytes that are still in a blocking socket, read once, piece by piece.

    They are text, or, where `end` is not None, what a text stands for that goes on with `end`.  `length` is the whole text's.
    Each piece is this process's own copy, and holds until the next is taken."""

    __slots__ = ("size", "end", "length", "_left", "_socket", "_buffer")

    def __init__(self, socket: Socket, size: int, end: str | None, buffer: bytearray | mmap) -> None:
        self.size = size
        self.end = end
        self.length = size if end is None else size // 3 * 4 + len(end)
        self._left = size
        self._socket = socket
        self._buffer = buffer

    def __iter__(self) -> Iterator[memoryview]:
        """Pieces of BULK_PART bytes, the last one shorter.  Raises ProtocolViolation and FrontGone."""
        view = memoryview(self._buffer)
        while self._left:
            try:
                size = self._socket.recv_into(self._buffer)
            except OSError:
                size = 0
            if not size:
                raise FrontGone
            if size != min(BULK_PART, self._left):
                raise ProtocolViolation("bulk data in datagrams of another size")
            self._left -= size
            yield view[:size]

    @property
    def came(self) -> int:
        """Bytes of data that were taken from the socket until now."""
        came = self.size - self._left
        return came if self.end is not None else came * 3 // 4

    def drain(self) -> None:
        """Take what is left, for a request that failed before it looked."""
        for _ in self:
            pass


def bulk_of(value: object) -> tuple[str, int, str | None]:
    """The checked fourth element of a request: member, size, and the end of what is decoded.  Raises ProtocolViolation."""
    if type(value) is list and 2 <= len(value) <= 3:
        member, size, end = (*value, None)[:3]
        if type(member) is str and type(size) is int and 0 < size <= LIMIT:
            if end is None and len(value) == 2:
                return member, size, None
            if type(end) is str and len(end) <= 4 and size % 3 == 0 and size // 3 * 4 <= LIMIT:
                return member, size, end
    raise ProtocolViolation("not an announcement of bulk data")


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


_unpack_reply: Final = partial(unpack, raw=False, strict_map_key=False, ext_hook=_no_extension, max_ext_len=0)
_unpack: Final = partial(_unpack_reply, object_pairs_hook=_no_duplicates)


def decode(data: bytes | bytearray | memoryview, walk: bool = True) -> object:
    """One frame's value, checked; raises ProtocolViolation.

    Without `walk` the types in it are those of msgpack, and of a key that stands twice the last one counts: for a reply, which is
    compared with what the command returns, and written anew from what was found in it."""
    try:
        value = _unpack(data) if walk else _unpack_reply(data)
    except ProtocolViolation:
        raise
    except Exception as e:  # msgpack raises ValueErrors of its own, struct errors, UnicodeDecodeError, RecursionError
        raise ProtocolViolation(f"not a frame: {type(e).__name__}") from None
    if walk:
        _check(value, DEPTH)
    return value


class Assembler:
    """Puts the datagrams of one direction together.  `walk` is `decode`'s."""

    __slots__ = ("size", "_parts", "_limit", "_walk")

    def __init__(self, limit: int = LIMIT, *, walk: bool = True) -> None:
        self.size = 0  # bytes of the last frame
        self._parts = bytearray()
        self._limit = limit
        self._walk = walk

    def feed(self, datagram: bytes | bytearray | memoryview) -> object | None:
        """The frame that this datagram completes, or None; a frame is never None itself.

        Raises ProtocolViolation."""
        mark = datagram[0] if len(datagram) else -1
        parts = self._parts
        if mark == _LAST and not parts:
            self.size = len(datagram) - 1
            value = decode(datagram[1:], self._walk)
        elif mark in (_LAST, _MORE):
            if len(parts) + len(datagram) - 1 > self._limit:
                raise ProtocolViolation("frame too large")
            parts += memoryview(datagram)[1:]
            if mark == _MORE:
                return None
            self._parts = bytearray()
            self.size = len(parts)
            value = decode(parts, self._walk)
        else:
            raise ProtocolViolation("unknown mark")
        if value is None:
            raise ProtocolViolation("empty frame")
        return value
