"""The board: one shared page that the supervisor writes and every child can only read.

It tells children, without a message and without a wake-up, that file systems are frozen or about to be, so that nobody
writes a log line to a disk that will not take it.  A memfd, sealed with F_SEAL_FUTURE_WRITE after the supervisor has
mapped it: no child can map it writable or write to it (fcntl(2)).
"""

from __future__ import annotations

import fcntl
import mmap
import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

SIZE: Final = 4096
_FROZEN: Final = 0
_F_ADD_SEALS: Final = 1033
_F_GET_SEALS: Final = 1034
_SEALS: Final = 0x1 | 0x2 | 0x4 | 0x10  # SEAL, SHRINK, GROW, FUTURE_WRITE


class Board:
    """`create` for the supervisor, `attach` for a child."""

    __slots__ = ("fd", "_page")

    def __init__(self, fd: int, page: mmap.mmap) -> None:
        self.fd = fd
        self._page = page

    @classmethod
    def create(cls) -> Board:
        fd = os.memfd_create("privsep-ga-board", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        os.ftruncate(fd, SIZE)
        page = mmap.mmap(fd, SIZE, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE)
        fcntl.fcntl(fd, _F_ADD_SEALS, _SEALS)
        return cls(fd, page)

    @classmethod
    def attach(cls, fd: int) -> Board:
        """Raises ValueError when the descriptor is not the sealed page it should be."""
        if fcntl.fcntl(fd, _F_GET_SEALS) & _SEALS != _SEALS or os.fstat(fd).st_size != SIZE:
            raise ValueError("the board is not sealed")
        return cls(fd, mmap.mmap(fd, SIZE, mmap.MAP_SHARED, mmap.PROT_READ))

    @property
    def frozen(self) -> bool:
        return self._page[_FROZEN] != 0

    def set_frozen(self, frozen: bool) -> None:
        """Supervisor only: a child's page is not writable (TypeError)."""
        self._page[_FROZEN] = 1 if frozen else 0
