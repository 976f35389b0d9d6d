"""Which policy each process lives under, and how another takes its place.

Workers whose slice differs are replaced, each between two requests: gently (it goes on while it holds something) where the new
slice allows no less, firmly otherwise.  fs, thawer and hook belong together: they live under the orders that their first was started
with, until all are gone and nothing is frozen or due.  When nobody is left of an earlier policy, what nobody needs any more can
be given up.
"""

from __future__ import annotations

from privsep.domains import CAPABILITIES, Domain
from privsep.orders import narrower

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import Final

    from privsep.children import Child
    from privsep.holder import Holder
    from privsep.orders import Orders

# Those that freeze, and come and go together.
FREEZERS: Final = ("fs", "thawer", "hook")


class Succession:
    """`journal_pending` says whether a freeze left something to do.

    orders    those in force
    freezing  those of fs, thawer and hook"""

    __slots__ = ("orders", "freezing", "_children", "_holder", "_journal_pending", "_settled")

    def __init__(
        self,
        orders: Orders,
        *,
        children: Mapping[str, Child],
        holder: Holder,
        journal_pending: Callable[[], bool],
    ) -> None:
        self.orders = orders
        self.freezing = orders
        self._children = children
        self._holder = holder
        self._journal_pending = journal_pending
        self._settled = True  # no process is left of an earlier policy

    def orders_for(self, name: str) -> Orders:
        """What a process that is started now is told."""
        if name not in FREEZERS:
            return self.orders
        if self.freezing is not self.orders and not self._is_freezing():
            self.freezing = self.orders
            self._holder.auto_thaw, self._holder.disconnect = self.orders.auto_thaw, self.orders.disconnect
        return self.freezing

    def _is_freezing(self) -> bool:
        """Something of a freeze is left: a process, a file system, a hook that is due."""
        holder = self._holder
        if holder.armed or holder.recovering or any(self._children[n].alive for n in FREEZERS):
            return True
        return self._journal_pending()

    def outdated(self) -> list[Child]:
        """The processes that were told something else than they would be told now.  The front is told anew, not replaced."""
        return [c for c in self._children.values() if c.alive and c.row.name != "front" and self._differs(c)]

    def _differs(self, child: Child) -> bool:
        if child.orders is self.orders:
            return False
        names = FREEZERS if child.row.name in FREEZERS else (child.row.name,)
        return any(child.orders.slice(n) != self.orders.slice(n) for n in names)

    def put_in_force(self, orders: Orders) -> None:
        """Other orders; `settle` does the rest."""
        self.orders = orders
        self._settled = False

    def settle(self) -> bool:
        """Tell whom it concerns to make room, as soon as nothing is frozen.  True, once: nobody is left of an earlier policy."""
        if self._settled or self._holder.stopping or self._holder.armed or self._holder.recovering:
            return False
        outdated = self.outdated()
        for child in outdated:
            if child.row.channel == "front":  # thawer and hook go with fs
                child.retire(firm=child.row.name != "fs" and self._is_narrower(child))
        # One that is starting may be compared with what we have now.
        self._settled = not outdated and all(c.up for c in self._children.values() if c.alive)
        return self._settled

    def _is_narrower(self, child: Child) -> bool:
        name = child.row.name
        return narrower(child.orders.slice(name), self.orders.slice(name))


def unavailable(row: Domain, *, granted: int, available: int, walled: bool) -> str:
    """Why the row can have no process before a restart; empty when it can.

    granted    the capabilities that the agent was started with
    available  those that it has still
    walled     its own system calls are filtered, and so are those of all that it starts"""
    missing = row.mask(granted) & ~available
    if missing:
        names = [f"CAP_{c}" for c in row.caps if c != "ALL" and missing >> CAPABILITIES[c] & 1]
        what = ", ".join(names) or "capabilities"
        if missing & granted:
            return f"restart needed: {row.name} needs {what}, which the agent has given up"
        return f"restart needed: {row.name} needs {what}, which the agent was not started with: see the service's unit"
    if walled and not row.filtered:
        return f"restart needed: programs of {row.name} would inherit the agent's own filter of system calls"
    return ""
