"""Start a child: fork and exec its entry script with exactly the descriptors of docs/architecture.md.

posix_spawn, so the supervisor is not copied; every other descriptor is close-on-exec.  The child's numbers 3 to 7 are dup2
targets, hence the supervisor keeps its own sources at `LOWEST` and above.
"""

from __future__ import annotations

import fcntl
import os

from privsep import wiring

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

    from privsep.wiring import Socket

LOWEST: Final = 10

# What of the environment a child sees; rows that start programs see all of it, as the peer's children do.
_KEPT: Final = ("PATH", "TZ", "LANG", "LC_ALL", "QGA_OS_RELEASE", "JOURNAL_STREAM")

# glibc's malloc (mallopt(3)): threads need no memory of their own.
_MALLOC: Final = {"MALLOC_ARENA_MAX": "1"}
# By default each buffer of 128 KiB is mapped and unmapped again, page fault by page fault, which costs bulk data more than all
# copies do.  Up to 2 MiB of a buffer comes from the heap; what more than that is mapped for may have huge pages, a fault for 2 MiB
# (glibc 2.35; others pass over it).  The heap grows by one, so twice that is kept: else each request fetches it and gives it back.
_LARGE: Final = {
    "MALLOC_MMAP_THRESHOLD_": str(2 << 20),
    "MALLOC_TRIM_THRESHOLD_": str(4 << 20),
    "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1",
}
BULKY: Final = ("front", "file")  # who has buffers of that size, programs apart


def above(fd: int) -> int:
    """The same open file at a number that no dup2 target can hit; the old number is closed."""
    if fd >= LOWEST:
        return fd
    moved = fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, LOWEST)
    os.close(fd)
    return moved


def environment(environ: dict[str, str], name: str = "", *, programs: bool) -> dict[str, str]:
    """What the row of that name sees of `environ`; `programs`: it starts some."""
    if programs:
        return {
            k: v for k, v in environ.items() if k not in ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES", "NOTIFY_SOCKET")
        }
    return {**_MALLOC, **(_LARGE if name in BULKY else {}), **{k: environ[k] for k in _KEPT if k in environ}}


def spawn(
    entry: str, *, control: int, policy: int, board: int, log: int, audit: int, counters: int, environ: dict[str, str]
) -> int:
    """The child's pid.  Raises OSError when its entry script cannot be executed."""
    null = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
    try:
        actions = [
            (os.POSIX_SPAWN_DUP2, null, 0),
            (os.POSIX_SPAWN_DUP2, log, 1),
            (os.POSIX_SPAWN_DUP2, log, 2),
            (os.POSIX_SPAWN_DUP2, control, wiring.CONTROL_FD),
            (os.POSIX_SPAWN_DUP2, policy, wiring.SLICE_FD),
            (os.POSIX_SPAWN_DUP2, board, wiring.BOARD_FD),
            (os.POSIX_SPAWN_DUP2, audit, wiring.AUDIT_FD),
            (os.POSIX_SPAWN_DUP2, counters, wiring.COUNTERS_FD),
        ]
        return os.posix_spawn(entry, [entry], environ, file_actions=actions, setsigmask=[])
    finally:
        os.close(null)


def outlet() -> tuple[Socket, int]:
    """Our end and a process's end, which it need not make non-blocking itself, of a socket for records."""
    ours, theirs = wiring.pair()
    theirs.setblocking(False)
    return ours, above(theirs.detach())
