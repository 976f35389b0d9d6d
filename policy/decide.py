"""THE decision: may this command be executed with these arguments?  Pure; called by the worker before it acts, and by `explain`.

A worker never asks anybody else: it decides on the values that it decoded itself, by the rules in its own sealed slice.  What only
the kernel or the file itself can say (who owns it, what a path leads to) is left to the worker, and stands in `conditions`
for a reader.

    d = decide(scope, "guest-exec", {"path": "/usr/bin/uptime"})
    d.allowed, d.rule, d.origin      True, "uptime", "/etc/privsep-ga/policy.toml:12"
    d.grant                          the rule whose limits the worker then keeps
    d.error("guest-exec")            what the host is told when it is refused

How rules of a kind work together: without one, everything that the command can do is allowed; with one, what at least one of them
admits.  `never-mounts`, `root-account`, sizes and rates only ever refuse.
"""

from __future__ import annotations

from policy.checks import CHECKS, decide_mounts, mount_refusal
from policy.decision import Decision as Decision
from policy.decision import refuse
from policy.rates import admit

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from policy.checks import Uid as Uid
    from policy.rules import Rule, Scope


def decide(
    scope: Scope,
    command: str,
    arguments: Mapping[str, object],
    *,
    uid: Uid | None = None,
    superblocks: Sequence[Sequence[str]] | None = None,
) -> Decision:
    """Whether a request may be executed.

    arguments    checked against the command table (protocol/schema.py); bulk data is a text, or has a `size` of base64
    uid          a user's number, for rules about users; without it only names are looked at
    superblocks  for a freeze: the mount points of each superblock that it means; None: not known, stands in `conditions`
    """
    rule, origin = scope.about(command)
    if command not in scope.allowed:
        return Decision(False, rule, origin)
    check = CHECKS.get(command)
    found = None
    if check is not None and scope.rules:
        found = check(scope, command, arguments, uid, superblocks)
    return found or Decision(True, rule, origin)


class Ruling:
    """A scope and the decisions by it: what a worker carries, which can import nothing once its walls are up."""

    __slots__ = ("scope",)

    def __init__(self, scope: Scope) -> None:
        self.scope = scope

    def request(self, command: str, arguments: Mapping[str, object], uid: Uid | None) -> Decision:
        return decide(self.scope, command, arguments, uid=uid)

    def rate(self, command: str) -> tuple[int, Rule] | None:
        return limit_of(self.scope, command)

    @staticmethod
    def admit(words: memoryview, limit: int, now: float) -> bool:
        """Whether one more is within so many a minute; counts it (policy/rates.py)."""
        return admit(words, limit, now)

    @staticmethod
    def too_often(limit: int, rule: Rule) -> Decision:
        """The refusal of one more than `rate` says."""
        return refuse(rule, f"more than {limit} a minute")

    def masks(self, command: str) -> bool:
        """Whether a rule keeps arguments of the command out of the audit trail; then those of a refused one stay out too."""
        return command == "guest-exec" and any(r.one("mask") == "true" for r in self.scope.of("exec"))

    def freeze(self, command: str, superblocks: Sequence[Sequence[str]]) -> Decision | None:
        return decide_mounts(self.scope, command, superblocks)

    def left_out(self, purpose: str, points: Sequence[str]) -> Rule | None:
        return mount_refusal(self.scope, purpose, points)


def limit_of(scope: Scope, command: str) -> tuple[int, Rule] | None:
    """The requests a minute that a command may have, and the rule that says so: the smallest of those that mean it."""
    found: tuple[int, Rule] | None = None
    for rule in scope.rules:
        if rule.kind == "rate" and command in rule.all("commands"):
            limit = int(rule.one("limit"))
            if found is None or limit < found[0]:
                found = limit, rule
    return found
