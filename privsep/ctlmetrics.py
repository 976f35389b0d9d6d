"""`privsep-gactl metrics`: what the agent has counted, as a Prometheus text file.

The counts stand on pages of shared memory, one for each process, that the supervisor holds (`privsep/counters.py`); they are read
through /proc/SUPERVISOR/fd, so nobody is asked and nothing wakes up.  The rules that refuse are in the supervisor's status.

Format and names: <https://prometheus.io/docs/instrumenting/exposition_formats/>, <https://prometheus.io/docs/practices/naming/>.
For node_exporter's textfile collector: `privsep-gactl metrics --output /var/lib/node_exporter/privsep-ga.prom`.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Iterable, Mapping
from pathlib import Path

from privsep import counters
from privsep.kernelview import Report
from privsep.version import VERSION
from protocol import tally
from protocol.commands import COMMANDS, PEER_LEVEL

P = "privsep_ga_"
FROZEN_RULE = "frozen"
UNNAMED_RULE = "(unknown)"

Pages = Mapping[str, bytes]
Sample = tuple[dict[str, str], float | int]

# name, type, help: every metric there is.
METRICS = (
    ("up", "gauge", "Whether the agent runs."),
    ("build_info", "gauge", "Always 1; the version, the peer's level and the policy in force."),
    ("start_time_seconds", "gauge", "When the agent was started, in seconds since the epoch."),
    ("process_up", "gauge", "Whether the process runs now."),
    ("frozen", "gauge", "Whether file systems are frozen, or about to be."),
    ("commands_total", "counter", "Commands by how they ended, each counted by the process that decided."),
    ("invalid_requests_total", "counter", "Requests that are none, and unknown commands."),
    ("refusals_total", "counter", "Refused commands by the rule that refused them."),
    ("bulk_bytes_total", "counter", "Bytes of files, input and output, from (in) and to (out) the host."),
    ("worker_restarts_total", "counter", "Unexpected ends of processes."),
    ("freezes_total", "counter", "Freezes begun."),
    ("freeze_seconds_total", "counter", "Seconds during which file systems were frozen, or about to be."),
    ("freeze_lapses_total", "counter", "Freezes that did not hold until the host thawed."),
    ("recoveries_total", "counter", "Thaws from the journal, when the processes that should have thawed were gone."),
    ("audit_records_total", "counter", "Audit records made."),
    ("audit_records_dropped_total", "counter", "Audit records that the supervisor or the sink did not take."),
)


def read_pages(supervisor: int) -> dict[str, bytes]:
    """Name of the process -> its page.  Raises PermissionError, and FileNotFoundError when there is no such process."""
    found: dict[str, bytes] = {}
    folder = Path(f"/proc/{supervisor}/fd")
    for name in os.listdir(folder):
        try:
            target = os.readlink(folder / name)
            if target.startswith(f"/memfd:{counters.PREFIX}"):
                fd = os.open(folder / name, os.O_RDONLY | os.O_CLOEXEC)
                try:
                    data = os.pread(fd, counters.SIZE, 0)
                finally:
                    os.close(fd)
                if len(data) == counters.SIZE:
                    found[target.removeprefix(f"/memfd:{counters.PREFIX}").partition(" ")[0]] = data
        except FileNotFoundError:
            continue  # closed since
    return found


def samples(report: Report, pages: Pages, monotonic: float | None = None) -> dict[str, list[Sample]]:
    """Metric -> its samples."""
    now = time.monotonic() if monotonic is None else monotonic
    numbers = {name: counters.numbers_in(data) for name, data in pages.items()}
    supervisor = numbers.get("supervisor", memoryview(bytes(8 * tally.CELLS)).cast("Q"))

    def each(cell: int, *names: str) -> list[Sample]:
        return [({"process": n}, page[cell]) for n, page in numbers.items() if page[cell] or n in names]

    def total(cell: int) -> int:
        return sum(page[cell] for page in numbers.values())

    commands: list[Sample] = []
    moved: list[Sample] = []
    for command in COMMANDS:
        for place, result in enumerate(tally.RESULTS):
            count = total(command.cell + place)
            if result == "refused":
                count += total(command.cell + tally.FROZEN)
            commands.append(({"command": command.name, "result": result}, count))
        if command.takes:
            moved.append(({"command": command.name, "direction": "in"}, total(command.cell + tally.TAKEN)))
        if command.gives:
            moved.append(({"command": command.name, "direction": "out"}, total(command.cell + tally.GIVEN)))
    since = supervisor[tally.FROZEN_SINCE]
    frozen = supervisor[tally.FROZEN_US] / 1e6 + (max(0.0, now - since / 1e6) if since else 0.0)
    return {
        "up": [({}, 1)],
        "build_info": [({"version": VERSION, "peer": PEER_LEVEL, "policy": report.policy}, 1)],
        "start_time_seconds": [({}, supervisor[tally.SINCE] / 1e6)],
        "process_up": [({"process": name}, 1) for name in report.processes],
        "frozen": [({}, int(report.frozen))],
        "commands_total": commands,
        "invalid_requests_total": [({}, total(tally.INVALID))],
        "refusals_total": refusals(report, pages, numbers),
        "bulk_bytes_total": moved,
        "worker_restarts_total": [({"process": n}, report.restarts.get(n, 0)) for n in (*pages,) if n != "supervisor"],
        "freezes_total": [({}, supervisor[tally.FREEZES])],
        "freeze_seconds_total": [({}, frozen)],
        "freeze_lapses_total": [({}, total(tally.LAPSES))],
        "recoveries_total": [({}, supervisor[tally.RECOVERIES])],
        "audit_records_total": each(tally.RECORDS, "supervisor"),
        "audit_records_dropped_total": each(tally.DROPPED, "supervisor"),
    }


def refusals(report: Report, pages: Pages, numbers: Mapping[str, memoryview]) -> list[Sample]:
    """By command and rule: those of rules about arguments are counted by the rule, the others are the command's own rule's."""
    found: dict[tuple[str, str, str], int] = {}

    def add(command: str, rule: str, origin: str, count: int) -> None:
        if count > 0:
            found[command, rule, origin] = found.get((command, rule, origin), 0) + count

    within: dict[str, int] = {}
    for data in pages.values():
        for name, count in counters.rules_in(data):
            command, _, rule = name.partition(" ")
            within[command] = within.get(command, 0) + count
            add(command, rule or UNNAMED_RULE, report.origins.get(rule, ""), count)
    for command, count, rule, origin in report.refused:
        within[command] = within.get(command, 0) + count
        add(command, rule, origin, count)
    for row in COMMANDS:
        whole = sum(page[row.cell + tally.REFUSED] for page in numbers.values())
        rule, origin = report.rules.get(row.name, (UNNAMED_RULE, ""))
        add(row.name, rule, origin, whole - within.get(row.name, 0))
        add(row.name, FROZEN_RULE, "", sum(page[row.cell + tally.FROZEN] for page in numbers.values()))
    return [({"command": c, "rule": rule, "origin": origin}, count) for (c, rule, origin), count in found.items()]


def render(found: Mapping[str, Iterable[Sample]]) -> str:
    """The text: HELP, TYPE and samples of each metric that has any."""
    lines: list[str] = []
    for name, kind, text in METRICS:
        rows = list(found.get(name, ()))
        if not rows:
            continue
        lines += [f"# HELP {P}{name} {text}", f"# TYPE {P}{name} {kind}"]
        lines += [f"{P}{name}{_labels(labels)} {_value(value)}" for labels, value in rows]
    return "".join(f"{line}\n" for line in lines)


def _labels(labels: Mapping[str, str]) -> str:
    return "{" + ",".join(f'{key}="{_escaped(value)}"' for key, value in labels.items()) + "}" if labels else ""


def _escaped(value: str) -> str:
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


def _value(value: float | int) -> str:
    return str(value) if isinstance(value, int) else f"{value:.6f}".rstrip("0").rstrip(".")


def write(path: str, text: str) -> None:
    """Atomically, so that a collector never reads half of it.  Raises OSError."""
    fd, draft = tempfile.mkstemp(prefix=".privsep-ga-", dir=os.path.dirname(os.path.abspath(path)))
    try:
        with os.fdopen(fd, "w", encoding="utf-8") as file:
            os.fchmod(fd, 0o644)
            file.write(text)
        os.rename(draft, path)
    except OSError:
        os.unlink(draft)
        raise
