"""Rules about what is inside a request, as a worker has them: values in memory, and lines of its sealed policy slice.

A rule is data: its kind, its id, the place it was read at, and strings under names.  What the strings mean is decided in
`policy/decide.py` and nowhere else.  Imported by no process whose slice has no rule.

    kind           values                                               decides about
    file           path access owner max-size hard-links                guest-file-open, and what is done with the handle
    exec           program args env input user group time-limit ...     guest-exec
    user           names uids for                                       passwords and keys
    root-account   (none)                                               the same: uid 0 is refused where no rule names it
    power          modes                                                shutdown and suspend
    only-mounts    for (fsfreeze or fstrim) points                      freeze and trim
    never-mounts   the same                                             the same
    size           limit key                                            file-read, file-write, exec-input
    rate           commands limit                                       how often a minute
"""

from __future__ import annotations

from policy.errors import PolicyError
from policy.seal import escape, parse_slice, unescape

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from typing import Final

KINDS: Final = frozenset(
    ("file", "exec", "user", "root-account", "power", "only-mounts", "never-mounts", "size", "rate")
)


class Rule:
    """`origin` is `file:line`, or what else the rule comes from; `values` has a tuple of strings for each name."""

    __slots__ = ("kind", "id", "origin", "values")

    def __init__(self, kind: str, id: str, origin: str, values: Mapping[str, tuple[str, ...]]) -> None:
        self.kind = kind
        self.id = id
        self.origin = origin
        self.values = values

    def all(self, name: str) -> tuple[str, ...]:
        """Every string under that name; empty where it was not given."""
        return self.values.get(name, ())

    def one(self, name: str, default: str = "") -> str:
        """The first of them."""
        found = self.values.get(name)
        return found[0] if found else default

    def has(self, name: str) -> bool:
        """Whether the key was given, if only with an empty list."""
        return name in self.values

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Rule) and self.line() == other.line()

    def __hash__(self) -> int:
        return hash(self.line())

    def __repr__(self) -> str:
        return f"Rule({self.kind} {self.id} at {self.origin})"

    def line(self) -> str:
        """Its line in a slice."""
        words = [self.kind, self.id, self.origin]
        for name, values in self.values.items():
            # A name alone is a list without elements.
            words += [f"{name}={v}" for v in values] if values else [name]
        return "rule " + "\t".join(map(escape, words))


def parse(line: str) -> Rule:
    """The inverse of `Rule.line`.  Raises PolicyError."""
    words = [unescape(w) for w in line.removeprefix("rule ").split("\t")]
    if not line.startswith("rule ") or len(words) < 3 or words[0] not in KINDS:
        raise PolicyError("the policy slice has a rule that is none")
    values: dict[str, tuple[str, ...]] = {}
    for word in words[3:]:
        name, sign, value = word.partition("=")
        values[name] = (*values.get(name, ()), value) if sign else ()
    return Rule(words[0], words[1], words[2], values)


class Scope:
    """What one process was told that it may do: the part of a slice that decides about requests.

    allowed  its commands
    rules    those about arguments and rates, in the order of the files
    why      command -> (rule id, origin) of what decided about it
    base     the same for commands that are not in `why`
    """

    __slots__ = ("allowed", "rules", "why", "base")

    def __init__(
        self,
        allowed: frozenset[str],
        rules: Iterable[Rule] = (),
        why: Mapping[str, tuple[str, str]] | None = None,
        base: tuple[str, str] = ("", ""),
    ) -> None:
        self.allowed = allowed
        self.rules = tuple(rules)
        self.why = why or {}
        self.base = base

    def of(self, kind: str) -> list[Rule]:
        return [r for r in self.rules if r.kind == kind]

    def about(self, command: str) -> tuple[str, str]:
        """(rule id, origin) of what allows or blocks the command as such."""
        return self.why.get(command) or self.base


def scope_of(data: bytes) -> Scope | None:
    """What a slice (policy/seal.py) says about requests; None where it says no more than which commands there are.

    Raises PolicyError."""
    rules: list[Rule] = []
    why: dict[str, tuple[str, str]] = {}
    for line in data.decode("utf-8", "surrogateescape").split("\n"):
        if line.startswith("rule "):
            rules.append(parse(line))
        elif line.startswith("why "):
            words = [unescape(w) for w in line[4:].split("\t")]
            if len(words) != 3:
                raise PolicyError("the policy slice does not say which rule decided")
            why[words[0]] = words[1], words[2]
    if not rules and not why:
        return None
    allowed, settings = parse_slice(data)
    return Scope(allowed, rules, why, (settings.get("rule", ""), settings.get("origin", "")))
