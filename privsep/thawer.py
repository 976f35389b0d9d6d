"""The thawer: the watchdog that holds a descriptor of everything that is frozen, a clock, FITHAW, and nothing else.

fs registers descriptors here before it freezes, and asks here for the thaw.  So whether a freeze has held is seen in one
place: a first FITHAW that answers EINVAL means that it has not.  Whatever else happens, what is registered gets thawed:

* the deadline passes: the supervisor is asked to kill fs (it may be stopped, and must not wake up to freeze again);
* fs dies before the freeze was committed (the host was told), or after that and is not replaced within `GRACE`;
* the supervisor dies; fs breaks the protocol.

Each of these is a *lapse*: journalled, and told to fs, which tells the host once.

FITHAW itself is called by threads (`privsep/held.py`).  A requested thaw that takes longer than `PATIENCE` goes on as a lapse's
does, in a thread for each superblock.  After a lapse a descriptor is kept, and thawed again and again, until fs is gone *and* a
FITHAW that was begun after that answers EINVAL: a freeze that was on its way could still arrive (on older kernels FITHAW does
not wait for it), and a process that is killed in FIFREEZE may freeze and end in one breath.

The process opens nothing after its walls are up and writes to three things: its sockets, the journal, rcu_expedited.
"""

from __future__ import annotations

import _socket
import os
import select
import struct
import time

from privsep import freezestate, wiring
from privsep import thawwire as wire
from privsep.crew import lock_memory, one_arena
from privsep.held import Held
from privsep.journal import Journal, Lapse, boot_id, lapse_record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from socket import socket as Socket
    from typing import Final

    from privsep.audit import Audit
    from privsep.board import Board
    from privsep.log import Log

GRACE: Final = 5.0  # seconds in which a new fs may take a committed freeze over
PATIENCE: Final = 1.0  # seconds after which a requested thaw goes on in parallel
ACKNOWLEDGE: Final = 1.0  # seconds that the supervisor has to lower the flag
RETRY_FIRST: Final = 0.02  # seconds until FITHAW is tried again after a lapse, doubling ...
RETRY_MOST: Final = 1.0  # ... up to this
RCU_EXPEDITED: Final = "/sys/kernel/rcu_expedited"


class Thawer:
    """The loop and its state."""

    def __init__(
        self, control: Socket, *, board: Board, log: Log, rcu: int, boot: str, audit: Audit | None = None
    ) -> None:
        self._audit = audit
        self._control = control
        self._board = board
        self._log = log
        self._rcu = rcu
        self._boot = boot
        self._journal: Journal | None = None
        self._fs: Socket | None = None
        self._orphaned = False  # the supervisor is gone
        self._held = Held()
        self._poll = select.poll()
        self._phase = wire.PHASE_IDLE
        self._announced = 0
        self._cycle = 0
        self._seconds = 0
        self._committed = False
        self._owes = False  # fs waits for the answer to THAW
        self._let_go = False  # the fs that registered is gone, or asked for the thaw: FITHAW's EINVAL is enough
        self._sure = False  # the last FITHAWs of a lapse were begun after that
        self._rcu_old = 0  # what to put back, 0: nothing
        self._reason = 0  # of a lapse that the host was not told of
        self._lapsed = 0  # and its cycle
        self._lapsed_seconds = 0
        self._deadline: float | None = None
        self._grace: float | None = None
        self._escalate: float | None = None
        self._retry: float | None = None
        self._pause = RETRY_FIRST
        self._acknowledged = False

    # -- the loop

    def run(self) -> None:
        """Until the supervisor is gone and nothing is held."""
        trouble = lock_memory()
        if trouble:
            self._log.warning(f"degraded: {trouble}")
        self._poll.register(self._control.fileno(), select.POLLIN)
        self._poll.register(self._held.event, select.POLLIN)
        while not (self._orphaned and self._phase == wire.PHASE_IDLE):
            for fd, _ in self._poll.poll(self._timeout()):
                if fd == self._held.event:
                    self._held.collect()
                elif self._fs is not None and fd == self._fs.fileno():
                    self._from_fs()
                elif fd == self._control.fileno() and not self._orphaned:
                    self._from_supervisor()
            self._tick(time.monotonic())
            if self._phase == wire.PHASE_IDLE:
                self._log.flush()

    def _timeout(self) -> float | None:
        times = [t for t in (self._deadline, self._grace, self._escalate, self._retry) if t is not None]
        return max(0.0, (min(times) - time.monotonic()) * 1000 + 1) if times else None

    def _tick(self, now: float) -> None:
        if self._deadline is not None and now >= self._deadline:
            self._lapse(wire.REASON_DEADLINE, kill=True)
        if self._grace is not None and now >= self._grace:
            self._lapse(wire.REASON_NOT_BACK)
        held = self._held
        if self._phase == wire.PHASE_THAWING:
            if held.jobs == 0:
                self._thawed(held.free)
            elif self._escalate is not None and now >= self._escalate:
                self._escalate = None
                held.thaw_each(busy_only=True)
        elif self._phase == wire.PHASE_LAPSING and held.jobs == 0:
            if self._let_go and self._sure and held.free:
                self._release()
            elif self._let_go and not self._sure:
                # What was free when we looked may have been frozen since, by an fs that was ending.
                self._sure = True
                self._retry = None
                held.thaw_each()
            elif self._retry is None:
                self._retry = now + self._pause
                self._pause = min(self._pause * 2, RETRY_MOST)
            elif now >= self._retry:
                self._retry = None
                held.thaw_each()

    # -- thawing

    def _go(self, cause: int) -> None:
        """The one place that moves the state; `privsep/freezestate.py` says who may do it."""
        self._phase = freezestate.step(self._phase, cause)

    def _lapse(self, reason: int, *, kill: bool = False) -> None:
        """Thaw because we must.  First the thaw, then the words."""
        if self._phase == wire.PHASE_IDLE:
            return
        first = self._phase != wire.PHASE_LAPSING
        if first:
            self._go(reason)
            self._sure = self._let_go and self._held.jobs == 0
        self._deadline = self._grace = self._escalate = None
        if kill:
            self._tell(wiring.KILL_FS)
        if not first:
            return
        self._retry = None
        self._pause = RETRY_FIRST
        self._held.thaw_each()
        self._restore_rcu()
        self._remember(reason)

    def _remember(self, reason: int) -> None:
        self._reason, self._lapsed, self._lapsed_seconds = reason, self._cycle, self._seconds
        self._record(lapse_record(Lapse(self._cycle, self._seconds, wire.REASONS[reason])))
        self._log.error(f"the freeze did not hold: {wire.REASONS[reason]}")
        if self._audit is not None:
            self._audit.lapse(wire.REASONS[reason])

    def _release(self) -> None:
        """Nothing of ours is frozen: let go of it, have the supervisor lower the flag, answer fs if it asked."""
        answer = self._thawed_answer()
        self._held.clear()
        self._go(freezestate.FREE)
        self._committed = False
        self._deadline = self._grace = self._escalate = self._retry = None
        self._restore_rcu()
        if self._cycle:
            self._record(f"thawed {self._cycle}")
        self._lower()
        self._pay(answer)

    def _lower(self) -> None:
        """Tell the supervisor, and wait until it has done it: the host's next command must not be refused."""
        self._acknowledged = False
        if not self._tell(wiring.THAWED):
            return
        poll = select.poll()
        poll.register(self._control.fileno(), select.POLLIN)
        end = time.monotonic() + ACKNOWLEDGE
        while not self._acknowledged and not self._orphaned:
            left = end - time.monotonic()
            if left <= 0:
                self._log.warning("the supervisor does not acknowledge the thaw")
                return
            if poll.poll(left * 1000):
                self._from_supervisor()

    def _restore_rcu(self) -> None:
        if self._rcu_old and self._rcu >= 0:
            try:
                os.pwrite(self._rcu, bytes((self._rcu_old,)), 0)
            except OSError as e:
                self._log.error(f"rcu_expedited cannot be put back: {e.strerror}")
            else:
                self._record(f"rcu-back {self._cycle}")
        self._rcu_old = 0

    def _record(self, record: str) -> None:
        try:
            if self._journal is not None:
                self._journal.append(record)
        except OSError as e:
            self._log.error(f"the journal cannot be written: {e.strerror}")

    # -- the supervisor

    def _tell(self, byte: bytes) -> bool:
        try:
            self._control.send(byte, _socket.MSG_DONTWAIT | _socket.MSG_NOSIGNAL)
        except OSError:
            return False  # it is gone, which its end of file says, or it is stopped
        return True

    def _from_supervisor(self) -> None:
        try:
            data, fd = wiring.receive_fd(self._control)
        except OSError:
            data, fd = b"", None
        if not data:
            self._orphaned = True
            self._poll.unregister(self._control.fileno())
            self._lapse(wire.REASON_ORPHANED)
        elif data == wiring.THAWED:
            self._acknowledged = True
        elif fd is not None and data == wiring.TAG_JOURNAL:
            if self._journal is not None:
                os.close(self._journal.fd)
            self._journal = Journal(fd, self._boot)
        elif fd is not None and data == wiring.TAG_FS:
            if self._fs is not None:
                self._fs_gone()  # a new one comes when the old one has ended
            self._let_go = True
            self._fs = wiring.adopt(fd)
            self._fs.setblocking(False)
            self._grace = None
            self._poll.register(fd, select.POLLIN)
        elif fd is not None:
            os.close(fd)

    # -- fs

    def _fs_gone(self, reason: int = wire.REASON_UNCONFIRMED) -> None:
        assert self._fs is not None
        self._poll.unregister(self._fs.fileno())
        self._fs.close()
        self._fs = None
        self._owes = False
        if reason == wire.REASON_UNCONFIRMED:  # end of file: no thread of it can freeze any more
            self._let_go = True
        if self._phase == wire.PHASE_FROZEN and self._committed and reason == wire.REASON_UNCONFIRMED:
            self._grace = time.monotonic() + GRACE
        elif self._phase != wire.PHASE_LAPSING:
            self._lapse(reason)

    def _from_fs(self) -> None:
        assert self._fs is not None
        try:
            data, ancillary, flags, _ = self._fs.recvmsg(
                wire.BIGGEST + 1, _socket.CMSG_SPACE(4 * (wire.CHUNK + 4)), _socket.MSG_CMSG_CLOEXEC
            )
        except BlockingIOError:
            return
        except OSError:
            data, ancillary, flags = b"", [], 0
        fds = wire.take_descriptors(ancillary)
        if not data:
            wire.close_all(fds)
            self._fs_gone()
            return
        try:
            if flags & (_socket.MSG_TRUNC | _socket.MSG_CTRUNC):
                raise ValueError("a message is cut short")
            if fds and data[0] != wire.HOLD:
                raise ValueError("unexpected descriptors")
            self._message(data, fds)
        except (BrokenPipeError, ConnectionResetError):
            # It ended before it could read the answer: an end of file, not a broken protocol.
            if self._fs is not None:
                self._fs_gone()
        except (ValueError, IndexError, struct.error, OSError) as e:
            wire.close_all([fd for fd in fds if not self._held.owns(fd)])
            self._log.error(f"fs breaks the protocol and is given up: {e}")
            self._tell(wiring.KILL_FS)
            self._fs_gone(wire.REASON_BROKEN)

    def _answer(self, data: bytes) -> None:
        """Raises OSError when fs does not take it: it sends one message and waits, so its buffer is empty."""
        if self._fs is not None:
            self._fs.send(data, _socket.MSG_NOSIGNAL)

    def _agree(self, agreed: bool) -> None:
        self._answer(wire.KIND.pack(wire.OK if agreed else wire.NO))

    def _message(self, data: bytes, fds: list[int]) -> None:
        """One message.  Raises ValueError, struct.error or OSError when fs is broken or hostile."""
        kind = data[0]
        if kind == wire.ASK:
            wire.KIND.unpack(data)
            self._answer(
                wire.STATUS_BODY.pack(
                    wire.STATUS,
                    self._phase,
                    self._committed,
                    self._cycle,
                    len(self._held.live),
                    self._seconds,
                    self._reason,
                    self._lapsed,
                    self._lapsed_seconds,
                )
            )
        elif kind == wire.BEGIN:
            self._begin(*wire.BEGIN_BODY.unpack(data)[1:])
        elif kind == wire.HOLD:
            _, cycle, first, count = wire.HOLD_BODY.unpack(data)
            self._hold(cycle, first, count, fds)
        elif kind == wire.FROZEN:
            _, cycle, count = wire.FROZEN_BODY.unpack_from(data)
            self._frozen(cycle, count, data[wire.FROZEN_BODY.size :])
        elif kind == wire.COMMIT:
            _, cycle = wire.CYCLE_BODY.unpack(data)
            if self._phase == wire.PHASE_FROZEN and cycle == self._cycle:
                self._committed = True
        elif kind == wire.TOLD:
            _, cycle = wire.CYCLE_BODY.unpack(data)
            if cycle == self._lapsed and self._phase == wire.PHASE_IDLE:
                self._reason = 0
        elif kind == wire.SHORTEN:
            _, cycle, seconds = wire.SHORTEN_BODY.unpack(data)
            if self._phase in (wire.PHASE_HELD, wire.PHASE_FROZEN) and cycle == self._cycle:
                self._shorten(seconds)
        elif kind == wire.THAW:
            _, flags = wire.THAW_BODY.unpack(data)
            self._thaw(lower=bool(flags & wire.FLAG_LOWER))
        else:
            raise ValueError("unknown message")

    def _begin(self, cycle: int, seconds: int, rcu: int, count: int) -> None:
        if self._phase == wire.PHASE_LAPSING:
            self._agree(False)
            return
        if self._phase != wire.PHASE_IDLE or not cycle or not 0 < count <= wire.MOST or rcu not in (0, *b"0"):
            raise ValueError("begin out of place")
        try:
            self._held.prepare(count)
        except RuntimeError:
            self._log.error(f"there are no threads for {count} file systems")
            self._agree(False)
            return
        self._cycle, self._seconds, self._announced, self._rcu_old = cycle, seconds, count, rcu
        self._held.clear()
        self._committed = self._let_go = False
        self._go(freezestate.REGISTER)
        self._deadline = time.monotonic() + seconds if seconds else None
        self._agree(True)

    def _shorten(self, seconds: int) -> None:
        """Never longer: whoever sends this can only have it thawed sooner."""
        deadline = time.monotonic() + seconds
        if self._deadline is None or deadline < self._deadline:
            self._deadline, self._seconds = deadline, seconds
            self._tell(wiring.SHORTENED)

    def _hold(self, cycle: int, first: int, count: int, fds: list[int]) -> None:
        if self._phase == wire.PHASE_LAPSING:
            wire.close_all(fds)
            self._agree(False)
            return
        if (
            self._phase != wire.PHASE_HELD
            or cycle != self._cycle
            or first != len(self._held)
            or not 0 < count == len(fds)
            or first + count > self._announced
        ):
            raise ValueError("hold out of place")
        self._held.add(fds)
        self._agree(True)

    def _frozen(self, cycle: int, count: int, marks: bytes) -> None:
        if self._phase == wire.PHASE_LAPSING:
            self._agree(False)
            return
        if (
            self._phase != wire.PHASE_HELD
            or cycle != self._cycle
            or not count == len(marks) == len(self._held) == self._announced
            or not wire.MARKS.issuperset(marks)
        ):
            raise ValueError("frozen out of place")
        self._held.mark(marks)
        self._rcu_old = 0  # fs has put it back
        self._go(freezestate.DONE)
        self._agree(True)

    def _thaw(self, *, lower: bool) -> None:
        if self._phase == wire.PHASE_THAWING:
            raise ValueError("thaw asked twice")
        if self._phase == wire.PHASE_IDLE:
            if lower:
                self._lower()
            self._owes = True
            self._pay(self._thawed_answer())
            return
        self._deadline = None
        self._grace = self._retry = None
        self._held.thaw_in_turn()
        self._owes = self._let_go = True  # who asks for the thaw does not freeze any more
        self._go(freezestate.ASK)
        self._escalate = time.monotonic() + PATIENCE

    def _thawed(self, all_free: bool) -> None:
        """The thaw that fs asked for is done.  After a lapse the answer is that lapse, whatever our FITHAW said since."""
        self._escalate = None
        if not self._reason and not all_free:
            self._remember(wire.REASON_STUCK)
        elif not self._reason and self._held.lost:
            self._remember(wire.REASON_LOST)
        if all_free:
            self._release()
        else:
            self._go(freezestate.STUCK)  # go on trying
            self._sure = False
            self._pay(self._thawed_answer())

    def _pay(self, answer: bytes) -> None:
        if self._owes:
            self._owes = False
            try:
                self._answer(answer)
            except OSError:
                pass  # fs is gone or broken; its end of file comes

    def _thawed_answer(self) -> bytes:
        reason = self._reason
        cycle, seconds = (self._lapsed, self._lapsed_seconds) if reason else (self._cycle, self._seconds)
        results = self._held.results()
        return wire.THAWED_BODY.pack(wire.THAWED, cycle, seconds, reason, len(results)) + results


def prepare(
    control: Socket, *, settings: dict[str, str], board: Board, log: Log, audit: Audit | None = None
) -> Callable[[], None]:
    """While privileges last: open what puts rcu_expedited back.  Returns the main loop, to be run behind the walls."""
    one_arena()
    rcu = -1
    if settings.get("expedite-rcu", "1") != "0":
        try:
            rcu = os.open(RCU_EXPEDITED, os.O_WRONLY | os.O_CLOEXEC)
        except OSError as e:
            log.debug(f"rcu_expedited is left alone: {e.strerror}")
    return Thawer(control, board=board, log=log, rcu=rcu, boot=boot_id(), audit=audit).run
