"""The process table of a running agent as the kernel tells it: uid, capabilities, walls, memory.

Facts: proc_pid_status(5) for Uid, CapPrm, CapEff, CapBnd, NoNewPrivs and Seccomp; proc_pid_smaps_rollup for Pss (KiB).
"""

from __future__ import annotations

import pwd
from pathlib import Path

from privsep.domains import BY_NAME, CAPABILITIES

_NAMES = {number: name for name, number in CAPABILITIES.items()}


class Process:
    """One of them.

    caps               the effective set; all_capabilities: what is in any of the five sets, as bit masks
    pss                its share of memory, KiB
    """

    def __init__(self, name: str, pid: int) -> None:
        self.name = name
        self.pid = pid
        status = dict(
            line.split(":\t", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines() if ":\t" in line
        )
        self.uid = int(status["Uid"].split()[1])
        self.caps = int(status["CapEff"], 16)
        self.permitted = int(status["CapPrm"], 16)
        self.all_capabilities = 0
        for field in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"):
            self.all_capabilities |= int(status[field], 16)
        self.no_new_privs = status["NoNewPrivs"] == "1"
        self.seccomp = status["Seccomp"] == "2"
        rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
        self.pss = next(int(line.split()[1]) for line in rollup.splitlines() if line.startswith("Pss:"))

    @staticmethod
    def ours() -> int:
        """What this process, and so the agent that it started, holds."""
        status = Path("/proc/self/status").read_text()
        return next(int(line.split()[1], 16) for line in status.splitlines() if line.startswith("CapPrm"))

    def as_declared(self) -> bool:
        """Whether its user and its capabilities are those of its row; the supervisor has no row."""
        row = BY_NAME.get(self.name)
        if row is None:
            return self.name == "supervisor"
        mask = row.mask(Process.ours())
        return self.caps == self.permitted == mask and (self.uid == 0) == (row.user == "root")


def names(mask: int) -> str:
    """A capability set in capabilities(7)'s words, without the CAP_."""
    if not mask:
        return "none"
    return " ".join(_NAMES.get(n, f"#{n}") for n in range(mask.bit_length()) if mask >> n & 1)


def read(processes: dict[str, int]) -> list[Process]:
    """In the table's order, the supervisor first."""
    order = ["supervisor", *BY_NAME]
    return [Process(name, processes[name]) for name in sorted(processes, key=order.index)]


def _user(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return "?"


def lines(processes: list[Process]) -> list[str]:
    rows = [("process", "pid", "uid", "user", "memory", "filter", "capabilities")]
    for p in processes:
        memory = f"{p.pss / 1024:.1f} MiB"
        walls = "seccomp" if p.seccomp else "-"
        rows.append((p.name, str(p.pid), str(p.uid), _user(p.uid), memory, walls, names(p.caps)))
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return [
        "   " + "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    ]
