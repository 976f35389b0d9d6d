"""The worker's loop: one request at a time, blocking, from one socket to the front.

What a request may be was decided twice before it gets here, and is decided here again: the worker's dispatch table has only
the commands that are declared for its domain *and* allowed by its sealed policy slice, and the arguments are checked against
the command table.  A front that sends anything else than a frame with a known verb is broken or hostile, and the
worker ends.
"""

from __future__ import annotations

import gc
import mmap
import os
import select
import time

from privsep import blob, frame, wiring
from privsep.audit import MASKABLE, PATIENCE, Audit, without_secrets
from privsep.audit import arguments as visible
from privsep.counters import nowhere
from privsep.domains import BY_NAME
from privsep.fingerprint import fingerprint
from privsep.waiting import Waiting
from protocol import tally
from protocol.commands import Command, verbs_of
from protocol.errors import CommandError, ProtocolViolation, Refused
from protocol.schema import check_arguments

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from types import ModuleType
    from typing import Any, Final

    from policy.decide import Decision, Ruling
    from policy.rules import Rule, Scope
    from privsep.board import Board
    from privsep.counters import Page
    from privsep.log import Log
    from privsep.wiring import Socket

_Generator: Final = type(_ for _ in ())  # what a handler may give for a long list
_SMALL: Final = 4096  # bytes that are quicker copied than viewed
_UNWANTED_MS: Final = 10_000
BROKEN_OFF: Final = "broken off: the front is gone, or broke the protocol"
_REPEATED: Final = 60.0  # seconds between two lines of the log about the same refusal


class State:
    """A plain namespace for what a worker keeps between requests."""

    if TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any: ...
        def __setattr__(self, name: str, value: object) -> None: ...


class Context:
    """What a handler is given besides its arguments.

    settings  strings out of the policy slice
    root      "" in production; a folder that plays `/` for tests
    fds       descriptors that came through control, by name: journal, thawer, hook, fs
    control   the socket to the supervisor (fs and thawer)
    board     its `frozen` is the agent's frozen flag
    scope     what the policy says about requests; None where it says no more than which commands there are
    ruling    the decisions by its rules; None where it has none
    grant     the rule that admitted the request that is being executed, whose limits its handler keeps
    leave     set by a handler: the process is to end as soon as it holds no state, so that the next is started afresh
    granted   (descriptor, letters) that take the place of the row's paths; set by a worker's `prepare`
    deferred  messages (bytes, descriptor) that a handler took from control while it waited for another; the loop's
    audit     the audit trail
    counts    this process's counters, places by protocol/tally.py
    """

    def __init__(
        self,
        *,
        log: Log,
        settings: dict[str, str] | None = None,
        root: str = "",
        control: Socket | None = None,
        board: Board | None = None,
        audit: Audit | None = None,
        counters: Page | None = None,
    ) -> None:
        self.settings = settings or {}
        self.counters = counters
        self.counts: memoryview | list[int] = nowhere() if counters is None else counters.numbers
        self.audit = Audit(-1, self.counts) if audit is None else audit
        self.root = root
        self.state = State()
        self.log = log
        self.fds: dict[str, int] = {}
        self.control = control
        self.board = board
        self.scope: Scope | None = None
        self.ruling: Ruling | None = None
        self.grant: Rule | None = None
        self.leave = False
        self.granted: list[tuple[int, str]] | None = None
        self.deferred: list[tuple[bytes, int | None]] = []
        self._said: dict[tuple[str, str], float] = {}  # refusals that the log has, and when to say them again

    def refusal(self, command: str, decision: Decision) -> Refused:
        """The error for the host of a request that the policy refuses; the administrator's log has the rule's place too."""
        now, about = time.monotonic(), (command, decision.rule)
        if now >= self._said.get(about, 0.0):  # the audit trail has them all
            self._said[about] = now + _REPEATED
            self.log.warning(decision.log(command))
        return Refused(decision.error(command), rule=decision.rule, reason=decision.reason)

    def setting(self, name: str, default: str = "") -> str:
        return self.settings.get(name, default)


_TAG_NAMES: Final = {
    wiring.TAG_JOURNAL: "journal",
    wiring.TAG_THAWER: "thawer",
    wiring.TAG_HOOK: "hook",
    wiring.TAG_FS: "fs",
}


class _Verb:
    """One of the domain's commands; `handler` is None when policy does not allow it."""

    __slots__ = ("command", "handler", "names", "audited", "number", "limit")

    def __init__(self, number: int, command: Command, module: ModuleType, allowed: bool) -> None:
        self.number = number
        self.limit: tuple[int, Rule] | None = None  # requests a minute
        self.command = command
        self.handler: Callable[..., object] | None = None
        if allowed:
            self.handler = getattr(module, command.name.replace("-", "_"))
        self.names = {a.name: a.name.replace("-", "_") for a in command.args}
        self.audited = not command.polled


class Worker:
    """The loop of one domain; `module` is `workers.<domain>`."""

    def __init__(self, domain: str, module: ModuleType, context: Context, allowed: frozenset[str]) -> None:
        self._domain = domain
        self._module = module
        self._context = context
        self._verbs = tuple([_Verb(n, c, module, c.name in allowed) for n, c in enumerate(verbs_of(domain))])
        self._ruling = context.ruling
        if context.ruling is not None:
            for verb in self._verbs:
                verb.limit = context.ruling.rate(verb.command.name)
        self._front: Socket | None = None
        self._front_fd = -1
        self._assembler = frame.Assembler()
        self._greeted = False
        self._window_sent = False  # this front has the memory that is kept for bulk data
        self._told: set[tuple[str, str]] = set()
        self._last = 0  # the id of the latest request on this socket: the next one's is larger
        self._unconfirmed: dict[int, Command] = {}
        self._retired = False  # another policy is in force: end as soon as nothing is held
        # Where datagrams are received.  Of a mapping only what was ever filled is in memory, and most are short.
        self._buffer = mmap.mmap(-1, frame.DATAGRAM + 1, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        self._view = memoryview(self._buffer)
        self._poll = select.poll()
        self._wait = Waiting(self._poll).wait

    def run(self) -> None:
        """Until the supervisor or, when no state is held, the front has gone."""
        context = self._context
        assert context.control is not None
        control = context.control.fileno()
        watch: Callable[[Context], dict[int, Callable[[Context], None]]] | None
        watch = getattr(self._module, "watch", None)
        poll = self._poll
        poll.register(control, select.POLLIN)
        watched: dict[int, Callable[[Context], None]] = {}
        polled: set[int] = set()
        front = -1
        while True:
            if watch is not None:
                watched = watch(context)
            if (
                front != self._front_fd
                or (watch is not None and len(polled) != len(watched) + (front >= 0))
                or not (polled >= watched.keys())
            ):
                front = self._front_fd
                wanted = {front, *watched} - {-1}
                for fd in polled - wanted:
                    poll.unregister(fd)
                for fd in wanted - polled:
                    poll.register(fd, select.POLLIN)
                polled = wanted
            # Without a front and without state there is nothing to stay for; a front that was restarted comes back at once.
            unwanted = front < 0 and BY_NAME[self._domain].channel == "front" and not self._holds()
            events = self._wait(_UNWANTED_MS if unwanted else None)
            if unwanted and not events:
                return
            # The supervisor comes first (it was registered first): a worker that is to make room begins nothing any more.
            for fd, _ in events:
                if fd == front:
                    if fd == self._front_fd and not self._from_front():
                        self._let_go()
                        if not self._holds():
                            return
                elif fd == control:
                    if not self._from_supervisor(*wiring.receive_fd(context.control)):
                        return
                    if self._retired and not self._holds():
                        return
                    break  # whatever else it says comes before the front
                elif fd in watched:
                    watched[fd](context)
            while context.deferred:
                if not self._from_supervisor(*context.deferred.pop(0)):
                    return
            if self._retired and not self._holds():
                return
            context.log.flush()
            if context.leave and not self._holds():
                return

    def _let_go(self) -> None:
        """Of the front."""
        if self._front is not None:
            self._front.close()
            self._front = None
            self._front_fd = -1

    def _optional(self, name: str, *args: object) -> object:
        function = getattr(self._module, name, None)
        return function(self._context, *args) if function is not None else None

    def _holds(self) -> bool:
        return bool(self._optional("holds"))

    def _from_supervisor(self, data: bytes, fd: int | None) -> bool:
        context = self._context
        if data[:1] == wiring.TAG_QUIT:
            self._optional("stopping")
            return False
        if data[:1] == wiring.TAG_START:
            self._optional("started")
            return True
        if not data:
            self._optional("orphaned")
            return False
        if data[:1] == wiring.TAG_RETIRE:
            self._retired = True
            if data[1:] == b"\1" and self._holds():
                context.log.warning("the policy allows less than before: what was open or running is given up")
                self._optional("stopping")
                return False
            return True
        if fd is None:
            return True
        if data[:1] == wiring.TAG_CHANNEL:
            self._let_go()
            self._front = wiring.adopt(fd)
            self._front_fd = fd
            self._assembler = frame.Assembler()
            self._greeted = False
            self._window_sent = False
            self._last = 0
            self._unconfirmed.clear()
        else:
            name = _TAG_NAMES[data[:1]]
            context.fds[name] = fd
        return True

    def _from_front(self) -> bool:
        """False when the front is gone."""
        assert self._front is not None
        try:
            size = self._front.recv_into(self._buffer)
        except OSError:
            return False
        if not size:
            return False
        gc.disable()  # a reply is a tree that grows and goes: to look through it for cycles meanwhile is a third of 5,000 interfaces
        try:
            value = self._assembler.feed(self._buffer[:size] if size <= _SMALL else self._view[:size])
            return value is None or self._request(value)
        finally:
            gc.enable()

    def _request(self, value: object) -> bool:
        """False when the front is gone."""
        if type(value) is not list or not 3 <= len(value) <= 4:
            raise ProtocolViolation("not a request")
        number, verb, arguments = value[:3]
        if type(number) is not int or type(verb) is not int or type(arguments) is not dict:
            raise ProtocolViolation("not a request")
        if number <= self._last:  # an answer, or a line of the audit trail, could be taken for another's
            raise ProtocolViolation("an id that is not new")
        self._last = number
        if not self._greeted:
            if verb != frame.HELLO:
                raise ProtocolViolation("no hello")
            self._greeted = arguments.get("tables") == fingerprint()
            self._reply(number, self._greeted, True if self._greeted else ["GenericError", "restart needed"])
        elif 0 <= verb < len(self._verbs):
            if len(value) == 4:
                return self._with_bulk(number, self._verbs[verb], arguments, value[3])
            try:
                self._execute(number, self._verbs[verb], arguments)
            except frame.FrontGone:
                return False
        elif verb == frame.IDLE:
            self._reply(number, True, not self._holds())
        elif verb == frame.DELIVERED:
            command = self._unconfirmed.pop(arguments.get("id", -1), None)
            if command is not None:
                self._optional("delivered", command.name)
        elif verb == frame.ABSENT:
            self._optional("absent")
        else:
            raise ProtocolViolation("unknown verb")
        return True

    def _with_bulk(self, number: int, verb: _Verb, arguments: dict[str, object], announced: object) -> bool:
        """A request whose large argument follows, to be taken from the socket by the handler."""
        assert self._front is not None
        member, size, end = frame.bulk_of(announced)
        if member != verb.command.takes or member in arguments:
            raise ProtocolViolation("bulk data that the command does not take")
        incoming = frame.Incoming(self._front, size, end, self._buffer)
        try:
            self._execute(number, verb, arguments, incoming)
        except frame.FrontGone:
            return False
        return True

    def _execute(
        self, number: int, verb: _Verb, arguments: dict[str, object], bulk: frame.Incoming | None = None
    ) -> None:
        command = verb.command
        context = self._context
        audit = context.audit if verb.audited else None
        begun = 0.0 if audit is None else time.monotonic()
        result = tally.OK
        taken = 0
        rule = ""  # the one about arguments that decided
        broken: BaseException | None = None  # the front went, or broke the protocol, in the middle of bulk data
        value: object
        try:
            handler = verb.handler
            if handler is None:
                self._log_disabled(command)
                disabled = CommandError.disabled(command.name)
                raise Refused(disabled.desc, disabled.kind)
            if bulk is not None:
                arguments[command.takes] = ""  # it is text; what is in it is the handler's to judge
            if arguments or command.args:
                arguments = check_arguments(command.args, arguments)
            checked = arguments
            if command.takes:
                taken = (len(checked.get(command.takes, "")) if bulk is None else bulk.length) * 3 // 4  # type: ignore[arg-type]
            if bulk is not None:
                checked[command.takes] = bulk
            if self._ruling is not None:
                decision = self._decide(self._ruling, verb, checked)
                rule = decision.rule if decision.grant is not None or not decision.allowed else ""
                if not decision.allowed:
                    raise context.refusal(command.name, decision)
            if audit is not None:
                seen = visible(command, checked, self._masked(command))
                if not audit.begin(
                    number, command.name, seen, rule, patience=0 if self._hurried(command) else PATIENCE
                ):
                    self._unrecorded(command)
            names = verb.names
            ok, value = True, handler(context, **{names[k]: v for k, v in checked.items()})
            if type(value) is _Generator:
                value = self._rows(number, value)
        except Refused as e:
            ok, value = False, [e.kind, e.desc]
            result = tally.REFUSED
            self._tell_refusal(number, command, arguments, e)
        except CommandError as e:
            ok, value = False, [e.kind, e.desc]
            result = tally.ERROR
        except frame.FrontGone as e:
            broken = e
        except Exception as e:  # a bug: told without the values, which may be secret
            place = e.__traceback__
            while place is not None and place.tb_next is not None:
                place = place.tb_next
            where = f"{os.path.basename(place.tb_frame.f_code.co_filename)}:{place.tb_lineno}" if place else "?"
            context.log.error(f"{command.name}: {type(e).__name__} at {where}")
            if isinstance(e, ProtocolViolation):
                broken = e
            ok, value = (
                False,
                ["GenericError", f"{command.name} failed inside the agent ({type(e).__name__} at {where})"],
            )
            result = tally.ERROR
        if bulk is not None and broken is None:
            try:
                bulk.drain()
            except (frame.FrontGone, ProtocolViolation) as e:
                broken = e
        if broken is not None:  # what was done until then stays said
            ok, value, result = False, ["GenericError", BROKEN_OFF], tally.ERROR
            taken = 0 if bulk is None else bulk.came
        if command.confirm:
            self._unconfirmed[number] = command
        given = _bulk_bytes(command, value) if ok and command.gives else 0
        counts, cell = context.counts, command.cell
        counts[cell + result] += 1
        if taken:
            counts[cell + tally.TAKEN] += taken
        if given:
            counts[cell + tally.GIVEN] += given
        if audit is not None and result != tally.REFUSED:  # before the host knows it, and whatever becomes of us then
            error = None if ok else without_secrets(command, arguments, value[1])  # type: ignore[index]
            audit.end(
                number, command.name, error=error, took=time.monotonic() - begun, taken=taken, given=given, rule=rule
            )
        if broken is not None:
            raise broken
        if ok and command.gives:
            self._reply_bulk(number, command, value)
        else:
            self._reply(number, ok, value)

    def _decide(self, ruling: Ruling, verb: _Verb, arguments: dict[str, object]) -> Decision:
        """By the rules of the slice, and by what was counted; what is let through is counted here."""
        decision = ruling.request(verb.command.name, arguments, getattr(self._module, "uid_of", None))
        if decision.allowed and verb.limit is not None:
            limit, rule = verb.limit
            page = self._context.counters
            # Without a page nothing can be counted, so nothing goes.
            if page is None or not ruling.admit(page.seconds(verb.number), limit, time.monotonic()):
                decision = ruling.too_often(limit, rule)
        self._context.grant = decision.grant
        return decision

    def _tell_refusal(self, number: int, command: Command, arguments: dict[str, object], refused: Refused) -> None:
        """To the counters and the audit trail; of what hosts ask all the time the trail has the first for each rule."""
        context = self._context
        if refused.rule and context.counters is not None:
            context.counters.refused_by(f"{command.name} {refused.rule}")
        if command.polled and refused.rule:
            if (command.name, refused.rule) in self._told:
                return
            self._told.add((command.name, refused.rule))
        # What was refused is shown masked: there is no rule that would say otherwise.
        masked = MASKABLE if context.ruling is not None and context.ruling.masks(command.name) else ()
        context.audit.refused(number, command.name, visible(command, arguments, masked), refused.rule, refused.reason)

    def _hurried(self, command: Command) -> bool:
        """What freezes and thaws (the rows whose replies are confirmed) waits for nothing, and while anything is frozen nobody reads
        the audit trail."""
        board = self._context.board
        return command.confirm or (board is not None and board.frozen)

    def _unrecorded(self, command: Command) -> None:
        """Raises CommandError where an action needs its record."""
        if not self._hurried(command):
            raise CommandError(f"{command.name} is not begun: the audit trail takes no more records, try again later")

    def _masked(self, command: Command) -> tuple[str, ...]:
        """The arguments that the rule in force keeps out of the audit trail."""
        grant = self._context.grant
        return MASKABLE if self._ruling is not None and grant is not None and grant.one("mask") == "true" else ()

    def _log_disabled(self, command: Command) -> None:
        """The front refuses it too, and first: whoever still asks has taken the front over, or it is of another policy."""
        context = self._context
        if context.scope is not None:
            rule, origin = context.scope.about(command.name)
        else:
            rule, origin = context.setting("rule"), context.setting("origin")
        context.log.warning(f"{command.name} is not allowed: rule {rule} ({origin})")

    def _rows(self, number: int, made: Iterable[object]) -> list[object]:
        """Send a list while it is being made, but for its last rows, which are returned.  Raises CommandError."""
        rows: list[object] = []
        size = 0
        for row in made:
            if len(rows) == frame.ROWS:
                parts = frame.encode([number, None, rows])
                size += sum(map(len, parts))
                if size > frame.REPLY_LIMIT:
                    raise CommandError(f"the reply is too large: at most {frame.REPLY_LIMIT} bytes are told")
                self._send(parts)
                rows = []
            rows.append(row)
        return rows

    def _send(self, parts: list[bytes]) -> None:
        assert self._front is not None
        try:
            for part in parts:
                self._front.send(part)
        except OSError:
            pass  # the front is gone; the end of file that follows says so

    def _reply(self, number: int, ok: bool, value: object) -> None:
        assert self._front is not None
        parts = frame.encode([number, ok, value])
        size = sum(map(len, parts)) if len(parts) > 1 else 0
        if size > frame.REPLY_LIMIT:
            text = f"the reply is too large: {size} bytes, at most {frame.REPLY_LIMIT} are told"
            parts = frame.encode([number, False, ["GenericError", text]])
        self._send(parts)

    def _reply_bulk(self, number: int, command: Command, value: object) -> None:
        """A reply whose bulk members, raw bytes until here, go into a memfd when they are large."""
        assert self._front is not None and isinstance(value, dict)
        members = [name for name in command.gives if name in value]
        if len(members) == 1 and isinstance(value[members[0]], blob.Flow):
            self._reply_flow(number, command, members[0], value[members[0]])
            return
        made: blob.Sealed | blob.Kept | None = None
        if len(members) == 1 and isinstance(value[members[0]], (blob.Sealed, blob.Kept)):
            made = value[members[0]]
            value[members[0]] = made.size
        elif sum(len(value[name]) for name in members) > frame.INLINE:
            try:
                made = blob.of([value[name] for name in members])
            except OSError as e:
                self._reply(number, False, ["GenericError", f"no memory for the reply: {e.strerror}"])
                return
            for name in members:
                value[name] = len(value[name])
        if made is None:
            self._reply(number, True, value)
            return
        kept = isinstance(made, blob.Kept)
        (part,) = frame.encode([number, True, value, members, frame.KEPT if kept else frame.SEALED])
        try:
            if isinstance(made, blob.Sealed):
                wiring.send_fd(self._front, part, made.fd)
            else:
                self._send_window(part)
        except OSError:
            pass  # the front is gone; the end of file that follows says so
        finally:
            if isinstance(made, blob.Sealed):
                os.close(made.fd)

    def _send_window(self, part: bytes) -> None:
        """Send a datagram about the kept memfd, and the memfd itself with the first.  Raises OSError."""
        assert self._front is not None
        if self._window_sent:
            self._front.send(part)
        else:
            self._window_sent = True
            wiring.send_fd(self._front, part, blob.window().fd)

    def _reply_flow(self, number: int, command: Command, member: str, flow: blob.Flow) -> None:
        """A reply that is read while it is written.  Raises FrontGone and ProtocolViolation."""
        assert self._front is not None
        front, view = self._front, blob.window().view
        counts, given = self._context.counts, command.cell + tally.GIVEN
        try:
            self._send_window(frame.encode([number, True, {member: blob.SLOT}, [member], frame.FLOW])[0])
            counts[given] += blob.SLOT
            filled, taken = 1, 0  # slots
            size = blob.SLOT  # of the last
            while size == blob.SLOT:
                if filled - taken == blob.SLOTS:
                    self._taken(front)
                    taken += blob.SPEND
                slot = filled % blob.SLOTS
                size = flow.fill(view[slot * blob.SLOT : (slot + 1) * blob.SLOT])
                if size:
                    front.send(frame.encode([number, True, size])[0])
                    counts[given] += size
                    filled += 1
            front.send(frame.encode([number, True, flow.rest()])[0])
            while filled > taken:
                self._taken(front)
                taken += blob.SPEND
        except OSError:
            raise frame.FrontGone from None

    def _taken(self, front: Socket) -> None:
        """Wait until the front says that it has taken slots.  Raises OSError, FrontGone, ProtocolViolation.

        A host that reads nothing must not keep a worker that has to end: the supervisor's word ends the reply where it is."""
        control = self._context.control
        assert control is not None
        poll = select.poll()
        poll.register(front.fileno(), select.POLLIN)
        poll.register(control.fileno(), select.POLLIN)
        while front.fileno() not in [fd for fd, _ in poll.poll()]:
            data, fd = wiring.receive_fd(control)
            self._context.deferred.append((data, fd))
            if not data or data[:1] == wiring.TAG_QUIT or data[:2] == wiring.TAG_RETIRE + b"\1":
                raise frame.FrontGone
        size = front.recv_into(self._buffer)
        if not size:
            raise frame.FrontGone
        if self._buffer[:size] != frame.TAKEN:
            raise ProtocolViolation("a request in the middle of another")


def _bulk_bytes(command: Command, value: object) -> int:
    """How many bytes of bulk data are in a result."""
    total = 0
    if isinstance(value, dict):
        for name in command.gives:
            member = value.get(name)
            if member is not None and not isinstance(member, blob.Flow):  # which counts for itself
                total += member.size if isinstance(member, (blob.Sealed, blob.Kept)) else len(member)
    return total
