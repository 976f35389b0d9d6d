"""The front's head start: its process before anything is known that it will be told.

An interpreter and its imports take as long in the front as in the supervisor.  So the front is started as soon as the command
line says that there will be an agent, and both are under way at once.  It gets its control socket, the board and an empty
memfd; the slice of the policy is written and sealed when the policy is known, one byte on the control socket says so
(privsep/child.py waits for it), and nothing is believed before the seals are seen.

Not where the process that goes on is another one (--daemonize), where descriptor 2 is still to become something else, or where
a service manager passed descriptors at numbers that a child's own have.
"""

from __future__ import annotations

import _signal
import os
import stat

from policy.seal import draft
from privsep import spawn, wiring
from privsep.board import Board
from privsep.counters import Page

TYPE_CHECKING = False
if TYPE_CHECKING:
    from privsep.config import Config
    from privsep.wiring import Socket


class Early:
    """A front that waits for its slice: its process, our ends of its control and audit sockets, the memfd, the board and the
    counters it has, and our own status when it was started (what it inherited: we have no filter yet)."""

    __slots__ = ("pid", "control", "policy", "board", "audit", "counters", "status")

    def __init__(
        self, pid: int, control: Socket, policy: int, board: Board, audit: Socket, counters: Page, status: bytes
    ) -> None:
        self.audit = audit
        self.counters = counters
        self.pid = pid
        self.control = control
        self.policy = policy
        self.board = board
        self.status = status

    def abandon(self) -> None:
        """There will be no agent after all."""
        os.kill(self.pid, _signal.SIGKILL)
        os.waitpid(self.pid, 0)


def start_front(config: Config, libexec: str) -> Early | None:
    """None where the supervisor has to start it in its own time."""
    if config.daemonize or config.logfile is not None or "LISTEN_FDS" in os.environ:
        return None
    try:
        if stat.S_ISREG(os.fstat(2).st_mode):
            return None  # the front may not write to a file; it gets a pipe
        board = Board.create()
        board.fd = spawn.above(board.fd)
        policy = spawn.above(draft("privsep-ga-front"))
        ours, theirs = wiring.pair()
        control = spawn.above(theirs.detach())
        audit, their_audit = spawn.outlet()
        counters = Page.create("front")
        counters.fd = spawn.above(counters.fd)
        log = spawn.above(os.dup(2))
    except OSError:
        return None
    try:
        pid = spawn.spawn(
            f"{libexec}/front",
            control=control,
            policy=policy,
            board=board.fd,
            log=log,
            audit=their_audit,
            counters=counters.fd,
            environ=spawn.environment(dict(os.environ), "front", programs=False),
        )
    except OSError:
        return None
    finally:
        os.close(control)
        os.close(log)
        os.close(their_audit)
    with open("/proc/self/status", "rb", buffering=0) as f:  # while the child's interpreter starts
        return Early(pid, ours, policy, board, audit, counters, f.read(16384))
