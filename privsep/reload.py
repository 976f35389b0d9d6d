"""SIGHUP: the policy is read again, and takes over if it can.

One reload at a time; a signal that comes during one means another after it, so whatever was changed before a signal is read
after it.  Each has a number, and the status file says of the last one how it ended (`privsep-gactl reload` waits for it):

    applied          it is in force
    deferred         file systems are frozen; it is read and applied after the thaw
    refused          the policy is wrong; the old one stays in force
    restart-needed   it needs what the agent has given up for good; the old one stays in force

The reading is done by a child (`privsep/reread.py`), so that neither a parser nor a folder that does not answer is ours to suffer.
"""

from __future__ import annotations

import _signal
import os
import time

import _prctl

from privsep import reread
from privsep.log import printable
from privsep.orders import APPLIED, RESTART_NEEDED

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Final

    from policy.model import Policy
    from privsep.log import Log
    from privsep.loop import Loop

_LIMIT: Final = 10.0  # seconds that the reading may take
_CONFIRMED: Final = 1.0  # seconds that the front has to say that it goes by the new policy
_PATIENCE: Final = 2.0  # seconds that processes on their way are waited for
_LOOK_AGAIN: Final = 0.02
_SAID: Final = 64  # lines of errors and notes that the status keeps

DEFERRED: Final = "deferred"
REFUSED: Final = "refused"


class Reload:
    """`reader` does a child's work, given the descriptor for its result; `held` says that nothing may be read or applied now,
    `starting` that processes are on their way, which reloads in a row must give the time to arrive and to answer something;
    `adopt` puts a policy in force: (APPLIED or RESTART_NEEDED, lines for the administrator); `confirm` is called when the front
    goes by them."""

    __slots__ = (
        "_loop", "_log", "_reader", "_held", "_starting", "_patience", "_adopt", "_changed", "_begun", "_ended", "_result",
        "_child", "_waiting", "_stopped", "_unconfirmed",
    )  # fmt: skip

    def __init__(
        self,
        *,
        loop: Loop,
        log: Log,
        reader: Callable[[int], int],
        held: Callable[[], bool],
        starting: Callable[[], bool],
        adopt: Callable[[Policy], tuple[str, list[str]]],
        changed: Callable[[], None],
    ) -> None:
        self._loop = loop
        self._log = log
        self._reader = reader
        self._held = held
        self._starting = starting
        self._patience = 0.0  # until when to wait for them
        self._adopt = adopt
        self._changed = changed
        self._begun = 0
        self._ended = 0
        self._result: tuple[str, list[str]] = ("", [])
        self._child: tuple[int, int, int] | None = None  # pid, pidfd, memfd
        self._unconfirmed: list[str] | None = (
            None  # what there is to say about orders that the front does not go by yet
        )
        self._waiting = False  # for the reading that goes on, or for the thaw
        self._stopped = False

    def ask(self) -> None:
        """A SIGHUP came."""
        if self._child is not None or self._unconfirmed is not None:
            self._waiting = True
        else:
            self._begin()

    def resume(self) -> None:
        """What held it may be over."""
        if self._waiting and self._child is None and self._unconfirmed is None and not self._stopped:
            self._begin()

    def confirm(self) -> None:
        """The front goes by the new policy, so whatever it reads from now on is judged by it."""
        if self._unconfirmed is not None:
            lines, self._unconfirmed = self._unconfirmed, None
            self._loop.cancel("reload")
            self._end(APPLIED, lines)
            self.resume()

    def stop(self) -> None:
        """The agent ends."""
        self._stopped = True
        if self._child is not None:
            _signal.pidfd_send_signal(self._child[1], _signal.SIGKILL)

    def status(self) -> list[str]:
        """The lines of the status file: how many have begun; the last that ended, and what there is to say about it."""
        lines = [f"reload-begun {self._begun}"]
        if self._ended:
            lines.append(f"reload {self._ended} {self._result[0]}")
            lines += [f"reload-says {printable(line)}" for line in self._result[1][:_SAID]]
        return lines

    # -- how

    def _begin(self) -> None:
        now = time.monotonic()
        if self._starting() and (not self._patience or now < self._patience):
            self._patience = self._patience or now + _PATIENCE
            self._waiting = True
            self._loop.at("reload", _LOOK_AGAIN, self.resume)
            return
        self._patience = 0.0
        self._waiting = False
        self._begun += 1
        if self._held():
            self._defer()
            return
        self._changed()  # before anything is read: who sees an older number knows that the next reload reads what is there now
        memory = os.memfd_create("privsep-ga-reload", os.MFD_CLOEXEC)
        ours = os.getpid()
        pid = os.fork()
        if pid == 0:
            status = 1
            try:
                die_with(ours)
                status = self._reader(memory)
            finally:
                os._exit(status)
        pidfd = os.pidfd_open(pid)
        self._child = pid, pidfd, memory
        self._loop.watch(pidfd, lambda: self._read())
        self._loop.at("reload", _LIMIT, self._late)

    def _defer(self) -> None:
        self._waiting = True
        self._end(DEFERRED, ["file systems are frozen: it is read and applied after the thaw"])

    def _late(self) -> None:
        assert self._child is not None
        self._log.error(f"reading the policy takes longer than {_LIMIT:g} seconds and is given up")
        _signal.pidfd_send_signal(self._child[1], _signal.SIGKILL)

    def _read(self) -> None:
        """The child has ended."""
        assert self._child is not None
        pid, pidfd, memory = self._child
        self._child = None
        self._loop.cancel("reload")
        self._loop.forget(pidfd)
        os.waitpid(pid, 0)
        os.close(pidfd)
        if self._stopped:
            return
        try:
            policy = reread.result(memory)
        except reread.Bad as e:
            self._end(REFUSED, e.lines)
        else:
            if self._held():  # a freeze was quicker
                self._defer()
                return
            result, lines = self._adopt(policy)
            if result == APPLIED:
                self._unconfirmed = lines
                # A front that is on its way, or dies on it, begins with the new policy.
                self._loop.at("reload", _CONFIRMED, self.confirm)
                return
            self._end(result, lines)
        finally:
            os.close(memory)
        self.resume()

    def _end(self, result: str, lines: list[str]) -> None:
        self._ended = self._begun
        self._result = result, lines
        if result in (REFUSED, RESTART_NEEDED):
            for line in lines:
                self._log.error(line)
            self._log.error("the policy was not reloaded; the old one stays in force")
        else:
            for line in lines:
                self._log.warning(line)
        self._changed()


def die_with(parent: int) -> None:
    """This process ends when its parent does; it shares descriptors whose ends of file others wait for."""
    _prctl.prctl(_prctl.PR_SET_PDEATHSIG, _signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)
