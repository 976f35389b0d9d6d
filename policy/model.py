"""What the host may ask: the model that every form of policy folds into.

A policy is a set of allowed commands with the rule that decided each, rules about what is inside requests, and the limits
of a freeze.  Profiles, policy files, `--block-rpcs`, `--allow-rpcs`, qemu-ga.conf and /etc/sysconfig/qemu-ga all become one; the
supervisor then cuts it into the slices that the processes get (`policy/seal.py`).  Nothing here reads a file.

    policy = load.choose("/etc/privsep-ga/policy.toml")      every form of `--policy`; raises PolicyError (all problems)
    policy.allows("guest-exec")
    policy.about("guest-exec")                               (rule id, origin) of what decided that
    policy.scope("exec")                                     what the exec worker decides by; for policy/decide.py
    policy.decide("guest-exec", {"path": "/bin/ls"})         the decision that the worker makes

This is on the agent's start path: the names come from the generated `policy/builtin.py`, not from the command table,
which takes longer to import than everything here takes to run.
"""

from __future__ import annotations

from policy.builtin import COMMANDS, FROZEN, PROFILES
from policy.errors import PolicyError, Problem, listed, nearest

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from typing import Final

    from policy.decide import Decision, Uid
    from policy.rules import Rule, Scope

DEFAULT_PROFILE: Final = "default"
UNLISTED: Final = "unlisted"  # the rule id of what is not allowed because nothing names it

# Commands of the protocol on other systems: names that distributions' lists have, but never ours.
ELSEWHERE: Final = frozenset(("guest-get-devices", "guest-get-driver-packages", "guest-get-driver-services"))

_FREEZERS: Final = ("guest-fsfreeze-freeze", "guest-fsfreeze-freeze-list")
_NEEDED_TO_FREEZE: Final = ("guest-fsfreeze-thaw", "guest-fsfreeze-status")


class Policy:
    """Frozen: an attribute is set once, when it is made.

    name        the profile's name or the file's path, for the log and the status
    allowed     the commands the host may ask
    base        (rule id, origin) of what decided about the commands that no other rule names: a profile, or that none does
    why_of      command -> (rule id, origin) of the others; an origin is `file:line`, or an option
    rules       what must be inside requests (policy/rules.py), in the order of the files
    lenient     the peer's words and leniency (the qemu-ga profile)
    auto_thaw   seconds until a freeze that nobody ended is ended
    disconnect  the same from when the host has closed the channel, if that is sooner; 0: no such rule
    hook_limit  seconds for one call of the freeze hook
    expedite    let the kernel's grace periods be expedited during a freeze
    more        further settings that files gave: ssh-strict, file-buffer, exec-output, preload, audit-to
    notes       what the administrator should read in the log
    """

    __slots__ = (
        "name", "allowed", "base", "why_of", "rules", "lenient", "auto_thaw", "disconnect", "hook_limit", "expedite", "more", "notes",
    )  # fmt: skip

    name: str
    allowed: frozenset[str]
    base: tuple[str, str]
    why_of: Mapping[str, tuple[str, str]]
    rules: tuple[Rule, ...]
    lenient: bool
    auto_thaw: int
    disconnect: int
    hook_limit: int
    expedite: bool
    more: Mapping[str, str]
    notes: tuple[str, ...]

    def __init__(
        self,
        name: str,
        allowed: frozenset[str],
        *,
        base: tuple[str, str] | None = None,
        why_of: Mapping[str, tuple[str, str]] | None = None,
        rules: tuple[Rule, ...] = (),
        lenient: bool = False,
        auto_thaw: int = 300,
        disconnect: int = 0,
        hook_limit: int = 60,
        expedite: bool = True,
        more: Mapping[str, str] | None = None,
        notes: tuple[str, ...] = (),
    ) -> None:
        put = object.__setattr__
        put(self, "name", name)
        put(self, "allowed", allowed)
        put(self, "base", base or (UNLISTED, name))
        put(self, "why_of", why_of or {})
        put(self, "rules", rules)
        put(self, "lenient", lenient)
        put(self, "auto_thaw", auto_thaw)
        put(self, "disconnect", disconnect)
        put(self, "hook_limit", hook_limit)
        put(self, "expedite", expedite)
        put(self, "more", more or {})
        put(self, "notes", notes)

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"a policy is not changed: {name}")

    def allows(self, command: str) -> bool:
        return command in self.allowed

    def about(self, command: str) -> tuple[str, str]:
        """(rule id, origin) of what allows or blocks a command as such."""
        return self.why_of.get(command) or self.base

    def why(self, command: str) -> str:
        """The same as an administrator would look for it."""
        verb = "allowed" if self.allows(command) else "not allowed"
        rule, origin = self.about(command)
        return f"{verb} by {rule} at {origin}"

    def commands_for(self, domain: str) -> tuple[str, ...]:
        """What the worker of a domain answers at all, in table order.

        That is what is allowed, and for a domain that can freeze also what qemu-ga exempts from every list while frozen (thaw
        and status): the front refuses those as long as nothing is frozen."""
        can_freeze = any(f in self.allowed for f in _FREEZERS)
        return tuple(
            c
            for c, d in COMMANDS.items()
            if d == domain and (c in self.allowed or (can_freeze and d == "fs" and c in FROZEN))
        )

    def rules_for(self, domain: str) -> tuple[Rule, ...]:
        """What of the rules is that domain's: what its worker decides by."""
        if not self.rules and (self.lenient or domain not in _WITH_USERS):
            return ()
        from policy.rules import Rule  # most policies have no rules

        found = [r for r in self.rules if domain in _domains_of(r)]
        if domain in _WITH_USERS and not self.lenient:
            found.append(Rule("root-account", "root-account", self.name, {}))
        return tuple(found)

    def scope(self, domain: str) -> Scope:
        """What the process of that domain is told to decide by, without the way through its slice."""
        from policy.rules import Scope

        return Scope(frozenset(self.commands_for(domain)), self.rules_for(domain), self.why_of, self.base)

    def decide(
        self,
        command: str,
        arguments: Mapping[str, object],
        *,
        uid: Uid | None = None,
        superblocks: Sequence[Sequence[str]] | None = None,
    ) -> Decision:
        """What becomes of a request while nothing is frozen; see `policy.decide.decide`.  Raises KeyError: no such command."""
        from policy.decide import Decision, Ruling, decide, limit_of

        if not self.allows(command):  # what the front refuses, thaw and status of a lenient policy among it
            return Decision(False, *self.about(command))
        scope = self.scope(COMMANDS[command])
        decision = decide(scope, command, arguments, uid=uid, superblocks=superblocks)
        found = limit_of(scope, command)
        if decision.allowed and found is not None:
            limit, rule = found
            if not limit:
                return Ruling.too_often(limit, rule)
            decision.conditions += (f"not more than {limit} a minute by {rule.id} ({rule.origin})",)
        return decision

    def domains(self) -> tuple[str, ...]:
        """The domains with at least one allowed command, in the table's order; no other needs a worker."""
        return tuple(dict.fromkeys(d for c, d in COMMANDS.items() if c in self.allowed))

    def refusal(self) -> str:
        """What the error for a command that is not allowed says after "has been disabled: "."""
        return "the command is not allowed" if self.lenient else f"the command is not allowed by policy ({self.name})"

    def settings(self) -> dict[str, str]:
        """What workers are told besides their commands, "1" and "0" for yes and no; `policy/seal.py` says who is told what."""
        return {
            "profile": self.name,
            "rule": self.base[0],
            "origin": self.base[1],
            "refusal": self.refusal(),
            "auto-thaw": str(self.auto_thaw),
            "auto-thaw-on-disconnect": str(self.disconnect),
            "hook-limit": str(self.hook_limit),
            "expedite-rcu": "1" if self.expedite else "0",
            # qemu-ga takes any line as a key, and root's keys like anybody's.
            "ssh-strict": "0" if self.lenient else "1",
            "ssh-root": "1" if self.lenient or any(map(_names_root, self.rules)) else "0",
            **self.more,
        }


_WITH_USERS: Final = ("user", "ssh")


def _domains_of(rule: Rule) -> tuple[str, ...]:
    """The domains whose workers decide by a rule."""
    match rule.kind:
        case "user":
            return _WITH_USERS
        case "only-mounts" | "never-mounts":
            return ("fs",) if rule.one("for") == "fsfreeze" else ("trim",)
        case "size":
            return (rule.one("key").partition("-")[0],)
        case "rate":
            return tuple(dict.fromkeys(COMMANDS[c] for c in rule.all("commands")))
        case kind:
            return (kind,)


def _names_root(rule: Rule) -> bool:
    """Whether it lets root's keys be changed, for which root's home has to be within the worker's reach."""
    return (
        rule.kind == "user" and "keys" in rule.all("for") and ("root" in rule.all("names") or "0" in rule.all("uids"))
    )


def builtin(name: str) -> Policy:
    """One of the profiles that come with the agent.  Raises PolicyError naming the nearest."""
    try:
        _, allowed, lenient, auto_thaw, hook_limit, expedite = PROFILES[name]
    except KeyError:
        known = ", ".join(PROFILES)
        raise PolicyError(
            f"unknown policy profile '{name}'{nearest(name, PROFILES)}; there are {known}, "
            "and files: their names have a '/' or end in .toml"
        ) from None
    return Policy(
        f"profile {name}",
        frozenset(allowed),
        base=(f"profile:{name}", "built in"),
        lenient=lenient,
        auto_thaw=auto_thaw,
        hook_limit=hook_limit,
        expedite=expedite,
    )


def with_lists(
    policy: Policy,
    block: Iterable[str],
    allow: Iterable[str],
    origins: Mapping[tuple[str, str], str] | None = None,
) -> Policy:
    """Fold in --block-rpcs and --allow-rpcs (or the same keys of qemu-ga.conf, or RHEL's of /etc/sysconfig/qemu-ga).

    They narrow a policy and never widen it: with an allow list all else is blocked, a name in both is blocked.  Unknown
    names are errors, but notes in a lenient policy, as the peer ignores them; names of commands that exist on other systems
    are notes always, because distributions' lists have them.  `origins`: ("block" or "allow", name) -> where it was listed,
    where that is not the command line.  Raises PolicyError with every wrong name."""
    lists = _Lists(policy, origins or {})
    blocked = lists.known("block", block)
    wanted = lists.known("allow", allow)
    if lists.problems:
        raise PolicyError(*lists.problems)
    notes = [*policy.notes, *lists.notes]
    if not blocked and not allow:
        return check(policy) if not notes else check(replaced(policy, notes=tuple(notes)))
    why = dict(policy.why_of)
    allowed = set(policy.allowed)
    if allow:
        origin = next(iter(wanted.values()), "--allow-rpcs")
        why.update((name, ("allow-rpcs", wanted.get(name, origin))) for name in allowed)
        notes += [f"allow-rpcs lists {n}, which stays blocked: {policy.why(n)}" for n in wanted if n not in allowed]
        allowed &= wanted.keys()
    for name in blocked.keys() & policy.allowed:
        why[name] = "block-rpcs", blocked[name]
        allowed.discard(name)
    return check(replaced(policy, allowed=frozenset(allowed), why_of=why, notes=tuple(notes)))


class _Lists:
    """What is said of the names of the two lists; `problems` and `notes` are filled by `known`."""

    __slots__ = ("_policy", "_origins", "problems", "notes")

    def __init__(self, policy: Policy, origins: Mapping[tuple[str, str], str]) -> None:
        self._policy = policy
        self._origins = origins
        self.problems: list[Problem] = []
        self.notes: list[str] = []

    def known(self, kind: str, names: Iterable[str]) -> dict[str, str]:
        """Command -> where it was listed, of the names that are commands."""
        option = f"{kind}-rpcs"
        found: dict[str, str] = {}
        for name in names:
            origin = self._origins.get((kind, name), "")
            if name in COMMANDS:
                found[name] = origin or f"--{option}"
            elif name in ELSEWHERE:
                self.notes.append(f"{option} lists {name}, which does not exist on Linux")
            elif name or not self._policy.lenient:
                text = f"{option} lists the unknown command '{name}'"
                hint = listed(name, COMMANDS)
                if self._policy.lenient:
                    self.notes.append(f"{text}, which is ignored as qemu-ga ignores it{hint}")
                else:
                    path, _, line = origin.rpartition(":")
                    self.problems.append(Problem(text + hint, path, int(line)) if path else Problem(text + hint))
        return found


def replaced(
    policy: Policy,
    *,
    allowed: frozenset[str] | None = None,
    why_of: Mapping[str, tuple[str, str]] | None = None,
    notes: tuple[str, ...] | None = None,
) -> Policy:
    """The same policy but for what is given."""
    return Policy(
        policy.name,
        policy.allowed if allowed is None else allowed,
        base=policy.base,
        why_of=policy.why_of if why_of is None else why_of,
        rules=policy.rules,
        lenient=policy.lenient,
        auto_thaw=policy.auto_thaw,
        disconnect=policy.disconnect,
        hook_limit=policy.hook_limit,
        expedite=policy.expedite,
        more=policy.more,
        notes=policy.notes if notes is None else notes,
    )


def check(policy: Policy) -> Policy:
    """The policy itself, if it makes sense as a whole.

    Raises PolicyError where a freeze is allowed but not what ends it or tells its state; a lenient policy may do that, as
    the peer may: while frozen both work anyway."""
    if not policy.lenient:
        problems = [
            _unended(policy, freezer, missing)
            for freezer in _FREEZERS
            if freezer in policy.allowed
            for missing in _NEEDED_TO_FREEZE
            if missing not in policy.allowed
        ]
        if problems:
            raise PolicyError(*problems)
    return policy


def _unended(policy: Policy, freezer: str, missing: str) -> Problem:
    text = f"{freezer} is allowed but {missing} is not ({policy.why(missing)})"
    # The rule that took it away, else the one that allowed the freeze: what would have to change.
    for command in (missing, freezer):
        path, _, line = policy.about(command)[1].rpartition(":")
        if path and line.isdigit():
            return Problem(text, path, int(line))
    return Problem(text)
