"""The supervisor: starts the others, looks at them, hands sockets over, and ends them.

It reads one byte at a time from its children and believes none of them: a byte makes it do what it would do for any child of
that row.  It never sees a request or a reply.

Deaths:

* a worker: the front notices by the end of file on their socket; it is started again when it is asked for, after a pause
  when it keeps dying.
* the front: started again at once; workers that hold state get a new socket when the new front asks for them.
* fs and thawer: `privsep/holder.py`.

A reload (`privsep/reload.py`) puts another policy in force (`privsep/succession.py`).  Workers are told before the front is, so
none of them begins a request that the front admitted under a later policy than its own.
"""

from __future__ import annotations

import _signal
import errno
import os
import stat
import time

from policy.seal import for_reading
from privsep import channel, life, spawn, wiring
from privsep.accounts import resolve
from privsep.board import Board
from privsep.children import KEPT, Child
from privsep.domains import (
    BY_NAME,
    DOMAINS,
    LANDLOCK,
    LANDLOCK_UNDECLARED,
    NUMBER,
    SUPERVISOR_CAPS,
)
from privsep.frontlog import FrontLog
from privsep.holder import Holder
from privsep.loop import Loop
from privsep.notify import Notifier
from privsep.orders import APPLIED, RESTART_NEEDED
from privsep.sandbox import caps
from privsep.succession import FREEZERS, Succession, unavailable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Final

    from policy.model import Policy
    from privsep.early import Early
    from privsep.ledger import Ledger
    from privsep.log import Log
    from privsep.orders import Orders
    from privsep.reload import Reload
    from privsep.runfiles import RunFiles
    from privsep.wiring import Socket

_STOP_THAW: Final = 0.6  # seconds that a stop waits for the thaw, at each of two attempts
_STOP_ALL: Final = 1.5  # seconds that a stop waits for the children
_PASSING: Final = (
    errno.EAGAIN,
    errno.ENOMEM,
    errno.ENFILE,
    errno.EMFILE,
)  # what keeps a program from being started for a while
_HOPELESS: Final = 3  # fronts that ended before one was ready
_HELPERS: Final = {"thawer": wiring.TAG_THAWER, "hook": wiring.TAG_HOOK}  # of fs, and how fs is told of its socket
_REAPED: Final = 0.3  # seconds for a worker that is on its way out; then the front gets another socket to it
_REOPEN: Final = 5.0  # seconds between attempts to open a lost channel, as the peer


class Supervisor:
    """
    orders_of   makes the orders of another policy
    read_again  does the work of a reload's child (`privsep/reload.py`), given the descriptor for its result
    reopen_log  makes another file descriptor 2 when the log file was renamed, and says whether it did
    """

    def __init__(
        self,
        *,
        log: Log,
        libexec: str,
        orders: Orders,
        orders_of: Callable[[Policy], Orders],
        read_again: Callable[[int], int],
        reopen_log: Callable[[], bool],
        open_channel: Callable[[], channel.Channel],
        retry: bool,
        runfiles: RunFiles,
        marker: Callable[[bool], None],
        ledger: Ledger,
        early: Early | None = None,
    ) -> None:
        self._log = log
        self._ledger = ledger
        self._libexec = libexec
        self._orders_of = orders_of
        self._read_again = read_again
        self._reopen_log = reopen_log
        self._open_channel = open_channel
        self._retry = retry
        self._runfiles = runfiles
        self._privileged = os.geteuid() == 0
        with open("/proc/self/status", "rb", buffering=0) as status:
            self._available = caps.permitted(caps.parse_status(status.read(16384)))
        self._granted = self._available  # what we were started with
        with open("/proc/self/stat", "rb", buffering=0) as stat_file:
            # In clock ticks since boot, which with the number makes a process one of its kind (proc(5)).
            self._born = int(stat_file.read(4096).rpartition(b")")[2].split()[19])
        self._log_fd = spawn.above(os.dup(2))
        os.set_inheritable(self._log_fd, False)
        self._early = early
        if early is not None:
            self.board = early.board
            ledger.keep("front", early.counters)
        else:
            self.board = Board.create()
            self.board.fd = spawn.above(self.board.fd)
        with open("/etc/passwd", "rb") as f:
            ids, self._missing_accounts = resolve(f.read())
        self.children = {d.name: Child(d, *ids[d.name], orders) for d in DOMAINS}
        self._loop = Loop()
        self._front_log: FrontLog | None = None
        if stat.S_ISREG(os.fstat(self._log_fd).st_mode):
            self._front_log = FrontLog(self._loop, self._log_fd, lambda: self.board.frozen)
        self._holder = Holder(
            loop=self._loop,
            log=log,
            children=self.children,
            board=self.board,
            runfiles=runfiles,
            auto_thaw=orders.auto_thaw,
            disconnect=orders.disconnect,
            marker=marker,
            privileged=self._privileged,
            ledger=ledger,
            start=self._start,
            changed=self._changed,
            ended=self._freeze_ended,
        )
        self._succession = Succession(
            orders, children=self.children, holder=self._holder, journal_pending=runfiles.journal_pending
        )
        self._reload: Reload | None = None
        self.walled = False  # our own system calls are filtered, and so are those of all that we start
        self._channel: channel.Channel | None = None
        self._told_of_landlock = False
        self._stopping = False
        self._done = False
        self._failed = False
        self._served = False  # there was a front that was ready
        self._notifier = Notifier(os.environ)
        self._wake = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)

    # -- start and loop

    def start_front(self) -> None:
        """Before anything else: an interpreter takes its time, and that runs beside what we still have to do."""
        self._start_front()

    def run(self) -> int:
        """Until SIGTERM or SIGINT; the exit status.  Raises ChannelError when the channel cannot be opened."""
        if self._done:
            return 1  # there is no front
        self._take_signals()
        if self._front_log is not None:
            self._front_log.watch()
        self._ledger.listen(self._loop)
        self._open()
        if self._privileged:
            self._limit()
        if self._missing_accounts:
            self._log.debug(f"accounts that do not exist have fixed ids: {', '.join(self._missing_accounts)}")
        if not self._privileged:
            self._log.warning("not started as root: commands that need a privilege answer with an error that names it")
        self._warn()
        if self._runfiles.journal_pending():
            self._holder.recover("the agent was restarted")
        self._status()
        self._alive()
        while not self._done:
            self._loop.turn()
        if self._front_log is not None:
            self._front_log.copy()
        self._ledger.drain()
        self._runfiles.remove_status()
        return 1 if self._failed else 0

    def _warn(self) -> None:
        if self._succession.orders.auto_thaw == 0 and "fs" in self._succession.orders.rows:
            self._log.warning("auto-thaw is 0: a freeze that the host does not end lasts for ever")

    def _take_signals(self) -> None:
        for number in (_signal.SIGTERM, _signal.SIGINT, _signal.SIGHUP):
            _signal.signal(number, lambda *_: None)
        _signal.signal(_signal.SIGPIPE, _signal.SIG_IGN)
        _signal.set_wakeup_fd(self._wake[1], warn_on_full_buffer=False)
        self._loop.watch(self._wake[0], lambda: self._signalled())

    def _limit(self) -> None:
        """Our own bounding set: what the enabled rows and we ourselves need."""
        last = caps.last_cap()
        mask = sum(1 << n for n in (caps.number(c) for c in SUPERVISOR_CAPS))
        for name in self._succession.orders.rows:
            mask |= BY_NAME[name].mask(self._available)
        mask &= self._available
        caps.limit_bounding(mask, last)
        caps.limit_to(mask, last)
        self._available = mask

    def _alive(self) -> None:
        """Tell the service manager's watchdog that this loop turns."""
        if self._notifier.interval is not None:
            self._notifier.alive()
            self._loop.at("alive", self._notifier.interval, self._alive)

    def _signalled(self) -> None:
        for number in os.read(self._wake[0], 64):
            if number in (_signal.SIGTERM, _signal.SIGINT):
                self._stop()
            elif number == _signal.SIGHUP:
                self._hang_up()

    # -- the channel

    def _open(self) -> None:
        """Open the channel and give it to the front; again later when that fails and we are told to keep trying."""
        try:
            opened = self._open_channel()
        except channel.ChannelError as e:
            if not self._retry:
                raise
            self._log.error(f"{e}; trying again in {_REOPEN:g} seconds")
            self._loop.at("channel", _REOPEN, self._open)
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
        if self._channel is not None or self._loop.due("channel") is not None or self._stopping:
            return
        self._retry = True  # a port that was there comes back
        self._loop.at("channel", 0.1, self._open)

    # -- children

    def _start(self, name: str) -> bool:
        """Start the row's process if it is absent and may be started now."""
        child = self.children[name]
        if child.alive:
            return not child.leaving
        if self._stopping or not child.life.may_start(time.monotonic()) or self._too_early(name):
            return False
        orders = child.orders = self._succession.orders_for(name)
        settings = {"uid": str(child.uid), "gid": str(child.gid), "privileged": "1" if self._privileged else "0"}
        if name == "front" and self._early is not None:
            early, self._early = self._early, None
            os.close(orders.sealed(name, settings, early.policy))
            try:
                early.control.send(wiring.GO)
            except OSError:
                pass  # its death is on its way
            self._watch(child, early.pid, early.control, early.status)
            self._ledger.watch(name, early.pid, early.audit)
            return True
        ours, theirs = wiring.pair()
        audit, their_audit = spawn.outlet()
        policy = spawn.above(orders.sealed(name, settings))
        control = spawn.above(theirs.detach())
        try:
            pid = spawn.spawn(
                f"{self._libexec}/{name}",
                control=control,
                policy=policy,
                board=self.board.fd,
                log=self._front_log.writer if name == "front" and self._front_log is not None else self._log_fd,
                audit=their_audit,
                counters=self._ledger.counters(name).fd,
                environ=spawn.environment(dict(os.environ), name, programs=child.row.programs),
            )
        except OSError as e:
            self._log.error(f"{name} cannot be started: {self._libexec}/{name}: {e.strerror}")
            if name == "front" and e.errno not in _PASSING:
                self._give_up("the front's program cannot be executed: is the agent installed whole?")
            child.life.started()
            child.life.died(time.monotonic(), expected=False)
            ours.close()
            audit.close()
            return False
        finally:
            os.close(policy)
            os.close(control)
            os.close(their_audit)
        self._watch(child, pid, ours)
        self._ledger.watch(name, pid, audit)
        if name == "fs":
            self._equip_fs()
        return True

    def _watch(self, child: Child, pid: int, control: Socket, ours: bytes = b"") -> None:
        child.born(pid, control, ours)
        self._loop.watch(control.fileno(), lambda: self._byte(child))
        self._loop.watch(child.pidfd, lambda: self._died(child))

    def _equip_fs(self) -> None:
        """fs needs the journal, the thawer and, when there is a hook, the hook worker: all up before it starts work."""
        # While their interpreters start: whatever we may need ourselves later must not be read from a frozen disk then.
        from privsep import recover, reload  # noqa: F401

        self.children["fs"].give(wiring.TAG_JOURNAL, self._runfiles.open_journal())
        for name in _HELPERS:
            self._join_fs(name)

    def _too_early(self, name: str) -> bool:
        """fs waits for the end of helpers that were told to end with the fs before: it gets new ones."""
        return name == "fs" and any(self.children[helper].going for helper in _HELPERS)

    def _join_fs(self, name: str) -> None:
        """A socket between fs and its helper, which is started when it is not there."""
        fs, helper = self.children["fs"], self.children[name]
        if name not in self._succession.freezing.rows or not fs.alive or fs.leaving:
            return
        if not helper.alive:
            if not self._start(name):
                self._loop.at(f"join {name}", helper.wait() + 0.001, lambda: self._join_fs(name))
                return
            if name == "thawer":
                helper.give(wiring.TAG_JOURNAL, self._runfiles.open_journal())
        ours, theirs = wiring.pair()
        fs.give(_HELPERS[name], ours.detach())
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
            self._loop.forget(child.control.fileno())
            return  # its pidfd tells the rest
        name = child.row.name
        byte = data[:1]
        if byte == wiring.READY and child.life.state == life.STARTING:
            self._ready(child, data[1] if len(data) > 1 else 0)
        elif name == "front" and child.up:
            self._front_asks(data[0])
        elif name == "fs" and byte in (wiring.ARM, wiring.ARM_WITHOUT_MARKER):
            if self._holder.arm(marker=byte == wiring.ARM):  # unanswered it does not freeze
                child.tell(wiring.ARM)
        elif name == "thawer" and byte == wiring.KILL_FS:
            self._log.warning("the freeze lapsed: the fs worker is ended")
            self.children["fs"].kill()
        elif name == "thawer" and byte == wiring.SHORTENED:
            self._holder.shorten()
        elif name == "thawer" and byte == wiring.THAWED:
            self._holder.disarm()
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
        if child.retired != KEPT:
            # Before it has its socket to the front: what stands there already goes to the next worker.
            child.leave_after(self._loop.forget)
            return
        child.is_ready(time.monotonic())
        if child.row.name == "front":
            self._notifier.ready()
            self._served = True
        else:
            child.tell(wiring.TAG_START)
            if self._stopping and child.row.name == "fs":
                child.tell(wiring.TAG_QUIT)  # it was still starting when all were told
        self._settle()
        self._status()

    def _front_asks(self, byte: int) -> None:
        number = byte & wiring.NUMBER_MASK
        if byte == wiring.REOPEN[0]:
            self._reopen()
        elif byte == wiring.ADOPTED[0]:
            if self._reload is not None:
                self._reload.confirm()
        elif number < len(DOMAINS) and DOMAINS[number].channel == "front":
            row = DOMAINS[number]
            if byte & ~wiring.NUMBER_MASK == wiring.END:
                self._log.error(f"{row.name} is over its time limit and is ended")
                if row.name == "fs":
                    self._holder.end_fs("the freeze took too long")
                else:
                    self.children[row.name].kill()
            elif byte & ~wiring.NUMBER_MASK == wiring.START:
                self._connect(row.name)

    def _connect(self, name: str) -> None:
        """Give the front a socket to that worker, which is started when it is not there."""
        if name not in self._succession.orders_for(name).rows:
            return  # a hostile front, or one that has not heard of a reload yet
        front = self.children["front"]
        row = BY_NAME[name]
        number = bytes((NUMBER[name],))
        if not self._privileged and (row.caps or row.user == "root"):
            front.tell(wiring.TAG_UNPRIVILEGED + number)
            return
        child = self.children[name]
        if self._going(name):
            # It is on its way out: its sockets close before its pidfd says so.  `_died` comes back to this.
            child.served = False
            self._loop.at(f"connect {name}", _REAPED, lambda: self._connect(name))
            return
        if not self._start(name):
            wait = child.wait()
            if 0 < wait <= 1.0 and not self._stopping:
                self._loop.at(f"connect {name}", wait, lambda: self._connect(name))
            else:
                front.tell(wiring.TAG_UNAVAILABLE + number)
            return
        ours, theirs = wiring.pair()
        child.give(wiring.TAG_CHANNEL, ours.detach())
        front.give(wiring.TAG_WORKER + number, theirs.detach())
        child.served = True

    def _going(self, name: str) -> bool:
        """Whether it is there, but not for long, or, for fs, one of those that it comes and goes with."""
        child = self.children[name]
        if child.alive and child.served:
            return True
        return any(self.children[n].going for n in (FREEZERS if name == "fs" else (name,)))

    def _died(self, child: Child) -> None:
        name = child.row.name
        now = time.monotonic()
        self._loop.forget(child.pidfd)
        if child.control is not None:
            self._loop.forget(child.control.fileno())
        settled = child.life.settled(now)
        how = child.reap()
        # Nobody is idle for a minute within two seconds: who leaves so early, however politely, does not work.
        left = how == "exit status 0" and (settled or child.retired != KEPT)
        expected = child.leaving or self._stopping or left
        child.life.died(now, expected=expected)
        if not expected:
            self._log.error(f"{name} ended by {how}")
        if self._stopping:
            self._stop_next()
            return
        if name == "front" and how == "exit status 71":
            # EX_OSERR, privsep/child.py: its walls cannot be put up, and no other try would change that.
            self._give_up("the front's walls cannot be put up")
        elif name == "front" and not self._served and child.life.failures >= _HOPELESS:
            self._give_up("the front ends before it is ready, each time")
        elif name == "front":
            self._front_died()
        elif name == "fs":
            self._holder.fs_died()
        elif name == "thawer":
            self._holder.thawer_died()
        elif name == "hook":
            self._join_fs(name)  # a thaw hook may be due
        self._settle()
        # What waited for it to be gone; fs waits for its helpers too.
        for waiting in dict.fromkeys((name, "fs" if name in FREEZERS else name)):
            if self._loop.due(f"connect {waiting}") is not None:
                self._loop.cancel(f"connect {waiting}")
                self._connect(waiting)
        self._status()

    def _start_front(self) -> bool:
        """Now, or as soon as it may be."""
        started = self._start("front")
        if not started and not self._stopping:
            self._loop.at("front", self.children["front"].wait() + 0.001, self._front_died)
        return started

    def _front_died(self) -> None:
        """A device went with it; a listener is still open here."""
        for child in self.children.values():
            child.served = False
        if not self._start_front():
            return
        if self._channel is None:
            self._reopen()
        else:
            self._give_channel()

    # -- what the holder says

    def _changed(self) -> None:
        self._status()
        if self._stopping:
            self._stop_next()

    def _freeze_ended(self) -> None:
        """What waited for the thaw."""
        self._log.flush()
        if self._front_log is not None:
            self._front_log.watch()
        self._changed()
        self._settle()
        if self._reload is not None:
            self._reload.resume()

    # -- reload

    def _hang_up(self) -> None:
        """SIGHUP: the policy anew, and the log file anew if somebody renamed it."""
        if self._stopping:
            return
        self._reloading().ask()
        if not self._holder.armed:
            self._log_anew()

    def _reloading(self) -> Reload:
        if self._reload is None:
            from privsep.reload import Reload  # agents are seldom told to

            self._reload = Reload(
                loop=self._loop,
                log=self._log,
                reader=self._read_without_privilege,
                held=lambda: self._holder.armed or self._holder.recovering,
                starting=lambda: any(child.alive and not child.up for child in self.children.values()),
                adopt=self._adopt,
                changed=self._status,
            )
        return self._reload

    def _read_without_privilege(self, result: int) -> int:
        """In the child."""
        if self._privileged:
            caps.limit_to(0, caps.last_cap())
        return self._read_again(result)

    def _log_anew(self) -> None:
        """Workers that hold nothing make room for others with the new log file; the front writes to a pipe of ours."""
        if self._reopen_log():
            os.dup2(2, self._log_fd, inheritable=False)
            for child in self.children.values():
                if child.row.channel == "front":
                    child.retire(firm=False)

    def _adopt(self, policy: Policy) -> tuple[str, list[str]]:
        """Put this policy in force, if it asks for nothing that is gone for good; the result and what there is to say.

        APPLIED is to be confirmed by the front, which may be reading what its host has sent just now."""
        orders = self._orders_of(policy)
        notes = list(policy.notes)
        gone = [
            unavailable(row, granted=self._granted, available=self._available, walled=self.walled)
            for row in DOMAINS
            if self._privileged and row.name in orders.rows
        ]
        if any(gone):
            return RESTART_NEEDED, [line for line in gone if line]
        self._succession.put_in_force(orders)
        notes += self._ledger.adopt(policy)
        self._settle()
        front = self.children["front"]
        if front.alive:
            front.give(wiring.TAG_POLICY, spawn.above(for_reading(orders.sealed("front", {}))))
        self._warn()
        return APPLIED, notes

    def _settle(self) -> None:
        """After a reload: have those make room whom it concerns; when all have, give up what nobody needs any more."""
        if self._succession.settle() and self._privileged:
            self._limit()

    # -- the end

    def _give_up(self, why: str) -> None:
        """Nothing that is done here would help: end, and say so by the exit status."""
        self._log.error(f"{why}; the agent ends")
        self._failed = True
        self._stop()

    def _stop(self) -> None:
        """Thaw, let the front say its last words, end."""
        if self._stopping:
            return
        self._log.debug("stopping")
        self._notifier.stopping()
        self._stopping = self._holder.stopping = True
        self._loop.cancel_all()
        self._ledger.listen(self._loop)
        if self._reload is not None:
            self._reload.stop()
        if self.children["fs"].alive:
            self.children["fs"].tell(wiring.TAG_QUIT)
        if self._holder.armed:
            self._loop.at("stop", _STOP_THAW, self._stop_thaw_harder)
        self._stop_next()

    def _stop_thaw_harder(self) -> None:
        """fs did not: now the thawer, by the end of file; then the journal."""
        self.children["thawer"].leave_after(self._loop.forget)
        self._loop.at("stop", _STOP_THAW, self._stop_thaw_hardest)

    def _stop_thaw_hardest(self) -> None:
        self.children["thawer"].kill()
        self._holder.end_fs("the agent was stopped")

    def _stop_next(self) -> None:
        """Called after each event while stopping: is everything thawed, is everybody gone?"""
        if self._done:
            return
        fs, thawer = self.children["fs"], self.children["thawer"]
        if self._holder.armed:
            if not fs.alive and not thawer.alive:
                self._holder.recover("the agent was stopped")
            elif not thawer.alive:
                fs.kill()
            return
        waiting_for_hook = fs.alive and self.children["hook"].alive and not fs.leaving
        limit = self._succession.freezing.hook_limit + 1.0 if waiting_for_hook else _STOP_ALL
        self._loop.at("stop", limit, self._stop_kill)
        for child in self.children.values():
            if waiting_for_hook and child.row.name in ("fs", "hook", "thawer"):
                continue
            if child.alive and not child.leaving:
                child.leave_after(self._loop.forget)
        if not any(c.alive for c in self.children.values()) and not self._holder.recovering:
            self._done = True

    def _stop_kill(self) -> None:
        for child in self.children.values():
            if child.alive:
                self._log.warning(f"{child.row.name} does not end and is killed")
                child.kill()

    # -- what privsep-gactl reads

    def _status(self) -> None:
        lines = [
            f"policy {self._succession.orders.policy.name}",
            f"frozen {int(self._holder.armed)}",
            f"process supervisor {os.getpid()}",
            f"started {self._born}",
        ]
        for child in self.children.values():
            if child.up:
                lines.append(f"process {child.row.name} {child.pid}")
                level = "none" if child.level == LANDLOCK_UNDECLARED else str(child.level)
                lines.append(f"landlock {child.row.name} {level}")
            if child.life.restarts:
                lines.append(f"restarts {child.row.name} {child.life.restarts}")
        lines += self._ledger.status()
        deadline = self._holder.deadline
        if "fs" in self._succession.orders.rows:
            succession = self._succession
            orders = succession.freezing if self._holder.armed else succession.orders
            lines.append(f"auto-thaw {orders.auto_thaw:g}")
        if deadline is not None:
            lines.append(f"deadline {deadline:.3f}")
        lines += [f"outdated {child.row.name}" for child in self._succession.outdated()]
        if self._reload is not None:
            lines += self._reload.status()
        self._runfiles.write_status("\n".join(lines) + "\n")
