"""The attack table: which attack comes through from inside which process; and what each holds.  `make attack`, or

python -m tests.sandbox.attack [--write]        # prints; --write replaces expected.txt and held.txt
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from privsep.domains import DOMAINS
from tests.sandbox import held, stage
from tests.sandbox.attacks import ATTACKS
from tests.support import namespace

EXPECTED = Path(__file__).with_name("expected.txt")
ROWS = ("supervisor", *(d.name for d in DOMAINS))
HEAD = (
    "# kill: the kernel ends the process.  no: refused by an error.  YES: it comes through.\n"
    "# hook and exec run the administrator's and the host's own programs and have no walls but no_new_privs.\n"
    "# supervisor: as it is where neither of these is enabled.\n"
    "# FITRIM, TIOCSTI, clock_settime: YES: the call reaches the kernel's own checks (of SYS_ADMIN, a terminal, SYS_TIME).\n"
    "# become root: power, hotplug, user and file are uid 0 already; what they may do with it is in the other lines.\n"
)


def table(columns: dict[str, list[str]]) -> str:
    width = max(len(a.name) for a in ATTACKS)
    lines = [" ".join([f"{'':{width}}", *(f"{n:>10}" for n in columns)])]
    for number, attack in enumerate(ATTACKS):
        lines.append(" ".join([f"{attack.name:{width}}", *(f"{c[number]:>10}" for c in columns.values())]))
    return HEAD + "\n".join(line.rstrip() for line in lines) + "\n"


def cells(text: str) -> dict[tuple[str, str], str]:
    """(process, attack) -> outcome."""
    head, *rows = [line for line in text.splitlines() if not line.startswith("#")]
    names = head.split()
    return {
        (n, row[: -11 * len(names)].strip()): c
        for row in rows
        for n, c in zip(names, row.split()[-len(names) :], strict=True)
    }


def differences(found: str, expected: str) -> list[str]:
    """Cells that are not as expected.  What a process without walls can do depends on the kernel alone and is passed over."""
    wanted, got = cells(expected), cells(found)
    bare = {d.name for d in DOMAINS if not d.filtered}
    return [
        f"{process}, {attack}: {got.get((process, attack))}, not {wanted.get((process, attack))}"
        for process, attack in sorted({*wanted, *got})
        if process not in bare and got.get((process, attack)) != wanted.get((process, attack))
    ]


def attacked() -> str:
    """The attack table; in a private root."""
    with stage.scene() as scene:
        return table({name: stage.column(name, scene) for name in ROWS})


def measure(what: Callable[[], str] = attacked) -> str:
    """A table, measured in a private root, so that what comes through hits nothing."""
    with tempfile.TemporaryFile("w+") as file:
        pid = os.fork()
        if pid == 0:
            status = 1
            try:
                with namespace.private_root():
                    file.write(what())
                    file.flush()
                status = 0
            except BaseException as e:
                print(f"{type(e).__name__}: {e}", file=sys.stderr)
            finally:
                os._exit(status)
        if os.waitpid(pid, 0)[1]:
            raise RuntimeError("the table could not be measured")
        file.seek(0)
        return file.read()


def main() -> int:
    wrong = []
    for what, path, compare in (
        (attacked, EXPECTED, differences),
        (held.table, held.EXPECTED, held.differences),
    ):
        found = measure(what)
        print(found)
        if "--write" in sys.argv:
            path.write_text(found)
        wrong += [f"not as in {path}: {line}" for line in compare(found, path.read_text())]
    for line in wrong:
        print(line, file=sys.stderr)
    if wrong:
        print("where that is meant: make attack ARGS=--write", file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
