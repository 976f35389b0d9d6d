"""Thaw from the journal: what is done when nobody is left who holds the descriptors.

Used by the supervisor (at its start, and when fs and thawer are both gone), and by the service manager after the agent
has ended (`python -m privsep.recover JOURNAL`), in a process of its own: opening and thawing can block.  A superblock is thawed
only through a mount that shows the journalled device number and that the opened descriptor is really on; nothing else is touched.

A freeze that is found here did not hold, whatever FITHAW says: the lapse is recorded and the next fs worker tells the host.
"""

from __future__ import annotations

import os
import resource
import select
import sys
import time

from privsep import crew
from privsep.journal import Entry, Journal, Lapse, boot_id, lapse_record
from workers.mounts import parse_mountinfo

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

    from workers.mounts import Mount

RCU_EXPEDITED: Final = "/sys/kernel/rcu_expedited"
_KILLED: Final = "the agent was killed"
PATIENCE: Final = 8.0  # seconds for all thaws together; what takes longer waits for a freeze or a disk


class StillFrozen(Exception):
    """Something could not be thawed in time: try again.  The text names it."""


class _Job:
    __slots__ = ("fd", "name", "times", "errno")

    def __init__(self, fd: int, name: str) -> None:
        self.fd = fd
        self.name = name
        self.times = 0
        self.errno = -1


def mount_id(fd: int) -> int:
    """The mount that a descriptor was opened through (proc(5), fdinfo); -1 if it is not told."""
    with open(f"/proc/self/fdinfo/{fd}", "rb", 0) as file:
        for line in file.read(4096).split(b"\n"):
            if line.startswith(b"mnt_id:"):
                return int(line[7:])
    return -1


def open_mount(mount: Mount, root: str = "") -> int:
    """A read-only descriptor that is certainly on this mount.  Raises OSError (ENXIO: another mount lies there)."""
    fd = os.open(root + mount.point, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
    try:
        # btrfs gives each subvolume a device number of its own in stat, so the mount alone decides there.
        device = os.fstat(fd).st_dev
        if mount_id(fd) == mount.id and (mount.fstype == "btrfs" or device == os.makedev(mount.major, mount.minor)):
            return fd
    except BaseException:
        os.close(fd)
        raise
    os.close(fd)
    raise OSError(6, "another file system is mounted there")


def open_entries(entries: list[Entry]) -> tuple[list[tuple[Entry, int]], list[str], list[str]]:
    """The entries that can be reached, each with a descriptor; a line about each of the others; the paths of those among them
    that are mounted, so that they may be frozen."""
    with open("/proc/self/mountinfo", "rb", 0) as file:
        mounts = parse_mountinfo(file.read())
    opened, lines, unreached = [], [], []
    for entry in entries:
        rows = [m for m in mounts if m.device == (entry.major, entry.minor)]
        rows.sort(key=lambda m: (m.id != entry.mount, m.point != entry.path))
        problem = "it is not mounted any more"
        for row in rows:
            try:
                opened.append((entry, open_mount(row)))
                break
            except OSError as e:
                problem = e.strerror or "it cannot be opened"
        else:
            lines.append(f"{entry.path} ({entry.major}:{entry.minor}) cannot be thawed: {problem}")
            if rows:
                unreached.append(entry.path)
    return opened, lines, unreached


def thaw_entries(entries: list[Entry], patience: float = PATIENCE) -> tuple[list[str], list[str]]:
    """Thaw what can be reached: lines for the log, and the paths that are, or may be, still frozen."""
    opened, lines, unreached = open_entries(entries)
    jobs = [_Job(fd, entry.path) for entry, fd in opened]

    def work(item: object) -> None:
        assert isinstance(item, _Job)
        item.times, item.errno = crew.thaw(item.fd)

    gang = crew.Crew()
    try:
        gang.ensure(len(jobs))
    except RuntimeError:  # no threads to be had: one after the other, which a file system that hangs holds up
        for job in reversed(jobs):
            work(job)
        return _told(jobs, lines, unreached)
    poll = select.poll()
    poll.register(gang.event, select.POLLIN)
    for job in reversed(jobs):
        gang.give(work, job)
    end = time.monotonic() + patience
    done = 0
    while done < len(jobs) and (left := end - time.monotonic()) > 0:
        if poll.poll(left * 1000):
            done += gang.finished()
    return _told(jobs, lines, unreached)


def _told(jobs: list[_Job], lines: list[str], unreached: list[str]) -> tuple[list[str], list[str]]:
    stuck = [job.name for job in jobs if job.errno not in crew.THAWED] + unreached
    lines += [f"{job.name} was frozen and is thawed" for job in jobs if job.times]
    for job in jobs:
        if job.errno != -1:
            os.close(job.fd)
    return lines, stuck


def recover(source: str | int, reason: str = _KILLED, final: bool = True) -> list[str]:
    """Thaw what the journal (a path or a descriptor) says may be frozen; what was done, in lines for the log.

    `reason` is what the host will be told.  `final` False: a process that froze still lives, so that more may come to be
    frozen.  Raises StillFrozen, then nothing is recorded as thawed; OSError when the journal cannot be used."""
    sys.dont_write_bytecode = True  # a .pyc on a frozen file system would wait for this very process
    if isinstance(source, str):
        try:
            fd = os.open(source, os.O_RDWR | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW)
        except FileNotFoundError:
            return []
        try:
            return recover(fd, reason, final)
        finally:
            os.close(fd)
    journal = Journal(source, boot_id())
    state = journal.read()
    lines: list[str] = []
    stuck: list[str] = []
    if state.entries:
        _allow_descriptors()
        lines, stuck = thaw_entries(state.entries)  # before anything is written, which may fail
    if state.rcu is not None:
        lines.append(_restore_rcu(journal, state.cycle, state.rcu))
    if not state.entries:
        return lines
    if state.lapse is None or state.lapse.cycle != state.cycle:
        journal.append(lapse_record(Lapse(state.cycle, state.seconds, reason)))
        lines.append(f"the freeze did not hold: {reason}")
    if stuck:
        raise StillFrozen("; ".join([*lines, f"still frozen: {', '.join(stuck)}"]))
    if not final:
        raise StillFrozen(
            "; ".join([*lines, "a process that freezes cannot be ended: what it has still to do is waited for"])
        )
    journal.append(f"thawed {state.cycle}")
    return lines


def _allow_descriptors() -> None:
    """One is needed for each file system, and a service is started with few."""
    try:
        limits = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (limits[1], limits[1]))
    except (OSError, ValueError):
        pass


def _restore_rcu(journal: Journal, cycle: int, value: str) -> str:
    try:
        fd = os.open(RCU_EXPEDITED, os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.write(fd, value.encode("ascii"))
        finally:
            os.close(fd)
    except OSError as e:
        return f"rcu_expedited cannot be put back to {value}: {e.strerror}"
    try:
        journal.append(f"rcu-back {cycle}")
    except OSError as e:  # it is put back once more by whoever comes next
        return f"rcu_expedited is {value} again; the journal cannot be written: {e.strerror}"
    return f"rcu_expedited is {value} again"


def main(argv: list[str] | None = None) -> int:
    """The stand-alone program: JOURNAL [REASON].  Exit status 1 when something may still be frozen."""
    arguments = sys.argv[1:] if argv is None else argv
    if not 1 <= len(arguments) <= 2:
        os.write(2, b"usage: python -m privsep.recover JOURNAL [REASON]\n")
        return 2
    try:
        lines, status = recover(arguments[0], arguments[1] if len(arguments) > 1 else _KILLED), 0
    except (StillFrozen, OSError) as e:
        lines, status = [str(e)], 1
    # Now that what can be thawed is thawed: standard error may be a file on what was frozen.
    for line in lines:
        os.write(2, line.encode("utf-8", "replace") + b"\n")
    return status


if __name__ == "__main__":
    sys.exit(main())
