"""What the fs worker knows of its freeze, and how it thaws by itself when the thawer is dead.

See the theory of operation in `workers/fs.py`.
"""

from __future__ import annotations

import os
import time

from privsep import crew, thawwire
from privsep.journal import Journal, JournalState, Lapse, boot_id, lapse_record
from privsep.recover import thaw_entries
from protocol.errors import CommandError
from workers.mounts import Mount

TYPE_CHECKING = False
if TYPE_CHECKING:
    from socket import socket as Socket
    from typing import Final, NoReturn

    from privsep.runtime import Context

ASK_LIMIT: Final = (
    5.0  # seconds that the thawer has for an answer: it is local and idle, so a slow one is a stopped one
)
THAW_LIMIT: Final = 30.0  # and for a thaw: FITHAW may write to the disk
COMMIT: Final = "commit"
TOLD: Final = "told"

_EBUSY: Final = 16
_NOT_YET: Final = -1
IN_FLIGHT_PATIENCE: Final = (
    0.4  # seconds for freezes that are in the kernel when the thawer is lost (PATIENCE_FS, privsep/holder.py)
)
_IN_FLIGHT: Final = -2


class Item:
    """One superblock of the freeze at hand: a descriptor, what it is, and what FIFREEZE answered (0: it is frozen)."""

    __slots__ = ("fd", "mount", "errno")

    def __init__(self, fd: int, mount: Mount) -> None:
        self.fd = fd
        self.mount = mount
        self.errno = _NOT_YET

    @property
    def mark(self) -> int:
        if self.errno == 0:
            return thawwire.MARK_FROZEN
        return thawwire.MARK_SKIPPED if skipped(self.errno) else thawwire.MARK_NOT

    def begin(self) -> None:
        self.errno = _IN_FLIGHT


def skipped(number: int) -> bool:
    return number == _EBUSY or number in crew.UNSUPPORTED


class Own:
    """This worker's state.

    items    descriptors of what this process froze; empty after a take-over
    frozen   a freeze is on, as far as we know
    since    when it was complete (CLOCK_MONOTONIC, seconds), 0: it was taken over
    cycle    its number
    confirm  what the delivery of the last reply means: (command, COMMIT or TOLD, cycle)
    """

    __slots__ = (
        "crew", "mountinfo", "rcu", "boot", "journal", "link", "hook", "hook_fd", "items", "frozen", "since", "cycle", "confirm",
        "locked", "number", "begun",
    )  # fmt: skip

    def __init__(self, rcu: int, mountinfo: int) -> None:
        self.crew = crew.Crew()
        self.rcu = rcu
        self.mountinfo = mountinfo
        self.boot = boot_id()
        self.journal: Journal | None = None
        self.link: thawwire.Link | None = None
        self.hook: Socket | None = None
        self.hook_fd = -1
        self.items: list[Item] = []
        self.frozen = False
        self.since = 0.0
        self.cycle = 0
        self.confirm: tuple[str, str, int] | None = None
        self.locked = False
        self.number = 0
        self.begun = False

    def forget(self) -> None:
        """Let go of what was frozen, so that it can be unmounted."""
        for item in self.items:
            os.close(item.fd)
        self.items = []
        self.frozen = False
        self.since = 0.0


def journal_of(own: Own) -> Journal:
    if own.journal is None:
        raise CommandError("the freeze journal is not there: see the agent's log")
    return own.journal


def link_of(own: Own, seconds: float = ASK_LIMIT) -> thawwire.Link:
    if own.link is None:
        raise CommandError("the freeze watchdog is not running: see the agent's log")
    own.link.seconds = seconds
    return own.link


def time_limit(ctx: Context) -> int:
    return max(0, int(float(ctx.setting("auto-thaw", "300") or "0")))


def read(own: Own) -> JournalState:
    try:
        return journal_of(own).read()
    except OSError as e:
        raise CommandError(f"the freeze journal cannot be read: {e.strerror}") from None


def record(ctx: Context, own: Own, *records: str) -> None:
    """Append where a failure must not stop what we are doing."""
    try:
        journal_of(own).append(*records)
    except OSError as e:
        ctx.log.error(f"the freeze journal cannot be written: {e.strerror}")


class Lapsed(CommandError):
    """The error that tells the host of a lapse: its delivery uses the lapse up."""

    __slots__ = ("cycle",)

    def __init__(self, lapse: Lapse, more: str = "") -> None:
        super().__init__(lapse.text() + more)
        self.cycle = lapse.cycle


def write(own: Own, *records: str) -> None:
    """Append where nothing may go on without it.  Raises CommandError."""
    try:
        journal_of(own).append(*records)
    except OSError as e:
        raise CommandError(f"the freeze journal cannot be written: {e.strerror}") from None


# -- thawing without the thawer


def thawer_lost(ctx: Context, own: Own, why: str) -> NoReturn:
    """Without the thawer nobody keeps the deadline: thaw at once and end, so that both are started afresh."""
    if own.frozen or own.items:
        thaw_own(ctx, own, "the agent's freeze watchdog died")
    ctx.log.error(f"the thawer is lost: {why}")
    os._exit(1)


def thaw_own(ctx: Context, own: Own, reason: str) -> None:
    """Thaw by our own descriptors, or by the journal after a take-over; then write down that it did not hold."""
    waiting = [item for item in own.items if item.errno in (0, _IN_FLIGHT)]
    touched = bool(waiting) or own.frozen
    end = time.monotonic() + IN_FLIGHT_PATIENCE
    while True:
        for item in reversed(waiting):
            if item.errno == 0 and crew.thaw(item.fd)[1] in crew.THAWED:
                waiting.remove(item)
        # A freeze that is in flight lands in a moment; one that does not is the supervisor's, by the journal, when we are gone.
        waiting = [item for item in waiting if item.errno in (0, _IN_FLIGHT)]
        if not waiting or time.monotonic() >= end:
            break
        time.sleep(0.001)
    try:
        state = read(own)
    except CommandError as e:
        ctx.log.error(e.desc)
        return
    if not own.items and state.entries:
        thaw_from_journal(ctx, own, state, reason)
        return
    if touched:
        record(ctx, own, lapse_record(Lapse(own.cycle, state.seconds, reason)))
        ctx.audit.lapse(reason)
    if not waiting:
        record(ctx, own, f"thawed {own.cycle}")


def thaw_from_journal(ctx: Context, own: Own, state: JournalState, reason: str) -> None:
    lines, stuck = thaw_entries(state.entries)
    record(ctx, own, lapse_record(Lapse(state.cycle, state.seconds, reason)))
    ctx.audit.lapse(reason)
    if stuck:
        lines.append(f"still frozen: {', '.join(stuck)}")
    else:
        record(ctx, own, f"thawed {state.cycle}")
    for line in lines:
        ctx.log.error(line)


def orphaned(ctx: Context) -> None:
    """The supervisor is gone.  The thawer thaws, unless it is gone too."""
    own = ctx.state.__dict__.get("fs")
    if isinstance(own, Own) and own.begun and (own.frozen or own.items):
        thaw_own(ctx, own, "the agent's supervisor died")
