"""The front's ends of the worker sockets: which request is with which worker, and what happens when it dies.

One `Link` a domain.  A link is *down* until a request wants it; then the supervisor is asked for a worker by one byte and the
requests wait.  One request at a time is with the worker, the others stand in the link's own queue.  A worker that has been
idle for a while is asked whether it holds state; when it does not, the socket is closed and the worker leaves.

How long a while: what was asked once is not likely to be asked again within seconds, and a worker is some MiB.  So the first
leaves after `FIRST_STAY`.  Where another is wanted within `SOON` of that, it was too early, and the next stays several times
as long, up to its row's time: a host that asks every ten seconds soon finds the same worker each time.
"""

from __future__ import annotations

import _socket
import os
import select
import sys

from privsep import blob, frame
from privsep.codec import pack
from privsep.domains import BY_NAME as DOMAIN
from privsep.domains import Domain
from protocol.commands import Command, verbs_of
from protocol.errors import CommandError, ProtocolViolation, WorkerLost
from protocol.longtext import LongText
from protocol.schema import fits

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Final

    from privsep.wiring import Socket
    from protocol.request import Request

DOWN: Final = "down"
ASKED: Final = "asked"
UP: Final = "up"

FIRST_STAY: Final = 2.5  # seconds; who leaves within two of its start counts as one that failed (privsep/life.py)
SOON: Final = 60.0  # seconds
_LONGER: Final = 4  # times

_NOT_NOW: Final = (BlockingIOError, InterruptedError)
_FD_SPACE: Final = _socket.CMSG_SPACE(8)  # for two, so that a second one is seen and not just lost

_HEAD: Final = b"\0\x93"  # a frame in one datagram; an array of three
_HEAD_OF_BULK: Final = b"\0\x95"  # of five: a reply that has bulk data beside it
_SMALL: Final = 4096  # bytes that are quicker copied than viewed
# Where every datagram is received; what is kept of it is copied by the codec.
_buffer: Final = bytearray(frame.DATAGRAM)
_view: Final = memoryview(_buffer)


class Link:
    """The front's side of one domain."""

    __slots__ = (
        "row", "state", "socket", "fd", "watched", "queue", "current", "current_id", "deadline", "used_at", "overdue",
        "unread", "absent", "stays", "verbs", "moved", "_assembler", "_unsent", "_greeting", "_probe", "_ids", "_fingerprint",
        "usual", "tail", "lingers", "_left_at", "_bulky", "_head", "_window", "_stream", "_ahead",
    )  # fmt: skip

    def __init__(self, name: str, fingerprint: str, ids: list[int]) -> None:
        self.row: Domain = DOMAIN[name]
        self.state = DOWN
        self.socket: Socket | None = None
        self.fd = -1
        self.watched = 0  # what its descriptor is polled for
        self.queue: list[Request] = []
        self.current: Request | None = None
        self.current_id = 0
        self.deadline: float | None = None
        self.used_at = 0.0
        self.lingers = min(FIRST_STAY, self.row.idle)  # seconds without a request after which it is asked to leave
        self._left_at: float | None = None  # when one left because of that
        self.overdue = False  # the supervisor was asked to end it
        self.unread = False  # it died without having read what it was sent last
        self.stays = False  # it was started before anybody asked, and does not leave when it is idle
        self.absent = False  # it is to be told that the host has gone
        self.usual: list[tuple[int, int]] = []  # what poll says when there is a reply, and nothing else anywhere
        self.tail: bytes | None = None  # the last reply from behind its number, where that may be of use
        self._window: blob.Memory | None = None  # the memory that its worker keeps for bulk data
        self._stream: blob.Stream | None = None  # of the reply that is coming piece by piece
        self._ahead = 0  # bytes of the parts of a list that have come
        self._head = b""  # the number before that in the reply to a request that `hop` sent
        self.moved: Request | None = None  # one that was unread before
        self._assembler = frame.Assembler(frame.REPLY_LIMIT, walk=False)
        self._unsent: list[bytes | frame.Pieces] = []
        self._greeting = 0  # id of the hello that has not been answered
        self._probe = 0  # id of the question whether it is idle
        verbs = verbs_of(name)
        self.verbs = {c.name: n for n, c in enumerate(verbs)}
        self._bulky = any(c.gives for c in verbs)  # descriptors may come with its replies
        self._ids = ids
        self._fingerprint = fingerprint

    def _next_id(self) -> int:
        self._ids[0] += 1
        return self._ids[0]

    def connect(self, socket: Socket, now: float) -> None:
        socket.setblocking(False)
        self.socket = socket
        self.fd = socket.fileno()
        self.usual = [(self.fd, select.POLLIN)]
        self.watched = 0
        self.state = UP
        self.used_at = now
        if self._left_at is not None:
            again = now - self._left_at < SOON
            self.lingers = min(self.lingers * _LONGER if again else FIRST_STAY, self.row.idle)
            self._left_at = None
        self.overdue = False
        self.unread = False
        self._assembler = frame.Assembler(frame.REPLY_LIMIT, walk=False)
        self._unsent = []
        self._ahead = 0
        self._probe = 0
        self._greeting = self._next_id()
        self._send([self._greeting, frame.HELLO, {"tables": self._fingerprint}])
        self.push(now)

    def push(self, now: float) -> None:
        """Give the worker the next request when it has none."""
        if self.current is not None or self.state != UP:
            return
        if not self.queue:
            if self.absent:
                self.absent = False
                self._send([self._next_id(), frame.ABSENT, {}])
            return
        request = self.queue.pop(0)
        command = request.command
        assert command is not None
        self.current = request
        self.current_id = request.call = self._next_id()
        self._head = b""
        self.used_at = now
        self.deadline = now + command.limit if command.limit else None
        arguments = request.arguments
        if command.takes:
            text = arguments.get(command.takes)
            if type(text) is LongText or (type(text) is str and len(text) > frame.INLINE and text.isascii()):
                rest = {name: value for name, value in arguments.items() if name != command.takes}
                verb = self.verbs[command.name]
                announced: list[object] = [command.takes, len(text)]
                if type(text) is LongText and text.data:
                    parts = text.data
                    announced = [command.takes, sum(map(len, parts)), str(b"".join(text.text), "ascii")]
                else:
                    parts = text.text if type(text) is LongText else [text.encode()]  # type: ignore[union-attr]
                self._unsent += frame.encode([self.current_id, verb, rest, announced])
                self._unsent.append(frame.Pieces(parts))
                self.flush()
                return
        self._send([self.current_id, self.verbs[command.name], arguments])

    def hop(self, request: Request, now: float) -> bool:
        """`push` for a remembered request (`Request.known`) to a worker that has nothing to do; False: it is not that simple."""
        if self.current is not None or self.state != UP or self.queue or self._unsent or self._greeting or self._probe:
            return False
        known = request.known
        assert known is not None and self.socket is not None
        if known.asked is None:
            assert request.command is not None
            known.asked = pack(self.verbs[request.command.name]) + pack(request.arguments)
        head = pack(self._next_id())
        try:
            self.socket.send(_HEAD + head + known.asked)
        except OSError:  # `push` finds out
            return False
        assert request.command is not None
        self.current = request
        self.current_id = request.call = self._ids[0]
        self._head = head
        self.used_at = now
        limit = request.command.limit
        self.deadline = now + limit if limit else None
        return True

    def gone(self, now: float) -> None:
        """Tell the worker, once it has done what it was asked, that the host has closed the channel."""
        self.absent = self.state != DOWN
        self.push(now)

    def confirm(self, request_id: int) -> None:
        """Tell the worker that the reply to this request was written to the host."""
        if self.state == UP:
            self._send([self._next_id(), frame.DELIVERED, {"id": request_id}])

    def _send(self, value: object) -> None:
        self._unsent += frame.encode(value)
        self.flush()

    @property
    def wants_to_write(self) -> bool:
        return bool(self._unsent)

    def flush(self) -> None:
        unsent = self._unsent
        while unsent and self.socket is not None:
            part = unsent[0]
            data = part if type(part) is bytes else part.next()  # type: ignore[union-attr]
            try:
                if data:
                    self.socket.send(data)
            except _NOT_NOW:
                return
            except OSError:  # the end of file that follows tells the rest
                unsent.clear()
                self.unread = True
                return
            if data is part or not data:
                del unsent[0]
            else:
                part.sent()  # type: ignore[union-attr]

    def read(self, now: float) -> tuple[Request, bool | None, object] | None:
        """One datagram: None when it completes no reply to a request, else (request, ok, value); the value is the request's
        `Known` when it is the same reply as last time, or its bulk data, a Blob, where it had some.  Where `ok` is None the value is a
        part of the reply, a list.

        Bulk members of the value are bytes or a Blob.  While a reply flows the value is its Stream, each time that there is more
        of it, and once more at its end.  Raises EOFError when the worker is gone, ProtocolViolation when
        it broke the protocol."""
        assert self.socket is not None
        fd: int | None = None
        try:
            if self._bulky:
                size, ancillary, flags, _ = self.socket.recvmsg_into([_buffer], _FD_SPACE, _socket.MSG_CMSG_CLOEXEC)
                if ancillary or flags & _socket.MSG_CTRUNC:
                    fd = _descriptor(ancillary, flags)
            else:
                size = self.socket.recv_into(_buffer)
        except _NOT_NOW:
            return None
        except ConnectionResetError:
            self.unread = True
            raise EOFError from None
        except OSError:
            raise EOFError from None
        try:
            if not size:
                raise EOFError
            head, self._head = self._head, b""
            self.tail = None
            if head and size > 2 + len(head) and _buffer.startswith(head, 2):
                request = self.current
                if request is not None and request.known is not None:
                    known = request.known
                    self.tail = bytes(_view[2 + len(head) : size])
                    if self.tail == known.reply and _buffer.startswith(_HEAD_OF_BULK if known.size else _HEAD):
                        if not known.size:
                            self._done(now)
                            return request, True, known
                        if fd is None and self._window is not None:  # the same place in the memory that this worker has
                            self._done(now)
                            return request, True, blob.Blob(self._window, 0, known.size, mapped=True)
            value = self._assembler.feed(_buffer[:size] if size <= _SMALL else _view[:size])
            if value is None:
                return None
            if type(value) is not list or len(value) < 3 or type(value[0]) is not int:
                raise ProtocolViolation("not a reply")
            if type(value[1]) is not bool and not (value[1] is None and type(value[2]) is list and len(value) == 3):
                raise ProtocolViolation("not a reply")
            if len(value) != 3:
                taken, fd = fd, None
                self._attach(value, taken)
            number, ok, result = value
        finally:
            if fd is not None:  # nobody wanted it
                os.close(fd)
        if ok is None:
            return self._part(number, result)
        if number and number == self._greeting:
            self._greeting = 0
            if not ok:
                raise ProtocolViolation("it is of another version: restart needed")
            return None
        if number and number == self._probe:
            self._probe = 0
            self.used_at = now
            if ok and result is True and self.current is None and not self.queue:
                self.close()
                self._left_at = now
            return None
        if self.current is None or number != self.current_id or self._greeting:
            raise ProtocolViolation("a reply to nothing")
        if not ok and not (
            type(result) is list and len(result) == 2 and type(result[0]) is str and type(result[1]) is str
        ):
            raise ProtocolViolation("not an error")
        request = self.current
        if type(result) is blob.Stream:
            self._stream = result
            self._patience(now)
            return request, True, result
        stream = self._stream
        if stream is not None:
            if type(result) is int:
                stream.came(result)
                self._patience(now)
                return request, True, stream
            self._end(stream, request, result)
            result = stream
        self._ahead = 0
        self._done(now)
        return request, ok, result

    def _done(self, now: float) -> None:
        """The worker has answered."""
        self.current = None
        self.deadline = None
        self.used_at = now

    def _part(self, number: int, rows: object) -> tuple[Request, None, object]:
        """Some rows of a long list.  Raises ProtocolViolation."""
        request = self.current
        if request is None or number != self.current_id or self._greeting or self._stream is not None:
            raise ProtocolViolation("a part of nothing")
        self._ahead += self._assembler.size
        if self._ahead > frame.REPLY_LIMIT:
            raise ProtocolViolation("frame too large")
        return request, None, rows

    def _patience(self, now: float) -> None:
        """The limit is for what comes next."""
        assert self.current is not None and self.current.command is not None
        if self.deadline is not None:
            self.deadline = now + self.current.command.limit

    def spare(self, now: float) -> bool:
        """The deadline has passed, but it is the host for whom the worker waits: then there is another."""
        if self._stream is None or not self._stream.waiting:
            return False
        self._patience(now)
        return True

    def _end(self, stream: blob.Stream, request: Request, rest: object) -> None:
        """The last of a flow: the members that are no bulk data.  Raises ProtocolViolation."""
        command = request.command
        assert command is not None
        if type(rest) is not dict or stream.member in rest or rest.get("count") != stream.total:
            raise ProtocolViolation("not the end of bulk data")
        if not fits(command.returns)({**rest, stream.member: b""}):
            raise ProtocolViolation("not the end of bulk data")
        self._stream = None
        stream.end(rest)

    def _attach(self, value: list[object], fd: int | None) -> None:
        """Make a reply of five elements one of three: each member named in the fourth becomes its part of a memfd, the kept one
        if the fifth says so.

        Owns `fd`, also when it raises ProtocolViolation."""
        memory: blob.Memory | None = None
        kept = len(value) == 5 and value[4] in (frame.KEPT, frame.FLOW)
        if fd is not None:
            memory = blob.take(fd, kept=kept)
        if len(value) != 5 or type(value[4]) is not int or not frame.SEALED <= value[4] <= frame.FLOW:
            raise ProtocolViolation("not a reply")
        number, ok, result, names, kind = value
        request = self.current
        if request is None or number != self.current_id or ok is not True or self._greeting or self._stream is not None:
            raise ProtocolViolation("bulk data for nothing")
        assert request.command is not None
        gives = request.command.gives
        if type(result) is not dict or type(names) is not list or not 0 < len(names) <= len(gives):
            raise ProtocolViolation("not bulk data")
        sizes: list[int] = []
        for name in names:
            if name not in gives or type(result.get(name)) is not int or names.count(name) != 1:
                raise ProtocolViolation("bulk data that the command does not have")
            sizes.append(result[name])
        if kept:
            if memory is not None:
                self._window = memory
            memory = self._window
        if memory is None:
            raise ProtocolViolation("bulk data without a descriptor")
        if kept:
            try:
                memory.view(0, 1)  # later on there would be a reply that has begun
            except (OSError, ValueError):
                raise ProtocolViolation("bulk data that cannot be read") from None
        if kind == frame.FLOW:
            count = request.arguments.get("count")
            if not request.command.flows or type(count) is not int or result != {names[0]: blob.SLOT}:
                raise ProtocolViolation("bulk data that cannot come piece by piece")
            value[2:] = [blob.Stream(names[0], memory, self._taker(), count)]
            return
        for name, part in zip(names, blob.parts(memory, sizes, kept=kept), strict=True):
            result[name] = part
        del value[3:]

    def _taker(self) -> Callable[[], None]:
        """What tells this worker, and none that comes after it, that slots were taken."""
        socket = self.socket
        assert socket is not None

        def taken() -> None:
            try:
                socket.send(frame.TAKEN)
            except OSError:
                pass  # the end of file tells the rest

        return taken

    def idle_at(self) -> float | None:
        """When to ask whether it may go."""
        if self.state != UP or not self.row.idle or self.stays or self.current is not None or self.queue or self._probe:
            return None
        return self.used_at + self.lingers

    def probe(self) -> None:
        self._probe = self._next_id()
        self._send([self._probe, frame.IDLE, {}])

    def close(self) -> None:
        if self.socket is not None:
            self.socket.close()
            self.socket = None
            self.fd = -1
        self.state = DOWN
        self._head = b""
        self._window = None
        self._stream = None
        self._unsent.clear()

    def lost(self) -> Request | None:
        """The worker is gone: the request that went with it.

        One that it never read (the kernel tells: ECONNRESET or EPIPE) is not lost, it goes to the next worker; but
        once only, lest it goes round for ever among workers that leave as soon as they come.  Of a request with bulk data it
        may have read a part, and a write to a file may have begun: the next worker, which does not have its handle, refuses it."""
        begun = self._stream is not None or self._ahead > 0
        self.close()
        request, self.current = self.current, None
        self.deadline = None
        if request is not None and self.unread and not begun and not self.overdue and request is not self.moved:
            self.queue.insert(0, request)
            self.moved = request
            return None
        self.moved = None
        return request


def _descriptor(ancillary: list[tuple[int, int, bytes]], flags: int) -> int | None:
    """The one descriptor that came with a datagram.  Raises ProtocolViolation when there are more, and closes them."""
    fds: list[int] = []
    for level, kind, payload in ancillary:
        if level == _socket.SOL_SOCKET and kind == _socket.SCM_RIGHTS:
            fds += [int.from_bytes(payload[i : i + 4], sys.byteorder) for i in range(0, len(payload) // 4 * 4, 4)]
    if len(fds) > 1 or flags & _socket.MSG_CTRUNC:
        for fd in fds:
            os.close(fd)
        raise ProtocolViolation("more than one descriptor")
    return fds[0] if fds else None


def death_notice(command: Command, overdue: bool) -> WorkerLost:
    """What the host is told about a request whose worker went with it."""
    if overdue:
        return WorkerLost(f"{command.name} took longer than {command.limit:g} seconds: its worker was ended")
    return WorkerLost(f"the {command.domain} worker died while it executed {command.name}")


def nonsense(request: Request) -> WorkerLost:
    """What the host is told when the worker answered with something that cannot be a reply."""
    assert request.command is not None
    return WorkerLost(
        f"the {request.command.domain} worker broke the protocol while it executed {request.command.name}"
    )


def unavailable(row: Domain, unprivileged: bool) -> CommandError:
    if unprivileged:
        names = ", ".join("every capability" if c == "ALL" else f"CAP_{c}" for c in row.caps) or "uid 0"
        return CommandError(f"the {row.name} worker needs {names}: the agent was not started as root")
    return CommandError(f"the {row.name} worker cannot be started for now: it keeps dying, see the agent's log")
