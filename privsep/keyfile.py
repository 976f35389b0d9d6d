"""GLib's key files (qemu-ga.conf, qga.state), read-only and in small.

What counts as a comment, a group, a key and a value, and what is an error, follows GLib's GKeyFile, so that a file that
qemu-ga takes is taken here, and one that it refuses is refused: leading blanks of a line and blanks around `=` go,
trailing blanks of a value stay; groups may come again and the last value of a key counts; keys with a locale (`key[de]`) and
broken values are no harm until somebody asks for them.  configparser knows other rules, and importing it takes 15 ms.

Facts: the Desktop Entry specification's basic format, GLib's reference page of GKeyFile; checked against qemu-ga 7.2.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

_BLANK: Final = b" \t\n\v\f\r"
_ESCAPES: Final = {"s": " ", "n": "\n", "t": "\t", "r": "\r", "\\": "\\"}


class KeyFileError(Exception):
    """The file breaks the format, or a value is not what it was asked as; the text names the line."""


def _shown(raw: bytes) -> str:
    return raw.decode("utf-8", "backslashreplace")


def _key_is_valid(key: bytes) -> bool:
    name, bracket, locale = key.partition(b"[")
    if not name or name[:1] == b" " or name[-1:] == b" " or b"]" in name:
        return False
    if not bracket:
        return True
    letters = locale[:-1].decode("utf-8", "replace")
    return locale[-1:] == b"]" and all(c.isalnum() or c in "-_.@" for c in letters)


class KeyFile:
    """Group -> key -> (line number, raw value); the values are decoded when they are asked for."""

    __slots__ = ("_groups",)

    def __init__(self, data: bytes) -> None:
        """Raises KeyFileError."""
        self._groups: dict[bytes, dict[bytes, tuple[int, bytes]]] = {}
        group: dict[bytes, tuple[int, bytes]] | None = None
        for number, line in enumerate(data.split(b"\n"), 1):
            line = line.removesuffix(b"\r").lstrip(_BLANK)
            if not line or line.startswith(b"#"):
                continue
            if line.startswith(b"[") and b"]" in line and not line.partition(b"]")[2].strip(b" \t"):
                name = line[1 : line.index(b"]")]
                if not name or b"[" in name or any(c < 0x20 or c == 0x7F for c in name):
                    raise KeyFileError(f"line {number}: invalid group name '{_shown(name)}'")
                group = self._groups.setdefault(name, {})
                continue
            key, sign, value = line.partition(b"=")
            if not sign or not key:
                raise KeyFileError(f"line {number}: '{_shown(line)}' is not a key-value pair, group, or comment")
            if group is None:
                raise KeyFileError(f"line {number}: the file does not start with a group")
            key = key.rstrip(_BLANK)
            if not _key_is_valid(key):
                raise KeyFileError(f"line {number}: invalid key name '{_shown(key)}'")
            group[key] = number, value.lstrip(_BLANK)

    def get(self, group: str, key: str) -> str | None:
        """The value with its escapes resolved, None when the key is not there.  Raises KeyFileError."""
        found = self._groups.get(group.encode(), {}).get(key.encode())
        if found is None:
            return None
        number, raw = found
        try:
            text = raw.decode("utf-8")
        except UnicodeDecodeError:
            raise KeyFileError(f"line {number}: the value of '{key}' is not UTF-8") from None
        if "\\" not in text:
            return text
        first, *rest = text.split("\\")
        out = [first]
        pieces = iter(rest)
        for piece in pieces:
            if not piece:  # the escaped character is the next backslash, or there is none
                after = next(pieces, None)
                if after is None:
                    raise KeyFileError(f"line {number}: the value of '{key}' ends in a backslash")
                out.append("\\" + after)
            elif piece[0] in _ESCAPES:
                out.append(_ESCAPES[piece[0]] + piece[1:])
            else:
                raise KeyFileError(f"line {number}: the value of '{key}' has the unknown escape '\\{piece[0]}'")
        return "".join(out)

    def line(self, group: str, key: str) -> int:
        """The line that the value comes from; 0: there is none."""
        return self._groups.get(group.encode(), {}).get(key.encode(), (0, b""))[0]

    def get_bool(self, group: str, key: str) -> bool | None:
        """true, false, 1 or 0.  Raises KeyFileError for anything else."""
        found = self._groups.get(group.encode(), {}).get(key.encode())
        if found is None:
            return None
        number, raw = found
        match raw.rstrip(_BLANK):
            case b"true" | b"1":
                return True
            case b"false" | b"0":
                return False
        raise KeyFileError(f"line {number}: the value of '{key}' is not true, false, 1 or 0: '{_shown(raw)}'")
