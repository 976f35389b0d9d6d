"""Which policy is in force: from --policy, the files in /etc/privsep-ga, or the default profile.

A policy file decides what the host may do as root, so it is believed only when nobody but root can have written it; that
is asked of the opened file, not of its name, and the last component may not be a symbolic link.
"""

from __future__ import annotations

import os
import stat

from policy.errors import PolicyError
from policy.model import DEFAULT_PROFILE, Policy, builtin, check

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Final

    from policy.read import Reading

FOLDER: Final = "/etc/privsep-ga"
FILE_LIMIT: Final = 256 * 1024  # bytes; every command named twice is 3 KiB


def choose(option: str | None, folder: str = FOLDER) -> Policy:
    """The policy of `--policy NAME|FILE`; without it that of `folder`, without that the default profile.

    Raises PolicyError; nothing is ever allowed because a file could not be read."""
    if option is not None:
        if "/" in option or option.endswith(".toml"):
            return from_files([option])
        return builtin(option)
    paths = installed(folder)
    if not paths:
        return builtin(DEFAULT_PROFILE)
    # Drop-ins alone narrow or widen what would be in force without them.
    alone = os.path.basename(paths[0]) != "policy.toml" or os.path.dirname(paths[0]) != folder
    return from_files(paths, start=DEFAULT_PROFILE if alone else None)


def installed(folder: str = FOLDER) -> list[str]:
    """policy.toml if it is there, then the drop-ins policy.d/*.toml by name.  Raises PolicyError."""
    paths: list[str] = []
    try:
        os.lstat(f"{folder}/policy.toml")
        paths.append(f"{folder}/policy.toml")
    except (FileNotFoundError, NotADirectoryError):
        pass
    except OSError as e:
        raise PolicyError(f"{folder}/policy.toml: {e.strerror}") from None
    try:
        names = os.listdir(f"{folder}/policy.d")
    except (FileNotFoundError, NotADirectoryError):
        return paths
    except OSError as e:
        raise PolicyError(f"{folder}/policy.d: {e.strerror}") from None
    return paths + [f"{folder}/policy.d/{n}" for n in sorted(names) if n.endswith(".toml") and not n.startswith(".")]


def from_files(paths: Sequence[str], start: str | None = None) -> Policy:
    """One policy out of a file and its drop-ins.  Raises PolicyError."""
    from policy.read import read  # TOML costs 12 ms, which the built-in profiles need not pay

    texts = [(path, trusted_text(path)) for path in paths]
    from policy.builtin import COMMANDS, PROFILES

    found = read(texts, base=_profile, commands=COMMANDS, profiles=PROFILES, start=start)
    return check(
        Policy(
            paths[0],
            frozenset(found.allowed),
            origins=found.origins,
            lenient=found.lenient,
            auto_thaw=found.auto_thaw,
            disconnect=found.disconnect,
            hook_limit=found.hook_limit,
            expedite=found.expedite,
        )
    )


def _profile(name: str) -> Reading | None:
    from policy.builtin import PROFILES
    from policy.read import Reading

    if name not in PROFILES:
        return None
    description, allowed, lenient, auto_thaw, hook_limit, expedite = PROFILES[name]
    found = Reading()
    found.description, found.allowed, found.lenient = description, set(allowed), lenient
    found.auto_thaw, found.hook_limit, found.expedite = auto_thaw, hook_limit, expedite
    return found


def trusted_text(path: str) -> str:
    """The text of a file that only root (or, for an agent without root, its own user) can have written.

    Raises PolicyError naming what is wrong with the file and the command that mends it."""
    try:
        # Not blocking: a FIFO in the file's place must not hang the start.
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as e:
        reason = "is a symbolic link" if os.path.islink(path) else e.strerror
        raise PolicyError(f"{path}: {reason}") from None
    try:
        found = os.fstat(fd)
        if not stat.S_ISREG(found.st_mode):
            raise PolicyError(f"{path}: not a regular file")
        if found.st_uid not in (0, os.geteuid()):
            raise PolicyError(f"{path}: belongs to uid {found.st_uid}, not to root (chown root {path})")
        if found.st_mode & 0o022:
            raise PolicyError(f"{path}: others than its owner may write it (chmod go-w {path})")
        if found.st_size > FILE_LIMIT:
            raise PolicyError(f"{path}: larger than {FILE_LIMIT} bytes")
        data = bytearray()
        while len(data) <= FILE_LIMIT and (part := os.read(fd, FILE_LIMIT + 1)):
            data += part
    except OSError as e:
        raise PolicyError(f"{path}: {e.strerror}") from None
    finally:
        os.close(fd)
    if len(data) > FILE_LIMIT:
        raise PolicyError(f"{path}: larger than {FILE_LIMIT} bytes")
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as e:
        line = data.count(b"\n", 0, e.start) + 1
        raise PolicyError(f"{path}:{line}: not UTF-8") from None
