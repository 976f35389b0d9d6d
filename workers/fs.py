"""Freeze and thaw: guest-fsfreeze-status, -freeze, -freeze-list, -thaw.

Theory of operation
===================

Two things must never happen: that a file system stays frozen, and that the host is told that a freeze held when it did
not.  Four processes take part: this one, which freezes; the thawer, which thaws; the supervisor, which keeps a second
deadline; the hook worker.  What each of them knows stands in the journal too (`privsep/journal.py`), on a tmpfs.

A freeze, in this order:

 1. A lapse that the host was not told of is told now, as this command's error.  Then all is normal again.
 2. A new cycle in the journal.  `hook freeze` in the journal, then the freeze hook.  If it fails, nothing is frozen.
 3. The plan (`workers/mounts.py`): each superblock once, in levels; what carries another is frozen after it.
 4. Each is opened, and the descriptor compared with the plan.  One that cannot be opened fails the command by name.
 5. syncfs on all at once, while writes still flow, so that the frozen time is short.
 6. The supervisor is told (`A`): it raises the board's flag and sets its own, later deadline, and answers.
 7. Every descriptor goes to the thawer, which answers once it holds them; its deadline runs from here.  Every superblock goes
    into the journal.  Whoever survives from now on can thaw.
 8. rcu_expedited is raised (its old value is with the thawer and in the journal): a freeze waits for RCU grace periods,
    some 30 ms each, and not for the disk.
 9. FIFREEZE, level by level, in parallel within one.  EBUSY (somebody else froze it) and EOPNOTSUPP are not ours: not
    counted, and the thawer forgets them.  Any other error: all is thawed and the command fails.
10. rcu_expedited is put back, the thawer is told what became of each.  0 frozen: the cycle is closed at once, thaw hook
    included.
11. The reply; and when it was written to the host (`delivered`) the freeze is *committed*: from now on a new fs worker may
    take it over when this one dies.  Before that, the thawer thaws when this process ends.

A thaw: the thawer is asked.  It thaws, sees for each descriptor whether it was still frozen, has the supervisor lower the flag,
and answers.  One that was not frozen any more is a lapse, and so is every thaw that nobody asked for: the command is an error
then, and once that was delivered the lapse is over.  Then the thaw hook runs, if it is due or if there was nothing to thaw.

Who thaws when something dies (P: by whom it is noticed):

    fs, not committed     thawer, end of file on its socket
    fs, committed         nobody for 5 s; the new fs worker asks the thawer what it holds; else the thawer
    thawer                fs (`watch`), which then ends, so that both are started afresh
    supervisor            thawer, end of file on its control socket; fs too (`orphaned`)
    fs and thawer         supervisor, from the journal
    stopped ones          thawer at its deadline, supervisor at its own; both have fs killed
    all                   the service manager's ExecStopPost, or the agent's next start, from the journal

From the first FIFREEZE to the last FITHAW nothing is imported, opened for writing or logged to a disk, threads and memory are
there already, and memory is locked: the disk that a page would have to come from may be the frozen one.

A regret: a process that gets SIGKILL while it is in FITHAW on a btrfs can cost that file system: the kernel reads the super block
again there, takes the interruption for a damage and makes it read-only until it is mounted anew (seen on 6.18).  The supervisor
sends SIGKILL to a process that may be in FITHAW only where nothing else is left to try: to the thawer one second after the
deadline has passed and 1.2 s after a stop began, to fs that thaws in place of a dead thawer after `PATIENCE_FS`.  What others
kill (the kernel for want of memory, a service manager, an administrator) is theirs, and can cost the file system as well.

Another: a freeze that is in flight in the kernel cannot be called off.  What it waits for is thawed by the thawer at the
deadline, and until then the host waits for its answer.
"""

from __future__ import annotations

import os
import sys
import time

from privsep import crew, thawwire, wiring
from privsep.journal import Journal, Lapse, lapse_record
from privsep.recover import open_mount
from protocol.errors import CommandError
from workers.freezing import (
    arm,
    arm_byte,
    check_mounts,
    draw_plan,
    freeze_levels,
    lock,
    make_plan,
    open_plan,
    read_mounts,
    run,
    set_rcu,
    sync,
)
from workers.fshook import freeze_hook, settle_hook, thaw_hook
from workers.fsstate import (
    ASK_LIMIT,
    COMMIT,
    THAW_LIMIT,
    TOLD,
    Lapsed,
    Own,
    journal_of,
    link_of,
    orphaned,
    read,
    record,
    thaw_from_journal,
    thawer_lost,
    time_limit,
)
from workers.mounts import mount_list

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Final

    from privsep.runtime import Context

THREADS: Final = 64  # freezes at a time
SETTLE: Final = 10.0  # seconds that a new fs worker waits for a thaw that is going on
_THREADS_WARM: Final = 4

# `orphaned` is one of the functions that the loop calls.
__all__ = ["orphaned"]


def prepare(ctx: Context) -> None:
    """While privileges last: what the walls would not let us open later."""
    crew.one_arena()
    rcu = -1
    if ctx.setting("expedite-rcu", "1") != "0":
        try:
            rcu = os.open("/sys/kernel/rcu_expedited", os.O_RDWR | os.O_CLOEXEC)
        except OSError as e:
            ctx.log.debug(f"rcu_expedited is left alone: {e.strerror}")
    sys.dont_write_bytecode = True
    mountinfo = os.open(ctx.root + "/proc/self/mountinfo", os.O_RDONLY | os.O_CLOEXEC)
    ctx.state.__dict__["fs"] = Own(rcu, mountinfo)


def _own(ctx: Context) -> Own:
    own = ctx.state.__dict__["fs"]
    assert isinstance(own, Own)
    if not own.begun:
        started(ctx)
    return own


# -- the life of the worker


def started(ctx: Context) -> None:
    """Find out what a former fs worker left: take a freeze over, or finish what a lapse left to do."""
    own = ctx.state.__dict__["fs"]
    assert isinstance(own, Own)
    if own.begun:
        return
    own.begun = True
    if "journal" in ctx.fds:
        own.journal = Journal(ctx.fds["journal"], own.boot)
    if "thawer" in ctx.fds:
        own.link = thawwire.Link(wiring.adopt(ctx.fds["thawer"]), ASK_LIMIT)
    if own.journal is None or own.link is None:
        return
    try:
        state = read(own)
        own.cycle = state.cycle
        status = own.link.ask()
        end = time.monotonic() + SETTLE
        while status.phase in (thawwire.PHASE_LAPSING, thawwire.PHASE_THAWING) and time.monotonic() < end:
            time.sleep(0.02)  # it is being thawed just now: a hook may be due then
            status = own.link.ask()
            state = read(own)
        if status.phase == thawwire.PHASE_FROZEN:
            own.frozen = True
            own.cycle = status.cycle
            ctx.log.info(f"takes over the freeze of {status.held} file systems")
            return
        if status.phase != thawwire.PHASE_IDLE:
            ctx.log.error("an earlier freeze is not thawed yet")
            return
        if status.reason and (state.lapse is None or state.lapse.cycle != status.lapsed):
            # The thawer could not write it down.
            reason = thawwire.REASONS[status.reason]
            record(ctx, own, lapse_record(Lapse(status.lapsed, status.lapsed_seconds, reason)))
        if state.rcu is not None and own.rcu >= 0:
            set_rcu(ctx, own, state.rcu)
            record(ctx, own, f"rcu-back {state.cycle}")
        if state.entries:
            thaw_from_journal(ctx, own, state, "the agent's freeze workers died")
        if ctx.board is not None and ctx.board.frozen:
            own.link.thaw(lower=True)
        if state.hook_due:
            thaw_hook(ctx, own, state.cycle)
    except thawwire.ThawerLost as e:
        thawer_lost(ctx, own, str(e))
    except CommandError as e:
        ctx.log.error(e.desc)


def holds(ctx: Context) -> bool:
    own = ctx.state.__dict__.get("fs")
    return isinstance(own, Own) and own.frozen


def watch(ctx: Context) -> dict[int, Callable[[Context], None]]:
    own = ctx.state.__dict__.get("fs")
    if isinstance(own, Own) and own.link is not None:
        return {own.link.socket.fileno(): _thawer_speaks}
    return {}


def _thawer_speaks(ctx: Context) -> None:
    """Between requests it has nothing to say: this is its end, or it is broken."""
    own = _own(ctx)
    if own.frozen:
        thawer_lost(ctx, own, "it died")
    if own.link is not None:
        own.link.socket.close()
        own.link = None


def delivered(ctx: Context, command: str) -> None:
    """The host has the reply to this command."""
    own = _own(ctx)
    confirm, own.confirm = own.confirm, None
    if confirm is None or confirm[0] != command or own.link is None:
        return
    _, what, cycle = confirm
    try:
        if what == COMMIT:
            own.link.commit(cycle)
        else:
            own.link.told(cycle)
    except thawwire.ThawerLost as e:
        thawer_lost(ctx, own, str(e))
    record(ctx, own, f"{what} {cycle}")


def absent(ctx: Context) -> None:
    """The host has closed the channel: a freeze that it cannot end gets a shorter deadline, if the policy says so."""
    own = _own(ctx)
    seconds = int(float(ctx.setting("auto-thaw-on-disconnect", "0") or "0"))
    if seconds == 0 or not own.frozen or own.link is None:
        return
    try:
        own.link.shorten(own.cycle, seconds)
    except thawwire.ThawerLost as e:
        thawer_lost(ctx, own, str(e))


def stopping(ctx: Context) -> None:
    """The agent is being stopped: leave nothing frozen and no hook unpaired."""
    own = _own(ctx)
    own.confirm = None
    try:
        state = read(own)
        if own.frozen or state.entries:
            record(ctx, own, lapse_record(Lapse(state.cycle, state.seconds, "the agent was stopped")))
            link_of(own, THAW_LIMIT).thaw(lower=True)
            own.forget()
        if state.hook_due:
            thaw_hook(ctx, own, state.cycle)
    except thawwire.ThawerLost as e:
        thawer_lost(ctx, own, str(e))
    except CommandError as e:
        ctx.log.error(e.desc)


# -- freezing


def guest_fsfreeze_status(ctx: Context) -> str:
    own = _own(ctx)
    if own.frozen:
        try:
            status = link_of(own).ask()
        except thawwire.ThawerLost as e:
            thawer_lost(ctx, own, str(e))
        if status.phase in (thawwire.PHASE_FROZEN, thawwire.PHASE_HELD):
            return "frozen"
        if status.phase == thawwire.PHASE_IDLE:
            own.forget()
    return "thawed"


def guest_fsfreeze_freeze(ctx: Context) -> int:
    return _freeze_all(ctx, "guest-fsfreeze-freeze", None)


def guest_fsfreeze_freeze_list(ctx: Context, mountpoints: list[str] | None = None) -> int:
    return _freeze_all(ctx, "guest-fsfreeze-freeze-list", mountpoints)


def _freeze_all(ctx: Context, command: str, wanted: list[str] | None) -> int:
    own = _own(ctx)
    own.confirm = None
    if own.frozen or (ctx.board is not None and ctx.board.frozen):
        raise CommandError.disabled(command)
    state = read(own)
    if state.lapse is not None:
        own.confirm = (command, TOLD, state.lapse.cycle)
        raise Lapsed(state.lapse)
    if state.entries:
        raise CommandError("cannot freeze: an earlier freeze is not thawed yet, see the agent's log")
    if state.hook_due:
        settle_hook(ctx, own, state.cycle)
    link_of(own)
    seconds = time_limit(ctx)
    # Twice: before the hook, so that nothing is quiesced in vain, and on the plan that is carried out.
    check_mounts(ctx, command, lambda: draw_plan(ctx, read_mounts(ctx, own), wanted))
    own.cycle = cycle = time.monotonic_ns()
    try:
        journal_of(own).begin(cycle, seconds)
    except OSError as e:
        raise CommandError(f"the freeze journal cannot be written: {e.strerror}") from None
    freeze_hook(ctx, own, cycle)
    armed = False
    try:
        mounts = read_mounts(ctx, own)
        planned = make_plan(ctx, mounts, wanted)
        check_mounts(ctx, command, lambda: planned)
        levels = open_plan(ctx, own, planned)
        if not own.items:
            own.forget()
            settle_hook(ctx, own, cycle)
            return 0
        try:
            own.crew.ensure(min(THREADS, max(max(map(len, levels)), _THREADS_WARM)))
        except RuntimeError:
            raise CommandError("cannot freeze: the system has no more threads") from None
        lock(ctx, own)
        begun = time.monotonic()
        if not run(ctx, own, sync, own.items, watchdog=False):
            raise CommandError("cannot freeze: the agent is ending")
        synced = time.monotonic()
        arm(ctx, arm_byte(ctx, mounts, planned))
        armed = True
        count = freeze_levels(ctx, own, seconds, levels)
        took = time.monotonic() - synced
    except thawwire.ThawerLost as e:
        thawer_lost(ctx, own, str(e))
    except BaseException as e:
        _undo(ctx, own, armed)
        if isinstance(e, Lapsed):
            own.confirm = (command, TOLD, e.cycle)
        raise
    if count == 0:
        _undo(ctx, own, armed)
        return 0
    own.frozen = True
    own.since = time.monotonic()
    own.confirm = (command, COMMIT, cycle)
    names = ", ".join(i.mount.point for i in own.items if i.errno == 0)
    limit = f"for at most {seconds} s" if seconds else "without a time limit"
    ctx.log.info(f"froze {count}, {limit}: {names}; sync {(synced - begun) * 1e3:.1f} ms, freeze {took * 1e3:.1f} ms")
    return count


def _undo(ctx: Context, own: Own, armed: bool) -> None:
    """End a freeze that failed, or froze nothing: all thawed, the flag lowered, the hook paired."""
    if armed:
        try:
            link_of(own, THAW_LIMIT).thaw(lower=True)
        except thawwire.ThawerLost as e:
            thawer_lost(ctx, own, str(e))
    own.forget()
    if read(own).hook_due:
        settle_hook(ctx, own, own.cycle)


# -- thawing


def guest_fsfreeze_thaw(ctx: Context) -> int:
    own = _own(ctx)
    own.confirm = None
    try:
        answer = link_of(own, THAW_LIMIT).thaw(lower=ctx.board is not None and ctx.board.frozen)
    except thawwire.ThawerLost as e:
        thawer_lost(ctx, own, str(e))
    thawed = answer.results.count(thawwire.RESULT_HELD)
    if thawed:
        # One that was taken over: since its freeze was asked for.
        ctx.log.info(f"thawed {thawed}, held for {time.monotonic() - (own.since or answer.cycle / 1e9):.3f} s")
    lost = [i.mount.point for i, r in zip(own.items, answer.results, strict=False) if r == thawwire.RESULT_LOST]
    own.forget()
    state = read(own)
    lapse = state.lapse
    if lapse is None and answer.reason:
        lapse = Lapse(answer.cycle, answer.seconds, thawwire.REASONS[answer.reason])
    needless = not answer.results and lapse is None
    if needless:
        thawed = _thaw_leftovers(ctx, own)
    trouble: CommandError | None = None
    if state.hook_due or needless:
        try:
            thaw_hook(ctx, own, state.cycle)
        except CommandError as e:
            trouble = e
    if lapse is not None:
        if trouble is not None:
            ctx.log.error(trouble.desc)
        own.confirm = ("guest-fsfreeze-thaw", TOLD, lapse.cycle)
        names = f" ({', '.join(lost)})" if lost and answer.reason == thawwire.REASON_LOST else ""
        raise Lapsed(lapse, names)
    if trouble is not None:
        raise trouble
    return thawed


def _thaw_leftovers(ctx: Context, own: Own) -> int:
    """Nothing is frozen by us: thaw whatever somebody else left frozen, as the peer does; how many there were."""
    count = 0
    for mount in mount_list(read_mounts(ctx, own)):
        try:
            fd = open_mount(mount, ctx.root)
        except OSError:
            continue
        if crew.thaw(fd)[0]:
            count += 1
        os.close(fd)
    return count
