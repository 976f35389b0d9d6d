"""What the thawer holds: a descriptor of each superblock that is, or may be, frozen, and the threads that thaw them.

FITHAW can block for as long as a FIFREEZE on the same superblock is in flight, and that one may itself wait for another frozen
file system.  So it is never called by whoever looks at the clock: a thaw that was asked for runs in one thread, one superblock
after the other (threads cost more than they gain there), a thaw that must be in a thread for each superblock, none queued
behind another.
"""

from __future__ import annotations

import fcntl
import os
import stat

from privsep import thawwire as wire
from privsep.crew import THAWED, Crew, thaw

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Final

_BUSY: Final = -1


class Slot:
    """One registered descriptor.

    frozen   fs said that it froze it
    times    FITHAWs that succeeded since a thaw began
    errno    what the last one ended with, `_BUSY` while one is wanted
    kicked   a job of its own is on its way (never two: the threads are counted)
    """

    __slots__ = ("fd", "frozen", "times", "errno", "kicked")

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self.frozen = False
        self.times = 0
        self.errno = 0
        self.kicked = False

    @property
    def free(self) -> bool:
        """Whether its superblock is certainly not frozen now."""
        return self.errno in THAWED


def _thaw_slot(slot: Slot) -> None:
    times, number = thaw(slot.fd)
    slot.times += times
    slot.errno = number


def _thaw_kicked(slot: object) -> None:
    assert isinstance(slot, Slot)
    _thaw_slot(slot)
    slot.kicked = False


def _thaw_row(row: object) -> None:
    assert isinstance(row, list)
    for slot in row:
        _thaw_slot(slot)


class Held:
    """`event` is readable when threads have finished; `jobs` of them have not: until 0 no descriptor may be closed."""

    __slots__ = ("jobs", "_crew", "_slots")

    def __init__(self) -> None:
        self._crew = Crew()
        self._slots: list[Slot | None] = []  # None: given up, it is not ours to thaw
        self.jobs = 0

    def __len__(self) -> int:
        """How many were registered, with those that were given up since."""
        return len(self._slots)

    @property
    def event(self) -> int:
        return self._crew.event

    def collect(self) -> None:
        """After `event` was readable."""
        self.jobs -= self._crew.finished()

    # -- registration

    def prepare(self, count: int) -> None:
        """A thread for each of so many, and one.  Raises RuntimeError when the system has no more."""
        self._crew.ensure(count + 1)

    def add(self, fds: list[int]) -> None:
        """Own these.  Raises ValueError when one cannot be thawed; then they are all still the caller's."""
        for fd in fds:
            mode = os.fstat(fd).st_mode
            if not (stat.S_ISDIR(mode) or stat.S_ISREG(mode)) or _is_path_only(fd):
                raise ValueError("a descriptor cannot be thawed")
        self._slots += map(Slot, fds)

    def owns(self, fd: int) -> bool:
        return any(slot.fd == fd for slot in self.live)

    def mark(self, marks: bytes) -> None:
        """What fs says became of each, in the order of registration."""
        for index, mark in enumerate(marks):
            slot = self._slots[index]
            assert slot is not None
            if mark == wire.MARK_SKIPPED:
                os.close(slot.fd)
                self._slots[index] = None
            else:
                slot.frozen = mark == wire.MARK_FROZEN

    def clear(self) -> None:
        """Let go of all.  Only when no job is on its way."""
        for slot in self.live:
            os.close(slot.fd)
        self._slots = []

    # -- state

    @property
    def live(self) -> list[Slot]:
        return [slot for slot in self._slots if slot is not None]

    @property
    def free(self) -> bool:
        """Whether none is frozen, by the last FITHAW on each."""
        return all(slot.free for slot in self.live)

    @property
    def lost(self) -> bool:
        """Whether one that fs froze was not frozen any more when it was to be thawed."""
        return any(slot.frozen and not slot.times for slot in self.live)

    def results(self) -> bytes:
        """What to tell fs about each, in the order of registration."""
        return bytes(
            wire.RESULT_NONE if s is None else wire.RESULT_HELD if s.times else wire.RESULT_LOST for s in self._slots
        )

    # -- thawing

    def _give(self, job: Callable[[object], None], item: object) -> None:
        self.jobs += 1
        self._crew.give(job, item)

    def thaw_each(self, *, busy_only: bool = False) -> None:
        """FITHAW on each, or on those that wait for one, each in a thread of its own."""
        for slot in self.live:
            if not slot.kicked and (slot.errno == _BUSY or not busy_only):
                slot.kicked = True
                slot.errno = _BUSY
                self._give(_thaw_kicked, slot)

    def thaw_in_turn(self) -> None:
        """FITHAW on one after the other, in one thread; the first ones frozen, which sit on others, last."""
        row = self.live
        row.reverse()
        for slot in row:
            slot.errno = _BUSY
        if self.jobs:
            self.thaw_each()  # a lapse's jobs are still on their way: one more thread for all might not be there
        else:
            self._give(_thaw_row, row)


def _is_path_only(fd: int) -> bool:
    return bool(fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_PATH)
