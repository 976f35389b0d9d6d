"""What a host gains and loses when one policy takes the place of another.

Commands are compared one by one, rules by what they say and not by how they are called or where they stand.  Whether
a rule that differs gives or takes is said where that can be said of it alone; where it cannot (a program that other arguments
are admitted for, say) both are shown.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from policy.builtin import COMMANDS

if TYPE_CHECKING:
    from policy.model import Policy
    from policy.rules import Rule

GAINS = "gains"
LOSES = "loses"
CHANGES = "changes"
_SIGNS = {GAINS: "+", LOSES: "-", CHANGES: "~"}

# Kinds of which each rule admits something; without any, all is admitted.
_ADMITTING = ("file", "exec", "user")
_REFUSING = ("root-account", "never-mounts", "only-mounts", "power")


class Change:
    """`what`: GAINS, LOSES or CHANGES, from the host's point of view."""

    __slots__ = ("what", "text", "origin")

    def __init__(self, what: str, text: str, origin: str = "") -> None:
        self.what = what
        self.text = text
        self.origin = origin

    def __str__(self) -> str:
        return f"{_SIGNS[self.what]} {self.text}" + (f"  ({self.origin})" if self.origin else "")

    def plain(self) -> dict[str, Any]:
        return {"change": self.what, "text": self.text, "origin": self.origin}


def compare(old: Policy, new: Policy) -> list[Change]:
    """All changes: commands in the table's order, then rules, then limits."""
    found = [_command(c, old, new) for c in COMMANDS if old.allows(c) != new.allows(c)]
    # A rule about what nobody may do at all changes nothing.
    for domain in dict.fromkeys(COMMANDS.values()):
        if any(old.allows(c) and new.allows(c) for c, d in COMMANDS.items() if d == domain):
            found += _rules(domain, old.rules_for(domain), new.rules_for(domain))
    unique = {str(change): change for change in found}  # a rule may be several domains'
    return [*unique.values(), *_limits(old, new)]


def _command(command: str, old: Policy, new: Policy) -> Change:
    allowed = new.allows(command)
    rule, origin = new.about(command)
    text = f"{command}, by {rule}"
    within = [r.id for r in new.rules_for(COMMANDS[command]) if allowed and r.kind in _ADMITTING]
    if within:
        text += f", within {', '.join(within)}"
    return Change(GAINS if allowed else LOSES, text, origin)


def _words(rule: Rule) -> str:
    values = [
        f"{name}={','.join(values)}" for name, values in rule.values.items() if name != "for" or rule.kind == "user"
    ]
    return " ".join([rule.kind, *values])


def _rules(domain: str, old: tuple[Rule, ...], new: tuple[Rule, ...]) -> list[Change]:
    found: list[Change] = []
    for kind in dict.fromkeys(r.kind for r in (*old, *new)):
        before = {_words(r): r for r in old if r.kind == kind}
        after = {_words(r): r for r in new if r.kind == kind}
        gone = [r for words, r in before.items() if words not in after]
        come = [r for words, r in after.items() if words not in before]
        if kind in _ADMITTING:
            if come and not before:
                found.append(Change(LOSES, f"{domain}: all but what {kind} rules admit"))
            if gone and not after:
                found.append(Change(GAINS, f"{domain}: whatever the commands can do, there is no {kind} rule any more"))
            found += [Change(LOSES if after else CHANGES, _words(r), r.origin) for r in gone]
            found += [Change(GAINS if before else CHANGES, _words(r), r.origin) for r in come]
        elif kind in _REFUSING:
            found += _refusing(gone, come)
        else:
            found += _numbers(gone, come)
    return found


def _refusing(gone: list[Rule], come: list[Rule]) -> list[Change]:
    if gone and come:  # the same key with other values
        return [Change(CHANGES, f"{_words(a)} becomes {_words(b)}", b.origin) for a, b in zip(gone, come, strict=False)]
    found = [Change(GAINS, f"without {_words(r)}", r.origin) for r in gone]
    return found + [Change(LOSES, f"with {_words(r)}", r.origin) for r in come]


def _numbers(gone: list[Rule], come: list[Rule]) -> list[Change]:
    def key(rule: Rule) -> tuple[str, ...]:
        return (rule.kind, *rule.all("key"), *rule.all("commands"))

    def name(rule: Rule) -> str:
        return f"{rule.kind} of {','.join(rule.all('key') + rule.all('commands'))}"

    before, after = {key(r): r for r in gone}, {key(r): r for r in come}
    found: list[Change] = []
    for k in dict.fromkeys((*before, *after)):
        a, b = before.get(k), after.get(k)
        if a is None and b is not None:
            found.append(Change(LOSES, f"{name(b)}: at most {b.one('limit')}", b.origin))
        elif b is None and a is not None:
            found.append(Change(GAINS, f"{name(a)}: no limit of {a.one('limit')} any more", a.origin))
        elif a is not None and b is not None:
            more = int(b.one("limit")) > int(a.one("limit"))
            text = f"{name(b)}: {a.one('limit')} becomes {b.one('limit')}"
            found.append(Change(GAINS if more else LOSES, text, b.origin))
    return found


def _limits(old: Policy, new: Policy) -> list[Change]:
    found: list[Change] = []
    if old.lenient != new.lenient:
        text = "the peer's leniency: uid 0 like any user, any line as a key, unknown names in lists"
        found.append(Change(GAINS if new.lenient else LOSES, text))
    before, after = _longest(old.auto_thaw), _longest(new.auto_thaw)
    if before != after and any(p.allows("guest-fsfreeze-freeze") for p in (old, new)):
        text = f"auto-thaw: {old.auto_thaw} s becomes {new.auto_thaw} s"
        found.append(Change(GAINS if after > before else LOSES, text))
    for name, attribute in (
        ("auto-thaw-on-disconnect", "disconnect"),
        ("hook-limit", "hook_limit"),
        ("expedite-rcu", "expedite"),
    ):
        a, b = getattr(old, attribute), getattr(new, attribute)
        if a != b:
            found.append(Change(CHANGES, f"{name}: {a} becomes {b}"))
    for name in sorted({*old.more, *new.more}):
        if old.more.get(name) != new.more.get(name):
            text = f"{name}: {old.more.get(name, 'the default')} becomes {new.more.get(name, 'the default')}"
            found.append(Change(CHANGES, text))
    return found


def _longest(seconds: int) -> float:
    return float("inf") if seconds == 0 else seconds
