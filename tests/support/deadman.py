"""A dead man's handle for tests and the demo: another process that thaws what a test may leave frozen.

A file system that stays frozen takes every writer with it into a state that no signal ends, the test run included.  So
before anything is frozen a `DeadMan` is started.  It opens the mount points beforehand (opening may hang later), sits in a
process and a session of its own with its memory locked, and issues FITHAW when its time is up or when the process that
started it is gone, however that happened.  `cancel()` ends it without a thaw.

    with DeadMan(30, "/mnt/a", "/mnt/b"):
        ...                                # freeze, test, thaw

As a program:  python -IS tests/support/deadman.py SECONDS PIPE-FD MOUNTPOINT...

Facts: FITHAW is _IOWR('X', 120, int), EINVAL when not frozen (ioctl_fat(2) has none of it; fs/ioctl.c); FITHAW waits
while a FIFREEZE on the same superblock is in flight, so each mount point gets a process of its own.
"""

from __future__ import annotations

import errno
import fcntl
import os
import select
import sys
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import TracebackType

FITHAW = 0xC0045878
# After the trigger go on thawing for so long: a freeze that was on its way may still arrive.
INSIST = 2.0


def thaw(fd: int) -> bool:
    """Thaw the file system of fd until the kernel says that it is not frozen; True if it was."""
    was_frozen = False
    while True:
        try:
            fcntl.ioctl(fd, FITHAW, 0)
        except OSError as e:
            if e.errno == errno.EINTR:
                continue
            return was_frozen
        was_frozen = True


def _serve(seconds: float, pipe: int, mountpoints: list[str]) -> int:
    """Wait, then thaw.  Exit status 0: cancelled; 3: fired and nothing was frozen; 4: fired and thawed something."""
    import ctypes
    import signal

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGPIPE):
        signal.signal(number, signal.SIG_IGN)
    ctypes.CDLL(None).mlockall(3)  # best effort: without it a page could have to come from a frozen file system
    fds = [os.open(m, os.O_RDONLY | os.O_DIRECTORY) for m in mountpoints]
    os.write(pipe, b"r")
    poll = select.poll()
    poll.register(pipe, select.POLLIN)
    if poll.poll(seconds * 1000) and os.read(pipe, 1) == b"c":
        return 0
    children = {}
    for fd, mountpoint in zip(fds, mountpoints, strict=True):
        pid = os.fork()
        if pid == 0:
            end, thawed = time.monotonic() + INSIST, False
            while time.monotonic() < end:
                thawed |= thaw(fd)
                time.sleep(0.02)
            os._exit(4 if thawed else 3)
        children[pid] = mountpoint
    fired = 3
    while children:
        pid, status = os.wait()
        mountpoint = children.pop(pid)
        if os.waitstatus_to_exitcode(status) == 4:
            fired = 4
            os.write(2, b"dead-man: thawed %s\n" % os.fsencode(mountpoint))
    return fired


class DeadMan:
    """Starts the process and waits until it holds its descriptors.

    seconds      until it thaws by itself
    mountpoints  what it holds open (umount answers EBUSY until it is cancelled)
    """

    def __init__(self, seconds: float, *mountpoints: str | os.PathLike[str]) -> None:
        import socket
        import subprocess

        ours, theirs = socket.socketpair()
        # -IS and no cwd of ours: it must start fast and depend on nothing under test.
        self._process = subprocess.Popen(
            [sys.executable, "-IS", __file__, str(seconds), str(theirs.fileno()), *map(os.fspath, mountpoints)],
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
            start_new_session=True,
            cwd="/",
        )
        theirs.close()
        self._handle = ours
        ours.settimeout(20)
        if ours.recv(1) != b"r":
            self._process.wait(10)
            raise RuntimeError(f"the dead-man process could not open {mountpoints}")

    @property
    def pid(self) -> int:
        return self._process.pid

    def cancel(self) -> bool:
        """End it.  True if it had not fired, that is, whatever was thawed was thawed by somebody else."""
        if self._process.poll() is None:
            try:
                self._handle.send(b"c")
            except OSError as e:
                if e.errno not in (errno.EPIPE, errno.ECONNRESET):
                    raise
        self._handle.close()
        return self._process.wait(20) == 0

    def __enter__(self) -> DeadMan:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, tb: TracebackType | None) -> None:
        if kind is None:
            self.cancel()
            return
        # The body failed: what it froze may still be frozen.  Letting go of the handle makes the process thaw it.
        self._handle.close()
        self._process.wait(30)


if __name__ == "__main__":
    sys.exit(_serve(float(sys.argv[1]), int(sys.argv[2]), sys.argv[3:]))
