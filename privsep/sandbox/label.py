"""SELinux: from the type that the exec of an entry script gave this process to the one of its row.

The type between the two may drop capabilities and become another user, which the row's own may not (selinux/README.md).  The change
goes one way; it is made when everything is dropped.  Without SELinux, or under a policy that does not know us, there is
nothing to change.

Facts: proc(5), /proc/PID/attr/current; a process of one thread may change its type where the policy has `dyntransition`, also
under no_new_privs (security/selinux/hooks.c, selinux_setprocattr); what is written has to begin at the file's start.
"""

from __future__ import annotations

import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

    from privsep.domains import Domain

_CURRENT: Final = "/proc/self/attr/current"
_ENFORCE: Final = "/sys/fs/selinux/enforce"
_TYPE: Final = 2  # user, role, type, level


def enter(row: Domain) -> None:
    """Raises OSError when the policy, or the kernel, refuses."""
    parts = _context()
    if _starts(row, parts):
        parts[_TYPE] = row.selinux_type.encode()
        fd = os.open(_CURRENT, os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.write(fd, b":".join(parts))
        finally:
            os.close(fd)


def in_force(row: Domain) -> bool:
    """Whether the process is about to have its row's type, and that means something.  Asked before `enter`."""
    return _starts(row, _context()) and _read(_ENFORCE) == b"1"


def _starts(row: Domain, parts: list[bytes]) -> bool:
    return len(parts) > _TYPE and parts[_TYPE] == row.selinux_start_type.encode()


def _context() -> list[bytes]:
    return _read(_CURRENT).rstrip(b"\0\n").split(b":")


def _read(path: str) -> bytes:
    """Nothing where there is no such file, or no security module with labels behind it (EINVAL)."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return b""
    try:
        return os.read(fd, 4096)
    except OSError:
        return b""
    finally:
        os.close(fd)
