"""Threads and memory of the two processes that freeze and thaw, made ready before anything is frozen.

While file systems are frozen a process that needs a page, a module or a thread stack may have to wait for the very disk
that it is to thaw.  So threads are started, and memory is locked, beforehand; between the first FIFREEZE and the last
FITHAW nothing here is made new.

ctypes, because the standard library has neither syncfs(2) nor mlockall(2); `python-prctl` has neither as well.

Facts: FIFREEZE and FITHAW are _IOWR('X', 119|120, int), include/uapi/linux/fs.h.  FIFREEZE answers EBUSY when the
superblock is frozen already and EOPNOTSUPP when it cannot be; FITHAW answers EINVAL when it is not frozen.  FITHAW on a
superblock whose FIFREEZE is in flight waits for it, uninterruptibly (measured on 6.18); older kernels answer EINVAL.
"""

from __future__ import annotations

import _queue
import _thread
import ctypes
import errno
import os
from fcntl import ioctl

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Final

FIFREEZE: Final = 0xC0045877
FITHAW: Final = 0xC0045878

# What FIFREEZE answers for a file system that cannot be frozen, and FITHAW for one that never was.
UNSUPPORTED: Final = frozenset((errno.EOPNOTSUPP, errno.ENOTTY))
# What FITHAW answers in the end for one that is certainly not frozen.
THAWED: Final = UNSUPPORTED | {errno.EINVAL}

_STACK: Final = 128 * 1024
_REPEAT: Final = 64  # a superblock that somebody freezes again as fast as we thaw it
_MCL_CURRENT: Final = 1
_MCL_FUTURE: Final = 2
_MCL_ONFAULT: Final = 4
_M_ARENA_MAX: Final = -8
_M_TRIM_THRESHOLD: Final = -1
_M_MMAP_THRESHOLD: Final = -3

_libc = ctypes.CDLL(None, use_errno=True)


def one_arena() -> None:
    """Keep malloc to one arena that neither shrinks nor maps: a thread's first allocation must not reserve 64 MiB."""
    _libc.mallopt(_M_ARENA_MAX, 1)
    _libc.mallopt(_M_TRIM_THRESHOLD, 1 << 30)
    _libc.mallopt(_M_MMAP_THRESHOLD, 1 << 25)


def lock_memory() -> str:
    """Lock what there is, and what comes as soon as it is touched; "" or what failed, for the log.

    Two calls: with MCL_ONFAULT in the first one, pages that are mapped but not there yet would stay away."""
    for flags in (_MCL_CURRENT, _MCL_FUTURE | _MCL_ONFAULT):
        if _libc.mlockall(flags) != 0:
            return f"memory is not locked: {os.strerror(ctypes.get_errno())}"
    return ""


def sync(fd: int) -> int:
    """syncfs(2); the errno, 0 when it went well."""
    return 0 if _libc.syncfs(fd) == 0 else ctypes.get_errno()


def freeze(fd: int) -> int:
    """FIFREEZE; the errno, 0 when it is frozen now."""
    while True:
        try:
            ioctl(fd, FIFREEZE, 0)
        except OSError as e:
            if e.errno != errno.EINTR:
                return e.errno or errno.EIO
        else:
            return 0


def thaw(fd: int) -> tuple[int, int]:
    """FITHAW until it fails: how often it succeeded, and the errno in the end (EINVAL: not frozen any more)."""
    times = 0
    while times < _REPEAT:
        try:
            ioctl(fd, FITHAW, 0)
        except OSError as e:
            if e.errno != errno.EINTR:
                return times, e.errno or errno.EIO
        else:
            times += 1
    return times, errno.EBUSY


class Crew:
    """Threads that wait for jobs.  As many jobs run at once as there are threads; `event` counts finished ones.

    A thread that sleeps in the kernel for good (a freeze that waits for a disk) is lost to the crew, not to the caller,
    who waits on `event` by poll and can give up."""

    __slots__ = ("event", "size", "_jobs")

    def __init__(self) -> None:
        self.event = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self.size = 0
        self._jobs: _queue.SimpleQueue[tuple[Callable[[object], None], object]] = _queue.SimpleQueue()

    def ensure(self, size: int) -> None:
        """Have at least that many threads.  Raises RuntimeError when the system has no more."""
        if self.size < size:
            _thread.stack_size(_STACK)
            ready = _thread.allocate_lock()
            while self.size < size:
                # One at a time, until it runs: what it touches at start is then there, and locked.
                ready.acquire()
                _thread.start_new_thread(self._work, (ready,))
                self.size += 1
            with ready:
                pass

    def _work(self, ready: _thread.LockType) -> None:
        get, event = self._jobs.get, self.event
        ready.release()
        while True:
            job, item = get()
            job(item)
            os.eventfd_write(event, 1)

    def give(self, job: Callable[[object], None], item: object) -> None:
        """`job` must not raise; it leaves its result in `item`."""
        self._jobs.put((job, item))

    def finished(self) -> int:
        """How many jobs have finished since the last call."""
        try:
            return os.eventfd_read(self.event)
        except BlockingIOError:
            return 0
