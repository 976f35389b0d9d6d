"""Requests' envelopes and response lines, byte for byte as qemu-ga has them.

A response is one line of ASCII: `, ` and `: ` as separators, \\uXXXX in upper case for what is not printable ASCII,
doubles with 17 significant digits, infinity as the bare word `inf` (which is not JSON, but the peer's).  `return`
stands before `id`, `id` before `error`, `class` before `desc`: the peer's order is a hash table's, but a fixed one.

`_json`, the C half of the json package, writes most values; what it writes in other words (doubles, the case of
hexadecimal digits, DEL, noncharacters) or cannot write (deep nesting) is written here.  What is no JSON value raises
TypeError or ValueError.
"""

from __future__ import annotations

from _json import encode_basestring_ascii, make_encoder

from protocol import base64
from protocol.errors import CommandError
from protocol.text import repair

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final, Protocol

    class Payload(Protocol):
        """Bulk data of a reply.  `kept`: where the next reply's will be too, if it says the same of it."""

        size: int
        kept: bool

        def read(self, offset: int, count: int) -> bytes | memoryview: ...
        def close(self) -> None: ...

    class Envelope(Protocol):
        """What a request's id is put into."""

        id: object
        has_id: bool


class _Absent:
    __slots__ = ()


ABSENT: Final = _Absent()  # no id: null is one

NO_OBJECT: Final = "QMP input must be a JSON object"

DELIMITER: Final = b"\xff"
_PONG: Final = b'{"return": {}}\n'


def _refuse(value: object) -> object:
    raise TypeError(f"{type(value).__name__} is not a JSON value")


_encoder: Final = make_encoder(
    None,  # no table of the containers seen: a value is a tree, and _is_simple bounds its depth
    _refuse,
    encode_basestring_ascii,
    None,
    ": ",
    ", ",
    False,
    False,
    False,
)


def _is_simple(value: object) -> bool:
    """Whether the C encoder's words for the value are the peer's, but for strings; no more than some levels deep."""
    level = [value]
    for _ in range(32):
        deeper: list[object] = []
        for one in level:
            if type(one) is dict:
                for key in one:
                    if type(key) is not str:
                        return False
                items: object = one.values()
            elif type(one) is list or type(one) is tuple:
                items = one
            else:
                items = (one,)
            for item in items:  # type: ignore[attr-defined]
                kind = type(item)
                if kind is str or kind is int or kind is bool or item is None:
                    continue
                if kind is not dict and kind is not list and kind is not tuple:
                    return False
                if item:
                    deeper.append(item)
        if not deeper:
            return True
        level = deeper
    return False


def _string(value: str) -> str:
    """A string with its quotes."""
    made = encode_basestring_ascii(value)
    if "\\u" not in made and "\x7f" not in made:
        return made
    made = encode_basestring_ascii(repair(value))
    # Every other backslash begins an escape once the pairs are out of the way.
    halves = [half.split("\\u") for half in made.split("\\\\")]
    for parts in halves:
        parts[1:] = [part[:4].upper() + part[4:] for part in parts[1:]]
    return "\\\\".join(["\\u".join(parts) for parts in halves]).replace("\x7f", "\\u007F")


def _scalar(value: object) -> str:
    kind = type(value)
    if kind is str:
        assert isinstance(value, str)
        return _string(value)
    if kind is bool:
        return "true" if value else "false"
    if kind is int:
        return str(value)
    if value is None:
        return "null"
    if kind is float:
        if value != value:
            raise ValueError("not a number")
        return f"{value:.17g}"
    raise TypeError(f"{kind.__name__} is not a JSON value")


def _walk(value: object) -> str:
    """Any value, any depth."""
    out: list[str] = []
    # What is still to be written, last first: values in a tuple of one, text as it is.
    todo: list[str | tuple[object]] = [(value,)]
    while todo:
        item = todo.pop()
        if isinstance(item, str):
            out.append(item)
            continue
        (value,) = item
        if type(value) is dict:
            later: list[str | tuple[object]] = []
            for key, member in value.items():
                if type(key) is not str:
                    raise TypeError("member name is not a string")
                later += (", " if later else "{", _string(key) + ": ", (member,))
            later.append("}" if later else "{}")
        elif type(value) is list or type(value) is tuple:
            later = []
            for element in value:
                later += (", " if later else "[", (element,))
            later.append("]" if later else "[]")
        else:
            out.append(_scalar(value))
            continue
        todo += reversed(later)
    return "".join(out)


def encode(value: object, simple: bool = False) -> bytes:
    """The value as the peer writes it.  `simple`: it is known to have nothing in it but objects, lists, strings, integers and
    booleans, and not to be nested without end."""
    if type(value) is int:
        return b"%d" % value
    if simple or _is_simple(value):
        made = "".join(_encoder(value, 0))
        if "\\u" not in made and "\x7f" not in made:
            return made.encode("ascii")
    return _walk(value).encode("ascii")


def success(value: object, id: object = ABSENT, *, simple: bool = False) -> bytes:
    """The line for a command that succeeded.  `simple` is `encode`'s."""
    if id is ABSENT:
        if value == {}:
            return _PONG
        return b'{"return": ' + encode(value, simple) + b"}\n"
    return b'{"return": ' + encode(value, simple) + b', "id": ' + encode(id) + b"}\n"


def elements(rows: object, simple: bool = False) -> bytes:
    """Those of a list, without its brackets.  `simple` is `encode`'s."""
    return encode(rows, simple)[1:-1]


def listed(parts: list[bytes], id: object = ABSENT) -> bytes:
    """The line for a command that succeeded with a list, of which these are the `elements`, part by part."""
    line = b'{"return": [' + b", ".join(parts)
    return line + (b"]}\n" if id is ABSENT else b'], "id": ' + encode(id) + b"}\n")


def with_bulk(
    value: dict[str, object], bulk: tuple[str, ...], id: object = ABSENT
) -> bytes | list[bytes | Payload] | None:
    """The line for a command that succeeded, the members named in `bulk` as base64: they are bytes or a Payload.

    With a Payload in it in pieces: text, and the Payload between its parts.  None when the value has none of the members.
    Raises TypeError and ValueError for other types."""
    if not any(name in value for name in bulk):
        return None
    pieces: list[bytes | Payload] = []
    text = b'{"return": {'
    for name, member in value.items():
        if text[-1:] != b"{":
            text += b", "
        text += _string(name).encode("ascii") + b": "
        if name not in bulk:
            text += encode(member)
        elif type(member) is bytes:
            text += b'"' + base64.encode(member) + b'"'
        elif hasattr(member, "read"):
            pieces += (text + b'"', member)  # type: ignore[arg-type]
            text = b'"'
        else:
            raise TypeError("bulk data of another type")
    text += b"}}\n" if id is ABSENT else b'}, "id": ' + encode(id) + b"}\n"
    if not pieces:
        return text
    pieces.append(text)
    return pieces


def bulk_begun(member: str) -> bytes:
    """What stands before the base64 of a reply whose other members come after it."""
    return b'{"return": {' + _string(member).encode("ascii") + b': "'


def bulk_ended(rest: dict[str, object], id: object = ABSENT) -> bytes:
    """What stands behind it."""
    members = b"".join(
        [b", " + _string(name).encode("ascii") + b": " + encode(member) for name, member in rest.items()]
    )
    return b'"' + members + (b"}}\n" if id is ABSENT else b'}, "id": ' + encode(id) + b"}\n")


def failure(kind: str, desc: str, id: object = ABSENT) -> bytes:
    """The line for one that failed."""
    error = f'"error": {{"class": {_string(kind)}, "desc": {_string(desc)}}}}}\n'.encode("ascii")
    if id is ABSENT:
        return b"{" + error
    return b'{"id": ' + encode(id) + b", " + error


def malformed(desc: str) -> bytes:
    """The line for what is no request at all: there may be very many of them."""
    return b'{"error": {"class": "GenericError", "desc": ' + _string(desc).encode("ascii") + b"}}\n"


def delimited(line: bytes) -> bytes:
    """The line of guest-sync-delimited: hosts throw away what comes before this byte."""
    return DELIMITER + line


def _bucket(name: str) -> int:
    """Where QEMU's hash table (qobject/qdict.c) has a member.  Its loops go from bucket to bucket, latest member first."""
    data = name.encode("utf-8", "surrogatepass").replace(b"\0", b"\xc0\x80")
    value = 0x238F13AF * len(data)
    for i, c in enumerate(data):
        value += c << i * 5 % 24
    return (1103515243 * value + 12345) % 512


def read_request(value: object, envelope: Envelope) -> tuple[str, dict[str, object]]:
    """The command's name and arguments.

    `envelope` gets the id, if there is one, before anything is found wrong; raises CommandError in the peer's words."""
    if type(value) is not dict:
        raise CommandError(NO_OBJECT)
    if "id" in value:
        envelope.id = value["id"]
        envelope.has_id = True
    name = value.get("execute", ABSENT)
    arguments = value.get("arguments", ABSENT)
    known = 1 + (arguments is not ABSENT) + ("id" in value)
    if type(name) is str and len(value) == known:
        if type(arguments) is dict:
            return name, arguments
        if arguments is ABSENT:
            return name, {}
    members = list(reversed(value))
    members.sort(key=_bucket)
    for member in members:
        if member == "execute":
            if type(name) is not str:
                raise CommandError("QMP input member 'execute' must be a string")
        elif member == "arguments":
            if type(arguments) is not dict:
                raise CommandError("QMP input member 'arguments' must be an object")
        elif member != "id":
            raise CommandError(f"QMP input member '{member}' is unexpected")
    raise CommandError("QMP input lacks member 'execute'")
