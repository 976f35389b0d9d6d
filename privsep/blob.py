"""Bulk data in memory that a worker makes and the front reads.

The front may not open, create or enlarge anything, so the worker makes a memfd and passes its descriptor.  Three ways:

* *kept*: up to `KEPT` bytes of a reply go through one memfd of just that size, sealed against another, that the worker
  writes again and again; its descriptor comes with the first of them.  Making, filling and closing a new one costs more than
  all the copies of half a megabyte;
* *flow*: what is read from a file, however much, goes through the first `SLOTS` slots of the kept memfd, one after the other and
  round again: the worker reads the next while the front writes the last to the host.  A slot is taken, and said to be (`SPEND` at a
  time, at the end what is left), before it is written again.  So no large reply is anywhere as a whole, and a slow host stops
  the reading;
* *sealed*: more than that has a memfd of its own, sealed against every change, which is gone when the reply is written.

The front takes a descriptor only with those seals, which nothing but a memfd has: a read of any other file might wait for
ever, and memory that may become shorter would end a reply in the middle, or the front.
Whatever a worker does to the memory meanwhile, what comes out is base64 of bytes that it could have sent anyway.  The slots
are mapped, once for a worker's life; what is larger is read with pread in small pieces, since mapping costs a page fault for
each page.
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
    from collections.abc import Callable
    from typing import Final

KEPT: Final = 16 * 1024 * 1024  # bytes
SLOT: Final = 192 * 1024  # bytes: whole groups of three, encoded at a time
SLOTS: Final = 8
SPEND: Final = 4  # slots that are taken before the worker is told so, once for all of them
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


class Flow:
    """A worker's side: bytes that are still to be read, but for the first slot, which is filled.

    fill  reads the next bytes into that memory, less than it has room for only at the end; raises nothing
    rest  the reply's other members, when all was read"""

    __slots__ = ("fill", "rest")

    def __init__(self, fill: Callable[[memoryview], int], rest: Callable[[], dict[str, object]]) -> None:
        self.fill = fill
        self.rest = rest


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

    __slots__ = ("fd", "_view")

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self._view: memoryview | None = None

    def view(self, start: int, size: int) -> memoryview:
        """A part of the kept memory's slots, which are mapped: they are read again and again.  Raises OSError and ValueError."""
        if self._view is None:
            self._view = memoryview(mmap.mmap(self.fd, SLOTS * SLOT, mmap.MAP_SHARED, mmap.PROT_READ))
        return self._view[start : start + size]

    def __del__(self) -> None:
        os.close(self.fd)


class Blob:
    """The front's side: bytes `start` to `start + size` of a memfd; `mapped`: of its slots.  `kept`: it stands first there, alone."""

    __slots__ = ("size", "kept", "_memory", "_start", "_mapped")

    def __init__(self, memory: Memory, start: int, size: int, *, mapped: bool, kept: bool = False) -> None:
        self.size = size
        self.kept = kept
        self._memory: Memory | None = memory
        self._start = start
        self._mapped = mapped

    def read(self, offset: int, count: int) -> bytes | memoryview:
        """Exactly those bytes, until the worker is asked for others.  Raises ProtocolViolation when they are not there."""
        assert self._memory is not None
        data: bytes | memoryview
        try:
            if self._mapped:
                data = self._memory.view(self._start + offset, count)
            else:
                data = os.pread(self._memory.fd, count, self._start + offset)
        except (OSError, ValueError):
            data = b""
        if len(data) != count:
            raise ProtocolViolation("bulk data that cannot be read")
        return data

    def close(self) -> None:
        self._memory = None


class Stream:
    """The front's side of a flow: the slots of `member` in turn.

    release  is called when `SPEND` slots may be written again, and once more at the end if there are any left
    most     bytes that the host asked for
    total    bytes that have come
    rest     the other members; None until the end, and for ever when the flow was cut off"""

    __slots__ = ("member", "total", "rest", "ended", "_memory", "_most", "_release", "_sizes", "_slot", "_closed")

    def __init__(self, member: str, memory: Memory, release: Callable[[], None], most: int) -> None:
        """Raises ProtocolViolation."""
        if most < SLOT:
            raise ProtocolViolation("more bulk data than was asked for")
        self.member = member
        self.total = SLOT
        self.rest: dict[str, object] | None = None
        self.ended = False
        self._memory: Memory | None = memory
        self._most = min(most, LIMIT)
        self._release = release
        self._sizes = [SLOT]  # of the slots that have come and were not taken
        self._slot = 0  # the first of them
        self._closed = False

    @property
    def waiting(self) -> bool:
        """There is something to take: it is the host that is slow."""
        return bool(self._sizes)

    def came(self, size: int) -> None:
        """The worker has filled the next slot.  Raises ProtocolViolation."""
        if not 0 < size <= SLOT or self.total % SLOT or len(self._sizes) >= SLOTS:
            raise ProtocolViolation("bulk data that does not fit its slot")
        if self.total + size > self._most:
            raise ProtocolViolation("more bulk data than was asked for")
        self.total += size
        self._sizes.append(size)
        if self._closed:
            self._drop()

    def end(self, rest: dict[str, object] | None) -> None:
        """Nothing more comes; None: because the worker is gone."""
        self.rest = rest
        self.ended = True
        if self._closed:
            self._last()

    def take(self, encode: Callable[[memoryview], bytes]) -> bytes | None:
        """What `encode` makes of the next slot, b"" when that has not come yet, None at the end.  Raises ProtocolViolation."""
        if not self._sizes:
            if not self.ended:
                return b""
            self._last()
            return None
        assert self._memory is not None
        try:
            data = encode(self._memory.view(self._slot * SLOT, self._sizes[0]))
        except (OSError, ValueError):
            raise ProtocolViolation("bulk data that cannot be read") from None
        self._next()
        return data

    def close(self) -> None:
        """Nobody wants the rest; the worker reads it all the same, as it would have."""
        self._closed = True
        self._drop()
        self._memory = None
        if self.ended:
            self._last()

    def _drop(self) -> None:
        while self._sizes:
            self._next()

    def _next(self) -> None:
        del self._sizes[0]
        self._slot = (self._slot + 1) % SLOTS
        if self._slot % SPEND == 0:
            self._release()

    def _last(self) -> None:
        """All was taken: say so of what was not said yet."""
        if self._slot % SPEND:
            self._slot = 0
            self._release()


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
    mapped = kept and sum(sizes) <= SLOTS * SLOT
    alone = mapped and len(sizes) == 1
    return [Blob(memory, sum(sizes[:i]), size, mapped=mapped, kept=alone) for i, size in enumerate(sizes)]
