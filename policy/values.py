"""One value of a policy file, judged by its row in the key table: what it means as strings, or what is wrong with it.

A `Place` knows where the value stands; a fault is reported there and the rest of the file is read all the same.
"""

from __future__ import annotations

import fnmatch

from policy.errors import Problem, listed, nearest
from policy.keys import Key, bytes_of
from policy.positions import Positions

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    Path = tuple[str | int, ...]

_WORD = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_.")
_ID_LIMIT = 64
_UID_LIMIT = (1 << 32) - 2  # the number above is "no user" (chown(2))


class Text:
    """One file: its name, its values, where they stand, and what was found to be wrong with them."""

    __slots__ = ("path", "values", "problems", "_positions")

    def __init__(self, path: str, values: Mapping[str, object], positions: Positions, problems: list[Problem]) -> None:
        self.path = path
        self.values = values
        self.problems = problems
        self._positions = positions

    def fail(self, at: Path, text: str) -> None:
        line, column = self._positions.of(at)
        self.problems.append(Problem(text, self.path, line, column))

    def origin(self, at: Path) -> str:
        """`file:line`, by which a rule is known."""
        return f"{self.path}:{self._positions.of(at)[0]}"

    def value(self, key: Key, at: Path, value: object) -> tuple[str, ...] | None:
        """The value as strings; None when it is wrong, which has been reported then."""
        return _KINDS[key.kind](self, key, at, value)


def _show(value: object) -> str:
    match value:
        case bool():
            return "true" if value else "false"
        case str():
            return f"'{value}'" if value.isprintable() else ascii(value)
        case list():
            return "a list"
        case dict():
            return "a table"
    return str(value)


def _text(text: Text, key: Key, at: Path, value: object) -> tuple[str, ...] | None:
    if isinstance(value, str) and value.isprintable():
        return (value,)
    text.fail(at, f"{key.name} must be a string of printable characters, not {_show(value)}")
    return None


def _word(text: Text, key: Key, at: Path, value: object) -> tuple[str, ...] | None:
    if isinstance(value, str) and 0 < len(value) <= _ID_LIMIT and _WORD.issuperset(value) and value[0].isalnum():
        return (value,)
    text.fail(at, f"{key.name} must be a name of letters, digits, '-', '_' and '.', not {_show(value)}")
    return None


def _flag(text: Text, key: Key, at: Path, value: object) -> tuple[str, ...] | None:
    if isinstance(value, bool):
        return ("true" if value else "false",)
    text.fail(at, f"{key.name} must be true or false, not {_show(value)}")
    return None


def _number(text: Text, key: Key, at: Path, value: object) -> tuple[str, ...] | None:
    if type(value) is int and key.low <= value <= key.high:
        return (str(value),)
    what = "number of seconds" if key.kind == "seconds" else "number"
    text.fail(at, f"{key.name} must be a {what} from {key.low} to {key.high}, not {_show(value)}")
    return None


def _size(text: Text, key: Key, at: Path, value: object) -> tuple[str, ...] | None:
    size = value if type(value) is int else bytes_of(value) if isinstance(value, str) else None
    if isinstance(size, int) and key.low <= size <= key.high:
        return (str(size),)
    limits = f"from {key.low} to {_size_words(key.high)}"
    text.fail(at, f'{key.name} must be bytes {limits}, as a number or like "64K", "10M", not {_show(value)}')
    return None


def _size_words(size: int) -> str:
    for shift, unit in ((30, "G"), (20, "M"), (10, "K")):
        if size and not size % (1 << shift):
            return f"{size >> shift}{unit}"
    return str(size)


def _path(text: Text, key: Key, at: Path, value: object) -> tuple[str, ...] | None:
    if not isinstance(value, str) or not value.startswith("/") or "\0" in value:
        text.fail(at, f"{key.name} must be an absolute path, not {_show(value)}")
        return None
    if ".." in value.split("/"):
        text.fail(at, f"{key.name} must not have a '..' in it")
        return None
    plain = "/" + "/".join(p for p in value.split("/") if p not in ("", "."))
    if plain != value:
        text.fail(at, f"{key.name} '{value}' is not written as the kernel does: write '{plain}'")
        return None
    return (value,)


def _paths(text: Text, key: Key, at: Path, value: object) -> tuple[str, ...] | None:
    return _list(text, key, at, value, _path)


def _account(text: Text, key: Key, at: Path, value: object) -> tuple[str, ...] | None:
    if type(value) is int and 0 <= value <= _UID_LIMIT:
        return (str(value),)
    if isinstance(value, str) and value and value.isprintable() and not set(" :,/*?").intersection(value):
        return (value,)
    text.fail(at, f"{key.name} must be an account's name or number, not {_show(value)}")
    return None


def _list(
    text: Text, key: Key, at: Path, value: object, each: Callable[[Text, Key, Path, object], tuple[str, ...] | None]
) -> tuple[str, ...] | None:
    if not isinstance(value, list):
        text.fail(at, f"{key.name} must be a list, not {_show(value)}: write [...] around it")
        return None
    found: list[str] = []
    good = True
    for number, item in enumerate(value):
        one = each(text, key, (*at, number), item)
        if one is None:
            good = False
            continue
        if one[0] in found and key.kind != "patterns":
            text.fail((*at, number), f"{key.name} lists {_show(item)} twice")
            good = False
        found += one
    return tuple(found) if good else None


def _string(text: Text, key: Key, at: Path, value: object) -> tuple[str, ...] | None:
    if isinstance(value, str) and "\0" not in value:
        return (value,)
    text.fail(at, f"{key.name} must be a list of strings, not of {_show(value)}")
    return None


def _patterns(text: Text, key: Key, at: Path, value: object) -> tuple[str, ...] | None:
    found = _list(text, key, at, value, _string)
    if found is not None and key.name == "args" and "..." in found[:-1]:
        place = found.index("...")
        text.fail((*at, place), 'only the last of args may be "...": what comes after it would never be looked at')
        return None
    return found


def _point(text: Text, key: Key, at: Path, value: object) -> tuple[str, ...] | None:
    if isinstance(value, str) and value[:1] in ("/", "*") and "\0" not in value:
        if len(value) > 1 and value.endswith("/"):
            text.fail(at, f"the mount point '{value}' ends in a '/': write '{value.rstrip('/') or '/'}'")
            return None
        return (value,)
    text.fail(at, f"{key.name} must be mount points, absolute paths or patterns of them, not {_show(value)}")
    return None


def _points(text: Text, key: Key, at: Path, value: object) -> tuple[str, ...] | None:
    return _list(text, key, at, value, _point)


def _accounts(text: Text, key: Key, at: Path, value: object) -> tuple[str, ...] | None:
    found = _list(text, key, at, value, _account)
    if found == ():
        text.fail(at, f"{key.name} is empty: no file would do; leave the key out for any user's")
        return None
    return found


def _uid_range(text: Text, key: Key, at: Path, value: object) -> tuple[str, ...] | None:
    if type(value) is int and 0 <= value <= _UID_LIMIT:
        return (str(value),)
    if isinstance(value, str):
        first, dash, last = value.partition("-")
        if all(n.isascii() and n.isdigit() and int(n) <= _UID_LIMIT for n in (first, last if dash else "0")):
            if dash and int(first) > int(last):
                text.fail(at, f"the range {value} is empty: the smaller number comes first")
                return None
            return (value,)
    text.fail(at, f'{key.name} must be numbers and ranges like "1000-59999", not {_show(value)}')
    return None


def _uids(text: Text, key: Key, at: Path, value: object) -> tuple[str, ...] | None:
    return _list(text, key, at, value, _uid_range)


def _choice(text: Text, key: Key, at: Path, value: object) -> tuple[str, ...] | None:
    if isinstance(value, str) and value in key.choices:
        return (value,)
    near = nearest(value, key.choices) if isinstance(value, str) else ""
    text.fail(at, f"{key.name} has no {_show(value)}{near}; there are {', '.join(key.choices)}")
    return None


def _choices(text: Text, key: Key, at: Path, value: object) -> tuple[str, ...] | None:
    return _list(text, key, at, value, _choice)


def _sink(text: Text, key: Key, at: Path, value: object) -> tuple[str, ...] | None:
    if isinstance(value, str) and value.startswith("file:"):
        path = _path(text, key, at, value.removeprefix("file:"))
        return None if path is None else (f"file:{path[0]}",)
    if isinstance(value, str) and value in key.choices:
        return (value,)
    near = nearest(value, key.choices) if isinstance(value, str) else ""
    text.fail(at, f"{key.name} has no {_show(value)}{near}; there are {', '.join(key.choices)} and file:/PATH")
    return None


_KINDS = {
    "sink": _sink,
    "text": _text,
    "word": _word,
    "flag": _flag,
    "number": _number,
    "seconds": _number,
    "size": _size,
    "path": _path,
    "paths": _paths,
    "account": _account,
    "patterns": _patterns,
    "points": _points,
    "accounts": _accounts,
    "uids": _uids,
    "choices": _choices,
}


def commands_of(word: str, commands: Mapping[str, str]) -> tuple[list[str], str]:
    """(the commands that a name, a pattern or @domain means, "") or ([], what is wrong with it)."""
    if word.startswith("@"):
        names = [c for c, d in commands.items() if d == word[1:]]
        domains = [f"@{d}" for d in dict.fromkeys(commands.values())]
        if names:
            return names, ""
        return [], f"no command belongs to {word}{nearest(word, domains)}; there are {' '.join(domains)}"
    if any(c in word for c in "*?["):
        names = [c for c in commands if fnmatch.fnmatchcase(c, word)]
        return names, "" if names else f"the pattern {word} matches no command"
    if word in commands:
        return [word], ""
    return [], f"unknown command {word if word.isprintable() else ascii(word)}{listed(word, commands)}"
