"""Policy files: TOML text to what it means.  Pure: texts come in; a `Reading`, or all that is wrong with them, comes out.

    profile = "default"             start from a built-in profile; without it nothing is allowed

    [commands]
    allow = ["@ssh", "@exec"]       names, patterns (* ? [ ]) or @domain; added to the profile's
    block = ["guest-get-users"]     the same; what is blocked anywhere stays blocked

    [fsfreeze]
    auto-thaw = 300

    [[exec]]                        a rule: what must be inside a request
    program = "/usr/bin/uptime"
    user = "nobody"

Every table and key is in `policy/keys.py`.  Several texts (a file and its drop-ins) fold into one, in their order: `allow`, `block`,
`never-mounts` and rules add up; of every other key the last one counts.  Whatever is unknown is an error: a key that nobody
reads is a rule that nobody enforces.
"""

from __future__ import annotations

import tomllib

from policy.errors import PolicyError, Problem, nearest
from policy.keys import BY_NAME, RULE_KINDS, TABLES, Key, Table
from policy.positions import Positions
from policy.rules import Rule
from policy.values import Text, commands_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from typing import Final

# What `[sizes]` limits in a request; the others are settings of a worker.
_SIZE_RULES: Final = ("file-read", "file-write", "exec-input")
_SIZE_SETTINGS: Final = ("file-buffer", "exec-output")


class Reading:
    """What the texts say.

    allowed   the commands
    base      (rule id, file:line) of the profile that is started from; None: there is none
    why       command -> (rule id, file:line) where a rule of the texts decided it
    rules     what must be inside requests, in the order of the texts
    settings  strings for processes (policy/seal.py): ssh-strict, file-buffer, exec-output, preload; audit-to; as far as given
    """

    __slots__ = (
        "allowed", "auto_thaw", "base", "description", "disconnect", "expedite", "hook_limit", "lenient", "rules", "settings", "why",
    )  # fmt: skip

    def __init__(self) -> None:
        self.allowed: set[str] = set()
        self.base: tuple[str, str] | None = None
        self.why: dict[str, tuple[str, str]] = {}
        self.rules: list[Rule] = []
        self.settings: dict[str, str] = {}
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


class _Folder:
    """Folds one text after the other into a Reading; what is wrong is collected."""

    def __init__(
        self,
        base: Callable[[str], Reading | None],
        commands: Mapping[str, str],
        profiles: Iterable[str],
        unlimited: Iterable[str],
    ) -> None:
        self.found = Reading()
        self.problems: list[Problem] = []
        self._base = base
        self._commands = commands
        self._profiles = tuple(profiles)
        self._unlimited = frozenset(unlimited)
        self._blocked: dict[str, tuple[str, str]] = {}
        # Rules of tables that are not arrays: (table, key) -> the rule, the last one counts.
        self._single: dict[tuple[str, str], Rule] = {}
        self._ids: dict[str, str] = {}
        self._many: list[tuple[Text, int, Rule]] = []

    def start(self, profile: str | None) -> None:
        base = self._base(profile) if profile is not None else None
        if base is not None:
            self.found.start_from(base)
            self.found.base = f"profile:{profile}", "built in"

    def text(self, path: str, source: str, first: bool) -> None:
        try:
            values: dict[str, object] = tomllib.loads(source)
        except tomllib.TOMLDecodeError as e:
            self.problems.append(_not_toml(path, source, str(e)))
            return
        text = Text(path, values, Positions(source), self.problems)
        top = dict[str, object]()
        for name, value in values.items():
            if name in BY_NAME[""].keys:
                top[name] = value
            elif name not in BY_NAME:
                near = nearest(name, [*BY_NAME[""].keys, *BY_NAME])
                text.fail((name,), f"unknown key or table {name}{near}")
        self._top(text, top, first)
        for table in TABLES:
            if table.name in values and table.name:
                self._table(text, table, values[table.name])

    def _top(self, text: Text, top: dict[str, object], first: bool) -> None:
        read = self._keys(text, BY_NAME[""], (), top)
        name = read.get("profile")
        if name is not None:
            profile = self._base(name[0])
            if not first:
                text.fail(("profile",), "only the first file may name a profile to start from")
            elif profile is None:
                text.fail(("profile",), f"unknown profile '{name[0]}'{nearest(name[0], self._profiles)}")
            else:
                self.found.start_from(profile)
                self.found.base = f"profile:{name[0]}", text.origin(("profile",))
        if "description" in read:
            self.found.description = read["description"][0]
        if "lenient" in read:
            self.found.lenient = read["lenient"] == ("true",)

    def _keys(
        self, text: Text, table: Table, at: tuple[str | int, ...], values: Mapping[str, object]
    ) -> dict[str, tuple[str, ...]]:
        """The keys of one table that are right."""
        read: dict[str, tuple[str, ...]] = {}
        header = f"[[{table.name}]]" if table.many else f"[{table.name}]"
        for name, value in values.items():
            key = table.keys.get(name)
            if key is None:
                near = nearest(name, table.keys)
                text.fail((*at, name), f"unknown key {name} in {header}{near}")
            elif key.kind != "commands" and (good := text.value(key, (*at, name), value)) is not None:
                read[name] = good
        for key in table.keys.values():
            if key.required and key.name not in values:
                text.fail(at, f"{header} needs {key.name}: {key.doc}")
        return read

    def _table(self, text: Text, table: Table, value: object) -> None:
        name = table.name
        if table.many:
            if not isinstance(value, list) or not all(isinstance(v, dict) for v in value):
                text.fail((name,), f"{name} must be an array of tables: write [[{name}]] for each rule")
                return
            for number, one in enumerate(value):
                self._rule(text, table, number, one)
            return
        if not isinstance(value, dict):
            text.fail((name,), f"{name} must be a table: write [{name}]")
            return
        if table.any_key is not None:
            self._rates(text, table, value)
            return
        read = self._keys(text, table, (name,), value)
        match name:
            case "commands":
                self._lists(text, value)
            case "fsfreeze":
                found = self.found
                found.auto_thaw = _seconds(read, "auto-thaw", found.auto_thaw)
                found.disconnect = _seconds(read, "auto-thaw-on-disconnect", found.disconnect)
                found.hook_limit = _seconds(read, "hook-limit", found.hook_limit)
                if "expedite-rcu" in read:
                    found.expedite = read["expedite-rcu"] == ("true",)
                self._mounts(text, name, read)
            case "fstrim":
                self._mounts(text, name, read)
            case "power":
                if "modes" in read:
                    self._set(text, name, "modes", "power", {"modes": read["modes"]})
            case "ssh":
                if "strict" in read:
                    self.found.settings["ssh-strict"] = "1" if read["strict"] == ("true",) else "0"
            case "workers":
                if "preload" in read:
                    self.found.settings["preload"] = " ".join(read["preload"])
            case "audit":
                if "to" in read:
                    self.found.settings["audit-to"] = read["to"][0]
            case "sizes":
                for key, limit in read.items():
                    if key in _SIZE_RULES:
                        self._set(text, name, key, "size", {"key": (key,), "limit": limit})
                    else:
                        assert key in _SIZE_SETTINGS
                        self.found.settings[key] = limit[0]

    def _set(self, text: Text, table: str, key: str, kind: str, values: dict[str, tuple[str, ...]]) -> None:
        self._single[table, key] = Rule(kind, f"{table}.{key}", text.origin((table, key)), values)

    def _lists(self, text: Text, value: Mapping[str, object]) -> None:
        for key in ("allow", "block"):
            words = value.get(key, [])
            at = ("commands", key)
            if not isinstance(words, list):
                text.fail(at, f"{key} must be a list of strings: write [...] around it")
                continue
            for number, word in enumerate(words):
                if not isinstance(word, str):
                    text.fail((*at, number), f"{key} must be a list of strings")
                    continue
                names, wrong = commands_of(word, self._commands)
                if wrong:
                    text.fail((*at, number), wrong)
                why = (f"{key}:{word}", text.origin((*at, number)))
                if key == "block":
                    self._blocked.update((n, why) for n in names)
                else:
                    self.found.allowed.update(names)
                    self.found.why.update((n, why) for n in names)

    def _mounts(self, text: Text, table: str, read: Mapping[str, tuple[str, ...]]) -> None:
        for key in ("only-mounts", "never-mounts"):
            if key not in read:
                continue
            points = read[key]
            old = self._single.get((table, key))
            if key == "never-mounts" and old is not None:
                points = (*old.all("points"), *(p for p in points if p not in old.all("points")))
            self._set(text, table, key, key, {"for": (table,), "points": points})
        both = [self._single.get((table, k)) for k in ("only-mounts", "never-mounts")]
        if both[0] is not None and both[1] is not None:
            for point in both[0].all("points"):
                if point in both[1].all("points"):
                    key = "never-mounts" if "never-mounts" in read else "only-mounts"
                    text.fail((table, key), f"{point} is both in only-mounts and in never-mounts of [{table}]")

    def _rates(self, text: Text, table: Table, value: Mapping[str, object]) -> None:
        assert table.any_key is not None
        for word, limit in value.items():
            at = (table.name, word)
            names, wrong = commands_of(word, self._commands)
            if wrong:
                text.fail(at, wrong)
            exact = names == [word]
            if exact and word in self._unlimited:
                text.fail(at, f"{word} must always work, so that a freeze can be ended: it has no rate")
            elif exact and self._commands[word] == "front":
                text.fail(
                    at, f"{word} is answered by the process that reads the host's bytes, where no rate is counted"
                )
            names = [n for n in names if n not in self._unlimited and self._commands[n] != "front"]
            if not names and not wrong and not exact:
                text.fail(at, f"{word} means only commands that have no rate")
            key = Key(word, table.any_key.kind, "", low=table.any_key.low, high=table.any_key.high)
            good = text.value(key, at, limit)
            if good is not None and names:
                self._single[at] = Rule(
                    "rate", f"rates.{word}", text.origin(at), {"commands": tuple(names), "limit": good}
                )

    # -- rules

    def _rule(self, text: Text, table: Table, number: int, values: Mapping[str, object]) -> None:
        at = (table.name, number)
        read = self._keys(text, table, at, values)
        id = read.pop("id", ("",))[0]
        match table.name:
            case "file":
                read.setdefault("access", ("read",))
                if not read["access"]:
                    text.fail((*at, "access"), "access is empty: the rule would allow nothing")
                if "create" in read["access"] and "write" not in read["access"]:
                    text.fail((*at, "access"), "create without write makes files that nobody can fill: add write")
            case "exec":
                if read.get("program") == ("/",):
                    text.fail((*at, "program"), "program must be a file's path")
            case "user":
                read.setdefault("for", ("password", "keys"))
                if not values.get("names") and not values.get("uids"):
                    text.fail(at, "[[user]] needs names or uids: whose account?")
                if not read["for"]:
                    text.fail((*at, "for"), "for is empty: the rule would allow nothing")
        self._many.append((text, number, Rule(table.name, id, text.origin(at), read)))

    def _names(self) -> None:
        """Ids for the rules without one, and each id once."""
        rules: list[Rule] = []
        counts = dict.fromkeys(RULE_KINDS, 0)
        taken = {rule.id for _, _, rule in self._many if rule.id}
        first: dict[str, str] = {}
        for text, number, rule in self._many:
            counts[rule.kind] += 1
            id = rule.id
            if not id:
                place = counts[rule.kind]
                while f"{rule.kind}-{place}" in taken:
                    place += 1
                id = f"{rule.kind}-{place}"
                taken.add(id)
            elif id in first:
                text.fail((rule.kind, number, "id"), f"the id {id} is that of the rule at {first[id]} too")
            first.setdefault(id, rule.origin)
            rules.append(Rule(rule.kind, id, rule.origin, rule.values))
        self.found.rules = rules + list(self._single.values())

    def finish(self) -> Reading:
        """Raises PolicyError with all that is wrong."""
        self._names()
        if self.problems:
            raise PolicyError(*self.problems)
        found = self.found
        found.allowed -= self._blocked.keys()
        found.why.update(self._blocked)
        return found


def _seconds(read: Mapping[str, tuple[str, ...]], key: str, default: int) -> int:
    return int(read[key][0]) if key in read else default


def _not_toml(path: str, source: str, message: str) -> Problem:
    """The parser's own message ends in "(at line N, column M)", or in "(at end of document)"."""
    what, _, where = message.rpartition(" (at ")
    words = where.rstrip(")").replace(",", "").split()
    if words[:1] == ["line"]:
        return Problem(f"not TOML: {what}", path, int(words[1]), int(words[3]))
    lines = source.split("\n")
    return Problem(f"not TOML: {what}", path, len(lines), len(lines[-1]) + 1)


def read(
    texts: Iterable[tuple[str, str]],
    *,
    base: Callable[[str], Reading | None],
    commands: Mapping[str, str],
    profiles: Iterable[str] = (),
    unlimited: Iterable[str] = (),
    start: str | None = None,
) -> Reading:
    """Fold (path, text) pairs into one Reading.

    base       the built-in profile of a name, None for an unknown one
    commands   command -> domain: what exists
    profiles   the names for the error about an unknown one
    unlimited  commands that no rate may slow down
    start      the profile to start from when the first text names none
    Raises PolicyError with every problem of every text."""
    folder = _Folder(base, commands, profiles, unlimited)
    folder.start(start)
    for number, (path, source) in enumerate(texts):
        folder.text(path, source, first=not number)
    return folder.finish()
