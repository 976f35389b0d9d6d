"""Slices of the policy, in memory that nobody can change any more.

A slice is what one process must know and nothing else: lines `allow COMMAND` and `set NAME VALUE`.  The supervisor writes
it into a memfd and seals that; the process checks the seals before it reads a byte, so the front, which shares a user
with nobody but might be taken over, cannot have touched what a worker believes (memfd_create(2), fcntl(2)).
"""

from __future__ import annotations

import fcntl
import os

from policy.errors import PolicyError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Final

    from policy.model import Policy

LIMIT: Final = 64 * 1024  # bytes of one slice

_SEALS: Final = fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL
_MFD_NOEXEC_SEAL: Final = 0x8  # Linux 6.3; needed where vm.memfd_noexec is 2

# Who is told which setting.  Everybody: how to log, and which user to become.
EVERYBODY: Final = ("verbose", "uid", "gid", "privileged")
SETTINGS: Final = {
    "front": ("profile", "version", "refusal"),
    "fs": ("auto-thaw", "auto-thaw-on-disconnect", "expedite-rcu", "fsfreeze-hook", "hook-limit", "statedir"),
    "thawer": ("auto-thaw", "expedite-rcu", "hook-limit"),
    "hook": ("fsfreeze-hook", "hook-limit"),
    "file": ("statedir",),
    "ssh": ("ssh-root", "ssh-strict"),
}


def slice_for(domain: str, policy: Policy, settings: Mapping[str, str]) -> bytes:
    """The slice of one process: its commands (the front's: all that are allowed) and those of `settings` that are its."""
    from policy.model import commands_for

    commands = sorted(policy.allowed) if domain == "front" else commands_for(domain, policy)
    lines = [f"allow {c}" for c in commands]
    lines += [f"set {n} {escape(settings[n])}" for n in (*EVERYBODY, *SETTINGS.get(domain, ())) if n in settings]
    return "".join(f"{line}\n" for line in lines).encode("utf-8", "surrogateescape")


def parse_slice(data: bytes) -> tuple[frozenset[str], dict[str, str]]:
    """(allowed commands, settings).  Raises PolicyError for anything that `slice_for` does not write."""
    allowed: set[str] = set()
    settings: dict[str, str] = {}
    text = data.decode("utf-8", "surrogateescape")
    if text and not text.endswith("\n"):
        raise PolicyError("the policy slice is cut off")
    for line in text.split("\n")[:-1]:
        word, _, rest = line.partition(" ")
        name, blank, value = rest.partition(" ")
        if word == "allow" and name and not blank:
            allowed.add(name)
        elif word == "set" and name and blank and name not in settings:
            settings[name] = unescape(value)
        else:
            raise PolicyError("the policy slice has a line that is neither allow nor set")
    return frozenset(allowed), settings


def escape(value: str) -> str:
    """A value on one line: per cent, CR, LF and NUL as %XX."""
    if "%" in value or "\n" in value or "\r" in value or "\0" in value:
        return value.replace("%", "%25").replace("\n", "%0A").replace("\r", "%0D").replace("\0", "%00")
    return value


def unescape(value: str) -> str:
    """The inverse of `escape`.  Raises PolicyError for other escapes."""
    first, *rest = value.split("%")
    out = [first]
    for piece in rest:
        try:
            out.append({"25": "%", "0A": "\n", "0D": "\r", "00": "\0"}[piece[:2]] + piece[2:])
        except KeyError:
            raise PolicyError("the policy slice has an unknown escape") from None
    return "".join(out)


def draft(name: str) -> int:
    """An empty memfd, to be filled later.  `name` shows in /proc/PID/fd."""
    flags = os.MFD_ALLOW_SEALING | os.MFD_CLOEXEC
    try:
        return os.memfd_create(name, flags | _MFD_NOEXEC_SEAL)
    except OSError:  # EINVAL: a kernel before 6.3
        return os.memfd_create(name, flags)


def fill(fd: int, data: bytes) -> None:
    """Write these bytes; from then on it can be neither written, resized nor unsealed."""
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, _SEALS)


def seal(data: bytes, name: str) -> int:
    """A memfd with these bytes that can be neither written, resized nor unsealed."""
    fd = draft(name)
    fill(fd, data)
    return fd


def is_sealed(fd: int) -> bool:
    """Whether it is a memfd that nobody can change any more."""
    try:
        return fcntl.fcntl(fd, fcntl.F_GET_SEALS) & _SEALS == _SEALS
    except OSError:  # EINVAL: not a memfd
        return False


def read_sealed(fd: int) -> bytes:
    """The bytes of a sealed memfd.  Raises PolicyError when it is not one, or not completely sealed."""
    if not is_sealed(fd):
        raise PolicyError("the policy slice is not sealed")
    size = os.lseek(fd, 0, os.SEEK_END)  # the front's filter has no fstat
    if size > LIMIT:
        raise PolicyError(f"the policy slice is larger than {LIMIT} bytes")
    data = os.pread(fd, size, 0)
    if len(data) != size:
        raise PolicyError("the policy slice could not be read whole")
    return data
