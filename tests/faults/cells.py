"""The fault matrix as data: who is hit, by which signal, when, and what has to be true then.  No I/O.

One run hits one set of processes at one moment while an ext4, an xfs and a btrfs are frozen together; it fills three cells.
The bounds are those of the theory of operation in `workers/fs.py` and of docs/architecture.md.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations, product
from signal import SIGKILL, SIGSEGV, SIGSTOP, SIGTERM, Signals
from typing import Final

from tests.support import faultpoint

FILE_SYSTEMS: Final = ("ext4", "xfs", "btrfs")
PROCESSES: Final = ("fs", "thawer", "front", "supervisor")
GROUP: Final = "group"  # kill(2) to the whole process group
VICTIMS: Final = (
    *PROCESSES,
    *("+".join(pair) for pair in combinations(PROCESSES, 2)),
    "fs+front+supervisor",  # all but the thawer
    "+".join(PROCESSES),
    GROUP,
)
SIGNALS: Final = (SIGKILL, SIGSTOP, SIGSEGV, SIGTERM)
PHASES: Final = ("before", "registered", "unsaid", "frozen", "thawing", "after")
MOMENTS: Final = {
    "before": "the thawer does not know yet what will be frozen",
    "registered": "thawer and journal know, FIFREEZE is next",
    "unsaid": "all are frozen, the host has no reply yet",
    "frozen": "the host was told, the freeze is committed",
    "thawing": "the host asked for the thaw, one of three is thawed",
    "after": "the thaw was answered",
}
POINTS: Final = {
    "before": faultpoint.BEFORE,
    "registered": faultpoint.REGISTERED,
    "unsaid": faultpoint.UNSAID,
    "thawing": faultpoint.THAWING,
}
FREEZES: Final = ("before", "registered", "unsaid")  # the freeze is under way

DEADLINE: Final = 60  # seconds of auto-thaw, out of the way ...
SHORT: Final = 1  # ... except where a stopped process is to cost the deadline
WATCHDOG: Final = 1.5  # seconds, the service manager's
AT_ONCE: Final = 1.0  # seconds: the bound of every death
AFTER_DEADLINE: Final = SHORT + 2.0

# What has to become of the file systems.
FREE: Final = "never blocked"
ON: Final = "the freeze goes on"
THAWED: Final = "thawed"
RESTART: Final = "thawed by the next start or by recover"


@dataclass(frozen=True, slots=True)
class Run:
    victims: str
    signal: Signals
    phase: str

    def __str__(self) -> str:
        return f"{self.victims} {self.signal.name} {self.phase}"

    @property
    def who(self) -> frozenset[str]:
        return frozenset(PROCESSES if self.victims == GROUP else self.victims.split("+"))

    @property
    def ends_agent(self) -> bool:
        """Whether the supervisor ends by it."""
        return "supervisor" in self.who and self.signal != SIGSTOP

    @property
    def manager(self) -> bool:
        """Whether only the service manager is left to thaw: thawer and supervisor are stopped."""
        return self.signal == SIGSTOP and {"thawer", "supervisor"} <= self.who

    @property
    def deadline(self) -> int:
        return SHORT if self.signal == SIGSTOP else DEADLINE

    def expected(self) -> tuple[str, float]:
        """What has to become of the file systems, and within how many seconds."""
        who, number = self.who, self.signal
        if self.phase == "after":
            return FREE, AT_ONCE
        if number == SIGTERM and "supervisor" not in who:  # ignored
            return (THAWED, AT_ONCE) if self.phase == "thawing" else (ON, AT_ONCE)
        if number == SIGTERM:
            return THAWED, AT_ONCE
        if number == SIGSTOP:
            return THAWED, AFTER_DEADLINE
        if who == frozenset(PROCESSES):
            return RESTART, AT_ONCE
        if self.phase != "thawing":
            if who == {"front"}:
                return ON, AT_ONCE
            if who <= {"fs", "front"} and self.phase == "frozen":
                return ON, AT_ONCE
        return THAWED, AT_ONCE


RUNS: Final = tuple(Run(v, s, p) for v, s, p in product(VICTIMS, SIGNALS, PHASES))
CELLS: Final = len(RUNS) * len(FILE_SYSTEMS)

# One of each kind that another code path takes; with the short deadline of stopped processes these take the most time.
SHORT_FORM: Final = tuple(
    Run(*row)
    for row in (
        ("fs", SIGKILL, "before"),
        ("fs", SIGKILL, "registered"),
        ("fs", SIGKILL, "unsaid"),
        ("fs", SIGSEGV, "frozen"),
        ("fs", SIGKILL, "thawing"),
        ("fs", SIGSTOP, "registered"),
        ("fs", SIGSTOP, "frozen"),
        ("thawer", SIGKILL, "before"),
        ("thawer", SIGKILL, "registered"),
        ("thawer", SIGSEGV, "unsaid"),
        ("thawer", SIGKILL, "frozen"),
        ("thawer", SIGKILL, "thawing"),
        ("thawer", SIGSTOP, "thawing"),
        ("thawer", SIGSTOP, "frozen"),
        ("front", SIGKILL, "unsaid"),
        ("front", SIGSTOP, "frozen"),
        ("supervisor", SIGKILL, "registered"),
        ("supervisor", SIGKILL, "frozen"),
        ("supervisor", SIGKILL, "thawing"),
        ("supervisor", SIGSTOP, "unsaid"),
        ("supervisor", SIGTERM, "registered"),
        ("supervisor", SIGTERM, "frozen"),
        ("fs+thawer", SIGKILL, "registered"),
        ("fs+thawer", SIGKILL, "frozen"),
        ("fs+thawer", SIGSTOP, "frozen"),
        ("fs+supervisor", SIGKILL, "unsaid"),
        ("thawer+supervisor", SIGKILL, "frozen"),
        ("fs+front", SIGKILL, "frozen"),
        ("fs+front+supervisor", SIGSTOP, "frozen"),
        ("fs+thawer+front+supervisor", SIGKILL, "unsaid"),
        ("fs+thawer+front+supervisor", SIGKILL, "frozen"),
        ("group", SIGKILL, "thawing"),
        ("group", SIGSTOP, "frozen"),
        ("group", SIGTERM, "frozen"),
        ("fs+thawer", SIGTERM, "frozen"),
    )
)
