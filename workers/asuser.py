"""Acts as another user, for good, in a child made for one request.

The child becomes the user (groups, gids, uids, no capability) before it does anything, closes what it does not need, and answers
through a pipe.  The user may stop or kill it, which is then a process of theirs like any other: the answer is waited
for so long and no longer.  A process of uid 0 without CAP_KILL may not kill another user's (kill(2)), hence `_end`; the
child also ends itself by an alarm.

Facts: credentials(7), capabilities(7).  System calls beyond the plain ones: fork (clone), setgroups, setresgid, setresuid,
capset, alarm, pidfd_open, kill, close_range.
"""

from __future__ import annotations

import _signal
import errno
import os
import select
import time

import _prctl

from privsep.sandbox import caps
from protocol.errors import CommandError, strerror

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Final, NoReturn

LIMIT: Final = 10.0  # seconds for one child
ANSWER_LIMIT: Final = 2 * 1024 * 1024  # bytes
_AFTER_KILL: Final = 1.0

# Children that outlived their time limit: reaped when they do end.
_leftover: list[int] = []


class Account:
    """What the account database says of the target user."""

    __slots__ = ("name", "uid", "gid", "groups", "home")

    def __init__(self, name: str, uid: int, gid: int, groups: list[int], home: str) -> None:
        self.name = name
        self.uid = uid
        self.gid = gid
        self.groups = groups
        self.home = home


def as_user(account: Account, task: Callable[[], bytes]) -> bytes:
    """What `task` returns when it runs as the user; its CommandError is raised here."""
    _reap()
    deadline = time.monotonic() + LIMIT
    reader, writer = os.pipe()
    try:
        try:
            pid = os.fork()
        except OSError as e:
            raise CommandError.from_errno("failed to create child process", e.errno or 0) from None
        if pid == 0:
            _child(account, task, writer)
    except BaseException:
        os.close(reader)
        raise
    finally:
        os.close(writer)
    try:
        answer = _receive(reader, deadline)
    finally:
        os.close(reader)
    if answer is None or not _wait(pid, deadline):
        _end(pid, account)
    if answer is None:
        raise CommandError(f"acting as user '{account.name}' took longer than {LIMIT:.0f} seconds")
    if answer[:1] == b"+":
        return answer[1:]
    if answer[:1] == b"-":
        raise CommandError(answer[1:].decode("utf-8", "replace"))
    raise CommandError(f"the process that acts as user '{account.name}' ended without an answer")


def _child(account: Account, task: Callable[[], bytes], writer: int) -> NoReturn:
    """Nothing leaves it but the answer: `+` and the result, or `-` and the words of the error."""
    try:
        _signal.alarm(int(LIMIT) + 1)
        os.closerange(3, writer)
        os.closerange(writer + 1, 1 << 20)
        os.umask(0o077)
        _become(account)
        answer = b"+" + task()
    except CommandError as e:
        answer = b"-" + e.desc.encode("utf-8", "replace")
    except BaseException as e:
        what = strerror(e.errno) if isinstance(e, OSError) and e.errno else type(e).__name__
        answer = b"-" + f"acting as user '{account.name}' failed: {what}".encode()
    try:
        at = 0
        while at < len(answer):
            at += os.write(writer, answer[at:])
    finally:
        os._exit(0)


def _become(account: Account) -> None:
    """For good: real, effective and saved ids, and no capability in any set that could be used."""
    if os.geteuid() == 0:
        os.setgroups(account.groups)
        os.setresgid(account.gid, account.gid, account.gid)
        os.setresuid(account.uid, account.uid, account.uid)
    if os.getresuid() != (account.uid,) * 3:
        raise PermissionError(errno.EPERM, "")
    # The kernel has done this for any uid but 0.
    caps.limit_to(0, _prctl.CAP_LAST_CAP)


def _receive(reader: int, deadline: float) -> bytes | None:
    """Everything up to the end of file; None when it takes too long or is too much."""
    poll = select.poll()
    poll.register(reader, select.POLLIN)
    answer = bytearray()
    while len(answer) <= ANSWER_LIMIT:
        left = deadline - time.monotonic()
        if left <= 0 or not poll.poll(left * 1000):
            return None
        data = os.read(reader, 65536)
        if not data:
            return bytes(answer)
        answer += data
    return None


def _wait(pid: int, deadline: float) -> bool:
    """Whether the child had ended by then; it is reaped."""
    pidfd = os.pidfd_open(pid)
    try:
        poll = select.poll()
        poll.register(pidfd, select.POLLIN)
        if not poll.poll(max(0.0, deadline - time.monotonic()) * 1000):
            return False
    finally:
        os.close(pidfd)
    os.waitpid(pid, 0)
    return True


def _end(pid: int, account: Account) -> None:
    """SIGKILL by a process that is the same user, as uid 0 without CAP_KILL has not the right."""
    killer = os.fork()
    if killer == 0:
        try:
            _become(account)
            os.kill(pid, _signal.SIGKILL)
        finally:
            os._exit(0)
    deadline = time.monotonic() + _AFTER_KILL
    for child in (killer, pid):
        if not _wait(child, deadline):
            _leftover.append(child)


def _reap() -> None:
    for child in _leftover[:]:
        if os.waitpid(child, os.WNOHANG)[0]:
            _leftover.remove(child)
