"""What an administrator expects of a policy, kept beside it and checked by `privsep-gactl policy test CASES.toml`.

policy = "policy.toml"                  a file (relative to this one) or a profile; without it the installed policy

[[case]]
request = '{"execute": "guest-exec", "arguments": {"path": "/usr/bin/uptime"}}'
expect = "allowed"
rule = "uptime"                         the rule that has to decide it; may be left out

[[case]]
execute = "guest-exec"                  the same in TOML
arguments = { path = "/bin/sh" }
expect = "refused"

[[case]]
execute = "guest-fsfreeze-freeze"
superblocks = [["/"], ["/srv", "/export"]]    what is mounted in the guest, for rules about mount points
expect = "refused"
"""

from __future__ import annotations

import tomllib
from typing import TYPE_CHECKING, Any

from policy.errors import PolicyError, Problem, nearest
from policy.explain import Explanation, NoRequest, explain, request_of

if TYPE_CHECKING:
    from policy.decide import Uid
    from policy.model import Policy

KEYS = ("request", "execute", "arguments", "superblocks", "expect", "rule", "why")
TOP = ("policy", "case")
EXPECTED = ("allowed", "refused")


class Case:
    """One expectation; `place` is file:line.  `why` is for the reader."""

    __slots__ = ("place", "command", "arguments", "superblocks", "expect", "rule")

    def __init__(
        self,
        place: str,
        command: str,
        arguments: dict[str, object] | None,
        superblocks: list[list[str]] | None,
        expect: str,
        rule: str,
    ) -> None:
        self.place = place
        self.command = command
        self.arguments = arguments
        self.superblocks = superblocks
        self.expect = expect
        self.rule = rule

    def run(self, policy: Policy, uid: Uid | None = None) -> tuple[Explanation | None, str]:
        """(what the policy says, why the case fails); "" when it holds."""
        try:
            found = explain(policy, self.command, self.arguments, uid=uid, superblocks=self.superblocks)
        except NoRequest as e:
            return None, str(e)
        said = EXPECTED[not found.decision.allowed]
        if said != self.expect:
            reason = f": {found.decision.reason}" if found.decision.reason else ""
            return found, f"is {said}, not {self.expect}, by {found.decided_by}{reason}"
        if self.rule and self.rule != found.decision.rule:
            return found, f"is {said} by {found.decided_by}, not by {self.rule}"
        return found, ""


def read(path: str, text: str) -> tuple[str | None, list[Case]]:
    """(the policy's name, the cases).  Raises PolicyError with every fault."""
    try:
        values = tomllib.loads(text)
    except tomllib.TOMLDecodeError as e:
        raise PolicyError(f"{path}: not TOML: {e}") from None
    lines = [n for n, line in enumerate(text.split("\n"), 1) if line.replace(" ", "").startswith("[[case]]")]
    problems = [Problem(f"unknown key {key}{nearest(key, TOP)}", path) for key in values if key not in TOP]
    name = values.get("policy")
    if name is not None and type(name) is not str:
        problems.append(Problem("policy must be a string", path))
    found = values.get("case", [])
    if type(found) is not list or not found or not all(type(c) is dict for c in found):
        raise PolicyError(*problems, Problem("there is no [[case]]", path))
    cases: list[Case] = []
    for number, value in enumerate(found):
        line = lines[number] if len(lines) == len(found) else 0
        try:
            cases.append(_case(value, f"{path}:{line}" if line else path))
        except ValueError as e:
            problems.append(Problem(str(e), path, line))
    if problems:
        raise PolicyError(*problems)
    return name, cases


def _case(value: dict[str, Any], place: str) -> Case:
    """Raises ValueError."""
    for key in value:
        if key not in KEYS:
            raise ValueError(f"unknown key {key}{nearest(key, KEYS)}")
    if value.get("expect") not in EXPECTED:
        raise ValueError('expect must be "allowed" or "refused"')
    if ("request" in value) == ("execute" in value) or ("request" in value and "arguments" in value):
        raise ValueError("a case has either request, or execute and arguments")
    if "request" in value:
        if type(value["request"]) is not str:
            raise ValueError("request must be a string of JSON")
        try:
            command, arguments = request_of(value["request"])
        except NoRequest as e:
            raise ValueError(f"request: {e}") from None
    else:
        command, arguments = value["execute"], value.get("arguments")
        if type(command) is not str or not (arguments is None or type(arguments) is dict):
            raise ValueError("execute must be a string, arguments a table")
    superblocks = value.get("superblocks")
    if superblocks is not None:
        if type(superblocks) is not list or not all(
            type(points) is list and points and all(type(p) is str for p in points) for points in superblocks
        ):
            raise ValueError("superblocks must be a list of lists of mount points")
        arguments = arguments if arguments is not None else {}
    rule = value.get("rule", "")
    if type(rule) is not str:
        raise ValueError("rule must be a string")
    return Case(place, command, arguments, superblocks, value["expect"], rule)
