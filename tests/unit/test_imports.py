"""What each process imports, module by module: start and memory are counted, so nothing comes in unnoticed.

The lists are tests/unit/imports/<process>.txt.  After a deliberate change: `python -m tests.unit.test_imports` writes them anew, and the
difference is for the review.  A module that only some version of the interpreter has stands there with that version.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from privsep.domains import DOMAINS

LISTS = Path(__file__).with_name("imports")
PROJECT = Path(__file__).resolve().parents[2]
PROCESSES = ("supervisor", *(d.name for d in DOMAINS))
# What never may be in a process that has to be there in tens of milliseconds (docs/performance.md).
NEVER = {
    "dataclasses",
    "typing",
    "enum",
    "re",
    "socket",
    "signal",
    "subprocess",
    "logging",
    "json",
    "argparse",
    "pathlib",
}

_PROGRAM = """
import sys
sys.dont_write_bytecode = True
sys.path[:] = [p for p in sys.path if p] + sys.argv[2:]
sys.path.insert(0, sys.argv[1])
before = set(sys.modules)
from privsep import finder
finder.install(sys.argv[1])
{imports}
print("\\n".join(sorted(set(sys.modules) - before)))
"""


def imports(process: str) -> str:
    """The statements that bring in what the process has imported when it is ready."""
    if process == "supervisor":
        # `start` imports nothing more; what only some starts need (a daemon, a configuration file) is not in it.
        return "import privsep.cli, privsep.early, privsep.startup"
    own = {"front": "privsep.front", "thawer": "privsep.thawer"}.get(process)
    return f"import privsep.child, {own or f'privsep.runtime, workers.{process}'}"


def found(process: str) -> list[str]:
    libraries = [p for p in sys.path if "site-packages" in p or "dist-packages" in p]
    result = subprocess.run(
        [
            os.path.realpath(sys.executable),
            "-IS",
            "-c",
            _PROGRAM.format(imports=imports(process)),
            str(PROJECT),
            *libraries,
        ],
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert result.returncode == 0, result.stderr
    # The interpreter's own, of whatever its version needs to begin, and Cython's mark with its version in its name.
    return [m for m in result.stdout.split() if not m.startswith(("_cython_", "encodings"))]


@pytest.mark.parametrize("process", PROCESSES)
def test_a_process_imports_what_its_list_says(process: str) -> None:
    if sys.version_info[:2] != (3, 11):
        pytest.skip("the lists are those of Python 3.11")
    assert found(process) == (LISTS / f"{process}.txt").read_text().split()


# pyroute2's tables of netlink messages bring most of them, and the network worker lives with that.
@pytest.mark.parametrize("process", [p for p in PROCESSES if p != "network"])
def test_no_process_imports_what_costs_most(process: str) -> None:
    assert not NEVER & set(found(process))


def main() -> None:
    LISTS.mkdir(exist_ok=True)
    for process in PROCESSES:
        (LISTS / f"{process}.txt").write_text("\n".join(found(process)) + "\n")


if __name__ == "__main__":
    main()
