"""The whole fault matrix: `make faults`, or `python -m tests.faults.matrix [--short] [--no-doc] [WORDS...]`.

Prints a line for each run as it ends, then the table, and writes docs/fault-matrix.md.  Exit status 1 when a cell is red.
Words select the runs whose name has all of them.  Two processes work at a time, each in a private root of its own.  Red is red:
no run is repeated, so a machine that is busy otherwise may break bounds too.
"""

from __future__ import annotations

import json
import os
import platform
import struct
import sys
import time
from collections.abc import Iterator, Sequence
from typing import Any

from tests.faults import cells, extras
from tests.faults.runner import Bench
from tests.support import namespace, rcu

DOC = namespace.PROJECT / "docs" / "fault-matrix.md"
WORKERS = 2
_INDEX = struct.Struct("<H")

Work = cells.Run | extras.Extra

_READING = """\
One run freezes an ext4, an xfs and a btrfs together and hits the named processes of the agent, all at once, by one signal at
one moment; so each entry below stands for three cells. It reads: seconds from the signal until the file system took a synced
write for good (one number when the three agree; `on`: the freeze went on until the host's thaw); the answer to the command
that was under way (`-`: none was; `died`, `stopped`: an error that says so; `closed`: the connection was closed; `silent`: no
answer); what the host's next thaw answered, on a new connection: a number, or `lapsed`, the error that says that the freeze
did not hold (told once, the thaw after it answers 0). Then each run freezes and thaws once more."""

_BOUNDS = f"""\
Bounds: a death costs at most {cells.AT_ONCE:g} s; the death of all, {cells.AT_ONCE:g} s from the next start or, for the \
group, from
`libexec/recover` as ExecStopPost runs it. A stop costs the deadline ({cells.SHORT} s here) and 2 s more; where thawer and
supervisor are both stopped the service manager ends it (WatchdogSec={cells.WATCHDOG:g}, SIGKILL to all, ExecStopPost).
SIGTERM to the supervisor ends the agent with status 0 and everything thawed; the other processes ignore it. The death of the
front costs nothing: the freeze goes on and its deadline stands, as does a committed freeze whose fs worker dies. An fs worker
that dies before the freeze was committed costs the freeze. Stopped processes are continued when all this is over, and must
not freeze again."""


def work(items: Sequence[Work], queue: int, results: int) -> None:
    """In a forked child: take one index after the other, write one line of JSON for each."""
    with namespace.private_root():
        with Bench() as bench:
            while index := os.read(queue, _INDEX.size):
                item = items[_INDEX.unpack(index)[0]]
                outcome = bench.run(item) if isinstance(item, cells.Run) else extras.run(item)
                os.write(results, json.dumps(outcome.as_dict()).encode()[:4000] + b"\n")


def outcomes(items: Sequence[Work], workers: int = WORKERS) -> Iterator[dict[str, Any]]:
    """Run them all; each outcome as it comes.  RuntimeError when a process of ours is lost."""
    queue, feed = os.pipe()
    reader, results = os.pipe()
    os.write(feed, b"".join(_INDEX.pack(n) for n in range(len(items))))
    os.close(feed)
    pids = []
    for _ in range(workers):
        pid = os.fork()
        if pid == 0:
            status = 1
            try:
                os.close(reader)
                work(items, queue, results)
                status = 0
            except BaseException as e:
                os.write(2, f"{type(e).__name__}: {e}\n".encode())
            finally:
                os._exit(status)
        pids.append(pid)
    os.close(queue)
    os.close(results)
    with os.fdopen(reader, encoding="utf-8") as lines:
        for line in lines:
            yield json.loads(line)
    lost = [pid for pid in pids if os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])]
    if lost:
        raise RuntimeError("a process of the matrix ended early")


def seconds(value: float | None) -> str:
    return "on" if value is None else f"{value:.2f}"


def cell(outcome: dict[str, Any]) -> str:
    """One table cell: seconds until writable (ext4/xfs/btrfs, one number when they are alike), and the two answers."""
    if outcome["red"]:
        return "**RED**"
    times = [seconds(v) for v in outcome["writable"].values()]
    shown = times[0] if len(set(times)) == 1 else "/".join(times)
    return f"{shown}; {word(outcome['answer'])}; {word(outcome['then'])}"


def word(answer: str) -> str:
    if answer.startswith("error: the fs worker died"):
        return "died"
    if answer.startswith("error: the agent is being stopped"):
        return "stopped"
    return {"connection closed": "closed", "no answer": "silent"}.get(answer, answer.removeprefix("error: "))


def document(found: dict[str, dict[str, Any]], took: float) -> str:
    """docs/fault-matrix.md.  KeyError when a run is missing."""
    reds = sum(bool(o["red"]) for o in found.values())
    lines = [
        "# Fault matrix",
        "",
        "Generated by `make faults`; a test checks that it has the rows of `tests/faults/cells.py`.",
        "",
        f"Run on {time.strftime('%Y-%m-%d %H:%M UTC', time.gmtime())}, Linux {platform.release().partition('-')[0]}, {os.cpu_count()} cores, "
        f"{took / 60:.1f} minutes: {cells.CELLS} cells and {len(extras.EXTRAS)} more situations, "
        f"{'all green' if not reds else f'{reds} runs RED'}.",
        "",
        *_READING.splitlines(),
        "",
        "| moment | |",
        "|---|---|",
        *(f"| {name} | {text} |" for name, text in cells.MOMENTS.items()),
        "",
        *_BOUNDS.splitlines(),
        "",
    ]
    for number in cells.SIGNALS:
        lines += [
            f"## {number.name}",
            "",
            f"| hit | {' | '.join(cells.PHASES)} |",
            "|---" * (len(cells.PHASES) + 1) + "|",
        ]
        for victims in cells.VICTIMS:
            row = [cell(found[str(cells.Run(victims, number, phase))]) for phase in cells.PHASES]
            lines.append(f"| {victims} | {' | '.join(row)} |")
        lines.append("")
    lines += ["## Other situations", "", "| situation | result |", "|---|---|"]
    for extra in extras.EXTRAS:
        lines.append(f"| {extra.text} | {cell(found[str(extra)])} |")
    return "\n".join(lines) + "\n"


def main(argv: list[str]) -> int:
    reason = namespace.why_not()
    if reason:
        print(reason, file=sys.stderr)
        return 1
    flags = [a for a in argv if a.startswith("--")]
    words = [a for a in argv if not a.startswith("--")]
    items: list[Work] = [*(cells.SHORT_FORM if "--short" in flags else cells.RUNS), *extras.EXTRAS]
    items = [i for i in items if all(w in str(i).split() or w in str(i) for w in words)]
    # Those that take longest first, so that both processes end at the same time.
    items.sort(key=lambda i: not (isinstance(i, extras.Extra) or i.signal.name == "SIGSTOP"))
    begun = time.monotonic()
    found: dict[str, dict[str, Any]] = {}
    # Two agents freeze at the same time here, and one may put back what the other has set.
    expedited = rcu.PATH.read_text() if rcu.PATH.exists() else ""
    try:
        for outcome in outcomes(items):
            found[outcome["run"]] = outcome
            print(
                f"{len(found):4}/{len(items)} {outcome['run']:46} {cell(outcome):40} {outcome['seconds']:5.1f} s",
                flush=True,
            )
            for line in outcome["red"]:
                print(f"         {line}")
    finally:
        if expedited:
            rcu.PATH.write_text(expedited)
    took = time.monotonic() - begun
    reds = [o["run"] for o in found.values() if o["red"]]
    whole = len(found) == len(cells.RUNS) + len(extras.EXTRAS)
    if whole and "--no-doc" not in flags:
        DOC.write_text(document(found, took))
    missing = len(items) - len(found)
    print(f"{len(found)} runs, {len(reds)} red, {missing} missing, {took / 60:.1f} minutes")
    for run in reds:
        print(f"  RED {run}")
    return 1 if reds or missing else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
