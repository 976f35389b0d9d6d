"""Which policy is in force: from --policy, the files in /etc/privsep-ga, or the default profile.

A policy file decides what the host may do as root, so it is believed only when nobody but root can have written it, or put another
in its place: that is asked of the opened file and of each folder on the way to it, and the last component may not be a
symbolic link.
"""

from __future__ import annotations

import os
import stat

from policy.errors import PolicyError, Problem
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
    if not os.path.lexists(folder):
        return paths
    from policy.trust import NotTrusted, walk

    for place in (folder, f"{folder}/policy.d"):
        # Also where there is no file in it: who may write the folder may have taken one away.
        try:
            os.close(walk(place + "/.", folders=True))
        except (FileNotFoundError, NotADirectoryError):
            break
        except NotTrusted as e:
            raise PolicyError(f"{place} is not believed: {e}") from None
        except OSError as e:
            raise PolicyError(f"{place}: {e.strerror}") from None
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
    """One policy out of a file and its drop-ins.  Raises PolicyError, with what is wrong in any of them."""
    from policy.builtin import COMMANDS, FROZEN, PROFILES
    from policy.read import read  # TOML costs 12 ms, which the built-in profiles need not pay

    texts: list[tuple[str, str]] = []
    problems: list[Problem] = []
    for path in paths:
        try:
            texts.append((path, trusted_text(path)))
        except PolicyError as e:
            problems += e.problems
    found = None
    try:
        found = read(texts, base=_profile, commands=COMMANDS, profiles=PROFILES, unlimited=FROZEN, start=start)
    except PolicyError as e:
        problems += e.problems
    if problems or found is None:
        raise PolicyError(*problems)
    return _made(paths[0], found)


def from_text(name: str, text: str) -> Policy:
    """The policy that is a text, whoever wrote it: for tools, never for an agent.  Raises PolicyError."""
    from policy.builtin import COMMANDS, FROZEN, PROFILES
    from policy.read import read

    return _made(name, read([(name, text)], base=_profile, commands=COMMANDS, profiles=PROFILES, unlimited=FROZEN))


def _made(name: str, found: Reading) -> Policy:
    return check(
        Policy(
            name,
            frozenset(found.allowed),
            base=found.base,
            why_of=found.why,
            rules=tuple(found.rules),
            lenient=found.lenient,
            auto_thaw=found.auto_thaw,
            disconnect=found.disconnect,
            hook_limit=found.hook_limit,
            expedite=found.expedite,
            more=found.settings,
            notes=_notes(found),
        )
    )


# Which commands a rule of a kind is about, for the note on one that is about nothing.
_ABOUT: Final = {
    "file": ("guest-file-open",),
    "exec": ("guest-exec",),
    "user": (
        "guest-set-user-password",
        "guest-ssh-get-authorized-keys",
        "guest-ssh-add-authorized-keys",
        "guest-ssh-remove-authorized-keys",
    ),
    "power": ("guest-shutdown", "guest-suspend-disk", "guest-suspend-ram", "guest-suspend-hybrid"),
}


def _notes(found: Reading) -> tuple[str, ...]:
    """What is right but without effect."""
    return tuple(
        f"{rule.origin}: the {rule.kind} rule {rule.id} has no effect: no command that it is about is allowed"
        for rule in found.rules
        if rule.kind in _ABOUT and not found.allowed.intersection(_ABOUT[rule.kind])
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
    from policy.trust import NotTrusted, walk

    try:
        folder, name = os.path.split(os.path.abspath(path))
        above = walk(folder + "/.", folders=True)
        try:
            # Not blocking: a FIFO in the file's place must not hang the start.
            fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK, dir_fd=above)
        finally:
            os.close(above)
    except NotTrusted as e:
        raise PolicyError(f"{path} is not believed: {e}") from None
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
        column = e.start - (data.rfind(b"\n", 0, e.start) + 1) + 1
        raise PolicyError(Problem("not UTF-8", path, line, column)) from None
