"""From a configuration and a policy to a running supervisor: the order of things at start.

The front is started as early as can be, because its interpreter takes longer than all that is left to do here; what can fail for
reasons an administrator can mend is tried before it.
"""

from __future__ import annotations

import gc
import os

from privsep import channel, rundir, statefile
from privsep.auditsink import SinkError
from privsep.domains import BY_NAME
from privsep.ledger import Ledger
from privsep.log import Log
from privsep.orders import orders_of
from privsep.runfiles import RunFiles
from privsep.supervisor import Supervisor

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from policy.model import Policy
    from privsep.config import Config
    from privsep.daemon import PidFile
    from privsep.early import Early
    from privsep.orders import Orders

NAME = "supervisor"


class StartError(Exception):
    """The agent cannot start; the text is for the administrator."""


def start(
    config: Config,
    policy: Policy,
    libexec: str,
    early: Early | None = None,
    *,
    again: Callable[[], tuple[Config, Policy]],
) -> int:
    """Run the agent until it ends; the exit status.

    early  the front runs already (privsep/early.py)
    again  reads configuration and policy anew, for a reload"""
    assert config.statedir is not None and config.pidfile is not None
    config.statedir = os.path.abspath(config.statedir)
    log = Log(2, NAME, config.verbose)
    pidfile: PidFile | None = None
    try:
        # First of all: descriptor 3 may be a socket from the service manager.
        inherited = channel.activated(dict(os.environ), os.getpid())
        directory = _state(config)
        logfile = None if config.logfile is None else os.path.abspath(config.logfile)
        place = os.getcwd()
        if config.daemonize:
            pidfile = _background(os.path.abspath(config.pidfile))
        if logfile is not None:
            _to_file(logfile, config.statedir, log)
            log = Log(2, NAME, config.verbose)

        def read_again(result: int) -> int:
            from privsep.reread import read_into

            os.chdir(place)  # names on the command line may be relative
            return read_into(result, again, config)

        def reopen_log() -> bool:
            return logfile is not None and _reopened(logfile, config.statedir or "", log)

        orders = orders_of(config, policy)
        return _supervise(config, orders, libexec, log, RunFiles(directory), inherited, early, read_again, reopen_log)
    except (StartError, channel.ChannelError) as e:
        log.error(str(e))
        return 1
    finally:
        if pidfile is not None:
            pidfile.remove()


def _background(path: str) -> PidFile:
    """Returns in the child.  Raises StartError there."""
    from privsep.daemon import DaemonError, daemonize  # not under a service manager

    try:
        return daemonize(path)
    except DaemonError as e:
        raise StartError(str(e)) from None


def _state(config: Config) -> str:
    """See that the two folders are there; the runtime directory."""
    assert config.statedir is not None
    if not os.path.isdir(config.statedir):
        raise StartError(f"the state folder {config.statedir} is no directory")
    directory = rundir.runtime_dir(config.statedir, os.geteuid())
    try:
        rundir.make(directory, os.geteuid())
    except OSError as e:
        raise StartError(f"cannot use the runtime directory {e.filename or directory}: {e.strerror}") from None
    return directory


def _to_file(path: str, statedir: str, log: Log) -> None:
    """Standard error becomes the log file, so that every process has it."""
    if statefile.is_marked(statedir):
        # Opening a file on a frozen file system may wait for ever.
        log.warning(f"an earlier agent left a freeze; the log stays here until the next start, not in {path}")
        return
    try:
        fd = _open_log(path)
    except OSError as e:
        raise StartError(f"cannot open the log file {path}: {e.strerror}") from None
    os.dup2(fd, 2)
    os.close(fd)


def _open_log(path: str) -> int:
    return os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOCTTY, 0o600)


def _reopened(path: str, statedir: str, log: Log) -> bool:
    """Whether standard error is another file now, because the log file was renamed or removed."""
    if statefile.is_marked(statedir):
        return False  # opening may wait for ever
    try:
        fd = _open_log(path)
    except OSError as e:
        log.error(f"cannot open the log file {path}, the old one is written on: {e.strerror}")
        return False
    new, old = os.fstat(fd), os.fstat(2)
    other = (new.st_dev, new.st_ino) != (old.st_dev, old.st_ino)
    if other:
        os.dup2(fd, 2)
    os.close(fd)
    return other


def _supervise(
    config: Config,
    orders: Orders,
    libexec: str,
    log: Log,
    runfiles: RunFiles,
    inherited: channel.Channel | None,
    early: Early | None,
    read_again: Callable[[int], int],
    reopen_log: Callable[[], bool],
) -> int:
    statedir, method, path = config.statedir, config.method, config.path
    assert statedir is not None and method is not None and path is not None

    def marker(frozen: bool) -> None:
        try:
            statefile.mark(statedir, frozen)
        except OSError as e:
            log.warning(f"cannot {'make' if frozen else 'remove'} the frozen marker in {statedir}: {e.strerror}")

    _granted(orders.rows)
    try:
        ledger = Ledger(log=log, policy=orders.policy)
    except SinkError as e:
        raise StartError(str(e)) from None
    supervisor = Supervisor(
        log=log,
        libexec=libexec,
        orders=orders,
        orders_of=lambda policy: orders_of(config, policy),
        read_again=read_again,
        reopen_log=reopen_log,
        open_channel=lambda: inherited or channel.open_channel(method, path),
        retry=config.retry,
        runfiles=runfiles,
        marker=marker,
        ledger=ledger,
        early=early,
    )
    log.hold = lambda: supervisor.board.frozen
    supervisor.walled = _wall(log, libexec, orders.rows)
    supervisor.start_front()
    for note in orders.policy.notes:
        log.warning(note)
    try:
        if not statefile.is_marked(statedir):
            statefile.ensure(statedir)
    except OSError as e:
        raise StartError(f"cannot write the state file {statedir}/{statefile.STATE}: {e.strerror}") from None
    gc.freeze()
    gc.enable()  # the program turned it off
    try:
        return supervisor.run()
    finally:
        runfiles.remove_status()
        if rundir.is_instance(runfiles.directory) and runfiles.journal_clear():
            rundir.remove(runfiles.directory, runfiles.journal_path)


def _granted(enabled: frozenset[str]) -> None:
    """See that the unit grants what the policy needs.  Raises StartError."""
    if "NOTIFY_SOCKET" not in os.environ or os.geteuid() != 0:
        return  # not started by a service manager: there is no unit
    from privsep import granted

    problem = granted.check(enabled)
    if problem:
        raise StartError(problem)


def _wall(log: Log, libexec: str, enabled: frozenset[str]) -> bool:
    """The supervisor's own filter: what no row needs is refused to it and to all that it starts.

    Not where an enabled row's programs are the administrator's or the host's own: they would inherit it.  Whether it is in
    force.  Raises StartError."""
    if os.geteuid() != 0 or not all(BY_NAME[name].filtered for name in enabled):
        return False
    from privsep.sandbox import kernel, seccomp

    try:
        kernel.install_filter(seccomp.load(f"{libexec}/filters", NAME))
    except seccomp.NoFilter as e:
        raise StartError(str(e)) from None
    except OSError as e:  # no CAP_SYS_ADMIN, as in a container
        log.warning(f"degraded: the supervisor's own system calls are not filtered ({e.strerror})")
        return False
    return True
