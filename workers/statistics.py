"""The kernel's counters of disks and processors: /proc/diskstats and /proc/stat to the members of the replies.  Pure.

Facts: kernel, Documentation/admin-guide/iostats.rst: a line has 14 fields, 18 since 4.18, 20 since 5.5; a partition's had 7
before 2.6.25.  proc(5).
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

# The columns behind major, minor and name.
_DISK: Final = (
    "read-ios read-merges read-sectors read-ticks write-ios write-merges write-sectors write-ticks ios-pgr total-ticks "
    "weight-ticks discard-ios discard-merges discard-sectors discard-ticks flush-ios flush-ticks"
).split()
_OLD_PARTITION: Final = ("read-ios", "read-sectors", "write-ios", "write-sectors")
# How many columns are understood together.
_STEPS: Final = (17, 15, 11)

_CPU: Final = "user nice system idle iowait irq softirq steal guest guestnice".split()
_LEAST: Final = 4
_UINT64: Final = (1 << 64) - 1


def parse_diskstats(text: bytes) -> list[dict[str, object]]:
    """One GuestDiskStatsInfo a line, in order; lines too short to be one are left out."""
    found: list[dict[str, object]] = []
    for line in text.split(b"\n"):
        fields = line.split()
        try:
            # Some kernels let the requests in flight go below zero: the peer's unsigned numbers wrap.
            numbers = [int(f) & _UINT64 for f in fields[3:]]
            major, minor = int(fields[0]), int(fields[1])
        except (ValueError, IndexError):
            continue
        columns = len(numbers)
        if columns < len(_OLD_PARTITION):
            continue
        stats: dict[str, int] = {}
        if columns == len(_OLD_PARTITION):
            stats = dict(zip(_OLD_PARTITION, numbers, strict=True))
        else:
            for step in _STEPS:
                if columns >= step:
                    stats = dict(zip(_DISK[:step], numbers, strict=False))
                    break
        name = fields[2].decode("utf-8", "surrogateescape")
        found.append({"name": name, "major": major, "minor": minor, "stats": stats})
    return found


def parse_cpustats(text: bytes, ticks: int) -> list[dict[str, object]]:
    """One GuestCpuStats for each cpuN line, in milliseconds; ticks is how many the kernel counts a second."""
    found: list[dict[str, object]] = []
    for line in text.split(b"\n"):
        if not line.startswith(b"cpu"):
            break  # the processors come first
        fields = line.split()
        number = fields[0][3:]
        if not number.isdigit() or len(fields) <= _LEAST:
            continue
        try:
            times = [int(f) * 1000 // ticks for f in fields[1 : 1 + len(_CPU)]]
        except ValueError:
            continue
        found.append({"type": "linux", "cpu": int(number), **dict(zip(_CPU, times, strict=False))})
    return found
