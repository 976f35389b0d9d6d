"""What is measured, in which unit, and what we hold ourselves to (docs/performance.md says why)."""

from __future__ import annotations

import statistics
from dataclasses import dataclass, field


@dataclass
class Row:
    """`bound`: ours divided by the peer's, at most where less is better and at least where more is; None: only told.

    `absolute`: the bound is on our own figure."""

    name: str
    unit: str
    bound: float | None = None
    more_is_better: bool = False
    absolute: bool = False
    ours: list[float] = field(default_factory=list)
    theirs: list[float] = field(default_factory=list)

    def add(self, who: str, value: float) -> None:
        (self.ours if who == "ours" else self.theirs).append(value)

    @property
    def our_median(self) -> float | None:
        return statistics.median(self.ours) if self.ours else None

    @property
    def their_median(self) -> float | None:
        return statistics.median(self.theirs) if self.theirs else None

    @property
    def ratio(self) -> float | None:
        """Ours to theirs."""
        if self.our_median is None or not self.their_median:
            return None
        return self.our_median / self.their_median

    @property
    def kept(self) -> bool | None:
        """Whether the bound is; None where there is none or nothing was measured."""
        value = self.our_median if self.absolute else self.ratio
        if self.bound is None or value is None:
            return None
        return value >= self.bound if self.more_is_better else value <= self.bound


def rows() -> dict[str, Row]:
    """All rows, empty, by name, in the order of the table."""
    return {
        row.name: row
        for row in (
            Row("start: exec to the first ping answered", "ms", 12),
            Row("first answer of a worker after that", "ms", 25, absolute=True),
            Row("ping, all on one processor", "us", 0.65),
            Row("sync, delimited", "us", 0.8),
            Row("pings, pipelined", "1/s", 2.5, more_is_better=True),
            Row("guest-info", "us", 0.35),
            Row("guest-get-host-name", "us", 1.3),
            Row("guest-get-osinfo, through a worker", "us", 1.8),
            Row("guest-get-vcpus, through a worker", "us", 1.8),
            Row("file read, 4 KiB", "1/s", 1.4, more_is_better=True),
            Row("file read, 64 KiB", "MiB/s", 5, more_is_better=True),
            Row("file read, 1 MiB", "MiB/s", 10, more_is_better=True),
            Row("processor time of a file read, 1 MiB", "us", 0.1),
            Row("file read, 48 MiB", "MiB/s", 10, more_is_better=True),
            Row("file write, 4 KiB", "1/s", 2, more_is_better=True),
            Row("file write, 64 KiB", "MiB/s", 7, more_is_better=True),
            Row("file write, 1 MiB", "MiB/s", 12, more_is_better=True),
            Row("file write, 16 MiB", "MiB/s", 15, more_is_better=True),
            Row("exec of true, until its status is known", "ms", 0.85),
            Row("exec of true, 100 at once", "ms", 0.7),
            Row("exec, 16 MiB of output captured", "MiB/s", 1.5, more_is_better=True),
            Row("2 interfaces", "ms", 2),
            Row("200 interfaces", "ms", 0.2),
            Row("2000 interfaces", "ms", 0.03),
            Row("fsinfo, 100 mounts", "ms", 0.6),
            Row("fsinfo, 500 mounts", "ms", 0.5),
            Row("freeze 1 file system", "ms", 0.3),
            Row("freeze 8 file systems", "ms", 0.05),
            Row("freeze 32 file systems", "ms", 0.025),
            Row("thaw 32 file systems", "ms", 3),
            Row("worst stall of an application, 512 MiB dirty", "ms", 0.05),
            Row("memory at rest", "MiB", 16, absolute=True),
            Row("memory with every worker up", "MiB", 64, absolute=True),
            Row("peak of front and file worker, 48 MiB read", "MiB", 0.35),
            Row("wake-ups at rest", "1/s", 1, absolute=True),
            Row("64 MiB of random bytes, then a sync", "s", 10, absolute=True),
        )
    }
