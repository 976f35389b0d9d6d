"""The fs worker's steps of a freeze: plan, open, sync, have the flag raised, register, freeze.

The order and its reasons are in the theory of operation in `workers/fs.py`.
"""

from __future__ import annotations

import os
import select
import time

from privsep import crew, thawwire, wiring
from privsep.journal import Entry, Lapse, hold_record
from privsep.recover import open_mount
from protocol.errors import CommandError, strerror
from workers.fshook import from_supervisor
from workers.fsstate import Item, Lapsed, Own, link_of, record, skipped, write
from workers.mounts import Mount, Plan, Sysfs, Tree, parse_mountinfo, plan

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Final

    from privsep.runtime import Context

ARM_LIMIT: Final = 5.0  # seconds that the supervisor has to raise the flag


def read_mounts(ctx: Context, own: Own) -> list[Mount]:
    os.lseek(own.mountinfo, 0, os.SEEK_SET)
    parts = []
    while part := os.read(own.mountinfo, 1 << 18):
        parts.append(part)
    return parse_mountinfo(b"".join(parts))


def draw_plan(ctx: Context, mounts: list[Mount], wanted: list[str] | None) -> Plan:
    sysfs = Sysfs(ctx.root)
    return plan(mounts, wanted, members=sysfs.members, beneath=sysfs.beneath)


def make_plan(ctx: Context, mounts: list[Mount], wanted: list[str] | None) -> Plan:
    planned = draw_plan(ctx, mounts, wanted)
    for mount in planned.unreachable:
        ctx.log.warning(f"{mount.point} ({mount.major}:{mount.minor}) cannot be reached, so it is not frozen")
    # A volume that is suspended, for a snapshot of the guest's own say, is frozen by device-mapper: FIFREEZE would be EBUSY, as
    # for whatever somebody else froze, but the sync before it would wait for the resume, and nobody could call it off.
    sysfs = Sysfs(ctx.root)
    for level in planned.levels:
        for target in [t for t in level if any(map(sysfs.suspended, sysfs.members(t.candidates[0])))]:
            ctx.log.info(f"{target.candidates[0].point} is not frozen: device-mapper has suspended its device")
            level.remove(target)
    return planned


def check_mounts(ctx: Context, command: str, planned: Callable[[], Plan]) -> None:
    """Raises CommandError when the policy leaves out a superblock that would be frozen: a freeze is never narrowed."""
    if ctx.ruling is None:
        return
    decision = ctx.ruling.freeze(command, [target.points for target in planned().targets()])
    if decision is not None:
        raise ctx.refusal(command, decision)


def open_plan(ctx: Context, own: Own, planned: Plan) -> list[list[Item]]:
    """The plan with descriptors; they are in `own.items` too.  Raises CommandError when one cannot be opened."""
    own.forget()
    levels = []
    for level in planned.levels:
        row = []
        for target in level:
            problem: OSError | None = None
            for mount in target.candidates:
                try:
                    row.append(Item(open_mount(mount, ctx.root), mount))
                    own.items.append(row[-1])
                    break
                except OSError as e:
                    problem = problem or e
            else:
                assert problem is not None
                raise CommandError(f"failed to open {target.candidates[0].point}: {problem.strerror}")
        levels.append(row)
    if len(own.items) > thawwire.MOST:
        raise CommandError(f"cannot freeze more than {thawwire.MOST} file systems at a time")
    return levels


def arm_byte(ctx: Context, mounts: list[Mount], planned: Plan) -> bytes:
    """Whether the supervisor can leave its marker: not in a state folder that is about to freeze."""
    folder = ctx.setting("statedir")
    if folder:
        mount = Tree(mounts).resolve(os.path.realpath(folder))
        if mount is None or any(mount.device == target.device for target in planned.targets()):
            return wiring.ARM_WITHOUT_MARKER
    return wiring.ARM


def lock(ctx: Context, own: Own) -> None:
    if not own.locked:
        trouble = crew.lock_memory()
        if trouble:
            ctx.log.warning(f"degraded: {trouble}")
        own.locked = True


def arm(ctx: Context, byte: bytes) -> None:
    """Have the flag raised.  Raises CommandError when it is not."""
    assert ctx.control is not None
    end = time.monotonic() + ARM_LIMIT
    try:
        ctx.control.send(byte)
    except OSError:
        raise CommandError("the agent's supervisor is gone") from None
    while True:
        message = from_supervisor(ctx, end)
        if message is None:
            raise CommandError("cannot freeze: the agent's supervisor does not answer")
        if message[0] == wiring.ARM:
            return
        ctx.deferred.append(message)
        if message[0] == wiring.TAG_QUIT:
            raise CommandError("cannot freeze: the agent is being stopped")


def sync(item: object) -> None:
    assert isinstance(item, Item)
    crew.sync(item.fd)


def _freeze(item: object) -> None:
    assert isinstance(item, Item)
    item.errno = crew.freeze(item.fd)


def run(ctx: Context, own: Own, job: Callable[[object], None], items: list[Item], *, watchdog: bool) -> bool:
    """One job for each item, all at once; False when the thawer (if `watchdog`) or the supervisor dies meanwhile."""
    assert ctx.control is not None
    poll = select.poll()
    poll.register(own.crew.event, select.POLLIN)
    poll.register(ctx.control.fileno(), 0)  # its end only: what it says is read when we have time
    if watchdog and own.link is not None:
        poll.register(own.link.socket.fileno(), select.POLLIN)
    for item in items:
        own.crew.give(job, item)
    left = len(items)
    while left:
        for fd, _ in poll.poll():
            if fd != own.crew.event:
                return False
            left -= own.crew.finished()
    return True


def freeze_levels(ctx: Context, own: Own, seconds: int, levels: list[list[Item]]) -> int:
    """Register, then freeze; how many are frozen by us.  Raises CommandError (what is frozen is to be thawed), ThawerLost."""
    link, items, cycle = link_of(own), own.items, own.cycle
    rcu = _rcu_value(own)
    if not link.begin(cycle, seconds, rcu, [item.fd for item in items]):
        raise CommandError("cannot freeze: the freeze watchdog refuses")
    records = [hold_record(Entry(cycle, *i.mount.device, i.mount.id, i.mount.point)) for i in items]
    if rcu is not None:
        records.append(f"rcu {cycle} {rcu}")
    write(own, *records)
    failed: Item | None = None
    try:
        if rcu is not None:
            set_rcu(ctx, own, "1")
        for level in levels:
            for item in level:
                item.begin()
            if not run(ctx, own, _freeze, level, watchdog=True):
                raise thawwire.ThawerLost("it died during a freeze")
            failed = next((i for i in level if i.errno and not skipped(i.errno)), None)
            if failed is not None:
                break
    finally:
        if rcu is not None:
            set_rcu(ctx, own, rcu)
            record(ctx, own, f"rcu-back {cycle}")
    if not link.frozen(cycle, bytes(item.mark for item in items)):
        raise Lapsed(Lapse(cycle, seconds, thawwire.REASONS[thawwire.REASON_DEADLINE]))
    if failed is not None:
        raise CommandError(f"failed to freeze {failed.mount.point}: {strerror(failed.errno)}")
    for item in items:
        if item.errno == 0:
            ctx.log.debug(f"{item.mount.point} is frozen")
        else:
            ctx.log.info(f"{item.mount.point} is not frozen: {strerror(item.errno)}")
    return sum(1 for item in items if item.errno == 0)


def set_rcu(ctx: Context, own: Own, value: str) -> None:
    try:
        os.pwrite(own.rcu, value.encode("ascii"), 0)
    except OSError as e:
        ctx.log.warning(f"rcu_expedited cannot be set to {value}: {e.strerror}")


def _rcu_value(own: Own) -> str | None:
    """The digit to put back after a freeze; None when rcu_expedited is out of reach or raised already.

    It is the machine's, and other agents may be at it.  So only 0 is ever raised and only 0 is ever put back: whatever the
    order, it is 0 when the last is done.  Who comes while another has it raised leaves it alone, and is slower if that
    one is done first; an administrator who raised it for good keeps it."""
    if own.rcu < 0:
        return None
    try:
        return "0" if os.pread(own.rcu, 16, 0).strip() == b"0" else None
    except OSError:
        return None
