"""Going to the background with --daemonize, as qemu-ga does: fork, pid file, a session of its own, nothing on the terminal.

Under a service manager none of this is used.
"""

from __future__ import annotations

import fcntl
import os


class DaemonError(Exception):
    """It could not; the text says why."""


class PidFile:
    """The file with our number, locked as long as we live: a second agent with the same file does not start."""

    __slots__ = ("_path", "_fd")

    def __init__(self, path: str) -> None:
        """Raises DaemonError."""
        self._path = path
        try:
            # Not truncated before it is locked: it may be another's.
            self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        except OSError as e:
            raise DaemonError(f"cannot create pid file {path}: {e.strerror}") from None
        try:
            fcntl.lockf(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(self._fd)
            raise DaemonError(f"cannot lock pid file {path}: another agent runs") from None
        os.ftruncate(self._fd, 0)
        os.write(self._fd, b"%d\n" % os.getpid())

    def remove(self) -> None:
        try:
            os.unlink(self._path)
        except OSError:
            pass


def daemonize(pidfile: str) -> PidFile:
    """Returns in the child; the parent exits with status 0.  Raises DaemonError, in the child only."""
    if os.fork():
        os._exit(0)
    # The lock belongs to a process, so it is the child that takes it; before its standard error is gone.
    found = PidFile(pidfile)
    os.umask(0o077)
    os.setsid()
    os.chdir("/")
    null = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
    for fd in (0, 1, 2):
        os.dup2(null, fd)
    if null > 2:
        os.close(null)
    return found
