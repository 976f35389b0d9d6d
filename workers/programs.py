"""Runs one program to its end: bounded output, a time limit, nothing inherited.

The program gets a session of its own, `/` as its folder, umask 022, default signal actions, an environment that the caller
names, no descriptor but 0, 1 and 2, and no core dump.  Its output (1 and 2, merged in order) is kept up to a bound and read
and dropped beyond it.  The run ends when the program itself has ended: what it leaves in the background keeps neither the
output nor the caller waiting.

Why not `subprocess`: it costs 14 ms and some MiB to import, in processes whose budget is counted in those.  Why not
`os.posix_spawn`: it cannot close descriptors that it was not told of.  `_posixsubprocess.fork_exec` can all this, but its
parameters change between Python releases.  So fork and exec by hand; between the two the child only makes system calls.

The system calls beyond the plain ones: fork (clone), execve, setsid, close_range, pidfd_open, waitid, kill, prlimit.
"""

from __future__ import annotations

import _signal
import errno
import os
import resource
import select
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Final, NoReturn

# Where programs are looked up, whatever the environment says: folders that only root can write.
PATH: Final = ("/usr/sbin", "/usr/bin", "/sbin", "/bin")
ENVIRONMENT: Final = {"PATH": ":".join(PATH), "LC_ALL": "C"}

OUTPUT: Final = 4096  # bytes of output that are kept by default
_CHUNK: Final = 65536
_AFTER_KILL: Final = 2.0  # seconds that SIGKILL is given to work; a process in D state takes longer

# A limit of one byte, not of none: the kernel skips a piped core handler for this value only (fs/coredump.c).
_NO_CORE: Final = 1


class Result:
    """How a run ended.

    status     the exit status; minus the signal's number when a signal ended it; None when it is not known
    output     the first bytes of what it wrote to 1 and 2
    truncated  it wrote more than was kept
    late       it was killed at its time limit
    """

    __slots__ = ("status", "output", "truncated", "late")

    def __init__(self, status: int | None, output: bytes, truncated: bool, late: bool) -> None:
        self.status = status
        self.output = output
        self.truncated = truncated
        self.late = late

    def text(self) -> str:
        """The output as text for an error message: never a control character but newline and tab."""
        text = self.output.decode("utf-8", "replace")
        text = "".join(c if c in "\n\t" or c.isprintable() else "\ufffd" for c in text)
        return f"{text} [output truncated]" if self.truncated else text


def find(name: str, root: str = "") -> str | None:
    """The path of an executable regular file called `name` in `PATH`, below `root`."""
    for folder in PATH:
        path = f"{root}{folder}/{name}"
        if executable(path):
            return path
    return None


def executable(path: str) -> bool:
    """Whether `path` is a regular file that this process may execute; symbolic links are followed."""
    return os.access(path, os.X_OK) and os.path.isfile(path)


def run(
    argv: Sequence[str],
    *,
    stdin: bytes | bytearray | memoryview | None = None,
    limit: float,
    keep: int = OUTPUT,
    environment: dict[str, str] | None = None,
) -> Result:
    """Runs `argv[0]` (a path) with `argv`; raises OSError when it cannot be started.

    `stdin` is written to a pipe that is then closed, without a copy being made here; None is /dev/null.  `limit` is in
    seconds of CLOCK_MONOTONIC; past it the program's whole process group is killed.  `keep`: bytes of output to keep.
    """
    deadline = time.monotonic() + limit
    opened: list[int] = []
    try:
        if stdin is None:
            in_read, in_write = os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC), -1
            opened.append(in_read)
        else:
            in_read, in_write = os.pipe()
            opened += (in_read, in_write)
            os.set_blocking(in_write, False)
        out_read, out_write = os.pipe()
        opened += (out_read, out_write)
        os.set_blocking(out_read, False)
        fail_read, fail_write = os.pipe()
        opened += (fail_read, fail_write)

        environ = ENVIRONMENT if environment is None else environment
        pid = os.fork()
        if pid == 0:
            _child(argv, environ, in_read, out_write, fail_write)
        for fd in (in_read, out_write, fail_write):
            os.close(fd)
            opened.remove(fd)
        failure = os.read(fail_read, 8)
        if failure:
            os.waitpid(pid, 0)
            number = int(failure)
            raise OSError(number, os.strerror(number))
        return _attend(pid, stdin, in_write, out_read, opened, deadline, keep)
    finally:
        for fd in opened:
            os.close(fd)


def _child(argv: Sequence[str], environ: dict[str, str], stdin: int, output: int, failure: int) -> NoReturn:
    """Becomes the program.  Nothing here may raise past the end: it is a copy of a worker."""
    try:
        os.setsid()
        # Out of the way of 0 to 3 first, whatever numbers the pipes got.
        stdin, output, failure = (_above(fd) for fd in (stdin, output, failure))
        os.dup2(stdin, 0)
        os.dup2(output, 1)
        os.dup2(output, 2)
        os.dup2(failure, 3, inheritable=False)
        os.closerange(4, 1 << 20)
        # Ignored signals and the signal mask would live on in the program; a worker ignores several.
        _signal.pthread_sigmask(_signal.SIG_SETMASK, ())
        for number in range(1, _signal.NSIG):
            if number not in (_signal.SIGKILL, _signal.SIGSTOP):
                try:
                    _signal.signal(number, _signal.SIG_DFL)
                except (OSError, ValueError):  # the two that glibc keeps for itself
                    pass
        hard = resource.getrlimit(resource.RLIMIT_CORE)[1]
        core = min(_NO_CORE, hard) if hard != resource.RLIM_INFINITY else _NO_CORE
        resource.setrlimit(resource.RLIMIT_CORE, (core, core))
        os.umask(0o022)
        os.chdir("/")
        os.execve(argv[0], list(argv), environ)  # noqa: S606 (no shell is the point)
    except OSError as e:
        os.write(3, str(e.errno or errno.EIO).encode())
    except BaseException:
        os.write(3, str(errno.EINVAL).encode())
    finally:
        os._exit(127)


def _above(fd: int) -> int:
    import fcntl

    return fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 10)


def _attend(
    pid: int,
    stdin: bytes | bytearray | memoryview | None,
    in_write: int,
    out_read: int,
    opened: list[int],
    deadline: float,
    keep: int,
) -> Result:
    """Feeds the program and reads it until it has ended or its time is up."""
    pidfd = os.pidfd_open(pid)
    opened.append(pidfd)
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    poll.register(out_read, select.POLLIN)
    rest = memoryview(stdin) if stdin is not None else memoryview(b"")
    if in_write >= 0:
        poll.register(in_write, select.POLLOUT)
    output = bytearray()
    truncated = late = ended = False
    while not ended:
        left = deadline - time.monotonic()
        if left <= 0:
            if late:
                break
            late, deadline = True, time.monotonic() + _AFTER_KILL
            _kill_group(pid)
            continue
        for fd, _ in poll.poll(left * 1000):
            if fd == pidfd:
                ended = True
            elif fd == in_write:
                rest = _feed(in_write, rest)
                if not rest:
                    poll.unregister(in_write)
                    os.close(in_write)
                    opened.remove(in_write)
            else:
                more, over = _drain(out_read, output, keep, once=True)
                truncated |= over
                if not more:
                    poll.unregister(out_read)
    rest.release()
    if not ended:
        return Result(None, bytes(output), truncated, late)
    _, status = os.waitpid(pid, 0)
    truncated |= _drain(out_read, output, keep, once=False)[1]
    return Result(os.waitstatus_to_exitcode(status), bytes(output), truncated, late)


def _feed(fd: int, rest: memoryview) -> memoryview:
    """Writes what fits and returns what is left; nothing is left for a program that does not read."""
    try:
        return rest[os.write(fd, rest) :]
    except BlockingIOError:
        return rest
    except OSError:
        return rest[:0]


def _drain(fd: int, output: bytearray, keep: int, *, once: bool) -> tuple[bool, bool]:
    """Reads what is there; returns (more may come, something was dropped)."""
    dropped = False
    for _ in range(1 if once else 17):  # a pipe holds at most 1 MiB: what a background process adds is not waited for
        try:
            data = os.read(fd, _CHUNK)
        except BlockingIOError:
            break
        if not data:
            return False, dropped
        room = keep - len(output)
        output += data[:room] if room > 0 else b""
        dropped |= len(data) > room
    return True, dropped


def _kill_group(pid: int) -> None:
    """SIGKILL to the session that the program leads, and to the program itself should it have left its group."""
    for kill in (os.killpg, os.kill):
        try:
            kill(pid, _signal.SIGKILL)
        except (ProcessLookupError, PermissionError):
            pass
