"""/etc/sysconfig/qemu-ga: where the RHEL family keeps the lists that its unit file passes to qemu-ga.

Which variable it is depends on the release: BLACKLIST_RPC (7 and 8) and BLOCK_RPCS (9) are lists, FILTER_RPC_ARGS (9.4 on) and
QEMU_GA_ARGS (Fedora) are options; of those only the lists are ours to take, the others are the unit file's.  An administrator who
narrowed qemu-ga there means the same for the agent that takes its place.  It only ever narrows, but who may write it decides how
much, so it is believed like a policy file.

Facts: systemd.exec(5) EnvironmentFile= for quotes, comments and continued lines; the packages' own files.
"""

from __future__ import annotations

from policy.errors import PolicyError, Problem
from policy.load import trusted_text
from privsep import getopt

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Final

_LISTS: Final = ("BLACKLIST_RPC", "BLOCK_RPCS")
_OPTIONS: Final = ("FILTER_RPC_ARGS", "QEMU_GA_ARGS")
_TABLE: Final = (
    ("block-rpcs", "b", getopt.REQUIRED),
    ("allow-rpcs", "a", getopt.REQUIRED),
    ("blacklist", "b:blacklist", getopt.REQUIRED),
)


def read(path: str) -> list[tuple[str, str, str]]:
    """("block" or "allow", a comma list, `file:line`) for each list in the file.  Raises PolicyError."""
    found: dict[str, tuple[int, str]] = {}
    for number, name, value in assignments(trusted_text(path)):
        if name in _LISTS or name in _OPTIONS:
            found[name] = number, value  # the last one counts
    lists: list[tuple[str, str, str]] = []
    for name, (number, value) in found.items():
        origin = f"{path}:{number}"
        if name in _LISTS:
            lists.append(("block", value, origin))
            continue
        for code, given in getopt.options(value.split(), _TABLE, name):
            if code != getopt.ERROR:
                lists.append(("allow" if code == "a" else "block", given or "", origin))
            elif "requires an argument" in (given or ""):
                raise PolicyError(Problem(str(given), path, number))
    return [one for one in lists if one[1]]


def assignments(text: str) -> Iterator[tuple[int, str, str]]:
    """(line, name, value) for each; what is none is left to whoever reads the rest of the file."""
    number = 0
    lines = iter(text.split("\n"))
    for line in lines:
        number += 1
        first = number
        while line.endswith("\\") and not line.lstrip().startswith(("#", ";")):
            line = line[:-1] + next(lines, "")
            number += 1
        name, sign, value = line.strip().partition("=")
        if sign and not name.startswith(("#", ";")):
            yield first, name.strip(), _unquoted(value.strip())


def _unquoted(value: str) -> str:
    if len(value) > 1 and value[0] in "\"'" and value[-1] == value[0]:
        return value[1:-1]
    return value
