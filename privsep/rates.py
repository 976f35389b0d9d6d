"""How often a minute: a page of counts that a worker keeps and its successors find again.

The supervisor makes one page for each worker, gives it to the process at its start and to the one that follows it, and never
looks into it; so neither leaving when idle nor a crash sets a count back.  What is counted are requests that were let
through, by seconds of the monotonic clock.

A slot of 64 words for each of the domain's commands, in the order of the command table: the last second that was counted, then 61
counts.  61, because sixty seconds that begin in the middle of one end in the middle of another.
"""

from __future__ import annotations

import fcntl
import mmap
import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

SIZE: Final = 4096
SLOT: Final = 64  # words of four bytes
SLOTS: Final = SIZE // (SLOT * 4)
_SECONDS: Final = 61
_SEALS: Final = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL


def create(name: str) -> int:
    """A new page; `name` shows in /proc/PID/fd."""
    fd = os.memfd_create(f"privsep-ga-rates-{name}", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.ftruncate(fd, SIZE)
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, _SEALS)
    return fd


class Page:
    """A worker's view of its page."""

    __slots__ = ("_words",)

    def __init__(self, fd: int) -> None:
        """Maps it; the descriptor is not needed any more.  Raises OSError or ValueError when it is no such page."""
        if fcntl.fcntl(fd, fcntl.F_GET_SEALS) & _SEALS != _SEALS or os.fstat(fd).st_size != SIZE:
            raise ValueError("the page of counts is not sealed")
        self._words = memoryview(mmap.mmap(fd, SIZE, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE)).cast("I")

    def admit(self, slot: int, limit: int, now: float) -> bool:
        """Whether one more is within the limit of so many a minute; it is counted then.  `now`: seconds, monotonic."""
        return admit(self._words[slot * SLOT : (slot + 1) * SLOT], limit, now)


def admit(words: memoryview[int] | list[int], limit: int, now: float) -> bool:
    """The same on a slot's words."""
    second = int(now) & 0xFFFFFFFF
    last = words[0]
    if last != second:
        # A clock that went back (another boot's page cannot be here) forgets everything rather than nothing.
        stale = second - last if 0 < second - last < _SECONDS else _SECONDS
        for n in range(stale):
            words[1 + (second - n) % _SECONDS] = 0
        words[0] = second
    if sum(words[1 : 1 + _SECONDS]) >= limit:
        return False
    words[1 + second % _SECONDS] += 1
    return True
