"""What a decision is: who decided, where that stands, and in which words it is told."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from policy.rules import Rule


class Decision:
    """
    allowed     whether it may be executed
    rule        the id of the rule that decided: one about arguments (the kind, where none of its rules admits them), else the one
                that allows or blocks the command
    origin      where that rule stands: `file:line`, an option, or a profile's name
    reason      refused for what is in the arguments: why, in words for the host; "" where the command itself is not allowed
    grant       the rule whose limits the worker has to keep while it acts, None where there are none
    conditions  what is left to be seen when it is done, in words for a reader
    """

    __slots__ = ("allowed", "rule", "origin", "reason", "grant", "conditions")

    def __init__(
        self,
        allowed: bool,
        rule: str,
        origin: str,
        reason: str = "",
        grant: Rule | None = None,
        conditions: tuple[str, ...] = (),
    ) -> None:
        self.allowed = allowed
        self.rule = rule
        self.origin = origin
        self.reason = reason
        self.grant = grant
        self.conditions = conditions

    def __repr__(self) -> str:
        return f"Decision({'allowed' if self.allowed else 'refused'} by {self.rule} at {self.origin}: {self.reason})"

    def error(self, command: str) -> str:
        """The text for the host of a request whose arguments are refused."""
        return refusal(command, self.rule, self.reason)

    def log(self, command: str) -> str:
        """The line for the administrator, with the file; never with a value of the request."""
        return f"{command} is refused by rule {self.rule} ({self.origin}): {self.reason or 'it is not allowed'}"


def refusal(command: str, rule: str, reason: str) -> str:
    return f"{command} is not allowed by policy (rule {rule}): {reason}"


def refuse(rule: Rule, reason: str) -> Decision:
    return Decision(False, rule.id, rule.origin, reason)


def refuse_by_all(rules: Sequence[Rule], reason: str) -> Decision:
    """None of the rules of a kind admits it: the kind stands for the id."""
    return Decision(False, rules[0].kind, rules[0].origin, reason)
