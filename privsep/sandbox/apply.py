"""Make this process what its row says, and prove it.

The order matters.  While privileges last: the network namespace (needs SYS_ADMIN), the Landlock rules (the paths must be
opened), limits.  Then the bounding set (needs SETPCAP), groups and ids (need SETUID and SETGID), the remaining capability
sets, not dumpable, no_new_privs, the row's own SELinux type, which is allowed none of that.  After no_new_privs, because they
need it: Landlock, and last the filter, which forbids all of the above.  Both bind the read-back too, whose descriptor is opened
before.  What the kernel then says about the process is compared with the row; any difference ends it before it has seen a request.
"""

from __future__ import annotations

import os
import resource

import _prctl

from privsep.domains import LANDLOCK_UNDECLARED, Domain
from privsep.sandbox import caps, kernel, label, landlock, paths, seccomp

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Final

_LIMITS: Final = {
    "CORE": resource.RLIMIT_CORE,
    "FSIZE": resource.RLIMIT_FSIZE,
    "NOFILE": resource.RLIMIT_NOFILE,
    "NPROC": resource.RLIMIT_NPROC,
}


class NotAsDeclared(Exception):
    """The kernel's view of the process is not what its row says."""


class Walls:
    """What came of it.  `level`: Landlock's ABI, 0 none, `LANDLOCK_UNDECLARED`; `missing`: what could not be had, in words."""

    __slots__ = ("level", "missing", "kept")

    def __init__(self) -> None:
        self.level = LANDLOCK_UNDECLARED
        self.missing: list[str] = []
        self.kept: list[int] = []


def apply(
    row: Domain,
    *,
    uid: int,
    gid: int,
    privileged: bool,
    filters: str,
    root: str = "",
    environ: Mapping[str, str],
    settings: Mapping[str, str],
    granted: list[tuple[int, str]] | None = None,
) -> Walls:
    """Raises NotAsDeclared or OSError; either must end the process.

    `filters` is the folder of compiled filters, `root` stands before the row's paths (tests), `settings` are those of the
    policy slice, `granted` are (descriptor, letters) that stand in for the row's paths, which include them.
    Not `privileged` (the agent
    was not started by root): there is nothing to drop but what is left is taken away."""
    walls = Walls()
    status = os.open("/proc/self/status", os.O_RDONLY | os.O_CLOEXEC)
    os.umask(0o077)
    inherited = caps.filters(caps.parse_status(os.pread(status, 16384, 0)))
    program = filter_of(row, filters)
    rules = rules_of(row, root=root, environ=environ, settings=settings, granted=granted)
    if row.network == "none":
        _leave_network(walls)
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
    label.enter(row)
    if rules is not None:
        rules.enforce()
        walls.level = rules.level
        walls.kept = rules.kept
    if program is not None:
        kernel.install_filter(program)
    _compare(row, os.pread(status, 16384, 0), uid=uid, gid=gid, mask=mask, privileged=privileged, inherited=inherited)
    os.close(status)
    return walls


def _compare(row: Domain, text: bytes, *, uid: int, gid: int, mask: int, privileged: bool, inherited: int = 0) -> None:
    found = caps.parse_status(text)
    wrong = (
        caps.differences(found, uid=uid, gid=gid, mask=mask, filtered=row.filtered, inherited=inherited)
        if privileged
        else []
    )
    if found.get("Threads") != ["1"]:
        wrong.append("a thread was started before the walls, and is outside of them")
    if wrong:
        raise NotAsDeclared("; ".join(wrong))


def filter_of(row: Domain, folder: str) -> bytes | None:
    """The row's compiled filter; None where it has none.  Raises NotAsDeclared."""
    if not row.filtered:
        return None
    try:
        return seccomp.load(folder, row.name)
    except seccomp.NoFilter as e:
        raise NotAsDeclared(str(e)) from None


def rules_of(
    row: Domain,
    *,
    root: str,
    environ: Mapping[str, str],
    settings: Mapping[str, str],
    granted: list[tuple[int, str]] | None = None,
) -> landlock.Ruleset | None:
    """The row's Landlock rules, not in force yet; None where it has none."""
    if row.paths is None:
        return None
    rules = landlock.Ruleset(scoped=row.scoped)
    if granted is not None:
        for fd, letters in granted:
            rules.allow_open(fd, letters)
            os.close(fd)
        return rules
    rules.allow_all(paths.expand(row, root=root, environ=environ, settings=settings))
    return rules


def _leave_network(walls: Walls) -> None:
    try:
        kernel.unshare_network()
    except OSError as e:  # in a container, or not as root: the filter denies sockets all the same
        walls.missing.append(f"no network namespace of its own ({e.strerror})")


def _limits(row: Domain) -> None:
    if row.programs:  # what it starts inherits the hard limit, and may want a core
        resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))
    for name, value in row.limits.items():
        hard = resource.getrlimit(_LIMITS[name])[1]
        if hard != resource.RLIM_INFINITY:
            value = min(value, hard)
        resource.setrlimit(_LIMITS[name], (value, value))
