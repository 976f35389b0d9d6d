"""Bulk data in a sealed memfd: made by a worker, read by the front.

The front may not open, create or enlarge anything, so the worker makes the memfd, sizes, fills and seals it.  The front takes a
descriptor for what it is only after it has seen the seals, which nothing but a memfd has, and that the size is
the promised one; then no bytes can change under its hands, nor can the file end early (memfd_create(2), fcntl(2)).

It reads with pread into small pieces: mapping would cost a page fault for each page and count as the front's own memory.
"""

from __future__ import annotations

import fcntl
import os

from protocol.errors import ProtocolViolation

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

LIMIT: Final = 72 * 1024 * 1024  # bytes; the largest that a command answers are 48 MiB

_SEALS: Final = fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL
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


class Blob:
    """The front's side: bytes `start` to `start + size` of a memfd; the last of those that share it closes it."""

    __slots__ = ("size", "_fd", "_start", "_owner")

    def __init__(self, fd: int, start: int, size: int, *, owner: bool) -> None:
        self.size = size
        self._fd = fd
        self._start = start
        self._owner = owner

    def read(self, offset: int, count: int) -> bytes:
        """Exactly those bytes.  Raises ProtocolViolation when the kernel cannot give them (a swap device that fails)."""
        try:
            data = os.pread(self._fd, count, self._start + offset)
        except OSError:
            data = b""
        if len(data) != count:
            raise ProtocolViolation("bulk data that cannot be read")
        return data

    def close(self) -> None:
        if self._owner:
            os.close(self._fd)
            self._owner = False


def of(parts: list[bytes | bytearray]) -> Sealed:
    """A sealed memfd with these parts one after the other.  Raises OSError."""
    fd = create()
    try:
        for part in parts:
            write(fd, part)
        seal(fd)
    except OSError:
        os.close(fd)
        raise
    return Sealed(fd, sum(map(len, parts)))


def open_all(fd: int | None, sizes: list[int]) -> list[Blob]:
    """The parts of a memfd that came with a reply; they own it.  Raises ProtocolViolation and closes it when it is not
    exactly what was announced."""
    if fd is None:
        raise ProtocolViolation("bulk data without a descriptor")
    try:
        if not sizes or any(size < 0 for size in sizes) or sum(sizes) > LIMIT:
            raise ProtocolViolation("bulk data of no possible size")
        try:
            seals = fcntl.fcntl(fd, fcntl.F_GET_SEALS)
        except OSError:  # EINVAL: no memfd
            seals = 0
        if seals & _SEALS != _SEALS:
            raise ProtocolViolation("bulk data that is not sealed")
        if os.lseek(fd, 0, os.SEEK_END) != sum(sizes):
            raise ProtocolViolation("bulk data of another size")
    except ProtocolViolation:
        os.close(fd)
        raise
    except OSError:
        os.close(fd)
        raise ProtocolViolation("bulk data that cannot be read") from None
    starts = [sum(sizes[:i]) for i in range(len(sizes))]
    last = len(sizes) - 1
    return [Blob(fd, at, size, owner=i == last) for i, (at, size) in enumerate(zip(starts, sizes, strict=True))]
