"""Capability sets: set them, and read back what the kernel says.

Set with `_prctl`, the C half of python-prctl (its Python half builds a property for each capability, 6 ms).
"""

from __future__ import annotations

import _prctl

from privsep.domains import CAPABILITIES

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

_SETS: Final = ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")


def number(name: str) -> int:
    """The kernel's number of a capability in the table."""
    return CAPABILITIES[name]


def last_cap() -> int:
    """The highest capability number that the running kernel knows."""
    with open("/proc/sys/kernel/cap_last_cap", "rb", buffering=0) as f:
        return int(f.read(16))


def limit_bounding(mask: int, last: int) -> None:
    """Drop everything outside `mask` from the bounding set.  Needs CAP_SETPCAP: PermissionError otherwise."""
    for number in range(last + 1):
        if not mask >> number & 1:
            _prctl.prctl(_prctl.PR_CAPBSET_DROP, number)


def limit_to(mask: int, last: int) -> None:
    """Permitted and effective set become `mask`, the inheritable set becomes empty.

    Raises PermissionError when the process does not hold what it should keep."""
    keep = [n for n in range(last + 1) if mask >> n & 1]
    drop = [n for n in range(last + 1) if not mask >> n & 1]
    _prctl.set_caps(keep, keep, [], drop, drop, keep + drop)


def parse_status(text: bytes) -> dict[str, list[str]]:
    """The fields of /proc/PID/status, split at blanks."""
    fields: dict[str, list[str]] = {}
    for line in text.decode("ascii", "replace").split("\n"):
        name, colon, rest = line.partition(":")
        if colon:
            fields[name] = rest.split()
    return fields


def permitted(status: dict[str, list[str]]) -> int:
    """The permitted set of a parsed status; 0 when it is missing."""
    return int("".join(status.get("CapPrm", [])) or "0", 16)


def filters(status: dict[str, list[str]]) -> int:
    """How many filters a process has; 0 where the kernel does not tell (before 5.9)."""
    return int("".join(status.get("Seccomp_filters", [])) or "0")


def differences(
    status: dict[str, list[str]], *, uid: int, gid: int, mask: int, filtered: bool = False, inherited: int = 0
) -> list[str]:
    """What of the kernel's view is not as the row says; empty when all is.

    `inherited` is how many filters the process began with: its own has to be one more."""
    found: list[str] = []

    def compare(name: str, want: str, got: str) -> None:
        if want != got:
            found.append(f"{name} is {got or 'missing'}, not {want}")

    for name, number in (("Uid", uid), ("Gid", gid)):
        compare(name, " ".join([str(number)] * 4), " ".join(status.get(name, [])))
    compare("Groups", "", " ".join(status.get("Groups", ["?"])))
    for name in _SETS:
        want = 0 if name in ("CapInh", "CapAmb") else mask
        compare(name, f"{want:016x}", "".join(status.get(name, [])))
    compare("NoNewPrivs", "1", "".join(status.get("NoNewPrivs", [])))
    if filtered:
        compare("Seccomp", "2", "".join(status.get("Seccomp", [])))
        if "Seccomp_filters" in status and filters(status) <= inherited:
            found.append(f"Seccomp_filters is {filters(status)}, not more than the inherited {inherited}")
    return found
