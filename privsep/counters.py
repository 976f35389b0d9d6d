"""A page of counters for each process, in memory that its process writes and the administrator reads.

The supervisor makes a memfd for each row and keeps it, so counts outlive the worker that made them and its successor goes on
with them; counting is an addition in shared memory and no system call.  `privsep-gactl metrics` reads the pages through
/proc/SUPERVISOR/fd: the supervisor itself never looks at a child's.  It is sealed against resizing, so nobody can make a reader
of its mapping fail (memfd_create(2), fcntl(2)).  What each number means is in `protocol/tally.py`.

Behind the numbers is room for names: how often a rule with an identifier of its own refused something (`refused_by`),
and behind those for the requests of the last minute where a policy has rates (policy/rates.py).
"""

from __future__ import annotations

import fcntl
import mmap
import os
import sys
import time

from protocol import tally

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Final

PREFIX: Final = "privsep-ga-counters-"  # and the row's name: what /proc/PID/fd shows
SLOT: Final = 128  # bytes for one rule: its count, then its identifier, padded with NULs
SLOTS: Final = 64
_NUMBERS: Final = 8 * tally.CELLS
_NAMES: Final = _NUMBERS + SLOT * SLOTS
COMMANDS: Final = 16  # of one domain, at most
RATE: Final = 256  # bytes for the requests of one command in the last minute
SIZE: Final = _NAMES + RATE * COMMANDS
OTHERS: Final = "(others)"  # the last slot: rules beyond the room there is

_F_ADD_SEALS: Final = 1033
_F_GET_SEALS: Final = 1034
_SEALS: Final = 0x1 | 0x2 | 0x4  # SEAL, SHRINK, GROW


class Page:
    """`numbers` is to be added to in place; `create` for the supervisor, `attach` for a child."""

    __slots__ = ("fd", "numbers", "_page", "_slots")

    def __init__(self, fd: int, page: mmap.mmap) -> None:
        self.fd = fd
        self._page = page
        self.numbers = memoryview(page)[:_NUMBERS].cast("Q")
        self._slots: dict[str, int] = {}

    @classmethod
    def create(cls, name: str) -> Page:
        fd = os.memfd_create(PREFIX + name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        os.ftruncate(fd, SIZE)
        fcntl.fcntl(fd, _F_ADD_SEALS, _SEALS)
        page = cls(fd, mmap.mmap(fd, SIZE))
        page.numbers[tally.SINCE] = time.time_ns() // 1000
        return page

    @classmethod
    def attach(cls, fd: int) -> Page:
        """Raises ValueError when the descriptor is not the sealed memory it should be."""
        if fcntl.fcntl(fd, _F_GET_SEALS) & _SEALS != _SEALS or os.fstat(fd).st_size != SIZE:
            raise ValueError("the counters are not sealed")
        page = cls(fd, mmap.mmap(fd, SIZE))
        for name, _ in rules_in(page._page[:]):  # a predecessor's go on
            page._slots[name] = len(page._slots)
        page._page[_NUMBERS] = page._page[_NUMBERS]  # the whole of it is there before anything is frozen
        page._page[_NAMES - 1] = page._page[_NAMES - 1]
        return page

    def seconds(self, command: int) -> memoryview:
        """The words by which the rate of a command is kept, by its place among those of its domain."""
        at = _NAMES + RATE * command
        return memoryview(self._page)[at : at + RATE].cast("I")

    def refused_by(self, rule: str) -> None:
        """Count a refusal under the rule's identifier."""
        slot = self._slots.get(rule)
        if slot is None:
            if len(self._slots) >= SLOTS - 1:
                rule, slot = OTHERS, SLOTS - 1
            else:
                slot = self._slots[rule] = len(self._slots)
            at = _NUMBERS + SLOT * slot
            name = rule.encode("utf-8", "replace")[: SLOT - 8]
            self._page[at + 8 : at + 8 + len(name)] = name
        at = _NUMBERS + SLOT * slot
        count = int.from_bytes(self._page[at : at + 8], sys.byteorder) + 1
        self._page[at : at + 8] = count.to_bytes(8, sys.byteorder)


def nowhere() -> list[int]:
    """Numbers that nobody reads, for a part that runs without its process."""
    return [0] * tally.CELLS


def numbers_in(data: bytes) -> memoryview:
    """The numbers of a page that was read."""
    return memoryview(data)[:_NUMBERS].cast("Q")


def rules_in(data: bytes) -> Iterator[tuple[str, int]]:
    """(identifier, count) of each rule on a page that was read."""
    for slot in range(SLOTS):
        at = _NUMBERS + SLOT * slot
        name = data[at + 8 : at + SLOT].rstrip(b"\0")
        if name:
            yield name.decode("utf-8", "replace"), int.from_bytes(data[at : at + 8], sys.byteorder)
