"""A running agent as the kernel sees it, and how that compares with the privilege table.

The agent's own word is used for two things only: which process is which (`status` in the runtime directory, written by the
supervisor; that each is the supervisor's child, and that there are no others, is seen), and the level of Landlock, which the kernel
does not tell.  All else is read from /proc, proc(5); what this user may not read is None.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import _prctl

from privsep.accounts import resolve
from privsep.domains import BY_NAME, CAPABILITIES, SUPERVISOR_CAPS, Domain
from privsep.rundir import NAME

SETS = {
    "CapEff": "effective",
    "CapPrm": "permitted",
    "CapInh": "inheritable",
    "CapBnd": "bounding",
    "CapAmb": "ambient",
}
NAMESPACES = ("net", "mnt", "pid", "user", "ipc", "uts")
# proc_pid_limits(5): the limits that rows have, by the kernel's names.
LIMITS = {"CORE": "Max core file size", "FSIZE": "Max file size", "NOFILE": "Max open files", "NPROC": "Max processes"}
SUPERVISOR_TYPE = "privsep_ga_t"  # selinux/privsep_ga.te
_UNLIMITED = 1 << 64
_SETTLED = 1.0  # seconds after which a process that starts or ends has done so


class NoAgent(Exception):
    """There is no running agent to look at; the text says where one was looked for."""


@dataclass(slots=True)
class Report:
    """The supervisor's status file."""

    policy: str = ""
    frozen: bool = False
    deadline: float | None = None  # CLOCK_MONOTONIC seconds
    auto_thaw: float | None = None  # seconds, 0: never; None: nothing can be frozen
    processes: dict[str, int] = field(default_factory=dict)
    restarts: dict[str, int] = field(default_factory=dict)
    landlock: dict[str, str] = field(default_factory=dict)
    started: int = 0  # of the supervisor, clock ticks since boot
    outdated: list[str] = field(default_factory=list)  # processes that were told an earlier policy
    reloads: int = 0  # that have begun
    reloaded: int = 0  # the number of the last one that ended
    result: str = ""  # how (privsep/reload.py)
    says: list[str] = field(default_factory=list)
    audit: str = ""  # the sink of audit records
    rules: dict[str, tuple[str, str]] = field(default_factory=dict)  # refused command -> (rule, origin)
    origins: dict[str, str] = field(default_factory=dict)  # rule about arguments -> where it stands
    # (command, refusals, rule, origin) of policies that were in force before
    refused: list[tuple[str, int, str, str]] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Difference:
    """A cell that is not as the privilege table has it."""

    process: str
    cell: str
    found: object
    wanted: object

    def __str__(self) -> str:
        return f"{self.process}: {self.cell} is {self.found}, not {self.wanted}"


@dataclass(slots=True)
class Process:
    """One process of the agent."""

    name: str
    pid: int
    status: dict[str, list[str]]
    namespaces: dict[str, str | None]
    files: int | None
    pss: int | None  # bytes
    age: float | None  # seconds
    limits: dict[str, int] = field(default_factory=dict)  # hard ones
    resident: int | None = None  # bytes
    label: str | None = None  # SELinux type

    def number(self, key: str, base: int = 10) -> int | None:
        words = self.status.get(key, [])
        return int(words[0], base) if words else None

    def mask(self, key: str) -> int:
        return self.number(key, 16) or 0


def parse_report(text: str) -> Report:
    """Lines that are not known are passed over: a newer agent may say more."""
    report = Report()
    for line in text.splitlines():
        match line.split(" "):
            case ["process", name, pid] if pid.isdigit():
                report.processes[name] = int(pid)
            case ["restarts", name, count] if count.isdigit():
                report.restarts[name] = int(count)
            case ["landlock", name, level]:
                report.landlock[name] = level
            case ["started", ticks] if ticks.isdigit():
                report.started = int(ticks)
            case ["outdated", name]:
                report.outdated.append(name)
            case ["reload-begun", count] if count.isdigit():
                report.reloads = int(count)
            case ["reload", count, result] if count.isdigit():
                report.reloaded, report.result = int(count), result
            case ["reload-says", *words]:
                report.says.append(" ".join(words))
            case ["audit", *words]:
                report.audit = " ".join(words)
            case ["rule", command, rule, *words]:
                report.rules[command] = rule, " ".join(words)
            case ["origin", rule, *words]:
                report.origins[rule] = " ".join(words)
            case ["refused", command, count, rule, *words] if count.isdigit():
                report.refused.append((command, int(count), rule, " ".join(words)))
            case ["frozen", flag]:
                report.frozen = flag == "1"
            case ["auto-thaw", seconds]:
                report.auto_thaw = float(seconds)
            case ["deadline", seconds]:
                report.deadline = float(seconds)
            case ["policy", *words]:
                report.policy = " ".join(words)
    return report


def find(directory: str) -> tuple[str, Report]:
    """The runtime directory and the report of the agent there, or of the only one below it.  Raises NoAgent."""
    reports = {path: report for path in (directory, *below(directory)) if (report := _report(path)) is not None}
    alive = [path for path, report in reports.items() if _is_alive(report.processes.get("supervisor"))]
    if not reports:
        raise NoAgent(f"no agent runs: there is no status in {directory}")
    if not alive:
        raise NoAgent(f"no agent runs: the status in {next(iter(reports))} is of one that was killed")
    if len(alive) > 1 and alive[0] != directory:
        raise NoAgent(f"several agents run; choose one with --rundir: {' '.join(alive)}")
    return alive[0], reports[alive[0]]


def _report(directory: str) -> Report | None:
    try:
        return parse_report((Path(directory) / "status").read_text(encoding="utf-8", errors="replace"))
    except (FileNotFoundError, NotADirectoryError):
        return None


def below(directory: str) -> list[str]:
    """The runtime directories of agents with a state folder of their own."""
    if os.path.basename(directory) != NAME or not os.path.isdir(directory):
        return []
    return sorted(entry.path for entry in os.scandir(directory) if entry.is_dir(follow_symlinks=False))


def _is_alive(pid: int | None) -> bool:
    return pid is not None and os.path.isdir(f"/proc/{pid}")


def processes(report: Report) -> Iterator[Process]:
    """Each process of the report that is there, supervisor first."""
    for name, pid in report.processes.items():
        try:
            yield look(name, pid)
        except (FileNotFoundError, ProcessLookupError):
            continue  # it ended since


def look(name: str, pid: int) -> Process:
    """Raises FileNotFoundError or ProcessLookupError when there is no such process."""
    base = Path(f"/proc/{pid}")
    status = {
        key: rest.split() for key, _, rest in (ln.partition(":") for ln in (base / "status").read_text().splitlines())
    }
    return Process(
        name,
        pid,
        status,
        {ns: _link(base / "ns" / ns) for ns in NAMESPACES},
        _count(base / "fd"),
        _pss(base / "smaps_rollup"),
        _age(base / "stat"),
        _limits(base / "limits"),
        int(status["VmRSS"][0]) * 1024 if "VmRSS" in status else None,
        _label(base / "attr" / "current"),
    )


def _link(path: Path) -> str | None:
    try:
        return os.readlink(path)
    except PermissionError:
        return None


def _count(path: Path) -> int | None:
    try:
        return len(os.listdir(path))
    except PermissionError:
        return None


def _pss(path: Path) -> int | None:
    try:
        for line in path.read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) * 1024
    except OSError:  # not ours to read, or a kernel without it
        pass
    return None


def _age(path: Path) -> float | None:
    started = int(path.read_text().rpartition(")")[2].split()[19]) / os.sysconf("SC_CLK_TCK")
    return max(0.0, time.clock_gettime(time.CLOCK_BOOTTIME) - started)


def _label(path: Path) -> str | None:
    """The type of an SELinux context; None where another security module, or none, answers."""
    try:
        parts = path.read_text().rstrip("\0\n").split(":")
    except OSError:
        return None
    return parts[2] if len(parts) >= 3 else None


def _limits(path: Path) -> dict[str, int]:
    found: dict[str, int] = {}
    try:
        lines = path.read_text().splitlines()
    except PermissionError:
        return found
    for name, title in LIMITS.items():
        for line in lines:
            if line.startswith(title):
                hard = line[len(title) :].split()[1]
                found[name] = _UNLIMITED if hard == "unlimited" else int(hard)
    return found


def children(pid: int) -> set[int]:
    """The processes that its threads started and that are still there (proc_pid_task_children(5))."""
    found: set[int] = set()
    try:
        for task in os.listdir(f"/proc/{pid}/task"):
            found.update(map(int, Path(f"/proc/{pid}/task/{task}/children").read_text().split()))
    except (FileNotFoundError, ProcessLookupError):
        pass  # it ended, or this kernel has no such file
    return found


def strangers(directory: str, wait: float = _SETTLED) -> list[Difference]:
    """Children of the supervisor that its status does not name.  One that is starting or ending is given time."""
    seen: set[int] | None = None
    for pause in (0.0, wait):
        if seen == set():
            break
        time.sleep(pause)
        report = _report(directory)
        if report is None or "supervisor" not in report.processes:
            return []
        now = children(report.processes["supervisor"]) - set(report.processes.values())
        seen = now if seen is None else seen & now
    return [Difference(f"process {pid}", "name", "not in the agent's status", "a row's") for pid in sorted(seen or ())]


def names(mask: int) -> list[str]:
    """The capabilities of a mask by name; those without one here by number; `ALL` where nothing is missing."""
    if mask and mask == full_mask():
        return ["ALL"]
    return [_NAMES.get(n, str(n)) for n in range(64) if mask >> n & 1]


_NAMES = {
    value: name.removeprefix("CAP_")
    for name, value in vars(_prctl).items()
    if name.startswith("CAP_") and name not in ("CAP_EFFECTIVE", "CAP_PERMITTED", "CAP_INHERITABLE", "CAP_LAST_CAP")
}


def every() -> list[str]:
    """The names of all capabilities of this kernel."""
    mask = full_mask()
    return [_NAMES.get(n, str(n)) for n in range(64) if mask >> n & 1]


def full_mask() -> int:
    with open("/proc/sys/kernel/cap_last_cap", encoding="ascii") as f:
        return (1 << int(f.read()) + 1) - 1


def differences(
    process: Process, *, privileged: bool, supervisor: Process | None = None, landlock: str | None = None
) -> list[Difference]:
    """The cells that are not as the table has them; empty when all are.

    `supervisor` is what an own namespace, an own filter and a child are told by; `landlock` the level that it reported."""
    row = BY_NAME.get(process.name)
    if process.name == "supervisor":
        return _of_supervisor(process) if privileged else []
    if row is None:
        return [Difference(process.name, "name", "unknown", "a row's")]
    found: list[Difference] = []

    def compare(cell: str, is_: object, want: object) -> None:
        if is_ != want:
            found.append(Difference(process.name, cell, is_, want))

    compare("NoNewPrivs", process.number("NoNewPrivs"), 1)
    if row.filtered:
        compare("Seccomp", process.number("Seccomp"), 2)
    for name, value in row.limits.items():
        if name in process.limits and process.limits[name] > value:
            compare(LIMITS[name], process.limits[name], value)
    if row.paths is not None and landlock in ("0", "none"):
        compare("Landlock (as it says itself)", landlock, "in force")
    if supervisor is not None:
        _beside(row, process, supervisor, compare, privileged=privileged)
    if not privileged:
        return found
    held, bound = process.mask("CapEff"), process.mask("CapBnd")
    compare("inheritable", names(process.mask("CapInh")), [])
    compare("ambient", names(process.mask("CapAmb")), [])
    ids, _ = resolve(Path("/etc/passwd").read_bytes())
    uid, gid = ids[row.name]
    compare("Uid", process.status["Uid"], [str(uid)] * 4)
    compare("Gid", process.status["Gid"], [str(gid)] * 4)
    compare("Groups", process.status["Groups"], [])
    # ALL is whatever the agent itself was given, which cannot be told from outside.
    want = row.mask(held)
    compare("effective", names(held), names(want))
    compare("permitted", names(process.mask("CapPrm")), names(want))
    compare("bounding", names(bound), names(want))
    return found


def _beside(
    row: Domain,
    process: Process,
    supervisor: Process,
    compare: Callable[[str, object, object], None],
    *,
    privileged: bool,
) -> None:
    """What shows in comparison with the supervisor only."""
    compare("PPid", process.number("PPid"), supervisor.pid)
    if supervisor.label == SUPERVISOR_TYPE:  # else the policy in force, if any, is not the agent's
        compare("SELinux type", process.label, row.selinux_type)
    inherited, filters = supervisor.number("Seccomp_filters"), process.number("Seccomp_filters")
    if inherited and row.name == "front":
        inherited -= 1  # the first is started before the supervisor has its own
    if row.filtered and inherited is not None and filters is not None and filters <= inherited:
        compare("Seccomp_filters", filters, f"more than the supervisor's {inherited}")
    here, there = process.namespaces.get("net"), supervisor.namespaces.get("net")
    if privileged and here is not None and there is not None:
        compare("network namespace", "the supervisor's" if here == there else "its own", _NETWORK[row.network])


_NETWORK = {"none": "its own", "host": "the supervisor's"}


def _of_supervisor(process: Process) -> list[Difference]:
    """At least its own capabilities; beyond them whatever the enabled rows need, which is not told from outside."""
    held = process.mask("CapEff")
    cells: list[tuple[str, object, object]] = [
        ("Uid", process.status["Uid"], ["0"] * 4),
        ("missing capabilities", [c for c in SUPERVISOR_CAPS if not held >> CAPABILITIES[c] & 1], []),
        ("permitted", names(process.mask("CapPrm")), names(held)),
        ("bounding", names(process.mask("CapBnd")), names(held)),
        ("inheritable", names(process.mask("CapInh")), []),
        ("ambient", names(process.mask("CapAmb")), []),
    ]
    return [Difference("supervisor", cell, found, wanted) for cell, found, wanted in cells if found != wanted]
