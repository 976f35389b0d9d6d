"""What the service manager took from the agent that the policy needs.

The unit that is shipped grants what the default policy needs.  A policy that allows more would start all the same, and the
commands in question would fail one by one, each in its own way, when the host asks; so it is compared at start, and the error
names the drop-in that grants the rest.

Measured is the kernel's view, not the unit: what process 1 has and this one has not was taken by the unit.  What neither has (in a
container, say) no drop-in would bring, so it is not this check's.

Facts: proc_pid_status(5); CapBnd, Seccomp_filters (Linux 5.9) and NoNewPrivs are what a service manager narrows.
"""

from __future__ import annotations

from privsep.domains import CAPABILITIES, DOMAINS, SUPERVISOR_CAPS
from privsep.sandbox import caps

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from typing import Final

# Drop-in -> the rows that it is for beyond the default profile's, and when it is wanted.  packaging/units.py writes them.
DROPINS: Final[Mapping[str, tuple[frozenset[str], str]]] = {
    "user": (frozenset(("user",)), "policies that allow guest-set-user-password"),
    "file": (frozenset(("file",)), "policies that allow guest-file-open"),
    "exec": (frozenset(("exec",)), "policies that allow guest-exec"),
    "hook": (frozenset(("hook",)), "a freeze hook (--fsfreeze-hook)"),
    "ansible": (frozenset(("file", "exec")), "the profile ansible"),
    "qemu-ga": (frozenset(("user", "ssh", "file", "exec", "hook")), "the profile qemu-ga"),
}
FOLDER: Final = "/usr/share/privsep-ga/privsep-ga.service.d"
SERVICE: Final = "/etc/systemd/system/privsep-ga.service.d"


def _mask(status: Mapping[str, list[str]], key: str) -> int:
    return int("".join(status.get(key, ())) or "0", 16)


def _count(status: Mapping[str, list[str]], key: str) -> int:
    return int("".join(status.get(key, ())) or "0")


def withheld(
    enabled: Iterable[str], ours: Mapping[str, list[str]], managers: Mapping[str, list[str]]
) -> dict[str, list[str]]:
    """Row (or "supervisor") -> what the unit takes from it, in words, in the table's order.

    `ours` and `managers` are parsed status files of this process and of the service manager."""
    taken = _mask(managers, "CapBnd") & ~(_mask(ours, "CapBnd") & _mask(ours, "CapPrm"))
    names = {name for name, number in CAPABILITIES.items() if taken >> number & 1}
    whole = []
    if taken:
        whole.append("capabilities")
    if _count(ours, "Seccomp_filters") > _count(managers, "Seccomp_filters"):
        whole.append("system calls")
    if _count(ours, "NoNewPrivs") > _count(managers, "NoNewPrivs"):
        whole.append("new privileges")
    found: dict[str, list[str]] = {}
    wanted = set(enabled)
    rows = [("supervisor", SUPERVISOR_CAPS), *((d.name, d.caps) for d in DOMAINS if d.name in wanted)]
    for row, held in rows:
        lacking = whole if "ALL" in held else [f"CAP_{c}" for c in held if c in names]
        if lacking:
            found[row] = lacking
    return found


def dropin(rows: Iterable[str]) -> str:
    """The narrowest drop-in that is for all these rows."""
    wanted = frozenset(rows)
    fitting = [name for name, (covered, _) in DROPINS.items() if wanted <= covered]
    return min(fitting, key=lambda name: len(DROPINS[name][0])) if fitting else "qemu-ga"


def complaint(taken: Mapping[str, list[str]]) -> str:
    """What the administrator reads; empty when nothing is missing."""
    if not taken:
        return ""
    what = "; ".join(f"{row}: {', '.join(things)}" for row, things in taken.items())
    if "supervisor" in taken:
        return f"the service's unit withholds what the agent itself needs ({what}): compare it with the one that was shipped"
    file = f"{dropin(taken)}.conf"
    wanted, instead = "the policy allows", "narrow the policy"
    if taken.keys() == {"hook"}:
        wanted, instead = "the freeze hook needs", "configure none"
    return (
        f"{wanted} more than the service's unit grants ({what}): install the drop-in {file} "
        f"(install -D -m 644 -t {SERVICE} {FOLDER}/{file}; systemctl daemon-reload; "
        f"systemctl reset-failed privsep-ga; systemctl restart privsep-ga), or {instead}"
    )


def check(enabled: Iterable[str]) -> str:
    """The complaint about the running service; empty when there is none to make."""
    try:
        return complaint(withheld(enabled, _status("self"), _status("1")))
    except OSError:
        return ""  # /proc shows process 1 to nobody else: nothing can be compared


def _status(pid: str) -> dict[str, list[str]]:
    with open(f"/proc/{pid}/status", "rb", buffering=0) as f:
        return caps.parse_status(f.read(16384))
