"""Values as JSON text, for what goes to people and programs beside the protocol: audit records.

By hand because the processes that write them import no json package (8 ms), and the protocol's own writer (protocol/wire.py) is the
front's.  Text is left as it is where it can be printed, so that names stay readable.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

_ESCAPES: Final = {0x22: '\\"', 0x5C: "\\\\", 0x09: "\\t", 0x0A: "\\n", 0x0D: "\\r"}
_MORE: Final = '"..."'


def quoted(text: str) -> str:
    """A JSON string."""
    if text.isascii() and text.isprintable() and '"' not in text and "\\" not in text:
        return f'"{text}"'
    made = text.translate(_ESCAPES)
    if not made.isprintable():  # what a terminal would obey, and surrogates, which no encoder takes
        made = "".join([c if c.isprintable() else _escaped(ord(c)) for c in made])
    return f'"{made}"'


def _escaped(number: int) -> str:
    if number < 0x10000:
        return f"\\u{number:04x}"
    number -= 0x10000
    return f"\\u{0xD800 + (number >> 10):04x}\\u{0xDC00 + (number & 0x3FF):04x}"


def structure(value: object, room: int) -> str:
    """A list, an object or a scalar, compact; of what takes more than `room` characters (or so) the rest is "..."."""
    out: list[str] = []
    _walk(value, [room], out, 16)
    return "".join(out)


def _walk(value: object, room: list[int], out: list[str], depth: int) -> None:
    if room[0] <= 0 or not depth:
        out.append(_MORE)
        return
    if isinstance(value, (list, dict)):
        named = isinstance(value, dict)
        out.append("{" if named else "[")
        for number, item in enumerate(value):
            if number:
                out.append(",")
            if room[0] <= 0:
                out.append(f"{_MORE}:null" if named else _MORE)
                break
            if named:
                _put(quoted(str(item)[: room[0]]) + ":", room, out)
                _walk(value[item], room, out, depth - 1)
            else:
                _walk(item, room, out, depth - 1)
        out.append("}" if named else "]")
    elif isinstance(value, str):
        _put(quoted(value if len(value) <= room[0] else value[: room[0]] + "..."), room, out)
    elif isinstance(value, bool):
        _put("true" if value else "false", room, out)
    elif value is None or (isinstance(value, float) and (value != value or value in (float("inf"), float("-inf")))):
        _put("null", room, out)
    elif isinstance(value, (int, float)):
        _put(repr(value), room, out)
    else:
        _put(quoted(type(value).__name__), room, out)


def _put(text: str, room: list[int], out: list[str]) -> None:
    room[0] -= len(text)
    out.append(text)
