"""Bulk data in memory that a worker makes and the front reads.

The front may not open, create or enlarge anything, so the worker makes a memfd and passes its descriptor.  Two kinds:

* *kept*: up to `KEPT` bytes of a reply go through one memfd of just that size, sealed against another, that the worker
  writes again and again; its descriptor comes with the first of them.  Making, filling and closing a new one costs more than
  all the copies of half a megabyte;
* *sealed*: more has a memfd of its own, sealed against every change, which is gone when the reply is written.

The front takes a descriptor only with those seals, which nothing but a memfd has: a read of any other file might wait for
ever, and memory that may become shorter would end a reply in the middle.  It reads with pread, each byte once, and encodes
what it got: whatever a worker does to the memory meanwhile, what comes out is base64 of bytes that it could have sent anyway.
Reads are in small pieces: mapping would cost a page fault for each page and count as the front's own memory.
A worker writes the kept memfd only while it executes a request, and the front asks for nothing else until the reply is
written.

memfd_create(2), fcntl(2).
"""

from __future__ import annotations

import fcntl
import mmap
import os

from protocol.errors import ProtocolViolation

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

KEPT: Final = 16 * 1024 * 1024  # bytes
LIMIT: Final = 72 * 1024 * 1024  # bytes; the largest that a command answers are 48 MiB

_SEALS: Final = fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL
_SIZED: Final = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL
_MFD_NOEXEC_SEAL: Final = 0x8  # Linux 6.3; needed where vm.memfd_noexec is 2


def create() -> int:
    """An empty memfd that can be sealed.  Raises OSError."""
    flags = os.MFD_ALLOW_SEALING | os.MFD_CLOEXEC
    try:
        return os.memfd_create("privsep-ga-bulk", flags | _MFD_NOEXEC_SEAL)
    except OSError:  # EINVAL: a kernel before 6.3
        return os.memfd_create("privsep-ga-bulk", flags)


def seal(fd: int) -> None:
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, _SEALS)


def write(fd: int, data: bytes | bytearray) -> None:
    """All of it at the file's position.  Raises OSError."""
    with memoryview(data) as view:
        done = 0
        while done < len(view):
            done += os.write(fd, view[done:])


class Sealed:
    """A worker's side: a memfd with `size` bytes in it, to be sent with the reply and closed."""

    __slots__ = ("fd", "size")

    def __init__(self, fd: int, size: int) -> None:
        self.fd = fd
        self.size = size


class Kept:
    """A worker's side: the first `size` bytes of its kept memfd."""

    __slots__ = ("size",)

    def __init__(self, size: int) -> None:
        self.size = size


class _Window:
    """The kept memfd.  `view` is all of it, in the worker's own memory."""

    __slots__ = ("fd", "view")

    def __init__(self) -> None:
        self.fd = create()
        try:
            os.ftruncate(self.fd, KEPT)
            fcntl.fcntl(self.fd, fcntl.F_ADD_SEALS, _SIZED)
            self.view = memoryview(mmap.mmap(self.fd, KEPT))
        except (OSError, ValueError):
            os.close(self.fd)
            raise


_windows: list[_Window] = []  # the one of this process, once it was wanted


def window() -> _Window:
    """Raises OSError."""
    if not _windows:
        _windows.append(_Window())
    return _windows[0]


class Memory:
    """The front's side: the descriptor of a memfd, closed when nobody refers to it any more."""

    __slots__ = ("fd",)

    def __init__(self, fd: int) -> None:
        self.fd = fd

    def __del__(self) -> None:
        os.close(self.fd)


class Blob:
    """The front's side: bytes `start` to `start + size` of a memfd."""

    __slots__ = ("size", "_memory", "_start")

    def __init__(self, memory: Memory, start: int, size: int) -> None:
        self.size = size
        self._memory: Memory | None = memory
        self._start = start

    def read(self, offset: int, count: int) -> bytes:
        """Exactly those bytes.  Raises ProtocolViolation when they are not there."""
        assert self._memory is not None
        try:
            data = os.pread(self._memory.fd, count, self._start + offset)
        except OSError:
            data = b""
        if len(data) != count:
            raise ProtocolViolation("bulk data that cannot be read")
        return data

    def close(self) -> None:
        self._memory = None


def of(parts: list[bytes | bytearray]) -> Sealed | Kept:
    """These parts one after the other.  Raises OSError."""
    total = sum(map(len, parts))
    if total <= KEPT:
        view, at = window().view, 0
        for part in parts:
            view[at : at + len(part)] = part
            at += len(part)
        return Kept(total)
    fd = create()
    try:
        for part in parts:
            write(fd, part)
        seal(fd)
    except OSError:
        os.close(fd)
        raise
    return Sealed(fd, total)


def take(fd: int, *, kept: bool) -> Memory:
    """The descriptor that came with a reply, if it is what it should be.  Raises ProtocolViolation, and closes it."""
    memory = Memory(fd)
    try:
        seals = fcntl.fcntl(fd, fcntl.F_GET_SEALS)
    except OSError:  # EINVAL: no memfd
        raise ProtocolViolation("bulk data in something that is no memory") from None
    wanted = _SIZED if kept else _SEALS
    if seals & wanted != wanted:
        raise ProtocolViolation("bulk data that is not sealed")
    if kept and os.lseek(fd, 0, os.SEEK_END) != KEPT:
        raise ProtocolViolation("memory for bulk data of another size")
    return memory


def parts(memory: Memory, sizes: list[int], *, kept: bool) -> list[Blob]:
    """The parts of a reply's bulk data.  Raises ProtocolViolation when they are of no possible size."""
    if not sizes or any(size < 0 for size in sizes) or sum(sizes) > (KEPT if kept else LIMIT):
        raise ProtocolViolation("bulk data of no possible size")
    if not kept and os.lseek(memory.fd, 0, os.SEEK_END) != sum(sizes):
        raise ProtocolViolation("bulk data of another size")
    return [Blob(memory, sum(sizes[:i]), size) for i, size in enumerate(sizes)]
