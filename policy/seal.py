"""Slices of the policy, in memory that nobody can change any more.

A slice is what one process must know and nothing else, in lines:

    allow COMMAND
    why COMMAND TAB RULE TAB ORIGIN         what decided about the command, where settings `rule` and `origin` do not
    rule KIND TAB ID TAB ORIGIN TAB ...     what must be inside a request (policy/rules.py)
    set NAME VALUE

The supervisor writes it into a memfd and seals that; the process checks the seals before it reads a byte, so the front,
which shares a user with nobody but might be taken over, cannot have touched what a worker believes (memfd_create(2), fcntl(2)).
"""

from __future__ import annotations

import fcntl
import os

from policy.errors import PolicyError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from typing import Final, Protocol

    class _Line(Protocol):
        def line(self) -> str: ...

    class _Policy(Protocol):
        """What is told of a policy (policy/model.py)."""

        @property
        def allowed(self) -> frozenset[str]: ...
        @property
        def why_of(self) -> Mapping[str, tuple[str, str]]: ...
        def commands_for(self, domain: str) -> Iterable[str]: ...
        def rules_for(self, domain: str) -> Iterable[_Line]: ...


LIMIT: Final = 64 * 1024  # bytes of one slice

_SEALS: Final = fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL
_MFD_NOEXEC_SEAL: Final = 0x8  # Linux 6.3; needed where vm.memfd_noexec is 2

# The per cent sign first: it is in what the others become.
_ESCAPES: Final = (("%", "%25"), ("\n", "%0A"), ("\r", "%0D"), ("\0", "%00"), ("\t", "%09"))
_CHARACTERS: Final = {code[1:]: character for character, code in _ESCAPES}

# Who is told which setting.  Everybody: how to log, and which user to become.
EVERYBODY: Final = ("verbose", "uid", "gid", "privileged", "rule", "origin")
SETTINGS: Final = {
    "front": ("profile", "version", "refusal", "preload"),
    "fs": ("auto-thaw", "auto-thaw-on-disconnect", "expedite-rcu", "fsfreeze-hook", "hook-limit", "statedir"),
    "thawer": ("auto-thaw", "expedite-rcu", "hook-limit"),
    "hook": ("fsfreeze-hook", "hook-limit"),
    "file": ("statedir", "file-buffer"),
    "exec": ("exec-output",),
    "ssh": ("ssh-root", "ssh-strict"),
}


def slice_for(domain: str, policy: _Policy, settings: Mapping[str, str]) -> bytes:
    """The slice of one process: its commands (the front's: all that are allowed), the rules about them, and those of
    `settings` that are its."""
    commands = sorted(policy.allowed) if domain == "front" else policy.commands_for(domain)
    lines = [f"allow {c}" for c in commands]
    if policy.why_of and domain != "front":
        for command in commands:
            if command in policy.why_of:
                rule, origin = policy.why_of[command]
                lines.append("why " + "\t".join((command, escape(rule), escape(origin))))
    lines += [rule.line() for rule in policy.rules_for(domain)]
    lines += [f"set {n} {escape(settings[n])}" for n in (*EVERYBODY, *SETTINGS.get(domain, ())) if n in settings]
    return "".join(f"{line}\n" for line in lines).encode("utf-8", "surrogateescape")


def parse_slice(data: bytes) -> tuple[frozenset[str], dict[str, str]]:
    """(allowed commands, settings); `policy.rules.scope_of` reads the rest.  Raises PolicyError for anything that `slice_for`
    does not write."""
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
        elif word not in ("rule", "why") or not name:
            raise PolicyError("the policy slice has a line that is none of its own")
    return frozenset(allowed), settings


def escape(value: str) -> str:
    """A value on one line: per cent, CR, LF, NUL and tabs as %XX."""
    for character, code in _ESCAPES:
        if character in value:
            value = value.replace(character, code)
    return value


def unescape(value: str) -> str:
    """The inverse of `escape`.  Raises PolicyError for other escapes."""
    first, *rest = value.split("%")
    out = [first]
    for piece in rest:
        try:
            out.append(_CHARACTERS[piece[:2]] + piece[2:])
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


def for_reading(fd: int) -> int:
    """The same memfd, open for reading alone, in place of `fd`: a process that SELinux lets read it and not write it takes no
    other.  Where /proc is not there, `fd` itself."""
    try:
        again = os.open(f"/proc/self/fd/{fd}", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return fd
    os.close(fd)
    return again


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
