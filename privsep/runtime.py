"""The worker's loop: one request at a time, blocking, from one socket to the front.

What a request may be was decided twice before it gets here, and is decided here again: the worker's dispatch table has only
the commands that are declared for its domain *and* allowed by its sealed policy slice, and the arguments are checked against
the command table.  A front that sends anything else than a frame with a known verb is broken or hostile, and the
worker ends.
"""

from __future__ import annotations

import os
import select
import time

from privsep import blob, frame, wiring
from privsep.audit import Audit
from privsep.audit import arguments as visible
from privsep.counters import nowhere
from privsep.domains import BY_NAME
from privsep.fingerprint import fingerprint
from protocol import tally
from protocol.commands import Command, verbs_of
from protocol.errors import CommandError, ProtocolViolation
from protocol.schema import check_arguments

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from types import ModuleType
    from typing import Any, Final

    from privsep.board import Board
    from privsep.counters import Page
    from privsep.log import Log
    from privsep.wiring import Socket

_SMALL: Final = 4096  # bytes that are quicker copied than viewed
_UNWANTED_MS: Final = 10_000


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
        self.deferred: list[tuple[bytes, int | None]] = []

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

    __slots__ = ("command", "handler", "names", "audited")

    def __init__(self, command: Command, module: ModuleType, allowed: bool) -> None:
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
        self._verbs = tuple([_Verb(c, module, c.name in allowed) for c in verbs_of(domain)])
        self._front: Socket | None = None
        self._front_fd = -1
        self._assembler = frame.Assembler()
        self._greeted = False
        self._window_sent = False  # this front has the memory that is kept for bulk data
        self._unconfirmed: dict[int, Command] = {}
        self._buffer = bytearray(frame.DATAGRAM + 1)  # where datagrams are received
        self._view = memoryview(self._buffer)

    def run(self) -> None:
        """Until the supervisor or, when no state is held, the front has gone."""
        context = self._context
        assert context.control is not None
        control = context.control.fileno()
        watch: Callable[[Context], dict[int, Callable[[Context], None]]] | None
        watch = getattr(self._module, "watch", None)
        poll = select.poll()
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
            events = poll.poll(_UNWANTED_MS if unwanted else None)
            if unwanted and not events:
                return
            for fd, _ in events:
                if fd == front:
                    if fd == self._front_fd and not self._from_front():
                        self._let_go()
                        if not self._holds():
                            return
                elif fd == control:
                    if not self._from_supervisor(*wiring.receive_fd(context.control)):
                        return
                elif fd in watched:
                    watched[fd](context)
            while context.deferred:
                if not self._from_supervisor(*context.deferred.pop(0)):
                    return
            context.log.flush()

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
        if fd is None:
            return True
        if data[:1] == wiring.TAG_CHANNEL:
            self._let_go()
            self._front = wiring.adopt(fd)
            self._front_fd = fd
            self._assembler = frame.Assembler()
            self._greeted = False
            self._window_sent = False
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
        value = self._assembler.feed(self._buffer[:size] if size <= _SMALL else self._view[:size])
        return value is None or self._request(value)

    def _request(self, value: object) -> bool:
        """False when the front is gone."""
        if type(value) is not list or not 3 <= len(value) <= 4:
            raise ProtocolViolation("not a request")
        number, verb, arguments = value[:3]
        if type(number) is not int or type(verb) is not int or type(arguments) is not dict:
            raise ProtocolViolation("not a request")
        if not self._greeted:
            if verb != frame.HELLO:
                raise ProtocolViolation("no hello")
            self._greeted = arguments.get("tables") == fingerprint()
            self._reply(number, self._greeted, True if self._greeted else ["GenericError", "restart needed"])
        elif 0 <= verb < len(self._verbs):
            if len(value) == 4:
                return self._with_bulk(number, self._verbs[verb], arguments, value[3])
            self._execute(number, self._verbs[verb], arguments)
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
        member, size = frame.bulk_of(announced)
        if member != verb.command.takes or member in arguments:
            raise ProtocolViolation("bulk data that the command does not take")
        incoming = frame.Incoming(self._front, size, self._buffer)
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
        value: object
        try:
            handler = verb.handler
            if handler is None:  # the front would have refused it, so it is always told
                result = tally.REFUSED
                context.audit.refused(number, command.name, visible(command, arguments))
                raise CommandError.disabled(command.name)
            if bulk is not None:
                arguments[command.takes] = ""  # it is text; what is in it is the handler's to judge
            checked = check_arguments(command.args, arguments) if arguments or command.args else arguments
            if command.takes:
                taken = (len(checked.get(command.takes, "")) if bulk is None else bulk.size) * 3 // 4  # type: ignore[arg-type]
            if audit is not None:
                audit.begin(number, command.name, visible(command, checked))
            if bulk is not None:
                checked[command.takes] = bulk
            names = verb.names
            ok, value = True, handler(context, **{names[k]: v for k, v in checked.items()})
        except CommandError as e:
            ok, value = False, [e.kind, e.desc]
            result = result or tally.ERROR
        except Exception as e:  # a bug: told without the values, which may be secret
            place = e.__traceback__
            while place is not None and place.tb_next is not None:
                place = place.tb_next
            where = f"{os.path.basename(place.tb_frame.f_code.co_filename)}:{place.tb_lineno}" if place else "?"
            context.log.error(f"{command.name}: {type(e).__name__} at {where}")
            if isinstance(e, ProtocolViolation):
                raise
            ok, value = (
                False,
                ["GenericError", f"{command.name} failed inside the agent ({type(e).__name__} at {where})"],
            )
            result = tally.ERROR
        if bulk is not None:
            bulk.drain()
        if command.confirm:
            self._unconfirmed[number] = command
        given = 0
        if ok and command.gives:
            given = self._reply_bulk(number, command, value)
        else:
            self._reply(number, ok, value)
        counts, cell = context.counts, command.cell
        counts[cell + result] += 1
        if taken:
            counts[cell + tally.TAKEN] += taken
        if given:
            counts[cell + tally.GIVEN] += given
        if audit is not None and result != tally.REFUSED:
            error = None if ok else value[1]  # type: ignore[index]
            audit.end(number, command.name, error=error, took=time.monotonic() - begun, taken=taken, given=given)

    def _reply(self, number: int, ok: bool, value: object) -> None:
        assert self._front is not None
        try:
            for part in frame.encode([number, ok, value]):
                self._front.send(part)
        except OSError:
            pass  # the front is gone; the end of file that follows says so

    def _reply_bulk(self, number: int, command: Command, value: object) -> int:
        """A reply whose bulk members, raw bytes until here, go into a memfd when they are large; how many bytes those are."""
        assert self._front is not None and isinstance(value, dict)
        members = [name for name in command.gives if name in value]
        made: blob.Sealed | blob.Kept | None = None
        if len(members) == 1 and isinstance(value[members[0]], (blob.Sealed, blob.Kept)):
            made = value[members[0]]
            size: int = made.size
            value[members[0]] = size
        elif (size := sum(len(value[name]) for name in members)) > frame.INLINE:
            try:
                made = blob.of([value[name] for name in members])
            except OSError as e:
                self._reply(number, False, ["GenericError", f"no memory for the reply: {e.strerror}"])
                return 0
            for name in members:
                value[name] = len(value[name])
        if made is None:
            self._reply(number, True, value)
            return size
        kept = isinstance(made, blob.Kept)
        (part,) = frame.encode([number, True, value, members, kept])
        try:
            if isinstance(made, blob.Sealed):
                wiring.send_fd(self._front, part, made.fd)
            elif self._window_sent:
                self._front.send(part)
            else:
                self._window_sent = True
                wiring.send_fd(self._front, part, blob.window().fd)
        except OSError:
            pass  # the front is gone; the end of file that follows says so
        finally:
            if isinstance(made, blob.Sealed):
                os.close(made.fd)
        return size
