"""What the supervisor needs of one policy: which rows may have a process, what each is told, and the limits of a freeze.

The supervisor does not know a policy, only these orders.  Those of the start are cut out of the policy as they are needed; those
of a reload come as text from a process of their own (`privsep/reread.py`).
"""

from __future__ import annotations

from policy.seal import escape, fill, seal, slice_for

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import Final

    from policy.model import Policy
    from privsep.config import Config

# How a reload ends when it is not deferred or refused.
APPLIED: Final = "applied"
RESTART_NEEDED: Final = "restart-needed"


class Orders:
    """`cut` gives the slice of a row, but for what only the supervisor knows (whom to become)."""

    __slots__ = ("name", "rows", "auto_thaw", "hook_limit", "notes", "_cut")

    def __init__(
        self,
        name: str,
        rows: frozenset[str],
        *,
        auto_thaw: float,
        hook_limit: float,
        notes: tuple[str, ...],
        cut: Callable[[str], bytes],
    ) -> None:
        self.name = name
        self.rows = rows
        self.auto_thaw = auto_thaw
        self.hook_limit = hook_limit
        self.notes = notes
        self._cut = cut

    def slice(self, row: str) -> bytes:
        """What the row's process is told; nothing for a row that has none."""
        return self._cut(row) if row in self.rows else b""

    def sealed(self, row: str, more: Mapping[str, str], into: int | None = None) -> int:
        """A sealed memfd with the slice and these settings; `into`: an empty one that there is already."""
        data = self._cut(row) + "".join(f"set {n} {escape(v)}\n" for n, v in more.items()).encode()
        if into is None:
            return seal(data, f"privsep-ga-{row}")
        fill(into, data)
        return into


def narrower(old: bytes, new: bytes) -> bool:
    """Whether a slice lacks a line that the other has.

    On the safe side: a setting with another value counts, because which of two is the wider one only its worker knows."""
    return bool(set(old.split(b"\n")) - set(new.split(b"\n")))


def orders_of(config: Config, policy: Policy) -> Orders:
    """The orders that follow from a policy under this configuration."""
    settings = config.settings(policy)
    rows = {"front", *policy.domains()}
    if "fs" in rows:
        rows.add("thawer")
        if config.hook:
            rows.add("hook")
    return Orders(
        policy.name,
        frozenset(rows),
        auto_thaw=float(policy.auto_thaw),
        hook_limit=float(policy.hook_limit),
        notes=policy.notes,
        cut=lambda row: slice_for(row, policy, settings),
    )
