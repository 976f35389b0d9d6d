"""What the host may ask: the model that every form of policy folds into, and the decisions about it.

A policy is a set of allowed commands, a reason for each decision, and the limits of a freeze.  Profiles, policy files,
`--block-rpcs`, `--allow-rpcs` and qemu-ga.conf all become one; the supervisor then cuts it into the slices that the processes
get (`policy/seal.py`).  Nothing here reads a file.

This is on the agent's start path: the names come from the generated `policy/builtin.py`, not from the command table,
which takes longer to import than everything here takes to run.
"""

from __future__ import annotations

from policy.builtin import COMMANDS, FROZEN, PROFILES
from policy.errors import PolicyError, nearest

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from typing import Final

DEFAULT_PROFILE: Final = "default"

# Commands of the protocol on other systems: names that distributions' lists have, but never ours.
ELSEWHERE: Final = frozenset(("guest-get-devices", "guest-get-driver-packages", "guest-get-driver-services"))

_FREEZERS: Final = ("guest-fsfreeze-freeze", "guest-fsfreeze-freeze-list")
_NEEDED_TO_FREEZE: Final = ("guest-fsfreeze-thaw", "guest-fsfreeze-status")


class Policy:
    """Frozen: an attribute is set once, when it is made.

    name        the profile's name or the file's path, for the log and the status
    allowed     the commands the host may ask
    origins     command -> the rule that decided it, where that is not the profile itself
    lenient     the peer's words and leniency (the qemu-ga profile)
    auto_thaw   seconds until a freeze that nobody ended is ended
    disconnect  the same from when the host has closed the channel, if that is sooner; 0: no such rule
    hook_limit  seconds for one call of the freeze hook
    expedite    let the kernel's grace periods be expedited during a freeze
    notes       what the administrator should read in the log
    """

    __slots__ = ("name", "allowed", "origins", "lenient", "auto_thaw", "disconnect", "hook_limit", "expedite", "notes")

    name: str
    allowed: frozenset[str]
    origins: Mapping[str, str]
    lenient: bool
    auto_thaw: int
    disconnect: int
    hook_limit: int
    expedite: bool
    notes: tuple[str, ...]

    def __init__(
        self,
        name: str,
        allowed: frozenset[str],
        *,
        origins: Mapping[str, str] | None = None,
        lenient: bool = False,
        auto_thaw: int = 300,
        disconnect: int = 0,
        hook_limit: int = 60,
        expedite: bool = True,
        notes: tuple[str, ...] = (),
    ) -> None:
        put = object.__setattr__
        put(self, "name", name)
        put(self, "allowed", allowed)
        put(self, "origins", origins or {})
        put(self, "lenient", lenient)
        put(self, "auto_thaw", auto_thaw)
        put(self, "disconnect", disconnect)
        put(self, "hook_limit", hook_limit)
        put(self, "expedite", expedite)
        put(self, "notes", notes)

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"a policy is not changed: {name}")

    def allows(self, command: str) -> bool:
        return command in self.allowed

    def why(self, command: str) -> str:
        """The rule that allows or blocks a command, as an administrator would look for it."""
        return self.origins.get(command) or f"{'allowed' if self.allows(command) else 'not allowed'} by {self.name}"

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
            "refusal": self.refusal(),
            "auto-thaw": str(self.auto_thaw),
            "auto-thaw-on-disconnect": str(self.disconnect),
            "hook-limit": str(self.hook_limit),
            "expedite-rcu": "1" if self.expedite else "0",
            # qemu-ga takes any line as a key, and root's keys like anybody's.
            "ssh-strict": "0" if self.lenient else "1",
            "ssh-root": "1" if self.lenient else "0",
        }


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
        lenient=lenient,
        auto_thaw=auto_thaw,
        hook_limit=hook_limit,
        expedite=expedite,
    )


def with_lists(policy: Policy, block: Iterable[str], allow: Iterable[str]) -> Policy:
    """Fold in --block-rpcs and --allow-rpcs (or the same keys of qemu-ga.conf).

    They narrow a policy and never widen it: with an allow list all else is blocked, a name in both is blocked.  Unknown
    names are errors, but notes in a lenient policy, as the peer ignores them; names of commands that exist on other systems
    are notes always, because distributions' lists have them.  Raises PolicyError."""
    blocked = _known(policy, "block-rpcs", block)
    wanted = _known(policy, "allow-rpcs", allow)
    notes = [*policy.notes, *blocked.pop("", ()), *wanted.pop("", ())]
    if not blocked and not wanted and not allow:
        return check(policy) if not notes else _replaced(policy, policy.allowed, policy.origins, tuple(notes))
    origins = dict(policy.origins)
    allowed = set(policy.allowed)
    if allow:
        for name in allowed - wanted.keys():
            origins[name] = "not allowed: allow-rpcs does not list it"
        notes += [f"allow-rpcs lists {n}, which stays blocked: {policy.why(n)}" for n in wanted if n not in allowed]
        allowed &= wanted.keys()
    for name in blocked.keys() & policy.allowed:
        origins[name] = "not allowed: block-rpcs lists it"
        allowed.discard(name)
    return _replaced(policy, frozenset(allowed), origins, tuple(notes))


def _known(policy: Policy, option: str, names: Iterable[str]) -> dict[str, tuple[str, ...]]:
    """The names that are commands; under "" the notes about those that are not."""
    found: dict[str, tuple[str, ...]] = {}
    notes: list[str] = []
    for name in names:
        if name in COMMANDS:
            found[name] = ()
        elif name in ELSEWHERE:
            notes.append(f"{option} lists {name}, which does not exist on Linux")
        elif not policy.lenient:
            raise PolicyError(f"{option} lists the unknown command '{name}'{nearest(name, COMMANDS)}")
        elif name:
            notes.append(f"{option} lists the unknown command '{name}', which is ignored{nearest(name, COMMANDS)}")
    if notes:
        found[""] = tuple(notes)
    return found


def _replaced(policy: Policy, allowed: frozenset[str], origins: Mapping[str, str], notes: tuple[str, ...]) -> Policy:
    return check(
        Policy(
            policy.name,
            allowed,
            origins=origins,
            lenient=policy.lenient,
            auto_thaw=policy.auto_thaw,
            disconnect=policy.disconnect,
            hook_limit=policy.hook_limit,
            expedite=policy.expedite,
            notes=notes,
        )
    )


def check(policy: Policy) -> Policy:
    """The policy itself, if it makes sense as a whole.

    Raises PolicyError where a freeze is allowed but not what ends it or tells its state; a lenient policy may do that, as
    the peer may: while frozen both work anyway."""
    if not policy.lenient:
        for freezer in _FREEZERS:
            missing = [c for c in _NEEDED_TO_FREEZE if c not in policy.allowed]
            if freezer in policy.allowed and missing:
                raise PolicyError(f"{freezer} is allowed but {missing[0]} is not ({policy.why(missing[0])})")
    return policy


def commands_for(domain: str, policy: Policy) -> tuple[str, ...]:
    """What the worker of a domain answers at all, in table order.

    That is what is allowed, and for a domain that can freeze also what qemu-ga exempts from every list while frozen (thaw
    and status): the front refuses those as long as nothing is frozen."""
    can_freeze = any(f in policy.allowed for f in _FREEZERS)
    return tuple(
        c
        for c, d in COMMANDS.items()
        if d == domain and (c in policy.allowed or (can_freeze and d == "fs" and c in FROZEN))
    )
