"""The supervisor's children: their processes, sockets and lives.  What they are for is decided in `supervisor.py`."""

from __future__ import annotations

import _signal
import os
import time

from privsep import life, wiring
from privsep.domains import Domain
from privsep.sandbox import caps

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Final

    from privsep.orders import Orders
    from privsep.wiring import Socket

# Whether it is to make room for a process with other orders.
KEPT: Final = 0
GENTLY: Final = 1  # when it holds nothing
FIRMLY: Final = 2


class Child:
    """One row's process, present or absent.

    `waiting` are (tag, descriptor) messages that go out once the process was found to be what its row says; the
    descriptors are owned until then."""

    __slots__ = (
        "row",
        "life",
        "pid",
        "pidfd",
        "control",
        "waiting",
        "leaving",
        "uid",
        "gid",
        "killed",
        "level",
        "served",
        "orders",
        "retired",
        "inherited",
    )

    def __init__(self, row: Domain, uid: int, gid: int, orders: Orders) -> None:
        self.row = row
        self.life = life.Life()
        self.pid = 0
        self.pidfd = -1
        self.control: Socket | None = None
        self.waiting: list[tuple[bytes, int]] = []
        self.leaving = False  # it was told to end
        self.retired = KEPT
        self.orders = orders  # under which it was started
        self.killed = False
        self.served = False  # the front that runs now has, or had, a socket to it
        self.level = 0  # of Landlock, as it says itself
        self.inherited = 0  # filters that we had when we started it
        self.uid = uid
        self.gid = gid

    @property
    def alive(self) -> bool:
        return self.pid != 0

    @property
    def up(self) -> bool:
        return self.life.state == life.UP

    @property
    def going(self) -> bool:
        """It is there, but will not be for long."""
        return self.alive and (self.leaving or self.killed)

    def wait(self) -> float:
        """Seconds until it may be started again."""
        return self.life.wait(time.monotonic())

    def born(self, pid: int, control: Socket, ours: bytes = b"") -> None:
        """`ours` is our own status when it was started, where that was not now."""
        self.pid = pid
        self.pidfd = os.pidfd_open(pid)
        self.control = control
        control.setblocking(False)  # a child that does not read must not stop us: see `_full`
        self.leaving = self.killed = self.served = False
        self.retired = KEPT
        if not ours:
            with open("/proc/self/status", "rb", buffering=0) as f:
                ours = f.read(16384)
        self.inherited = caps.filters(caps.parse_status(ours))
        self.life.started()

    def give(self, tag: bytes, fd: int) -> None:
        """Send the descriptor (and close it here) now, or when the child is ready."""
        if self.up:
            self._send(tag, fd)
        else:
            self.waiting.append((tag, fd))

    def tell(self, data: bytes) -> None:
        """A message without a descriptor; lost when the child is gone or not ready."""
        if self.control is not None and self.up:
            try:
                self.control.send(data)
            except BlockingIOError:
                self._full()
            except OSError:
                pass  # its death is on its way

    def _send(self, tag: bytes, fd: int) -> None:
        try:
            if self.control is not None:  # else it was told to end
                wiring.send_fd(self.control, tag, fd)
        except BlockingIOError:
            self._full()
        except OSError:
            pass
        os.close(fd)

    def _full(self) -> None:
        """It has left hundreds of messages unread, so it is stopped or hostile; a new one starts with an empty socket."""
        self.kill()

    def is_ready(self, now: float) -> None:
        self.life.ready(now)
        waiting, self.waiting = self.waiting, []
        for tag, fd in waiting:
            self._send(tag, fd)

    def compare(self, available: int) -> list[str]:
        """What of the kernel's view of the process differs from its row; `available` is our own permitted set."""
        try:
            with open(f"/proc/{self.pid}/status", "rb", buffering=0) as f:
                text = f.read(16384)
        except OSError as e:
            return [f"its status cannot be read: {e.strerror}"]
        mask = self.row.mask(available)
        return caps.differences(
            caps.parse_status(text),
            uid=self.uid,
            gid=self.gid,
            mask=mask,
            filtered=self.row.filtered,
            inherited=self.inherited,
        )

    def kill(self) -> None:
        """SIGKILL by pidfd: never another process, whatever became of the number."""
        if self.pidfd >= 0:
            self.killed = True
            try:
                _send_signal(self.pidfd, _signal.SIGKILL)
            except ProcessLookupError:
                pass

    def leave_after(self, forget: Callable[[int], None]) -> None:
        """Have the control socket forgotten and close it: the child ends by itself, the thawer thaws first."""
        self.leaving = True
        if self.control is not None:
            forget(self.control.fileno())
            self.control.close()
            self.control = None

    def retire(self, *, firm: bool) -> None:
        """Have it end after the request in hand: as soon as it holds nothing then, or, if `firm`, whatever it holds.

        One that is not up yet is to be ended when it would be."""
        if self.retired < (FIRMLY if firm else GENTLY):
            self.retired = FIRMLY if firm else GENTLY
            self.tell(wiring.TAG_RETIRE + (b"\1" if firm else b"\0"))

    def reap(self) -> str:
        """The process has ended: what it ended by, for the log."""
        _, status = os.waitpid(self.pid, 0)
        os.close(self.pidfd)
        if self.control is not None:
            self.control.close()
        for _, fd in self.waiting:
            os.close(fd)
        self.waiting = []
        self.pid, self.pidfd, self.control = 0, -1, None
        if os.WIFSIGNALED(status):
            return f"signal {os.WTERMSIG(status)}"
        return f"exit status {os.WEXITSTATUS(status)}"


def _send_signal(pidfd: int, number: int) -> None:
    _signal.pidfd_send_signal(pidfd, number)
