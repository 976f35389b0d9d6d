"""Puts figures of docs/performance.md and docs/vm-table.md into the README: `python -m tests.support.readme`.

A test says whether they are current."""

from __future__ import annotations

import re
from pathlib import Path

TREE = Path(__file__).resolve().parents[2]
README = TREE / "README.md"
MEASURED = TREE / "docs" / "performance.md"
BEGIN = "<!-- from docs/performance.md by tests/support/readme.py -->\n"
GUESTS = TREE / "docs" / "vm-table.md"
BEGIN_GUESTS = "<!-- from docs/vm-table.md by tests/support/readme.py -->\n"
END = "<!-- end -->\n"

# Row of the measurements -> what the README calls it.  Good news and bad.
ROWS = {
    "freeze 32 file systems": "freeze of 32 file systems",
    "worst stall of an application, 512 MiB dirty": "an application's longest wait in a freeze, 512 MiB unwritten",
    "ping, all on one processor": "ping",
    "guest-info": "guest-info",
    "file read, 1 MiB": "file read, 1 MiB at a time",
    "file read, 4 KiB": "file read, 4 KiB at a time",
    "guest-get-osinfo, through a worker": "guest-get-osinfo, a request that another process answers",
    "start: exec to the first ping answered": "start, until the first ping is answered",
    "memory at rest": "memory at rest",
    "memory with every worker up": "memory with every worker up, while they are in use",
    "64 MiB of random bytes, then a sync": "64 MiB of garbage on the line, until it answers again",
}


# What the README calls it, a row of the table of guests (of Debian as it comes), and where in what was seen the figure is.
SEEN = (
    (
        "freeze of all three file systems, the root among them, under writers, median of 24",
        "24 freezes and thaws",
        r"median ([\d.]+ s)",
    ),
    ("nobody thaws, and the deadline is 8 s: writable after", "Nobody thaws", r"auto-thaw = 8: ([\d.]+ s)"),
    ("the fs worker is killed while all is frozen", "`kill -9` of one process", r"^fs: (the freeze holds)"),
    ("the front is killed", "`kill -9` of one process", r"^front: (the freeze holds)"),
    ("the watchdog is killed", "`kill -9` of one process", r"^thawer: (writable [\d.]+ s later)"),
    ("the supervisor is killed", "`kill -9` of one process", r"^supervisor: (writable [\d.]+ s later)"),
    (
        "the whole service is killed, and systemd thaws",
        "`kill -9` of the whole cgroup while",
        r"(writable [\d.]+ s later)",
    ),
    ("every process is stopped (SIGSTOP), `WatchdogSec=20`", "SIGSTOP of every process", r"(writable [\d.]+ s later)"),
    (
        "memory of the service at rest (PSS), after as many polls as KubeVirt makes in five hours",
        "Hours of KubeVirt's polls",
        r"at rest (\d+ kB)",
    ),
    ("wake-ups while nobody asks", "Nobody asks", r"port open: (supervisor \d+, front \d+ in \d+ s)"),
    (
        "the same while the host has the port closed",
        "Nobody asks",
        r"port closed: (supervisor \d+, front \d+ in \d+ s)",
    ),
)


def seen(table: str) -> str:
    """The README's table out of the one of the guests.  LookupError for a row that is not there any more."""
    rows = [
        [c.strip() for c in line.strip("|").split(" | ")] for line in table.splitlines() if line.startswith("| plain ")
    ]
    lines = ["| | |", "|---|---|"]
    for words, what, figure in SEEN:
        found = [hit for row in rows if row[2].startswith(what) and (hit := re.search(figure, row[5]))]
        if not found:
            raise LookupError(what)
        lines.append(f"| {words} | {found[0][1]} |")
    return "".join(f"{line}\n" for line in lines)


def figures(measured: str) -> str:
    """The README's table out of the other document's.  KeyError for a row that is not there any more."""
    rows = dict[str, tuple[str, str, str]]()
    for line in measured.splitlines():
        cells = [c.strip() for c in line.strip("|").split("|")]
        if len(cells) >= 5 and re.search(r"\d", cells[2]):
            rows[cells[0]] = cells[1].replace("us", "µs"), cells[2], cells[3]
    lines = ["| | qemu-ga | privsep-ga |", "|---|---:|---:|"]
    for name, words in ROWS.items():
        unit, theirs, ours = rows[name]
        lines.append(f"| {words} | {theirs} {unit} | {ours} {unit} |")
    return "".join(f"{line}\n" for line in lines)


def _between(text: str, begin: str, inside: str) -> str:
    head, _, rest = text.partition(begin)
    _, mark, tail = rest.partition(END)
    if not mark:
        raise SystemExit("README.md has lost the marks around the figures")
    return head + begin + inside + END + tail


def render(readme: str) -> str:
    """The README with the figures of the two documents."""
    readme = _between(readme, BEGIN, figures(MEASURED.read_text()))
    return _between(readme, BEGIN_GUESTS, seen(GUESTS.read_text()))


if __name__ == "__main__":
    README.write_text(render(README.read_text()))
