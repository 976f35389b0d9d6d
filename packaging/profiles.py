#!/usr/bin/env python3
"""Write docs/profiles.md: each profile that comes with the agent, every command, allowed or not and by which rule.

    profiles.py          writes it anew
    profiles.py -n       only says whether it is current (exit status 1 if not)

From policy/profiles/*.toml as the agent's own reader reads them, the command table and the privilege table; a test keeps the page
current.
"""

from __future__ import annotations

import sys
from pathlib import Path

TREE = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(TREE))

from policy.build import ORDER, PROFILES  # noqa: E402
from policy.builtin import COMMANDS, FROZEN  # noqa: E402
from policy.load import from_text  # noqa: E402
from policy.model import Policy  # noqa: E402
from privsep.domains import BY_NAME, Domain  # noqa: E402
from privsep.orders import enabled_rows  # noqa: E402

TARGET = TREE / "docs" / "profiles.md"

HEAD = """# Profiles

What each profile that comes with privsep-ga lets the host do, command by command, and which entry of its file says so. Written by
`packaging/profiles.py` from [policy/profiles](../policy/profiles), whose comments give the reasons; do not edit.

`privsep-gactl policy show --policy NAME` prints the same about a profile, and about a file of your own.
"""


def path_of(name: str) -> str:
    return f"policy/profiles/{name}.toml"


def policy_of(name: str) -> Policy:
    """The profile, read from its file, so that each decision has its line."""
    return from_text(path_of(name), (PROFILES / f"{name}.toml").read_text(encoding="utf-8"))


def decided(policies: dict[str, Policy], name: str, command: str) -> tuple[str, str]:
    """(rule, origin) of what decides about the command, where the profile starts from another: of what decides there."""
    rule, origin = policies[name].about(command)
    kind, _, base = rule.partition(":")
    if kind == "profile" and base in policies and base != name:
        return decided(policies, base, command)
    return rule, origin


def entry(policies: dict[str, Policy], name: str, command: str) -> str:
    """A cell of a profile's list."""
    rule, origin = decided(policies, name, command)
    kind, _, what = rule.partition(":")
    path, _, line = origin.partition(":")
    if kind not in ("allow", "block") or not line:
        return "nothing names it"
    of = "" if path == path_of(name) else f" of {Path(path).stem}"
    return f"{kind} [`{what}`](../{path}#L{line}){of}"


def overview(policies: dict[str, Policy]) -> list[str]:
    lines = ["## All at a glance", "", "| command | " + " | ".join(policies) + " |", "|---|" + ":-:|" * len(policies)]
    lines += [
        f"| `{c}` | " + " | ".join("yes" if p.allows(c) else "–" for p in policies.values()) + " |" for c in COMMANDS
    ]
    counts = " | ".join(str(len(p.allowed)) for p in policies.values())
    lines += [f"| *of {len(COMMANDS)}* | {counts} |", ""]
    names = ", ".join(f"`{c}`" for c in COMMANDS if c in FROZEN)
    lines += [f"While file systems are frozen, {names} are allowed under every profile, and nothing else is."]
    return lines


def privilege(row: Domain) -> str:
    if not row.caps:
        return "uid 0 without a capability" if row.user == "root" else "nothing"
    return ", ".join("every capability" if c == "ALL" else f"CAP_{c}" for c in row.caps)


def section(policies: dict[str, Policy], name: str, description: str) -> list[str]:
    policy = policies[name]
    lines = [
        "",
        f"## {name}",
        "",
        f"{description[0].upper()}{description[1:]}. File: [{path_of(name)}](../{path_of(name)}).",
    ]
    rows = [BY_NAME[row] for row in BY_NAME if row in enabled_rows(policy, hook=False)]
    held = [f"{row.name} ({privilege(row)})" for row in rows]
    lines += ["", f"Processes that may run, and what each holds: {', '.join(held)}.", ""]
    lines += [
        f"A freeze ends after {policy.auto_thaw} s at the latest." if "fs" in policy.domains() else "Nothing is frozen."
    ]
    if policy.lenient:
        lines += ["", "Lenient: the peer's words, and its leniency with lists, keys and uid 0."]
    lines += ["", "| command | process | allowed | by |", "|---|---|:-:|---|"]
    for command, domain in COMMANDS.items():
        allowed = "yes" if policy.allows(command) else "no"
        lines.append(f"| `{command}` | {domain} | {allowed} | {entry(policies, name, command)} |")
    return lines


def render() -> str:
    """The text of docs/profiles.md."""
    from policy.builtin import PROFILES as ROWS

    policies = {name: policy_of(name) for name in ORDER}
    lines = [HEAD, *overview(policies)]
    for name in ORDER:
        lines += section(policies, name, ROWS[name][0])
    return "\n".join(lines) + "\n"


def main(argv: list[str] | None = None) -> int:
    text = render()
    if TARGET.exists() and TARGET.read_text(encoding="utf-8") == text:
        return 0
    if "-n" in (sys.argv[1:] if argv is None else argv):
        print(f"{TARGET} is not current: run packaging/profiles.py", file=sys.stderr)
        return 1
    TARGET.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
