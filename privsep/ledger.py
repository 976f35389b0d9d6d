"""The audit trail, where it ends: the supervisor takes the processes' records, stamps them and writes them to the one sink.

Each process has a socket of its own (`spawn.outlet`), so a record is from whom it says.  Nobody waits: processes drop what their
socket does not take, and what the sink does not take is dropped here; both are counted and said.  While file systems are
frozen nothing is read, so nothing is written: the records stay in the sockets, which are memory of the kernel's, of fixed
size, and outlive their process.

A process that says more than `BUDGET` bytes in a second waits for the next one, so that the host, which makes the front refuse
as often as it likes, fills no disk.
"""

from __future__ import annotations

import os
import select
import time

from policy.builtin import COMMANDS
from privsep import spawn
from privsep.audit import MASKABLE, MASKED, RECORD
from privsep.auditrecord import as_text, event, stamped
from privsep.auditsink import JOURNAL, LOG, SinkError, open_sink
from privsep.counters import Page
from privsep.log import printable
from protocol import tally

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

    from policy.model import Policy
    from privsep.auditrecord import Record
    from privsep.auditsink import Sink
    from privsep.log import Log
    from privsep.loop import Loop
    from privsep.wiring import Socket

BUDGET: Final = {"front": 64 * 1024}  # bytes a second; the front's records are refusals
BUDGET_OF_OTHERS: Final = 4 << 20
SECOND: Final = 1.0
# Seconds from one look to the next.  In a stream of programs that are started a look takes the records of several.
REST: Final = 0.004
_TURN: Final = 32  # records of one process at a time: so many are in our memory, the rest waits in the socket
_OWN: Final = 256  # records of our own, at most, while frozen
_LAST: Final = 256  # turns at the end: more than the sockets hold
_SAID: Final = 60.0  # seconds between two lines of the log about the same thing


class _Source:
    """A process, living or not, and our end of its socket."""

    __slots__ = ("name", "pid", "socket", "spent", "since")

    def __init__(self, name: str, pid: int, socket: Socket) -> None:
        self.name = name
        self.pid = pid
        self.socket = socket
        self.spent = 0
        self.since = 0.0


class Ledger:
    """`listen` has it take what there is whenever there is something; while `held` nothing is written.

    policy  the one in force, which says what the sink is
    """

    def __init__(self, *, log: Log, policy: Policy) -> None:
        """Raises auditsink.SinkError."""
        self._log = log
        self._sink: Sink = open_sink(to_of(policy), log)
        self.held = False
        self._loop: Loop | None = None
        self._policy = policy
        self._settled: list[
            tuple[str, int, tuple[str, str]]
        ] = []  # (command, refusals, rule) of policies before this one
        self._epoll = select.epoll(select.EPOLL_CLOEXEC)
        self._sources: dict[int, _Source] = {}
        self._paused: list[_Source] = []
        self._pages: dict[str, Page] = {}
        self._said: dict[str, float] = {}
        self._unsaid = 0  # records lost that the log was not told of
        self._own: list[Record] = []  # of the supervisor, while frozen
        self.numbers = self.counters("supervisor").numbers

    def listen(self, loop: Loop) -> None:
        """From now on take whatever comes."""
        self._loop = loop
        loop.watch(self._epoll.fileno(), lambda: self._ready())

    def _ready(self) -> None:
        """Take what there is, and then look away for a moment: in a stream of requests one look takes the records of several."""
        assert self._loop is not None
        self._loop.forget(self._epoll.fileno())
        if self.held:
            return  # `frozen` listens again
        if self.take() and self._loop.due("audit") is None:
            self._loop.at("audit", SECOND, self.resume)
        self._loop.at("audit rest", REST, self._rested)

    def _rested(self) -> None:
        if self._loop is not None and not self.held:
            self.listen(self._loop)

    def frozen(self, frozen: bool) -> None:
        """File systems are about to be frozen, or none is any more."""
        numbers = self.numbers
        now = time.monotonic_ns() // 1000
        if frozen and not self.held:
            numbers[tally.FREEZES] += 1
            numbers[tally.FROZEN_SINCE] = now
        elif self.held and not frozen:
            numbers[tally.FROZEN_US] += now - numbers[tally.FROZEN_SINCE]
            numbers[tally.FROZEN_SINCE] = 0
        self.held = frozen
        if not frozen and self._loop is not None:
            self.listen(self._loop)

    def recovery(self, reason: str) -> None:
        """A thaw from the journal begins."""
        self.numbers[tally.RECOVERIES] += 1
        self._event("recovery", reason)

    def counters(self, name: str) -> Page:
        """The row's page of counters, made when it is first asked for."""
        page = self._pages.get(name)
        if page is None:
            page = self._pages[name] = Page.create(name)
            page.fd = spawn.above(page.fd)
        return page

    def adopt(self, policy: Policy) -> list[str]:
        """Another policy is in force from now on; refusals until now were by the rules of the one before.

        Not called while file systems are frozen.  What there is to say: a new sink that cannot be had leaves the old one."""
        for place, command in enumerate(COMMANDS):
            rule = self._policy.about(command)
            if rule == policy.about(command):
                continue
            at = tally.FIRST + tally.WIDTH * place + tally.REFUSED
            count = sum(page.numbers[at] for page in self._pages.values())
            count -= sum(n for c, n, _ in self._settled if c == command)
            if count > 0:
                self._settled.append((command, count, rule))
        self.take()
        notes = []
        if to_of(policy) != to_of(self._policy):
            try:
                self._sink = open_sink(to_of(policy), self._log)
            except SinkError as e:
                notes.append(f"audit records go to {self._sink.name} as before: {e}")
        self._policy = policy
        self._event("policy", policy.name)
        return notes

    def _about(self, command: str, rule: str) -> tuple[str, str]:
        """(rule id, origin); `rule` "": the one about the command as such."""
        if not rule:
            return self._policy.about(command)
        return rule, next((r.origin for r in self._policy.rules if r.id == rule), "")

    def status(self) -> list[str]:
        """Lines for the status file: the sink, the rule of each command that is refused, and what earlier rules refused."""
        lines = [f"audit {self._sink.name}"]
        lines += [f"rule {c} {_words(self._policy.about(c))}" for c in COMMANDS if not self._policy.allows(c)]
        lines += [f"origin {_words((r.id, r.origin))}" for r in self._policy.rules]
        return lines + [f"refused {c} {count} {_words(rule)}" for c, count, rule in self._settled]

    def keep(self, name: str, page: Page) -> None:
        """A page that was made before there was a ledger."""
        self._pages[name] = page

    def watch(self, name: str, pid: int, socket: Socket) -> None:
        """From now on take what this process says; `socket` is ours."""
        socket.setblocking(False)
        fd = socket.fileno()
        self._sources[fd] = _Source(name, pid, socket)
        self._epoll.register(fd, select.EPOLLIN)

    def _event(self, name: str, detail: str) -> None:
        """A record of what the supervisor does by itself."""
        self.numbers[tally.RECORDS] += 1
        self._own = [*self._own[1 - _OWN :], event(name, detail, "supervisor", os.getpid(), time.time_ns() // 1000)]
        self.take()

    def take(self) -> bool:
        """Read what there is and write it.  True: somebody has to wait; call `resume` in a second."""
        if self.held:
            return False
        records, self._own = self._own, []
        now = time.monotonic()
        for fd, _ in self._epoll.poll(0):
            source = self._sources.get(fd)
            if source is not None:
                self._read(source, now, records)
        if records:
            self._write(records)
        return bool(self._paused)

    def _read(self, source: _Source, now: float, records: list[Record]) -> None:
        if now - source.since >= SECOND:
            source.since, source.spent = now, 0
        for _ in range(_TURN):
            if source.spent >= BUDGET.get(source.name, BUDGET_OF_OTHERS):
                self._epoll.unregister(source.socket.fileno())
                self._paused.append(source)
                return
            try:
                data = source.socket.recv(RECORD + 1)
            except BlockingIOError:
                return
            except OSError:
                data = b""
            if not data:  # its end
                del self._sources[source.socket.fileno()]
                source.socket.close()
                return
            source.spent += len(data)
            record = stamped(data, source.name, source.pid, COMMANDS, self._about)
            if record is None:
                self._say(f"audit {source.name}", f"{source.name} sent an audit record that is none")
            else:
                if source.name == "front":
                    self._hide(record)
                records.append(record)

    def _hide(self, record: Record) -> None:
        """What a rule masks, in a refusal of the front's, which is told of no rule."""
        arguments = record.get("arguments")
        if not isinstance(arguments, dict) or record["command"] != "guest-exec":
            return
        if any(r.kind == "exec" and r.one("mask") == "true" for r in self._policy.rules):
            arguments.update({name: MASKED for name in MASKABLE if name in arguments})

    def resume(self) -> None:
        """Listen again to those who had to wait."""
        waiting, self._paused = self._paused, []
        for source in waiting:
            if source.socket.fileno() >= 0:
                self._epoll.register(source.socket.fileno(), select.EPOLLIN)

    def drain(self) -> None:
        """At the end: whatever is still there."""
        for _ in range(_LAST):
            self.resume()
            if not self._epoll.poll(0) and not self._own:
                return
            self.take()

    def _write(self, records: list[Record]) -> None:
        if self._sink.name not in (JOURNAL, LOG):
            for record in records:
                # What the administrator should see who looks at the log only; workers have said it there themselves.
                if record["phase"] == "refused" and record["process"] == "front":
                    self._say(f"refused {record['command']}", as_text(record))
        lost = self._sink.write(records)
        if lost:
            self.numbers[tally.DROPPED] += lost
            self._unsaid += lost
        if self._unsaid and self._say(
            "lost", f"{self._unsaid} audit records were lost: {self._sink.name} did not take them"
        ):
            self._unsaid = 0

    def _say(self, key: str, text: str) -> bool:
        """To the log, once a minute for each key."""
        now = time.monotonic()
        if now - self._said.get(key, -_SAID) < _SAID:
            return False
        self._said[key] = now
        self._log.warning(text)
        return True


def to_of(policy: Policy) -> str:
    """Where a policy wants the records (privsep/auditsink.py)."""
    return policy.more.get("audit-to", "")


def _words(rule: tuple[str, str]) -> str:
    """An id, which has no blank in it, and an origin, which may."""
    return f"{printable(rule[0]).replace(' ', '_')} {printable(rule[1])}"
