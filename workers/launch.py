"""Starts a program the way GLib's g_spawn_async_with_pipes does for the peer, and says exactly why when it cannot.

Facts: GLib's gspawn-posix.c: the search in PATH and which of several errors is told, argv[0] being the path as it was
given, /bin/sh for a script without `#!`.  Differences on purpose: a session of its own for each program, umask 022, and the
default action for every signal, not for SIGPIPE alone.

Why `_posixsubprocess.fork_exec`, which is what `subprocess` itself stands on: it starts by vfork, closes everything that is
not meant for the program, changes the user, and reports the error of the exec.  `subprocess` costs 14 ms to import;
`os.posix_spawn` can neither change the user nor close unknown descriptors; `os.fork` copies page tables and runs Python in the
child.  Its parameters differ by Python release: 3.14 has one less.
"""

from __future__ import annotations

import _posixsubprocess
import errno
import grp
import os
import pwd
import sys

from protocol.errors import CommandError, strerror

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Final

# Where GLib looks when there is no PATH at all: the current folder comes last.
_DEFAULT_PATH: Final = b"/bin:/usr/bin:."
_SHELL: Final = b"/bin/sh"
_UMASK: Final = 0o022
_USE_VFORK: Final = (True,) if sys.version_info < (3, 14) else ()
_FORK_EXEC: Final[Callable[..., int]] = _posixsubprocess.fork_exec

# The search goes on after these; after any other it is over (gspawn-posix.c, g_execute).
_TRY_NEXT: Final = frozenset(
    (errno.EACCES, errno.ENOENT, errno.ESTALE, errno.ENOTDIR, errno.ENODEV, errno.ETIMEDOUT),
)


class Account:
    """Whom programs run as, when that is not who the worker is."""

    __slots__ = ("name", "uid", "gid", "groups", "home")

    def __init__(self, user: str, group: str = "") -> None:
        """By names or numbers; with a group, that one and no other.  Raises KeyError for what does not exist."""
        try:
            entry = pwd.getpwuid(int(user)) if user.isdigit() else pwd.getpwnam(user)
        except KeyError:
            raise KeyError(f"there is no user '{user}'") from None
        self.name = entry.pw_name
        self.uid = entry.pw_uid
        self.home = entry.pw_dir
        if not group:
            self.gid = entry.pw_gid
            self.groups = os.getgrouplist(self.name, entry.pw_gid)
            return
        try:
            self.gid = int(group) if group.isdigit() else grp.getgrnam(group).gr_gid
        except KeyError:
            raise KeyError(f"there is no group '{group}'") from None
        self.groups = [self.gid]

    def variables(self) -> list[str]:
        """Those that say whose it is."""
        return [f"HOME={self.home}", f"USER={self.name}", f"LOGNAME={self.name}"]


def launch(
    path: str,
    arguments: Sequence[str],
    environment: Sequence[str] | None,
    *,
    stdin: int,
    stdout: int,
    stderr: int,
    account: Account | None,
    confine: Callable[[], None] | None = None,
) -> int:
    """The pid of the new program.  Raises CommandError.

    `confine` is called in its process before it begins, and makes it the account itself then.

    `environment` None is the worker's own, else exactly what is given."""
    try:
        file = _raw(path)
        argv = [file, *map(_raw, arguments)]
        given = None if environment is None else list(map(_raw, environment))
    except ValueError as e:
        raise _failed(path, str(e)) from None
    search = os.environb.get(b"PATH")
    if given is not None:
        search = next((v[5:] for v in given if v.startswith(b"PATH=")), search)

    number = errno.ENOENT
    denied = False
    for candidate in _candidates(file, search):
        try:
            if candidate is not file:
                _look(candidate)
            return _start(candidate, argv, given, stdin, stdout, stderr, account, confine)
        except _NotExecuted as e:
            number = e.number
        if candidate is file or number not in _TRY_NEXT:  # not searched for, or found and broken
            break
        denied |= number == errno.EACCES
    else:
        if denied:
            number = errno.EACCES
    raise _failed(path, strerror(number))


def _failed(path: str, reason: str) -> CommandError:
    return CommandError(f"Failed to execute child process “{path}” ({reason})")


def _raw(text: str) -> bytes:
    """Raises ValueError for what no program can be given."""
    if "\0" in text:
        raise ValueError("there is a NUL in its path, arguments or environment")
    try:
        return text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        raise ValueError("its path, arguments or environment are not Unicode") from None


def _candidates(file: bytes, search: bytes | None) -> list[bytes]:
    """What to try in this order; an empty part of PATH is the current folder."""
    if not file:
        return []
    if b"/" in file:
        return [file]
    return [(folder or b".") + b"/" + file for folder in (_DEFAULT_PATH if search is None else search).split(b":")]


class _NotExecuted(Exception):
    """The child could not execute the file; `number` is the errno."""

    def __init__(self, number: int) -> None:
        self.number = number


def _look(file: bytes) -> None:
    """Most folders of PATH do not have it: a system call instead of a child.  Raises _NotExecuted."""
    try:
        os.stat(file)
    except OSError as e:
        if e.errno in (errno.ENOENT, errno.ENOTDIR):
            raise _NotExecuted(e.errno) from None


def _start(
    file: bytes,
    argv: list[bytes],
    environment: list[bytes] | None,
    stdin: int,
    stdout: int,
    stderr: int,
    account: Account | None,
    confine: Callable[[], None] | None,
) -> int:
    try:
        return _fork_exec(file, argv, environment, stdin, stdout, stderr, account, confine)
    except _NotExecuted as e:
        if e.number != errno.ENOEXEC:
            raise
    return _fork_exec(_SHELL, [_SHELL, file, *argv[1:]], environment, stdin, stdout, stderr, account, confine)


def _fork_exec(
    file: bytes,
    argv: list[bytes],
    environment: list[bytes] | None,
    stdin: int,
    stdout: int,
    stderr: int,
    account: Account | None,
    confine: Callable[[], None] | None,
) -> int:
    """Raises _NotExecuted, or CommandError when not even a child can be made."""
    try:
        told, tell = os.pipe()
    except OSError as e:
        text = f"Failed to create pipe for communicating with child process ({strerror(e.errno or 0)})"
        raise CommandError(text) from None
    try:
        try:
            pid = _FORK_EXEC(
                argv,
                (file,),
                True,  # close what is not meant for it, but for
                (tell,),
                None,  # the folder stays
                environment,
                *(stdin, -1, -1, stdout, -1, stderr),
                *(told, tell),
                True,  # SIGPIPE and SIGXFSZ, which Python ignores, get their default actions
                True,  # a session of its own
                -1,  # and with it a process group
                *(
                    (account.gid, account.groups, account.uid)
                    if account is not None and confine is None
                    else (None,) * 3
                ),
                _UMASK,
                confine,
                *_USE_VFORK,
            )
        except OSError as e:
            raise CommandError(f"Failed to fork child process ({strerror(e.errno or 0)})") from None
        finally:
            os.close(tell)
        # Ends at once when the exec worked, since that closes the child's end.  A failure comes in several writes.
        report = b""
        while piece := os.read(told, 512):
            report += piece
    finally:
        os.close(told)
    if not report:
        return pid
    os.waitpid(pid, 0)
    # "OSError:" errno in hexadecimal, and for some steps their name (Modules/_posixsubprocess.c).
    parts = report.split(b":")
    if parts[0] == b"SubprocessError":
        raise CommandError("the program cannot be confined as policy wants, so it does not run")
    try:
        raise _NotExecuted(int(parts[1], 16))
    except (IndexError, ValueError):
        raise _NotExecuted(errno.EIO) from None
