"""Why a request is allowed or refused, in words for an administrator, and what would have to change for the other answer.

The decision is `policy/decide.py`'s, the one that workers make; here is only what a reader wants to know about it.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from policy.builtin import FROZEN
from policy.decide import Decision, Ruling, limit_of
from policy.model import UNLISTED, Policy
from protocol.commands import BY_NAME
from protocol.errors import CommandError
from protocol.schema import check_arguments

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from policy.decide import Uid
    from policy.rules import Rule


class NoRequest(Exception):
    """It is no request that the agent would execute whatever the policy says; the text says why."""


class Explanation:
    """
    command    its name
    decision   what the worker would decide
    decided_by the rule and its place, as an administrator looks for it
    changes    what would have to change for the other answer
    notes      what else there is to know: limits, and what is seen only when it is done
    """

    __slots__ = ("command", "decision", "decided_by", "changes", "notes")

    def __init__(self, command: str, decision: Decision, changes: list[str], notes: list[str]) -> None:
        self.command = command
        self.decision = decision
        self.decided_by = f"{decision.rule} ({decision.origin})"
        self.changes = changes
        self.notes = notes

    def lines(self) -> list[str]:
        """For people."""
        d = self.decision
        found = [f"{self.command}: {'allowed' if d.allowed else 'refused'}", f"  decided by {self.decided_by}"]
        found += [f"  because {d.reason}"] if d.reason else []
        found += [f"  {note}" for note in self.notes]
        return found + [f"  to {'refuse' if d.allowed else 'allow'} it: {change}" for change in self.changes]

    def plain(self) -> dict[str, Any]:
        """For programs."""
        d = self.decision
        return {
            "command": self.command,
            "allowed": d.allowed,
            "rule": d.rule,
            "origin": d.origin,
            "reason": d.reason,
            "conditions": list(d.conditions),
            "notes": self.notes,
            "changes": self.changes,
        }


def request_of(text: str) -> tuple[str, dict[str, object] | None]:
    """(command, arguments) of a request in JSON, or of a bare name, whose arguments are None.  Raises NoRequest."""
    if not text.lstrip().startswith("{"):
        return text, None
    try:
        value = json.loads(text)
    except ValueError as e:
        raise NoRequest(f"not JSON: {e}") from None
    arguments = value.get("arguments", {})
    unknown = value.keys() - {"execute", "arguments", "id"}
    if type(value.get("execute")) is not str or type(arguments) is not dict or unknown:
        raise NoRequest('a request is {"execute": NAME, "arguments": {...}}')
    return value["execute"], arguments


def explain(
    policy: Policy,
    command: str,
    arguments: Mapping[str, object] | None,
    *,
    uid: Uid | None = None,
    superblocks: Sequence[Sequence[str]] | None = None,
) -> Explanation:
    """What becomes of the request; without arguments, of the command as such.  Raises NoRequest."""
    row = BY_NAME.get(command)
    if row is None:
        from policy.errors import nearest

        raise NoRequest(f"unknown command '{command}'{nearest(command, BY_NAME)}")
    scope = policy.scope(row.domain)
    if arguments is None or not policy.allows(command):
        decision = Decision(policy.allows(command), *policy.about(command))
        inside = [r for r in scope.rules if r.kind != "rate" and _is_about(r, command)] if decision.allowed else []
        notes = [f"what is in the request is decided by {r.kind} rule {r.id} ({r.origin})" for r in inside]
        limit = limit_of(scope, command)
        if limit is not None and decision.allowed:
            notes.append(f"not more than {limit[0]} a minute by {limit[1].id} ({limit[1].origin})")
            if not limit[0]:
                decision = Ruling.too_often(*limit)
    else:
        try:
            checked = check_arguments(row.args, arguments)
        except CommandError as e:
            raise NoRequest(e.desc) from None
        decision = policy.decide(command, checked, uid=uid, superblocks=superblocks)
        notes = [f"provided: {condition}" for condition in decision.conditions]
    if command in FROZEN and not decision.allowed:
        notes.append("while file systems are frozen it is allowed whatever the policy says")
    elif command not in FROZEN and decision.allowed:
        notes.append("not while file systems are frozen")
    return Explanation(command, decision, _changes(policy, command, decision), notes)


_KINDS = {
    "file": ("guest-file-open",),
    "exec": ("guest-exec",),
    "size": ("guest-file-read", "guest-file-write", "guest-exec"),
}


def _is_about(rule: Rule, command: str) -> bool:
    if rule.kind == "size":
        return f"guest-{rule.one('key')}".startswith(command)
    wanted = _KINDS.get(rule.kind)
    return wanted is None or command in wanted


def _changes(policy: Policy, command: str, decision: Decision) -> list[str]:
    rule, origin = decision.rule, decision.origin
    if decision.allowed:
        name, where = policy.about(command)
        if name.startswith("allow:"):
            found = [f'take {name[6:]} out of `allow` ({where}), or block = ["{command}"] below [commands]']
        else:
            found = [f'block = ["{command}"] below [commands]']
        return found + ([f"change rule {rule} ({origin})"] if rule != name else [])
    if not policy.allows(command):
        if rule.startswith("block:"):
            return [f"take {rule[6:]} out of `block` ({origin}): what is blocked anywhere stays blocked"]
        if rule == "block-rpcs":
            return [f"take it out of the list of blocked commands ({origin})"]
        if rule == "allow-rpcs":
            return [f"add it to the list of allowed commands ({origin})"]
        text = f'allow = ["{command}"] below [commands]'
        if rule == UNLISTED:
            return [f"{text} in {origin.partition(':')[0]}"]
        if origin == "built in":
            return [f'a policy file with profile = "{rule.partition(":")[2]}" and {text}']
        return [f"{text} in {origin.rpartition(':')[0] or origin}, or in a drop-in"]
    return [_for_arguments(command, rule, origin)]


def _for_arguments(command: str, rule: str, origin: str) -> str:
    kind = {"guest-file-open": "file", "guest-exec": "exec"}.get(command)
    if rule == "root-account":
        return "a [[user]] rule that names the account"
    if kind is None and ("password" in command or "ssh" in command):
        kind = "user"
    if rule == kind:
        return f"a [[{kind}]] rule that admits the request"
    if kind is not None and "." not in rule:
        return f"rule {rule} ({origin}), or another [[{kind}]] rule that admits the request"
    return f"rule {rule} ({origin})"
