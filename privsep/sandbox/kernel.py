"""System calls that Python 3.11 has no function for: unshare, the three of Landlock, seccomp's filter; and malloc_trim(3).

Through `_ctypes`, the C half of the standard library's ctypes: the Python half builds types that nobody here needs (4 to 7 ms
and 1 MiB in each process; this costs 0.4 ms).  Tried and left: `_prctl`, which passes two arguments and no pointer, so it
can install no filter; `os.unshare` comes with Python 3.12; `array` and `struct` for a buffer's address import more than
this file does.

Facts: syscalls(2); the numbers of Landlock's are the same on every architecture, `unshare` has its own on each.
"""

from __future__ import annotations

import _ctypes
import os
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

UNSHARE: Final = {"x86_64": 272, "aarch64": 97}
LANDLOCK_CREATE_RULESET: Final = 444
LANDLOCK_ADD_RULE: Final = 445
LANDLOCK_RESTRICT_SELF: Final = 446

CLONE_NEWNET: Final = 0x40000000

_PR_SET_SECCOMP: Final = 22
_SECCOMP_MODE_FILTER: Final = 2
_INSTRUCTION: Final = 8  # bytes of one struct sock_filter


class _Long(_ctypes._SimpleCData):  # type: ignore[type-arg]
    _type_ = "l"


class _Pointer(_ctypes._SimpleCData):  # type: ignore[type-arg]
    _type_ = "z"


class _Function(_ctypes.CFuncPtr):
    _flags_ = _ctypes.FUNCFLAG_CDECL | _ctypes.FUNCFLAG_USE_ERRNO
    _restype_ = _Long


# RTLD_NOW; None is the program itself, and with it the C library.
_libc = _ctypes.dlopen(None, 2)  # type: ignore[arg-type]
_syscall = _Function(_ctypes.dlsym(_libc, "syscall"))
_prctl = _Function(_ctypes.dlsym(_libc, "prctl"))

try:
    _malloc_trim = _Function(_ctypes.dlsym(_libc, "malloc_trim"))
except OSError:  # another C library than glibc
    _malloc_trim = None  # type: ignore[assignment]


def give_back() -> None:
    """Memory that malloc keeps for later goes back to the system: 20 to 200 us."""
    if _malloc_trim is not None:
        _malloc_trim(_Long(0))


def _call(function: object, what: str, *args: int | bytes | None) -> int:
    given = [_Long(a) if isinstance(a, int) else a for a in args]
    result: int = function(*given)  # type: ignore[operator]
    if result < 0:
        number = _ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")
    return result


def syscall(number: int, *args: int | bytes | None) -> int:
    """The call's result.  Raises OSError.  `bytes` and None are passed as pointers; the kernel must only read them."""
    return _call(_syscall, f"system call {number}", number, *args)


def unshare_network() -> None:
    """An empty network namespace for this process.  Raises OSError (EPERM without CAP_SYS_ADMIN)."""
    _call(_syscall, "unshare", UNSHARE[os.uname().machine], CLONE_NEWNET)


def install_filter(program: bytes) -> None:
    """This thread's system calls, and those of all that it starts, pass the BPF program from now on.  Raises OSError.

    EINVAL: not a program that the kernel takes; EACCES: neither no_new_privs nor CAP_SYS_ADMIN."""
    count, rest = divmod(len(program), _INSTRUCTION)
    if rest or not count:
        raise OSError(22, "the filter is cut off")
    # struct sock_fprog: the number of instructions, then (aligned) their address.
    descriptor = count.to_bytes(2, sys.byteorder) + bytes(6) + bytes(_Pointer(program))
    _call(_prctl, "seccomp", _PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, descriptor, 0, 0)
