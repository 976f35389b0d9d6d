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

from privsep import frame, wiring
from privsep.domains import BY_NAME
from privsep.fingerprint import fingerprint
from protocol.commands import Command, verbs_of
from protocol.errors import CommandError, ProtocolViolation
from protocol.schema import check_arguments

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from types import ModuleType
    from typing import Any, Final

    from privsep.board import Board
    from privsep.log import Log
    from privsep.wiring import Socket

_BIGGEST_DATAGRAM: Final = frame.DATAGRAM + 1
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
    """

    def __init__(
        self,
        *,
        log: Log,
        settings: dict[str, str] | None = None,
        root: str = "",
        control: Socket | None = None,
        board: Board | None = None,
    ) -> None:
        self.settings = settings or {}
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


class Worker:
    """The loop of one domain; `module` is `workers.<domain>`."""

    def __init__(self, domain: str, module: ModuleType, context: Context, allowed: frozenset[str]) -> None:
        self._domain = domain
        self._module = module
        self._context = context
        self._verbs = verbs_of(domain)
        self._handlers: dict[str, Callable[..., object]] = {
            c.name: getattr(module, c.name.replace("-", "_")) for c in self._verbs if c.name in allowed
        }
        self._front: Socket | None = None
        self._assembler = frame.Assembler()
        self._greeted = False
        self._unconfirmed: dict[int, Command] = {}

    def run(self) -> None:
        """Until the supervisor or, when no state is held, the front has gone."""
        context = self._context
        assert context.control is not None
        control = context.control.fileno()
        watch: Callable[[Context], dict[int, Callable[[Context], None]]] | None
        watch = getattr(self._module, "watch", None)
        poll = select.poll()
        poll.register(control, select.POLLIN)
        polled: set[int] = set()
        while True:
            watched = watch(context) if watch is not None else {}
            wanted = set(watched)
            if self._front is not None:
                wanted.add(self._front.fileno())
            for fd in polled - wanted:
                poll.unregister(fd)
            for fd in wanted - polled:
                poll.register(fd, select.POLLIN)
            polled = wanted
            # Without a front and without state there is nothing to stay for; a front that was restarted comes back at once.
            unwanted = self._front is None and BY_NAME[self._domain].channel == "front" and not self._holds()
            events = poll.poll(_UNWANTED_MS if unwanted else None)
            if unwanted and not events:
                return
            for fd, _ in events:
                if fd == control:
                    assert context.control is not None
                    if not self._from_supervisor(*wiring.receive_fd(context.control)):
                        return
                elif self._front is not None and fd == self._front.fileno():
                    if not self._from_front():
                        polled.discard(fd)
                        poll.unregister(fd)
                        self._front.close()
                        self._front = None
                        if not self._holds():
                            return
                elif fd in watched:
                    watched[fd](context)
            while context.deferred:
                if not self._from_supervisor(*context.deferred.pop(0)):
                    return
            context.log.flush()

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
            if self._front is not None:
                self._front.close()
            self._front = wiring.adopt(fd)
            self._assembler = frame.Assembler()
            self._greeted = False
            self._unconfirmed.clear()
        else:
            name = _TAG_NAMES[data[:1]]
            context.fds[name] = fd
        return True

    def _from_front(self) -> bool:
        """False when the front is gone."""
        assert self._front is not None
        try:
            data = self._front.recv(_BIGGEST_DATAGRAM)
        except OSError:
            return False
        if not data:
            return False
        value = self._assembler.feed(data)
        if value is not None:
            self._request(value)
        return True

    def _request(self, value: object) -> None:
        if type(value) is not list or len(value) != 3:
            raise ProtocolViolation("not a request")
        number, verb, arguments = value
        if type(number) is not int or type(verb) is not int or type(arguments) is not dict:
            raise ProtocolViolation("not a request")
        if not self._greeted:
            if verb != frame.HELLO:
                raise ProtocolViolation("no hello")
            self._greeted = arguments.get("tables") == fingerprint()
            self._reply(number, self._greeted, True if self._greeted else ["GenericError", "restart needed"])
        elif verb == frame.IDLE:
            self._reply(number, True, not self._holds())
        elif verb == frame.DELIVERED:
            command = self._unconfirmed.pop(arguments.get("id", -1), None)
            if command is not None:
                self._optional("delivered", command.name)
        elif 0 <= verb < len(self._verbs):
            self._execute(number, self._verbs[verb], arguments)
        else:
            raise ProtocolViolation("unknown verb")

    def _execute(self, number: int, command: Command, arguments: dict[str, object]) -> None:
        log = self._context.log
        begun = time.monotonic()
        audited = not command.polled
        if audited:
            log.info(f"begin {number} {command.name}")
        try:
            handler = self._handlers.get(command.name)
            if handler is None:
                raise CommandError.disabled(command.name)
            checked = check_arguments(command.args, arguments)
            ok, value = True, handler(self._context, **{k.replace("-", "_"): v for k, v in checked.items()})
        except CommandError as e:
            ok, value = False, [e.kind, e.desc]
        except Exception as e:  # a bug: told without the values, which may be secret
            place = e.__traceback__
            while place is not None and place.tb_next is not None:
                place = place.tb_next
            where = f"{os.path.basename(place.tb_frame.f_code.co_filename)}:{place.tb_lineno}" if place else "?"
            log.error(f"{command.name}: {type(e).__name__} at {where}")
            ok, value = (
                False,
                ["GenericError", f"{command.name} failed inside the agent ({type(e).__name__} at {where})"],
            )
        if command.confirm:
            self._unconfirmed[number] = command
        self._reply(number, ok, value)
        if audited:
            took = (time.monotonic() - begun) * 1000
            log.info(f"end {number} {command.name} {'ok' if ok else 'error'} {took:.1f} ms")

    def _reply(self, number: int, ok: bool, value: object) -> None:
        assert self._front is not None
        try:
            for part in frame.encode([number, ok, value]):
                self._front.send(part)
        except OSError:
            pass  # the front is gone; the end of file that follows says so
