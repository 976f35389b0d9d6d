"""What an agent could not have where it runs, as the kernel shows it from outside: for `privsep-gactl status`.

Nothing is dropped in silence: a process that cannot lock its memory, a kernel without all of Landlock, an out-of-memory score
that nobody set.  The agent works on, and is less than it could be.  Facts: VmLck in proc_pid_status(5), proc_pid_oom_score_adj(5).
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from privsep.domains import BY_NAME, LANDLOCK
from privsep.kernelview import Process, Report


def degraded(report: Report, processes: Iterable[Process]) -> list[str]:
    """One line each, beginning with the process's name."""
    found = []
    seen = {p.name: p for p in processes}
    supervisor = seen.get("supervisor")
    for process in seen.values():
        row = BY_NAME.get(process.name)
        if row is None:
            continue
        level = report.landlock.get(process.name, "none")
        if level.isdigit() and int(level) < LANDLOCK:
            found.append(f"{process.name}: this kernel has level {level} of {LANDLOCK} of Landlock")
        # fs locks its memory before its first freeze, the thawer when it starts.
        if row.locked and process.number("VmLck") == 0 and (report.frozen or process.name == "thawer"):
            found.append(f"{process.name}: its memory is not locked (LimitMEMLOCK= or CAP_IPC_LOCK is missing)")
        if row.locked and (score := _oom_score(process.pid)) is not None and score >= 0:
            found.append(f"{process.name}: it may be killed when memory is short (OOMScoreAdjust= is not set)")
        own, others = process.namespaces.get("net"), supervisor and supervisor.namespaces.get("net")
        if row.network == "none" and own is not None and own == others:
            found.append(f"{process.name}: it has no network namespace of its own")
    return found


def _oom_score(pid: int) -> int | None:
    try:
        return int(Path(f"/proc/{pid}/oom_score_adj").read_text())
    except OSError:
        return None
