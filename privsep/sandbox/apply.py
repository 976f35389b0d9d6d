"""Make this process what its row says, and prove it.

The order matters: limits, bounding set (needs SETPCAP), groups and ids (need SETUID and SETGID), the remaining capability
sets, not dumpable, no_new_privs.  Landlock and seccomp come after no_new_privs, in `_walls`, so that they bind the
read-back too, whose descriptor is opened before.  What the kernel then says about the process is compared with the row; any
difference ends it before it has seen a request.
"""

from __future__ import annotations

import os
import resource
import stat

import _prctl

from privsep.domains import Domain
from privsep.sandbox import caps

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

# Limits of every child; a row that starts programs passes none of them on but CORE (its programs set their own).
_NOFILE: Final = {"front": 64, "thawer": 4200, "fs": 4200, "file": 1200, "exec": 4096}
_NOFILE_OTHERS: Final = 256


class NotAsDeclared(Exception):
    """The kernel's view of the process is not what its row says."""


def apply(row: Domain, *, uid: int, gid: int, privileged: bool) -> None:
    """Raises NotAsDeclared or OSError; either must end the process.

    Not `privileged` (the agent was not started by root): there is nothing to drop but what is left is taken away."""
    status = os.open("/proc/self/status", os.O_RDONLY | os.O_CLOEXEC)
    os.umask(0o077)
    _limits(row)
    mask = 0
    if privileged:
        last = caps.last_cap()
        mask = row.mask(caps.permitted(caps.parse_status(os.pread(status, 16384, 0))))
        caps.limit_bounding(mask, last)
        if uid != 0 and mask:
            _prctl.prctl(_prctl.PR_SET_KEEPCAPS, 1)
        os.setgroups([])
        os.setresgid(gid, gid, gid)
        os.setresuid(uid, uid, uid)
        caps.limit_to(mask, last)
    _prctl.prctl(_prctl.PR_SET_DUMPABLE, 0)
    _prctl.prctl(_prctl.PR_SET_NO_NEW_PRIVS, 1)
    _walls(row)
    text = os.pread(status, 16384, 0)
    os.close(status)
    if privileged:
        found = caps.differences(caps.parse_status(text), uid=uid, gid=gid, mask=mask)
        if found:
            raise NotAsDeclared("; ".join(found))


def _limits(row: Domain) -> None:
    if row.programs:  # what it starts inherits the hard limit, and may want a core
        resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))
        return
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    files = _NOFILE.get(row.name, _NOFILE_OTHERS)
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    if hard != resource.RLIM_INFINITY:
        files = min(files, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (files, files))
    if row.name == "front":
        # A log that is a regular file (-l) is the one thing it may make longer.
        if not stat.S_ISREG(os.fstat(2).st_mode):
            resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
        resource.setrlimit(resource.RLIMIT_NPROC, (0, 0))


def _walls(row: Domain) -> None:
    """The place of Landlock and seccomp: after no_new_privs, before the read-back."""
