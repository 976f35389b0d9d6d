"""The front: the only process that reads the host's bytes, and the one that holds nothing.

One poll loop over the control socket, the channel and the workers' sockets.  What the bytes mean is `protocol/session.py`;
which worker has which request is `privsep/dispatch.py`.
"""

from __future__ import annotations

import gc
import os
import select
import time

from policy.seal import parse_slice, read_sealed
from privsep import dispatch, wiring
from privsep.audit import Audit
from privsep.audit import arguments as visible
from privsep.blob import Blob, Stream
from privsep.counters import nowhere
from privsep.domains import DOMAINS, NUMBER
from privsep.fingerprint import fingerprint
from privsep.hostside import LARGE, HostSide
from privsep.waiting import Waiting
from protocol import tally
from protocol.errors import CommandError, ProtocolViolation
from protocol.request import Known, Request
from protocol.session import FROZEN, Session

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Final

    from privsep.board import Board
    from privsep.counters import Page
    from privsep.log import Log
    from privsep.wiring import Socket

_HANGUP: Final = select.POLLHUP | select.POLLERR | select.POLLNVAL
REFUSAL: Final = "the command is not allowed"
PRELOAD_AFTER: Final = 0.3  # seconds from the start, or from a request, to the first worker that is started unasked
PRELOAD_BETWEEN: Final = 0.1  # to the next
PRELOAD_AGAIN: Final = 2.0  # from its death
_LAST_WORDS: Final = 0.5  # seconds for what is still to be written when the supervisor ends us


class Front:
    def __init__(
        self,
        control: Socket,
        *,
        allowed: frozenset[str],
        settings: dict[str, str],
        board: Board,
        log: Log,
        audit: Audit | None = None,
        counters: Page | None = None,
        give_back: Callable[[], None] = lambda: None,
    ) -> None:
        """`give_back`: lets go of memory that is free."""
        self._give_back = give_back
        self._counts: memoryview | list[int] = nowhere() if counters is None else counters.numbers
        self._audit = Audit(-1, self._counts) if audit is None else audit
        self._told: set[tuple[str, str]] = set()  # refusals of what hosts ask all the time: told once
        self._control = control
        self._log = log
        self._host = HostSide()
        self._poll = select.poll()
        self._wait = Waiting(self._poll).wait
        self._channel: tuple[int, int] | None = None  # what of the channel is polled, and for what
        self._present = False  # a host has said something since it was last seen to be gone
        self._due: float | None = None  # when `_timers` is to be called, at the latest
        # Not from 1: in the audit trail a request's number is larger than those that a front before this one gave.
        self._ids = [int(time.monotonic() * 1000)]
        tables = fingerprint()
        self._links = {d.name: dispatch.Link(d.name, tables, self._ids) for d in DOMAINS if d.channel == "front"}
        self._by_fd: dict[int, dispatch.Link] = {}
        self._session = Session(
            allowed=allowed,
            frozen=lambda: board.frozen,
            version=settings.get("version", "0.0.0"),
            refusal=settings.get("refusal", REFUSAL),
            host_name=lambda: os.uname().nodename or "localhost",
            counts=self._counts,
        )
        self._session.sink = self._host.write_parts
        self._preload: list[str] = []  # domains whose workers are still to be started unasked
        self._preload_at: float | None = None
        self._stay(allowed, settings)

    # -- the loop

    def run(self) -> None:
        """Until the supervisor closes the control socket."""
        control = self._control.fileno()
        host, session, wait, clock = self._host, self._session, self._wait, time.monotonic
        self._poll.register(control, select.POLLIN)
        while True:
            self._watch_channel()
            # Most of what comes is one request that came before: it is answered in here, the loop proper is for the rest.
            usual = [(host.fd, select.POLLIN)] if host.connected and not host.asleep else None
            data: bytes | None = None
            while True:
                due = self._due
                left = None if due is None else due - clock()
                ready = wait(left if left is None else max(0, int(left * 1000) + 1))
                if ready != usual or (left is not None and left <= 0):
                    break
                data = host.read()
                line = session.quick(data)
                if line is None:
                    request = session.hop(data)
                    if request is None:
                        break
                    data = None
                    if self._hop(request):
                        continue
                    ready = []
                    break
                data = None
                count = host.write(line)
                if count != len(line):
                    session.output += line[count:]
                    ready = []
                    break
            now = clock()
            if data is not None:
                self._read(data, now)
            else:
                for fd, events in ready:
                    if fd == control:
                        if not self._from_supervisor():
                            self._last_words()
                            return
                        break  # there may be more, and it may be another policy: that comes before the host
                    if fd in self._by_fd:
                        self._from_worker(self._by_fd[fd], events, now)
                    elif fd == host.fd:
                        self._from_host(events, now)
            if session.calls:
                self._dispatch(now)
            if session.refused:
                self._refused()
            if session.output or session.delivered or host.ended or not host.connected:
                self._write(now)
            self._remind(session.sync_at)
            if self._due is not None and now >= self._due:
                self._timers(now)

    def _hop(self, request: Request) -> bool:
        """Ask the worker and wait while nothing else happens; False: the loop proper has to see to the rest."""
        session = self._session
        assert request.command is not None
        link = self._links[request.command.domain]
        now = time.monotonic()
        if not link.hop(request, now):
            session.calls.append(request)
            return False
        self._remind(link.deadline)
        left = None if self._due is None else max(0, int((self._due - now) * 1000) + 1)
        if self._wait(left) != link.usual:
            return False
        now = time.monotonic()
        self._from_worker(link, select.POLLIN, now)
        if session.output:
            self._write(now)
        return self._host.connected and not (session.output or session.calls or session.sync_at is not None)

    def _remind(self, at: float | None) -> None:
        """See to it that `_timers` is called then, if ever.  A time that is not true any more costs one vain call."""
        if at is not None and (self._due is None or at < self._due):
            self._due = at

    def _timers(self, now: float) -> None:
        """Something is due; find out what, and what is due next."""
        session = self._session
        session.advance(now)
        self._dispatch(now)
        for link in list(self._by_fd.values()):
            if link.deadline is not None and now >= link.deadline and not (link.overdue or link.spare(now)):
                link.overdue = True
                self._ask(wiring.END | NUMBER[link.row.name])
            idle_at = link.idle_at()
            if idle_at is not None and now >= idle_at:
                if session.pouring:
                    link.used_at = (
                        now  # its worker may be waiting for the host to take what it has read, and answers nothing else
                    )
                else:
                    link.probe()
        host = self._host
        if host.look_at is not None and now >= host.look_at:
            host.wake()
        self._write(now)
        self._due = session.sync_at
        if self._preload_at is not None:
            if now >= self._preload_at:
                self._preload_next()
            else:
                self._remind(self._preload_at)
        if host.look_at is not None:
            self._remind(host.look_at)
        for link in self._by_fd.values():
            for at in (link.deadline, link.idle_at()):
                if at is not None and not link.overdue:
                    self._remind(at)

    def _refused(self) -> None:
        """Tell the audit trail of what was refused here."""
        refused, self._session.refused = self._session.refused, []
        for request in refused:
            command = request.command
            assert command is not None
            if command.polled:
                if (command.name, request.reason) in self._told:
                    continue
                self._told.add((command.name, request.reason))
            rule = FROZEN if request.reason == FROZEN else ""
            self._audit.refused(self._next_id(), command.name, visible(command, request.arguments), rule)

    def _next_id(self) -> int:
        self._ids[0] += 1
        return self._ids[0]

    def _failed(self, request: Request, error: CommandError, now: float) -> None:
        """No worker will answer it."""
        command = request.command
        assert command is not None
        self._counts[command.cell + tally.LOST] += 1
        if not command.polled:
            self._audit.lost(request.call or self._next_id(), command.name, error.desc)
        self._session.failed(request, error, now)

    # -- the channel

    def _watch_channel(self) -> None:
        """Poll the channel for what is wanted of it now, and nothing else that is not a worker's or the control socket."""
        host = self._host
        fd = host.fd
        events = 0
        if fd >= 0:
            session = self._session
            events = host.events(read=not session.full, write=bool(session.output))
        if self._channel == (fd, events):
            return
        if self._channel is not None and self._channel[0] != fd:
            self._unwatch_channel()
        if fd >= 0:
            self._poll.register(fd, events)
            self._channel = (fd, events)

    def _unwatch_channel(self) -> None:
        """Before its descriptor is closed: the number may be the next client's."""
        if self._channel is not None:
            self._poll.unregister(self._channel[0])
            self._channel = None

    def _from_host(self, events: int, now: float) -> None:
        host = self._host
        if host.asleep:
            host.wake()
        elif not host.connected:
            host.accept()
        elif events & select.POLLIN:
            self._read(host.read(), now)
        elif events & _HANGUP:
            host.hung_up()
            self._read(b"", now)

    def _read(self, data: bytes, now: float) -> None:
        """These bytes came; when there are none the channel may have changed."""
        if data:
            self._present = True
            if len(data) >= LARGE and self._session.resting:
                data = self._host.rest(data)
            self._session.receive(data, now)
            return
        host = self._host
        if not host.connected:
            self._gone()
        elif host.silent:
            host.sleep(now)
            self._session.unheard()
            self._absent()
            if host.look_at is not None:
                self._remind(host.look_at)

    def _gone(self) -> None:
        """The client was closed, or the device failed."""
        self._host.lost = False
        self._unwatch_channel()
        self._session.disconnected()
        self._dispatch(time.monotonic())
        self._absent()
        if self._host.gone:
            self._ask(wiring.REOPEN[0])

    def _write(self, now: float) -> None:
        host = self._host
        session = self._session
        while session.output and host.connected:
            count = host.write(session.output)
            if not count:
                break
            session.written(count, now)
        for request in session.delivered:
            self._delivered(request)
        session.delivered.clear()
        if session.calls:
            self._dispatch(now)
        if session.refused:
            self._refused()
        if host.lost:
            self._gone()
        elif host.ended and session.idle:
            self._unwatch_channel()
            host.close_client()
            self._absent()

    def _absent(self) -> None:
        """No host has the channel open: the fs worker may hold a freeze that nobody will end."""
        if self._present:
            self._present = False
            self._links["fs"].gone(time.monotonic())

    def _delivered(self, request: Request) -> None:
        assert request.command is not None
        self._links[request.command.domain].confirm(request.call)

    # -- workers

    def _stay(self, allowed: frozenset[str], settings: dict[str, str]) -> None:
        """Which workers are started unasked and stay, by policy: one after the other, when there is nothing else to do."""
        wanted = settings.get("preload", "").split()
        self._preload = [
            name for name in wanted if name in self._links and allowed.intersection(self._links[name].verbs)
        ]
        for name, link in self._links.items():
            link.stays = name in self._preload
            self._remind(link.idle_at())  # it may have stayed until now
        self._later(PRELOAD_AFTER)

    def _later(self, seconds: float) -> None:
        if self._preload:
            self._preload_at = time.monotonic() + seconds
            self._remind(self._preload_at)

    def _preload_next(self) -> None:
        self._preload_at = None
        if not self._session.idle:
            self._later(PRELOAD_AFTER)
            return
        link = self._links[self._preload.pop(0)]
        if link.state == dispatch.DOWN:
            link.state = dispatch.ASKED
            self._ask(wiring.START | NUMBER[link.row.name])
        self._later(PRELOAD_BETWEEN)

    def _dispatch(self, now: float) -> None:
        session = self._session
        while session.calls:
            calls, session.calls = session.calls, []
            for request in calls:
                assert request.command is not None
                link = self._links[request.command.domain]
                link.queue.append(request)
                if link.state == dispatch.DOWN:
                    link.state = dispatch.ASKED
                    self._ask(wiring.START | NUMBER[link.row.name])
                self._push(link, now)

    def _push(self, link: dispatch.Link, now: float) -> None:
        """Give the worker its next request, if it has none and there is one."""
        link.push(now)
        self._remind(link.deadline)
        self._watch_worker(link)

    def _watch_worker(self, link: dispatch.Link) -> None:
        wanted = select.POLLIN | select.POLLOUT if link.wants_to_write else select.POLLIN
        if link.socket is not None and link.watched != wanted:
            self._poll.register(link.fd, wanted)
            link.watched = wanted

    def _from_worker(self, link: dispatch.Link, events: int, now: float) -> None:
        fd = link.fd
        gc.disable()  # as in the worker: a large reply has no cycles
        try:
            if events & select.POLLOUT:
                link.flush()
                self._watch_worker(link)
            if events & (select.POLLIN | _HANGUP):
                reply = link.read(now)
                if link.socket is None:  # it was idle and has been let go
                    self._forget(fd)
                    self._give_back()  # the memory that its replies took
                    return
                if reply is not None:
                    self._reply(link, reply, now)
                    if link.queue or link.absent:
                        self._push(link, now)
                if self._due is None or self._due > now + link.lingers:
                    self._remind(link.idle_at())
        except EOFError:
            self._lost(link, fd, now)
        except ProtocolViolation as e:
            self._log.error(f"the {link.row.name} worker broke the protocol and is ended: {e}")
            self._ask(wiring.END | NUMBER[link.row.name])
            self._lost(link, fd, now)
        finally:
            gc.enable()

    def _reply(self, link: dispatch.Link, reply: tuple[Request, bool | None, object], now: float) -> None:
        request, ok, value = reply
        if type(value) is Stream:
            self._session.flows(request, value, now)
            return
        if type(value) is Known:
            self._session.repeated(request, now)
        elif type(value) is Blob:
            self._session.repeated(request, now, value)
        elif ok is not False:
            try:
                if ok:
                    self._session.answered(request, value, now, link.tail)
                else:
                    self._session.begun(request, value)
            except (TypeError, ValueError, RecursionError):
                self._failed(request, dispatch.nonsense(request), now)
                assert request.command is not None
                raise ProtocolViolation(f"its reply is none that {request.command.name} has") from None
        else:
            assert isinstance(value, list)
            self._session.failed(request, CommandError(value[1], value[0]), now)

    def _forget(self, fd: int) -> None:
        del self._by_fd[fd]
        self._poll.unregister(fd)

    def _lost(self, link: dispatch.Link, fd: int, now: float) -> None:
        self._forget(fd)
        request = link.lost()
        if request is not None:
            assert request.command is not None
            notice = dispatch.death_notice(request.command, link.overdue)
            self._log.error(notice.desc)
            self._failed(request, notice, now)
            self._dispatch(now)
        self._sift(link)  # one that the worker never read may have met another policy meanwhile
        if link.queue and link.state == dispatch.DOWN:
            link.state = dispatch.ASKED
            self._ask(wiring.START | NUMBER[link.row.name])
        elif link.stays and link.row.name not in self._preload:
            self._preload.append(link.row.name)
            self._later(PRELOAD_AGAIN)

    def _refuse(self, link: dispatch.Link, error: CommandError) -> None:
        """There is no worker to be had: fail what waits for it."""
        link.state = dispatch.DOWN
        waiting, link.queue = link.queue, []
        now = time.monotonic()
        for request in waiting:
            self._failed(request, error, now)
        self._dispatch(now)

    # -- the supervisor

    def _ask(self, byte: int) -> None:
        try:
            self._control.send(bytes((byte,)))
        except OSError:
            pass  # the end of file on the control socket tells the rest

    def _from_supervisor(self) -> bool:
        """False at end of file."""
        data, fd = wiring.receive_fd(self._control)
        if not data:
            return False
        tag = data[:1]
        if tag == wiring.TAG_LISTENER and fd is not None:
            self._host.listen(fd)
        elif tag == wiring.TAG_DEVICE and fd is not None:
            self._host.use_device(fd)
        elif tag == wiring.TAG_POLICY and fd is not None:
            self._adopt(fd)
        elif len(data) == 2 and data[1] < len(DOMAINS):
            link = self._links[DOMAINS[data[1]].name]
            if tag == wiring.TAG_WORKER and fd is not None:
                if link.state == dispatch.UP:
                    os.close(fd)
                    return True
                socket = wiring.adopt(fd)
                self._by_fd[fd] = link
                now = time.monotonic()
                link.connect(socket, now)
                self._push(link, now)
                self._remind(link.idle_at())
            elif tag in (wiring.TAG_UNAVAILABLE, wiring.TAG_UNPRIVILEGED):
                self._refuse(link, dispatch.unavailable(link.row, tag == wiring.TAG_UNPRIVILEGED))
        return True

    def _adopt(self, fd: int) -> None:
        """Another policy: for every request that no worker has begun.  Raises PolicyError when it is not sealed."""
        allowed, settings = parse_slice(read_sealed(fd))
        os.close(fd)
        self._told.clear()
        self._session.adopt(allowed=allowed, refusal=settings.get("refusal", REFUSAL))
        self._stay(allowed, settings)
        for link in self._links.values():
            link.moved = None  # a worker that makes room is no worker that does not work
            self._sift(link)
            if link.state == dispatch.ASKED and not allowed.intersection(link.verbs):
                link.state = dispatch.DOWN  # there is no such worker any more
        self._ask(wiring.ADOPTED[0])

    def _sift(self, link: dispatch.Link) -> None:
        """Answer what waits for the worker and is not allowed any more."""
        waiting, link.queue = link.queue, []
        now = time.monotonic()
        for request in waiting:
            if not self._session.withdraw(request, now):
                link.queue.append(request)
        self._dispatch(now)

    def _last_words(self) -> None:
        """The agent ends: what is finished still goes out, what is with a worker is answered."""
        end = time.monotonic() + _LAST_WORDS
        for link in self._links.values():
            for request in ([link.current] if link.current is not None else []) + link.queue:
                if not request.muted:
                    self._failed(request, CommandError("the agent is being stopped"), end)
            link.queue.clear()
        while self._session.output and self._host.connected and time.monotonic() < end:
            count = self._host.write(self._session.output)
            if count:
                self._session.written(count, end)
            else:
                time.sleep(0.01)
