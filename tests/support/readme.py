"""Puts the figures of docs/performance.md into the README: `python -m tests.support.readme`.  A test says whether they are current."""

from __future__ import annotations

import re
from pathlib import Path

TREE = Path(__file__).resolve().parents[2]
README = TREE / "README.md"
MEASURED = TREE / "docs" / "performance.md"
BEGIN = "<!-- from docs/performance.md by tests/support/readme.py -->\n"
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


def render(readme: str, measured: str) -> str:
    head, _, rest = readme.partition(BEGIN)
    _, mark, tail = rest.partition(END)
    if not mark:
        raise SystemExit("README.md has lost the marks around the figures")
    return head + BEGIN + figures(measured) + END + tail


if __name__ == "__main__":
    README.write_text(render(README.read_text(), MEASURED.read_text()))
