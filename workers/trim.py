"""guest-fstrim: tells each file system's device which blocks are unused.  A process of its own, for it can take minutes.

One superblock after the other would leave the machine idle while one device works, so a few are trimmed at a time: two
take 0.6 of the time of one; more than there are processors take no less, and fill the queues that everybody else's
reads wait in.  Each thread waits inside one ioctl; a device that never answers keeps its thread and, at the time limit of
the command, costs this process and nothing else.

The mount table is opened before the drop and read anew from its start for each request: the descriptor shows the mount
namespace it was opened in.  What was opened is compared with the table, so that a mount made over another in between is
not trimmed in its place.

Facts: FITRIM and struct fstrim_range are in the kernel's uapi linux/fs.h (start, len and minlen, 64 bits each; the kernel
writes back in len what was discarded and in minlen what it used); texts and the reversed order are qemu-ga's.
"""

from __future__ import annotations

import _thread
import errno
import fcntl
import os
from struct import Struct

from protocol.errors import CommandError, strerror
from workers.mounts import Mount, mount_list, parse_mountinfo

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Final

    from privsep.runtime import Context
    from workers.mounts import Device

FITRIM: Final = 0xC0185879
_RANGE: Final = Struct("=QQQ")
_ALL: Final = 0xFFFFFFFFFFFFFFFF
LANES: Final = max(2, min(4, os.cpu_count() or 1))
# A mount point can be a device or a fifo that was bound there: opening one must neither wait nor take a terminal.
_HOW: Final = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY


def prepare(ctx: Context) -> None:
    """Open the mount table, as long as it may be opened."""
    ctx.state.mountinfo = os.open(f"{ctx.root}/proc/self/mountinfo", os.O_RDONLY | os.O_CLOEXEC)


def guest_fstrim(ctx: Context, minimum: int = 0) -> dict[str, object]:
    """Trim what is mounted; extents below `minimum` bytes are left.  One row a file system, last mounted first."""
    ctx.log.info("guest-fstrim called")
    try:
        text = _read(ctx.state.mountinfo)
    except OSError as e:
        raise CommandError.from_errno("failed to read /proc/self/mountinfo", e.errno or 0) from e
    mounts = parse_mountinfo(text)
    chosen = mount_list(mounts)
    left_out = _left_out(ctx, mounts, chosen)
    trimmed = iter(trim_all([m for m in chosen if m.device not in left_out], minimum))
    rows = [left_out[m.device] if m.device in left_out else next(trimmed) for m in chosen]
    rows.reverse()
    return {"paths": rows}


def _left_out(ctx: Context, mounts: Sequence[Mount], chosen: Sequence[Mount]) -> dict[Device, dict[str, object]]:
    """The rows of file systems that the policy leaves out, by device; each with the rule."""
    if ctx.ruling is None:
        return {}
    rows: dict[Device, dict[str, object]] = {}
    for mount in chosen:
        rule = ctx.ruling.left_out("fstrim", [m.point for m in mounts if m.device == mount.device])
        if rule is not None:
            ctx.log.info(f"{mount.point} is not trimmed: rule {rule.id} ({rule.origin})")
            rows[mount.device] = {"path": mount.point, "error": f"not allowed by policy (rule {rule.id})"}
    return rows


def _read(descriptor: object) -> bytes:
    assert isinstance(descriptor, int)
    os.lseek(descriptor, 0, os.SEEK_SET)
    parts = []
    while part := os.read(descriptor, 65536):
        parts.append(part)
    return b"".join(parts)


def trim_all(mounts: Sequence[Mount], minimum: int) -> list[dict[str, object]]:
    """The rows in the order of `mounts`, worked on by up to `LANES` threads, this one included."""
    rows: list[dict[str, object]] = [{} for _ in mounts]
    todo = list(enumerate(mounts))
    todo.reverse()
    done = []

    def lane() -> None:
        while todo:
            try:
                number, mount = todo.pop()
            except IndexError:
                return  # another lane was quicker
            rows[number] = trim(mount, minimum)

    def helper(ended: _thread.LockType) -> None:
        try:
            lane()
        finally:
            ended.release()

    for _ in range(min(LANES, len(todo)) - 1):
        lock = _thread.allocate_lock()
        lock.acquire()
        try:
            _thread.start_new_thread(helper, (lock,))
        except RuntimeError:
            break  # no more threads to be had: fewer lanes do
        done.append(lock)
    lane()
    for lock in done:
        lock.acquire()
    if not all(rows):
        raise RuntimeError("a thread ended early")
    return rows


def trim(mount: Mount, minimum: int) -> dict[str, object]:
    """One file system's row: its path, and what was trimmed or why not."""
    row: dict[str, object] = {"path": mount.point}
    try:
        descriptor = os.open(mount.point, _HOW)
    except (OSError, ValueError) as e:
        row["error"] = f"failed to open: {strerror(getattr(e, 'errno', None) or errno.EINVAL)}"
        return row
    try:
        device = os.fstat(descriptor).st_dev
        # A btrfs subvolume shows a device number of its own, not its superblock's.
        if mount.fstype != "btrfs" and (os.major(device), os.minor(device)) != (mount.major, mount.minor):
            row["error"] = "failed to open: another file system was mounted over it meanwhile"
            return row
        span = bytearray(_RANGE.pack(0, _ALL, minimum & _ALL))
        fcntl.ioctl(descriptor, FITRIM, span)
        _, row["trimmed"], row["minimum"] = _RANGE.unpack(span)
    except OSError as e:
        if e.errno in (errno.ENOTTY, errno.EOPNOTSUPP):
            row["error"] = "trim not supported"
        else:
            row["error"] = f"failed to trim: {strerror(e.errno or 0)}"
    finally:
        os.close(descriptor)
    return row
