#!/usr/bin/python3
"""Read a linked policy with setools and compare what each process of the agent may do with what is declared.

    check.py POLICY              exit status 1 and the differences, or the table of what each may do
    check.py POLICY --write      write reach.txt, the table that is compared with, anew

From the table of privileges: capabilities, changes of type, ioctl numbers, who writes files at all.  From reach.txt, which a
person reads when it changes: each thing that a process may change, start, connect to or signal, beyond what Debian's policy
gives to every domain.  And that no information can flow between the front and the passwords but through the user worker.

Facts about which permission reads and which writes: setools' permission map.
"""

from __future__ import annotations

import sys
from collections import defaultdict
from pathlib import Path

import setools

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent), str(HERE)]

from generate import SUPERVISOR, program_type, start_caps, unwalled, worker_caps  # noqa: E402

from privsep.domains import BY_NAME, DOMAINS, SUPERVISOR_CAPS  # noqa: E402

REACH = HERE / "reach.txt"
SHADOW = "shadow_t"
EVERY_DOMAIN = "domain"  # the attribute that Debian's policy gives its rules for all processes to
FILES = {"file", "dir", "lnk_file", "sock_file", "fifo_file", "chr_file", "blk_file"}
CHANGES = set(
    "write append create setattr unlink link rename add_name remove_name rmdir reparent relabelto relabelfrom".split()
)
# ioctl(2) numbers by type (the low 16 bits of FIOCLEX; FIFREEZE, FITHAW, FITRIM, RTC_RD_TIME, RTC_SET_TIME), and the class.
IOCTLS = {
    **{row.selinux_start_type: {("file", 0x5451), ("unix_stream_socket", 0x5451)} for row in DOMAINS},
    SUPERVISOR: {("dir", 0x5878)},
    "privsep_ga_fs_t": {("dir", 0x5877), ("dir", 0x5878)},
    "privsep_ga_thawer_t": {("dir", 0x5878)},
    "privsep_ga_trim_t": {("dir", 0x5879)},
    "privsep_ga_time_t": {("chr_file", 0x7009), ("chr_file", 0x700A)},
}


class Rules:
    """The allow rules of our own types: type -> {(target, class): permissions}.

    `general`: the same, what every domain has.  Targets are expanded only where the rule names a type; an attribute stays its name
    in `named` and is expanded in `reach`."""

    def __init__(self, path: str) -> None:
        self.policy = setools.SELinuxPolicy(path)
        self.ours = {SUPERVISOR} | {r.selinux_type for r in DOMAINS} | {r.selinux_start_type for r in DOMAINS}
        self.named: dict[str, dict[tuple[str, str], set[str]]] = defaultdict(lambda: defaultdict(set))
        self.optional: dict[str, dict[tuple[str, str], set[str]]] = defaultdict(lambda: defaultdict(set))
        self.types: dict[str, frozenset[str]] = {}  # target as named -> types
        self.general: set[str] = set()
        self.ioctls: dict[str, set[tuple[str, int]]] = defaultdict(set)
        self.entrants: dict[str, set[str]] = defaultdict(set)
        everybody = self.policy.lookup_typeattr(EVERY_DOMAIN)
        for rule in self.policy.terules():
            kind = rule.ruletype
            if kind == setools.TERuletype.allow:
                self._allow(rule, everybody)
            elif kind == setools.TERuletype.allowxperm:
                for source in self._members(rule.source) & self.ours:
                    self.ioctls[source] |= {(str(rule.tclass), int(number)) for number in rule.perms}

    @staticmethod
    def _members(name: object) -> frozenset[str]:
        return frozenset(map(str, name.expand()))  # type: ignore[attr-defined]

    def _allow(self, rule: object, everybody: object) -> None:
        target, tclass = str(rule.target), str(rule.tclass)  # type: ignore[attr-defined]
        perms = set(map(str, rule.perms))  # type: ignore[attr-defined]
        sources = self._members(rule.source)  # type: ignore[attr-defined]
        if tclass == "process" and perms & {"transition", "dyntransition"}:
            for entered in self._members(rule.target) & self.ours:  # type: ignore[attr-defined]
                self.entrants[entered] |= sources
        mine = sources & self.ours
        if not mine or rule.source == everybody:  # type: ignore[attr-defined]
            return
        try:
            rule.conditional  # type: ignore[attr-defined]  # noqa: B018
            place = self.optional
        except setools.exception.RuleNotConditional:
            place = self.named
        self.types.setdefault(target, self._members(rule.target))  # type: ignore[attr-defined]
        for source in mine:
            place[source][target, tclass] |= perms

    def all_of(self, source: str) -> dict[tuple[str, str], set[str]]:
        """With what booleans may add."""
        found: dict[tuple[str, str], set[str]] = defaultdict(set)
        for place in (self.named, self.optional):
            for key, perms in place[source].items():
                found[key] |= perms
        return found


def capabilities(rules: Rules) -> list[str]:
    declared = {SUPERVISOR: set(SUPERVISOR_CAPS)}
    for row in DOMAINS:
        declared[row.selinux_start_type] = set(start_caps(row))
        declared[row.selinux_type] = set(worker_caps(row))
    problems = []
    for source, wanted in sorted(declared.items()):
        found = set()
        for (_, tclass), perms in rules.all_of(source).items():
            if tclass in ("capability", "capability2", "cap_userns", "cap2_userns"):
                found |= {p.upper() if tclass == "capability" else f"{tclass}:{p}" for p in perms}
        if found != wanted:
            problems.append(
                f"{source}: capabilities are {sorted(found)}, the table of privileges says {sorted(wanted)}"
            )
    return problems


def changes_of_type(rules: Rules) -> list[str]:
    """Out of our types only as declared; into them from the supervisor, and from nobody who is confined."""
    problems = []
    unconfined = set(map(str, rules.policy.lookup_typeattr("unconfined_domain_type").expand()))
    ways: dict[str, set[str]] = {SUPERVISOR: {r.selinux_start_type for r in DOMAINS}}
    for row in DOMAINS:
        ways[row.selinux_start_type] = {row.selinux_type}
        ways[row.selinux_type] = {program_type(row)} if row in unwalled() else set()
    for source, wanted in sorted(ways.items()):
        found = set()
        for (target, tclass), perms in rules.all_of(source).items():
            if tclass == "process" and perms & {"transition", "dyntransition"}:
                found |= {source} if target == "self" else rules.types[target]
        if found != wanted:
            problems.append(f"{source} may become {sorted(found)}, not {sorted(wanted)}")
    for row in DOMAINS:
        for entered, wanted in (
            (row.selinux_start_type, {SUPERVISOR}),
            (row.selinux_type, {row.selinux_start_type}),
        ):
            found = rules.entrants[entered] - unconfined
            if found != wanted:
                problems.append(f"{entered} may be entered by {sorted(found)}, not {sorted(wanted)}")
    return problems


def ioctls(rules: Rules) -> list[str]:
    return [
        f"{source}: ioctl {sorted(rules.ioctls[source])}, not {sorted(IOCTLS.get(source, set()))}"
        for source in sorted(rules.ours)
        if rules.ioctls[source] != IOCTLS.get(source, set())
    ]


# Where SELinux cannot say what the walls say: it knows a file by its type, not by the descriptor that it was passed.
PASSED = {
    (
        "privsep_ga_fs_t",
        "sysfs_t",
        "file",
    ): "rcu_expedited, opened before the drop; other files of sysfs are opened to read"
}


def writers(rules: Rules) -> list[str]:
    """A row whose Landlock paths let it write nowhere opens no file for writing here either, nor makes or removes a name."""
    problems = []
    for row in DOMAINS:
        if row.paths is None or any(set(letters) & set("wcdn") for letters, _ in row.paths.values()):
            continue
        for (target, tclass), perms in rules.all_of(row.selinux_type).items():
            if target == row.selinux_type:
                continue  # /proc/self
            opens = "open" in perms and perms & {"write", "append"} and tclass == "file"
            names = perms & {"create", "add_name", "remove_name", "unlink", "rename", "link"} and tclass in FILES
            if (opens or names) and (row.selinux_type, target, tclass) not in PASSED:
                problems.append(f"{row.selinux_type} may write {target}:{tclass}, and its row has no path to write to")
    return problems


def conditional_paths(rules: Rules) -> list[str]:
    """Paths that Landlock gives up to SELinux (`selinux:/proc` in a row) are closed here but for the process's own."""
    kernels = set()
    for attribute in ("proc_type", "sysctl_type"):
        kernels |= set(map(str, rules.policy.lookup_typeattr(attribute).expand()))
    return [
        f"{row.selinux_type} may write {target}:{tclass}, which its Landlock rules leave to this policy"
        for row in DOMAINS
        if "selinux:/proc" in (row.paths or {})
        for (target, tclass), perms in rules.all_of(row.selinux_type).items()
        if target != row.selinux_type and perms & CHANGES and tclass in FILES and rules.types[target] & kernels
    ]


def flows(rules: Rules) -> list[str]:
    """Between the front and the passwords, over any number of our own processes and whatever they share."""
    weights = setools.PermissionMap()
    user = BY_NAME["user"].selinux_type
    front = BY_NAME["front"].selinux_type

    def graph(left_out: set[str]) -> dict[str, set[str]]:
        edges: dict[str, set[str]] = defaultdict(set)
        for rule in rules.policy.terules():
            if rule.ruletype != setools.TERuletype.allow or rule.tclass == "filesystem":
                continue  # statfs(2) of a mount that was given this type tells nothing of files that have it
            mine = (rules._members(rule.source) & rules.ours) - left_out
            if not mine:
                continue
            read, write = weights.rule_weight(rule)
            if not (read or write):
                continue
            for target in rules._members(rule.target) - left_out:
                for source in mine:
                    if write:
                        edges[source].add(target)
                    if read:
                        edges[target].add(source)
        return edges

    def reaches(edges: dict[str, set[str]], begin: str, end: str) -> list[str]:
        """The shortest way, or nothing."""
        before: dict[str, str] = {begin: ""}
        todo = [begin]
        for node in todo:
            if node == end:
                way = []
                while node:
                    way.append(node)
                    node = before[node]
                return way[::-1]
            for other in sorted(edges[node] - before.keys()):
                before[other] = node
                todo.append(other)
        return []

    whole, without = graph(set()), graph({user})
    problems = []
    for begin, end in ((front, SHADOW), (SHADOW, front)):
        way = reaches(without, begin, end)
        if way:
            problems.append(f"information flows past the user worker: {' -> '.join(way)}")
        if user not in reaches(whole, begin, end):
            problems.append(
                f"the way from {begin} to {end} that goes through {user} was not found: is this check blind?"
            )
    return problems


def reach(rules: Rules) -> str:
    """The table: what each process may change, start, reach or end."""
    found = {source: _reached(rules, source) for source in sorted(rules.ours)}
    shared = set.intersection(*found.values())
    lines = [
        "# What each process may change, start, connect to and signal under SELinux.  (boolean): only when that is set.",
        "# Written by selinux/check.py POLICY --write and compared by `make selinux`.",
        "",
        "every process",
        *sorted(shared),
    ]
    for source, items in found.items():
        lines += ["", source, *sorted(items - shared)]
    return "\n".join(lines) + "\n"


def _reached(rules: Rules, source: str) -> set[str]:
    found = set()
    for place, when in ((rules.named, ""), (rules.optional, " (boolean)")):
        for (target, tclass), perms in place[source].items():
            shown = "self" if target == source else target
            if tclass in FILES and perms & CHANGES:
                openly = tclass == "sock_file" or perms & {"open", "create", "add_name"}
                how = "writes" if openly else "writes what it was given"
                found.add(f"    {how + when:26} {shown}:{tclass}")
            if "execute_no_trans" in perms:
                found.add(f"    {'runs' + when:26} {shown}")
            if tclass == "process" and perms & {"sigkill", "sigstop", "signal"}:
                found.add(f"    {'signals' + when:26} {shown}")
            if perms & {"connectto", "sendto", "send_msg"} and tclass != "association":
                found.add(f"    {'talks to' + when:26} {shown}:{tclass}")
            if tclass.endswith("socket") and perms & {"create", "bind", "listen"}:
                found.add(f"    {'makes' + when:26} {shown}:{tclass}")
            if tclass in ("system", "service"):
                found |= {f"    {'asks init' + when:26} {shown}:{tclass}:{p}" for p in perms}
    return found


def main() -> int:
    rules = Rules(sys.argv[1])
    table = reach(rules)
    if "--write" in sys.argv[2:]:
        REACH.write_text(table)
        return 0
    problems = []
    for test in (capabilities, changes_of_type, ioctls, writers, conditional_paths, flows):
        found = test(rules)
        problems += found
        print(f"{'FAILED' if found else 'as declared'}: {test.__name__.replace('_', ' ')}")
    known = REACH.read_text().splitlines()
    if table.splitlines() != known:
        problems += [f"reach.txt lacks: {line.strip()}" for line in table.splitlines() if line not in known]
        problems += [f"reach.txt has: {line.strip()}" for line in known if line not in table.splitlines()]
        problems.append("what the processes reach differs from reach.txt: look at it, then check.py POLICY --write")
    for problem in problems:
        print(problem)
    return int(bool(problems))


if __name__ == "__main__":
    sys.exit(main())
