"""What the supervisor needs of one policy: which rows may have a process, what each is told, and the limits of a freeze.

The policy of a reload comes from a process of its own (`privsep/reread.py`).
"""

from __future__ import annotations

from policy.seal import fill, seal, slice_for

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Final

    from policy.model import Policy
    from privsep.config import Config

# Settings that only say how something is called.
_NAMES: Final = (b"rule", b"origin", b"profile", b"refusal")

# How a reload ends when it is not deferred or refused.
APPLIED: Final = "applied"
RESTART_NEEDED: Final = "restart-needed"


class Orders:
    """`settings` is what the configuration and the policy have for the processes (`policy/seal.py` says who is told what)."""

    __slots__ = ("policy", "rows", "_settings")

    def __init__(self, policy: Policy, rows: frozenset[str], settings: Mapping[str, str]) -> None:
        self.policy = policy
        self.rows = rows
        self._settings = settings

    @property
    def auto_thaw(self) -> float:
        """Seconds; 0: never."""
        return float(self.policy.auto_thaw)

    @property
    def disconnect(self) -> float:
        """Seconds from when the host has closed the channel; 0: no such rule."""
        return float(self.policy.disconnect)

    @property
    def hook_limit(self) -> float:
        return float(self.policy.hook_limit)

    def slice(self, row: str) -> bytes:
        """What the row's process is told, but for what only the supervisor knows (whom to become); nothing for a row that has no
        process."""
        return slice_for(row, self.policy, self._settings) if row in self.rows else b""

    def sealed(self, row: str, more: Mapping[str, str], into: int | None = None) -> int:
        """A sealed memfd with the slice and these settings; `into`: an empty one that there is already."""
        data = slice_for(row, self.policy, {**self._settings, **more})
        if into is None:
            return seal(data, f"privsep-ga-{row}")
        fill(into, data)
        return into


def narrower(old: bytes, new: bytes) -> bool:
    """Whether a slice allows less than the other.

    On the safe side: a setting or a rule that differs counts, because which of two is the wider one only its worker knows.  Where
    rules stand in files and how they are called does not count."""
    allowed, rest = _meaning(old)
    allowed_now, rest_now = _meaning(new)
    return not allowed <= allowed_now or rest != rest_now


def _meaning(data: bytes) -> tuple[set[bytes], list[bytes]]:
    """A slice's commands, and whatever else of it has an effect on what is done (policy/seal.py has the lines)."""
    commands: set[bytes] = set()
    rest: list[bytes] = []
    for line in data.split(b"\n"):
        word, _, value = line.partition(b" ")
        if word == b"allow":
            commands.add(value)
        elif word == b"rule":
            kind, _, _, *values = value.split(b"\t")
            rest.append(b"\t".join((kind, *values)))
        elif word == b"set" and value.partition(b" ")[0] not in _NAMES:
            rest.append(value)
    return commands, rest


def enabled_rows(policy: Policy, *, hook: bool) -> frozenset[str]:
    """The rows that may have a process: the front, whatever has an allowed command, and what a freeze needs."""
    rows = {"front", *policy.domains()}
    if "fs" in rows:
        rows.add("thawer")
        if hook:
            rows.add("hook")
    return frozenset(rows)


def orders_of(config: Config, policy: Policy) -> Orders:
    """The orders that follow from a policy under this configuration."""
    return Orders(policy, enabled_rows(policy, hook=bool(config.hook)), config.settings(policy))
