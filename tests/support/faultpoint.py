"""Fault points: places in the real fs worker and the real thawer at which a test can hold them; and safeties to take away.

This runs inside the agent's processes, but only from entry scripts that tests write (`tests/support/faultkit.py`): `install`
wraps functions of the real modules before `privsep.child.main` is called.  Nothing of it is in the program.

A point costs nothing until the test raises its number on a shared page; then the first process that passes it says so on a
socket and waits for one byte.  Page and socket are opened before the walls go up.
"""

from __future__ import annotations

import _socket
import mmap
import os
from functools import wraps
from typing import Any

# Where a process can be held.
PLANNED = 1  # fs: mountinfo is read and the plan is made, nothing is open
BEFORE = 2  # fs: the flag is up, the thawer has nothing yet
REGISTERED = 3  # fs: thawer and journal know everything, no FIFREEZE yet
UNSAID = 4  # fs: FIFREEZE is done, the thawer does not know and the host has no reply
THAWING = 5  # thawer: one FITHAW of a requested thaw is done, the others are not

NAMES = {PLANNED: "planned", BEFORE: "before", REGISTERED: "registered", UNSAID: "unsaid", THAWING: "thawing"}

# Safeties that can be taken away, to see that the matrix notices.
NO_REGISTRATION = "the thawer is not told before FIFREEZE"
NO_END_OF_FILE = "the thawer does not thaw when fs or the supervisor is gone"
NO_DEATH_RULE = "the supervisor does nothing when fs and thawer are gone"
NO_JOURNAL = "fs does not journal what it freezes"
VARIANTS = (NO_REGISTRATION, NO_END_OF_FILE, NO_DEATH_RULE, NO_JOURNAL)


class _Reporter:
    def __init__(self, name: str, folder: str) -> None:
        self._socket = _socket.socket(_socket.AF_UNIX, _socket.SOCK_SEQPACKET | _socket.SOCK_CLOEXEC)
        self._socket.connect(f"{folder}/points")
        self._fd = self._socket.fileno()  # read and write are in every process's system call filter
        fd = os.open(f"{folder}/page", os.O_RDONLY | os.O_CLOEXEC)
        self._page = mmap.mmap(fd, mmap.PAGESIZE, mmap.MAP_SHARED, mmap.PROT_READ)
        os.close(fd)

    def point(self, number: int) -> None:
        if self._page[0] == number:
            os.write(self._fd, bytes((number,)))
            os.read(self._fd, 1)


def install(name: str, folder: str, variant: str = "") -> None:
    """Wrap the modules of this process.  `folder` is the test's, with the page and the socket."""
    if name == "supervisor":
        _supervisor(variant)
        return
    reporter = _Reporter(name, folder)
    if name == "fs":
        _fs(reporter, variant)
    elif name == "thawer":
        _thawer(reporter, variant)


def _fs(reporter: _Reporter, variant: str) -> None:
    from privsep import thawwire
    from workers import freezing, fs

    make_plan, begin, write, frozen = fs.make_plan, thawwire.Link.begin, freezing.write, thawwire.Link.frozen

    @wraps(make_plan)
    def planned(*args: Any) -> Any:
        made = make_plan(*args)
        reporter.point(PLANNED)
        return made

    @wraps(begin)
    def before(*args: Any) -> bool:
        reporter.point(BEFORE)
        return variant == NO_REGISTRATION or begin(*args)

    @wraps(write)
    def registered(own: Any, *records: str) -> None:
        if variant != NO_JOURNAL:
            write(own, *records)
        reporter.point(REGISTERED)

    @wraps(frozen)
    def unsaid(*args: Any) -> bool:
        reporter.point(UNSAID)
        return variant == NO_REGISTRATION or frozen(*args)

    fs.make_plan = planned
    freezing.write = registered
    thawwire.Link.begin = before  # type: ignore[method-assign]
    thawwire.Link.frozen = unsaid  # type: ignore[method-assign]


def _thawer(reporter: _Reporter, variant: str) -> None:
    from privsep import held, thawer, thawwire

    thaw, lapse = held.thaw, thawer.Thawer._lapse

    def thawing(fd: int) -> tuple[int, int]:
        done = thaw(fd)
        reporter.point(THAWING)
        return done

    def deaf(self: Any, reason: int, *, kill: bool = False) -> None:
        if reason not in (thawwire.REASON_UNCONFIRMED, thawwire.REASON_ORPHANED):
            lapse(self, reason, kill=kill)

    held.thaw = thawing
    if variant == NO_END_OF_FILE:
        thawer.Thawer._lapse = deaf  # type: ignore[method-assign]


def _supervisor(variant: str) -> None:
    if variant == NO_DEATH_RULE:
        from privsep.holder import Holder

        Holder.fs_died = lambda self: None  # type: ignore[method-assign]
        Holder.thawer_died = lambda self: None  # type: ignore[method-assign]
