"""Policy files: TOML text to what it means.  Pure: the text comes in, a `Reading` or an error with file and line comes out.

    profile = "default"             start from a built-in profile; without it nothing is allowed
    description = "..."             one line for `privsep-gactl profiles`
    lenient = false                 the peer's words and leniency, see the qemu-ga profile

    [commands]
    allow = ["@ssh", "guest-get-*"] names, patterns (* ? [ ]) or @domain; added to the profile's
    block = ["guest-get-users"]     the same; what is blocked anywhere stays blocked

    [fsfreeze]
    auto-thaw = 300                 seconds until a freeze that nobody ended is ended; 0: never
    auto-thaw-on-disconnect = 0     the same from when the host has closed the channel, if that is sooner; 0: no such rule
    hook-limit = 60                 seconds for one call of the freeze hook
    expedite-rcu = true             shorten a freeze by expedited grace periods

Several texts (a file and its drop-ins) fold into one: allow and block lists add up, of the other keys the last one counts.
Whatever is unknown is an error: a key that nobody reads is a rule that nobody enforces.
"""

from __future__ import annotations

import fnmatch
import tomllib

from policy.errors import PolicyError, nearest

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from typing import Final

AUTO_THAW_RANGE: Final = (0, 86400)  # 0: never, and the log says so at start
HOOK_LIMIT_RANGE: Final = (1, 3600)

_KEYS: Final = {
    "": ("profile", "description", "lenient", "commands", "fsfreeze"),
    "commands": ("allow", "block"),
    "fsfreeze": ("auto-thaw", "auto-thaw-on-disconnect", "hook-limit", "expedite-rcu"),
}


class Reading:
    """What the texts say; `origins` has for each command that a rule named the rule and its place."""

    __slots__ = ("allowed", "auto_thaw", "description", "disconnect", "expedite", "hook_limit", "lenient", "origins")

    def __init__(self) -> None:
        self.allowed: set[str] = set()
        self.origins: dict[str, str] = {}
        self.description = ""
        self.lenient = False
        self.auto_thaw = 300
        self.disconnect = 0
        self.hook_limit = 60
        self.expedite = True

    def start_from(self, base: Reading) -> None:
        self.allowed = set(base.allowed)
        self.lenient = base.lenient
        self.auto_thaw = base.auto_thaw
        self.disconnect = base.disconnect
        self.hook_limit = base.hook_limit
        self.expedite = base.expedite


class _Text:
    """One file's values, and where in the text they stand."""

    def __init__(self, path: str, text: str) -> None:
        self.path = path
        self._lines = text.split("\n")
        try:
            self.values: dict[str, object] = tomllib.loads(text)
        except tomllib.TOMLDecodeError as e:
            # The parser's own message ends in "(at line N, column M)", or in "(at end of document)".
            what, _, where = str(e).rpartition(" (at ")
            line = where.split()[1].rstrip(",") if where.startswith("line ") else str(len(self._lines))
            raise PolicyError(f"{path}:{line}: not TOML: {what}") from None

    def place(self, section: str, key: str, value: str | None = None) -> str:
        """`file:line` of a key, or of one string in its list.

        The parser keeps no positions, so the text is looked through; a dotted or an inline table may give the first line."""
        here, inside = "", False
        fallback = 1
        for number, line in enumerate(self._lines, 1):
            bare = line.strip()
            if bare.startswith("[") and not inside and bare.partition("#")[0].strip().endswith("]") and "=" not in bare:
                here = bare.partition("]")[0].strip("[] ")
                if not section and here == key:
                    return f"{self.path}:{number}"
                continue
            name = bare.partition("=")[0].strip().strip("\"'")
            if here == section and "=" in bare and name == key:
                inside, fallback = True, number
                if value is None:
                    break
            elif inside and here == section and "=" in bare and name in _KEYS[section]:
                inside = False
            if inside and value is not None and (f'"{value}"' in line or f"'{value}'" in line):
                return f"{self.path}:{number}"
        return f"{self.path}:{fallback}"

    def fail(self, section: str, key: str, text: str, value: str | None = None) -> PolicyError:
        return PolicyError(f"{self.place(section, key, value)}: {text}")

    def table(self, section: str) -> Mapping[str, object]:
        """One table with nothing unknown in it.  Raises PolicyError."""
        values = self.values.get(section, {}) if section else self.values
        if not isinstance(values, dict):
            raise self.fail("", section, f"{section} must be a table: write [{section}]")
        for key in values:
            if key not in _KEYS[section]:
                kind = f"key {key} in [{section}]" if section else f"key or table {key}"
                raise self.fail(section, key, f"unknown {kind}{nearest(key, _KEYS[section])}")
        return values

    def string(self, key: str) -> str | None:
        value = self.values.get(key)
        if value is None or (isinstance(value, str) and value.isprintable()):
            return value
        raise self.fail("", key, f"{key} must be a string of printable characters")

    def flag(self, section: str, key: str, default: bool) -> bool:
        value = self.table(section).get(key, default)
        if isinstance(value, bool):
            return value
        raise self.fail(section, key, f"{key} must be true or false")

    def number(self, section: str, key: str, default: int, limits: tuple[int, int]) -> int:
        value = self.table(section).get(key, default)
        if type(value) is int and limits[0] <= value <= limits[1]:
            return value
        raise self.fail(section, key, f"{key} must be a number of seconds from {limits[0]} to {limits[1]}")

    def rules(self, key: str, commands: Mapping[str, str]) -> list[tuple[str, str]]:
        """The commands that the list names, each with the rule that did.  Raises PolicyError."""
        rules = self.table("commands").get(key, [])
        if not isinstance(rules, list) or not all(isinstance(r, str) for r in rules):
            raise self.fail("commands", key, f"{key} must be a list of strings")
        found: list[tuple[str, str]] = []
        for rule in rules:
            place = self.place("commands", key, rule)
            names = _expand(rule, commands, place)
            found += [(name, f'{key} "{rule}" at {place}') for name in names]
        return found


def _expand(rule: str, commands: Mapping[str, str], place: str) -> list[str]:
    if rule.startswith("@"):
        names = [c for c, d in commands.items() if d == rule[1:]]
        if not names:
            domains = [f"@{d}" for d in dict.fromkeys(commands.values())]
            raise PolicyError(
                f"{place}: no command belongs to {rule}{nearest(rule, domains)}; there are {' '.join(domains)}"
            )
        return names
    if any(c in rule for c in "*?["):
        names = [c for c in commands if fnmatch.fnmatchcase(c, rule)]
        if not names:
            raise PolicyError(f"{place}: the pattern {rule} matches no command")
        return names
    if rule not in commands:
        raise PolicyError(f"{place}: unknown command {rule}{nearest(rule, commands)}")
    return [rule]


def read(
    texts: Iterable[tuple[str, str]],
    *,
    base: Callable[[str], Reading | None],
    commands: Mapping[str, str],
    profiles: Iterable[str] = (),
    start: str | None = None,
) -> Reading:
    """Fold (path, text) pairs into one Reading.

    base       the built-in profile of a name, None for an unknown one
    commands   command -> domain: what exists
    profiles   the names for the error about an unknown one
    start      the profile to start from when the first text names none
    Raises PolicyError."""
    found = Reading()
    first = base(start) if start is not None else None
    if first is not None:
        found.start_from(first)
    blocked: dict[str, str] = {}
    for number, (path, source) in enumerate(texts):
        text = _Text(path, source)
        text.table("")
        name = text.string("profile")
        if name is not None:
            if number:
                raise text.fail("", "profile", "only the first file may name a profile to start from")
            profile = base(name)
            if profile is None:
                raise text.fail("", "profile", f"unknown profile '{name}'{nearest(name, profiles)}")
            found.start_from(profile)
        found.description = text.string("description") or found.description
        found.lenient = text.flag("", "lenient", found.lenient)
        for command, rule in text.rules("allow", commands):
            found.allowed.add(command)
            found.origins[command] = f"allowed: {rule}"
        blocked.update((command, f"not allowed: {rule}") for command, rule in text.rules("block", commands))
        found.auto_thaw = text.number("fsfreeze", "auto-thaw", found.auto_thaw, AUTO_THAW_RANGE)
        found.disconnect = text.number("fsfreeze", "auto-thaw-on-disconnect", found.disconnect, AUTO_THAW_RANGE)
        found.hook_limit = text.number("fsfreeze", "hook-limit", found.hook_limit, HOOK_LIMIT_RANGE)
        found.expedite = text.flag("fsfreeze", "expedite-rcu", found.expedite)
    found.allowed -= blocked.keys()
    found.origins.update(blocked)
    return found
