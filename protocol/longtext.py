"""A long string of a request while it arrives, and what it is then.

Bulk data is base64, and whether it is has to be found out anyway, so what whole groups of four stand for is kept instead of them:
a quarter less to keep and to hand on, and nobody has to decode it again.  What is not base64 stays in the pieces that came.
"""

from __future__ import annotations

from protocol.base64 import ALPHABET, decode, encode
from protocol.text import Long

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

    Parts = list[bytes | bytearray | memoryview]

_SMALL: Final = 1 << 14  # bytes: smaller pieces are put together
_PADDED: Final = ALPHABET + b"="


def stays(part: bytes | bytearray) -> bool:
    """Whether this part of a string means what it says: all ASCII and no escapes."""
    part = bytes(part)
    return part.isascii() and b"\\" not in part


class LongText(Long):
    """All ASCII and without escapes.

    data   what all but the end stood for, each part whole groups; None: it is not decoded
    text   the parts of the rest; of what is decoded, one of at most four characters"""

    __slots__ = ("data", "text", "_size")

    def __init__(self, text: Parts, data: Parts | None = None) -> None:
        self.data = data
        self.text = text
        self._size = sum(map(len, text)) + (sum(map(len, data)) // 3 * 4 if data else 0)

    def __len__(self) -> int:
        return self._size

    def __str__(self) -> str:
        return str(b"".join([*map(encode, self.data or ()), *self.text]), "ascii")


class Rope:
    """A long string from its start on.  `at` is where that is in the text that has the rest of the request."""

    __slots__ = ("at", "_data", "_text", "_end")

    def __init__(self, at: int, head: bytes) -> None:
        self.at = at
        self._data: Parts | None = []  # as long as all of it is base64
        self._end = b""  # what comes behind that, at most a group: in the last one there may be padding
        self._text: Parts = []
        if not self.decode(head):
            self.add(head)

    def decode(self, part: bytes) -> bool:
        """Take what comes next if it and all before it is base64."""
        if self._data is None:
            return False
        end = self._end
        size = len(end) + len(part)
        # What is left for the next time is at least one character and at most a group.
        stop = len(part) - ((size - 1) % 4 + 1) if size > 4 else 0
        if part[stop:].strip(_PADDED):
            return False
        if size > 4:
            start = -len(end) % 4
            first, rest = decode(end + part[:start]), decode(memoryview(part)[start:stop])
            if first is None or rest is None:
                return False
            _put(self._data, first)
            _put(self._data, rest)
            end = b""
        self._end = end + part[stop:]
        return True

    def add(self, part: bytes) -> None:
        """Take what comes next as it is."""
        if self._data is not None:
            parts, self._data = self._data, None
            for place, data in enumerate(parts):  # one goes as the other comes
                parts[place] = encode(data)
            self._text = [*parts, self._end]
        _put(self._text, part)

    def pour(self, text: bytearray) -> None:
        """Put all that came behind this, as it came, and keep nothing of it."""
        decoded = self._data is not None
        parts = self._text if self._data is None else self._data
        parts.reverse()
        while parts:
            part = parts.pop()
            text += encode(part) if decoded else part
        if decoded:
            text += self._end

    @property
    def decoded(self) -> bool:
        """All that came is base64."""
        return self._data is not None

    def whole(self) -> LongText:
        return LongText(self._text) if self._data is None else LongText([self._end], self._data)


def _put(parts: Parts, part: bytes) -> None:
    if len(part) >= _SMALL:
        parts.append(part)
    elif parts and type(parts[-1]) is bytearray:
        parts[-1] += part
    elif part:
        parts.append(bytearray(part))


def settle(value: object, keep: LongText | None = None) -> None:
    """Make a `str` of each LongText inside a list or an object but for `keep`."""
    todo = [value]
    while todo:
        one = todo.pop()
        if type(one) is dict or type(one) is list:
            for place, item in list(one.items() if type(one) is dict else enumerate(one)):
                if type(item) is LongText:
                    if item is not keep:
                        one[place] = str(item)
                elif type(item) is dict or type(item) is list:
                    todo.append(item)
