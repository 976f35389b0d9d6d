"""Landlock: which paths a process may open, for what; by the kernel's own interface, as far as the running kernel goes.

Every right that the kernel knows is handled, hence denied, and only what a row grants is given back.  The kernel says how far
it goes by a number, its ABI; a newer one than this file knows is used up to what is known here.  What was reached is
reported: a row is as declared on an older kernel too, less what that kernel cannot deny.

No library: python-landlock and the like are not packaged by distributions, and four system calls do not need one.

Facts: kernel, Documentation/userspace-api/landlock.rst and include/uapi/linux/landlock.h.  ABI 1 is Linux 5.13; 2 (refer) 5.19;
3 (truncate) 6.2; 4 (TCP) 6.7; 5 (ioctl on devices) 6.10; 6 (scopes) 6.12.  Opening for reading wants READ_FILE for a file and
READ_DIR for a folder; O_PATH, stat and statvfs are not covered; neither are UDP and sockets that have a path.
"""

from __future__ import annotations

import errno
import os
import stat
import sys

from privsep.domains import LANDLOCK
from privsep.sandbox import kernel

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Final

# A row's letters -> rights on files, and on folders and all below them.
_EXECUTE, _WRITE, _READ, _LIST = 1 << 0, 1 << 1, 1 << 2, 1 << 3
_REMOVE_DIR, _REMOVE_FILE = 1 << 4, 1 << 5
_MAKE_CHAR, _MAKE_DIR, _MAKE_REG, _MAKE_SOCK, _MAKE_FIFO, _MAKE_BLOCK, _MAKE_SYM = (1 << n for n in range(6, 13))
_REFER, _TRUNCATE, _IOCTL_DEV = 1 << 13, 1 << 14, 1 << 15
LETTERS: Final = {
    "l": _LIST,
    "r": _READ,
    "w": _WRITE | _TRUNCATE,
    "x": _EXECUTE,
    "c": _MAKE_REG | _REMOVE_FILE,  # create, remove and rename files
    "d": _MAKE_DIR,
    "n": _REMOVE_DIR | _MAKE_SYM | _MAKE_SOCK | _MAKE_FIFO | _REFER,  # what is left of names, device nodes aside
    "i": _IOCTL_DEV,
}
_ON_FILES: Final = _EXECUTE | _WRITE | _READ | _TRUNCATE | _IOCTL_DEV
_HANDLED: Final = {1: (1 << 13) - 1, 2: _REFER, 3: _TRUNCATE, 5: _IOCTL_DEV}
_TCP: Final = 1 << 0 | 1 << 1  # bind, connect
_SCOPES: Final = 1 << 0 | 1 << 1  # abstract unix sockets, signals

_VERSION: Final = 1  # flag of landlock_create_ruleset: say which ABI
_PATH_BENEATH: Final = 1


def supported() -> int:
    """The level that can be reached here; 0: none."""
    try:
        return min(kernel.syscall(kernel.LANDLOCK_CREATE_RULESET, None, 0, _VERSION), LANDLOCK)
    except OSError as e:
        if e.errno in (errno.ENOSYS, errno.EOPNOTSUPP):
            return 0
        raise


def rights(level: int) -> int:
    """Every right on files that this level can deny."""
    return sum(bits for since, bits in _HANDLED.items() if since <= level)


def _integer(value: int, size: int) -> bytes:
    return value.to_bytes(size, sys.byteorder)


class Ruleset:
    """Rules that are made while paths can still be opened, and bind when `enforce` is called after no_new_privs.

    `kept` are descriptors that must stay open: what a path below /proc/PID stands for is the process's folder only as long as
    somebody has it open."""

    __slots__ = ("level", "_fd", "_handled", "kept")

    def __init__(self, *, network: bool = False, scoped: bool = True) -> None:
        """Not `network`: TCP is denied.  `scoped`: no abstract socket and no signal goes out."""
        self.level = supported()
        self._fd = -1
        self.kept: list[int] = []
        self._handled = rights(self.level)
        if not self.level:
            return
        attributes = _integer(self._handled, 8)
        if self.level >= 4:
            attributes += _integer(0 if network else _TCP, 8)
        if self.level >= 6:
            attributes += _integer(_SCOPES if scoped else 0, 8)
        self._fd = kernel.syscall(kernel.LANDLOCK_CREATE_RULESET, attributes, len(attributes), 0)

    def allow(self, path: str, letters: str) -> bool:
        """Give what the letters say on the path and below it; False when there is no such path.  Raises OSError."""
        if self._fd < 0:
            return True
        try:
            fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
        except (FileNotFoundError, NotADirectoryError):
            return False
        try:
            self.allow_open(fd, letters)
        finally:
            if path.startswith("/proc/self"):
                self.kept.append(fd)
            else:
                os.close(fd)
        return True

    def allow_open(self, fd: int, letters: str) -> None:
        """The same for what an O_PATH descriptor was opened on.  Raises OSError."""
        if self._fd < 0:
            return
        granted = sum(LETTERS[letter] for letter in letters) & self._handled
        if not stat.S_ISDIR(os.fstat(fd).st_mode):
            granted &= _ON_FILES
        if granted:
            rule = _integer(granted, 8) + _integer(fd, 4)
            kernel.syscall(kernel.LANDLOCK_ADD_RULE, self._fd, _PATH_BENEATH, rule, 0)

    def allow_all(self, paths: Iterable[tuple[str, str]]) -> None:
        """(path, letters) each; what is not there needs no rule."""
        for path, letters in paths:
            self.allow(path, letters)

    def close(self) -> None:
        """It will not be enforced here."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def enforce(self) -> None:
        """Bind this thread and all that it starts.  Raises OSError (EPERM without no_new_privs)."""
        if self._fd >= 0:
            kernel.syscall(kernel.LANDLOCK_RESTRICT_SELF, self._fd, 0)
            os.close(self._fd)
            self._fd = -1
