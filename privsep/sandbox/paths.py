"""From a row's paths to those of this machine: variables, home folders, the folder that plays `/` in a test."""

from __future__ import annotations

import os

from privsep.sandbox import label

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from typing import Final

    from privsep.domains import Domain

_SELINUX: Final = "selinux:"

# Accounts of the system have "homes" that are no homes; nobody's keys are kept there.
_NO_HOMES: Final = (
    "/bin",
    "/boot",
    "/dev",
    "/etc",
    "/lib",
    "/lib64",
    "/proc",
    "/run",
    "/sbin",
    "/sys",
    "/usr",
    "/var/run",
)


def expand(
    row: Domain, *, root: str, environ: Mapping[str, str], settings: Mapping[str, str]
) -> Iterator[tuple[str, str]]:
    """(path, letters) for `landlock.Ruleset.allow`.

    `$NAME` is what the environment says, nothing where it says nothing; `selinux:PATH` is one only where SELinux is in force for
    the row (`privsep/sandbox/label.py`); `~` is the home of each account in /etc/passwd, root's only where policy lets the row act
    for root (setting `ssh-root`)."""
    for path, (letters, _) in (row.paths or {}).items():
        if path == "~":
            with open(root + "/etc/passwd", "rb", 0) as f:
                found = homes(f.read(), root=settings.get("ssh-root") == "1")
        elif path.startswith(_SELINUX):
            found = [path[len(_SELINUX) :]] if label.in_force(row) else []
        elif path.startswith("$"):
            found = [environ[path[1:]]] if environ.get(path[1:]) else []
        else:
            found = [path]
        for real in found:
            yield (root + real) or "/", letters


def homes(passwd: bytes, *, root: bool) -> list[str]:
    """Home folders in passwd(5), each once; uid 0's only with `root`."""
    found = []
    for line in passwd.split(b"\n"):
        fields = line.split(b":")
        if len(fields) < 7 or not fields[2].isdigit() or (int(fields[2]) == 0 and not root):
            continue
        home = os.path.normpath(os.fsdecode(fields[5]))
        top = home == "/" or not home.startswith("/")
        if not top and not any(home == n or home.startswith(n + "/") for n in _NO_HOMES) and home not in found:
            found.append(home)
    return found
