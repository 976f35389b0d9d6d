"""What a tree of processes has of memory, how often it woke up, and what a host took of the processors meanwhile.

Distinct physical pages (proc_pid_pagemap(5)) and not the sum of the processes' resident sets, which counts each shared page
once a process; and not PSS, which shrinks when an unrelated process of the same program runs."""

from __future__ import annotations

import array
import contextlib
import re
from collections.abc import Iterable
from pathlib import Path

_PAGE = 4096
_PRESENT = 1 << 63
_FRAME = (1 << 55) - 1


def footprint(pids: Iterable[int]) -> float:
    """MiB of distinct physical pages.  Needs root."""
    frames: set[int] = set()
    for pid in pids:
        with contextlib.suppress(OSError), open(f"/proc/{pid}/pagemap", "rb", buffering=0) as pagemap:
            for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
                low, high = (int(part, 16) for part in line.split(" ", 1)[0].split("-"))
                if high >> 47:
                    continue  # vsyscall
                pagemap.seek(low // _PAGE * 8)
                entries = array.array("Q")
                entries.frombytes(pagemap.read((high - low) // _PAGE * 8))
                frames.update(entry & _FRAME for entry in entries if entry & _PRESENT)
    frames.discard(0)
    return len(frames) * _PAGE / (1 << 20)


def peak(pids: Iterable[int]) -> float:
    """MiB: the sum of the highest resident sets so far."""
    total = 0
    for pid in pids:
        found = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
        total += int(found[1]) if found else 0
    return total / 1024


def processor_time(pids: Iterable[int]) -> float:
    """Microseconds that they have run."""
    return sum(int(Path(f"/proc/{pid}/schedstat").read_text().split()[0]) for pid in pids) / 1000


def wakeups(pids: Iterable[int]) -> int:
    """How often their threads have begun to wait."""
    total = 0
    for pid in pids:
        for status in Path(f"/proc/{pid}/task").glob("*/status"):
            found = re.search(r"^voluntary_ctxt_switches:\s+(\d+)", status.read_text(), re.M)
            total += int(found[1]) if found else 0
    return total


class Stolen:
    """What the hypervisor has run on this machine's processors since then while something here wanted them (proc_stat(5): steal)."""

    def __init__(self) -> None:
        self._used, self._stolen = self._read()

    @staticmethod
    def _read() -> tuple[int, int]:
        ticks = [int(word) for word in Path("/proc/stat").read_text().splitlines()[0].split()[1:]]
        user, nice, system, _, _, irq, softirq, steal = ticks[:8]
        return user + nice + system + irq + softirq, steal

    @property
    def percent(self) -> float:
        used, stolen = self._read()
        used, stolen = used - self._used, stolen - self._stolen
        return 100 * stolen / (used + stolen) if used + stolen else 0.0
