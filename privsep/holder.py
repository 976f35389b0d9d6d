"""The supervisor's part in a freeze: it is the second holder, and what it holds is the journal and a deadline.

The first holder is the thawer (`privsep/thawer.py`), whose deadline comes first.  Here it is decided what the deaths of fs and
thawer mean, and when both are gone the journal is worked off by a forked child: a FITHAW that blocks must not block the
supervisor.

* fs dies while frozen: it is started again at once, so that it takes the freeze over or finishes what a lapse left to do.
* the thawer dies while frozen: fs thaws and ends.  When it has not ended within `PATIENCE_FS` it is killed.
* both are gone: the journal, whether or not there is something left to thaw.
* our deadline: both are killed; then as above.
* one that was killed and does not die, because a file system holds it in the kernel: the journal all the same, again and again until
  it has died, for what it has still to do may freeze.
"""

from __future__ import annotations

import os
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import Final

    from privsep.board import Board
    from privsep.children import Child
    from privsep.ledger import Ledger
    from privsep.log import Log
    from privsep.loop import Loop
    from privsep.runfiles import RunFiles

# Seconds that fs has to thaw and end when the thawer is dead: more than it gives freezes that are in the kernel
# (IN_FLIGHT_PATIENCE, workers/fsstate.py), and with the recovery after it less than the second within which a death is made good.
PATIENCE_FS: Final = 0.7
_LATER: Final = 1.0  # seconds after the thawer's deadline at which ours is
_RECOVERY: Final = 10.0  # seconds after which a recovery that hangs is reported
_AGAIN: Final = 1.0  # seconds until one that failed is tried again,
_RARELY: Final = 10.0  # and at most, each time a second more
_DYING: Final = 0.3  # seconds that a process has to die when it was killed


class Holder:
    """`start` starts a row's process, `ended` is called when nothing is frozen any more, `changed` when the status differs.

    auto_thaw   seconds from a freeze to the thawer's deadline; 0: none
    disconnect  the same from when the host has closed the channel; 0: no such rule
    armed       fs has announced a freeze, and nobody has said that all is thawed
    stopping    the agent is being stopped: nothing is started, nothing new is frozen"""

    __slots__ = (
        "armed", "stopping", "auto_thaw", "disconnect", "_loop", "_log", "_children", "_board", "_runfiles", "_marker", "_privileged",
        "_ledger", "_start", "_changed", "_ended", "_recovery", "_final", "_tries", "_condemned",
    )  # fmt: skip

    def __init__(
        self,
        *,
        loop: Loop,
        log: Log,
        children: Mapping[str, Child],
        board: Board,
        runfiles: RunFiles,
        auto_thaw: float,
        disconnect: float,
        marker: Callable[[bool], None],
        privileged: bool,
        ledger: Ledger,
        start: Callable[[str], bool],
        changed: Callable[[], None],
        ended: Callable[[], None],
    ) -> None:
        self._loop = loop
        self._log = log
        self._children = children
        self._board = board
        self._runfiles = runfiles
        self.auto_thaw = auto_thaw
        self.disconnect = disconnect
        self._marker = marker
        self._privileged = privileged
        self._ledger = ledger
        self._start = start
        self._changed = changed
        self._ended = ended
        self.armed = False
        self.stopping = False
        self._recovery: tuple[int, int] | None = None  # pid, pidfd
        self._final = True  # of that one: whether fs and thawer were gone when it began
        self._tries = 0  # recoveries that failed, one after the other
        self._condemned: set[int] = (
            set()
        )  # pids of what was killed for the freeze's sake: nothing is expected of it any more

    @property
    def recovering(self) -> bool:
        return self._recovery is not None

    @property
    def deadline(self) -> float | None:
        """When (CLOCK_MONOTONIC) the thawer's deadline is; None: nothing is frozen, or for as long as the host likes."""
        due = self._loop.due("deadline")
        return None if due is None else due - _LATER

    def arm(self, *, marker: bool) -> bool:
        """fs is about to freeze: flag, marker and second deadline.  False: it must not."""
        if self.stopping or self.recovering or self._loop.due("again") is not None:
            return False
        if marker:
            self._marker(True)
        self.armed = True
        self._ledger.frozen(True)
        self._board.set_frozen(True)
        if self.auto_thaw > 0 and self._loop.due("deadline") is None:  # a hostile fs cannot put it off
            self._loop.at("deadline", self.auto_thaw + _LATER, self._over)
        self._changed()
        return True

    def shorten(self) -> None:
        """The thawer's deadline is the one for a host that has gone; ours follows.  Never later than it was."""
        due = self._loop.due("deadline")
        sooner = time.monotonic() + self.disconnect + _LATER
        if self.armed and self.disconnect > 0 and (due is None or sooner < due):
            self._loop.at("deadline", self.disconnect + _LATER, self._over)
            self._changed()

    def disarm(self) -> None:
        """Nothing is held any more."""
        self._loop.cancel("deadline")
        self._loop.cancel("fs patience")
        self._loop.cancel("again")
        self._tries = 0
        self._condemned.clear()
        if not self.armed:
            return
        self.armed = False
        self._board.set_frozen(False)
        self._ledger.frozen(False)
        self._marker(False)
        self._ended()

    def _over(self) -> None:
        self._log.error("the freeze is over its deadline and its watchdog has not thawed: thawing from the journal")
        self._condemn("thawer")
        self.end_fs("the deadline passed")

    def end_fs(self, reason: str) -> None:
        """Kill fs, and when it does not die, which a file system may keep it from, thaw without it."""
        self._condemn("fs")
        if self.armed:
            self._loop.at("fs patience", _DYING, lambda: self._undying(reason))

    def _undying(self, reason: str) -> None:
        """What was killed had its time."""
        if self.armed and any(self._children[name].pid in self._condemned for name in ("fs", "thawer")):
            self._condemn("thawer")
            self.recover(reason)

    def _condemn(self, name: str) -> None:
        child = self._children[name]
        if child.alive:
            self._condemned.add(child.pid)
            child.kill()

    def _dying(self, name: str) -> bool:
        """It is there, and nothing is expected of it any more but its death, for which a timer waits."""
        return self._children[name].pid in self._condemned

    # -- deaths

    def fs_died(self) -> None:
        if self.armed:
            if not self._children["thawer"].alive:
                self.recover("the freeze's workers died")
            elif not self._dying("thawer"):
                self._restart_fs()
        elif self._runfiles.journal_pending():
            self._restart_fs()  # the thaw hook is still due
        else:
            for name in ("thawer", "hook"):
                if self._children[name].alive:
                    self._children[name].leave_after(self._loop.forget)

    def thawer_died(self) -> None:
        fs = self._children["fs"]
        if not fs.alive:
            if self.armed:
                self.recover("the freeze's workers died")
        elif self._dying("fs"):
            pass
        elif self.armed:
            self._loop.at("fs patience", PATIENCE_FS, lambda: self.end_fs("the freeze's workers died"))
        else:
            fs.leave_after(self._loop.forget)

    def _restart_fs(self) -> None:
        if not self._start("fs"):
            self._loop.at("fs", self._children["fs"].wait() + 0.001, self._restart_fs)

    # -- the journal

    def recover(self, reason: str) -> None:
        """Thaw what the journal names; `reason` is what the host will be told."""
        if self._recovery is not None or not self._privileged:
            return
        final = not self._children["fs"].alive and not self._children["thawer"].alive
        try:
            pid = os.fork()
        except OSError as e:
            self._log.error(f"thawing from the journal cannot begin: {e.strerror}; trying again")
            self._loop.at("again", _AGAIN, lambda: self.recover(reason))
            return
        if pid == 0:
            status = 1
            try:
                from privsep import recover

                try:
                    for line in recover.recover(self._runfiles.journal_path, reason, final):
                        self._log.error(line)
                    status = 0
                except (recover.StillFrozen, OSError) as e:
                    self._log.error(str(e))
            finally:
                os._exit(status)
        self._recovery = (pid, os.pidfd_open(pid))
        self._final = final
        self._ledger.recovery(reason)
        self._loop.watch(self._recovery[1], lambda: self._recovered())
        self._loop.at("recovery", _RECOVERY, lambda: self._log.error("thawing from the journal takes long"))

    def _recovered(self) -> None:
        assert self._recovery is not None
        pid, pidfd = self._recovery
        _, status = os.waitpid(pid, 0)
        self._loop.forget(pidfd)
        os.close(pidfd)
        self._recovery = None
        self._loop.cancel("recovery")
        if status == 0:
            self.disarm()
            if self._runfiles.journal_pending() and not self.stopping:
                self._restart_fs()  # a hook is due
        else:
            died = not self._final and not self._children["fs"].alive and not self._children["thawer"].alive
            if died:  # meanwhile what was waited for has died
                self._tries = 0
            else:
                self._tries += 1
                self._log.error("thawing from the journal failed; trying again")
            pause = min(_AGAIN * self._tries, _RARELY)
            self._loop.at("again", pause, lambda: self.recover("the freeze's workers died"))
        self._changed()
