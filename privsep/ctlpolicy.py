"""`privsep-gactl policy ...`: read a policy, ask it, compare it, and hold it to expectations, before it is in force or after.

Which policy: `--policy NAME|FILE`; `--running`, what the running agent would read now; without either, what an agent that is
started without options would go by, qemu-ga.conf's lists included.
"""

from __future__ import annotations

import argparse
import json
import os
import pwd
from collections.abc import Callable
from typing import Any

from policy import cases, diff
from policy.builtin import COMMANDS, PROFILES
from policy.errors import PolicyError
from policy.explain import NoRequest, explain, request_of
from policy.load import choose, from_files, trusted_text
from policy.model import Policy
from privsep import ctlagent
from privsep.agentview import print_table
from privsep.caller import arguments_of
from privsep.cli import Stop, command_line, effective_policy
from privsep.config import ConfigError
from privsep.domains import BY_NAME, SUPERVISOR_CAPS
from privsep.orders import enabled_rows

Add = Callable[..., argparse.ArgumentParser]


class Wrong(Exception):
    """Exit status 1 with this text."""


def options(add: Add, top: Any) -> None:
    """Add the subcommands to `top`, the parser's list."""
    policy = top.add_parser("policy", help="read and test a policy", description="Read and test a policy.")
    sub = policy.add_subparsers(dest="policy_command", required=True, metavar="COMMAND")

    check = add("check", run_check, "say whether a policy is right, with every fault that it has", sub)
    check.add_argument(
        "policy", metavar="FILE", nargs="*",
        help="a file and its drop-ins, a folder with policy.toml and policy.d, or a profile (default: the installed policy)",
    )  # fmt: skip
    show = add(
        "show", run_show, "list what a policy decides about each command and by which rule, its rules and limits", sub
    )
    narrow = show.add_mutually_exclusive_group()
    narrow.add_argument("--allowed", action="store_true", help="only the commands that it allows")
    narrow.add_argument("--blocked", action="store_true", help="only the commands that it does not allow")
    about = add("explain", run_explain, "say which rule decides about a request, and what would have to change", sub)
    about.add_argument("request", metavar="REQUEST", help="a request in JSON, or a command's name")
    about.add_argument("arguments", metavar="ARGUMENT", nargs="*", help="key=value, after a name")
    compare = add("diff", run_diff, "say what the host gains and loses when one policy takes the place of another", sub)
    for name in ("old", "new"):
        compare.add_argument(name, metavar=name.upper(), help="a profile, a file or a folder")
    test = add("test", run_test, "check that a policy decides as a file of expectations says", sub)
    test.add_argument("cases", metavar="CASES", nargs="+", help="TOML files with [[case]] tables")
    for made in (show, about, test):
        made.add_argument(
            "--policy", metavar="NAME|FILE", help="a profile, a file or a folder (default: the installed policy)"
        )
        made.add_argument("--running", action="store_true", help="what the running agent would read now")
        made.add_argument("--rundir", metavar="DIR", help="with --running: the agent's runtime directory")
    for made in (check, show, about, compare, test):
        made.add_argument("--json", action="store_true", help="for programs")


def chosen(name: str | None) -> Policy:
    """A profile, a file, a folder like /etc/privsep-ga; None: as an agent without options.  Raises PolicyError, Wrong."""
    if name is not None:
        return choose(None, name.rstrip("/")) if os.path.isdir(name) else choose(name)
    try:
        return effective_policy(command_line([], "privsep-ga", os.environ))
    except (Stop, ConfigError) as e:
        raise Wrong(str(e)) from None


def _policy(options: argparse.Namespace) -> Policy:
    if not options.running:
        return chosen(options.policy)
    try:
        return ctlagent.policy_of(ctlagent.report(options.rundir)[1].processes["supervisor"])
    except ctlagent.Unknown as e:
        raise Wrong(f"cannot tell which policy the running agent reads: {e}") from None


def uid_of(name: str) -> int | None:
    """A user's number on this machine."""
    try:
        return pwd.getpwnam(name).pw_uid
    except (KeyError, ValueError):
        return None


def _dump(value: object) -> None:
    print(json.dumps(value, indent=2, ensure_ascii=False))


def run_check(options: argparse.Namespace) -> int:
    names = options.policy
    try:
        policy = chosen(names[0] if names else None) if len(names) < 2 else from_files(names)
    except PolicyError as e:
        if options.json:
            rows = [{"path": p.path, "line": p.line, "column": p.column, "text": p.text} for p in e.problems]
            _dump({"right": False, "problems": rows})
            return 1
        raise
    if options.json:
        _dump({"right": True, "problems": [], "notes": list(policy.notes), "allowed": sorted(policy.allowed)})
        return 0
    for note in policy.notes:
        print(f"note: {note}")
    print(f"{policy.name}: right; allows {len(policy.allowed)} of {len(COMMANDS)} commands")
    return 0


def run_show(options: argparse.Namespace) -> int:
    policy = _policy(options)
    wanted = [c for c in COMMANDS if not (options.blocked if policy.allows(c) else options.allowed)]
    limits = {
        "auto-thaw": policy.auto_thaw,
        "auto-thaw-on-disconnect": policy.disconnect,
        "hook-limit": policy.hook_limit,
        "expedite-rcu": policy.expedite,
        "lenient": policy.lenient,
        **policy.more,
    }
    if options.json:
        rows = []
        for c in wanted:
            rule, origin = policy.about(c)
            rows.append(
                {"command": c, "domain": COMMANDS[c], "allowed": policy.allows(c), "rule": rule, "origin": origin}
            )
        rules = [{"kind": r.kind, "id": r.id, "origin": r.origin, "values": r.values} for r in policy.rules]
        _dump({"policy": policy.name, "commands": rows, "rules": rules, "limits": limits, "notes": policy.notes})
        return 0
    if wanted:
        print_table([[c, "allowed" if policy.allows(c) else "-", *policy.about(c)] for c in wanted])
    if options.allowed or options.blocked:
        return 0
    if policy.rules:
        print()
        words = [" ".join(f"{k}={','.join(v)}" for k, v in r.values.items()) for r in policy.rules]
        print_table([[r.kind, r.id, r.origin, w] for r, w in zip(policy.rules, words, strict=True)])
    print()
    print_table([[name, str(value).lower() if type(value) is bool else str(value)] for name, value in limits.items()])
    for note in policy.notes:
        print(f"note: {note}")
    return 0


def run_explain(options: argparse.Namespace) -> int:
    policy = _policy(options)
    try:
        command, arguments = request_of(options.request)
        if options.arguments:
            if arguments is not None:
                raise Wrong("arguments come after a command's name, not after a request in JSON")
            arguments = arguments_of(options.arguments)
        found = explain(policy, command, arguments, uid=uid_of)
    except (NoRequest, ValueError) as e:
        raise Wrong(str(e)) from None
    if options.json:
        _dump({"policy": policy.name, **found.plain()})
    else:
        print("\n".join(found.lines()))
    return 0 if found.decision.allowed else 1


def run_diff(options: argparse.Namespace) -> int:
    old, new = chosen(options.old), chosen(options.new)
    found = diff.compare(old, new)
    restart = needs_restart(old, new)
    if options.json:
        _dump({"old": old.name, "new": new.name, "changes": [c.plain() for c in found], "restart": restart})
        return 1 if found else 0
    for change in found:
        print(change)
    if not found:
        print("the host may do the same under both")
    if restart:
        print(f"an agent that was started under the old one has to be restarted for: {', '.join(restart)}")
    return 1 if found else 0


def needs_restart(old: Policy, new: Policy) -> list[str]:
    """Rows whose capabilities an agent that was started under the old policy does not have any more."""
    before, after = (enabled_rows(p, hook=False) for p in (old, new))
    held = {*SUPERVISOR_CAPS, *(c for name in before for c in BY_NAME[name].caps)}
    if "ALL" in held:
        return []
    return [name for name in BY_NAME if name in after - before and set(BY_NAME[name].caps) - held]


def run_test(options: argparse.Namespace) -> int:
    rows: list[dict[str, Any]] = []
    for path in options.cases:
        name, expected = cases.read(path, trusted_text(path))
        if name is not None and options.policy is None and not options.running:
            beside = os.path.join(os.path.dirname(path), name)
            policy = chosen(name if name in PROFILES else beside)
        else:
            policy = _policy(options)
        for case in expected:
            found, failure = case.run(policy, uid_of)
            rows.append(
                {"place": case.place, "command": case.command, "holds": not failure, "failure": failure,
                 "decision": None if found is None else found.plain()}
            )  # fmt: skip
    failed = [row for row in rows if not row["holds"]]
    if options.json:
        _dump({"cases": rows, "failed": len(failed)})
    else:
        for row in failed:
            print(f"{row['place']}: {row['command']} {row['failure']}")
        print(f"{len(rows) - len(failed)} of {len(rows)} expectations hold")
    return 1 if failed else 0


def run_profiles(options: argparse.Namespace) -> int:
    """`privsep-gactl profiles`."""
    if options.json:
        _dump([{"name": name, "description": row[0], "allowed": row[1]} for name, row in PROFILES.items()])
    else:
        print_table([[name, row[0]] for name, row in PROFILES.items()])
    return 0
