"""Where things stand in a TOML text: the standard library's parser keeps no positions, and an error without one is half an error.

The scanner walks a text that the parser has taken already (toml.io, version 1.0), so it only has to find the ends of keys,
strings, lists and tables, and never to judge them.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    Path = tuple[str | int, ...]

_BARE = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_-")
_BLANK = " \t"
_GAP = " \t\r\n"


class Positions:
    """`of(("file", 1, "path"))` is (line, column) of that key's name; of an element of a list it is that of the element."""

    __slots__ = ("_text", "_at", "_arrays")

    def __init__(self, text: str) -> None:
        self._text = text
        self._at: dict[Path, int] = {}
        self._arrays: dict[Path, int] = {}
        self._scan()

    def of(self, path: Path) -> tuple[int, int]:
        """The nearest that is known: a key that is not there has its table's place, an unknown table (1, 1)."""
        while path and path not in self._at:
            path = path[:-1]
        offset = self._at.get(path, 0)
        line = self._text.count("\n", 0, offset) + 1
        return line, offset - (self._text.rfind("\n", 0, offset) + 1) + 1

    # -- the text

    def _scan(self) -> None:
        text, at = self._text, 0
        table: Path = ()
        while True:
            at = self._gap(at)
            if at >= len(text):
                return
            if text[at] == "[":
                start = at
                array = text.startswith("[[", at)
                names, at = self._key(at + 2 if array else at + 1)
                at = text.index("]", at) + (2 if array else 1)
                table = self._table([n for n, _ in names], array, start)
            else:
                at = self._pair(at, table)

    def _table(self, names: list[str], array: bool, start: int) -> Path:
        """The path that a header stands for: an array of tables on the way means its last one."""
        path: Path = ()
        for place, name in enumerate(names):
            path = (*path, name)
            if array and place == len(names) - 1:
                self._arrays[path] = self._arrays.get(path, -1) + 1
            self._at.setdefault(path, start)
            if path in self._arrays:
                path = (*path, self._arrays[path])
                self._at.setdefault(path, start)
        return path

    def _pair(self, at: int, table: Path) -> int:
        """`key = value`; the place after it."""
        names, at = self._key(at)
        path = table
        for name, start in names:
            path = (*path, name)
            self._at.setdefault(path, start)
        at = self._text.index("=", at) + 1
        return self._value(self._gap(at), path)

    def _key(self, at: int) -> tuple[list[tuple[str, int]], int]:
        """The parts of a dotted key with their places, and the place after them."""
        text = self._text
        names: list[tuple[str, int]] = []
        while True:
            while text[at] in _BLANK:
                at += 1
            start = at
            if text[at] in "\"'":
                at = self._string(at)
                names.append((text[start + 1 : at - 1], start))
            else:
                while at < len(text) and text[at] in _BARE:
                    at += 1
                names.append((text[start:at], start))
            while text[at] in _BLANK:
                at += 1
            if text[at] != ".":
                return names, at
            at += 1

    def _value(self, at: int, path: Path) -> int:
        text = self._text
        if text[at] in "\"'":
            return self._string(at)
        if text[at] == "[":
            at, number = self._gap(at + 1), 0
            while text[at] != "]":
                self._at[(*path, number)] = at
                at = self._gap(self._value(at, (*path, number)))
                number += 1
                if text[at] == ",":
                    at = self._gap(at + 1)
            return at + 1
        if text[at] == "{":
            at = self._gap(at + 1)
            while text[at] != "}":
                at = self._gap(self._pair(at, path))
                if text[at] == ",":
                    at = self._gap(at + 1)
            return at + 1
        while at < len(text) and text[at] not in ",]}#\n":
            at += 1
        return at

    def _string(self, at: int) -> int:
        """The place after the string that begins here."""
        text, quote = self._text, self._text[at]
        if text.startswith(quote * 3, at):
            end = at + 3
            while not text.startswith(quote * 3, end):
                end += 2 if quote == '"' and text[end] == "\\" else 1
            end += 3
            while end < len(text) and text[end] == quote:  # up to two quotes before the end are the string's own
                end += 1
            return end
        end = at + 1
        while text[end] != quote:
            end += 2 if quote == '"' and text[end] == "\\" else 1
        return end + 1

    def _gap(self, at: int) -> int:
        """Past blanks, line ends and comments."""
        text = self._text
        while at < len(text):
            if text[at] == "#":
                end = text.find("\n", at)
                at = len(text) if end < 0 else end
            elif text[at] in _GAP:
                at += 1
            else:
                break
        return at
