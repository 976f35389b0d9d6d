"""`privsep-gactl status` and `selfcheck`: what `privsep/kernelview.py` sees of a running agent, for people and for programs.

The level of Landlock is the one thing that a process says of itself (the kernel tells it nowhere), and is marked so.
"""

from __future__ import annotations

import json
import sys
import time
from typing import Any

from privsep import kernelview
from privsep.degraded import degraded
from privsep.kernelview import Difference, Process, Report

_HEAD = "PROCESS PID UID HOLDS BOUND NNP SECCOMP LANDLOCK* NAMESPACES FDS MEMORY RESTARTS UPTIME".split()
_NOTE = "* as the process says itself: the kernel does not tell it"


def print_table(table: list[list[str]]) -> None:
    """Columns as wide as they need."""
    widths = [max(len(row[n]) for row in table) for n in range(len(table[0]))]
    for row in table:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def status(directory: str, report: Report, *, as_json: bool) -> int:
    """Print it; the exit status."""
    seen = list(kernelview.processes(report))
    supervisor = _supervisor(seen)
    rows = [plain(p, supervisor, report) for p in seen]
    left = None if report.deadline is None else round(report.deadline - time.monotonic(), 1)
    lacking = degraded(report, seen)
    if as_json:
        whole: dict[str, object] = {
            "rundir": directory,
            "policy": report.policy,
            "frozen": report.frozen,
            "thaws-in": left,
        }
        whole |= {"auto-thaw": report.auto_thaw, "degraded": lacking}
        if report.reloaded:
            whole["reload"] = {"number": report.reloaded, "result": report.result, "says": report.says}
        whole["outdated"] = report.outdated
        print(json.dumps({**whole, "processes": rows}, indent=2))
        return 0
    print(f"policy   {report.policy}")
    print(f"frozen   {'yes' if report.frozen else 'no'}{_until(report, left)}")
    if report.reloaded:
        print(f"reload   {report.result}{''.join(f'; {line}' for line in report.says)}")
    if report.outdated:
        print(
            f"outdated {' '.join(report.outdated)}: under an earlier policy until what they hold, or are asked, is over"
        )
    print(f"rundir   {directory}\n")
    print_table([_HEAD, *(_cells(row) for row in rows)])
    print(_NOTE)
    for row in rows:
        if row["selinux-type"] is not None:
            print(f"{row['name']}: SELinux type {row['selinux-type']}")
        held = row["capabilities"]
        for word in ("inheritable", "ambient"):
            if held[word]:
                print(f"{row['name']}: {word} {' '.join(held[word])}")
        if held["permitted"] != held["effective"]:
            print(f"{row['name']}: permitted {' '.join(held['permitted']) or 'none'}")
    for line in lacking:
        print(f"degraded: {line}")
    return 0


def _until(report: Report, left: float | None) -> str:
    """When a freeze ends that the host does not end."""
    if report.auto_thaw == 0:
        return "; warning: auto-thaw is 0, so a freeze that the host does not end lasts for ever"
    return "" if left is None else f", thaws by itself in {left} s"


def selfcheck(directory: str, report: Report, *, as_json: bool) -> int:
    """Compare with the privilege table, print the differences; exit status 1 when there is one."""
    seen = list(kernelview.processes(report))
    supervisor = _supervisor(seen)
    privileged = supervisor is not None and supervisor.number("Uid") == 0
    found: list[Difference] = []
    for process in seen:
        found += kernelview.differences(
            process, privileged=privileged, supervisor=supervisor, landlock=report.landlock.get(process.name)
        )
    found += kernelview.strangers(directory)
    if not privileged:
        print(
            "privsep-gactl: the agent was not started as root: users and capabilities are not compared", file=sys.stderr
        )
    if as_json:
        cells = [{"process": d.process, "cell": d.cell, "is": d.found, "should-be": d.wanted} for d in found]
        whole = {"processes": [p.name for p in seen], "privileged": privileged, "differences": cells}
        print(json.dumps(whole, indent=2))
    else:
        for difference in found:
            print(difference)
        if not found:
            print(f"{len(seen)} processes are as the table says: {' '.join(p.name for p in seen)}")
    return 1 if found else 0


def _supervisor(seen: list[Process]) -> Process | None:
    return next((p for p in seen if p.name == "supervisor"), None)


def plain(process: Process, supervisor: Process | None, report: Report) -> dict[str, Any]:
    """One process as plain values; None is what this user may not see."""
    level = report.landlock.get(process.name)
    return {
        "name": process.name,
        "pid": process.pid,
        "uid": process.number("Uid"),
        "gid": process.number("Gid"),
        "capabilities": {word: kernelview.names(process.mask(key)) for key, word in kernelview.SETS.items()},
        "no-new-privs": process.number("NoNewPrivs") == 1,
        "seccomp": process.number("Seccomp"),
        "seccomp-filters": process.number("Seccomp_filters"),
        "landlock": None if level is None else {"level": level, "self-reported": True},
        "selinux-type": process.label,
        "namespaces": process.namespaces,
        "own-namespaces": [
            ns
            for ns, link in process.namespaces.items()
            if link is not None and supervisor is not None and link != supervisor.namespaces[ns]
        ],
        "limits": process.limits,
        "files": process.files,
        "pss": process.pss,
        "rss": process.resident,
        "restarts": report.restarts.get(process.name, 0),
        "uptime": None if process.age is None else round(process.age, 1),
    }


def _cells(row: dict[str, Any]) -> list[str]:
    held = row["capabilities"]["effective"]
    filters = "" if row["seccomp-filters"] is None else f" ({row['seccomp-filters']})"
    seccomp = {None: "?", 0: "none", 1: "strict", 2: f"filter{filters}"}.get(row["seccomp"], str(row["seccomp"]))
    return [
        row["name"],
        str(row["pid"]),
        str(row["uid"]),
        _listed(held),
        _listed(row["capabilities"]["bounding"]),
        "yes" if row["no-new-privs"] else "no",
        seccomp,
        "-" if row["landlock"] is None else row["landlock"]["level"],
        ",".join(row["own-namespaces"]) or "-",
        "?" if row["files"] is None else str(row["files"]),
        "?" if row["pss"] is None else f"{row['pss'] / 1048576:.1f} MiB",
        str(row["restarts"]),
        "?" if row["uptime"] is None else f"{row['uptime']:.0f} s",
    ]


def _listed(names: list[str]) -> str:
    """A set in a cell: where nearly everything is held, what is not."""
    lacking = set(kernelview.every()) - set(names)
    if names != ["ALL"] and len(lacking) < len(names):
        return "ALL but " + ",".join(sorted(lacking))
    return ",".join(names) or "none"
