"""The table of `make test-vm`: every module of these tests in every image, several guests at once, one line a test.

    python -m tests.vm.table [--vm-image plain|selinux] [--at-once N] [--within MINUTES] [--again] [--doc] [MODULE]... [-- OPTIONS OF PYTEST]

A run of pytest for each module and image, so that modules do not wait for each other: a guest is mostly idle, or on one
processor.  A module is named as in `tests/vm/test_NAME.py`.  The rows stand in build/vm/table.md when all is done, the output of
each run beside them; the exit status is 0 if no row failed.

With `--again` up to three modules with a failure run once more, alone, when all have ended.  What failed the first time stands in
the table all the same, in its row and in the line above it.  With `--within` a module that has not begun by then is left out, and
the line above the table names it.  `--doc` writes docs/vm-table.md, what a reader of the project sees.
"""

from __future__ import annotations

import argparse
import math
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from tests.vm.harness import accel, clients, hosttools, images, libvirt, rows
from tests.vm.harness.cache import HarnessError
from tests.vm.harness.rows import Row

HERE = Path(__file__).parent
TREE = HERE.parents[1]
OUT = TREE / "build" / "vm"
DOC = TREE / "docs" / "vm-table.md"
IMAGES = ("plain", "selinux")
# The longest first, so that the last to end is a short one.
LONGEST = ("freeze", "libvirt", "ansible", "selinux", "cost", "devices", "power", "upgrade")
FLEETS = {"fleet": 3}  # module -> guests that it boots at once; such a one runs when the others have ended
NOTHING_CHOSEN = 5  # pytest's exit status
LEFT_OUT = -1000  # in place of an exit status
AGAIN_AT_MOST = 3  # modules: more than that is no accident

INTRODUCTION = """\
# In a real guest

Written by `make test-vm ARGS=--doc` on {when}: Debian 12 guests under QEMU with the package installed, driven through their virtio
port, as Debian comes (`plain`) and with SELinux enforcing (`selinux`). After each row on the latter there must be no denial in
the guest's audit log but those that the row is about. Times are those of guests without hardware virtualisation unless it says KVM.

"""


class Run(NamedTuple):
    """A module in an image."""

    module: str
    image: str

    @property
    def rows(self) -> Path:
        return OUT / f"{self.image}-{self.module}.jsonl"

    @property
    def log(self) -> Path:
        return OUT / f"{self.image}-{self.module}.log"


def modules() -> list[str]:
    return sorted(path.stem.removeprefix("test_") for path in HERE.glob("test_*.py"))


def carry_out(run: Run, guests: int, words: list[str], until: float = math.inf) -> int:
    """Pytest's exit status, or LEFT_OUT where the monotonic clock is past `until`."""
    if time.monotonic() > until:
        return LEFT_OUT
    command = [sys.executable, "-m", "pytest", "-q", "-m", "vm", "--timeout", "1800", "--vm-image", run.image]
    command += ["--vm-rows", str(run.rows), f"tests/vm/test_{run.module}.py", *words]
    environ = {**os.environ, "PRIVSEP_GA_VM_GUESTS": str(guests)}
    with open(run.log, "wb") as log:
        return subprocess.run(
            command, cwd=TREE, env=environ, stdin=subprocess.DEVNULL, stdout=log, stderr=log
        ).returncode


def second(run: Run, words: list[str]) -> int:
    """Once more, alone; what the first run left stands beside it.  The exit status."""
    first = {row.what: row.seen for row in rows.load(run.rows) if row.result == "FAILED"}
    for path in filter(Path.exists, (run.rows, run.log)):
        path.rename(path.with_suffix(".first" + path.suffix))
    status = carry_out(run, FLEETS.get(run.module, 1), words)
    found = rows.load(run.rows)
    run.rows.unlink(missing_ok=True)
    for row in found:
        if row.what in first:
            row = row._replace(seen=f"{row.seen}; FAILED in the first run: {first[row.what]}")
        rows.append(run.rows, row)
        print(row.line(), flush=True)
    return status


def failures(statuses: dict[Run, int]) -> list[Run]:
    """Those that did not end well, after what each printed at its end."""
    bad = [run for run, status in statuses.items() if status not in (0, NOTHING_CHOSEN, LEFT_OUT)]
    for run in bad:
        print(f"\n---- {run.image} {run.module}, from {run.log}\n{run.log.read_text(errors='replace')[-6000:]}")
    return bad


def as_they_come(futures: dict[Run, Future[int]]) -> Iterator[Row]:
    """The rows of runs that are under way, until all have ended."""
    told = dict.fromkeys(futures, 0)
    while True:
        ended = all(future.done() for future in futures.values())  # before the look: what comes later is seen next time
        for run in futures:
            new = rows.load(run.rows)[told[run] :]
            told[run] += len(new)
            yield from new
        if ended:
            return
        time.sleep(0.5)


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="tests.vm.table", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--vm-image", choices=(*IMAGES, "both"), default="both")
    parser.add_argument(
        "--at-once", type=int, default=min(3, os.cpu_count() or 1), metavar="N", help="guests (default: %(default)s)"
    )
    parser.add_argument("--within", type=float, default=math.inf, metavar="MINUTES")
    parser.add_argument("--again", action="store_true")
    parser.add_argument("--doc", action="store_true")
    parser.add_argument("modules", nargs="*", metavar="MODULE")
    given = sys.argv[1:]
    at = given.index("--") if "--" in given else len(given)
    options, words = parser.parse_args(given[:at]), given[at + 1 :]
    unknown = set(options.modules) - set(modules())
    if unknown:
        parser.error(f"no module {', '.join(sorted(unknown))}: there are {', '.join(modules())}")
    chosen = IMAGES if options.vm_image == "both" else (options.vm_image,)
    runs = [
        Run(module, image)
        for module in sorted(options.modules or modules(), key=lambda m: (*LONGEST, m).index(m))
        for image in chosen  # one that the module is not for ends at once
    ]
    shutil.rmtree(OUT, ignore_errors=True)
    OUT.mkdir(parents=True)
    begun = time.monotonic()
    until = begun + options.within * 60
    try:
        # All that apt installs at once: runs that are under way together must not want it at the same time.
        hosttools.need(
            {**hosttools.IMAGE_TOOLS, **libvirt.TOOLS}, {**hosttools.FIRMWARE, **libvirt.FILES, **clients.FILES}
        )
        with ThreadPoolExecutor(1) as pool:  # what comes from PyPI meanwhile
            programs = pool.submit(clients.programs)
            built = {image: images.image(image) for image in chosen}
            programs.result()
    except HarnessError as e:
        print(f"tests.vm.table: {e}", file=sys.stderr)
        return 1
    how = "KVM" if accel.name(built[chosen[0]]) == "kvm" else "QEMU's translator (TCG)"
    print(
        f"images ready after {time.monotonic() - begun:.0f} s; {options.at_once} guests at once, run by {how}",
        flush=True,
    )
    statuses: dict[Run, int] = {}
    for part, at_once in (
        ([run for run in runs if run.module not in FLEETS], options.at_once),
        ([run for run in runs if run.module in FLEETS], 1),
    ):
        with ThreadPoolExecutor(at_once) as pool:
            futures = {run: pool.submit(carry_out, run, FLEETS.get(run.module, at_once), words, until) for run in part}
            for row in as_they_come(futures):
                print(row.line(), flush=True)
        statuses |= {run: future.result() for run, future in futures.items()}
    bad = failures(statuses)
    notes = ""
    if late := [run for run, status in statuses.items() if status == LEFT_OUT]:
        notes += f"  Left out for want of time: {', '.join(f'{run.module} [{run.image}]' for run in late)}."
    if options.again and 0 < len(bad) <= AGAIN_AT_MOST:
        twice = ", ".join(f"{run.module} [{run.image}]" for run in bad)
        print(f"\nOnce more: {twice}.", flush=True)
        notes += f"  Run twice: {twice}."
        statuses |= {run: second(run, words) for run in bad}
        bad = failures(statuses)
    found = [row for image in chosen for run in sorted(runs) if run.image == image for row in rows.load(run.rows)]
    minutes = (time.monotonic() - begun) / 60
    counts = ", ".join(f"{sum(row.result == word for row in found)} {word}" for word in rows.WORDS.values())
    head = (
        f"{len(found)} rows: {counts}.  {minutes:.0f} minutes, {options.at_once} guests at once, run by {how}.{notes}"
    )
    print(f"\n{head}\n")
    for row in found:
        print(row.line())
    (OUT / "table.md").write_text(rows.document(found, head))
    if options.doc:
        DOC.write_text(INTRODUCTION.format(when=time.strftime("%Y-%m-%d", time.gmtime())) + rows.document(found, head))
    print(f"\n{head}\nthe same as a document: {OUT / 'table.md'}")
    if not found:
        print("nothing was run", file=sys.stderr)
    return 1 if bad or not found else 0


if __name__ == "__main__":
    sys.exit(main())
