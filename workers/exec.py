"""Runs programs for the host: starts them, keeps what they say, tells how they ended.

The rules and the words are the peer's (qemu's qga/commands.c): what is captured how, 16 MiB kept of a stream, `exited` only
when the program was reaped and its captured pipes are at their end, each result told once.  Differences on purpose: each
program leads a session, and so a process group, of its own; descriptors, signals, umask and OOM score of the agent do not
reach it; numbers and sizes are bounded (`workers/children.py`).

Under a policy with rules for programs, what may be run with what was decided before (policy/decide.py); the rule that admitted it
says who it runs as, for how long and how much of its output is kept, and it gets a plain environment.  Without rules it runs as
the worker does.  Setting `exec-output`: bytes kept of a stream.
"""

from __future__ import annotations

import _signal
import os

from privsep import frame
from protocol.errors import CommandError
from workers.base64 import whole
from workers.children import STREAM, Child, Children
from workers.confine import Confinement, wanted
from workers.launch import Account, launch

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Final

    from policy.rules import Rule
    from privsep.runtime import Context

# capture-output -> where 1 and 2 go; True and False are all that older peers know.
_NULL: Final = 0
_OUT: Final = 1
_ERR: Final = 2
_MODES: Final = {
    "none": (_NULL, _NULL),
    "stdout": (_OUT, _NULL),
    "stderr": (_NULL, _ERR),
    "separated": (_OUT, _ERR),
    "merged": (_OUT, _OUT),
    True: (_OUT, _ERR),
    False: (_NULL, _NULL),
}
# What a program of a rule has when the host sets no variables: nothing of the agent's own.
_PATH: Final = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_OOM_SCORE_ADJ: Final = "/proc/self/oom_score_adj"


class Table:
    """The children, /dev/null, and the bytes kept of a stream."""

    __slots__ = ("children", "null", "keep", "watched")

    def __init__(self, keep: int) -> None:
        self.children = Children()
        self.null = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
        self.keep = keep
        self.watched: dict[int, Callable[[Context], None]] = {self.children.fileno(): service}


def prepare(ctx: Context) -> None:
    """What needs /proc, /dev and /etc, while they are within reach."""
    _let_signals_through()
    _reset_oom_score(ctx)
    ctx.state.__dict__["exec"] = Table(int(ctx.setting("exec-output") or STREAM))


def holds(ctx: Context) -> bool:
    """Whether programs run, or have results that were not asked for."""
    return len(_table(ctx).children) > 0


def watch(ctx: Context) -> dict[int, Callable[[Context], None]]:
    """One descriptor for all children (see workers/children.py)."""
    return _table(ctx).watched


def service(ctx: Context) -> None:
    """Feeds, reads and reaps."""
    _table(ctx).children.service(ctx)


def guest_exec(
    ctx: Context,
    path: str,
    arg: list[str] | None = None,
    env: list[str] | None = None,
    input_data: str | frame.Incoming | None = None,
    capture_output: bool | str = False,
) -> dict[str, object]:
    """Starts a program and does not wait for it."""
    table = _table(ctx)
    data = whole(input_data) if input_data is not None else b""
    rule = ctx.grant
    account = _account(rule) if rule is not None else None
    if account is not None and env is None:
        env = [_PATH, *account.variables()]
    table.children.service(ctx)  # what has ended makes room
    table.children.admit(len(data))
    walls = _walls(rule, account) if rule is not None and account is not None and wanted(rule) else None
    mine: list[int] = []  # descriptors that stay here
    theirs: list[int] = []  # those for the program
    try:
        stdin = write = None
        if input_data is not None:
            stdin, write = _pipe()
            theirs.append(stdin)
            mine.append(write)
            os.set_blocking(write, False)
        reads: dict[int, int] = {}
        writes = {_NULL: table.null}
        for which in set(_MODES[capture_output]) - {_NULL}:
            reads[which], writes[which] = _pipe()
            mine.append(reads[which])
            theirs.append(writes[which])
            os.set_blocking(reads[which], False)
        one, two = _MODES[capture_output]
        pid = launch(
            path,
            arg or (),
            env,
            stdin=table.null if stdin is None else stdin,
            stdout=writes[one],
            stderr=writes[two],
            account=account,
            confine=walls,
        )
        try:
            child = Child(pid, reads.get(_OUT), reads.get(_ERR), write, data, keep=_kept(table, rule))
        except OSError as e:  # nobody could ever tell its end
            os.kill(pid, _signal.SIGKILL)
            os.waitpid(pid, 0)
            raise CommandError.from_errno("failed to watch the program, so it was killed", e.errno or 0) from None
        mine.clear()
    finally:
        for fd in mine + theirs:
            os.close(fd)
        if walls is not None:
            walls.close()
    ctx.log.later(f"guest-exec: {path!r} with {len(arg or ())} arguments is pid {pid}")
    table.children.add(ctx, child, int(rule.one("time-limit", "0")) if rule is not None else 0)
    return {"pid": pid}


def guest_exec_status(ctx: Context, pid: int) -> dict[str, object]:
    """How a program fares; the call that says that it has exited forgets it."""
    children = _table(ctx).children
    children.service(ctx)
    child = children.claim(pid)
    if child is None:
        return {"exited": False}
    status: dict[str, object] = {"exited": True}
    if child.signal is not None:
        status["signal"] = child.signal
    else:
        status["exitcode"] = child.exitcode
    for name, stream in (("out", child.out), ("err", child.err)):
        # A stream without data is not spoken of, unless there was some and no room for it.
        if stream is not None and (stream.data or stream.truncated):
            status[f"{name}-data"] = stream.data
            status[f"{name}-truncated"] = stream.truncated
    return status


def _table(ctx: Context) -> Table:
    table = ctx.state.__dict__["exec"]
    assert isinstance(table, Table)
    return table


def _account(rule: Rule) -> Account:
    """Whom the rule has programs run as.  Raises CommandError when there is no such account: never anybody else."""
    try:
        return Account(rule.one("user"), rule.one("group"))
    except KeyError as e:
        raise CommandError(f"guest-exec cannot follow policy (rule {rule.id}): {e.args[0]}") from None


def _walls(rule: Rule, account: Account) -> Confinement:
    """What the rule keeps the program from.  Raises CommandError when that cannot be had."""
    try:
        return Confinement(rule, account)
    except OSError as e:
        raise CommandError(f"guest-exec cannot follow policy (rule {rule.id}): {e.strerror}") from None


def _kept(table: Table, rule: Rule | None) -> int:
    return int(rule.one("output-limit", str(table.keep))) if rule is not None else table.keep


def _pipe() -> tuple[int, int]:
    try:
        return os.pipe()
    except OSError as e:
        raise CommandError.from_errno("failed to create a pipe for the program", e.errno or 0) from None


def _let_signals_through() -> None:
    """What this process ignores its programs would ignore too, SIGTERM among it; what it catches they do not."""
    for number in _signal.valid_signals():
        if number in (_signal.SIGPIPE, _signal.SIGXFSZ):
            continue  # Python's own; the start of a program takes care of them
        if _signal.getsignal(number) == _signal.SIG_IGN:
            _signal.signal(number, _signal.SIG_DFL if number == _signal.SIGCHLD else _do_nothing)
    _signal.pthread_sigmask(_signal.SIG_SETMASK, ())


def _do_nothing(number: int, frame: object) -> None:
    """As good as ignoring."""


def _reset_oom_score(ctx: Context) -> None:
    """A program must not inherit the agent's shelter from the OOM killer, and a worker that keeps a program's output needs
    none either.  Only ever raised to 0: the other way would take a capability (proc(5))."""
    try:
        fd = os.open(_OOM_SCORE_ADJ, os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return
    try:
        if int(os.read(fd, 32)) < 0:
            os.pwrite(fd, b"0\n", 0)
    except (OSError, ValueError) as e:
        ctx.log.warning(f"programs inherit the agent's OOM score: {e}")
    finally:
        os.close(fd)
