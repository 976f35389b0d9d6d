"""The supervisor: starts the others, looks at them, hands sockets over, and is the second holder of every freeze.

It reads one byte at a time from its children and believes none of them: a byte makes it do what it would do for any child of
that row.  It never sees a request or a reply.

Deaths (the thawer's own rules are in `privsep/thawer.py`):

* a worker: the front notices by the end of file on their socket; it is started again when it is asked for, after a pause
  when it keeps dying.
* the front: started again at once; workers that hold state get a new socket when the new front asks for them.
* fs while frozen: started again at once, so that it takes the freeze over or finishes what a lapse left to do (the hook).
* the thawer while frozen: fs thaws and ends.  When it has not ended soon it is killed.  Once both are gone the journal
  is worked off by a forked child of our own, whether or not there is something left to thaw.
* the deadline and one second more: fs and thawer are killed; then as above.
"""

from __future__ import annotations

import _signal
import os
import select
import stat
import time

from privsep import channel, life, spawn, wiring
from privsep.accounts import resolve
from privsep.board import Board
from privsep.children import Child
from privsep.domains import BY_NAME, DOMAINS, LANDLOCK, LANDLOCK_UNDECLARED, NUMBER, SUPERVISOR_CAPS
from privsep.notify import Notifier
from privsep.sandbox import caps

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Final

    from privsep.early import Early
    from privsep.log import Log
    from privsep.runfiles import RunFiles
    from privsep.wiring import Socket

_PATIENCE_FS: Final = 0.5  # seconds that fs has to thaw and end when the thawer is dead
_LATER: Final = 1.0  # seconds after the thawer's deadline at which ours is
_STOP_THAW: Final = 0.6  # seconds that a stop waits for the thaw, at each of two attempts
_STOP_ALL: Final = 1.5  # seconds that a stop waits for the children
_REOPEN: Final = 5.0  # seconds between attempts to open a lost channel, as the peer
_COPIED: Final = 64 * 1024  # bytes of the front's log in one second; what is more waits, then its lines are lost
_RECOVERY: Final = 10.0  # seconds after which a recovery that hangs is reported and tried again


class Supervisor:
    """`enabled` are the rows that may have a process; `slices` makes the sealed policy of one."""

    def __init__(
        self,
        *,
        log: Log,
        libexec: str,
        enabled: frozenset[str],
        slices: Callable[[str, dict[str, str], int | None], int],
        open_channel: Callable[[], channel.Channel],
        retry: bool,
        runfiles: RunFiles,
        auto_thaw: float,
        hook_limit: float,
        marker: Callable[[bool], None],
        policy_name: str,
        early: Early | None = None,
    ) -> None:
        self._log = log
        self._libexec = libexec
        self._enabled = enabled
        self._slices = slices
        self._open_channel = open_channel
        self._retry = retry
        self._runfiles = runfiles
        self._auto_thaw = auto_thaw
        self._hook_limit = hook_limit
        self._marker = marker
        self._policy_name = policy_name
        self._privileged = os.geteuid() == 0
        with open("/proc/self/status", "rb", buffering=0) as status:
            self._available = caps.permitted(caps.parse_status(status.read(16384)))
        self._log_fd = spawn.above(os.dup(2))
        os.set_inheritable(self._log_fd, False)
        self._front_log = _pipe() if stat.S_ISREG(os.fstat(self._log_fd).st_mode) else None
        self._early = early
        if early is not None:
            self._board = early.board
        else:
            self._board = Board.create()
            self._board.fd = spawn.above(self._board.fd)
        with open("/etc/passwd", "rb") as f:
            ids, self._missing_accounts = resolve(f.read())
        self.children = {d.name: Child(d, *ids[d.name]) for d in DOMAINS}
        self._poll = select.poll()
        self._by_fd: dict[int, tuple[Child, bool]] = {}  # fd -> (child, is it the pidfd)
        self._timers: dict[str, tuple[float, Callable[[], None]]] = {}
        self._channel: channel.Channel | None = None
        self._told_of_landlock = False
        self._armed = False
        self._recovery: tuple[int, int] | None = None  # pid, pidfd
        self._stopping = False
        self._done = False
        self._notifier = Notifier(os.environ)
        self._wake = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)

    # -- start and loop

    def start_front(self) -> None:
        """Before anything else: an interpreter takes its time, and that runs beside what we still have to do."""
        self._start("front")

    def run(self) -> int:
        """Until SIGTERM or SIGINT; the exit status.  Raises ChannelError when the channel cannot be opened."""
        self._take_signals()
        self._watch_log()
        self._open()
        if self._privileged:
            self._limit()
        if self._missing_accounts:
            self._log.debug(f"accounts that do not exist have fixed ids: {', '.join(self._missing_accounts)}")
        if not self._privileged:
            self._log.warning("not started as root: commands that need a privilege answer with an error that names it")
        if self._auto_thaw == 0 and "fs" in self._enabled:
            self._log.warning("auto-thaw is 0: a freeze that the host does not end lasts for ever")
        if self._runfiles.journal_pending():
            self._recover("the agent was restarted")
        self._status()
        self._alive()
        while not self._done:
            for fd, _ in self._poll.poll(self._timeout()):
                self._event(fd)
            now = time.monotonic()
            for name in [n for n, (at, _) in self._timers.items() if at <= now]:
                self._timers.pop(name)[1]()
        self._copy_log()
        self._runfiles.remove_status()
        return 0

    def _take_signals(self) -> None:
        for number in (_signal.SIGTERM, _signal.SIGINT, _signal.SIGHUP):
            _signal.signal(number, lambda *_: None)
        _signal.signal(_signal.SIGPIPE, _signal.SIG_IGN)
        _signal.set_wakeup_fd(self._wake[1], warn_on_full_buffer=False)
        self._poll.register(self._wake[0], select.POLLIN)

    def _limit(self) -> None:
        """Our own bounding set: what the enabled rows and we ourselves need."""
        last = caps.last_cap()
        mask = sum(1 << n for n in (caps.number(c) for c in SUPERVISOR_CAPS))
        for name in self._enabled:
            mask |= BY_NAME[name].mask(self._available)
        mask &= self._available
        caps.limit_bounding(mask, last)
        caps.limit_to(mask, last)
        self._available = mask

    def _timeout(self) -> int | None:
        if not self._timers:
            return None
        due = min(at for at, _ in self._timers.values()) - time.monotonic()
        return max(0, int(due * 1000) + 1)

    def _at(self, name: str, delay: float, function: Callable[[], None]) -> None:
        self._timers[name] = (time.monotonic() + delay, function)

    def _event(self, fd: int) -> None:
        if fd == self._wake[0]:
            for number in os.read(fd, 64):
                self._signal(number)
        elif self._recovery is not None and fd == self._recovery[1]:
            self._recovered()
        elif self._front_log is not None and fd == self._front_log[0]:
            self._copy_log()
        elif fd in self._by_fd:
            child, dead = self._by_fd[fd]
            if dead:
                self._died(child)
            else:
                self._byte(child)

    def _alive(self) -> None:
        """Tell the service manager's watchdog that this loop turns."""
        if self._notifier.interval is not None:
            self._notifier.alive()
            self._at("alive", self._notifier.interval, self._alive)

    def _signal(self, number: int) -> None:
        if number in (_signal.SIGTERM, _signal.SIGINT):
            self._stop()
        elif number == _signal.SIGHUP:
            self._log.warning("SIGHUP: the policy is read at start only; restart the agent to apply a change")

    # -- the front's log: it may make no file longer, so what it says comes through a pipe and is copied as it is

    def _watch_log(self) -> None:
        if self._front_log is not None:
            self._poll.register(self._front_log[0], select.POLLIN)

    def _copy_log(self) -> None:
        """Once a second, or when frozen not at all: the pipe keeps the rest."""
        if self._front_log is None:
            return
        reader = self._front_log[0]
        try:
            self._poll.unregister(reader)
        except KeyError:
            pass  # it waits for its second
        if self._board.frozen:
            return  # `_disarm` looks at it again
        try:
            os.write(self._log_fd, os.read(reader, _COPIED))
        except OSError:
            pass  # nothing to read at the end, or a full disk
        self._at("front log", 1.0, self._watch_log)

    # -- the channel

    def _open(self) -> None:
        """Open the channel and give it to the front; again later when that fails and we are told to keep trying."""
        try:
            opened = self._open_channel()
        except channel.ChannelError as e:
            if not self._retry:
                raise
            self._log.error(f"{e}; trying again in {_REOPEN:g} seconds")
            self._at("channel", _REOPEN, self._open)
            return
        self._channel = opened
        self._give_channel()

    def _give_channel(self) -> None:
        opened = self._channel
        if opened is None:
            return
        front = self.children["front"]
        if opened.tag == wiring.TAG_LISTENER:
            front.give(opened.tag, os.dup(opened.fd))
        else:
            front.give(opened.tag, opened.fd)
            self._channel = None

    def _reopen(self) -> None:
        """The front lost a device (or died with it)."""
        if self._channel is not None or "channel" in self._timers or self._stopping:
            return
        self._retry = True  # a port that was there comes back
        self._at("channel", 0.1, self._open)

    # -- children

    def _start(self, name: str) -> bool:
        """Start the row's process if it is absent and may be started now."""
        child = self.children[name]
        if child.alive:
            return not child.leaving
        if self._stopping or not child.life.may_start(time.monotonic()):
            return False
        settings = {"uid": str(child.uid), "gid": str(child.gid), "privileged": "1" if self._privileged else "0"}
        if name == "front" and self._early is not None:
            early, self._early = self._early, None
            os.close(self._slices(name, settings, early.policy))
            try:
                early.control.send(wiring.GO)
            except OSError:
                pass  # its death is on its way
            self._watch(child, early.pid, early.control)
            return True
        ours, theirs = wiring.pair()
        policy = spawn.above(self._slices(name, settings, None))
        control = spawn.above(theirs.detach())
        try:
            pid = spawn.spawn(
                f"{self._libexec}/{name}",
                control=control,
                policy=policy,
                board=self._board.fd,
                log=self._front_log[1] if name == "front" and self._front_log is not None else self._log_fd,
                environ=spawn.environment(dict(os.environ), programs=child.row.programs),
            )
        except OSError as e:
            self._log.error(f"{name} cannot be started: {self._libexec}/{name}: {e.strerror}")
            child.life.started()
            child.life.died(time.monotonic(), expected=False)
            ours.close()
            return False
        finally:
            os.close(policy)
            os.close(control)
        self._watch(child, pid, ours)
        if name == "fs":
            self._equip_fs()
        return True

    def _watch(self, child: Child, pid: int, control: Socket) -> None:
        child.born(pid, control)
        for fd, dead in ((control.fileno(), False), (child.pidfd, True)):
            self._by_fd[fd] = (child, dead)
            self._poll.register(fd, select.POLLIN)

    def _equip_fs(self) -> None:
        """fs needs the journal, the thawer and, when there is a hook, the hook worker: all up before it starts work."""
        # While their interpreters start: whatever we may need ourselves later must not be read from a frozen disk then.
        from privsep import recover  # noqa: F401

        fs = self.children["fs"]
        fs.give(wiring.TAG_JOURNAL, self._runfiles.open_journal())
        for name, tag in (("thawer", wiring.TAG_THAWER), ("hook", wiring.TAG_HOOK)):
            if name not in self._enabled:
                continue
            helper = self.children[name]
            if not helper.alive:
                self._start(name)
                if name == "thawer":
                    helper.give(wiring.TAG_JOURNAL, self._runfiles.open_journal())
            ours, theirs = wiring.pair()
            fs.give(tag, ours.detach())
            helper.give(wiring.TAG_FS, theirs.detach())

    def _byte(self, child: Child) -> None:
        assert child.control is not None
        try:
            data = child.control.recv(8)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._drop(child.control.fileno())
            return  # its pidfd tells the rest
        name = child.row.name
        byte = data[:1]
        if byte == wiring.READY and child.life.state == life.STARTING:
            self._ready(child, data[1] if len(data) > 1 else 0)
        elif name == "front" and child.up:
            self._front_asks(data[0])
        elif name == "fs" and byte in (wiring.ARM, wiring.ARM_WITHOUT_MARKER):
            self._arm(marker=byte == wiring.ARM)
        elif name == "thawer" and byte == wiring.KILL_FS:
            self._log.warning("the freeze lapsed: the fs worker is ended")
            self.children["fs"].kill()
        elif name == "thawer" and byte == wiring.THAWED:
            self._disarm()
            child.tell(wiring.THAWED)

    def _ready(self, child: Child, level: int) -> None:
        child.level = level
        if level < LANDLOCK and not self._told_of_landlock:
            self._told_of_landlock = True
            self._log.warning(f"degraded: this kernel has level {level} of {LANDLOCK} of Landlock")
        if self._privileged:
            found = child.compare(self._available)
            if found:
                self._log.error(f"{child.row.name} is not what its row says and is ended: {'; '.join(found)}")
                child.kill()
                return
        child.is_ready(time.monotonic())
        if child.row.name == "front":
            self._notifier.ready()
        else:
            child.tell(wiring.TAG_START)
            if self._stopping and child.row.name == "fs":
                child.tell(wiring.TAG_QUIT)  # it was still starting when all were told
        self._status()

    def _front_asks(self, byte: int) -> None:
        number = byte & wiring.NUMBER_MASK
        if byte == wiring.REOPEN[0]:
            self._reopen()
        elif number < len(DOMAINS) and DOMAINS[number].channel == "front" and DOMAINS[number].name in self._enabled:
            row = DOMAINS[number]
            if byte & ~wiring.NUMBER_MASK == wiring.END:
                self._log.error(f"{row.name} is over its time limit and is ended")
                self.children[row.name].kill()
            elif byte & ~wiring.NUMBER_MASK == wiring.START:
                self._connect(row.name)

    def _connect(self, name: str) -> None:
        """Give the front a socket to that worker, which is started when it is not there."""
        front = self.children["front"]
        row = BY_NAME[name]
        number = bytes((NUMBER[name],))
        if not self._privileged and (row.caps or row.user == "root"):
            front.tell(wiring.TAG_UNPRIVILEGED + number)
            return
        child = self.children[name]
        if child.alive and (child.leaving or child.killed):
            self._at(f"connect {name}", 0.02, lambda: self._connect(name))
            return
        if not self._start(name):
            wait = child.life.wait(time.monotonic())
            if 0 < wait <= 1.0 and not self._stopping:
                self._at(f"connect {name}", wait, lambda: self._connect(name))
            else:
                front.tell(wiring.TAG_UNAVAILABLE + number)
            return
        ours, theirs = wiring.pair()
        child.give(wiring.TAG_CHANNEL, ours.detach())
        front.give(wiring.TAG_WORKER + number, theirs.detach())

    def _drop(self, fd: int) -> None:
        if self._by_fd.pop(fd, None) is not None:
            self._poll.unregister(fd)

    def _died(self, child: Child) -> None:
        name = child.row.name
        now = time.monotonic()
        self._drop(child.pidfd)
        if child.control is not None:
            self._drop(child.control.fileno())
        was_up = child.up
        how = child.reap()
        expected = child.leaving or self._stopping or (was_up and how == "exit status 0")
        child.life.died(now, expected=expected)
        if not expected:
            self._log.error(f"{name} ended by {how}")
        if self._stopping:
            self._stop_next()
            return
        if name == "front":
            self._front_died()
        elif name == "fs":
            self._fs_died()
        elif name == "thawer":
            self._thawer_died()
        self._status()

    def _front_died(self) -> None:
        """A device went with it; a listener is still open here."""
        if not self._start("front"):
            self._at("front", self.children["front"].life.wait(time.monotonic()) + 0.001, self._front_died)
            return
        if self._channel is None:
            self._reopen()
        else:
            self._give_channel()

    # -- freezing

    def _arm(self, *, marker: bool) -> None:
        """fs is about to freeze: flag, marker and second deadline first, then the acknowledgement."""
        if self._stopping:
            return  # unanswered, so it does not freeze
        if marker:
            self._marker(True)
        self._armed = True
        self._board.set_frozen(True)
        if self._auto_thaw > 0 and "deadline" not in self._timers:  # a hostile fs cannot put it off
            self._at("deadline", self._auto_thaw + _LATER, self._deadline)
        self._status()
        self.children["fs"].tell(wiring.ARM)

    def _disarm(self) -> None:
        self._timers.pop("deadline", None)
        self._timers.pop("fs patience", None)
        if not self._armed:
            return
        self._armed = False
        self._board.set_frozen(False)
        self._marker(False)
        self._log.flush()
        self._watch_log()
        self._status()
        if self._stopping:
            self._stop_next()

    def _deadline(self) -> None:
        self._log.error("the freeze is over its deadline and its watchdog has not thawed: thawing from the journal")
        self.children["fs"].kill()
        self.children["thawer"].kill()
        if not self.children["fs"].alive and not self.children["thawer"].alive:
            self._recover("the deadline passed")

    def _fs_died(self) -> None:
        if self._armed:
            if not self.children["thawer"].alive:
                self._recover("the freeze's workers died")
            else:
                self._restart_fs()
        elif self._runfiles.journal_pending():
            self._restart_fs()  # the thaw hook is still due
        else:
            for name in ("thawer", "hook"):
                if self.children[name].alive:
                    self.children[name].leave_after(self._drop)

    def _restart_fs(self) -> None:
        if not self._start("fs"):
            self._at("fs", self.children["fs"].life.wait(time.monotonic()) + 0.001, self._restart_fs)

    def _thawer_died(self) -> None:
        fs = self.children["fs"]
        if not fs.alive:
            if self._armed:
                self._recover("the freeze's workers died")
        elif self._armed:
            self._at("fs patience", _PATIENCE_FS, fs.kill)
        else:
            fs.leave_after(self._drop)

    def _recover(self, reason: str) -> None:
        """Thaw what the journal names, in a child of our own so that a thaw that blocks does not block us."""
        if self._recovery is not None or not self._privileged:
            return
        pid = os.fork()
        if pid == 0:
            status = 1
            try:
                from privsep import recover

                try:
                    for line in recover.recover(self._runfiles.journal_path, reason):
                        self._log.error(line)
                    status = 0
                except (recover.StillFrozen, OSError) as e:
                    self._log.error(str(e))
            finally:
                os._exit(status)
        self._recovery = (pid, os.pidfd_open(pid))
        self._poll.register(self._recovery[1], select.POLLIN)
        self._at("recovery", _RECOVERY, lambda: self._log.error("thawing from the journal takes long"))

    def _recovered(self) -> None:
        assert self._recovery is not None
        pid, pidfd = self._recovery
        _, status = os.waitpid(pid, 0)
        self._poll.unregister(pidfd)
        os.close(pidfd)
        self._recovery = None
        self._timers.pop("recovery", None)
        if status == 0:
            self._disarm()
            if self._runfiles.journal_pending() and not self._stopping:
                self._restart_fs()  # a hook is due
        else:
            self._log.error("thawing from the journal failed; trying again")
            self._at("recovery", 1.0, lambda: self._recover("the freeze's workers died"))
        if self._stopping:
            self._stop_next()

    # -- the end

    def _stop(self) -> None:
        """Thaw, let the front say its last words, end."""
        if self._stopping:
            return
        self._log.debug("stopping")
        self._notifier.stopping()
        self._stopping = True
        self._timers.clear()
        if self.children["fs"].alive:
            self.children["fs"].tell(wiring.TAG_QUIT)
        if self._armed:
            self._at("stop", _STOP_THAW, self._stop_thaw_harder)
        self._stop_next()

    def _stop_thaw_harder(self) -> None:
        """fs did not: now the thawer, by the end of file; then the journal."""
        self.children["thawer"].leave_after(self._drop)
        self._at("stop", _STOP_THAW, self._stop_thaw_hardest)

    def _stop_thaw_hardest(self) -> None:
        self.children["fs"].kill()
        self.children["thawer"].kill()

    def _stop_next(self) -> None:
        """Called after each event while stopping: is everything thawed, is everybody gone?"""
        if self._done:
            return
        fs, thawer = self.children["fs"], self.children["thawer"]
        if self._armed:
            if not fs.alive and not thawer.alive:
                self._recover("the agent was stopped")
            elif not thawer.alive:
                fs.kill()
            return
        waiting_for_hook = fs.alive and self.children["hook"].alive and not fs.leaving
        self._at("stop", self._hook_limit + 1.0 if waiting_for_hook else _STOP_ALL, self._stop_kill)
        for child in self.children.values():
            if waiting_for_hook and child.row.name in ("fs", "hook", "thawer"):
                continue
            if child.alive and not child.leaving:
                child.leave_after(self._drop)
        if not any(c.alive for c in self.children.values()) and self._recovery is None:
            self._done = True

    def _stop_kill(self) -> None:
        for child in self.children.values():
            if child.alive:
                self._log.warning(f"{child.row.name} does not end and is killed")
                child.kill()

    # -- what privsep-gactl reads

    def _status(self) -> None:
        lines = [f"policy {self._policy_name}", f"frozen {int(self._armed)}", f"process supervisor {os.getpid()}"]
        for child in self.children.values():
            if child.up:
                lines.append(f"process {child.row.name} {child.pid}")
                level = "none" if child.level == LANDLOCK_UNDECLARED else str(child.level)
                lines.append(f"landlock {child.row.name} {level}")
            if child.life.restarts:
                lines.append(f"restarts {child.row.name} {child.life.restarts}")
        if "deadline" in self._timers:
            lines.append(f"deadline {self._timers['deadline'][0] - _LATER:.3f}")
        self._runfiles.write_status("\n".join(lines) + "\n")


def _pipe() -> tuple[int, int]:
    """Both ends where no dup2 target of a child hits them."""
    reader, writer = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    return spawn.above(reader), spawn.above(writer)
