"""A whole policy as lines, for the way from the process that read it to the supervisor that goes by it.

    is NAME     set NAME NUMBER     more NAME TAB VALUE     allow COMMAND     note TEXT
    base RULE TAB ORIGIN                        what decided about commands that no other rule names
    why COMMAND TAB RULE TAB ORIGIN             what decided about the others
    rule KIND TAB ID TAB ORIGIN TAB ...         as in a slice (policy/rules.py)

Not a file format: both ends are of one version.
"""

from __future__ import annotations

from policy.model import Policy
from policy.seal import escape, unescape

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

    from policy.rules import Rule

# Attributes of a policy that are numbers or flags.
_NUMBERS: Final = ("lenient", "auto_thaw", "disconnect", "hook_limit", "expedite")


def encode(policy: Policy) -> bytes:
    """The policy, all of it."""
    lines = [f"is {escape(policy.name)}", "base " + "\t".join(map(escape, policy.base))]
    lines += [f"allow {command}" for command in sorted(policy.allowed)]
    lines += ["why " + "\t".join(map(escape, (command, *why))) for command, why in policy.why_of.items()]
    lines += [rule.line() for rule in policy.rules]
    lines += [f"set {name} {int(getattr(policy, name))}" for name in _NUMBERS]
    lines += [f"more {escape(name)}\t{escape(value)}" for name, value in policy.more.items()]
    lines += [f"note {escape(note)}" for note in policy.notes]
    return "".join(f"{line}\n" for line in lines).encode("utf-8", "surrogateescape")


def decode(data: bytes) -> Policy:
    """The inverse of `encode`.  Raises ValueError, KeyError or PolicyError for anything else."""
    if not data.endswith(b"\n"):
        raise ValueError("the policy is cut off")
    name, base = "", ("", "")
    allowed: set[str] = set()
    why: dict[str, tuple[str, str]] = {}
    rules: list[Rule] = []
    numbers: dict[str, int] = {}
    more: dict[str, str] = {}
    notes: list[str] = []
    for line in data.decode("utf-8", "surrogateescape").split("\n")[:-1]:
        word, _, rest = line.partition(" ")
        words = [unescape(w) for w in rest.split("\t")]
        if word == "is":
            name = words[0]
        elif word == "base":
            base = words[0], words[1]
        elif word == "allow":
            allowed.add(words[0])
        elif word == "why":
            why[words[0]] = words[1], words[2]
        elif word == "rule":
            from policy.rules import parse  # most policies have none

            rules.append(parse(line))
        elif word == "set":
            key, _, value = rest.partition(" ")
            numbers[key] = int(value)
        elif word == "more":
            more[words[0]] = words[1]
        elif word == "note":
            notes.append(words[0])
        else:
            raise ValueError("a line that is none of a policy's")
    return Policy(
        name,
        frozenset(allowed),
        base=base,
        why_of=why,
        rules=tuple(rules),
        lenient=bool(numbers["lenient"]),
        auto_thaw=numbers["auto_thaw"],
        disconnect=numbers["disconnect"],
        hook_limit=numbers["hook_limit"],
        expedite=bool(numbers["expedite"]),
        more=more,
        notes=tuple(notes),
    )
